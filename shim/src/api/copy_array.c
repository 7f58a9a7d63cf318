// Copies with an array at one end or both. Host memory that the worker cannot use in place goes through staging in
// groups of rows, as in copy_3d.c.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "array.h"
#include "copy.h"

/// One end: an array and a corner in it, or memory whose first row, row pitch and slice pitch are known.
typedef struct side {
  orion_array* array;
  uint64_t x_bytes, y, z;
  orion_place place;
  uint64_t pitch_bytes, rows;
} side;

typedef struct box {
  uint64_t width_bytes, height, depth;
} box;

enum { KIND_ARENA = 1, KIND_DEVICE = 2, KIND_ARRAY = 3 };

// ------------------------------------------------------------------------------------------------ ends

static bool inside(uint64_t start, uint64_t length, uint64_t end) { return start <= end && length <= end - start; }

/// The driver checks too, but what it says would come after the call.
static bool box_in_array(const side* s, const box* b) {
  const CUDA_ARRAY3D_DESCRIPTOR* d = &s->array->descriptor;
  uint32_t block;
  const uint64_t block_bytes = orion_format_bytes(d->Format, d->NumChannels, &block);
  if (block_bytes == 0) return true;
  const uint64_t width = (d->Width + block - 1) / block, height = (d->Height + block - 1) / block;
  if (b->width_bytes % block_bytes != 0 || s->x_bytes % block_bytes != 0) return false;
  return inside(s->x_bytes, b->width_bytes, width * block_bytes) && inside(s->y, b->height, height == 0 ? 1 : height) &&
         inside(s->z, b->depth, d->Depth == 0 ? 1 : d->Depth);
}

static CUresult make_memory_side(CUmemorytype type, const void* host, CUdeviceptr device, const box* b, side* s) {
  uint64_t row_end, row_count_end;
  if (__builtin_add_overflow(s->x_bytes, b->width_bytes, &row_end) ||
      __builtin_add_overflow(s->y, b->height, &row_count_end)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool one_slice = b->depth == 1 && s->z == 0;
  const bool one_row = one_slice && b->height == 1 && s->y == 0;
  // A pitch or height that is not given (0) means: as much as the copy needs.
  if ((one_row || s->pitch_bytes == 0) && s->pitch_bytes < row_end) s->pitch_bytes = row_end;
  if ((one_slice || s->rows == 0) && s->rows < row_count_end) s->rows = row_count_end;
  if (s->pitch_bytes < row_end || s->rows < row_count_end) return CUDA_ERROR_INVALID_VALUE;
  uint64_t slice_bytes, skip, span, last, rows_bytes;
  if (__builtin_mul_overflow(s->pitch_bytes, s->rows, &slice_bytes) ||
      __builtin_mul_overflow(slice_bytes, s->z, &skip) || __builtin_mul_overflow(s->y, s->pitch_bytes, &rows_bytes) ||
      __builtin_add_overflow(skip, rows_bytes, &skip) || __builtin_add_overflow(skip, s->x_bytes, &skip) ||
      __builtin_mul_overflow(slice_bytes, b->depth - 1, &last) ||
      __builtin_add_overflow(last, (b->height - 1) * s->pitch_bytes + b->width_bytes, &span)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (type == CU_MEMORYTYPE_HOST) {
    if (host == NULL) return CUDA_ERROR_INVALID_VALUE;
    s->place = orion_place_host((const uint8_t*)host + skip, span);
    return CUDA_SUCCESS;
  }
  return orion_place_device(device + skip, span, type == CU_MEMORYTYPE_UNIFIED, &s->place);
}

static CUresult make_side(CUmemorytype type, const void* host, CUdeviceptr device, CUarray array, const box* b,
                          side* s) {
  switch (type) {
    case CU_MEMORYTYPE_ARRAY: {
      const CUresult result = orion_array_of(array, &s->array);
      if (result != CUDA_SUCCESS) return result;
      return box_in_array(s, b) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    case CU_MEMORYTYPE_HOST:
    case CU_MEMORYTYPE_DEVICE:
    case CU_MEMORYTYPE_UNIFIED:
      return make_memory_side(type, host, device, b, s);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

static orion_context* context_of_side(const side* s) { return s->array != NULL ? s->array->context : s->place.context; }

static bool on_device(const side* s) { return s->array != NULL || s->place.side == ORION_SIDE_DEVICE; }

// ------------------------------------------------------------------------------------------------ operations

/// What one operation moves: rows from `first_row` of slice `slice`, or everything.
typedef struct part {
  uint64_t first_row, slice;
  box size;
} part;

typedef struct wire_end {
  uint64_t address, pitch_bytes, rows, x_bytes, y, z;
  uint32_t kind, context;
} wire_end;

static uint64_t row_address(const side* s, uint64_t y, uint64_t z) {
  return s->place.address + (z * s->rows + y) * s->pitch_bytes;
}

static wire_end wire_device(const side* s, const part* p) {
  if (s->array != NULL) {
    return (wire_end){.address = s->array->entry.index,
                      .x_bytes = s->x_bytes,
                      .y = s->y + p->first_row,
                      .z = s->z + p->slice,
                      .kind = KIND_ARRAY,
                      .context = s->array->context->entry.index};
  }
  return (wire_end){.address = row_address(s, p->first_row, p->slice),
                    .pitch_bytes = s->pitch_bytes,
                    .rows = s->rows,
                    .kind = KIND_DEVICE,
                    .context = s->place.context->entry.index};
}

static wire_end wire_arena(uint64_t offset, uint64_t pitch_bytes, uint64_t rows, const orion_stream* stream) {
  return (wire_end){.address = offset,
                    .pitch_bytes = pitch_bytes,
                    .rows = rows,
                    .kind = KIND_ARENA,
                    .context = stream->context->entry.index};
}

static CUresult submit(orion_stream* stream, const wire_end* to, const wire_end* from, const box* b,
                       uint64_t bulk_seq) {
  orion_op_copy_3d op = {.op = {.code = ORION_OP_COPY_3D, .bulk_seq = bulk_seq},
                         .src_x_bytes = from->x_bytes,
                         .src_y = from->y,
                         .src_z = from->z,
                         .dst_x_bytes = to->x_bytes,
                         .dst_y = to->y,
                         .dst_z = to->z,
                         .width_bytes = b->width_bytes,
                         .height = b->height,
                         .depth = b->depth,
                         .src_address = from->address,
                         .src_pitch = from->pitch_bytes,
                         .src_height = from->rows,
                         .dst_address = to->address,
                         .dst_pitch = to->pitch_bytes,
                         .dst_height = to->rows,
                         .src_kind = from->kind,
                         .dst_kind = to->kind,
                         .src_context = from->context,
                         .dst_context = to->context};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

static CUresult copy_in_place(orion_stream* stream, const side* to, const side* from, const box* b, bool wait) {
  const part all = {.size = *b};
  const bool to_array = on_device(to);
  const side *host = to_array ? from : to, *device = to_array ? to : from;
  const uint64_t offset = host->place.address - (uint64_t)(uintptr_t)stream->session->host_base;
  const wire_end arena = wire_arena(offset, host->pitch_bytes, host->rows, stream), other = wire_device(device, &all);
  CUresult result;
  if (to_array) {
    const uint64_t span = ((b->depth - 1) * host->rows + b->height - 1) * host->pitch_bytes + b->width_bytes;
    result = submit(stream, &other, &arena, b, orion_push_program_memory(stream, offset, span));
  } else {
    result = submit(stream, &arena, &other, b, 0);
  }
  return result == CUDA_SUCCESS && wait ? orion_copy_wait(stream) : result;
}

static uint64_t rows_of_piece(const box* b, uint64_t y) {
  const uint64_t fit = ORION_COPY_PIECE_BYTES / b->width_bytes;
  return b->height - y < fit ? b->height - y : fit;
}

static CUresult push(orion_stream* stream, const side* to, const side* from, const box* b) {
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < b->depth; z++) {
    for (uint64_t y = 0, rows; y < b->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(b, y);
      const part piece = {y, z, {b->width_bytes, rows, 1}};
      uint64_t offset;
      result = orion_staging_take(stream->session, rows * b->width_bytes, &offset);
      if (result != CUDA_SUCCESS) return result;
      uint8_t* gathered = stream->session->host_base + offset;
      for (uint64_t i = 0; i < rows; i++) {
        memcpy(gathered + i * b->width_bytes, (const void*)(uintptr_t)row_address(from, y + i, z), b->width_bytes);
      }
      const uint64_t sequence = orion_push_host(stream->session, offset, rows * b->width_bytes);
      const wire_end device = wire_device(to, &piece), arena = wire_arena(offset, b->width_bytes, rows, stream);
      result = submit(stream, &device, &arena, &piece.size, sequence);
      const CUresult given = orion_staging_give_behind(stream, offset);
      if (result == CUDA_SUCCESS) result = given;
    }
  }
  return result;
}

static CUresult pull(orion_stream* stream, const side* to, const side* from, const box* b) {
  orion_pull pieces;
  orion_pull_begin(&pieces, stream);
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < b->depth && result == CUDA_SUCCESS; z++) {
    for (uint64_t y = 0, rows; y < b->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(b, y);
      const part piece = {y, z, {b->width_bytes, rows, 1}};
      uint64_t offset;
      result = orion_pull_take(&pieces, rows * b->width_bytes, &offset);
      if (result != CUDA_SUCCESS) break;
      const wire_end device = wire_device(from, &piece), arena = wire_arena(offset, b->width_bytes, rows, stream);
      result = submit(stream, &arena, &device, &piece.size, 0);
      const CUresult issued = orion_pull_issued(&pieces, offset,
                                                (orion_rows){.first = (uint8_t*)(uintptr_t)row_address(to, y, z),
                                                             .pitch_bytes = to->pitch_bytes,
                                                             .width_bytes = b->width_bytes,
                                                             .rows = rows});
      if (result == CUDA_SUCCESS) result = issued;
    }
  }
  return orion_pull_end(&pieces, result);
}

static CUresult copy_host(orion_stream* stream, const side* to, const side* from, const box* b, bool wait) {
  const bool to_array = on_device(to);
  const orion_place* host = to_array ? &from->place : &to->place;
  // Over a network whole ranges come back: in place they would write over the gaps between the rows.
  const bool in_place =
      host->pinned && host->context->session == stream->session && (to_array || !orion_over_network(stream->session));
  if (in_place) return copy_in_place(stream, to, from, b, wait);
  ORION_REQUIRE(b->width_bytes <= ORION_COPY_PIECE_BYTES, CUDA_ERROR_INVALID_VALUE);  // no array is that wide
  return to_array ? push(stream, to, from, b) : pull(stream, to, from, b);
}

/// Between two servers the bytes pass through the client.
static CUresult copy_across_sessions(orion_stream* stream, const side* to, const side* from, const box* b) {
  CUresult result = orion_stream_synchronize(stream);
  if (result != CUDA_SUCCESS) return result;
  void* bounce = malloc(b->width_bytes * b->height * b->depth);
  if (bounce == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  const side host = {.place = {.side = ORION_SIDE_HOST, .address = (uint64_t)(uintptr_t)bounce},
                     .pitch_bytes = b->width_bytes,
                     .rows = b->height};
  result = copy_host(&context_of_side(from)->null_stream, &host, from, b, true);
  if (result == CUDA_SUCCESS) result = copy_host(&context_of_side(to)->null_stream, to, &host, b, true);
  if (result == CUDA_SUCCESS) result = orion_copy_wait(&context_of_side(to)->null_stream);
  free(bounce);
  return result;
}

static CUresult copy_sides(orion_stream* stream, const side* to, const side* from, const box* b, bool wait) {
  const bool between = on_device(to) && on_device(from);
  orion_context* home = context_of_side(on_device(to) ? to : from);
  if (between && context_of_side(to)->session != context_of_side(from)->session) {
    return copy_across_sessions(stream, to, from, b);
  }
  const bool elsewhere = home->device != stream->context->device;
  if (elsewhere) {
    // The owner's NULL stream does the work, after what the stream has so far.
    const CUresult result = orion_stream_synchronize(stream);
    if (result != CUDA_SUCCESS) return result;
    stream = &home->null_stream;
  }
  CUresult result;
  if (between) {
    const part all = {.size = *b};
    const wire_end to_end = wire_device(to, &all), from_end = wire_device(from, &all);
    result = submit(stream, &to_end, &from_end, b, 0);
  } else {
    result = copy_host(stream, to, from, b, wait || elsewhere);
  }
  return result == CUDA_SUCCESS && elsewhere ? orion_copy_wait(stream) : result;
}

CUresult orion_copy_with_array(const CUDA_MEMCPY3D* c, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  const box b = {c->WidthInBytes, c->Height, c->Depth};
  if (b.width_bytes == 0 || b.height == 0 || b.depth == 0) return CUDA_SUCCESS;
  side to = {.x_bytes = c->dstXInBytes, .y = c->dstY, .z = c->dstZ, .pitch_bytes = c->dstPitch, .rows = c->dstHeight};
  side from = {.x_bytes = c->srcXInBytes, .y = c->srcY, .z = c->srcZ, .pitch_bytes = c->srcPitch, .rows = c->srcHeight};
  CUresult result = make_side(c->dstMemoryType, c->dstHost, c->dstDevice, c->dstArray, &b, &to);
  if (result == CUDA_SUCCESS) result = make_side(c->srcMemoryType, c->srcHost, c->srcDevice, c->srcArray, &b, &from);
  return result == CUDA_SUCCESS ? copy_sides(stream, &to, &from, &b, wait) : result;
}

// ------------------------------------------------------------------------------------------------ one row

static CUresult copy_row(CUDA_MEMCPY3D* c, size_t bytes, CUstream stream, bool wait) {
  c->WidthInBytes = bytes;
  c->Height = c->Depth = 1;
  return orion_copy_with_array(c, stream, wait);
}

static CUresult host_to_array(CUarray to, size_t offset, const void* from, size_t bytes, CUstream stream, bool wait) {
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                     .srcHost = from,
                     .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                     .dstArray = to,
                     .dstXInBytes = offset};
  return copy_row(&c, bytes, stream, wait);
}

static CUresult array_to_host(void* to, CUarray from, size_t offset, size_t bytes, CUstream stream, bool wait) {
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                     .srcArray = from,
                     .srcXInBytes = offset,
                     .dstMemoryType = CU_MEMORYTYPE_HOST,
                     .dstHost = to};
  return copy_row(&c, bytes, stream, wait);
}

ORION_API CUresult cuMemcpyHtoA_v2(CUarray to, size_t offset, const void* from, size_t bytes) {
  ORION_COUNTED();
  return host_to_array(to, offset, from, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyHtoAAsync_v2(CUarray to, size_t offset, const void* from, size_t bytes, CUstream stream) {
  ORION_COUNTED();
  return host_to_array(to, offset, from, bytes, stream, false);
}

ORION_API CUresult cuMemcpyAtoH_v2(void* to, CUarray from, size_t offset, size_t bytes) {
  ORION_COUNTED();
  return array_to_host(to, from, offset, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyAtoHAsync_v2(void* to, CUarray from, size_t offset, size_t bytes, CUstream stream) {
  ORION_COUNTED();
  return array_to_host(to, from, offset, bytes, stream, false);
}

ORION_API CUresult cuMemcpyDtoA_v2(CUarray to, size_t offset, CUdeviceptr from, size_t bytes) {
  ORION_COUNTED();
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                     .srcDevice = from,
                     .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                     .dstArray = to,
                     .dstXInBytes = offset};
  return copy_row(&c, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyAtoD_v2(CUdeviceptr to, CUarray from, size_t offset, size_t bytes) {
  ORION_COUNTED();
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                     .srcArray = from,
                     .srcXInBytes = offset,
                     .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                     .dstDevice = to};
  return copy_row(&c, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset, size_t bytes) {
  ORION_COUNTED();
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                     .srcArray = from,
                     .srcXInBytes = from_offset,
                     .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                     .dstArray = to,
                     .dstXInBytes = to_offset};
  return copy_row(&c, bytes, NULL, true);
}
