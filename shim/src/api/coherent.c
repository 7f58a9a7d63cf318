#include "coherent.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"

#define SLOTS 63u  // ranges from this one on share the last bit of a stream's set

typedef struct candidate {
  orion_session* session;  // NULL: unused
  uint64_t address, offset, bytes;
  bool active;
  bool always;    // managed: used by every launch
  bool variable;  // used by all work: orion_coherent_before_work
} candidate;

_Atomic uint32_t orion_coherent_candidates, orion_coherent_variables;

// Lock order: a stream's mutex, then this one. Operations are submitted under it, so that a range's HOST_COHERENT
// stands before whatever relies on it.
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static candidate* candidates;
static uint32_t count, capacity;
static _Atomic uint32_t always_count;
// Bounds of all addresses that can be meant. They only widen: a value outside is told with one comparison.
static _Atomic uint64_t lowest = UINT64_MAX, highest;

static uint64_t bit_of(uint32_t index) { return 1ull << (index < SLOTS ? index : SLOTS); }

static void widen(uint64_t address, uint64_t bytes) {
  if (address < atomic_load(&lowest)) atomic_store(&lowest, address);
  if (address + bytes > atomic_load(&highest)) atomic_store(&highest, address + bytes);
}

/// Under the mutex. NULL: out of memory.
static candidate* add(const candidate* fresh) {
  uint32_t index = 0;
  while (index < count && candidates[index].session != NULL) index++;
  if (index == capacity) {
    const uint32_t wanted = capacity == 0 ? 64 : 2 * capacity;
    candidate* larger = realloc(candidates, wanted * sizeof *larger);
    if (larger == NULL) return NULL;
    candidates = larger;
    capacity = wanted;
  }
  if (index == count) count++;
  candidates[index] = *fresh;
  widen(fresh->address, fresh->bytes);
  widen((uint64_t)(uintptr_t)fresh->session->host_base + fresh->offset, fresh->bytes);
  atomic_fetch_add(&orion_coherent_candidates, 1);
  return &candidates[index];
}

void orion_coherent_add(orion_session* session, uint64_t address, uint64_t arena_offset, uint64_t bytes) {
  if (!orion_over_network(session) || session->coherent == ORION_COHERENT_OFF) return;
  const candidate fresh = {.session = session, .address = address, .offset = arena_offset, .bytes = bytes};
  pthread_mutex_lock(&mutex);
  const bool added = add(&fresh) != NULL;
  pthread_mutex_unlock(&mutex);
  if (!added) {
    orion_log(ORION_LOG_ERROR, "out of memory: host memory at %#llx is not kept coherent for kernels",
              (unsigned long long)address);
  }
}

void orion_coherent_remove(orion_session* session, uint64_t arena_offset) {
  pthread_mutex_lock(&mutex);
  for (uint32_t i = 0; i < count; i++) {
    if (candidates[i].session != session || candidates[i].offset != arena_offset) continue;
    if (candidates[i].active) orion_coherent_end(session, arena_offset, candidates[i].bytes);
    candidates[i].session = NULL;
    if (candidates[i].always) atomic_fetch_sub(&always_count, 1);
    if (candidates[i].variable) atomic_fetch_sub(&orion_coherent_variables, 1);
    atomic_fetch_sub(&orion_coherent_candidates, 1);
  }
  pthread_mutex_unlock(&mutex);
}

/// Under the mutex.
static bool activate(candidate* c, uint32_t context) {
  if (c->active) return true;
  orion_op_host_coherent op = {.op = {.code = ORION_OP_HOST_COHERENT, .context = (uint16_t)context},
                               .arena_off = c->offset,
                               .size_bytes = c->bytes};
  if (orion_submit(c->session, &op.op, sizeof op, NULL, 0) != CUDA_SUCCESS) return false;
  c->active = orion_coherent_begin(c->session, c->offset, c->bytes, c->always);
  if (!c->active) orion_log(ORION_LOG_ERROR, "out of memory: kernels do not see the program's page-locked memory");
  return c->active;
}

static bool contains(const candidate* c, uint64_t address) {
  const uint64_t own = (uint64_t)(uintptr_t)c->session->host_base + c->offset;
  return address - c->address < c->bytes || address - own < c->bytes;
}

bool orion_coherent_add_managed(orion_session* session, uint64_t arena_offset, uint64_t bytes, uint32_t context) {
  if (!orion_over_network(session)) return true;
  const candidate fresh = {.session = session,
                           .address = (uint64_t)(uintptr_t)session->host_base + arena_offset,
                           .offset = arena_offset,
                           .bytes = bytes,
                           .always = true};
  pthread_mutex_lock(&mutex);
  candidate* c = add(&fresh);
  if (c != NULL) atomic_fetch_add(&always_count, 1);
  const bool active = c != NULL && activate(c, context);
  pthread_mutex_unlock(&mutex);
  return active;
}

CUresult orion_coherent_add_variable(orion_session* session, uint64_t address, uint64_t arena_offset, uint64_t bytes) {
  const candidate fresh = {
      .session = session, .address = address, .offset = arena_offset, .bytes = bytes, .variable = true};
  orion_op_host_variable op = {
      .op = {.code = ORION_OP_HOST_VARIABLE}, .arena_off = arena_offset, .size_bytes = bytes, .address = address};
  pthread_mutex_lock(&mutex);
  candidate* c = add(&fresh);
  CUresult result = c == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
  if (c != NULL) {
    // Before the content comes, so that it is not taken for the program's own.
    c->active = !orion_over_network(session) || orion_coherent_begin(session, arena_offset, bytes, true);
    result = c->active ? orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) {
      atomic_fetch_add(&orion_coherent_variables, 1);
    } else {
      if (c->active) orion_coherent_end(session, arena_offset, bytes);
      c->session = NULL;
      atomic_fetch_sub(&orion_coherent_candidates, 1);
    }
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

uint64_t orion_coherent_before_work(orion_stream* stream, orion_op* op) {
  uint64_t seen = 0;
  pthread_mutex_lock(&mutex);
  for (uint32_t i = 0; i < count; i++) {
    const candidate* c = &candidates[i];
    if (!c->variable || c->session != stream->session) continue;
    seen |= bit_of(i);
    if (orion_over_network(c->session)) {
      const uint64_t sequence = orion_coherent_push(c->session, c->offset, c->bytes);
      if (sequence > op->bulk_seq) op->bulk_seq = sequence;
    } else {
      orion_op_host_pull pull = {.op = {.code = ORION_OP_HOST_PULL}, .arena_off = c->offset, .size_bytes = c->bytes};
      (void)orion_submit(c->session, &pull.op, sizeof pull, NULL, 0);
    }
  }
  pthread_mutex_unlock(&mutex);
  if (seen != 0) atomic_fetch_or(&stream->coherent, seen);
  return seen;
}

/// Under the mutex: what the range's bytes need before an operation of `stream`.
static uint64_t touch(uint32_t index, orion_stream* stream, orion_op* op) {
  candidate* c = &candidates[index];
  if (!activate(c, stream->context->entry.index)) return 0;
  const uint64_t sequence = orion_coherent_push(c->session, c->offset, c->bytes);
  if (sequence > op->bulk_seq) op->bulk_seq = sequence;
  return bit_of(index);
}

uint64_t orion_coherent_always(orion_stream* stream, orion_op* op) {
  const bool all = stream->session->coherent == ORION_COHERENT_ALL;
  if (!all && atomic_load_explicit(&always_count, memory_order_relaxed) == 0) return 0;
  if (!orion_over_network(stream->session) || orion_is_captured(stream)) return 0;
  uint64_t seen = 0;
  pthread_mutex_lock(&mutex);
  for (uint32_t i = 0; i < count; i++) {
    const candidate* c = &candidates[i];
    if (c->session == stream->session && (all || c->always) && !c->variable) seen |= touch(i, stream, op);
  }
  pthread_mutex_unlock(&mutex);
  if (seen != 0) atomic_fetch_or(&stream->coherent, seen);
  return seen;
}

uint64_t orion_coherent_params(orion_stream* stream, orion_op* op, const void* params, uint32_t bytes) {
  // What a graph touches is looked at when it is launched.
  if (!orion_over_network(stream->session) || orion_is_captured(stream)) return 0;
  if (stream->session->coherent == ORION_COHERENT_ALL) return 0;  // orion_coherent_always has seen to all
  uint64_t seen = 0;
  const uint64_t low = atomic_load_explicit(&lowest, memory_order_relaxed);
  const uint64_t span = atomic_load_explicit(&highest, memory_order_relaxed) - low;
  bool locked = false;
  uint64_t last = UINT64_MAX;  // several parameters often point into one range
  for (uint32_t at = 0; at + 8 <= bytes; at += 8) {
    uint64_t value;
    memcpy(&value, (const uint8_t*)params + at, sizeof value);
    if (value - low >= span) continue;
    if (!locked) pthread_mutex_lock(&mutex);
    locked = true;
    if (last < count && candidates[last].session == stream->session && contains(&candidates[last], value)) continue;
    for (uint32_t i = 0; i < count; i++) {
      if (candidates[i].session != stream->session || !contains(&candidates[i], value)) continue;
      if (!candidates[i].always && !candidates[i].variable) seen |= touch(i, stream, op);
      last = i;
    }
  }
  if (locked) pthread_mutex_unlock(&mutex);
  if (seen != 0) atomic_fetch_or(&stream->coherent, seen);
  return seen;
}

void orion_coherent_publish(orion_stream* stream) {
  const uint64_t seen = atomic_exchange(&stream->coherent, 0);
  pthread_mutex_lock(&mutex);
  for (uint32_t i = 0; i < count; i++) {
    const candidate* c = &candidates[i];
    if (c->session != stream->session || !c->active || (seen & bit_of(i)) == 0) continue;
    orion_op_host_publish op = {.op = {.code = ORION_OP_HOST_PUBLISH,
                                       .context = (uint16_t)stream->context->entry.index,
                                       .stream = stream->wire_index},
                                .arena_off = c->offset,
                                .size_bytes = c->bytes};
    (void)orion_submit(stream->session, &op.op, sizeof op, NULL, 0);
  }
  pthread_mutex_unlock(&mutex);
}

static void flush_stream(orion_stream* stream) {
  uint64_t value;
  if (atomic_load(&stream->coherent) != 0) (void)orion_stream_ticket(stream, &value);
}

void orion_coherent_flush(orion_session* session) {
  if (!orion_over_network(session)) return;
  for (uint32_t i = 1; i < orion_table_end(&orion_contexts); i++) {
    orion_context* context = orion_table_at(&orion_contexts, i);
    if (!orion_is_live(&context->entry) || context->session != session || !atomic_load(&context->active)) continue;
    flush_stream(&context->null_stream);
    pthread_mutex_lock(&context->mutex);
    for (orion_stream* stream = context->streams; stream != NULL; stream = stream->next) flush_stream(stream);
    pthread_mutex_unlock(&context->mutex);
  }
}
