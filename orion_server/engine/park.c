// Order and parking. Operations run in ring order, except that one which cannot run yet is parked together with all
// later ones that depend on it, while the others go on.
//
// A pass looks at the parked operations in order. One that stays marks what it touches with the pass's epoch, and a
// later one (parked, or newly popped: the marks stay valid until the next pass) stays too when it meets such a mark.
// Only what a parked operation itself waits for (its cause) can start a new pass.
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "swap.h"
#include "turns.h"

static bool is_stream_ordered(const orion_op* op) {
  return (ORION_OP_INFO[op->code].flags & (ORION_OPF_WORK | ORION_OPF_STREAM)) && op->code != ORION_OP_EVENT_DESTROY;
}

// A wrong index is the handler's business.
uint32_t park_event_of(const orion_op* op) {
  switch (op->code) {
    case ORION_OP_EVENT_CREATE:
      return ((const orion_op_event_create*)op)->event;
    case ORION_OP_EVENT_DESTROY:
      return ((const orion_op_event_destroy*)op)->event;
    case ORION_OP_EVENT_RECORD:
      return ((const orion_op_event_record*)op)->event;
    case ORION_OP_STREAM_WAIT_EVENT:
      return ((const orion_op_stream_wait_event*)op)->event;
    case ORION_OP_EVENT_ISSUED:
      return ((const orion_op_event_issued*)op)->event;
    case ORION_OP_EVENT_EXPORT:
      return ((const orion_op_event_export*)op)->event;
    case ORION_OP_EVENT_IMPORT:
      return ((const orion_op_event_import*)op)->event;
    default:
      return ORION_EVENTS;
  }
}

static bool waits_for_unload(const orion_op* op) {
  if (array_is_binding(op->code)) return true;
  switch (op->code) {
    case ORION_OP_MODULE_LOAD:
    case ORION_OP_MODULE_GET_FUNCTION:
    case ORION_OP_MODULE_GET_GLOBAL:
    case ORION_OP_FUNCTION_SET_ATTRIBUTE:
    case ORION_OP_FUNCTION_SET_CACHE_CONFIG:
    case ORION_OP_FUNCTION_GET_ATTRIBUTES:
    case ORION_OP_OCCUPANCY_BLOCKS:
    case ORION_OP_OCCUPANCY_SHARED:
    case ORION_OP_IMAGE_MODULE_LOAD:
      return true;
    default:
      return op->code >= ORION_OP_LIBRARY_LOAD && op->code <= ORION_OP_OCCUPANCY_CLUSTERS;
  }
}

static bool waits_for_whole_context(const orion_op* op) {
  return op->code == ORION_OP_MODULE_UNLOAD || op->code == ORION_OP_CTX_RESET || op->code == ORION_OP_CTX_DESTROY ||
         array_is_release(op->code);
}

static bool behind_parked(orion_engine* e, const orion_op* op, const parked_op* node) {
  const uint32_t epoch = e->epoch;
  if (e->any_epoch != epoch) return false;
  const context_state* c = &e->contexts[op->context];
  if (c->barrier_epoch == epoch) return true;
  if (is_stream_ordered(op)) {
    const stream_state* s = &e->streams[stream_index(op)];
    if (s->blocked_epoch == epoch) return true;
    if (op->stream == 0 ? c->blocking_epoch == epoch : s->blocking && c->null_epoch == epoch) return true;
  }
  const uint32_t event = park_event_of(op);
  if (event != ORION_EVENTS && event < EVENT_TABLE) {
    const event_state* v = &e->events[event];
    // An export does not stand behind waits: it keeps what they mean (event_keep).
    const bool is_use = op->code == ORION_OP_STREAM_WAIT_EVENT || op->code == ORION_OP_EVENT_EXPORT;
    if (v->record_epoch == epoch || (!is_use && v->use_epoch == epoch)) {
      const bool renews = op->code == ORION_OP_EVENT_RECORD || op->code == ORION_OP_EVENT_DESTROY;
      if (!renews || event >= ORION_EVENTS || !event_detach(e, event, node)) return true;
    }
  }
  uint32_t other;
  const uint32_t graph = graph_of(op, &other);
  if (graph < ORION_GRAPHS && (graph_is_blocked(e, graph) || graph_is_blocked(e, other))) return true;
  switch (op->code) {
    case ORION_OP_STREAM_CREATE:
      return e->streams[op->stream].blocked_epoch == epoch;
    case ORION_OP_EVENT_ELAPSED: {
      const orion_op_event_elapsed* o = (const orion_op_event_elapsed*)op;
      return (o->start < ORION_EVENTS && e->events[o->start].record_epoch == epoch) ||
             (o->end < ORION_EVENTS && e->events[o->end].record_epoch == epoch);
    }
    case ORION_OP_MEM_FREE:
    case ORION_OP_HOST_UNREGISTER:
    case ORION_OP_HOST_VARIABLE_END:
    case ORION_OP_LIBRARY_UNLOAD:
      return true;  // anything parked may still use the memory, or a kernel of the library in some context
    default:
      break;
  }
  if (waits_for_whole_context(op)) return c->any_epoch == epoch;
  return waits_for_unload(op) && c->unload_epoch == epoch;
}

static void block(orion_engine* e, const orion_op* op) {
  const uint32_t epoch = e->epoch;
  context_state* c = &e->contexts[op->context];
  e->any_epoch = epoch;
  c->any_epoch = epoch;
  if (is_stream_ordered(op) || op->code == ORION_OP_STREAM_CREATE) {
    stream_state* s = &e->streams[stream_index(op)];
    s->blocked_epoch = epoch;
    if (op->stream == 0) {
      c->null_epoch = epoch;
    } else if (s->blocking) {
      c->blocking_epoch = epoch;
    }
  }
  const uint32_t event = park_event_of(op);
  if (event != ORION_EVENTS && event < EVENT_TABLE) {
    if (op->code == ORION_OP_STREAM_WAIT_EVENT || op->code == ORION_OP_EVENT_EXPORT ||
        op->code == ORION_OP_EVENT_ISSUED) {
      e->events[event].use_epoch = epoch;
    } else {
      e->events[event].record_epoch = epoch;
    }
  }
  uint32_t other;
  const uint32_t graph = graph_of(op, &other);
  if (graph < ORION_GRAPHS) {
    graph_block(e, graph);
    graph_block(e, other);
  }
  if (op->code == ORION_OP_LIBRARY_UNLOAD) {
    for (uint32_t i = 0; i < ORION_CONTEXTS; i++) e->contexts[i].unload_epoch = epoch;
  }
  if (op->code == ORION_OP_MODULE_UNLOAD || array_is_release(op->code)) c->unload_epoch = epoch;
  if (op->code == ORION_OP_CTX_RESET || op->code == ORION_OP_CTX_DESTROY) c->barrier_epoch = epoch;
}

void park_cause(orion_engine* e, enum cause_kind kind, uint32_t index, uint64_t value, const ticket* t) {
  if (e->cause_count == CAUSE_COUNT) {
    e->causes_overflow = true;
    return;
  }
  e->causes[e->cause_count++] = (cause){kind, index, value, t};
}

static uint64_t depth(const orion_engine* e, const stream_state* s) {
  if (!s->track) return 0;
  const uint64_t done = order_track_done(e, s->track), issued = e->tracks[s->track].issued;
  return issued > done ? issued - done : 0;
}

static bool stream_full(orion_engine* e, stream_state* s) {
  const uint64_t in_flight = depth(e, s);
  if (in_flight >= (s->full ? STREAM_DEPTH_RESUME : STREAM_DEPTH)) {
    s->full = true;
    order_mark_track(e, s->track);
    park_cause(e, CAUSE_DEPTH, s->track, STREAM_DEPTH_RESUME, NULL);
    return true;
  }
  s->full = false;
  return false;
}

// Where GPU time is shared out, nothing is issued behind a wait for a word before the word is there. It would take up
// the turn, which the work that writes the word may need.
static bool word_is_missing(orion_engine* e, stream_state* s) {
  if (!s->word_wait) return false;
  if (order_track_done(e, s->track) < s->word_wait) {
    park_cause(e, CAUSE_WORD, s->track, s->word_wait, NULL);
    return true;
  }
  s->word_wait = 0;
  return false;
}

// The operation's own condition, apart from what its handler finds.
static bool ready(orion_engine* e, const orion_op* op, parked_op* node) {
  if (swap_holds(e, op)) {
    park_cause(e, CAUSE_RESIDENCY, 0, 0, NULL);
    return false;
  }
  if (e->direct && !direct_ready(e, op, node)) return false;
  if (e->net && op->bulk_seq > e->bulk_arrived) {
    park_cause(e, CAUSE_BULK, 0, op->bulk_seq, NULL);
    return false;
  }
  if (is_stream_ordered(op)) {
    stream_state* s = &e->streams[stream_index(op)];
    if (s->alive && stream_full(e, s)) return false;
    if (e->turns.is_on && word_is_missing(e, s)) return false;
    stream_state* marker = &e->streams[STREAM_PRIVATE_BASE + op->context];
    if (op->stream == 0 && marker->alive && stream_full(e, marker)) return false;
  }
  if (e->turns.is_on && turns_concern(e, op) && !turns_admit(e, op)) return false;
  if (ORION_OP_INFO[op->code].flags & ORION_OPF_DRAINS) {
    // HOST_UNREGISTER gives memory back that any context may be using; a library is loaded into several contexts.
    const uint32_t context =
        op->code == ORION_OP_HOST_UNREGISTER || op->code == ORION_OP_LIBRARY_UNLOAD ? 0 : op->context;
    if (!node) {
      order_sweep(e);
      bool idle = true;
      for (uint32_t i = e->first_dirty; i && idle; i = e->tracks[i].next_dirty) {
        idle = context && e->tracks[i].context != context;
      }
      idle &= !direct_is_going(e);
      if (!idle) park_cause(e, CAUSE_TIME, 0, 0, NULL);
      return idle;
    }
    if (!node->has_ticket) {
      node->has_ticket = order_take_ticket(e, context, &node->ticket);
      if (!node->has_ticket) {
        park_cause(e, CAUSE_TIME, 0, engine_now_ns() + 1000000, NULL);
        return false;
      }
    }
    if (!order_ticket_reached(e, &node->ticket)) {
      park_cause(e, CAUSE_TICKET, 0, 0, &node->ticket);
      return false;
    }
    if (direct_is_going(e)) {
      park_cause(e, CAUSE_DIRECT, 0, direct_events(e), NULL);
      return false;
    }
  }
  return true;
}

static enum step run(orion_engine* e, const orion_op* op, parked_op* node) {
  if (!e->turns.is_on) return execute(e, op, node);
  if (turns_concern(e, op)) return turns_execute(e, op, node);
  if (is_stream_ordered(op)) turns_interrupt(e, op);
  return execute(e, op, node);
}

bool park_try(orion_engine* e, const orion_op* op, parked_op* node) {
  if (!node && park_event_of(op) > ORION_EVENTS) {  // spare events are the engine's
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return true;
  }
  if (behind_parked(e, op, node)) {
    if (e->direct && node) direct_follow(e, op);
  } else if (ready(e, op, node) && run(e, op, node) == STEP_DONE) {
    return true;
  }
  block(e, op);
  if (e->direct) direct_blocked(e, op);
  return false;
}

bool park_has_room(const orion_engine* e) {
  return e->parked_bytes + sizeof(parked_op) + ORION_OP_MAX_BYTES <= PARKED_MAX_BYTES &&
         e->parked_count < (e->turns.is_on ? turns_parked_most(e) : PARKED_MAX_COUNT);
}

static bool gives_memory_back(const orion_op* op) {
  return op->code == ORION_OP_MEM_FREE || array_is_release(op->code);
}

static uint64_t node_bytes(const orion_op* op) { return sizeof(parked_op) - sizeof(orion_op) + op->bytes; }

void park_append(orion_engine* e, const orion_op* op) {
  parked_op* node = malloc(node_bytes(op));
  if (!node) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  memset(node, 0, offsetof(parked_op, op));
  memcpy(&node->op, op, op->bytes);
  *e->last_parked = node;
  e->last_parked = &node->next;
  e->parked_bytes += node_bytes(op);
  e->parked_count++;
  if (gives_memory_back(op)) e->parked_frees++;
  STAT_ADD(e, stat_parked, 1);
  STAT_SET(e, stat_parked_now, e->parked_count);
  if (op->code == ORION_OP_STREAM_WAIT_EVENT) {
    const uint32_t event = park_event_of(op);
    if (event < ORION_EVENTS && e->events[event].shared) event_keep(e, event);
  }
}

static bool cause_holds(const orion_engine* e, const cause* c) {
  switch (c->kind) {
    case CAUSE_DEPTH:
      return e->tracks[c->index].issued - order_track_done(e, c->index) < c->value || order_track_idle(e, c->index);
    case CAUSE_HOST_FUNCTION:
      return atomic_load_explicit(&e->segment->client_words[c->index], memory_order_acquire) >= c->value;
    case CAUSE_TICKET:
      return order_ticket_reached(e, c->ticket);
    case CAUSE_BULK:
      return e->bulk_arrived >= c->value;
    case CAUSE_TIME:
      return engine_now_ns() >= c->value;
    case CAUSE_RESIDENCY:
      return !e->swap.holds;
    case CAUSE_TURN:
      return turns_may_go_on(e, c->index);
    case CAUSE_WORD:
      return order_track_done(e, c->index) >= c->value;
    case CAUSE_DIRECT:
      return direct_events(e) != c->value;
  }
  return true;
}

bool park_waits_for_server(const orion_engine* e) {
  if (!e->cause_count || e->causes_overflow) return false;
  for (uint32_t i = 0; i < e->cause_count; i++) {
    if (e->causes[i].kind != CAUSE_TURN && e->causes[i].kind != CAUSE_RESIDENCY) return false;
  }
  return true;
}

uint32_t park_pass(orion_engine* e) {
  if (!e->first_parked) return 0;
  bool due = e->causes_overflow || e->cause_count == 0;
  for (uint32_t i = 0; i < e->cause_count && !due; i++) due = cause_holds(e, &e->causes[i]);
  if (!due) return 0;
  e->epoch++;
  e->cause_count = 0;
  e->causes_overflow = false;
  uint32_t ran = 0;
  parked_op** link = &e->first_parked;
  while (*link && !e->end) {
    parked_op* node = *link;
    if (!park_try(e, &node->op, node)) {
      link = &node->next;
      continue;
    }
    *link = node->next;
    if (e->direct) direct_end(e, &node->op);
    e->parked_bytes -= node_bytes(&node->op);
    e->parked_count--;
    if (gives_memory_back(&node->op)) e->parked_frees--;
    if (park_event_of(&node->op) > ORION_EVENTS) event_let_go(e, park_event_of(&node->op));
    order_ticket_free(&node->ticket);
    free(node);
    ran++;
  }
  if (!*link) e->last_parked = link;
  STAT_SET(e, stat_parked_now, e->parked_count);
  return ran;
}

static void free_list(parked_op* node) {
  while (node) {
    parked_op* next = node->next;
    order_ticket_free(&node->ticket);
    free(node);
    node = next;
  }
}

void park_free_all(orion_engine* e) {
  free_list(e->first_parked);
  free_list(e->maps_first);
  e->first_parked = e->maps_first = NULL;
  e->last_parked = &e->first_parked;
  e->maps_last = &e->maps_first;
  e->parked_bytes = e->parked_count = e->maps_count = e->parked_frees = 0;
}
