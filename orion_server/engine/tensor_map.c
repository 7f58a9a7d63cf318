// Tensor maps: the driver encodes, on the CPU, without touching the device or looking at the address's memory.
#include <string.h>

#include "internal.h"

#define RANK_MAX 5u
#define MAP_WORDS 16u
#define ADDRESS_NOT_PROVEN 0xffffffffu

typedef struct shape {  // the operation's tail
  uint64_t dimensions[RANK_MAX], strides[RANK_MAX - 1];
  uint32_t box[RANK_MAX], element_strides[RANK_MAX];
  int32_t lower[RANK_MAX - 2], upper[RANK_MAX - 2];
} shape;
_Static_assert(sizeof(shape) == 136, "the tail has no padding");

static int32_t encode(const orion_engine* e, const orion_op_tensor_map_encode* o, const shape* s, uint64_t address,
                      CUtensorMap* map) {
  memset(map, 0, sizeof *map);
  void* at = (void*)(uintptr_t)address;  // NOLINT(performance-no-int-to-ptr): never dereferenced, only encoded
  switch (o->kind) {
    case 0:
      return (int32_t)e->driver.tensor_map_tiled(map, o->data_type, o->rank, at, s->dimensions, s->strides, s->box,
                                                 s->element_strides, o->interleave, o->swizzle, o->l2_promotion,
                                                 o->oob_fill);
    case 1:
      return (int32_t)e->driver.tensor_map_im2col(
          map, o->data_type, o->rank, at, s->dimensions, s->strides, s->lower, s->upper, o->channels_per_pixel,
          o->pixels_per_column, s->element_strides, o->interleave, o->swizzle, o->l2_promotion, o->oob_fill);
    case 2:
      return (int32_t)e->driver.tensor_map_im2col_wide(
          map, o->data_type, o->rank, at, s->dimensions, s->strides, s->lower[0], s->upper[0], o->channels_per_pixel,
          o->pixels_per_column, s->element_strides, o->interleave, o->mode, o->swizzle, o->l2_promotion, o->oob_fill);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

// Where `map` holds its address, if encoding other addresses changes that word, all of it, and nothing else. The format
// is NVIDIA's own and may change with a driver, hence the proof instead of a constant.
static uint32_t prove_address_at(const orion_engine* e, const orion_op_tensor_map_encode* o, const shape* s,
                                 const CUtensorMap* map) {
  // Every bit from 5 (the largest alignment that a map asks for is 32 bytes) to 46 differs in one of them.
  static const uint64_t flips[] = {0x555555555540ull, 0x2aaaaaaaaaa0ull, 0x20ull, 0x400000000000ull};
  uint32_t found = ADDRESS_NOT_PROVEN;
  for (uint32_t i = 0; i < sizeof flips / sizeof flips[0]; i++) {
    const uint64_t other_address = o->address ^ flips[i];
    CUtensorMap other;
    if (encode(e, o, s, other_address, &other)) return ADDRESS_NOT_PROVEN;
    uint32_t at = ADDRESS_NOT_PROVEN, differing = 0;
    for (uint32_t word = 0; word < MAP_WORDS; word++) {
      if (map->opaque[word] == other.opaque[word]) continue;
      differing++;
      if (map->opaque[word] == o->address && other.opaque[word] == other_address) at = word * 8;
    }
    if (differing != 1 || at == ADDRESS_NOT_PROVEN || (i > 0 && at != found)) return ADDRESS_NOT_PROVEN;
    found = at;
  }
  return found;
}

void tensor_map_encode(orion_engine* e, const orion_op* op) {
  const orion_op_tensor_map_encode* o = (const orion_op_tensor_map_encode*)op;
  if (op->context && !use_context(e, op)) return;
  shape s;
  if (op_tail_bytes(op) != sizeof s || !o->rank || o->rank > RANK_MAX || (o->kind && o->rank < 3)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  memcpy(&s, op_tail(op), sizeof s);
  struct {
    orion_reply_tensor_map_encode head;
    uint8_t map[sizeof(CUtensorMap)];
  } reply = {0};
  CUtensorMap map;
  const int32_t result = answer_check(e, op->context, encode(e, o, &s, o->address, &map));
  if (!result) {
    reply.head.address_at = prove_address_at(e, o, &s, &map);
    memcpy(reply.map, &map, sizeof map);
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

void tensor_map_replace_address(orion_engine* e, const orion_op* op) {
  const orion_op_tensor_map_replace_address* o = (const orion_op_tensor_map_replace_address*)op;
  if (op->context && !use_context(e, op)) return;
  CUtensorMap map;
  if (op_tail_bytes(op) != sizeof map) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  memcpy(&map, op_tail(op), sizeof map);
  void* at = (void*)(uintptr_t)o->address;  // NOLINT(performance-no-int-to-ptr): never dereferenced, only encoded
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.tensor_map_replace_address(&map, at));
  answer_reply(e, op, result, &map, sizeof map);
}
