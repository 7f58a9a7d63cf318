// The client's end of a session for the engine's tests: ring, words and replies, without the shim.
#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "orion_ring.h"

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void wake(orion_ring_control* control) {
  atomic_fetch_add(&control->wake, 1);
  syscall(SYS_futex, &control->wake, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

void* client_map(int fd) {
  void* p = mmap(NULL, sizeof(orion_segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return p == MAP_FAILED ? NULL : p;
}

void client_unmap(void* segment) { munmap(segment, sizeof(orion_segment)); }

/// 0, or -1 when the ring stayed full for 10 s.
int client_push(orion_segment* s, int express, const void* op, uint32_t bytes) {
  const orion_ring ring = express ? orion_express_ring(s) : orion_main_ring(s);
  const uint64_t until = now_ns() + 10000000000ull;
  while (!orion_ring_push(ring, op, bytes, NULL)) {
    if (now_ns() > until) return -1;
    const uint32_t space = atomic_load(&ring.control->space);
    atomic_fetch_add(&ring.control->producers_parked, 1);
    const struct timespec some = {0, 1000000};
    syscall(SYS_futex, &ring.control->space, FUTEX_WAIT, space, &some, NULL, 0);
    atomic_fetch_sub(&ring.control->producers_parked, 1);
  }
  if (orion_ring_must_wake(ring)) wake(ring.control);
  return 0;
}

/// What a thread leaves behind that dies between reserving and committing.
void client_reserve(orion_segment* s, uint32_t slots) {
  atomic_fetch_add(&s->main_control.tail, slots);
  wake(&s->main_control);
}

uint64_t client_word(orion_segment* s, uint32_t word) { return atomic_load(&s->words[word]); }

void client_set_client_word(orion_segment* s, uint32_t callback, uint64_t value) {
  atomic_store(&s->client_words[callback], value);
}

/// Waits as a client does: posts the word, parks on client_wake. 1: reached, 0: not within timeout_ms.
/// *parks counts the naps, which last 20 s at most: only a wake ends them early.
int client_wait_word(orion_segment* s, uint32_t slot, uint32_t word, uint64_t value, uint32_t timeout_ms) {
  const uint64_t until = now_ns() + timeout_ms * 1000000ull;
  atomic_store(&s->waiters[slot].value, value);
  atomic_store(&s->waiters[slot].word, word);
  atomic_fetch_add(&s->client_waiters, 1);
  atomic_fetch_add(&s->watcher_wake, 1);
  syscall(SYS_futex, &s->watcher_wake, FUTEX_WAKE, 1, NULL, NULL, 0);
  int reached = 0;
  for (;;) {
    const uint32_t seen = atomic_load(&s->client_wake);
    reached = atomic_load(&s->words[word]) >= value;
    const uint64_t now = now_ns();
    if (reached || now >= until) break;
    const struct timespec left = {(time_t)((until - now) / 1000000000ull), (long)((until - now) % 1000000000ull)};
    syscall(SYS_futex, &s->client_wake, FUTEX_WAIT, seen, &left, NULL, 0);
  }
  atomic_store(&s->waiters[slot].word, 0);
  atomic_fetch_sub(&s->client_waiters, 1);
  return reached;
}

/// 1 when the reply is there.
int client_wait_reply(orion_segment* s, uint32_t slot, uint64_t sequence, uint32_t timeout_ms) {
  const uint64_t until = now_ns() + timeout_ms * 1000000ull;
  atomic_fetch_add(&s->client_waiters, 1);
  int there = 0;
  for (;;) {
    const uint32_t seen = atomic_load(&s->client_wake);
    there = atomic_load(&s->replies[slot].done) == sequence;
    const uint64_t now = now_ns();
    if (there || now >= until) break;
    const struct timespec left = {(time_t)((until - now) / 1000000000ull), (long)((until - now) % 1000000000ull)};
    syscall(SYS_futex, &s->client_wake, FUTEX_WAIT, seen, &left, NULL, 0);
  }
  atomic_fetch_sub(&s->client_waiters, 1);
  return there;
}

int32_t client_reply_result(orion_segment* s, uint32_t slot) { return s->replies[slot].result; }
uint32_t client_reply_bytes(orion_segment* s, uint32_t slot) { return s->replies[slot].bytes; }
const void* client_reply_payload(orion_segment* s, uint32_t slot) { return s->replies[slot].payload; }

/// Writes a slot as no correct client would: `bytes` in the header of a committed entry.
void client_corrupt(orion_segment* s, uint32_t header_bytes) {
  const uint64_t position = atomic_fetch_add(&s->main_control.tail, 1);
  orion_slot* slot = &s->main_slots[position % ORION_MAIN_SLOTS];
  orion_op op = {.code = 1, .bytes = header_bytes, .reply_slot = ORION_NO_REPLY};
  memcpy(slot->payload, &op, sizeof op);
  atomic_store_explicit(&slot->sequence, position + 1, memory_order_release);
  wake(&s->main_control);
}
