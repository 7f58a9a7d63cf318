#include "meter.h"

#include <stdlib.h>
#include <string.h>

#include "launcher.h"
#include "timeline.h"

#define ESTIMATES 4096u                // a power of two
#define INTERVALS 128u                 // of one context
#define INTERVAL_WORKS 64u             // operations in one
#define INTERVAL_NS 1000000u           // of estimates in one, where they are measured
#define COUNTED_NS 2000000u            // where they are not
#define OPEN_LONG_NS 2000000ull        // a counted interval of a program that goes slowly
#define ORIGIN_LASTS_NS 2000000000ull  // a float's milliseconds are exact to 0.1 us for so long
#define READY_LIMIT_NS 2000000ull      // the driver may need a moment to see what the GPU has passed
#define SAMPLES_FIRST 3u               // launches of a kernel that are timed when nothing else is measured,
#define SAMPLES_EVERY 256u             // and then one in so many
#define SCALE_MOST 8.0                 // by which one measurement corrects estimates
#define WEIGHT 0.3                     // of a new measurement

enum interval_state { INTERVAL_FREE, INTERVAL_OPEN, INTERVAL_CLOSED };
typedef struct interval {
  enum interval_state state;
  bool timed;     // it has events
  bool charged;   // by its estimates, or as measured; else a sample, for its estimate alone
  bool measured;  // charged as measured
  bool is_first;  // a sample of what had no estimate yet: charged as measured too
  bool is_cold;   // it counts in cold_in_flight
  bool renews;    // next_origin has been recorded before it
  uint32_t stream, track;
  uint64_t value;  // of the track, when it is complete
  uint64_t estimate_ns, opened_ns;
  uint64_t passed_ns;  // when it was seen complete
  CUevent start, end;  // made with the slot's first use
  uint32_t count;
  uint32_t keys[INTERVAL_WORKS];
} interval;

typedef struct estimate {
  uint64_t identity;  // 0: unused
  uint32_t count;     // of measurements
  uint32_t issued;
  float ns;
} estimate;

// Of one context: events can be compared with others of the same context only.
typedef struct meter_context {
  interval intervals[INTERVALS];
  uint32_t used;   // slots below have events
  uint32_t taken;  // of those, open or closed
  bool has_origin;
  CUevent origin, next_origin;
  bool renews;            // next_origin has been recorded and is taken with its interval
  uint64_t origin_at_ns;  // the CPU's clock
  timeline busy;          // from the origin on: what has been charged
} meter_context;

struct meter {
  estimate estimates[ESTIMATES];
  meter_context* contexts[ORION_CONTEXTS];
  uint32_t open_of[ORION_STREAMS + ORION_CONTEXTS];  // by stream index: slot + 1 of its open interval, 0: none
};

bool meter_init(orion_engine* e) {
  e->turns.meter = calloc(1, sizeof *e->turns.meter);
  return e->turns.meter != NULL;
}

void meter_free(orion_engine* e) {
  if (!e->turns.meter) return;
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) free(e->turns.meter->contexts[i]);
  free(e->turns.meter);
  e->turns.meter = NULL;
}

// ------------------------------------------------------------------------------------------------ estimates
static uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdull;
  return hash ^ hash >> 32;
}

/// Sizes within a quarter of one another take about as long.
static uint64_t size_class(uint64_t bytes) {
  if (bytes < 4096) return 0;
  const uint32_t top = 63u - (uint32_t)__builtin_clzll(bytes);
  return (uint64_t)top << 2 | (bytes >> (top - 2) & 3);
}

static uint64_t identity_of(const orion_op* op) {
  uint64_t hash = mix(1, (uint64_t)op->code << 16 | op->context);
  switch (op->code) {
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX: {
      const orion_op_launch* o = (const orion_op_launch*)op;  // both begin alike
      // Odd numbers, so that no two shapes that differ in one field are one.
      const uint64_t grid = o->grid_x + o->grid_y * 0x9e3779b97f4a7c15ull + o->grid_z * 0xc2b2ae3d27d4eb4full;
      const uint64_t block = o->block_x + o->block_y * 0x9e3779b97f4a7c15ull + o->block_z * 0xc2b2ae3d27d4eb4full +
                             o->dynamic_shared_bytes * 0x165667b19e3779f9ull;
      hash = mix(mix(hash, grid ^ (uint64_t)o->function << 40), block);
      break;
    }
    case ORION_OP_GRAPH_LAUNCH:
      hash = mix(hash, ((const orion_op_graph_launch*)op)->exec);
      break;
    case ORION_OP_MEMSET: {
      const orion_op_memset* o = (const orion_op_memset*)op;
      hash = mix(hash, size_class(o->width * (o->height ? o->height : 1)));
      break;
    }
    case ORION_OP_COPY_D2D:
    case ORION_OP_COPY_PEER:
      hash = mix(hash, size_class(((const orion_op_copy_d2d*)op)->size_bytes));
      break;
    default: {
      const orion_op_copy_3d* o = (const orion_op_copy_3d*)op;
      hash = mix(hash, size_class(o->width_bytes * (o->height ? o->height : 1)) << 8 | size_class(o->depth));
      break;
    }
  }
  return hash ? hash : 1;
}

void meter_look(orion_engine* e, const orion_op* op) {
  turns_state* t = &e->turns;
  if (t->looked_at == op) return;
  const uint64_t identity = identity_of(op);
  const struct meter* m = e->turns.meter;
  const uint32_t first = (uint32_t)(identity % ESTIMATES), second = first ^ 1u;
  if (m->estimates[first].identity == identity) {
    t->key = first;
  } else if (m->estimates[second].identity == identity || m->estimates[first].count > m->estimates[second].count) {
    t->key = second;
  } else {
    t->key = first;
  }
  const estimate* s = &m->estimates[t->key];
  t->looked_at = op;
  t->identity = identity;
  t->estimate_ns = s->identity == identity && s->count ? (uint64_t)s->ns : METER_UNKNOWN;
}

static void learn(struct meter* m, const interval* v, double measured_ns) {
  if (v->count == 1) {
    estimate* s = &m->estimates[v->keys[0]];
    s->ns = (float)(s->count ? s->ns + (measured_ns - s->ns) * WEIGHT : measured_ns);
    if (s->count < UINT32_MAX) s->count++;
    return;
  }
  double scale = v->estimate_ns ? measured_ns / (double)v->estimate_ns : 1;
  if (scale > SCALE_MOST) scale = SCALE_MOST;
  if (scale < 1 / SCALE_MOST) scale = 1 / SCALE_MOST;
  for (uint32_t i = 0; i < v->count; i++) {
    estimate* s = &m->estimates[v->keys[i]];
    s->ns = (float)(s->ns * (1 + (scale - 1) * WEIGHT / v->count));
    if (s->count < UINT32_MAX) s->count++;
  }
}

// ------------------------------------------------------------------------------------------------ intervals
static meter_context* context_meter(orion_engine* e, uint32_t context) {
  struct meter* m = e->turns.meter;
  if (!m->contexts[context]) m->contexts[context] = calloc(1, sizeof **m->contexts);
  return m->contexts[context];
}

static uint32_t* open_slot(orion_engine* e, uint32_t index) { return &e->turns.meter->open_of[index]; }

static interval* open_interval(orion_engine* e, uint32_t context, uint32_t index) {
  const uint32_t slot = *open_slot(e, index);
  return slot ? &e->turns.meter->contexts[context]->intervals[slot - 1] : NULL;
}

static turn* turn_of(orion_engine* e, uint32_t context) { return &e->turns.devices[e->contexts[context].device]; }

static bool has_events(orion_engine* e, interval* v) {
  if (v->start) return true;
  if (e->driver.event_create(&v->start, 0)) return false;
  if (e->driver.event_create(&v->end, 0)) {
    (void)e->driver.event_destroy(v->start);
    v->start = NULL;
    return false;
  }
  return true;
}

static interval* new_interval(orion_engine* e, uint32_t context) {
  meter_context* c = context_meter(e, context);
  if (!c) return NULL;
  for (uint32_t i = 0; i < INTERVALS; i++) {
    interval* v = &c->intervals[i];
    if (v->state != INTERVAL_FREE) continue;
    if (!has_events(e, v)) return NULL;
    if (i >= c->used) c->used = i + 1;
    v->count = 0;
    v->estimate_ns = v->passed_ns = 0;
    v->is_first = v->is_cold = v->renews = false;
    v->opened_ns = engine_now_ns();
    c->taken++;
    return v;
  }
  return NULL;
}

static bool record(orion_engine* e, CUevent event, stream_state* s) {
  if (e->driver.event_record(event, s->handle, 0)) return false;
  order_issued(e, s);
  return true;
}

/// A time line begins, or goes on from a later event before it has become too long for a float.
static void keep_origin(orion_engine* e, meter_context* c, interval* v, stream_state* s) {
  const uint64_t now_ns = engine_now_ns();
  if (c->renews || (c->has_origin && now_ns - c->origin_at_ns < ORIGIN_LASTS_NS)) return;
  CUevent* event = c->has_origin ? &c->next_origin : &c->origin;
  if (!*event && e->driver.event_create(event, 0)) return;
  if (!record(e, *event, s)) return;
  c->origin_at_ns = now_ns;
  c->renews = v->renews = c->has_origin;
  c->has_origin = true;
}

static interval* open_new(orion_engine* e, const orion_op* op, bool timed, bool charged, bool measured) {
  interval* v = new_interval(e, op->context);
  if (!v) return NULL;
  const uint32_t index = stream_index(op);
  stream_state* s = &e->streams[index];
  v->state = INTERVAL_OPEN;
  v->timed = timed, v->charged = charged, v->measured = measured;
  v->stream = index;
  v->track = s->track;
  if (!timed) return v;
  meter_context* c = e->turns.meter->contexts[op->context];
  if (measured) keep_origin(e, c, v, s);
  v->timed = record(e, v->start, s);
  return v;
}

static void give_back(orion_engine* e, uint32_t context, interval* v) {
  meter_context* c = e->turns.meter->contexts[context];
  if (v->is_cold) turn_of(e, context)->cold_in_flight--;
  if (v->renews) c->renews = false;
  v->state = INTERVAL_FREE;
  c->taken--;
}

static void make_current(orion_engine* e, uint32_t context) {
  if (e->current_context == context) return;
  e->current_context = e->driver.context_set_current(e->contexts[context].handle) ? 0 : context;
}

static void close_interval(orion_engine* e, uint32_t context, interval* v) {
  stream_state* s = &e->streams[v->stream];
  if (*open_slot(e, v->stream) == (uint32_t)(v - e->turns.meter->contexts[context]->intervals) + 1) {
    *open_slot(e, v->stream) = 0;
  }
  if (!v->count || e->contexts[context].sticky) {
    if (v->charged) turn_of(e, context)->in_flight_ns -= v->estimate_ns;
    give_back(e, context, v);
    return;
  }
  make_current(e, context);
  // On NULL itself an end that comes later than its work would hold what blocking streams have got since.
  stream_state* on = marker_stream(e, s);
  v->timed = v->timed && on && record(e, v->end, on);
  v->track = v->timed ? on->track : s->track;
  order_mark_track(e, v->track);
  v->value = e->tracks[v->track].issued;
  v->state = INTERVAL_CLOSED;
}

void meter_interrupt(orion_engine* e, const orion_op* op) {
  const uint32_t stream = stream_index(op);
  if (!*open_slot(e, stream)) return;
  const uint32_t context = e->streams[stream].context;
  interval* v = open_interval(e, context, stream);
  // Counted ones have no time of their own that something else could lengthen, and records and markers take none.
  const bool takes_time = op->code != ORION_OP_EVENT_RECORD && op->code != ORION_OP_MARK;
  if (op->code == ORION_OP_STREAM_DESTROY || (v->measured && takes_time)) close_interval(e, context, v);
}

static void close_open(orion_engine* e, uint32_t context, uint64_t opened_before_ns) {
  meter_context* c = e->turns.meter->contexts[context];
  for (uint32_t i = 0; i < c->used && c->taken; i++) {
    interval* v = &c->intervals[i];
    if (v->state == INTERVAL_OPEN && v->opened_ns < opened_before_ns) close_interval(e, context, v);
  }
}

void meter_close_device(orion_engine* e, uint32_t device) {
  for (uint32_t i = 1; i < ORION_CONTEXTS; i++) {
    const context_state* c = &e->contexts[i];
    if (c->alive && c->device == device && e->turns.meter->contexts[i]) close_open(e, i, UINT64_MAX);
  }
}

void meter_close_old(orion_engine* e, uint64_t now_ns) {
  for (uint32_t i = 1; i < ORION_CONTEXTS; i++) {
    if (e->turns.meter->contexts[i] && e->contexts[i].alive) close_open(e, i, now_ns - OPEN_LONG_NS);
  }
}

// ------------------------------------------------------------------------------------------------ around an operation
static bool samples_now(const estimate* s) { return s->count < SAMPLES_FIRST || s->issued % SAMPLES_EVERY == 0; }

void meter_before(orion_engine* e, const orion_op* op, bool measured) {
  const uint32_t index = stream_index(op);
  struct meter* m = e->turns.meter;
  const uint32_t key = e->turns.key;
  if (m->estimates[key].identity != e->turns.identity) m->estimates[key] = (estimate){.identity = e->turns.identity};
  interval* v = open_interval(e, op->context, index);
  if (v && v->measured != measured) {
    close_interval(e, op->context, v);
    v = NULL;
  }
  if (!v) {
    v = open_new(e, op, measured, true, measured);
    if (v) *open_slot(e, index) = (uint32_t)(v - m->contexts[op->context]->intervals) + 1;
  }
  e->turns.sample = NULL;
  const bool handed = e->launchers && launcher_pending(e, e->streams[index].track);
  if (!measured && !handed && samples_now(&m->estimates[key])) e->turns.sample = open_new(e, op, true, false, false);
}

void meter_after(orion_engine* e, const orion_op* op, uint64_t estimate_ns, bool measured) {
  turn* t = turn_of(e, op->context);
  const uint32_t key = e->turns.key;
  e->turns.meter->estimates[key].issued++;
  interval* sample = e->turns.sample;
  if (sample) {
    sample->keys[sample->count++] = key;
    sample->estimate_ns = estimate_ns;
    sample->is_first = sample->is_cold = !estimate_ns;
    t->cold_in_flight += sample->is_cold;
    close_interval(e, op->context, sample);
  }
  interval* v = open_interval(e, op->context, stream_index(op));
  if (!v) {  // more streams at a time than there are intervals
    t->spent_ns += estimate_ns;
    return;
  }
  if (!estimate_ns && !v->is_cold && !sample) {
    v->is_cold = true;
    t->cold_in_flight++;
  }
  v->keys[v->count++] = key;
  v->estimate_ns += estimate_ns;
  if (!t->in_flight_ns) t->ran_since_ns = engine_now_ns();
  t->in_flight_ns += estimate_ns;
  if (v->count == INTERVAL_WORKS || v->estimate_ns >= (measured ? INTERVAL_NS : COUNTED_NS) ||
      (measured && !estimate_ns)) {
    close_interval(e, op->context, v);
  }
}

void meter_refused(orion_engine* e, const orion_op* op) {
  interval* v = open_interval(e, op->context, stream_index(op));
  if (e->turns.sample) close_interval(e, op->context, e->turns.sample);
  if (v && !v->count) close_interval(e, op->context, v);
}

bool meter_is_busy(const orion_engine* e, uint32_t device) {
  for (uint32_t i = 1; i < ORION_CONTEXTS; i++) {
    const meter_context* c = e->turns.meter->contexts[i];
    if (c && c->taken && e->contexts[i].device == device) return true;
  }
  return false;
}

// ------------------------------------------------------------------------------------------------ what is complete
static CUresult elapsed(const orion_engine* e, CUevent from, CUevent to, double* ms) {
  float single_ms = 0;
  const CUresult code = e->driver.event_elapsed(&single_ms, from, to);
  *ms = code ? 0 : (double)single_ms;
  return code;
}

/// How much of the interval none before has covered. All of it while the origin has not been reached: that may stand
/// behind a wait of its stream.
static double uncovered_ms(const orion_engine* e, meter_context* c, const interval* v, double own_ms) {
  double start_ms = 0, later_ms = 0;
  if (!c->has_origin || elapsed(e, c->origin, v->start, &start_ms)) return own_ms;
  const double ms = timeline_add(&c->busy, start_ms, start_ms + own_ms);
  if (v->renews && !elapsed(e, c->origin, c->next_origin, &later_ms)) {
    const CUevent old = c->origin;
    c->origin = c->next_origin;
    c->next_origin = old;
    timeline_move_origin(&c->busy, later_ms);
  }
  return ms;
}

/// False: the driver cannot tell its time yet.
static bool take_in(orion_engine* e, uint32_t context, interval* v) {
  meter_context* c = e->turns.meter->contexts[context];
  turn* t = turn_of(e, context);
  double own_ms = 0;
  const CUresult code = v->timed ? elapsed(e, v->start, v->end, &own_ms) : 0;
  if (code == CUDA_ERROR_NOT_READY && !e->contexts[context].sticky) {
    const uint64_t now_ns = engine_now_ns();
    if (!v->passed_ns) v->passed_ns = now_ns;
    if (now_ns - v->passed_ns < READY_LIMIT_NS) return false;
    own_ms = (double)v->estimate_ns / 1e6;
  }
  if (v->timed && !code) learn(e->turns.meter, v, own_ms * 1e6);
  if (v->is_first) t->spent_ns += (uint64_t)(own_ms * 1e6);
  if (v->charged) {
    const uint64_t ns = v->measured && v->timed ? (uint64_t)(uncovered_ms(e, c, v, own_ms) * 1e6) : v->estimate_ns;
    t->in_flight_ns -= v->estimate_ns;
    t->ran_since_ns = engine_now_ns();
    t->spent_ns += ns;
    // What was admitted by its estimate counts as measured from here on.
    if (v->measured) t->admitted_ns += ns - v->estimate_ns;
  }
  give_back(e, context, v);
  return true;
}

/// A track that has been given to another stream counts from 0 again; so it does only when all of the old one is done.
static bool is_complete(const orion_engine* e, const interval* v) {
  const track* t = &e->tracks[v->track];
  return !t->dirty || t->issued < v->value || order_track_done(e, v->track) >= v->value;
}

bool meter_pass(orion_engine* e) {
  bool any = false;
  for (uint32_t i = 1; i < ORION_CONTEXTS; i++) {
    meter_context* c = e->turns.meter->contexts[i];
    if (!c || !c->taken) continue;
    for (uint32_t slot = 0; slot < c->used; slot++) {
      interval* v = &c->intervals[slot];
      if (v->state != INTERVAL_CLOSED || !is_complete(e, v)) continue;
      make_current(e, i);
      any |= take_in(e, i, v);
    }
  }
  return any;
}

void meter_drop_context(orion_engine* e, uint32_t context) {
  meter_context* c = e->turns.meter ? e->turns.meter->contexts[context] : NULL;
  if (!c) return;
  for (uint32_t i = 0; i < c->used; i++) {
    interval* v = &c->intervals[i];
    if (v->state == INTERVAL_OPEN && *open_slot(e, v->stream) == i + 1) *open_slot(e, v->stream) = 0;
    if (v->state != INTERVAL_FREE) {
      if (v->charged) turn_of(e, context)->in_flight_ns -= v->estimate_ns;
      give_back(e, context, v);
    }
    if (v->start) (void)e->driver.event_destroy(v->start);
    if (v->end) (void)e->driver.event_destroy(v->end);
  }
  if (c->origin) (void)e->driver.event_destroy(c->origin);
  if (c->next_origin) (void)e->driver.event_destroy(c->next_origin);
  free(c);
  e->turns.meter->contexts[context] = NULL;
}
