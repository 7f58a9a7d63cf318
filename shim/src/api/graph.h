// Graphs of the client. A node holds the operation that the worker will run; a graph is sent when it is instantiated.
//
// graph.c: graphs, nodes, edges and questions about them. graph_node.c: adding nodes and changing what they do.
// capture.c: streams that record into a graph. graph_exec.c: instantiation, launches, updates. graph_host.c: host
// nodes, and copies from and to ordinary memory.
//
// orion_graph_mutex guards graphs, nodes and captures. It is taken before any other lock and never while waiting.
#ifndef ORION_SHIM_GRAPH_H
#define ORION_SHIM_GRAPH_H

#include "state.h"

typedef struct orion_link {
  uint64_t node;  // handle
  CUgraphEdgeData data;
} orion_link;

typedef struct orion_links {
  orion_link* items;
  uint32_t count, capacity;
} orion_links;

/// The host side of a copy that lies in ordinary memory: each launch reads or writes it through memory of the
/// executable graph, packed. rows == 0: the copy has none.
typedef struct orion_host_side {
  uint8_t* first;
  uint64_t width_bytes, rows, slices, pitch_bytes, slice_bytes;
  bool is_written;
} orion_host_side;

typedef struct orion_graph_memory orion_graph_memory;

typedef struct orion_node_work {
  orion_op* op;  // owned; complete but for what an orion_host_side replaces. NULL: nothing for the worker
  orion_host_side host;
  CUhostFn function;  // of a host node
  void* data;
  uint64_t event;    // handle, of event nodes
  uint64_t address;  // of memory nodes
  uint64_t bytes;
  orion_graph_memory* memory;  // of an allocating node: held
} orion_node_work;

typedef struct orion_node {
  orion_entry entry;
  uint64_t handle;
  struct orion_graph* graph;
  CUgraphNodeType type;
  orion_context* context;
  orion_links from, to;
  orion_node_work work;
  struct orion_graph* child;
  uint64_t original;         // of a clone: the node that it was made from
  uint64_t capture;          // id of the capture that made it; 0: none
  CUDA_MEMCPY3D* copy;       // as the program gave it; NULL: made from the operation
  void** parameter_list;     // given out by cuGraphKernelNodeGetParams
  uint32_t step, last_step;  // while a graph is made into a list
} orion_node;

typedef struct orion_held_object {
  uint64_t object;
  uint32_t count;
} orion_held_object;

typedef struct orion_graph {
  orion_entry entry;
  uint64_t handle;
  orion_node** nodes;  // in the order of their creation
  uint32_t count, capacity;
  bool is_owned;  // a child's: belongs to its node
  uint32_t captures;
  uint64_t original;
  orion_held_object* objects;
  uint32_t object_count;
} orion_graph;

extern orion_table orion_graphs, orion_nodes;
extern pthread_mutex_t orion_graph_mutex;

// All of graph.c: under orion_graph_mutex.
orion_graph* orion_graph_new(void);
void orion_graph_drop(orion_graph* graph);
orion_graph* orion_graph_copy(const orion_graph* from);
orion_graph* orion_graph_of(CUgraph handle);
orion_node* orion_node_of(uint64_t handle);
/// NULL without memory. Takes `work` over, also on failure.
orion_node* orion_node_add(orion_graph* graph, CUgraphNodeType type, orion_context* context, orion_node_work* work);
void orion_node_drop(orion_node* node);
/// What a copy's program said. False without memory.
bool orion_node_keep_copy(orion_node* node, const CUDA_MEMCPY3D* copy);
CUresult orion_node_link(orion_node* from, orion_node* to, const CUgraphEdgeData* data);
void orion_work_drop(orion_node_work* work);
bool orion_work_copy(orion_node_work* to, const orion_node_work* from);                // nothing in `to` without memory
bool orion_links_add(orion_links* links, uint64_t node, const CUgraphEdgeData* data);  // once
void orion_links_drop(orion_links* links);

/// A copy of an operation in memory of its own; NULL without memory.
orion_op* orion_op_keep(const orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes,
                        const orion_context* context);

// graph_object.c: references to user objects
CUresult orion_held_copy(const orion_graph* graph, orion_held_object** list, uint32_t* used);
void orion_held_release(orion_held_object* list, uint32_t used);  // not under the mutex: destructors run

// graph_node.c
/// A new node's allocation tells its address in `params`.
CUresult orion_work_from_params(CUgraphNodeParams* params, orion_context** context, orion_node_work* work);
/// A node that records an event or waits for it. False without memory.
bool orion_work_event(const orion_event* event, bool records, orion_node_work* work);
/// A linear or pitched copy between host memory that no operation can name and the device.
typedef struct orion_copy_shape {
  uint64_t device_address, device_pitch, device_rows;
  uint8_t* host;
  uint64_t host_pitch, host_rows;
  uint64_t width_bytes, height, depth;
  bool to_device;
} orion_copy_shape;
bool orion_work_host_copy(const orion_copy_shape* shape, const orion_context* context, orion_node_work* work);

// graph_memory.c: memory that graphs allocate
extern _Atomic bool orion_graph_memory_used;
void orion_graph_memory_hold(orion_graph_memory* memory);
void orion_graph_memory_release(orion_graph_memory* memory);
CUresult orion_work_allocate(CUDA_MEM_ALLOC_NODE_PARAMS* params, orion_context** context, orion_node_work* work);
CUresult orion_work_free(uint64_t address, orion_node_work* work);
CUresult orion_capture_allocate(orion_stream* stream, uint64_t bytes, uint64_t* address);
CUresult orion_capture_free(orion_stream* stream, uint64_t address);
bool orion_graph_memory_free_slow(uint64_t address, CUresult* result);
/// The program frees memory. False: it is not a graph's.
static inline bool orion_graph_memory_free(uint64_t address, CUresult* result) {
  return atomic_load_explicit(&orion_graph_memory_used, memory_order_acquire) &&
         orion_graph_memory_free_slow(address, result);
}

// graph_host.c
struct orion_exec;
typedef struct orion_graph_lane orion_graph_lane;

/// An executable graph's step: a node as it was at instantiation.
typedef struct orion_step {
  uint64_t node;  // handle
  CUgraphNodeType type;
  uint32_t host_node;
  uint64_t shadow;  // arena offset of an ordinary host side
  orion_node_work work;
  bool is_disabled;
  bool is_delivered;   // by a host node behind it in the launch that runs: its bytes are the program's now
  bool precedes_host;  // some host node comes behind it
  bool is_produced;    // the arena bytes that it reads come from a copy before it
} orion_step;

/// As the wire has it (GRAPH_EDGES): indices of steps.
typedef struct orion_step_edge {
  uint32_t from, to, from_port, type;
} orion_step_edge;

typedef struct orion_exec {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  uint64_t handle;
  uint64_t flags;
  pthread_mutex_t launches;  // held while one is submitted
  pthread_mutex_t mutex;     // what steps do; never held while waiting. Changed under both
  orion_step* steps;
  uint32_t step_count;
  orion_step_edge* edges;
  uint32_t edge_count;
  uint32_t host_nodes, gathers, scatters, pinned, events;
  uint32_t* host_steps;  // step of each host node
  uint8_t* before_host;  // [host node][step]: the step precedes it; NULL unless ordinary memory is copied too
  orion_graph_lane* lane;
  struct orion_shadow* shadow;
  _Atomic uint32_t references;  // the handle's, and one for each host function of a launch on its way
  bool has_allocations;
  orion_held_object* objects;
  uint32_t object_count;
} orion_exec;
ORION_OBJECT_CHECK(orion_exec);

/// A launch allocates and frees what its nodes say: 1 when something is still allocated from before.
CUresult orion_graph_memory_launch(const orion_step* steps, uint32_t count, bool frees_itself);
void orion_exec_release(orion_exec* exec);
/// A lane for the exec's host nodes. *base: what its generations count on from.
CUresult orion_lane_open(orion_exec* exec, uint64_t* base);
uint32_t orion_lane_callback(const orion_graph_lane* lane);
void orion_lane_close(orion_graph_lane* lane);
/// `count` more host nodes are to run.
void orion_lane_expect(orion_graph_lane* lane, uint32_t count);
/// Memory of the worker's for all ordinary host sides.
CUresult orion_shadow_take(orion_exec* exec, uint64_t bytes, uint64_t* offset);
void orion_shadow_give(orion_exec* exec);
/// Between the program's memory and the shadows: all, or what follows or precedes one host node.
void orion_exec_gather(orion_exec* exec, const uint8_t* before);
void orion_exec_scatter(orion_exec* exec, const uint8_t* before);
/// Arena bytes that the step's copy reads (false) or writes (true). bytes 0: none.
uint64_t orion_step_arena(const orion_step* step, bool written, uint64_t* offset);

#endif
