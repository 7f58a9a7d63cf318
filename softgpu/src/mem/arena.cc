#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>

namespace sg {

namespace {

constexpr size_t kAllocationAlignBytes = 512;
constexpr size_t kReturnPagesFromBytes = 64 << 10;  // smaller blocks keep their pages

bool visible(const Region& region, int device, uint32_t peer_mask) {
  const uint32_t self = 1u << device;
  switch (region.kind) {
    case RegionKind::device:
    case RegionKind::module:
      return region.device == device || (peer_mask >> region.device & 1u);
    case RegionKind::vmm:
    case RegionKind::pool:
      return (region.read_mask | region.write_mask) & self;
    case RegionKind::managed:
    case RegionKind::host_alloc:
    case RegionKind::host_registered:
      return true;
  }
  return false;
}

}  // namespace

const Region* MemoryMap::locate(uint64_t address) const {
  auto it = regions_.upper_bound(address);
  if (it == regions_.begin()) return nullptr;
  --it;
  return address < it->second.end ? &it->second : nullptr;
}

bool MemoryMap::insert(Region region) {
  std::unique_lock lock(mutex_);
  auto next = regions_.lower_bound(region.begin);
  if (next != regions_.end() && next->second.begin < region.end) return false;
  if (next != regions_.begin() && std::prev(next)->second.end > region.begin) return false;
  const uint64_t begin = region.begin;
  regions_.emplace_hint(next, begin, std::move(region));
  return true;
}

std::optional<Region> MemoryMap::find(uint64_t address) const {
  std::shared_lock lock(mutex_);
  const Region* region = locate(address);
  if (!region) return std::nullopt;
  return *region;
}

bool MemoryMap::find_visible(uint64_t address, int device, uint32_t peer_mask, Range* out) const {
  std::shared_lock lock(mutex_);
  const Region* region = locate(address);
  if (!region || !visible(*region, device, peer_mask)) return false;
  *out = Range{region->begin, region->end};
  return true;
}

bool MemoryMap::covers(uint64_t address, size_t bytes, int visible_to) const {
  if (bytes > UINT64_MAX - address) return false;
  const uint64_t end = address + bytes;
  std::shared_lock lock(mutex_);
  while (true) {
    const Region* region = locate(address);
    if (!region) return false;
    // Copies reach every device's plain memory; VMM and pool memory only where access was granted.
    if (visible_to >= 0 && !visible(*region, visible_to, ~0u)) return false;
    if (region->end >= end) return true;
    address = region->end;
  }
}

bool MemoryMap::overlaps(uint64_t begin, uint64_t end) const {
  std::shared_lock lock(mutex_);
  auto it = regions_.lower_bound(begin);
  if (it != regions_.end() && it->second.begin < end) return true;
  return it != regions_.begin() && std::prev(it)->second.end > begin;
}

std::optional<Region> MemoryMap::remove(uint64_t begin) {
  std::unique_lock lock(mutex_);
  auto it = regions_.find(begin);
  if (it == regions_.end()) return std::nullopt;
  Region region = std::move(it->second);
  regions_.erase(it);
  bump_epoch();
  return region;
}

std::vector<Region> MemoryMap::remove_if(const std::function<bool(const Region&)>& pick) {
  std::vector<Region> taken;
  std::unique_lock lock(mutex_);
  for (auto it = regions_.begin(); it != regions_.end();) {
    if (pick(it->second)) {
      taken.push_back(std::move(it->second));
      it = regions_.erase(it);
    } else {
      ++it;
    }
  }
  if (!taken.empty()) bump_epoch();
  return taken;
}

bool MemoryMap::update(uint64_t address, bool shrinks, const std::function<void(Region&)>& change) {
  std::unique_lock lock(mutex_);
  auto* region = const_cast<Region*>(locate(address));
  if (!region) return false;
  change(*region);
  if (shrinks) bump_epoch();
  return true;
}

std::vector<Region> MemoryMap::between(uint64_t begin, uint64_t end) const {
  std::vector<Region> found;
  std::shared_lock lock(mutex_);
  auto it = regions_.upper_bound(begin);
  if (it != regions_.begin() && std::prev(it)->second.end > begin) --it;
  for (; it != regions_.end() && it->second.begin < end; ++it) found.push_back(it->second);
  return found;
}

ExecGate::Pass::Pass(ExecGate& gate) : gate_(gate) {
  std::lock_guard lock(gate_.mutex_);
  id_ = gate_.next_id_++;
  gate_.inside_.insert(id_);
}

ExecGate::Pass::~Pass() {
  {
    std::lock_guard lock(gate_.mutex_);
    gate_.inside_.erase(id_);
  }
  gate_.left_.notify_all();
}

void ExecGate::synchronize() {
  std::unique_lock lock(mutex_);
  const uint64_t limit = next_id_;
  left_.wait(lock, [&] { return inside_.empty() || *inside_.begin() >= limit; });
}

DeviceArena::DeviceArena(size_t capacity_bytes) : capacity_bytes_(capacity_bytes) {
  // Twice the quota of addresses, so that fragmentation does not show before the quota does.
  for (size_t reserve = capacity_bytes * 2; reserve >= kVmmGranularityBytes; reserve /= 2) {
    void* base = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) continue;
    free_[reinterpret_cast<uint64_t>(base)] = reserve;
    return;
  }
  throw std::bad_alloc();
}

uint64_t DeviceArena::allocate(size_t bytes, size_t* charged_bytes) {
  if (bytes == 0 || bytes > capacity_bytes_) return 0;
  const size_t size = round_up(bytes, kAllocationAlignBytes);
  std::lock_guard lock(mutex_);
  if (size > capacity_bytes_ - std::min(used_bytes_, capacity_bytes_)) return 0;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < size) continue;
    const uint64_t address = it->first;
    const size_t rest = it->second - size;
    free_.erase(it);
    if (rest > 0) free_[address + size] = rest;
    used_bytes_ += size;
    *charged_bytes = size;
    return address;
  }
  return 0;
}

void DeviceArena::free(uint64_t address, size_t charged_bytes) {
  if (charged_bytes >= kReturnPagesFromBytes) {
    const uint64_t first = round_up(address, kPageBytes);
    const uint64_t last = (address + charged_bytes) / kPageBytes * kPageBytes;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
  std::lock_guard lock(mutex_);
  used_bytes_ -= charged_bytes;
  auto next = free_.lower_bound(address);
  size_t size = charged_bytes;
  if (next != free_.end() && next->first == address + size) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == address) {
      before->second += size;
      return;
    }
  }
  free_[address] = size;
}

bool DeviceArena::charge(size_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes > capacity_bytes_ - std::min(used_bytes_, capacity_bytes_)) return false;
  used_bytes_ += bytes;
  return true;
}

void DeviceArena::uncharge(size_t bytes) {
  std::lock_guard lock(mutex_);
  used_bytes_ -= bytes;
}

size_t DeviceArena::used_bytes() const {
  std::lock_guard lock(mutex_);
  return used_bytes_;
}

bool DriverMemory::resize(DeviceArena& arena, size_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes > bytes_ && !arena.charge(bytes - bytes_)) return false;
  if (bytes < bytes_) arena.uncharge(bytes_ - bytes);
  arena_ = &arena;
  bytes_ = bytes;
  return true;
}

DriverMemory::~DriverMemory() {
  if (arena_) arena_->uncharge(bytes_);
}

PhysicalMemory::~PhysicalMemory() {
  if (fd >= 0) close(fd);
  if (charged_to) charged_to->uncharge(size_bytes);
}

}  // namespace sg
