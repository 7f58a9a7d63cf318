// Whose turn it is on one GPU. No clock, no threads, no memory of its own: every function takes the time, and the same
// calls give the same turns. The arbiter tells what workers say, and publishes what is decided.
//
// Each slice has an account of GPU time. It earns its ratio of the time that passes; what its workers have measured is
// taken off. Overuse is debt, and a slice in debt gets no turn. Time that is earned is kept while work waits or runs;
// only an idle slice loses what it has above a burst. (Cutting it while work runs loses a part of every long kernel:
// 11 percentage points at 90 % with kernels of 10 ms.) A slice that is active and yet does not use what it earns,
// because its program launches slowly or because some of the GPU's time is lost between turns, stops earning at a bound
// above what it has in flight and what has run without being measured yet: else it would save up seconds, and take the
// whole GPU for as long once it could.
#ifndef ORION_POLICY_H
#define ORION_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_SLICES_MAX 128u
#define POLICY_SEATS_MAX 256u
#define POLICY_NO_LIMIT UINT64_MAX
#define POLICY_NEVER UINT64_MAX

#define POLICY_TURN_NS 12000000ull          // of one turn, where others wait
#define POLICY_STEP_NS 5000000ull           // of the budget, where nobody does: so far may it go into debt
#define POLICY_LEAST_TURN_NS 1000000ull     // of one that ends early for a slice that was idle
#define POLICY_BURST_NS 5000000ll           // what an idle slice may have earned in advance
#define POLICY_OVERRUN_NS 10000000ull       // after this long past its end a turn no longer keeps others from theirs
#define POLICY_SAVED_NS 40000000ll          // times its share: what an active slice may earn beyond burst and in flight
#define POLICY_ACCOUNT_MAX_NS 4000000000ll  // neither credit nor debt of an account matters for longer
#define POLICY_ELASTIC_DEBT_NS 24000000ll   // idle time that was used on top leaves no more debt than this
#define POLICY_BUCKET_NS 100000000ull
#define POLICY_BUCKETS 101u  // 10 s of whole buckets, and the one that is being filled

typedef struct policy_slice {
  bool is_used, is_elastic;
  bool has_woken;  // it had no work, and now waits for its first turn
  uint32_t ratio_percent;
  int64_t credit_ns;
  uint32_t last_seat;  // that had a turn: the next one is another's
  uint64_t turns;
  uint64_t last_turn;   // number of its last grant, to break ties
  uint64_t charged_ns;  // measured, all workers together
  uint64_t buckets_ns[POLICY_BUCKETS];
  uint64_t bucket;  // number of the bucket that is being filled
} policy_slice;

/// What a worker says of itself; nothing of it is trusted.
typedef struct policy_report {
  bool wants;             // work waits for a turn
  uint64_t returned;      // number of the last grant of which nothing is in flight
  uint64_t ending;        // number of a grant whose last work is about to end
  uint64_t spent_ns;      // measured, in all
  uint64_t in_flight_ns;  // estimate of what runs or is queued
} policy_report;

typedef struct policy_seat {
  bool is_used, wants, holds, is_ending, is_held_back;
  uint32_t slice;
  uint64_t spent_ns, in_flight_ns;
  uint64_t measured_at_ns;  // when spent_ns last grew, or the turn began
  // what the worker is told
  uint64_t grant, budget_ns, recalled;
  // of the turn that it has
  uint64_t granted_at_ns, recalled_at_ns, spent_before_ns;
  uint64_t contended_ns;  // of it, while others waited
} policy_seat;

typedef struct policy {
  uint64_t turn_ns;
  uint64_t now_ns;  // of the last call
  uint64_t last_grant;
  uint32_t slice_count, seat_count;  // one past the highest in use
  policy_slice slices[POLICY_SLICES_MAX];
  policy_seat seats[POLICY_SEATS_MAX];
} policy;

/// `turn_ns` 0: POLICY_TURN_NS.
void policy_init(policy* p, uint64_t turn_ns, uint64_t now_ns);
/// Index of the new slice, or -1. `ratio_percent` is 1 to 100.
int policy_add_slice(policy* p, uint32_t ratio_percent, bool is_elastic, uint64_t now_ns);
/// Effective at once: what was earned in advance at the old ratio counts no more than the new one would have.
void policy_set_slice(policy* p, uint32_t slice, uint32_t ratio_percent, bool is_elastic, uint64_t now_ns);
void policy_remove_slice(policy* p, uint32_t slice, uint64_t now_ns);
/// `spent_ns`: what the worker has measured before, which is not charged.
int policy_add_seat(policy* p, uint32_t slice, uint64_t spent_ns, uint64_t now_ns);
void policy_remove_seat(policy* p, uint32_t seat, uint64_t now_ns);
/// A seat that is held back gets no turn (its memory is elsewhere).
void policy_hold_back(policy* p, uint32_t seat, bool is_held_back, uint64_t now_ns);
void policy_tell(policy* p, uint32_t seat, const policy_report* report, uint64_t now_ns);
/// Decides; the seats' grant, budget_ns and recalled are to be published. When to decide again without news, or never.
uint64_t policy_decide(policy* p, uint64_t now_ns);
/// Share of the GPU that the slice has had over the last `window_ns` (up to 10 s), 0 to 1.
double policy_achieved(const policy* p, uint32_t slice, uint64_t window_ns, uint64_t now_ns);

#endif
