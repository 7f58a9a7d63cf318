// What every exported function goes through.
#pragma once
#include <exception>
#include <new>

#include "fault.h"
#include "state.h"

#define SG_API extern "C" __attribute__((visibility("default"))) CUresult
/// A second name for a function of the same ABI, in the same file.
#define SG_ALIAS(name, target) extern "C" decltype(target) name __attribute__((visibility("default"), alias(#target)))

namespace sg {

/// What a capture forbids, thrown from where it is found.
struct CaptureError : std::exception {
  explicit CaptureError(CUresult result) : code(result) {}
  const char* what() const noexcept override { return "forbidden by a capture"; }
  CUresult code;
};

/// Calls of the API inside calls count as one.
class CallDepth {
 public:
  CallDepth() { ++depth(); }
  ~CallDepth() { --depth(); }
  CallDepth(const CallDepth&) = delete;
  CallDepth& operator=(const CallDepth&) = delete;
  bool outermost() const { return depth() == 1; }

 private:
  static int& depth() {
    thread_local int value = 0;
    return value;
  }
};

template <class F>
CUresult guarded(F f) noexcept {
  try {
    if (!Faults::get().armed()) return f();
    const CallDepth here;
    const CUresult injected = here.outermost() ? Faults::get().at_call() : CUDA_SUCCESS;
    return injected == CUDA_SUCCESS ? f() : injected;
  } catch (const CaptureError& error) {
    return error.code;
  } catch (const std::bad_alloc&) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  } catch (...) {
    return CUDA_ERROR_UNKNOWN;
  }
}

/// Set in a child of fork(): the threads behind the driver's objects are gone there.
bool is_forked_child();

/// For functions that need cuInit only.
template <class F>
CUresult with_driver(F f) noexcept {
  return guarded([&]() -> CUresult {
    Driver& driver = Driver::get();
    if (!driver.initialized() || is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    if (thread_state().in_callback) return CUDA_ERROR_NOT_PERMITTED;
    return f(driver);
  });
}

/// For functions that need a usable current context: 201 without one, 709 after its end, and a fault stays.
template <class F>
CUresult with_context(F f) noexcept {
  return with_driver([&](Driver& driver) -> CUresult {
    auto context = current_context();
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->active.load(std::memory_order_acquire)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    const int fault = context->fault.load(std::memory_order_acquire);
    if (fault != 0) return fault;
    return f(driver, *context);
  });
}

/// As with_context, with the stream that an argument means.
template <class F>
CUresult with_stream(CUstream handle, bool per_thread, F f) noexcept {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    std::shared_ptr<Stream> stream;
    const CUresult found = context.stream(handle, per_thread, &stream);
    if (found != CUDA_SUCCESS) return found;
    // A stream of another context is used as it is: its context's fault counts.
    const int fault = stream->context->fault.load(std::memory_order_acquire);
    if (fault != 0) return fault;
    return f(driver, *stream->context, stream);
  });
}

template <class Opaque>
Opaque to_handle(uint64_t value) {
  return reinterpret_cast<Opaque>(value);
}
template <class T>
uint64_t from_handle(T* handle) {
  return reinterpret_cast<uint64_t>(handle);
}

/// What an allocation shall fail with (SOFTGPU_FAULT), or success.
inline CUresult allocation_fault(uint64_t bytes) {
  return Faults::get().armed() ? Faults::get().at_allocation(bytes) : CUDA_SUCCESS;
}

/// The reservation of addresses in which this one lies; false: none.
bool reservation_around(uint64_t address, uint64_t* begin, uint64_t* end);

}  // namespace sg
