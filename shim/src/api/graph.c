// Graphs, their nodes and edges, and what programs ask about them.
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

orion_table orion_graphs = ORION_TABLE(ORION_TAG_GRAPH, orion_graph, ORION_GRAPHS, 16);
orion_table orion_nodes = ORION_TABLE(ORION_TAG_GRAPH_NODE, orion_node, ORION_GRAPH_NODES, 1024);
pthread_mutex_t orion_graph_mutex = PTHREAD_MUTEX_INITIALIZER;

#define LOCK() pthread_mutex_lock(&orion_graph_mutex)
#define UNLOCK() pthread_mutex_unlock(&orion_graph_mutex)
/// Returns a value computed under the mutex.
#define LOCKED(expression)                 \
  do {                                     \
    LOCK();                                \
    const CUresult locked_ = (expression); \
    unlock();                              \
    return locked_;                        \
  } while (0)

// ------------------------------------------------------------------------------------------------ parts

bool orion_links_add(orion_links* links, uint64_t node, const CUgraphEdgeData* data) {
  for (uint32_t i = 0; i < links->count; i++) {
    if (links->items[i].node == node) return true;
  }
  if (links->count == links->capacity) {
    const uint32_t capacity = links->capacity == 0 ? 4 : 2 * links->capacity;
    orion_link* items = realloc(links->items, capacity * sizeof *items);
    if (items == NULL) return false;
    links->items = items;
    links->capacity = capacity;
  }
  links->items[links->count] = (orion_link){.node = node};
  if (data != NULL) links->items[links->count].data = *data;
  links->count++;
  return true;
}

static bool links_remove(orion_links* links, uint64_t node) {
  for (uint32_t i = 0; i < links->count; i++) {
    if (links->items[i].node != node) continue;
    memmove(&links->items[i], &links->items[i + 1], (links->count - i - 1) * sizeof *links->items);
    links->count--;
    return true;
  }
  return false;
}

void orion_links_drop(orion_links* links) {
  free(links->items);
  *links = (orion_links){0};
}

orion_op* orion_op_keep(const orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes,
                        const orion_context* context) {
  orion_op* kept = malloc(head_bytes + tail_bytes);
  if (kept == NULL) return NULL;
  memcpy(kept, op, head_bytes);
  if (tail_bytes != 0) memcpy((uint8_t*)kept + head_bytes, tail, tail_bytes);
  kept->bytes = head_bytes + tail_bytes;
  kept->context = (uint16_t)context->entry.index;
  kept->stream = 0;
  kept->thread = 0;
  kept->reply_slot = ORION_NO_REPLY;
  kept->reply_seq = 0;
  kept->bulk_seq = 0;
  return kept;
}

void orion_work_drop(orion_node_work* work) {
  free(work->op);
  if (work->memory != NULL) orion_graph_memory_release(work->memory);
  *work = (orion_node_work){0};
}

bool orion_work_copy(orion_node_work* to, const orion_node_work* from) {
  *to = (orion_node_work){0};
  orion_op* op = from->op == NULL ? NULL : malloc(from->op->bytes);
  if (op == NULL && from->op != NULL) return false;
  if (op != NULL) memcpy(op, from->op, from->op->bytes);
  *to = *from;
  to->op = op;
  if (to->memory != NULL) orion_graph_memory_hold(to->memory);
  return true;
}

orion_graph* orion_graph_of(CUgraph handle) {
  return orion_table_find(&orion_graphs, (uint64_t)(uintptr_t)handle, NULL);
}

orion_node* orion_node_of(uint64_t handle) { return orion_table_find(&orion_nodes, handle, NULL); }

static orion_node* node_of(CUgraphNode handle) { return orion_node_of((uint64_t)(uintptr_t)handle); }

static CUgraphNode as_node(uint64_t handle) { return (CUgraphNode)(uintptr_t)handle; }

orion_graph* orion_graph_new(void) {
  orion_graph* graph = orion_table_take(&orion_graphs);
  if (graph == NULL) return NULL;
  const orion_entry entry = graph->entry;
  memset(graph, 0, sizeof *graph);
  graph->entry = entry;
  graph->handle = orion_table_publish(&orion_graphs, graph);
  return graph;
}

/// References of graphs that are gone, to be let go of outside the mutex.
typedef struct orion_held_list {
  struct orion_held_list* next;
  orion_held_object* objects;
  uint32_t count;
} orion_held_list;

static orion_held_list* dropped;

/// Leaves the mutex.
static void unlock(void) {
  orion_held_list* list = dropped;
  dropped = NULL;
  UNLOCK();
  while (list != NULL) {
    orion_held_list* next = list->next;
    orion_held_release(list->objects, list->count);
    free(list);
    list = next;
  }
}

static void node_free(orion_node* node) {
  if (node->child != NULL) orion_graph_drop(node->child);
  orion_links_drop(&node->from);
  orion_links_drop(&node->to);
  orion_work_drop(&node->work);
  free(node->copy);
  free(node->parameter_list);
  node->copy = NULL;
  node->parameter_list = NULL;
  node->child = NULL;
  const uint32_t generation = atomic_load(&node->entry.generation);
  if (orion_table_retire(&orion_nodes, node, generation)) orion_table_give(&orion_nodes, node);
}

void orion_graph_drop(orion_graph* graph) {
  if (graph->object_count != 0) {
    orion_held_list* let_go = malloc(sizeof *let_go);
    if (let_go != NULL) {  // else they stay: no destructor is better than one under the mutex
      *let_go = (orion_held_list){dropped, graph->objects, graph->object_count};
      dropped = let_go;
    }
  }
  graph->objects = NULL;
  graph->object_count = 0;
  for (uint32_t i = 0; i < graph->count; i++) node_free(graph->nodes[i]);
  free(graph->nodes);
  graph->nodes = NULL;
  graph->count = 0;
  const uint32_t generation = atomic_load(&graph->entry.generation);
  if (orion_table_retire(&orion_graphs, graph, generation)) orion_table_give(&orion_graphs, graph);
}

orion_node* orion_node_add(orion_graph* graph, CUgraphNodeType type, orion_context* context, orion_node_work* work) {
  if (graph->count == graph->capacity) {
    const uint32_t capacity = graph->capacity == 0 ? 16 : 2 * graph->capacity;
    orion_node** nodes = realloc(graph->nodes, capacity * sizeof *nodes);
    if (nodes == NULL) {
      orion_work_drop(work);
      return NULL;
    }
    graph->nodes = nodes;
    graph->capacity = capacity;
  }
  orion_node* node = orion_table_take(&orion_nodes);
  if (node == NULL) {
    orion_work_drop(work);
    return NULL;
  }
  const orion_entry entry = node->entry;
  memset(node, 0, sizeof *node);
  node->entry = entry;
  node->graph = graph;
  node->type = type;
  node->context = context;
  node->work = *work;
  node->handle = orion_table_publish(&orion_nodes, node);
  graph->nodes[graph->count++] = node;
  return node;
}

void orion_node_drop(orion_node* node) {
  orion_graph* graph = node->graph;
  for (uint32_t i = 0; i < node->from.count; i++) {
    orion_node* other = orion_node_of(node->from.items[i].node);
    if (other != NULL) links_remove(&other->to, node->handle);
  }
  for (uint32_t i = 0; i < node->to.count; i++) {
    orion_node* other = orion_node_of(node->to.items[i].node);
    if (other != NULL) links_remove(&other->from, node->handle);
  }
  uint32_t at = 0;
  while (at < graph->count && graph->nodes[at] != node) at++;
  memmove(&graph->nodes[at], &graph->nodes[at + 1], (graph->count - at - 1) * sizeof *graph->nodes);
  graph->count--;
  node_free(node);
}

static bool is_linked(const orion_node* from, const orion_node* to) {
  for (uint32_t i = 0; i < to->from.count; i++) {
    if (to->from.items[i].node == from->handle) return true;
  }
  return false;
}

CUresult orion_node_link(orion_node* from, orion_node* to, const CUgraphEdgeData* data) {
  if (from == NULL || to == NULL || from == to || from->graph != to->graph || is_linked(from, to)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!orion_links_add(&to->from, from->handle, data)) return CUDA_ERROR_OUT_OF_MEMORY;
  if (orion_links_add(&from->to, to->handle, data)) return CUDA_SUCCESS;
  links_remove(&to->from, from->handle);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

// ------------------------------------------------------------------------------------------------ copies

bool orion_node_keep_copy(orion_node* node, const CUDA_MEMCPY3D* copy) {
  if (node->copy == NULL) node->copy = malloc(sizeof *node->copy);
  if (node->copy == NULL) return false;
  *node->copy = *copy;
  return true;
}

orion_graph* orion_graph_copy(const orion_graph* from) {
  orion_graph* graph = orion_graph_new();
  if (graph == NULL) return NULL;
  graph->original = from->handle;
  bool whole = true;
  for (uint32_t i = 0; i < from->count && whole; i++) {
    orion_node* node = from->nodes[i];
    orion_node_work work;
    orion_node* made = NULL;
    if (orion_work_copy(&work, &node->work)) made = orion_node_add(graph, node->type, node->context, &work);
    whole = made != NULL;
    if (!whole) break;
    made->original = node->handle;
    node->step = i;
    if (node->copy != NULL) whole = orion_node_keep_copy(made, node->copy);
    if (node->child != NULL) {
      made->child = orion_graph_copy(node->child);
      whole = whole && made->child != NULL;
      if (made->child != NULL) made->child->is_owned = true;
    }
  }
  for (uint32_t i = 0; i < from->count && whole; i++) {
    const orion_links* links = &from->nodes[i]->from;
    for (uint32_t k = 0; k < links->count && whole; k++) {
      const orion_node* before = orion_node_of(links->items[k].node);
      whole = orion_node_link(graph->nodes[before->step], graph->nodes[i], &links->items[k].data) == CUDA_SUCCESS;
    }
  }
  if (whole) return graph;
  orion_graph_drop(graph);
  return NULL;
}

// ------------------------------------------------------------------------------------------------ CUDA's names: graphs

ORION_API CUresult cuGraphCreate(CUgraph* handle, unsigned int flags) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  LOCK();
  const orion_graph* graph = orion_graph_new();
  if (graph != NULL) *handle = (CUgraph)(uintptr_t)graph->handle;
  UNLOCK();
  return graph == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static CUresult destroy(CUgraph handle) {
  orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL || graph->is_owned || graph->captures != 0) return CUDA_ERROR_INVALID_VALUE;
  orion_graph_drop(graph);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphDestroy(CUgraph handle) {
  ORION_ENTER();
  LOCKED(destroy(handle));
}

static CUresult clone_graph(CUgraph* out, CUgraph handle) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  const orion_graph* made = orion_graph_copy(graph);
  if (made == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *out = (CUgraph)(uintptr_t)made->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphClone(CUgraph* out, CUgraph handle) {
  ORION_ENTER();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(clone_graph(out, handle));
}

static CUresult find_in_clone(CUgraphNode* out, CUgraphNode original, CUgraph handle) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  for (uint32_t i = 0; i < graph->count; i++) {
    if (graph->nodes[i]->original == 0 || graph->nodes[i]->original != (uint64_t)(uintptr_t)original) continue;
    *out = as_node(graph->nodes[i]->handle);
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

ORION_API CUresult cuGraphNodeFindInClone(CUgraphNode* out, CUgraphNode original, CUgraph handle) {
  ORION_ENTER();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(find_in_clone(out, original, handle));
}

static CUresult destroy_node(CUgraphNode handle) {
  orion_node* node = node_of(handle);
  if (node == NULL) return CUDA_ERROR_INVALID_VALUE;
  if (node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || node->type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  orion_node_drop(node);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphDestroyNode(CUgraphNode handle) {
  ORION_ENTER();
  LOCKED(destroy_node(handle));
}

// ------------------------------------------------------------------------------------------------ lists

/// The way of every query with (array, count): without an array the count alone; surplus entries become NULL.
static CUresult give_nodes(const orion_link* links, uint32_t have, CUgraphNode* out, CUgraphEdgeData* data,
                           size_t* count) {
  if (out == NULL) {
    *count = have;
    return CUDA_SUCCESS;
  }
  for (size_t i = 0; i < *count; i++) {
    out[i] = i < have ? as_node(links[i].node) : NULL;
    if (data != NULL && i < have) data[i] = links[i].data;
  }
  if (have < *count) *count = have;
  return CUDA_SUCCESS;
}

static CUresult get_nodes(CUgraph handle, CUgraphNode* out, size_t* count, bool roots) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  size_t have = 0;
  for (uint32_t i = 0; i < graph->count; i++) {
    if (roots && graph->nodes[i]->from.count != 0) continue;
    if (out != NULL && have < *count) out[have] = as_node(graph->nodes[i]->handle);
    have++;
  }
  for (size_t i = have; out != NULL && i < *count; i++) out[i] = NULL;
  if (out == NULL || have < *count) *count = have;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_nodes(handle, nodes, count, false));
}

ORION_API CUresult cuGraphGetRootNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_nodes(handle, nodes, count, true));
}

static CUresult get_edges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data, size_t* count) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  size_t have = 0;
  for (uint32_t i = 0; i < graph->count; i++) {
    const orion_links* links = &graph->nodes[i]->from;
    for (uint32_t k = 0; k < links->count; k++, have++) {
      if (from == NULL || have >= *count) continue;
      from[have] = as_node(links->items[k].node);
      to[have] = as_node(graph->nodes[i]->handle);
      if (data != NULL) data[have] = links->items[k].data;
    }
  }
  for (size_t i = have; from != NULL && i < *count; i++) from[i] = to[i] = NULL;
  if (from == NULL || have < *count) *count = have;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphGetEdges_v2(CUgraph handle, CUgraphNode* from, CUgraphNode* to, CUgraphEdgeData* data,
                                      size_t* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL && (from == NULL) == (to == NULL), CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_edges(handle, from, to, data, count));
}

ORION_API CUresult cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, size_t* count) {
  ORION_COUNTED();
  return cuGraphGetEdges_v2(handle, from, to, NULL, count);
}

static CUresult get_neighbours(CUgraphNode handle, bool before, CUgraphNode* out, CUgraphEdgeData* data,
                               size_t* count) {
  const orion_node* node = node_of(handle);
  if (node == NULL) return CUDA_ERROR_INVALID_VALUE;
  const orion_links* links = before ? &node->from : &node->to;
  return give_nodes(links->items, links->count, out, data, count);
}

ORION_API CUresult cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode* out, CUgraphEdgeData* data,
                                                 size_t* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_neighbours(node, true, out, data, count));
}

ORION_API CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* out, size_t* count) {
  ORION_COUNTED();
  return cuGraphNodeGetDependencies_v2(node, out, NULL, count);
}

ORION_API CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode node, CUgraphNode* out, CUgraphEdgeData* data,
                                                   size_t* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_neighbours(node, false, out, data, count));
}

ORION_API CUresult cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode* out, size_t* count) {
  ORION_COUNTED();
  return cuGraphNodeGetDependentNodes_v2(node, out, NULL, count);
}

static CUresult change_edges(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to,
                             const CUgraphEdgeData* data, size_t count, bool add) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; i++) {
    orion_node *a = node_of(from[i]), *b = node_of(to[i]);
    if (a == NULL || b == NULL || a->graph != graph || b->graph != graph) return CUDA_ERROR_INVALID_VALUE;
    if (add) {
      const CUresult result = orion_node_link(a, b, data == NULL ? NULL : &data[i]);
      if (result != CUDA_SUCCESS) return result;
    } else {
      if (!links_remove(&b->from, a->handle)) return CUDA_ERROR_INVALID_VALUE;
      links_remove(&a->to, b->handle);
    }
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                             const CUgraphEdgeData* data, size_t count) {
  ORION_ENTER();
  ORION_REQUIRE(count == 0 || (from != NULL && to != NULL), CUDA_ERROR_INVALID_VALUE);
  LOCKED(change_edges(graph, from, to, data, count, true));
}

ORION_API CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, size_t count) {
  ORION_COUNTED();
  return cuGraphAddDependencies_v2(graph, from, to, NULL, count);
}

ORION_API CUresult cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                                const CUgraphEdgeData* data, size_t count) {
  ORION_ENTER();
  ORION_REQUIRE(count == 0 || (from != NULL && to != NULL), CUDA_ERROR_INVALID_VALUE);
  LOCKED(change_edges(graph, from, to, data, count, false));
}

ORION_API CUresult cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                             size_t count) {
  ORION_COUNTED();
  return cuGraphRemoveDependencies_v2(graph, from, to, NULL, count);
}

static CUresult get_type(CUgraphNode handle, CUgraphNodeType* type) {
  const orion_node* node = node_of(handle);
  if (node == NULL) return CUDA_ERROR_INVALID_VALUE;
  *type = node->type;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
  ORION_ENTER();
  ORION_REQUIRE(type != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_type(handle, type));
}

static CUresult get_child(CUgraphNode handle, CUgraph* out) {
  const orion_node* node = node_of(handle);
  if (node == NULL || node->child == NULL) return CUDA_ERROR_INVALID_VALUE;
  *out = (CUgraph)(uintptr_t)node->child->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode handle, CUgraph* out) {
  ORION_ENTER();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(get_child(handle, out));
}

// ------------------------------------------------------------------------------------------------ drawing

static void draw(FILE* file, const orion_graph* graph) {
  static const char* const names[] = {"KERNEL", "MEMCPY", "MEMSET",   "HOST",      "GRAPH",    "EMPTY",  "WAIT",
                                      "EVENT",  "SIGNAL", "SEM_WAIT", "MEM_ALLOC", "MEM_FREE", "MEM_OP", "CONDITIONAL"};
  for (uint32_t i = 0; i < graph->count; i++) {
    const orion_node* node = graph->nodes[i];
    const unsigned long long handle = (unsigned long long)node->handle;
    fprintf(file, "\"node_%llx\" [shape=\"record\" label=\"{%s | %llx}\"];\n", handle,
            (unsigned)node->type < sizeof names / sizeof names[0] ? names[node->type] : "?", handle);
    for (uint32_t k = 0; k < node->to.count; k++) {
      fprintf(file, "\"node_%llx\" -> \"node_%llx\";\n", handle, (unsigned long long)node->to.items[k].node);
    }
  }
}

static CUresult print(CUgraph handle, const char* path) {
  const orion_graph* graph = orion_graph_of(handle);
  if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
  FILE* file = fopen(path, "w");
  if (file == NULL) return CUDA_ERROR_OPERATING_SYSTEM;
  fprintf(file, "digraph dot {\n");
  draw(file, graph);
  fprintf(file, "}\n");
  return fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

/// What is drawn is nodes, their kinds and edges; the flags that ask for more are accepted.
ORION_API CUresult cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned int flags) {
  ORION_ENTER();
  (void)flags;
  ORION_REQUIRE(path != NULL, CUDA_ERROR_INVALID_VALUE);
  LOCKED(print(handle, path));
}
