#ifndef ORION_SHIM_HOST_FUNCTION_H
#define ORION_SHIM_HOST_FUNCTION_H

#include "state.h"

/// The stream ends: its callback thread finishes what is queued and goes.
void orion_callback_lane_retire(orion_stream* stream);

#endif
