// cuGraph*: making graphs, their nodes and edges, and asking for them.
#include "graph.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "api.h"

using namespace sg;

SG_API cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                      void**, void**);
SG_API cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D*, CUstream);
SG_API cuMemsetD2D8Async(CUdeviceptr, size_t, unsigned char, size_t, size_t, CUstream);
SG_API cuMemsetD2D16Async(CUdeviceptr, size_t, unsigned short, size_t, size_t, CUstream);
SG_API cuMemsetD2D32Async(CUdeviceptr, size_t, unsigned, size_t, size_t, CUstream);
SG_API cuStreamBatchMemOp_v2(CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned);

namespace sg {

thread_local Recorder* Recorder::current = nullptr;

Graphs& Graphs::get() {
  static Graphs* graphs = new Graphs;
  return *graphs;
}

std::shared_ptr<Graph> new_graph() {
  auto graph = std::make_shared<Graph>();
  Graphs::get().graphs.add(graph);
  return graph;
}

std::shared_ptr<GraphNode> add_graph_node(Graph& graph, int type) {
  auto node = std::make_shared<GraphNode>();
  node->graph = graph.handle;
  node->type = type;
  Graphs::get().nodes.add(node);
  graph.nodes.push_back(node);
  return node;
}

CUresult add_graph_edge(Graph& graph, GraphNode& from, GraphNode& to, const CUgraphEdgeData& data) {
  if (&from == &to || from.graph != graph.handle || to.graph != graph.handle) return CUDA_ERROR_INVALID_VALUE;
  for (const GraphEdge& edge : to.from) {
    if (edge.node == from.handle) return CUDA_ERROR_INVALID_VALUE;
  }
  to.from.push_back({from.handle, data});
  from.to.push_back({to.handle, data});
  return CUDA_SUCCESS;
}

void drop_graph(const std::shared_ptr<Graph>& graph) {
  for (const auto& node : graph->nodes) {
    if (node->params.child) drop_graph(node->params.child);
    Graphs::get().nodes.take(node->handle);
  }
  Graphs::get().graphs.take(graph->handle);
}

static void remove_node(Graph& graph, GraphNode& node) {
  auto forget = [&](std::vector<GraphEdge>& edges) {
    edges.erase(std::remove_if(edges.begin(), edges.end(), [&](auto& e) { return e.node == node.handle; }),
                edges.end());
  };
  for (const auto& other : graph.nodes) {
    forget(other->from);
    forget(other->to);
  }
  if (node.params.child) drop_graph(node.params.child);
  const auto kept = Graphs::get().nodes.take(node.handle);
  graph.nodes.erase(std::find_if(graph.nodes.begin(), graph.nodes.end(), [&](auto& n) { return n.get() == &node; }));
}

/// A copy of the closures and parameters with handles of its own.
static std::shared_ptr<Graph> clone_graph(const Graph& from) {
  auto graph = new_graph();
  graph->original = from.handle;
  std::map<uint64_t, std::shared_ptr<GraphNode>> made;
  for (const auto& node : from.nodes) {
    auto copy = add_graph_node(*graph, node->type);
    copy->original = node->handle;
    copy->run = node->run;
    copy->params = node->params;
    if (node->params.child) {
      copy->params.child = clone_graph(*node->params.child);
      copy->params.child->owned = true;
    }
    made[node->handle] = copy;
  }
  for (const auto& node : from.nodes) {
    for (const GraphEdge& edge : node->from) add_graph_edge(*graph, *made[edge.node], *made[node->handle], edge.data);
  }
  return graph;
}

}  // namespace sg

namespace {

/// Locks, and finds the graph.
template <class F>
CUresult with_graph(CUgraph handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::lock_guard lock(Graphs::get().mutex);
    auto graph = Graphs::get().graphs.get(handle);
    return graph ? f(driver, graph) : CUDA_ERROR_INVALID_VALUE;
  });
}

template <class F>
CUresult with_node(CUgraphNode handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::lock_guard lock(Graphs::get().mutex);
    auto node = Graphs::get().nodes.get(handle);
    return node ? f(driver, node) : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult record(Recorder& recorder, CUresult result, GraphNode& node) {
  if (result == CUDA_SUCCESS) node.run = recorder.filled ? std::move(recorder.op.run) : std::function<void()>();
  return result;
}

CUresult fill_kernel(Driver& driver, GraphNode& node, const CUDA_KERNEL_NODE_PARAMS& k) {
  const auto handle = k.func ? k.func : reinterpret_cast<CUfunction>(k.kern);
  Recorder recorder;
  const CUresult result = record(recorder,
                                 cuLaunchKernel(handle, k.gridDimX, k.gridDimY, k.gridDimZ, k.blockDimX, k.blockDimY,
                                                k.blockDimZ, k.sharedMemBytes, nullptr, k.kernelParams, k.extra),
                                 node);
  if (result != CUDA_SUCCESS) return result;
  std::shared_ptr<Function> function;
  const CUresult found = resolve_function(driver, current_context(), handle, &function);
  if (found != CUDA_SUCCESS) return found;
  NodeParams& kept = node.params;
  kept.kernel = k;
  kept.kernel_values.clear();
  kept.kernel_pointers.clear();
  const uint8_t* packed = nullptr;
  for (void** extra = k.extra; extra && *extra; extra += 2) {
    if (reinterpret_cast<uintptr_t>(*extra) == CU_LAUNCH_PARAM_BUFFER_POINTER) packed = static_cast<uint8_t*>(extra[1]);
  }
  for (size_t i = 0; i < function->kernel->params.size(); ++i) {
    const Param& param = function->kernel->params[i];
    const auto* from = packed ? packed + param.offset_bytes : static_cast<const uint8_t*>(k.kernelParams[i]);
    kept.kernel_values.emplace_back(from, from + param.size_bytes);
  }
  return CUDA_SUCCESS;
}

CUresult fill_memset(GraphNode& node, const CUDA_MEMSET_NODE_PARAMS& f) {
  Recorder recorder;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  const size_t pitch = f.height > 1 ? f.pitch : f.width * f.elementSize;
  if (f.elementSize == 1) {
    result = cuMemsetD2D8Async(f.dst, pitch, static_cast<unsigned char>(f.value), f.width, f.height, nullptr);
  } else if (f.elementSize == 2) {
    result = cuMemsetD2D16Async(f.dst, pitch, static_cast<unsigned short>(f.value), f.width, f.height, nullptr);
  } else if (f.elementSize == 4) {
    result = cuMemsetD2D32Async(f.dst, pitch, f.value, f.width, f.height, nullptr);
  }
  node.params.fill = f;
  return record(recorder, result, node);
}

void fill_host(GraphNode& node, const CUDA_HOST_NODE_PARAMS& h) {
  node.params.host = h;
  node.run = [h] {
    thread_state().in_callback = true;
    h.fn(h.userData);
    thread_state().in_callback = false;
  };
}

CUresult fill_event(Driver& driver, GraphNode& node, CUevent handle, bool records) {
  auto event = driver.events.get(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  node.params.event = event->handle;
  if (!records) {
    node.run = [event] {
      if (auto last = event->record()) last->ticket.stream->wait(last->ticket.sequence, false);
    };
    return CUDA_SUCCESS;
  }
  node.run = nullptr;  // each launch makes the record
  return CUDA_SUCCESS;
}

}  // namespace

CUresult sg::fill_node(Driver& driver, GraphNode& node, const CUgraphNodeParams& given) {
  switch (node.type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      return fill_kernel(driver, node, given.kernel);
    case CU_GRAPH_NODE_TYPE_MEMCPY: {
      Recorder recorder;
      node.params.copy = given.memcpy.copy;
      return record(recorder, cuMemcpy3DAsync_v2(&given.memcpy.copy, nullptr), node);
    }
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return fill_memset(node, given.memset);
    case CU_GRAPH_NODE_TYPE_HOST:
      if (!given.host.fn) return CUDA_ERROR_INVALID_VALUE;
      fill_host(node, given.host);
      return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return fill_event(driver, node, given.event, node.type == CU_GRAPH_NODE_TYPE_EVENT_RECORD);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: {
      Recorder recorder;
      const CUresult result =
          cuStreamBatchMemOp_v2(nullptr, given.words.count, given.words.paramArray, given.words.flags);
      if (result == CUDA_SUCCESS) {
        node.params.words.assign(given.words.paramArray, given.words.paramArray + given.words.count);
      }
      return record(recorder, result, node);
    }
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
      return given.alloc.bytesize == 0 ? CUresult{CUDA_ERROR_INVALID_VALUE}
                                       : new_graph_memory(given.alloc.bytesize, &node.params.memory);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      if (!find_graph_memory(given.freed)) return CUDA_ERROR_INVALID_VALUE;
      node.params.freed = given.freed;
      return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_GRAPH: {
      auto child = Graphs::get().graphs.get(given.child.graph);
      if (!child || child->handle == node.graph) return CUDA_ERROR_INVALID_VALUE;
      node.params.child = clone_graph(*child);
      node.params.child->owned = true;
      return CUDA_SUCCESS;
    }
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

namespace {

CUresult add_node(CUgraphNode* out, CUgraph graph_handle, const CUgraphNode* from, const CUgraphEdgeData* data,
                  size_t count, const CUgraphNodeParams& given) {
  return with_graph(graph_handle, [&](Driver& driver, const auto& graph) -> CUresult {
    if (!out || (count > 0 && !from)) return CUDA_ERROR_INVALID_VALUE;
    auto node = add_graph_node(*graph, given.type);
    CUresult result = fill_node(driver, *node, given);
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; ++i) {
      auto before = Graphs::get().nodes.get(from[i]);
      result = before ? add_graph_edge(*graph, *before, *node, data ? data[i] : CUgraphEdgeData{})
                      : CUresult{CUDA_ERROR_INVALID_VALUE};
    }
    if (result != CUDA_SUCCESS) {
      remove_node(*graph, *node);
      return result;
    }
    *out = to_handle<CUgraphNode>(node->handle);
    return CUDA_SUCCESS;
  });
}

/// The list that a query with (array, count) gives: without an array the count alone; surplus entries become null.
template <class Handle, class Get>
CUresult give_list(Handle* out, size_t* count, size_t have, Get get) {
  if (!count) return CUDA_ERROR_INVALID_VALUE;
  if (out) {
    for (size_t i = 0; i < *count; ++i) out[i] = i < have ? get(i) : nullptr;
    *count = std::min(*count, have);
  } else {
    *count = have;
  }
  return CUDA_SUCCESS;
}

CUresult change_edges(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to, const CUgraphEdgeData* data,
                      size_t count, bool add) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    if (count > 0 && (!from || !to)) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; ++i) {
      auto a = Graphs::get().nodes.get(from[i]);
      auto b = Graphs::get().nodes.get(to[i]);
      if (!a || !b) return CUDA_ERROR_INVALID_VALUE;
      if (add) {
        const CUresult result = add_graph_edge(*graph, *a, *b, data ? data[i] : CUgraphEdgeData{});
        if (result != CUDA_SUCCESS) return result;
        continue;
      }
      auto edge = std::find_if(b->from.begin(), b->from.end(), [&](auto& e) { return e.node == a->handle; });
      if (edge == b->from.end()) return CUDA_ERROR_INVALID_VALUE;
      b->from.erase(edge);
      a->to.erase(std::find_if(a->to.begin(), a->to.end(), [&](auto& e) { return e.node == b->handle; }));
    }
    return CUDA_SUCCESS;
  });
}
}  // namespace

SG_API cuGraphCreate(CUgraph* out, unsigned flags) {
  return with_driver([&](Driver&) -> CUresult {
    if (!out || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    *out = to_handle<CUgraph>(new_graph()->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphDestroy(CUgraph handle) {
  return with_graph(handle, [](Driver&, const auto& graph) -> CUresult {
    if (graph->owned) return CUDA_ERROR_INVALID_VALUE;
    drop_graph(graph);
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphClone(CUgraph* out, CUgraph handle) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUgraph>(clone_graph(*graph)->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphNodeFindInClone(CUgraphNode* out, CUgraphNode original, CUgraph handle) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    for (const auto& node : graph->nodes) {
      if (node->original == 0 || node->original != from_handle(original)) continue;
      *out = to_handle<CUgraphNode>(node->handle);
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
  });
}

SG_API cuGraphDestroyNode(CUgraphNode handle) {
  return with_node(handle, [](Driver&, const auto& node) -> CUresult {
    auto graph = Graphs::get().graphs.get(node->graph);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    remove_node(*graph, *node);
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphAddNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, const CUgraphEdgeData* data,
                         size_t count, CUgraphNodeParams* params) {
  if (!params) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = add_node(out, graph, from, data, count, *params);
  if (result == CUDA_SUCCESS && params->type == CU_GRAPH_NODE_TYPE_GRAPH) {
    params->child.graph = to_handle<CUgraph>(Graphs::get().nodes.get(*out)->params.child->handle);
  }
  return result;
}
SG_API cuGraphAddNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                      CUgraphNodeParams* params) {
  return cuGraphAddNode_v2(out, graph, from, nullptr, count, params);
}

namespace {
CUgraphNodeParams params_of(int type) {
  CUgraphNodeParams params{};
  params.type = type;
  return params;
}
CUgraphNodeParams kernel_params(const void* given, size_t bytes) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_KERNEL);
  std::memcpy(&params.kernel, given, bytes);
  return params;
}
}  // namespace

SG_API cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                               const CUDA_KERNEL_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  return add_node(out, graph, from, nullptr, count, kernel_params(given, sizeof *given));
}
SG_API cuGraphAddKernelNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count, const void* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  return add_node(out, graph, from, nullptr, count, kernel_params(given, kKernelNodeParamsV1Bytes));
}
SG_API cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                            const CUDA_MEMCPY3D* given, CUcontext) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMCPY);
  params.memcpy.copy = *given;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddMemsetNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                            const CUDA_MEMSET_NODE_PARAMS* given, CUcontext) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMSET);
  params.memset = *given;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddHostNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                          const CUDA_HOST_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_HOST);
  params.host = *given;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddEmptyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count) {
  return add_node(out, graph, from, nullptr, count, params_of(CU_GRAPH_NODE_TYPE_EMPTY));
}
SG_API cuGraphAddEventRecordNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                                 CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_EVENT_RECORD);
  params.event = event;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddEventWaitNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count, CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_WAIT_EVENT);
  params.event = event;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddBatchMemOpNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                                const CUDA_BATCH_MEM_OP_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP);
  params.words = *given;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddMemAllocNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                              CUDA_MEM_ALLOC_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEM_ALLOC);
  params.alloc = *given;
  const CUresult result = add_node(out, graph, from, nullptr, count, params);
  if (result == CUDA_SUCCESS) given->dptr = Graphs::get().nodes.get(*out)->params.memory->address;
  return result;
}
SG_API cuGraphAddMemFreeNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count,
                             CUdeviceptr address) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEM_FREE);
  params.freed = address;
  return add_node(out, graph, from, nullptr, count, params);
}
SG_API cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* from, size_t count, CUgraph child) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_GRAPH);
  params.child.graph = child;
  return add_node(out, graph, from, nullptr, count, params);
}

SG_API cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  return change_edges(graph, from, to, nullptr, count, true);
}
SG_API cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                 const CUgraphEdgeData* data, size_t count) {
  return change_edges(graph, from, to, data, count, true);
}
SG_API cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  return change_edges(graph, from, to, nullptr, count, false);
}
SG_API cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                    const CUgraphEdgeData*, size_t count) {
  return change_edges(graph, from, to, nullptr, count, false);
}

SG_API cuGraphGetNodes(CUgraph handle, CUgraphNode* out, size_t* count) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    return give_list(out, count, graph->nodes.size(),
                     [&](size_t i) { return to_handle<CUgraphNode>(graph->nodes[i]->handle); });
  });
}

SG_API cuGraphGetRootNodes(CUgraph handle, CUgraphNode* out, size_t* count) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    std::vector<uint64_t> roots;
    for (const auto& node : graph->nodes) {
      if (node->from.empty()) roots.push_back(node->handle);
    }
    return give_list(out, count, roots.size(), [&](size_t i) { return to_handle<CUgraphNode>(roots[i]); });
  });
}

SG_API cuGraphGetEdges_v2(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    if (!count || !from != !to) return CUDA_ERROR_INVALID_VALUE;
    size_t have = 0;
    for (const auto& node : graph->nodes) {
      for (const GraphEdge& edge : node->from) {
        if (from && have < *count) {
          from[have] = to_handle<CUgraphNode>(edge.node);
          to[have] = to_handle<CUgraphNode>(node->handle);
          if (data) data[have] = edge.data;
        }
        have++;
      }
    }
    for (size_t i = have; from && i < *count; ++i) from[i] = to[i] = nullptr;
    *count = from ? std::min(*count, have) : have;
    return CUDA_SUCCESS;
  });
}
SG_API cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, size_t* count) {
  return cuGraphGetEdges_v2(handle, from, to, nullptr, count);
}

namespace {
CUresult neighbours(CUgraphNode handle, CUgraphNode* out, CUgraphEdgeData* data, size_t* count,
                    std::vector<GraphEdge> GraphNode::* side) {
  return with_node(handle, [&](Driver&, const auto& node) -> CUresult {
    const std::vector<GraphEdge>& edges = (*node).*side;
    const size_t room = count ? *count : 0;
    const CUresult result =
        give_list(out, count, edges.size(), [&](size_t i) { return to_handle<CUgraphNode>(edges[i].node); });
    for (size_t i = 0; out && data && i < std::min(room, edges.size()); ++i) data[i] = edges[i].data;
    return result;
  });
}
}  // namespace

SG_API cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* out, size_t* count) {
  return neighbours(node, out, nullptr, count, &GraphNode::from);
}
SG_API cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode* out, CUgraphEdgeData* data, size_t* count) {
  return neighbours(node, out, data, count, &GraphNode::from);
}
SG_API cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode* out, size_t* count) {
  return neighbours(node, out, nullptr, count, &GraphNode::to);
}
SG_API cuGraphNodeGetDependentNodes_v2(CUgraphNode node, CUgraphNode* out, CUgraphEdgeData* data, size_t* count) {
  return neighbours(node, out, data, count, &GraphNode::to);
}

SG_API cuGraphNodeGetType(CUgraphNode handle, int* type) {
  return with_node(handle, [&](Driver&, const auto& node) -> CUresult {
    if (!type) return CUDA_ERROR_INVALID_VALUE;
    *type = node->type;
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphChildGraphNodeGetGraph(CUgraphNode handle, CUgraph* out) {
  return with_node(handle, [&](Driver&, const auto& node) -> CUresult {
    if (!out || !node->params.child) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUgraph>(node->params.child->handle);
    return CUDA_SUCCESS;
  });
}

// Reading and changing what a node was given, by type.

namespace {
template <class F>
CUresult with_typed(CUgraphNode handle, int type, const void* argument, F f) {
  return with_node(handle, [&](Driver&, const auto& node) -> CUresult {
    if (!argument || node->type != type) return CUDA_ERROR_INVALID_VALUE;
    f(*node);
    return CUDA_SUCCESS;
  });
}
CUresult refill(CUgraphNode handle, const CUgraphNodeParams& params) {
  return with_node(handle, [&](Driver& driver, const auto& node) -> CUresult {
    if (node->type != params.type) return CUDA_ERROR_INVALID_VALUE;
    return fill_node(driver, *node, params);
  });
}
CUDA_KERNEL_NODE_PARAMS give_kernel(GraphNode& node) {
  node.params.kernel_pointers.clear();
  for (auto& value : node.params.kernel_values) node.params.kernel_pointers.push_back(value.data());
  CUDA_KERNEL_NODE_PARAMS params = node.params.kernel;
  params.kernelParams = node.params.kernel_pointers.data();
  params.extra = nullptr;
  return params;
}
}  // namespace

SG_API cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_KERNEL, out, [&](GraphNode& node) { *out = give_kernel(node); });
}
SG_API cuGraphKernelNodeGetParams(CUgraphNode handle, void* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_KERNEL, out, [&](GraphNode& node) {
    const CUDA_KERNEL_NODE_PARAMS params = give_kernel(node);
    std::memcpy(out, &params, kKernelNodeParamsV1Bytes);
  });
}
SG_API cuGraphKernelNodeSetParams_v2(CUgraphNode handle, const CUDA_KERNEL_NODE_PARAMS* given) {
  return given ? refill(handle, kernel_params(given, sizeof *given)) : CUresult{CUDA_ERROR_INVALID_VALUE};
}
SG_API cuGraphKernelNodeSetParams(CUgraphNode handle, const void* given) {
  return given ? refill(handle, kernel_params(given, kKernelNodeParamsV1Bytes)) : CUresult{CUDA_ERROR_INVALID_VALUE};
}
// About speed, or about an order that a launch here keeps anyway: kept to be told.
SG_API cuGraphKernelNodeSetAttribute(CUgraphNode handle, int id, const CUlaunchAttributeValue* value) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_KERNEL, value,
                    [&](GraphNode& node) { node.params.attributes[id] = *value; });
}
SG_API cuGraphKernelNodeGetAttribute(CUgraphNode handle, int id, CUlaunchAttributeValue* value) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_KERNEL, value,
                    [&](GraphNode& node) { *value = node.params.attributes[id]; });
}
SG_API cuGraphKernelNodeCopyAttributes(CUgraphNode to, CUgraphNode from) {
  return with_node(from, [&](Driver&, const auto& source) -> CUresult {
    auto target = Graphs::get().nodes.get(to);
    if (!target || source->type != CU_GRAPH_NODE_TYPE_KERNEL || target->type != source->type) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    target->params.attributes = source->params.attributes;
    return CUDA_SUCCESS;
  });
}
SG_API cuDeviceGetGraphMemAttribute(CUdevice dev, int attribute, uint64_t* value) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    if (!value || attribute < 0 || attribute > 3) return CUDA_ERROR_INVALID_VALUE;
    *value = graph_memory_bytes(attribute < 2);
    return CUDA_SUCCESS;
  });
}
SG_API cuDeviceGraphMemTrim(CUdevice dev) {
  return with_driver(
      [&](Driver& driver) -> CUresult { return driver.device(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; });
}
SG_API cuGraphMemcpyNodeGetParams(CUgraphNode handle, CUDA_MEMCPY3D* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_MEMCPY, out, [&](GraphNode& node) { *out = node.params.copy; });
}
SG_API cuGraphMemcpyNodeSetParams(CUgraphNode handle, const CUDA_MEMCPY3D* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMCPY);
  params.memcpy.copy = *given;
  return refill(handle, params);
}
SG_API cuGraphMemsetNodeGetParams(CUgraphNode handle, CUDA_MEMSET_NODE_PARAMS* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_MEMSET, out, [&](GraphNode& node) { *out = node.params.fill; });
}
SG_API cuGraphMemsetNodeSetParams(CUgraphNode handle, const CUDA_MEMSET_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMSET);
  params.memset = *given;
  return refill(handle, params);
}
SG_API cuGraphHostNodeGetParams(CUgraphNode handle, CUDA_HOST_NODE_PARAMS* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_HOST, out, [&](GraphNode& node) { *out = node.params.host; });
}
SG_API cuGraphHostNodeSetParams(CUgraphNode handle, const CUDA_HOST_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_HOST);
  params.host = *given;
  return refill(handle, params);
}
SG_API cuGraphEventRecordNodeGetEvent(CUgraphNode handle, CUevent* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_EVENT_RECORD, out,
                    [&](GraphNode& node) { *out = to_handle<CUevent>(node.params.event); });
}
SG_API cuGraphEventWaitNodeGetEvent(CUgraphNode handle, CUevent* out) {
  return with_typed(handle, CU_GRAPH_NODE_TYPE_WAIT_EVENT, out,
                    [&](GraphNode& node) { *out = to_handle<CUevent>(node.params.event); });
}
SG_API cuGraphEventRecordNodeSetEvent(CUgraphNode handle, CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_EVENT_RECORD);
  params.event = event;
  return refill(handle, params);
}
SG_API cuGraphEventWaitNodeSetEvent(CUgraphNode handle, CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_WAIT_EVENT);
  params.event = event;
  return refill(handle, params);
}
SG_API cuGraphNodeSetParams(CUgraphNode handle, CUgraphNodeParams* params) {
  return params ? refill(handle, *params) : CUresult{CUDA_ERROR_INVALID_VALUE};
}

SG_API cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned) {
  return with_graph(handle, [&](Driver&, const auto& graph) -> CUresult {
    if (!path) return CUDA_ERROR_INVALID_VALUE;
    FILE* file = std::fopen(path, "w");
    if (!file) return CUDA_ERROR_OPERATING_SYSTEM;
    std::fprintf(file, "digraph dot {\n");
    for (const auto& node : graph->nodes) {
      std::fprintf(file, "\"%llx\" [label=\"type %d\"]\n", static_cast<unsigned long long>(node->handle), node->type);
      for (const GraphEdge& edge : node->from) {
        std::fprintf(file, "\"%llx\" -> \"%llx\"\n", static_cast<unsigned long long>(edge.node),
                     static_cast<unsigned long long>(node->handle));
      }
    }
    std::fprintf(file, "}\n");
    return std::fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
  });
}
