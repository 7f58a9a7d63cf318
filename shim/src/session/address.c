// Address ranges that client and worker agree on. Each session and device of the process gets candidates of its own;
// what the program has already mapped is never replaced.
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000  // Linux 4.17; older kernels take the address as a hint, which is checked below
#endif

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer lets a program use memory only in a few windows, and the usual candidates lie in its shadow.
#define HOST_CANDIDATE(i) (0x7e9000000000ull + (uint64_t)(i) * 0x001000000000ull)
#else
#define HOST_CANDIDATE(i) ORION_HOST_ARENA_CANDIDATE(i)
#endif

enum { HOST_CANDIDATES = 64, DEVICE_CANDIDATES = ORION_DEVICES + 32 };

// Attach holds its lock around all of this.
static uint32_t next_host;
static uint32_t next_device;

static bool reserve(uint64_t base, uint64_t bytes) {
  // Past the C library, because sanitizers refuse hints outside their windows; nobody touches these pages.
  const long got = syscall(SYS_mmap, base, bytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == -1) return false;
  if ((uint64_t)got != base) {
    syscall(SYS_munmap, got, bytes);
    return false;
  }
  syscall(SYS_madvise, base, bytes, MADV_DONTFORK);
  return true;
}

bool orion_reserve_host(uint64_t* base) {
  while (next_host < HOST_CANDIDATES) {
    *base = HOST_CANDIDATE(next_host++);
    if (reserve(*base, ORION_HOST_ARENA_BYTES)) return true;
  }
  return false;
}

bool orion_reserve_device(uint64_t bytes, uint64_t* base) {
  while (next_device < DEVICE_CANDIDATES) {
    *base = ORION_DEVICE_SLOT_CANDIDATE(next_device++);
    if (reserve(*base, bytes)) return true;
  }
  return false;
}

void orion_unreserve(uint64_t base, uint64_t bytes) { syscall(SYS_munmap, base, bytes); }

orion_segment* orion_map_segment(int fd) {
  // The layout asks for 64 KiB alignment, mmap promises a page: map inside a larger reservation and cut it to size.
  enum { ALIGNMENT = _Alignof(orion_segment) };
  const int kind = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  const uint64_t bytes = sizeof(orion_segment);
  uint8_t* room = mmap(NULL, bytes + ALIGNMENT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return NULL;
  uint8_t* aligned = (uint8_t*)(((uintptr_t)room + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
  if (aligned > room) munmap(room, (size_t)(aligned - room));
  munmap(aligned + bytes, (size_t)(room + ALIGNMENT - aligned));
  if (mmap(aligned, bytes, PROT_READ | PROT_WRITE, kind | MAP_FIXED, fd, 0) == MAP_FAILED) {
    munmap(aligned, bytes);
    return NULL;
  }
  madvise(aligned, bytes, MADV_DONTFORK);
  return (orion_segment*)aligned;
}
