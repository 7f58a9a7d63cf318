// Copies and fills. Host sides are offsets into registered parts of the arena; device sides are checked against the
// engine's own map, so no address from the wire reaches the driver unchecked.
#include <string.h>

#include "internal.h"

#define INLINE_MAX_BYTES 4096u

static void finish(orion_engine* e, const orion_op* op, stream_state* s, CUresult code) {
  const int32_t result = answer_check(e, op->context, (int32_t)code);
  if (!result) order_issued(e, s);
  answer_result(e, op, result);
}

static void copied_out(orion_engine* e, const stream_state* s, uint64_t offset, uint64_t bytes) {
  if (e->net) net_copy_out(e, offset, bytes, s->track, e->tracks[s->track].issued);
}

static CUresult peer_copy(orion_engine* e, const orion_op_copy_peer* o, const stream_state* s) {
  if (o->dst_context >= ORION_CONTEXTS || o->src_context >= ORION_CONTEXTS) return CUDA_ERROR_INVALID_CONTEXT;
  const context_state *to = &e->contexts[o->dst_context], *from = &e->contexts[o->src_context];
  if (!to->alive || !from->alive) return CUDA_ERROR_INVALID_CONTEXT;
  return e->driver.copy_peer(o->device_dst, to->handle, o->src, from->handle, o->size_bytes, s->handle);
}

// Whether the copy's bytes have gone straight to or from device memory; what came to the arena instead is issued here.
static bool went_straight(orion_engine* e, const orion_op* op, stream_state* s) {
  CUresult code;
  const enum direct_outcome direct = direct_finish(e, op, s->handle, &code);
  if (direct == DIRECT_ALL) answer_result(e, op, 0);
  if (direct == DIRECT_REST) finish(e, op, s, code);
  return direct != DIRECT_NOTHING;
}

void copy_linear(orion_engine* e, const orion_op* op) {
  stream_state* s = use_stream(e, op);
  if (!s || (e->direct && went_straight(e, op, s))) return;
  CUresult code = CUDA_ERROR_INVALID_VALUE;
  switch (op->code) {
    case ORION_OP_COPY_H2D: {
      const orion_op_copy_h2d* o = (const orion_op_copy_h2d*)op;
      if (memory_host_ok(e, o->src_off, o->size_bytes) && memory_device_ok(e, o->device_dst, o->size_bytes)) {
        code = e->driver.copy_h2d(o->device_dst, e->arena + o->src_off, o->size_bytes, s->handle);
      }
      break;
    }
    case ORION_OP_COPY_D2H: {
      const orion_op_copy_d2h* o = (const orion_op_copy_d2h*)op;
      if (memory_host_ok(e, o->dst_off, o->size_bytes) && memory_device_ok(e, o->src, o->size_bytes)) {
        code = e->driver.copy_d2h(e->arena + o->dst_off, o->src, o->size_bytes, s->handle);
        finish(e, op, s, code);
        if (!code) copied_out(e, s, o->dst_off, o->size_bytes);
        return;
      }
      break;
    }
    case ORION_OP_COPY_D2D: {
      const orion_op_copy_d2d* o = (const orion_op_copy_d2d*)op;
      if (memory_device_ok(e, o->device_dst, o->size_bytes) && memory_device_ok(e, o->src, o->size_bytes)) {
        code = e->driver.copy_d2d(o->device_dst, o->src, o->size_bytes, s->handle);
      }
      break;
    }
    case ORION_OP_COPY_PEER: {
      const orion_op_copy_peer* o = (const orion_op_copy_peer*)op;
      if (memory_device_ok(e, o->device_dst, o->size_bytes) && memory_device_ok(e, o->src, o->size_bytes)) {
        code = peer_copy(e, o, s);
      }
      break;
    }
    default: {
      // The bytes lie in memory that the next operation overwrites: the driver takes such a source before it returns.
      const orion_op_copy_h2d_inline* o = (const orion_op_copy_h2d_inline*)op;
      const uint32_t bytes = op_tail_bytes(op);
      if (bytes <= INLINE_MAX_BYTES && memory_device_ok(e, o->device_dst, bytes)) {
        code = e->driver.copy_h2d(o->device_dst, op_tail(op), bytes, s->handle);
      }
      break;
    }
  }
  finish(e, op, s, code);
}

// ------------------------------------------------------------------------------------------------ 2D and 3D
typedef struct side {
  uint64_t address, pitch, height, x, y, z;
  uint32_t kind, context;
} side;

// First byte and extent of all rows of one side; false on overflow or an unknown kind.
static bool side_extent(const side* s, const orion_op_copy_3d* o, uint64_t* first, uint64_t* bytes) {
  typedef unsigned __int128 wide;
  const uint64_t limit = 1ull << 48;
  if (s->kind != CU_MEMORYTYPE_HOST && s->kind != CU_MEMORYTYPE_DEVICE) return false;
  if (s->pitch > limit || s->height > limit || s->x > limit || s->y > limit || s->z > limit || s->address > limit ||
      o->width_bytes > limit || o->height > limit || o->depth > limit) {
    return false;
  }
  if (!o->width_bytes || !o->height || !o->depth) {
    *first = s->address;
    *bytes = 0;
    return true;
  }
  const bool rows = o->height > 1 || s->y || o->depth > 1 || s->z;
  if (rows && s->pitch < s->x + o->width_bytes) return false;
  if ((o->depth > 1 || s->z) && s->height < s->y + o->height) return false;
  // A product of three such numbers would not fit: a slice that is stepped over is bounded first.
  const wide slice = o->depth > 1 || s->z ? (wide)s->height * s->pitch : 0;
  if (slice > limit) return false;
  const wide begin = s->address + s->z * slice + (wide)s->y * s->pitch + s->x;
  const wide last = (o->depth - 1) * slice + (wide)(o->height - 1) * s->pitch + o->width_bytes;
  if (begin > limit || last > limit) return false;
  *first = (uint64_t)begin;
  *bytes = (uint64_t)last;
  return true;
}

static bool side_ok(const orion_engine* e, const side* s, const orion_op_copy_3d* o, uint64_t* first, uint64_t* bytes) {
  if (s->kind == CU_MEMORYTYPE_ARRAY)
    return array_handle(e, s->address) != NULL;  // its bounds are the driver's to check
  if (!side_extent(s, o, first, bytes)) return false;
  return s->kind == CU_MEMORYTYPE_HOST ? memory_host_ok(e, *first, *bytes) : memory_device_ok(e, *first, *bytes);
}

int32_t copy_3d_describe(const orion_engine* e, const orion_op_copy_3d* o, CUDA_MEMCPY3D_PEER* c, bool* peers,
                         host_range* written) {
  const side from = {o->src_address, o->src_pitch, o->src_height, o->src_x_bytes,
                     o->src_y,       o->src_z,     o->src_kind,   o->src_context};
  const side to = {o->dst_address, o->dst_pitch, o->dst_height, o->dst_x_bytes,
                   o->dst_y,       o->dst_z,     o->dst_kind,   o->dst_context};
  uint64_t from_first = 0, from_bytes = 0, to_first = 0, to_bytes = 0;
  if (!side_ok(e, &from, o, &from_first, &from_bytes) || !side_ok(e, &to, o, &to_first, &to_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *peers = from.context && to.context && from.context != to.context;
  if (*peers && (from.context >= ORION_CONTEXTS || to.context >= ORION_CONTEXTS || !e->contexts[from.context].alive ||
                 !e->contexts[to.context].alive)) {
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  const bool from_host = from.kind == CU_MEMORYTYPE_HOST, to_host = to.kind == CU_MEMORYTYPE_HOST;
  *written = to_host ? (host_range){.offset = to_first, .bytes = to_bytes} : (host_range){0};
  *c = (CUDA_MEMCPY3D_PEER){
      .srcXInBytes = from.x,
      .srcY = from.y,
      .srcZ = from.z,
      .srcMemoryType = (CUmemorytype)from.kind,
      .srcHost = from_host ? e->arena + from.address : NULL,
      .srcDevice = from.kind == CU_MEMORYTYPE_DEVICE ? from.address : 0,
      .srcArray = from.kind == CU_MEMORYTYPE_ARRAY ? array_handle(e, from.address) : NULL,
      .srcPitch = from.pitch,
      .srcHeight = from.height,
      .dstXInBytes = to.x,
      .dstY = to.y,
      .dstZ = to.z,
      .dstMemoryType = (CUmemorytype)to.kind,
      .dstHost = to_host ? e->arena + to.address : NULL,
      .dstDevice = to.kind == CU_MEMORYTYPE_DEVICE ? to.address : 0,
      .dstArray = to.kind == CU_MEMORYTYPE_ARRAY ? array_handle(e, to.address) : NULL,
      .dstPitch = to.pitch,
      .dstHeight = to.height,
      .WidthInBytes = o->width_bytes,
      .Height = o->height,
      .Depth = o->depth,
  };
  if (*peers) {
    c->srcContext = e->contexts[from.context].handle;
    c->dstContext = e->contexts[to.context].handle;
  }
  return 0;
}

void copy_3d(orion_engine* e, const orion_op* op) {
  stream_state* s = use_stream(e, op);
  if (!s) return;
  CUDA_MEMCPY3D_PEER c;
  bool peers = false;
  host_range written = {0};
  const int32_t described = copy_3d_describe(e, (const orion_op_copy_3d*)op, &c, &peers, &written);
  if (described) {
    answer_result(e, op, described);
    return;
  }
  CUresult code;
  if (peers) {
    code = e->driver.copy_3d_peer(&c, s->handle);
  } else {
    CUDA_MEMCPY3D plain;  // the same members, with reserved pointers where the contexts are
    _Static_assert(sizeof plain == sizeof c, "both structures are laid out alike");
    memcpy(&plain, &c, sizeof plain);
    code = e->driver.copy_3d(&plain, s->handle);
  }
  finish(e, op, s, code);
  if (code || !e->net || !written.bytes) return;
  const net_rows rows = {.offset = written.offset,
                         .width = c.WidthInBytes,
                         .pitch = c.Height > 1 ? c.dstPitch : c.WidthInBytes,
                         .rows = c.Height,
                         .slice_pitch = c.dstPitch * c.dstHeight,
                         .slices = c.Depth};
  net_rows_out(e, &rows, s->track, e->tracks[s->track].issued);
}

// ------------------------------------------------------------------------------------------------ fills
bool copy_set_ok(const orion_engine* e, const orion_op_memset* o) {
  const uint64_t limit = 1ull << 48, size = o->element_bytes;
  bool good = (size == 1 || size == 2 || size == 4) && o->width <= limit && o->height <= limit && o->pitch <= limit;
  if (good && o->height > 1) good = o->pitch >= o->width * size;
  if (good) {
    const unsigned __int128 bytes =
        o->width && o->height ? (unsigned __int128)(o->height - 1) * o->pitch + o->width * size : 0;
    good = bytes <= limit && memory_device_ok(e, o->device_dst, (uint64_t)bytes);
  }
  return good;
}

void copy_set(orion_engine* e, const orion_op* op) {
  const orion_op_memset* o = (const orion_op_memset*)op;
  stream_state* s = use_stream(e, op);
  if (!s) return;
  const uint32_t size = o->element_bytes;
  if (!copy_set_ok(e, o)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  const orion_driver* d = &e->driver;
  CUresult code;
  if (o->height > 1) {
    if (size == 1) {
      code = d->set_2d_d8(o->device_dst, o->pitch, (unsigned char)o->value, o->width, o->height, s->handle);
    } else if (size == 2) {
      code = d->set_2d_d16(o->device_dst, o->pitch, (unsigned short)o->value, o->width, o->height, s->handle);
    } else {
      code = d->set_2d_d32(o->device_dst, o->pitch, o->value, o->width, o->height, s->handle);
    }
  } else {
    const uint64_t count = o->height ? o->width : 0;
    if (size == 1) {
      code = d->set_d8(o->device_dst, (unsigned char)o->value, count, s->handle);
    } else if (size == 2) {
      code = d->set_d16(o->device_dst, (unsigned short)o->value, count, s->handle);
    } else {
      code = d->set_d32(o->device_dst, o->value, count, s->handle);
    }
  }
  finish(e, op, s, code);
  uint64_t offset;
  if (code || !e->net || !o->width || !o->height || !alias_offset(e, o->device_dst, &offset)) return;
  if (o->height == 1) {
    copied_out(e, s, offset, o->width * size);
    return;
  }
  const net_rows rows = {.offset = offset, .width = o->width * size, .pitch = o->pitch, .rows = o->height, .slices = 1};
  net_rows_out(e, &rows, s->track, e->tracks[s->track].issued);
}
