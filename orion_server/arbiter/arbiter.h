// The arbiter: shares GPUs among vGPUs. A thread of orion-server (no Python in it) that answers the doorbells of
// workers' seats (orion_seat.h): whose turn it is on each GPU (policy.h), and how much memory each may charge.
//
// All functions may be called from any thread. This header is all that Python (cffi) sees.
#ifndef ORION_ARBITER_H
#define ORION_ARBITER_H

#include <stdint.h>

typedef struct orion_arbiter orion_arbiter;

enum orion_arbiter_policy { ORION_POLICY_HARD = 0, ORION_POLICY_ELASTIC = 1 };
// What a resize below what is charged does: refuse it, or fail new allocations until usage has fallen.
enum orion_arbiter_shrink { ORION_SHRINK_REFUSE = 0, ORION_SHRINK_BLOCK = 1 };

typedef struct orion_arbiter_options {
  uint64_t slice_ns;  // of one turn; 0: the default (policy.h)
  int gpu_count;
} orion_arbiter_options;

// A GPU whose slices may have quotas that are more than it has together. `capacity_bytes` is what their workers may
// have on it at a time, `backing_bytes` what each worker may keep in host memory. 0: memory never moves.
typedef struct orion_gpu_memory {
  uint64_t capacity_bytes;
  uint64_t backing_bytes;
} orion_gpu_memory;

typedef struct orion_slice_limits {
  uint64_t quota_bytes;    // device memory of all workers of the vGPU together; 0: none
  uint64_t pinned_bytes;   // pinned host memory of each worker; 0: no limit
  uint32_t ratio_percent;  // 1 to 100; 0: no ratio: its work needs no grants
  int policy;              // enum orion_arbiter_policy
} orion_slice_limits;

typedef struct orion_slice_usage {
  uint64_t charged_bytes;
  uint64_t kind_bytes[7];  // enum orion_memory_kind
  uint64_t pinned_bytes;
  uint64_t spent_ns;      // GPU time charged, those of ended workers included
  uint64_t throttled_ns;  // time in which work of a worker waited for its turn
  uint64_t works;
  uint64_t turns;      // grants given
  uint64_t since_ns;   // CLOCK_MONOTONIC at which the slice was made
  int64_t credit_ns;   // of GPU time, now
  double achieved_1s;  // share of the GPU over the last second, 0 to 1
  double achieved_10s;
  uint64_t out_bytes;                        // of charged_bytes, what lies in host memory alone
  uint64_t moved_out_bytes, moved_in_bytes;  // since the slice was made, by workers that have not ended
  uint64_t moving_out_ns, moving_in_ns;
  uint32_t seats;
} orion_slice_usage;

// NULL without memory or a thread.
orion_arbiter* orion_arbiter_new(const orion_arbiter_options* options);
void orion_arbiter_free(orion_arbiter* arbiter);

// Before the GPU has slices. 0, -EINVAL or -EBUSY.
int orion_arbiter_set_memory(orion_arbiter* arbiter, int gpu, const orion_gpu_memory* memory);
// A slice of one GPU. Returns its number (> 0), or -ENOSPC when there are too many, -EINVAL for limits out of range.
int orion_arbiter_add_slice(orion_arbiter* arbiter, int gpu, const orion_slice_limits* limits);
// 0, -ENOENT, -EINVAL, or -EBUSY: the quota is below what is charged and `shrink` is ORION_SHRINK_REFUSE; then nothing
// has changed. Takes effect on running programs before it returns.
int orion_arbiter_set_slice(orion_arbiter* arbiter, int slice, const orion_slice_limits* limits, int shrink);
int orion_arbiter_get_slice(orion_arbiter* arbiter, int slice, orion_slice_limits* limits, orion_slice_usage* usage);
// Also takes its seats away. 0 or -ENOENT.
int orion_arbiter_remove_slice(orion_arbiter* arbiter, int slice);

// A seat of a worker that is starting: `seat_fd` is a memfd of orion_arbiter_seat_bytes(), which is sealed against
// resizing and filled here; `doorbell_fd` an eventfd that the worker writes, `wake_fd` one that it waits on. The
// descriptors are duplicated. Returns a handle > 0 or -errno.
int orion_arbiter_add_seat(orion_arbiter* arbiter, int seat_fd, int doorbell_fd, int wake_fd);
// The worker of this seat serves a session: `slice` is what it has of the GPU. 0, -ENOENT or -EEXIST.
int orion_arbiter_assign(orion_arbiter* arbiter, int seat, int slice);
// The worker is gone, however it went: all that it had is given back at once. 0 or -ENOENT.
int orion_arbiter_remove_seat(orion_arbiter* arbiter, int seat);
uint64_t orion_arbiter_seat_bytes(void);

#endif
