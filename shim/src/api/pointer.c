// Pointer attributes, answered from the map of all memory.
#include <string.h>

#include "api.h"
#include "memory.h"

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

static bool is_host(const orion_range* range) {
  return range->kind == ORION_MEMORY_PINNED || range->kind == ORION_MEMORY_REGISTERED;
}

static CUresult write_attribute(void* data, CUpointer_attribute attribute, uint64_t address, const orion_range* range) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return write_u64(data, range->context->handle);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return write_u32(data, is_host(range) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      if (range->kind == ORION_MEMORY_REGISTERED) return CUDA_ERROR_INVALID_VALUE;
      return write_u64(data, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return is_host(range) ? write_u64(data, address) : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return write_u32(data, range->sync_memops);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return write_u64(data, range->buffer_id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return write_bool(data, false);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return write_u32(data, range->context->device->ordinal);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return write_bool(data, false);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return write_u64(data, range->start);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return write_u64(data, range->bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return write_bool(data, range->kind != ORION_MEMORY_REGISTERED);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return write_u64(data, 0);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return write_u32(data, ACCESS_READ_WRITE);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

ORION_API CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(data != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range(address, 1);
  ORION_REQUIRE(range.kind != ORION_MEMORY_PAGEABLE, CUDA_ERROR_INVALID_VALUE);
  return write_attribute(data, attribute, address, &range);
}

/// What CUDA defines for a pointer that it does not know: zeros, and invalid ordinals.
static void write_unknown(void* data, CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      (void)write_u32(data, (uint32_t)-2);
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      (void)write_u32(data, 0);
      break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
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
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(count != 0 && attributes != NULL && data != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range(address, 1);
  for (unsigned i = 0; i < count; i++) {
    const unsigned attribute = (unsigned)attributes[i];
    ORION_REQUIRE(
        attribute >= CU_POINTER_ATTRIBUTE_CONTEXT && attribute <= CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE,
        CUDA_ERROR_INVALID_VALUE);
    if (range.kind == ORION_MEMORY_PAGEABLE ||
        write_attribute(data[i], attributes[i], address, &range) != CUDA_SUCCESS) {
      write_unknown(data[i], attributes[i]);
    }
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(value != NULL && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, CUDA_ERROR_INVALID_VALUE);
  uint32_t wish;
  memcpy(&wish, value, sizeof wish);
  return orion_set_sync_memops(address, wish != 0) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
