// Device and host memory.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

constexpr size_t kPitchBytes = 512;

CUresult allocate(Driver& driver, Context& context, RegionKind kind, size_t bytes, unsigned flags, CUdeviceptr* out) {
  if (const CUresult injected = allocation_fault(bytes)) return injected;
  Region region;
  region.begin = driver.devices[context.device]->arena->allocate(bytes, &region.charged_bytes);
  if (region.begin == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  region.end = region.begin + bytes;
  region.kind = kind;
  region.device = context.device;
  region.context_id = context.id;
  region.flags = flags;
  region.buffer_id = driver.map.next_buffer_id();
  *out = region.begin;
  driver.map.insert(std::move(region));
  return CUDA_SUCCESS;
}

/// The pages of [begin, end) are mapped and writable.
bool host_range_writable(uint64_t begin, uint64_t end) {
  FILE* maps = std::fopen("/proc/self/maps", "re");
  if (!maps) return false;
  char line[512];
  uint64_t reached = begin;
  bool at_line_start = true;
  while (reached < end && std::fgets(line, sizeof line, maps)) {
    const bool whole = at_line_start;
    at_line_start = std::strchr(line, '\n') != nullptr;
    unsigned long long first = 0, last = 0;
    char protection[5] = {};
    if (!whole || std::sscanf(line, "%llx-%llx %4s", &first, &last, protection) != 3) continue;
    if (last <= reached) continue;
    if (first > reached || protection[0] != 'r' || protection[1] != 'w') break;
    reached = last;
  }
  std::fclose(maps);
  return reached >= end;
}

bool is_freeable(const Region& region) {
  return region.kind == RegionKind::device || region.kind == RegionKind::managed || region.kind == RegionKind::pool;
}

/// The contexts whose queued work may still use a region: for memory of one context that context, else all.
void drain_users(Driver& driver, const Region& region) {
  for (auto& context : driver.contexts.all()) {
    if (region.context_id == 0 || context->id == region.context_id) context->synchronize();
  }
}

CUresult host_alloc(void** out, size_t bytes, unsigned flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    const unsigned known = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
    if (!out || (flags & ~known) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes == 0) {
      *out = nullptr;
      return CUDA_SUCCESS;
    }
    if (bytes > SIZE_MAX - kPageBytes) return CUDA_ERROR_OUT_OF_MEMORY;
    void* address =
        mmap(nullptr, round_up(bytes, kPageBytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Region region;
    region.begin = reinterpret_cast<uint64_t>(address);
    region.end = region.begin + bytes;
    region.kind = RegionKind::host_alloc;
    region.device = context.device;
    region.context_id = context.id;
    region.flags = flags | CU_MEMHOSTALLOC_DEVICEMAP;
    region.buffer_id = driver.map.next_buffer_id();
    driver.map.insert(std::move(region));
    *out = address;
    return CUDA_SUCCESS;
  });
}

}  // namespace

SG_API cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    check_capture_safe();
    if (!out || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    return allocate(driver, context, RegionKind::device, bytes, 0, out);
  });
}

SG_API cuMemAllocPitch_v2(CUdeviceptr* out, size_t* pitch, size_t width_bytes, size_t height, unsigned element_bytes) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || !pitch || width_bytes == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
    if (element_bytes != 4 && element_bytes != 8 && element_bytes != 16) return CUDA_ERROR_INVALID_VALUE;
    if (width_bytes > SIZE_MAX - kPitchBytes) return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t row_bytes = round_up(width_bytes, kPitchBytes);
    if (row_bytes > SIZE_MAX / height) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = allocate(driver, context, RegionKind::device, row_bytes * height, 0, out);
    if (result == CUDA_SUCCESS) *pitch = row_bytes;
    return result;
  });
}

SG_API cuMemFree_v2(CUdeviceptr address) {
  // The memory knows its context: none needs to be current.
  return with_driver([&](Driver& driver) -> CUresult {
    check_capture_safe();
    if (auto current = current_context()) {
      if (const int fault = current->fault.load()) return fault;
    }
    if (address == 0) return CUDA_SUCCESS;
    CUresult graphs = CUDA_SUCCESS;
    if (free_graph_memory(address, &graphs)) return graphs;
    auto region = driver.map.find(address);
    if (!region || region->begin != address || !is_freeable(*region) || region->free_pending) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    drain_users(driver, *region);
    auto removed = driver.map.remove(address);
    if (!removed) return CUDA_ERROR_INVALID_VALUE;  // another thread freed it meanwhile
    driver.release_regions({std::move(*removed)});
    return CUDA_SUCCESS;
  });
}

SG_API cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!free_bytes || !total_bytes) return CUDA_ERROR_INVALID_VALUE;
    const DeviceArena& arena = *driver.devices[context.device]->arena;
    *total_bytes = arena.capacity_bytes();
    *free_bytes = arena.capacity_bytes() - arena.used_bytes();
    return CUDA_SUCCESS;
  });
}

SG_API cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto region = driver.map.find(address);
    if (!region) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = region->begin;
    if (size) *size = region->size_bytes();
    return CUDA_SUCCESS;
  });
}

SG_API cuMemHostAlloc(void** out, size_t bytes, unsigned flags) { return host_alloc(out, bytes, flags); }
SG_API cuMemAllocHost_v2(void** out, size_t bytes) { return host_alloc(out, bytes, 0); }
SG_API cuMemAllocHost(void** out, unsigned bytes) { return host_alloc(out, bytes, 0); }

SG_API cuMemFreeHost(void* pointer) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    check_capture_safe();
    if (!pointer) return CUDA_SUCCESS;
    const auto address = reinterpret_cast<uint64_t>(pointer);
    auto region = driver.map.find(address);
    if (!region || region->begin != address || region->kind != RegionKind::host_alloc) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    for (auto& each : driver.contexts.all()) each->synchronize();
    auto removed = driver.map.remove(address);
    if (!removed) return CUDA_ERROR_INVALID_VALUE;
    driver.release_regions({std::move(*removed)});
    return context.fault.load();
  });
}

SG_API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    const auto begin = reinterpret_cast<uint64_t>(pointer);
    if (!pointer || bytes == 0 || bytes > UINT64_MAX - begin || flags > 15) return CUDA_ERROR_INVALID_VALUE;
    // Nothing here could hold a kernel off read-only memory, and the device attributes say so.
    if (flags & (CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY)) return CUDA_ERROR_NOT_SUPPORTED;
    const std::vector<Region> there = driver.map.between(begin, begin + bytes);
    if (!there.empty()) {
      return there.front().kind == RegionKind::host_registered ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
                                                               : CUDA_ERROR_INVALID_VALUE;
    }
    if (!host_range_writable(begin, begin + bytes)) return CUDA_ERROR_INVALID_VALUE;
    Region region;
    region.begin = begin;
    region.end = begin + bytes;
    region.kind = RegionKind::host_registered;
    region.device = context.device;
    region.context_id = context.id;
    region.flags = flags | CU_MEMHOSTALLOC_DEVICEMAP;
    region.buffer_id = driver.map.next_buffer_id();
    return driver.map.insert(std::move(region)) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  });
}
SG_ALIAS(cuMemHostRegister, cuMemHostRegister_v2);

SG_API cuMemHostUnregister(void* pointer) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    const auto address = reinterpret_cast<uint64_t>(pointer);
    if (!pointer) return CUDA_ERROR_INVALID_VALUE;
    auto region = driver.map.find(address);
    if (!region) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    if (region->kind != RegionKind::host_registered || region->begin != address) return CUDA_ERROR_INVALID_VALUE;
    for (auto& each : driver.contexts.all()) each->synchronize();
    auto removed = driver.map.remove(address);
    if (!removed) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    driver.release_regions({std::move(*removed)});
    return context.fault.load();
  });
}

SG_API cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* pointer, unsigned flags) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    const auto address = reinterpret_cast<uint64_t>(pointer);
    if (!out || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    auto region = driver.map.find(address);
    if (!region || !region->is_host()) return CUDA_ERROR_INVALID_VALUE;
    *out = address;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemHostGetFlags(unsigned* flags, void* pointer) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto region = driver.map.find(reinterpret_cast<uint64_t>(pointer));
    if (!flags || !region) return CUDA_ERROR_INVALID_VALUE;
    const bool managed = region->kind == RegionKind::managed;
    if (!managed && !region->is_host()) return CUDA_ERROR_INVALID_VALUE;
    *flags = managed ? unsigned{CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP} : region->flags;
    return CUDA_SUCCESS;
  });
}
