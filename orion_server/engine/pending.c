// What a program may do to an event or ask of a stream while earlier operations are parked.
//
// An event means its last record. A wait means the record before it. While records and waits are parked, a later record
// must not stand behind them: it takes the event over with a driver event of its own, and the parked operations keep
// the old one under a spare index that no client can name.
//
// An event that other processes know keeps its driver event. So it is the other way round there: a wait that must be
// parked gets an event of its own (event_keep). Records of it are never taken over; the client waits until they are
// issued, because only then another process can be told of them.
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "launcher.h"

#define QUERIES_MAX 64u
#define QUERY_LIMIT_NS 100000000u  // a marker that was refused never comes
#define EVENT_QUERY_LIMIT_NS 1000000000u

// ------------------------------------------------------------------------------------------------ events
static uint32_t* event_field(orion_op* op) {
  switch (op->code) {
    case ORION_OP_EVENT_RECORD:
      return &((orion_op_event_record*)op)->event;
    case ORION_OP_STREAM_WAIT_EVENT:
      return &((orion_op_stream_wait_event*)op)->event;
    default:
      return NULL;
  }
}

static uint32_t spare_index(orion_engine* e) {
  if (e->event_first_spare) {
    const uint32_t index = e->event_first_spare;
    e->event_first_spare = e->events[index].next_spare;
    return index;
  }
  if (e->event_spares_used == EVENT_SPARES) return 0;
  return EVENT_SPARE_BASE + e->event_spares_used++;
}

static bool make_current(orion_engine* e, const event_state* v) {
  const context_state* c = &e->contexts[v->context];
  if (!c->alive || c->sticky) return false;
  if (e->current_context != v->context) {
    if (answer_check(e, v->context, (int32_t)e->driver.context_set_current(c->handle))) return false;
    e->current_context = v->context;
  }
  return true;
}

bool event_detach(orion_engine* e, uint32_t index, const parked_op* until) {
  event_state* v = &e->events[index];
  if (!v->alive || v->in_graph || v->shared) return false;
  uint32_t users = 0;
  for (parked_op* node = e->first_parked; node && node != until; node = node->next) {
    if (park_event_of(&node->op) != index) continue;
    if (!event_field(&node->op)) return false;  // its creation or its end: those keep the index
    users++;
  }
  if (!users || !make_current(e, v)) return false;
  CUevent fresh = NULL;
  if (answer_check(e, v->context, (int32_t)e->driver.event_create(&fresh, v->flags))) return false;
  const uint32_t spare = spare_index(e);
  if (!spare) {
    (void)e->driver.event_destroy(fresh);
    return false;
  }
  e->events[spare] = *v;
  e->events[spare].users = users;
  v->handle = fresh;
  v->recorded = false;
  v->record_epoch = v->use_epoch = 0;
  for (parked_op* node = e->first_parked; node && node != until; node = node->next) {
    if (park_event_of(&node->op) == index) *event_field(&node->op) = spare;
  }
  return true;
}

/// A new event that is complete when the last record of `v` so far is. NULL: it cannot be.
static CUevent follow(orion_engine* e, const event_state* v) {
  CUevent fresh = NULL;
  CUstream stream = NULL;
  if (answer_check(e, v->context, (int32_t)e->driver.event_create(&fresh, CU_EVENT_DISABLE_TIMING))) return NULL;
  // A stream for this alone: on one that others use too, it would be complete only after what those wait for.
  int32_t result = (int32_t)e->driver.stream_create(&stream, CU_STREAM_NON_BLOCKING, 0);
  if (!result) {
    result = (int32_t)e->driver.stream_wait_event(stream, v->handle, 0);
    if (!result) result = (int32_t)e->driver.event_record(fresh, stream, 0);
    (void)e->driver.stream_destroy(stream);
  }
  if (!answer_check(e, v->context, result)) return fresh;
  (void)e->driver.event_destroy(fresh);
  return NULL;
}

void event_keep(orion_engine* e, uint32_t index) {
  event_state* v = &e->events[index];
  // Waits behind a parked record of our own mean that one, and stay in its order.
  if (!v->alive || park_holds_record(e, v)) return;
  uint32_t users = 0;
  bool others = false;
  const parked_op* end = NULL;  // a record that an export precedes: later waits mean that one
  for (const parked_op* node = e->first_parked; node && !end; node = node->next) {
    if (park_event_of(&node->op) != index) continue;
    if (node->op.code == ORION_OP_STREAM_WAIT_EVENT) {
      users++;
    } else {
      others = true;
      if (node->op.code != ORION_OP_EVENT_ISSUED && node->op.code != ORION_OP_EVENT_EXPORT) end = node;
    }
  }
  if (!users || !make_current(e, v)) return;
  const uint32_t spare = spare_index(e);
  if (!spare) return;  // they stay what they are, and later records behind them
  const CUevent fresh = follow(e, v);
  if (!fresh) {
    e->events[spare] = (event_state){.next_spare = e->event_first_spare};
    e->event_first_spare = spare;
    return;
  }
  e->events[spare] = (event_state){
      .handle = fresh, .flags = CU_EVENT_DISABLE_TIMING, .users = users, .context = v->context, .alive = true};
  for (parked_op* node = e->first_parked; node != end; node = node->next) {
    if (park_event_of(&node->op) == index && node->op.code == ORION_OP_STREAM_WAIT_EVENT) {
      *event_field(&node->op) = spare;
    }
  }
  if (!others) v->use_epoch = 0;
}

void event_let_go(orion_engine* e, uint32_t index) {
  event_state* v = &e->events[index];
  if (index < EVENT_SPARE_BASE || !v->alive || --v->users) return;
  // The driver keeps what a pending record or wait needs of it.
  (void)e->driver.event_destroy(v->handle);
  *v = (event_state){.next_spare = e->event_first_spare};
  e->event_first_spare = index;
}

void event_drop_spares(orion_engine* e, uint32_t context) {
  for (uint32_t i = EVENT_SPARE_BASE; i < EVENT_SPARE_BASE + e->event_spares_used; i++) {
    if (!e->events[i].alive || e->events[i].context != context) continue;
    e->events[i].users = 1;
    event_let_go(e, i);
  }
}

// ------------------------------------------------------------------------------------------------ queries
// A query overtakes the main ring, where the marker that it asks for travels: it is held until that has been executed,
// and answered at once when that cannot be soon.
static bool stream_query_try(orion_engine* e, const orion_op* op, uint64_t deadline_ns) {
  const orion_op_stream_query* o = (const orion_op_stream_query*)op;
  const context_state* c = &e->contexts[op->context];
  const stream_state* s = &e->streams[stream_index(op)];
  if (o->word >= ORION_WORD_DYNAMIC || !c->alive || !s->alive || s->context != op->context) {
    answer_reply(e, op, CUDA_ERROR_NOT_READY, NULL, 0);
    return true;
  }
  if (c->sticky) {
    answer_reply(e, op, c->sticky, NULL, 0);
    return true;
  }
  const bool held = s->blocked_epoch == e->epoch ||
                    (op->stream ? s->blocking && c->null_epoch == e->epoch : c->blocking_epoch == e->epoch);
  if (held || !park_has_room(e)) {
    answer_reply(e, op, CUDA_ERROR_NOT_READY, NULL, 0);
    return true;
  }
  if (s->marked_value < o->value) {
    if (engine_now_ns() < deadline_ns) return false;
    answer_reply(e, op, CUDA_ERROR_NOT_READY, NULL, 0);
    return true;
  }
  if (!use_context(e, op)) return true;
  if (e->launchers) launcher_settle(e, s->track);
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.stream_query(s->handle));
  if (result == 0) {
    // The GPU has passed the marker, or is about to write the same value once more from a stream of the engine's own.
    if (atomic_load_explicit(&e->segment->words[o->word], memory_order_acquire) < o->value) {
      answer_set_word(e, o->word, o->value);
    }
  }
  answer_reply(e, op, result, NULL, 0);
  return true;
}

// Only the driver knows what other processes have recorded. The client asks when its own records are complete, so that
// none of them can be in the ring.
static bool event_query_try(orion_engine* e, const orion_op* op, uint64_t deadline_ns) {
  const orion_op_event_query* o = (const orion_op_event_query*)op;
  if (!use_context(e, op)) return true;
  const event_state* v = o->event < ORION_EVENTS ? &e->events[o->event] : NULL;
  int32_t result = v && v->alive && v->context == op->context ? 0 : CUDA_ERROR_INVALID_HANDLE;
  if (!result) {
    result = park_holds_record(e, v) ? CUDA_ERROR_NOT_READY
                                     : answer_check(e, op->context, (int32_t)e->driver.event_query(v->handle));
  }
  if (result == CUDA_ERROR_NOT_READY && o->wait && engine_now_ns() < deadline_ns) return false;
  if (result == 0 && e->net) {
    // The other process's record may stand behind a copy out of ours, whose bytes then come first.
    if (!net_copies_sent(e)) return false;
    net_after_copies(e);
  }
  answer_reply(e, op, result, NULL, 0);
  return true;
}

static bool query_try(orion_engine* e, const orion_op* op, uint64_t deadline_ns) {
  return op->code == ORION_OP_EVENT_QUERY ? event_query_try(e, op, deadline_ns) : stream_query_try(e, op, deadline_ns);
}

void query_start(orion_engine* e, const orion_op* op) {
  const uint64_t deadline_ns =
      engine_now_ns() + (op->code == ORION_OP_EVENT_QUERY ? EVENT_QUERY_LIMIT_NS : QUERY_LIMIT_NS);
  if (query_try(e, op, deadline_ns)) return;
  parked_op* node = e->query_count < QUERIES_MAX ? calloc(1, sizeof *node + op->bytes) : NULL;
  if (!node) {
    answer_reply(e, op, CUDA_ERROR_NOT_READY, NULL, 0);
    return;
  }
  memcpy(&node->op, op, op->bytes);
  node->deadline_ns = deadline_ns;
  node->next = e->first_query;
  e->first_query = node;
  e->query_count++;
}

bool query_pass(orion_engine* e) {
  bool moved = false;
  for (parked_op** link = &e->first_query; *link;) {
    parked_op* node = *link;
    if (!query_try(e, &node->op, node->deadline_ns)) {
      link = &node->next;
      continue;
    }
    *link = node->next;
    free(node);
    e->query_count--;
    moved = true;
  }
  return moved;
}

void query_free(orion_engine* e) {
  for (parked_op* node = e->first_query; node;) {
    parked_op* next = node->next;
    free(node);
    node = next;
  }
  e->first_query = NULL;
  e->query_count = 0;
}
