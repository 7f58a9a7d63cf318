// Managed memory: pages of the host arena, which the worker has at the same address. The worker learns of an allocation
// when the first piece of device work needs it, so memory that only the program touches costs only what it touches.
#ifndef ORION_SHIM_MANAGED_H
#define ORION_SHIM_MANAGED_H

#include "coherent.h"
#include "memory.h"

/// What a program has said of a part of an allocation. It changes no behaviour here; cuMemRangeGetAttribute tells it.
typedef struct orion_advice {
  CUmemLocation preferred, prefetched;
  uint64_t accessed_by;  // a bit for each device
  bool accessed_by_host, read_mostly;
} orion_advice;

typedef struct orion_advised {
  uint64_t first, end;  // whole pages
  orion_advice advice;
} orion_advised;

/// An allocation of kind ORION_MEMORY_MANAGED.
typedef struct orion_managed {
  orion_allocation allocation;  // first
  struct orion_managed* next;   // of those that the worker does not know
  bool is_waiting;              // it is one of them
  // Under the memory mutex: what is said of all pages, in order and without gaps. NULL: nothing yet.
  orion_advised* advised;
  uint32_t advised_count, advised_capacity;
} orion_managed;

/// Whether managed memory can be kept right for kernels of this session.
bool orion_managed_offered(const orion_session* session);

/// The worker knows all managed memory of the session from here on.
CUresult orion_managed_ready(orion_session* session);

/// Before a launch, which may use any managed memory.
static inline CUresult orion_managed_before(orion_stream* stream) {
  if (__builtin_expect(atomic_load_explicit(&orion_coherent_candidates, memory_order_relaxed) == 0, 1)) {
    return CUDA_SUCCESS;
  }
  return orion_managed_ready(stream->session);
}

/// False when no managed allocation begins at `address`.
bool orion_managed_free(uint64_t address, CUresult* result);
/// Ends one that has been taken out of the map of all memory.
CUresult orion_managed_end(orion_allocation* allocation);

#endif
