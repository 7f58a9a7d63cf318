// 2D and 3D copies. Regions are reduced to a start, a row pitch and a slice pitch; pageable ones go through staging in
// groups of rows, everything else is one operation.
#include <string.h>

#include "api.h"
#include "array.h"
#include "capture.h"
#include "copy.h"

#define IN_PLACE_SLICES 64u

typedef struct region {
  orion_place place;
  uint64_t pitch_bytes, rows;  // rows of one slice in memory, used or not
} region;

typedef struct volume {
  uint64_t width_bytes, height, depth;
} volume;

typedef struct end {
  CUmemorytype type;
  const void* host;
  CUdeviceptr device;
  size_t x_bytes, y, z, pitch_bytes, rows;
} end;

static CUresult make_region(const end* e, const volume* v, region* r) {
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

static uint64_t row_address(const region* r, uint64_t y, uint64_t z) {
  return r->place.address + (z * r->rows + y) * r->pitch_bytes;
}

static uint64_t span_bytes(const region* r, const volume* v) {
  return ((v->depth - 1) * r->rows + (v->height - 1)) * r->pitch_bytes + v->width_bytes;
}

/// One operation between what the worker can reach; `*_kind` 1 means an arena offset.
static CUresult submit_volume(orion_stream* stream, const region* to, uint64_t to_address, uint32_t to_kind,
                              const region* from, uint64_t from_address, uint32_t from_kind, const volume* v,
                              uint64_t bulk_seq) {
  const uint32_t own = stream->context->entry.index;
  orion_op_copy_3d op = {
      .op = {.code = ORION_OP_COPY_3D, .bulk_seq = bulk_seq},
      .width_bytes = v->width_bytes,
      .height = v->height,
      .depth = v->depth,
      .src_address = from_address,
      .src_pitch = from->pitch_bytes,
      .src_height = from->rows,
      .dst_address = to_address,
      .dst_pitch = to->pitch_bytes,
      .dst_height = to->rows,
      .src_kind = from_kind,
      .dst_kind = to_kind,
      .src_context = from_kind == 2 && from->place.context != NULL ? from->place.context->entry.index : own,
      .dst_context = to_kind == 2 && to->place.context != NULL ? to->place.context->entry.index : own};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

static uint64_t arena_offset(const orion_stream* stream, uint64_t address) {
  return address - (uint64_t)(uintptr_t)stream->session->host_base;
}

static CUresult copy_pinned(orion_stream* stream, const region* to, const region* from, const volume* v, bool wait) {
  CUresult result;
  if (to->place.side == ORION_SIDE_DEVICE) {
    const uint64_t offset = arena_offset(stream, from->place.address);
    const uint64_t sequence = orion_push_program_memory(stream, offset, span_bytes(from, v));
    result = submit_volume(stream, to, to->place.address, 2, from, offset, 1, v, sequence);
  } else {
    const uint64_t offset = arena_offset(stream, to->place.address);
    result = submit_volume(stream, to, offset, 1, from, from->place.address, 2, v, 0);
    if (result == CUDA_SUCCESS && orion_over_network(stream->session) && !orion_is_captured(stream)) {
      // As for linear copies: delivery is shown by a marker that is placed now.
      uint64_t value;
      result = orion_stream_ticket(stream, &value);
      for (uint64_t z = 0; z < v->depth && result == CUDA_SUCCESS; z++) {
        const orion_pulled_rows rows = {arena_offset(stream, row_address(to, 0, z)), v->width_bytes, to->pitch_bytes,
                                        v->height};
        orion_note_pulled_rows(stream->session, &rows, stream->word, value);
      }
    }
  }
  return result == CUDA_SUCCESS && wait ? orion_copy_wait(stream) : result;
}

/// Rows that one staging piece holds; the caller has made sure that one fits.
static uint64_t rows_of_piece(const volume* v, uint64_t y) {
  const uint64_t fit = ORION_COPY_PIECE_BYTES / v->width_bytes;
  return v->height - y < fit ? v->height - y : fit;
}

static CUresult push_rows(orion_stream* stream, const region* to, const region* from, const volume* v) {
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < v->depth; z++) {
    for (uint64_t y = 0, rows; y < v->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(v, y);
      const volume piece = {v->width_bytes, rows, 1};
      const region staged = {.pitch_bytes = v->width_bytes, .rows = rows};
      uint64_t offset;
      result = orion_staging_take(stream->session, rows * v->width_bytes, &offset);
      if (result != CUDA_SUCCESS) return result;
      uint8_t* gathered = stream->session->host_base + offset;
      for (uint64_t i = 0; i < rows; i++) {
        memcpy(gathered + i * v->width_bytes, (const void*)(uintptr_t)row_address(from, y + i, z), v->width_bytes);
      }
      const uint64_t sequence = orion_push_host(stream->session, offset, rows * v->width_bytes);
      result = submit_volume(stream, to, row_address(to, y, z), 2, &staged, offset, 1, &piece, sequence);
      const CUresult given = orion_staging_give_behind(stream, offset);
      if (result == CUDA_SUCCESS) result = given;
    }
  }
  return result;
}

static CUresult pull_rows(orion_stream* stream, const region* to, const region* from, const volume* v) {
  orion_pull pull;
  orion_pull_begin(&pull, stream);
  CUresult result = CUDA_SUCCESS;
  for (uint64_t z = 0; z < v->depth && result == CUDA_SUCCESS; z++) {
    for (uint64_t y = 0, rows; y < v->height && result == CUDA_SUCCESS; y += rows) {
      rows = rows_of_piece(v, y);
      const volume piece = {v->width_bytes, rows, 1};
      const region staged = {.pitch_bytes = v->width_bytes, .rows = rows};
      uint64_t offset;
      result = orion_pull_take(&pull, rows * v->width_bytes, &offset);
      if (result != CUDA_SUCCESS) break;
      result = submit_volume(stream, &staged, offset, 1, from, row_address(from, y, z), 2, &piece, 0);
      const CUresult issued = orion_pull_issued(&pull, offset,
                                                (orion_rows){.first = (uint8_t*)(uintptr_t)row_address(to, y, z),
                                                             .pitch_bytes = to->pitch_bytes,
                                                             .width_bytes = v->width_bytes,
                                                             .rows = rows});
      if (result == CUDA_SUCCESS) result = issued;
    }
  }
  return orion_pull_end(&pull, result);
}

static CUresult copy_by_row(orion_stream* stream, const region* to, const region* from, const volume* v, bool wait) {
  CUresult result = CUDA_SUCCESS;
  for (uint64_t i = 0; i < v->depth * v->height && result == CUDA_SUCCESS; i++) {
    orion_place to_row = to->place, from_row = from->place;
    to_row.address = row_address(to, i % v->height, i / v->height);
    from_row.address = row_address(from, i % v->height, i / v->height);
    result = orion_copy(stream, to_row, from_row, v->width_bytes, wait);
  }
  return result;
}

static bool contiguous(const region* r, const volume* v) {
  const bool rows_touch = v->height == 1 || r->pitch_bytes == v->width_bytes;
  return rows_touch && (v->depth == 1 || (r->pitch_bytes == v->width_bytes && r->rows == v->height));
}

/// Rows between the device and memory that a node cannot name.
static CUresult capture_rows(orion_stream* stream, const region* to, const region* from, const volume* v) {
  const bool to_device = to->place.side == ORION_SIDE_DEVICE;
  const region *device = to_device ? to : from, *host = to_device ? from : to;
  const orion_copy_shape shape = {.device_address = device->place.address,
                                  .device_pitch = device->pitch_bytes,
                                  .device_rows = device->rows,
                                  .host = (uint8_t*)(uintptr_t)host->place.address,
                                  .host_pitch = host->pitch_bytes,
                                  .host_rows = host->rows,
                                  .width_bytes = v->width_bytes,
                                  .height = v->height,
                                  .depth = v->depth,
                                  .to_device = to_device};
  orion_node_work work;
  if (!orion_work_host_copy(&shape, stream->context, &work)) return CUDA_ERROR_OUT_OF_MEMORY;
  return orion_capture_node(stream, CU_GRAPH_NODE_TYPE_MEMCPY, &work);
}

static CUresult copy_volume(orion_stream* stream, const region* to, const region* from, const volume* v, bool wait) {
  const uint64_t total_bytes = v->width_bytes * v->height * v->depth;
  if (contiguous(to, v) && contiguous(from, v)) return orion_copy(stream, to->place, from->place, total_bytes, wait);
  const bool to_device = to->place.side == ORION_SIDE_DEVICE, from_device = from->place.side == ORION_SIDE_DEVICE;
  const bool elsewhere = (to_device && to->place.context->device != stream->context->device) ||
                         (from_device && from->place.context->device != stream->context->device);
  const bool is_captured = orion_is_captured(stream);
  if (is_captured && (wait || elsewhere || (!to_device && !from_device))) {
    return wait ? orion_capture_refuse(stream) : CUDA_ERROR_NOT_SUPPORTED;
  }
  if (elsewhere || (!to_device && !from_device) || (v->width_bytes > ORION_COPY_PIECE_BYTES && !is_captured)) {
    return copy_by_row(stream, to, from, v, wait);
  }
  if (to_device && from_device) {
    return submit_volume(stream, to, to->place.address, 2, from, from->place.address, 2, v, 0);
  }
  const orion_place* host = to_device ? &from->place : &to->place;
  // Over a network each slice is noted by itself: very many go through staging.
  const bool noted = to_device || (!is_captured && v->depth <= IN_PLACE_SLICES);
  const bool in_place =
      host->pinned && host->context->session == stream->session && (noted || !orion_over_network(stream->session));
  if (is_captured && !in_place) return capture_rows(stream, to, from, v);
  if (in_place) return copy_pinned(stream, to, from, v, wait);
  return to_device ? push_rows(stream, to, from, v) : pull_rows(stream, to, from, v);
}

static CUresult copy_ends(const end* to_end, const end* from_end, const volume* v, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  if (v->width_bytes == 0 || v->height == 0 || v->depth == 0) return CUDA_SUCCESS;
  region to, from;
  CUresult result = make_region(to_end, v, &to);
  if (result == CUDA_SUCCESS) result = make_region(from_end, v, &from);
  return result == CUDA_SUCCESS ? copy_volume(stream, &to, &from, v, wait) : result;
}

static bool with_array(CUmemorytype to, CUmemorytype from) {
  return to == CU_MEMORYTYPE_ARRAY || from == CU_MEMORYTYPE_ARRAY;
}

static CUresult copy_2d_with_array(const CUDA_MEMCPY2D* c, CUstream stream, bool wait) {
  const CUDA_MEMCPY3D deep = {.srcXInBytes = c->srcXInBytes,
                              .srcY = c->srcY,
                              .srcMemoryType = c->srcMemoryType,
                              .srcHost = c->srcHost,
                              .srcDevice = c->srcDevice,
                              .srcArray = c->srcArray,
                              .srcPitch = c->srcPitch,
                              .dstXInBytes = c->dstXInBytes,
                              .dstY = c->dstY,
                              .dstMemoryType = c->dstMemoryType,
                              .dstHost = c->dstHost,
                              .dstDevice = c->dstDevice,
                              .dstArray = c->dstArray,
                              .dstPitch = c->dstPitch,
                              .WidthInBytes = c->WidthInBytes,
                              .Height = c->Height,
                              .Depth = 1};
  return orion_copy_with_array(&deep, stream, wait);
}

static CUresult copy_2d(const CUDA_MEMCPY2D* c, CUstream stream, bool wait) {
  ORION_ENTER();
  ORION_REQUIRE(c != NULL, CUDA_ERROR_INVALID_VALUE);
  if (with_array(c->dstMemoryType, c->srcMemoryType)) return copy_2d_with_array(c, stream, wait);
  const end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes, c->dstY, 0, c->dstPitch, 0};
  const end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes, c->srcY, 0, c->srcPitch, 0};
  const volume v = {c->WidthInBytes, c->Height, 1};
  return copy_ends(&to, &from, &v, stream, wait);
}

ORION_API CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* copy) {
  ORION_COUNTED();
  return copy_2d(copy, NULL, true);
}

ORION_API CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* copy) { return copy_2d(copy, NULL, true); }

ORION_API CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, CUstream stream) {
  return copy_2d(copy, stream, false);
}

static CUresult copy_3d(const CUDA_MEMCPY3D* c, CUstream stream, bool wait) {
  ORION_ENTER();
  ORION_REQUIRE(c != NULL, CUDA_ERROR_INVALID_VALUE);
  if (with_array(c->dstMemoryType, c->srcMemoryType)) return orion_copy_with_array(c, stream, wait);
  const end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes,
                  c->dstY,          c->dstZ,    c->dstPitch,  c->dstHeight};
  const end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes,
                    c->srcY,          c->srcZ,    c->srcPitch,  c->srcHeight};
  const volume v = {c->WidthInBytes, c->Height, c->Depth};
  return copy_ends(&to, &from, &v, stream, wait);
}

ORION_API CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D* copy) {
  ORION_COUNTED();
  return copy_3d(copy, NULL, true);
}

ORION_API CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* copy, CUstream stream) {
  return copy_3d(copy, stream, false);
}

/// With one address space the contexts say nothing that the addresses do not say; they only have to exist.
static CUresult copy_3d_peer(const CUDA_MEMCPY3D_PEER* c, CUstream stream, bool wait) {
  ORION_ENTER();
  ORION_REQUIRE(c != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_context* context;
  CUresult result = orion_context_of(c->srcContext, &context);
  if (result == CUDA_SUCCESS) result = orion_context_of(c->dstContext, &context);
  if (result != CUDA_SUCCESS) return result;
  if (with_array(c->dstMemoryType, c->srcMemoryType)) {
    CUDA_MEMCPY3D plain;  // the same members, with reserved pointers where the contexts are
    _Static_assert(sizeof plain == sizeof *c, "both structures are laid out alike");
    memcpy(&plain, c, sizeof plain);
    return orion_copy_with_array(&plain, stream, wait);
  }
  const end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes,
                  c->dstY,          c->dstZ,    c->dstPitch,  c->dstHeight};
  const end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes,
                    c->srcY,          c->srcZ,    c->srcPitch,  c->srcHeight};
  const volume v = {c->WidthInBytes, c->Height, c->Depth};
  return copy_ends(&to, &from, &v, stream, wait);
}

ORION_API CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* copy) {
  ORION_COUNTED();
  return copy_3d_peer(copy, NULL, true);
}

ORION_API CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  return copy_3d_peer(copy, stream, false);
}
