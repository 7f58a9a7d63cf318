// Asking a controller of the pool for vGPUs.
#ifndef ORION_SHIM_ALLOCATE_H
#define ORION_SHIM_ALLOCATE_H

#include "allocated.h"

typedef struct orion_allocation {
  orion_grant grant;
  uint64_t attach_until_ns;  // by orion_now_ns; then the controller gives the vGPUs to others
  orion_control controller;  // open until orion_allocation_close
} orion_allocation;

/// Asks, and waits in the queue for as long as ORION_WAIT_S says. CUDA_SUCCESS: `allocation` is to be closed. Otherwise
/// one line has been told, and nothing is left.
CUresult orion_allocate(const orion_config* config, orion_allocation* allocation);
/// For one that nobody will attach to: its vGPUs are free at once. Before the close.
void orion_allocation_give_up(const orion_config* config, orion_allocation* allocation);
/// No connection to the controller is left.
void orion_allocation_close(orion_allocation* allocation);
/// How long the allocation still waits for its client: all servers together have that long.
uint64_t orion_allocation_left_ms(const orion_allocation* allocation);

#endif
