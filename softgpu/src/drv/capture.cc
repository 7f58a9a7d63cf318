// Stream capture: who may capture, join, wait and end.
#include "capture.h"

#include <algorithm>
#include <list>

#include "api.h"

using namespace sg;

namespace {

enum : CUresult {
  kIllegalState = 401,
  kUnsupported = 900,
  kInvalidated = 901,
  kMerge = 902,
  kUnmatched = 903,
  kUnjoined = 904,
  kIsolation = 905,
  kImplicit = 906,
  kCapturedEvent = 907,
  kWrongThread = 908,
};

std::list<std::shared_ptr<Capture>> captures;
std::list<std::shared_ptr<StreamCapture>> states;
std::atomic<int> capture_count{0};
uint64_t last_id = 0;

std::shared_ptr<StreamCapture> state_of(const Stream& stream) {
  for (const auto& state : states) {
    if (state->stream.get() == &stream) return state;
  }
  return nullptr;
}

bool is_blocking(const Stream& stream) {
  return stream.role == StreamRole::blocking || stream.role == StreamRole::per_thread;
}

[[noreturn]] void invalidate(Capture& capture, CUresult code) {
  capture.invalid = true;
  throw CaptureError{code};
}

[[noreturn]] void implicit(const Context& context) {
  for (const auto& state : states) {
    if (state->stream->context.get() == &context && is_blocking(*state->stream)) state->capture->invalid = true;
  }
  throw CaptureError{kImplicit};
}

void add_edge(std::vector<GraphEdge>* edges, const GraphEdge& edge) {
  for (const GraphEdge& known : *edges) {
    if (known.node == edge.node) return;
  }
  edges->push_back(edge);
}

std::shared_ptr<StreamCapture> join(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Capture>& capture) {
  auto state = std::make_shared<StreamCapture>();
  state->stream = stream;
  state->capture = capture;
  states.push_back(state);
  stream->capturing = true;
  if (is_blocking(*stream)) stream->context->capturing_blocking++;
  return state;
}

void leave(const std::shared_ptr<StreamCapture>& state) {
  state->stream->capturing = false;
  if (is_blocking(*state->stream)) state->stream->context->capturing_blocking--;
  states.remove(state);
}

void end(const std::shared_ptr<Capture>& capture) {
  for (auto it = states.begin(); it != states.end();) {
    auto state = *it++;
    if (state->capture == capture) leave(state);
  }
  captures.remove(capture);
  capture->graph->owned = false;
  if (capture->invalid && capture->owns_graph) drop_graph(capture->graph);
  capture_count--;
}

/// The state of a stream that may record now; null when it does not capture.
std::shared_ptr<StreamCapture> usable(const Stream& stream) {
  if (stream.role == StreamRole::legacy) {
    if (stream.context->capturing_blocking > 0) implicit(*stream.context);
    return nullptr;
  }
  auto state = state_of(stream);
  if (state && state->capture->invalid) throw CaptureError{kInvalidated};
  return state;
}

std::shared_ptr<GraphNode> append(StreamCapture& state, int type) {
  auto node = add_graph_node(*state.capture->graph, type);
  node->capture = state.capture->id;
  for (const GraphEdge& edge : state.last) {
    if (auto before = Graphs::get().nodes.get(edge.node)) {
      add_graph_edge(*state.capture->graph, *before, *node, edge.data);
    }
  }
  state.last.assign(1, GraphEdge{node->handle, {}});
  return node;
}

CUresult begin(CUstream handle, bool per_thread, CUgraph into, const CUgraphNode* from, const CUgraphEdgeData* data,
               size_t count, int mode) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (mode < 0 || mode > CU_STREAM_CAPTURE_MODE_RELAXED || (count > 0 && !from)) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    if (stream->role == StreamRole::legacy) return kUnsupported;
    if (stream->capturing) return kIllegalState;
    auto graph = into ? Graphs::get().graphs.get(into) : new_graph();
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    auto capture = std::make_shared<Capture>();
    capture->id = ++last_id;
    capture->graph = graph;
    capture->mode = mode;
    capture->thread = &thread_state();
    capture->origin = stream.get();
    capture->owns_graph = !into;
    graph->owned = true;
    captures.push_back(capture);
    capture_count++;
    auto state = join(stream, capture);
    for (size_t i = 0; i < count; ++i) {
      add_edge(&state->last, GraphEdge{from_handle(from[i]), data ? data[i] : CUgraphEdgeData{}});
    }
    return CUDA_SUCCESS;
  });
}

bool is_joined(const StreamCapture& origin) {
  for (const auto& node : origin.capture->graph->nodes) {
    if (node->capture != origin.capture->id || !node->to.empty()) continue;
    const bool found = std::any_of(origin.last.begin(), origin.last.end(),
                                   [&](const GraphEdge& edge) { return edge.node == node->handle; });
    if (!found) return false;
  }
  return true;
}

CUresult finish(CUstream handle, bool per_thread, CUgraph* out) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    std::lock_guard lock(Graphs::get().mutex);
    auto state = state_of(*stream);
    if (!state) return kIllegalState;
    if (out) *out = nullptr;
    auto capture = state->capture;
    const bool foreign = capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != &thread_state();
    if (!foreign && capture->origin != stream.get()) invalidate(*capture, kUnmatched);
    CUresult result = CUDA_SUCCESS;
    if (foreign) {  // refused, and over all the same
      capture->invalid = true;
      result = kWrongThread;
    } else if (capture->invalid) {
      result = kInvalidated;
    } else if (!is_joined(*state)) {
      capture->invalid = true;
      result = kUnjoined;
    } else if (out) {
      *out = to_handle<CUgraph>(capture->graph->handle);
    }
    end(capture);
    return result;
  });
}

CUresult tell(CUstream handle, bool per_thread, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** nodes,
              const CUgraphEdgeData** data, size_t* count) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto& stream) -> CUresult {
    if (!status) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    if (stream->role == StreamRole::legacy && context.capturing_blocking > 0) return kImplicit;
    auto state = state_of(*stream);
    *status = !state ? 0 : state->capture->invalid ? 2 : 1;
    if (*status != 1) return CUDA_SUCCESS;
    if (id) *id = state->capture->id;
    if (graph) *graph = to_handle<CUgraph>(state->capture->graph->handle);
    state->shown.clear();
    state->shown_data.clear();
    for (const GraphEdge& edge : state->last) {
      state->shown.push_back(to_handle<CUgraphNode>(edge.node));
      state->shown_data.push_back(edge.data);
    }
    if (nodes) *nodes = state->shown.data();
    if (data) *data = state->shown_data.data();
    if (count) *count = state->shown.size();
    return CUDA_SUCCESS;
  });
}

CUresult update(CUstream handle, bool per_thread, const CUgraphNode* nodes, const CUgraphEdgeData* data, size_t count,
                unsigned flags) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (flags > 1 || (count > 0 && !nodes)) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    auto state = usable(*stream);
    if (!state) return kIllegalState;
    if (flags == 1) state->last.clear();
    for (size_t i = 0; i < count; ++i) {
      if (!Graphs::get().nodes.get(nodes[i])) return CUDA_ERROR_INVALID_VALUE;
      add_edge(&state->last, GraphEdge{from_handle(nodes[i]), data ? data[i] : CUgraphEdgeData{}});
    }
    return CUDA_SUCCESS;
  });
}

}  // namespace

namespace sg {

std::shared_ptr<GraphNode> capture_typed_node(const std::shared_ptr<Stream>& stream, int type) {
  std::lock_guard lock(Graphs::get().mutex);
  auto state = usable(*stream);
  if (!state) throw CaptureError{kIllegalState};
  return append(*state, type);
}

void capture_operation(const std::shared_ptr<Stream>& stream, StreamOp op) {
  capture_typed_node(stream, op.node_type)->run = std::move(op.run);
}

void refuse_capture(const std::shared_ptr<Stream>& stream) {
  if (capture_count.load() == 0) return;
  std::lock_guard lock(Graphs::get().mutex);
  if (auto state = usable(*stream)) invalidate(*state->capture, kUnsupported);
}

void refuse_wait_in_capture(const std::shared_ptr<Stream>& stream) {
  try {
    refuse_capture(stream);
  } catch (const CaptureError& error) {
    throw CaptureError{error.code == kInvalidated ? kUnsupported : error.code};
  }
}

void check_capture_safe() {
  if (capture_count.load() == 0) return;
  const ThreadState* thread = &thread_state();
  if (thread->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return;
  std::lock_guard lock(Graphs::get().mutex);
  bool unsafe = false;
  for (const auto& capture : captures) {
    const bool own = capture->thread == thread && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool other =
        thread->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!own && !other) continue;
    capture->invalid = true;
    unsafe = true;
  }
  if (unsafe) throw CaptureError{kUnsupported};
}

void check_capture_context(const Context& context) {
  if (capture_count.load() == 0) return;
  check_capture_safe();
  std::lock_guard lock(Graphs::get().mutex);
  bool unsafe = false;
  for (const auto& state : states) {
    if (state->stream->context.get() != &context) continue;
    state->capture->invalid = true;
    unsafe = true;
  }
  if (unsafe) throw CaptureError{kUnsupported};
}

void refuse_captured_event(Event& event) {
  std::shared_ptr<EventCapture> captured;
  {
    std::lock_guard lock(event.mutex);
    captured = event.capture;
  }
  if (!captured) return;
  std::lock_guard lock(Graphs::get().mutex);
  int code = CUDA_ERROR_INVALID_VALUE;
  for (const auto& capture : captures) {
    if (capture->id != captured->id) continue;
    if (!capture->invalid) code = kCapturedEvent;
    capture->invalid = true;
  }
  throw CaptureError{code};
}

void capture_event(Event& event, const std::shared_ptr<Event>& shared, const std::shared_ptr<Stream>& stream,
                   bool external) {
  std::lock_guard lock(Graphs::get().mutex);
  auto state = usable(*stream);
  if (!state) throw CaptureError{kIllegalState};
  if (external) {
    append(*state, CU_GRAPH_NODE_TYPE_EVENT_RECORD)->params.event = shared->handle;
    return;
  }
  auto captured = std::make_shared<EventCapture>();
  captured->id = state->capture->id;
  captured->last = state->last;
  std::lock_guard event_lock(event.mutex);
  event.capture = std::move(captured);
}

bool capture_wait(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream, bool external) {
  std::shared_ptr<EventCapture> captured;
  {
    std::lock_guard event_lock(event->mutex);
    captured = event->capture;
  }
  if (!captured && capture_count.load() == 0) return false;
  std::lock_guard lock(Graphs::get().mutex);
  auto state = usable(*stream);
  if (state && external) {
    auto node = append(*state, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
    node->params.event = event->handle;
    node->run = [event] {
      if (auto last = event->record()) last->ticket.stream->wait(last->ticket.sequence, false);
    };
    return true;
  }
  if (!captured) {
    if (state) invalidate(*state->capture, kIsolation);
    return false;
  }
  auto found = std::find_if(captures.begin(), captures.end(), [&](auto& c) { return c->id == captured->id; });
  auto capture = found == captures.end() ? nullptr : *found;
  if (state && state->capture != capture) {
    if (capture) capture->invalid = true;
    invalidate(*state->capture, kMerge);
  }
  if (!capture) throw CaptureError{kCapturedEvent};
  if (capture->invalid) throw CaptureError{kInvalidated};
  if (stream->role == StreamRole::legacy) invalidate(*capture, kImplicit);
  if (!state) state = join(stream, capture);
  for (const GraphEdge& edge : captured->last) add_edge(&state->last, edge);
  return true;
}

void forget_capture(const std::shared_ptr<Stream>& stream) {
  if (!stream->capturing) return;
  std::lock_guard lock(Graphs::get().mutex);
  auto state = state_of(*stream);
  if (!state) return;
  auto capture = state->capture;
  capture->invalid = true;
  if (capture->origin == stream.get()) {
    end(capture);
  } else {
    leave(state);
  }
}

}  // namespace sg

// Every function with its twin for the per-thread default stream.
#define SG_CAPTURE_PAIR(name, parameters, call) \
  SG_API name parameters {                      \
    constexpr bool pt = false;                  \
    return call;                                \
  }                                             \
  SG_API name##_ptsz parameters {               \
    constexpr bool pt = true;                   \
    return call;                                \
  }
SG_CAPTURE_PAIR(cuStreamBeginCapture, (CUstream s), begin(s, pt, nullptr, nullptr, nullptr, 0, 0))
SG_CAPTURE_PAIR(cuStreamBeginCapture_v2, (CUstream s, int mode), begin(s, pt, nullptr, nullptr, nullptr, 0, mode))
SG_CAPTURE_PAIR(cuStreamBeginCaptureToGraph,
                (CUstream s, CUgraph graph, const CUgraphNode* from, const CUgraphEdgeData* data, size_t count,
                 int mode),
                graph ? begin(s, pt, graph, from, data, count, mode) : CUresult{CUDA_ERROR_INVALID_VALUE})
SG_CAPTURE_PAIR(cuStreamEndCapture, (CUstream s, CUgraph* graph), finish(s, pt, graph))
SG_CAPTURE_PAIR(cuStreamIsCapturing, (CUstream s, int* status),
                tell(s, pt, status, nullptr, nullptr, nullptr, nullptr, nullptr))
SG_CAPTURE_PAIR(cuStreamGetCaptureInfo, (CUstream s, int* status, uint64_t* id),
                tell(s, pt, status, id, nullptr, nullptr, nullptr, nullptr))
SG_CAPTURE_PAIR(cuStreamGetCaptureInfo_v2,
                (CUstream s, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** nodes, size_t* count),
                tell(s, pt, status, id, graph, nodes, nullptr, count))
SG_CAPTURE_PAIR(cuStreamGetCaptureInfo_v3,
                (CUstream s, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** nodes,
                 const CUgraphEdgeData** data, size_t* count),
                tell(s, pt, status, id, graph, nodes, data, count))
SG_CAPTURE_PAIR(cuStreamUpdateCaptureDependencies, (CUstream s, CUgraphNode* nodes, size_t count, unsigned flags),
                update(s, pt, nodes, nullptr, count, flags))
SG_CAPTURE_PAIR(cuStreamUpdateCaptureDependencies_v2,
                (CUstream s, CUgraphNode* nodes, const CUgraphEdgeData* data, size_t count, unsigned flags),
                update(s, pt, nodes, data, count, flags))

// User objects: counted here, destroyed by whoever lets go last.

namespace {

CUresult release(CUuserObject handle, unsigned count) {
  auto object = Graphs::get().objects.get(handle);
  if (!object || count == 0 || count > object->references.load()) return CUDA_ERROR_INVALID_VALUE;
  if (object->references.fetch_sub(count) != count) return CUDA_SUCCESS;
  Graphs::get().objects.take(handle);
  object->destroy(object->data);
  return CUDA_SUCCESS;
}

}  // namespace

SG_API cuUserObjectCreate(CUuserObject* out, void* data, CUhostFn destroy, unsigned references, unsigned flags) {
  return with_driver([&](Driver&) -> CUresult {
    if (!out || !destroy || references == 0 || flags != 1) return CUDA_ERROR_INVALID_VALUE;
    auto object = std::make_shared<UserObject>();
    object->destroy = destroy;
    object->data = data;
    object->references = references;
    *out = to_handle<CUuserObject>(Graphs::get().objects.add(object));
    return CUDA_SUCCESS;
  });
}
SG_API cuUserObjectRetain(CUuserObject handle, unsigned count) {
  return with_driver([&](Driver&) -> CUresult {
    auto object = Graphs::get().objects.get(handle);
    if (!object || count == 0) return CUDA_ERROR_INVALID_VALUE;
    object->references += count;
    return CUDA_SUCCESS;
  });
}
SG_API cuUserObjectRelease(CUuserObject handle, unsigned count) {
  return with_driver([&](Driver&) { return release(handle, count); });
}
SG_API cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count, unsigned flags) {
  return with_driver([&](Driver&) -> CUresult {
    auto graph = Graphs::get().graphs.get(graph_handle);
    auto object = Graphs::get().objects.get(handle);
    if (!graph || !object || count == 0 || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    if (flags == 0) object->references += count;
    std::lock_guard lock(Graphs::get().mutex);
    graph->objects.push_back(std::make_shared<HeldObject>(object->handle, count));
    return CUDA_SUCCESS;
  });
}
SG_API cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count) {
  return with_driver([&](Driver&) -> CUresult {
    auto graph = Graphs::get().graphs.get(graph_handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    for (auto it = graph->objects.begin(); it != graph->objects.end(); ++it) {
      if ((*it)->object != from_handle(handle) || (*it)->count != count) continue;
      graph->objects.erase(it);
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
  });
}

sg::HeldObject::~HeldObject() { release(to_handle<CUuserObject>(object), count); }
