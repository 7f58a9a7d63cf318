// Rows of memory: where they lie, and how they pass through staging. For 2D and 3D copies with and without arrays.
#include <string.h>

#include "api.h"
#include "copy.h"

CUresult orion_region_of(const orion_copy_end* e, const orion_volume* v, orion_region* r) {
  if (e->type != CU_MEMORYTYPE_HOST && e->type != CU_MEMORYTYPE_DEVICE && e->type != CU_MEMORYTYPE_UNIFIED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  uint64_t row_end, row_count_end;
  if (__builtin_add_overflow(e->x_bytes, v->width_bytes, &row_end) ||
      __builtin_add_overflow(e->y, v->height, &row_count_end)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool one_row = v->height == 1 && v->depth == 1 && e->y == 0 && e->z == 0;
  const bool one_slice = v->depth == 1 && e->z == 0;
  // A pitch or height that is not given (0) means: as much as the copy needs.
  r->pitch_bytes = (one_row || e->pitch_bytes == 0) && e->pitch_bytes < row_end ? row_end : e->pitch_bytes;
  r->rows = (one_slice || e->rows == 0) && e->rows < row_count_end ? row_count_end : e->rows;
  if (r->pitch_bytes < row_end || r->rows < row_count_end) return CUDA_ERROR_INVALID_VALUE;
  uint64_t slice_bytes, skip, span, last;
  if (__builtin_mul_overflow(r->pitch_bytes, r->rows, &slice_bytes) ||
      __builtin_mul_overflow(slice_bytes, (uint64_t)e->z, &skip) ||
      __builtin_add_overflow(skip, e->y * r->pitch_bytes + e->x_bytes, &skip) ||
      __builtin_mul_overflow(slice_bytes, v->depth - 1, &last) ||
      __builtin_add_overflow(last, (v->height - 1) * r->pitch_bytes + v->width_bytes, &span)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (e->type == CU_MEMORYTYPE_HOST) {
    if (e->host == NULL) return CUDA_ERROR_INVALID_VALUE;
    r->place = orion_place_host((const uint8_t*)e->host + skip, span);
    return CUDA_SUCCESS;
  }
  return orion_place_device(e->device + skip, span, e->type == CU_MEMORYTYPE_UNIFIED, &r->place);
}

/// Rows that one staging piece holds; the caller has made sure that one fits.
static uint64_t rows_of_piece(const orion_volume* v, uint64_t y) {
  const uint64_t fit = ORION_COPY_PIECE_BYTES / v->width_bytes;
  return v->height - y < fit ? v->height - y : fit;
}

CUresult orion_push_rows(orion_stream* stream, const orion_region* from, const orion_volume* v,
                         orion_submit_piece submit, const void* device) {
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < v->depth; z++) {
    for (uint64_t y = 0, rows; y < v->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(v, y);
      orion_copy_piece piece = {.first_row = y, .slice = z, .size = {v->width_bytes, rows, 1}};
      result = orion_staging_take(stream->session, rows * v->width_bytes, &piece.arena_offset);
      if (result != CUDA_SUCCESS) return result;
      uint8_t* gathered = stream->session->host_base + piece.arena_offset;
      for (uint64_t i = 0; i < rows; i++) {
        memcpy(gathered + i * v->width_bytes, (const void*)(uintptr_t)orion_row_address(from, y + i, z),
               v->width_bytes);
      }
      piece.bulk_seq = orion_push_host(stream->session, piece.arena_offset, rows * v->width_bytes);
      result = submit(stream, device, &piece);
      const CUresult given = orion_staging_give_behind(stream, piece.arena_offset);
      if (result == CUDA_SUCCESS) result = given;
    }
  }
  return result;
}

CUresult orion_pull_rows(orion_stream* stream, const orion_region* to, const orion_volume* v, orion_submit_piece submit,
                         const void* device) {
  orion_pull pull;
  orion_pull_begin(&pull, stream);
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < v->depth && result == CUDA_SUCCESS; z++) {
    for (uint64_t y = 0, rows; y < v->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(v, y);
      orion_copy_piece piece = {.first_row = y, .slice = z, .size = {v->width_bytes, rows, 1}};
      result = orion_pull_take(&pull, rows * v->width_bytes, &piece.arena_offset);
      if (result != CUDA_SUCCESS) break;
      result = submit(stream, device, &piece);
      const CUresult issued = orion_pull_issued(&pull, piece.arena_offset,
                                                (orion_rows){.first = (uint8_t*)(uintptr_t)orion_row_address(to, y, z),
                                                             .pitch_bytes = to->pitch_bytes,
                                                             .width_bytes = v->width_bytes,
                                                             .rows = rows});
      if (result == CUDA_SUCCESS) result = issued;
    }
  }
  return orion_pull_end(&pull, result);
}
