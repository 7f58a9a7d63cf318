// Runs: pieces of the host arena packed into one frame (ORION_FRAME_RUNS). Each is a head, its bytes, and padding to 8.
// Both ends of a network session use this for what one side has changed and the other has not seen.
#ifndef ORION_RUNS_H
#define ORION_RUNS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct orion_run {
  uint64_t offset;  // in the arena
  uint32_t bytes;
  uint32_t pad;
} orion_run;

static inline uint64_t orion_run_room(uint64_t bytes) { return sizeof(orion_run) + ((bytes + 7) & ~7ull); }

/// Appends one run to `to`, which has room. Returns what it takes.
static inline uint64_t orion_run_put(uint8_t* to, uint64_t offset, const uint8_t* from, uint32_t bytes) {
  const orion_run head = {offset, bytes, 0};
  memcpy(to, &head, sizeof head);
  memcpy(to + sizeof head, from, bytes);
  memset(to + sizeof head + bytes, 0, (8 - bytes % 8) % 8);
  return orion_run_room(bytes);
}

/// Takes the run at *at of a body. 1: taken; 0: the end; -1: malformed or outside [0, arena_bytes).
static inline int orion_run_get(const uint8_t* body, uint64_t bytes, uint64_t arena_bytes, uint64_t* at, orion_run* run,
                                const uint8_t** from) {
  if (*at == bytes) return 0;
  if (bytes - *at < sizeof *run) return -1;
  memcpy(run, body + *at, sizeof *run);
  if (orion_run_room(run->bytes) > bytes - *at) return -1;
  if (run->offset > arena_bytes || run->bytes > arena_bytes - run->offset) return -1;
  *from = body + *at + sizeof *run;
  *at += orion_run_room(run->bytes);
  return 1;
}

/// The first difference of two blocks at or behind *at: [*at, *at + *length) afterwards. A run ends where four aligned
/// bytes agree, so that what the other side writes beside it at the same time is left alone.
static inline bool orion_next_difference(const uint8_t* data, const uint8_t* known, uint64_t bytes, uint64_t* at,
                                         uint64_t* length) {
  enum { BLOCK = 4096, UNIT = 4 };
  uint64_t i = *at;
  for (;;) {
    while (i < bytes) {
      const uint64_t left = bytes - i, step = left < BLOCK ? left : BLOCK;
      if (memcmp(data + i, known + i, step) != 0) break;
      i += step;
    }
    if (i >= bytes) return false;
    const uint64_t left = bytes - i, step = left < BLOCK ? left : BLOCK;
    uint64_t begin = i;
    while (begin < i + step && data[begin] == known[begin]) begin++;
    if (begin == i + step) {  // the other side's writer has changed it back meanwhile
      i += step;
      continue;
    }
    uint64_t end = begin + 1;
    while (end < bytes) {
      const uint64_t unit = end % UNIT ? UNIT - end % UNIT : UNIT;
      const uint64_t take = unit < bytes - end ? unit : bytes - end;
      if (memcmp(data + end, known + end, take) == 0) break;
      end += take;
    }
    while (end > begin + 1 && data[end - 1] == known[end - 1]) end--;
    *at = begin;
    *length = end - begin;
    return true;
  }
}

#endif
