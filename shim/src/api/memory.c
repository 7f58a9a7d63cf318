// Allocation calls and the map of all memory. Validation of copies and pointer queries is local.
#include "memory.h"

#include <stdlib.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "managed.h"
#include "relay.h"
#include "variable.h"
#include "virtual_memory.h"

#define PAGE_BYTES 4096ull
#define PITCH_BYTES 512ull

pthread_mutex_t orion_memory_mutex = PTHREAD_MUTEX_INITIALIZER;
orion_extent* orion_allocations;

static orion_allocation* containing(uint64_t address) {
  return (orion_allocation*)orion_extent_containing(orion_allocations, address);
}

bool orion_overlaps(uint64_t start, uint64_t bytes) {
  if (containing(start) != NULL) return true;
  const orion_extent* above = orion_extent_at_or_above(orion_allocations, start);
  return above != NULL && above->start - start < bytes;
}

/// Under the memory mutex: mappings that follow one another without a gap are one range for whoever uses it.
static bool mapped_through(const orion_allocation* first, uint64_t address, uint64_t bytes) {
  for (const orion_allocation* at = first; at != NULL && at->kind == ORION_MEMORY_MAPPED;) {
    const uint64_t left = at->extent.bytes - (address - at->extent.start);
    if (bytes <= left) return true;
    address += left;
    bytes -= left;
    at = (orion_allocation*)orion_extent_starting_at(orion_allocations, address);
  }
  return false;
}

orion_range orion_find_range(uint64_t address, uint64_t bytes) {
  orion_range range = {.kind = ORION_MEMORY_PAGEABLE};
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_allocation* found = containing(address);
  if (found != NULL) {
    range = (orion_range){.kind = found->kind,
                          .context = found->context,
                          .start = found->extent.start,
                          .bytes = found->extent.bytes,
                          .buffer_id = found->buffer_id,
                          .arena_shift = found->arena_shift,
                          .flags = found->flags,
                          .whole = bytes <= found->extent.bytes - (address - found->extent.start),
                          .sync_memops = found->sync_memops};
    if (!range.whole && found->kind == ORION_MEMORY_MAPPED) range.whole = mapped_through(found, address, bytes);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return range;
}

bool orion_set_sync_memops(uint64_t address, bool value) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_allocation* found = containing(address);
  if (found != NULL) found->sync_memops = value;
  pthread_mutex_unlock(&orion_memory_mutex);
  return found != NULL;
}

void orion_add_global(orion_context* context, uint64_t address, uint64_t bytes) {
  if (bytes == 0) return;
  orion_allocation* global = calloc(1, sizeof *global);
  if (global == NULL) return;
  *global = (orion_allocation){.extent = {.start = address, .bytes = bytes},
                               .kind = ORION_MEMORY_GLOBAL,
                               .context = context,
                               .reserved_bytes = bytes,
                               .buffer_id = orion_next_id()};
  pthread_mutex_lock(&orion_memory_mutex);
  if (orion_overlaps(address, bytes)) {
    free(global);
  } else {
    orion_extent_insert(&orion_allocations, &global->extent);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
}

void orion_remove_global(orion_context* context, uint64_t address) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_allocation* found = (orion_allocation*)orion_extent_starting_at(orion_allocations, address);
  if (found != NULL && found->kind == ORION_MEMORY_GLOBAL && found->context == context) {
    orion_extent_remove(&orion_allocations, &found->extent);
    free(found);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
}

// ------------------------------------------------------------------------------------------------ device memory

ORION_API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  ORION_REQUIRE(address != NULL && bytes != 0, CUDA_ERROR_INVALID_VALUE);
  uint64_t start;
  const CUresult result = orion_device_allocate(context, bytes, &start);
  if (result == CUDA_SUCCESS) *address = start;
  return result;
}

ORION_API CUresult cuMemAllocPitch_v2(CUdeviceptr* address, size_t* pitch, size_t width_bytes, size_t height,
                                      unsigned int element_bytes) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  ORION_REQUIRE(address != NULL && pitch != NULL && width_bytes != 0 && height != 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(element_bytes == 4 || element_bytes == 8 || element_bytes == 16, CUDA_ERROR_INVALID_VALUE);
  const uint64_t row_bytes = (width_bytes + PITCH_BYTES - 1) & ~(PITCH_BYTES - 1);
  ORION_REQUIRE(row_bytes >= width_bytes, CUDA_ERROR_INVALID_VALUE);
  uint64_t total_bytes, start;
  if (__builtin_mul_overflow(row_bytes, (uint64_t)height, &total_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = orion_device_allocate(context, total_bytes, &start);
  if (result != CUDA_SUCCESS) return result;
  *address = start;
  *pitch = row_bytes;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemFree_v2(CUdeviceptr address) {
  ORION_ENTER();
  ORION_CAPTURE_SAFE();
  orion_context* current;  // the memory knows its own: none needs to be current, but a fault of this one is told
  CUresult result = orion_current_any(&current);
  if (result == CUDA_SUCCESS) result = orion_context_error(current->session, current->entry.index);
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_CONTEXT) return result;
  if (address == 0) return CUDA_SUCCESS;
  orion_relay_settle_allocation(address);
  if (orion_graph_memory_free(address, &result) || orion_managed_free(address, &result)) return result;
  return orion_device_free(address);
}

ORION_API CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  ORION_ENTER_CONTEXT(context);
  orion_op_mem_info op = {.op = {.code = ORION_OP_MEM_INFO, .context = (uint16_t)context->entry.index}};
  orion_reply_mem_info reply = {0};
  CUresult result = orion_memory_settle(context->device->peer);
  if (result != CUDA_SUCCESS) return result;
  result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) return result;
  if (free_bytes != NULL) *free_bytes = reply.free_bytes;
  if (total_bytes != NULL) *total_bytes = reply.total_bytes;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  const orion_range range = orion_find_range(address, 1);
  if (range.kind == ORION_MEMORY_PAGEABLE) return CUDA_ERROR_NOT_FOUND;
  if (base != NULL) *base = range.start;
  if (bytes != NULL) *bytes = range.bytes;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ pinned memory

orion_allocation* orion_new_host_allocation(orion_context* context, enum orion_memory_kind kind, uint64_t start,
                                            uint64_t bytes, uint32_t flags) {
  orion_allocation* allocation = calloc(1, sizeof *allocation);
  if (allocation == NULL) return NULL;
  *allocation = (orion_allocation){.extent = {.start = start, .bytes = bytes},
                                   .kind = kind,
                                   .context = context,
                                   .reserved_bytes = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1),
                                   .flags = flags,
                                   .buffer_id = orion_next_id()};
  return allocation;
}

static uint64_t arena_offset(const orion_allocation* allocation) {
  return allocation->extent.start + allocation->arena_shift -
         (uint64_t)(uintptr_t)allocation->context->session->host_base;
}

CUresult orion_pin(const orion_allocation* allocation) {
  orion_op_host_register op = {
      .op = {.code = ORION_OP_HOST_REGISTER, .context = (uint16_t)allocation->context->entry.index},
      .arena_off = arena_offset(allocation),
      .size_bytes = allocation->reserved_bytes,
      .register_flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP};
  return orion_call(allocation->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
}

static CUresult allocate_pinned(orion_context* context, uint64_t bytes, uint32_t flags, void** address) {
  ORION_REQUIRE(bytes <= ORION_HOST_ARENA_BYTES, CUDA_ERROR_OUT_OF_MEMORY);
  orion_session* session = context->session;
  const uint64_t reserved_bytes = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
  uint8_t* start = orion_arena_allocate(session, reserved_bytes);
  ORION_REQUIRE(start != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  // With one address space pinned memory is always mapped; both sides hold it at the same address.
  orion_allocation* allocation = orion_new_host_allocation(context, ORION_MEMORY_PINNED, (uint64_t)(uintptr_t)start,
                                                           bytes, flags | CU_MEMHOSTALLOC_DEVICEMAP);
  const CUresult result = allocation == NULL ? CUDA_ERROR_OUT_OF_MEMORY : orion_pin(allocation);
  if (result != CUDA_SUCCESS) {
    free(allocation);
    orion_arena_free(session, start, reserved_bytes);
    return result;
  }
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent_insert(&orion_allocations, &allocation->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  orion_coherent_add(session, (uint64_t)(uintptr_t)start, (uint64_t)(start - session->host_base), reserved_bytes);
  *address = start;
  return CUDA_SUCCESS;
}

CUresult orion_pinned_allocate(orion_context* context, uint64_t bytes, void** address) {
  return allocate_pinned(context, bytes, CU_MEMHOSTALLOC_PORTABLE, address);
}

ORION_API CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  const unsigned known = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
  ORION_REQUIRE(address != NULL && (flags & ~known) == 0, CUDA_ERROR_INVALID_VALUE);
  if (bytes == 0) {
    *address = NULL;
    return CUDA_SUCCESS;
  }
  return allocate_pinned(context, bytes, flags, address);
}

ORION_API CUresult cuMemAllocHost_v2(void** address, size_t bytes) {
  ORION_COUNTED();

  return cuMemHostAlloc(address, bytes, CU_MEMHOSTALLOC_PORTABLE);
}

orion_allocation* orion_take_host(const void* address, bool registered) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_allocation* found =
      (orion_allocation*)orion_extent_starting_at(orion_allocations, (uint64_t)(uintptr_t)address);
  const bool is_meant = found != NULL && !found->is_starting &&
                        (registered ? orion_is_registered(found->kind) : found->kind == ORION_MEMORY_PINNED);
  if (!is_meant) found = NULL;
  if (found != NULL) orion_extent_remove(&orion_allocations, &found->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  return found;
}

CUresult orion_unpin(orion_allocation* allocation) {
  orion_session* session = allocation->context->session;
  orion_op_host_unregister op = {
      .op = {.code = ORION_OP_HOST_UNREGISTER, .context = (uint16_t)allocation->context->entry.index},
      .arena_off = arena_offset(allocation),
      .size_bytes = allocation->reserved_bytes};
  orion_coherent_remove(session, op.arena_off);
  // The reply comes when no work can touch the bytes any more: only then may the pages serve someone else.
  const CUresult result = orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result == CUDA_SUCCESS) {
    orion_arena_free(session, (void*)(uintptr_t)allocation->extent.start, allocation->reserved_bytes);
  }
  free(allocation);
  return result;
}

ORION_API CUresult cuMemFreeHost(void* address) {
  ORION_ENTER();
  ORION_CAPTURE_SAFE();
  if (address == NULL) return CUDA_SUCCESS;
  orion_relay_settle_allocation((uint64_t)(uintptr_t)address);
  orion_allocation* allocation = orion_take_host(address, false);
  return allocation == NULL ? CUDA_ERROR_INVALID_VALUE : orion_unpin(allocation);
}

void orion_context_pinned_end(orion_context* context) {
  orion_variables_end_in(context);
  for (uint64_t above = 0;;) {
    pthread_mutex_lock(&orion_memory_mutex);
    orion_allocation* found;
    do {
      found = (orion_allocation*)orion_extent_at_or_above(orion_allocations, above);
      if (found != NULL) above = found->extent.start + 1;
    } while (found != NULL && (found->context != context || found->is_starting ||
                               (!orion_is_arena(found->kind) && found->kind != ORION_MEMORY_REGISTERED)));
    if (found != NULL) orion_extent_remove(&orion_allocations, &found->extent);
    pthread_mutex_unlock(&orion_memory_mutex);
    if (found == NULL) return;
    if (orion_is_registered(found->kind)) {
      (void)orion_registered_end(found);
    } else {
      (void)(found->kind == ORION_MEMORY_MANAGED ? orion_managed_end(found) : orion_unpin(found));
    }
  }
}

ORION_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_address, void* address, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(device_address != NULL && address != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range((uint64_t)(uintptr_t)address, 1);
  if (range.kind == ORION_MEMORY_REGISTERED) return CUDA_ERROR_NOT_SUPPORTED;
  ORION_REQUIRE(range.kind == ORION_MEMORY_PINNED || range.kind == ORION_MEMORY_ADOPTED, CUDA_ERROR_INVALID_VALUE);
  *device_address = (CUdeviceptr)(uintptr_t)address;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemHostGetFlags(unsigned int* flags, void* address) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(flags != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range((uint64_t)(uintptr_t)address, 1);
  ORION_REQUIRE(
      range.kind == ORION_MEMORY_PINNED || range.kind == ORION_MEMORY_MANAGED || orion_is_registered(range.kind),
      CUDA_ERROR_INVALID_VALUE);
  // Of managed memory it holds what these two say.
  *flags = range.kind == ORION_MEMORY_MANAGED ? CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP : range.flags;
  return CUDA_SUCCESS;
}
