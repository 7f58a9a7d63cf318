// The way of an operation: into a ring, and, for a reply, back. Nothing here allocates, locks or enters the kernel
// unless the other side sleeps or this side has to.
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../transport/transport.h"
#include "futex.h"
#include "internal.h"
#include "log.h"
#include "stats.h"

enum { PARK_FIRST_US = 1000, PARK_MOST_US = 100000 };

static inline bool parked(const orion_ring_control* control) {
  return atomic_load_explicit(&control->consumer_parked, memory_order_relaxed) != 0;
}

static inline bool try_push(orion_session* session, const orion_op* op, uint32_t head_bytes, const void* tail,
                            bool express) {
  const orion_ring ring = express ? session->express_ring : session->main_ring;
  if (!orion_ring_push(ring, op, head_bytes, tail)) return false;
  // One consumer drains both rings and may have said in either that it sleeps.
  if (orion_ring_must_wake(ring) || (express && parked(session->main_ring.control)))
    session->transport->kick(session, express);
  return true;
}

static inline bool is_express(const orion_op* op) { return (ORION_OP_INFO[op->code].flags & ORION_OPF_EXPRESS) != 0; }

void orion_wake_clients(orion_session* session) {
  orion_segment* segment = session->segment;
  if (!segment) return;
  // Pairs with orion_park: either it sees what was stored before this fence, or this sees that it waits.
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&segment->client_waiters, memory_order_relaxed)) orion_futex_wake_all(&segment->client_wake);
}

void orion_session_lose(orion_session* session, CUresult code, const char* format, ...) {
  int32_t none = 0;
  if (!atomic_compare_exchange_strong(&session->lost, &none, (int32_t)code)) return;
  if (format) {
    char reason[ORION_LINE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    orion_log(
        ORION_LOG_ERROR,
        "the session with %s over %s has ended: %s; every CUDA call now returns error %d (start the program again)",
        session->server_address, session->transport_name, reason, (int)code);
  }
  orion_wake_clients(session);
}

static CUresult session_error(orion_session* session) {
  const int32_t lost = atomic_load_explicit(&session->lost, memory_order_relaxed);
  if (lost) return (CUresult)lost;
  const uint64_t word = orion_word(session, ORION_WORD_SESSION_ERROR);
  if (word == 0) return CUDA_SUCCESS;
  const CUresult code = word < 1000 ? (CUresult)word : CUDA_ERROR_UNKNOWN;
  orion_session_lose(session, code, "the server ended it with error %d, its log says why", (int)code);
  return (CUresult)atomic_load(&session->lost);
}

CUresult orion_context_error_slow(orion_session* session, uint32_t context) {
  const CUresult error = session_error(session);
  if (error != CUDA_SUCCESS || context == 0 || context >= ORION_CONTEXTS) return error;
  const uint64_t word = orion_word(session, ORION_WORD_CONTEXT_ERROR + context);
  return word < 1000 ? (CUresult)word : CUDA_ERROR_UNKNOWN;
}

static CUresult check_alive(orion_session* session) {
  if (!session->transport->alive(session)) {
    // At exit this process has closed the session itself, while threads of this library may wait for it.
    if (orion_ready_slow() == CUDA_ERROR_DEINITIALIZED) {
      orion_session_lose(session, CUDA_ERROR_DEINITIALIZED, NULL);
    } else {
      orion_session_lose(session, CUDA_ERROR_DEVICE_UNAVAILABLE, "the worker process or the server is gone");
    }
  }
  return (CUresult)atomic_load(&session->lost);
}

// ------------------------------------------------------------------------------------------------- waiting

// Takes a bit of `taken` that is 0, near `hint`. -1 when all are taken.
static int take_bit(_Atomic uint64_t* taken, unsigned hint) {
  uint64_t seen = atomic_load_explicit(taken, memory_order_relaxed);
  while (seen != UINT64_MAX) {
    const unsigned turn = hint & 63u;
    const uint64_t open = ~seen;
    const uint64_t turned = turn ? (open >> turn | open << (64 - turn)) : open;
    const int bit = (int)(((unsigned)__builtin_ctzll(turned) + turn) & 63u);
    if (atomic_compare_exchange_weak_explicit(taken, &seen, seen | 1ull << bit, memory_order_acquire,
                                              memory_order_relaxed))
      return bit;
  }
  return -1;
}

// True when all bits were taken until now: somebody may be waiting for one.
static bool give_bit(_Atomic uint64_t* taken, int bit) {
  return atomic_fetch_and_explicit(taken, ~(1ull << bit), memory_order_acq_rel) == UINT64_MAX;
}

static int post_waiter(orion_session_impl* impl, uint32_t word, uint64_t value) {
  orion_session* session = &impl->base;
  if (word == 0 || !session->transport->posts_waiters) return -1;
  const int entry = take_bit(&impl->waiters_taken, orion_thread_index());
  if (entry < 0) return -1;  // more than ORION_WAITERS threads wait: this one polls at its timeouts
  orion_segment* segment = session->segment;
  atomic_store_explicit(&segment->waiters[entry].value, value, memory_order_relaxed);
  atomic_store_explicit(&segment->waiters[entry].word, word, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&segment->watcher_parked, memory_order_relaxed))
    orion_futex_wake_all(&segment->watcher_wake);
  return entry;
}

static void unpost_waiter(orion_session_impl* impl, int entry) {
  if (entry < 0) return;
  atomic_store_explicit(&impl->base.segment->waiters[entry].word, 0, memory_order_release);
  give_bit(&impl->waiters_taken, entry);
}

// Spins until ready, or for the time that is allowed. Where bytes have to be moved for that, this thread does it.
static bool spin(orion_session* session, bool (*ready)(void* argument), void* argument, uint32_t context) {
  const orion_transport* transport = session->transport;
  const uint64_t until_ns = orion_now_ns() + orion_impl(session)->spin_us * 1000ull;
  do {
    if (transport->help && transport->help(session, ready, argument, context, until_ns, until_ns) == ORION_HELP_READY)
      return true;
    for (int i = 0; i < 64; i++) {
      if (ready(argument)) return true;
      orion_cpu_relax();
    }
  } while (orion_now_ns() < until_ns);
  return false;
}

static CUresult park(orion_session* session, bool (*ready)(void* argument), void* argument, uint32_t word,
                     uint64_t value, uint32_t context) {
  orion_session_impl* impl = orion_impl(session);
  const orion_transport* transport = session->transport;
  if (impl->spin_us && spin(session, ready, argument, context)) return CUDA_SUCCESS;
  orion_segment* segment = session->segment;
  const int entry = post_waiter(impl, word, value);
  const bool unposted = entry < 0 && word != 0 && transport->posts_waiters;
  CUresult result = CUDA_SUCCESS;
  uint32_t timeout_us = PARK_FIRST_US;
  atomic_fetch_add(&segment->client_waiters, 1);
  for (;;) {
    const uint32_t wake = atomic_load(&segment->client_wake);
    if (ready(argument)) break;
    result = orion_context_error(session, context);
    if (result != CUDA_SUCCESS) break;
    const uint64_t before_ns = orion_now_ns();
    const uint64_t until_ns = before_ns + timeout_us * 1000ull;
    const enum orion_help help =
        transport->help ? transport->help(session, ready, argument, context, 0, until_ns) : ORION_HELP_BUSY;
    if (help == ORION_HELP_READY) break;
    if (help == ORION_HELP_BUSY) {
      // What this thread has pushed without waking anybody: the one who moves the bytes may have gone to sleep.
      if (transport->help && orion_ring_must_wake(session->main_ring)) transport->kick(session, false);
      orion_futex_wait(&segment->client_wake, wake, timeout_us);
    }
    // Wakes for other threads leave the timeout as it is; only a wait that ran out asks whether the worker lives.
    if (orion_now_ns() < until_ns) continue;
    if (check_alive(session) != CUDA_SUCCESS && !ready(argument)) {
      result = (CUresult)atomic_load(&session->lost);
      break;
    }
    if (!unposted && timeout_us < PARK_MOST_US)
      timeout_us = timeout_us * 2 < PARK_MOST_US ? timeout_us * 2 : PARK_MOST_US;
  }
  atomic_fetch_sub(&segment->client_waiters, 1);
  unpost_waiter(impl, entry);
  return result;
}

CUresult orion_park(orion_session* session, bool (*ready)(void* argument), void* argument, uint32_t word,
                    uint64_t value, uint32_t context) {
  if (ready(argument)) return CUDA_SUCCESS;
  if (__builtin_expect(!orion_stats_on, 1)) return park(session, ready, argument, word, value, context);
  const uint64_t began_ns = orion_stats_wait_begin();
  const CUresult result = park(session, ready, argument, word, value, context);
  orion_stats_wait_end(began_ns);
  return result;
}

typedef struct word_wait {
  _Atomic uint64_t* at;
  uint64_t value;
  const _Atomic uint32_t* count;  // NULL, or what ends the wait when it changes
  uint32_t expected;
} word_wait;

static bool word_reached(void* argument) {
  const word_wait* wait = argument;
  if (atomic_load_explicit(wait->at, memory_order_acquire) >= wait->value) return true;
  return wait->count && atomic_load_explicit(wait->count, memory_order_acquire) != wait->expected;
}

CUresult orion_wait_word(orion_session* session, uint32_t word, uint64_t value, uint32_t context) {
  return orion_wait_word_until(session, word, value, context, NULL, 0);
}

CUresult orion_wait_word_until(orion_session* session, uint32_t word, uint64_t value, uint32_t context,
                               const _Atomic uint32_t* count, uint32_t expected) {
  if (word >= ORION_WORDS) return CUDA_ERROR_INVALID_VALUE;
  const int32_t lost = atomic_load_explicit(&session->lost, memory_order_relaxed);
  if (lost) return (CUresult)lost;
  word_wait wait = {&session->segment->words[word], value, count, expected};
  if (!word_reached(&wait)) {
    const CUresult result = orion_park(session, word_reached, &wait, word, value, context);
    if (result != CUDA_SUCCESS) return result;
  }
  // A fault elsewhere in the context is sticky: it is told although this marker was reached.
  return orion_context_error(session, context);
}

// ------------------------------------------------------------------------------------------------- submission

static CUresult push_when_full(orion_session* session, const orion_op* op, uint32_t head_bytes, const void* tail,
                               bool express) {
  orion_ring_control* control = express ? session->express_ring.control : session->main_ring.control;
  uint32_t timeout_us = PARK_FIRST_US;
  CUresult result = CUDA_SUCCESS;
  atomic_fetch_add(&control->producers_parked, 1);
  for (;;) {
    const uint32_t space = atomic_load(&control->space);
    if (try_push(session, op, head_bytes, tail, express)) break;
    result = session_error(session);
    if (result != CUDA_SUCCESS) break;
    // The consumer may have gone to sleep over a ring that other producers filled.
    if (parked(control)) session->transport->kick(session, express);
    orion_futex_wait(&control->space, space, timeout_us);
    result = check_alive(session);
    if (result != CUDA_SUCCESS) break;
    if (timeout_us < PARK_MOST_US) timeout_us *= 2;
  }
  atomic_fetch_sub(&control->producers_parked, 1);
  return result;
}

// Where those who wait move the bytes, nobody else is woken for an operation whose caller waits at once.
static inline bool try_push_and_wait(orion_session* session, const orion_op* op, uint32_t head_bytes, const void* tail,
                                     bool express) {
  if (!session->transport->help) return try_push(session, op, head_bytes, tail, express);
  return orion_ring_push(express ? session->express_ring : session->main_ring, op, head_bytes, tail);
}

static inline CUresult push(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail,
                            uint32_t tail_bytes, bool waits) {
  const int32_t lost = atomic_load_explicit(&session->lost, memory_order_relaxed);
  if (__builtin_expect(lost != 0, 0)) return (CUresult)lost;
  op->bytes = head_bytes + tail_bytes;
  if (__builtin_expect(tail_bytes > ORION_OP_MAX_BYTES - head_bytes, 0)) return CUDA_ERROR_INVALID_VALUE;
  op->thread = orion_thread_index();
  const bool express = is_express(op);
  orion_count_bytes(op->bytes, 0);
  if (waits ? try_push_and_wait(session, op, head_bytes, tail, express)
            : __builtin_expect(try_push(session, op, head_bytes, tail, express), 1))
    return CUDA_SUCCESS;
  const uint64_t began_ns = orion_stats_on ? orion_stats_wait_begin() : 0;
  const CUresult result = push_when_full(session, op, head_bytes, tail, express);
  if (began_ns) orion_stats_wait_end(began_ns);
  return result;
}

bool orion_try_push(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes) {
  op->bytes = head_bytes + tail_bytes;
  op->thread = orion_thread_index();
  op->reply_slot = ORION_NO_REPLY;
  op->reply_seq = 0;
  return try_push(session, op, head_bytes, tail, is_express(op));
}

// ORION_SYNC=1: a marker behind the operation, so that its error is told by the call that caused it. A wait for a value
// that the program writes later would wait for ever.
static CUresult wait_for_effect(orion_session* session, const orion_op* op) {
  const uint16_t flags = ORION_OP_INFO[op->code].flags;
  if (!(flags & ORION_OPF_WORK) || op->code == ORION_OP_STREAM_WAIT_VALUE) return CUDA_SUCCESS;
  const uint16_t thread = op->thread;
  orion_op_mark mark = {
      .op = {.code = ORION_OP_MARK, .context = op->context, .stream = op->stream, .reply_slot = ORION_NO_REPLY},
      .word = ORION_WORD_SYNC + thread};
  mark.value = atomic_fetch_add(&orion_impl(session)->sync_values[thread], 1) + 1;
  CUresult result = push(session, &mark.op, sizeof mark, NULL, 0, true);
  if (result == CUDA_SUCCESS) result = orion_wait_word(session, mark.word, mark.value, op->context);
  return result == CUDA_SUCCESS ? orion_take_late_error(session) : result;
}

CUresult orion_submit(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail,
                      uint32_t tail_bytes) {
  op->reply_slot = ORION_NO_REPLY;
  op->reply_seq = 0;
  const CUresult result = push(session, op, head_bytes, tail, tail_bytes, false);
  if (__builtin_expect(orion_impl(session)->sync, 0) && result == CUDA_SUCCESS) return wait_for_effect(session, op);
  return result;
}

typedef struct reply_wait {
  orion_reply* reply;
  uint32_t seq;
} reply_wait;

static bool reply_done(void* argument) {
  const reply_wait* wait = argument;
  return atomic_load_explicit(&wait->reply->done, memory_order_acquire) == wait->seq;
}

// Counted as a wait even when the answer is there already: the call went to the server and back.
static CUresult wait_reply(orion_session* session, reply_wait* wait) {
  if (__builtin_expect(!orion_stats_on, 1)) return orion_park(session, reply_done, wait, 0, 0, 0);
  const uint64_t began_ns = orion_stats_wait_begin();
  const CUresult result = reply_done(wait) ? CUDA_SUCCESS : park(session, reply_done, wait, 0, 0, 0);
  orion_stats_wait_end(began_ns);
  return result;
}

typedef struct slot_wait {
  orion_session_impl* impl;
  int slot;
} slot_wait;

static bool slot_taken(void* argument) {
  slot_wait* wait = argument;
  wait->slot = take_bit(&wait->impl->reply_slots_taken, orion_thread_index());
  return wait->slot >= 0;
}

CUresult orion_call(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes,
                    void* payload, uint32_t capacity, uint32_t* payload_bytes) {
  orion_session_impl* impl = orion_impl(session);
  if (payload_bytes) *payload_bytes = 0;
  const int32_t lost = atomic_load_explicit(&session->lost, memory_order_relaxed);
  if (lost) return (CUresult)lost;
  slot_wait place = {impl, -1};
  if (!slot_taken(&place)) {
    const CUresult result = orion_park(session, slot_taken, &place, 0, 0, 0);
    if (result != CUDA_SUCCESS) return result;
  }
  uint32_t seq = ++impl->reply_seq[place.slot];
  if (seq == 0) seq = ++impl->reply_seq[place.slot];
  reply_wait wait = {&session->segment->replies[place.slot], seq};
  op->reply_slot = (uint32_t)place.slot;
  op->reply_seq = seq;
  CUresult result = push(session, op, head_bytes, tail, tail_bytes, true);
  if (result == CUDA_SUCCESS) result = wait_reply(session, &wait);
  if (result == CUDA_SUCCESS) {
    uint32_t bytes = wait.reply->bytes;
    if (bytes > ORION_REPLY_BYTES) bytes = ORION_REPLY_BYTES;
    if (bytes > capacity) bytes = capacity;
    if (bytes) memcpy(payload, wait.reply->payload, bytes);
    orion_count_bytes(0, sizeof *wait.reply - ORION_REPLY_BYTES + bytes);
    if (payload_bytes) *payload_bytes = bytes;
    result = (CUresult)wait.reply->result;
  }
  // A lost session never writes the slot again, so it may be given back in every case.
  if (give_bit(&impl->reply_slots_taken, place.slot)) orion_wake_clients(session);
  return result;
}

CUresult orion_take_late_error(orion_session* session) {
  const uint16_t thread = orion_thread_index();
  _Atomic int32_t* noted = &orion_impl(session)->late_errors_noted[thread];
  if (__builtin_expect(atomic_load_explicit(noted, memory_order_acquire) != 0, 0)) {
    const int32_t code = atomic_exchange(noted, 0);
    if (code != 0) return (CUresult)code;
  }
  const uint64_t word = orion_word(session, ORION_WORD_THREAD_ERROR + thread);
  if (__builtin_expect(word == 0, 1)) return CUDA_SUCCESS;
  const uint32_t count = (uint32_t)(word >> 32);
  if (atomic_exchange(&orion_impl(session)->late_errors_told[thread], count) == count) return CUDA_SUCCESS;
  const uint16_t code = (uint16_t)(word >> 16);
  const CUresult result = (CUresult)(uint16_t)word;
  const char* name = code < ORION_OP_CODE_END && ORION_OP_INFO[code].name ? ORION_OP_INFO[code].name : "unknown";
  orion_log(ORION_LOG_WARN,
            "operation %s, issued earlier by this thread, failed with CUDA error %d (ORION_SYNC=1 finds the call)",
            name, (int)result);
  return result;
}

void orion_note_late_error(orion_session* session, uint16_t thread, const char* what, CUresult code) {
  orion_log(ORION_LOG_WARN, "a %s, issued earlier, failed with CUDA error %d", what, (int)code);
  atomic_store(&orion_impl(session)->late_errors_noted[thread], (int32_t)code);
}

void orion_set_client_word(orion_session* session, uint32_t callback, uint64_t generation) {
  if (callback >= ORION_CLIENT_WORDS || atomic_load(&session->lost)) return;
  atomic_store_explicit(&session->segment->client_words[callback], generation, memory_order_release);
  session->transport->client_word(session, callback, generation);
}

uint64_t orion_push_host(orion_session* session, uint64_t offset, uint64_t bytes) {
  orion_count_bytes(bytes, 0);
  return session->transport->push_host(session, offset, bytes);
}

uint64_t orion_push_pinned(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                           uint64_t generation) {
  orion_count_bytes(bytes, 0);
  return session->transport->push_pinned(session, offset, bytes, callback, generation);
}

void orion_begin_host_function(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word) {
  session->transport->begin_host_function(session, callback, generation, word);
}

void orion_note_pull(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t word, uint64_t value) {
  const orion_pulled_rows rows = {offset, bytes, bytes, 1};
  orion_count_bytes(0, bytes);
  session->transport->note_rows(session, &rows, word, value);
}

void orion_note_pulled_rows(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value) {
  orion_count_bytes(0, rows->width_bytes * rows->rows);
  session->transport->note_rows(session, rows, word, value);
}

bool orion_coherent_begin(orion_session* session, uint64_t offset, uint64_t bytes, bool unsent) {
  return session->transport->coherent_begin != NULL &&
         session->transport->coherent_begin(session, offset, bytes, unsent);
}

uint64_t orion_coherent_push(orion_session* session, uint64_t offset, uint64_t bytes) {
  return session->transport->coherent_push(session, offset, bytes);
}

void orion_coherent_end(orion_session* session, uint64_t offset, uint64_t bytes) {
  if (session->transport->coherent_end != NULL) session->transport->coherent_end(session, offset, bytes);
}
