// Order between a whole context and an event: cuCtxRecordEvent, cuCtxWaitEvent. A stream of its own joins what the
// context's streams hold; an event of its own, the gate, holds them back, those that are made later too.
#include "api.h"
#include "capture.h"
#include "relay.h"

static pthread_mutex_t order_mutex = PTHREAD_MUTEX_INITIALIZER;  // before every other

static CUresult prepare(orion_context* context) {
  orion_context_order* order = &context->order;
  const uint32_t epoch = atomic_load(&context->epoch);
  if (order->join != NULL && order->epoch == epoch) return CUDA_SUCCESS;
  atomic_store(&order->gate, NULL);  // the former ones ended with what the context held
  order->join = NULL;
  orion_event* gate = NULL;
  CUresult result = orion_event_create(context, CU_EVENT_DISABLE_TIMING, &order->mark);
  if (result == CUDA_SUCCESS) result = orion_event_create(context, CU_EVENT_DISABLE_TIMING, &gate);
  if (result == CUDA_SUCCESS) result = orion_stream_create(context, CU_STREAM_NON_BLOCKING, 0, &order->join);
  if (result != CUDA_SUCCESS) return result;
  order->epoch = epoch;
  order->own_gate = gate;
  return CUDA_SUCCESS;
}

/// Under the context's mutex.
static CUresult each_stream(orion_context* context, CUresult (*act)(orion_context_order*, orion_stream*)) {
  CUresult result = act(&context->order, &context->null_stream);
  for (orion_stream* stream = context->streams; stream != NULL && result == CUDA_SUCCESS; stream = stream->next) {
    if (stream != context->order.join) result = act(&context->order, stream);
  }
  return result;
}

static CUresult join(orion_context_order* order, orion_stream* stream) {
  const uint64_t marker = atomic_load_explicit(&stream->marker, memory_order_acquire);
  const bool idle = atomic_load_explicit(&stream->dirty, memory_order_acquire) == 0 &&
                    orion_word(stream->session, stream->word) >= marker;
  if (idle) return CUDA_SUCCESS;
  const CUresult result = orion_event_record(order->mark, stream, 0);
  return result == CUDA_SUCCESS ? orion_event_wait(order->mark, order->join, 0) : result;
}

static CUresult hold(orion_context_order* order, orion_stream* stream) {
  return orion_event_wait(order->own_gate, stream, 0);
}

/// What the context's streams get from now on is behind the joining stream's work.
static CUresult gate_all(orion_context* context) {
  CUresult result = orion_event_record(context->order.own_gate, context->order.join, 0);
  if (result != CUDA_SUCCESS) return result;
  atomic_store(&context->order.gate, context->order.own_gate);
  pthread_mutex_lock(&context->mutex);
  result = each_stream(context, hold);
  pthread_mutex_unlock(&context->mutex);
  return result;
}

/// Work of streams that were destroyed has no stream left to record in: the rare program that has some waits for it.
static CUresult wait_for_retired(orion_context* context) {
  for (;;) {
    orion_ticket next = {0};
    pthread_mutex_lock(&context->mutex);
    for (uint32_t i = 0; i < context->retired_count && next.word == 0; i++) {
      const orion_ticket ticket = context->retired[i];
      if (orion_word(context->session, ticket.word) < ticket.value) next = ticket;
    }
    pthread_mutex_unlock(&context->mutex);
    if (next.word == 0) return CUDA_SUCCESS;
    const CUresult result = orion_wait_word(context->session, next.word, next.value, context->entry.index);
    if (result != CUDA_SUCCESS) return result;
  }
}

static CUresult find(CUcontext handle, CUevent event_handle, orion_context** context, orion_event** event) {
  CUresult result = orion_context_of(handle, context);
  if (result == CUDA_SUCCESS && !atomic_load(&(*context)->active)) result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (result == CUDA_SUCCESS) result = orion_event_of(event_handle, event);
  return result == CUDA_SUCCESS ? orion_capture_check_context(*context) : result;
}

ORION_API CUresult cuCtxRecordEvent(CUcontext handle, CUevent event_handle) {
  ORION_ENTER();
  orion_context* context;
  orion_event* event;
  CUresult result = find(handle, event_handle, &context, &event);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(event->context == context, CUDA_ERROR_INVALID_HANDLE);
  result = wait_for_retired(context);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&order_mutex);
  result = prepare(context);
  if (result == CUDA_SUCCESS) {
    pthread_mutex_lock(&context->mutex);
    result = each_stream(context, join);
    pthread_mutex_unlock(&context->mutex);
  }
  if (result == CUDA_SUCCESS) result = orion_event_record(event, context->order.join, 0);
  pthread_mutex_unlock(&order_mutex);
  return result;
}

ORION_API CUresult cuCtxWaitEvent(CUcontext handle, CUevent event_handle) {
  ORION_ENTER();
  orion_context* context;
  orion_event* event;
  CUresult result = find(handle, event_handle, &context, &event);
  if (result == CUDA_SUCCESS && orion_capture_check_event(event) != CUDA_SUCCESS) {
    result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&order_mutex);
  result = prepare(context);
  // The joining stream keeps earlier gates shut until their events have come.
  if (result == CUDA_SUCCESS) result = orion_event_wait(event, context->order.join, 0);
  if (result == CUDA_SUCCESS) result = gate_all(context);
  pthread_mutex_unlock(&order_mutex);
  return result;
}

/// What the context's streams hold now, those that were destroyed too, is before the joining stream's next work.
static CUresult join_all(orion_context* context) {
  pthread_mutex_lock(&context->mutex);
  CUresult result = each_stream(context, join);
  for (uint32_t i = 0; i < context->retired_count && result == CUDA_SUCCESS; i++) {
    result = orion_relay_wait(context->order.join, context, context->retired[i].word, context->retired[i].value);
  }
  pthread_mutex_unlock(&context->mutex);
  return result;
}

/// `later` goes on when `earlier` has done what it has.
static CUresult follow(orion_context* later, orion_context* earlier) {
  uint64_t value;
  const orion_stream* stream = earlier->order.join;
  const CUresult result = orion_stream_ticket(earlier->order.join, &value);
  return result == CUDA_SUCCESS ? orion_relay_wait(later->order.join, earlier, stream->word, value) : result;
}

CUresult orion_context_serialize(orion_context* const* contexts, uint32_t count,
                                 CUresult (*issue)(orion_stream* stream, void* argument), void* argument,
                                 bool* issued) {
  CUresult result = CUDA_SUCCESS;
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) result = orion_capture_check_context(contexts[i]);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&order_mutex);
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) result = prepare(contexts[i]);
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) result = join_all(contexts[i]);
  for (uint32_t i = 1; i < count && result == CUDA_SUCCESS; i++) result = follow(contexts[0], contexts[i]);
  if (result == CUDA_SUCCESS) result = issue(contexts[0]->order.join, argument);
  *issued = result == CUDA_SUCCESS;
  for (uint32_t i = 1; i < count && result == CUDA_SUCCESS; i++) result = follow(contexts[i], contexts[0]);
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) result = gate_all(contexts[i]);
  pthread_mutex_unlock(&order_mutex);
  return result;
}

CUresult orion_context_gate(orion_stream* stream) {
  orion_event* gate = atomic_load_explicit(&stream->context->order.gate, memory_order_acquire);
  if (gate == NULL || gate->epoch != stream->epoch) return CUDA_SUCCESS;
  return orion_event_wait(gate, stream, 0);
}
