// Managed memory: ordinary pages of the process, in reach of the host and of every device. Advice and prefetching move
// nothing; what a program says is checked and remembered for cuMemRangeGetAttribute.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "api.h"
#include "capture.h"

namespace sg {

struct Advice {
  CUmemLocation preferred{kNowhere, kNoDevice};
  CUmemLocation prefetched{kNowhere, kNoDevice};
  std::set<int> accessed_by;
  bool read_mostly = false;

  static constexpr CUmemLocationType kNowhere{};
  static constexpr int kNoDevice = -2;
};

/// First page -> what holds from there to the next entry.
struct ManagedAdvice {
  std::mutex mutex;
  std::map<uint64_t, Advice> from;
};

void* allocate_managed(Driver& driver, size_t bytes, const ManagedOwner& owner) {
  if (bytes > SIZE_MAX - kPageBytes) return nullptr;
  // More than the device has is allowed, and untouched pages cost nothing.
  void* address = mmap(nullptr, round_up(bytes, kPageBytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  Region region;
  region.begin = reinterpret_cast<uint64_t>(address);
  region.end = region.begin + bytes;
  region.kind = RegionKind::managed;
  region.device = owner.device;
  region.context_id = owner.context_id;
  region.flags = owner.flags;
  region.buffer_id = driver.map.next_buffer_id();
  region.advice = std::make_shared<ManagedAdvice>();
  driver.map.insert(std::move(region));
  return address;
}

}  // namespace sg

using namespace sg;

namespace {

constexpr int kHostDevice = -1;
enum LocationType : int { kDevice = 1, kHost = 2, kNuma = 3, kNumaCurrent = 4 };

std::optional<Region> managed_region(Driver& driver, CUdeviceptr address, size_t bytes) {
  auto region = driver.map.find(address);
  if (!region || region->kind != RegionKind::managed || bytes == 0 || bytes > region->end - address) return {};
  return region;
}

bool same(const CUmemLocation& a, const CUmemLocation& b) { return a.type == b.type && a.id == b.id; }

/// The map's entry that begins at `at`, made where there is none.
std::map<uint64_t, Advice>::iterator entry_at(std::map<uint64_t, Advice>& from, uint64_t at) {
  auto next = from.lower_bound(at);
  if (next != from.end() && next->first == at) return next;
  const Advice before = next == from.begin() ? Advice{} : std::prev(next)->second;
  return from.emplace_hint(next, at, before);
}

template <class F>
void change(const Region& region, CUdeviceptr address, size_t bytes, F f) {
  std::lock_guard lock(region.advice->mutex);
  auto& from = region.advice->from;
  entry_at(from, round_up(address + bytes, kPageBytes));
  const uint64_t end = round_up(address + bytes, kPageBytes);
  for (auto it = entry_at(from, address & ~uint64_t{kPageBytes - 1}); it->first != end; ++it) f(it->second);
}

CUmemLocation location_of(CUdevice device) {
  if (device == kHostDevice) return {CUmemLocationType{kHost}, 0};
  return {CUmemLocationType{kDevice}, device};
}

CUresult check_location(Driver& driver, CUmemLocation location, bool numa) {
  switch (static_cast<int>(location.type)) {
    case kDevice:
      return driver.device(location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    case kHost:
      return CUDA_SUCCESS;
    case kNuma:
    case kNumaCurrent:
      return numa ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult advise(CUdeviceptr address, size_t bytes, int advice, CUmemLocation location) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    enum { kSetReadMostly = 1, kUnsetReadMostly, kSetPreferred, kUnsetPreferred, kSetAccessedBy, kUnsetAccessedBy };
    if (advice < kSetReadMostly || advice > kUnsetAccessedBy) return CUDA_ERROR_INVALID_VALUE;
    if (advice == kSetPreferred || advice >= kSetAccessedBy) {
      const CUresult found = check_location(driver, location, advice == kSetPreferred);
      if (found != CUDA_SUCCESS) return found;
    }
    auto region = managed_region(driver, address, bytes);
    if (!region) return CUDA_ERROR_INVALID_VALUE;
    const int reader = static_cast<int>(location.type) == kDevice ? location.id : kHostDevice;
    change(*region, address, bytes, [&](Advice& a) {
      if (advice == kSetReadMostly || advice == kUnsetReadMostly) a.read_mostly = advice == kSetReadMostly;
      if (advice == kSetPreferred) a.preferred = location;
      if (advice == kUnsetPreferred) a.preferred = {Advice::kNowhere, Advice::kNoDevice};
      if (advice == kSetAccessedBy) a.accessed_by.insert(reader);
      if (advice == kUnsetAccessedBy) a.accessed_by.erase(reader);
    });
    return CUDA_SUCCESS;
  });
}

CUresult prefetch(CUdeviceptr address, size_t bytes, CUmemLocation to, unsigned flags, CUstream s, bool per_thread) {
  return with_stream(s, per_thread, [&](Driver& driver, Context&, const auto& stream) -> CUresult {
    refuse_capture(stream);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    const CUresult found = check_location(driver, to, true);
    if (found != CUDA_SUCCESS) return found;
    auto region = managed_region(driver, address, bytes);
    if (!region) return CUDA_ERROR_INVALID_VALUE;
    change(*region, address, bytes, [&](Advice& a) { a.prefetched = to; });
    return CUDA_SUCCESS;
  });
}

struct Batch {
  const CUdeviceptr* addresses;
  const size_t* sizes;
  size_t count;
  unsigned long long flags;
  CUstream stream;
  bool per_thread;
};

CUresult check_batch(const Batch& b) {
  return with_stream(b.stream, b.per_thread, [&](Driver& driver, Context&, const auto& stream) -> CUresult {
    refuse_capture(stream);
    const bool legacy = from_handle(b.stream) == 1 || (b.stream == nullptr && !b.per_thread);
    if (!b.addresses || !b.sizes || b.count == 0 || b.flags != 0 || legacy) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < b.count; ++i) {
      if (!managed_region(driver, b.addresses[i], b.sizes[i])) return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
  });
}

CUresult prefetch_batch(const Batch& b, const CUmemLocation* to, const size_t* firsts, size_t locations) {
  CUresult result = check_batch(b);
  if (result != CUDA_SUCCESS) return result;
  if (!to || !firsts || locations == 0 || locations > b.count || firsts[0] != 0) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < locations; ++i) {
    if (firsts[i] >= b.count || (i > 0 && firsts[i] <= firsts[i - 1])) return CUDA_ERROR_INVALID_VALUE;
    result = with_driver([&](Driver& driver) { return check_location(driver, to[i], true); });
    if (result != CUDA_SUCCESS) return result;
  }
  size_t at = 0;
  for (size_t i = 0; i < b.count && result == CUDA_SUCCESS; ++i) {
    if (at + 1 < locations && firsts[at + 1] == i) ++at;
    result = prefetch(b.addresses[i], b.sizes[i], to[at], 0, b.stream, b.per_thread);
  }
  return result;
}

CUresult attach(CUstream handle, bool per_thread, CUdeviceptr address, size_t bytes, unsigned flags) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context&, const auto& stream) -> CUresult {
    refuse_capture(stream);
    constexpr unsigned kSingle = 4;
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != kSingle) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (flags == kSingle && !per_thread && from_handle(handle) <= 1) return CUDA_ERROR_INVALID_VALUE;
    auto region = driver.map.find(address);
    if (!region || region->kind != RegionKind::managed) return CUDA_ERROR_INVALID_VALUE;
    return bytes == 0 || bytes == region->size_bytes() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

/// What holds for every page of the range.
Advice common_advice(const Region& region, CUdeviceptr address, size_t bytes) {
  std::lock_guard lock(region.advice->mutex);
  const auto& from = region.advice->from;
  auto it = from.upper_bound(address);
  Advice common = it == from.begin() ? Advice{} : std::prev(it)->second;
  for (; it != from.end() && it->first < address + bytes; ++it) {
    const Advice& a = it->second;
    if (!same(common.preferred, a.preferred)) common.preferred = {Advice::kNowhere, Advice::kNoDevice};
    if (!same(common.prefetched, a.prefetched)) common.prefetched = {Advice::kNowhere, Advice::kNoDevice};
    for (auto who = common.accessed_by.begin(); who != common.accessed_by.end();) {
      who = a.accessed_by.count(*who) ? std::next(who) : common.accessed_by.erase(who);
    }
    common.read_mostly = common.read_mostly && a.read_mostly;
  }
  return common;
}

int device_of(const CUmemLocation& location) {
  if (static_cast<int>(location.type) == kDevice) return location.id;
  return location.type == Advice::kNowhere ? Advice::kNoDevice : kHostDevice;
}

CUresult write_accessed_by(void* data, size_t bytes, const Advice& advice) {
  if (bytes == 0 || bytes % sizeof(int) != 0) return CUDA_ERROR_INVALID_VALUE;
  std::vector<int> devices(bytes / sizeof(int), Advice::kNoDevice);
  size_t at = 0;
  for (const int device : advice.accessed_by) {
    if (device >= 0 && at < devices.size()) devices[at++] = device;
  }
  if (advice.accessed_by.count(kHostDevice) && at < devices.size()) devices[at] = kHostDevice;
  std::memcpy(data, devices.data(), bytes);
  return CUDA_SUCCESS;
}

CUresult write_attribute(void* data, size_t bytes, int attribute, const Advice& advice) {
  enum { kReadMostly = 1, kPreferred, kAccessedBy, kPrefetched, kPreferredType, kPreferredId, kPrefetchedType };
  constexpr int kPrefetchedId = 8;
  if (!data) return CUDA_ERROR_INVALID_VALUE;
  int value = 0;
  switch (attribute) {
    case kReadMostly:
      value = advice.read_mostly;
      break;
    case kPreferred:
      value = device_of(advice.preferred);
      break;
    case kAccessedBy:
      return write_accessed_by(data, bytes, advice);
    case kPrefetched:
      value = device_of(advice.prefetched);
      break;
    case kPreferredType:
      value = static_cast<int>(advice.preferred.type);
      break;
    case kPreferredId:
      value = advice.preferred.id;
      break;
    case kPrefetchedType:
      value = static_cast<int>(advice.prefetched.type);
      break;
    case kPrefetchedId:
      value = advice.prefetched.id;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (bytes != sizeof value) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

}  // namespace

SG_API cuMemAllocManaged(CUdeviceptr* out, size_t bytes, unsigned flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    check_capture_safe();
    if (!out || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult injected = allocation_fault(bytes)) return injected;
    const void* address = allocate_managed(driver, bytes, {context.device, context.id, flags});
    if (!address) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = reinterpret_cast<uint64_t>(address);
    return CUDA_SUCCESS;
  });
}

SG_API cuMemAdvise(CUdeviceptr address, size_t bytes, int advice, CUdevice device) {
  return advise(address, bytes, advice, location_of(device));
}
SG_API cuMemAdvise_v2(CUdeviceptr address, size_t bytes, int advice, CUmemLocation location) {
  return advise(address, bytes, advice, location);
}
SG_API cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device, CUstream s) {
  return prefetch(address, bytes, location_of(device), 0, s, false);
}
SG_API cuMemPrefetchAsync_ptsz(CUdeviceptr address, size_t bytes, CUdevice device, CUstream s) {
  return prefetch(address, bytes, location_of(device), 0, s, true);
}
SG_API cuMemPrefetchAsync_v2(CUdeviceptr address, size_t bytes, CUmemLocation to, unsigned flags, CUstream s) {
  return prefetch(address, bytes, to, flags, s, false);
}
SG_API cuMemPrefetchAsync_v2_ptsz(CUdeviceptr address, size_t bytes, CUmemLocation to, unsigned flags, CUstream s) {
  return prefetch(address, bytes, to, flags, s, true);
}

#define SG_BATCHES(suffix, per_thread)                                                                                 \
  SG_API cuMemPrefetchBatchAsync##suffix(CUdeviceptr* addresses, size_t* sizes, size_t count, CUmemLocation* to,       \
                                         size_t* firsts, size_t locations, unsigned long long flags, CUstream s) {     \
    return prefetch_batch({addresses, sizes, count, flags, s, per_thread}, to, firsts, locations);                     \
  }                                                                                                                    \
  SG_API cuMemDiscardBatchAsync##suffix(CUdeviceptr* addresses, size_t* sizes, size_t count, unsigned long long flags, \
                                        CUstream s) {                                                                  \
    return check_batch({addresses, sizes, count, flags, s, per_thread});                                               \
  }                                                                                                                    \
  SG_API cuMemDiscardAndPrefetchBatchAsync##suffix(CUdeviceptr* addresses, size_t* sizes, size_t count,                \
                                                   CUmemLocation* to, size_t* firsts, size_t locations,                \
                                                   unsigned long long flags, CUstream s) {                             \
    return prefetch_batch({addresses, sizes, count, flags, s, per_thread}, to, firsts, locations);                     \
  }                                                                                                                    \
  SG_API cuStreamAttachMemAsync##suffix(CUstream s, CUdeviceptr address, size_t bytes, unsigned flags) {               \
    return attach(s, per_thread, address, bytes, flags);                                                               \
  }
SG_BATCHES(, false)
SG_BATCHES(_ptsz, true)

SG_API cuMemRangeGetAttributes(void** data, size_t* sizes, int* attributes, size_t count, CUdeviceptr address,
                               size_t bytes) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!data || !sizes || !attributes || count == 0) return CUDA_ERROR_INVALID_VALUE;
    auto region = managed_region(driver, address, bytes);
    if (!region) return CUDA_ERROR_INVALID_VALUE;
    const Advice advice = common_advice(*region, address, bytes);
    for (size_t i = 0; i < count; ++i) {
      const CUresult result = write_attribute(data[i], sizes[i], attributes[i], advice);
      if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuMemRangeGetAttribute(void* data, size_t bytes, int attribute, CUdeviceptr address, size_t range_bytes) {
  return cuMemRangeGetAttributes(&data, &bytes, &attribute, 1, address, range_bytes);
}
