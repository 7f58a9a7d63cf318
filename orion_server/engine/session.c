// Making, binding and freeing an engine: libraries, address ranges, registered pages.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "seat.h"
#include "swap.h"
#include "turns.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

// Tables are large and mostly untouched: the kernel gives zero pages on first use.
static void* table(size_t count, size_t size) {
  void* p = mmap(NULL, count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}
static void table_free(void* p, size_t count, size_t size) {
  if (p) munmap(p, count * size);
}

static int available_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set)) return 1;
  return CPU_COUNT(&set);
}

int orion_engine_new(const orion_engine_config* config, orion_engine** out) {
  *out = NULL;
  orion_engine* e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
  if (!e) return CUDA_ERROR_OUT_OF_MEMORY;
  memset(e, 0, sizeof *e);
  e->config = *config;
  e->config.libcuda_path = NULL;
  pthread_mutex_init(&e->reason_lock, NULL);
  e->last_parked = &e->first_parked;
  e->maps_last = &e->maps_first;
  e->epoch = 1;
  if (e->config.cpu_count <= 0) e->config.cpu_count = available_cpus();
  e->spin_allowed = e->config.cpu_count > 2;
  e->spin_ns = e->config.spin_us > 0 ? (uint64_t)e->config.spin_us * 1000 : 0;
  e->streams = table(STREAM_COUNT, sizeof *e->streams);
  e->events = table(EVENT_TABLE, sizeof *e->events);
  e->modules = table(ORION_MODULES, sizeof *e->modules);
  e->functions = table(ORION_FUNCTIONS, sizeof *e->functions);
  e->memories = table(ORION_MEMORIES, sizeof *e->memories);
  const bool inits = order_init(e) && graph_init(e);
  if (!e->memories || !e->streams || !e->events || !e->modules || !e->functions || !inits) {
    orion_engine_free(e);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (!seat_open(e) || !turns_init(e)) {
    engine_log(e, ENGINE_LOG_ERROR, "the seat cannot be used");
    orion_engine_free(e);
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (config->null_engine) {
    orion_driver_null(&e->driver);
  } else {
    char why[256];
    if (!config->libcuda_path || !orion_driver_load(&e->driver, config->libcuda_path, why, sizeof why)) {
      engine_log(e, ENGINE_LOG_ERROR, "%s", config->libcuda_path ? why : "no libcuda was named");
      orion_engine_free(e);
      return CUDA_ERROR_NOT_INITIALIZED;
    }
  }
  const int32_t result = (int32_t)e->driver.init(0);
  if (result) {
    engine_log(e, ENGINE_LOG_ERROR, "cuInit: CUresult %d", result);
    orion_engine_free(e);
    return result;
  }
  *out = e;
  return 0;
}

static device_state* device_by_ordinal(orion_engine* e, uint32_t ordinal) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (e->devices[i].ordinal == ordinal) return &e->devices[i];
  }
  if (e->device_count == ORION_DEVICES) return NULL;
  device_state* d = &e->devices[e->device_count++];
  d->ordinal = ordinal;
  return d;
}

int orion_engine_set_primary(orion_engine* e, uint32_t ordinal, uint64_t context) {
  if (e->bound) return CUDA_ERROR_INVALID_VALUE;
  device_state* d = device_by_ordinal(e, ordinal);
  if (!d) return CUDA_ERROR_INVALID_DEVICE;
  d->primary = (CUcontext)(uintptr_t)context;
  return 0;
}

// ------------------------------------------------------------------------------------------------ bind
static int map_segment(orion_engine* e, const orion_engine_bind_request* r) {
  int flags = MAP_SHARED, fd = r->segment_fd;
  if (fd < 0) {
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  } else {
    struct stat status;
    if (fstat(fd, &status) || (uint64_t)status.st_size < sizeof(orion_segment)) return CUDA_ERROR_INVALID_VALUE;
  }
  // The structure is aligned to more than a page: reserve with room to choose, map at the aligned place, give back the
  // rest.
  const size_t align = _Alignof(orion_segment), room = sizeof(orion_segment) + align;
  uint8_t* reserved = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const size_t skip = (align - (uintptr_t)reserved % align) % align;
  void* p = mmap(reserved + skip, sizeof(orion_segment), PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
  if (p == MAP_FAILED) {
    munmap(reserved, room);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (skip) munmap(reserved, skip);
  if (skip < align) munmap(reserved + skip + sizeof(orion_segment), align - skip);
  e->segment = p;
  e->segment_fd = r->segment_fd;
  e->segment->magic = ORION_SEGMENT_MAGIC;
  e->segment->major = ORION_WIRE_MAJOR;
  e->segment->minor = ORION_WIRE_MINOR;
  e->segment->segment_bytes = sizeof(orion_segment);
  e->main_ring = orion_main_ring(e->segment);
  e->express_ring = orion_express_ring(e->segment);
  return 0;
}

// 0, -1 for a range that is taken, or a CUresult.
static int map_arena(orion_engine* e, const orion_engine_bind_request* r) {
  int flags = MAP_SHARED, fd = r->arena_fd;
  if (fd < 0) {
    flags = MAP_PRIVATE | MAP_ANONYMOUS;
  } else {
    // Touching memory beyond the end of the file would kill this process.
    struct stat status;
    if (fstat(fd, &status) || (uint64_t)status.st_size < r->arena_bytes) return CUDA_ERROR_INVALID_VALUE;
  }
  void* wanted = (void*)(uintptr_t)r->host_base;  // NOLINT(performance-no-int-to-ptr): the agreed address
  void* p = mmap(wanted, r->arena_bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, 0);
  if (p == MAP_FAILED) return errno == EEXIST ? -1 : CUDA_ERROR_OUT_OF_MEMORY;
  if (p != wanted) {  // a kernel that does not know the flag takes the address as a hint
    munmap(p, r->arena_bytes);
    return -1;
  }
  e->arena = p;
  e->arena_fd = r->arena_fd;
  e->arena_bytes = r->arena_bytes;
  return 0;
}

static bool request_sane(const orion_engine_bind_request* r) {
  const uint64_t top = 1ull << 47;
  if (r->host_base & 0xfff || r->arena_bytes & 0xfff || r->arena_bytes < ORION_STAGING_BYTES) return false;
  if (r->arena_bytes > ORION_HOST_ARENA_BYTES || r->host_base < 0x10000 || r->host_base > top - r->arena_bytes) {
    return false;
  }
  if (!r->device_count || r->device_count > ORION_DEVICES) return false;
  for (uint32_t i = 0; i < r->device_count; i++) {
    const orion_engine_device* d = &r->devices[i];
    if (d->base % ORION_CHUNK_BYTES || d->bytes % ORION_CHUNK_BYTES || !d->bytes || d->bytes > SLOT_MAX_BYTES ||
        d->base < 0x10000 || d->base > top - d->bytes) {
      return false;
    }
    if (d->base < r->host_base + r->arena_bytes && r->host_base < d->base + d->bytes) return false;
    for (uint32_t j = 0; j < i; j++) {
      const orion_engine_device* o = &r->devices[j];
      if (d->ordinal == o->ordinal || (d->base < o->base + o->bytes && o->base < d->base + d->bytes)) return false;
    }
  }
  return true;
}

static int register_words(orion_engine* e, unsigned int flags) {
  const int result = (int)e->driver.host_register((void*)e->segment->words, sizeof e->segment->words, flags);
  if (result) return result;
  e->words_registered = true;
  return (int)e->driver.host_device_pointer(&e->words_device, (void*)e->segment->words, 0);
}

static int register_done(orion_engine* e, unsigned int flags) {
  const int result = (int)e->driver.host_register((void*)e->done, TRACK_COUNT * sizeof(uint64_t), flags);
  if (result) return result;
  e->done_registered = true;
  return (int)e->driver.host_device_pointer(&e->done_device, (void*)e->done, 0);
}

static int register_staging(orion_engine* e, unsigned int flags) {
  const int result = (int)e->driver.host_register(e->arena, ORION_STAGING_BYTES, flags);
  if (result) return result;
  e->staging_registered = true;
  return memory_pin(e, 0, ORION_STAGING_BYTES, 0) ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
}

static int register_pages(orion_engine* e) {
  const unsigned int flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
  int result = e->words_registered ? 0 : register_words(e, flags);
  if (!result && !e->done_registered) result = register_done(e, flags);
  if (!result && !e->staging_registered) result = register_staging(e, flags);
  return result;
}

static void drop_segment(orion_engine* e) {
  if (e->words_registered) (void)e->driver.host_unregister((void*)e->segment->words);
  e->words_registered = false;
  if (e->segment) munmap(e->segment, sizeof(orion_segment));
  e->segment = NULL;
}

static void drop_arena(orion_engine* e) {
  if (e->staging_registered) {
    (void)e->driver.host_unregister(e->arena);
    STAT_ADD(e, stat_pinned, -ORION_STAGING_BYTES);
  }
  e->staging_registered = false;
  e->pinned_count = 0;
  if (e->arena) munmap(e->arena, e->arena_bytes);
  e->arena = NULL;
}

static void unbind(orion_engine* e) {
  if (e->done_registered) (void)e->driver.host_unregister((void*)e->done);
  e->done_registered = false;
  for (uint32_t i = 0; i < e->device_count; i++) memory_release_device(e, i);
  drop_arena(e);
  drop_segment(e);
}

/// Moves what belongs to the driver's device, so that e->devices begins with the wanted ones in the request's order.
static void swap_devices(device_state* a, device_state* b) {
  const device_state kept = {.ordinal = a->ordinal,
                             .primary = a->primary,
                             .retained = a->retained,
                             .base = a->base,
                             .bytes = a->bytes,
                             .reserved = a->reserved,
                             .chunk_range = a->chunk_range};
  a->ordinal = b->ordinal, a->primary = b->primary, a->retained = b->retained;
  a->base = b->base, a->bytes = b->bytes, a->reserved = b->reserved, a->chunk_range = b->chunk_range;
  b->ordinal = kept.ordinal, b->primary = kept.primary, b->retained = kept.retained;
  b->base = kept.base, b->bytes = kept.bytes, b->reserved = kept.reserved, b->chunk_range = kept.chunk_range;
}

/// Gives back slots that the request does not have just so: they may lie where another device's is wanted.
static void release_other_slots(orion_engine* e, const orion_engine_bind_request* r) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    const device_state* d = &e->devices[i];
    bool wanted = false;
    for (uint32_t j = 0; j < r->device_count; j++) {
      const orion_engine_device* o = &r->devices[j];
      wanted |= o->ordinal == d->ordinal && o->base == d->base && o->bytes == d->bytes;
    }
    if (!wanted) memory_release_device(e, i);
  }
}

// Primary contexts and slots of the wanted devices, moved to the front of e->devices in the request's order.
static int bind_devices(orion_engine* e, const orion_engine_bind_request* r, uint64_t* conflicts) {
  release_other_slots(e, r);
  for (uint32_t i = 0; i < r->device_count; i++) {
    device_state* d = device_by_ordinal(e, r->devices[i].ordinal);
    if (!d) return CUDA_ERROR_INVALID_DEVICE;
    if (d != &e->devices[i]) {
      swap_devices(d, &e->devices[i]);
      d = &e->devices[i];
    }
    if (!d->primary) {
      const int result = (int)e->driver.primary_retain(&d->primary, (CUdevice)d->ordinal);
      if (result) return result;
      d->retained = true;
    }
    if (d->reserved) continue;
    d->base = r->devices[i].base;
    d->bytes = r->devices[i].bytes;
    int result = (int)e->driver.context_set_current(d->primary);
    if (!result) result = memory_bind_device(e, i);
    if (result == -1) {
      *conflicts |= 1ull << (i + 1);
    } else if (result) {
      return result;
    }
  }
  return 0;
}

/// Maps, reserves and registers what the request has and this engine has not yet. 0, -1 for conflicts, or a CUresult.
static int agree(orion_engine* e, const orion_engine_bind_request* r, uint64_t* conflicts) {
  const uint64_t began_ns = engine_now_ns();
  const bool is_prepared = e->words_registered || e->staging_registered;
  int result = is_prepared ? (int)e->driver.context_set_current(e->devices[0].primary) : 0;
  if (result) return result;
  if (e->segment && e->segment_fd != r->segment_fd) drop_segment(e);
  if (e->arena &&
      (e->arena_fd != r->arena_fd || (uintptr_t)e->arena != r->host_base || e->arena_bytes != r->arena_bytes)) {
    drop_arena(e);
  }
  if (!e->segment) result = map_segment(e, r);
  if (!result && !e->arena) {
    result = map_arena(e, r);
    if (result == -1) {
      *conflicts |= 1;
      result = 0;
    }
  }
  const uint64_t mapped_ns = engine_now_ns();
  if (!result) result = bind_devices(e, r, conflicts);
  if (!result && *conflicts) result = -1;
  const uint64_t reserved_ns = engine_now_ns();
  if (!result) result = (int)e->driver.context_set_current(e->devices[0].primary);
  if (!result) result = register_pages(e);
  e->bind_times = (orion_engine_bind_times){.map_ns = mapped_ns - began_ns,
                                            .reserve_ns = reserved_ns - mapped_ns,
                                            .register_ns = engine_now_ns() - reserved_ns};
  return result;
}

int orion_engine_prepare(orion_engine* e, const orion_engine_bind_request* r) {
  uint64_t conflicts = 0;
  if (e->bound || e->net || !request_sane(r)) return CUDA_ERROR_INVALID_VALUE;
  const int result = agree(e, r, &conflicts);
  if (result) unbind(e);
  return result;
}

int orion_engine_set_transport(orion_engine* e, int transport) {
  if (e->bound) return CUDA_ERROR_INVALID_VALUE;
  if (e->net) net_free(e);
  e->config.transport = transport;
  return 0;
}

int orion_engine_bind(orion_engine* e, const orion_engine_bind_request* r, uint64_t* conflicts) {
  *conflicts = 0;
  if (e->bound || !request_sane(r)) return CUDA_ERROR_INVALID_VALUE;
  const bool shm = e->config.transport == ORION_ENGINE_SHM;
  // Over a network the arena is this process's own: it becomes shared and private again in parts (alias.c).
  if (shm ? r->segment_fd < 0 || r->arena_fd < 0 : !e->net || r->arena_fd >= 0) return CUDA_ERROR_INVALID_VALUE;
  int result = agree(e, r, conflicts);
  if (!result && !e->net && !watcher_start(e)) result = CUDA_ERROR_OPERATING_SYSTEM;
  if (result) {
    unbind(e);
    return result;
  }
  e->bound = true;
  return 0;
}

void orion_engine_get_bind_times(const orion_engine* e, orion_engine_bind_times* times) { *times = e->bind_times; }

void orion_engine_free(orion_engine* e) {
  if (!e) return;
  if (e->net) net_close(e);  // its threads write into the arena
  watcher_stop(e);
  graph_end(e);
  park_free_all(e);
  query_free(e);
  if (e->bound) {
    swap_stop(e);
    for (uint32_t i = 1; i < ORION_CONTEXTS; i++) {
      if (e->contexts[i].alive) context_close(e, i);
    }
    if (e->device_count) (void)e->driver.context_set_current(e->devices[0].primary);
    memory_free_all(e);
    library_free_all(e);
  }
  image_free_all(e);
  share_free_all(e);
  array_free_all(e);
  if (e->driver.init) unbind(e);
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (e->devices[i].retained) (void)e->driver.primary_release((CUdevice)e->devices[i].ordinal);
  }
  order_free(e);
  table_free(e->streams, STREAM_COUNT, sizeof *e->streams);
  table_free(e->events, EVENT_TABLE, sizeof *e->events);
  table_free(e->modules, ORION_MODULES, sizeof *e->modules);
  table_free(e->functions, ORION_FUNCTIONS, sizeof *e->functions);
  table_free(e->memories, ORION_MEMORIES, sizeof *e->memories);
  graph_free(e);
  free(e->ranges);
  free(e->globals);
  free(e->pinned);
  free(e->coherent);
  free(e->variables);
  if (e->net) net_free(e);
  direct_free(e);
  turns_free(e);
  seat_close(e);
  pthread_mutex_destroy(&e->reason_lock);
  free(e);
}
