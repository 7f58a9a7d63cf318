#include "copier.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "futex.h"
#include "session.h"

enum {
  HELPERS_MAX = 15,
  CHUNK_BYTES = 128 << 10,  // large enough that claiming it costs nothing, small enough that all end together
  LEAST_BYTES = 512 << 10,
  CHUNKS_MAX = UINT16_MAX,
  SPIN_NS = 50000,  // a helper looks for the next piece of a long copy before it sleeps
  NAP_US = 1000000,
};

// One copy at a time. `claim` is generation << 32 | chunks << 16 | next chunk. Who advances it by a compare-and-swap
// owns that chunk, and has read the fields of the same generation: they change only when all chunks are done.
static struct {
  _Atomic bool taken;
  _Atomic uint64_t claim;
  _Atomic(uint8_t*) to;
  _Atomic(const uint8_t*) from;
  _Atomic uint64_t bytes;
  _Atomic uint32_t done;
  _Atomic uint32_t wake, sleepers;
  _Atomic uint32_t helpers;  // wanted
  bool started;              // under `taken`
} copier;

static uint32_t left(uint64_t claim) { return (uint32_t)(claim >> 16 & 0xffff) - (uint32_t)(claim & 0xffff); }

/// Copies one chunk of the current copy. False when there is none left.
static bool copy_chunk(void) {
  uint64_t claim = atomic_load_explicit(&copier.claim, memory_order_acquire);
  while (left(claim) != 0) {
    uint8_t* to = atomic_load_explicit(&copier.to, memory_order_relaxed);
    const uint8_t* from = atomic_load_explicit(&copier.from, memory_order_relaxed);
    const uint64_t bytes = atomic_load_explicit(&copier.bytes, memory_order_relaxed);
    if (!atomic_compare_exchange_weak_explicit(&copier.claim, &claim, claim + 1, memory_order_acq_rel,
                                               memory_order_acquire))
      continue;
    const uint64_t first = (claim & 0xffff) * CHUNK_BYTES;
    memcpy(to + first, from + first, bytes - first < CHUNK_BYTES ? bytes - first : CHUNK_BYTES);
    atomic_fetch_add_explicit(&copier.done, 1, memory_order_release);
    return true;
  }
  return false;
}

static void* help(void* argument) {
  (void)argument;
  for (;;) {
    const uint32_t wake = atomic_load(&copier.wake);
    const uint64_t start = orion_now_ns();
    bool any;
    while (!(any = copy_chunk()) && orion_now_ns() - start < SPIN_NS) orion_cpu_relax();
    if (any) continue;
    atomic_fetch_add(&copier.sleepers, 1);
    if (left(atomic_load(&copier.claim)) == 0) orion_futex_wait(&copier.wake, wake, NAP_US);
    atomic_fetch_sub(&copier.sleepers, 1);
  }
  return NULL;
}

static void start_helpers(void) {
  copier.started = true;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigset_t before;
  orion_block_signals(&before);
  const uint32_t wanted = atomic_load(&copier.helpers);
  for (uint32_t i = 0; i < wanted; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, help, NULL) != 0) break;  // fewer help, or none
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
}

static void copy_together(uint8_t* to, const uint8_t* from, uint64_t bytes) {
  const uint64_t chunks = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
  const uint64_t generation = atomic_load_explicit(&copier.claim, memory_order_relaxed) >> 32;
  atomic_store_explicit(&copier.to, to, memory_order_relaxed);
  atomic_store_explicit(&copier.from, from, memory_order_relaxed);
  atomic_store_explicit(&copier.bytes, bytes, memory_order_relaxed);
  atomic_store_explicit(&copier.done, 0, memory_order_relaxed);
  atomic_store(&copier.claim, (generation + 1) << 32 | chunks << 16);
  if (atomic_load(&copier.sleepers) != 0) orion_futex_wake_all(&copier.wake);
  while (copy_chunk()) {
  }
  // The helpers' last chunks: microseconds, unless the system runs something else on their cores.
  while (atomic_load_explicit(&copier.done, memory_order_acquire) != chunks) orion_cpu_relax();
}

void orion_copier_set(uint32_t threads) {
  const uint32_t helpers = threads == 0 ? 0 : threads - 1;
  atomic_store(&copier.helpers, helpers < HELPERS_MAX ? helpers : HELPERS_MAX);
}

void orion_copy_bytes(void* to, const void* from, uint64_t bytes) {
  const bool large = bytes >= LEAST_BYTES && bytes <= (uint64_t)CHUNKS_MAX * CHUNK_BYTES;
  if (!large || atomic_load_explicit(&copier.helpers, memory_order_relaxed) == 0 ||
      atomic_exchange_explicit(&copier.taken, true, memory_order_acquire)) {
    memcpy(to, from, bytes);
    return;
  }
  if (!copier.started) start_helpers();
  copy_together(to, from, bytes);
  atomic_store_explicit(&copier.taken, false, memory_order_release);
}

void orion_copier_after_fork(void) {
  // A copy of another thread may have been under way: its chunks are nobody's now.
  const uint64_t generation = atomic_load(&copier.claim) >> 32;
  atomic_store(&copier.claim, (generation + 1) << 32);
  atomic_store(&copier.sleepers, 0);
  copier.started = false;
  atomic_store(&copier.taken, false);
}
