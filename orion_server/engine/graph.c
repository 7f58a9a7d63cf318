// Executable graphs: their definitions come from the client node by node and become the driver's graphs. No stream ever
// captures here, so markers, queries and synchronisations of the engine need no care.
//
// A launch may run on a stream of another context than the graph's, as CUDA allows; everything else names the graph's
// own. A definition stays with its executable graph: its nodes' handles name what later changes are about.
#include "graph.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ledger.h"

// The most that an executable graph may be charged.
#define GRAPH_MOST_BYTES (64ull << 20)
#define NODE_MOST_BYTES (1ull << 20)

typedef union node_params {
  CUDA_KERNEL_NODE_PARAMS kernel;
  CUDA_MEMCPY3D copy;
  CUDA_MEMSET_NODE_PARAMS fill;
  CUDA_BATCH_MEM_OP_NODE_PARAMS words;
  CUDA_HOST_NODE_PARAMS host;
  CUevent event;
} node_params;

// What one node's operation means to the driver. It points into the operation and into itself.
typedef struct description {
  node_params params;
  CUstreamBatchMemOpParams word;
  void* launch_extra[5];
  size_t param_bytes;
  uint32_t attribute_count;
  const orion_wire_attribute* attributes;
  host_range written;
  uint32_t event;
  bool is_cooperative;
} description;

bool graph_init(orion_engine* e) {
  e->graphs = calloc(1, sizeof *e->graphs);
  if (!e->graphs) return false;
  void* states = mmap(NULL, ORION_GRAPHS * sizeof(graph_state), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (states == MAP_FAILED) return false;
  e->graphs->states = states;
  return true;
}

static void close_graph(orion_engine* e, graph_state* g) {
  if (!g->alive) return;
  if (g->exec) (void)e->driver.graph_exec_destroy(g->exec);
  ledger_uncharge(e, e->contexts[g->context].device, ORION_MEMORY_GRAPH, g->charged_bytes);
  if (g->graph) (void)e->driver.graph_destroy(g->graph);
  e->graphs->node_count -= g->node_count;
  free(g->nodes);
  free(g->edges);
  free(g->effects);
  *g = (graph_state){.epoch = g->epoch};
}

void graph_drop_context(orion_engine* e, uint32_t context) {
  for (uint32_t i = 1; i < e->graphs->high; i++) {
    if (e->graphs->states[i].context == context) close_graph(e, &e->graphs->states[i]);
  }
}

void graph_free(orion_engine* e) {
  if (!e->graphs) return;
  if (e->graphs->states) {
    for (uint32_t i = 1; i < e->graphs->high; i++) close_graph(e, &e->graphs->states[i]);
    munmap(e->graphs->states, ORION_GRAPHS * sizeof(graph_state));
  }
  graph_lanes_free(e);
  free(e->graphs);
  e->graphs = NULL;
}

// ------------------------------------------------------------------------------------------------ order
uint32_t graph_of(const orion_op* op, uint32_t* other) {
  if (op->code < ORION_OP_GRAPH_DEFINE || op->code > ORION_OP_GRAPH_SET_ENABLED) return ORION_GRAPHS;
  const orion_op_graph_update* o = (const orion_op_graph_update*)op;  // all of them begin with `exec`
  *other = op->code == ORION_OP_GRAPH_UPDATE && o->source < ORION_GRAPHS ? o->source : o->exec;
  return o->exec;
}

bool graph_is_blocked(const orion_engine* e, uint32_t index) { return e->graphs->states[index].epoch == e->epoch; }

void graph_block(orion_engine* e, uint32_t index) { e->graphs->states[index].epoch = e->epoch; }

// ------------------------------------------------------------------------------------------------ from operation to
// node
static int32_t describe_launch(const orion_engine* e, const orion_op* op, description* d) {
  const orion_op_launch* o = (const orion_op_launch*)op;  // LAUNCH_EX differs in the meaning of one field
  const bool extended = op->code == ORION_OP_LAUNCH_EX;
  d->attribute_count = extended ? ((const orion_op_launch_ex*)op)->attribute_count : 0;
  d->is_cooperative = !extended && (o->launch_flags & 1);
  if (o->function >= ORION_FUNCTIONS || !e->functions[o->function].alive) return CUDA_ERROR_INVALID_HANDLE;
  const function_state* f = &e->functions[o->function];
  if (e->modules[f->module].context != op->context) return CUDA_ERROR_INVALID_HANDLE;
  if (!launch_tail_ok(op, f, d->attribute_count)) return CUDA_ERROR_INVALID_VALUE;
  d->attributes = (const orion_wire_attribute*)op_tail(op);
  for (uint32_t i = 0; i < d->attribute_count; i++) {
    if (!launch_attribute_ok(e, d->attributes[i].id, d->attributes[i].value)) return CUDA_ERROR_NOT_SUPPORTED;
  }
  d->param_bytes = o->param_bytes;
  void* const params = (void*)(op_tail(op) + d->attribute_count * sizeof(orion_wire_attribute));
  void* const extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, params, CU_LAUNCH_PARAM_BUFFER_SIZE, &d->param_bytes,
                         CU_LAUNCH_PARAM_END};
  memcpy(d->launch_extra, extra, sizeof extra);
  d->params.kernel = (CUDA_KERNEL_NODE_PARAMS){.func = f->handle,
                                               .gridDimX = o->grid_x,
                                               .gridDimY = o->grid_y,
                                               .gridDimZ = o->grid_z,
                                               .blockDimX = o->block_x,
                                               .blockDimY = o->block_y,
                                               .blockDimZ = o->block_z,
                                               .sharedMemBytes = o->dynamic_shared_bytes,
                                               .extra = d->param_bytes ? d->launch_extra : NULL};
  return 0;
}

// A linear copy; a host side is an arena offset.
static int32_t describe_linear(const orion_engine* e, uint64_t to, bool to_host, uint64_t from, bool from_host,
                               uint64_t bytes, description* d) {
  const bool to_ok = to_host ? memory_host_ok(e, to, bytes) : memory_device_ok(e, to, bytes);
  const bool from_ok = from_host ? memory_host_ok(e, from, bytes) : memory_device_ok(e, from, bytes);
  if (!to_ok || !from_ok) return CUDA_ERROR_INVALID_VALUE;
  d->params.copy = (CUDA_MEMCPY3D){.srcMemoryType = from_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE,
                                   .srcHost = from_host ? e->arena + from : NULL,
                                   .srcDevice = from_host ? 0 : from,
                                   .srcPitch = bytes,
                                   .srcHeight = 1,
                                   .dstMemoryType = to_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE,
                                   .dstHost = to_host ? e->arena + to : NULL,
                                   .dstDevice = to_host ? 0 : to,
                                   .dstPitch = bytes,
                                   .dstHeight = 1,
                                   .WidthInBytes = bytes,
                                   .Height = 1,
                                   .Depth = 1};
  if (to_host) d->written = (host_range){.offset = to, .bytes = bytes};
  return 0;
}

static int32_t describe_volume(const orion_engine* e, const orion_op_copy_3d* o, description* d) {
  CUDA_MEMCPY3D_PEER c;
  bool peers = false;
  const int32_t result = copy_3d_describe(e, o, &c, &peers, &d->written);
  if (result) return result;
  // Addresses say which device they are of; a node has no member for contexts.
  c.srcContext = c.dstContext = NULL;
  memcpy(&d->params.copy, &c, sizeof d->params.copy);
  return 0;
}

static int32_t describe_fill(const orion_engine* e, const orion_op_memset* o, description* d) {
  if (!copy_set_ok(e, o)) return CUDA_ERROR_INVALID_VALUE;
  d->params.fill = (CUDA_MEMSET_NODE_PARAMS){.dst = o->device_dst,
                                             .pitch = o->pitch,
                                             .value = o->value,
                                             .elementSize = o->element_bytes,
                                             .width = o->width,
                                             .height = o->height};
  return 0;
}

static int32_t describe_word(const orion_engine* e, const orion_op* op, description* d) {
  const orion_op_stream_write_value* o = (const orion_op_stream_write_value*)op;  // both operations are laid out alike
  const bool write = op->code == ORION_OP_STREAM_WRITE_VALUE, wide = o->width_bytes == 8;
  if ((!wide && o->width_bytes != 4) || o->device_address % o->width_bytes ||
      !memory_device_ok(e, o->device_address, o->width_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  d->word.operation = write ? (wide ? CU_STREAM_MEM_OP_WRITE_VALUE_64 : CU_STREAM_MEM_OP_WRITE_VALUE_32)
                            : (wide ? CU_STREAM_MEM_OP_WAIT_VALUE_64 : CU_STREAM_MEM_OP_WAIT_VALUE_32);
  d->word.writeValue.address = o->device_address;
  d->word.writeValue.value64 = wide ? o->value : (uint32_t)o->value;
  d->word.writeValue.flags = o->write_flags;
  d->params.words =
      (CUDA_BATCH_MEM_OP_NODE_PARAMS){.ctx = e->contexts[op->context].handle, .count = 1, .paramArray = &d->word};
  return 0;
}

static int32_t describe_event(orion_engine* e, uint32_t event, bool records, description* d) {
  if (event >= ORION_EVENTS || !e->events[event].alive) return CUDA_ERROR_INVALID_HANDLE;
  e->events[event].in_graph = true;
  d->params.event = e->events[event].handle;
  if (records) d->event = event;
  return 0;
}

static int32_t describe(orion_engine* e, const orion_op* op, description* d) {
  *d = (description){.event = ORION_EVENTS};
  switch (op->code) {
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX:
      return describe_launch(e, op, d);
    case ORION_OP_COPY_H2D: {
      const orion_op_copy_h2d* o = (const orion_op_copy_h2d*)op;
      return describe_linear(e, o->device_dst, false, o->src_off, true, o->size_bytes, d);
    }
    case ORION_OP_COPY_D2H: {
      const orion_op_copy_d2h* o = (const orion_op_copy_d2h*)op;
      return describe_linear(e, o->dst_off, true, o->src, false, o->size_bytes, d);
    }
    case ORION_OP_COPY_D2D:
    case ORION_OP_COPY_PEER: {
      const orion_op_copy_d2d* o = (const orion_op_copy_d2d*)op;  // both operations begin alike
      return describe_linear(e, o->device_dst, false, o->src, false, o->size_bytes, d);
    }
    case ORION_OP_COPY_3D:
      return describe_volume(e, (const orion_op_copy_3d*)op, d);
    case ORION_OP_MEMSET:
      return describe_fill(e, (const orion_op_memset*)op, d);
    case ORION_OP_STREAM_WRITE_VALUE:
    case ORION_OP_STREAM_WAIT_VALUE:
      return describe_word(e, op, d);
    case ORION_OP_EVENT_RECORD:
      return describe_event(e, ((const orion_op_event_record*)op)->event, true, d);
    case ORION_OP_STREAM_WAIT_EVENT:
      return describe_event(e, ((const orion_op_stream_wait_event*)op)->event, false, d);
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

static CUresult add_attributes(orion_engine* e, CUgraphNode node, const description* d) {
  CUresult code = 0;
  if (d->is_cooperative) {
    const CUlaunchAttributeValue value = {.cooperative = 1};
    code = e->driver.graph_kernel_attribute(node, CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &value);
  }
  for (uint32_t i = 0; i < d->attribute_count && !code; i++) {
    const uint32_t id = d->attributes[i].id;
    // The order between kernels is the edges' business.
    if (id == CU_LAUNCH_ATTRIBUTE_IGNORE || id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) continue;
    CUlaunchAttributeValue value;
    memcpy(&value, d->attributes[i].value, sizeof value);
    code = e->driver.graph_kernel_attribute(node, (CUlaunchAttributeID)id, &value);
  }
  return code;
}

static CUresult add_node(orion_engine* e, const orion_op* op, CUgraph graph, const description* d, CUgraphNode* node) {
  const orion_driver* v = &e->driver;
  const CUcontext context = e->contexts[op->context].handle;
  switch (op->code) {
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX: {
      const CUresult code = v->graph_add_kernel(node, graph, NULL, 0, &d->params.kernel);
      return code ? code : add_attributes(e, *node, d);
    }
    case ORION_OP_MEMSET:
      return v->graph_add_memset(node, graph, NULL, 0, &d->params.fill, context);
    case ORION_OP_STREAM_WRITE_VALUE:
    case ORION_OP_STREAM_WAIT_VALUE:
      return v->graph_add_words(node, graph, NULL, 0, &d->params.words);
    case ORION_OP_EVENT_RECORD:
      return v->graph_add_event_record(node, graph, NULL, 0, d->params.event);
    case ORION_OP_STREAM_WAIT_EVENT:
      return v->graph_add_event_wait(node, graph, NULL, 0, d->params.event);
    default:
      return v->graph_add_memcpy(node, graph, NULL, 0, &d->params.copy, context);
  }
}

// ------------------------------------------------------------------------------------------------ definitions
static graph_state* graph_at(orion_engine* e, const orion_op* op) {
  const uint32_t index = ((const orion_op_graph_launch*)op)->exec;
  graph_state* g = index && index < ORION_GRAPHS ? &e->graphs->states[index] : NULL;
  const bool launches = op->code == ORION_OP_GRAPH_LAUNCH || op->code == ORION_OP_GRAPH_UPLOAD;
  if (g && g->alive && (launches || g->context == op->context)) return g;
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

static void fail(graph_state* g, uint32_t node, int32_t result) {
  if (!result || g->failed) return;
  g->failed = result;
  g->failed_node = node;
}

static void define(orion_engine* e, const orion_op* op) {
  const orion_op_graph_define* o = (const orion_op_graph_define*)op;
  if (!use_context(e, op)) return;
  const bool shares_lane = o->callback && !o->word;
  if (!o->exec || o->exec >= ORION_GRAPHS || e->graphs->states[o->exec].alive ||
      o->node_count > ORION_GRAPH_NODES - e->graphs->node_count || o->callback >= ORION_CLIENT_WORDS ||
      o->word >= ORION_WORDS || (o->word && o->word < ORION_WORD_DYNAMIC)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  graph_state* g = &e->graphs->states[o->exec];
  *g = (graph_state){.epoch = g->epoch, .context = op->context, .node_count = o->node_count, .alive = true};
  e->graphs->node_count += o->node_count;
  if (o->exec >= e->graphs->high) e->graphs->high = o->exec + 1;
  g->nodes = calloc(o->node_count ? o->node_count : 1, sizeof *g->nodes);
  if (shares_lane) {
    g->lane = e->graphs->lanes[o->callback];
  } else if (o->callback) {
    g->lane = graph_lane(e, o->callback, o->word, o->host_base, o->exec);
  }
  if (!g->nodes || (o->callback && !g->lane)) fail(g, 0, CUDA_ERROR_OUT_OF_MEMORY);
  if (!g->nodes) {
    e->graphs->node_count -= g->node_count;
    g->node_count = 0;
  }
  for (uint32_t i = 0; i < g->node_count; i++) g->nodes[i].event = ORION_EVENTS;
  fail(g, 0, answer_check(e, op->context, (int32_t)e->driver.graph_create(&g->graph, 0)));
  answer_result(e, op, 0);
}

// The operation inside a GRAPH_NODE or GRAPH_SET_NODE; NULL when it is none of this context.
static const orion_op* inner_operation(const orion_op* op) {
  const orion_op* inner = (const orion_op*)op_tail(op);
  if (op_tail_bytes(op) < sizeof *inner || inner->bytes != op_tail_bytes(op)) return NULL;
  return !engine_header_fault(inner, false) && inner->context == op->context ? inner : NULL;
}

/// The local memory of a node's kernel, which has been described: the driver takes it before the launch at the latest.
static int32_t charge_local(orion_engine* e, const orion_op* inner) {
  if (inner->code != ORION_OP_LAUNCH && inner->code != ORION_OP_LAUNCH_EX) return 0;
  const orion_op_launch* o = (const orion_op_launch*)inner;  // LAUNCH_EX begins like it
  return ledger_local(e, inner->context, e->functions[o->function].local_bytes);
}

static void node(orion_engine* e, const orion_op* op) {
  const orion_op_graph_node* o = (const orion_op_graph_node*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  if (o->node >= g->node_count || g->nodes[o->node].handle || g->exec || o->kind > GRAPH_NODE_HOST) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  graph_node* n = &g->nodes[o->node];
  int32_t result = 0;
  if (o->kind == GRAPH_NODE_EMPTY) {
    if (g->graph) result = (int32_t)e->driver.graph_add_empty(&n->handle, g->graph, NULL, 0);
  } else if (o->kind == GRAPH_NODE_HOST) {
    CUDA_HOST_NODE_PARAMS params;
    if (!graph_host_node(g->lane, o->host_node, &params)) {
      result = CUDA_ERROR_INVALID_VALUE;
    } else if (g->graph) {
      n->is_host = true;
      n->host_node = (uint16_t)o->host_node;
      result = (int32_t)e->driver.graph_add_host(&n->handle, g->graph, NULL, 0, &params);
    }
  } else {
    const orion_op* inner = inner_operation(op);
    description d;
    result = inner ? describe(e, inner, &d) : CUDA_ERROR_INVALID_VALUE;
    if (!result) result = charge_local(e, inner);
    if (!result && g->graph) result = (int32_t)add_node(e, inner, g->graph, &d, &n->handle);
    if (!result) {
      n->code = inner->code;
      n->written = d.written;
      n->event = d.event;
    }
  }
  fail(g, o->node, answer_check(e, op->context, result));
  answer_result(e, op, 0);
}

typedef struct wire_edge {
  uint32_t from, to, from_port, type;
} wire_edge;

static bool keep_edge(graph_state* g, const wire_edge* edge) {
  if (g->edge_count == g->edge_capacity) {
    const uint32_t capacity = g->edge_capacity ? 2 * g->edge_capacity : 64;
    graph_edge* edges = realloc(g->edges, capacity * sizeof *edges);
    if (!edges) return false;
    g->edges = edges;
    g->edge_capacity = capacity;
  }
  g->edges[g->edge_count++] = (graph_edge){edge->from, edge->to};
  return true;
}

static int32_t add_edge(orion_engine* e, graph_state* g, const wire_edge* edge) {
  if (edge->from >= g->node_count || edge->to >= g->node_count || edge->from_port > 255 || edge->type > 255) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const CUgraphNode from = g->nodes[edge->from].handle, to = g->nodes[edge->to].handle;
  if (!from || !to) return CUDA_ERROR_INVALID_VALUE;
  if (e->net && g->lane && !keep_edge(g, edge)) return CUDA_ERROR_OUT_OF_MEMORY;
  if (!edge->from_port && !edge->type) return (int32_t)e->driver.graph_add_edges(g->graph, &from, &to, 1);
  const CUgraphEdgeData data = {.from_port = (unsigned char)edge->from_port, .type = (unsigned char)edge->type};
  return (int32_t)e->driver.graph_add_edges_with_data(g->graph, &from, &to, &data, 1);
}

static void edges(orion_engine* e, const orion_op* op) {
  const orion_op_graph_edges* o = (const orion_op_graph_edges*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  if (g->exec || op_tail_bytes(op) != (uint64_t)o->count * sizeof(wire_edge)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  for (uint32_t i = 0; i < o->count && !g->failed; i++) {
    wire_edge edge;
    memcpy(&edge, op_tail(op) + i * sizeof edge, sizeof edge);
    fail(g, edge.to, answer_check(e, op->context, add_edge(e, g, &edge)));
  }
  answer_result(e, op, 0);
}

static uint32_t node_index(const graph_state* g, CUgraphNode handle) {
  for (uint32_t i = 0; i < g->node_count && handle; i++) {
    if (g->nodes[i].handle == handle) return i;
  }
  return UINT32_MAX;
}

// ------------------------------------------------------------------------------------------------ instances
// Nodes that each launch has to do something for, so that it need not look at all of them.
static bool find_effects(graph_state* g) {
  uint32_t count = 0;
  if (g->edge_count && g->node_count) {
    bool* before = calloc(g->node_count, sizeof *before);
    if (!before) return false;
    for (uint32_t i = 0; i < g->node_count; i++) before[i] = g->nodes[i].is_host;
    graph_mark_before(g, before);
    for (uint32_t i = 0; i < g->node_count; i++) g->nodes[i].precedes_host = before[i];
    free(before);
  }
  for (uint32_t i = 0; i < g->node_count; i++) count += g->nodes[i].written.bytes || g->nodes[i].event < ORION_EVENTS;
  uint32_t* effects = malloc((count ? count : 1) * sizeof *effects);
  if (!effects) return false;
  free(g->effects);
  g->effects = effects;
  g->effect_count = 0;
  for (uint32_t i = 0; i < g->node_count; i++) {
    if (g->nodes[i].written.bytes || g->nodes[i].event < ORION_EVENTS) effects[g->effect_count++] = i;
  }
  return true;
}

// Within a quota a graph is uploaded at once, where it can still be refused: later uploads and launches then take no
// more memory.
static int32_t instantiate_within(orion_engine* e, graph_state* g, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  const uint32_t device = e->contexts[g->context].device;
  const ledger_mark mark = ledger_begin(e, device);
  int32_t result = (int32_t)e->driver.graph_instantiate(&g->exec, g->graph, params);
  if (result || !mark.taken) return result;
  CUstream stream = NULL;
  result = (int32_t)e->driver.stream_create(&stream, CU_STREAM_NON_BLOCKING, 0);
  if (!result) {
    result = (int32_t)e->driver.graph_upload(g->exec, stream);
    (void)e->driver.stream_destroy(stream);
  }
  if (!result) {
    const uint64_t most_bytes = GRAPH_MOST_BYTES + g->node_count * NODE_MOST_BYTES;
    result = ledger_settle(e, device, ORION_MEMORY_GRAPH, mark, most_bytes, &g->charged_bytes);
  }
  if (result) {
    (void)e->driver.graph_exec_destroy(g->exec);
    g->exec = NULL;
  }
  return result;
}

static void instantiate(orion_engine* e, const orion_op* op) {
  const orion_op_graph_instantiate* o = (const orion_op_graph_instantiate*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  orion_reply_graph_instantiate reply = {.error_node = g->failed ? g->failed_node : UINT32_MAX};
  int32_t result = g->exec ? CUDA_ERROR_INVALID_VALUE : g->failed;
  if (!result) {
    CUDA_GRAPH_INSTANTIATE_PARAMS params = {.flags = o->instantiate_flags};
    result = answer_check(e, op->context, instantiate_within(e, g, &params));
    if (result) reply.error_node = node_index(g, params.hErrNode_out);
    if (!result && !find_effects(g)) result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

static void launch(orion_engine* e, const orion_op* op) {
  stream_state* s = use_stream(e, op);
  graph_state* g = s ? graph_at(e, op) : NULL;
  if (!g) return;
  CUresult code = CUDA_ERROR_INVALID_HANDLE;
  if (g->exec) {
    code = (op->code == ORION_OP_GRAPH_LAUNCH ? e->driver.graph_launch : e->driver.graph_upload)(g->exec, s->handle);
  }
  const int32_t result = answer_check(e, op->context, (int32_t)code);
  if (!result) {
    order_issued(e, s);
    for (uint32_t i = 0; i < g->effect_count && op->code == ORION_OP_GRAPH_LAUNCH; i++) {
      const graph_node* n = &g->nodes[g->effects[i]];
      if (n->event < ORION_EVENTS && e->events[n->event].alive) e->events[n->event].recorded = true;
      if (e->net && n->written.bytes && !n->precedes_host) {
        net_copy_out(e, n->written.offset, n->written.bytes, s->track, e->tracks[s->track].issued);
      }
    }
  }
  answer_result(e, op, result);
}

static void update(orion_engine* e, const orion_op* op) {
  const orion_op_graph_update* o = (const orion_op_graph_update*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  graph_state* source = o->source && o->source < ORION_GRAPHS ? &e->graphs->states[o->source] : NULL;
  if (!g->exec || !source || !source->alive || source == g) {
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return;
  }
  orion_reply_graph_update reply = {
      .update_result = CU_GRAPH_EXEC_UPDATE_ERROR, .error_node = UINT32_MAX, .error_from_node = UINT32_MAX};
  int32_t result = source->failed;
  if (!result) {
    CUgraphExecUpdateResultInfo info = {.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    result = answer_check(e, op->context, (int32_t)e->driver.graph_exec_update(g->exec, source->graph, &info));
    reply.update_result = (uint32_t)info.result;
    reply.error_node = node_index(source, info.errorNode);
    reply.error_from_node = node_index(source, info.errorFromNode);
  }
  // The same nodes in the same places: what launches do for them follows the new ones.
  for (uint32_t i = 0; !result && i < g->node_count && i < source->node_count; i++) {
    g->nodes[i].written = source->nodes[i].written;
    g->nodes[i].event = source->nodes[i].event;
  }
  if (!result && !find_effects(g)) result = CUDA_ERROR_OUT_OF_MEMORY;
  answer_reply(e, op, result, &reply, sizeof reply);
}

static void set_node(orion_engine* e, const orion_op* op) {
  const orion_op_graph_set_node* o = (const orion_op_graph_set_node*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  if (!g->exec || o->node >= g->node_count || o->kind > GRAPH_NODE_HOST) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  graph_node* n = &g->nodes[o->node];
  const orion_op* inner = o->kind == GRAPH_NODE_OPERATION ? inner_operation(op) : NULL;
  description d;
  int32_t result = inner && n->code ? describe(e, inner, &d) : CUDA_ERROR_INVALID_VALUE;
  if (!result) result = charge_local(e, inner);
  const orion_driver* v = &e->driver;
  const CUcontext context = e->contexts[op->context].handle;
  if (!result) {
    switch (inner->code) {
      case ORION_OP_LAUNCH:
      case ORION_OP_LAUNCH_EX:
        result = (int32_t)v->graph_exec_kernel(g->exec, n->handle, &d.params.kernel);
        break;
      case ORION_OP_MEMSET:
        result = (int32_t)v->graph_exec_memset(g->exec, n->handle, &d.params.fill, context);
        break;
      case ORION_OP_STREAM_WRITE_VALUE:
      case ORION_OP_STREAM_WAIT_VALUE:
        result = (int32_t)v->graph_exec_words(g->exec, n->handle, &d.params.words);
        break;
      case ORION_OP_EVENT_RECORD:
        result = (int32_t)v->graph_exec_event_record(g->exec, n->handle, d.params.event);
        break;
      case ORION_OP_STREAM_WAIT_EVENT:
        result = (int32_t)v->graph_exec_event_wait(g->exec, n->handle, d.params.event);
        break;
      default:
        result = (int32_t)v->graph_exec_memcpy(g->exec, n->handle, &d.params.copy, context);
        break;
    }
    if (!result) {
      n->code = inner->code;
      n->written = d.written;
      n->event = d.event;
      if (!find_effects(g)) result = CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  answer_result(e, op, answer_check(e, op->context, result));
}

static void set_enabled(orion_engine* e, const orion_op* op) {
  const orion_op_graph_set_enabled* o = (const orion_op_graph_set_enabled*)op;
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (g->exec && o->node < g->node_count) {
    result = (int32_t)e->driver.graph_exec_enable(g->exec, g->nodes[o->node].handle, o->enabled != 0);
  }
  answer_result(e, op, answer_check(e, op->context, result));
}

static void destroy(orion_engine* e, const orion_op* op) {
  graph_state* g = use_context(e, op) ? graph_at(e, op) : NULL;
  if (!g) return;
  close_graph(e, g);
  answer_result(e, op, 0);
}

void graph_operation(orion_engine* e, const orion_op* op) {
  switch (op->code) {
    case ORION_OP_GRAPH_DEFINE:
      define(e, op);
      break;
    case ORION_OP_GRAPH_NODE:
      node(e, op);
      break;
    case ORION_OP_GRAPH_EDGES:
      edges(e, op);
      break;
    case ORION_OP_GRAPH_INSTANTIATE:
      instantiate(e, op);
      break;
    case ORION_OP_GRAPH_UPDATE:
      update(e, op);
      break;
    case ORION_OP_GRAPH_SET_NODE:
      set_node(e, op);
      break;
    case ORION_OP_GRAPH_SET_ENABLED:
      set_enabled(e, op);
      break;
    case ORION_OP_GRAPH_DESTROY:
      destroy(e, op);
      break;
    default:
      launch(e, op);
      break;
  }
}
