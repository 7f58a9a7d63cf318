// Virtual memory management: reservations, physical memory, mappings and their access rights.
#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "api.h"

using namespace sg;

namespace {

struct Reservations {
  std::mutex mutex;
  std::map<uint64_t, uint64_t> ranges;  // begin -> end

  bool contains(uint64_t begin, uint64_t end) {
    auto it = ranges.upper_bound(begin);
    return it != ranges.begin() && begin >= std::prev(it)->first && end <= std::prev(it)->second;
  }
};

Reservations& reservations() {
  static auto* all = new Reservations;
  return *all;
}

}  // namespace

bool sg::reservation_around(uint64_t address, uint64_t* begin, uint64_t* end) {
  auto& all = reservations();
  std::lock_guard lock(all.mutex);
  auto it = all.ranges.upper_bound(address);
  if (it == all.ranges.begin() || address >= std::prev(it)->second) return false;
  *begin = std::prev(it)->first;
  *end = std::prev(it)->second;
  return true;
}

namespace {

bool granular(uint64_t value) { return value % kVmmGranularityBytes == 0; }

/// Address space at `hint` if it is free there, else anywhere; nullptr if there is none.
void* reserve(uint64_t hint, size_t bytes, size_t align_bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (hint != 0 && hint % align_bytes == 0) {
    void* at = mmap(reinterpret_cast<void*>(hint), bytes, PROT_NONE, kFlags | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == reinterpret_cast<void*>(hint)) return at;
    if (at != MAP_FAILED) munmap(at, bytes);  // a kernel that does not know the flag takes it as a hint
  }
  void* slack = mmap(nullptr, bytes + align_bytes, PROT_NONE, kFlags, -1, 0);
  if (slack == MAP_FAILED) return nullptr;
  const auto first = reinterpret_cast<uint64_t>(slack);
  const uint64_t begin = round_up(first, align_bytes);
  if (begin > first) munmap(slack, begin - first);
  const uint64_t tail = first + align_bytes - begin;
  if (tail > 0) munmap(reinterpret_cast<void*>(begin + bytes), tail);
  return reinterpret_cast<void*>(begin);
}

CUresult check_prop(Driver& driver, const CUmemAllocationProp* prop) {
  if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED) return CUDA_ERROR_INVALID_VALUE;
  if (prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  if (prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return prop->location.type > CU_MEM_LOCATION_TYPE_DEVICE ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
  }
  return driver.device(prop->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

uint64_t add(Driver& driver, std::shared_ptr<PhysicalMemory> memory) {
  auto object = std::make_shared<MemoryHandle>();
  PhysicalMemory& physical = *memory;
  object->memory = std::move(memory);
  physical.handle = driver.memory_handles.add(std::move(object));
  return physical.handle;
}

/// Under the mutex: a handle that somebody holds.
std::shared_ptr<MemoryHandle> held(Driver& driver, CUmemGenericAllocationHandle handle) {
  auto object = driver.memory_handles.get(handle);
  return object && object->references > 0 ? object : nullptr;
}

/// Under the mutex: one whose memory is there, held or mapped.
std::shared_ptr<MemoryHandle> existing(Driver& driver, CUmemGenericAllocationHandle handle) {
  auto object = driver.memory_handles.get(handle);
  return object && (object->references > 0 || object->mappings > 0) ? object : nullptr;
}

/// Under the mutex.
void forget_if_unused(Driver& driver, const MemoryHandle& object) {
  if (object.references == 0 && object.mappings == 0) driver.memory_handles.take(object.handle);
}

// The name of a memory's file ends with its device: it is all that an importer in another process learns of it.
const char kMemoryName[] = "softgpu-";

/// The device whose memory the file is, or -1.
int device_of(int fd) {
  char link[64] = {};
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (readlink(path.c_str(), link, sizeof link - 1) < 0) return -1;
  int device = -1;
  return sscanf(link, "/memfd:softgpu-%2d", &device) == 1 ? device : -1;
}

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

}  // namespace

SG_API cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* prop, int option) {
  return with_driver([&](Driver&) -> CUresult {
    if (!bytes || !prop || option < 0 || option > 1) return CUDA_ERROR_INVALID_VALUE;
    *bytes = kVmmGranularityBytes;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemAddressReserve(CUdeviceptr* out, size_t bytes, size_t alignment, CUdeviceptr hint,
                           unsigned long long flags) {
  return with_driver([&](Driver&) -> CUresult {
    if (!out || bytes == 0 || !granular(bytes) || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if ((alignment & (alignment - 1)) != 0) return CUDA_ERROR_INVALID_VALUE;
    const size_t align_bytes = std::max<size_t>(alignment, kVmmGranularityBytes);
    if (bytes > SIZE_MAX - align_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    void* at = reserve(hint, bytes, align_bytes);
    if (!at) return CUDA_ERROR_OUT_OF_MEMORY;
    auto& all = reservations();
    std::lock_guard lock(all.mutex);
    *out = reinterpret_cast<uint64_t>(at);
    all.ranges[*out] = *out + bytes;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto& all = reservations();
    std::lock_guard lock(all.mutex);
    auto it = all.ranges.find(address);
    if (it == all.ranges.end() || bytes != it->second - it->first) return CUDA_ERROR_INVALID_VALUE;
    if (driver.map.overlaps(it->first, it->second)) return CUDA_ERROR_INVALID_VALUE;  // still mapped
    driver.gate.synchronize();
    munmap(reinterpret_cast<void*>(address), bytes);
    all.ranges.erase(it);
    return CUDA_SUCCESS;
  });
}

SG_API cuMemCreate(CUmemGenericAllocationHandle* out, size_t bytes, const CUmemAllocationProp* prop,
                   unsigned long long flags) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out || bytes == 0 || !granular(bytes) || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    const CUresult checked = check_prop(driver, prop);
    if (checked != CUDA_SUCCESS) return checked;
    DeviceArena* arena = driver.device(prop->location.id)->arena.get();
    if (const CUresult injected = allocation_fault(bytes)) return injected;
    if (!arena->charge(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    auto memory = std::make_shared<PhysicalMemory>();
    memory->size_bytes = bytes;
    memory->device = prop->location.id;
    memory->exportable = prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    memory->charged_to = arena;
    // Through syscall, because glibc has memfd_create only since 2.27.
    const std::string name = kMemoryName + std::to_string(prop->location.id);
    memory->fd = static_cast<int>(syscall(SYS_memfd_create, name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (memory->fd < 0 || ftruncate(memory->fd, static_cast<off_t>(bytes)) != 0 ||
        fcntl(memory->fd, F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0) {
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = add(driver, std::move(memory));
    return CUDA_SUCCESS;
  });
}

SG_API cuMemRelease(CUmemGenericAllocationHandle handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::lock_guard lock(reservations().mutex);
    auto object = held(driver, handle);
    if (!object) return CUDA_ERROR_INVALID_VALUE;
    --object->references;  // the memory itself lives until its last mapping goes
    forget_if_unused(driver, *object);
    return CUDA_SUCCESS;
  });
}

SG_API cuMemMap(CUdeviceptr address, size_t bytes, size_t offset_bytes, CUmemGenericAllocationHandle handle,
                unsigned long long flags) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (flags != 0 || bytes == 0 || !granular(address)) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > UINT64_MAX - address) return CUDA_ERROR_INVALID_VALUE;
    auto& all = reservations();
    std::lock_guard lock(all.mutex);
    auto object = existing(driver, handle);
    if (!object) return CUDA_ERROR_INVALID_VALUE;
    const auto& memory = object->memory;
    // A part of the memory is no mapping that the API knows; whole granules are an extension of this driver.
    if (!granular(bytes) || !granular(offset_bytes) || offset_bytes > memory->size_bytes ||
        bytes > memory->size_bytes - offset_bytes) {
      return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!all.contains(address, address + bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (driver.map.overlaps(address, address + bytes)) return CUDA_ERROR_INVALID_VALUE;
    void* at = mmap(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory->fd,
                    static_cast<off_t>(offset_bytes));
    if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Region region;
    region.begin = address;
    region.end = address + bytes;
    region.kind = RegionKind::vmm;
    region.device = memory->device;
    region.buffer_id = driver.map.next_buffer_id();
    region.physical = memory;
    region.physical_offset_bytes = offset_bytes;
    driver.map.insert(std::move(region));
    ++object->mappings;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemUnmap(CUdeviceptr address, size_t bytes) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (bytes == 0 || !granular(address) || !granular(bytes) || bytes > UINT64_MAX - address) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    auto& all = reservations();
    std::lock_guard lock(all.mutex);
    const std::vector<Region> mapped = driver.map.between(address, address + bytes);
    if (mapped.empty() && all.contains(address, address + bytes)) return CUDA_SUCCESS;
    if (mapped.empty() || !driver.map.covers(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (mapped.front().begin != address || mapped.back().end != address + bytes) return CUDA_ERROR_INVALID_VALUE;
    for (const Region& region : mapped) {
      if (region.kind != RegionKind::vmm) return CUDA_ERROR_INVALID_VALUE;
    }
    // No waiting for running work, as in the real driver: reclaim() leaves harmless pages behind.
    for (const Region& region : mapped) {
      auto removed = driver.map.remove(region.begin);
      if (!removed) continue;
      driver.reclaim(*removed);
      auto object = driver.memory_handles.get(removed->physical->handle);
      --object->mappings;
      forget_if_unused(driver, *object);
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* desc, size_t count) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!desc || count == 0 || count > kMaxDevices || bytes == 0 || bytes > UINT64_MAX - address) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (!granular(address) || !granular(bytes) || !driver.map.covers(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
    const std::vector<Region> mapped = driver.map.between(address, address + bytes);
    for (const Region& region : mapped) {
      if (region.kind != RegionKind::vmm) return CUDA_ERROR_INVALID_VALUE;
    }
    if (mapped.front().begin != address || mapped.back().end != address + bytes) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; ++i) {
      if (desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
        if (!driver.device(desc[i].location.id)) return CUDA_ERROR_INVALID_VALUE;
      } else if (desc[i].location.type != CU_MEM_LOCATION_TYPE_HOST) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      if (desc[i].flags != 0 && desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
          desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
        return CUDA_ERROR_INVALID_VALUE;
      }
    }
    for (const Region& region : mapped) {
      driver.map.update(region.begin, true, [&](Region& changed) {
        for (size_t i = 0; i < count; ++i) {
          if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) continue;
          const uint32_t bit = 1u << desc[i].location.id;
          changed.read_mask = desc[i].flags & 1 ? changed.read_mask | bit : changed.read_mask & ~bit;
          changed.write_mask = desc[i].flags & 2 ? changed.write_mask | bit : changed.write_mask & ~bit;
        }
      });
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(location->id)) return CUDA_ERROR_INVALID_DEVICE;
    auto region = driver.map.find(address);
    if (!region || region->kind != RegionKind::vmm) return CUDA_ERROR_INVALID_VALUE;
    const uint32_t bit = 1u << location->id;
    *flags = region->write_mask & bit  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
             : region->read_mask & bit ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                       : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* out, void* address) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(reservations().mutex);
    auto region = driver.map.find(from_handle(address));
    if (!region || region->kind != RegionKind::vmm) return CUDA_ERROR_INVALID_VALUE;
    ++driver.memory_handles.get(region->physical->handle)->references;
    *out = region->physical->handle;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* prop, CUmemGenericAllocationHandle handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::lock_guard lock(reservations().mutex);
    auto object = held(driver, handle);
    if (!prop || !object) return CUDA_ERROR_INVALID_VALUE;
    *prop = CUmemAllocationProp{};
    prop->type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop->requestedHandleTypes = object->memory->exportable && !object->memory->imported
                                     ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                                     : CU_MEM_HANDLE_TYPE_NONE;
    prop->location = {CU_MEM_LOCATION_TYPE_DEVICE, object->memory->device};
    return CUDA_SUCCESS;
  });
}

SG_API cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle, int type,
                                    unsigned long long flags) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::lock_guard lock(reservations().mutex);
    auto object = held(driver, handle);
    if (!out || !object || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
    if (!object->memory->exportable) return CUDA_ERROR_INVALID_VALUE;
    const int fd = fcntl(object->memory->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    *static_cast<int*>(out) = fd;
    return CUDA_SUCCESS;
  });
}

SG_API cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* out, void* os_handle, int type) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
    // The descriptor itself is passed as the pointer. Only a memfd that cannot shrink is safe to map.
    const int given = static_cast<int>(reinterpret_cast<intptr_t>(os_handle));
    struct stat status{};
    const int seals = fcntl(given, F_GET_SEALS);
    if (seals < 0 || (seals & kSeals) != kSeals || fstat(given, &status) != 0 || status.st_size <= 0 ||
        !granular(static_cast<uint64_t>(status.st_size))) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    auto memory = std::make_shared<PhysicalMemory>();
    memory->fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
    if (memory->fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    memory->size_bytes = static_cast<size_t>(status.st_size);
    memory->device = device_of(given);
    if (!driver.device(memory->device)) return CUDA_ERROR_INVALID_VALUE;
    memory->exportable = memory->imported = true;  // the exporter pays for it
    *out = add(driver, std::move(memory));
    return CUDA_SUCCESS;
  });
}
