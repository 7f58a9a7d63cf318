// Executable graphs: a list of steps in an order that keeps every edge, run by one stream operation for each launch.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <set>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

constexpr int kUpdateError = 1, kUpdateTopologyChanged = 2, kUpdateTypeChanged = 3;
constexpr uint64_t kKnownFlags = 15, kAutoFree = 1;

/// Appends the steps of a graph, a child's in the place of its node. False when edges form a circle.
bool append_steps(Driver& driver, const Graph& graph, std::vector<ExecStep>* steps) {
  std::set<uint64_t> done;
  while (done.size() < graph.nodes.size()) {
    const size_t before = done.size();
    for (const auto& node : graph.nodes) {
      if (done.count(node->handle)) continue;
      bool ready = true;
      for (const GraphEdge& edge : node->from) ready &= done.count(edge.node) > 0;
      if (!ready) continue;
      done.insert(node->handle);
      ExecStep step;
      step.node = node->handle;
      step.type = node->type;
      step.run = node->run;
      step.memory = node->params.memory;
      step.freed = node->params.freed;
      for (const GraphEdge& edge : node->from) step.after.push_back(edge.node);
      if (node->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD) step.records = driver.events.get(node->params.event);
      steps->push_back(std::move(step));
      if (node->params.child && !append_steps(driver, *node->params.child, steps)) return false;
    }
    if (done.size() == before) return false;
  }
  return true;
}

CUresult instantiate(CUgraphExec* out, CUgraph handle, uint64_t flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || (flags & ~kKnownFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(Graphs::get().mutex);
    auto graph = Graphs::get().graphs.get(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    auto steps = std::make_shared<std::vector<ExecStep>>();
    if (!append_steps(driver, *graph, steps.get())) return CUDA_ERROR_INVALID_VALUE;
    auto exec = std::make_shared<GraphExec>();
    exec->flags = flags;
    exec->objects = graph->objects;
    exec->context = context.shared_from_this();
    exec->steps = std::move(steps);
    *out = to_handle<CUgraphExec>(Graphs::get().execs.add(exec));
    return CUDA_SUCCESS;
  });
}

/// What the device keeps of an instance. Under the instance's mutex.
bool take_upload(Driver& driver, GraphExec& exec) {
  constexpr size_t kNodeBytes = 4096;
  return exec.uploaded.resize(*driver.devices[exec.context->device]->arena,
                              round_up(exec.steps->size() * kNodeBytes, kDriverUnitBytes));
}

template <class F>
CUresult with_exec(CUgraphExec handle, F f) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto exec = Graphs::get().execs.get(handle);
    return exec ? f(driver, *exec) : CUDA_ERROR_INVALID_VALUE;
  });
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

CUresult launch(CUgraphExec handle, CUstream stream_handle, bool per_thread) {
  return with_stream(stream_handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    auto exec = Graphs::get().execs.get(handle);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    refuse_capture(stream);
    // Held over the submission: launches of one instance run one after the other, on whichever streams.
    std::lock_guard graphs_lock(Graphs::get().mutex);
    std::lock_guard lock(exec->mutex);
    if (!take_upload(driver, *exec)) return CUDA_ERROR_OUT_OF_MEMORY;
    const auto steps = exec->steps;
    const bool frees_itself = (exec->flags & kAutoFree) != 0;
    for (const ExecStep& step : *steps) {
      if (step.memory && step.memory->is_out && !frees_itself) return CUDA_ERROR_INVALID_VALUE;
    }
    for (const ExecStep& step : *steps) {
      if (step.memory) step.memory->is_out = true;
    }
    for (const ExecStep& step : *steps) {
      if (auto freed = step.freed ? find_graph_memory(step.freed) : nullptr) freed->is_out = false;
    }
    std::vector<std::pair<std::shared_ptr<Event>, std::shared_ptr<EventRecord>>> records;
    for (const ExecStep& step : *steps) {
      if (step.records && step.enabled) records.emplace_back(step.records, std::make_shared<EventRecord>());
    }
    StreamOp op;
    op.run = [steps, records, &context, exec] {
      size_t record = 0;
      for (const ExecStep& step : *steps) {
        if (context.fault.load(std::memory_order_acquire) != 0) break;
        if (!step.enabled) continue;
        if (step.run) step.run();
        if (!step.records) continue;
        records[record].second->time_ns = now_ns();
        records[record++].second->reached = true;
      }
    };
    if (exec->last_launch.stream) op.waits.push_back(exec->last_launch);
    // Queries of these events look at the end of the launch: later than the node, never earlier.
    const Ticket ticket = context.submit(stream, std::move(op));
    exec->last_launch = ticket;
    for (auto& [event, record] : records) {
      record->ticket = ticket;
      std::lock_guard event_lock(event->mutex);
      event->last = record;
    }
    return CUDA_SUCCESS;
  });
}

/// Replaces one step's action.
CUresult set_step(CUgraphExec handle, CUgraphNode node, const CUgraphNodeParams& params) {
  return with_exec(handle, [&](Driver& driver, GraphExec& exec) -> CUresult {
    std::lock_guard graphs_lock(Graphs::get().mutex);
    std::lock_guard lock(exec.mutex);
    auto steps = std::make_shared<std::vector<ExecStep>>(*exec.steps);
    for (ExecStep& step : *steps) {
      if (step.node != from_handle(node) || step.type != params.type) continue;
      GraphNode scratch;
      scratch.type = params.type;
      const CUresult result = fill_node(driver, scratch, params);
      if (result != CUDA_SUCCESS) return result;
      step.run = scratch.run;
      if (step.records) step.records = driver.events.get(params.event);
      exec.steps = std::move(steps);
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
  });
}

CUgraphNodeParams params_of(int type) {
  CUgraphNodeParams params{};
  params.type = type;
  return params;
}

/// Places of a graph's nodes among its steps, so that edges of two graphs can be compared.
std::vector<std::vector<size_t>> shape(const std::vector<ExecStep>& steps) {
  std::map<uint64_t, size_t> place;
  std::vector<std::vector<size_t>> edges;
  for (const ExecStep& step : steps) {
    std::vector<size_t> after;
    for (uint64_t node : step.after) after.push_back(place[node]);
    std::sort(after.begin(), after.end());
    place[step.node] = edges.size();
    edges.push_back(std::move(after));
  }
  return edges;
}

CUresult update(CUgraphExec handle, CUgraph graph_handle, CUgraphExecUpdateResultInfo* info) {
  return with_exec(handle, [&](Driver& driver, GraphExec& exec) -> CUresult {
    if (!info) return CUDA_ERROR_INVALID_VALUE;
    *info = CUgraphExecUpdateResultInfo{kUpdateError, nullptr, nullptr};
    std::lock_guard graphs_lock(Graphs::get().mutex);
    auto graph = Graphs::get().graphs.get(graph_handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    std::vector<ExecStep> fresh;
    if (!append_steps(driver, *graph, &fresh)) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(exec.mutex);
    auto steps = std::make_shared<std::vector<ExecStep>>(*exec.steps);
    if (steps->size() != fresh.size()) {
      info->result = kUpdateTopologyChanged;
      return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    for (size_t i = 0; i < fresh.size(); ++i) {
      if ((*steps)[i].type == fresh[i].type) continue;
      info->result = kUpdateTypeChanged;
      info->errorNode = to_handle<CUgraphNode>(fresh[i].node);
      return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    if (shape(*steps) != shape(fresh)) {
      info->result = kUpdateTopologyChanged;
      return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    for (size_t i = 0; i < fresh.size(); ++i) {
      (*steps)[i].run = fresh[i].run;
      (*steps)[i].records = fresh[i].records;
    }
    exec.steps = std::move(steps);
    info->result = 0;
    return CUDA_SUCCESS;
  });
}

}  // namespace

SG_API cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  return instantiate(out, graph, flags);
}
SG_API cuGraphInstantiate_v2(CUgraphExec* out, CUgraph graph, CUgraphNode* error_node, char* log, size_t bytes) {
  if (error_node) *error_node = nullptr;
  if (log && bytes > 0) *log = '\0';
  return instantiate(out, graph, 0);
}
SG_ALIAS(cuGraphInstantiate, cuGraphInstantiate_v2);
SG_API cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  if (!params) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = instantiate(out, graph, params->flags);
  params->hErrNode_out = nullptr;
  params->result_out = result != CUDA_SUCCESS;
  return result;
}
SG_ALIAS(cuGraphInstantiateWithParams_ptsz, cuGraphInstantiateWithParams);

SG_API cuGraphLaunch(CUgraphExec exec, CUstream stream) { return launch(exec, stream, false); }
SG_API cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream) { return launch(exec, stream, true); }

namespace {
CUresult upload(CUgraphExec handle, CUstream stream, bool per_thread) {
  return with_stream(stream, per_thread, [&](Driver& driver, Context&, const auto&) -> CUresult {
    auto exec = Graphs::get().execs.get(handle);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(exec->mutex);
    return take_upload(driver, *exec) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  });
}
}  // namespace
SG_API cuGraphUpload(CUgraphExec exec, CUstream stream) { return upload(exec, stream, false); }
SG_API cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream) { return upload(exec, stream, true); }

SG_API cuGraphExecDestroy(CUgraphExec handle) {
  return with_driver(
      [&](Driver&) -> CUresult { return Graphs::get().execs.take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; });
}

SG_API cuGraphExecGetFlags(CUgraphExec handle, uint64_t* flags) {
  return with_exec(handle, [&](Driver&, GraphExec& exec) -> CUresult {
    if (!flags) return CUDA_ERROR_INVALID_VALUE;
    *flags = exec.flags;
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
  return update(exec, graph, info);
}
SG_API cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* error_node, int* result) {
  if (!error_node || !result) return CUDA_ERROR_INVALID_VALUE;
  CUgraphExecUpdateResultInfo info{};
  const CUresult code = update(exec, graph, &info);
  *error_node = info.errorNode;
  *result = info.result;
  return code;
}

SG_API cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_KERNEL);
  params.kernel = *given;
  return set_step(exec, node, params);
}
SG_API cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node, const void* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_KERNEL);
  std::memcpy(&params.kernel, given, kKernelNodeParamsV1Bytes);
  return set_step(exec, node, params);
}
SG_API cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D* given, CUcontext) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMCPY);
  params.memcpy.copy = *given;
  return set_step(exec, node, params);
}
SG_API cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS* given,
                                      CUcontext) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_MEMSET);
  params.memset = *given;
  return set_step(exec, node, params);
}
SG_API cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_HOST_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_HOST);
  params.host = *given;
  return set_step(exec, node, params);
}
SG_API cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_EVENT_RECORD);
  params.event = event;
  return set_step(exec, node, params);
}
SG_API cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_WAIT_EVENT);
  params.event = event;
  return set_step(exec, node, params);
}
SG_API cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                          const CUDA_BATCH_MEM_OP_NODE_PARAMS* given) {
  if (!given) return CUDA_ERROR_INVALID_VALUE;
  CUgraphNodeParams params = params_of(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP);
  params.words = *given;
  return set_step(exec, node, params);
}
SG_API cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams* params) {
  return params ? set_step(exec, node, *params) : CUresult{CUDA_ERROR_INVALID_VALUE};
}

SG_API cuGraphExecChildGraphNodeSetParams(CUgraphExec handle, CUgraphNode node_handle, CUgraph graph_handle) {
  return with_exec(handle, [&](Driver&, GraphExec& exec) -> CUresult {
    std::lock_guard graphs_lock(Graphs::get().mutex);
    auto node = Graphs::get().nodes.get(node_handle);
    auto graph = Graphs::get().graphs.get(graph_handle);
    if (!node || !node->params.child || !graph) return CUDA_ERROR_INVALID_VALUE;
    const auto& child = *node->params.child;
    if (child.nodes.size() != graph->nodes.size()) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(exec.mutex);
    auto steps = std::make_shared<std::vector<ExecStep>>(*exec.steps);
    for (size_t i = 0; i < child.nodes.size(); ++i) {
      if (child.nodes[i]->type != graph->nodes[i]->type) return CUDA_ERROR_INVALID_VALUE;
      for (ExecStep& step : *steps) {
        if (step.node == child.nodes[i]->handle) step.run = graph->nodes[i]->run;
      }
    }
    exec.steps = std::move(steps);
    return CUDA_SUCCESS;
  });
}

namespace {
CUresult enabled(CUgraphExec handle, CUgraphNode node, const bool* wish, unsigned* is) {
  return with_exec(handle, [&](Driver&, GraphExec& exec) -> CUresult {
    std::lock_guard lock(exec.mutex);
    auto steps = std::make_shared<std::vector<ExecStep>>(*exec.steps);
    for (ExecStep& step : *steps) {
      if (step.node != from_handle(node)) continue;
      if (step.type > CU_GRAPH_NODE_TYPE_MEMSET) return CUDA_ERROR_INVALID_VALUE;
      if (is) *is = step.enabled;
      if (wish) step.enabled = *wish;
      exec.steps = std::move(steps);
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
  });
}
}  // namespace
SG_API cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned wish) {
  const bool on = wish != 0;
  return enabled(exec, node, &on, nullptr);
}
SG_API cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned* is) {
  return is ? enabled(exec, node, nullptr, is) : CUresult{CUDA_ERROR_INVALID_VALUE};
}
