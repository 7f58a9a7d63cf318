// Streams that record into a graph. All state is guarded by Graphs::mutex; `Stream::capturing` is the fast answer.
#pragma once
#include "graph.h"

namespace sg {

struct Capture {
  uint64_t id = 0;
  std::shared_ptr<Graph> graph;
  int mode = 0;
  const ThreadState* thread = nullptr;
  const Stream* origin = nullptr;
  bool invalid = false;
  bool owns_graph = true;
};

struct StreamCapture {
  std::shared_ptr<Stream> stream;
  std::shared_ptr<Capture> capture;
  std::vector<GraphEdge> last;
  std::vector<CUgraphNode> shown;
  std::vector<CUgraphEdgeData> shown_data;
};

struct EventCapture {
  uint64_t id = 0;
  std::vector<GraphEdge> last;
};

/// Adds an operation of a capturing stream to its graph, or throws what forbids it.
void capture_operation(const std::shared_ptr<Stream>& stream, StreamOp op);
std::shared_ptr<GraphNode> capture_typed_node(const std::shared_ptr<Stream>& stream, int type);
CUresult capture_allocation(const std::shared_ptr<Stream>& stream, size_t bytes, CUdeviceptr* out);
CUresult capture_free(const std::shared_ptr<Stream>& stream, CUdeviceptr address);
/// For waits and queries: throws 900 or 906 when the stream captures.
void refuse_capture(const std::shared_ptr<Stream>& stream);
/// 900 also where the capture is over already (901 elsewhere), as an H100 answers.
void refuse_wait_in_capture(const std::shared_ptr<Stream>& stream);
/// For potentially unsafe calls: throws 900 under the rules of the thread's mode.
void check_capture_safe();
/// For waits for a whole context.
void check_capture_context(const Context& context);
/// For the host's queries of an event last recorded in a capture and waits for it: throws 907 and invalidates the
/// capture, or throws 1 when that is over.
void refuse_captured_event(Event& event);
void capture_event(Event& event, const std::shared_ptr<Event>& shared, const std::shared_ptr<Stream>& stream,
                   bool external);
/// True when the wait was the capture's business.
bool capture_wait(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream, bool external);
void forget_capture(const std::shared_ptr<Stream>& stream);

}  // namespace sg
