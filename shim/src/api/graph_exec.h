// What graph_exec.c and graph_update.c share.
#ifndef ORION_SHIM_GRAPH_EXEC_H
#define ORION_SHIM_GRAPH_EXEC_H

#include "graph.h"

/// A graph on its way to the worker: nodes of children in the place of their node.
typedef struct listing {
  orion_step* steps;
  uint32_t count, capacity;
  orion_step_edge* edges;
  uint32_t edge_count, edge_capacity;
  orion_context* context;
  uint32_t host_nodes;
  uint64_t shadow_bytes;
  bool has_allocations;
  orion_held_object* objects;
  uint32_t object_count;
} listing;

CUresult orion_exec_of(CUgraphExec handle, orion_exec** exec);
CUresult orion_listing_make(CUgraph handle, orion_context* context, listing* list);
void orion_listing_drop(listing* list);
/// Writes the step's shadow into its operation.
void orion_step_place(orion_step* step);
/// After a change of steps: what each launch has to do. False without memory.
bool orion_exec_count(orion_exec* exec);
/// Sends a definition that shares the graph's host nodes, under an index of its own (0: none was left).
CUresult orion_exec_send_template(const orion_exec* exec, const listing* list, uint32_t* index);
void orion_exec_drop_template(const orion_exec* exec, uint32_t index);

#endif
