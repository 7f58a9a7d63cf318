// Faults that a test asks for: SOFTGPU_FAULT. The syntax is in softgpu/README.md.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_types.h"

namespace sg {

class Faults {
 public:
  /// What the environment asks for.
  static Faults& get();

  /// A sentence if SOFTGPU_FAULT cannot be understood, else empty.
  const std::string& error() const { return error_; }
  /// False: nothing is asked for, and nothing of the following need be called.
  bool armed() const { return armed_; }

  /// At the start of a call of the API, from inside the exported function: what it shall return instead of doing
  /// anything, or success. Waits where a slow call is asked for.
  CUresult at_call();
  /// Before `bytes` of device memory are taken: what the call shall return instead.
  CUresult at_allocation(uint64_t bytes);
  /// In stream order, before a kernel runs or bytes are copied: with what the context shall fault, or success. Waits
  /// where that is asked for.
  CUresult at_launch(std::string_view kernel);
  CUresult at_copy(uint64_t bytes);

 private:
  struct Rule;
  enum class Point : unsigned char { call, function, launch, allocation, copy };
  Faults();
  bool parse(std::string_view text);
  CUresult apply(Rule& rule);
  template <class Matches>
  CUresult at(Matches matches);

  std::string error_;
  bool armed_ = false;
  std::vector<std::unique_ptr<Rule>> rules_;
  std::atomic<int> lost_{CUDA_SUCCESS};  // the device fell off: the answer to every call
};

}  // namespace sg
