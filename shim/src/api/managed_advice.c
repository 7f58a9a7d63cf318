// Advice, prefetching and attaching of managed memory. Its pages are always in reach of the program and of every
// device, so nothing moves: what is said is checked and remembered.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "managed.h"

#define PAGE_BYTES 4096ull
#define DEVICES_MAX 64

enum { NO_DEVICE = -2, HOST_DEVICE = -1 };

static const orion_advice no_advice = {.preferred = {CU_MEM_LOCATION_TYPE_INVALID, NO_DEVICE},
                                       .prefetched = {CU_MEM_LOCATION_TYPE_INVALID, NO_DEVICE}};

/// Under the memory mutex: the managed allocation that holds the whole range. NULL: there is none.
static orion_managed* managed_of(uint64_t address, uint64_t bytes) {
  const orion_extent* found = orion_extent_containing(orion_allocations, address);
  const enum orion_memory_kind kind = found == NULL ? ORION_MEMORY_PAGEABLE : ((const orion_allocation*)found)->kind;
  if (kind != ORION_MEMORY_MANAGED && kind != ORION_MEMORY_VARIABLE) return NULL;
  const bool whole = bytes != 0 && bytes <= found->bytes - (address - found->start);
  return whole ? (orion_managed*)(uintptr_t)found : NULL;
}

static bool is_managed(uint64_t address, uint64_t bytes) {
  pthread_mutex_lock(&orion_memory_mutex);
  const bool found = managed_of(address, bytes) != NULL;
  pthread_mutex_unlock(&orion_memory_mutex);
  return found;
}

static bool same_location(CUmemLocation a, CUmemLocation b) { return a.type == b.type && a.id == b.id; }

static bool same_advice(const orion_advice* a, const orion_advice* b) {
  return same_location(a->preferred, b->preferred) && same_location(a->prefetched, b->prefetched) &&
         a->accessed_by == b->accessed_by && a->accessed_by_host == b->accessed_by_host &&
         a->read_mostly == b->read_mostly;
}

/// A part begins at `at`, which lies in the allocation or at its end. Room for it is there.
static void split(orion_managed* m, uint64_t at) {
  uint32_t i = 0;
  while (i < m->advised_count && m->advised[i].end <= at) i++;
  if (i == m->advised_count || m->advised[i].first == at) return;
  memmove(&m->advised[i + 1], &m->advised[i], (m->advised_count - i) * sizeof *m->advised);
  m->advised_count++;
  m->advised[i].end = at;
  m->advised[i + 1].first = at;
}

static bool make_room(orion_managed* m) {
  if (m->advised_capacity >= m->advised_count + 3) return true;
  const uint32_t capacity = 2 * m->advised_capacity + 4;
  orion_advised* larger = realloc(m->advised, capacity * sizeof *larger);
  if (larger == NULL) return false;
  m->advised = larger;
  m->advised_capacity = capacity;
  return true;
}

static void join_equal(orion_managed* m) {
  uint32_t kept = 0;
  for (uint32_t i = 1; i < m->advised_count; i++) {
    if (same_advice(&m->advised[kept].advice, &m->advised[i].advice)) {
      m->advised[kept].end = m->advised[i].end;
    } else {
      m->advised[++kept] = m->advised[i];
    }
  }
  m->advised_count = kept + 1;
}

enum change_kind { PREFER, PREFETCH, ACCESSED_BY, READ_MOSTLY };

typedef struct change {
  enum change_kind kind;
  CUmemLocation location;
  bool set;
} change;

static void apply(orion_advice* advice, const change* c) {
  const uint64_t bit = c->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? 1ull << c->location.id : 0;
  switch (c->kind) {
    case PREFER:
      advice->preferred = c->set ? c->location : no_advice.preferred;
      break;
    case PREFETCH:
      advice->prefetched = c->location;
      break;
    case ACCESSED_BY:
      if (bit == 0) advice->accessed_by_host = c->set;
      advice->accessed_by = c->set ? advice->accessed_by | bit : advice->accessed_by & ~bit;
      break;
    case READ_MOSTLY:
      advice->read_mostly = c->set;
      break;
  }
}

static CUresult remember(uint64_t address, uint64_t bytes, const change* c) {
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  pthread_mutex_lock(&orion_memory_mutex);
  orion_managed* m = managed_of(address, bytes);
  if (m != NULL) result = make_room(m) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  if (result == CUDA_SUCCESS) {
    const uint64_t start = m->allocation.extent.start;
    if (m->advised_count == 0) {
      m->advised[m->advised_count++] =
          (orion_advised){.first = start, .end = start + m->allocation.reserved_bytes, .advice = no_advice};
    }
    const uint64_t first = address & ~(PAGE_BYTES - 1), end = (address + bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    split(m, first);
    split(m, end);
    for (uint32_t i = 0; i < m->advised_count; i++) {
      if (m->advised[i].first >= first && m->advised[i].end <= end) apply(&m->advised[i].advice, c);
    }
    join_equal(m);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return result;
}

// ------------------------------------------------------------------------------------------------ advice

static CUmemLocation location_of(CUdevice device) {
  return device == HOST_DEVICE ? (CUmemLocation){CU_MEM_LOCATION_TYPE_HOST, 0}
                               : (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, device};
}

static CUresult check_location(const CUmemLocation* location, bool numa) {
  switch (location->type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
      return location->id < DEVICES_MAX && orion_device_state_at(location->id) != NULL ? CUDA_SUCCESS
                                                                                       : CUDA_ERROR_INVALID_DEVICE;
    case CU_MEM_LOCATION_TYPE_HOST:
      return CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
      return numa ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

static CUresult advise(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUmemLocation location) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  change c = {.location = location};
  switch (advice) {
    case CU_MEM_ADVISE_SET_READ_MOSTLY:
    case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
      c.kind = READ_MOSTLY;
      c.set = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
      break;
    case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
    case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
      c.kind = PREFER;
      c.set = advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION;
      break;
    case CU_MEM_ADVISE_SET_ACCESSED_BY:
    case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
      c.kind = ACCESSED_BY;
      c.set = advice == CU_MEM_ADVISE_SET_ACCESSED_BY;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  // The location means nothing for the others.
  const bool located = c.kind == ACCESSED_BY || (c.kind == PREFER && c.set);
  const CUresult result = located ? check_location(&location, c.kind == PREFER) : CUDA_SUCCESS;
  return result == CUDA_SUCCESS ? remember(address, bytes, &c) : result;
}

ORION_API CUresult cuMemAdvise(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUdevice device) {
  ORION_COUNTED();

  return advise(address, bytes, advice, location_of(device));
}

ORION_API CUresult cuMemAdvise_v2(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUmemLocation location) {
  ORION_COUNTED();

  return advise(address, bytes, advice, location);
}

// ------------------------------------------------------------------------------------------------ prefetching

static CUresult prefetch(CUdeviceptr address, size_t bytes, CUmemLocation location, unsigned flags, CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (orion_is_captured(stream)) return orion_capture_refuse(stream);
  ORION_REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = check_location(&location, true);
  return result == CUDA_SUCCESS ? remember(address, bytes, &(change){PREFETCH, location, true}) : result;
}

ORION_API CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device, CUstream stream) {
  ORION_COUNTED();

  return prefetch(address, bytes, location_of(device), 0, stream);
}

ORION_API CUresult cuMemPrefetchAsync_v2(CUdeviceptr address, size_t bytes, CUmemLocation location, unsigned int flags,
                                         CUstream stream) {
  ORION_COUNTED();

  return prefetch(address, bytes, location, flags, stream);
}

static CUresult check_batch(const CUdeviceptr* addresses, const size_t* sizes, size_t count, unsigned long long flags,
                            CUstream handle) {
  ORION_ENTER_STREAM(stream, handle);
  if (orion_is_captured(stream)) return orion_capture_refuse(stream);
  ORION_REQUIRE(addresses != NULL && sizes != NULL && count != 0 && flags == 0 && !orion_is_legacy(handle),
                CUDA_ERROR_INVALID_VALUE);
  for (size_t i = 0; i < count; i++) ORION_REQUIRE(is_managed(addresses[i], sizes[i]), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
}

static CUresult prefetch_batch(const CUdeviceptr* addresses, const size_t* sizes, size_t count,
                               const CUmemLocation* locations, const size_t* firsts, size_t location_count,
                               unsigned long long flags, CUstream stream) {
  CUresult result = check_batch(addresses, sizes, count, flags, stream);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(locations != NULL && firsts != NULL && location_count != 0 && location_count <= count && firsts[0] == 0,
                CUDA_ERROR_INVALID_VALUE);
  for (size_t i = 0; i < location_count; i++) {
    ORION_REQUIRE(firsts[i] < count && (i == 0 || firsts[i] > firsts[i - 1]), CUDA_ERROR_INVALID_VALUE);
    result = check_location(&locations[i], true);
    if (result != CUDA_SUCCESS) return result;
  }
  size_t at = 0;
  for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    if (at + 1 < location_count && firsts[at + 1] == i) at++;
    result = remember(addresses[i], sizes[i], &(change){PREFETCH, locations[at], true});
  }
  return result;
}

ORION_API CUresult cuMemPrefetchBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count,
                                           CUmemLocation* locations, size_t* firsts, size_t location_count,
                                           unsigned long long flags, CUstream stream) {
  ORION_COUNTED();

  return prefetch_batch(addresses, sizes, count, locations, firsts, location_count, flags, stream);
}

// What is discarded may hold anything afterwards: also what it held.

ORION_API CUresult cuMemDiscardBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count, unsigned long long flags,
                                          CUstream stream) {
  ORION_COUNTED();

  return check_batch(addresses, sizes, count, flags, stream);
}

ORION_API CUresult cuMemDiscardAndPrefetchBatchAsync(CUdeviceptr* addresses, size_t* sizes, size_t count,
                                                     CUmemLocation* locations, size_t* firsts, size_t location_count,
                                                     unsigned long long flags, CUstream stream) {
  ORION_COUNTED();

  return prefetch_batch(addresses, sizes, count, locations, firsts, location_count, flags, stream);
}

// ------------------------------------------------------------------------------------------------ attaching

ORION_API CUresult cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t bytes, unsigned int flags) {
  ORION_ENTER_STREAM(stream, handle);
  if (orion_is_captured(stream)) return orion_capture_refuse(stream);
  ORION_REQUIRE(flags == CU_MEM_ATTACH_GLOBAL || flags == CU_MEM_ATTACH_HOST || flags == CU_MEM_ATTACH_SINGLE,
                CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(flags != CU_MEM_ATTACH_SINGLE || stream->wire_index != 0, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range(address, 1);
  const bool is_managed = range.kind == ORION_MEMORY_MANAGED || range.kind == ORION_MEMORY_VARIABLE;
  ORION_REQUIRE(is_managed && (bytes == 0 || bytes == range.bytes), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ what was said

/// Under the memory mutex: what holds for every page of the range.
static orion_advice common_advice(const orion_managed* m, uint64_t address, uint64_t bytes) {
  orion_advice common = no_advice;
  bool first = true;
  for (uint32_t i = 0; i < m->advised_count; i++) {
    const orion_advised* a = &m->advised[i];
    if (a->end <= address || a->first >= address + bytes) continue;
    if (first) common = a->advice;
    first = false;
    if (!same_location(common.preferred, a->advice.preferred)) common.preferred = no_advice.preferred;
    if (!same_location(common.prefetched, a->advice.prefetched)) common.prefetched = no_advice.prefetched;
    common.accessed_by &= a->advice.accessed_by;
    common.accessed_by_host &= a->advice.accessed_by_host;
    common.read_mostly &= a->advice.read_mostly;
  }
  return common;
}

static int32_t device_of(CUmemLocation location) {
  if (location.type == CU_MEM_LOCATION_TYPE_DEVICE) return location.id;
  return location.type == CU_MEM_LOCATION_TYPE_INVALID ? NO_DEVICE : HOST_DEVICE;
}

static CUresult write_accessed_by(void* data, size_t bytes, const orion_advice* advice) {
  ORION_REQUIRE(bytes != 0 && bytes % sizeof(int32_t) == 0, CUDA_ERROR_INVALID_VALUE);
  uint64_t left = advice->accessed_by;
  bool host = advice->accessed_by_host;
  for (size_t at = 0; at < bytes; at += sizeof(int32_t)) {
    int32_t device = NO_DEVICE;
    if (left != 0) {
      device = __builtin_ctzll(left);
      left &= left - 1;
    } else if (host) {
      device = HOST_DEVICE;
      host = false;
    }
    memcpy((uint8_t*)data + at, &device, sizeof device);
  }
  return CUDA_SUCCESS;
}

static CUresult write_range_attribute(void* data, size_t bytes, CUmem_range_attribute attribute,
                                      const orion_advice* advice) {
  ORION_REQUIRE(data != NULL, CUDA_ERROR_INVALID_VALUE);
  int32_t value;
  switch (attribute) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
      value = advice->read_mostly;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
      value = device_of(advice->preferred);
      break;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
      return write_accessed_by(data, bytes, advice);
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
      value = device_of(advice->prefetched);
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
      value = (int32_t)advice->preferred.type;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
      value = advice->preferred.id;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
      value = (int32_t)advice->prefetched.type;
      break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
      value = advice->prefetched.id;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  ORION_REQUIRE(bytes == sizeof value, CUDA_ERROR_INVALID_VALUE);
  memcpy(data, &value, sizeof value);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemRangeGetAttributes(void** data, size_t* sizes, CUmem_range_attribute* attributes, size_t count,
                                           CUdeviceptr address, size_t bytes) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(data != NULL && sizes != NULL && attributes != NULL && count != 0, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_managed* m = managed_of(address, bytes);
  const orion_advice advice = m == NULL ? no_advice : common_advice(m, address, bytes);
  pthread_mutex_unlock(&orion_memory_mutex);
  ORION_REQUIRE(m != NULL, CUDA_ERROR_INVALID_VALUE);
  for (size_t i = 0; i < count; i++) {
    const CUresult result = write_range_attribute(data[i], sizes[i], attributes[i], &advice);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemRangeGetAttribute(void* data, size_t bytes, CUmem_range_attribute attribute,
                                          CUdeviceptr address, size_t range_bytes) {
  ORION_COUNTED();

  return cuMemRangeGetAttributes(&data, &bytes, &attribute, 1, address, range_bytes);
}
