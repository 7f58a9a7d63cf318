// Pointer attributes, answered from the map of all memory.
#include <string.h>

#include "api.h"
#include "pool.h"

#define ACCESS_READ_WRITE 3u

static CUresult write_u32(void* data, uint32_t value) {
  memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

static CUresult write_u64(void* data, uint64_t value) {
  memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

static CUresult write_bool(void* data, bool value) {
  const uint8_t byte = value;
  memcpy(data, &byte, sizeof byte);
  return CUDA_SUCCESS;
}

/// What is known of an address. Memory of cuMemMap and of pools belongs to a device and to no context.
typedef struct orion_description {
  enum orion_memory_kind kind;
  const orion_context* context;  // NULL: bound to none
  const orion_device_state* device;
  uint64_t start, bytes;                  // of the allocation, or of the reservation that memory is mapped in
  uint64_t mapping_start, mapping_bytes;  // of what backs it
  uint64_t buffer_id, block_id;
  uint64_t pool;
  uint32_t handle_types;
  uint32_t access;  // of the current context's device
  bool sync_memops;
} orion_description;

/// Under the memory mutex.
static void describe_mapping(orion_description* known, const orion_mapping* mapping, uint32_t device) {
  known->context = NULL;
  known->device = mapping->memory->device;
  known->block_id = mapping->memory->block_id;
  known->handle_types = (uint32_t)mapping->memory->properties.requestedHandleTypes;
  known->access = mapping->access[device];
  const orion_extent* reserved = orion_reservation_around(known->start);
  if (reserved == NULL) return;
  known->start = reserved->start;
  known->bytes = reserved->bytes;
}

/// What backs memory of cuMemAlloc: whole chunks.
static void widen_to_chunks(orion_description* known) {
  const uint64_t end = (known->start + known->bytes + ORION_CHUNK_BYTES - 1) & ~(ORION_CHUNK_BYTES - 1);
  known->mapping_start = known->start & ~(ORION_CHUNK_BYTES - 1);
  known->mapping_bytes = end - known->mapping_start;
}

static void describe_block(orion_description* known, orion_pool* pool, uint32_t device) {
  pthread_mutex_lock(&pool->mutex);
  const orion_pool_piece* piece = (orion_pool_piece*)orion_extent_containing(pool->pieces, known->start);
  known->context = NULL;
  known->device = pool->device;
  known->pool = pool->destroyed ? 0 : pool->handle;
  known->handle_types = (uint32_t)pool->properties.handleTypes;
  known->access = pool->access[device];
  if (piece != NULL) {
    known->block_id = piece->memory->block_id;
    known->mapping_start = piece->extent.start;
    known->mapping_bytes = piece->extent.bytes;
  }
  pthread_mutex_unlock(&pool->mutex);
}

static uint32_t plain_access(const orion_context* current, const orion_context* owner) {
  if (current == NULL || current->device == owner->device) return ACCESS_READ_WRITE;
  return (atomic_load(&current->peer_access) >> owner->entry.index & 1) != 0 ? ACCESS_READ_WRITE : 0;
}

/// False: nothing is known there.
static bool describe(uint64_t address, orion_description* known) {
  orion_context* current = NULL;
  if (orion_current_any(&current) != CUDA_SUCCESS) current = NULL;
  orion_pool* pool = NULL;
  uint32_t device = 0;
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_allocation* found = (orion_allocation*)orion_extent_containing(orion_allocations, address);
  if (found != NULL) {
    *known = (orion_description){.kind = found->kind,
                                 .context = found->context,
                                 .device = found->context->device,
                                 .start = found->extent.start,
                                 .bytes = found->extent.bytes,
                                 .mapping_start = found->extent.start,
                                 .mapping_bytes = found->extent.bytes,
                                 .buffer_id = found->buffer_id,
                                 .block_id = found->buffer_id,
                                 .sync_memops = found->sync_memops};
    device = current != NULL ? current->device->ordinal : known->device->ordinal;
    if (found->kind == ORION_MEMORY_MAPPED) {
      describe_mapping(known, (const orion_mapping*)found, device);
    } else if (found->kind == ORION_MEMORY_POOL) {
      pool = ((const orion_pool_block*)found)->pool;
    } else if (orion_is_device(found->kind) && found->kind != ORION_MEMORY_VARIABLE) {
      known->access = plain_access(current, found->context);
      if (found->kind == ORION_MEMORY_DEVICE) widen_to_chunks(known);
    } else {
      known->access = ACCESS_READ_WRITE;
    }
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  // A pool's mutex comes before the map's. Pools are never given back, only used again.
  if (pool != NULL) describe_block(known, pool, device);
  return found != NULL;
}

static bool is_host(const orion_description* known) {
  return known->kind == ORION_MEMORY_PINNED || orion_is_registered(known->kind);
}

static bool is_managed(const orion_description* known) {
  return known->kind == ORION_MEMORY_MANAGED || known->kind == ORION_MEMORY_VARIABLE;
}

static CUresult write_attribute(void* data, CUpointer_attribute attribute, uint64_t address,
                                const orion_description* known) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return write_u64(data, known->context == NULL ? 0 : known->context->handle);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return write_u32(data, is_host(known) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      if (known->kind == ORION_MEMORY_REGISTERED) return CUDA_ERROR_INVALID_VALUE;
      return write_u64(data, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (!is_host(known) && !is_managed(known)) return CUDA_ERROR_INVALID_VALUE;
      return write_u64(data, address);
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS:
      return CUDA_ERROR_NOT_SUPPORTED;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return write_u32(data, known->sync_memops);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return write_u64(data, known->buffer_id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return write_u32(data, is_managed(known));  // the runtime reads an int
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return write_u32(data, known->device->ordinal);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return write_bool(data, known->kind == ORION_MEMORY_DEVICE);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return write_bool(data, false);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return write_u64(data, known->start);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return write_u64(data, known->bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return write_bool(data, known->kind != ORION_MEMORY_REGISTERED);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return write_u64(data, known->handle_types);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return write_u32(data, known->access);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return write_u64(data, known->pool);
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return write_u64(data, known->mapping_bytes);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return write_u64(data, known->mapping_start);
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return write_u64(data, known->block_id);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

ORION_API CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  ORION_ENTER();
  ORION_REQUIRE(data != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_description known;
  ORION_REQUIRE(describe(address, &known), CUDA_ERROR_INVALID_VALUE);
  return write_attribute(data, attribute, address, &known);
}

/// What CUDA defines for a pointer that it does not know: zeros, and invalid ordinals. A range is left as it was.
static void write_unknown(void* data, CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      (void)write_u32(data, (uint32_t)-2);
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      (void)write_u32(data, 0);
      break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
      (void)write_bool(data, false);
      break;
    default:
      (void)write_u64(data, 0);
  }
}

ORION_API CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute* attributes, void** data,
                                          CUdeviceptr address) {
  ORION_ENTER();
  ORION_REQUIRE(count != 0 && attributes != NULL && data != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_description known;
  const bool is_known = describe(address, &known);
  for (unsigned i = 0; i < count; i++) {
    const unsigned attribute = (unsigned)attributes[i];
    ORION_REQUIRE(data[i] != NULL && attribute >= CU_POINTER_ATTRIBUTE_CONTEXT &&
                      attribute <= CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE &&
                      attribute != CU_POINTER_ATTRIBUTE_P2P_TOKENS,
                  CUDA_ERROR_INVALID_VALUE);
    if (!is_known || write_attribute(data[i], attributes[i], address, &known) != CUDA_SUCCESS) {
      write_unknown(data[i], attributes[i]);
    }
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, CUDA_ERROR_INVALID_VALUE);
  uint32_t wish;
  memcpy(&wish, value, sizeof wish);
  return orion_set_sync_memops(address, wish != 0) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
