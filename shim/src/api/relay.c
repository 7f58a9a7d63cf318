// Copies between servers, and waits for another server's events: both are tasks of the stream that they were issued on.
// The stream is parked in its engine, as for a host function; the stream's own thread (host_function.c) does the task
// and lets the stream go on. So the caller never waits, and order within the stream is the engine's.
//
// A copy reads pieces on a private stream of the source's context and writes them on one of the destination's. Nothing
// ever holds those two back: they are in no list of the context, wait for no event and no gate. Nor can staging be
// short for ever: the blocks are set aside at the start, only tasks that run hold some, and each takes all of its own
// at once.
#include "relay.h"

#include <stdlib.h>
#include <time.h>

#include "api.h"
#include "array.h"
#include "capture.h"
#include "copier.h"
#include "host_function.h"

#define PIECES_IN_FLIGHT 4u

typedef struct relay_task {
  struct relay_task *previous, *next;  // of copies: in the list of those that are not done
  orion_session* session;              // of its stream
  uint16_t thread;                     // that issued it
  bool begun;                          // under the mutex
  orion_copy_side to, from;
  orion_volume volume;
  // Of waits.
  orion_context* context;
  uint32_t word, ends;
  uint64_t value;
} relay_task;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // inside every other
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;  // a copy is done, or blocks are free
static relay_task* copies;
static _Atomic uint32_t copy_count;

// ------------------------------------------------------------------------------------------------ blocks

bool orion_relay_start(orion_peer* peer) {
  for (uint32_t i = 0; i < ORION_RELAY_BLOCKS; i++) {
    if (orion_staging_take(peer->session, ORION_COPY_PIECE_BYTES, &peer->relay_blocks[i]) != CUDA_SUCCESS) return false;
    peer->relay_free = i + 1;
  }
  peer->relay_ready = true;
  return true;
}

/// One server's half of a copy. No stream: host memory.
typedef struct leg {
  orion_stream* stream;
  orion_peer* peer;
  uint32_t count;  // of blocks
  uint64_t blocks[PIECES_IN_FLIGHT], values[PIECES_IN_FLIGHT];
} leg;

/// Under the mutex: how many of the free blocks, at most half of them, so that a long copy leaves some for others.
static uint32_t share(const leg* side, uint64_t pieces, uint32_t sharers) {
  const uint32_t fair = (side->peer->relay_free / sharers + 1) / 2;
  const uint64_t wanted = pieces < PIECES_IN_FLIGHT ? pieces : PIECES_IN_FLIGHT;
  return fair < wanted ? fair : (uint32_t)wanted;
}

static void pop(leg* side, uint32_t count) {
  for (side->count = 0; side->count < count; side->count++) {
    side->blocks[side->count] = side->peer->relay_blocks[--side->peer->relay_free];
  }
}

static void take_blocks(leg* in, leg* out, uint64_t pieces) {
  const bool one_pool = in->stream != NULL && out->stream != NULL && in->peer == out->peer;
  const uint32_t sharers = one_pool ? 2 : 1;
  pthread_mutex_lock(&mutex);
  while ((in->stream != NULL && in->peer->relay_free < sharers) ||
         (out->stream != NULL && out->peer->relay_free < sharers)) {
    pthread_cond_wait(&changed, &mutex);
  }
  const uint32_t in_count = in->stream == NULL ? 0 : share(in, pieces, sharers);
  const uint32_t out_count = out->stream == NULL ? 0 : share(out, pieces, sharers);
  pop(in, in_count);
  pop(out, out_count);
  pthread_mutex_unlock(&mutex);
}

static void give_blocks(leg* side) {
  pthread_mutex_lock(&mutex);
  while (side->count > 0) side->peer->relay_blocks[side->peer->relay_free++] = side->blocks[--side->count];
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
}

// ------------------------------------------------------------------------------------------------ pieces

static bool on_device(const orion_copy_side* s) {
  return s->array != NULL || s->region.place.side == ORION_SIDE_DEVICE;
}

static orion_context* context_of(const orion_copy_side* s) {
  return s->array != NULL ? s->array->context : s->region.place.context;
}

/// Goes through a volume in pieces that one block holds: rows of one slice, or a part of one row.
typedef struct cursor {
  uint64_t x_bytes, y, z;
} cursor;

static uint64_t rows_that_fit(const orion_volume* v) {
  const uint64_t fit = v->width_bytes > ORION_COPY_PIECE_BYTES ? 1 : ORION_COPY_PIECE_BYTES / v->width_bytes;
  return fit < v->height ? fit : v->height;
}

static uint64_t count_pieces(const orion_volume* v) {
  const uint64_t rows = rows_that_fit(v), wide = (v->width_bytes - 1) / ORION_COPY_PIECE_BYTES + 1;
  return v->depth * ((v->height - 1) / rows + 1) * wide;
}

static orion_copy_piece next_piece(const orion_volume* v, cursor* at) {
  const uint64_t fit = rows_that_fit(v), width_left = v->width_bytes - at->x_bytes, rows_left = v->height - at->y;
  orion_copy_piece piece = {.first_row = at->y, .slice = at->z, .x_bytes = at->x_bytes};
  piece.size.width_bytes = width_left < ORION_COPY_PIECE_BYTES ? width_left : ORION_COPY_PIECE_BYTES;
  piece.size.height = rows_left < fit ? rows_left : fit;
  piece.size.depth = 1;
  at->x_bytes += piece.size.width_bytes;
  if (at->x_bytes < v->width_bytes) return piece;
  at->x_bytes = 0;
  at->y += piece.size.height;
  if (at->y < v->height) return piece;
  at->y = 0;
  at->z++;
  return piece;
}

static uint64_t piece_bytes(const orion_copy_piece* piece) { return piece->size.width_bytes * piece->size.height; }

/// Between rows of the program's memory and a block.
static void move_rows(const orion_region* host, const orion_copy_piece* piece, uint8_t* block, bool to_host) {
  for (uint64_t y = 0; y < piece->size.height; y++, block += piece->size.width_bytes) {
    const uint64_t address = orion_row_address(host, piece->first_row + y, piece->slice) + piece->x_bytes;
    uint8_t* row = (uint8_t*)(uintptr_t)address;
    orion_copy_bytes(to_host ? row : block, to_host ? block : row, piece->size.width_bytes);
  }
}

static CUresult submit(const leg* side, const orion_copy_side* device, const orion_copy_piece* piece, bool to_device) {
  orion_stream* stream = side->stream;
  if (device->array != NULL || piece->size.height > 1) return orion_side_submit(stream, device, piece, to_device);
  const uint64_t address = orion_row_address(&device->region, piece->first_row, piece->slice) + piece->x_bytes;
  if (to_device) {
    orion_op_copy_h2d op = {.op = {.code = ORION_OP_COPY_H2D, .bulk_seq = piece->bulk_seq},
                            .device_dst = address,
                            .src_off = piece->arena_offset,
                            .size_bytes = piece->size.width_bytes};
    return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  }
  orion_op_copy_d2h op = {.op = {.code = ORION_OP_COPY_D2H},
                          .src = address,
                          .dst_off = piece->arena_offset,
                          .size_bytes = piece->size.width_bytes};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

static CUresult begin_read(leg* in, const orion_copy_side* from, orion_copy_piece piece, uint32_t slot) {
  piece.arena_offset = in->blocks[slot];
  const CUresult result = submit(in, from, &piece, false);
  const CUresult marked = orion_stream_ticket(in->stream, &in->values[slot]);
  orion_note_pull(in->stream->session, piece.arena_offset, piece_bytes(&piece), in->stream->word, in->values[slot]);
  return result == CUDA_SUCCESS ? marked : result;
}

static CUresult await(const leg* side, uint32_t slot) {
  const CUresult result = side->values[slot] == 0 ? CUDA_SUCCESS : orion_stream_wait(side->stream, side->values[slot]);
  return result == CUDA_SUCCESS ? orion_take_late_error(side->stream->session) : result;
}

static uint8_t* block_at(const leg* side, uint32_t slot) {
  return side->stream->session->host_base + side->blocks[slot];
}

/// `arrived`: the piece's bytes, or NULL where the source is host memory.
static CUresult deliver(leg* out, const relay_task* task, orion_copy_piece piece, uint8_t* arrived, uint32_t slot) {
  if (out->stream == NULL) {
    move_rows(&task->to.region, &piece, arrived, true);
    return CUDA_SUCCESS;
  }
  CUresult result = await(out, slot);
  if (result != CUDA_SUCCESS) return result;
  if (arrived != NULL) {
    orion_copy_bytes(block_at(out, slot), arrived, piece_bytes(&piece));
  } else {
    move_rows(&task->from.region, &piece, block_at(out, slot), false);
  }
  piece.arena_offset = out->blocks[slot];
  piece.bulk_seq = orion_push_host(out->stream->session, piece.arena_offset, piece_bytes(&piece));
  result = submit(out, &task->to, &piece, true);
  const CUresult marked = orion_stream_ticket(out->stream, &out->values[slot]);
  return result == CUDA_SUCCESS ? marked : result;
}

static CUresult move_pieces(const relay_task* task, leg* in, leg* out, uint64_t pieces) {
  cursor reading = {0}, writing = {0};
  uint64_t read = 0;
  CUresult result = CUDA_SUCCESS;
  for (uint64_t written = 0; written < pieces && result == CUDA_SUCCESS; written++) {
    for (; read < pieces && read - written < in->count && result == CUDA_SUCCESS; read++) {
      result = begin_read(in, &task->from, next_piece(&task->volume, &reading), (uint32_t)(read % in->count));
    }
    uint8_t* arrived = NULL;
    if (in->count != 0 && result == CUDA_SUCCESS) {
      const uint32_t slot = (uint32_t)(written % in->count);
      result = await(in, slot);
      arrived = block_at(in, slot);
    }
    const uint32_t slot = out->count == 0 ? 0 : (uint32_t)(written % out->count);
    if (result == CUDA_SUCCESS) {
      result = deliver(out, task, next_piece(&task->volume, &writing), arrived, slot);
    }
  }
  return result;
}

/// Nothing that the leg has issued touches its blocks any more, unless its session is over.
static CUresult end_leg(leg* side, CUresult result) {
  for (uint32_t i = 0; i < side->count; i++) {
    const CUresult ended = await(side, i);
    if (result == CUDA_SUCCESS) result = ended;
  }
  give_blocks(side);
  return result;
}

static CUresult open_leg(leg* side, const orion_copy_side* s) {
  if (!on_device(s)) return CUDA_SUCCESS;
  orion_context* context = context_of(s);
  CUresult result = orion_usable(context);
  side->peer = context->device->peer;
  if (result == CUDA_SUCCESS && !side->peer->relay_ready) result = CUDA_ERROR_OUT_OF_MEMORY;
  return result == CUDA_SUCCESS ? orion_private_stream(context, &side->stream) : result;
}

static CUresult copy(const relay_task* task) {
  leg in = {0}, out = {0};
  CUresult result = open_leg(&in, &task->from);
  if (result == CUDA_SUCCESS) result = open_leg(&out, &task->to);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t pieces = count_pieces(&task->volume);
  take_blocks(&in, &out, pieces);
  result = move_pieces(task, &in, &out, pieces);
  result = end_leg(&in, result);
  return end_leg(&out, result);
}

// ------------------------------------------------------------------------------------------------ tasks

static void list(relay_task* task) {
  pthread_mutex_lock(&mutex);
  task->previous = NULL;
  task->next = copies;
  if (copies != NULL) copies->previous = task;
  copies = task;
  atomic_fetch_add(&copy_count, 1);
  pthread_mutex_unlock(&mutex);
}

static void end(relay_task* task) {
  pthread_mutex_lock(&mutex);
  if (task->previous != NULL) {
    task->previous->next = task->next;
  } else {
    copies = task->next;
  }
  if (task->next != NULL) task->next->previous = task->previous;
  atomic_fetch_sub(&copy_count, 1);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  free(task);
}

/// False: its stream's session is over, and whoever settles has stopped to reckon with it.
static bool begin(relay_task* task) {
  pthread_mutex_lock(&mutex);
  task->begun = atomic_load(&task->session->lost) == 0;
  const bool begun = task->begun;
  pthread_mutex_unlock(&mutex);
  return begun;
}

/// The thread that asked for it is told, unless the process ends.
static void note(const relay_task* task, const char* what, CUresult result) {
  if (result != CUDA_SUCCESS && orion_attached()) orion_note_late_error(task->session, task->thread, what, result);
}

/// `status`: of the stream's own context; its error is told by every call anyway.
static void run_copy(void* data, CUresult status) {
  relay_task* task = data;
  if (status == CUDA_SUCCESS && begin(task)) note(task, "copy between servers", copy(task));
  end(task);
}

static CUresult wait_for_ticket(const relay_task* task) {
  return orion_wait_word_until(task->context->session, task->word, task->value, task->context->entry.index,
                               &task->context->ends, task->ends);
}

static void run_wait(void* data, CUresult status) {
  relay_task* task = data;
  if (status == CUDA_SUCCESS) note(task, "wait for another server's event", wait_for_ticket(task));
  free(task);
}

/// More streams with threads of their own than there are client words: the caller waits itself.
static CUresult enqueue(orion_stream* stream, relay_task* task, void (*run)(void* data, CUresult status)) {
  const CUresult result = orion_stream_task_enqueue(stream, run, task);
  if (result != CUDA_ERROR_OUT_OF_MEMORY) return result;
  run(task, orion_stream_synchronize(stream));
  return CUDA_SUCCESS;
}

CUresult orion_relay_wait(orion_stream* stream, orion_context* context, uint32_t word, uint64_t value) {
  const CUresult result = orion_context_error(context->session, context->entry.index);
  if (result != CUDA_SUCCESS || orion_word(context->session, word) >= value) return result;
  relay_task* task = calloc(1, sizeof *task);
  ORION_REQUIRE(task != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  task->session = stream->session;
  task->thread = orion_thread_index();
  task->context = context;
  task->word = word;
  task->ends = atomic_load(&context->ends);
  task->value = value;
  const CUresult enqueued = enqueue(stream, task, run_wait);
  if (enqueued != CUDA_SUCCESS) free(task);
  return enqueued;
}

static CUresult enqueue_copy(orion_stream* stream, void* task) { return enqueue(stream, task, run_copy); }

bool orion_is_relayed(const orion_stream* stream, const orion_place* to, const orion_place* from) {
  const bool to_device = to->side == ORION_SIDE_DEVICE, from_device = from->side == ORION_SIDE_DEVICE;
  if (!to_device && !from_device) return false;
  if ((!to_device && !to->pinned) || (!from_device && !from->pinned)) return false;
  return to->context->session != from->context->session || to->context->session != stream->session;
}

CUresult orion_relay_copy(orion_stream* stream, const orion_copy_side* to, const orion_copy_side* from,
                          const orion_volume* volume, bool serializes) {
  if (orion_is_captured(stream)) return CUDA_ERROR_NOT_SUPPORTED;
  orion_context* contexts[3] = {stream->context};
  uint32_t count = 1;
  const orion_copy_side* sides[2] = {to, from};
  for (int i = 0; i < 2; i++) {
    if (!on_device(sides[i])) continue;
    orion_context* context = context_of(sides[i]);
    const CUresult result = orion_usable(context);
    if (result != CUDA_SUCCESS) return result;
    if (context != contexts[0] && (count < 2 || context != contexts[1])) contexts[count++] = context;
  }
  relay_task* task = calloc(1, sizeof *task);
  ORION_REQUIRE(task != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  task->session = stream->session;
  task->thread = orion_thread_index();
  task->to = *to;
  task->from = *from;
  task->volume = *volume;
  list(task);
  const bool between = on_device(to) && on_device(from);
  const bool all = between && (serializes || stream->wire_index == 0);
  bool issued = false;
  const CUresult result =
      all ? orion_context_serialize(contexts, count, enqueue_copy, task, &issued) : enqueue_copy(stream, task);
  if (result != CUDA_SUCCESS && !issued) end(task);
  return result;
}

// ------------------------------------------------------------------------------------------------ ends of memory

static bool overlaps(const orion_copy_side* s, const orion_volume* v, uint64_t start, uint64_t bytes) {
  if (s->array != NULL) return (uint64_t)(uintptr_t)s->array - start < bytes;
  const orion_region* r = &s->region;
  const uint64_t span = ((v->depth - 1) * r->rows + v->height - 1) * r->pitch_bytes + v->width_bytes;
  return r->place.address < start + bytes && start < r->place.address + span;
}

/// A copy that has not begun when its stream's session ends never will: the stream's thread may be in a function of the
/// program for as long as that likes.
static bool is_due(const relay_task* task) { return task->begun || atomic_load(&task->session->lost) == 0; }

typedef bool (*concerns)(const relay_task* task, const void* what);

static void settle(concerns is_meant, const void* what) {
  if (atomic_load(&copy_count) == 0) return;
  pthread_mutex_lock(&mutex);
  for (relay_task* task = copies; task != NULL;) {
    if (!is_due(task) || !is_meant(task, what)) {
      task = task->next;
      continue;
    }
    struct timespec until;  // nobody signals the end of a session
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    if (until.tv_nsec >= 1000000000) {
      until.tv_nsec -= 1000000000;
      until.tv_sec++;
    }
    pthread_cond_timedwait(&changed, &mutex, &until);
    task = copies;  // the list may be another
  }
  pthread_mutex_unlock(&mutex);
}

typedef struct span {
  uint64_t start, bytes;
} span;

static bool concerns_span(const relay_task* task, const void* what) {
  const span* s = what;
  return overlaps(&task->to, &task->volume, s->start, s->bytes) ||
         overlaps(&task->from, &task->volume, s->start, s->bytes);
}

static bool concerns_context(const relay_task* task, const void* what) {
  return context_of(&task->to) == what || context_of(&task->from) == what;
}

void orion_relay_settle(uint64_t start, uint64_t bytes) { settle(concerns_span, &(span){start, bytes}); }

void orion_relay_settle_allocation(uint64_t address) {
  if (atomic_load(&copy_count) == 0) return;
  const orion_range range = orion_find_range(address, 1);
  if (range.kind != ORION_MEMORY_PAGEABLE) orion_relay_settle(range.start, range.bytes);
}

void orion_relay_settle_context(const orion_context* context) { settle(concerns_context, context); }
