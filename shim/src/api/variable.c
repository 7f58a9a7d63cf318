#include "variable.h"

#include <stdlib.h>

#include "api.h"

#define PAGE_BYTES 4096ull

/// Whole pages. Variables that share one have one part, which ends with the last of them.
typedef struct part {
  struct part* next;
  orion_session* session;
  uint64_t address, bytes, offset;
  uint32_t users;
} part;

// After a library's or module's mutex, before the coherent ranges' and the memory mutex.
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static part* parts;
static orion_variable* variables;

static uint64_t first_page(uint64_t address) { return address & ~(PAGE_BYTES - 1); }
static uint64_t page_end(uint64_t address, uint64_t bytes) { return first_page(address + bytes + PAGE_BYTES - 1); }

/// Under the mutex, as all below. The part that holds `address`; else NULL, and *end is lowered to where the next
/// begins.
static part* part_at(uint64_t address, uint64_t* end) {
  for (part* p = parts; p != NULL; p = p->next) {
    if (address - p->address < p->bytes) return p;
    if (p->address > address && p->address < *end) *end = p->address;
  }
  return NULL;
}

/// NULL, or why there can be no pages.
static const char* make_part(orion_session* session, uint64_t address, uint64_t bytes) {
  part* made = calloc(1, sizeof *made);
  uint8_t* arena = made == NULL ? NULL : orion_arena_allocate(session, bytes);
  if (arena == NULL) {
    free(made);
    return "the host arena is full";
  }
  const uint64_t offset = (uint64_t)(arena - session->host_base);
  const char* why = orion_place_pages(session, address, bytes, offset);
  if (why == NULL && orion_coherent_add_variable(session, address, offset, bytes) != CUDA_SUCCESS) {
    orion_unplace_pages(session, address, bytes, offset);
    why = "the worker cannot share it";
  }
  if (why != NULL) {
    orion_arena_free(session, arena, bytes);
    free(made);
    return why;
  }
  *made = (part){parts, session, address, bytes, offset, 1};
  parts = made;
  return NULL;
}

static void end_part(part** link) {
  part* p = *link;
  orion_op_host_variable_end op = {
      .op = {.code = ORION_OP_HOST_VARIABLE_END}, .arena_off = p->offset, .size_bytes = p->bytes};
  orion_coherent_remove(p->session, p->offset);
  // The arena's range is used again only when the worker has let go of it.
  const CUresult ended = orion_call(p->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  orion_unplace_pages(p->session, p->address, p->bytes, p->offset);
  if (ended == CUDA_SUCCESS) orion_arena_free(p->session, p->session->host_base + p->offset, p->bytes);
  *link = p->next;
  free(p);
}

static void leave_parts(uint64_t first, uint64_t end) {
  for (part** link = &parts; *link != NULL;) {
    part* p = *link;
    const bool used = p->address < end && first < p->address + p->bytes;
    if (used && --p->users == 0) {
      end_part(link);
    } else {
      link = &p->next;
    }
  }
}

static const char* join_parts(orion_session* session, uint64_t first, uint64_t end) {
  for (uint64_t at = first; at < end;) {
    uint64_t next = end;
    part* p = part_at(at, &next);
    const char* why = NULL;
    if (p != NULL) {
      next = p->address + p->bytes;
      p->users++;
    } else {
      why = make_part(session, at, next - at);
    }
    if (why != NULL) {
      leave_parts(first, at);
      return why;
    }
    at = next;
  }
  return NULL;
}

static orion_variable* find(uint64_t owner, uint64_t address) {
  orion_variable* v = variables;
  while (v != NULL && (v->owner != owner || v->managed.allocation.extent.start != address)) v = v->next;
  return v;
}

/// A library's variables belong to no context: they are known under the primary one of a device.
static orion_context* first_primary(const orion_session* session) {
  for (uint32_t i = 0; i < orion_device_states(); i++) {
    orion_device_state* device = orion_device_state_at((CUdevice)i);
    if (device->info->session == session) return orion_primary_of(device);
  }
  return NULL;
}

static const char* add(orion_session* session, uint64_t owner, orion_context* context, bool is_bound, uint64_t address,
                       uint64_t bytes) {
  const uint64_t first = first_page(address), end = page_end(address, bytes);
  if (bytes == 0 || end <= first || end - first > ORION_HOST_ARENA_BYTES) return "its address makes no sense";
  orion_variable* v = calloc(1, sizeof *v);
  if (v == NULL) return "out of memory";
  const char* why = join_parts(session, first, end);
  if (why != NULL) {
    free(v);
    return why;
  }
  v->owner = owner;
  v->is_bound = is_bound;
  v->managed.allocation = (orion_allocation){.extent = {.start = address, .bytes = bytes},
                                             .kind = ORION_MEMORY_VARIABLE,
                                             .context = context,
                                             .reserved_bytes = bytes,
                                             .flags = CU_MEM_ATTACH_GLOBAL,
                                             .buffer_id = orion_next_id()};
  pthread_mutex_lock(&orion_memory_mutex);
  const bool is_free = !orion_overlaps(address, bytes);
  if (is_free) orion_extent_insert(&orion_allocations, &v->managed.allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (!is_free) {
    leave_parts(first, end);
    free(v);
    return "something else is known at its address";
  }
  v->next = variables;
  variables = v;
  return NULL;
}

CUresult orion_variable_add(orion_session* session, uint64_t owner, orion_context* context, const char* name,
                            uint64_t address, uint64_t bytes) {
  const char* why = "over tcp with ORION_COHERENT=off there is no managed memory";
  const bool is_bound = context != NULL;
  if (!is_bound) context = first_primary(session);  // before the mutex, which a context's end takes under its own
  if (context == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  if (orion_managed_offered(session)) {
    pthread_mutex_lock(&mutex);
    why = find(owner, address) != NULL ? NULL : add(session, owner, context, is_bound, address, bytes);
    pthread_mutex_unlock(&mutex);
  }
  if (why == NULL) return CUDA_SUCCESS;
  orion_log(ORION_LOG_ERROR, "the __managed__ variable %.200s at %#llx cannot be used: %s", name,
            (unsigned long long)address, why);
  return CUDA_ERROR_NOT_SUPPORTED;
}

static void end_variable(orion_variable** link) {
  orion_variable* v = *link;
  const orion_extent extent = v->managed.allocation.extent;
  *link = v->next;
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent_remove(&orion_allocations, &v->managed.allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  leave_parts(first_page(extent.start), page_end(extent.start, extent.bytes));
  free(v->managed.advised);
  free(v);
}

void orion_variables_end(uint64_t owner) {
  if (atomic_load(&orion_coherent_variables) == 0) return;
  pthread_mutex_lock(&mutex);
  for (orion_variable** link = &variables; *link != NULL;) {
    if ((*link)->owner == owner) {
      end_variable(link);
    } else {
      link = &(*link)->next;
    }
  }
  pthread_mutex_unlock(&mutex);
}

void orion_variables_end_in(const orion_context* context) {
  if (atomic_load(&orion_coherent_variables) == 0) return;
  pthread_mutex_lock(&mutex);
  for (orion_variable** link = &variables; *link != NULL;) {
    if ((*link)->is_bound && (*link)->managed.allocation.context == context) {
      end_variable(link);
    } else {
      link = &(*link)->next;
    }
  }
  pthread_mutex_unlock(&mutex);
}

orion_context* orion_variable_context(const orion_range* range) {
  orion_context* current;
  const bool usable = orion_current(&current) == CUDA_SUCCESS && current->session == range->context->session;
  return usable ? current : range->context;
}
