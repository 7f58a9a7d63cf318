// Linear copies. Pageable memory goes through staging in pieces; pinned memory is named in place.
#include "copy.h"

#include <string.h>

#include "api.h"
#include "capture.h"
#include "copier.h"
#include "device_output.h"
#include "managed.h"
#include "relay.h"
#include "variable.h"

#define INLINE_BYTES 4096ull
#define NETWORK_PART_BYTES (8ull << 20)
// Pieces beyond a thread's first that may hold staging while it waits for more: bounded below the staging's size, so
// that threads that hold blocks can never all wait for each other.
#define EXTRA_PULL_BYTES (24ull << 20)

static _Atomic uint64_t extra_pull_bytes;

// ------------------------------------------------------------------------------------------------ classification

CUresult orion_place_device(uint64_t address, uint64_t bytes, bool unified, orion_place* place) {
  const orion_range range = orion_find_range(address, bytes);
  const bool is_left = range.kind == ORION_MEMORY_ADOPTED && !range.whole;
  if (range.kind == ORION_MEMORY_PAGEABLE || range.kind == ORION_MEMORY_REGISTERED || is_left) {
    if (!unified || address == 0) return CUDA_ERROR_INVALID_VALUE;
    *place = (orion_place){.side = ORION_SIDE_HOST, .address = address};
    return CUDA_SUCCESS;
  }
  if (!range.whole) return CUDA_ERROR_INVALID_VALUE;
  const bool pinned = orion_is_arena(range.kind);
  if (range.kind == ORION_MEMORY_MANAGED) {
    const CUresult result = orion_managed_ready(range.context->session);
    if (result != CUDA_SUCCESS) return result;
  }
  const bool is_variable = range.kind == ORION_MEMORY_VARIABLE;
  *place = (orion_place){.side = pinned ? ORION_SIDE_HOST : ORION_SIDE_DEVICE,
                         .address = address,
                         .arena_shift = range.arena_shift,
                         .pinned = pinned,
                         .is_variable = is_variable,
                         .context = is_variable ? orion_variable_context(&range) : range.context};
  return CUDA_SUCCESS;
}

orion_place orion_place_host(const void* address, uint64_t bytes) {
  orion_place place = {.side = ORION_SIDE_HOST, .address = (uint64_t)(uintptr_t)address};
  const orion_range range = orion_find_range(place.address, bytes);
  if (orion_is_arena(range.kind) && range.whole) {
    // Managed memory that the worker cannot use is copied as any other.
    place.pinned = range.kind != ORION_MEMORY_MANAGED || orion_managed_ready(range.context->session) == CUDA_SUCCESS;
    place.arena_shift = range.arena_shift;
    place.context = range.context;
  } else if (orion_is_device(range.kind) && range.whole) {
    place.side = ORION_SIDE_DEVICE;  // unified addresses: the name of the call does not bind
    place.is_variable = range.kind == ORION_MEMORY_VARIABLE;
    place.context = place.is_variable ? orion_variable_context(&range) : range.context;
  }
  return place;
}

bool orion_over_network(const orion_session* session) { return strcmp(session->transport_name, "shm") != 0; }

CUresult orion_copy_wait(orion_stream* stream) {
  uint64_t value;
  CUresult result = orion_stream_ticket(stream, &value);
  if (result == CUDA_SUCCESS) result = orion_stream_wait(stream, value);
  if (result == CUDA_SUCCESS) result = orion_take_late_error(stream->session);
  return orion_waited(stream->context, result);
}

CUresult orion_staging_give_behind(orion_stream* stream, uint64_t offset) {
  uint64_t value;
  const CUresult result = orion_stream_ticket(stream, &value);
  orion_staging_give(stream->session, offset, stream->word, value);
  return result;
}

// ------------------------------------------------------------------------------------------------ host to device

static CUresult push_inline(orion_stream* stream, uint64_t destination, const void* source, uint64_t bytes) {
  orion_op_copy_h2d_inline op = {.op = {.code = ORION_OP_COPY_H2D_INLINE}, .device_dst = destination};
  return orion_stream_submit(stream, &op.op, sizeof op, source, (uint32_t)bytes);
}

uint64_t orion_push_program_memory(orion_stream* stream, uint64_t offset, uint64_t bytes) {
  const uint64_t last = atomic_load_explicit(&stream->host_function, memory_order_acquire);
  return orion_push_pinned(stream->session, offset, bytes, (uint32_t)(last >> 48), last & ((1ull << 48) - 1));
}

static CUresult submit_h2d(orion_stream* stream, uint64_t destination, uint64_t offset, uint64_t bytes,
                           uint64_t sequence) {
  orion_op_copy_h2d op = {
      .op = {.code = ORION_OP_COPY_H2D}, .device_dst = destination, .src_off = offset, .size_bytes = bytes};
  op.op.bulk_seq = sequence;
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

// Over a network a large copy goes in parts, so that the device copies one while the next travels.
static uint64_t part_of(const orion_stream* stream, uint64_t bytes) {
  const bool whole = bytes < 2 * NETWORK_PART_BYTES || !orion_over_network(stream->session);
  return whole ? bytes : NETWORK_PART_BYTES;
}

static CUresult push_in_place(orion_stream* stream, uint64_t destination, const orion_place* source, uint64_t bytes) {
  const uint64_t offset = orion_arena_offset(stream, source, source->address);
  CUresult result = CUDA_SUCCESS;
  for (uint64_t at = 0; at < bytes && result == CUDA_SUCCESS;) {
    const uint64_t part = part_of(stream, bytes - at);
    const uint64_t sequence = orion_push_program_memory(stream, offset + at, part);
    result = submit_h2d(stream, destination + at, offset + at, part, sequence);
    at += part;
  }
  return result;
}

static CUresult push_pageable(orion_stream* stream, uint64_t destination, uint64_t source, uint64_t bytes) {
  if (bytes <= INLINE_BYTES) return push_inline(stream, destination, (const void*)(uintptr_t)source, bytes);
  while (bytes != 0) {
    const uint64_t piece = bytes < ORION_COPY_PIECE_BYTES ? bytes : ORION_COPY_PIECE_BYTES;
    uint64_t offset;
    CUresult result = orion_staging_take(stream->session, piece, &offset);
    if (result != CUDA_SUCCESS) return result;
    orion_copy_bytes(stream->session->host_base + offset, (const void*)(uintptr_t)source, piece);
    result = submit_h2d(stream, destination, offset, piece, orion_push_host(stream->session, offset, piece));
    const CUresult given = orion_staging_give_behind(stream, offset);
    if (result == CUDA_SUCCESS) result = given;
    if (result != CUDA_SUCCESS) return result;
    source += piece;
    destination += piece;
    bytes -= piece;
  }
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ device to host

void orion_pull_begin(orion_pull* pull, orion_stream* stream) {
  pull->stream = stream;
  pull->head = pull->count = 0;
}

static uint64_t rows_bytes(const orion_rows* rows) { return rows->width_bytes * rows->rows; }

static void scatter(const orion_rows* rows, const uint8_t* from) {
  if (rows->rows == 1 || rows->pitch_bytes == rows->width_bytes) {
    orion_copy_bytes(rows->first, from, rows_bytes(rows));
    return;
  }
  for (uint64_t y = 0; y < rows->rows; y++) {
    memcpy(rows->first + y * rows->pitch_bytes, from + y * rows->width_bytes, rows->width_bytes);
  }
}

/// Takes the oldest piece out: waits for it, scatters it unless `result` is an error already.
static CUresult drain_one(orion_pull* pull, CUresult result) {
  orion_session* session = pull->stream->session;
  const uint32_t at = pull->head;
  const orion_rows rows = pull->pieces[at].rows;
  const uint64_t offset = pull->pieces[at].offset, value = pull->pieces[at].value;
  if (result == CUDA_SUCCESS) result = orion_stream_wait(pull->stream, value);
  if (result == CUDA_SUCCESS) result = orion_take_late_error(session);
  if (result == CUDA_SUCCESS) scatter(&rows, session->host_base + offset);
  // After an error the device may still write: the block rests until its marker is there.
  orion_staging_give(session, offset, result == CUDA_SUCCESS ? 0 : pull->stream->word, value);
  pull->head = (at + 1) % (sizeof pull->pieces / sizeof pull->pieces[0]);
  pull->count--;
  if (pull->count > 0) atomic_fetch_sub(&extra_pull_bytes, ORION_COPY_PIECE_BYTES);
  return result;
}

CUresult orion_pull_take(orion_pull* pull, uint64_t bytes, uint64_t* offset) {
  CUresult result = CUDA_SUCCESS;
  if (pull->count == sizeof pull->pieces / sizeof pull->pieces[0]) result = drain_one(pull, result);
  bool extra = pull->count > 0;
  if (extra &&
      atomic_fetch_add(&extra_pull_bytes, ORION_COPY_PIECE_BYTES) + ORION_COPY_PIECE_BYTES > EXTRA_PULL_BYTES) {
    atomic_fetch_sub(&extra_pull_bytes, ORION_COPY_PIECE_BYTES);
    while (pull->count > 0) result = drain_one(pull, result);
    extra = false;
  }
  if (result == CUDA_SUCCESS) result = orion_staging_take(pull->stream->session, bytes, offset);
  if (result != CUDA_SUCCESS && extra) atomic_fetch_sub(&extra_pull_bytes, ORION_COPY_PIECE_BYTES);
  return result;
}

CUresult orion_pull_issued(orion_pull* pull, uint64_t offset, orion_rows rows) {
  uint64_t value;
  const CUresult result = orion_stream_ticket(pull->stream, &value);
  orion_note_pull(pull->stream->session, offset, rows_bytes(&rows), pull->stream->word, value);
  const uint32_t at = (pull->head + pull->count) % (sizeof pull->pieces / sizeof pull->pieces[0]);
  pull->pieces[at].offset = offset;
  pull->pieces[at].value = value;
  pull->pieces[at].rows = rows;
  pull->count++;
  return result;
}

CUresult orion_pull_end(orion_pull* pull, CUresult result) {
  while (pull->count > 0) result = drain_one(pull, result);
  return orion_waited(pull->stream->context, result);
}

static CUresult submit_d2h(orion_stream* stream, uint64_t offset, uint64_t source, uint64_t bytes) {
  orion_op_copy_d2h op = {.op = {.code = ORION_OP_COPY_D2H}, .src = source, .dst_off = offset, .size_bytes = bytes};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

static CUresult pull_pageable(orion_stream* stream, uint64_t destination, uint64_t source, uint64_t bytes) {
  orion_pull pull;
  orion_pull_begin(&pull, stream);
  CUresult result = CUDA_SUCCESS;
  while (bytes != 0 && result == CUDA_SUCCESS) {
    const uint64_t piece = bytes < ORION_COPY_PIECE_BYTES ? bytes : ORION_COPY_PIECE_BYTES;
    uint64_t offset;
    result = orion_pull_take(&pull, piece, &offset);
    if (result != CUDA_SUCCESS) break;
    result = submit_d2h(stream, offset, source, piece);
    const CUresult issued = orion_pull_issued(
        &pull, offset, (orion_rows){.first = (uint8_t*)(uintptr_t)destination, .width_bytes = piece, .rows = 1});
    if (result == CUDA_SUCCESS) result = issued;
    source += piece;
    destination += piece;
    bytes -= piece;
  }
  return orion_pull_end(&pull, result);
}

static CUresult pull_pinned(orion_stream* stream, const orion_place* destination, uint64_t source, uint64_t bytes) {
  const uint64_t offset = orion_arena_offset(stream, destination, destination->address);
  CUresult result = CUDA_SUCCESS;
  for (uint64_t at = 0; at < bytes && result == CUDA_SUCCESS;) {
    const uint64_t part = part_of(stream, bytes - at);
    result = submit_d2h(stream, offset + at, source + at, part);
    at += part;
  }
  if (result != CUDA_SUCCESS) return result;
  if (!orion_over_network(stream->session)) {
    orion_count_bytes(0, bytes);
    return CUDA_SUCCESS;
  }
  // Delivery is shown by this stream's next marker. Placed now: the program may learn of the completion through another
  // stream's marker, and must then be able to send new content from the same buffer.
  uint64_t value;
  result = orion_stream_ticket(stream, &value);
  orion_note_pull(stream->session, offset, bytes, stream->word, value);
  return result;
}

// ------------------------------------------------------------------------------------------------ device to device

static CUresult submit_d2d(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes) {
  if (destination.context->device == source.context->device) {
    orion_op_copy_d2d op = {.op = {.code = ORION_OP_COPY_D2D},
                            .device_dst = destination.address,
                            .src = source.address,
                            .size_bytes = bytes};
    return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  }
  orion_op_copy_peer op = {.op = {.code = ORION_OP_COPY_PEER},
                           .device_dst = destination.address,
                           .src = source.address,
                           .size_bytes = bytes,
                           .dst_context = destination.context->entry.index,
                           .src_context = source.context->entry.index};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

typedef struct between {
  orion_place destination, source;
  uint64_t bytes;
} between;

static CUresult issue_between(orion_stream* stream, void* argument) {
  const between* copy = argument;
  return submit_d2d(stream, copy->destination, copy->source, copy->bytes);
}

/// Two devices of one server, in the order of all streams of both and of the stream's own context. The driver's call
/// that the engine makes is ordered with one stream only.
static CUresult copy_serialized(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes) {
  orion_context* contexts[3] = {stream->context};
  orion_context* const sides[2] = {destination.context, source.context};
  uint32_t count = 1;
  for (int i = 0; i < 2; i++)
    if (sides[i] != contexts[0]) contexts[count++] = sides[i];
  between copy = {destination, source, bytes};
  bool issued = false;
  return orion_context_serialize(contexts, count, issue_between, &copy, &issued);
}

/// The copy becomes a node of the stream's capture. Page-locked memory is read and written in place at each launch,
/// other memory through the graph's own.
static CUresult copy_captured(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes) {
  const bool to_device = destination.side == ORION_SIDE_DEVICE, from_device = source.side == ORION_SIDE_DEVICE;
  if (!to_device && !from_device) return CUDA_ERROR_NOT_SUPPORTED;
  if (to_device && from_device) {
    if (destination.context->session != source.context->session) return CUDA_ERROR_NOT_SUPPORTED;
    return submit_d2d(stream, destination, source, bytes);
  }
  const orion_place* host = to_device ? &source : &destination;
  if (host->pinned && host->context->session == stream->session) {
    const uint64_t offset = orion_arena_offset(stream, host, host->address);
    return to_device ? submit_h2d(stream, destination.address, offset, bytes, 0)
                     : submit_d2h(stream, offset, source.address, bytes);
  }
  const orion_copy_shape shape = {.device_address = to_device ? destination.address : source.address,
                                  .host = (uint8_t*)(uintptr_t)host->address,
                                  .width_bytes = bytes,
                                  .height = 1,
                                  .depth = 1,
                                  .to_device = to_device};
  orion_node_work work;
  if (!orion_work_host_copy(&shape, stream->context, &work)) return CUDA_ERROR_OUT_OF_MEMORY;
  return orion_capture_node(stream, CU_GRAPH_NODE_TYPE_MEMCPY, &work);
}

static CUresult copy_relayed(orion_stream* stream, const orion_place* destination, const orion_place* source,
                             uint64_t bytes, bool serializes) {
  const orion_copy_side to = {.region = {.place = *destination, .pitch_bytes = bytes, .rows = 1}};
  const orion_copy_side from = {.region = {.place = *source, .pitch_bytes = bytes, .rows = 1}};
  return orion_relay_copy(stream, &to, &from, &(orion_volume){bytes, 1, 1}, serializes);
}

CUresult orion_copy(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes, bool wait) {
  return orion_copy_serial(stream, destination, source, bytes, wait, false);
}

CUresult orion_copy_serial(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes, bool wait,
                           bool serializes) {
  if (bytes == 0) return CUDA_SUCCESS;
  if (orion_is_captured(stream)) {
    return wait ? orion_capture_refuse(stream) : copy_captured(stream, destination, source, bytes);
  }
  if (wait) ORION_CAPTURE_SAFE();
  const bool to_device = destination.side == ORION_SIDE_DEVICE, from_device = source.side == ORION_SIDE_DEVICE;
  if (!to_device && !from_device) {
    const CUresult result = orion_stream_synchronize(stream);
    if (result != CUDA_SUCCESS) return result;
    memmove((void*)(uintptr_t)destination.address, (const void*)(uintptr_t)source.address, bytes);
    return CUDA_SUCCESS;
  }
  const bool sees = destination.is_variable || source.is_variable;  // the program may look at once, or write anew
  if (orion_is_relayed(stream, &destination, &source)) {
    const CUresult result = copy_relayed(stream, &destination, &source, bytes, serializes);
    const bool waits = wait && (sees || !to_device || !from_device);
    return result == CUDA_SUCCESS && waits ? orion_copy_wait(stream) : result;
  }
  // Memory of another device than the stream's: the owner's NULL stream does the work, after what the stream has so
  // far.
  orion_context* device_side = to_device ? destination.context : source.context;
  const bool between_devices = to_device && from_device && destination.context->device != source.context->device;
  const bool elsewhere = device_side->device != stream->context->device && !between_devices;
  if (elsewhere) {
    const CUresult result = orion_stream_synchronize(stream);
    if (result != CUDA_SUCCESS) return result;
    stream = &device_side->null_stream;
  }
  CUresult result;
  if (to_device && from_device) {
    result = between_devices && serializes ? copy_serialized(stream, destination, source, bytes)
                                           : submit_d2d(stream, destination, source, bytes);
    wait = wait && sees;
  } else if (to_device) {
    const bool in_place = source.pinned && source.context->session == stream->session;
    result = in_place ? push_in_place(stream, destination.address, &source, bytes)
                      : push_pageable(stream, destination.address, source.address, bytes);
    wait = wait && (in_place || sees);  // from pageable memory the bytes are taken already
  } else {
    const bool in_place = destination.pinned && destination.context->session == stream->session;
    result = in_place ? pull_pinned(stream, &destination, source.address, bytes)
                      : pull_pageable(stream, destination.address, source.address, bytes);
    wait = wait && in_place;
  }
  return result == CUDA_SUCCESS && (wait || elsewhere) ? orion_copy_wait(stream) : result;
}

// ------------------------------------------------------------------------------------------------ CUDA's names

static CUresult copy_unified(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  if (bytes == 0) return CUDA_SUCCESS;
  orion_place to, from;
  CUresult result = orion_place_device(destination, bytes, true, &to);
  if (result == CUDA_SUCCESS) result = orion_place_device(source, bytes, true, &from);
  return result == CUDA_SUCCESS ? orion_copy_serial(stream, to, from, bytes, wait, wait) : result;
}

static CUresult copy_to_device(CUdeviceptr destination, const void* source, size_t bytes, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  if (bytes == 0) return CUDA_SUCCESS;
  orion_place to;
  const CUresult result = orion_place_device(destination, bytes, false, &to);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(source != NULL, CUDA_ERROR_INVALID_VALUE);
  return orion_copy(stream, to, orion_place_host(source, bytes), bytes, wait);
}

static CUresult copy_to_host(void* destination, CUdeviceptr source, size_t bytes, CUstream handle, bool wait) {
  ORION_ENTER_STREAM(stream, handle);
  if (bytes == 0) return CUDA_SUCCESS;
  orion_place from;
  const CUresult result = orion_place_device(source, bytes, false, &from);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(destination != NULL, CUDA_ERROR_INVALID_VALUE);
  return orion_copy(stream, orion_place_host(destination, bytes), from, bytes, wait);
}

static CUresult copy_on_device(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream handle,
                               bool serializes) {
  ORION_ENTER_STREAM(stream, handle);
  if (bytes == 0) return CUDA_SUCCESS;
  orion_place to, from;
  CUresult result = orion_place_device(destination, bytes, false, &to);
  if (result == CUDA_SUCCESS) result = orion_place_device(source, bytes, false, &from);
  return result == CUDA_SUCCESS ? orion_copy_serial(stream, to, from, bytes, false, serializes) : result;
}

ORION_API CUresult cuMemcpy(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  ORION_COUNTED();

  return copy_unified(destination, source, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  ORION_COUNTED();

  return copy_unified(destination, source, bytes, stream, false);
}

ORION_API CUresult cuMemcpyHtoD_v2(CUdeviceptr destination, const void* source, size_t bytes) {
  ORION_COUNTED();

  return copy_to_device(destination, source, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr destination, const void* source, size_t bytes, CUstream stream) {
  ORION_COUNTED();

  return copy_to_device(destination, source, bytes, stream, false);
}

ORION_API CUresult cuMemcpyDtoH_v2(void* destination, CUdeviceptr source, size_t bytes) {
  ORION_COUNTED();

  return copy_to_host(destination, source, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyDtoHAsync_v2(void* destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  ORION_COUNTED();

  return copy_to_host(destination, source, bytes, stream, false);
}

ORION_API CUresult cuMemcpyDtoD_v2(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  ORION_COUNTED();

  return copy_on_device(destination, source, bytes, NULL, true);
}

ORION_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  ORION_COUNTED();

  return copy_on_device(destination, source, bytes, stream, false);
}

static CUresult copy_peer(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                          CUcontext source_context, size_t bytes, CUstream stream, bool serializes) {
  ORION_ENTER();
  orion_context* context;
  CUresult result =
      destination_context == NULL ? CUDA_ERROR_INVALID_CONTEXT : orion_context_of(destination_context, &context);
  if (result == CUDA_SUCCESS) {
    result = source_context == NULL ? CUDA_ERROR_INVALID_CONTEXT : orion_context_of(source_context, &context);
  }
  return result == CUDA_SUCCESS ? copy_on_device(destination, source, bytes, stream, serializes) : result;
}

ORION_API CUresult cuMemcpyPeerAsync(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                                     CUcontext source_context, size_t bytes, CUstream stream) {
  ORION_COUNTED();

  return copy_peer(destination, destination_context, source, source_context, bytes, stream, false);
}

ORION_API CUresult cuMemcpyPeer(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                                CUcontext source_context, size_t bytes) {
  ORION_COUNTED();

  return copy_peer(destination, destination_context, source, source_context, bytes, NULL, true);
}
