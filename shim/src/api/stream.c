// Streams: client-minted indices, one-way work, markers only where the program itself waits or queries.
//
// Why a clean stream needs no marker: `dirty` is set after an operation is committed, and cleared (with the next marker
// value already minted) before the marker is submitted. Whoever sees it clear also sees the value to wait for.
#include <stdlib.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "device_output.h"
#include "host_function.h"
#include "pool.h"

static bool reached(const orion_stream* stream, uint64_t value) {
  return orion_word(stream->session, stream->word) >= value;
}

/// The worker has dropped all work. A marker that it dropped too is never written: then a first wait asks for a new
/// one.
static void forget_pending(orion_stream* stream) {
  atomic_store(&stream->dirty, !reached(stream, atomic_load(&stream->marker)));
}

void orion_stream_prepare_null(orion_context* context) {
  orion_stream* stream = &context->null_stream;
  if (stream->id == 0) pthread_mutex_init(&stream->mutex, NULL);
  stream->context = context;
  stream->session = context->session;
  stream->wire_index = 0;
  stream->word = ORION_WORD_NULL_STREAM + context->entry.index;
  stream->priority = 0;
  stream->attributes.set = 0;
  stream->id = orion_next_id();
  atomic_store(&stream->host_function, 0);
  forget_pending(stream);
}

// ------------------------------------------------------------------------------------------------ work and markers

CUresult orion_stream_submit(orion_stream* stream, orion_op* op, uint32_t head_bytes, const void* tail,
                             uint32_t tail_bytes) {
  if (orion_is_captured(stream)) return orion_capture_operation(stream, op, head_bytes, tail, tail_bytes);
  op->context = (uint16_t)stream->context->entry.index;
  op->stream = stream->wire_index;
  uint64_t seen = 0;
  if (__builtin_expect(atomic_load_explicit(&orion_coherent_variables, memory_order_relaxed) != 0, 0) &&
      (ORION_OP_INFO[op->code].flags & ORION_OPF_WORK) != 0) {
    seen = orion_coherent_before_work(stream, op);
  }
  const CUresult result = orion_submit(stream->session, op, head_bytes, tail, tail_bytes);
  orion_coherent_after(stream, seen);
  atomic_store_explicit(&stream->dirty, 1, memory_order_release);
  return result;
}

/// Under the stream's mutex: mints the next value; everything committed so far is covered by its marker.
static uint64_t mint(orion_stream* stream) {
  const uint64_t value = atomic_load_explicit(&stream->marker, memory_order_relaxed) + 1;
  atomic_store_explicit(&stream->marker, value, memory_order_release);
  atomic_store_explicit(&stream->dirty, 0, memory_order_seq_cst);
  return value;
}

static CUresult submit_mark(orion_stream* stream) {
  orion_coherent_mark(stream);
  orion_op_mark op = {
      .op = {.code = ORION_OP_MARK, .context = (uint16_t)stream->context->entry.index, .stream = stream->wire_index},
      .word = stream->word};
  op.value = mint(stream);
  return orion_submit(stream->session, &op.op, sizeof op, NULL, 0);
}

CUresult orion_stream_ticket(orion_stream* stream, uint64_t* value) {
  CUresult result = CUDA_SUCCESS;
  if (atomic_load_explicit(&stream->dirty, memory_order_acquire) != 0) {
    pthread_mutex_lock(&stream->mutex);
    if (atomic_load_explicit(&stream->dirty, memory_order_acquire) != 0) result = submit_mark(stream);
    pthread_mutex_unlock(&stream->mutex);
  }
  *value = atomic_load_explicit(&stream->marker, memory_order_acquire);
  return result;
}

CUresult orion_stream_submit_marked(orion_stream* stream, orion_op* op, uint32_t head_bytes, uint32_t* word,
                                    uint64_t* value) {
  op->context = (uint16_t)stream->context->entry.index;
  op->stream = stream->wire_index;
  pthread_mutex_lock(&stream->mutex);
  orion_coherent_mark(stream);
  *word = stream->word;
  *value = mint(stream);
  const CUresult result = orion_submit(stream->session, op, head_bytes, NULL, 0);
  pthread_mutex_unlock(&stream->mutex);
  return result;
}

CUresult orion_stream_wait(orion_stream* stream, uint64_t value) {
  return orion_wait_word(stream->session, stream->word, value, stream->context->entry.index);
}

// ------------------------------------------------------------------------------------------------ waiting for several

typedef struct wait_set {
  orion_ticket* tickets;
  bool fresh;  // a marker was placed for this wait
  uint32_t count, capacity;
  orion_ticket first[64];
} wait_set;

static bool add_ticket(wait_set* set, uint32_t word, uint64_t value) {
  if (set->count == set->capacity) {
    const uint32_t capacity = 2 * set->capacity;
    orion_ticket* larger = malloc(capacity * sizeof *larger);
    if (larger == NULL) return false;
    for (uint32_t i = 0; i < set->count; i++) larger[i] = set->tickets[i];
    if (set->tickets != set->first) free(set->tickets);
    set->tickets = larger;
    set->capacity = capacity;
  }
  set->tickets[set->count++] = (orion_ticket){.word = word, .value = value};
  return true;
}

static CUresult add_stream(wait_set* set, orion_stream* stream) {
  const uint64_t before = atomic_load_explicit(&stream->marker, memory_order_relaxed);
  uint64_t value;
  const CUresult result = orion_stream_ticket(stream, &value);
  set->fresh |= value != before;
  if (result != CUDA_SUCCESS || reached(stream, value)) return result;
  return add_ticket(set, stream->word, value) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/// Unreached tickets of the NULL stream and of the context's other streams (`all`: non-blocking ones too).
static CUresult collect(orion_context* context, bool all, wait_set* set) {
  set->tickets = set->first;
  set->count = 0;
  set->fresh = false;
  set->capacity = sizeof set->first / sizeof set->first[0];
  CUresult result = add_stream(set, &context->null_stream);
  pthread_mutex_lock(&context->mutex);
  for (orion_stream* stream = context->streams; stream != NULL && result == CUDA_SUCCESS; stream = stream->next) {
    if (all || (stream->flags & CU_STREAM_NON_BLOCKING) == 0) result = add_stream(set, stream);
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < context->retired_count; i++) {
    const orion_ticket ticket = context->retired[i];
    if (orion_word(context->session, ticket.word) >= ticket.value) continue;
    context->retired[kept++] = ticket;
    if ((all || ticket.blocking) && !add_ticket(set, ticket.word, ticket.value)) result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  context->retired_count = kept;
  pthread_mutex_unlock(&context->mutex);
  return result;
}

static CUresult finish(orion_context* context, CUresult result) {
  if (result == CUDA_SUCCESS) result = orion_context_error(context->session, context->entry.index);
  return result == CUDA_SUCCESS ? orion_take_late_error(context->session) : result;
}

static CUresult wait_all(orion_context* context, bool all) {
  wait_set set;
  CUresult result = collect(context, all, &set);
  for (uint32_t i = 0; i < set.count && result == CUDA_SUCCESS; i++) {
    result = orion_wait_word(context->session, set.tickets[i].word, set.tickets[i].value, context->entry.index);
  }
  if (set.tickets != set.first) free(set.tickets);
  orion_pools_synchronized();
  return orion_waited(context, finish(context, result));
}

CUresult orion_context_synchronize(orion_context* context) { return wait_all(context, true); }

static bool covers_others(const orion_stream* stream) {
  return stream->wire_index == 0 &&
         (atomic_load_explicit(&stream->context->blocking_streams, memory_order_acquire) != 0 ||
          stream->context->retired_count != 0);
}

CUresult orion_stream_synchronize(orion_stream* stream) {
  if (covers_others(stream)) return wait_all(stream->context, false);
  uint64_t value;
  CUresult result = orion_stream_ticket(stream, &value);
  if (result == CUDA_SUCCESS && !reached(stream, value)) result = orion_stream_wait(stream, value);
  orion_pools_synchronized();
  return orion_waited(stream->context, finish(stream->context, result));
}

/// 900 also where the capture is over already (901 elsewhere), as an H100 answers.
static CUresult refuse_in_capture(orion_stream* stream) {
  const CUresult result = orion_capture_refuse(stream);
  return result == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : result;
}

ORION_API CUresult cuStreamSynchronize(CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (orion_is_captured(stream)) return refuse_in_capture(stream);
  ORION_CAPTURE_SAFE();
  return orion_stream_synchronize(stream);
}

/// A marker that the query itself has just placed cannot be reached yet, though the work may be done long ago: the
/// worker is asked. Later queries load the word.
static CUresult ask(orion_context* context, uint32_t word, uint64_t value, bool* pending) {
  orion_op_stream_query op = {.op = {.code = ORION_OP_STREAM_QUERY,
                                     .context = (uint16_t)context->entry.index,
                                     .stream = word >= ORION_WORD_STREAMS ? word - ORION_WORD_STREAMS : 0},
                              .word = word,
                              .value = value};
  CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  *pending = result != CUDA_SUCCESS;
  if (result == CUDA_ERROR_NOT_READY) return CUDA_SUCCESS;
  // What the work has brought is here when the word is.
  if (result == CUDA_SUCCESS) result = orion_wait_word(context->session, word, value, context->entry.index);
  return result;
}

ORION_API CUresult cuStreamQuery(CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (orion_is_captured(stream)) return refuse_in_capture(stream);
  ORION_CAPTURE_SAFE();
  CUresult result;
  bool pending;
  if (covers_others(stream)) {
    wait_set set;
    result = collect(stream->context, false, &set);
    pending = set.count != 0;
    if (set.fresh && result == CUDA_SUCCESS) {
      pending = false;
      for (uint32_t i = 0; i < set.count && !pending && result == CUDA_SUCCESS; i++) {
        result = ask(stream->context, set.tickets[i].word, set.tickets[i].value, &pending);
      }
    }
    if (set.tickets != set.first) free(set.tickets);
  } else {
    const uint64_t before = atomic_load_explicit(&stream->marker, memory_order_relaxed);
    uint64_t value;
    result = orion_stream_ticket(stream, &value);
    pending = !reached(stream, value);
    if (pending && value != before && result == CUDA_SUCCESS)
      result = ask(stream->context, stream->word, value, &pending);
  }
  result = finish(stream->context, result);
  return result == CUDA_SUCCESS && pending ? CUDA_ERROR_NOT_READY : result;
}

// ------------------------------------------------------------------------------------------------ making and ending

static bool settled(orion_stream* stream) {
  if (stream->id == 0) return true;                                    // never used
  if (!orion_same_epoch(stream->context, stream->epoch)) return true;  // the worker has drained and dropped it
  return reached(stream, atomic_load(&stream->marker));
}

/// An index whose last owner's markers are all written: the GPU could still write an old value over a new one
/// otherwise.
static orion_stream* take_settled(void) {
  orion_stream* stream = orion_object_take(&orion_streams);
  if (stream == NULL || settled(stream)) return stream;
  orion_stream* fresh = orion_table_take_unused(&orion_streams);
  if (fresh != NULL) {
    orion_table_give(&orion_streams, stream);
    return fresh;
  }
  if (orion_stream_wait(stream, atomic_load(&stream->marker)) == CUDA_SUCCESS) return stream;
  orion_table_give(&orion_streams, stream);
  return NULL;
}

static CUresult make(orion_context* context, uint32_t flags, int32_t priority, bool is_private, orion_stream** out) {
  orion_stream* stream = take_settled();
  if (stream == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  if (stream->id == 0) pthread_mutex_init(&stream->mutex, NULL);
  stream->context = context;
  stream->session = context->session;
  stream->epoch = atomic_load(&context->epoch);
  stream->wire_index = stream->entry.index;
  stream->word = ORION_WORD_STREAMS + stream->entry.index;
  stream->flags = flags;
  stream->priority = priority;
  stream->attributes.set = 0;
  stream->id = orion_next_id();
  atomic_store(&stream->host_function, 0);
  for (uint32_t i = 0; i < ORION_WAITS_KEPT; i++) atomic_store_explicit(&stream->waited[i], 0, memory_order_relaxed);
  atomic_store(&stream->coherent, 0);
  atomic_store(&stream->dirty, !reached(stream, atomic_load(&stream->marker)));
  orion_op_stream_create op = {
      .op = {.code = ORION_OP_STREAM_CREATE, .context = (uint16_t)context->entry.index, .stream = stream->wire_index},
      .stream_flags = flags,
      .priority = priority};
  const CUresult result = orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_streams, stream);
    return result;
  }
  stream->previous = stream->next = NULL;
  if (!is_private) {
    pthread_mutex_lock(&context->mutex);
    stream->next = context->streams;
    if (stream->next != NULL) stream->next->previous = stream;
    context->streams = stream;
    pthread_mutex_unlock(&context->mutex);
    if ((flags & CU_STREAM_NON_BLOCKING) == 0) atomic_fetch_add(&context->blocking_streams, 1);
  }
  stream->handle = orion_table_publish(&orion_streams, stream);
  *out = stream;
  return CUDA_SUCCESS;
}

CUresult orion_stream_create(orion_context* context, uint32_t flags, int32_t priority, orion_stream** out) {
  const CUresult result = make(context, flags, priority, false, out);
  return result == CUDA_SUCCESS ? orion_context_gate(*out) : result;
}

CUresult orion_private_stream(orion_context* context, orion_stream** out) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  CUresult result = CUDA_SUCCESS;
  const uint32_t epoch = atomic_load(&context->epoch);
  if (context->private_stream == NULL || context->private_epoch != epoch) {
    result = make(context, CU_STREAM_NON_BLOCKING, 0, true, &context->private_stream);
    if (result != CUDA_SUCCESS) context->private_stream = NULL;
    context->private_epoch = epoch;
  }
  *out = context->private_stream;
  pthread_mutex_unlock(&mutex);
  return result;
}

static void unlink_stream(orion_context* context, orion_stream* stream) {
  if (stream->previous != NULL) {
    stream->previous->next = stream->next;
  } else {
    context->streams = stream->next;
  }
  if (stream->next != NULL) stream->next->previous = stream->previous;
  if ((stream->flags & CU_STREAM_NON_BLOCKING) == 0) atomic_fetch_sub(&context->blocking_streams, 1);
}

/// Under the context's mutex. Without memory the ticket is lost, so the caller waits for it instead.
static bool keep_retired(orion_context* context, const orion_stream* stream, uint64_t value) {
  if (context->retired_count == context->retired_capacity) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < context->retired_count; i++) {
      const orion_ticket ticket = context->retired[i];
      if (orion_word(context->session, ticket.word) < ticket.value) context->retired[kept++] = ticket;
    }
    context->retired_count = kept;
  }
  if (context->retired_count == context->retired_capacity) {
    const uint32_t capacity = context->retired_capacity == 0 ? 32 : 2 * context->retired_capacity;
    orion_ticket* larger = realloc(context->retired, capacity * sizeof *larger);
    if (larger == NULL) return false;
    context->retired = larger;
    context->retired_capacity = capacity;
  }
  context->retired[context->retired_count++] =
      (orion_ticket){.word = stream->word, .blocking = (stream->flags & CU_STREAM_NON_BLOCKING) == 0, .value = value};
  return true;
}

static CUresult destroy(orion_stream* stream, uint32_t generation) {
  orion_context* context = stream->context;
  if (!orion_table_retire(&orion_streams, stream, generation)) return CUDA_ERROR_INVALID_HANDLE;
  if (orion_is_captured(stream)) orion_capture_forget_stream(stream);
  uint64_t value;
  CUresult result = orion_stream_ticket(stream, &value);
  pthread_mutex_lock(&context->mutex);
  const bool lost = !reached(stream, value) && !keep_retired(context, stream, value);
  unlink_stream(context, stream);
  pthread_mutex_unlock(&context->mutex);
  if (lost) (void)orion_stream_wait(stream, value);
  orion_callback_lane_retire(stream);
  orion_op_stream_destroy op = {
      .op = {.code = ORION_OP_STREAM_DESTROY, .context = (uint16_t)context->entry.index, .stream = stream->wire_index}};
  const CUresult submitted = orion_submit(stream->session, &op.op, sizeof op, NULL, 0);
  orion_table_give(&orion_streams, stream);
  return result == CUDA_SUCCESS ? submitted : result;
}

void orion_context_streams_end(orion_context* context) {
  pthread_mutex_lock(&context->mutex);
  for (orion_stream* stream = context->streams; stream != NULL; stream = stream->next) {
    orion_callback_lane_retire(stream);
  }
  context->streams = NULL;
  atomic_store(&context->blocking_streams, 0);
  context->retired_count = 0;
  pthread_mutex_unlock(&context->mutex);
  orion_callback_lane_retire(&context->null_stream);
  forget_pending(&context->null_stream);
}

void orion_thread_streams_end(orion_thread* thread) {
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) {
    if (thread->thread_streams[i] == 0) continue;
    uint32_t generation;
    orion_stream* stream = orion_table_find(&orion_streams, thread->thread_streams[i], &generation);
    if (stream != NULL && orion_same_epoch(stream->context, stream->epoch)) (void)destroy(stream, generation);
  }
}

static CUresult thread_stream(orion_context* context, orion_stream** out) {
  orion_thread* thread = orion_thread_state();
  if (thread == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  uint64_t* slot = &thread->thread_streams[context->entry.index];
  orion_stream* stream = *slot == 0 ? NULL : orion_table_find(&orion_streams, *slot, NULL);
  if (stream != NULL && stream->context == context && orion_same_epoch(context, stream->epoch)) {
    *out = stream;
    return CUDA_SUCCESS;
  }
  const CUresult result = orion_stream_create(context, CU_STREAM_DEFAULT, 0, out);
  if (result == CUDA_SUCCESS) *slot = (*out)->handle;
  return result;
}

CUresult orion_resolve_stream(CUstream handle, orion_stream** out) {
  uintptr_t value = (uintptr_t)handle;
  if (value == 0) value = orion_default_stream_override;
  if (value <= (uintptr_t)CU_STREAM_PER_THREAD) {
    orion_context* context;
    const CUresult result = orion_current(&context);
    if (result != CUDA_SUCCESS) return result;
    if (value == (uintptr_t)CU_STREAM_PER_THREAD) return thread_stream(context, out);
    *out = &context->null_stream;
    return CUDA_SUCCESS;
  }
  const CUresult result = orion_object_find(&orion_streams, (void*)value, out);
  if (result != CUDA_SUCCESS) return value == ORION_STREAM_RECORDER ? orion_recorder_stream(out) : result;
  return orion_context_error((*out)->session, (*out)->context->entry.index);
}

ORION_API CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned int flags, int priority) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(handle != NULL && (flags & ~(unsigned)CU_STREAM_NON_BLOCKING) == 0, CUDA_ERROR_INVALID_VALUE);
  const orion_device* device = context->device->info;
  if (priority > device->least_priority) priority = device->least_priority;
  if (priority < device->greatest_priority) priority = device->greatest_priority;
  orion_stream* stream;
  const CUresult result = orion_stream_create(context, flags, priority, &stream);
  if (result == CUDA_SUCCESS) *handle = (CUstream)(uintptr_t)stream->handle;
  return result;
}

ORION_API CUresult cuStreamCreate(CUstream* handle, unsigned int flags) {
  ORION_COUNTED();

  return cuStreamCreateWithPriority(handle, flags, 0);
}

ORION_API CUresult cuStreamDestroy_v2(CUstream handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_stream* stream = orion_table_find(&orion_streams, (uint64_t)(uintptr_t)handle, &generation);
  if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
  if (!orion_same_epoch(stream->context, stream->epoch)) {
    if (orion_table_retire(&orion_streams, stream, generation)) orion_table_give(&orion_streams, stream);
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  return destroy(stream, generation);
}

ORION_API CUresult cuStreamDestroy(CUstream handle) { return cuStreamDestroy_v2(handle); }

// ------------------------------------------------------------------------------------------------ properties

ORION_API CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(priority != NULL, CUDA_ERROR_INVALID_VALUE);
  *priority = stream->wire_index == 0 ? 0 : stream->priority;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamGetFlags(CUstream handle, unsigned int* flags) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(flags != NULL, CUDA_ERROR_INVALID_VALUE);
  *flags = stream->wire_index == 0 ? CU_STREAM_DEFAULT : stream->flags;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(id != NULL, CUDA_ERROR_INVALID_VALUE);
  *id = stream->id;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(context != NULL, CUDA_ERROR_INVALID_VALUE);
  *context = (CUcontext)(uintptr_t)stream->context->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamGetCtx_v2(CUstream handle, CUcontext* context, CUgreenCtx* green_context) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(context != NULL && green_context != NULL, CUDA_ERROR_INVALID_VALUE);
  *context = (CUcontext)(uintptr_t)stream->context->handle;
  *green_context = NULL;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamGetDevice(CUstream handle, CUdevice* device) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_VALUE);
  *device = (CUdevice)stream->context->device->ordinal;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ order

ORION_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int flags) {
  ORION_ENTER_STREAM(stream, handle);
  orion_event* event;
  const CUresult result = orion_event_of(event_handle, &event);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE((flags & ~1u) == 0, CUDA_ERROR_INVALID_VALUE);
  return orion_event_wait(event, stream, flags);
}
