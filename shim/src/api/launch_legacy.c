// Launches as before CUDA 4.0: shape and parameters are set on the function, then it is launched. Some bindings still
// use them. As natively, one function is set up by one thread at a time.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "library.h"

#define PARAM_BUFFER_BYTES 4096u

typedef struct orion_legacy_launch {
  uint32_t block[3];
  uint32_t shared_bytes, param_bytes;
  uint8_t params[PARAM_BUFFER_BYTES];
} orion_legacy_launch;

static CUresult set_up(CUfunction handle, orion_legacy_launch** legacy) {
  orion_function* function;
  CUresult result = orion_enter();
  if (result == CUDA_SUCCESS) result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  if (function->legacy == NULL) {
    function->legacy = calloc(1, sizeof *function->legacy);
    if (function->legacy == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < 3; i++) function->legacy->block[i] = 1;
  }
  *legacy = function->legacy;
  return CUDA_SUCCESS;
}

#define ORION_ENTER_LEGACY(legacy, handle)               \
  orion_legacy_launch* legacy;                           \
  do {                                                   \
    const CUresult entered_ = set_up((handle), &legacy); \
    if (entered_ != CUDA_SUCCESS) return entered_;       \
  } while (0)

ORION_API CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
  ORION_ENTER_LEGACY(legacy, function);
  ORION_REQUIRE(x > 0 && y > 0 && z > 0, CUDA_ERROR_INVALID_VALUE);
  legacy->block[0] = (uint32_t)x;
  legacy->block[1] = (uint32_t)y;
  legacy->block[2] = (uint32_t)z;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuFuncSetSharedSize(CUfunction function, unsigned int bytes) {
  ORION_ENTER_LEGACY(legacy, function);
  legacy->shared_bytes = bytes;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuParamSetSize(CUfunction function, unsigned int bytes) {
  ORION_ENTER_LEGACY(legacy, function);
  ORION_REQUIRE(bytes <= PARAM_BUFFER_BYTES, CUDA_ERROR_INVALID_VALUE);
  legacy->param_bytes = bytes;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuParamSetv(CUfunction function, int offset, void* value, unsigned int bytes) {
  ORION_ENTER_LEGACY(legacy, function);
  ORION_REQUIRE(offset >= 0 && (uint32_t)offset <= PARAM_BUFFER_BYTES &&
                    bytes <= PARAM_BUFFER_BYTES - (uint32_t)offset && (value != NULL || bytes == 0),
                CUDA_ERROR_INVALID_VALUE);
  if (bytes != 0) memcpy(legacy->params + offset, value, bytes);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuParamSeti(CUfunction function, int offset, unsigned int value) {
  ORION_COUNTED();

  return cuParamSetv(function, offset, &value, sizeof value);
}

ORION_API CUresult cuParamSetf(CUfunction function, int offset, float value) {
  ORION_COUNTED();

  return cuParamSetv(function, offset, &value, sizeof value);
}

ORION_API CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream) {
  ORION_ENTER_LEGACY(legacy, function);
  ORION_REQUIRE(width > 0 && height > 0, CUDA_ERROR_INVALID_VALUE);
  size_t bytes = legacy->param_bytes;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, legacy->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                   CU_LAUNCH_PARAM_END};
  return cuLaunchKernel(function, (unsigned)width, (unsigned)height, 1, legacy->block[0], legacy->block[1],
                        legacy->block[2], legacy->shared_bytes, stream, NULL, extra);
}

ORION_API CUresult cuLaunchGrid(CUfunction function, int width, int height) {
  ORION_COUNTED();

  return cuLaunchGridAsync(function, width, height, NULL);
}

ORION_API CUresult cuLaunch(CUfunction function) {
  ORION_COUNTED();
  return cuLaunchGridAsync(function, 1, 1, NULL);
}
