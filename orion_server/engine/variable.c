// Managed variables (`__managed__`). The driver places one where both this process and every kernel reach it. The
// client has pages at the same address, which are arena memory on this side: its own copy of the variable.
//
// Over shared memory both copies lie here. What the client has changed is stored in the variable before a launch
// (HOST_PULL), and what kernels have changed is stored in the arena by a function of the stream before its next marker
// (HOST_PUBLISH). Over a network coherent.c does both, with the variable in the arena's place. `known` is what both
// sides have agreed on last: only what differs from it moves, so each side keeps the words that it alone has written.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define VARIABLES_MAX 65536u
#define PAGE_BYTES 4096ull

/// Functions that the driver has yet to call hold references: they may come when the variable or the session is gone.
typedef struct mirror {
  pthread_mutex_t mutex;
  _Atomic uint32_t references;
  uint8_t *memory, *arena, *known;
  uint64_t bytes;
  bool ended;
} mirror;

static mirror* mirror_new(uint8_t* memory, uint8_t* arena, uint64_t bytes) {
  mirror* m = calloc(1, sizeof *m);
  if (!m) return NULL;
  m->known = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m->known == MAP_FAILED) {
    free(m);
    return NULL;
  }
  m->memory = memory;
  m->arena = arena;
  m->bytes = bytes;
  m->references = 1;
  pthread_mutex_init(&m->mutex, NULL);
  return m;
}

static void release(mirror* m) {
  if (atomic_fetch_sub(&m->references, 1) != 1) return;
  munmap(m->known, m->bytes);
  pthread_mutex_destroy(&m->mutex);
  free(m);
}

void variable_mirror_end(mirror* m) {
  pthread_mutex_lock(&m->mutex);
  m->ended = true;
  pthread_mutex_unlock(&m->mutex);
  release(m);
}

uint8_t* variable_memory(const mirror* m) { return m->memory; }

/// Under the mirror's mutex. What is read once counts, whatever its writer does meanwhile.
static void transfer(const mirror* m, uint8_t* to, const uint8_t* from) {
  uint64_t at = 0, length = 0;
  while (orion_next_difference(from, m->known, m->bytes, &at, &length)) {
    memcpy(m->known + at, from + at, length);
    memcpy(to + at, m->known + at, length);
    at += length;
  }
}

static void pull(mirror* m) {
  pthread_mutex_lock(&m->mutex);
  if (!m->ended) transfer(m, m->memory, m->arena);
  pthread_mutex_unlock(&m->mutex);
}

/// On a thread of the driver's.
static void publish(void* argument) {
  mirror* m = argument;
  pthread_mutex_lock(&m->mutex);
  if (!m->ended) transfer(m, m->arena, m->memory);
  pthread_mutex_unlock(&m->mutex);
  release(m);
}

int32_t variable_publish(orion_engine* e, stream_state* stream, mirror* m) {
  if (order_track_idle(e, stream->track)) {
    pthread_mutex_lock(&m->mutex);
    transfer(m, m->arena, m->memory);
    pthread_mutex_unlock(&m->mutex);
    return 0;
  }
  stream_state* on = marker_stream(e, stream);
  if (!on) return CUDA_ERROR_OUT_OF_MEMORY;
  atomic_fetch_add(&m->references, 1);
  const int32_t result = (int32_t)e->driver.launch_host_function(on->handle, publish, m);
  if (result) {
    release(m);
  } else {
    order_issued(e, on);
    // In the NULL stream's place: it is not idle before this has run.
    if (on != stream) order_issued(e, stream);
  }
  return result;
}

void variable_pull(orion_engine* e, const orion_op* op) {
  const orion_op_host_pull* o = (const orion_op_host_pull*)op;
  const coherent_range* r = coherent_find(e, o->arena_off, o->size_bytes);
  if (e->net || !r || !r->mirror) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  pull(r->mirror);
  answer_result(e, op, 0);
}

void variable_pull_all(orion_engine* e) {
  if (!e->mirror_count || e->net) return;  // over a network the client has sent what its function has changed
  for (uint32_t i = 0; i < e->coherent_count; i++) {
    if (e->coherent[i].mirror) pull(e->coherent[i].mirror);
  }
}

// ------------------------------------------------------------------------------------------------ what the driver told
static uint64_t first_page(const variable_state* v) { return v->address & ~(PAGE_BYTES - 1); }
static uint64_t page_end(const variable_state* v) {
  return (v->address + v->bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
}

/// Both sides may use the memory at any time only where the device says so.
static bool reachable(orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    int value = 0;
    const CUdevice device = (CUdevice)e->devices[i].ordinal;
    const int attribute = CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS;
    if (e->driver.device_attribute(&value, attribute, device) != 0 || !value) return false;
  }
  return true;
}

int32_t variable_told(orion_engine* e, uint32_t owner, uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < e->variable_count; i++) {
    if (e->variables[i].address == address && e->variables[i].owner == owner) return 0;
  }
  if (!bytes || address > UINT64_MAX - bytes - PAGE_BYTES || !reachable(e)) return CUDA_ERROR_NOT_SUPPORTED;
  if (e->variable_count == e->variable_capacity) {
    const uint32_t capacity = e->variable_capacity ? e->variable_capacity * 2 : 16;
    variable_state* grown = capacity <= VARIABLES_MAX ? realloc(e->variables, capacity * sizeof *grown) : NULL;
    if (!grown) return CUDA_ERROR_OUT_OF_MEMORY;
    e->variables = grown;
    e->variable_capacity = capacity;
  }
  e->variables[e->variable_count++] = (variable_state){address, bytes, owner};
  return 0;
}

static bool has_pages(const orion_engine* e, uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < e->variable_count; i++) {
    const variable_state* v = &e->variables[i];
    if (address >= first_page(v) && address < page_end(v) && bytes <= page_end(v) - address) return true;
  }
  return false;
}

bool variable_contains(const orion_engine* e, uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < e->variable_count; i++) {
    const variable_state* v = &e->variables[i];
    if (address >= v->address && address - v->address <= v->bytes && bytes <= v->bytes - (address - v->address)) {
      return true;
    }
  }
  return false;
}

void variable_forget(orion_engine* e, uint32_t owner) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < e->variable_count; i++) {
    if (e->variables[i].owner != owner) e->variables[kept++] = e->variables[i];
  }
  if (kept == e->variable_count) return;
  e->variable_count = kept;
  // The client has ended its ranges before, if it is a correct one.
  for (uint32_t i = e->coherent_count; e->mirror_count && i-- > 0;) {
    const coherent_range* r = &e->coherent[i];
    if (!r->mirror || has_pages(e, (uint64_t)(uintptr_t)r->mirror->memory, r->bytes)) continue;
    coherent_drop(e, r->offset, r->bytes);
  }
}

// ------------------------------------------------------------------------------------------------ ranges
static int32_t open_range(orion_engine* e, const orion_op_host_variable* o) {
  if (!o->size_bytes || (o->arena_off | o->size_bytes | o->address) & (PAGE_BYTES - 1) ||
      !part_inside(o->arena_off, o->size_bytes, e->arena_bytes) || !has_pages(e, o->address, o->size_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Not what the wire says, but what the driver has told and the wire has named.
  uint8_t* memory = (uint8_t*)(uintptr_t)o->address;  // NOLINT(performance-no-int-to-ptr)
  mirror* m = mirror_new(memory, e->arena + o->arena_off, o->size_bytes);
  if (!m) return CUDA_ERROR_OUT_OF_MEMORY;
  const int32_t result = coherent_insert(e, &(coherent_range){o->arena_off, o->size_bytes, m->known, m});
  if (result) {
    release(m);
    return result;
  }
  // Both sides begin with zeros: what is not zero is what they do not know yet.
  if (e->net) {
    net_publish(e, o->arena_off, o->size_bytes, 0, 0);
  } else {
    pthread_mutex_lock(&m->mutex);
    transfer(m, m->arena, m->memory);
    pthread_mutex_unlock(&m->mutex);
  }
  return 0;
}

enum step variable_map(orion_engine* e, const orion_op* op) {
  const orion_op_host_variable* o = (const orion_op_host_variable*)op;
  const coherent_range* r = coherent_find(e, o->arena_off, o->size_bytes);
  // There already: this is the second look, at whether its content has been sent.
  const bool is_open = r && r->mirror && (uint64_t)(uintptr_t)r->mirror->memory == o->address;
  const int32_t result = is_open ? 0 : open_range(e, o);
  if (!result && !coherent_settled(e)) return STEP_AGAIN;
  answer_reply(e, op, result, NULL, 0);
  return STEP_DONE;
}

enum step variable_end(orion_engine* e, const orion_op* op) {
  const orion_op_host_variable_end* o = (const orion_op_host_variable_end*)op;
  const coherent_range* r = coherent_find(e, o->arena_off, o->size_bytes);
  if (!r || !r->mirror) {
    answer_reply(e, op, CUDA_ERROR_INVALID_VALUE, NULL, 0);
    return STEP_DONE;
  }
  // What is on its way must be with the client before it uses that part of the arena for something else.
  if (!coherent_settled(e)) return STEP_AGAIN;
  coherent_drop(e, o->arena_off, o->size_bytes);
  // The client's next allocation there is zero on its side.
  if (e->net) (void)madvise(e->arena + o->arena_off, o->size_bytes, MADV_DONTNEED);
  answer_reply(e, op, 0, NULL, 0);
  return STEP_DONE;
}
