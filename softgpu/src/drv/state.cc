// The driver object, its devices, and settings from the environment.
#include "state.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api.h"

namespace sg {

namespace {

std::atomic<bool> forked_child{false};

uint64_t env_number(const char* name, uint64_t fallback, uint64_t least, uint64_t most) {
  const char* text = std::getenv(name);
  if (!text || !*text) return fallback;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*end != '\0' || *text == '-') {
    std::fprintf(stderr, "softgpu: %s=%s is not a number; using %llu\n", name, text,
                 static_cast<unsigned long long>(fallback));
    return fallback;
  }
  return std::clamp<uint64_t>(value, least, most);
}

CUuuid device_uuid(int physical) {
  CUuuid uuid{};
  std::memcpy(uuid.bytes, "softgpu-cpu", 11);
  uuid.bytes[15] = static_cast<unsigned char>(physical);
  return uuid;
}

std::string uuid_text(const CUuuid& uuid) {
  std::string text = "GPU-";
  char byte[3];
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    std::snprintf(byte, sizeof byte, "%02x", uuid.bytes[i]);
    text += byte;
  }
  return text;
}

/// CUDA_VISIBLE_DEVICES: indices or UUID prefixes; the list ends at the first entry that names no device.
std::vector<int> visible_devices(int count) {
  std::vector<int> all;
  for (int i = 0; i < count; ++i) all.push_back(i);
  const char* text = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!text) return all;
  std::vector<int> chosen;
  std::string rest = text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string item = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    item.erase(0, item.find_first_not_of(' '));
    item.erase(item.find_last_not_of(' ') + 1);
    int found = -1;
    if (item.rfind("GPU-", 0) == 0) {
      for (int i : all) {
        if (uuid_text(device_uuid(i)).rfind(item, 0) == 0) found = i;
      }
    } else if (!item.empty() && item.find_first_not_of("0123456789") == std::string::npos && item.size() < 4) {
      found = std::atoi(item.c_str());
    }
    if (found < 0 || found >= count) break;
    if (std::find(chosen.begin(), chosen.end(), found) != chosen.end()) return {};  // a device twice: none at all
    chosen.push_back(found);
  }
  return chosen;
}

}  // namespace

bool is_forked_child() { return forked_child.load(std::memory_order_relaxed); }

Driver& Driver::get() {
  static Driver* driver = new Driver;
  return *driver;
}

Driver::Driver() {
  op_delay_us = static_cast<unsigned>(env_number("SOFTGPU_DELAY_US", 0, 0, 10'000'000));
  verbose = env_number("SOFTGPU_LOG", 0, 0, 1) == 1;
  record = env_number("SOFTGPU_RECORD", 0, 0, 1) == 1;
  if (record) {
    cc_major = 9;
    multiprocessors = 132;
    shared_per_block_optin_bytes = 227 << 10;
    shared_per_multiprocessor_bytes = 228 << 10;
  }
  if (const char* cc = std::getenv("SOFTGPU_CC")) {
    int major = 0;
    int minor = 0;
    if (std::sscanf(cc, "%d.%d", &major, &minor) == 2 && major >= 5 && major <= 12 && minor >= 0 && minor <= 9) {
      cc_major = major;
      cc_minor = minor;
    } else {
      std::fprintf(stderr, "softgpu: SOFTGPU_CC=%s is not of the form 8.0; using 8.0\n", cc);
    }
  }
}

CUresult Driver::init() {
  std::lock_guard lock(init_mutex_);
  if (initialized()) return CUDA_SUCCESS;
  const int physical_count = static_cast<int>(env_number("SOFTGPU_DEVICES", 1, 0, kMaxDevices));
  const uint64_t memory_mib = env_number("SOFTGPU_MEMORY_MIB", 4096, 2, 1 << 20);
  const std::vector<int> visible = visible_devices(physical_count);
  if (visible.empty()) return CUDA_ERROR_NO_DEVICE;
  std::vector<std::unique_ptr<Device>> made;
  for (int physical : visible) {
    auto device = std::make_unique<Device>();
    device->ordinal = static_cast<int>(made.size());
    device->uuid = device_uuid(physical);
    device->pci_bus = physical + 1;
    device->arena = std::make_unique<DeviceArena>(memory_mib << 20);
    made.push_back(std::move(device));
  }
  devices = std::move(made);
  for (auto& device : devices) {
    auto pool = std::make_shared<MemoryPool>();
    pool->device = device->ordinal;
    pool->is_default = true;
    pool->access_mask = 1u << device->ordinal;
    pools.add(pool);
    device->default_pool = device->current_pool = pool;
    device->primary = std::make_shared<Context>(device->ordinal, true, 0);
    device->primary->active = false;
    contexts.add(device->primary);
  }
  pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });
  initialized_.store(true, std::memory_order_release);
  return CUDA_SUCCESS;
}

Device* Driver::device(CUdevice ordinal) {
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= devices.size()) return nullptr;
  return devices[ordinal].get();
}

void Driver::trim_pools() {
  for (const auto& pool : pools.all()) {
    std::lock_guard lock(pool->mutex);
    pool->trim(*devices[pool->device]->arena, pool->release_threshold_bytes);
  }
}

void Driver::reclaim(const Region& region) {
  void* address = reinterpret_cast<void*>(region.begin);
  switch (region.kind) {
    case RegionKind::pool: {
      std::lock_guard lock(region.pool->mutex);
      DeviceArena& arena = *devices[region.device]->arena;
      arena.free(region.begin, region.charged_bytes);
      region.pool->used_bytes -= region.size_bytes();
      region.pool->held_bytes -= region.charged_bytes;
      // Kept until the next wait of the program, or longer as the threshold says.
      if (!region.pool->destroyed && arena.charge(region.charged_bytes)) {
        region.pool->idle_bytes += region.charged_bytes;
      }
      break;
    }
    case RegionKind::device:
    case RegionKind::module:
      devices[region.device]->arena->free(region.begin, region.charged_bytes);
      break;
    case RegionKind::managed:
    case RegionKind::host_alloc:
      munmap(address, round_up(region.size_bytes(), kPageBytes));
      break;
    case RegionKind::host_registered:
      break;  // the program's own memory
    case RegionKind::vmm:
      // Not PROT_NONE: whoever passed the check just before must not crash. cuMemAddressFree takes the range.
      if (mmap(address, region.size_bytes(), PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
        break;  // the old pages stay until the range is freed: more memory held, nothing broken
      }
      break;
  }
}

void Driver::release_regions(const std::vector<Region>& regions) {
  // Only host pages disappear from the address space; a device's stay, so running work cannot crash on them.
  for (const Region& region : regions) {
    if (!region.is_host() && region.kind != RegionKind::managed) continue;
    gate.synchronize();
    break;
  }
  for (const Region& region : regions) reclaim(region);
}

ThreadState::~ThreadState() {
  for (auto& entry : default_streams) {
    entry.second->destroyed = true;
    entry.second->close();
    entry.second->context->drop_stream(entry.second);
  }
}

ThreadState& thread_state() {
  thread_local ThreadState state;
  return state;
}

std::shared_ptr<Context> current_context() {
  auto& stack = thread_state().stack;
  return stack.empty() ? nullptr : stack.back();
}

bool ContextSpace::find(uint64_t address, Range* out) const {
  return Driver::get().map.find_visible(address, device_, peer_mask.load(std::memory_order_relaxed), out);
}

uint64_t ContextSpace::epoch() const { return Driver::get().map.epoch(); }
const std::atomic<uint64_t>* ContextSpace::epoch_counter() const { return Driver::get().map.epoch_counter(); }

void* ContextSpace::allocate_module_memory(size_t bytes) {
  Driver& driver = Driver::get();
  Region region;
  region.begin = driver.devices[device_]->arena->allocate(bytes, &region.charged_bytes);
  if (region.begin == 0) return nullptr;
  std::memset(reinterpret_cast<void*>(region.begin), 0, region.charged_bytes);
  region.end = region.begin + bytes;
  region.kind = RegionKind::module;
  region.device = device_;
  region.context_id = context_id_;
  region.buffer_id = driver.map.next_buffer_id();
  driver.map.insert(region);
  return reinterpret_cast<void*>(region.begin);
}

void* ContextSpace::allocate_managed_memory(size_t bytes) {
  return allocate_managed(Driver::get(), bytes, {device_, context_id_, CU_MEM_ATTACH_GLOBAL});
}

void ContextSpace::free_module_memory(void* address) {
  Driver& driver = Driver::get();
  auto region = driver.map.remove(reinterpret_cast<uint64_t>(address));
  if (region) driver.release_regions({*region});
}

}  // namespace sg
