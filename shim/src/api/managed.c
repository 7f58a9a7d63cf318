// Managed memory: allocation, and when the worker learns of it.
#include "managed.h"

#include <stdlib.h>

#include "api.h"
#include "capture.h"

#define PAGE_BYTES 4096ull

// Before the coherent ranges' mutex; held while an allocation is told, so that no launch overtakes that.
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_managed* waiting;
static _Atomic uint32_t waiting_count;

bool orion_managed_offered(const orion_session* session) {
  return !orion_over_network(session) || session->coherent != ORION_COHERENT_OFF;
}

static void wait_for_use(orion_managed* managed) {
  pthread_mutex_lock(&mutex);
  managed->is_waiting = true;
  managed->next = waiting;
  waiting = managed;
  atomic_fetch_add(&waiting_count, 1);
  atomic_fetch_add(&orion_coherent_candidates, 1);  // launches look here while it is not 0
  pthread_mutex_unlock(&mutex);
}

/// Under the mutex.
static void take_out(orion_managed** link) {
  orion_managed* managed = *link;
  *link = managed->next;
  managed->is_waiting = false;
  atomic_fetch_sub(&waiting_count, 1);
  atomic_fetch_sub(&orion_coherent_candidates, 1);
}

static CUresult tell(const orion_managed* managed) {
  const orion_allocation* a = &managed->allocation;
  orion_session* session = a->context->session;
  const CUresult result = orion_pin(a);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t offset = a->extent.start - (uint64_t)(uintptr_t)session->host_base;
  const uint32_t context = a->context->entry.index;
  return orion_coherent_add_managed(session, offset, a->reserved_bytes, context) ? CUDA_SUCCESS
                                                                                 : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult orion_managed_ready(orion_session* session) {
  if (atomic_load(&waiting_count) == 0) return CUDA_SUCCESS;
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&mutex);
  for (orion_managed** link = &waiting; *link != NULL && result == CUDA_SUCCESS;) {
    orion_managed* managed = *link;
    if (managed->allocation.context->session != session) {
      link = &managed->next;
      continue;
    }
    result = tell(managed);
    if (result == CUDA_SUCCESS) take_out(link);
  }
  pthread_mutex_unlock(&mutex);
  if (result != CUDA_SUCCESS) {
    orion_log(ORION_LOG_ERROR, "managed memory cannot be page-locked for the device: error %d", (int)result);
  }
  return result;
}

ORION_API CUresult cuMemAllocManaged(CUdeviceptr* address, size_t bytes, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  ORION_REQUIRE(address != NULL && bytes != 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST, CUDA_ERROR_INVALID_VALUE);
  orion_session* session = context->session;
  if (!orion_managed_offered(session)) {
    orion_log(ORION_LOG_WARN, "cuMemAllocManaged: no managed memory over tcp with ORION_COHERENT=off");
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  ORION_REQUIRE(bytes <= ORION_HOST_ARENA_BYTES, CUDA_ERROR_OUT_OF_MEMORY);
  const uint64_t reserved_bytes = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
  orion_managed* managed = calloc(1, sizeof *managed);
  uint8_t* start = managed == NULL ? NULL : orion_arena_allocate(session, reserved_bytes);
  if (start == NULL) {
    free(managed);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  managed->allocation = (orion_allocation){.extent = {.start = (uint64_t)(uintptr_t)start, .bytes = bytes},
                                           .kind = ORION_MEMORY_MANAGED,
                                           .context = context,
                                           .reserved_bytes = reserved_bytes,
                                           .flags = flags,
                                           .buffer_id = orion_next_id()};
  wait_for_use(managed);
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent_insert(&orion_allocations, &managed->allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  *address = (CUdeviceptr)(uintptr_t)start;
  return CUDA_SUCCESS;
}

CUresult orion_managed_end(orion_allocation* allocation) {
  orion_managed* managed = (orion_managed*)allocation;
  pthread_mutex_lock(&mutex);
  const bool was_waiting = managed->is_waiting;
  if (was_waiting) {
    orion_managed** link = &waiting;
    while (*link != managed) link = &(*link)->next;
    take_out(link);
  }
  pthread_mutex_unlock(&mutex);
  free(managed->advised);
  if (!was_waiting) return orion_unpin(allocation);
  orion_arena_free(allocation->context->session, (void*)(uintptr_t)allocation->extent.start,
                   allocation->reserved_bytes);
  free(managed);
  return CUDA_SUCCESS;
}

bool orion_managed_free(uint64_t address, CUresult* result) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_allocation* found = (orion_allocation*)orion_extent_starting_at(orion_allocations, address);
  if (found != NULL && found->kind != ORION_MEMORY_MANAGED) found = NULL;
  if (found != NULL) orion_extent_remove(&orion_allocations, &found->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (found == NULL) return false;
  *result = orion_managed_end(found);
  return true;
}
