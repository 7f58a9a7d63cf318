#include "policy.h"

#include <string.h>

// ------------------------------------------------------------------------------------------------ accounts
static bool slice_is_active(const policy* p, uint32_t slice) {
  for (uint32_t i = 0; i < p->seat_count; i++) {
    const policy_seat* s = &p->seats[i];
    if (s->is_used && s->slice == slice && ((s->wants && !s->is_held_back) || s->holds)) return true;
  }
  return false;
}

static int64_t bounded(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

/// Who shares the time now: sums of the ratios of slices that have work.
typedef struct shares {
  uint64_t all, elastic;
} shares;

static shares shares_of(const policy* p) {
  shares sums = {0};
  for (uint32_t i = 0; i < p->slice_count; i++) {
    const policy_slice* c = &p->slices[i];
    if (!c->is_used || !slice_is_active(p, i)) continue;
    sums.all += c->ratio_percent;
    if (c->is_elastic) sums.elastic += c->ratio_percent;
  }
  return sums;
}

/// What a slice earns in some time: its ratio; less, in proportion, where the ratios of those with work are more than
/// the GPU; more, in proportion, where it is elastic and they are less.
static uint64_t earned_ns(const policy_slice* c, bool is_active, shares sums, uint64_t passed_ns) {
  if (!is_active) return passed_ns * c->ratio_percent / 100;
  if (sums.all > 100) return passed_ns * c->ratio_percent / sums.all;
  const uint64_t own_ns = passed_ns * c->ratio_percent / 100;
  if (!c->is_elastic || !sums.elastic) return own_ns;
  return own_ns + passed_ns * (100 - sums.all) / 100 * c->ratio_percent / sums.elastic;
}

/// Of the slice, what its workers estimate to run or to be queued.
static int64_t in_flight(const policy* p, uint32_t slice) {
  int64_t ns = 0;
  for (uint32_t i = 0; i < p->seat_count; i++) {
    const policy_seat* s = &p->seats[i];
    if (s->is_used && s->slice == slice) ns += (int64_t)s->in_flight_ns;
  }
  return ns;
}

/// Time for which work of the slice may have run that has not been measured yet: a worker tells little while a long
/// kernel runs.
static int64_t unmeasured(const policy* p, uint32_t slice) {
  uint64_t most_ns = 0;
  for (uint32_t i = 0; i < p->seat_count; i++) {
    const policy_seat* s = &p->seats[i];
    if (!s->is_used || s->slice != slice || !s->holds) continue;
    const uint64_t ns = p->now_ns - s->measured_at_ns;
    if (ns > most_ns) most_ns = ns;
  }
  return most_ns < (uint64_t)POLICY_ACCOUNT_MAX_NS ? (int64_t)most_ns : POLICY_ACCOUNT_MAX_NS;
}

/// The account after some time; `rate`: what an active slice earns in a million. What an idle slice has above the burst
/// it loses; an active one keeps what it has and stops earning at its bound.
static int64_t grown(const policy_slice* c, bool is_active, uint64_t rate, int64_t earned, int64_t open_ns) {
  if (!is_active) return bounded(c->credit_ns + earned, INT64_MIN, POLICY_BURST_NS);
  const int64_t most_ns = POLICY_BURST_NS + POLICY_SAVED_NS / 1000000 * (int64_t)rate + open_ns;
  if (c->credit_ns >= most_ns) return c->credit_ns;
  return bounded(c->credit_ns + earned, INT64_MIN, most_ns);
}

static bool others_want(const policy* p, uint32_t seat);
static uint32_t next_seat(const policy* p, uint32_t slice);
static bool blocks(const policy* p, const policy_seat* s);

/// All that has come about since the last call, by time alone.
static void pass_time(policy* p, uint64_t now_ns) {
  if (now_ns <= p->now_ns) return;
  uint64_t passed_ns = now_ns - p->now_ns;
  p->now_ns = now_ns;
  for (uint32_t i = 0; i < p->seat_count; i++) {
    policy_seat* s = &p->seats[i];
    // One that holds on too long, or is about to end, keeps the GPU from nobody.
    if (blocks(p, s) && others_want(p, i)) s->contended_ns += passed_ns;
  }
  if (passed_ns > (uint64_t)POLICY_ACCOUNT_MAX_NS) passed_ns = (uint64_t)POLICY_ACCOUNT_MAX_NS;
  const shares sums = shares_of(p);
  for (uint32_t i = 0; i < p->slice_count; i++) {
    policy_slice* c = &p->slices[i];
    if (!c->is_used) continue;
    const bool is_active = slice_is_active(p, i);
    const int64_t open_ns = in_flight(p, i) + unmeasured(p, i);
    c->credit_ns = grown(c, is_active, earned_ns(c, true, sums, 1000000),
                         (int64_t)earned_ns(c, is_active, sums, passed_ns), open_ns);
  }
}

static uint64_t* bucket_at(policy_slice* c, uint64_t now_ns) {
  const uint64_t number = now_ns / POLICY_BUCKET_NS;
  if (number > c->bucket) {
    const uint64_t missed = number - c->bucket < POLICY_BUCKETS ? number - c->bucket : POLICY_BUCKETS;
    for (uint64_t i = 1; i <= missed; i++) c->buckets_ns[(c->bucket + i) % POLICY_BUCKETS] = 0;
    c->bucket = number;
  }
  return &c->buckets_ns[number % POLICY_BUCKETS];
}

static void charge(policy_slice* c, uint64_t measured_ns, uint64_t extra_ns, uint64_t now_ns) {
  const uint64_t most = (uint64_t)POLICY_ACCOUNT_MAX_NS;
  const uint64_t ns = (measured_ns < most ? measured_ns : most) + (extra_ns < most ? extra_ns : most);
  const int64_t least_ns = c->is_elastic ? -POLICY_ELASTIC_DEBT_NS : -POLICY_ACCOUNT_MAX_NS;
  c->credit_ns = bounded(c->credit_ns - (int64_t)ns, least_ns, POLICY_ACCOUNT_MAX_NS);
  c->charged_ns += measured_ns;
  *bucket_at(c, now_ns) += measured_ns;
}

/// Credit that is left when all that is in flight will have been charged.
static int64_t available(const policy* p, uint32_t slice) { return p->slices[slice].credit_ns - in_flight(p, slice); }

// ------------------------------------------------------------------------------------------------ who may come
static bool waits(const policy_seat* s) { return s->is_used && s->wants && !s->holds && !s->is_held_back; }

/// Whether the slice has a seat that waits and may have a turn now, by its account.
static bool may_come(const policy* p, uint32_t slice) { return p->slices[slice].is_elastic || available(p, slice) > 0; }

/// a/b > c/d without division: credits of seconds times microseconds of a second fit.
static bool is_better(int64_t credit_ns, uint64_t rate, int64_t than_ns, uint64_t than_rate) {
  return credit_ns * (int64_t)than_rate > than_ns * (int64_t)rate;
}

/// Whether an elastic slice without credit comes after another, which would have the next turn too.
static bool is_behind(const policy* p, uint32_t slice, uint32_t other) {
  const int64_t ns = available(p, slice), other_ns = available(p, other);
  if (ns > 0) return false;
  if (other_ns > 0) return true;
  const shares sums = shares_of(p);
  return is_better(other_ns, earned_ns(&p->slices[other], true, sums, 1000000), ns,
                   earned_ns(&p->slices[slice], true, sums, 1000000));
}

/// Whether a seat of another slice, or another of the same, waits and might have its turn.
static bool others_want(const policy* p, uint32_t seat) {
  const uint32_t slice = p->seats[seat].slice;
  for (uint32_t i = 0; i < p->seat_count; i++) {
    const policy_seat* s = &p->seats[i];
    if (i != seat && waits(s) && may_come(p, s->slice) && (s->slice == slice || !is_behind(p, s->slice, slice)))
      return true;
  }
  return false;
}

/// Whether another slice that was idle waits with credit: it goes first, also in the middle of a turn. What that costs
/// is its own: its account is charged for the time for which its turn keeps the GPU.
static bool another_has_woken(const policy* p, uint32_t slice) {
  for (uint32_t i = 0; i < p->slice_count; i++) {
    const policy_slice* c = &p->slices[i];
    if (i != slice && c->is_used && c->has_woken && available(p, i) > 0 && next_seat(p, i) != POLICY_SEATS_MAX)
      return true;
  }
  return false;
}

/// Whether other slices have work at all, with or without credit.
static bool is_alone(const policy* p, uint32_t slice) {
  for (uint32_t i = 0; i < p->seat_count; i++) {
    const policy_seat* s = &p->seats[i];
    if (s->is_used && s->slice != slice && (s->wants || s->holds)) return false;
  }
  return true;
}

static uint32_t next_seat(const policy* p, uint32_t slice) {
  const uint32_t last = p->slices[slice].last_seat;
  for (uint32_t k = 1; k <= p->seat_count; k++) {
    const uint32_t i = (last + k) % p->seat_count;
    if (p->seats[i].slice == slice && waits(&p->seats[i])) return i;
  }
  return POLICY_SEATS_MAX;
}

/// The slice whose turn it is: one that was idle and has credit; else the highest credit for what it earns among those
/// that have credit; where none has, among the elastic ones. POLICY_SLICES_MAX: none.
static uint32_t next_slice(const policy* p) {
  uint32_t best = POLICY_SLICES_MAX;
  bool best_earned = false, best_first = false;
  const shares sums = shares_of(p);
  uint64_t best_rate = 0;
  int64_t best_ns = 0;
  for (uint32_t i = 0; i < p->slice_count; i++) {
    const policy_slice* c = &p->slices[i];
    if (!c->is_used || next_seat(p, i) == POLICY_SEATS_MAX) continue;
    const int64_t ns = available(p, i);
    const bool earned = ns > 0, first = earned && c->has_woken;
    if (!earned && !c->is_elastic) continue;
    const uint64_t rate = earned_ns(c, true, sums, 1000000);
    if (best != POLICY_SLICES_MAX) {
      const policy_slice* b = &p->slices[best];
      if (best_first != first) {
        if (best_first) continue;
      } else if (best_earned != earned) {
        if (best_earned) continue;
      } else if (is_better(best_ns, best_rate, ns, rate)) {
        continue;
      } else if (!is_better(ns, rate, best_ns, best_rate) && b->last_turn <= c->last_turn) {
        continue;
      }
    }
    best = i;
    best_earned = earned;
    best_first = first;
    best_rate = rate;
    best_ns = ns;
  }
  return best;
}

// ------------------------------------------------------------------------------------------------ turns
static bool is_unlimited(const policy* p, uint32_t slice) {
  const policy_slice* c = &p->slices[slice];
  return (c->ratio_percent == 100 || c->is_elastic) && is_alone(p, slice);
}

static uint64_t step_ns(const policy* p) { return p->turn_ns < POLICY_STEP_NS ? p->turn_ns : POLICY_STEP_NS; }

static void give(policy* p, uint32_t seat) {
  policy_seat* s = &p->seats[seat];
  policy_slice* c = &p->slices[s->slice];
  const uint64_t budget_ns = is_alone(p, s->slice) ? step_ns(p) : p->turn_ns;
  s->budget_ns = is_unlimited(p, s->slice) ? POLICY_NO_LIMIT : budget_ns;
  s->grant = ++p->last_grant;
  s->holds = true;
  s->is_ending = false;
  s->granted_at_ns = s->measured_at_ns = p->now_ns;
  s->recalled_at_ns = 0;
  s->spent_before_ns = s->spent_ns;
  s->contended_ns = 0;
  c->has_woken = false;
  c->last_seat = seat;
  c->last_turn = s->grant;
  c->turns++;
}

static void end_turn(policy* p, policy_seat* s) {
  const uint64_t used_ns = s->spent_ns - s->spent_before_ns;
  // While others waited the GPU was kept for it alone.
  if (s->contended_ns > used_ns) charge(&p->slices[s->slice], 0, s->contended_ns - used_ns, p->now_ns);
  s->holds = false;
  s->is_ending = false;
}

static void recall(policy* p, policy_seat* s) {
  if (s->recalled == s->grant) return;
  s->recalled = s->grant;
  s->recalled_at_ns = p->now_ns;
}

static bool is_recalled(const policy_seat* s) { return s->recalled == s->grant; }

/// Extends or ends the turn of a seat that has one. When to look again.
static uint64_t keep_or_end(policy* p, uint32_t seat) {
  policy_seat* s = &p->seats[seat];
  if (s->is_ending || is_recalled(s)) {
    const uint64_t over_ns = s->recalled_at_ns + POLICY_OVERRUN_NS;
    return is_recalled(s) && over_ns > p->now_ns ? over_ns : POLICY_NEVER;
  }
  const bool contended = others_want(p, seat);
  if (s->is_held_back) recall(p, s);
  if (s->budget_ns == POLICY_NO_LIMIT) {
    if (contended || !is_unlimited(p, s->slice)) recall(p, s);
    // A worker without a limit does not ring: what it has used is looked at as often as it is averaged.
    return p->now_ns + (is_recalled(s) ? POLICY_OVERRUN_NS : POLICY_BUCKET_NS);
  }
  if (!contended) {
    if (is_unlimited(p, s->slice)) {
      s->budget_ns = POLICY_NO_LIMIT;
      return p->now_ns + POLICY_BUCKET_NS;
    }
    const uint64_t used_ns = s->spent_ns - s->spent_before_ns + s->in_flight_ns;
    if (available(p, s->slice) > 0 && used_ns + step_ns(p) / 2 >= s->budget_ns) s->budget_ns += step_ns(p);
    return POLICY_NEVER;  // the worker rings before its budget is used up
  }
  if (another_has_woken(p, s->slice)) {
    const uint64_t least_ns = s->granted_at_ns + POLICY_LEAST_TURN_NS;
    if (least_ns > p->now_ns) return least_ns;
    recall(p, s);
    return p->now_ns + POLICY_OVERRUN_NS;
  }
  const uint64_t until_ns = s->granted_at_ns + p->turn_ns;
  if (s->contended_ns < p->turn_ns && until_ns + POLICY_OVERRUN_NS > p->now_ns) {
    const uint64_t left_ns = p->turn_ns - s->contended_ns;
    return p->now_ns + left_ns;
  }
  recall(p, s);
  return p->now_ns + POLICY_OVERRUN_NS;
}

/// Whether the seat's turn keeps others from theirs.
static bool blocks(const policy* p, const policy_seat* s) {
  if (!s->is_used || !s->holds || s->is_ending) return false;
  return !is_recalled(s) || p->now_ns < s->recalled_at_ns + POLICY_OVERRUN_NS;
}

/// When the first of the slices that wait without credit will have some.
static uint64_t next_credit_at(const policy* p) {
  uint64_t at_ns = POLICY_NEVER;
  const shares sums = shares_of(p);
  for (uint32_t i = 0; i < p->slice_count; i++) {
    const policy_slice* c = &p->slices[i];
    if (!c->is_used || next_seat(p, i) == POLICY_SEATS_MAX) continue;
    const int64_t ns = available(p, i);
    if (ns > 0) continue;
    const uint64_t second_ns = 1000000000ull, rate = earned_ns(c, true, sums, second_ns);
    const uint64_t needed_ns = ((uint64_t)(-ns) + 1) * (second_ns / 1000) / (rate / 1000 ? rate / 1000 : 1) + 1;
    if (p->now_ns + needed_ns < at_ns) at_ns = p->now_ns + needed_ns;
  }
  return at_ns;
}

uint64_t policy_decide(policy* p, uint64_t now_ns) {
  pass_time(p, now_ns);
  uint64_t again_ns = POLICY_NEVER;
  bool is_taken = false;
  for (uint32_t i = 0; i < p->seat_count; i++) {
    if (!p->seats[i].is_used || !p->seats[i].holds) continue;
    const uint64_t at_ns = keep_or_end(p, i);
    if (at_ns < again_ns) again_ns = at_ns;
    is_taken |= blocks(p, &p->seats[i]);
  }
  if (!is_taken) {
    const uint32_t slice = next_slice(p);
    if (slice != POLICY_SLICES_MAX) {
      const uint32_t seat = next_seat(p, slice);
      give(p, seat);
      const uint64_t at_ns = keep_or_end(p, seat);
      if (at_ns < again_ns) again_ns = at_ns;
    }
  }
  const uint64_t credit_at_ns = next_credit_at(p);
  return credit_at_ns < again_ns ? credit_at_ns : again_ns;
}

// ------------------------------------------------------------------------------------------------ what is told
void policy_tell(policy* p, uint32_t seat, const policy_report* r, uint64_t now_ns) {
  pass_time(p, now_ns);
  policy_seat* s = &p->seats[seat];
  if (seat >= p->seat_count || !s->is_used) return;
  // A counter that goes back, or an absurd estimate, hurts nobody but the slice that tells it.
  const uint64_t spent_ns = r->spent_ns > s->spent_ns ? r->spent_ns - s->spent_ns : 0;
  s->spent_ns += spent_ns;
  const uint64_t most_ns = (uint64_t)POLICY_ACCOUNT_MAX_NS;
  if (spent_ns) s->measured_at_ns = p->now_ns;
  s->in_flight_ns = r->in_flight_ns < most_ns ? r->in_flight_ns : most_ns;
  if (spent_ns) charge(&p->slices[s->slice], spent_ns, 0, now_ns);
  if (r->wants && !s->wants && !slice_is_active(p, s->slice)) p->slices[s->slice].has_woken = true;
  s->wants = r->wants;
  if (!s->holds) return;
  s->is_ending |= r->ending == s->grant;
  if (r->returned == s->grant) end_turn(p, s);
}

double policy_achieved(const policy* p, uint32_t slice, uint64_t window_ns, uint64_t now_ns) {
  policy_slice c = p->slices[slice];
  (void)bucket_at(&c, now_ns);
  uint64_t whole = window_ns / POLICY_BUCKET_NS, sum_ns = 0;
  if (!whole) whole = 1;
  if (whole > POLICY_BUCKETS - 1) whole = POLICY_BUCKETS - 1;
  // Whole buckets alone: the one that is being filled would make a steady share look as if it trembled.
  for (uint64_t i = 1; i <= whole && i <= c.bucket; i++) sum_ns += c.buckets_ns[(c.bucket - i) % POLICY_BUCKETS];
  const double share = (double)sum_ns / (double)(whole * POLICY_BUCKET_NS);
  return share < 1 ? share : 1;
}

// ------------------------------------------------------------------------------------------------ slices and seats
void policy_init(policy* p, uint64_t turn_ns, uint64_t now_ns) {
  memset(p, 0, sizeof *p);
  p->turn_ns = turn_ns ? turn_ns : POLICY_TURN_NS;
  p->now_ns = now_ns;
}

int policy_add_slice(policy* p, uint32_t ratio_percent, bool is_elastic, uint64_t now_ns) {
  pass_time(p, now_ns);
  uint32_t i = 0;
  while (i < p->slice_count && p->slices[i].is_used) i++;
  if (i == POLICY_SLICES_MAX) return -1;
  if (i == p->slice_count) p->slice_count++;
  p->slices[i] = (policy_slice){
      .is_used = true, .is_elastic = is_elastic, .ratio_percent = ratio_percent, .bucket = now_ns / POLICY_BUCKET_NS};
  return (int)i;
}

void policy_set_slice(policy* p, uint32_t slice, uint32_t ratio_percent, bool is_elastic, uint64_t now_ns) {
  pass_time(p, now_ns);
  policy_slice* c = &p->slices[slice];
  // An account in advance, or in debt, was made at the old ratio: neither shall delay the new one.
  const int64_t limit_ns = (int64_t)p->turn_ns;
  c->credit_ns = bounded(c->credit_ns, -limit_ns * 2, limit_ns);
  c->ratio_percent = ratio_percent;
  c->is_elastic = is_elastic;
}

void policy_remove_slice(policy* p, uint32_t slice, uint64_t now_ns) {
  for (uint32_t i = 0; i < p->seat_count; i++) {
    if (p->seats[i].is_used && p->seats[i].slice == slice) policy_remove_seat(p, i, now_ns);
  }
  p->slices[slice] = (policy_slice){0};
  while (p->slice_count && !p->slices[p->slice_count - 1].is_used) p->slice_count--;
}

int policy_add_seat(policy* p, uint32_t slice, uint64_t spent_ns, uint64_t now_ns) {
  pass_time(p, now_ns);
  uint32_t i = 0;
  while (i < p->seat_count && p->seats[i].is_used) i++;
  if (i == POLICY_SEATS_MAX) return -1;
  if (i == p->seat_count) p->seat_count++;
  p->seats[i] = (policy_seat){.is_used = true, .slice = slice, .spent_ns = spent_ns};
  return (int)i;
}

void policy_remove_seat(policy* p, uint32_t seat, uint64_t now_ns) {
  pass_time(p, now_ns);
  policy_seat* s = &p->seats[seat];
  // What was in flight is lost with its worker, and has been on the GPU.
  if (s->is_used && s->in_flight_ns) charge(&p->slices[s->slice], s->in_flight_ns, 0, now_ns);
  *s = (policy_seat){0};
  while (p->seat_count && !p->seats[p->seat_count - 1].is_used) p->seat_count--;
}

void policy_hold_back(policy* p, uint32_t seat, bool is_held_back, uint64_t now_ns) {
  pass_time(p, now_ns);
  p->seats[seat].is_held_back = is_held_back;
}
