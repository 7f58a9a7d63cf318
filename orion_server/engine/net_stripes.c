// Stripes: connections that carry large copies alone, side by side. Each has one thread that receives into the arena
// and one that sends from it; neither touches the engine's state. What they have stored is counted by the engine's
// thread, in the order of the numbers.
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "net_raw.h"

#define STACK_BYTES (256u << 10)
#define LOOK_NS 100000000ull

bool net_stripes_init(raw_lanes* r) {
  return pthread_mutex_init(&r->lock, NULL) == 0 && pthread_cond_init(&r->has_piece, NULL) == 0;
}

static void wake_engine(const raw_stripe* s) {
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(&s->lanes->sleeping)) net_wake(s->engine);
}

static void fail(const raw_stripe* s, int fault) {
  raw_lanes* r = s->lanes;
  int none = 0;
  if (!atomic_load(&r->stop)) atomic_compare_exchange_strong(&r->fault, &none, fault);
  wake_engine(s);
}

// ------------------------------------------------------------------------------------------------ from the client
// Waits until what must be stored before this frame has been. False when the session ends.
static bool await_turn(raw_lanes* r, const orion_frame* head) {
  atomic_fetch_add(&r->arrived_waiters, 1);
  bool turn = false;
  while (!atomic_load(&r->stop)) {
    const uint32_t tick = atomic_load(&r->arrived_tick);
    const uint64_t arrived = atomic_load(&r->arrived);
    turn = arrived >= head->b && head->sequence <= arrived + ORION_WINDOW;
    if (turn) break;
    engine_futex_wait(&r->arrived_tick, tick, LOOK_NS);
  }
  atomic_fetch_sub(&r->arrived_waiters, 1);
  return turn;
}

static void* receive_stripe(void* argument) {
  raw_stripe* s = argument;
  const orion_engine* e = s->engine;
  raw_lanes* r = s->lanes;
  for (;;) {
    orion_frame head;
    int state = orion_read_lane(s->fd, s->in, &head, sizeof head);
    if (state <= 0) {
      if (state < 0) fail(s, state == ORION_READ_FORGED ? RAW_FORGED : RAW_LOST);
      return NULL;  // closed in good order: lane 0 tells the client's end
    }
    if (!orion_stripe_frame_ok(&head, e->arena_bytes) || head.sequence <= atomic_load(&r->arrived)) {
      fail(s, RAW_MALFORMED);
      return NULL;
    }
    if (!await_turn(r, &head)) return NULL;
    net_stored* slot = &r->order.window[head.sequence % ORION_WINDOW];
    if (atomic_load_explicit(&slot->sequence, memory_order_relaxed)) {
      fail(s, RAW_MALFORMED);
      return NULL;
    }
    state = orion_read_lane(s->fd, s->in, e->arena + head.a, head.bytes);
    if (state <= 0) {
      fail(s, state == ORION_READ_FORGED ? RAW_FORGED : RAW_LOST);
      return NULL;
    }
    slot->offset = head.a;
    slot->bytes = head.bytes;
    atomic_store_explicit(&slot->sequence, head.sequence, memory_order_release);
    wake_engine(s);
  }
}

void net_stripes_publish(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  atomic_store(&r->arrived, e->bulk_arrived);
  if (!atomic_load(&r->arrived_waiters)) return;
  atomic_fetch_add(&r->arrived_tick, 1);
  engine_futex_wake(&r->arrived_tick);
}

bool net_stripes_news(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  const uint64_t next = e->bulk_arrived + 1;
  return atomic_load(&r->order.window[next % ORION_WINDOW].sequence) == next || atomic_load(&r->fault);
}

// ------------------------------------------------------------------------------------------------ towards the client
bool net_stripes_room(raw_lanes* r) {
  pthread_mutex_lock(&r->lock);
  const bool room = r->piece_count < RAW_PIECES;
  if (!room) r->wants_room = true;
  pthread_mutex_unlock(&r->lock);
  return room;
}

void net_stripes_send(raw_lanes* r, raw_piece piece) {
  if (orion_link_on(&r->link)) piece.due_ns = orion_link_due(&r->link, engine_now_ns(), piece.bytes);
  pthread_mutex_lock(&r->lock);
  r->pieces[(r->piece_first + r->piece_count++) % RAW_PIECES] = piece;  // net_stripes_room was asked
  pthread_mutex_unlock(&r->lock);
  pthread_cond_signal(&r->has_piece);
}

static bool next_piece(raw_stripe* s, raw_piece* piece) {
  raw_lanes* r = s->lanes;
  pthread_mutex_lock(&r->lock);
  while (!r->piece_count && !atomic_load(&r->stop)) pthread_cond_wait(&r->has_piece, &r->lock);
  const bool any = !atomic_load(&r->stop);
  bool wake = false;
  if (any) {
    *piece = r->pieces[r->piece_first];
    r->piece_first = (r->piece_first + 1) % RAW_PIECES;
    r->piece_count--;
    wake = r->wants_room && r->piece_count <= RAW_PIECES / 2;
    if (wake) r->wants_room = false;
  }
  pthread_mutex_unlock(&r->lock);
  if (wake) net_wake(s->engine);
  return any;
}

static bool send_piece(const raw_stripe* s, const raw_piece* piece) {
  const orion_frame head = {.type = ORION_FRAME_BULK,
                            .bytes = (uint32_t)piece->bytes,
                            .sequence = piece->sequence,
                            .a = piece->offset,
                            .b = piece->after};
  return orion_send_lane_frame(s->fd, s->out, &head, piece->from);
}

static void* send_stripe(void* argument) {
  raw_stripe* s = argument;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  raw_piece piece;
  while (next_piece(s, &piece)) {
    if (piece.due_ns) orion_sleep_until(piece.due_ns, &s->lanes->stop);
    if (send_piece(s, &piece)) continue;
    fail(s, RAW_LOST);
    return NULL;
  }
  return NULL;
}

// ------------------------------------------------------------------------------------------------ life
static orion_stripe_seal* new_seal(const orion_seal* seal) {
  orion_stripe_seal* made = malloc(sizeof *made);
  if (!made) return NULL;
  made->seal = *seal;
  made->records = malloc(ORION_STRIPE_RECORDS);
  if (made->records) return made;
  free(made);
  return NULL;
}

static void free_seals(raw_stripe* s) {
  orion_stripe_seal* const seals[] = {s->in, s->out};
  for (int i = 0; i < 2; i++) {
    if (!seals[i]) continue;
    sodium_memzero(&seals[i]->seal, sizeof seals[i]->seal);
    free(seals[i]->records);
    free(seals[i]);
  }
  s->in = s->out = NULL;
}

bool net_stripe_start(orion_engine* e, uint32_t index, int fd, const orion_seal* in, const orion_seal* out) {
  raw_lanes* r = net_raw_of(e);
  raw_stripe* s = &r->stripes[index];
  s->engine = e;
  s->lanes = r;
  s->fd = fd;
  s->in = in ? new_seal(in) : NULL;
  s->out = out ? new_seal(out) : NULL;
  if ((in && !s->in) || (out && !s->out)) {
    free_seals(s);
    return false;
  }
  pthread_attr_t attributes;
  sigset_t all, before;
  sigfillset(&all);
  if (pthread_attr_init(&attributes)) {
    free_seals(s);
    return false;
  }
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // Python's main thread takes the signals
  bool started = pthread_create(&s->receiver, &attributes, receive_stripe, s) == 0;
  if (started && pthread_create(&s->sender, &attributes, send_stripe, s) != 0) {
    shutdown(fd, SHUT_RDWR);
    pthread_join(s->receiver, NULL);
    started = false;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (!started) free_seals(s);
  s->is_open = started;
  return started;
}

void net_stripes_close(raw_lanes* r) {
  atomic_store(&r->stop, true);
  for (uint32_t i = 0; i < ORION_STRIPES_MAX; i++) {
    if (r->stripes[i].is_open) shutdown(r->stripes[i].fd, SHUT_RDWR);
  }
  atomic_fetch_add(&r->arrived_tick, 1);
  engine_futex_wake(&r->arrived_tick);
  pthread_mutex_lock(&r->lock);
  pthread_cond_broadcast(&r->has_piece);
  pthread_mutex_unlock(&r->lock);
  for (uint32_t i = 0; i < ORION_STRIPES_MAX; i++) {
    if (!r->stripes[i].is_open) continue;
    pthread_join(r->stripes[i].receiver, NULL);
    pthread_join(r->stripes[i].sender, NULL);
    free_seals(&r->stripes[i]);
    close(r->stripes[i].fd);
  }
  pthread_cond_destroy(&r->has_piece);
  pthread_mutex_destroy(&r->lock);
}
