// Graphs: what a node does is the same closure that a stream would queue. A launch runs the nodes one after the other,
// in an order that keeps every edge.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "graph_types.h"
#include "state.h"

namespace sg {

struct Graph;

struct GraphEdge {
  uint64_t node = 0;  // handle
  CUgraphEdgeData data{};
};

struct GraphMemory {
  ~GraphMemory();
  CUdeviceptr address = 0;
  size_t bytes = 0;
  std::atomic<bool> is_out{false};  // allocated by a launch and not freed by one, nor by the program
};

/// What a node was given, for queries and for copies of it.
struct NodeParams {
  CUDA_KERNEL_NODE_PARAMS kernel{};
  std::vector<std::vector<uint8_t>> kernel_values;
  std::vector<void*> kernel_pointers;
  CUDA_MEMCPY3D copy{};
  CUDA_MEMSET_NODE_PARAMS fill{};
  CUDA_HOST_NODE_PARAMS host{};
  std::vector<CUstreamBatchMemOpParams> words;
  uint64_t event = 0;
  std::shared_ptr<Graph> child;
  std::shared_ptr<GraphMemory> memory;  // of an allocating node
  std::map<int, CUlaunchAttributeValue> attributes;
  CUdeviceptr freed = 0;
};

struct UserObject {
  uint64_t handle = 0;
  CUhostFn destroy = nullptr;
  void* data = nullptr;
  std::atomic<unsigned> references{0};
};

/// References of graphs and instances to a user object; the last holder lets go of them.
struct HeldObject {
  HeldObject(uint64_t named, unsigned references) : object(named), count(references) {}
  ~HeldObject();
  const uint64_t object;
  const unsigned count;
};

struct GraphNode {
  uint64_t handle = 0;
  uint64_t graph = 0;     // handle of the owner
  uint64_t original = 0;  // of a clone: the node that it was made from
  uint64_t capture = 0;   // id of the capture that made it
  int type = CU_GRAPH_NODE_TYPE_EMPTY;
  std::vector<GraphEdge> from;
  std::vector<GraphEdge> to;
  std::function<void()> run;  // empty: nothing to do
  NodeParams params;
};

struct Graph {
  uint64_t handle = 0;
  uint64_t original = 0;
  std::vector<std::shared_ptr<GraphNode>> nodes;  // in the order of their creation
  std::vector<std::shared_ptr<HeldObject>> objects;
  bool owned = false;  // inside a child node, or still being captured
};

struct ExecStep {
  uint64_t node = 0;  // handle in the definition; of a child's node: in the child
  int type = 0;
  std::function<void()> run;
  std::shared_ptr<GraphMemory> memory;
  CUdeviceptr freed = 0;
  std::shared_ptr<Event> records;  // an event that each launch records here
  std::vector<uint64_t> after;     // nodes, as the definition names them
  bool enabled = true;
};

struct GraphExec {
  uint64_t handle = 0;
  uint64_t flags = 0;
  std::shared_ptr<Context> context;
  std::vector<std::shared_ptr<HeldObject>> objects;
  std::mutex mutex;
  std::shared_ptr<const std::vector<ExecStep>> steps;  // replaced as a whole: launches on their way keep theirs
  Ticket last_launch;
  DriverMemory uploaded;  // taken by the first upload or launch
};

/// All graphs, nodes and instances, and the lock that orders every change of a graph or of a capture.
struct Graphs {
  static Graphs& get();
  std::recursive_mutex mutex;
  HandleTable<Graph> graphs{HandleKind::graph};
  HandleTable<GraphNode> nodes{HandleKind::graph_node};
  HandleTable<GraphExec> execs{HandleKind::graph_exec};
  HandleTable<UserObject> objects{HandleKind::user_object};
};

/// While one exists on a thread, Context::submit gives operations to it instead of queueing them.
struct Recorder {
  Recorder() : before(current) { current = this; }
  ~Recorder() { current = before; }
  StreamOp op;
  bool filled = false;
  Recorder* before;
  static thread_local Recorder* current;
};

/// Fills closure and parameters of a node, whose type says which member of `given` counts.
CUresult fill_node(Driver& driver, GraphNode& node, const CUgraphNodeParams& given);
std::shared_ptr<GraphNode> add_graph_node(Graph& graph, int type);
CUresult add_graph_edge(Graph& graph, GraphNode& from, GraphNode& to, const CUgraphEdgeData& data);
/// Whether an operation for this stream becomes part of a graph.
inline bool is_recorded(const std::shared_ptr<Stream>& stream) { return Recorder::current || stream->capturing; }
std::shared_ptr<GraphMemory> find_graph_memory(uint64_t address);
uint64_t graph_memory_bytes(bool used);
CUresult new_graph_memory(size_t bytes, std::shared_ptr<GraphMemory>* out);
/// The program frees memory. False: it is not a graph's.
bool free_graph_memory(uint64_t address, CUresult* result);
std::shared_ptr<Graph> new_graph();
void drop_graph(const std::shared_ptr<Graph>& graph);

}  // namespace sg
