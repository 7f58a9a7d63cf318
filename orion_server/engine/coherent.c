// Host memory that kernels use over a network. For each such range the worker keeps what the client knows of it. After
// work that may have written it, only bytes that differ travel back; what the client sends is noted as known.
//
// Ranges are disjoint parts of registered memory, or stand for managed variables, so their copies never take more than
// that.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define RANGES_MAX 65536u

static uint32_t search(const orion_engine* e, uint64_t offset) {
  uint32_t low = 0, high = e->coherent_count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (e->coherent[middle].offset + e->coherent[middle].bytes <= offset) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

coherent_range* coherent_find(const orion_engine* e, uint64_t offset, uint64_t bytes) {
  const uint32_t i = search(e, offset);
  const bool same = i < e->coherent_count && e->coherent[i].offset == offset && e->coherent[i].bytes == bytes;
  return same ? &e->coherent[i] : NULL;
}

int32_t coherent_insert(orion_engine* e, const coherent_range* range) {
  const uint32_t at = search(e, range->offset);
  const bool is_free =  // what is found ends behind the offset
      at == e->coherent_count ||
      (e->coherent[at].offset >= range->offset && e->coherent[at].offset - range->offset >= range->bytes);
  if (!is_free) return CUDA_ERROR_INVALID_VALUE;
  if (e->coherent_count == e->coherent_capacity) {
    const uint32_t capacity = e->coherent_capacity ? e->coherent_capacity * 2 : 16;
    coherent_range* grown = capacity <= RANGES_MAX ? realloc(e->coherent, capacity * sizeof *grown) : NULL;
    if (!grown) return CUDA_ERROR_OUT_OF_MEMORY;
    e->coherent = grown;
    e->coherent_capacity = capacity;
  }
  memmove(&e->coherent[at + 1], &e->coherent[at], (e->coherent_count - at) * sizeof *e->coherent);
  e->coherent[at] = *range;
  e->coherent_count++;
  if (range->mirror) e->mirror_count++;
  return 0;
}

void coherent_add(orion_engine* e, const orion_op* op) {
  const orion_op_host_coherent* o = (const orion_op_host_coherent*)op;
  if (!e->net || !o->size_bytes || !memory_host_ok(e, o->arena_off, o->size_bytes)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  uint8_t* known =
      mmap(NULL, o->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (known == MAP_FAILED) {
    answer_result(e, op, CUDA_ERROR_OUT_OF_MEMORY);
    return;
  }
  // What is equal stays untouched: fresh memory is zero on both sides and costs nothing.
  uint64_t i = 0, length = 0;
  while (orion_next_difference(e->arena + o->arena_off, known, o->size_bytes, &i, &length)) {
    memcpy(known + i, e->arena + o->arena_off + i, length);
    i += length;
  }
  const int32_t result = coherent_insert(e, &(coherent_range){o->arena_off, o->size_bytes, known, NULL});
  if (result) munmap(known, o->size_bytes);
  answer_result(e, op, result);
}

void coherent_known(orion_engine* e, uint64_t offset, const uint8_t* from, uint64_t bytes) {
  for (uint32_t i = search(e, offset); i < e->coherent_count && e->coherent[i].offset < offset + bytes; i++) {
    const coherent_range* r = &e->coherent[i];
    const uint64_t first = offset > r->offset ? offset : r->offset;
    const uint64_t end = offset + bytes < r->offset + r->bytes ? offset + bytes : r->offset + r->bytes;
    memcpy(r->known + (first - r->offset), from + (first - offset), end - first);
  }
}

void coherent_arrived(orion_engine* e, uint64_t offset, const uint8_t* from, uint64_t bytes) {
  coherent_known(e, offset, from, bytes);
  if (!e->mirror_count) return;
  for (uint32_t i = search(e, offset); i < e->coherent_count && e->coherent[i].offset < offset + bytes; i++) {
    const coherent_range* r = &e->coherent[i];
    if (!r->mirror) continue;
    const uint64_t first = offset > r->offset ? offset : r->offset;
    const uint64_t end = offset + bytes < r->offset + r->bytes ? offset + bytes : r->offset + r->bytes;
    memcpy(variable_memory(r->mirror) + (first - r->offset), from + (first - offset), end - first);
  }
}

const uint8_t* coherent_source(const orion_engine* e, uint64_t offset) {
  const uint32_t i = e->mirror_count ? search(e, offset) : 0;
  const coherent_range* r = i < e->coherent_count ? &e->coherent[i] : NULL;
  const bool mirrored = e->mirror_count && r && r->mirror && r->offset <= offset;
  return mirrored ? variable_memory(r->mirror) + (offset - r->offset) : e->arena + offset;
}

uint8_t* coherent_copy(const orion_engine* e, uint64_t offset, uint64_t bytes) {
  const uint32_t i = search(e, offset);
  if (i == e->coherent_count) return NULL;
  const coherent_range* r = &e->coherent[i];
  if (offset < r->offset || bytes > r->bytes - (offset - r->offset)) return NULL;
  return r->known + (offset - r->offset);
}

bool coherent_touches(const orion_engine* e, uint64_t offset, uint64_t bytes) {
  const uint32_t i = e->coherent_count ? search(e, offset) : 0;
  return i < e->coherent_count && e->coherent[i].offset < offset + bytes;
}

bool coherent_settled(orion_engine* e) {
  if (!e->net) return true;
  if (net_copies_wait(e)) {
    park_cause(e, CAUSE_TIME, 0, engine_now_ns() + 50000, NULL);
    return false;
  }
  net_after_copies(e);
  return true;
}

void coherent_publish(orion_engine* e, const orion_op* op) {
  const orion_op_host_publish* o = (const orion_op_host_publish*)op;
  stream_state* s = use_stream(e, op);
  if (!s) return;
  const coherent_range* r = e->mirror_count ? coherent_find(e, o->arena_off, o->size_bytes) : NULL;
  if (!e->net && r) {
    answer_result(e, op, answer_check(e, op->context, variable_publish(e, s, r->mirror)));
    return;
  }
  if (!e->net || !o->size_bytes || !coherent_copy(e, o->arena_off, o->size_bytes)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  net_publish(e, o->arena_off, o->size_bytes, s->track, e->tracks[s->track].issued);
  answer_result(e, op, 0);
}

void coherent_drop(orion_engine* e, uint64_t offset, uint64_t bytes) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < e->coherent_count; i++) {
    const coherent_range r = e->coherent[i];
    if (r.offset >= offset && r.offset - offset < bytes) {
      if (r.mirror) {
        e->mirror_count--;
        variable_mirror_end(r.mirror);
      } else {
        munmap(r.known, r.bytes);
      }
    } else {
      e->coherent[kept++] = r;
    }
  }
  e->coherent_count = kept;
}
