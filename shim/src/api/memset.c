#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "copy.h"
#include "host_function.h"

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

static void run_fill(void* data) {
  fill_host(data);
  free(data);
}

/// Page-locked memory of another server: the stream's worker does not have it, so the fill is a host function.
static CUresult fill_elsewhere(const fill* f, orion_stream* stream) {
  if (orion_is_captured(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  fill* copy = malloc(sizeof *copy);
  if (copy == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *copy = *f;
  const CUresult result = orion_host_function_enqueue(stream, run_fill, copy);
  if (result != CUDA_SUCCESS) free(copy);
  return result;
}

static CUresult submit(const fill* f, orion_stream* stream) {
  orion_op_memset op = {.op = {.code = ORION_OP_MEMSET},
                        .device_dst = f->address,
                        .pitch = f->pitch_bytes,
                        .width = f->width,
                        .height = f->height,
                        .value = f->value,
                        .element_bytes = f->element_bytes};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

/// Page-locked memory is filled by the worker in the stream's order, like device memory. Over a network the filled rows
/// come back like those of a copy: before the stream's next marker.
static CUresult fill_pinned(const fill* f, const orion_place* place, orion_stream* stream) {
  CUresult result = submit(f, stream);
  if (result != CUDA_SUCCESS || orion_is_captured(stream) || !orion_over_network(stream->session)) return result;
  const uint64_t offset = orion_arena_offset(stream, place, f->address);
  const uint64_t row_bytes = f->width * f->element_bytes;
  const orion_pulled_rows rows = {offset, row_bytes, f->height > 1 ? f->pitch_bytes : row_bytes, f->height};
  uint64_t value;
  result = orion_stream_ticket(stream, &value);
  orion_note_pulled_rows(stream->session, &rows, stream->word, value);
  return result;
}

/// `waits`: the calls without a stream return when host memory is filled. On device memory they return before, natively
/// too.
static CUresult submit_fill(const fill* f, CUstream handle, bool waits) {
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
  if (place.side == ORION_SIDE_HOST) {
    result = place.context->session == stream->session ? fill_pinned(f, &place, stream) : fill_elsewhere(f, stream);
    return result == CUDA_SUCCESS && waits && !orion_is_captured(stream) ? orion_copy_wait(stream) : result;
  }
  // Memory of another device than the stream's: its NULL stream does the work, after what the stream has so far.
  const bool elsewhere = !orion_is_captured(stream) && place.context->device != stream->context->device;
  if (!elsewhere) {
    result = submit(f, stream);
    const bool sees = place.is_variable && waits && !orion_is_captured(stream);
    return result == CUDA_SUCCESS && sees ? orion_copy_wait(stream) : result;
  }
  result = orion_stream_synchronize(stream);
  stream = &place.context->null_stream;
  if (result == CUDA_SUCCESS) result = submit(f, stream);
  return result == CUDA_SUCCESS ? orion_stream_synchronize(stream) : result;
}

ORION_API CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, count, count, 1, value, 1}, stream, false);
}

ORION_API CUresult cuMemsetD16Async(CUdeviceptr address, unsigned short value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 2 * count, count, 1, value, 2}, stream, false);
}

ORION_API CUresult cuMemsetD32Async(CUdeviceptr address, unsigned int value, size_t count, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 4 * count, count, 1, value, 4}, stream, false);
}

ORION_API CUresult cuMemsetD2D8Async(CUdeviceptr address, size_t pitch_bytes, unsigned char value, size_t width,
                                     size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 1}, stream, false);
}

ORION_API CUresult cuMemsetD2D16Async(CUdeviceptr address, size_t pitch_bytes, unsigned short value, size_t width,
                                      size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 2}, stream, false);
}

ORION_API CUresult cuMemsetD2D32Async(CUdeviceptr address, size_t pitch_bytes, unsigned int value, size_t width,
                                      size_t height, CUstream stream) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 4}, stream, false);
}

ORION_API CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t count) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, count, count, 1, value, 1}, NULL, true);
}

ORION_API CUresult cuMemsetD16_v2(CUdeviceptr address, unsigned short value, size_t count) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 2 * count, count, 1, value, 2}, NULL, true);
}

ORION_API CUresult cuMemsetD32_v2(CUdeviceptr address, unsigned int value, size_t count) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, 4 * count, count, 1, value, 4}, NULL, true);
}

ORION_API CUresult cuMemsetD2D8_v2(CUdeviceptr address, size_t pitch_bytes, unsigned char value, size_t width,
                                   size_t height) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 1}, NULL, true);
}

ORION_API CUresult cuMemsetD2D16_v2(CUdeviceptr address, size_t pitch_bytes, unsigned short value, size_t width,
                                    size_t height) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 2}, NULL, true);
}

ORION_API CUresult cuMemsetD2D32_v2(CUdeviceptr address, size_t pitch_bytes, unsigned int value, size_t width,
                                    size_t height) {
  ORION_COUNTED();

  return submit_fill(&(fill){address, pitch_bytes, width, height, value, 4}, NULL, true);
}
