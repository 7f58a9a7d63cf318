// Launches: validated against the snapshot, packed into this thread's scratch, pushed. No lock, no allocation.
//
// The scratch holds the operation as it will stand in the ring, fields and tail in one piece, and nothing that the
// program owns is read after the ring's slots are reserved: its memory may fault.
#include <string.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "library.h"
#include "managed.h"
#include "orion_launch.h"

#define LAUNCH_COOPERATIVE 1u
#define PORTABLE_CLUSTER_BLOCKS 8u

typedef struct launch_shape {
  uint32_t grid[3], block[3];
  uint32_t dynamic_shared_bytes;
} launch_shape;

/// Registers are given out to whole warps in units of 256.
static bool registers_fit(const orion_function* function, uint64_t threads) {
  const int32_t* limit = function->context->device->info->attributes;
  const uint64_t per_thread = (uint32_t)orion_function_attribute(function, CU_FUNC_ATTRIBUTE_NUM_REGS);
  const uint64_t per_warp = (per_thread * 32 + 255) & ~255ull;
  return (threads + 31) / 32 * per_warp <= (uint32_t)limit[CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK];
}

/// 1 to `limit`, in one comparison: 0 wraps round.
static inline bool within(uint32_t value, int32_t limit) { return value - 1 < (uint32_t)limit; }

static inline CUresult check_shape(const orion_function* function, const launch_shape* shape) {
  const int32_t* limit = function->context->device->info->attributes;
  if (!within(shape->grid[0], limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X]) ||
      !within(shape->grid[1], limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y]) ||
      !within(shape->grid[2], limit[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z]) ||
      !within(shape->block[0], limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X]) ||
      !within(shape->block[1], limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y]) ||
      !within(shape->block[2], limit[CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z])) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint64_t threads = (uint64_t)shape->block[0] * shape->block[1] * shape->block[2];
  if (threads > (uint32_t)limit[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK]) return CUDA_ERROR_INVALID_VALUE;
  if (shape->dynamic_shared_bytes >
      (uint32_t)orion_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (threads > (uint32_t)orion_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)) {
    return registers_fit(function, threads) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  }
  return CUDA_SUCCESS;
}

/// `extra` holds (key, value) pairs: the packed buffer and its size.
static CUresult pack_extra(void** extra, const void** buffer, uint32_t* bytes) {
  const size_t* size = NULL;
  *buffer = NULL;
  for (; extra[0] != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) {
      *buffer = extra[1];
    } else if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) {
      size = extra[1];
    } else {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  *bytes = 0;
  if (size == NULL || *size == 0) return CUDA_SUCCESS;
  if (*buffer == NULL || *size > ORION_PARAM_MAX_BYTES) return CUDA_ERROR_INVALID_VALUE;
  *bytes = (uint32_t)*size;
  return CUDA_SUCCESS;
}

static inline CUresult pack_params(const orion_function* function, void* const* params, uint8_t* to) {
  if (params == NULL) return CUDA_ERROR_INVALID_VALUE;
  // In locals, since for the compiler a store through `to` may change the function.
  const uint32_t count = function->param_count;
  const uint32_t *offsets = function->param_offsets, *sizes = function->param_sizes;
  for (uint32_t i = 0; i < count; i++) {
    const void* from = params[i];
    if (__builtin_expect(from == NULL, 0)) return CUDA_ERROR_INVALID_VALUE;
    uint8_t* at = to + offsets[i];
    const uint32_t bytes = sizes[i];
    if (__builtin_expect(bytes == 8, 1)) {
      memcpy(at, from, 8);
    } else if (bytes == 4) {
      memcpy(at, from, 4);
    } else {
      memcpy(at, from, bytes);
    }
  }
  return CUDA_SUCCESS;
}

static inline CUresult pack(const orion_function* function, void** params, void** extra, uint8_t* to,
                            uint32_t* param_bytes) {
  if (extra != NULL) {
    if (params != NULL) return CUDA_ERROR_INVALID_VALUE;
    const void* buffer;
    const CUresult result = pack_extra(extra, &buffer, param_bytes);
    if (result != CUDA_SUCCESS) return result;
    if (function->layout_known && *param_bytes < function->param_bytes) return CUDA_ERROR_INVALID_VALUE;
    if (function->layout_known) *param_bytes = function->param_bytes;
    if (*param_bytes != 0) memcpy(to, buffer, *param_bytes);
    return CUDA_SUCCESS;
  }
  *param_bytes = function->param_bytes;
  if (!function->layout_known) return CUDA_ERROR_NOT_SUPPORTED;
  return function->param_count == 0 ? CUDA_SUCCESS : pack_params(function, params, to);
}

/// All blocks of a cooperative launch must run at once. The limit is asked for once for each configuration in turn.
static CUresult check_cooperative(orion_function* function, const launch_shape* shape) {
  const int32_t* attributes = function->context->device->info->attributes;
  if (attributes[CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH] == 0) return CUDA_ERROR_NOT_SUPPORTED;
  const uint32_t threads = shape->block[0] * shape->block[1] * shape->block[2];
  const uint64_t key = (uint64_t)threads << 32 | shape->dynamic_shared_bytes;
  uint32_t limit = atomic_load_explicit(&function->cooperative_limit, memory_order_relaxed);
  if (atomic_load_explicit(&function->cooperative_key, memory_order_acquire) != key) {
    int32_t blocks;
    const CUresult result = orion_occupancy_blocks(function, (int32_t)threads, shape->dynamic_shared_bytes, 0, &blocks);
    if (result != CUDA_SUCCESS) return result;
    limit = (uint32_t)blocks * (uint32_t)attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
    atomic_store_explicit(&function->cooperative_key, 0, memory_order_relaxed);
    atomic_store_explicit(&function->cooperative_limit, limit, memory_order_relaxed);
    atomic_store_explicit(&function->cooperative_key, key, memory_order_release);
  }
  const uint64_t blocks = (uint64_t)shape->grid[0] * shape->grid[1] * shape->grid[2];
  return blocks > limit ? CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE : CUDA_SUCCESS;
}

static CUresult find_function(CUfunction handle, CUstream stream_handle, orion_stream** stream,
                              orion_function** function, orion_thread** thread) {
  CUresult result = orion_enter();
  if (result == CUDA_SUCCESS) result = orion_function_of(handle, function);
  if (result == CUDA_SUCCESS) result = orion_resolve_stream(stream_handle, stream);
  if (result != CUDA_SUCCESS) return result;
  if ((*function)->context != (*stream)->context) return CUDA_ERROR_INVALID_HANDLE;
  *thread = orion_thread_state();
  return *thread == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static CUresult after_launch(orion_stream* stream, CUresult result) {
  const bool waits = orion_launch_is_blocking && !orion_is_captured(stream);
  return result == CUDA_SUCCESS && waits ? orion_stream_synchronize(stream) : result;
}

/// `second`: the launch's flags, or the count of its attributes.
static inline void fill(orion_op_launch* op, uint16_t code, const orion_function* function, uint32_t second,
                        const launch_shape* shape, uint32_t param_bytes) {
  _Static_assert(sizeof(orion_op_launch_ex) == sizeof *op &&
                     offsetof(orion_op_launch_ex, attribute_count) == offsetof(orion_op_launch, launch_flags) &&
                     offsetof(orion_op_launch_ex, param_bytes) == offsetof(orion_op_launch, param_bytes),
                 "LAUNCH_EX differs in the meaning of one field");
  *op = (orion_op_launch){.op = {.code = code},
                          .function = function->entry.index,
                          .launch_flags = second,
                          .grid_x = shape->grid[0],
                          .grid_y = shape->grid[1],
                          .grid_z = shape->grid[2],
                          .block_x = shape->block[0],
                          .block_y = shape->block[1],
                          .block_z = shape->block[2],
                          .dynamic_shared_bytes = shape->dynamic_shared_bytes,
                          .param_bytes = param_bytes};
}

static inline CUresult launch(CUfunction handle, const launch_shape* shape, CUstream stream_handle, void** params,
                              void** extra, uint32_t flags) {
  orion_stream* stream;
  orion_function* function;
  orion_thread* thread;
  CUresult result = find_function(handle, stream_handle, &stream, &function, &thread);
  if (result == CUDA_SUCCESS) result = check_shape(function, shape);
  if (result != CUDA_SUCCESS) return result;
  orion_op_launch* op = (orion_op_launch*)thread->scratch;
  uint8_t* tail = thread->scratch + sizeof *op;
  uint32_t param_bytes;
  result = pack(function, params, extra, tail, &param_bytes);
  if (result == CUDA_SUCCESS && (flags & LAUNCH_COOPERATIVE) != 0) result = check_cooperative(function, shape);
  if (result != CUDA_SUCCESS) return result;
  fill(op, ORION_OP_LAUNCH, function, flags, shape, param_bytes);
  result = orion_managed_before(stream);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t seen = orion_coherent_before(stream, &op->op, tail, param_bytes);
  result = orion_stream_submit(stream, &op->op, sizeof *op, tail, param_bytes);
  orion_coherent_after(stream, seen);
  return after_launch(stream, result);
}

ORION_API CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                  unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                  unsigned int dynamic_shared_bytes, CUstream stream, void** params, void** extra) {
  ORION_COUNTED();

  const launch_shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared_bytes};
  return launch(function, &shape, stream, params, extra, 0);
}

ORION_API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                             unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                             unsigned int block_z, unsigned int dynamic_shared_bytes, CUstream stream,
                                             void** params) {
  ORION_COUNTED();

  const launch_shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_shared_bytes};
  return launch(function, &shape, stream, params, NULL, LAUNCH_COOPERATIVE);
}

/// What the driver refuses at the call. A size of 0 is left to it.
static bool is_valid_cluster(const orion_function* function, const launch_shape* shape, const CUlaunchAttribute* a) {
  const uint32_t blocks[3] = {a->value.clusterDim.x, a->value.clusterDim.y, a->value.clusterDim.z};
  uint64_t total = 1;
  for (int i = 0; i < 3; i++) {
    if (blocks[i] == 0) return true;
    if (shape->grid[i] % blocks[i] != 0) return false;
    total *= blocks[i];  // each divides its side of the grid, so that this cannot overflow
  }
  return total <= PORTABLE_CLUSTER_BLOCKS ||
         orion_function_attribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) != 0;
}

static CUresult refuse_attribute(uint32_t id) {
  static _Atomic uint32_t told;
  const uint32_t bit = 1u << id;
  if ((atomic_fetch_or(&told, bit) & bit) == 0) {
    orion_log(ORION_LOG_WARN,
              "launch attribute %u is not implemented: launches with it return CUDA_ERROR_NOT_SUPPORTED", (unsigned)id);
  }
  return CUDA_ERROR_NOT_SUPPORTED;
}

/// Memory that the worker does not know makes no difference to a launch: the hint is left out.
static bool window_travels(const CUaccessPolicyWindow* window) {
  if (window->num_bytes == 0) return true;
  const orion_range range = orion_find_range((uint64_t)(uintptr_t)window->base_ptr, window->num_bytes);
  return range.whole &&
         (orion_is_device(range.kind) || range.kind == ORION_MEMORY_PINNED || range.kind == ORION_MEMORY_ADOPTED);
}

/// Appends the attributes that travel. Events and graph nodes are handles of this process: refused until they are
/// mapped.
static CUresult pack_attributes(const CUlaunchConfig* config, const orion_function* function, const launch_shape* shape,
                                uint8_t* scratch, uint32_t* count, bool* cooperative) {
  *count = 0;
  *cooperative = false;
  if (config->attrs == NULL) return CUDA_ERROR_INVALID_VALUE;
  for (uint32_t i = 0; i < config->numAttrs; i++) {
    const CUlaunchAttribute* attribute = &config->attrs[i];
    switch (attribute->id) {
      case CU_LAUNCH_ATTRIBUTE_IGNORE:
        continue;
      case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
        if (!window_travels(&attribute->value.accessPolicyWindow)) continue;
        break;
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        *cooperative = attribute->value.cooperative != 0;
        break;
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        if (!is_valid_cluster(function, shape, attribute)) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
        break;
      default:
        if ((unsigned)attribute->id >= CU_LAUNCH_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
        if (!orion_launch_attribute_travels((uint32_t)attribute->id)) return refuse_attribute((uint32_t)attribute->id);
    }
    if (*count == ORION_LAUNCH_ATTRIBUTES_MAX) return CUDA_ERROR_INVALID_VALUE;
    orion_wire_attribute packed = {.id = (uint32_t)attribute->id};
    _Static_assert(sizeof packed.value == sizeof attribute->value, "a value travels whole");
    memcpy(packed.value, &attribute->value, sizeof packed.value);
    memcpy(scratch + (size_t)*count * sizeof packed, &packed, sizeof packed);
    ++*count;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** params, void** extra) {
  ORION_ENTER();
  ORION_REQUIRE(config != NULL, CUDA_ERROR_INVALID_VALUE);
  const launch_shape shape = {{config->gridDimX, config->gridDimY, config->gridDimZ},
                              {config->blockDimX, config->blockDimY, config->blockDimZ},
                              config->sharedMemBytes};
  if (config->numAttrs == 0) return launch(handle, &shape, config->hStream, params, extra, 0);
  orion_stream* stream;
  orion_function* function;
  orion_thread* thread;
  CUresult result = find_function(handle, config->hStream, &stream, &function, &thread);
  if (result == CUDA_SUCCESS) result = check_shape(function, &shape);
  uint32_t attribute_count = 0, param_bytes = 0;
  bool cooperative = false;
  if (result != CUDA_SUCCESS) return result;
  orion_op_launch* op = (orion_op_launch*)thread->scratch;
  uint8_t* tail = thread->scratch + sizeof *op;
  result = pack_attributes(config, function, &shape, tail, &attribute_count, &cooperative);
  if (result != CUDA_SUCCESS) return result;
  const uint32_t attribute_bytes = attribute_count * (uint32_t)sizeof(orion_wire_attribute);
  _Static_assert(sizeof *op + ORION_LAUNCH_ATTRIBUTES_MAX * sizeof(orion_wire_attribute) + ORION_PARAM_MAX_BYTES <=
                     ORION_OP_MAX_BYTES,
                 "the scratch holds every launch");
  result = pack(function, params, extra, tail + attribute_bytes, &param_bytes);
  if (result == CUDA_SUCCESS && cooperative) result = check_cooperative(function, &shape);
  if (result != CUDA_SUCCESS) return result;
  fill(op, ORION_OP_LAUNCH_EX, function, attribute_count, &shape, param_bytes);
  result = orion_managed_before(stream);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t seen = orion_coherent_before(stream, &op->op, tail + attribute_bytes, param_bytes);
  result = orion_stream_submit(stream, &op->op, sizeof *op, tail, attribute_bytes + param_bytes);
  orion_coherent_after(stream, seen);
  return after_launch(stream, result);
}
