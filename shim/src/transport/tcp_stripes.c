// Stripes: connections for large ranges of the arena, each with one thread that receives in place and one that sends
// from where the bytes are.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "tcp_raw.h"

enum { STACK_BYTES = 256 * 1024, LOOK_US = 100000 };

void orion_tcp_await_in_place(tcp_state* state, uint64_t first, uint64_t end) {
  for (bool any = true; any && !atomic_load(&state->stop);) {
    any = false;
    for (uint32_t i = 0; i < ORION_STRIPES_MAX && !any; i++)
      any = first < state->in_place[i].end && end > state->in_place[i].first;
    if (any) pthread_cond_wait(&state->in_place_ended, &state->lock);
  }
}

// ------------------------------------------------------------------------------------------------- from the worker

static void publish(raw_lanes* raw) {
  if (!atomic_load(&raw->arrived_waiters)) return;
  atomic_fetch_add(&raw->arrived_tick, 1);
  orion_futex_wake_all(&raw->arrived_tick);
}

void orion_raw_stored(raw_lanes* raw, uint64_t sequence) {
  tcp_state* state = raw->state;
  pthread_mutex_lock(&raw->arrival_lock);
  raw->window[sequence % ORION_WINDOW] = sequence;
  uint64_t received = atomic_load(&state->sequence_received);
  while (raw->window[(received + 1) % ORION_WINDOW] == received + 1) received++;
  atomic_store(&state->sequence_received, received);
  pthread_mutex_unlock(&raw->arrival_lock);
  publish(raw);
}

static bool await_turn(raw_lanes* raw, const orion_frame* head) {
  tcp_state* state = raw->state;
  bool turn = false;
  atomic_fetch_add(&raw->arrived_waiters, 1);
  while (!atomic_load(&state->stop)) {
    const uint32_t tick = atomic_load(&raw->arrived_tick);
    const uint64_t received = atomic_load(&state->sequence_received);
    turn = received >= head->b && head->sequence <= received + ORION_WINDOW;
    if (turn) break;
    orion_futex_wait(&raw->arrived_tick, tick, LOOK_US);
  }
  atomic_fetch_sub(&raw->arrived_waiters, 1);
  return turn;
}

// True when the bytes may go straight to the arena; they are then marked until end_in_place.
static bool begin_in_place(raw_stripe* stripe, const orion_frame* head) {
  tcp_state* state = stripe->state;
  pthread_mutex_lock(&state->lock);
  const bool plain = orion_tcp_is_plain(state, head->a, head->a + head->bytes);
  if (plain) {
    state->in_place[stripe->index].first = head->a;
    state->in_place[stripe->index].end = head->a + head->bytes;
  }
  pthread_mutex_unlock(&state->lock);
  return plain;
}

static void end_in_place(raw_stripe* stripe) {
  tcp_state* state = stripe->state;
  pthread_mutex_lock(&state->lock);
  state->in_place[stripe->index].end = 0;
  pthread_mutex_unlock(&state->lock);
  pthread_cond_broadcast(&state->in_place_ended);
}

// One piece, for memory that must not be received or sent in place.
static uint8_t* bounce_of(raw_stripe* stripe, uint8_t** own) {
  if (!*own) *own = malloc(ORION_BULK_BYTES);
  if (!*own) orion_session_lose(stripe->state->session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
  return *own;
}

// 1: stored; else as orion_read_lane, but an end here is a loss.
static int receive_body(raw_stripe* stripe, const orion_frame* head, uint8_t** bounce) {
  tcp_state* state = stripe->state;
  int got = -1;
  if (begin_in_place(stripe, head)) {
    got = orion_read_lane(stripe->fd, stripe->in, state->session->host_base + head->a, head->bytes);
    end_in_place(stripe);
  } else {
    uint8_t* bytes = bounce_of(stripe, bounce);
    if (bytes) got = orion_read_lane(stripe->fd, stripe->in, bytes, head->bytes);
    if (got > 0) orion_tcp_store(state, head->a, bytes, head->bytes);
  }
  return got == 0 ? -1 : got;
}

static void* receive_stripe(void* argument) {
  raw_stripe* stripe = argument;
  tcp_state* state = stripe->state;
  raw_lanes* raw = orion_raw_of(state);
  uint8_t* bounce = NULL;
  orion_frame head;
  int got = 0;
  while ((got = orion_read_lane(stripe->fd, stripe->in, &head, sizeof head)) > 0) {
    if (!orion_stripe_frame_ok(&head, ORION_HOST_ARENA_BYTES) ||
        head.sequence <= atomic_load(&state->sequence_received)) {
      orion_tcp_lose_malformed(state, "bulk");
      break;
    }
    if (!await_turn(raw, &head)) break;
    got = receive_body(stripe, &head, &bounce);
    if (got < 0) break;
    orion_raw_stored(raw, head.sequence);
    // A frame of lane 0 that waited for these bytes is the mover's.
    const uint64_t held_for = atomic_load(&raw->held_for);
    const uint64_t one = 1;
    if (held_for && atomic_load(&state->sequence_received) >= held_for && write(state->wake_fd, &one, sizeof one) < 0)
      continue;  // full: it is awake anyway
  }
  if (got == ORION_READ_FORGED) {
    orion_tcp_lose_forged(state, "bulk");
  } else if (got < 0) {
    orion_tcp_connection_lost(state);
  } else if (got == 0) {
    // Closed in good order: lane 0 tells the worker's end, unless its first frame waits for bytes that never come.
    const uint64_t one = 1;
    atomic_fetch_add(&raw->stripes_ended, 1);
    (void)!write(state->wake_fd, &one, sizeof one);  // full: it is awake anyway
  }
  free(bounce);
  return NULL;
}

// ------------------------------------------------------------------------------------------------- to the worker

static bool is_plain(raw_stripe* stripe, const orion_frame* head) {
  pthread_mutex_lock(&stripe->state->lock);
  const bool plain = orion_tcp_is_plain(stripe->state, head->a, head->a + head->bytes);
  pthread_mutex_unlock(&stripe->state->lock);
  return plain;
}

static void* send_stripe(void* argument) {
  raw_stripe* stripe = argument;
  tcp_state* state = stripe->state;
  raw_lanes* raw = orion_raw_of(state);
  uint8_t* bounce = NULL;
  orion_frame head;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  while (orion_tcp_take_stripe(state, &head)) {
    const uint8_t* from = state->session->host_base + head.a;
    if (!is_plain(stripe, &head)) {
      uint8_t* copy = bounce_of(stripe, &bounce);
      if (!copy) break;
      orion_tcp_load(state, head.a, copy, head.bytes);
      from = copy;
    }
    if (orion_link_on(&raw->link))
      orion_sleep_until(orion_link_due(&raw->link, orion_now_ns(), head.bytes), &state->stripes_stop);
    const bool sent = orion_send_lane_frame(stripe->fd, stripe->out, &head, from);
    orion_tcp_stripe_sent(state);
    if (sent) continue;
    orion_tcp_connection_lost(state);
    break;
  }
  free(bounce);
  return NULL;
}

// ------------------------------------------------------------------------------------------------- life

orion_stripe_seal* orion_stripe_seal_new(const orion_seal* seal) {
  orion_stripe_seal* made = malloc(sizeof *made);
  uint8_t* records = made ? malloc(ORION_STRIPE_RECORDS) : NULL;
  if (!records) {
    free(made);
    return NULL;
  }
  made->seal = *seal;
  made->records = records;
  return made;
}

static void free_seal(orion_stripe_seal* seal) {
  if (!seal) return;
  sodium_memzero(&seal->seal, sizeof seal->seal);
  free(seal->records);
  free(seal);
}

const char* orion_stripes_start(raw_lanes* raw) {
  pthread_attr_t attributes;
  sigset_t before;
  if (pthread_attr_init(&attributes)) return "out of memory";
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  orion_block_signals(&before);
  bool started = true;
  for (uint32_t i = 0; i < raw->state->stripe_count && started; i++) {
    raw_stripe* stripe = &raw->stripes[i];
    stripe->has_receiver = pthread_create(&stripe->receiver, &attributes, receive_stripe, stripe) == 0;
    stripe->has_sender = pthread_create(&stripe->sender, &attributes, send_stripe, stripe) == 0;
    started = stripe->has_receiver && stripe->has_sender;
    if (stripe->has_receiver) pthread_setname_np(stripe->receiver, "orion-bulk-in");
    if (stripe->has_sender) pthread_setname_np(stripe->sender, "orion-bulk-out");
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return started ? NULL : "no threads for network I/O";
}

void orion_stripes_close(raw_lanes* raw) {
  tcp_state* state = raw->state;
  atomic_store(&state->stripes_stop, true);
  for (uint32_t i = 0; i < state->stripe_count; i++)
    if (raw->stripes[i].fd >= 0) shutdown(raw->stripes[i].fd, SHUT_RDWR);
  atomic_fetch_add(&raw->arrived_tick, 1);
  orion_futex_wake_all(&raw->arrived_tick);
  pthread_mutex_lock(&state->lock);
  pthread_cond_broadcast(&state->has_range);
  pthread_cond_broadcast(&state->in_place_ended);
  pthread_mutex_unlock(&state->lock);
  for (uint32_t i = 0; i < state->stripe_count; i++) {
    raw_stripe* stripe = &raw->stripes[i];
    if (stripe->has_receiver) pthread_join(stripe->receiver, NULL);
    if (stripe->has_sender) pthread_join(stripe->sender, NULL);
    free_seal(stripe->in);
    free_seal(stripe->out);
    stripe->in = stripe->out = NULL;
    if (stripe->fd >= 0) close(stripe->fd);
  }
}
