// What loads and links share: the options that may reach the driver, and where its logs go.
#include "jit.h"

#include <stdlib.h>
#include <string.h>

static bool option_allowed(uint32_t option) {
  switch (option) {
    case CU_JIT_MAX_REGISTERS:
    case CU_JIT_THREADS_PER_BLOCK:
    case CU_JIT_OPTIMIZATION_LEVEL:
    case CU_JIT_TARGET_FROM_CUCONTEXT:
    case CU_JIT_TARGET:
    case CU_JIT_FALLBACK_STRATEGY:
    case CU_JIT_GENERATE_DEBUG_INFO:
    case CU_JIT_LOG_VERBOSE:
    case CU_JIT_GENERATE_LINE_INFO:
    case CU_JIT_CACHE_MODE:
    case CU_JIT_LTO:
    case CU_JIT_FTZ:
    case CU_JIT_PREC_DIV:
    case CU_JIT_PREC_SQRT:
    case CU_JIT_FMA:
    case CU_JIT_OPTIMIZE_UNUSED_DEVICE_VARIABLES:
    case CU_JIT_POSITION_INDEPENDENT_CODE:
    case CU_JIT_MIN_CTA_PER_SM:
    case CU_JIT_MAX_THREADS_PER_BLOCK:
    case CU_JIT_OVERRIDE_DIRECTIVE_VALUES:
      return true;
    default:
      return false;  // the others hold pointers or are the driver's own
  }
}

static void add_option(jit* j, CUjit_option option, uint64_t value) {
  j->options[j->count] = option;
  j->values[j->count++] = (void*)(uintptr_t)value;  // NOLINT(performance-no-int-to-ptr): how the driver takes integers
}

void jit_end(jit* j) {
  free(j->info);
  free(j->error);
}

int32_t jit_begin(const orion_engine* e, jit* j, const orion_op* op, uint32_t count, uint64_t log_off,
                  uint32_t info_bytes, uint32_t error_bytes) {
  memset(j, 0, sizeof *j);
  if (count > JIT_OPTIONS_MAX || op_tail_bytes(op) != count * 8) return CUDA_ERROR_INVALID_VALUE;
  if (info_bytes > LOG_MAX_BYTES || error_bytes > LOG_MAX_BYTES) return CUDA_ERROR_INVALID_VALUE;
  if ((info_bytes || error_bytes) && !part_inside(log_off, (uint64_t)info_bytes + error_bytes, e->arena_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (uint32_t i = 0; i < count; i++) {
    uint32_t pair[2];
    memcpy(pair, op_tail(op) + i * 8ull, sizeof pair);
    if (!option_allowed(pair[0])) return CUDA_ERROR_INVALID_VALUE;
    add_option(j, (CUjit_option)pair[0], pair[1]);
  }
  j->info_bytes = info_bytes;
  j->error_bytes = error_bytes;
  j->info = calloc(1, (size_t)info_bytes + 1);
  j->error = calloc(1, (size_t)error_bytes + 1);
  if (!j->info || !j->error) {
    jit_end(j);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (info_bytes) {
    add_option(j, CU_JIT_INFO_LOG_BUFFER, (uint64_t)(uintptr_t)j->info);
    add_option(j, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, info_bytes);
  }
  if (error_bytes) {
    add_option(j, CU_JIT_ERROR_LOG_BUFFER, (uint64_t)(uintptr_t)j->error);
    add_option(j, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, error_bytes);
  }
  return 0;
}

void jit_deliver(orion_engine* e, const jit* j, uint64_t log_off, uint32_t* info_bytes, uint32_t* error_bytes) {
  *info_bytes = (uint32_t)strnlen(j->info, j->info_bytes);
  *error_bytes = (uint32_t)strnlen(j->error, j->error_bytes);
  uint8_t* to = e->arena + log_off;
  if (*info_bytes) {
    memcpy(to, j->info, *info_bytes);
    if (e->net) net_bytes_out(e, log_off, *info_bytes);
  }
  if (*error_bytes) {
    memcpy(to + j->info_bytes, j->error, *error_bytes);
    if (e->net) net_bytes_out(e, log_off + j->info_bytes, *error_bytes);
  }
}
