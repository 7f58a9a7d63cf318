// The map of all memory that the client knows: device allocations, pinned and registered host memory, module globals.
#ifndef ORION_SHIM_MEMORY_H
#define ORION_SHIM_MEMORY_H

#include "state.h"

enum orion_memory_kind {
  ORION_MEMORY_PAGEABLE = 0,  // nothing known: ordinary memory of the program
  ORION_MEMORY_DEVICE,        // an allocation of ours
  ORION_MEMORY_GLOBAL,        // a module's variable, at an address that the driver chose
  ORION_MEMORY_PINNED,        // in the host arena; device pointer == host pointer
  ORION_MEMORY_REGISTERED,    // cuMemHostRegister of the program's own memory: kept pageable
};

/// What [address, +bytes) is. `whole` is false when the range leaves its allocation.
typedef struct orion_range {
  enum orion_memory_kind kind;
  orion_context* context;
  uint64_t start, bytes;  // of the allocation
  uint64_t buffer_id;
  uint32_t flags;  // of host allocations
  bool whole;
  bool sync_memops;
} orion_range;

typedef struct orion_allocation {
  orion_extent extent;  // first; bytes as the program asked
  enum orion_memory_kind kind;
  orion_context* context;
  uint64_t reserved_bytes;  // of the block or of the mapped range
  bool is_mapped_range;     // owns whole 2 MiB chunks
  uint32_t flags;
  uint64_t buffer_id;
  bool sync_memops;
} orion_allocation;

static inline bool orion_is_device(enum orion_memory_kind kind) {
  return kind == ORION_MEMORY_DEVICE || kind == ORION_MEMORY_GLOBAL;
}

/// Looks up; no effect.
orion_range orion_find_range(uint64_t address, uint64_t bytes);
bool orion_set_sync_memops(uint64_t address, bool value);
/// Adds a module global (ignored where something already is) and forgets it again.
void orion_add_global(orion_context* context, uint64_t address, uint64_t bytes);
void orion_remove_global(orion_context* context, uint64_t address);

// memory_allocator.c
CUresult orion_device_allocate(orion_context* context, uint64_t bytes, uint64_t* address);
CUresult orion_device_free(uint64_t address);
/// Forgets all memory of a context whose destruction or reset the worker has confirmed.
void orion_context_memory_end(orion_context* context);
/// memory.c: gives a context's pinned memory back, while the worker still knows the context.
void orion_context_pinned_end(orion_context* context);

extern orion_extent* orion_allocations;  // under orion_memory_mutex

#endif
