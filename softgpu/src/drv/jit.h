// The JIT options that softgpu answers: log buffers and the time taken. All others are accepted and have no effect.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "cuda_types.h"

namespace sg {

class JitOptions {
 public:
  /// False for an option that does not exist.
  bool read(unsigned count, const CUjit_option* options, void** values) {
    if (count > 0 && (!options || !values)) return false;
    count_ = count;
    options_ = options;
    values_ = values;
    for (unsigned i = 0; i < count; ++i) {
      if (options[i] < 0 || options[i] >= CU_JIT_NUM_OPTIONS) return false;
    }
    return true;
  }

  /// Writes both logs and their sizes, cut to the program's buffers.
  void finish(const std::string& info, const std::string& error) {
    write(CU_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, info);
    write(CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, error);
    if (void** slot = find(CU_JIT_WALL_TIME)) {
      const std::chrono::duration<float, std::milli> taken = std::chrono::steady_clock::now() - start_;
      const float milliseconds = taken.count();
      std::memcpy(slot, &milliseconds, sizeof milliseconds);
    }
  }

 private:
  void** find(CUjit_option option) const {
    for (unsigned i = 0; i < count_; ++i) {
      if (options_[i] == option) return &values_[i];
    }
    return nullptr;
  }
  void write(CUjit_option buffer_option, CUjit_option size_option, const std::string& text) const {
    void** buffer = find(buffer_option);
    void** size = find(size_option);
    if (!buffer || !*buffer || !size) return;
    const size_t room_bytes = static_cast<unsigned>(reinterpret_cast<uintptr_t>(*size));
    if (room_bytes == 0) return;
    const size_t length = std::min(text.size(), room_bytes - 1);
    std::memcpy(*buffer, text.data(), length);
    static_cast<char*>(*buffer)[length] = '\0';
    *size = reinterpret_cast<void*>(length == 0 ? uintptr_t{0} : uintptr_t{length + 1});
  }

  unsigned count_ = 0;
  const CUjit_option* options_ = nullptr;
  void** values_ = nullptr;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace sg
