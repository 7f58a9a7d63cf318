// cuCtx* and cuDevicePrimaryCtx*.
#include <cstdlib>
#include <cstring>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

/// 201 for something that never was a context, 709 for one that is gone.
CUresult lookup(Driver& driver, CUcontext handle, std::shared_ptr<Context>* out) {
  *out = driver.contexts.get(handle);
  if (*out) return CUDA_SUCCESS;
  return driver.contexts.ever_issued(from_handle(handle)) ? CUDA_ERROR_CONTEXT_IS_DESTROYED
                                                          : CUDA_ERROR_INVALID_CONTEXT;
}

bool valid_flags(unsigned flags) {
  const unsigned schedule = flags & CU_CTX_SCHED_MASK;
  return (flags & ~unsigned{CU_CTX_FLAGS_MASK}) == 0 && (schedule & (schedule - 1)) == 0;
}

CUresult create(CUcontext* out, unsigned flags, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out || !valid_flags(flags)) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    auto context = std::make_shared<Context>(dev, false, flags);
    if (!context->take_memory(0, 0, 0, 0)) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = to_handle<CUcontext>(driver.contexts.add(context));
    thread_state().stack.push_back(std::move(context));
    return CUDA_SUCCESS;
  });
}

/// Ends a primary context's life or contents; the handle stays the device's.
void end_primary(Device& device) {
  device.primary->tear_down();
  device.primary->active = false;
}

/// The context an argument means: NULL is the current one.
template <class F>
CUresult with_named_context(CUcontext handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::shared_ptr<Context> context = current_context();
    if (handle) {
      const CUresult found = lookup(driver, handle, &context);
      if (found != CUDA_SUCCESS) return found;
    }
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    return f(driver, *context);
  });
}

}  // namespace

SG_API cuCtxCreate_v2(CUcontext* out, unsigned flags, CUdevice dev) { return create(out, flags, dev); }
SG_ALIAS(cuCtxCreate, cuCtxCreate_v2);

SG_API cuCtxCreate_v3(CUcontext* out, CUexecAffinityParam* params, int count, unsigned flags, CUdevice dev) {
  if (count < 0 || (count > 0 && !params)) return CUDA_ERROR_INVALID_VALUE;
  if (count > 0) return CUDA_ERROR_NOT_SUPPORTED;
  return create(out, flags, dev);
}

SG_API cuCtxCreate_v4(CUcontext* out, CUctxCreateParams* params, unsigned flags, CUdevice dev) {
  if (params && (params->numExecAffinityParams > 0 || params->cigParams)) return CUDA_ERROR_NOT_SUPPORTED;
  return create(out, flags, dev);
}

SG_API cuCtxDestroy_v2(CUcontext handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::shared_ptr<Context> context;
    if (!handle) return CUDA_ERROR_INVALID_VALUE;
    const CUresult found = lookup(driver, handle, &context);
    if (found != CUDA_SUCCESS) return found;
    if (context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (!driver.contexts.take(handle)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;  // another thread was first
    context->tear_down();
    context->active = false;
    auto& stack = thread_state().stack;
    if (!stack.empty() && stack.back() == context) stack.pop_back();
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuCtxDestroy, cuCtxDestroy_v2);

SG_API cuCtxPushCurrent_v2(CUcontext handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    std::shared_ptr<Context> context;
    if (!handle) return CUDA_ERROR_INVALID_CONTEXT;
    const CUresult found = lookup(driver, handle, &context);
    if (found != CUDA_SUCCESS) return found;
    thread_state().stack.push_back(std::move(context));
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuCtxPushCurrent, cuCtxPushCurrent_v2);

SG_API cuCtxPopCurrent_v2(CUcontext* handle) {
  return with_driver([&](Driver&) -> CUresult {
    auto& stack = thread_state().stack;
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (handle) *handle = to_handle<CUcontext>(stack.back()->handle);
    stack.pop_back();
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuCtxPopCurrent, cuCtxPopCurrent_v2);

SG_API cuCtxSetCurrent(CUcontext handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto& stack = thread_state().stack;
    std::shared_ptr<Context> context;
    if (handle) {
      const CUresult found = lookup(driver, handle, &context);
      if (found != CUDA_SUCCESS) return found;
    }
    if (!stack.empty()) stack.pop_back();
    if (context) stack.push_back(std::move(context));
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetCurrent(CUcontext* handle) {
  return with_driver([&](Driver&) -> CUresult {
    if (!handle) return CUDA_ERROR_INVALID_VALUE;
    auto context = current_context();
    *handle = context ? to_handle<CUcontext>(context->handle) : nullptr;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetDevice(CUdevice* device) {
  return with_driver([&](Driver&) -> CUresult {
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    auto context = current_context();
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetDevice_v2(CUdevice* device, CUcontext handle) {
  return with_named_context(handle, [&](Driver&, Context& context) -> CUresult {
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    *device = context.device;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxSynchronize(void) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    check_capture_context(context);
    context.synchronize();
    driver.trim_pools();
    return context.fault.load();
  });
}

SG_API cuCtxSynchronize_v2(CUcontext handle) {
  return with_named_context(handle, [&](Driver& driver, Context& context) -> CUresult {
    if (!context.active) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    check_capture_context(context);
    context.synchronize();
    driver.trim_pools();
    return context.fault.load();
  });
}

SG_API cuCtxAttach(CUcontext* handle, unsigned flags) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!handle || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (context.primary) return CUDA_ERROR_INVALID_CONTEXT;
    context.attach_count.fetch_add(1);
    *handle = to_handle<CUcontext>(context.handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxDetach(CUcontext handle) {
  bool last = false;
  const CUresult result = with_driver([&](Driver& driver) -> CUresult {
    std::shared_ptr<Context> context;
    const CUresult found = lookup(driver, handle, &context);
    if (found != CUDA_SUCCESS) return found;
    if (context->primary || context != current_context()) return CUDA_ERROR_INVALID_CONTEXT;
    last = context->attach_count.fetch_sub(1) == 1;
    return CUDA_SUCCESS;
  });
  return result == CUDA_SUCCESS && last ? cuCtxDestroy_v2(handle) : result;
}

SG_API cuCtxGetFlags(unsigned* flags) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!flags) return CUDA_ERROR_INVALID_VALUE;
    *flags = context.flags | CU_CTX_MAP_HOST;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxSetFlags(unsigned flags) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!valid_flags(flags)) return CUDA_ERROR_INVALID_VALUE;
    context.flags = flags;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetId(CUcontext handle, unsigned long long* id) {
  return with_named_context(handle, [&](Driver&, Context& context) -> CUresult {
    if (!id) return CUDA_ERROR_INVALID_VALUE;
    *id = context.id;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
  return with_named_context(handle, [&](Driver&, Context& context) -> CUresult {
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    if (!context.active) return CUDA_ERROR_INVALID_CONTEXT;
    *version = 3020;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetLimit(size_t* value, CUlimit limit) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (limit < 0 || limit >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
    const bool of_graphics = limit > CU_LIMIT_PERSISTING_L2_CACHE_SIZE;
    // cuBLASLt asks a real device for these and gives up on an error.
    if (of_graphics && !driver.record) return CUDA_ERROR_UNSUPPORTED_LIMIT;
    *value = context.limits[limit];
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxSetLimit(CUlimit limit, size_t value) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (limit < 0 || limit >= CU_LIMIT_MAX) return CUDA_ERROR_INVALID_VALUE;
    if (limit > CU_LIMIT_PERSISTING_L2_CACHE_SIZE) return CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (limit == CU_LIMIT_STACK_SIZE && value >= (512 << 10)) return CUDA_ERROR_INVALID_VALUE;
    if (limit == CU_LIMIT_MAX_L2_FETCH_GRANULARITY && value > 128) return CUDA_ERROR_INVALID_VALUE;
    if (!context.take_limit(limit, value)) return CUDA_ERROR_OUT_OF_MEMORY;
    context.limits[limit] = value;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetCacheConfig(int* config) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    *config = context.cache_config;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxSetCacheConfig(int config) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (config < 0 || config > 3) return CUDA_ERROR_INVALID_VALUE;
    context.cache_config = config;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetSharedMemConfig(int* config) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    *config = context.shared_config;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxSetSharedMemConfig(int config) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (config < 0 || config > 2) return CUDA_ERROR_INVALID_VALUE;
    context.shared_config = 1;  // banks of four bytes are the only ones that devices of this age have
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return with_context([&](Driver&, Context&) -> CUresult {
    if (least) *least = kLeastStreamPriority;
    if (greatest) *greatest = kGreatestStreamPriority;
    return CUDA_SUCCESS;
  });
}

SG_API cuCtxResetPersistingL2Cache(void) {
  return with_context([&](Driver&, Context&) -> CUresult { return CUDA_SUCCESS; });
}

SG_API cuCtxEnablePeerAccess(CUcontext peer_handle, unsigned flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    std::shared_ptr<Context> peer;
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (lookup(driver, peer_handle, &peer) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    if (peer->device == context.device) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    const uint32_t bit = 1u << peer->device;
    return context.space->peer_mask.fetch_or(bit) & bit ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_SUCCESS;
  });
}

SG_API cuCtxDisablePeerAccess(CUcontext peer_handle) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    std::shared_ptr<Context> peer;
    if (lookup(driver, peer_handle, &peer) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_CONTEXT;
    const uint32_t bit = 1u << peer->device;
    if (!(context.space->peer_mask.fetch_and(~bit) & bit)) return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    driver.map.bump_epoch();
    return CUDA_SUCCESS;
  });
}

SG_API cuDevicePrimaryCtxRetain(CUcontext* handle, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!handle) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(device->primary_mutex);
    device->primary_references++;
    if (!device->primary->active) {  // at first, and again after a reset
      device->primary->flags = device->primary_flags;
      device->primary->active = true;
    }
    *handle = to_handle<CUcontext>(device->primary->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(device->primary_mutex);
    if (device->primary_references == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--device->primary_references == 0 && device->primary->active) end_primary(*device);
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2);

SG_API cuDevicePrimaryCtxReset_v2(CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(device->primary_mutex);
    // References stay counted, but the context is unusable (709) until somebody retains it again.
    if (device->primary->active) end_primary(*device);
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2);

SG_API cuDevicePrimaryCtxGetState(CUdevice dev, unsigned* flags, int* active) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!flags || !active) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(device->primary_mutex);
    *active = device->primary->active;
    *flags = device->primary_flags;
    return CUDA_SUCCESS;
  });
}

SG_API cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned flags) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!valid_flags(flags)) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::lock_guard lock(device->primary_mutex);
    device->primary_flags = flags;
    if (device->primary->active) device->primary->flags = flags;
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuDevicePrimaryCtxSetFlags, cuDevicePrimaryCtxSetFlags_v2);
