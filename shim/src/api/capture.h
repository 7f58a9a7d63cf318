// Streams that record into a graph instead of working: what the rest of the API must know of it.
//
// Nothing of a capture reaches the worker: operations of a capturing stream become nodes of a graph in this process.
#ifndef ORION_SHIM_CAPTURE_H
#define ORION_SHIM_CAPTURE_H

#include "graph.h"

/// Count of captures in this process; 0 costs every check one load.
extern _Atomic uint32_t orion_captures;

static inline bool orion_is_captured(const orion_stream* stream) {
  return __builtin_expect(atomic_load_explicit(&stream->capture, memory_order_acquire) != NULL, 0);
}

/// What orion_stream_submit does for a stream with a capture.
CUresult orion_capture_operation(orion_stream* stream, const orion_op* op, uint32_t head_bytes, const void* tail,
                                 uint32_t tail_bytes);
/// Adds a node behind what the stream has captured so far. Takes `work` over.
CUresult orion_capture_node(orion_stream* stream, CUgraphNodeType type, orion_node_work* work);
/// For calls that a capture of this stream forbids (waits, queries, synchronous copies, launches of graphs): 900, or
/// 906 on the NULL stream.
CUresult orion_capture_refuse(orion_stream* stream);
CUresult orion_capture_record(orion_event* event, orion_stream* stream, uint32_t flags);
/// Called for every wait of a stream for an event while there is a capture. *done: the wait was the capture's business.
CUresult orion_capture_wait(orion_event* event, orion_stream* stream, uint32_t flags, bool* done);
/// For calls about an event: 907 when it was last recorded in a capture.
CUresult orion_capture_check_event(orion_event* event);
/// For a query or wait of the host for such an event: 907, and the capture is over; 1 when it was over before.
CUresult orion_capture_refuse_event(orion_event* event);
/// For calls that could end a capture elsewhere (cuda.h: potentially unsafe): 900 under the rules of the thread's mode.
CUresult orion_capture_check_unsafe_slow(void);
static inline CUresult orion_capture_check_unsafe(void) {
  if (__builtin_expect(atomic_load_explicit(&orion_captures, memory_order_relaxed) == 0, 1)) return CUDA_SUCCESS;
  return orion_capture_check_unsafe_slow();
}
/// For calls that wait for a whole context: never permitted while one of its streams captures.
CUresult orion_capture_check_context(orion_context* context);
/// The stream is destroyed.
void orion_capture_forget_stream(orion_stream* stream);
/// The event means something else from now on.
void orion_capture_forget_event(orion_event* event);
static inline void orion_capture_leave_event(orion_event* event) {
  if (__builtin_expect(atomic_load_explicit(&event->capture, memory_order_relaxed) != NULL, 0)) {
    orion_capture_forget_event(event);
  }
}

/// What a NULL stream means while a node of a graph is described by the call that would do its work: a stream that
/// keeps the one operation that it gets.
#define ORION_STREAM_RECORDER 3u
typedef struct orion_recorder orion_recorder;
orion_recorder* orion_recorder_begin(orion_context* context);  // NULL without memory
/// Ends it. False, and nothing in `work`, when no operation came.
bool orion_recorder_end(orion_recorder* recorder, orion_node_work* work);
CUresult orion_recorder_stream(orion_stream** stream);

#define ORION_CAPTURE_SAFE()                               \
  do {                                                     \
    const CUresult unsafe_ = orion_capture_check_unsafe(); \
    if (unsafe_ != CUDA_SUCCESS) return unsafe_;           \
  } while (0)

#endif
