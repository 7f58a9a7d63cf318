// Nearly every call of CUDA's runtime begins with `get`, so a hit costs a few loads: each thread remembers what it
// found, together with the number of changes made until then, and asks under the lock only when that has grown.
#include "context_storage.h"

#include <stdlib.h>

#include "export.h"

typedef void (*destructor)(CUcontext context, void* key, void* value);

typedef struct kept_value {
  void *key, *value;
  destructor destroy;
} kept_value;

/// What belongs to one context, in the order of the puts. `owner`: the generation of the context that it is of, so that
/// a later context of the same index begins with none.
typedef struct context_values {
  uint32_t owner;
  uint32_t count, capacity;
  kept_value* values;
} context_values;

static context_values kept[ORION_CONTEXTS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t changes = 1;  // a thread's memory begins with 0: nothing known

static void changed(void) { atomic_fetch_add_explicit(&changes, 1, memory_order_release); }

/// `handle`: NULL and -1 mean the thread's current context. A primary context need not be active.
static inline CUresult resolve(CUcontext handle, orion_context** context, uint32_t* generation) {
  const CUresult ready = orion_ready();
  if (ready != CUDA_SUCCESS) return ready;
  if (handle == (CUcontext)UINTPTR_MAX) handle = NULL;
  const CUresult result = orion_context_of(handle, context);
  if (result == CUDA_SUCCESS) {
    *generation = atomic_load_explicit(&(*context)->entry.generation, memory_order_relaxed);
  }
  return result;
}

/// Under the lock.
static context_values* values_of(const orion_context* context, uint32_t generation) {
  context_values* values = &kept[context->entry.index];
  if (values->owner != generation) {
    values->owner = generation;
    values->count = 0;
  }
  return values;
}

static kept_value* find(const context_values* values, const void* key) {
  for (uint32_t i = 0; i < values->count; i++) {
    if (values->values[i].key == key) return &values->values[i];
  }
  return NULL;
}

static CUresult put_locked(context_values* values, const kept_value* value) {
  if (find(values, value->key) != NULL) return CUDA_ERROR_INVALID_HANDLE;
  if (values->count == values->capacity) {
    const uint32_t capacity = values->capacity == 0 ? 8 : 2 * values->capacity;
    kept_value* grown = realloc(values->values, capacity * sizeof *grown);
    if (grown == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    values->values = grown;
    values->capacity = capacity;
  }
  values->values[values->count++] = *value;
  changed();
  return CUDA_SUCCESS;
}

/// A key that is there keeps its value.
static CUresult put(CUcontext handle, void* key, void* value, destructor destroy) {
  orion_context* context;
  uint32_t generation;
  CUresult result = resolve(handle, &context, &generation);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&mutex);
  result = put_locked(values_of(context, generation), &(kept_value){key, value, destroy});
  pthread_mutex_unlock(&mutex);
  return result;
}

/// The destructor is not called.
static CUresult drop(CUcontext handle, void* key) {
  orion_context* context;
  uint32_t generation;
  CUresult result = resolve(handle, &context, &generation);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&mutex);
  context_values* values = values_of(context, generation);
  kept_value* found = find(values, key);
  result = found == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
  if (found != NULL) {
    values->count--;
    for (kept_value* next = found; next < values->values + values->count; next++) *next = next[1];
    changed();
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

static CUresult get(void** value, CUcontext handle, void* key) {
  orion_context* context;
  uint32_t generation;
  const CUresult result = resolve(handle, &context, &generation);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(value != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_thread* thread = orion_self;
  const uintptr_t bits = (uintptr_t)key;  // keys are addresses of objects in as many libraries
  orion_remembered* memory = thread == NULL ? NULL : &thread->remembered[(bits >> 4 ^ bits >> 12) % ORION_REMEMBERED];
  if (memory != NULL && memory->key == key && memory->context == context && memory->generation == generation &&
      memory->changes == atomic_load_explicit(&changes, memory_order_acquire)) {
    *value = memory->value;
    return CUDA_SUCCESS;
  }
  pthread_mutex_lock(&mutex);
  const kept_value* found = find(values_of(context, generation), key);
  if (found != NULL) *value = found->value;
  if (found != NULL && memory != NULL) {
    *memory = (orion_remembered){context, key, found->value, atomic_load_explicit(&changes, memory_order_relaxed),
                                 generation};
  }
  pthread_mutex_unlock(&mutex);
  return found == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

static bool take_last(const orion_context* context, uint32_t generation, kept_value* last) {
  pthread_mutex_lock(&mutex);
  context_values* values = values_of(context, generation);
  const bool any = values->count != 0;
  if (any) {
    *last = values->values[--values->count];
    changed();
  }
  pthread_mutex_unlock(&mutex);
  return any;
}

void orion_storage_end(orion_context* context) {
  const CUcontext handle = (CUcontext)(uintptr_t)context->handle;
  const uint32_t generation = atomic_load(&context->entry.generation);
  kept_value last;
  // The thread's current context stays what it is: natively a reset without one runs them without one.
  while (take_last(context, generation, &last)) {
    if (last.destroy != NULL) last.destroy(handle, last.key, last.value);
  }
}

/// The only table without a size: three functions, then an end.
const void* orion_storage_table(void) {
  static orion_export_slot slots[4];
  slots[0] = ORION_EXPORT_SLOT(put);
  slots[1] = ORION_EXPORT_SLOT(drop);
  slots[2] = ORION_EXPORT_SLOT(get);
  return slots;
}
