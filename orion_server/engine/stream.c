// Streams, markers, events and host functions.
#include <stdlib.h>

#include "internal.h"
#include "launcher.h"

// ------------------------------------------------------------------------------------------------ markers
stream_state* marker_stream(orion_engine* e, stream_state* stream) {
  const uint32_t context = stream->context;
  context_state* c = &e->contexts[context];
  if (stream->handle) return stream;
  // On NULL itself a marker of ours would hold later work of the program's blocking streams.
  if (!c->blocking_streams) return stream;
  stream_state* own = &e->streams[STREAM_PRIVATE_BASE + context];
  if (own->alive) return own;
  if (e->current_context != context) {
    if (answer_check(e, context, (int32_t)e->driver.context_set_current(c->handle))) return NULL;
    e->current_context = context;
  }
  CUstream handle = NULL;
  if (answer_check(e, context, (int32_t)e->driver.stream_create(&handle, CU_STREAM_DEFAULT, 0))) return NULL;
  const uint32_t track_index = order_track_open(e, handle, context);
  if (!track_index) {
    (void)e->driver.stream_destroy(handle);
    return NULL;
  }
  *own = (stream_state){
      .handle = handle, .track = track_index, .context = (uint16_t)context, .alive = true, .blocking = true};
  return own;
}

static bool word_allowed(uint32_t word) {
  return (word > ORION_WORD_STREAMS && word < ORION_WORD_STREAMS + ORION_STREAMS) ||
         (word > ORION_WORD_NULL_STREAM && word < ORION_WORD_NULL_STREAM + ORION_CONTEXTS) ||
         (word >= ORION_WORD_DYNAMIC && word < ORION_WORDS);
}

int32_t place_marker(orion_engine* e, stream_state* stream, uint32_t word, uint64_t value) {
  if (!word_allowed(word)) return CUDA_ERROR_INVALID_VALUE;
  if (word < ORION_WORD_DYNAMIC && value > stream->marked_value) stream->marked_value = value;
  if (order_track_idle(e, stream->track)) {
    // All of the stream's work is known to be done. A marker of another stream may still be on its way to the same
    // word with a smaller value; words only grow, so the client that mixes streams in a word hurts itself alone.
    if (atomic_load_explicit(&e->segment->words[word], memory_order_relaxed) < value) answer_set_word(e, word, value);
    return 0;
  }
  stream_state* on = marker_stream(e, stream);
  if (!on) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUdeviceptr address = e->words_device + (uint64_t)word * 8;
  if (!e->launchers || !launcher_write(e, on->track, on->handle, address, value)) {
    const int32_t result =
        answer_check(e, stream->context, (int32_t)e->driver.write_value64(on->handle, address, value, 0));
    if (result) return result;
  }
  order_issued(e, on);
  if (e->net) net_marker(e, stream->context, word, value);
  return 0;
}

void stream_mark(orion_engine* e, const orion_op* op) {
  const orion_op_mark* o = (const orion_op_mark*)op;
  stream_state* s = use_stream(e, op);
  if (s) answer_result(e, op, place_marker(e, s, o->word, o->value));
}

// ------------------------------------------------------------------------------------------------ streams
void stream_create(orion_engine* e, const orion_op* op) {
  const orion_op_stream_create* o = (const orion_op_stream_create*)op;
  context_state* c = use_context(e, op);
  if (!c) return;
  stream_state* s = &e->streams[op->stream];
  if (!op->stream || s->alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  CUstream handle = NULL;
  const int32_t result =
      answer_check(e, op->context, (int32_t)e->driver.stream_create(&handle, o->stream_flags, o->priority));
  if (result) {
    answer_result(e, op, result);
    return;
  }
  const uint32_t track_index = order_track_open(e, handle, op->context);
  if (!track_index) {
    (void)e->driver.stream_destroy(handle);
    answer_result(e, op, CUDA_ERROR_OUT_OF_MEMORY);
    return;
  }
  const uint32_t blocked_epoch = s->blocked_epoch;
  *s = (stream_state){.handle = handle,
                      .track = track_index,
                      .blocked_epoch = blocked_epoch,
                      .context = op->context,
                      .alive = true,
                      .blocking = !(o->stream_flags & CU_STREAM_NON_BLOCKING)};
  if (s->blocking) c->blocking_streams++;
  if (op->stream >= e->stream_high) e->stream_high = op->stream + 1;
  answer_result(e, op, 0);
}

void stream_close(orion_engine* e, uint32_t index) {
  stream_state* s = &e->streams[index];
  if (!s->alive) return;
  order_track_close(e, s->track);
  (void)e->driver.stream_destroy(s->handle);
  if (s->blocking && index < ORION_STREAMS) e->contexts[s->context].blocking_streams--;
  const uint32_t blocked_epoch = s->blocked_epoch;
  *s = (stream_state){.blocked_epoch = blocked_epoch};
}

void stream_destroy(orion_engine* e, const orion_op* op) {
  if (!use_stream(e, op)) return;
  if (!op->stream) {
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return;
  }
  stream_close(e, op->stream);
  answer_result(e, op, 0);
}

static event_state* event_at(orion_engine* e, const orion_op* op, uint32_t index) {
  if (index < EVENT_TABLE && e->events[index].alive) return &e->events[index];
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

// The end of one driver entry: counted, and the outcome told.
static void finish(orion_engine* e, const orion_op* op, stream_state* s, CUresult code) {
  const int32_t result = answer_check(e, op->context, (int32_t)code);
  if (!result) order_issued(e, s);
  answer_result(e, op, result);
}

void stream_wait_event(orion_engine* e, const orion_op* op) {
  const orion_op_stream_wait_event* o = (const orion_op_stream_wait_event*)op;
  stream_state* s = use_stream(e, op);
  event_state* v = s ? event_at(e, op, o->event) : NULL;
  if (v) finish(e, op, s, e->driver.stream_wait_event(s->handle, v->handle, o->wait_flags & CU_EVENT_WAIT_EXTERNAL));
}

void stream_value(orion_engine* e, const orion_op* op) {
  const orion_op_stream_write_value* o = (const orion_op_stream_write_value*)op;  // both operations are laid out alike
  stream_state* s = use_stream(e, op);
  if (!s) return;
  const bool wide = o->width_bytes == 8;
  if ((!wide && o->width_bytes != 4) || o->device_address % o->width_bytes ||
      !memory_device_ok(e, o->device_address, o->width_bytes)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  const bool write = op->code == ORION_OP_STREAM_WRITE_VALUE;
  const CUdeviceptr address = o->device_address;
  CUresult code;
  if (wide) {
    code = (write ? e->driver.write_value64 : e->driver.wait_value64)(s->handle, address, o->value, o->write_flags);
  } else {
    code = (write ? e->driver.write_value32 : e->driver.wait_value32)(s->handle, address, (uint32_t)o->value,
                                                                      o->write_flags);
  }
  finish(e, op, s, code);
  if (write || code || !e->seat) return;
  order_mark_track(e, s->track);
  s->word_wait = e->tracks[s->track].issued;
}

// First the client is told that earlier work is done, then the stream stays parked until its function has returned.
enum step stream_host_function(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_host_function* o = (const orion_op_host_function*)op;
  if (o->callback >= ORION_CLIENT_WORDS) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return STEP_DONE;
  }
  if (!node) {  // its two stages need a parked entry; the next pass makes the first
    park_cause(e, CAUSE_TIME, 0, 0, NULL);
    return STEP_AGAIN;
  }
  if (!node->second_stage) {
    stream_state* s = use_stream(e, op);
    if (!s) return STEP_DONE;
    const int32_t result = place_marker(e, s, o->word, o->value);
    if (result) {
      answer_result(e, op, result);
      return STEP_DONE;
    }
    node->second_stage = true;
  }
  if (e->contexts[op->context].sticky ||
      atomic_load_explicit(&e->segment->client_words[o->callback], memory_order_acquire) >= o->generation) {
    variable_pull_all(e);
    answer_result(e, op, 0);
    return STEP_DONE;
  }
  park_cause(e, CAUSE_HOST_FUNCTION, o->callback, o->generation, NULL);
  return STEP_AGAIN;
}

// ------------------------------------------------------------------------------------------------ events
void event_bind(orion_engine* e, const orion_op* op, uint32_t index, CUevent handle, uint32_t flags) {
  event_state* v = &e->events[index];
  *v = (event_state){.handle = handle,
                     .record_epoch = v->record_epoch,
                     .use_epoch = v->use_epoch,
                     .flags = flags,
                     .context = op->context,
                     .alive = true};
  if (index >= e->event_high) e->event_high = index + 1;
}

void event_create(orion_engine* e, const orion_op* op) {
  const orion_op_event_create* o = (const orion_op_event_create*)op;
  if (!use_context(e, op)) return;
  if (o->event >= ORION_EVENTS || e->events[o->event].alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  CUevent handle = NULL;
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.event_create(&handle, o->event_flags));
  if (!result) event_bind(e, op, o->event, handle, o->event_flags);
  answer_result(e, op, result);
}

int32_t event_close(orion_engine* e, uint32_t index) {
  event_state* v = &e->events[index];
  if (v->token) share_withdraw(e, v->token);
  free(v->token);
  const int32_t result = (int32_t)e->driver.event_destroy(v->handle);
  *v = (event_state){.record_epoch = v->record_epoch, .use_epoch = v->use_epoch};
  return result;
}

void event_destroy(orion_engine* e, const orion_op* op) {
  const orion_op_event_destroy* o = (const orion_op_event_destroy*)op;
  if (!use_context(e, op)) return;
  if (event_at(e, op, o->event)) answer_result(e, op, answer_check(e, op->context, event_close(e, o->event)));
}

// Ring order and parking have done what was asked for.
void event_issued(orion_engine* e, const orion_op* op) {
  if (event_at(e, op, ((const orion_op_event_issued*)op)->event)) answer_result(e, op, 0);
}

void event_record(orion_engine* e, const orion_op* op) {
  const orion_op_event_record* o = (const orion_op_event_record*)op;
  stream_state* s = use_stream(e, op);
  event_state* v = s ? event_at(e, op, o->event) : NULL;
  if (!v) return;
  int32_t result =
      answer_check(e, op->context,
                   (int32_t)e->driver.event_record(v->handle, s->handle, o->record_flags & CU_EVENT_RECORD_EXTERNAL));
  if (!result) {
    v->recorded = true;
    order_issued(e, s);
    if (o->word) result = place_marker(e, s, o->word, o->value);
  }
  answer_result(e, op, result);
}

// The client asks after it has seen both markers, which stand behind the records; the driver may need a moment longer
// to see what the GPU has already passed.
enum step event_elapsed(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_event_elapsed* o = (const orion_op_event_elapsed*)op;
  if (!use_context(e, op)) return STEP_DONE;
  if (o->start >= ORION_EVENTS || o->end >= ORION_EVENTS) {  // spare events are the engine's
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return STEP_DONE;
  }
  event_state* start = event_at(e, op, o->start);
  event_state* end = start ? event_at(e, op, o->end) : NULL;
  if (!end) return STEP_DONE;
  orion_reply_event_elapsed reply = {0};
  const int32_t result = start->recorded && end->recorded
                             ? (int32_t)e->driver.event_elapsed(&reply.milliseconds, start->handle, end->handle)
                             : CUDA_ERROR_INVALID_HANDLE;
  if (result == CUDA_ERROR_NOT_READY) {
    const uint64_t now_ns = engine_now_ns();
    if (node && !node->deadline_ns) node->deadline_ns = now_ns + 2000000;
    if (!node || now_ns < node->deadline_ns) {
      park_cause(e, CAUSE_TIME, 0, node ? now_ns + 50000 : 0, NULL);
      return STEP_AGAIN;
    }
  }
  answer_reply(e, op, answer_check(e, op->context, result), &reply, result ? 0 : sizeof reply);
  return STEP_DONE;
}
