// What graph.c and graph_host.c share: the executable graphs of a session. Everything belongs to the loop's thread but
// host_lane, which the driver's threads use too.
#ifndef ORION_ENGINE_GRAPH_H
#define ORION_ENGINE_GRAPH_H

#include "internal.h"

enum graph_node_kind { GRAPH_NODE_OPERATION, GRAPH_NODE_EMPTY, GRAPH_NODE_HOST };

typedef struct graph_node {
  CUgraphNode handle;
  host_range written;  // arena bytes that a copy writes; none: bytes 0
  uint32_t event;      // that it records; ORION_EVENTS: none
  uint16_t code;       // of its operation; 0: empty or host
  uint16_t host_node;
  bool is_host;
  bool precedes_host;  // over tcp: its bytes are sent when a host node behind it is reached
} graph_node;

typedef struct graph_edge {
  uint32_t from, to;
} graph_edge;

typedef struct graph_state {
  CUgraph graph;     // the definition: names the nodes for the driver
  CUgraphExec exec;  // NULL until instantiated
  graph_node* nodes;
  uint32_t* effects;  // nodes that write the arena or record an event
  graph_edge* edges;  // over tcp only, for what host nodes must see
  struct host_lane* lane;
  uint32_t node_count, effect_count, edge_count, edge_capacity;
  uint32_t failed_node;
  int32_t failed;  // first error of the definition
  uint64_t charged_bytes;
  uint32_t epoch;  // == engine->epoch: an operation that names this graph is parked
  uint16_t context;
  bool alive;
} graph_state;

typedef struct graph_table {
  graph_state* states;  // ORION_GRAPHS
  uint32_t high;
  uint32_t node_count;  // of all: bounds what a session can make its worker hold
  struct host_lane* first_lane;
  struct host_lane* lanes[ORION_CLIENT_WORDS];
  _Atomic uint32_t ending;        // nothing waits for the client any more
  _Atomic uint32_t host_running;  // driver threads inside a host node
} graph_table;

/// The driver's function and argument for host node `host_node` of a lane. False without memory.
bool graph_host_node(struct host_lane* lane, uint32_t host_node, CUDA_HOST_NODE_PARAMS* params);
/// The lane of a client word, from `host_base` on; NULL without memory.
struct host_lane* graph_lane(orion_engine* e, uint32_t callback, uint32_t word, uint64_t host_base, uint32_t graph);
/// Adds every node that leads to one of `before`.
void graph_mark_before(const graph_state* g, bool* before);
void graph_lanes_free(orion_engine* e);

#endif
