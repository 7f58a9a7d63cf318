// Turns: a worker issues GPU work while it has one, up to its budget, and little ahead of the GPU, so that a turn ends
// when it should. What waits for a turn is parked; all else goes on.
#include "turns.h"

#include "launcher.h"
#include "meter.h"
#include "seat.h"

#define WINDOW_NS 4000000u             // work in flight, while others may want the GPU,
#define AHEAD_NS 1000000u              // and of it, what is left by estimate: so long does a recall wait for it
#define WINDOW_UNLIMITED_NS 20000000u  // while nobody does: how long a recall may take
#define LINGER_NS 200000u              // a program that waits for each kernel keeps its turn for so long
#define LEAD_NS 150000u                // what is left is so little that the next turn may be given
#define PARKED_MOST 1024u
#define COLD_MOST 16u  // operations without an estimate in flight while nobody else wants the GPU

static uint64_t load(const _Atomic uint64_t* word) { return atomic_load_explicit(word, memory_order_acquire); }
static uint64_t peek(const _Atomic uint64_t* word) { return atomic_load_explicit(word, memory_order_relaxed); }
static void store(_Atomic uint64_t* word, uint64_t value) { atomic_store_explicit(word, value, memory_order_release); }

bool turns_init(orion_engine* e) { return !e->seat || meter_init(e); }
void turns_free(orion_engine* e) { meter_free(e); }

// ------------------------------------------------------------------------------------------------ what is granted
static bool holds(const turn* t) { return t->grant != t->returned; }
static bool is_recalled(const turn* t) { return t->recalled == t->grant; }
static bool is_unlimited(const turn* t) { return t->budget_ns == ORION_SEAT_NO_LIMIT; }
static bool is_over(const turn* t) { return is_recalled(t) || (!is_unlimited(t) && t->admitted_ns >= t->budget_ns); }

/// What is left of the work in flight, by its estimates. They are not believed beyond the window: work that takes
/// longer than was thought is not piled up behind.
static uint64_t left_ns(const turn* t) {
  if (!t->in_flight_ns) return 0;
  const uint64_t ran_ns = engine_now_ns() - t->ran_since_ns;
  return ran_ns < t->in_flight_ns ? t->in_flight_ns - ran_ns : 0;
}

/// Whether the GPU has `ahead_ns` of work, or as much as may be in flight.
static bool is_full(const turn* t, uint64_t ahead_ns) {
  if (is_unlimited(t)) return t->in_flight_ns >= WINDOW_UNLIMITED_NS;
  return t->in_flight_ns >= WINDOW_NS || left_ns(t) >= ahead_ns;
}

static bool waits(const orion_engine* e, const turn* t) {
  return e->first_parked && e->any_epoch == e->epoch && t->wait_epoch == e->epoch;
}

static void take_news(turn* t, const orion_seat_device* seat) {
  const uint64_t grant = load(&seat->grant);
  if (grant > t->grant) {
    t->grant = grant;
    t->admitted_ns = t->in_flight_ns;  // what is still running of an earlier one
    t->budget_ns = 0;
    t->idle_since_ns = 0;
  }
  const uint64_t budget_ns = peek(&seat->budget_ns);
  if (budget_ns != t->budget_ns) t->has_asked_for_more = false;
  t->budget_ns = budget_ns;
  t->recalled = peek(&seat->recalled);
}

bool turns_have_news(const orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    const orion_seat_device* seat = seat_device(e, i);
    const turn* t = &e->turns.devices[i];
    if (!seat) return false;
    if ((peek(&seat->is_limited) != 0) != t->is_limited) return true;
    if (peek(&seat->residency) != e->swap.devices[i].wish) return true;
    // Without a limit nothing takes these in: they would keep the loop awake.
    if (t->is_limited && (peek(&seat->grant) != t->grant || peek(&seat->budget_ns) != t->budget_ns ||
                          peek(&seat->recalled) != t->recalled)) {
      return true;
    }
  }
  return false;
}

// ------------------------------------------------------------------------------------------------ admission
/// Copies between host and device have engines of their own.
static bool takes_gpu_time(const orion_op* op) {
  if (op->code != ORION_OP_COPY_3D) return ORION_OP_INFO[op->code].flags & ORION_OPF_GPU_TIME;
  const orion_op_copy_3d* o = (const orion_op_copy_3d*)op;
  return o->src_kind != CU_MEMORYTYPE_HOST && o->dst_kind != CU_MEMORYTYPE_HOST;
}

bool turns_concern(const orion_engine* e, const orion_op* op) {
  const context_state* c = &e->contexts[op->context];
  if (!c->alive || !e->turns.devices[c->device].is_limited || !takes_gpu_time(op)) return false;
  const stream_state* s = &e->streams[stream_index(op)];
  return s->alive && s->context == op->context;  // else it will be refused
}

/// One without an estimate waits for what is in flight. Nothing more is added to that meanwhile, also by operations
/// before it in the list: the next pass looks at those first.
static bool cold_waits(const orion_engine* e, const turn* t) { return t->cold_epoch && e->epoch - t->cold_epoch <= 1; }

bool turns_may_go_on(const orion_engine* e, uint32_t device) {
  const turn* t = &e->turns.devices[device];
  if (!t->is_limited) return true;
  if (!holds(t) || is_over(t)) return false;
  if (is_unlimited(t)) {
    if (t->cold_epoch == e->epoch && t->cold_in_flight > COLD_MOST / 2) return false;
  } else if (t->cold_in_flight || t->cold_epoch == e->epoch) {
    return !t->outstanding;
  }
  // Not for each interval that ends: a pass over all that is parked shall be worth it.
  return is_unlimited(t) ? t->in_flight_ns <= WINDOW_UNLIMITED_NS - WINDOW_UNLIMITED_NS / 4 : !is_full(t, AHEAD_NS / 2);
}

bool turns_admit(orion_engine* e, const orion_op* op) {
  const uint32_t device = e->contexts[op->context].device;
  turn* t = &e->turns.devices[device];
  e->turns.looked_at = NULL;
  if (holds(t) && !is_over(t)) {
    meter_look(e, op);
    const bool cold = e->turns.estimate_ns == METER_UNKNOWN;
    if (is_unlimited(t)) {
      if (!is_full(t, AHEAD_NS) && (!cold || t->cold_in_flight < COLD_MOST)) return true;
    } else if (cold) {
      if (!t->outstanding) return true;
    } else if (!t->cold_in_flight && !cold_waits(e, t) && !is_full(t, AHEAD_NS)) {
      return true;
    }
    if (cold) t->cold_epoch = e->epoch;
  }
  t->wait_epoch = e->epoch;
  park_cause(e, CAUSE_TURN, device, 0, NULL);
  return false;
}

enum step turns_execute(orion_engine* e, const orion_op* op, parked_op* node) {
  const uint32_t device = e->contexts[op->context].device, index = stream_index(op);
  turn* t = &e->turns.devices[device];
  context_state* c = &e->contexts[op->context];
  if (c->sticky || (e->current_context != op->context && e->driver.context_set_current(c->handle))) {
    return execute(e, op, node);
  }
  e->current_context = op->context;
  meter_look(e, op);
  e->turns.looked_at = NULL;
  const uint64_t known_ns = e->turns.estimate_ns;
  const uint64_t estimate_ns = known_ns == METER_UNKNOWN ? 0 : known_ns ? known_ns : 1;
  const bool measured = !is_unlimited(t);
  if (measured && e->launchers) launcher_settle(e, e->streams[index].track);
  meter_before(e, op, measured);
  const uint64_t issued = e->tracks[e->streams[index].track].issued;
  const enum step step = execute(e, op, node);
  const bool was_issued = e->tracks[e->streams[index].track].issued != issued;
  if (was_issued) {
    t->admitted_ns += estimate_ns;
    t->works++;
    t->cold_works += known_ns == METER_UNKNOWN;
    t->outstanding = true;
    meter_after(e, op, estimate_ns, measured);
  } else {
    meter_refused(e, op);
  }
  return step;
}

void turns_interrupt(orion_engine* e, const orion_op* op) { meter_interrupt(e, op); }

bool turns_are_free(const orion_engine* e, uint32_t context) {
  const turn* t = &e->turns.devices[e->contexts[context].device];
  return !t->is_limited || is_unlimited(t);
}

uint32_t turns_parked_most(const orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (waits(e, &e->turns.devices[i])) return PARKED_MOST;
  }
  return PARKED_MAX_COUNT;
}

// ------------------------------------------------------------------------------------------------ giving back
static void give_back(orion_engine* e, turn* t, orion_seat_device* seat, bool wants) {
  t->returned = t->grant;
  t->wants = wants;
  t->idle_since_ns = 0;
  store(&seat->wants, wants);
  store(&seat->returned, t->returned);
  seat_ring(e);
}

static bool has_work_to_come(const orion_engine* e) { return orion_ring_ready(e->main_ring, e->main_position); }

/// The next one is told while there is something left: who finds nothing left by estimate has estimated too little.
static bool is_about_to_end(const turn* t) {
  if (t->cold_in_flight) return false;
  const uint64_t ns = left_ns(t);
  return t->in_flight_ns < LEAD_NS || (ns && ns < LEAD_NS);
}

/// What a turn that is held comes to.
static void look_at_turn(orion_engine* e, uint32_t device, orion_seat_device* seat, uint64_t now_ns) {
  turn* t = &e->turns.devices[device];
  const bool waiting = waits(e, t);
  if (is_over(t)) {
    meter_close_device(e, device);
    if (!t->outstanding) {
      give_back(e, t, seat, waiting || has_work_to_come(e));
    } else if (is_about_to_end(t) && t->ending != t->grant) {
      t->ending = t->grant;
      t->wants = waiting;
      store(&seat->wants, waiting);
      store(&seat->ending, t->ending);
      seat_ring(e);
    }
    return;
  }
  if (is_unlimited(t)) return;  // until somebody else wants the GPU
  if (!t->has_asked_for_more && t->admitted_ns + WINDOW_NS / 2 >= t->budget_ns) {
    t->has_asked_for_more = true;
    seat_ring(e);
  }
  if (t->outstanding || waiting || has_work_to_come(e)) {
    t->idle_since_ns = 0;
  } else if (!t->idle_since_ns) {
    t->idle_since_ns = now_ns;
  } else if (now_ns - t->idle_since_ns >= LINGER_NS) {
    give_back(e, t, seat, false);
  }
}

static void want(orion_engine* e, turn* t, orion_seat_device* seat) {
  if (t->wants) return;
  t->wants = true;
  store(&seat->wants, 1);
  seat_ring(e);
}

static void publish(const turn* t, orion_seat_device* seat) {
  store(&seat->spent_ns, t->spent_ns);
  store(&seat->in_flight_ns, t->in_flight_ns);
  store(&seat->throttled_ns, t->throttled_ns);
  store(&seat->works, t->works);
  store(&seat->cold_works, t->cold_works);
}

static void look_at_limit(orion_engine* e, uint32_t device, orion_seat_device* seat) {
  turn* t = &e->turns.devices[device];
  const bool is_limited = load(&seat->is_limited) != 0;
  if (is_limited == t->is_limited) return;
  t->is_limited = is_limited;
  t->wants = false;
  t->waited_since_ns = 0;
  t->returned = t->grant = load(&seat->grant);
  store(&seat->wants, 0);
  store(&seat->returned, t->returned);
  if (!is_limited) meter_close_device(e, device);  // what is open must not last until there is a limit again
  e->turns.is_on = false;
  for (uint32_t i = 0; i < e->device_count; i++) e->turns.is_on |= e->turns.devices[i].is_limited;
}

bool turns_pass(orion_engine* e) {
  const uint64_t now_ns = engine_now_ns();
  for (uint32_t i = 0; i < e->device_count; i++) {
    orion_seat_device* seat = seat_device(e, i);
    if (seat) look_at_limit(e, i, seat);
  }
  if (!e->turns.is_on) return false;
  const bool ran_dry = !has_work_to_come(e);
  bool moved = meter_pass(e);
  for (uint32_t i = 0; i < e->device_count; i++) {
    orion_seat_device* seat = seat_device(e, i);
    turn* t = &e->turns.devices[i];
    if (!seat || !t->is_limited) continue;
    const uint64_t before = t->grant;
    take_news(t, seat);
    moved |= t->grant != before;
    // Gaps of a program that goes slower than the GPU are not its GPU time. Where work waits, what is in flight must
    // become known: open intervals of several streams may fill the window.
    if (waits(e, t) || (ran_dry && !is_unlimited(t))) meter_close_device(e, i);
    t->outstanding = meter_is_busy(e, i);
    // What waits in a turn of its own waits for the GPU, as it would without turns.
    const bool throttled = waits(e, t) && (!holds(t) || is_over(t));
    if (t->waited_since_ns) t->throttled_ns += now_ns - t->waited_since_ns;
    t->waited_since_ns = throttled ? now_ns : 0;
    publish(t, seat);
    if (holds(t)) look_at_turn(e, i, seat, now_ns);
    if (holds(t)) {
      if (t->wants) store(&seat->wants, 0);
      t->wants = false;
    } else if (waits(e, t)) {
      want(e, t, seat);
    }
  }
  if (ran_dry) meter_close_old(e, now_ns);
  return moved;
}

bool turns_are_close(const orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    const turn* t = &e->turns.devices[i];
    if (t->is_limited && holds(t) &&
        (is_unlimited(t) ? waits(e, t) || is_over(t) : t->outstanding || t->idle_since_ns)) {
      return true;
    }
  }
  return false;
}

void turns_drop_context(orion_engine* e, uint32_t context) { meter_drop_context(e, context); }
