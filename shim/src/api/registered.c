// cuMemHostRegister. The pages of the program's memory become one with pages of the arena, which the worker has at the
// program's address too: kernels find them there, and copies are those of page-locked memory. What cannot be adopted
// stays pageable: copies keep their meaning (asynchronous ones complete earlier than they must), and access by kernels
// is refused, DEVICEMAP and cuMemHostGetDevicePointer by CUDA_ERROR_NOT_SUPPORTED.
#include <stdlib.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "memory.h"
#include "relay.h"

#define PAGE_BYTES 4096ull

static _Atomic uint32_t adopted_count;

static uint64_t first_page(const orion_allocation* a) { return a->extent.start & ~(PAGE_BYTES - 1); }

static uint64_t whole_pages(const orion_allocation* a) {
  const uint64_t end = (a->extent.start + a->extent.bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
  return end - first_page(a);
}

static CUresult register_at(const orion_allocation* a, uint64_t arena_offset) {
  orion_op_host_register_at op = {
      .op = {.code = ORION_OP_HOST_REGISTER_AT, .context = (uint16_t)a->context->entry.index},
      .arena_off = arena_offset,
      .size_bytes = whole_pages(a),
      .address = first_page(a)};
  return orion_call(a->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
}

static CUresult unregister(const orion_allocation* a, uint64_t arena_offset) {
  orion_op_host_unregister op = {.op = {.code = ORION_OP_HOST_UNREGISTER, .context = (uint16_t)a->context->entry.index},
                                 .arena_off = arena_offset,
                                 .size_bytes = whole_pages(a)};
  return orion_call(a->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
}

/// After the worker has let go of the pages, or has not had them.
static void end_adoption(const orion_allocation* a, uint64_t arena_offset, bool is_free) {
  orion_session* session = a->context->session;
  if (!orion_adopt_end(session, a->extent.start, a->extent.bytes, arena_offset) || !is_free) return;
  orion_arena_free(session, session->host_base + arena_offset, whole_pages(a));
}

/// NULL, or why the memory stays pageable.
static const char* adopt(orion_allocation* a) {
  orion_session* session = a->context->session;
  const char* why = orion_adoptable(session, a->extent.start, a->extent.bytes);
  if (why != NULL) return why;
  uint8_t* arena = orion_arena_allocate(session, whole_pages(a));
  if (arena == NULL) return "the host arena is full";
  const uint64_t offset = (uint64_t)(arena - session->host_base);
  const CUresult registered = register_at(a, offset);
  if (registered != CUDA_SUCCESS) {
    orion_arena_free(session, arena, whole_pages(a));
    return registered == CUDA_ERROR_ALREADY_MAPPED ? "the server's process uses its address for something else"
                                                   : "the server cannot register it";
  }
  why = orion_adopt(session, a->extent.start, a->extent.bytes, offset);
  if (why != NULL) {
    const bool is_free = unregister(a, offset) == CUDA_SUCCESS;
    end_adoption(a, offset, is_free);
    return why;
  }
  orion_coherent_add(session, a->extent.start, offset + a->extent.start % PAGE_BYTES, a->extent.bytes);
  pthread_mutex_lock(&orion_memory_mutex);
  a->arena_shift = (uint64_t)(uintptr_t)arena - first_page(a);
  a->flags |= CU_MEMHOSTREGISTER_DEVICEMAP;
  a->kind = ORION_MEMORY_ADOPTED;
  pthread_mutex_unlock(&orion_memory_mutex);
  atomic_fetch_add(&adopted_count, 1);
  return NULL;
}

ORION_API CUresult cuMemHostRegister_v2(void* address, size_t bytes, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  const unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_IOMEMORY |
                         CU_MEMHOSTREGISTER_READ_ONLY;
  ORION_REQUIRE(address != NULL && bytes != 0 && (flags & ~known) == 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(bytes <= UINT64_MAX - 2 * PAGE_BYTES - (uint64_t)(uintptr_t)address, CUDA_ERROR_INVALID_VALUE);
  if ((flags & (CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY)) != 0) {
    orion_log(ORION_LOG_WARN, "cuMemHostRegister: I/O memory and read-only registrations (flags %#x) are not supported",
              flags);
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  orion_allocation* allocation =
      orion_new_host_allocation(context, ORION_MEMORY_REGISTERED, (uint64_t)(uintptr_t)address, bytes, flags);
  ORION_REQUIRE(allocation != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  pthread_mutex_lock(&orion_memory_mutex);
  const bool taken = orion_overlaps(allocation->extent.start, bytes);
  const bool shares_page = orion_overlaps(first_page(allocation), whole_pages(allocation));
  // In the map before its pages move: another registration sees that they are not for it.
  allocation->is_starting = true;
  if (!taken) orion_extent_insert(&orion_allocations, &allocation->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (taken) {
    free(allocation);
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  const char* why = shares_page ? "a page of it belongs to another registration too" : adopt(allocation);
  const bool is_refused = why == orion_adopt_unmapped || why == orion_adopt_unwritable;
  const bool stays = why == NULL || (!is_refused && (flags & CU_MEMHOSTREGISTER_DEVICEMAP) == 0);
  pthread_mutex_lock(&orion_memory_mutex);
  allocation->is_starting = false;
  if (!stays) orion_extent_remove(&orion_allocations, &allocation->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (why == NULL) return CUDA_SUCCESS;
  if (!is_refused) {
    orion_log(ORION_LOG_WARN, "registered memory at %p (%zu bytes) stays pageable, and kernels cannot use it: %s",
              address, bytes, why);
  }
  if (stays) return CUDA_SUCCESS;
  free(allocation);
  return is_refused ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
}

ORION_API CUresult cuMemHostRegister(void* address, size_t bytes, unsigned int flags) {
  ORION_COUNTED();

  return cuMemHostRegister_v2(address, bytes, flags);
}

CUresult orion_registered_end(orion_allocation* a) {
  CUresult result = CUDA_SUCCESS;
  if (a->kind == ORION_MEMORY_ADOPTED) {
    orion_session* session = a->context->session;
    const uint64_t offset = first_page(a) + a->arena_shift - (uint64_t)(uintptr_t)session->host_base;
    orion_coherent_flush(session);
    orion_coherent_remove(session, offset + a->extent.start % PAGE_BYTES);
    result = unregister(a, offset);
    end_adoption(a, offset, result == CUDA_SUCCESS);
    atomic_fetch_sub(&adopted_count, 1);
  }
  free(a);
  return result;
}

ORION_API CUresult cuMemHostUnregister(void* address) {
  ORION_ENTER();
  ORION_CAPTURE_SAFE();
  ORION_REQUIRE(address != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_relay_settle_allocation((uint64_t)(uintptr_t)address);
  orion_allocation* allocation = orion_take_host(address, true);
  if (allocation != NULL) return orion_registered_end(allocation);
  const orion_range range = orion_find_range((uint64_t)(uintptr_t)address, 1);
  return orion_is_registered(range.kind) && range.start != (uint64_t)(uintptr_t)address
             ? CUDA_ERROR_INVALID_VALUE
             : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

uint64_t orion_program_address(const orion_session* session, uint64_t address) {
  uint64_t found = address;
  if (atomic_load(&adopted_count) == 0) return found;
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_extent* at = orion_extent_at_or_above(orion_allocations, 0);
  for (; at != NULL; at = orion_extent_at_or_above(orion_allocations, at->start + 1)) {
    const orion_allocation* a = (const orion_allocation*)at;
    if (a->kind != ORION_MEMORY_ADOPTED || a->context->session != session) continue;
    if (address - a->arena_shift - at->start < at->bytes) found = address - a->arena_shift;
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return found;
}
