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
  ORION_MEMORY_ADOPTED,       // the same, where its pages could become arena memory: an orion_adopted
  ORION_MEMORY_MAPPED,        // cuMemMap: an orion_mapping
  ORION_MEMORY_POOL,          // cuMemAllocAsync: an orion_pool_block
  ORION_MEMORY_IMPORTED,      // cuIpcOpenMemHandle: an orion_imported
  ORION_MEMORY_MANAGED,       // cuMemAllocManaged: an orion_managed, in the host arena like pinned memory
  ORION_MEMORY_VARIABLE,      // `__managed__`: an orion_variable, for copies device memory of any context
};

/// What [address, +bytes) is. `whole` is false when the range leaves its allocation.
typedef struct orion_range {
  enum orion_memory_kind kind;
  orion_context* context;  // of mappings and pools, which belong to none: their device's primary context
  uint64_t start, bytes;   // of the allocation
  uint64_t buffer_id;
  uint64_t arena_shift;
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
  // Of arena memory: an address of the program's plus this is the arena's. 0 but for adopted memory, which has its own.
  uint64_t arena_shift;
  bool sync_memops;
  bool is_starting;  // a registration that has not returned: in the map, and nobody else's to end
} orion_allocation;

static inline bool orion_is_device(enum orion_memory_kind kind) {
  return kind == ORION_MEMORY_DEVICE || kind == ORION_MEMORY_GLOBAL || kind == ORION_MEMORY_MAPPED ||
         kind == ORION_MEMORY_POOL || kind == ORION_MEMORY_IMPORTED || kind == ORION_MEMORY_VARIABLE;
}

/// The worker reads and writes it in place, and kernels find it at the program's address.
static inline bool orion_is_arena(enum orion_memory_kind kind) {
  return kind == ORION_MEMORY_PINNED || kind == ORION_MEMORY_MANAGED || kind == ORION_MEMORY_ADOPTED;
}

static inline bool orion_is_registered(enum orion_memory_kind kind) {
  return kind == ORION_MEMORY_REGISTERED || kind == ORION_MEMORY_ADOPTED;
}

/// Looks up; no effect.
orion_range orion_find_range(uint64_t address, uint64_t bytes);
bool orion_set_sync_memops(uint64_t address, bool value);
/// Adds a module global (ignored where something already is) and forgets it again.
void orion_add_global(orion_context* context, uint64_t address, uint64_t bytes);
void orion_remove_global(orion_context* context, uint64_t address);

// registered.c
/// Ends a registration that has been taken out of the map.
CUresult orion_registered_end(orion_allocation* allocation);
/// What the program calls the arena's `address`: its own, where that is adopted memory.
uint64_t orion_program_address(const orion_session* session, uint64_t address);

/// Page-locked memory in the arena, as cuMemHostAlloc gives it.
CUresult orion_pinned_allocate(orion_context* context, uint64_t bytes, void** address);

/// A host allocation that is not in the map yet; NULL: out of memory. The second takes one that begins at `address`
/// out of it: registered memory, or page-locked.
orion_allocation* orion_new_host_allocation(orion_context* context, enum orion_memory_kind kind, uint64_t start,
                                            uint64_t bytes, uint32_t flags);
orion_allocation* orion_take_host(const void* address, bool registered);

// memory_allocator.c
CUresult orion_device_allocate(orion_context* context, uint64_t bytes, uint64_t* address);
CUresult orion_device_free(uint64_t address);
/// Addresses of the device's slot, whole chunks. `alignment_bytes` is a power of two; `hint` is taken where it is free.
CUresult orion_addresses_take(orion_device_state* device, uint64_t bytes, uint64_t alignment_bytes, uint64_t hint,
                              uint64_t* start);
/// Gives them, or an index of orion_memories, back once the worker has executed all that was submitted before.
CUresult orion_addresses_give(orion_device_state* device, uint64_t start, uint64_t bytes);
/// words[FREES_DONE] reaches `number` when all work submitted before is done.
CUresult orion_fence(orion_peer* peer, uint64_t* number);
struct orion_memory;
CUresult orion_memory_index_give(orion_peer* peer, struct orion_memory* memory);
/// After CUDA_ERROR_OUT_OF_MEMORY: makes or waits for room. False: no more can be done. `done` is what
/// orion_frees_done said before the attempt.
uint64_t orion_frees_done(const orion_device_state* device);
bool orion_make_room(orion_device_state* device, uint64_t done);
/// Under the memory mutex: true when something known touches [start, +bytes).
bool orion_overlaps(uint64_t start, uint64_t bytes);
/// Forgets all memory of a context whose destruction or reset the worker has confirmed.
void orion_context_memory_end(orion_context* context);
/// memory.c: gives a context's pinned and managed memory back, while the worker still knows the context.
void orion_context_pinned_end(orion_context* context);

// memory.c, for memory in the arena: HOST_REGISTER; and HOST_UNREGISTER, which also frees the allocation.
CUresult orion_pin(const orion_allocation* allocation);
CUresult orion_unpin(orion_allocation* allocation);

extern orion_extent* orion_allocations;  // under orion_memory_mutex

#endif
