// Copies with an array at one end or both. Host memory that the worker cannot use in place goes through staging in
// groups of rows (copy_rows.c).
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "array.h"
#include "copy.h"
#include "relay.h"

typedef orion_copy_side side;

enum { KIND_ARENA = 1, KIND_DEVICE = 2, KIND_ARRAY = 3 };

// ------------------------------------------------------------------------------------------------ ends

static bool inside(uint64_t start, uint64_t length, uint64_t end) { return start <= end && length <= end - start; }

/// The driver checks too, but what it says would come after the call.
static bool box_in_array(const side* s, const orion_volume* b) {
  const CUDA_ARRAY3D_DESCRIPTOR* d = &s->array->descriptor;
  uint32_t block;
  const uint64_t block_bytes = orion_format_bytes(d->Format, d->NumChannels, &block);
  if (block_bytes == 0) return true;
  const uint64_t width = (d->Width + block - 1) / block, height = (d->Height + block - 1) / block;
  if (b->width_bytes % block_bytes != 0 || s->x_bytes % block_bytes != 0) return false;
  return inside(s->x_bytes, b->width_bytes, width * block_bytes) && inside(s->y, b->height, height == 0 ? 1 : height) &&
         inside(s->z, b->depth, d->Depth == 0 ? 1 : d->Depth);
}

static CUresult make_side(const orion_copy_end* e, CUarray array, const orion_volume* b, side* s) {
  *s = (side){.x_bytes = e->x_bytes, .y = e->y, .z = e->z};
  if (e->type != CU_MEMORYTYPE_ARRAY) return orion_region_of(e, b, &s->region);
  const CUresult result = orion_array_of(array, &s->array);
  if (result != CUDA_SUCCESS) return result;
  return box_in_array(s, b) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static orion_context* context_of_side(const side* s) {
  return s->array != NULL ? s->array->context : s->region.place.context;
}

static orion_place place_of(const side* s) {
  return s->array != NULL ? (orion_place){.side = ORION_SIDE_DEVICE, .context = s->array->context} : s->region.place;
}

static bool on_device(const side* s) { return s->array != NULL || s->region.place.side == ORION_SIDE_DEVICE; }

// ------------------------------------------------------------------------------------------------ operations

typedef struct wire_end {
  uint64_t address, pitch_bytes, rows, x_bytes, y, z;
  uint32_t kind, context;
} wire_end;

/// From row `first_row` of slice `slice` of the copy on.
static wire_end wire_device(const side* s, uint64_t first_row, uint64_t slice) {
  if (s->array != NULL) {
    return (wire_end){.address = s->array->entry.index,
                      .x_bytes = s->x_bytes,
                      .y = s->y + first_row,
                      .z = s->z + slice,
                      .kind = KIND_ARRAY,
                      .context = s->array->context->entry.index};
  }
  return (wire_end){.address = orion_row_address(&s->region, first_row, slice),
                    .pitch_bytes = s->region.pitch_bytes,
                    .rows = s->region.rows,
                    .kind = KIND_DEVICE,
                    .context = s->region.place.context->entry.index};
}

static wire_end wire_arena(uint64_t offset, uint64_t pitch_bytes, uint64_t rows, const orion_stream* stream) {
  return (wire_end){.address = offset,
                    .pitch_bytes = pitch_bytes,
                    .rows = rows,
                    .kind = KIND_ARENA,
                    .context = stream->context->entry.index};
}

static CUresult submit(orion_stream* stream, const wire_end* to, const wire_end* from, const orion_volume* b,
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

static CUresult copy_in_place(orion_stream* stream, const side* to, const side* from, const orion_volume* b,
                              bool wait) {
  const bool to_array = on_device(to);
  const side *host = to_array ? from : to, *device = to_array ? to : from;
  const uint64_t offset = orion_arena_offset(stream, &host->region.place, host->region.place.address);
  const wire_end arena = wire_arena(offset, host->region.pitch_bytes, host->region.rows, stream),
                 other = wire_device(device, 0, 0);
  CUresult result;
  if (to_array) {
    const uint64_t span =
        ((b->depth - 1) * host->region.rows + b->height - 1) * host->region.pitch_bytes + b->width_bytes;
    result = submit(stream, &other, &arena, b, orion_push_program_memory(stream, offset, span));
  } else {
    result = submit(stream, &arena, &other, b, 0);
  }
  return result == CUDA_SUCCESS && wait ? orion_copy_wait(stream) : result;
}

CUresult orion_side_submit(orion_stream* stream, const side* array_or_device, const orion_copy_piece* piece,
                           bool to_device) {
  wire_end device = wire_device(array_or_device, piece->first_row, piece->slice);
  device.x_bytes += piece->x_bytes;
  const wire_end arena = wire_arena(piece->arena_offset, piece->size.width_bytes, piece->size.height, stream);
  return submit(stream, to_device ? &device : &arena, to_device ? &arena : &device, &piece->size, piece->bulk_seq);
}

static CUresult submit_pushed(orion_stream* stream, const void* device, const orion_copy_piece* piece) {
  return orion_side_submit(stream, device, piece, true);
}

static CUresult submit_pulled(orion_stream* stream, const void* device, const orion_copy_piece* piece) {
  return orion_side_submit(stream, device, piece, false);
}

static CUresult copy_host(orion_stream* stream, const side* to, const side* from, const orion_volume* b, bool wait) {
  const bool to_array = on_device(to);
  const orion_place* host = to_array ? &from->region.place : &to->region.place;
  // Over a network whole ranges come back: in place they would write over the gaps between the rows.
  const bool in_place =
      host->pinned && host->context->session == stream->session && (to_array || !orion_over_network(stream->session));
  if (in_place) return copy_in_place(stream, to, from, b, wait);
  ORION_REQUIRE(b->width_bytes <= ORION_COPY_PIECE_BYTES, CUDA_ERROR_INVALID_VALUE);  // no array is that wide
  return to_array ? orion_push_rows(stream, &from->region, b, submit_pushed, to)
                  : orion_pull_rows(stream, &to->region, b, submit_pulled, from);
}

static CUresult copy_sides(orion_stream* stream, const side* to, const side* from, const orion_volume* b, bool wait) {
  const bool between = on_device(to) && on_device(from);
  orion_context* home = context_of_side(on_device(to) ? to : from);
  const orion_place to_place = place_of(to), from_place = place_of(from);
  if (orion_is_relayed(stream, &to_place, &from_place)) {
    const CUresult result = orion_relay_copy(stream, to, from, b, false);
    return result == CUDA_SUCCESS && wait && !between ? orion_copy_wait(stream) : result;
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
    const wire_end to_end = wire_device(to, 0, 0), from_end = wire_device(from, 0, 0);
    result = submit(stream, &to_end, &from_end, b, 0);
  } else {
    result = copy_host(stream, to, from, b, wait || elsewhere);
  }
  return result == CUDA_SUCCESS && elsewhere ? orion_copy_wait(stream) : result;
}

CUresult orion_copy_with_array(const CUDA_MEMCPY3D* c, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  const orion_volume b = {c->WidthInBytes, c->Height, c->Depth};
  if (b.width_bytes == 0 || b.height == 0 || b.depth == 0) return CUDA_SUCCESS;
  const orion_copy_end to_end = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes,
                                 c->dstY,          c->dstZ,    c->dstPitch,  c->dstHeight};
  const orion_copy_end from_end = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes,
                                   c->srcY,          c->srcZ,    c->srcPitch,  c->srcHeight};
  side to, from;
  CUresult result = make_side(&to_end, c->dstArray, &b, &to);
  if (result == CUDA_SUCCESS) result = make_side(&from_end, c->srcArray, &b, &from);
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
