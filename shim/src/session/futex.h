// Futex words live in memory that two processes share, so the private variants must not be used.
#ifndef ORION_SHIM_FUTEX_H
#define ORION_SHIM_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/// Sleeps while *at == expected, at most timeout_us. Wakes early for any reason: check again.
static inline void orion_futex_wait(_Atomic uint32_t* at, uint32_t expected, uint32_t timeout_us) {
  struct timespec timeout = {timeout_us / 1000000u, (long)(timeout_us % 1000000u) * 1000};
  syscall(SYS_futex, (uint32_t*)at, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

static inline void orion_futex_wake_all(_Atomic uint32_t* at) {
  atomic_fetch_add_explicit(at, 1, memory_order_release);
  syscall(SYS_futex, (uint32_t*)at, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static inline uint64_t orion_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void orion_cpu_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif
