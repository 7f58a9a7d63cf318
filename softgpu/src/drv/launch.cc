// Kernel launches: what is refused at the call, and the operation that runs the kernel in stream order.
#include "launch.h"

#include <cstring>

#include "api.h"

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
    const int resident = blocks_per_multiprocessor(kernel, threads, shape.shared_bytes) * kMultiprocessors;
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
    StreamOp op;
    op.run = [&driver, &context, module, kernel = function->kernel, shape, bytes = std::move(packed)] {
      Launch request;
      std::copy(shape.grid, shape.grid + 3, request.grid);
      std::copy(shape.block, shape.block + 3, request.block);
      request.dynamic_shared_bytes = shape.shared_bytes;
      request.cooperative = shape.cooperative;
      request.params = bytes.data();
      ExecGate::Pass pass(driver.gate);
      const RunResult result = module->program->run(*kernel, request, &context.cancel, nullptr);
      if (result.fault != Fault::none) context.set_fault(static_cast<int>(result.fault), result.message);
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

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

}  // namespace

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
