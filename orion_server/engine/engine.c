// Life of an engine and its loop: operations in, one step each, sleep when there is nothing to do.
#include "engine.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "launcher.h"
#include "seat.h"
#include "swap.h"
#include "turns.h"

#define LOOP_BATCH 64u              // main operations between two looks at everything else
#define SLEEP_IDLE_NS 100000000ull  // nothing outstanding: only a wake can bring work
#define GAP_LOG_NS 100000000ull
#define SLEEP_OUTSTANDING_NS 2000000ull  // GPU work outstanding: a fault must be found
#define SLEEP_POLL_MIN_NS 20000ull       // something is parked on a word that nobody announces
#define SLEEP_POLL_MAX_NS 500000ull
#define SLEEP_POLL_PART 16u         // of the time since anything moved: how much too late the end of a wait is seen
#define SLEEP_TURN_MAX_NS 50000ull  // others may wait for what runs to end

uint64_t engine_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

int engine_futex_wait(_Atomic uint32_t* address, uint32_t expected, uint64_t timeout_ns) {
  const struct timespec timeout = {(time_t)(timeout_ns / 1000000000ull), (long)(timeout_ns % 1000000000ull)};
  return (int)syscall(SYS_futex, address, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

void engine_futex_wake(_Atomic uint32_t* address) {
  (void)syscall(SYS_futex, address, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void engine_log(orion_engine* e, int level, const char* format, ...) {
  if (level > e->config.log_level) return;
  static const char* const names[] = {"error", "warning", "info", "debug"};
  char line[512];
  int used = snprintf(line, sizeof line, "orion engine: %s: ", names[level]);
  va_list arguments;
  va_start(arguments, format);
  const int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
  va_end(arguments);
  used += text < 0 ? 0 : text;
  if (used > (int)sizeof line - 2) used = (int)sizeof line - 2;
  line[used++] = '\n';
  // One write, so that lines of several threads do not mix. A closed stderr is nobody's fault here.
  if (write(e->config.log_fd > 0 ? e->config.log_fd : 2, line, (size_t)used) < 0) return;
}

void engine_end(orion_engine* e, int end, const char* format, ...) {
  if (e->end) return;
  e->end = end;
  char text[sizeof e->reason];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  pthread_mutex_lock(&e->reason_lock);
  memcpy(e->reason, text, sizeof text);
  pthread_mutex_unlock(&e->reason_lock);
  const bool bad = end == ORION_END_BROKEN || end == ORION_END_FAILED;
  engine_log(e, bad ? ENGINE_LOG_WARN : ENGINE_LOG_INFO, "session ends: %s", text);
  // 46, CUDA_ERROR_DEVICE_UNAVAILABLE: what the client returns from now on if it is still there.
  if (bad && e->segment) answer_set_word(e, ORION_WORD_SESSION_ERROR, CUDA_ERROR_DEVICE_UNAVAILABLE);
}

uint64_t orion_engine_segment_bytes(void) { return sizeof(orion_segment); }
uint64_t orion_engine_arena_bytes(void) { return ORION_HOST_ARENA_BYTES; }
uint64_t orion_engine_host_candidate(uint32_t i) { return ORION_HOST_ARENA_CANDIDATE(i); }
uint64_t orion_engine_slot_candidate(uint32_t i) { return ORION_DEVICE_SLOT_CANDIDATE(i); }

// ------------------------------------------------------------------------------------------------ one operation
const char* engine_header_fault(const orion_op* op, bool express) {
  if (op->code >= ORION_OP_CODE_END || !ORION_OP_INFO[op->code].fixed_bytes) return "unknown operation";
  if (op->bytes < ORION_OP_INFO[op->code].fixed_bytes || op->bytes > ORION_OP_MAX_BYTES ||
      (!ORION_OP_INFO[op->code].has_tail && op->bytes != ORION_OP_INFO[op->code].fixed_bytes)) {
    return "wrong size";
  }
  if (op->context >= ORION_CONTEXTS) return "context out of range";
  if (op->thread >= ORION_THREADS) return "thread out of range";
  if (op->stream >= ORION_STREAMS) return "stream out of range";
  if (op->reply_slot != ORION_NO_REPLY && op->reply_slot >= ORION_REPLY_SLOTS) return "reply slot out of range";
  if (express && !(ORION_OP_INFO[op->code].flags & ORION_OPF_EXPRESS)) {
    return "operation does not belong in the express ring";
  }
  return NULL;
}

bool engine_check_header(orion_engine* e, const orion_op* op, bool express) {
  const char* fault = engine_header_fault(op, express);
  if (!fault) return true;
  engine_end(e, ORION_END_BROKEN, "malformed operation (code %u, %u bytes): %s", op->code, op->bytes, fault);
  return false;
}

void engine_dispatch(orion_engine* e, const orion_op* op, bool express) {
  if (!engine_check_header(e, op, express)) return;
  STAT_ADD(e, stat_operations, 1);
  if (express) {
    execute(e, op, NULL);
  } else if (!park_try(e, op, NULL)) {
    park_append(e, op);
  }
}

static void space_made(orion_ring ring) {
  if (atomic_load_explicit(&ring.control->producers_parked, memory_order_relaxed)) {
    atomic_fetch_add_explicit(&ring.control->space, 1, memory_order_release);
    engine_futex_wake(&ring.control->space);
  }
}

uint32_t engine_drain_express(orion_engine* e, uint32_t limit) {
  uint32_t count = 0;
  while (count < limit && !e->end && orion_ring_ready(e->express_ring, e->express_position)) {
    orion_op* op = (orion_op*)e->popped;
    if (orion_ring_pop(e->express_ring, &e->express_position, op) != ORION_RING_OP) {
      engine_end(e, ORION_END_BROKEN, "the express ring is corrupt");
      break;
    }
    engine_dispatch(e, op, true);
    count++;
  }
  if (count) space_made(e->express_ring);
  return count;
}

// An operation of the main ring is executed after the express operations that were there when it was popped: what a
// thread allocates and then uses arrives in that order.
static uint32_t drain_main(orion_engine* e) {
  uint32_t count = 0;
  uint8_t* copy = e->popped_main;
  while (count < LOOP_BATCH && !e->end && park_has_room(e)) {
    orion_op* op = (orion_op*)copy;
    const enum orion_ring_state state = orion_ring_pop(e->main_ring, &e->main_position, op);
    if (state == ORION_RING_EMPTY) break;
    if (state == ORION_RING_BROKEN) {
      engine_end(e, ORION_END_BROKEN, "the main ring is corrupt");
      break;
    }
    e->main_in_hand = true;  // it may be the free that an allocation in the express ring has overtaken
    if (orion_ring_ready(e->express_ring, e->express_position)) engine_drain_express(e, UINT32_MAX);
    e->main_in_hand = false;
    engine_dispatch(e, op, false);
    count++;
  }
  if (count) space_made(e->main_ring);
  return count;
}

// ------------------------------------------------------------------------------------------------ sleeping
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
struct waitv_entry {
  uint64_t value, address;
  uint32_t flags, reserved;
};

// Sleeps on the futex words of both rings and of the seat. Kernels before 5.16 cannot wait on several: there the main
// ring's wake is waited for and the others are looked at again every millisecond.
static void wait_rings(uint32_t main_wake, uint32_t express_wake, uint32_t seat_wake, orion_engine* e,
                       uint64_t timeout_ns) {
  _Atomic uint32_t *main_word = &e->main_ring.control->wake, *express_word = &e->express_ring.control->wake;
  struct waitv_entry entries[3] = {{main_wake, (uint64_t)(uintptr_t)main_word, 2 /* 32 bits, shared */, 0},
                                   {express_wake, (uint64_t)(uintptr_t)express_word, 2, 0}};
  if (e->seat) entries[2] = (struct waitv_entry){seat_wake, (uint64_t)(uintptr_t)&e->seat->wake, 2, 0};
  const uint64_t until = engine_now_ns() + timeout_ns;
  const struct timespec deadline = {(time_t)(until / 1000000000ull), (long)(until % 1000000000ull)};
  if (syscall(SYS_futex_waitv, entries, e->seat ? 3 : 2, 0, &deadline, CLOCK_MONOTONIC) < 0 &&
      (errno == ENOSYS || errno == EPERM)) {
    engine_futex_wait(main_word, main_wake, timeout_ns < 1000000ull ? timeout_ns : 1000000ull);
  }
}

static bool rings_ready(const orion_engine* e) {
  return atomic_load_explicit(&e->graph_signal, memory_order_relaxed) ||
         orion_ring_ready(e->express_ring, e->express_position) ||
         (park_has_room(e) && orion_ring_ready(e->main_ring, e->main_position));
}

static void sleep_until_needed(orion_engine* e, uint64_t timeout_ns) {
  orion_ring_control *main_control = e->main_ring.control, *express_control = e->express_ring.control;
  const uint32_t main_wake = atomic_load_explicit(&main_control->wake, memory_order_relaxed);
  const uint32_t express_wake = atomic_load_explicit(&express_control->wake, memory_order_relaxed);
  const uint32_t seat_wake = e->seat ? atomic_load_explicit(&e->seat->wake, memory_order_acquire) : 0;
  atomic_store_explicit(&main_control->consumer_parked, 1, memory_order_relaxed);
  atomic_store_explicit(&express_control->consumer_parked, 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst);
  if (!rings_ready(e) && !(e->seat && turns_have_news(e)) &&
      !atomic_load_explicit(&e->stop_requested, memory_order_relaxed)) {
    wait_rings(main_wake, express_wake, seat_wake, e, timeout_ns);
  }
  atomic_store_explicit(&main_control->consumer_parked, 0, memory_order_relaxed);
  atomic_store_explicit(&express_control->consumer_parked, 0, memory_order_relaxed);
}

static uint64_t sleep_time(const orion_engine* e, uint64_t idle_ns) {
  const bool close = e->turns.is_on && turns_are_close(e);
  const bool polls = close || e->swap.moving || e->swap.has_ticket || (e->first_parked && !park_waits_for_server(e)) ||
                     e->first_query || e->first_batch || e->maps_first || (e->net && net_busy(e));
  if (polls) {
    const uint64_t growing = idle_ns / SLEEP_POLL_PART, most = close ? SLEEP_TURN_MAX_NS : SLEEP_POLL_MAX_NS;
    if (growing < SLEEP_POLL_MIN_NS) return SLEEP_POLL_MIN_NS;
    return growing < most ? growing : most;
  }
  if (e->gap_since_ns && !e->gap_logged) return GAP_LOG_NS / 4;
  return e->first_dirty ? SLEEP_OUTSTANDING_NS : SLEEP_IDLE_NS;
}

// A producer that has reserved slots and not committed them holds everything behind it. It cannot be told from one that
// died there, so the gap is logged once; if its process is dead, the loss of the client ends the session.
static void watch_gap(orion_engine* e, uint64_t now_ns) {
  const uint64_t tail = atomic_load_explicit(&e->main_ring.control->tail, memory_order_relaxed);
  const bool gap = tail != e->main_position && !orion_ring_ready(e->main_ring, e->main_position);
  if (!gap || e->gap_position != e->main_position) {
    e->gap_position = e->main_position;
    e->gap_since_ns = gap ? now_ns : 0;
    e->gap_logged = false;
    return;
  }
  if (!e->gap_since_ns) e->gap_since_ns = now_ns;
  if (e->gap_logged || now_ns - e->gap_since_ns < GAP_LOG_NS) return;
  e->gap_logged = true;
  atomic_fetch_add_explicit(&e->stat_gaps, 1, memory_order_relaxed);
  engine_log(e, ENGINE_LOG_WARN, "a client thread has reserved ring slots for over %u ms and not committed them",
             (unsigned)(GAP_LOG_NS / 1000000));
}

// ------------------------------------------------------------------------------------------------ the loop
// One look at everything that can move. Returns whether something did.
static bool work_once(orion_engine* e) {
  bool moved = e->net ? net_pump(e) : false;
  moved |= engine_drain_express(e, LOOP_BATCH) > 0;
  if (e->seat) moved |= swap_pass(e);
  if (e->seat) moved |= turns_pass(e);
  moved |= drain_main(e) > 0;
  moved |= park_pass(e) > 0;
  if (e->first_query) moved |= query_pass(e);
  if (atomic_load_explicit(&e->graph_signal, memory_order_relaxed)) graph_publish(e);
  if (e->first_batch || e->maps_first) moved |= memory_reclaim(e, !moved);
  if (e->launchers) launcher_collect(e);
  answer_flush(e);
  order_check_faults(e, engine_now_ns());
  answer_flush(e);
  return moved;
}

// Where the thread's time goes, from one look at the clock to the next.
static uint64_t account(orion_engine* e, enum engine_state state, uint64_t* seen_ns) {
  const uint64_t now_ns = engine_now_ns();
  STAT_ADD(e, stat_time[state], now_ns - *seen_ns);
  return *seen_ns = now_ns;
}

int orion_engine_run(orion_engine* e) {
  if (!e->bound) return ORION_END_FAILED;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  output_begin(e);
  if (e->config.launchers > 0 && !e->direct && !launcher_start(e, (uint32_t)e->config.launchers)) {
    engine_log(e, ENGINE_LOG_WARN, "no launchers could be started");
  }
  e->current_context = 0;  // another thread may have bound; this one has no current context yet
  uint64_t busy_at_ns = engine_now_ns(), seen_ns = busy_at_ns;
  while (!e->end) {
    const int stop = atomic_load_explicit(&e->stop_requested, memory_order_acquire);
    if (stop) {
      engine_end(e, stop, stop == ORION_END_CLIENT_LOST ? "the client is gone" : "stopped");
      break;
    }
    const bool moved = work_once(e);
    const uint64_t now_ns = account(e, moved ? ENGINE_BUSY : ENGINE_LOOKING, &seen_ns);
    if (moved) {
      busy_at_ns = now_ns;
      continue;
    }
    const uint64_t idle_ns = now_ns - busy_at_ns;
    watch_gap(e, now_ns);
    if (e->spin_allowed && idle_ns < e->spin_ns) {
      engine_pause(64);
      account(e, ENGINE_LOOKING, &seen_ns);
      continue;
    }
    atomic_fetch_add_explicit(&e->segment->words[ORION_WORD_ENGINE_BEAT], 1, memory_order_relaxed);
    if (e->net) {
      net_wait(e, sleep_time(e, idle_ns));
    } else {
      sleep_until_needed(e, sleep_time(e, idle_ns));
    }
    account(e, ENGINE_ASLEEP, &seen_ns);
  }
  launcher_stop(e);
  if (e->net) net_close(e);
  answer_flush(e);
  output_end(e);
  return e->end;
}

void engine_wake(orion_engine* e) {
  if (e->net) {
    net_wake(e);
  } else if (e->segment) {
    atomic_fetch_add(&e->main_ring.control->wake, 1);
    engine_futex_wake(&e->main_ring.control->wake);
  }
}

static void request_end(orion_engine* e, int end) {
  int none = 0;
  atomic_compare_exchange_strong(&e->stop_requested, &none, end);
  engine_wake(e);
}

void orion_engine_stop(orion_engine* e) { request_end(e, ORION_END_STOPPED); }
void orion_engine_client_lost(orion_engine* e) { request_end(e, ORION_END_CLIENT_LOST); }

void orion_engine_get_stats(orion_engine* e, orion_engine_stats* stats) {
  *stats = (orion_engine_stats){
      .operations = atomic_load(&e->stat_operations),
      .launches = atomic_load(&e->stat_launches),
      .work_operations = atomic_load(&e->stat_work),
      .replies = atomic_load(&e->stat_replies),
      .late_errors = atomic_load(&e->stat_late),
      .parked = atomic_load(&e->stat_parked),
      .parked_now = atomic_load(&e->stat_parked_now),
      .frees_pending = atomic_load(&e->stat_frees),
      .maps_waiting = atomic_load(&e->stat_maps),
      .pinned_bytes = atomic_load(&e->stat_pinned),
      .bytes_in = atomic_load(&e->stat_in),
      .bytes_out = atomic_load(&e->stat_out),
      .lanes = atomic_load(&e->stat_lanes),
      .commit_gaps = atomic_load(&e->stat_gaps),
      .image_bytes = atomic_load(&e->stat_image_bytes),
      .fatal_result = atomic_load(&e->stat_fatal),
      .busy_ns = atomic_load(&e->stat_time[ENGINE_BUSY]),
      .looking_ns = atomic_load(&e->stat_time[ENGINE_LOOKING]),
      .asleep_ns = atomic_load(&e->stat_time[ENGINE_ASLEEP]),
      .launches_timed = atomic_load(&e->stat_launches_timed),
      .launches_timed_ns = atomic_load(&e->stat_launches_timed_ns),
      .launches_handed = atomic_load(&e->stat_handed),
  };
  for (uint32_t i = 0; i < ORION_DEVICES; i++) stats->mapped_bytes[i] = atomic_load(&e->devices[i].mapped_bytes);
}

void orion_engine_reason(orion_engine* e, char* text, uint32_t capacity) {
  if (!capacity) return;
  pthread_mutex_lock(&e->reason_lock);
  snprintf(text, capacity, "%s", e->reason);
  pthread_mutex_unlock(&e->reason_lock);
}
