// Dense thread indices, process-wide: the receiver of late errors in every session.
#include <pthread.h>
#include <signal.h>

#include "internal.h"

enum { INDEX_GROUPS = ORION_THREADS / 64 };

static _Atomic uint64_t taken[INDEX_GROUPS];
static _Atomic uint32_t overflow_next;
static pthread_key_t exit_key;
static pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;
static bool exit_key_made;
_Thread_local uint32_t orion_thread_index_plus_one __attribute__((tls_model("initial-exec")));

// Runs at thread exit. A later destructor that makes a CUDA call takes a new index, and this runs again.
static void give_back(void* owned) {
  const uintptr_t index = (uintptr_t)owned - 1;
  orion_thread_index_plus_one = 0;
  atomic_fetch_and(&taken[index / 64], ~(1ull << (index % 64)));
}

static void make_exit_key(void) { exit_key_made = pthread_key_create(&exit_key, give_back) == 0; }

uint16_t orion_thread_index_take(void) {
  pthread_once(&exit_key_once, make_exit_key);
  for (uint32_t group = 0; group < INDEX_GROUPS && exit_key_made; group++) {
    uint64_t seen = atomic_load(&taken[group]);
    while (seen != UINT64_MAX) {
      const unsigned bit = (unsigned)__builtin_ctzll(~seen);
      if (!atomic_compare_exchange_weak(&taken[group], &seen, seen | 1ull << bit)) continue;
      const uint32_t index = group * 64 + bit;
      if (pthread_setspecific(exit_key, (void*)(uintptr_t)(index + 1)) != 0) {
        atomic_fetch_and(&taken[group], ~(1ull << bit));
        exit_key_made = false;
        break;
      }
      // What was left for the index's last owner is not this thread's business.
      for (uint32_t i = 0; i < orion_session_count; i++) {
        orion_session_impl* impl = orion_sessions[i];
        atomic_store(&impl->late_errors_noted[index], 0);
        if (atomic_load(&impl->base.lost)) continue;
        const uint64_t word = orion_word(&impl->base, ORION_WORD_THREAD_ERROR + index);
        atomic_store(&impl->late_errors_told[index], (uint32_t)(word >> 32));
      }
      orion_thread_index_plus_one = index + 1;
      return (uint16_t)index;
    }
  }
  // More threads than indices: shared, never given back, and late errors may reach the wrong one of the sharers.
  orion_thread_index_plus_one = atomic_fetch_add(&overflow_next, 1) % ORION_THREADS + 1;
  return (uint16_t)(orion_thread_index_plus_one - 1);
}

void orion_threads_after_fork(void) {
  const uint32_t own = orion_thread_index_plus_one;
  for (uint32_t group = 0; group < INDEX_GROUPS; group++)
    atomic_store(&taken[group], own && (own - 1) / 64 == group ? 1ull << ((own - 1) % 64) : 0);
}

void orion_block_signals(sigset_t* before) {
  sigset_t blocked;
  sigfillset(&blocked);
  // A fault cannot wait: blocked, it ends the process. shm_pages.c has one for a write to a page that moves.
  sigdelset(&blocked, SIGSEGV);
  sigdelset(&blocked, SIGBUS);
  pthread_sigmask(SIG_SETMASK, &blocked, before);
}
