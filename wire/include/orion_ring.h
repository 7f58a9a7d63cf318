// The operation ring: many producers, one consumer, no locks, a sequence word in each slot.
//
// An entry takes ceil(bytes / ORION_SLOT_PAYLOAD) consecutive slots. A producer reserves them with one compare-and-swap
// on `tail`, copies, and commits by storing position + 1 into every slot's sequence, the first slot's last with
// release. The consumer copies the whole entry out of the ring once and acts on the copy only: the other side may go on
// writing. Between reserve and commit there is no call, no fault and no cancellation point: stage the payload before.
#ifndef ORION_RING_H
#define ORION_RING_H

#include <string.h>

#include "orion_wire.h"

typedef struct orion_ring {
  orion_ring_control* control;
  orion_slot* slots;
  uint32_t slot_count;  // a power of two
} orion_ring;

static inline orion_ring orion_main_ring(orion_segment* s) {
  return (orion_ring){&s->main_control, s->main_slots, ORION_MAIN_SLOTS};
}
static inline orion_ring orion_express_ring(orion_segment* s) {
  return (orion_ring){&s->express_control, s->express_slots, ORION_EXPRESS_SLOTS};
}

/// How far before its use a slot is asked for: a push takes about 20 ns, a line of another core comes in about 100.
#define ORION_FETCH_AHEAD 8u

static inline uint32_t orion_slots_for(uint32_t bytes) { return (bytes + ORION_SLOT_PAYLOAD - 1) / ORION_SLOT_PAYLOAD; }

/// Asks for a slot's cache lines to write to. A hint: it never faults, and processors without it do nothing.
static inline void orion_slot_fetch(const orion_slot* slot) {
#if defined(__x86_64__)
  // Not __builtin_prefetch: for the base instruction set compilers make it a fetch for reading.
  __asm__ volatile("prefetchw %0\n\tprefetchw %1" ::"m"(slot->sequence), "m"(slot->payload[64]));
#else
  __builtin_prefetch(slot, 1);
  __builtin_prefetch(&slot->payload[64], 1);
#endif
}

/// Copies at most a slot's payload. Most slots are full, and a length that the compiler knows takes few instructions.
static inline void orion_slot_copy(void* to, const void* from, uint32_t bytes) {
  if (bytes == ORION_SLOT_PAYLOAD) {
    memcpy(to, from, ORION_SLOT_PAYLOAD);
  } else {
    memcpy(to, from, bytes);
  }
}

// The consumer maps the ring at another address, often in another process: ThreadSanitizer does not see that a slot is
// free again because it has been read. This tells it so, of producers alone.
#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void* address);
void __tsan_release(void* address);
#define ORION_RING_RESERVED(ring) __tsan_acquire((ring).slots)
#define ORION_RING_COMMITS(ring) __tsan_release((ring).slots)
#else
#define ORION_RING_RESERVED(ring) ((void)0)
#define ORION_RING_COMMITS(ring) ((void)0)
#endif

/// Reserves `count` slots. False when the ring has no room.
static inline bool orion_ring_reserve(orion_ring ring, uint32_t count, uint64_t* at) {
  orion_ring_control* control = ring.control;
  uint64_t position = atomic_load_explicit(&control->tail, memory_order_relaxed);
  // The consumer writes `head` for each operation, so that reading it costs a cache miss; what was read last lies
  // beside `tail` and is enough until the ring has gone round.
  uint64_t consumed = atomic_load_explicit(&control->seen_head, memory_order_acquire);
  do {
    while (__builtin_expect(position + count - consumed > ring.slot_count, 0)) {
      consumed = atomic_load_explicit(&control->head, memory_order_acquire);
      atomic_store_explicit(&control->seen_head, consumed, memory_order_release);
      if (position + count - consumed <= ring.slot_count) break;
      // Full, unless `position` is older than what has been consumed.
      const uint64_t now = atomic_load_explicit(&control->tail, memory_order_relaxed);
      if (now == position) return false;
      position = now;
    }
  } while (!atomic_compare_exchange_weak_explicit(&control->tail, &position, position + count, memory_order_relaxed,
                                                  memory_order_relaxed));
  ORION_RING_RESERVED(ring);
  *at = position;
  return true;
}

/// Pushes one operation of head->bytes bytes: `head_bytes` of header and fields at `head`, the rest at `tail`.
/// Returns false, with nothing changed, when the ring has no room. One copy for each slot where the rest lies behind
/// the header's part in memory.
static inline bool orion_ring_push(orion_ring ring, const orion_op* head, uint32_t head_bytes, const void* tail) {
  const uint32_t bytes = head->bytes;
  if (tail == (const uint8_t*)head + head_bytes) head_bytes = bytes;
  const uint32_t count = orion_slots_for(bytes);
  const uint64_t mask = ring.slot_count - 1;
  uint64_t position;
  if (!orion_ring_reserve(ring, count, &position)) return false;
  orion_slot* first = &ring.slots[position & mask];
  orion_slot_fetch(&ring.slots[(position + ORION_FETCH_AHEAD) & mask]);
  if (__builtin_expect(count == 1, 1)) {
    memcpy(first->payload, head, head_bytes);
    if (bytes > head_bytes) memcpy(first->payload + head_bytes, tail, bytes - head_bytes);
    ORION_RING_COMMITS(ring);
    atomic_store_explicit(&first->sequence, position + 1, memory_order_release);
    return true;
  }
  const uint8_t* from = (const uint8_t*)head;
  uint32_t left_head = head_bytes;
  const uint8_t* from_tail = (const uint8_t*)tail;
  uint32_t left = bytes;
  for (uint32_t i = 0; i < count; i++) {
    orion_slot* slot = &ring.slots[(position + i) & mask];
    const uint32_t piece = left < ORION_SLOT_PAYLOAD ? left : ORION_SLOT_PAYLOAD;
    const uint32_t of_head = piece < left_head ? piece : left_head;
    if (of_head) orion_slot_copy(slot->payload, from, of_head);
    from += of_head;
    left_head -= of_head;
    if (piece > of_head) {  // the tail may be none, at NULL
      orion_slot_copy(slot->payload + of_head, from_tail, piece - of_head);
      from_tail += piece - of_head;
    }
    left -= piece;
    if (i) {
      atomic_store_explicit(&slot->sequence, position + i + 1, memory_order_relaxed);
      orion_slot_fetch(&ring.slots[(position + i + ORION_FETCH_AHEAD) & mask]);
    }
  }
  ORION_RING_COMMITS(ring);
  atomic_store_explicit(&first->sequence, position + 1, memory_order_release);
  return true;
}

enum orion_ring_state { ORION_RING_EMPTY = 0, ORION_RING_OP = 1, ORION_RING_BROKEN = -1 };

/// Copies the entry at *position into `out` (ORION_OP_MAX_BYTES) and advances *position. The caller owns *position:
/// it is never read back from shared memory. Publishes `head`, so producers may reuse the slots at once.
/// ORION_RING_BROKEN: the header's length is out of bounds; the session must end.
static inline enum orion_ring_state orion_ring_pop(orion_ring ring, uint64_t* position, orion_op* out) {
  const uint64_t mask = ring.slot_count - 1;
  orion_slot* first = &ring.slots[*position & mask];
  if (atomic_load_explicit(&first->sequence, memory_order_acquire) != *position + 1) return ORION_RING_EMPTY;
  memcpy(out, first->payload, sizeof *out);
  const uint32_t bytes = out->bytes;  // of the copy: what the client writes from here on changes nothing
  if (bytes < sizeof *out || bytes > ORION_OP_MAX_BYTES) return ORION_RING_BROKEN;
  const uint32_t count = orion_slots_for(bytes);
  uint8_t* to = (uint8_t*)out + sizeof *out;
  uint32_t left = bytes - (uint32_t)sizeof *out;
  const uint32_t first_most = ORION_SLOT_PAYLOAD - (uint32_t)sizeof *out;
  uint32_t piece = left < first_most ? left : first_most;
  if (piece == first_most) {
    memcpy(to, first->payload + sizeof *out, ORION_SLOT_PAYLOAD - sizeof *out);
  } else {
    memcpy(to, first->payload + sizeof *out, piece);
  }
  to += piece;
  left -= piece;
  for (uint32_t i = 1; i < count; i++) {
    orion_slot* slot = &ring.slots[(*position + i) & mask];
    if (atomic_load_explicit(&slot->sequence, memory_order_relaxed) != *position + i + 1) return ORION_RING_BROKEN;
    piece = left < ORION_SLOT_PAYLOAD ? left : ORION_SLOT_PAYLOAD;
    orion_slot_copy(to, slot->payload, piece);
    to += piece;
    left -= piece;
  }
  *position += count;
  atomic_store_explicit(&ring.control->head, *position, memory_order_release);
  return ORION_RING_OP;
}

/// True when a consumer that is about to sleep must look again. Pairs with the fence in orion_ring_must_wake.
static inline bool orion_ring_ready(orion_ring ring, uint64_t position) {
  return atomic_load_explicit(&ring.slots[position & (ring.slot_count - 1)].sequence, memory_order_acquire) ==
         position + 1;
}

/// After a push: true when the consumer sleeps and must be woken (futex on control->wake).
static inline bool orion_ring_must_wake(orion_ring ring) {
  atomic_thread_fence(memory_order_seq_cst);
  return atomic_load_explicit(&ring.control->consumer_parked, memory_order_relaxed) != 0;
}

#endif
