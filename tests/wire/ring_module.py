"""A cffi module around orion_ring.h and gen_ops.h, built into a folder of the caller's choice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from cffi import FFI

from wire import gen_ops

ROOT = Path(__file__).resolve().parents[2]

CDEF = """
#define ORION_OP_MAX_BYTES ...
#define ORION_SLOT_PAYLOAD ...
enum orion_ring_state { ORION_RING_EMPTY, ORION_RING_OP, ORION_RING_BROKEN, ... };
typedef struct test_ring test_ring;
test_ring *ring_new(uint32_t slots, uint64_t start);
void ring_free(test_ring *ring);
int ring_push(test_ring *ring, const void *head, uint32_t head_bytes, const void *tail);
int ring_pop(test_ring *ring, void *out);
uint64_t ring_used(test_ring *ring);
int ring_ready(test_ring *ring);
void ring_poke(test_ring *ring, uint64_t position, uint32_t offset, const void *bytes, uint32_t count);
void ring_set_sequence(test_ring *ring, uint64_t position, uint64_t value);
uint64_t ring_position(test_ring *ring);
int ring_must_wake(test_ring *ring, uint32_t parked);
int64_t ring_stress(uint32_t slots, uint32_t producers, uint32_t each);
uint32_t op_fixed_bytes(uint32_t code);
"""

SOURCE = r"""
#include <pthread.h>
#include <stdlib.h>

#include "gen_ops.h"
#include "orion_ring.h"

typedef struct test_ring {
  orion_ring ring;
  uint64_t position;
  orion_ring_control control;
} test_ring;

static test_ring *ring_new(uint32_t slots, uint64_t start) {
  test_ring *r = aligned_alloc(64, (sizeof *r + 63) / 64 * 64);
  memset(r, 0, sizeof *r);
  r->ring.control = &r->control;
  r->ring.slots = aligned_alloc(64, (size_t)slots * sizeof(orion_slot));
  memset((void *)r->ring.slots, 0, (size_t)slots * sizeof(orion_slot));
  r->ring.slot_count = slots;
  r->position = start;
  atomic_store(&r->control.tail, start);
  atomic_store(&r->control.head, start);
  return r;
}
static void ring_free(test_ring *r) {
  free((void *)r->ring.slots);
  free(r);
}
static int ring_push(test_ring *r, const void *head, uint32_t head_bytes, const void *tail) {
  return orion_ring_push(r->ring, head, head_bytes, tail);
}
static int ring_pop(test_ring *r, void *out) { return orion_ring_pop(r->ring, &r->position, out); }
static uint64_t ring_used(test_ring *r) { return atomic_load(&r->control.tail) - atomic_load(&r->control.head); }
static int ring_ready(test_ring *r) { return orion_ring_ready(r->ring, r->position); }
static void ring_poke(test_ring *r, uint64_t position, uint32_t offset, const void *bytes, uint32_t count) {
  memcpy(r->ring.slots[position & (r->ring.slot_count - 1)].payload + offset, bytes, count);
}
static void ring_set_sequence(test_ring *r, uint64_t position, uint64_t value) {
  atomic_store(&r->ring.slots[position & (r->ring.slot_count - 1)].sequence, value);
}
static uint64_t ring_position(test_ring *r) { return r->position; }
static int ring_must_wake(test_ring *r, uint32_t parked) {
  atomic_store(&r->control.consumer_parked, parked);
  return orion_ring_must_wake(r->ring);
}
static uint32_t op_fixed_bytes(uint32_t code) { return code < ORION_OP_CODE_END ? ORION_OP_INFO[code].fixed_bytes : 0; }

// Many producers: entry i of producer p says so in its header, has a length that depends on both, and a tail of bytes
// that depend on all three, so a lost, doubled, torn or reordered entry shows.
typedef struct producer {
  test_ring *ring;
  uint32_t index, each;
} producer;

static uint32_t entry_bytes(uint32_t p, uint32_t i) { return sizeof(orion_op) + (p * 7919u + i * 104729u) % 900u; }
static uint8_t entry_byte(uint32_t p, uint32_t i, uint32_t at) { return (uint8_t)(p * 31u + i * 17u + at); }

static void *produce(void *argument) {
  producer *self = argument;
  uint8_t tail[1024];
  for (uint32_t i = 0; i < self->each; i++) {
    orion_op op = {.code = 1, .bytes = entry_bytes(self->index, i), .stream = self->index, .bulk_seq = i};
    for (uint32_t at = 0; at < op.bytes - sizeof op; at++) tail[at] = entry_byte(self->index, i, at);
    while (!orion_ring_push(self->ring->ring, &op, sizeof op, tail)) sched_yield();
  }
  return NULL;
}

static int64_t ring_stress(uint32_t slots, uint32_t producers, uint32_t each) {
  test_ring *r = ring_new(slots, 0);
  pthread_t threads[64];
  producer selves[64];
  uint32_t next[64] = {0};
  if (producers > 64) return -1;
  for (uint32_t p = 0; p < producers; p++) {
    selves[p] = (producer){r, p, each};
    pthread_create(&threads[p], NULL, produce, &selves[p]);
  }
  static _Thread_local uint64_t out[ORION_OP_MAX_BYTES / 8];
  int64_t wrong = 0;
  for (uint64_t left = (uint64_t)producers * each; left;) {
    const enum orion_ring_state state = orion_ring_pop(r->ring, &r->position, (orion_op *)out);
    if (state == ORION_RING_EMPTY) {
      sched_yield();
      continue;
    }
    left--;
    const orion_op *op = (const orion_op *)out;
    if (state != ORION_RING_OP || op->stream >= producers || op->bulk_seq != next[op->stream]++ ||
        op->bytes != entry_bytes(op->stream, (uint32_t)op->bulk_seq)) {
      wrong++;
      if (state == ORION_RING_BROKEN) break;
      continue;
    }
    const uint8_t *tail = (const uint8_t *)(op + 1);
    for (uint32_t at = 0; at < op->bytes - sizeof *op; at++)
      wrong += tail[at] != entry_byte(op->stream, (uint32_t)op->bulk_seq, at);
  }
  for (uint32_t p = 0; p < producers; p++) pthread_join(threads[p], NULL);
  ring_free(r);
  return wrong;
}
"""


def build(folder: Path) -> ModuleType:
    ffi = FFI()
    ffi.cdef(gen_ops.cdefs() + CDEF)
    ffi.set_source(
        "orion_ring_test",
        SOURCE,
        include_dirs=[str(ROOT / "wire" / "include")],
        extra_compile_args=["-std=c11", "-O2", "-g", "-D_GNU_SOURCE", "-Wno-unused-const-variable"],
        extra_link_args=["-pthread"],
    )
    path = ffi.compile(tmpdir=str(folder))
    spec = importlib.util.spec_from_file_location("orion_ring_test", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
