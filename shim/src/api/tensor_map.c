// Tensor maps are encoded by the worker's driver, whose format is opaque, and remembered: programs encode the same
// shapes again and again. A remembered map serves other addresses too when the worker has shown where its address lies.
#include <string.h>

#include "api.h"

#define RANK_MAX 5u
#define SETS 64u
#define WAYS 4u
#define ADDRESS_NOT_PROVEN 0xffffffffu
// The worker tries address bits up to here.
#define ADDRESS_END (1ull << 47)

enum kind { TILED, IM2COL, IM2COL_WIDE };

typedef struct shape {  // the operation's tail
  uint64_t dimensions[RANK_MAX], strides[RANK_MAX - 1];
  uint32_t box[RANK_MAX], element_strides[RANK_MAX];
  int32_t lower[RANK_MAX - 2], upper[RANK_MAX - 2];
} shape;

/// All arguments but the address, and the device. Without padding: compared and hashed as words.
typedef struct map_key {
  uint32_t device, kind, data_type, rank, interleave, swizzle, l2_promotion, oob_fill, channels_per_pixel,
      pixels_per_column, mode, reserved;
  shape shape;
} map_key;
#define KEY_WORDS 23u
_Static_assert(sizeof(map_key) == KEY_WORDS * 8, "map_key");

typedef struct remembered {
  map_key key;
  uint64_t address, used;  // used: 0 for an empty place
  uint32_t address_at;
  CUtensorMap map;
} remembered;

static pthread_mutex_t cache_mutex = PTHREAD_MUTEX_INITIALIZER;
static remembered cache[SETS][WAYS];
static uint64_t cache_clock;

static uint32_t set_of(const map_key* key) {
  uint64_t words[KEY_WORDS], hash = 0;
  memcpy(words, key, sizeof words);
  for (uint32_t i = 0; i < KEY_WORDS; i++) hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull;
  return (uint32_t)(hash >> 40) % SETS;
}

/// Whether the entry tells the map of `address`. One that was made for an address on 32 bytes says nothing of addresses
/// on 16, which some arguments forbid.
static bool serves(const remembered* r, const map_key* key, uint64_t address) {
  if (r->used == 0 || memcmp(&r->key, key, sizeof *key) != 0) return false;
  if (r->address == address) return true;
  const uint64_t alignment = (r->address & 16) != 0 ? 15 : 31;
  return r->address_at != ADDRESS_NOT_PROVEN && address != 0 && address < ADDRESS_END && (address & alignment) == 0;
}

static bool recall(const map_key* key, uint64_t address, CUtensorMap* map) {
  remembered* set = cache[set_of(key)];
  bool found = false;
  pthread_mutex_lock(&cache_mutex);
  for (uint32_t i = 0; i < WAYS && !found; i++) {
    if (!serves(&set[i], key, address)) continue;
    found = true;
    set[i].used = ++cache_clock;
    *map = set[i].map;
    if (set[i].address != address) memcpy((uint8_t*)map + set[i].address_at, &address, sizeof address);
  }
  pthread_mutex_unlock(&cache_mutex);
  return found;
}

static void remember(const map_key* key, uint64_t address, uint32_t address_at, const CUtensorMap* map) {
  remembered* set = cache[set_of(key)];
  if (address_at > sizeof *map - sizeof address) address_at = ADDRESS_NOT_PROVEN;
  pthread_mutex_lock(&cache_mutex);
  remembered* place = &set[0];
  for (uint32_t i = 1; i < WAYS; i++) {
    if (set[i].used < place->used) place = &set[i];
  }
  *place = (remembered){.key = *key, .address = address, .used = ++cache_clock, .address_at = address_at, .map = *map};
  pthread_mutex_unlock(&cache_mutex);
}

/// The device to ask, and the context index to ask in. A map belongs to no context: without one, the first device
/// changes its address. To encode one the driver wants a current context.
static CUresult place_of(orion_device_state** device, uint16_t* context_index) {
  orion_context* context;
  const CUresult result = orion_current(&context);
  if (result == CUDA_SUCCESS) {
    *device = context->device;
    *context_index = (uint16_t)context->entry.index;
    return CUDA_SUCCESS;
  }
  *device = orion_device_state_at(0);
  *context_index = 0;
  return result == CUDA_ERROR_INVALID_CONTEXT && *device != NULL ? CUDA_SUCCESS : result;
}

static CUresult encode(CUtensorMap* map, map_key* key, uint64_t address) {
  orion_context* context;
  const CUresult current = orion_current(&context);
  if (current != CUDA_SUCCESS) return current;
  key->device = context->device->ordinal;
  if (recall(key, address, map)) return CUDA_SUCCESS;
  orion_op_tensor_map_encode op = {
      .op = {.code = ORION_OP_TENSOR_MAP_ENCODE, .context = (uint16_t)context->entry.index},
      .kind = key->kind,
      .data_type = key->data_type,
      .rank = key->rank,
      .interleave = key->interleave,
      .swizzle = key->swizzle,
      .l2_promotion = key->l2_promotion,
      .oob_fill = key->oob_fill,
      .channels_per_pixel = key->channels_per_pixel,
      .pixels_per_column = key->pixels_per_column,
      .mode = key->mode,
      .address = address};
  struct {
    orion_reply_tensor_map_encode head;
    uint8_t map[sizeof(CUtensorMap)];
  } reply;
  uint32_t reply_bytes;
  const CUresult result = orion_call(context->session, &op.op, sizeof op, &key->shape, sizeof key->shape, &reply,
                                     sizeof reply, &reply_bytes);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(reply_bytes == sizeof reply, CUDA_ERROR_UNKNOWN);
  memcpy(map, reply.map, sizeof *map);
  remember(key, address, reply.head.address_at, map);
  return CUDA_SUCCESS;
}

/// False for arguments that could not even be read.
static bool fill(map_key* key, const CUtensorMap* map, CUtensorMapDataType data_type, cuuint32_t rank,
                 const cuuint64_t* dimensions, const cuuint64_t* strides, const cuuint32_t* element_strides) {
  if (map == NULL || rank == 0 || rank > RANK_MAX) return false;  // the driver takes a map at any address
  if (dimensions == NULL || element_strides == NULL || (rank > 1 && strides == NULL)) return false;
  memset(key, 0, sizeof *key);
  key->data_type = data_type;
  key->rank = rank;
  memcpy(key->shape.dimensions, dimensions, rank * sizeof *dimensions);
  if (rank > 1) memcpy(key->shape.strides, strides, (rank - 1) * sizeof *strides);
  memcpy(key->shape.element_strides, element_strides, rank * sizeof *element_strides);
  return true;
}

ORION_API CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType data_type, cuuint32_t rank,
                                          void* address, const cuuint64_t* dimensions, const cuuint64_t* strides,
                                          const cuuint32_t* box, const cuuint32_t* element_strides,
                                          CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                          CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill oob_fill) {
  ORION_ENTER();
  map_key key;
  ORION_REQUIRE(box != NULL && fill(&key, map, data_type, rank, dimensions, strides, element_strides),
                CUDA_ERROR_INVALID_VALUE);
  key.kind = TILED;
  memcpy(key.shape.box, box, rank * sizeof *box);
  key.interleave = interleave;
  key.swizzle = swizzle;
  key.l2_promotion = l2_promotion;
  key.oob_fill = oob_fill;
  return encode(map, &key, (uint64_t)(uintptr_t)address);
}

ORION_API CUresult cuTensorMapEncodeIm2col(CUtensorMap* map, CUtensorMapDataType data_type, cuuint32_t rank,
                                           void* address, const cuuint64_t* dimensions, const cuuint64_t* strides,
                                           const int* lower, const int* upper, cuuint32_t channels_per_pixel,
                                           cuuint32_t pixels_per_column, const cuuint32_t* element_strides,
                                           CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                           CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill oob_fill) {
  ORION_ENTER();
  map_key key;
  ORION_REQUIRE(rank >= 3 && lower != NULL && upper != NULL &&
                    fill(&key, map, data_type, rank, dimensions, strides, element_strides),
                CUDA_ERROR_INVALID_VALUE);
  key.kind = IM2COL;
  memcpy(key.shape.lower, lower, (rank - 2) * sizeof *lower);
  memcpy(key.shape.upper, upper, (rank - 2) * sizeof *upper);
  key.channels_per_pixel = channels_per_pixel;
  key.pixels_per_column = pixels_per_column;
  key.interleave = interleave;
  key.swizzle = swizzle;
  key.l2_promotion = l2_promotion;
  key.oob_fill = oob_fill;
  return encode(map, &key, (uint64_t)(uintptr_t)address);
}

ORION_API CUresult cuTensorMapEncodeIm2colWide(CUtensorMap* map, CUtensorMapDataType data_type, cuuint32_t rank,
                                               void* address, const cuuint64_t* dimensions, const cuuint64_t* strides,
                                               int lower_width, int upper_width, cuuint32_t channels_per_pixel,
                                               cuuint32_t pixels_per_column, const cuuint32_t* element_strides,
                                               CUtensorMapInterleave interleave, CUtensorMapIm2ColWideMode mode,
                                               CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                                               CUtensorMapFloatOOBfill oob_fill) {
  ORION_ENTER();
  map_key key;
  ORION_REQUIRE(rank >= 3 && fill(&key, map, data_type, rank, dimensions, strides, element_strides),
                CUDA_ERROR_INVALID_VALUE);
  key.kind = IM2COL_WIDE;
  key.shape.lower[0] = lower_width;
  key.shape.upper[0] = upper_width;
  key.channels_per_pixel = channels_per_pixel;
  key.pixels_per_column = pixels_per_column;
  key.interleave = interleave;
  key.mode = mode;
  key.swizzle = swizzle;
  key.l2_promotion = l2_promotion;
  key.oob_fill = oob_fill;
  return encode(map, &key, (uint64_t)(uintptr_t)address);
}

ORION_API CUresult cuTensorMapReplaceAddress(CUtensorMap* map, void* address) {
  ORION_ENTER();
  ORION_REQUIRE(map != NULL && ((uintptr_t)map & 63) == 0, CUDA_ERROR_INVALID_VALUE);
  orion_device_state* device;
  uint16_t context_index;
  CUresult result = place_of(&device, &context_index);
  if (result != CUDA_SUCCESS) return result;
  orion_op_tensor_map_replace_address op = {
      .op = {.code = ORION_OP_TENSOR_MAP_REPLACE_ADDRESS, .context = context_index},
      .address = (uint64_t)(uintptr_t)address};
  CUtensorMap replaced;
  uint32_t reply_bytes;
  result =
      orion_call(device->info->session, &op.op, sizeof op, map, sizeof *map, &replaced, sizeof replaced, &reply_bytes);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(reply_bytes == sizeof replaced, CUDA_ERROR_UNKNOWN);
  *map = replaced;
  return CUDA_SUCCESS;
}
