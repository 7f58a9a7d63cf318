// cuPointerGetAttribute(s) and cuPointerSetAttribute.
#include <cstring>

#include "api.h"

using namespace sg;

namespace {

template <class T>
CUresult give(void* data, T value) {
  std::memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

/// The handle of the context that memory belongs to; VMM and pool memory belongs to none.
CUcontext owner(Driver& driver, const Region& region) {
  if (region.context_id == 0) return nullptr;
  for (const auto& context : driver.contexts.all()) {
    if (context->id == region.context_id) return to_handle<CUcontext>(context->handle);
  }
  return nullptr;
}

using Range = std::pair<uint64_t, uint64_t>;  // begin, end

/// The allocation; of mapped memory the whole reservation.
Range range_of(const Region& region) {
  Range range{region.begin, region.end};
  if (region.kind == RegionKind::vmm) reservation_around(region.begin, &range.first, &range.second);
  return range;
}

/// What backs the memory: that of cuMemAlloc lies in whole units.
Range mapping_of(const Region& region) {
  if (region.kind != RegionKind::device) return {region.begin, region.end};
  return {region.begin & ~(kVmmGranularityBytes - 1), round_up(region.end, kVmmGranularityBytes)};
}

CUresult attribute_of(Driver& driver, const Region& region, int attribute, CUdeviceptr address, void* data) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return give(data, owner(driver, region));
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return give<unsigned>(data, region.is_host() ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return give<CUdeviceptr>(data, address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (!region.is_host() && region.kind != RegionKind::managed) return CUDA_ERROR_INVALID_VALUE;
      return give(data, reinterpret_cast<void*>(address));
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
      return give<bool>(data, region.sync_memops);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      return give<uint64_t>(data, region.buffer_id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return give<unsigned>(data, region.kind == RegionKind::managed);  // the runtime reads an int
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return give<int>(data, region.device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      return give<bool>(data, false);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return give<CUdeviceptr>(data, range_of(region).first);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return give<size_t>(data, range_of(region).second - range_of(region).first);
    case CU_POINTER_ATTRIBUTE_MAPPED:
      return give<bool>(data, true);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      return give<uint64_t>(data, region.physical && region.physical->exportable && !region.physical->imported ? 1 : 0);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
      return give<bool>(data, false);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return give<unsigned>(data, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      return give<uint64_t>(data, region.pool && driver.pools.get(region.pool->handle) ? region.pool->handle : 0);
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
      return give<size_t>(data, mapping_of(region).second - mapping_of(region).first);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
      return give<CUdeviceptr>(data, mapping_of(region).first);
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
      return give<uint64_t>(data, region.physical ? region.physical->handle : region.buffer_id);
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return give<bool>(data, false);
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS:
      return CUDA_ERROR_NOT_SUPPORTED;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

/// What cuPointerGetAttributes writes for memory that is not known; it succeeds then. A range is left as it was.
CUresult attribute_of_unknown(int attribute, void* data) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return give<unsigned>(data, 0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return give<int>(data, -2);  // CU_DEVICE_INVALID
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return give<unsigned>(data, 0);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
      return give<bool>(data, false);
    default:
      if (attribute < CU_POINTER_ATTRIBUTE_CONTEXT || attribute > CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE ||
          attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      return give<uint64_t>(data, 0);
  }
}

}  // namespace

SG_API cuPointerGetAttribute(void* data, int attribute, CUdeviceptr address) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!data) return CUDA_ERROR_INVALID_VALUE;
    auto region = driver.map.find(address);
    return region ? attribute_of(driver, *region, attribute, address, data) : CUDA_ERROR_INVALID_VALUE;
  });
}

SG_API cuPointerGetAttributes(unsigned count, int* attributes, void** data, CUdeviceptr address) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (count == 0 || !attributes || !data) return CUDA_ERROR_INVALID_VALUE;
    auto region = driver.map.find(address);
    for (unsigned i = 0; i < count; ++i) {
      if (!data[i]) return CUDA_ERROR_INVALID_VALUE;
      CUresult result = CUDA_ERROR_INVALID_VALUE;
      if (region) result = attribute_of(driver, *region, attributes[i], address, data[i]);
      if (result == CUDA_ERROR_INVALID_VALUE) result = attribute_of_unknown(attributes[i], data[i]);
      if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuPointerSetAttribute(const void* value, int attribute, CUdeviceptr address) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) return CUDA_ERROR_INVALID_VALUE;
    unsigned on = 0;
    std::memcpy(&on, value, sizeof on);
    const bool found = driver.map.update(address, false, [on](Region& region) { region.sync_memops = on != 0; });
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}
