// Memory pools: stream-ordered allocation over memory that the session maps. An allocation from what a pool holds is
// made here, without a call.
//
// A pool holds pieces, each one memory handle mapped whole at an address of its own. What was freed lies in lanes, one
// for each stream that freed something, until all work before the free is done; then it is ready for everybody. The
// work of the freeing stream itself comes after the free in any case, so that stream takes from its own lane at once.
#ifndef ORION_SHIM_POOL_H
#define ORION_SHIM_POOL_H

#include "virtual_memory.h"

/// A point in a stream's order: what was submitted before it is done when the word is reached (and, where set, the
/// count of FREES_DONE too).
typedef struct orion_point {
  orion_stream* stream;
  orion_context* context;
  uint64_t stream_id;
  uint64_t value;
  uint64_t fence;  // of orion_fence; 0: none is needed
  uint32_t word;
  uint32_t epoch;  // the context's: when it has changed, the worker has dropped all of its work
} orion_point;

typedef struct orion_pool_lane {
  struct orion_pool_lane* next;
  orion_point recent_point, settling_point;
  orion_extent *recent, *settling;  // free lists. Settling ones wait for a marker that has been placed
} orion_pool_lane;

typedef struct orion_pool_piece {
  orion_extent extent;  // first
  orion_memory* memory;
} orion_pool_piece;

typedef struct orion_pool {
  orion_entry entry;
  orion_device_state* device;
  uint64_t handle;
  bool is_default;
  struct orion_pool* next;  // of all pools, under the list's mutex
  pthread_mutex_t mutex;
  // Under the mutex:
  bool destroyed;  // lives on until its last allocation has been freed
  CUmemPoolProps properties;
  uint8_t access[ORION_DEVICES];  // CUmemAccess_flags by device ordinal
  uint64_t release_threshold_bytes;
  uint64_t reserved_bytes, reserved_high_bytes;
  uint64_t used_bytes, used_high_bytes;  // as the program asked for them, without the rest of their blocks
  int32_t reuse[4];                      // by attribute number 1 .. 3
  orion_extent* pieces;
  orion_extent* ready;  // free list
  orion_pool_lane* lanes;
} orion_pool;

/// An allocation of kind ORION_MEMORY_POOL.
typedef struct orion_pool_block {
  orion_allocation allocation;  // first
  orion_pool* pool;
} orion_pool_block;

extern orion_table orion_pools;
/// Some pool holds more than it should keep beyond the next synchronisation.
extern _Atomic bool orion_pools_over;
/// A pool has been allocated from: waits for events are worth remembering.
extern _Atomic bool orion_pools_used;

// pool_allocator.c
orion_pool* orion_pool_new(orion_device_state* device, const CUmemPoolProps* properties);
CUresult orion_pool_allocate(orion_pool* pool, uint64_t bytes, orion_stream* stream, uint64_t* address);
/// Frees in the order of `stream`; NULL: waits for all work first.
CUresult orion_pool_free(uint64_t address, orion_stream* stream);
void orion_pool_trim(orion_pool* pool, uint64_t keep_bytes);
void orion_pool_destroy(orion_pool* pool);
CUresult orion_pool_set_access(orion_pool* pool, const CUmemAccessDesc* access, size_t count);
/// Gives back what no allocation uses, of all pools of the device. False: nothing was there.
bool orion_pools_release(const orion_device_state* device);
void orion_pools_at_sync(void);
/// After a wait of the program for a stream, an event or a context: pools give back what is above their threshold.
static inline void orion_pools_synchronized(void) {
  if (atomic_load_explicit(&orion_pools_over, memory_order_relaxed)) orion_pools_at_sync();
}

#endif
