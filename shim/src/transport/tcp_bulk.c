// Which host arena bytes travel to the worker, and in which order.
//
// A range that an unfinished copy out of the device is writing must not be pushed: the worker's copy of those bytes is
// (or will be) newer than ours, and pushing ours would undo it. Such ranges are the pulls; they end with their word.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "tcp.h"

static tcp_state* state_of(orion_session* session) { return session->transport_state; }

static void drop_finished_pulls(tcp_state* state) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < state->pull_count; i++)
    if (orion_word(state->session, state->pulls[i].word) < state->pulls[i].value)
      state->pulls[kept++] = state->pulls[i];
  state->pull_count = kept;
}

void orion_tcp_note_pull(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t word, uint64_t value) {
  tcp_state* state = state_of(session);
  if (bytes == 0 || word >= ORION_WORDS || offset > ORION_HOST_ARENA_BYTES || bytes > ORION_HOST_ARENA_BYTES - offset)
    return;
  pthread_mutex_lock(&state->lock);
  if (state->pull_count == state->pull_capacity) {
    drop_finished_pulls(state);
    if (state->pull_count * 2 > state->pull_capacity || state->pull_capacity == 0) {
      const uint32_t capacity = state->pull_capacity ? state->pull_capacity * 2 : 64;
      tcp_pull* larger = realloc(state->pulls, capacity * sizeof *larger);
      if (larger) {
        state->pulls = larger;
        state->pull_capacity = capacity;
      }
    }
  }
  if (state->pull_count < state->pull_capacity)
    state->pulls[state->pull_count++] = (tcp_pull){offset, offset + bytes, value, word};
  else
    orion_session_lose(session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
  pthread_mutex_unlock(&state->lock);
}

// Appends one range; releases the lock while the queue is full. False when the session ends meanwhile.
static bool enqueue(tcp_state* state, uint64_t first, uint64_t end) {
  while (state->queue_count == TCP_BULK_QUEUE) {
    const uint32_t space = atomic_load(&state->queue_space);
    pthread_mutex_unlock(&state->lock);
    if (orion_ring_must_wake(state->session->main_ring)) orion_tcp_kick(state->session, false);
    orion_futex_wait(&state->queue_space, space, 10000);
    pthread_mutex_lock(&state->lock);
    if (atomic_load(&state->session->lost)) return false;
  }
  state->queue[(state->queue_first + state->queue_count++) % TCP_BULK_QUEUE] = (tcp_range){first, end - first};
  atomic_store(&state->has_bulk, true);
  state->sequence_queued += (end - first + ORION_BULK_BYTES - 1) / ORION_BULK_BYTES;
  return true;
}

// Cuts the part that is nobody's pull off the front of [*first, end): returns its end, with *first moved to its start.
// *first == end when nothing is left.
static uint64_t next_gap(const tcp_state* state, uint64_t* first, uint64_t end) {
  for (bool moved = true; moved && *first < end;) {
    moved = false;
    for (uint32_t i = 0; i < state->pull_count; i++) {
      const tcp_pull* pull = &state->pulls[i];
      if (pull->first <= *first && *first < pull->end) {
        *first = pull->end < end ? pull->end : end;
        moved = true;
      }
    }
  }
  uint64_t until = end;
  for (uint32_t i = 0; i < state->pull_count; i++)
    if (state->pulls[i].first > *first && state->pulls[i].first < until) until = state->pulls[i].first;
  return until;
}

uint64_t orion_tcp_push_host(orion_session* session, uint64_t offset, uint64_t bytes) {
  tcp_state* state = state_of(session);
  if (bytes == 0 || offset > ORION_HOST_ARENA_BYTES || bytes > ORION_HOST_ARENA_BYTES - offset) return 0;
  pthread_mutex_lock(&state->lock);
  drop_finished_pulls(state);
  uint64_t sequence = 0;
  uint64_t first = offset;
  while (first < offset + bytes) {
    const uint64_t until = next_gap(state, &first, offset + bytes);
    if (first == offset + bytes || !enqueue(state, first, until)) break;
    sequence = state->sequence_queued;
    first = until;
  }
  pthread_mutex_unlock(&state->lock);
  if (sequence && orion_ring_must_wake(session->main_ring)) orion_tcp_kick(session, false);
  return sequence;
}

bool orion_tcp_next_piece(tcp_state* state, tcp_range* piece) {
  pthread_mutex_lock(&state->lock);
  const bool any = state->queue_count != 0;
  if (any) *piece = state->queue[state->queue_first];
  if (!any) atomic_store(&state->has_bulk, false);
  pthread_mutex_unlock(&state->lock);
  if (any && piece->bytes > ORION_BULK_BYTES) piece->bytes = ORION_BULK_BYTES;
  return any;
}

void orion_tcp_piece_sent(tcp_state* state, const tcp_range* piece) {
  pthread_mutex_lock(&state->lock);
  tcp_range* range = &state->queue[state->queue_first];
  range->offset += piece->bytes;
  range->bytes -= piece->bytes;
  bool was_full = false;
  if (range->bytes == 0) {
    was_full = state->queue_count == TCP_BULK_QUEUE;
    state->queue_first = (state->queue_first + 1) % TCP_BULK_QUEUE;
    state->queue_count--;
  }
  pthread_mutex_unlock(&state->lock);
  if (was_full) orion_futex_wake_all(&state->queue_space);
}
