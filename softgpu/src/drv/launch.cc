// Kernel launches: what is refused at the call, and the operation that runs the kernel in stream order.
#include "launch.h"

#include <cstring>

#include "api.h"
#include "graph.h"

using namespace sg;

namespace {

struct Shape {
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared_bytes = 0;
  bool cooperative = false;
};

CUresult check_shape(const Function& function, const Shape& shape) {
  constexpr uint32_t kMaxGrid[3] = {2147483647, 65535, 65535};
  constexpr uint32_t kMaxBlock[3] = {1024, 1024, 64};
  const Kernel& kernel = *function.kernel;
  uint64_t threads = 1;
  for (int i = 0; i < 3; ++i) {
    if (shape.grid[i] == 0 || shape.grid[i] > kMaxGrid[i]) return CUDA_ERROR_INVALID_VALUE;
    if (shape.block[i] == 0 || shape.block[i] > kMaxBlock[i]) return CUDA_ERROR_INVALID_VALUE;
    threads *= shape.block[i];
  }
  if (threads > kMaxThreadsPerBlock) return CUDA_ERROR_INVALID_VALUE;
  if (threads > kernel.max_threads_per_block) return CUDA_ERROR_INVALID_VALUE;
  for (int i = 0; i < 3; ++i) {
    if (kernel.required_block[0] != 0 && kernel.required_block[i] != shape.block[i]) return CUDA_ERROR_INVALID_VALUE;
  }
  if (shape.shared_bytes > static_cast<uint32_t>(function.max_dynamic_shared_bytes.load())) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (shape.cooperative) {
    const uint64_t blocks = uint64_t{shape.grid[0]} * shape.grid[1] * shape.grid[2];
    const int resident = blocks_per_multiprocessor(kernel, threads, shape.shared_bytes) * Driver::get().multiprocessors;
    if (blocks > static_cast<uint64_t>(resident)) return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  }
  return CUDA_SUCCESS;
}

/// Packs the parameters now: the program may change them once the call has returned.
CUresult pack_params(const Kernel& kernel, void** params, void** extra, std::vector<uint8_t>* packed) {
  packed->assign(kernel.param_bytes, 0);
  if (extra) {
    if (params) return CUDA_ERROR_INVALID_VALUE;
    const void* buffer = nullptr;
    const size_t* size = nullptr;
    for (int i = 0;; i += 2) {
      const auto key = reinterpret_cast<uintptr_t>(extra[i]);
      if (key == CU_LAUNCH_PARAM_END) break;
      if (key == CU_LAUNCH_PARAM_BUFFER_POINTER) {
        buffer = extra[i + 1];
      } else if (key == CU_LAUNCH_PARAM_BUFFER_SIZE) {
        size = static_cast<const size_t*>(extra[i + 1]);
      } else {
        return CUDA_ERROR_INVALID_VALUE;
      }
    }
    if (!buffer || !size) return kernel.params.empty() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (*size == 0 && !packed->empty()) return CUDA_ERROR_INVALID_VALUE;
    if (*size > packed->size()) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (*size > 0) std::memcpy(packed->data(), buffer, *size);  // what is missing stays 0
    return CUDA_SUCCESS;
  }
  if (!params) return kernel.params.empty() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < kernel.params.size(); ++i) {
    const Param& param = kernel.params[i];
    if (!params[i] || param.offset_bytes > packed->size() || param.size_bytes > packed->size() - param.offset_bytes) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    std::memcpy(packed->data() + param.offset_bytes, params[i], param.size_bytes);
  }
  return CUDA_SUCCESS;
}

CUresult launch(CUfunction handle, const Shape& shape, CUstream stream_handle, bool per_thread, void** params,
                void** extra) {
  return with_stream(stream_handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    std::shared_ptr<Function> function;
    const CUresult found = resolve_function(driver, context.shared_from_this(), handle, &function);
    if (found != CUDA_SUCCESS) return found;
    auto module = function->module.lock();
    if (!module || module->context.get() != &context) return CUDA_ERROR_INVALID_HANDLE;
    const CUresult checked = check_shape(*function, shape);
    if (checked != CUDA_SUCCESS) return checked;
    std::vector<uint8_t> packed;
    const CUresult packing = pack_params(*function->kernel, params, extra, &packed);
    if (packing != CUDA_SUCCESS) return packing;
    if (!context.take_local(function->kernel->local_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    StreamOp op;
    op.node_type = CU_GRAPH_NODE_TYPE_KERNEL;
    op.run = [&driver, &context, module, kernel = function->kernel, shape, bytes = std::move(packed)] {
      Launch request;
      std::copy(shape.grid, shape.grid + 3, request.grid);
      std::copy(shape.block, shape.block + 3, request.block);
      request.dynamic_shared_bytes = shape.shared_bytes;
      request.cooperative = shape.cooperative;
      request.heap_bytes = context.limits[CU_LIMIT_MALLOC_HEAP_SIZE];
      request.params = bytes.data();
      if (Faults::get().armed()) {
        const CUresult injected = Faults::get().at_launch(kernel->name);
        if (injected != CUDA_SUCCESS) return context.set_fault(injected, "kernel " + kernel->name + ": SOFTGPU_FAULT");
      }
      ExecGate::Pass pass(driver.gate);
      if (driver.record) return;
      const RunResult result = module->program->run(*kernel, request, &context.cancel, nullptr);
      if (result.fault != Fault::none) context.set_fault(static_cast<int>(result.fault), result.message);
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

bool divides(unsigned blocks, uint32_t grid) { return blocks == 0 || grid % blocks == 0; }

CUresult launch_config(const CUlaunchConfig* config, bool per_thread, CUfunction handle, void** params, void** extra) {
  if (!config || (config->numAttrs > 0 && !config->attrs)) return CUDA_ERROR_INVALID_VALUE;
  Shape shape{{config->gridDimX, config->gridDimY, config->gridDimZ},
              {config->blockDimX, config->blockDimY, config->blockDimZ},
              config->sharedMemBytes,
              false};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    const auto& cluster = attribute.value.clusterDim;
    switch (attribute.id) {
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        shape.cooperative = attribute.value.cooperative != 0;
        break;
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        if (!divides(cluster.x, shape.grid[0]) || !divides(cluster.y, shape.grid[1]) ||
            !divides(cluster.z, shape.grid[2])) {
          return CUDA_ERROR_INVALID_CLUSTER_SIZE;
        }
        if (Driver::get().record) break;  // there kernels may be allowed larger ones
        if (uint64_t{cluster.x} * cluster.y * cluster.z > kPortableClusterBlocks) {
          return CUDA_ERROR_INVALID_CLUSTER_SIZE;
        }
        if (cluster.x != 1 || cluster.y != 1 || cluster.z != 1) return CUDA_ERROR_NOT_SUPPORTED;
        break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
      case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
      case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
        return CUDA_ERROR_NOT_SUPPORTED;
      default:
        break;  // about speed, or about an order that a stream here keeps anyway
    }
  }
  return launch(handle, shape, config->hStream, per_thread, params, extra);
}

/// The launch API of before cuLaunchKernel: shape and parameters are state of the function.
template <class F>
CUresult with_launch_state(CUfunction handle, F f) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    std::shared_ptr<Function> function;
    const CUresult found = resolve_function(driver, context.shared_from_this(), handle, &function);
    if (found != CUDA_SUCCESS) return found;
    std::lock_guard lock(function->launch_state_mutex);
    return f(*function);
  });
}

CUresult set_param(CUfunction handle, int offset, const void* value, size_t bytes) {
  constexpr size_t kMaxParamBytes = 4096;
  return with_launch_state(handle, [&](Function& function) -> CUresult {
    if (offset < 0 || !value || bytes > kMaxParamBytes || static_cast<size_t>(offset) > kMaxParamBytes - bytes) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    auto& buffer = function.param_buffer;
    if (buffer.size() < offset + bytes) buffer.resize(offset + bytes);
    std::memcpy(buffer.data() + offset, value, bytes);
    return CUDA_SUCCESS;
  });
}

CUresult launch_grid(CUfunction handle, int width, int height, CUstream stream) {
  if (width <= 0 || height <= 0) return CUDA_ERROR_INVALID_VALUE;
  Shape shape{{static_cast<uint32_t>(width), static_cast<uint32_t>(height), 1}, {}, 0, false};
  std::vector<uint8_t> buffer;
  const CUresult state = with_launch_state(handle, [&](Function& function) -> CUresult {
    std::copy(function.block_shape.begin(), function.block_shape.end(), shape.block);
    shape.shared_bytes = function.shared_bytes;
    buffer = function.param_buffer;
    buffer.resize(function.kernel->param_bytes);
    return CUDA_SUCCESS;
  });
  if (state != CUDA_SUCCESS) return state;
  size_t bytes = buffer.size();
  void* extra[] = {reinterpret_cast<void*>(CU_LAUNCH_PARAM_BUFFER_POINTER), buffer.data(),
                   reinterpret_cast<void*>(CU_LAUNCH_PARAM_BUFFER_SIZE), &bytes, nullptr};
  return launch(handle, shape, stream, false, nullptr, bytes > 0 ? extra : nullptr);
}

}  // namespace

SG_API cuFuncSetBlockShape(CUfunction handle, int x, int y, int z) {
  return with_launch_state(handle, [&](Function& function) -> CUresult {
    if (x <= 0 || y <= 0 || z <= 0) return CUDA_ERROR_INVALID_VALUE;
    function.block_shape = {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
    return CUDA_SUCCESS;
  });
}
SG_API cuFuncSetSharedSize(CUfunction handle, unsigned bytes) {
  return with_launch_state(handle, [&](Function& function) -> CUresult {
    function.shared_bytes = bytes;
    return CUDA_SUCCESS;
  });
}
SG_API cuParamSetSize(CUfunction handle, unsigned bytes) {
  return with_launch_state(handle, [&](Function& function) -> CUresult {
    if (bytes > function.kernel->param_bytes) return CUDA_ERROR_INVALID_VALUE;
    function.param_buffer.resize(bytes);
    return CUDA_SUCCESS;
  });
}
SG_API cuParamSeti(CUfunction f, int offset, unsigned value) { return set_param(f, offset, &value, sizeof value); }
SG_API cuParamSetf(CUfunction f, int offset, float value) { return set_param(f, offset, &value, sizeof value); }
SG_API cuParamSetv(CUfunction f, int offset, void* value, unsigned bytes) { return set_param(f, offset, value, bytes); }
SG_API cuLaunch(CUfunction f) { return launch_grid(f, 1, 1, nullptr); }
SG_API cuLaunchGrid(CUfunction f, int width, int height) { return launch_grid(f, width, height, nullptr); }
SG_API cuLaunchGridAsync(CUfunction f, int width, int height, CUstream s) { return launch_grid(f, width, height, s); }

SG_API cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, CUstream stream, void** params, void** extra) {
  return launch(f, Shape{{gx, gy, gz}, {bx, by, bz}, shared_bytes, false}, stream, false, params, extra);
}
SG_API cuLaunchKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                           unsigned shared_bytes, CUstream stream, void** params, void** extra) {
  return launch(f, Shape{{gx, gy, gz}, {bx, by, bz}, shared_bytes, false}, stream, true, params, extra);
}
SG_API cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared_bytes, CUstream stream, void** params) {
  return launch(f, Shape{{gx, gy, gz}, {bx, by, bz}, shared_bytes, true}, stream, false, params, nullptr);
}
SG_API cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                      unsigned bz, unsigned shared_bytes, CUstream stream, void** params) {
  return launch(f, Shape{{gx, gy, gz}, {bx, by, bz}, shared_bytes, true}, stream, true, params, nullptr);
}
SG_API cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** params, void** extra) {
  return launch_config(config, false, f, params, extra);
}
SG_API cuLaunchKernelEx_ptsz(const CUlaunchConfig* config, CUfunction f, void** params, void** extra) {
  return launch_config(config, true, f, params, extra);
}
