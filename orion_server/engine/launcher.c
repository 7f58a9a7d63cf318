// The launchers' queues: one producer (the engine's thread), one consumer each, slots that are used in turn.
#include "launcher.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define LAUNCHERS_MAX 8u
#define QUEUE_SLOTS 64u       // bounds what a launcher_settle can last
#define ORDER_OP_BYTES 4096u  // larger operations are launched by the engine's thread
#define INTERLEAVED_FOR 32u   // launches on one stream after which others no longer count as launched beside it
#define SLEEP_NS 100000000ull

/// A launch when `function` is set, else a marker.
typedef struct order {
  CUcontext context;
  uint32_t generation;  // a context may get the handle of one that is gone
  uint32_t context_index;
  CUstream stream;
  CUfunction function;
  CUdeviceptr address;
  uint64_t value;
  _Alignas(16) uint8_t op[ORDER_OP_BYTES];
} order;

typedef struct launcher {
  orion_engine* engine;
  order* orders;
  pthread_t thread;
  bool running;

  // by the engine's thread
  _Alignas(64) _Atomic uint64_t put;
  uint64_t known_taken;
  _Atomic uint32_t wake;
  _Atomic bool stop;
  bool drop;  // answer to a failure: what is queued for that context is not to be issued any more

  // by the launcher
  _Alignas(64) _Atomic uint64_t taken;
  _Atomic int32_t failed;  // CUresult of the order at `taken`; the engine's thread sets it back to 0
  _Atomic bool asleep;
} launcher;

typedef struct launcher_table {
  launcher all[LAUNCHERS_MAX];
  uint32_t count, next;
  uint32_t last_stream, interleaved;
} launcher_table;

// ------------------------------------------------------------------------------------------------ launchers
static void breathe(const orion_engine* e) {
  if (e->spin_allowed) {
    engine_pause(8);
  } else {
    sched_yield();
  }
}

/// The next order, or NULL when the launcher is to end.
static order* next_order(launcher* l, uint64_t taken) {
  const orion_engine* e = l->engine;
  const uint64_t from_ns = engine_now_ns();
  for (uint32_t looks = 0;; looks++) {
    const uint32_t wake = atomic_load_explicit(&l->wake, memory_order_acquire);
    if (atomic_load_explicit(&l->put, memory_order_acquire) != taken) return &l->orders[taken % QUEUE_SLOTS];
    if (atomic_load_explicit(&l->stop, memory_order_acquire)) return NULL;
    if (e->spin_allowed && (looks % 64 || engine_now_ns() - from_ns < e->spin_ns)) {
      engine_pause(8);
      continue;
    }
    atomic_store_explicit(&l->asleep, true, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&l->put, memory_order_relaxed) == taken &&
        !atomic_load_explicit(&l->stop, memory_order_relaxed)) {
      engine_futex_wait(&l->wake, wake, SLEEP_NS);
    }
    atomic_store_explicit(&l->asleep, false, memory_order_relaxed);
  }
}

static void* launch_orders(void* argument) {
  launcher* l = argument;
  orion_engine* e = l->engine;
  CUcontext current = NULL;
  uint32_t generation = 0, dropped_context = 0;
  uint64_t taken = 0, dropped_until = 0;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  for (order* o; (o = next_order(l, taken));) {
    const bool dropped = taken < dropped_until && o->context_index == dropped_context;
    int32_t result = 0;
    if (!dropped && (current != o->context || generation != o->generation)) {
      result = (int32_t)e->driver.context_set_current(o->context);
      current = result ? NULL : o->context;
      generation = o->generation;
    }
    if (!dropped && !result) {
      result = o->function ? launch_call(&e->driver, (const orion_op*)o->op, o->function, o->stream)
                           : (int32_t)e->driver.write_value64(o->stream, o->address, o->value, 0);
    }
    if (result) {
      // The client must find the error when it finds what stands behind it: nothing more before it is told.
      atomic_store_explicit(&l->failed, result, memory_order_release);
      engine_wake(e);
      while (atomic_load_explicit(&l->failed, memory_order_acquire)) breathe(e);
      if (l->drop) {
        dropped_context = o->context_index;
        dropped_until = atomic_load_explicit(&l->put, memory_order_acquire);
      }
    }
    atomic_store_explicit(&l->taken, ++taken, memory_order_release);
  }
  return NULL;
}

bool launcher_start(orion_engine* e, uint32_t count) {
  if (count > LAUNCHERS_MAX) count = LAUNCHERS_MAX;
  launcher_table* t = aligned_alloc(64, sizeof *t);
  if (!t) return false;
  memset(t, 0, sizeof *t);
  e->launchers = t;
  for (; t->count < count; t->count++) {
    launcher* l = &t->all[t->count];
    l->engine = e;
    l->orders = aligned_alloc(64, QUEUE_SLOTS * sizeof *l->orders);
    l->running = l->orders && !pthread_create(&l->thread, NULL, launch_orders, l);
    if (l->running) continue;
    free(l->orders);
    break;
  }
  if (t->count) return true;
  free(t);
  e->launchers = NULL;
  return false;
}

static void wake_up(launcher* l) {
  atomic_fetch_add_explicit(&l->wake, 1, memory_order_release);
  engine_futex_wake(&l->wake);
}

// ------------------------------------------------------------------------------------------------ the engine's thread
static launcher* launcher_of(const orion_engine* e, const track* t) { return &e->launchers->all[t->launcher - 1u]; }

bool launcher_pending(const orion_engine* e, uint32_t track_index) {
  const track* t = &e->tracks[track_index];
  if (!t->launcher) return false;
  launcher* l = launcher_of(e, t);
  if (l->known_taken >= t->handed) return false;
  l->known_taken = atomic_load_explicit(&l->taken, memory_order_acquire);
  return l->known_taken < t->handed;
}

void launcher_collect(orion_engine* e) {
  for (uint32_t i = 0; i < e->launchers->count; i++) {
    launcher* l = &e->launchers->all[i];
    const int32_t result = atomic_load_explicit(&l->failed, memory_order_acquire);
    if (!result) continue;
    const order* o = &l->orders[atomic_load_explicit(&l->taken, memory_order_relaxed) % QUEUE_SLOTS];
    answer_check(e, o->context_index, result);
    if (o->function) answer_result(e, (const orion_op*)o->op, result);
    l->drop = e->contexts[o->context_index].sticky != 0;
    atomic_store_explicit(&l->failed, 0, memory_order_release);
  }
}

static void wait_taken(orion_engine* e, launcher* l, uint64_t until) {
  while (l->known_taken < until) {
    l->known_taken = atomic_load_explicit(&l->taken, memory_order_acquire);
    if (l->known_taken >= until) break;
    launcher_collect(e);
    breathe(e);
  }
}

void launcher_settle(orion_engine* e, uint32_t track_index) {
  const track* t = &e->tracks[track_index];
  if (t->launcher) wait_taken(e, launcher_of(e, t), t->handed);
}

static void settle_all(orion_engine* e) {
  for (uint32_t i = 0; i < e->launchers->count; i++) {
    launcher* l = &e->launchers->all[i];
    wait_taken(e, l, atomic_load_explicit(&l->put, memory_order_relaxed));
  }
}

void launcher_stop(orion_engine* e) {
  if (!e->launchers) return;
  settle_all(e);
  engine_log(e, ENGINE_LOG_INFO, "%llu of %llu launches went to %u launchers",
             (unsigned long long)atomic_load_explicit(&e->stat_handed, memory_order_relaxed),
             (unsigned long long)atomic_load_explicit(&e->stat_launches, memory_order_relaxed), e->launchers->count);
  for (uint32_t i = 0; i < e->launchers->count; i++) {
    launcher* l = &e->launchers->all[i];
    atomic_store_explicit(&l->stop, true, memory_order_release);
    wake_up(l);
    pthread_join(l->thread, NULL);
    free(l->orders);
  }
  free(e->launchers);
  e->launchers = NULL;
}

/// The slot behind all others, when there is room; its context is set.
static order* new_order(orion_engine* e, launcher* l, const track* t) {
  const uint64_t put = atomic_load_explicit(&l->put, memory_order_relaxed);
  wait_taken(e, l, put < QUEUE_SLOTS ? 0 : put - QUEUE_SLOTS + 1);
  order* o = &l->orders[put % QUEUE_SLOTS];
  o->context = e->contexts[t->context].handle;
  o->context_index = t->context;
  o->generation = e->context_generation;
  return o;
}

static void hand_over(launcher* l, track* t) {
  t->handed = atomic_load_explicit(&l->put, memory_order_relaxed) + 1;
  atomic_store_explicit(&l->put, t->handed, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&l->asleep, memory_order_relaxed)) wake_up(l);
}

bool launcher_take(orion_engine* e, stream_state* s, const function_state* f, const orion_op* op) {
  launcher_table* all = e->launchers;
  if (op->stream == 0) return false;  // launcher_before has waited for all
  track* t = &e->tracks[s->track];
  if (op->reply_slot != ORION_NO_REPLY || op->bytes > ORDER_OP_BYTES) {
    launcher_settle(e, s->track);
    return false;
  }
  if (op->stream != all->last_stream) {
    all->last_stream = op->stream;
    all->interleaved = INTERLEAVED_FOR;
  } else if (all->interleaved) {
    all->interleaved--;
  }
  // Alone, or when the program does not keep up a backlog, this thread is the shortest way.
  const bool worth_it =
      e->config.launchers_always || (all->interleaved && orion_ring_ready(e->main_ring, e->main_position));
  if (!worth_it && !launcher_pending(e, s->track)) return false;
  if (!t->launcher) t->launcher = (uint8_t)(all->next++ % all->count + 1);
  launcher* l = launcher_of(e, t);
  order* o = new_order(e, l, t);
  if (e->contexts[op->context].sticky) {  // a failure that was taken back while waiting for room
    answer_result(e, op, e->contexts[op->context].sticky);
    return true;
  }
  o->stream = s->handle;
  o->function = f->handle;
  memcpy(o->op, op, op->bytes);
  hand_over(l, t);
  STAT_ADD(e, stat_handed, 1);
  order_issued(e, s);
  return true;
}

bool launcher_write(orion_engine* e, uint32_t track_index, CUstream stream, CUdeviceptr address, uint64_t value) {
  track* t = &e->tracks[track_index];
  if (!launcher_pending(e, track_index)) return false;
  launcher* l = launcher_of(e, t);
  order* o = new_order(e, l, t);
  o->stream = stream;
  o->function = NULL;
  o->address = address;
  o->value = value;
  hand_over(l, t);
  return true;
}

void launcher_before(orion_engine* e, const orion_op* op) {
  switch (op->code) {
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX:
    case ORION_OP_MARK:  // behind the launches of its stream by itself
      if (op->stream) return;
      break;
    case ORION_OP_NOP:
    case ORION_OP_PING:
    case ORION_OP_STREAM_QUERY:  // settles its stream when it comes to asking
    case ORION_OP_EVENT_QUERY:   // of a record that has been issued
    case ORION_OP_EVENT_CREATE:
    case ORION_OP_MEM_MAP:
    case ORION_OP_MEM_FREE:  // waits for markers, which stand behind all launches
    case ORION_OP_MEM_INFO:
    case ORION_OP_DEVICE_MEMORY:
      return;
    default:
      break;
  }
  const bool of_stream = ORION_OP_INFO[op->code].flags & (ORION_OPF_WORK | ORION_OPF_STREAM);
  if (of_stream && op->stream) {
    launcher_settle(e, e->streams[op->stream].track);
  } else {
    settle_all(e);
  }
}
