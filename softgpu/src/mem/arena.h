// All memory that softgpu's kernels may touch. One MemoryMap for the process says which addresses exist, for which
// device; DeviceArena hands out a device's own memory; ExecGate makes taking memory away safe against running work.
//
// Invariant: memory is first removed from the map, then ExecGate::synchronize() is called, only then may its pages be
// unmapped. The pages of an arena are never unmapped.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <vector>

#include "sg.h"

namespace sg {

constexpr int kMaxDevices = 32;
constexpr size_t kVmmGranularityBytes = size_t{2} << 20;
constexpr size_t kPageBytes = 4096;
constexpr size_t kDriverUnitBytes = size_t{64} << 10;  // what a driver takes for itself is a multiple of it

inline uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

enum class RegionKind : uint8_t {
  device,           // cuMemAlloc
  module,           // globals and constants of a module
  pool,             // cuMemAllocAsync
  managed,          // cuMemAllocManaged
  vmm,              // cuMemMap
  host_alloc,       // cuMemHostAlloc
  host_registered,  // cuMemHostRegister
};

struct ManagedAdvice;
struct MemoryPool;
struct PhysicalMemory;

/// One allocation or mapping.
struct Region {
  uint64_t begin = 0;
  uint64_t end = 0;
  RegionKind kind = RegionKind::device;
  int device = 0;           // the owner; for host memory the device of the context that made it
  uint64_t context_id = 0;  // 0 = bound to no context
  unsigned flags = 0;       // as given to the call that made it
  uint64_t buffer_id = 0;   // never reused
  uint32_t read_mask = 0;   // devices whose kernels may read (VMM and pool memory)
  uint32_t write_mask = 0;
  bool sync_memops = false;
  bool free_pending = false;  // cuMemFreeAsync is queued: a second free is an error
  size_t charged_bytes = 0;
  std::shared_ptr<MemoryPool> pool;
  std::shared_ptr<ManagedAdvice> advice;  // of managed memory
  std::shared_ptr<PhysicalMemory> physical;
  size_t physical_offset_bytes = 0;

  size_t size_bytes() const { return end - begin; }
  bool is_host() const { return kind == RegionKind::host_alloc || kind == RegionKind::host_registered; }
};

/// Address -> region. Thread-safe.
class MemoryMap {
 public:
  /// False if the range touches a region that is there already.
  bool insert(Region region);
  std::optional<Region> find(uint64_t address) const;
  /// Cheap form for kernels: bounds only, when visible to `device`.
  bool find_visible(uint64_t address, int device, uint32_t peer_mask, Range* out) const;
  /// True when [address, address + bytes) is covered without a gap; `visible_to` >= 0 also asks for access.
  bool covers(uint64_t address, size_t bytes, int visible_to = -1) const;
  bool overlaps(uint64_t begin, uint64_t end) const;
  /// Takes the region that begins exactly at `begin` away and returns it.
  std::optional<Region> remove(uint64_t begin);
  /// Takes away all that `pick` chooses.
  std::vector<Region> remove_if(const std::function<bool(const Region&)>& pick);
  /// Changes the region that holds `address`. `shrinks` says that somebody may lose access. False: no such region.
  bool update(uint64_t address, bool shrinks, const std::function<void(Region&)>& change);
  std::vector<Region> between(uint64_t begin, uint64_t end) const;
  uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }
  const std::atomic<uint64_t>* epoch_counter() const { return &epoch_; }
  void bump_epoch() { epoch_.fetch_add(1, std::memory_order_acq_rel); }
  uint64_t next_buffer_id() { return next_buffer_id_.fetch_add(1); }

 private:
  const Region* locate(uint64_t address) const;

  mutable std::shared_mutex mutex_;
  std::map<uint64_t, Region> regions_;
  std::atomic<uint64_t> epoch_{1};
  std::atomic<uint64_t> next_buffer_id_{1};
};

/// Kernels and copies run inside the gate. synchronize() returns when all work that was inside has left.
class ExecGate {
 public:
  class Pass {
   public:
    explicit Pass(ExecGate& gate);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    ExecGate& gate_;
    uint64_t id_;
  };
  void synchronize();

 private:
  std::mutex mutex_;
  std::condition_variable left_;
  std::set<uint64_t> inside_;
  uint64_t next_id_ = 1;
};

/// One device's memory: a reserved range of addresses and a quota.
class DeviceArena {
 public:
  /// Throws std::bad_alloc if not even the smallest useful range can be reserved.
  explicit DeviceArena(size_t capacity_bytes);
  /// Address of `bytes` (rounded up to 512) or 0.
  uint64_t allocate(size_t bytes, size_t* charged_bytes);
  void free(uint64_t address, size_t charged_bytes);
  /// Quota for memory that does not come from the arena (VMM).
  bool charge(size_t bytes);
  void uncharge(size_t bytes);
  size_t capacity_bytes() const { return capacity_bytes_; }
  size_t used_bytes() const;

 private:
  mutable std::mutex mutex_;
  size_t capacity_bytes_;
  size_t used_bytes_ = 0;
  std::map<uint64_t, size_t> free_;  // address -> bytes, neighbours merged
};

/// Memory that a driver takes for itself: counted, at no address. Given back with its holder.
class DriverMemory {
 public:
  DriverMemory() = default;
  DriverMemory(const DriverMemory&) = delete;
  DriverMemory& operator=(const DriverMemory&) = delete;
  ~DriverMemory();
  /// False, with what there was, if the device has no room for more.
  bool resize(DeviceArena& arena, size_t bytes);

 private:
  std::mutex mutex_;
  DeviceArena* arena_ = nullptr;
  size_t bytes_ = 0;
};

/// Memory made by cuMemCreate: a sealed memfd, so that it can be mapped at several addresses and passed on as an fd.
struct PhysicalMemory {
  int fd = -1;
  uint64_t handle = 0;
  size_t size_bytes = 0;
  int device = 0;
  bool exportable = false;
  bool imported = false;  // exportable too, but as with the real driver its properties do not say so
  DeviceArena* charged_to = nullptr;
  ~PhysicalMemory();
};

}  // namespace sg
