// Events: a ticket of the last record. Queries are loads of the word that the GPU writes.
//
// An event that only streams wait for costs no marker. The first host query asks for one, and from then on each record
// carries it. A record without marker has the ticket (word, next value): the first marker placed after it, whoever
// places it, shows it complete. That can be late by the work in between, never early.
//
// A shared event is one whose handle was given out or came from another process. The driver has its state: each record
// and wait has reached the driver when its call returns, since the program may then tell the other process so; waits
// are always the driver's; a query asks the driver once this process's own last record is complete.
#include "api.h"
#include "capture.h"
#include "device_output.h"
#include "pool.h"
#include "relay.h"

#define TICKET_WORD(ticket) ((uint32_t)((ticket) >> 48))
#define TICKET_VALUE(ticket) ((ticket) & 0xffffffffffffull)

CUresult orion_event_of(CUevent handle, orion_event** event) { return orion_object_find(&orion_events, handle, event); }

static orion_stream* stream_of(orion_event* event, uint64_t ticket) {
  const uint32_t word = TICKET_WORD(ticket);
  return word < ORION_WORD_STREAMS ? &event->context->null_stream
                                   : orion_table_at(&orion_streams, word - ORION_WORD_STREAMS);
}

static bool reached(const orion_event* event, uint64_t ticket) {
  return orion_word(event->context->session, TICKET_WORD(ticket)) >= TICKET_VALUE(ticket);
}

static bool is_shared(const orion_event* event) {
  return __builtin_expect(atomic_load_explicit(&event->shared, memory_order_acquire), 0);
}

static orion_event* take(orion_context* context, uint32_t flags, bool shared) {
  orion_event* event = orion_object_take(&orion_events);
  if (event == NULL) return NULL;
  event->context = context;
  event->epoch = atomic_load(&context->epoch);
  event->flags = flags;
  atomic_store(&event->ticket, 0);
  atomic_store(&event->shared, shared);
  orion_capture_leave_event(event);
  return event;
}

static CUresult give(orion_event* event, CUresult result, orion_event** out) {
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_events, event);
    return result;
  }
  event->handle = orion_table_publish(&orion_events, event);
  *out = event;
  return CUDA_SUCCESS;
}

CUresult orion_event_create(orion_context* context, uint32_t flags, orion_event** out) {
  orion_event* event = take(context, flags, false);
  ORION_REQUIRE(event != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  orion_op_event_create op = {.op = {.code = ORION_OP_EVENT_CREATE, .context = (uint16_t)context->entry.index},
                              .event = event->entry.index,
                              .event_flags = flags};
  // Whether there are events for several processes is the driver's to say; others do not fail.
  const CUresult result = (flags & CU_EVENT_INTERPROCESS) != 0
                              ? orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL)
                              : orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  return give(event, result, out);
}

CUresult orion_event_import(orion_context* context, const uint64_t token[2], orion_event** out) {
  orion_event* event = take(context, CU_EVENT_DISABLE_TIMING, true);
  ORION_REQUIRE(event != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  orion_op_event_import op = {.op = {.code = ORION_OP_EVENT_IMPORT, .context = (uint16_t)context->entry.index},
                              .event = event->entry.index,
                              .token_0 = token[0],
                              .token_1 = token[1]};
  return give(event, orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL), out);
}

/// Returns when the driver has the records and waits of a shared event that were submitted.
static CUresult await_issue(orion_event* event) {
  orion_op_event_issued op = {.op = {.code = ORION_OP_EVENT_ISSUED, .context = (uint16_t)event->context->entry.index},
                              .event = event->entry.index};
  return orion_call(event->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
}

/// What the driver says of a shared event. `wait`: only when it is complete, or wrong.
static CUresult ask(orion_event* event, bool wait) {
  orion_op_event_query op = {.op = {.code = ORION_OP_EVENT_QUERY, .context = (uint16_t)event->context->entry.index},
                             .event = event->entry.index,
                             .wait = wait};
  CUresult result;
  do {
    result = orion_call(event->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  } while (wait && result == CUDA_ERROR_NOT_READY);
  return result;
}

ORION_API CUresult cuEventCreate(CUevent* handle, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  const unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  ORION_REQUIRE(handle != NULL && (flags & ~known) == 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE((flags & CU_EVENT_INTERPROCESS) == 0 || (flags & CU_EVENT_DISABLE_TIMING) != 0,
                CUDA_ERROR_INVALID_VALUE);
  orion_event* event;
  const CUresult result = orion_event_create(context, flags, &event);
  if (result == CUDA_SUCCESS) *handle = (CUevent)(uintptr_t)event->handle;
  return result;
}

ORION_API CUresult cuEventDestroy_v2(CUevent handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_event* event = orion_table_find(&orion_events, (uint64_t)(uintptr_t)handle, &generation);
  if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
  if (!orion_table_retire(&orion_events, event, generation)) return CUDA_ERROR_INVALID_HANDLE;
  if (!orion_same_epoch(event->context, event->epoch)) {
    orion_table_give(&orion_events, event);
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  // Ordered behind the last record, if that stream still is what it was.
  const uint64_t ticket = atomic_load(&event->ticket);
  uint32_t wire_index = 0;
  if (ticket != 0 && !reached(event, ticket)) {
    const orion_stream* stream = stream_of(event, ticket);
    if (stream->wire_index != 0 && orion_is_live(&stream->entry) && stream->context == event->context) {
      wire_index = stream->wire_index;
    }
  }
  orion_op_event_destroy op = {
      .op = {.code = ORION_OP_EVENT_DESTROY, .context = (uint16_t)event->context->entry.index, .stream = wire_index},
      .event = event->entry.index};
  const CUresult result = orion_submit(event->context->session, &op.op, sizeof op, NULL, 0);
  orion_table_give(&orion_events, event);
  return result;
}

ORION_API CUresult cuEventDestroy(CUevent handle) {
  ORION_COUNTED();
  return cuEventDestroy_v2(handle);
}

void orion_event_set_ticket(orion_event* event, const orion_stream* stream, uint64_t value) {
  atomic_store_explicit(&event->ticket, (uint64_t)stream->word << 48 | value, memory_order_release);
}

CUresult orion_event_record(orion_event* event, orion_stream* stream, uint32_t flags) {
  if (orion_is_captured(stream)) return orion_capture_record(event, stream, flags);
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;  // external nodes need a capture
  orion_capture_leave_event(event);
  if (event->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
  orion_op_event_record op = {
      .op = {.code = ORION_OP_EVENT_RECORD}, .event = event->entry.index, .record_flags = flags};
  // Every record carries its marker: one that was placed when the host first asks would stand behind work that the
  // program submitted after the record, and that work may wait for the host.
  const CUresult result = orion_stream_submit_marked(stream, &op.op, sizeof op, &op.word, &op.value);
  atomic_store_explicit(&event->ticket, (uint64_t)op.word << 48 | op.value, memory_order_release);
  return result == CUDA_SUCCESS && is_shared(event) ? await_issue(event) : result;
}

ORION_API CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream_handle, unsigned int flags) {
  ORION_ENTER_STREAM(stream, stream_handle);
  orion_event* event;
  const CUresult result = orion_event_of(handle, &event);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE((flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL) == 0, CUDA_ERROR_INVALID_VALUE);
  return orion_event_record(event, stream, flags);
}

ORION_API CUresult cuEventRecord(CUevent handle, CUstream stream) {
  ORION_COUNTED();
  return cuEventRecordWithFlags(handle, stream, 0);
}

CUresult orion_event_wait(orion_event* event, orion_stream* stream, uint32_t flags) {
  if (__builtin_expect(atomic_load_explicit(&orion_captures, memory_order_relaxed) != 0, 0) ||
      __builtin_expect(atomic_load_explicit(&event->capture, memory_order_acquire) != NULL, 0)) {
    bool done;
    const CUresult result = orion_capture_wait(event, stream, flags, &done);
    if (result != CUDA_SUCCESS || done) return result;
  }
  const uint64_t ticket = atomic_load_explicit(&event->ticket, memory_order_acquire);
  const bool shared = is_shared(event), own_done = ticket == 0 || reached(event, ticket);
  if (own_done && !shared) return CUDA_SUCCESS;
  if (!own_done && atomic_load_explicit(&orion_pools_used, memory_order_relaxed)) {
    const uint32_t next = atomic_fetch_add_explicit(&stream->waited_next, 1, memory_order_relaxed);
    atomic_store_explicit(&stream->waited[next % ORION_WAITS_KEPT], ticket, memory_order_relaxed);
  }
  if (event->context->session != stream->session) {
    // Two servers share no clock and no event: the client holds the order. What another process records is seen by
    // asking only, and this caller waits for it.
    if (!shared) return orion_relay_wait(stream, event->context, TICKET_WORD(ticket), TICKET_VALUE(ticket));
    CUresult result = CUDA_SUCCESS;
    if (!own_done) {
      result = orion_wait_word(event->context->session, TICKET_WORD(ticket), TICKET_VALUE(ticket),
                               event->context->entry.index);
    }
    return result == CUDA_SUCCESS ? ask(event, true) : result;
  }
  orion_op_stream_wait_event op = {
      .op = {.code = ORION_OP_STREAM_WAIT_EVENT}, .event = event->entry.index, .wait_flags = flags};
  const CUresult result = orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  return result == CUDA_SUCCESS && shared ? await_issue(event) : result;
}

ORION_API CUresult cuEventQuery(CUevent handle) {
  ORION_ENTER();
  orion_event* event;
  CUresult result = orion_event_of(handle, &event);
  if (result != CUDA_SUCCESS) return result;
  if (orion_capture_check_event(event) != CUDA_SUCCESS) return orion_capture_refuse_event(event);
  ORION_CAPTURE_SAFE();
  orion_session* session = event->context->session;
  result = orion_context_error(session, event->context->entry.index);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t ticket = atomic_load_explicit(&event->ticket, memory_order_acquire);
  if (ticket != 0 && !reached(event, ticket)) return CUDA_ERROR_NOT_READY;
  if (is_shared(event)) result = ask(event, false);
  return result == CUDA_SUCCESS ? orion_take_late_error(session) : result;
}

ORION_API CUresult cuEventSynchronize(CUevent handle) {
  ORION_ENTER();
  orion_event* event;
  CUresult result = orion_event_of(handle, &event);
  if (result != CUDA_SUCCESS) return result;
  if (orion_capture_check_event(event) != CUDA_SUCCESS) return orion_capture_refuse_event(event);
  ORION_CAPTURE_SAFE();
  orion_session* session = event->context->session;
  const uint32_t context = event->context->entry.index;
  const uint64_t ticket = atomic_load_explicit(&event->ticket, memory_order_acquire);
  if (ticket != 0 && !reached(event, ticket)) {
    result = orion_wait_word(session, TICKET_WORD(ticket), TICKET_VALUE(ticket), context);
  }
  if (result == CUDA_SUCCESS && is_shared(event)) result = ask(event, true);
  orion_pools_synchronized();
  if (result == CUDA_SUCCESS) result = orion_context_error(session, context);
  if (result == CUDA_SUCCESS) result = orion_take_late_error(session);
  return orion_waited(event->context, result);
}

ORION_API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  ORION_ENTER();
  orion_event *start, *end;
  CUresult result = orion_event_of(start_handle, &start);
  if (result == CUDA_SUCCESS) result = orion_event_of(end_handle, &end);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(milliseconds != NULL, CUDA_ERROR_INVALID_VALUE);
  result = orion_capture_check_event(start);
  if (result == CUDA_SUCCESS) result = orion_capture_check_event(end);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t start_ticket = atomic_load(&start->ticket), end_ticket = atomic_load(&end->ticket);
  if (((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) != 0 || start_ticket == 0 || end_ticket == 0 ||
      start->context->session != end->context->session) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  orion_session* session = end->context->session;
  result = orion_context_error(session, end->context->entry.index);
  if (result != CUDA_SUCCESS) return result;
  if (!reached(start, start_ticket) || !reached(end, end_ticket)) return CUDA_ERROR_NOT_READY;
  orion_op_event_elapsed op = {.op = {.code = ORION_OP_EVENT_ELAPSED, .context = (uint16_t)end->context->entry.index},
                               .start = start->entry.index,
                               .end = end->entry.index};
  orion_reply_event_elapsed reply = {0};
  result = orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result == CUDA_SUCCESS) *milliseconds = reply.milliseconds;
  return result;
}

ORION_API CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  ORION_COUNTED();

  return cuEventElapsedTime_v2(milliseconds, start, end);
}
