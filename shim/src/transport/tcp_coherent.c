// Host memory that kernels use, over a network. For each coherent range this side keeps a copy of what the worker
// knows. A push sends what differs from it; what the worker sends is stored in both, at once under the lock, so that it
// is not taken for the program's own change and sent back. Whole ranges are compared: page protection would make system
// calls that write into such memory fail.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "orion_runs.h"
#include "tcp.h"

static tcp_state* state_of(orion_session* session) { return session->transport_state; }

static void out_of_memory(tcp_state* state) {
  orion_session_lose(state->session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
}

// ------------------------------------------------------------------------------------------------ frames of runs

typedef struct run_writer {
  tcp_state* state;
  tcp_runs *first, *last;
  uint32_t frames;
} run_writer;

static tcp_runs* frame_with_room(run_writer* writer) {
  if (writer->last && ORION_BULK_BYTES - writer->last->bytes > sizeof(orion_run) + 64) return writer->last;
  tcp_runs* fresh = malloc(sizeof *fresh + ORION_BULK_BYTES);
  if (!fresh) {
    out_of_memory(writer->state);
    return NULL;
  }
  fresh->next = NULL;
  fresh->bytes = 0;
  if (writer->last)
    writer->last->next = fresh;
  else
    writer->first = fresh;
  writer->last = fresh;
  writer->frames++;
  return fresh;
}

// Packs [first, end) of the arena and notes it as known to the worker.
static bool put(run_writer* writer, const tcp_coherent* range, uint64_t first, uint64_t end) {
  while (first < end) {
    tcp_runs* frame = frame_with_room(writer);
    if (!frame) return false;
    const uint64_t room = (ORION_BULK_BYTES - frame->bytes - sizeof(orion_run)) & ~7ull;
    const uint64_t bytes = end - first < room ? end - first : room;
    uint8_t* at = frame->data + frame->bytes;
    frame->bytes += (uint32_t)orion_run_put(at, first, range->memory + (first - range->first), (uint32_t)bytes);
    memcpy(range->known + (first - range->first), at + sizeof(orion_run), bytes);
    first += bytes;
  }
  return true;
}

// What differs in [first, end), which lies in `range`, but for what copies out of the device are about to bring.
static void put_changes(run_writer* writer, const tcp_coherent* range, uint64_t first, uint64_t end) {
  const uint64_t skipped = first - range->first;
  uint64_t at = 0, length = 0;
  while (orion_next_difference(range->memory + skipped, range->known + skipped, end - first, &at, &length)) {
    uint64_t piece = first + at;
    const uint64_t piece_end = piece + length;
    at += length;
    while (piece < piece_end) {
      const uint64_t until = orion_tcp_next_gap(writer->state, &piece, piece_end, 0);
      if (piece < piece_end && !put(writer, range, piece, until)) return;
      piece = until;
    }
  }
}

// Waits, before the lock is taken for good, until the queue has room for what all threads may add at once.
static bool lock_with_room(tcp_state* state) {
  pthread_mutex_lock(&state->lock);
  while (state->queue_count > TCP_BULK_QUEUE / 2) {
    const uint32_t space = atomic_load(&state->queue_space);
    atomic_store(&state->wants_space, true);
    pthread_mutex_unlock(&state->lock);
    if (orion_ring_must_wake(state->session->main_ring)) orion_tcp_kick(state->session, false);
    orion_futex_wait(&state->queue_space, space, 10000);
    if (atomic_load(&state->session->lost)) return false;
    pthread_mutex_lock(&state->lock);
  }
  return true;
}

// Under the lock. True when something was queued.
static bool queue_changes(tcp_state* state, uint64_t first, uint64_t end) {
  orion_tcp_drop_finished_pulls(state);
  run_writer writer = {.state = state};
  for (uint32_t i = 0; i < state->coherent_count; i++) {
    const tcp_coherent* range = &state->coherent[i];
    const uint64_t from = first > range->first ? first : range->first, until = end < range->end ? end : range->end;
    if (from < until) put_changes(&writer, range, from, until);
  }
  if (!writer.first) return false;
  state->queue[(state->queue_first + state->queue_count++) % TCP_BULK_QUEUE] = (tcp_range){.runs = writer.first};
  state->sequence_queued += writer.frames;
  orion_tcp_queue_changed(state);
  for (uint32_t i = 0; i < state->coherent_count; i++)
    if (first < state->coherent[i].end && end > state->coherent[i].first)
      state->coherent[i].sequence = state->sequence_queued;
  return true;
}

// ------------------------------------------------------------------------------------------ the transport's calls

bool orion_tcp_coherent_begin(orion_session* session, uint64_t offset, uint64_t bytes, bool unsent) {
  tcp_state* state = state_of(session);
  void* known = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (known == MAP_FAILED) return false;
  madvise(known, bytes, MADV_DONTFORK);
  if (!lock_with_room(state)) {
    munmap(known, bytes);
    return false;
  }
  bool added = true;
  if (state->coherent_count == state->coherent_capacity) {
    const uint32_t capacity = state->coherent_capacity ? state->coherent_capacity * 2 : 16;
    tcp_coherent* larger = realloc(state->coherent, capacity * sizeof *larger);
    added = larger != NULL;
    if (added) {
      state->coherent = larger;
      state->coherent_capacity = capacity;
    }
  }
  if (added) {
    orion_tcp_await_in_place(state, offset, offset + bytes);
    // In this order: what the program writes in between counts as a change then, whether it has been sent or not.
    uint8_t* memory = orion_tcp_memory(state, offset);
    if (!unsent) {
      memcpy(known, memory, bytes);
      (void)orion_tcp_push_range(state, offset, offset + bytes, 0);
    }
    state->coherent[state->coherent_count++] =
        (tcp_coherent){offset, offset + bytes, memory, known, state->sequence_queued};
  }
  pthread_mutex_unlock(&state->lock);
  if (!added) munmap(known, bytes);
  if (added && orion_ring_must_wake(session->main_ring)) orion_tcp_kick(session, false);
  return added;
}

void orion_tcp_coherent_end(orion_session* session, uint64_t offset, uint64_t bytes) {
  tcp_state* state = state_of(session);
  pthread_mutex_lock(&state->lock);
  uint32_t kept = 0;
  for (uint32_t i = 0; i < state->coherent_count; i++) {
    const tcp_coherent range = state->coherent[i];
    if (range.first >= offset && range.end <= offset + bytes)
      munmap(range.known, range.end - range.first);
    else
      state->coherent[kept++] = range;
  }
  state->coherent_count = kept;
  pthread_mutex_unlock(&state->lock);
}

uint64_t orion_tcp_coherent_push(orion_session* session, uint64_t offset, uint64_t bytes) {
  tcp_state* state = state_of(session);
  if (!lock_with_room(state)) return 0;
  const bool queued = queue_changes(state, offset, offset + bytes);
  // Also what another thread has queued before: this one's work may rely on it.
  uint64_t sequence = 0;
  for (uint32_t i = 0; i < state->coherent_count; i++) {
    const tcp_coherent* range = &state->coherent[i];
    if (offset < range->end && offset + bytes > range->first && range->sequence > sequence) sequence = range->sequence;
  }
  pthread_mutex_unlock(&state->lock);
  if (queued && orion_ring_must_wake(session->main_ring)) orion_tcp_kick(session, false);
  return sequence;
}

bool orion_tcp_coherent_push_all(tcp_state* state) {
  if (!lock_with_room(state)) return false;
  const bool queued = state->coherent_count != 0 && queue_changes(state, 0, ORION_HOST_ARENA_BYTES);
  pthread_mutex_unlock(&state->lock);
  return queued;
}

bool orion_tcp_coherent_covers(tcp_state* state, uint64_t offset, uint64_t bytes) {
  bool covers = false;
  pthread_mutex_lock(&state->lock);
  for (uint32_t i = 0; i < state->coherent_count && !covers; i++)
    covers = state->coherent[i].first <= offset && offset + bytes <= state->coherent[i].end;
  pthread_mutex_unlock(&state->lock);
  return covers;
}

// ------------------------------------------------------------------------------------------------ from the worker

void orion_tcp_store(tcp_state* state, uint64_t offset, const uint8_t* from, uint64_t bytes) {
  pthread_mutex_lock(&state->lock);
  orion_tcp_put(state, offset, from, bytes);
  for (uint32_t i = 0; i < state->coherent_count; i++) {
    const tcp_coherent* range = &state->coherent[i];
    const uint64_t first = offset > range->first ? offset : range->first;
    const uint64_t end = offset + bytes < range->end ? offset + bytes : range->end;
    if (first < end) memcpy(range->known + (first - range->first), from + (first - offset), end - first);
  }
  pthread_mutex_unlock(&state->lock);
}
