// Executable graphs: a graph becomes a list of steps, children in the place of their nodes, and is sent once. A launch
// is one operation.
//
// Copies from and to ordinary memory go through shadows in the arena: a host function before the launch fills them, one
// behind it empties them. So the bytes are those of the moment when the stream gets there.
#include "graph_exec.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "copy.h"
#include "host_function.h"
#include "managed.h"
#include "memory.h"
#include "virtual_memory.h"

#define SHADOW_ALIGNMENT 256ull
#define HOST_NODES_MAX 65535u

static orion_table execs = ORION_TABLE(ORION_TAG_GRAPH_EXEC, orion_exec, ORION_GRAPHS, 64);

void orion_listing_drop(listing* list) {
  for (uint32_t i = 0; i < list->count; i++) orion_work_drop(&list->steps[i].work);
  free(list->steps);
  free(list->edges);
  orion_held_release(list->objects, list->object_count);
  *list = (listing){0};
}

// ------------------------------------------------------------------------------------------------ from graph to list

static CUresult add_step(listing* list, const orion_node* node, CUgraphNodeType type, uint32_t* index) {
  if (list->count == list->capacity) {
    const uint32_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
    orion_step* steps = realloc(list->steps, capacity * sizeof *steps);
    if (steps == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    list->steps = steps;
    list->capacity = capacity;
  }
  orion_step* step = &list->steps[list->count];
  *step = (orion_step){.node = node->handle, .type = type};
  if (type == node->type && !orion_work_copy(&step->work, &node->work)) return CUDA_ERROR_OUT_OF_MEMORY;
  *index = list->count++;
  if (step->type == CU_GRAPH_NODE_TYPE_HOST) {
    if (list->host_nodes == HOST_NODES_MAX) return CUDA_ERROR_NOT_SUPPORTED;
    step->host_node = list->host_nodes++;
  }
  const orion_host_side* host = &step->work.host;
  if (host->rows != 0) {
    step->shadow = list->shadow_bytes;
    const uint64_t bytes = host->width_bytes * host->rows * host->slices;
    list->shadow_bytes += (bytes + SHADOW_ALIGNMENT - 1) & ~(SHADOW_ALIGNMENT - 1);
  }
  if (step->work.op != NULL) {
    if (list->context == NULL) list->context = node->context;
    if (list->context != node->context) return orion_not_implemented("a graph with nodes of several contexts");
  }
  return CUDA_SUCCESS;
}

static CUresult add_edge(listing* list, uint32_t from, uint32_t to, const CUgraphEdgeData* data) {
  if (list->edge_count == list->edge_capacity) {
    const uint32_t capacity = list->edge_capacity == 0 ? 64 : 2 * list->edge_capacity;
    orion_step_edge* edges = realloc(list->edges, capacity * sizeof *edges);
    if (edges == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    list->edges = edges;
    list->edge_capacity = capacity;
  }
  list->edges[list->edge_count++] = (orion_step_edge){from, to, data->from_port, data->type};
  return CUDA_SUCCESS;
}

/// A child is entered and left through empty steps, so that its edges to the outside stay few.
static CUresult add_graph(listing* list, const orion_graph* graph) {
  static const CUgraphEdgeData plain;
  CUresult result = CUDA_SUCCESS;
  for (uint32_t i = 0; i < graph->count && result == CUDA_SUCCESS; i++) {
    orion_node* node = graph->nodes[i];
    const bool is_child = node->type == CU_GRAPH_NODE_TYPE_GRAPH;
    // Memory of a graph is there as long as the graph is: allocating and freeing are only places in the order.
    const bool is_memory = node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || node->type == CU_GRAPH_NODE_TYPE_MEM_FREE;
    if (is_memory) list->has_allocations = true;
    result = add_step(list, node, is_child ? CU_GRAPH_NODE_TYPE_EMPTY : node->type, &node->step);
    if (result != CUDA_SUCCESS) break;
    node->last_step = node->step;
    if (!is_child || node->child == NULL) continue;
    result = add_graph(list, node->child);
    if (result == CUDA_SUCCESS) result = add_step(list, node, CU_GRAPH_NODE_TYPE_EMPTY, &node->last_step);
    for (uint32_t k = 0; k < node->child->count && result == CUDA_SUCCESS; k++) {
      const orion_node* inner = node->child->nodes[k];
      if (inner->from.count == 0) result = add_edge(list, node->step, inner->step, &plain);
      if (inner->to.count == 0 && result == CUDA_SUCCESS) {
        result = add_edge(list, inner->last_step, node->last_step, &plain);
      }
    }
    if (node->child->count == 0 && result == CUDA_SUCCESS) {
      result = add_edge(list, node->step, node->last_step, &plain);
    }
  }
  for (uint32_t i = 0; i < graph->count && result == CUDA_SUCCESS; i++) {
    const orion_node* node = graph->nodes[i];
    for (uint32_t k = 0; k < node->from.count && result == CUDA_SUCCESS; k++) {
      const orion_node* before = orion_node_of(node->from.items[k].node);
      result = add_edge(list, before->last_step, node->step, &node->from.items[k].data);
    }
  }
  return result;
}

CUresult orion_listing_make(CUgraph handle, orion_context* context, listing* list) {
  *list = (listing){0};
  pthread_mutex_lock(&orion_graph_mutex);
  const orion_graph* graph = orion_graph_of(handle);
  CUresult result = graph == NULL || graph->captures != 0 ? CUDA_ERROR_INVALID_VALUE : add_graph(list, graph);
  if (result == CUDA_SUCCESS) result = orion_held_copy(graph, &list->objects, &list->object_count);
  pthread_mutex_unlock(&orion_graph_mutex);
  if (list->context == NULL) list->context = context;
  if (result != CUDA_SUCCESS) orion_listing_drop(list);
  return result;
}

// ------------------------------------------------------------------------------------------------ sending

void orion_step_place(orion_step* step) {
  if (step->work.host.rows == 0 || step->work.op == NULL) return;
  orion_op* op = step->work.op;
  if (op->code == ORION_OP_COPY_H2D) {
    ((orion_op_copy_h2d*)op)->src_off = step->shadow;
  } else if (op->code == ORION_OP_COPY_D2H) {
    ((orion_op_copy_d2h*)op)->dst_off = step->shadow;
  } else if (step->work.host.is_written) {
    ((orion_op_copy_3d*)op)->dst_address = step->shadow;
  } else {
    ((orion_op_copy_3d*)op)->src_address = step->shadow;
  }
}

static uint32_t kind_of(const orion_step* step) {
  if (step->type == CU_GRAPH_NODE_TYPE_HOST) return 2;
  return step->work.op == NULL ? 1 : 0;
}

static CUresult send_node(const orion_exec* exec, uint32_t exec_index, uint32_t i, const orion_step* step) {
  orion_op_graph_node op = {.op = {.code = ORION_OP_GRAPH_NODE, .context = (uint16_t)exec->context->entry.index},
                            .exec = exec_index,
                            .node = i,
                            .kind = kind_of(step),
                            .host_node = step->host_node};
  const orion_op* inner = op.kind == 0 ? step->work.op : NULL;
  return orion_submit(exec->context->session, &op.op, sizeof op, inner, inner == NULL ? 0 : inner->bytes);
}

static CUresult send_edges(const orion_exec* exec, uint32_t exec_index, const listing* list) {
  const uint32_t most = 2000;  // an operation's tail
  CUresult result = CUDA_SUCCESS;
  for (uint32_t at = 0; at < list->edge_count && result == CUDA_SUCCESS; at += most) {
    const uint32_t count = list->edge_count - at < most ? list->edge_count - at : most;
    orion_op_graph_edges op = {.op = {.code = ORION_OP_GRAPH_EDGES, .context = (uint16_t)exec->context->entry.index},
                               .exec = exec_index,
                               .count = count};
    result = orion_submit(exec->context->session, &op.op, sizeof op, list->edges + at,
                          count * (uint32_t)sizeof *list->edges);
  }
  return result;
}

/// The whole definition under `exec_index`. `base` is ignored when the lane is shared with a graph that exists.
static CUresult send_definition(const orion_exec* exec, uint32_t exec_index, const listing* list, bool shares_lane,
                                uint64_t base) {
  const uint32_t callback = orion_lane_callback(exec->lane);
  orion_op_graph_define op = {.op = {.code = ORION_OP_GRAPH_DEFINE, .context = (uint16_t)exec->context->entry.index},
                              .exec = exec_index,
                              .node_count = list->count,
                              .callback = callback,
                              .word = callback == 0 || shares_lane ? 0 : ORION_WORD_DYNAMIC + callback,
                              .host_base = base};
  CUresult result = orion_submit(exec->context->session, &op.op, sizeof op, NULL, 0);
  for (uint32_t i = 0; i < list->count && result == CUDA_SUCCESS; i++) {
    result = send_node(exec, exec_index, i, &list->steps[i]);
  }
  return result == CUDA_SUCCESS ? send_edges(exec, exec_index, list) : result;
}

static void send_destroy(const orion_context* context, uint32_t exec_index) {
  orion_op_graph_destroy op = {.op = {.code = ORION_OP_GRAPH_DESTROY, .context = (uint16_t)context->entry.index},
                               .exec = exec_index};
  (void)orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  orion_memory_released(context->device->peer);
}

CUresult orion_exec_send_template(const orion_exec* exec, const listing* list, uint32_t* index) {
  orion_exec* place = orion_table_take(&execs);
  *index = place == NULL ? 0 : place->entry.index;
  return place == NULL ? CUDA_ERROR_OUT_OF_MEMORY : send_definition(exec, *index, list, true, 0);
}

void orion_exec_drop_template(const orion_exec* exec, uint32_t index) {
  send_destroy(exec->context, index);
  orion_table_give(&execs, orion_table_at(&execs, index));
}

// ------------------------------------------------------------------------------------------------ executable graphs

/// All steps that lead to `step`, and itself.
static void mark_before(const orion_exec* exec, uint32_t step, uint8_t* before) {
  before[step] = 1;
  for (bool grew = true; grew;) {
    grew = false;
    for (uint32_t i = exec->edge_count; i-- > 0;) {
      if (!before[exec->edges[i].to] || before[exec->edges[i].from]) continue;
      before[exec->edges[i].from] = 1;
      grew = true;
    }
  }
}

static bool writes_into(const orion_step* step, uint64_t offset, uint64_t bytes) {
  uint64_t at;
  const uint64_t written = orion_step_arena(step, true, &at);
  return written != 0 && at < offset + bytes && offset < at + written;
}

/// Which steps stand before each host node. Only where host memory is copied.
static bool find_order(orion_exec* exec) {
  const bool over_network = exec->pinned != 0 && orion_over_network(exec->context->session);
  if (exec->host_nodes == 0 || (!over_network && exec->gathers + exec->scatters == 0)) return true;
  exec->before_host = calloc(exec->host_nodes, exec->step_count);
  if (exec->before_host == NULL) return false;
  for (uint32_t h = 0; h < exec->host_nodes; h++) {
    uint8_t* before = exec->before_host + (size_t)h * exec->step_count;
    mark_before(exec, exec->host_steps[h], before);
    for (uint32_t i = 0; i < exec->step_count; i++) exec->steps[i].precedes_host |= before[i] != 0;
  }
  return true;
}

/// Over a network: which copies read what earlier ones have brought, so that a launch does not send it.
static bool find_produced(orion_exec* exec) {
  if (exec->pinned == 0 || !orion_over_network(exec->context->session)) return true;
  uint8_t* before = malloc(exec->step_count);
  if (before == NULL) return false;
  for (uint32_t i = 0; i < exec->step_count; i++) {
    uint64_t offset;
    const uint64_t bytes = orion_step_arena(&exec->steps[i], false, &offset);
    exec->steps[i].is_produced = false;
    if (bytes == 0) continue;
    memset(before, 0, exec->step_count);
    mark_before(exec, i, before);
    for (uint32_t k = 0; k < exec->step_count && !exec->steps[i].is_produced; k++) {
      exec->steps[i].is_produced = before[k] && writes_into(&exec->steps[k], offset, bytes);
    }
  }
  free(before);
  return true;
}

bool orion_exec_count(orion_exec* exec) {
  exec->gathers = exec->scatters = exec->pinned = exec->events = 0;
  for (uint32_t i = 0; i < exec->step_count; i++) {
    const orion_step* step = &exec->steps[i];
    uint64_t offset;
    if (step->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD) exec->events++;
    if (step->is_disabled) continue;
    if (step->work.host.rows != 0) *(step->work.host.is_written ? &exec->scatters : &exec->gathers) += 1;
    exec->pinned += orion_step_arena(step, false, &offset) != 0 || orion_step_arena(step, true, &offset) != 0;
  }
  return find_produced(exec);
}

/// Takes the list's steps over.
static bool adopt(orion_exec* exec, listing* list) {
  uint32_t* host_steps = malloc((list->host_nodes + 1) * sizeof *host_steps);
  if (host_steps == NULL) return false;
  for (uint32_t i = 0; i < list->count; i++) {
    if (list->steps[i].type == CU_GRAPH_NODE_TYPE_HOST) host_steps[list->steps[i].host_node] = i;
  }
  exec->steps = list->steps;
  exec->step_count = list->count;
  exec->edges = list->edges;
  exec->edge_count = list->edge_count;
  exec->host_steps = host_steps;
  exec->host_nodes = list->host_nodes;
  exec->has_allocations = list->has_allocations;
  exec->objects = list->objects;
  exec->object_count = list->object_count;
  list->objects = NULL;
  list->object_count = 0;
  list->steps = NULL;
  list->count = 0;
  list->edges = NULL;
  return orion_exec_count(exec) && find_order(exec);
}

void orion_exec_release(orion_exec* exec) {
  if (atomic_fetch_sub(&exec->references, 1) != 1) return;
  orion_lane_close(exec->lane);
  orion_shadow_give(exec);
  for (uint32_t i = 0; i < exec->step_count; i++) orion_work_drop(&exec->steps[i].work);
  free(exec->steps);
  free(exec->edges);
  free(exec->host_steps);
  free(exec->before_host);
  orion_held_release(exec->objects, exec->object_count);
  pthread_mutex_destroy(&exec->launches);
  pthread_mutex_destroy(&exec->mutex);
  orion_table_give(&execs, exec);
}

static orion_exec* new_exec(orion_context* context) {
  orion_exec* exec = orion_object_take(&execs);
  if (exec == NULL) return NULL;
  const orion_entry entry = exec->entry;
  memset(exec, 0, sizeof *exec);
  exec->entry = entry;
  exec->context = context;
  exec->epoch = atomic_load(&context->epoch);
  exec->references = 1;
  pthread_mutex_init(&exec->launches, NULL);
  pthread_mutex_init(&exec->mutex, NULL);
  return exec;
}

/// The node that the worker's answer names by its step.
static CUgraphNode node_at(const orion_exec* exec, uint32_t index) {
  return index < exec->step_count ? (CUgraphNode)(uintptr_t)exec->steps[index].node : NULL;
}

static CUresult instantiate(orion_context* context, CUgraph graph, uint64_t flags, orion_exec** out,
                            CUgraphNode* error_node) {
  listing list;
  CUresult result = orion_listing_make(graph, context, &list);
  if (result != CUDA_SUCCESS) return result;
  orion_exec* exec = new_exec(list.context);
  if (exec == NULL) {
    orion_listing_drop(&list);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  exec->flags = flags;
  uint64_t base = 0, shadow = 0;
  if (list.host_nodes != 0) result = orion_lane_open(exec, &base);
  if (result == CUDA_SUCCESS && list.shadow_bytes != 0) result = orion_shadow_take(exec, list.shadow_bytes, &shadow);
  for (uint32_t i = 0; i < list.count; i++) {
    list.steps[i].shadow += shadow;
    orion_step_place(&list.steps[i]);
  }
  if (result == CUDA_SUCCESS) {
    orion_op_graph_instantiate op = {
        .op = {.code = ORION_OP_GRAPH_INSTANTIATE, .context = (uint16_t)exec->context->entry.index},
        .exec = exec->entry.index,
        // Memory of graphs is this process's business, uploading a launch's.
        .instantiate_flags = flags & CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY};
    orion_reply_graph_instantiate reply = {.error_node = UINT32_MAX};
    result = send_definition(exec, exec->entry.index, &list, false, base);
    if (result == CUDA_SUCCESS && !adopt(exec, &list)) result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) {
      result = orion_call(exec->context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
      if (result != CUDA_SUCCESS && error_node != NULL) *error_node = node_at(exec, reply.error_node);
    }
    if (result != CUDA_SUCCESS) send_destroy(exec->context, exec->entry.index);
  }
  orion_listing_drop(&list);
  if (result != CUDA_SUCCESS) {
    orion_exec_release(exec);
    return result;
  }
  exec->handle = orion_table_publish(&execs, exec);
  *out = exec;
  return CUDA_SUCCESS;
}

static CUresult instantiate_flags(CUgraphExec* out, CUgraph graph, uint64_t flags, CUgraphNode* error_node) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(out != NULL && (flags & ~15ull) == 0, CUDA_ERROR_INVALID_VALUE);
  if ((flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) != 0) {
    return orion_not_implemented("a graph that kernels launch");
  }
  orion_exec* exec;
  const CUresult result = instantiate(context, graph, flags, &exec, error_node);
  if (result == CUDA_SUCCESS) *out = (CUgraphExec)(uintptr_t)exec->handle;
  return result;
}

ORION_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
  ORION_COUNTED();
  return instantiate_flags(out, graph, flags, NULL);
}

ORION_API CUresult cuGraphInstantiate_v2(CUgraphExec* out, CUgraph graph, CUgraphNode* error_node, char* log,
                                         size_t log_bytes) {
  ORION_COUNTED();
  if (error_node != NULL) *error_node = NULL;
  if (log != NULL && log_bytes != 0) *log = '\0';
  return instantiate_flags(out, graph, 0, error_node);
}

ORION_API CUresult cuGraphInstantiate(CUgraphExec* out, CUgraph graph, CUgraphNode* error_node, char* log,
                                      size_t log_bytes) {
  ORION_COUNTED();
  return cuGraphInstantiate_v2(out, graph, error_node, log, log_bytes);
}

ORION_API CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                                CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  ORION_COUNTED();
  ORION_REQUIRE(params != NULL, CUDA_ERROR_INVALID_VALUE);
  params->hErrNode_out = NULL;
  const CUresult result = instantiate_flags(out, graph, params->flags, &params->hErrNode_out);
  params->result_out = result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
  if (result == CUDA_SUCCESS && (params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0) {
    return cuGraphUpload(*out, params->hUploadStream);
  }
  return result;
}

CUresult orion_exec_of(CUgraphExec handle, orion_exec** exec) {
  const CUresult result = orion_object_find(&execs, handle, exec);
  return result == CUDA_ERROR_INVALID_HANDLE ? CUDA_ERROR_INVALID_VALUE : result;
}

ORION_API CUresult cuGraphExecDestroy(CUgraphExec handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_exec* exec = orion_table_find(&execs, (uint64_t)(uintptr_t)handle, &generation);
  if (exec == NULL || !orion_table_retire(&execs, exec, generation)) return CUDA_ERROR_INVALID_VALUE;
  if (orion_same_epoch(exec->context, exec->epoch)) send_destroy(exec->context, exec->entry.index);
  orion_exec_release(exec);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
  ORION_ENTER();
  orion_exec* exec;
  const CUresult result = orion_exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(flags != NULL, CUDA_ERROR_INVALID_VALUE);
  *flags = exec->flags;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ launches

static void gather(void* argument) {
  orion_exec* exec = argument;
  pthread_mutex_lock(&exec->mutex);
  orion_exec_gather(exec, NULL);
  pthread_mutex_unlock(&exec->mutex);
  orion_exec_release(exec);
}

static void scatter(void* argument) {
  orion_exec* exec = argument;
  pthread_mutex_lock(&exec->mutex);
  orion_exec_scatter(exec, NULL);
  pthread_mutex_unlock(&exec->mutex);
  orion_exec_release(exec);
}

static CUresult enqueue(orion_exec* exec, orion_stream* stream, CUhostFn function) {
  atomic_fetch_add(&exec->references, 1);
  const CUresult result = orion_host_function_enqueue(stream, function, exec);
  if (result != CUDA_SUCCESS) orion_exec_release(exec);
  return result;
}

static CUresult submit_launch(orion_exec* exec, orion_stream* stream) {
  orion_op_graph_launch op = {.op = {.code = ORION_OP_GRAPH_LAUNCH}, .exec = exec->entry.index};
  const bool over_network = exec->pinned != 0 && orion_over_network(stream->session);
  for (uint32_t i = 0; over_network && i < exec->step_count; i++) {
    uint64_t offset;
    const uint64_t bytes = exec->steps[i].is_produced ? 0 : orion_step_arena(&exec->steps[i], false, &offset);
    const uint64_t sequence = bytes == 0 ? 0 : orion_push_program_memory(stream, offset, bytes);
    if (sequence > op.op.bulk_seq) op.op.bulk_seq = sequence;
  }
  uint64_t seen = 0;
  if (atomic_load_explicit(&orion_coherent_candidates, memory_order_relaxed) != 0) {
    const CUresult managed = orion_managed_ready(stream->session);
    if (managed != CUDA_SUCCESS) return managed;
    seen = orion_coherent_always(stream, &op.op);
    for (uint32_t i = 0; i < exec->step_count; i++) {
      const orion_op* work = exec->steps[i].work.op;
      if (work == NULL || exec->steps[i].is_disabled) continue;
      if (exec->steps[i].type == CU_GRAPH_NODE_TYPE_KERNEL) {
        const uint32_t fixed_bytes = ORION_OP_INFO[work->code].fixed_bytes;
        seen |= orion_coherent_params(stream, &op.op, (const uint8_t*)work + fixed_bytes, work->bytes - fixed_bytes);
      } else if (work->code == ORION_OP_MEMSET) {
        const uint64_t address = ((const orion_op_memset*)work)->device_dst;
        seen |= orion_coherent_params(stream, &op.op, &address, sizeof address);
      } else if (work->code == ORION_OP_STREAM_WRITE_VALUE) {
        const uint64_t address = ((const orion_op_stream_write_value*)work)->device_address;
        seen |= orion_coherent_params(stream, &op.op, &address, sizeof address);
      }
    }
  }
  CUresult result = orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  orion_coherent_after(stream, seen);
  if (result != CUDA_SUCCESS || (exec->events == 0 && !over_network)) return result;
  uint64_t value;
  result = orion_stream_ticket(stream, &value);
  for (uint32_t i = 0; i < exec->step_count; i++) {
    uint64_t offset;
    const bool is_pulled = over_network && !exec->steps[i].precedes_host;
    const uint64_t bytes = is_pulled ? orion_step_arena(&exec->steps[i], true, &offset) : 0;
    if (bytes != 0) orion_note_pull(stream->session, offset, bytes, stream->word, value);
    // The host sees the event complete when all of the launch is: later than the node, never earlier.
    orion_event* event = exec->steps[i].type == CU_GRAPH_NODE_TYPE_EVENT_RECORD
                             ? orion_table_find(&orion_events, exec->steps[i].work.event, NULL)
                             : NULL;
    if (event != NULL) orion_event_set_ticket(event, stream, value);
  }
  return result;
}

static CUresult launch(orion_exec* exec, orion_stream* stream) {
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&exec->launches);
  if (exec->has_allocations) {
    const bool frees_itself = (exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) != 0;
    result = orion_graph_memory_launch(exec->steps, exec->step_count, frees_itself);
  }
  if (result == CUDA_SUCCESS && exec->gathers != 0) result = enqueue(exec, stream, gather);
  // Told before the launch: with ORION_SYNC it is waited for. A launch that cannot be sent has lost its session.
  if (result == CUDA_SUCCESS && exec->lane != NULL) orion_lane_expect(exec->lane, exec->host_nodes);
  if (result == CUDA_SUCCESS) result = submit_launch(exec, stream);
  if (result == CUDA_SUCCESS && exec->scatters != 0) result = enqueue(exec, stream, scatter);
  pthread_mutex_unlock(&exec->launches);
  return result;
}

ORION_API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  ORION_ENTER_STREAM(stream, stream_handle);
  orion_exec* exec;
  const CUresult result = orion_exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  if (exec->context->session != stream->session) return CUDA_ERROR_NOT_SUPPORTED;
  return orion_is_captured(stream) ? orion_capture_refuse(stream) : launch(exec, stream);
}

ORION_API CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
  ORION_ENTER_STREAM(stream, stream_handle);
  orion_exec* exec;
  const CUresult result = orion_exec_of(handle, &exec);
  if (result != CUDA_SUCCESS) return result;
  if (exec->context->session != stream->session) return CUDA_ERROR_NOT_SUPPORTED;
  if (orion_is_captured(stream)) return orion_capture_refuse(stream);
  orion_op_graph_upload op = {.op = {.code = ORION_OP_GRAPH_UPLOAD}, .exec = exec->entry.index};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}
