// Stripes: connections that carry large copies alone, side by side. Each has one thread that receives into the arena
// and one that sends from it; neither touches the engine's state. What they have stored is counted by the engine's
// thread, in the order of the numbers.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "net_raw.h"
#include "orion_stripe_io.h"

#define STACK_BYTES (256u << 10)
#define LOOK_NS 100000000ull

bool net_stripes_init(raw_lanes* r) {
  return pthread_mutex_init(&r->lock, NULL) == 0 && pthread_cond_init(&r->has_piece, NULL) == 0;
}

static void wake_engine(orion_engine* e) {
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(&net_raw_of(e)->sleeping)) net_wake(e);
}

static void fail(orion_engine* e, int fault) {
  raw_lanes* r = net_raw_of(e);
  int none = 0;
  if (!atomic_load(&r->stop)) atomic_compare_exchange_strong(&r->fault, &none, fault);
  wake_engine(e);
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
  orion_engine* e = s->engine;
  raw_lanes* r = net_raw_of(e);
  for (;;) {
    orion_frame head;
    int state = orion_read_all(s->fd, &head, sizeof head);
    if (state <= 0) {
      if (state < 0) fail(e, RAW_LOST);
      return NULL;  // closed in good order: lane 0 tells the client's end
    }
    if (!orion_stripe_frame_ok(&head, e->arena_bytes) || head.sequence <= atomic_load(&r->arrived)) {
      fail(e, RAW_MALFORMED);
      return NULL;
    }
    if (!await_turn(r, &head)) return NULL;
    raw_stored* slot = &r->window[head.sequence % ORION_WINDOW];
    if (atomic_load_explicit(&slot->sequence, memory_order_relaxed)) {
      fail(e, RAW_MALFORMED);
      return NULL;
    }
    if (orion_read_all(s->fd, e->arena + head.a, head.bytes) <= 0) {
      fail(e, RAW_LOST);
      return NULL;
    }
    slot->offset = head.a;
    slot->bytes = head.bytes;
    atomic_store_explicit(&slot->sequence, head.sequence, memory_order_release);
    wake_engine(e);
  }
}

bool net_stripes_take(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  bool any = false;
  for (;;) {
    const uint64_t next = e->bulk_arrived + 1;
    raw_stored* slot = &r->window[next % ORION_WINDOW];
    if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != next) break;
    if (e->coherent_count) coherent_arrived(e, slot->offset, e->arena + slot->offset, slot->bytes);
    STAT_ADD(e, stat_in, slot->bytes);
    atomic_store_explicit(&slot->sequence, 0, memory_order_relaxed);
    e->bulk_arrived = next;
    any = true;
  }
  if (any) net_stripes_publish(e);
  return any;
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
  return atomic_load(&r->window[next % ORION_WINDOW].sequence) == next || atomic_load(&r->fault);
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
  raw_lanes* r = net_raw_of(s->engine);
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

static bool send_piece(int fd, const raw_piece* piece) {
  const orion_frame head = {.type = ORION_FRAME_BULK,
                            .bytes = (uint32_t)piece->bytes,
                            .sequence = piece->sequence,
                            .a = piece->offset,
                            .b = piece->after};
  return orion_send_frame(fd, &head, piece->from);
}

static void* send_stripe(void* argument) {
  raw_stripe* s = argument;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  raw_piece piece;
  while (next_piece(s, &piece)) {
    if (piece.due_ns) orion_sleep_until(piece.due_ns, &net_raw_of(s->engine)->stop);
    if (send_piece(s->fd, &piece)) continue;
    fail(s->engine, RAW_LOST);
    return NULL;
  }
  return NULL;
}

// ------------------------------------------------------------------------------------------------ life
bool net_stripe_start(orion_engine* e, uint32_t index, int fd) {
  raw_stripe* s = &net_raw_of(e)->stripes[index];
  s->engine = e;
  s->fd = fd;
  pthread_attr_t attributes;
  sigset_t all, before;
  sigfillset(&all);
  if (pthread_attr_init(&attributes)) return false;
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
    close(r->stripes[i].fd);
  }
  pthread_cond_destroy(&r->has_piece);
  pthread_mutex_destroy(&r->lock);
}
