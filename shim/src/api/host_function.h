#ifndef ORION_SHIM_HOST_FUNCTION_H
#define ORION_SHIM_HOST_FUNCTION_H

#include "state.h"

/// The stream ends: its callback thread finishes what is queued and goes.
void orion_callback_lane_retire(orion_stream* stream);

/// The function runs when the stream's work so far is done, and the stream goes on when it has returned.
CUresult orion_host_function_enqueue(orion_stream* stream, CUhostFn function, void* data);
/// A client word for good; 0: none is left.
uint32_t orion_callback_index_take(void);

#endif
