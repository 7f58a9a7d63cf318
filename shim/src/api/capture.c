// Stream capture: the rules of cuda.h about who may capture, join, wait and end, kept in this process.
//
// A stream's capture state hangs on the stream; the NULL stream of a context carries a mark while a blocking stream of
// that context captures, so that the one check in orion_stream_submit finds both. Links are handles of nodes: a node
// that the program has destroyed meanwhile is left out.
#include "capture.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"

typedef struct orion_capture {
  struct orion_capture* next;
  uint64_t id;
  uint64_t graph;  // handle
  CUstreamCaptureMode mode;
  const orion_thread* thread;  // that began it
  orion_stream* origin;
  bool is_invalid;
  bool owns_graph;  // made by cuStreamBeginCapture, so that a failure destroys it
} orion_capture;

typedef struct orion_stream_capture {
  struct orion_stream_capture* next;
  orion_stream* stream;
  orion_capture* capture;
  orion_recorder* recorder;  // of a recorder's own stream; then nothing else here counts
  orion_links last;          // what the next node depends on
  CUgraphNode* shown;        // given out by cuStreamGetCaptureInfo
  CUgraphEdgeData* shown_data;
} orion_stream_capture;

typedef struct orion_event_capture {
  uint64_t id;
  orion_links last;
} orion_event_capture;

_Atomic uint32_t orion_captures;
// All under orion_graph_mutex.
static orion_capture* captures;
static orion_stream_capture* capturing_streams;
static orion_stream_capture null_mark;  // on NULL streams of contexts with capturing blocking streams
static uint64_t last_capture_id;

#define LOCK() pthread_mutex_lock(&orion_graph_mutex)
#define UNLOCK() pthread_mutex_unlock(&orion_graph_mutex)

static orion_stream_capture* state_of(orion_stream* stream) {
  return atomic_load_explicit(&stream->capture, memory_order_acquire);
}

static orion_capture* capture_by_id(uint64_t id) {
  orion_capture* capture = captures;
  while (capture != NULL && capture->id != id) capture = capture->next;
  return capture;
}

static bool is_blocking(const orion_stream* stream) { return (stream->flags & CU_STREAM_NON_BLOCKING) == 0; }

/// The NULL stream's mark follows from the streams that capture.
static void mark_null_stream(orion_context* context) {
  bool marked = false;
  for (orion_stream_capture* at = capturing_streams; at != NULL; at = at->next) {
    if (at->stream->context == context && is_blocking(at->stream)) marked = true;
  }
  atomic_store(&context->null_stream.capture, marked ? &null_mark : NULL);
}

static orion_stream_capture* join(orion_stream* stream, orion_capture* capture) {
  orion_stream_capture* state = calloc(1, sizeof *state);
  if (state == NULL) return NULL;
  state->stream = stream;
  state->capture = capture;
  state->next = capturing_streams;
  capturing_streams = state;
  atomic_store(&stream->capture, state);
  mark_null_stream(stream->context);
  return state;
}

static void leave(orion_stream_capture* state) {
  orion_stream_capture** link = &capturing_streams;
  while (*link != state) link = &(*link)->next;
  *link = state->next;
  atomic_store(&state->stream->capture, NULL);
  mark_null_stream(state->stream->context);
  orion_links_drop(&state->last);
  free(state->shown);
  free(state->shown_data);
  free(state);
}

/// Takes the capture and all its streams out; the graph stays.
static void end(orion_capture* capture) {
  for (orion_stream_capture *at = capturing_streams, *next; at != NULL; at = next) {
    next = at->next;
    if (at->capture == capture) leave(at);
  }
  orion_capture** link = &captures;
  while (*link != capture) link = &(*link)->next;
  *link = capture->next;
  orion_graph* graph = orion_graph_of((CUgraph)(uintptr_t)capture->graph);
  if (graph != NULL) graph->captures--;
  if (graph != NULL && capture->is_invalid && capture->owns_graph) orion_graph_drop(graph);
  free(capture);
  atomic_fetch_sub(&orion_captures, 1);
}

static CUresult invalidate(orion_capture* capture, CUresult code) {
  capture->is_invalid = true;
  return code;
}

/// A use of the NULL stream while blocking streams of its context capture: they all end.
static CUresult implicit(const orion_context* context) {
  for (orion_stream_capture* at = capturing_streams; at != NULL; at = at->next) {
    if (at->stream->context == context && is_blocking(at->stream)) at->capture->is_invalid = true;
  }
  return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

/// Whether the stream may record. `state` is NULL when it has stopped capturing meanwhile.
static CUresult usable(orion_stream* stream, orion_stream_capture** out) {
  orion_stream_capture* state = state_of(stream);
  *out = state;
  if (state == NULL) return CUDA_SUCCESS;
  if (state == &null_mark) return implicit(stream->context);
  return state->capture->is_invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ nodes

/// Under the mutex. The new node depends on all that the stream has captured last, and takes its place.
static CUresult append(orion_stream_capture* state, CUgraphNodeType type, orion_node_work* work) {
  orion_graph* graph = orion_graph_of((CUgraph)(uintptr_t)state->capture->graph);
  if (graph == NULL) {
    orion_work_drop(work);
    return invalidate(state->capture, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  }
  orion_node* node = orion_node_add(graph, type, state->stream->context, work);
  if (node == NULL) return invalidate(state->capture, CUDA_ERROR_OUT_OF_MEMORY);
  node->capture = state->capture->id;
  CUresult result = CUDA_SUCCESS;
  for (uint32_t i = 0; i < state->last.count && result == CUDA_SUCCESS; i++) {
    orion_node* before = orion_node_of(state->last.items[i].node);
    if (before != NULL) result = orion_node_link(before, node, &state->last.items[i].data);
  }
  state->last.count = 0;
  if (result == CUDA_SUCCESS && !orion_links_add(&state->last, node->handle, NULL)) result = CUDA_ERROR_OUT_OF_MEMORY;
  return result == CUDA_SUCCESS ? CUDA_SUCCESS : invalidate(state->capture, result);
}

struct orion_recorder {
  orion_stream stream;
  orion_stream_capture state;
  orion_node_work work;
  bool is_filled;
  uintptr_t override_before;
};

static _Thread_local orion_recorder* recording;

orion_recorder* orion_recorder_begin(orion_context* context) {
  orion_recorder* recorder = calloc(1, sizeof *recorder);
  if (recorder == NULL) return NULL;
  recorder->stream.context = context;
  recorder->stream.session = context->session;
  recorder->stream.flags = CU_STREAM_NON_BLOCKING;
  recorder->stream.wire_index = UINT32_MAX;  // never sent
  recorder->state.recorder = recorder;
  atomic_store(&recorder->stream.capture, &recorder->state);
  recorder->override_before = orion_default_stream_override;
  orion_default_stream_override = ORION_STREAM_RECORDER;
  recording = recorder;
  return recorder;
}

bool orion_recorder_end(orion_recorder* recorder, orion_node_work* work) {
  const bool filled = recorder->is_filled;
  if (filled) *work = recorder->work;
  orion_default_stream_override = recorder->override_before;
  recording = NULL;
  free(recorder);
  return filled;
}

CUresult orion_recorder_stream(orion_stream** stream) {
  if (recording == NULL) return CUDA_ERROR_INVALID_HANDLE;
  *stream = &recording->stream;
  return CUDA_SUCCESS;
}

static bool is_recorder(orion_stream* stream) {
  const orion_stream_capture* state = state_of(stream);
  return state != NULL && state->recorder != NULL;
}

static CUresult record_work(orion_stream* stream, orion_node_work* work) {
  orion_recorder* recorder = state_of(stream)->recorder;
  if (recorder->is_filled) {  // more than one operation is no node
    orion_work_drop(work);
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  recorder->work = *work;
  recorder->is_filled = true;
  return CUDA_SUCCESS;
}

CUresult orion_capture_node(orion_stream* stream, CUgraphNodeType type, orion_node_work* work) {
  if (is_recorder(stream)) return record_work(stream, work);
  LOCK();
  orion_stream_capture* state;
  CUresult result = usable(stream, &state);
  if (result == CUDA_SUCCESS && state == NULL) result = CUDA_ERROR_ILLEGAL_STATE;
  if (result == CUDA_SUCCESS) {
    result = append(state, type, work);
  } else {
    orion_work_drop(work);
  }
  UNLOCK();
  return result;
}

static CUgraphNodeType type_of(uint16_t code) {
  switch (code) {
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX:
      return CU_GRAPH_NODE_TYPE_KERNEL;
    case ORION_OP_MEMSET:
      return CU_GRAPH_NODE_TYPE_MEMSET;
    case ORION_OP_STREAM_WRITE_VALUE:
    case ORION_OP_STREAM_WAIT_VALUE:
      return CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
    default:
      return CU_GRAPH_NODE_TYPE_MEMCPY;
  }
}

CUresult orion_capture_operation(orion_stream* stream, const orion_op* op, uint32_t head_bytes, const void* tail,
                                 uint32_t tail_bytes) {
  orion_node_work work = {.op = orion_op_keep(op, head_bytes, tail, tail_bytes, stream->context)};
  if (work.op == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  return orion_capture_node(stream, type_of(op->code), &work);
}

CUresult orion_capture_refuse(orion_stream* stream) {
  if (is_recorder(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  LOCK();
  orion_stream_capture* state;
  CUresult result = usable(stream, &state);
  if (result == CUDA_SUCCESS && state != NULL) {
    result = invalidate(state->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  UNLOCK();
  return result;
}

// ------------------------------------------------------------------------------------------------ modes

CUresult orion_capture_check_unsafe_slow(void) {
  const orion_thread* thread = orion_thread_state();
  if (thread == NULL || thread->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  CUresult result = CUDA_SUCCESS;
  LOCK();
  for (orion_capture* at = captures; at != NULL; at = at->next) {
    const bool own = at->thread == thread && at->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool other =
        thread->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && at->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (own || other) result = invalidate(at, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  UNLOCK();
  return result;
}

CUresult orion_capture_check_context(orion_context* context) {
  if (atomic_load_explicit(&orion_captures, memory_order_relaxed) == 0) return CUDA_SUCCESS;
  CUresult result = orion_capture_check_unsafe_slow();
  LOCK();
  for (orion_stream_capture* at = capturing_streams; at != NULL; at = at->next) {
    if (at->stream->context == context) result = invalidate(at->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  UNLOCK();
  return result;
}

ORION_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ORION_ENTER();
  ORION_REQUIRE(mode != NULL && (unsigned)*mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
  orion_thread* thread = orion_thread_state();
  ORION_REQUIRE(thread != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  const CUstreamCaptureMode previous = thread->capture_mode;
  thread->capture_mode = *mode;
  *mode = previous;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ events

static void forget(orion_event* event) {
  orion_event_capture* old = atomic_exchange(&event->capture, NULL);
  if (old == NULL) return;
  orion_links_drop(&old->last);
  free(old);
}

void orion_capture_forget_event(orion_event* event) {
  LOCK();
  forget(event);
  UNLOCK();
}

static bool copy_links(orion_links* to, const orion_links* from) {
  for (uint32_t i = 0; i < from->count; i++) {
    if (!orion_links_add(to, from->items[i].node, &from->items[i].data)) return false;
  }
  return true;
}

/// The event now means what the stream has captured so far.
static CUresult remember(orion_event* event, orion_stream_capture* state) {
  orion_event_capture* captured = calloc(1, sizeof *captured);
  if (captured == NULL || !copy_links(&captured->last, &state->last)) {
    if (captured != NULL) orion_links_drop(&captured->last);
    free(captured);
    return invalidate(state->capture, CUDA_ERROR_OUT_OF_MEMORY);
  }
  captured->id = state->capture->id;
  forget(event);
  atomic_store(&event->capture, captured);
  return CUDA_SUCCESS;
}

static CUresult event_node(orion_event* event, orion_stream_capture* state, bool records) {
  orion_node_work work;
  if (!orion_work_event(event, records, &work)) return invalidate(state->capture, CUDA_ERROR_OUT_OF_MEMORY);
  return append(state, records ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_WAIT_EVENT, &work);
}

CUresult orion_capture_record(orion_event* event, orion_stream* stream, uint32_t flags) {
  LOCK();
  orion_stream_capture* state;
  CUresult result = usable(stream, &state);
  if (result == CUDA_SUCCESS && state == NULL) result = CUDA_ERROR_ILLEGAL_STATE;
  if (result == CUDA_SUCCESS && event->context != stream->context) {
    result = invalidate(state->capture, CUDA_ERROR_INVALID_HANDLE);
  }
  if (result == CUDA_SUCCESS) {
    result = flags & CU_EVENT_RECORD_EXTERNAL ? event_node(event, state, true) : remember(event, state);
  }
  UNLOCK();
  return result;
}

/// A stream waits for an event of a capture: it joins, or adds to what it depends on.
static CUresult wait_captured(const orion_event_capture* captured, orion_stream* stream, orion_stream_capture* state) {
  orion_capture* capture = capture_by_id(captured->id);
  if (state != NULL && state != &null_mark && state->capture != capture) {
    if (capture != NULL) capture->is_invalid = true;
    return invalidate(state->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
  }
  if (capture == NULL) return CUDA_ERROR_CAPTURED_EVENT;
  if (capture->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream->wire_index == 0) return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  if (state == NULL) state = join(stream, capture);
  if (state == NULL || !copy_links(&state->last, &captured->last)) {
    return invalidate(capture, CUDA_ERROR_OUT_OF_MEMORY);
  }
  return CUDA_SUCCESS;
}

CUresult orion_capture_wait(orion_event* event, orion_stream* stream, uint32_t flags, bool* done) {
  *done = true;
  LOCK();
  orion_stream_capture* state;
  CUresult result = usable(stream, &state);
  const orion_event_capture* captured = atomic_load(&event->capture);
  const bool other_server = event->context->session != stream->session;
  if (result == CUDA_SUCCESS) {
    if (other_server && state != NULL && (captured != NULL || (flags & CU_EVENT_WAIT_EXTERNAL) != 0)) {
      orion_log(ORION_LOG_WARN, "a capture waits for an event of another server: graphs of two servers do not exist");
      result = invalidate(state->capture, CUDA_ERROR_NOT_SUPPORTED);
    } else if (other_server && captured != NULL) {
      orion_log(ORION_LOG_WARN,
                "a stream cannot join the capture of another server: graphs of two servers do not exist");
      orion_capture* capture = capture_by_id(captured->id);
      result = capture == NULL ? CUDA_ERROR_NOT_SUPPORTED : invalidate(capture, CUDA_ERROR_NOT_SUPPORTED);
    } else if (state != NULL && (flags & CU_EVENT_WAIT_EXTERNAL) != 0) {
      result = event_node(event, state, false);
    } else if (captured != NULL) {
      result = wait_captured(captured, stream, state);
    } else if (state != NULL) {
      result = invalidate(state->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    } else {
      *done = false;
    }
  }
  UNLOCK();
  return result;
}

CUresult orion_capture_check_event(orion_event* event) {
  return atomic_load_explicit(&event->capture, memory_order_acquire) == NULL ? CUDA_SUCCESS : CUDA_ERROR_CAPTURED_EVENT;
}

CUresult orion_capture_refuse_event(orion_event* event) {
  LOCK();
  const orion_event_capture* captured = atomic_load(&event->capture);
  orion_capture* capture = captured == NULL ? NULL : capture_by_id(captured->id);
  const bool is_open = capture != NULL && !capture->is_invalid;
  if (is_open) capture->is_invalid = true;
  UNLOCK();
  return is_open ? CUDA_ERROR_CAPTURED_EVENT : CUDA_ERROR_INVALID_VALUE;
}

void orion_capture_forget_stream(orion_stream* stream) {
  LOCK();
  orion_stream_capture* state = state_of(stream);
  if (state != NULL && state != &null_mark) {
    orion_capture* capture = state->capture;
    capture->is_invalid = true;
    if (capture->origin == stream) {
      end(capture);
    } else {
      leave(state);
    }
  }
  UNLOCK();
}

// ------------------------------------------------------------------------------------------------ begin and end

static CUresult begin(orion_stream* stream, uint64_t graph_handle, const CUgraphNode* dependencies,
                      const CUgraphEdgeData* data, size_t count, CUstreamCaptureMode mode) {
  orion_thread* thread = orion_thread_state();
  if (thread == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  if (stream->wire_index == 0) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (state_of(stream) != NULL) return CUDA_ERROR_ILLEGAL_STATE;
  orion_graph* graph = graph_handle == 0 ? orion_graph_new() : orion_graph_of((CUgraph)(uintptr_t)graph_handle);
  if (graph == NULL) return graph_handle == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; i++) {
    const orion_node* node = orion_node_of((uint64_t)(uintptr_t)dependencies[i]);
    if (node == NULL || node->graph != graph) return CUDA_ERROR_INVALID_VALUE;
  }
  orion_capture* capture = calloc(1, sizeof *capture);
  if (capture == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *capture = (orion_capture){.next = captures,
                             .id = ++last_capture_id,
                             .graph = graph->handle,
                             .mode = mode,
                             .thread = thread,
                             .origin = stream,
                             .owns_graph = graph_handle == 0};
  captures = capture;
  graph->captures++;
  atomic_fetch_add(&orion_captures, 1);
  orion_stream_capture* state = join(stream, capture);
  bool whole = state != NULL;
  for (size_t i = 0; i < count && whole; i++) {
    whole = orion_links_add(&state->last, (uint64_t)(uintptr_t)dependencies[i], data == NULL ? NULL : &data[i]);
  }
  if (whole) return CUDA_SUCCESS;
  capture->is_invalid = true;
  end(capture);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

ORION_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE((unsigned)mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
  LOCK();
  const CUresult result = begin(stream, 0, NULL, NULL, 0, mode);
  UNLOCK();
  return result;
}

ORION_API CUresult cuStreamBeginCapture(CUstream handle) {
  ORION_COUNTED();
  return cuStreamBeginCapture_v2(handle, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

ORION_API CUresult cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph, const CUgraphNode* dependencies,
                                               const CUgraphEdgeData* data, size_t count, CUstreamCaptureMode mode) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE((unsigned)mode <= CU_STREAM_CAPTURE_MODE_RELAXED && graph != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(count == 0 || dependencies != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCK();
  const CUresult result = begin(stream, (uint64_t)(uintptr_t)graph, dependencies, data, count, mode);
  UNLOCK();
  return result;
}

/// Every node that this capture made leads to the origin: it has dependents or is among the last of the origin.
static bool is_joined(const orion_stream_capture* origin) {
  const orion_graph* graph = orion_graph_of((CUgraph)(uintptr_t)origin->capture->graph);
  for (uint32_t i = 0; graph != NULL && i < graph->count; i++) {
    const orion_node* node = graph->nodes[i];
    if (node->capture != origin->capture->id || node->to.count != 0) continue;
    bool found = false;
    for (uint32_t k = 0; k < origin->last.count; k++) found |= origin->last.items[k].node == node->handle;
    if (!found) return false;
  }
  return true;
}

static CUresult finish(orion_stream* stream, uint64_t* graph) {
  orion_stream_capture* state = state_of(stream);
  if (state == NULL || state == &null_mark) return CUDA_ERROR_ILLEGAL_STATE;
  orion_capture* capture = state->capture;
  const bool is_foreign = capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != orion_thread_state();
  if (!is_foreign && capture->origin != stream) return invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  CUresult result = CUDA_SUCCESS;
  if (is_foreign) {  // refused, and over all the same
    result = invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  } else if (capture->is_invalid) {
    result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  } else if (!is_joined(state)) {
    result = invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
  } else {
    *graph = capture->graph;
  }
  end(capture);
  return result;
}

ORION_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  ORION_ENTER_STREAM(stream, handle);
  uint64_t made = 0;
  LOCK();
  const CUresult result = finish(stream, &made);
  UNLOCK();
  if (graph != NULL && result != CUDA_ERROR_ILLEGAL_STATE) *graph = (CUgraph)(uintptr_t)made;
  return result;
}

// ------------------------------------------------------------------------------------------------ questions

static CUresult show_links(orion_stream_capture* state, const CUgraphNode** nodes, const CUgraphEdgeData** data,
                           size_t* count) {
  const uint32_t room = state->last.count == 0 ? 1 : state->last.count;
  CUgraphNode* shown = realloc(state->shown, room * sizeof *shown);
  if (shown != NULL) state->shown = shown;
  CUgraphEdgeData* shown_data = realloc(state->shown_data, room * sizeof *shown_data);
  if (shown_data != NULL) state->shown_data = shown_data;
  if (shown == NULL || shown_data == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  for (uint32_t i = 0; i < state->last.count; i++) {
    shown[i] = (CUgraphNode)(uintptr_t)state->last.items[i].node;
    shown_data[i] = state->last.items[i].data;
  }
  if (nodes != NULL) *nodes = shown;
  if (data != NULL) *data = shown_data;
  if (count != NULL) *count = state->last.count;
  return CUDA_SUCCESS;
}

static CUresult tell(orion_stream* stream, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,
                     const CUgraphNode** nodes, const CUgraphEdgeData** data, size_t* count) {
  orion_stream_capture* state = state_of(stream);
  if (state == &null_mark) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  if (state == NULL) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
  }
  const orion_capture* capture = state->capture;
  if (capture->is_invalid) {
    *status = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    return CUDA_SUCCESS;
  }
  *status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
  if (id != NULL) *id = capture->id;
  if (graph != NULL) *graph = (CUgraph)(uintptr_t)capture->graph;
  if (nodes == NULL && data == NULL && count == NULL) return CUDA_SUCCESS;
  return show_links(state, nodes, data, count);
}

ORION_API CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id,
                                             CUgraph* graph, const CUgraphNode** nodes, const CUgraphEdgeData** data,
                                             size_t* count) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(status != NULL, CUDA_ERROR_INVALID_VALUE);
  if (!orion_is_captured(stream)) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
  }
  LOCK();
  const CUresult result = tell(stream, status, id, graph, nodes, data, count);
  UNLOCK();
  return result;
}

ORION_API CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id,
                                             CUgraph* graph, const CUgraphNode** nodes, size_t* count) {
  ORION_COUNTED();
  return cuStreamGetCaptureInfo_v3(handle, status, id, graph, nodes, NULL, count);
}

ORION_API CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus* status, cuuint64_t* id) {
  ORION_COUNTED();
  return cuStreamGetCaptureInfo_v3(handle, status, id, NULL, NULL, NULL, NULL);
}

ORION_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  ORION_COUNTED();
  return cuStreamGetCaptureInfo_v3(handle, status, NULL, NULL, NULL, NULL, NULL);
}

static CUresult update_links(orion_stream* stream, const CUgraphNode* nodes, const CUgraphEdgeData* data, size_t count,
                             unsigned int flags) {
  orion_stream_capture* state = state_of(stream);
  if (state == NULL || state == &null_mark) return CUDA_ERROR_ILLEGAL_STATE;
  if (state->capture->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (size_t i = 0; i < count; i++) {
    const orion_node* node = orion_node_of((uint64_t)(uintptr_t)nodes[i]);
    if (node == NULL || node->graph->handle != state->capture->graph) return CUDA_ERROR_INVALID_VALUE;
  }
  if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES) state->last.count = 0;
  for (size_t i = 0; i < count; i++) {
    if (!orion_links_add(&state->last, (uint64_t)(uintptr_t)nodes[i], data == NULL ? NULL : &data[i])) {
      return invalidate(state->capture, CUDA_ERROR_OUT_OF_MEMORY);
    }
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode* nodes,
                                                        const CUgraphEdgeData* data, size_t count, unsigned int flags) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(flags <= CU_STREAM_SET_CAPTURE_DEPENDENCIES && (count == 0 || nodes != NULL), CUDA_ERROR_INVALID_VALUE);
  LOCK();
  const CUresult result = update_links(stream, nodes, data, count, flags);
  UNLOCK();
  return result;
}

ORION_API CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* nodes, size_t count,
                                                     unsigned int flags) {
  ORION_COUNTED();
  return cuStreamUpdateCaptureDependencies_v2(handle, nodes, NULL, count, flags);
}
