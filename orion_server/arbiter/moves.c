// GPUs that have promised more memory than they have: asks residency whose memory shall be where, tells the workers,
// and learns from them how far they are.
#include "internal.h"

#define LESS_ROOM_BYTES (64ull << 20)  // of the capacity, less is believed in when the driver had no room for a return

static void set_place(residency_seat* r, enum residency_place where, uint64_t now_ns) {
  r->place = where;
  r->since_ns = now_ns;
}

static void publish(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  seat* s = &a->seats[index];
  s->places[gpu].residency++;
  s->places[gpu].residency_at_ns = now_ns;
  put(&seat_at(s, gpu)->backing_granted_bytes, a->gpus[gpu].backing_bytes);
  put(&seat_at(s, gpu)->residency, s->places[gpu].residency);
  s->has_changed = true;
}

static void learn_leaving(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  const orion_seat_device* d = seat_at(&a->seats[index], gpu);
  residency_seat* r = &a->gpus[gpu].memory.seats[index];
  if (get(&d->residency_done) < a->seats[index].places[gpu].residency) return;
  // Nothing is charged while memory is away, so the grant can be what was charged.
  (void)grants_reclaim(a, index, gpu);
  r->granted_bytes = grants_held(a, index, gpu);
  const uint64_t out = get(&d->out_bytes);
  r->fixed_bytes = out < r->granted_bytes ? r->granted_bytes - out : 0;
  set_place(r, PLACE_GONE, now_ns);
  if (out) return;
  r->stays = true;  // nothing of it could leave
  publish(a, index, gpu, now_ns);
  set_place(r, PLACE_RETURNING, now_ns);
}

static void learn_returning(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  const orion_seat_device* d = seat_at(&a->seats[index], gpu);
  const uint64_t wished = a->seats[index].places[gpu].residency;
  residency_gpu* m = &a->gpus[gpu].memory;
  residency_seat* r = &m->seats[index];
  if (get(&d->residency_done) >= wished) {
    if (now_ns > r->since_ns) r->move_ns = now_ns - r->since_ns;
    set_place(r, PLACE_HERE, now_ns);
  } else if (get(&d->residency_failed) >= wished) {
    if (m->capacity_bytes > a->gpus[gpu].capacity_bytes / 2 + LESS_ROOM_BYTES) m->capacity_bytes -= LESS_ROOM_BYTES;
    set_place(r, PLACE_GONE, now_ns);
  }
}

static void learn(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  const seat* s = &a->seats[index];
  const orion_seat_device* d = seat_at(s, gpu);
  residency_seat* r = &a->gpus[gpu].memory.seats[index];
  if (r->place == PLACE_NONE) set_place(r, PLACE_HERE, now_ns);
  if (r->place == PLACE_LEAVING) learn_leaving(a, index, gpu, now_ns);
  if (r->place == PLACE_RETURNING) learn_returning(a, index, gpu, now_ns);
  r->granted_bytes = grants_held(a, index, gpu);
  r->asked_bytes = grants_wanted(a, index, gpu);
  r->wants = get(&d->wants) || get(&d->wants_residency);
  const int turn = s->places[gpu].policy_index;
  r->holds = turn != NO_INDEX && a->gpus[gpu].turns.seats[turn].holds;
  if (r->holds) r->used_ns = now_ns;
}

/// Of what a seat asks for and may have, as much more as is not promised to others, up to a step.
static uint64_t with_step(const orion_arbiter* a, uint32_t index, int gpu, uint64_t wanted) {
  const residency_gpu* m = &a->gpus[gpu].memory;
  const int slice = a->seats[index].places[gpu].slice;
  const uint64_t quota = a->slices[slice].limits.quota_bytes ? a->slices[slice].limits.quota_bytes : UINT64_MAX;
  const uint64_t granted = m->seats[index].granted_bytes, promised = residency_promised(m);
  uint64_t most = m->capacity_bytes > promised ? m->capacity_bytes - promised : 0;
  const uint64_t below_quota = quota > granted ? quota - granted : 0;
  if (most > below_quota) most = below_quota;
  const uint64_t stepped = (wanted + GRANT_STEP_BYTES - 1) / GRANT_STEP_BYTES * GRANT_STEP_BYTES;
  return stepped < most ? stepped : wanted;
}

static void take_step(orion_arbiter* a, int gpu, const residency_step* step, uint64_t now_ns) {
  residency_seat* r = &a->gpus[gpu].memory.seats[step->seat];
  switch (step->action) {
    case RESIDENCY_RETURN:
      publish(a, step->seat, gpu, now_ns);
      set_place(r, PLACE_RETURNING, now_ns);
      break;
    case RESIDENCY_LEAVE:
      publish(a, step->seat, gpu, now_ns);
      set_place(r, PLACE_LEAVING, now_ns);
      break;
    case RESIDENCY_ALLOW:
      grants_allow(a, step->seat, gpu, with_step(a, step->seat, gpu, r->asked_bytes));
      r->granted_bytes = grants_held(a, step->seat, gpu);
      r->asked_bytes = 0;
      break;
    case RESIDENCY_REFUSE:
      grants_refuse(a, step->seat, gpu);
      r->asked_bytes = 0;
      break;
    case RESIDENCY_NOTHING:
      break;
  }
}

uint64_t moves_look(orion_arbiter* a, int gpu, uint64_t now_ns) {
  residency_gpu* m = &a->gpus[gpu].memory;
  if (!m->capacity_bytes) return POLICY_NEVER;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (a->seats[i].is_used && a->seats[i].places[gpu].slice != NO_INDEX) {
      learn(a, i, gpu, now_ns);
      if (m->count <= i) m->count = i + 1;
    } else {
      m->seats[i] = (residency_seat){0};
    }
  }
  residency_step step;
  // Every step changes a seat, so that no more of them come than there are seats and places.
  for (uint32_t left = 4 * SEATS_MAX; left; left--) {
    step = residency_next(m, now_ns);
    if (step.action == RESIDENCY_NOTHING) break;
    take_step(a, gpu, &step, now_ns);
  }
  for (uint32_t i = 0; i < m->count; i++) {
    const int turn = m->seats[i].place == PLACE_NONE ? NO_INDEX : a->seats[i].places[gpu].policy_index;
    if (turn != NO_INDEX) {
      policy_hold_back(&a->gpus[gpu].turns, (uint32_t)turn, !residency_may_run(m, i, now_ns), now_ns);
    }
  }
  return step.action == RESIDENCY_NOTHING ? step.again_ns : now_ns + 1;
}
