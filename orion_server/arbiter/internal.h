// The arbiter's own state. All of it belongs to whoever holds `lock`.
#ifndef ORION_ARBITER_INTERNAL_H
#define ORION_ARBITER_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "arbiter.h"
#include "orion_seat.h"
#include "policy.h"
#include "residency.h"

#define GPUS_MAX ORION_SEAT_DEVICES
#define SEATS_MAX 256u
#define SLICES_MAX 256u
#define GRANT_STEP_BYTES (64ull << 20)  // memory is granted in such steps where there is room, so that few ask
#define NO_INDEX (-1)

typedef struct slice {
  bool is_used;
  int gpu;
  int policy_index;  // NO_INDEX: no ratio
  orion_slice_limits limits;
  uint64_t since_ns;
  // of workers that have ended
  uint64_t spent_ns, throttled_ns, works;
} slice;

/// What one worker has of one GPU.
typedef struct place {
  int slice;                            // index; NO_INDEX: nothing
  int policy_index;                     // of its seat there; NO_INDEX: no ratio
  uint64_t grant, budget_ns, recalled;  // as published
  uint64_t granted_bytes, answered;     // as published
  uint64_t overdrawn_bytes;             // charged when the quota became less than that; 0: nothing
  uint64_t asked, asked_bytes;          // as last read
  uint64_t residency;                   // as published
  uint64_t residency_at_ns;
} place;

typedef struct seat {
  bool is_used;
  orion_seat* memory;
  int doorbell_fd, wake_fd;
  bool has_changed;  // something was published and the worker has not been woken
  place places[GPUS_MAX];
} seat;

typedef struct gpu {
  bool is_used;
  policy turns;
  residency_gpu memory;                    // its seats are the arbiter's, by index
  uint64_t capacity_bytes, backing_bytes;  // as configured; memory.capacity_bytes is what has been found to be true
} gpu;

struct orion_arbiter {
  pthread_mutex_t lock;
  pthread_t thread;
  bool has_thread, stops;
  int epoll_fd, timer_fd, stop_fd;
  uint64_t timer_at_ns;
  gpu gpus[GPUS_MAX];
  int gpu_count;
  uint32_t seat_count, slice_count;  // one past the highest that has been in use
  seat seats[SEATS_MAX];
  slice slices[SLICES_MAX];
};

uint64_t arbiter_now_ns(void);
/// Looks at what the GPU's workers say, decides, publishes. When to look again without news.
uint64_t arbiter_look(orion_arbiter* a, int gpu, uint64_t now_ns);
/// Wakes the workers for whom something has changed.
void arbiter_wake(orion_arbiter* a);

static inline orion_seat_device* seat_at(const seat* s, int gpu) { return &s->memory->devices[gpu]; }
static inline uint64_t get(const _Atomic uint64_t* word) { return atomic_load_explicit(word, memory_order_seq_cst); }
static inline void put(_Atomic uint64_t* word, uint64_t value) {
  atomic_store_explicit(word, value, memory_order_seq_cst);
}

// ---- grants.c: memory
/// Publishes quota and grant of a seat that has just been given its slice.
void grants_begin(orion_arbiter* a, uint32_t seat, int gpu);
/// Answers what the slice's seats ask for, within its quota. Seats of a GPU with a capacity are answered by residency.
void grants_answer(orion_arbiter* a, int slice);
/// Tells each seat of the slice what the others have.
void grants_tell_others(orion_arbiter* a, int slice);
/// A new quota. False: more is charged, `shrink` is ORION_SHRINK_REFUSE, and nothing has changed.
bool grants_resize(orion_arbiter* a, int slice, uint64_t quota_bytes, int shrink);
/// Sum of what the slice's workers say they have charged.
uint64_t grants_charged(const orion_arbiter* a, int slice);
/// What the seat still asks for on top of its grant, no more than its quota allows; 0: nothing.
uint64_t grants_wanted(orion_arbiter* a, uint32_t seat, int gpu);
/// What the seat has of its quota: its grant, or what it had charged when the quota was lowered below that.
uint64_t grants_held(orion_arbiter* a, uint32_t seat, int gpu);
/// Grants `bytes` more, and answers.
void grants_allow(orion_arbiter* a, uint32_t seat, int gpu, uint64_t bytes);
void grants_refuse(orion_arbiter* a, uint32_t seat, int gpu);
/// Takes back what a seat has been granted and has not charged. Its grant then.
uint64_t grants_reclaim(orion_arbiter* a, uint32_t seat, int gpu);

// ---- moves.c: memory that leaves and comes back, on GPUs with a capacity
/// One look. When to look again without news.
uint64_t moves_look(orion_arbiter* a, int gpu, uint64_t now_ns);

#endif
