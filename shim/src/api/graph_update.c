// Changing executable graphs: one node's work, whether it runs, or all of it from another graph.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "graph_exec.h"

static CUresult exec_of(CUgraphExec handle, orion_exec** exec) {
  CUresult result = orion_enter();
  if (result == CUDA_SUCCESS) result = orion_exec_of(handle, exec);
  return result;
}

/// The step of a node; step_count when the graph has none.
static uint32_t step_of(const orion_exec* exec, CUgraphNode node) {
  uint32_t i = 0;
  while (i < exec->step_count && exec->steps[i].node != (uint64_t)(uintptr_t)node) i++;
  return i;
}

static bool same_place(const orion_node_work* a, const orion_node_work* b) {
  const orion_host_side *x = &a->host, *y = &b->host;
  return (x->rows == 0) == (y->rows == 0) &&
         (x->rows == 0 || (x->is_written == y->is_written &&
                           x->width_bytes * x->rows * x->slices >= y->width_bytes * y->rows * y->slices));
}

/// Under `launches` alone: the worker may have to wait for a launch that waits for a host function of ours. Takes
/// `work` over, or leaves it to the caller.
static CUresult replace(orion_exec* exec, uint32_t i, CUgraphNodeType type, orion_node_work* work) {
  orion_step* step = &exec->steps[i];
  if (i == exec->step_count || step->type != type) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = CUDA_SUCCESS;
  if (type != CU_GRAPH_NODE_TYPE_HOST) {
    // The shadow is as large as the first copy needed; a larger one, or another direction, needs a new instance.
    if (work->op == NULL || step->work.op == NULL || !same_place(&step->work, work)) return CUDA_ERROR_INVALID_VALUE;
    orion_step changed = {.shadow = step->shadow, .work = *work};
    orion_step_place(&changed);
    orion_op_graph_set_node op = {
        .op = {.code = ORION_OP_GRAPH_SET_NODE, .context = (uint16_t)exec->context->entry.index},
        .exec = exec->entry.index,
        .node = i};
    result = orion_call(exec->context->session, &op.op, sizeof op, work->op, work->op->bytes, NULL, 0, NULL);
  }
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&exec->mutex);
  orion_work_drop(&step->work);
  step->work = *work;
  *work = (orion_node_work){0};
  const bool whole = orion_exec_count(exec);
  pthread_mutex_unlock(&exec->mutex);
  return whole ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult set(CUgraphExec handle, CUgraphNode node, CUgraphNodeParams* params) {
  orion_exec* exec;
  CUresult result = exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  if (params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || params->type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  orion_context* context;
  orion_node_work work;
  result = orion_work_from_params(params, &context, &work);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&exec->launches);
  result = replace(exec, step_of(exec, node), params->type, &work);
  pthread_mutex_unlock(&exec->launches);
  orion_work_drop(&work);
  return result;
}

ORION_API CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams* params) {
  ORION_COUNTED();
  return params == NULL ? CUDA_ERROR_INVALID_VALUE : set(exec, node, params);
}

ORION_API CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                     const CUDA_KERNEL_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  return set(exec, node, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_KERNEL, .kernel = *given});
}

ORION_API CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_KERNEL_NODE_PARAMS_v1* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_KERNEL};
  memcpy(&params.kernel, given, sizeof *given);
  return set(exec, node, &params);
}

ORION_API CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D* given,
                                                  CUcontext context) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  return set(
      exec, node,
      &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy = {.copyCtx = context, .copyParams = *given}});
}

ORION_API CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_MEMSET_NODE_PARAMS* given, CUcontext context) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  return set(exec, node,
             &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMSET,
                                  .memset = {given->dst, given->pitch, given->value, given->elementSize, given->width,
                                             given->height, context}});
}

ORION_API CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                const CUDA_HOST_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  return set(exec, node, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_HOST, .host = *given});
}

ORION_API CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  ORION_COUNTED();
  return set(exec, node, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .eventRecord = {event}});
}

ORION_API CUresult cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  ORION_COUNTED();
  return set(exec, node, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .eventWait = {event}});
}

ORION_API CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                      const CUDA_BATCH_MEM_OP_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  return set(exec, node, &(CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, .memOp = *given});
}

/// A node of a child and what it is to do from now on.
typedef struct child_change {
  uint64_t node;
  CUgraphNodeType type;
  orion_node_work work;
} child_change;

/// Under the graphs' mutex: pairs the nodes of the child with those of a graph of the same shape, in the order of their
/// making.
static CUresult pair_children(CUgraphNode handle, CUgraph graph, child_change** changes, uint32_t* count) {
  const orion_node* node = orion_node_of((uint64_t)(uintptr_t)handle);
  const orion_graph* fresh = orion_graph_of(graph);
  if (node == NULL || node->child == NULL || fresh == NULL) return CUDA_ERROR_INVALID_VALUE;
  const orion_graph* child = node->child;
  if (child->count != fresh->count) return CUDA_ERROR_INVALID_VALUE;
  child_change* made = calloc(child->count + 1, sizeof *made);
  if (made == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *changes = made;
  for (uint32_t i = 0; i < child->count; i++) {
    const orion_node *old = child->nodes[i], *now = fresh->nodes[i];
    if (old->type != now->type || old->from.count != now->from.count) return CUDA_ERROR_INVALID_VALUE;
    if (old->type == CU_GRAPH_NODE_TYPE_GRAPH) return CUDA_ERROR_NOT_SUPPORTED;
    made[i] = (child_change){.node = old->handle, .type = old->type};
    *count = i + 1;
    if (!orion_work_copy(&made[i].work, &now->work)) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec handle, CUgraphNode node, CUgraph child) {
  ORION_COUNTED();
  orion_exec* exec;
  CUresult result = exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  child_change* changes = NULL;
  uint32_t count = 0;
  pthread_mutex_lock(&orion_graph_mutex);
  result = pair_children(node, child, &changes, &count);
  pthread_mutex_unlock(&orion_graph_mutex);
  pthread_mutex_lock(&exec->launches);
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    if (changes[i].work.op == NULL && changes[i].type != CU_GRAPH_NODE_TYPE_HOST) continue;  // an empty node
    result = replace(exec, step_of(exec, (CUgraphNode)(uintptr_t)changes[i].node), changes[i].type, &changes[i].work);
  }
  pthread_mutex_unlock(&exec->launches);
  for (uint32_t i = 0; i < count; i++) orion_work_drop(&changes[i].work);
  free(changes);
  return result;
}

// ------------------------------------------------------------------------------------------------ on and off

ORION_API CUresult cuGraphNodeSetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int enabled) {
  ORION_COUNTED();
  orion_exec* exec;
  CUresult result = exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&exec->launches);
  const uint32_t i = step_of(exec, node);
  result = CUDA_ERROR_INVALID_VALUE;
  if (i < exec->step_count && exec->steps[i].type <= CU_GRAPH_NODE_TYPE_MEMSET) {
    orion_op_graph_set_enabled op = {
        .op = {.code = ORION_OP_GRAPH_SET_ENABLED, .context = (uint16_t)exec->context->entry.index},
        .exec = exec->entry.index,
        .node = i,
        .enabled = enabled != 0};
    result = orion_call(exec->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  }
  if (result == CUDA_SUCCESS) {
    pthread_mutex_lock(&exec->mutex);
    exec->steps[i].is_disabled = enabled == 0;
    if (!orion_exec_count(exec)) result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&exec->mutex);
  }
  pthread_mutex_unlock(&exec->launches);
  return result;
}

ORION_API CUresult cuGraphNodeGetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int* enabled) {
  ORION_COUNTED();
  orion_exec* exec;
  CUresult result = exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(enabled != NULL, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&exec->mutex);
  const uint32_t i = step_of(exec, node);
  const bool known = i < exec->step_count && exec->steps[i].type <= CU_GRAPH_NODE_TYPE_MEMSET;
  if (known) *enabled = !exec->steps[i].is_disabled;
  pthread_mutex_unlock(&exec->mutex);
  return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ------------------------------------------------------------------------------------------------ whole updates

/// Under `launches`.
static CUresult update(orion_exec* exec, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
  *info = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_ERROR};
  listing list;
  CUresult result = orion_listing_make(graph, exec->context, &list);
  if (result != CUDA_SUCCESS) return result;
  if (list.count != exec->step_count) info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
  bool alike = list.count == exec->step_count && list.context == exec->context;
  for (uint32_t i = 0; i < list.count && alike; i++) {
    orion_step* step = &list.steps[i];
    if (step->type != exec->steps[i].type) {
      info->result = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
      info->errorNode = (CUgraphNode)(uintptr_t)step->node;
      alike = false;
    } else if (!same_place(&exec->steps[i].work, &step->work)) {
      info->result = CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
      info->errorNode = (CUgraphNode)(uintptr_t)step->node;
      alike = false;
    } else {
      step->shadow = exec->steps[i].shadow;
      orion_step_place(step);
    }
  }
  if (!alike) {
    orion_listing_drop(&list);
    return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
  }
  uint32_t source;
  result = orion_exec_send_template(exec, &list, &source);
  orion_op_graph_update op = {.op = {.code = ORION_OP_GRAPH_UPDATE, .context = (uint16_t)exec->context->entry.index},
                              .exec = exec->entry.index,
                              .source = source};
  orion_reply_graph_update reply = {.update_result = CU_GRAPH_EXEC_UPDATE_ERROR, .error_node = UINT32_MAX};
  uint32_t reply_bytes = 0;
  if (result == CUDA_SUCCESS) {
    result = orion_call(exec->context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, &reply_bytes);
  }
  if (source != 0) orion_exec_drop_template(exec, source);
  if (reply_bytes == sizeof reply) {
    info->result = (CUgraphExecUpdateResult)reply.update_result;
    if (reply.error_node < list.count) info->errorNode = (CUgraphNode)(uintptr_t)list.steps[reply.error_node].node;
    if (reply.error_from_node < list.count) {
      info->errorFromNode = (CUgraphNode)(uintptr_t)list.steps[reply.error_from_node].node;
    }
  }
  // Nodes keep the names that the graph was made from.
  pthread_mutex_lock(&exec->mutex);
  for (uint32_t i = 0; i < list.count && result == CUDA_SUCCESS; i++) {
    const orion_node_work old = exec->steps[i].work;
    exec->steps[i].work = list.steps[i].work;
    list.steps[i].work = old;
  }
  if (result == CUDA_SUCCESS && !orion_exec_count(exec)) result = CUDA_ERROR_OUT_OF_MEMORY;
  pthread_mutex_unlock(&exec->mutex);
  orion_listing_drop(&list);
  return result;
}

ORION_API CUresult cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
  ORION_COUNTED();
  orion_exec* exec;
  CUresult result = exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(info != NULL, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&exec->launches);
  result = update(exec, graph, info);
  pthread_mutex_unlock(&exec->launches);
  return result;
}

ORION_API CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* error_node,
                                     CUgraphExecUpdateResult* update_result) {
  ORION_COUNTED();
  ORION_REQUIRE(error_node != NULL && update_result != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphExecUpdateResultInfo info = {0};
  const CUresult result = cuGraphExecUpdate_v2(exec, graph, &info);
  *error_node = info.errorNode;
  *update_result = info.result;
  return result;
}
