// Registered memory of the program: pages of the arena that the worker has at the program's address too, so that a
// kernel finds them where the program does. The address is the client's word: it must be free here, and is never one
// that this process uses.
//
// Programs map memory where this process would: below the top of the address space, at a place that differs by chance.
// So what is free there is reserved before the driver maps its gigabytes, which then lie below, out of the way.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define ADDRESS_FIRST 0x10000ull
#define ADDRESS_END (1ull << 47)
// Each takes several of the mappings that the kernel allows a process (65530 by default).
#define ALIASES_MAX 8192u

// Where the mappings of programs begin: within 1 TiB of the top; and room for what they map.
#define PROGRAMS_FIRST 0x7eb000000000ull
#define GAPS_MAX 4096u
#define GAP_LEAST_BYTES (1ull << 16)

static void* pointer(uint64_t address) {
  return (void*)(uintptr_t)address;  // NOLINT(performance-no-int-to-ptr): the agreed address
}

static struct {
  uint64_t first, bytes;
} gaps[GAPS_MAX];
static uint32_t gap_count;

static void reserve(uint64_t first, uint64_t bytes) {
  void* at =
      mmap(pointer(first), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == pointer(first)) {
    gaps[gap_count].first = first;
    gaps[gap_count++].bytes = bytes;
  } else if (at != MAP_FAILED) {
    munmap(at, bytes);
  }
}

void orion_engine_reserve_addresses(void) {
  FILE* maps = gap_count ? NULL : fopen("/proc/self/maps", "re");
  char line[512];
  uint64_t free_from = PROGRAMS_FIRST;
  while (maps && gap_count < GAPS_MAX && fgets(line, sizeof line, maps)) {
    char* after = NULL;
    const uint64_t first = strtoull(line, &after, 16);
    const uint64_t end = *after == '-' ? strtoull(after + 1, NULL, 16) : 0;
    if (strstr(line, "[stack]") || !end) break;  // it grows, and nothing is mapped above it
    if (first > free_from && first - free_from >= GAP_LEAST_BYTES) reserve(free_from, first - free_from);
    if (end > free_from) free_from = end;
  }
  if (maps) fclose(maps);
}

static bool in_gap(uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < gap_count; i++) {
    if (address >= gaps[i].first && bytes <= gaps[i].bytes && address - gaps[i].first <= gaps[i].bytes - bytes) {
      return true;
    }
  }
  return false;
}

static bool overlaps_alias(const orion_engine* e, uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < e->pinned_count; i++) {
    const host_range* r = &e->pinned[i];
    if (r->alias && address < r->alias + r->bytes && r->alias < address + bytes) return true;
  }
  return false;
}

/// Takes [address, +bytes), inaccessible. 0 or a CUresult.
static int32_t take(const orion_engine* e, uint64_t address, uint64_t bytes) {
  if (overlaps_alias(e, address, bytes)) return CUDA_ERROR_ALREADY_MAPPED;
  if (in_gap(address, bytes)) return 0;
  void* at = mmap(pointer(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                  -1, 0);
  if (at == MAP_FAILED) return errno == EEXIST ? CUDA_ERROR_ALREADY_MAPPED : CUDA_ERROR_OUT_OF_MEMORY;
  if (at == pointer(address)) return 0;
  munmap(at, bytes);  // a kernel that does not know the flag takes the address as a hint
  return CUDA_ERROR_ALREADY_MAPPED;
}

static bool give(uint64_t address, uint64_t bytes) {
  if (!in_gap(address, bytes)) return munmap(pointer(address), bytes) == 0;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap(pointer(address), bytes, PROT_NONE, flags, -1, 0) != MAP_FAILED;
}

static uint32_t alias_count(const orion_engine* e) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < e->pinned_count; i++) count += e->pinned[i].alias != 0;
  return count;
}

static bool address_ok(const orion_engine* e, uint64_t address, uint64_t bytes) {
  const uint64_t arena = (uint64_t)(uintptr_t)e->arena;
  if (address & 0xfff || address < ADDRESS_FIRST || address >= ADDRESS_END || bytes > ADDRESS_END - address) {
    return false;
  }
  if (address < arena + e->arena_bytes && arena < address + bytes) return false;
  for (uint32_t i = 0; i < e->device_count; i++) {
    const device_state* d = &e->devices[i];
    if (d->reserved && address < d->base + d->bytes && d->base < address + bytes) return false;
  }
  return true;
}

// Over a network the arena is private memory, which cannot be at two addresses: the range becomes shared as long as
// it is registered. Its content, which is nobody's yet, goes.
static bool set_shared(const orion_engine* e, uint64_t offset, uint64_t bytes, bool shared) {
  if (!e->net) return true;
  const int flags = MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE);
  return mmap(e->arena + offset, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

static int32_t map(const orion_engine* e, uint64_t offset, uint64_t bytes, uint64_t address) {
  const int32_t taken = take(e, address, bytes);
  if (taken) return taken;
  if (set_shared(e, offset, bytes, true)) {
    // An old size of 0: the pages of a shared mapping get a second one. Not by libc's mremap: where UCX is loaded, its
    // hook in there fails it.
    const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    if (syscall(SYS_mremap, e->arena + offset, 0ul, bytes, flags, pointer(address)) != -1) return 0;
    (void)set_shared(e, offset, bytes, false);  // the mapping that it replaces has this one's place
  }
  (void)give(address, bytes);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

static void unmap(orion_engine* e, const host_range* r) {
  const bool given = give(r->alias, r->bytes);
  if (!set_shared(e, r->offset, r->bytes, false) || !given) engine_end(e, ORION_END_FAILED, "out of memory mappings");
}

int32_t alias_add(orion_engine* e, uint64_t offset, uint64_t bytes, uint64_t address) {
  if (!address_ok(e, address, bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (alias_count(e) >= ALIASES_MAX) return CUDA_ERROR_OUT_OF_MEMORY;
  const host_range r = {offset, bytes, address};
  int32_t result = map(e, offset, bytes, address);
  if (result) return result;
  const unsigned int flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
  result = (int32_t)e->driver.host_register(pointer(address), bytes, flags);
  if (!result) {
    // The client promises the program this very address as the device's.
    CUdeviceptr device = 0;
    result = (int32_t)e->driver.host_device_pointer(&device, pointer(address), 0);
    if (!result && device != address) result = CUDA_ERROR_NOT_SUPPORTED;
    if (result) (void)e->driver.host_unregister(pointer(address));
  }
  if (result) unmap(e, &r);
  return result;
}

void alias_drop(orion_engine* e, const host_range* r) {
  (void)e->driver.host_unregister(pointer(r->alias));
  unmap(e, r);
}

bool alias_offset(const orion_engine* e, uint64_t address, uint64_t* offset) {
  const uint64_t arena = (uint64_t)(uintptr_t)e->arena;
  *offset = address - arena;
  if (address >= arena && *offset < e->arena_bytes) return true;
  for (uint32_t i = 0; i < e->pinned_count; i++) {
    const host_range* r = &e->pinned[i];
    if (!r->alias || address < r->alias || address - r->alias >= r->bytes) continue;
    *offset = r->offset + (address - r->alias);
    return true;
  }
  return false;
}
