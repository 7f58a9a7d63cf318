#ifndef ORION_SHIM_HOST_FUNCTION_H
#define ORION_SHIM_HOST_FUNCTION_H

#include "state.h"

/// The stream ends: its callback thread finishes what is queued and goes.
void orion_callback_lane_retire(orion_stream* stream);

/// The function runs when the stream's work so far is done, and the stream goes on when it has returned.
CUresult orion_host_function_enqueue(orion_stream* stream, CUhostFn function, void* data);
/// The same for work of this library: `run` is called in any case, with the error of the stream's context or 0, and
/// frees what `data` points to. CUDA_ERROR_OUT_OF_MEMORY: it is not, and no further stream can have such work.
CUresult orion_stream_task_enqueue(orion_stream* stream, void (*run)(void* data, CUresult status), void* data);
/// A client word for good; 0: none is left.
uint32_t orion_callback_index_take(void);

#endif
