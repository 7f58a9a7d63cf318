// Handles given to the program: a kind and a number that is never used again, so a stale or foreign handle is told
// apart from a live one without touching memory.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

namespace sg {

enum class HandleKind : uint8_t {
  context = 1,
  stream,
  event,
  module,
  function,
  library,
  kernel,
  link,
  pool,
  physical_memory,
  array = 0x20,
  mipmapped_array,
  texture,
  graph = 0x40,
  graph_node,
  graph_exec,
  user_object,
};

constexpr int kHandleKindShift = 40;

template <class T>
class HandleTable {
 public:
  explicit HandleTable(HandleKind kind) : kind_bits_(uint64_t(kind) << kHandleKindShift) {}

  uint64_t add(std::shared_ptr<T> object) {
    std::unique_lock lock(mutex_);
    const uint64_t handle = kind_bits_ | (next_++ << 4);
    object->handle = handle;
    live_.emplace(handle, std::move(object));
    return handle;
  }
  std::shared_ptr<T> get(uint64_t handle) const {
    std::shared_lock lock(mutex_);
    auto it = live_.find(handle);
    return it == live_.end() ? nullptr : it->second;
  }
  template <class Opaque>
  std::shared_ptr<T> get(Opaque* handle) const {
    return get(reinterpret_cast<uint64_t>(handle));
  }
  std::shared_ptr<T> take(uint64_t handle) {
    std::unique_lock lock(mutex_);
    auto it = live_.find(handle);
    if (it == live_.end()) return nullptr;
    auto object = std::move(it->second);
    live_.erase(it);
    return object;
  }
  template <class Opaque>
  std::shared_ptr<T> take(Opaque* handle) {
    return take(reinterpret_cast<uint64_t>(handle));
  }
  /// True for a handle that this table gave out once, live or not.
  bool ever_issued(uint64_t handle) const {
    std::shared_lock lock(mutex_);
    const uint64_t number = (handle & ((uint64_t{1} << kHandleKindShift) - 1)) >> 4;
    return handle >> kHandleKindShift == kind_bits_ >> kHandleKindShift && (handle & 15) == 0 && number > 0 &&
           number < next_;
  }
  template <class Pick>
  std::vector<std::shared_ptr<T>> take_if(Pick pick) {
    std::vector<std::shared_ptr<T>> taken;
    std::unique_lock lock(mutex_);
    for (auto it = live_.begin(); it != live_.end();) {
      if (pick(*it->second)) {
        taken.push_back(std::move(it->second));
        it = live_.erase(it);
      } else {
        ++it;
      }
    }
    return taken;
  }
  std::vector<std::shared_ptr<T>> all() const {
    std::shared_lock lock(mutex_);
    std::vector<std::shared_ptr<T>> objects;
    objects.reserve(live_.size());
    for (const auto& entry : live_) objects.push_back(entry.second);
    return objects;
  }

 private:
  const uint64_t kind_bits_;
  mutable std::shared_mutex mutex_;
  uint64_t next_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<T>> live_;
};

}  // namespace sg
