// Stream-ordered allocation. Memory is taken at the call and given back when the free's turn in its stream comes; what
// a pool keeps for later is a charge to the device, not a place.
#include <algorithm>
#include <cstring>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

std::shared_ptr<MemoryPool> current_pool(Driver& driver, int device) {
  Device& owner = *driver.devices[device];
  std::lock_guard lock(owner.pool_mutex);
  return owner.current_pool;
}

uint64_t take_memory(Driver& driver, MemoryPool& pool, size_t bytes, size_t* charged_bytes) {
  std::lock_guard lock(pool.mutex);
  if (pool.max_size_bytes && (bytes > pool.max_size_bytes || pool.held_bytes > pool.max_size_bytes - bytes)) return 0;
  DeviceArena& arena = *driver.devices[pool.device]->arena;
  // Idle memory of the pool goes first; the lock keeps others of the pool from taking it in between.
  const uint64_t idle_bytes = std::min<uint64_t>(pool.idle_bytes, bytes);
  arena.uncharge(idle_bytes);
  pool.idle_bytes -= idle_bytes;
  const uint64_t address = arena.allocate(bytes, charged_bytes);
  if (address == 0) {
    if (arena.charge(idle_bytes)) pool.idle_bytes += idle_bytes;
    return 0;
  }
  pool.used_bytes += bytes;
  pool.held_bytes += *charged_bytes;
  pool.used_high_bytes = std::max(pool.used_high_bytes, pool.used_bytes);
  pool.reserved_high_bytes = std::max(pool.reserved_high_bytes, pool.reserved_bytes());
  return address;
}

CUresult allocate(CUdeviceptr* out, size_t bytes, CUmemoryPool pool_handle, bool default_pool, CUstream stream_handle,
                  bool per_thread) {
  return with_stream(stream_handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (bytes == 0) {
      *out = 0;
      return CUDA_SUCCESS;
    }
    auto pool = default_pool ? current_pool(driver, context.device) : driver.pools.get(pool_handle);
    if (!pool) return CUDA_ERROR_INVALID_VALUE;
    if (is_recorded(stream)) return capture_allocation(stream, bytes, out);
    if (const CUresult injected = allocation_fault(bytes)) return injected;
    Region region;
    region.begin = take_memory(driver, *pool, bytes, &region.charged_bytes);
    if (region.begin == 0) {
      // Frees may be queued: they count before this allocation fails.
      for (auto& each : driver.contexts.all()) each->synchronize();
      driver.trim_pools();
      region.begin = take_memory(driver, *pool, bytes, &region.charged_bytes);
      if (region.begin == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    region.end = region.begin + bytes;
    region.kind = RegionKind::pool;
    region.device = pool->device;
    region.buffer_id = driver.map.next_buffer_id();
    {
      std::lock_guard lock(pool->mutex);
      region.read_mask = region.write_mask = pool->access_mask;
    }
    region.pool = std::move(pool);
    *out = region.begin;
    driver.map.insert(std::move(region));
    return CUDA_SUCCESS;
  });
}

CUresult free_async(CUdeviceptr address, CUstream stream_handle, bool per_thread) {
  return with_stream(stream_handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    if (address == 0) return CUDA_SUCCESS;
    if (is_recorded(stream)) return capture_free(stream, address);
    CUresult graphs = CUDA_SUCCESS;
    if (free_graph_memory(address, &graphs)) return graphs;
    bool claimed = false;
    driver.map.update(address, false, [&](Region& region) {
      const bool freeable = region.kind == RegionKind::pool || region.kind == RegionKind::device;
      if (region.begin != address || !freeable || region.free_pending) return;
      region.free_pending = claimed = true;
    });
    if (!claimed) return CUDA_ERROR_INVALID_VALUE;
    StreamOp op;
    op.even_after_fault = true;
    op.run = [&driver, address] {
      if (auto region = driver.map.remove(address)) driver.release_regions({std::move(*region)});
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

/// f(driver, pool)
template <class F>
CUresult with_pool(CUmemoryPool handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto pool = driver.pools.get(handle);
    return pool ? f(driver, pool) : CUDA_ERROR_INVALID_VALUE;
  });
}

}  // namespace

SG_API cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream s) {
  return allocate(out, bytes, nullptr, true, s, false);
}
SG_API cuMemAllocAsync_ptsz(CUdeviceptr* out, size_t bytes, CUstream s) {
  return allocate(out, bytes, nullptr, true, s, true);
}
SG_API cuMemAllocFromPoolAsync(CUdeviceptr* out, size_t bytes, CUmemoryPool pool, CUstream s) {
  return allocate(out, bytes, pool, false, s, false);
}
SG_API cuMemAllocFromPoolAsync_ptsz(CUdeviceptr* out, size_t bytes, CUmemoryPool pool, CUstream s) {
  return allocate(out, bytes, pool, false, s, true);
}
SG_API cuMemFreeAsync(CUdeviceptr address, CUstream s) { return free_async(address, s, false); }
SG_API cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream s) { return free_async(address, s, true); }

SG_API cuDeviceGetDefaultMemPool(CUmemoryPool* out, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUmemoryPool>(device->default_pool->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetMemPool(CUmemoryPool* out, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out || !driver.device(dev)) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUmemoryPool>(current_pool(driver, dev)->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceSetMemPool(CUdevice dev, CUmemoryPool handle) {
  return with_pool(handle, [&](Driver& driver, const auto& pool) -> CUresult {
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    if (pool->device != dev) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(device->pool_mutex);
    device->current_pool = pool;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemPoolCreate(CUmemoryPool* out, const CUmemPoolProps* props) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
    if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    if (props->handleTypes != CU_MEM_HANDLE_TYPE_NONE) return CUDA_ERROR_NOT_SUPPORTED;
    if (!driver.device(props->location.id)) return CUDA_ERROR_INVALID_VALUE;
    auto pool = std::make_shared<MemoryPool>();
    pool->device = props->location.id;
    pool->access_mask = 1u << pool->device;
    pool->max_size_bytes = props->maxSize;
    *out = to_handle<CUmemoryPool>(driver.pools.add(std::move(pool)));
    return CUDA_SUCCESS;
  });
}

SG_API cuMemPoolDestroy(CUmemoryPool handle) {
  return with_pool(handle, [&](Driver& driver, const auto& pool) -> CUresult {
    if (pool->is_default) return CUDA_ERROR_INVALID_VALUE;
    Device& device = *driver.devices[pool->device];
    std::lock_guard lock(device.pool_mutex);
    if (device.current_pool == pool) device.current_pool = device.default_pool;
    driver.pools.take(handle);  // allocations keep the pool until they are freed
    std::lock_guard pool_lock(pool->mutex);
    pool->destroyed = true;
    pool->trim(*device.arena, 0);
    return CUDA_SUCCESS;
  });
}

SG_API cuMemPoolTrimTo(CUmemoryPool handle, size_t keep_bytes) {
  return with_pool(handle, [&](Driver& driver, const auto& pool) -> CUresult {
    std::lock_guard lock(pool->mutex);
    pool->trim(*driver.devices[pool->device]->arena, keep_bytes);
    return CUDA_SUCCESS;
  });
}

SG_API cuMemPoolGetAttribute(CUmemoryPool handle, int attribute, void* value) {
  return with_pool(handle, [&](Driver&, const auto& pool) -> CUresult {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(pool->mutex);
    const auto give = [value](uint64_t number) {
      std::memcpy(value, &number, sizeof number);
      return CUDA_SUCCESS;
    };
    switch (attribute) {
      case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        std::memcpy(value, &pool->reuse[attribute], sizeof(int));
        return CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        return give(pool->release_threshold_bytes);
      case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        return give(pool->reserved_bytes());
      case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        return give(pool->reserved_high_bytes);
      case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        return give(pool->used_bytes);
      case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        return give(pool->used_high_bytes);
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  });
}

SG_API cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void* value) {
  return with_pool(handle, [&](Driver&, const auto& pool) -> CUresult {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(pool->mutex);
    uint64_t number = 0;
    switch (attribute) {
      case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
      case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        std::memcpy(&pool->reuse[attribute], value, sizeof(int));
        return CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        std::memcpy(&pool->release_threshold_bytes, value, sizeof(uint64_t));
        return CUDA_SUCCESS;
      case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        std::memcpy(&number, value, sizeof number);
        if (number != 0) return CUDA_ERROR_INVALID_VALUE;  // a high-water mark can only be reset
        if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
          pool->used_high_bytes = pool->used_bytes;
        } else {
          pool->reserved_high_bytes = pool->reserved_bytes();
        }
        return CUDA_SUCCESS;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  });
}

SG_API cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* desc, size_t count) {
  return with_pool(handle, [&](Driver& driver, const auto& pool) -> CUresult {
    if (!desc || count == 0 || count > kMaxDevices) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; ++i) {
      if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
      if (!driver.device(desc[i].location.id)) return CUDA_ERROR_INVALID_DEVICE;
      if (desc[i].flags != 0 && desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
      if (desc[i].location.id == pool->device && desc[i].flags == 0) return CUDA_ERROR_INVALID_DEVICE;
    }
    uint32_t mask = 0;
    {
      std::lock_guard lock(pool->mutex);
      for (size_t i = 0; i < count; ++i) {
        const uint32_t bit = 1u << desc[i].location.id;
        pool->access_mask = desc[i].flags ? pool->access_mask | bit : pool->access_mask & ~bit;
      }
      mask = pool->access_mask;
    }
    // Access is the pool's: it also changes for what is allocated already.
    for (const Region& region : driver.map.between(0, UINT64_MAX)) {
      if (region.pool != pool) continue;
      driver.map.update(region.begin, true, [&](Region& changed) { changed.read_mask = changed.write_mask = mask; });
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuMemPoolGetAccess(int* flags, CUmemoryPool handle, CUmemLocation* location) {
  return with_pool(handle, [&](Driver& driver, const auto& pool) -> CUresult {
    if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(location->id)) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(pool->mutex);
    *flags = pool->access_mask >> location->id & 1 ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
  });
}
