// cuFunc* and cuOccupancy*.
#include <algorithm>

#include "api.h"
#include "launch.h"

using namespace sg;

namespace sg {

CUresult resolve_function(Driver& driver, const std::shared_ptr<Context>& context, CUfunction handle,
                          std::shared_ptr<Function>* out) {
  *out = driver.functions.get(handle);
  if (*out) return CUDA_SUCCESS;
  auto kernel = driver.kernels.get(from_handle(handle));
  if (!kernel) return CUDA_ERROR_INVALID_HANDLE;
  auto library = driver.libraries.get(kernel->library_handle);
  if (!library) return CUDA_ERROR_INVALID_HANDLE;
  std::shared_ptr<Module> module;
  std::string log;
  const CUresult loaded = library->module_in(context, &module, &log);
  if (loaded != CUDA_SUCCESS) return loaded;
  const CUresult found = module->function(kernel->name.c_str(), out);
  const int max_dynamic = kernel->max_dynamic_shared_bytes;
  if (found == CUDA_SUCCESS && max_dynamic >= 0) (*out)->max_dynamic_shared_bytes = max_dynamic;
  return found;
}

CUresult kernel_attribute(const Kernel& kernel, int attribute, int max_dynamic, int carveout, int* value) {
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = static_cast<int>(kernel.max_threads_per_block);
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(kernel.static_shared_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
      *value = static_cast<int>(kernel.const_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      *value = static_cast<int>(kernel.local_bytes);
      break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = static_cast<int>(kernel.registers);
      break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
      *value = kernel.target_sm;
      break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *value = Driver::get().cc_major * 10 + Driver::get().cc_minor;
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = max_dynamic;
      break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      *value = carveout;
      break;
    default:
      if (attribute < 0 || attribute >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
      *value = 0;  // cache mode and clusters
      break;
  }
  return CUDA_SUCCESS;
}

CUresult param_info(const Kernel& kernel, size_t index, size_t* offset, size_t* size) {
  if (!offset || index >= kernel.params.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = kernel.params[index].offset_bytes;
  if (size) *size = kernel.params[index].size_bytes;
  return CUDA_SUCCESS;
}

CUresult check_max_dynamic(const Kernel& kernel, int value) {
  return value < 0 || value > Driver::get().shared_per_block_optin_bytes - static_cast<int>(kernel.static_shared_bytes)
             ? CUDA_ERROR_INVALID_VALUE
             : CUDA_SUCCESS;
}

int default_max_dynamic(const Kernel& kernel) {
  return std::max(0, kSharedPerBlockBytes - static_cast<int>(kernel.static_shared_bytes));
}

int blocks_per_multiprocessor(const Kernel& kernel, uint64_t block_threads, size_t dynamic_shared_bytes) {
  if (block_threads > kMaxThreadsPerBlock) return 0;  // .maxntid does not count here
  const uint64_t threads = round_up(block_threads, 32);
  const uint64_t shared = kernel.static_shared_bytes + dynamic_shared_bytes + kReservedSharedPerBlockBytes;
  uint64_t blocks = std::min<uint64_t>(kMaxBlocksPerMultiprocessor, kMaxThreadsPerMultiprocessor / threads);
  blocks = std::min<uint64_t>(blocks, Driver::get().shared_per_multiprocessor_bytes / shared);
  blocks = std::min<uint64_t>(blocks, kRegistersPerMultiprocessor / (threads * std::max(kernel.registers, 1u)));
  return static_cast<int>(blocks);
}

}  // namespace sg

namespace {

template <class F>
CUresult with_function(CUfunction handle, F f) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    std::shared_ptr<Function> function;
    const CUresult found = resolve_function(driver, context.shared_from_this(), handle, &function);
    return found == CUDA_SUCCESS ? f(*function) : found;
  });
}

CUresult active_blocks(int* blocks, CUfunction handle, int block_size, size_t dynamic_shared_bytes, unsigned flags) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!blocks || block_size <= 0 || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    *blocks = blocks_per_multiprocessor(*function.kernel, block_size, dynamic_shared_bytes);
    return CUDA_SUCCESS;
  });
}

CUresult potential_block_size(int* grid, int* block, CUfunction handle, CUoccupancyB2DSize shared_of, size_t shared,
                              int limit, unsigned flags) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!grid || !block || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    int most = static_cast<int>(function.kernel->max_threads_per_block);
    if (limit > 0) most = std::min(most, limit);
    int best_threads = 0;
    *grid = *block = 0;
    for (int size = static_cast<int>(round_up(most, 32)); size > 0; size -= 32) {
      const int threads = std::min(size, most);
      const int blocks = blocks_per_multiprocessor(*function.kernel, threads, shared_of ? shared_of(threads) : shared);
      if (blocks * threads <= best_threads) continue;
      best_threads = blocks * threads;
      *block = threads;
      *grid = blocks * Driver::get().multiprocessors;
    }
    return CUDA_SUCCESS;
  });
}

}  // namespace

SG_API cuFuncGetAttribute(int* value, int attribute, CUfunction handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    const auto function = driver.functions.get(handle);  // a kernel of a library is not taken for one here
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    return kernel_attribute(*function->kernel, attribute, function->max_dynamic_shared_bytes, function->carveout,
                            value);
  });
}

SG_API cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
      const CUresult checked = check_max_dynamic(*function.kernel, value);
      if (checked == CUDA_SUCCESS) function.max_dynamic_shared_bytes = value;
      return checked;
    }
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
      if (value < -1 || value > 100) return CUDA_ERROR_INVALID_VALUE;
      function.carveout = value;
      return CUDA_SUCCESS;
    }
    const bool cluster = attribute > CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET &&
                         attribute <= CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE;
    if (cluster && Driver::get().record) return CUDA_SUCCESS;  // about how blocks are placed
    return cluster ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
  });
}

SG_API cuFuncSetCacheConfig(CUfunction handle, int config) {
  return with_function(handle, [&](Function&) -> CUresult {
    return config < 0 || config > 3 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  });
}

SG_API cuFuncSetSharedMemConfig(CUfunction handle, int config) {
  return with_function(handle, [&](Function&) -> CUresult {
    return config < 0 || config > 2 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  });
}

SG_API cuFuncGetModule(CUmodule* out, CUfunction handle) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUmodule>(function.module_handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuFuncGetName(const char** name, CUfunction handle) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!name) return CUDA_ERROR_INVALID_VALUE;
    *name = function.kernel->name.c_str();
    return CUDA_SUCCESS;
  });
}

SG_API cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
  return with_function(handle, [&](Function& function) { return param_info(*function.kernel, index, offset, size); });
}

SG_API cuFuncIsLoaded(int* state, CUfunction handle) {
  return with_function(handle, [&](Function&) -> CUresult {
    if (!state) return CUDA_ERROR_INVALID_VALUE;
    *state = 1;
    return CUDA_SUCCESS;
  });
}

SG_API cuFuncLoad(CUfunction handle) {
  return with_function(handle, [](Function&) -> CUresult { return CUDA_SUCCESS; });
}

SG_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction f, int block_size, size_t shared) {
  return active_blocks(blocks, f, block_size, shared, 0);
}
SG_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction f, int block_size, size_t shared,
                                                            unsigned flags) {
  return active_blocks(blocks, f, block_size, shared, flags);
}
SG_API cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction f, CUoccupancyB2DSize shared_of,
                                        size_t shared, int limit) {
  return potential_block_size(grid, block, f, shared_of, shared, limit, 0);
}
SG_API cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, CUfunction f, CUoccupancyB2DSize shared_of,
                                                 size_t shared, int limit, unsigned flags) {
  return potential_block_size(grid, block, f, shared_of, shared, limit, flags);
}

SG_API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction handle, int blocks, int block_size) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!bytes || blocks <= 0 || block_size <= 0) return CUDA_ERROR_INVALID_VALUE;
    const int used = static_cast<int>(function.kernel->static_shared_bytes) + kReservedSharedPerBlockBytes;
    const int room = Driver::get().shared_per_multiprocessor_bytes / blocks - used;
    *bytes = std::clamp(room, 0, function.max_dynamic_shared_bytes.load());
    return CUDA_SUCCESS;
  });
}

namespace {

/// The cluster's shape is in the launch's attributes; without one the cluster is a single block.
CUresult active_clusters(int* clusters, CUfunction handle, const CUlaunchConfig* config) {
  return with_function(handle, [&](Function& function) -> CUresult {
    if (!clusters || !config || (config->numAttrs > 0 && !config->attrs)) return CUDA_ERROR_INVALID_VALUE;
    if (!Driver::get().record) return CUDA_ERROR_NOT_SUPPORTED;
    uint64_t cluster_blocks = 1;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
      if (config->attrs[i].id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
      const auto& cluster = config->attrs[i].value.clusterDim;
      cluster_blocks = uint64_t{cluster.x} * cluster.y * cluster.z;
    }
    const uint64_t threads = uint64_t{config->blockDimX} * config->blockDimY * config->blockDimZ;
    if (cluster_blocks == 0 || threads == 0) return CUDA_ERROR_INVALID_VALUE;
    const int blocks = blocks_per_multiprocessor(*function.kernel, threads, config->sharedMemBytes);
    *clusters = static_cast<int>(static_cast<uint64_t>(blocks) * Driver::get().multiprocessors / cluster_blocks);
    return CUDA_SUCCESS;
  });
}

}  // namespace

SG_API cuOccupancyMaxActiveClusters(int* clusters, CUfunction f, const CUlaunchConfig* config) {
  return active_clusters(clusters, f, config);
}

SG_API cuOccupancyMaxPotentialClusterSize(int* size, CUfunction f, const CUlaunchConfig* config) {
  int clusters = 0;
  const CUresult result = size ? active_clusters(&clusters, f, config) : CUDA_ERROR_INVALID_VALUE;
  if (result == CUDA_SUCCESS) *size = kPortableClusterBlocks;
  return result;
}
