#include "residency.h"

static bool is_here(const residency_seat* s) {
  return s->place == PLACE_HERE || s->place == PLACE_LEAVING || s->place == PLACE_RETURNING;
}

/// What the seat has of the GPU, or is about to have.
static uint64_t taken(const residency_seat* s) {
  if (s->place == PLACE_NONE) return 0;
  return is_here(s) ? s->granted_bytes : s->fixed_bytes;
}

static uint64_t movable(const residency_seat* s) {
  return s->granted_bytes > s->fixed_bytes ? s->granted_bytes - s->fixed_bytes : 0;
}

uint64_t residency_promised(const residency_gpu* gpu) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < gpu->count; i++) sum += taken(&gpu->seats[i]);
  return sum;
}

static uint64_t room(const residency_gpu* gpu) {
  const uint64_t promised = residency_promised(gpu);
  return promised < gpu->capacity_bytes ? gpu->capacity_bytes - promised : 0;
}

/// What a seat that waits needs of the GPU on top of what it has.
static uint64_t need(const residency_seat* s) { return s->asked_bytes + (s->place == PLACE_GONE ? movable(s) : 0); }

static bool waits(const residency_seat* s) {
  return (s->place == PLACE_GONE && (s->wants || s->asked_bytes)) || (s->place == PLACE_HERE && s->asked_bytes);
}

/// Notes since when each seat waits; the one that has waited longest, or `count`.
static uint32_t longest_waiting(residency_gpu* gpu, uint64_t now_ns) {
  uint32_t found = gpu->count;
  for (uint32_t i = 0; i < gpu->count; i++) {
    residency_seat* s = &gpu->seats[i];
    if (!waits(s)) {
      s->waits_ns = 0;
      continue;
    }
    if (!s->waits_ns) s->waits_ns = now_ns ? now_ns : 1;
    if (found == gpu->count || s->waits_ns < gpu->seats[found].waits_ns) found = i;
  }
  return found;
}

static uint64_t least_stay_ns(const residency_seat* s) {
  const uint64_t worth_ns = s->move_ns < UINT64_MAX / RESIDENCY_MOVES_WORTH ? s->move_ns * RESIDENCY_MOVES_WORTH : 0;
  return worth_ns > RESIDENCY_LEAST_NS ? worth_ns : RESIDENCY_LEAST_NS;
}

static bool has_stayed(const residency_seat* s, uint64_t now_ns) {
  return now_ns >= s->since_ns && now_ns - s->since_ns >= least_stay_ns(s);
}

/// The best seat to leave for `beneficiary`: one that is idle, longest unused first; else one that has been here long
/// enough, longest first. `count`: none now; `*again_ns` is when one will have been here long enough.
static uint32_t victim(const residency_gpu* gpu, uint32_t beneficiary, uint64_t now_ns, uint64_t* again_ns) {
  uint32_t idle = gpu->count, busy = gpu->count;
  for (uint32_t i = 0; i < gpu->count; i++) {
    const residency_seat* s = &gpu->seats[i];
    if (i == beneficiary || s->place != PLACE_HERE || !movable(s)) continue;
    const bool stayed = has_stayed(s, now_ns);
    if (s->stays && !stayed) continue;
    if (!s->wants && !s->holds && !s->asked_bytes) {
      if (idle == gpu->count || s->used_ns < gpu->seats[idle].used_ns) idle = i;
    } else if (!stayed) {
      const uint64_t at_ns = s->since_ns + least_stay_ns(s);
      if (at_ns < *again_ns) *again_ns = at_ns;
    } else if (!s->holds) {  // the one with a turn is given no other (residency_may_run), and goes when it is over
      if (busy == gpu->count || s->since_ns < gpu->seats[busy].since_ns) busy = i;
    }
  }
  return idle != gpu->count ? idle : busy;
}

/// Whether the seat's need could ever be met: everything else that can leave has left.
static bool fits(const residency_gpu* gpu, uint32_t seat) {
  uint64_t fixed = 0;
  for (uint32_t i = 0; i < gpu->count; i++) {
    if (i != seat && gpu->seats[i].place != PLACE_NONE) fixed += gpu->seats[i].fixed_bytes;
  }
  const residency_seat* s = &gpu->seats[seat];
  return fixed <= gpu->capacity_bytes && s->granted_bytes + s->asked_bytes <= gpu->capacity_bytes - fixed;
}

static uint64_t on_the_way(const residency_gpu* gpu) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < gpu->count; i++) {
    if (gpu->seats[i].place == PLACE_LEAVING) sum += movable(&gpu->seats[i]);
  }
  return sum;
}

residency_step residency_next(residency_gpu* gpu, uint64_t now_ns) {
  residency_step step = {.action = RESIDENCY_NOTHING, .again_ns = UINT64_MAX};
  if (!gpu->capacity_bytes) return step;
  // In the order in which they have come: a large one is not overtaken for ever by small ones.
  const uint32_t seat = longest_waiting(gpu, now_ns);
  if (seat == gpu->count) return step;
  const residency_seat* s = &gpu->seats[seat];
  step.seat = seat;
  const uint64_t needed = need(s), free_bytes = room(gpu);
  if (needed <= free_bytes) {
    step.action = s->place == PLACE_GONE ? RESIDENCY_RETURN : RESIDENCY_ALLOW;
  } else if (s->asked_bytes && !fits(gpu, seat)) {
    step.action = RESIDENCY_REFUSE;
  } else if (needed - free_bytes > on_the_way(gpu)) {
    const uint32_t leaves = victim(gpu, seat, now_ns, &step.again_ns);
    if (leaves != gpu->count) step = (residency_step){RESIDENCY_LEAVE, leaves, 0};
  }
  return step;
}

bool residency_may_run(const residency_gpu* gpu, uint32_t seat, uint64_t now_ns) {
  const residency_seat* s = &gpu->seats[seat];
  if (!gpu->capacity_bytes) return true;
  if (s->place != PLACE_HERE) return false;
  if (!has_stayed(s, now_ns)) return true;
  // Its time here is over: when somebody waits whom its memory would help, it runs no more.
  for (uint32_t i = 0; i < gpu->count; i++) {
    if (i != seat && gpu->seats[i].waits_ns && need(&gpu->seats[i]) > room(gpu) + on_the_way(gpu)) {
      uint64_t again_ns = UINT64_MAX;
      const uint32_t leaves = victim(gpu, i, now_ns, &again_ns);
      return leaves != gpu->count && leaves != seat;
    }
  }
  return true;
}
