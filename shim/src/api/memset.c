#include <string.h>

#include "api.h"
#include "capture.h"
#include "copy.h"

typedef struct fill {
  uint64_t address, pitch_bytes, width, height;  // width in elements
  uint32_t value, element_bytes;
} fill;

static void fill_host(const fill* f) {
  for (uint64_t y = 0; y < f->height; y++) {
    uint8_t* row = (uint8_t*)(uintptr_t)(f->address + y * f->pitch_bytes);
    for (uint64_t x = 0; x < f->width; x++) memcpy(row + x * f->element_bytes, &f->value, f->element_bytes);
  }
}

static CUresult submit_fill(const fill* f, CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (f->width == 0 || f->height == 0) return CUDA_SUCCESS;
  uint64_t row_bytes, span_bytes;
  if (f->address % f->element_bytes != 0 || __builtin_mul_overflow(f->width, (uint64_t)f->element_bytes, &row_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (f->height > 1 && (f->pitch_bytes < row_bytes || f->pitch_bytes % f->element_bytes != 0)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (__builtin_mul_overflow(f->height - 1, f->pitch_bytes, &span_bytes) ||
      __builtin_add_overflow(span_bytes, row_bytes, &span_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  orion_place place;
  CUresult result = orion_place_device(f->address, span_bytes, false, &place);
  if (result != CUDA_SUCCESS) return result;
  const bool is_captured = orion_is_captured(stream);
  const bool elsewhere = !is_captured && place.context->device != stream->context->device;
  if ((place.side == ORION_SIDE_HOST && !is_captured) || elsewhere) result = orion_stream_synchronize(stream);
  if (result != CUDA_SUCCESS) return result;
  if (place.side == ORION_SIDE_HOST &&
      !is_captured) {  // pinned memory: this side's copy is the one that the program sees
    fill_host(f);
    return CUDA_SUCCESS;
  }
  if (elsewhere) stream = &place.context->null_stream;
  orion_op_memset op = {.op = {.code = ORION_OP_MEMSET},
                        .device_dst = f->address,
                        .pitch = f->pitch_bytes,
                        .width = f->width,
                        .height = f->height,
                        .value = f->value,
                        .element_bytes = f->element_bytes};
  result = orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  return result == CUDA_SUCCESS && elsewhere ? orion_stream_synchronize(stream) : result;
}

ORION_API CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, count, count, 1, value, 1}, stream);
}

ORION_API CUresult cuMemsetD16Async(CUdeviceptr address, unsigned short value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 2 * count, count, 1, value, 2}, stream);
}

ORION_API CUresult cuMemsetD32Async(CUdeviceptr address, unsigned int value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 4 * count, count, 1, value, 4}, stream);
}

ORION_API CUresult cuMemsetD2D8Async(CUdeviceptr address, size_t pitch_bytes, unsigned char value, size_t width,
                                     size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 1}, stream);
}

ORION_API CUresult cuMemsetD2D16Async(CUdeviceptr address, size_t pitch_bytes, unsigned short value, size_t width,
                                      size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 2}, stream);
}

ORION_API CUresult cuMemsetD2D32Async(CUdeviceptr address, size_t pitch_bytes, unsigned int value, size_t width,
                                      size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 4}, stream);
}

// On device memory the synchronous names return before the fill is done, natively too.

ORION_API CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t count) {
  ORION_COUNTED();

  return cuMemsetD8Async(address, value, count, NULL);
}

ORION_API CUresult cuMemsetD16_v2(CUdeviceptr address, unsigned short value, size_t count) {
  ORION_COUNTED();

  return cuMemsetD16Async(address, value, count, NULL);
}

ORION_API CUresult cuMemsetD32_v2(CUdeviceptr address, unsigned int value, size_t count) {
  ORION_COUNTED();

  return cuMemsetD32Async(address, value, count, NULL);
}

ORION_API CUresult cuMemsetD2D8_v2(CUdeviceptr address, size_t pitch_bytes, unsigned char value, size_t width,
                                   size_t height) {
  ORION_COUNTED();

  return cuMemsetD2D8Async(address, pitch_bytes, value, width, height, NULL);
}

ORION_API CUresult cuMemsetD2D16_v2(CUdeviceptr address, size_t pitch_bytes, unsigned short value, size_t width,
                                    size_t height) {
  ORION_COUNTED();

  return cuMemsetD2D16Async(address, pitch_bytes, value, width, height, NULL);
}

ORION_API CUresult cuMemsetD2D32_v2(CUdeviceptr address, size_t pitch_bytes, unsigned int value, size_t width,
                                    size_t height) {
  ORION_COUNTED();

  return cuMemsetD2D32Async(address, pitch_bytes, value, width, height, NULL);
}
