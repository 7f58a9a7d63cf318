// ORION_STATS: what each driver function of this process cost. See docs/statistics.md.
//
// A function that is counted owns one static counter; the outermost counted function of a thread is charged with
// everything below it. Off: one predictable branch on entry and one on return. On: relaxed additions, no lock.
#ifndef ORION_SHIM_STATS_H
#define ORION_SHIM_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct orion_counter {
  const char* name;
  _Atomic uint64_t calls, waits, bytes_out, bytes_in, total_ns, wait_ns;
  _Atomic uint64_t first_at_ns, first_ns;  // of the first call of the process: when, and how long
  _Atomic bool listed;
  struct orion_counter* next;
} orion_counter;

typedef struct orion_counted {
  orion_counter* counter;  // NULL: this call is not counted
  uint64_t began_ns;
} orion_counted;

/// Written before the first call that could be counted, and by cuProfilerStart and cuProfilerStop.
extern bool orion_stats_on;

/// `wish`: ORION_STATS as the configuration has checked it ("0", "1", "json:PATH").
void orion_stats_start(const char* wish);
/// Counts from zero again, if counting was wished at all.
void orion_stats_restart(void);
/// Tells the figures where `wish` said, and counts no more.
void orion_stats_tell(void);
/// In the child after fork: nothing of the parent's figures is told there.
void orion_stats_after_fork(void);

/// What has become of the images (modules, libraries) that this process loaded; always counted.
typedef struct orion_image_counts {
  _Atomic uint64_t known, known_bytes;        // the server had them: not sent
  _Atomic uint64_t uploaded, uploaded_bytes;  // it had not
  _Atomic uint64_t small, small_bytes;        // too small to ask: sent with the load
  _Atomic uint64_t hash_ns;                   // naming and proving them
} orion_image_counts;
extern orion_image_counts orion_images;

orion_counted orion_stats_enter(orion_counter* counter);
void orion_stats_leave(orion_counter* counter, uint64_t began_ns);
/// Charged to the function that the calling thread is in.
uint64_t orion_stats_wait_begin(void);
void orion_stats_wait_end(uint64_t began_ns);
void orion_stats_add_bytes(uint64_t out, uint64_t in);

static inline orion_counted orion_count_begin(orion_counter* counter) {
  if (__builtin_expect(!orion_stats_on, 1)) return (orion_counted){NULL, 0};
  return orion_stats_enter(counter);
}
static inline void orion_count_end(const orion_counted* counted) {
  // By value: where counting is off, the structure then needs no memory.
  if (__builtin_expect(counted->counter != NULL, 0)) orion_stats_leave(counted->counter, counted->began_ns);
}
static inline void orion_count_bytes(uint64_t out, uint64_t in) {
  if (__builtin_expect(orion_stats_on, 0)) orion_stats_add_bytes(out, in);
}

/// Counts the function it stands in, from here to its return. ORION_ENTER and its kin contain it.
#define ORION_COUNTED()                               \
  static orion_counter counter_ = {.name = __func__}; \
  __attribute__((cleanup(orion_count_end), unused)) orion_counted counted_ = orion_count_begin(&counter_)

#endif
