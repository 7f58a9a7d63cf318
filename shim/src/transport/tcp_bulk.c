// Which host arena bytes travel to the worker, and in which order.
//
// Page-locked memory is read at the call, and again when a host function returns that the reading copy stands behind:
// until then the function may write it. The function's client word follows those bytes on the same lane, so that its
// stream goes on only when they are there. No call waits for a function: the function may wait for the caller.
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

void orion_tcp_drop_finished_pulls(tcp_state* state) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < state->pull_count; i++)
    if (orion_word(state->session, state->pulls[i].word) < state->pulls[i].value)
      state->pulls[kept++] = state->pulls[i];
  state->pull_count = kept;
}

void orion_tcp_note_rows(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value) {
  tcp_state* state = state_of(session);
  const uint64_t offset = rows->offset, bytes = (rows->rows - 1) * rows->pitch_bytes + rows->width_bytes;
  if (rows->width_bytes == 0 || rows->rows == 0 || word >= ORION_WORDS || offset > ORION_HOST_ARENA_BYTES ||
      bytes > ORION_HOST_ARENA_BYTES - offset)
    return;
  pthread_mutex_lock(&state->lock);
  if (state->pull_count == state->pull_capacity) {
    orion_tcp_drop_finished_pulls(state);
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
    state->pulls[state->pull_count++] =
        (tcp_pull){offset, offset + bytes, value, rows->width_bytes, rows->rows > 1 ? rows->pitch_bytes : bytes, word};
  else
    orion_session_lose(session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
  pthread_mutex_unlock(&state->lock);
}

// Appends one entry; releases the lock while the queue is full. False when the session ends meanwhile.
static bool enqueue(tcp_state* state, tcp_range range) {
  while (state->queue_count == TCP_BULK_QUEUE) {
    const uint32_t space = atomic_load(&state->queue_space);
    pthread_mutex_unlock(&state->lock);
    if (orion_ring_must_wake(state->session->main_ring)) orion_tcp_kick(state->session, false);
    orion_futex_wait(&state->queue_space, space, 10000);
    pthread_mutex_lock(&state->lock);
    if (atomic_load(&state->session->lost)) return false;
  }
  range.striped = state->stripe_count && range.bytes >= ORION_STRIPE_MIN_BYTES;
  state->queue[(state->queue_first + state->queue_count++) % TCP_BULK_QUEUE] = range;
  orion_tcp_queue_changed(state);
  state->sequence_queued += (range.bytes + ORION_BULK_BYTES - 1) / ORION_BULK_BYTES;
  return true;
}

// The end of the pulled row in which `at` lies; 0: it lies in none.
static uint64_t row_end(const tcp_pull* pull, uint64_t at) {
  if (at < pull->first || at >= pull->end) return 0;
  const uint64_t column = (at - pull->first) % pull->pitch;
  return column < pull->width ? at - column + pull->width : 0;
}

// The start of the first pulled row behind `at`, which lies in none.
static uint64_t next_row(const tcp_pull* pull, uint64_t at) {
  if (at < pull->first) return pull->first;
  if (at >= pull->end) return UINT64_MAX;
  const uint64_t start = at - (at - pull->first) % pull->pitch + pull->pitch;
  return start < pull->end ? start : UINT64_MAX;
}

uint64_t orion_tcp_next_gap(const tcp_state* state, uint64_t* first, uint64_t end, uint32_t own_word) {
  for (bool moved = true; moved && *first < end;) {
    moved = false;
    for (uint32_t i = 0; i < state->pull_count; i++) {
      const tcp_pull* pull = &state->pulls[i];
      const uint64_t until = pull->word != own_word ? row_end(pull, *first) : 0;
      if (until == 0) continue;
      *first = until < end ? until : end;
      moved = true;
    }
  }
  uint64_t until = end;
  for (uint32_t i = 0; i < state->pull_count; i++) {
    if (state->pulls[i].word == own_word) continue;
    const uint64_t start = next_row(&state->pulls[i], *first);
    if (start < until) until = start;
  }
  return until;
}

static bool in_arena(uint64_t offset, uint64_t bytes) {
  return bytes != 0 && offset <= ORION_HOST_ARENA_BYTES && bytes <= ORION_HOST_ARENA_BYTES - offset;
}

uint64_t orion_tcp_push_range(tcp_state* state, uint64_t first, uint64_t end, uint32_t own_word) {
  orion_tcp_drop_finished_pulls(state);
  uint64_t sequence = 0;
  while (first < end) {
    const uint64_t until = orion_tcp_next_gap(state, &first, end, own_word);
    if (first == end || !enqueue(state, (tcp_range){.offset = first, .bytes = until - first})) break;
    sequence = state->sequence_queued;
    first = until;
  }
  return sequence;
}

static void kick_sender(const tcp_state* state) {
  if (orion_ring_must_wake(state->session->main_ring)) orion_tcp_kick(state->session, false);
}

uint64_t orion_tcp_push_host(orion_session* session, uint64_t offset, uint64_t bytes) {
  tcp_state* state = state_of(session);
  if (!in_arena(offset, bytes)) return 0;
  pthread_mutex_lock(&state->lock);
  const uint64_t sequence = orion_tcp_push_range(state, offset, offset + bytes, 0);
  pthread_mutex_unlock(&state->lock);
  if (sequence) kick_sender(state);
  return sequence;
}

// ------------------------------------------------------------------------------------------------ host functions

// Makes room for one more element. The session ends without memory: bytes that were not sent would be wrong results.
static bool reserve(tcp_state* state, void* list, uint32_t count, uint32_t* capacity, size_t element_bytes) {
  if (count < *capacity) return true;
  const uint32_t wanted = *capacity ? *capacity * 2 : 64;
  void* larger = realloc(*(void**)list, wanted * element_bytes);
  if (!larger) {
    orion_session_lose(state->session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
    return false;
  }
  *(void**)list = larger;
  *capacity = wanted;
  return true;
}

static bool is_open(const tcp_state* state, uint32_t callback, uint64_t generation) {
  for (uint32_t i = state->function_count; callback && i-- > 0;)
    if (state->functions[i].callback == callback && state->functions[i].generation == generation) return true;
  return false;
}

void orion_tcp_begin_host_function(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word) {
  tcp_state* state = state_of(session);
  pthread_mutex_lock(&state->lock);
  if (reserve(state, &state->functions, state->function_count, &state->function_capacity, sizeof *state->functions))
    state->functions[state->function_count++] = (tcp_function){++state->functions_begun, generation, callback, word};
  pthread_mutex_unlock(&state->lock);
}

// A range that is read again behind the same function of its own stream is kept once.
static void note_late(tcp_state* state, tcp_late_range range) {
  for (uint32_t i = state->late_count; i-- > 0;) {
    tcp_late_range* known = &state->late[i];
    if (known->first != range.first || known->end != range.end || known->callback != range.callback ||
        known->generation != range.generation)
      continue;
    known->serial = range.serial;
    return;
  }
  if (reserve(state, &state->late, state->late_count, &state->late_capacity, sizeof *state->late))
    state->late[state->late_count++] = range;
}

uint64_t orion_tcp_push_pinned(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                               uint64_t generation) {
  tcp_state* state = state_of(session);
  if (!in_arena(offset, bytes)) return 0;
  if (atomic_load(&state->coherent_count) && orion_tcp_coherent_covers(state, offset, bytes))
    return orion_tcp_coherent_push(session, offset, bytes);
  uint64_t sequence = 0;
  pthread_mutex_lock(&state->lock);
  const bool deferred = is_open(state, callback, generation);
  if (state->function_count)
    note_late(state, (tcp_late_range){offset, offset + bytes, state->functions_begun, deferred ? generation : 0,
                                      deferred ? callback : 0});
  if (!deferred) sequence = orion_tcp_push_range(state, offset, offset + bytes, 0);
  pthread_mutex_unlock(&state->lock);
  if (sequence) kick_sender(state);
  return sequence;
}

// Takes out the function that has returned. False when it is not known.
static bool take_function(tcp_state* state, uint32_t callback, uint64_t generation, tcp_function* out) {
  for (uint32_t i = 0; i < state->function_count; i++) {
    if (state->functions[i].callback != callback || state->functions[i].generation != generation) continue;
    *out = state->functions[i];
    memmove(&state->functions[i], &state->functions[i + 1], (state->function_count - i - 1) * sizeof *out);
    state->function_count--;
    return true;
  }
  return false;
}

// Ranges that no open function precedes are forgotten.
static void drop_late(tcp_state* state) {
  const uint64_t oldest = state->function_count ? state->functions[0].serial : UINT64_MAX;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < state->late_count; i++)
    if (state->late[i].serial >= oldest) state->late[kept++] = state->late[i];
  state->late_count = kept;
}

bool orion_tcp_end_host_function(orion_session* session, uint32_t callback, uint64_t generation) {
  tcp_state* state = state_of(session);
  tcp_function ended;
  // The function may have written what kernels behind it use.
  bool any = atomic_load(&state->coherent_count) && orion_tcp_coherent_push_all(state);
  pthread_mutex_lock(&state->lock);
  tcp_late_range* ranges = NULL;
  uint32_t count = 0;
  if (take_function(state, callback, generation, &ended) && state->late_count) {
    // Copied out first: queueing may release the lock.
    ranges = malloc(state->late_count * sizeof *ranges);
    if (!ranges) orion_session_lose(session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
    for (uint32_t i = 0; ranges && i < state->late_count; i++) {
      const tcp_late_range* late = &state->late[i];
      // One that stands behind an open function of its own stream goes when that one returns.
      if (late->serial < ended.serial || is_open(state, late->callback, late->generation)) continue;
      ranges[count++] = *late;
    }
  }
  drop_late(state);
  for (uint32_t i = 0; i < count; i++) {
    // Copies out of the device in the function's own stream are done or have not begun, and what they bring is newer.
    const bool own = ranges[i].callback == callback && ranges[i].generation == generation;
    any |= orion_tcp_push_range(state, ranges[i].first, ranges[i].end, own ? ended.word : 0) != 0;
  }
  if (any) any = enqueue(state, (tcp_range){.offset = callback});
  pthread_mutex_unlock(&state->lock);
  free(ranges);
  if (any) kick_sender(state);
  return any;
}

// ------------------------------------------------------------------------------------------------ off the queue

static tcp_range* first_range(tcp_state* state) {
  return state->queue_count ? &state->queue[state->queue_first] : NULL;
}

void orion_tcp_queue_changed(tcp_state* state) {
  const tcp_range* first = first_range(state);
  atomic_store(&state->has_bulk, first && (!first->striped || state->mover_stripes));
  if (first && first->striped) pthread_cond_broadcast(&state->has_range);
}

// Under the lock. True when somebody may be waiting for room.
static bool pop_range(tcp_state* state) {
  const bool was_full = state->queue_count == TCP_BULK_QUEUE || atomic_exchange(&state->wants_space, false);
  state->queue_first = (state->queue_first + 1) % TCP_BULK_QUEUE;
  state->queue_count--;
  orion_tcp_queue_changed(state);
  return was_full;
}

bool orion_tcp_next_piece(tcp_state* state, tcp_range* piece) {
  pthread_mutex_lock(&state->lock);
  const tcp_range* first = first_range(state);
  const bool any = first && !first->striped;
  if (any) *piece = *first;
  pthread_mutex_unlock(&state->lock);
  if (any && piece->bytes > ORION_BULK_BYTES) piece->bytes = ORION_BULK_BYTES;
  return any;
}

orion_frame orion_tcp_piece_header(const tcp_state* state, const tcp_range* piece) {
  orion_frame header = {.type = ORION_FRAME_BULK, .sequence = state->sequence_sent + 1, .a = piece->offset};
  if (piece->runs) {
    header = (orion_frame){.type = ORION_FRAME_RUNS, .sequence = header.sequence};
    header.bytes = piece->runs->bytes;
  } else if (piece->bytes) {
    header.bytes = (uint32_t)piece->bytes;
  } else {
    // Not numbered: told once all frames before it have been stored.
    header = (orion_frame){.type = ORION_FRAME_CLIENT_WORDS, .sequence = state->sequence_sent};
    header.bytes = sizeof(orion_word_update);
  }
  return header;
}

void orion_tcp_piece_body(tcp_state* state, const tcp_range* piece, uint8_t* to) {
  if (piece->runs) {
    memcpy(to, piece->runs->data, piece->runs->bytes);
  } else if (piece->bytes) {
    orion_tcp_load(state, piece->offset, to, piece->bytes);
  } else {
    const orion_word_update update = {piece->offset,
                                      atomic_load(&state->session->segment->client_words[piece->offset])};
    memcpy(to, &update, sizeof update);
  }
}

void orion_tcp_piece_sent(tcp_state* state, const tcp_range* piece) {
  pthread_mutex_lock(&state->lock);
  tcp_range* range = first_range(state);
  if (piece->bytes || piece->runs) orion_group_close(&state->group, ++state->sequence_sent);
  range->offset += piece->bytes;
  range->bytes -= piece->bytes;
  if (range->runs) {
    tcp_runs* sent = range->runs;
    range->runs = sent->next;
    free(sent);
  }
  const bool was_full = range->bytes == 0 && !range->runs && pop_range(state);
  pthread_mutex_unlock(&state->lock);
  if (was_full) orion_futex_wake_all(&state->queue_space);
}

// Under the lock: takes a piece of the first range, which is striped, off the queue. True when somebody may be waiting
// for room.
static bool take_piece(tcp_state* state, orion_frame* header) {
  tcp_range* range = first_range(state);
  state->stripes_sending++;
  const uint64_t bytes = range->bytes < ORION_BULK_BYTES ? range->bytes : ORION_BULK_BYTES;
  const uint64_t sequence = ++state->sequence_sent;
  if (!range->begun || state->group.count == 0)
    orion_group_join(&state->group, sequence, range->offset, range->offset + range->bytes);
  *header = (orion_frame){.type = ORION_FRAME_BULK,
                          .bytes = (uint32_t)bytes,
                          .sequence = sequence,
                          .a = range->offset,
                          .b = state->group.after};
  range->begun = true;
  range->offset += bytes;
  range->bytes -= bytes;
  return range->bytes == 0 && pop_range(state);
}

bool orion_tcp_take_stripe(tcp_state* state, orion_frame* header) {
  bool was_full = false, lane_0 = false;
  pthread_mutex_lock(&state->lock);
  const tcp_range* range = first_range(state);
  while (!atomic_load(&state->stripes_stop) && !(range && range->striped)) {
    pthread_cond_wait(&state->has_range, &state->lock);
    range = first_range(state);
  }
  const bool any = range && !atomic_load(&state->stripes_stop);
  if (any) {
    was_full = take_piece(state, header);
    lane_0 = atomic_load(&state->has_bulk);
  }
  pthread_mutex_unlock(&state->lock);
  if (was_full) orion_futex_wake_all(&state->queue_space);
  if (lane_0) kick_sender(state);
  return any;
}

bool orion_tcp_try_stripe(tcp_state* state, orion_frame* header) {
  pthread_mutex_lock(&state->lock);
  const tcp_range* range = first_range(state);
  const bool any = range && range->striped;
  const bool was_full = any && take_piece(state, header);
  pthread_mutex_unlock(&state->lock);
  if (was_full) orion_futex_wake_all(&state->queue_space);
  return any;
}

void orion_tcp_stripe_sent(tcp_state* state) {
  pthread_mutex_lock(&state->lock);
  state->stripes_sending--;
  pthread_mutex_unlock(&state->lock);
}

bool orion_tcp_all_sent(tcp_state* state) {
  pthread_mutex_lock(&state->lock);
  const bool all = state->queue_count == 0 && state->stripes_sending == 0;
  pthread_mutex_unlock(&state->lock);
  return all;
}
