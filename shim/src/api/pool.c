// The calls of stream-ordered allocation and of memory pools.
#include "pool.h"

#include <string.h>

#include "api.h"
#include "capture.h"

static pthread_mutex_t pools_mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_pool *default_pools[ORION_DEVICES], *current_pools[ORION_DEVICES];  // by device ordinal; under the mutex

static orion_pool* find(CUmemoryPool handle) {
  return orion_table_find(&orion_pools, (uint64_t)(uintptr_t)handle, NULL);
}

/// Under the mutex: NULL only without memory.
static orion_pool* default_pool(orion_device_state* device) {
  orion_pool** place = &default_pools[device->ordinal];
  if (*place == NULL) {
    const CUmemPoolProps properties = {
        .allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = (int)device->ordinal},
    };
    *place = orion_pool_new(device, &properties);
    if (*place != NULL) (*place)->is_default = true;
  }
  return *place;
}

static orion_pool* current_pool(orion_device_state* device, bool the_default) {
  pthread_mutex_lock(&pools_mutex);
  orion_pool* pool = the_default ? NULL : current_pools[device->ordinal];
  if (pool == NULL) pool = default_pool(device);
  pthread_mutex_unlock(&pools_mutex);
  return pool;
}

// ------------------------------------------------------------------------------------------------ allocations

static CUresult allocate(CUdeviceptr* address, size_t bytes, orion_pool* pool, orion_stream* stream) {
  ORION_REQUIRE(address != NULL, CUDA_ERROR_INVALID_VALUE);
  if (bytes == 0) {
    *address = 0;
    return CUDA_SUCCESS;
  }
  ORION_REQUIRE(pool != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(pool->device->info->session == stream->session, CUDA_ERROR_NOT_SUPPORTED);  // orders end at the server
  if (orion_is_captured(stream)) {
    uint64_t captured;
    const CUresult result = orion_capture_allocate(stream, bytes, &captured);
    if (result == CUDA_SUCCESS) *address = captured;
    return result;
  }
  uint64_t start;
  const CUresult result = orion_pool_allocate(pool, bytes, stream, &start);
  if (result == CUDA_SUCCESS) *address = start;
  return result;
}

ORION_API CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  return allocate(address, bytes, current_pool(stream->context->device, false), stream);
}

ORION_API CUresult cuMemAllocFromPoolAsync(CUdeviceptr* address, size_t bytes, CUmemoryPool pool, CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  return allocate(address, bytes, find(pool), stream);
}

ORION_API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (address == 0) return CUDA_SUCCESS;
  if (orion_is_captured(stream)) return orion_capture_free(stream, address);
  CUresult result;
  if (orion_graph_memory_free(address, &result)) return result;
  const orion_range range = orion_find_range(address, 1);
  // Memory of cuMemAlloc may be freed so too: behind all work, which includes the stream's.
  return range.kind == ORION_MEMORY_DEVICE ? orion_device_free(address) : orion_pool_free(address, stream);
}

// ------------------------------------------------------------------------------------------------ pools of devices

static CUresult device_pool(CUmemoryPool* pool, CUdevice ordinal, bool the_default) {
  ORION_ENTER();
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, the_default ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE);  // natively so
  ORION_REQUIRE(pool != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_pool* found = current_pool(device, the_default);
  ORION_REQUIRE(found != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  *pool = (CUmemoryPool)(uintptr_t)found->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice ordinal) {
  return device_pool(pool, ordinal, true);
}

ORION_API CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice ordinal) {
  return device_pool(pool, ordinal, false);
}

ORION_API CUresult cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool handle) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(pool->device == device, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&pools_mutex);
  current_pools[device->ordinal] = pool;
  pthread_mutex_unlock(&pools_mutex);
  return CUDA_SUCCESS;
}

/// Pools of host and managed memory are not offered, and the attributes of the device say so.
static CUresult check_kind(const CUmemLocation* location, CUmemAllocationType type) {
  ORION_REQUIRE(location != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(type == CU_MEM_ALLOCATION_TYPE_PINNED || type == CU_MEM_ALLOCATION_TYPE_MANAGED,
                CUDA_ERROR_INVALID_VALUE);
  if (location->type == CU_MEM_LOCATION_TYPE_DEVICE) {
    ORION_REQUIRE(orion_device_state_at(location->id) != NULL, CUDA_ERROR_INVALID_VALUE);
    return type == CU_MEM_ALLOCATION_TYPE_PINNED ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
  }
  const bool host = location->type == CU_MEM_LOCATION_TYPE_HOST || location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
                    location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
  return host ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

ORION_API CUresult cuMemGetDefaultMemPool(CUmemoryPool* pool, CUmemLocation* location, CUmemAllocationType type) {
  ORION_ENTER();
  const CUresult result = check_kind(location, type);
  return result == CUDA_SUCCESS ? device_pool(pool, location->id, true) : result;
}

ORION_API CUresult cuMemGetMemPool(CUmemoryPool* pool, CUmemLocation* location, CUmemAllocationType type) {
  ORION_ENTER();
  const CUresult result = check_kind(location, type);
  return result == CUDA_SUCCESS ? device_pool(pool, location->id, false) : result;
}

ORION_API CUresult cuMemSetMemPool(CUmemLocation* location, CUmemAllocationType type, CUmemoryPool pool) {
  ORION_ENTER();
  const CUresult result = check_kind(location, type);
  return result == CUDA_SUCCESS ? cuDeviceSetMemPool(location->id, pool) : result;
}

// ------------------------------------------------------------------------------------------------ pools

ORION_API CUresult cuMemPoolCreate(CUmemoryPool* handle, const CUmemPoolProps* properties) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && properties != NULL, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = check_kind(&properties->location, properties->allocType);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(properties->handleTypes == CU_MEM_HANDLE_TYPE_NONE, CUDA_ERROR_NOT_SUPPORTED);
  const orion_pool* pool = orion_pool_new(orion_device_state_at(properties->location.id), properties);
  ORION_REQUIRE(pool != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  *handle = (CUmemoryPool)(uintptr_t)pool->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_pool* pool = orion_table_find(&orion_pools, (uint64_t)(uintptr_t)handle, &generation);
  ORION_REQUIRE(pool != NULL && !pool->is_default, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_table_retire(&orion_pools, pool, generation), CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&pools_mutex);
  if (current_pools[pool->device->ordinal] == pool) current_pools[pool->device->ordinal] = NULL;
  pthread_mutex_unlock(&pools_mutex);
  orion_pool_destroy(pool);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_pool_trim(pool, keep_bytes);
  return CUDA_SUCCESS;
}

/// Where an attribute of 64 bits is kept; NULL: no such attribute.
static uint64_t* counter(orion_pool* pool, CUmemPool_attribute attribute) {
  switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
      return &pool->release_threshold_bytes;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
      return &pool->reserved_bytes;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      return &pool->reserved_high_bytes;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
      return &pool->used_bytes;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      return &pool->used_high_bytes;
    default:
      return NULL;
  }
}

static bool is_reuse(CUmemPool_attribute attribute) {
  return attribute >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
         attribute <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
}

ORION_API CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL && value != NULL, CUDA_ERROR_INVALID_VALUE);
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&pool->mutex);
  const uint64_t* number = counter(pool, attribute);
  if (number != NULL) {
    memcpy(value, number, sizeof *number);
  } else if (is_reuse(attribute)) {
    memcpy(value, &pool->reuse[attribute], sizeof pool->reuse[attribute]);
  } else {
    result = CUDA_ERROR_INVALID_VALUE;
  }
  pthread_mutex_unlock(&pool->mutex);
  return result;
}

ORION_API CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void* value) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL && value != NULL, CUDA_ERROR_INVALID_VALUE);
  CUresult result = CUDA_SUCCESS;
  uint64_t number;
  pthread_mutex_lock(&pool->mutex);
  if (is_reuse(attribute)) {
    memcpy(&pool->reuse[attribute], value, sizeof pool->reuse[attribute]);
  } else if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
    memcpy(&pool->release_threshold_bytes, value, sizeof number);
  } else if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH || attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
    // A high-water mark can only be set back to what is there now.
    memcpy(&number, value, sizeof number);
    if (number != 0) result = CUDA_ERROR_INVALID_VALUE;
    const bool used = attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if (number == 0) *counter(pool, attribute) = used ? pool->used_bytes : pool->reserved_bytes;
  } else {
    result = CUDA_ERROR_INVALID_VALUE;
  }
  pthread_mutex_unlock(&pool->mutex);
  // The next wait looks whether more is held than the new threshold allows.
  if (result == CUDA_SUCCESS && attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
    atomic_store_explicit(&orion_pools_over, true, memory_order_relaxed);
  }
  return result;
}

ORION_API CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* access, size_t count) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL && access != NULL && count != 0 && count <= ORION_DEVICES, CUDA_ERROR_INVALID_VALUE);
  for (size_t i = 0; i < count; i++) {
    ORION_REQUIRE(access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_INVALID_VALUE);
    const orion_device_state* device = orion_device_state_at(access[i].location.id);
    ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
    ORION_REQUIRE(
        access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE || access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        CUDA_ERROR_INVALID_VALUE);
    ORION_REQUIRE(device != pool->device || access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE,
                  CUDA_ERROR_INVALID_DEVICE);
    ORION_REQUIRE(device->info->session == pool->device->info->session, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
  }
  return orion_pool_set_access(pool, access, count);
}

ORION_API CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool handle, CUmemLocation* location) {
  ORION_ENTER();
  orion_pool* pool = find(handle);
  ORION_REQUIRE(pool != NULL && flags != NULL && location != NULL && location->type == CU_MEM_LOCATION_TYPE_DEVICE,
                CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(location->id) != NULL, CUDA_ERROR_INVALID_DEVICE);
  pthread_mutex_lock(&pool->mutex);
  *flags = (CUmemAccess_flags)pool->access[location->id];
  pthread_mutex_unlock(&pool->mutex);
  return CUDA_SUCCESS;
}
