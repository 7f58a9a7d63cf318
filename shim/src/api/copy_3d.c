// 2D and 3D copies. Pageable memory goes through staging in groups of rows, everything else is one operation.
#include <string.h>

#include "api.h"
#include "array.h"
#include "capture.h"
#include "copy.h"
#include "relay.h"

#define IN_PLACE_SLICES 64u

static uint64_t span_bytes(const orion_region* r, const orion_volume* v) {
  return ((v->depth - 1) * r->rows + (v->height - 1)) * r->pitch_bytes + v->width_bytes;
}

/// One operation between what the worker can reach; `*_kind` 1 means an arena offset.
static CUresult submit_volume(orion_stream* stream, const orion_region* to, uint64_t to_address, uint32_t to_kind,
                              const orion_region* from, uint64_t from_address, uint32_t from_kind,
                              const orion_volume* v, uint64_t bulk_seq) {
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

static CUresult copy_pinned(orion_stream* stream, const orion_region* to, const orion_region* from,
                            const orion_volume* v, bool wait) {
  CUresult result;
  if (to->place.side == ORION_SIDE_DEVICE) {
    const uint64_t offset = orion_arena_offset(stream, &from->place, from->place.address);
    const uint64_t sequence = orion_push_program_memory(stream, offset, span_bytes(from, v));
    result = submit_volume(stream, to, to->place.address, 2, from, offset, 1, v, sequence);
  } else {
    const uint64_t offset = orion_arena_offset(stream, &to->place, to->place.address);
    result = submit_volume(stream, to, offset, 1, from, from->place.address, 2, v, 0);
    if (result == CUDA_SUCCESS && orion_over_network(stream->session) && !orion_is_captured(stream)) {
      // As for linear copies: delivery is shown by a marker that is placed now.
      uint64_t value;
      result = orion_stream_ticket(stream, &value);
      for (uint64_t z = 0; z < v->depth && result == CUDA_SUCCESS; z++) {
        const orion_pulled_rows rows = {orion_arena_offset(stream, &to->place, orion_row_address(to, 0, z)),
                                        v->width_bytes, to->pitch_bytes, v->height};
        orion_note_pulled_rows(stream->session, &rows, stream->word, value);
      }
    }
  }
  return result == CUDA_SUCCESS && wait ? orion_copy_wait(stream) : result;
}

static CUresult submit_pushed(orion_stream* stream, const void* device, const orion_copy_piece* piece) {
  const orion_region* to = device;
  const orion_region staged = {.pitch_bytes = piece->size.width_bytes, .rows = piece->size.height};
  return submit_volume(stream, to, orion_row_address(to, piece->first_row, piece->slice), 2, &staged,
                       piece->arena_offset, 1, &piece->size, piece->bulk_seq);
}

static CUresult submit_pulled(orion_stream* stream, const void* device, const orion_copy_piece* piece) {
  const orion_region* from = device;
  const orion_region staged = {.pitch_bytes = piece->size.width_bytes, .rows = piece->size.height};
  return submit_volume(stream, &staged, piece->arena_offset, 1, from,
                       orion_row_address(from, piece->first_row, piece->slice), 2, &piece->size, 0);
}

static CUresult copy_by_row(orion_stream* stream, const orion_region* to, const orion_region* from,
                            const orion_volume* v, bool wait) {
  CUresult result = CUDA_SUCCESS;
  for (uint64_t i = 0; i < v->depth * v->height && result == CUDA_SUCCESS; i++) {
    orion_place to_row = to->place, from_row = from->place;
    to_row.address = orion_row_address(to, i % v->height, i / v->height);
    from_row.address = orion_row_address(from, i % v->height, i / v->height);
    result = orion_copy(stream, to_row, from_row, v->width_bytes, wait);
  }
  return result;
}

static bool contiguous(const orion_region* r, const orion_volume* v) {
  const bool rows_touch = v->height == 1 || r->pitch_bytes == v->width_bytes;
  return rows_touch && (v->depth == 1 || (r->pitch_bytes == v->width_bytes && r->rows == v->height));
}

/// Rows between the device and memory that a node cannot name.
static CUresult capture_rows(orion_stream* stream, const orion_region* to, const orion_region* from,
                             const orion_volume* v) {
  const bool to_device = to->place.side == ORION_SIDE_DEVICE;
  const orion_region *device = to_device ? to : from, *host = to_device ? from : to;
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

static CUresult copy_volume(orion_stream* stream, const orion_region* to, const orion_region* from,
                            const orion_volume* v, bool wait, bool serializes) {
  const uint64_t total_bytes = v->width_bytes * v->height * v->depth;
  if (contiguous(to, v) && contiguous(from, v))
    return orion_copy_serial(stream, to->place, from->place, total_bytes, wait, serializes);
  const bool to_device = to->place.side == ORION_SIDE_DEVICE, from_device = from->place.side == ORION_SIDE_DEVICE;
  const bool elsewhere = (to_device && to->place.context->device != stream->context->device) ||
                         (from_device && from->place.context->device != stream->context->device);
  const bool is_captured = orion_is_captured(stream);
  const bool sees = wait && (to->place.is_variable || from->place.is_variable);
  if (!is_captured && orion_is_relayed(stream, &to->place, &from->place)) {
    const CUresult result =
        orion_relay_copy(stream, &(orion_copy_side){.region = *to}, &(orion_copy_side){.region = *from}, v, serializes);
    const bool waits = wait && (sees || !to_device || !from_device);
    return result == CUDA_SUCCESS && waits ? orion_copy_wait(stream) : result;
  }
  if (is_captured && (wait || elsewhere || (!to_device && !from_device))) {
    return wait ? orion_capture_refuse(stream) : CUDA_ERROR_NOT_SUPPORTED;
  }
  if (elsewhere || (!to_device && !from_device) || (v->width_bytes > ORION_COPY_PIECE_BYTES && !is_captured)) {
    return copy_by_row(stream, to, from, v, wait);
  }
  if (to_device && from_device) {
    const CUresult result = submit_volume(stream, to, to->place.address, 2, from, from->place.address, 2, v, 0);
    return result == CUDA_SUCCESS && sees ? orion_copy_wait(stream) : result;
  }
  const orion_place* host = to_device ? &from->place : &to->place;
  // Over a network each slice is noted by itself: very many go through staging.
  const bool noted = to_device || (!is_captured && v->depth <= IN_PLACE_SLICES);
  const bool in_place =
      host->pinned && host->context->session == stream->session && (noted || !orion_over_network(stream->session));
  if (is_captured && !in_place) return capture_rows(stream, to, from, v);
  if (in_place) return copy_pinned(stream, to, from, v, wait);
  const CUresult result = to_device ? orion_push_rows(stream, from, v, submit_pushed, to)
                                    : orion_pull_rows(stream, to, v, submit_pulled, from);
  return result == CUDA_SUCCESS && sees ? orion_copy_wait(stream) : result;
}

static CUresult copy_ends(const orion_copy_end* to_end, const orion_copy_end* from_end, const orion_volume* v,
                          CUstream handle, bool wait, bool serializes) {
  ORION_ENTER_STREAM(stream, handle);
  if (v->width_bytes == 0 || v->height == 0 || v->depth == 0) return CUDA_SUCCESS;
  orion_region to, from;
  CUresult result = orion_region_of(to_end, v, &to);
  if (result == CUDA_SUCCESS) result = orion_region_of(from_end, v, &from);
  return result == CUDA_SUCCESS ? copy_volume(stream, &to, &from, v, wait, serializes) : result;
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
  const orion_copy_end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes, c->dstY, 0, c->dstPitch, 0};
  const orion_copy_end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes, c->srcY, 0, c->srcPitch, 0};
  const orion_volume v = {c->WidthInBytes, c->Height, 1};
  return copy_ends(&to, &from, &v, stream, wait, false);
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
  const orion_copy_end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes,
                             c->dstY,          c->dstZ,    c->dstPitch,  c->dstHeight};
  const orion_copy_end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes,
                               c->srcY,          c->srcZ,    c->srcPitch,  c->srcHeight};
  const orion_volume v = {c->WidthInBytes, c->Height, c->Depth};
  return copy_ends(&to, &from, &v, stream, wait, false);
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
  const orion_copy_end to = {c->dstMemoryType, c->dstHost, c->dstDevice, c->dstXInBytes,
                             c->dstY,          c->dstZ,    c->dstPitch,  c->dstHeight};
  const orion_copy_end from = {c->srcMemoryType, c->srcHost, c->srcDevice, c->srcXInBytes,
                               c->srcY,          c->srcZ,    c->srcPitch,  c->srcHeight};
  const orion_volume v = {c->WidthInBytes, c->Height, c->Depth};
  return copy_ends(&to, &from, &v, stream, wait, wait);
}

ORION_API CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* copy) {
  ORION_COUNTED();
  return copy_3d_peer(copy, NULL, true);
}

ORION_API CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  return copy_3d_peer(copy, stream, false);
}
