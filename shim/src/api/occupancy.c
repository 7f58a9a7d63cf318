// Occupancy: the worker's driver knows. Its answers are kept with the function, by arguments: frameworks ask the same
// before every launch.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "library.h"

#define ANSWERS_MAX 256u  // for each function; later ones are asked for each time
#define ATTRIBUTES_MAX 16u
#define ATTRIBUTE_BYTES 72u

/// One question: its operation without header, what it depends on, and the attributes behind it.
typedef struct orion_occupancy {
  struct orion_occupancy* next;
  uint32_t number;    // from the end of the list
  uint32_t settings;  // the function's when it was asked
  uint32_t code, key_bytes, tail_bytes;
  uint64_t answer;
  uint8_t key[];  // the operation's fields, then the tail
} orion_occupancy;

void orion_occupancy_forget(orion_function* function) {
  orion_occupancy* answer = atomic_load(&function->occupancy);
  atomic_store(&function->occupancy, NULL);
  while (answer != NULL) {
    orion_occupancy* next = answer->next;
    free(answer);
    answer = next;
  }
}

/// Answers `op` (complete but for its context) from what is known, or asks. Answers are `answer_bytes` long, at most 8.
static CUresult ask(orion_function* function, orion_op* op, uint32_t op_bytes, const void* tail, uint32_t tail_bytes,
                    uint32_t answer_bytes, uint64_t* answer) {
  const uint8_t* key = (const uint8_t*)op + sizeof *op;
  const uint32_t key_bytes = op_bytes - (uint32_t)sizeof *op;
  const uint32_t settings = atomic_load(&function->settings);
  orion_occupancy* first = atomic_load_explicit(&function->occupancy, memory_order_acquire);
  for (const orion_occupancy* known = first; known != NULL; known = known->next) {
    if (known->code == op->code && known->settings == settings && known->key_bytes == key_bytes &&
        known->tail_bytes == tail_bytes && memcmp(known->key, key, key_bytes) == 0 &&
        (tail_bytes == 0 || memcmp(known->key + key_bytes, tail, tail_bytes) == 0)) {
      *answer = known->answer;
      return CUDA_SUCCESS;
    }
  }
  *answer = 0;
  op->context = (uint16_t)function->context->entry.index;
  const CUresult result =
      orion_call(function->context->session, op, op_bytes, tail, tail_bytes, answer, answer_bytes, NULL);
  if (result != CUDA_SUCCESS || (first != NULL && first->number >= ANSWERS_MAX)) return result;
  orion_occupancy* made = malloc(sizeof *made + key_bytes + tail_bytes);
  if (made == NULL) return CUDA_SUCCESS;
  *made = (orion_occupancy){
      .settings = settings, .code = op->code, .key_bytes = key_bytes, .tail_bytes = tail_bytes, .answer = *answer};
  memcpy(made->key, key, key_bytes);
  if (tail_bytes != 0) memcpy(made->key + key_bytes, tail, tail_bytes);
  do {
    made->next = first;
    made->number = first == NULL ? 1 : first->number + 1;
  } while (!atomic_compare_exchange_weak_explicit(&function->occupancy, &first, made, memory_order_acq_rel,
                                                  memory_order_acquire));
  return CUDA_SUCCESS;
}

CUresult orion_occupancy_blocks(orion_function* function, int32_t block_size, uint64_t dynamic_bytes, uint32_t flags,
                                int32_t* blocks) {
  orion_op_occupancy_blocks op = {.op = {.code = ORION_OP_OCCUPANCY_BLOCKS},
                                  .function = function->entry.index,
                                  .block_size = block_size,
                                  .dynamic_shared_bytes = dynamic_bytes,
                                  .occupancy_flags = flags};
  uint64_t answer;
  const CUresult result =
      ask(function, &op.op, sizeof op, NULL, 0, (uint32_t)sizeof(orion_reply_occupancy_blocks), &answer);
  *blocks = (int32_t)(uint32_t)answer;
  return result;
}

ORION_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction handle, int block_size,
                                                                        size_t dynamic_bytes, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(blocks != NULL && block_size > 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE((flags & ~(unsigned)CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE) == 0, CUDA_ERROR_INVALID_VALUE);
  orion_function* function;
  CUresult result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  int32_t count;
  result = orion_occupancy_blocks(function, block_size, dynamic_bytes, flags, &count);
  if (result == CUDA_SUCCESS) *blocks = count;
  return result;
}

ORION_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int block_size,
                                                               size_t dynamic_bytes) {
  ORION_COUNTED();

  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, handle, block_size, dynamic_bytes,
                                                              CU_OCCUPANCY_DEFAULT);
}

ORION_API CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction handle, int blocks,
                                                           int block_size) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(bytes != NULL && blocks > 0 && block_size > 0, CUDA_ERROR_INVALID_VALUE);
  orion_function* function;
  CUresult result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  orion_op_occupancy_shared op = {.op = {.code = ORION_OP_OCCUPANCY_SHARED},
                                  .function = function->entry.index,
                                  .blocks = blocks,
                                  .block_size = block_size};
  uint64_t answer;
  result = ask(function, &op.op, sizeof op, NULL, 0, (uint32_t)sizeof(orion_reply_occupancy_shared), &answer);
  if (result == CUDA_SUCCESS) *bytes = answer;
  return result;
}

enum { CLUSTERS_ACTIVE = 0, CLUSTER_SIZE = 1 };

static CUresult clusters(CUfunction handle, const CUlaunchConfig* config, uint32_t kind, int* value) {
  orion_function* function;
  CUresult result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(config->numAttrs <= ATTRIBUTES_MAX && (config->numAttrs == 0 || config->attrs != NULL),
                CUDA_ERROR_INVALID_VALUE);
  uint8_t tail[ATTRIBUTES_MAX * ATTRIBUTE_BYTES];
  for (uint32_t i = 0; i < config->numAttrs; i++) {
    const uint32_t head[2] = {(uint32_t)config->attrs[i].id, 0};
    memcpy(tail + (size_t)i * ATTRIBUTE_BYTES, head, sizeof head);
    memcpy(tail + (size_t)i * ATTRIBUTE_BYTES + sizeof head, &config->attrs[i].value, ATTRIBUTE_BYTES - sizeof head);
  }
  orion_op_occupancy_clusters op = {.op = {.code = ORION_OP_OCCUPANCY_CLUSTERS},
                                    .function = function->entry.index,
                                    .kind = kind,
                                    .grid_x = config->gridDimX,
                                    .grid_y = config->gridDimY,
                                    .grid_z = config->gridDimZ,
                                    .block_x = config->blockDimX,
                                    .block_y = config->blockDimY,
                                    .block_z = config->blockDimZ,
                                    .dynamic_shared_bytes = config->sharedMemBytes,
                                    .attribute_count = config->numAttrs};
  uint64_t answer;
  result = ask(function, &op.op, sizeof op, tail, config->numAttrs * ATTRIBUTE_BYTES,
               (uint32_t)sizeof(orion_reply_occupancy_clusters), &answer);
  if (result == CUDA_SUCCESS) *value = (int)(uint32_t)answer;
  return result;
}

ORION_API CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction handle, const CUlaunchConfig* config) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(count != NULL && config != NULL, CUDA_ERROR_INVALID_VALUE);
  return clusters(handle, config, CLUSTERS_ACTIVE, count);
}

ORION_API CUresult cuOccupancyMaxPotentialClusterSize(int* size, CUfunction handle, const CUlaunchConfig* config) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(size != NULL && config != NULL, CUDA_ERROR_INVALID_VALUE);
  return clusters(handle, config, CLUSTER_SIZE, size);
}

/// The block size with most resident threads; among equals the largest. Sizes are multiples of the warp, as CUDA's own
/// search takes them.
ORION_API CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* min_grid_size, int* block_size, CUfunction handle,
                                                             CUoccupancyB2DSize dynamic_bytes_of_block,
                                                             size_t dynamic_bytes, int block_size_limit,
                                                             unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(min_grid_size != NULL && block_size != NULL && block_size_limit >= 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE((flags & ~(unsigned)CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE) == 0, CUDA_ERROR_INVALID_VALUE);
  orion_function* function;
  CUresult result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  const int32_t* attributes = context->device->info->attributes;
  const int32_t resident_limit = attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR];
  const int32_t warp = attributes[CU_DEVICE_ATTRIBUTE_WARP_SIZE] > 0 ? attributes[CU_DEVICE_ATTRIBUTE_WARP_SIZE] : 32;
  int32_t limit = orion_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  if (block_size_limit > 0 && block_size_limit < limit) limit = block_size_limit;
  int32_t best_threads = 0, best_blocks = 0, best_size = 0;
  for (int32_t aligned = (limit + warp - 1) / warp * warp; aligned > 0; aligned -= warp) {
    const int32_t size = aligned < limit ? aligned : limit;
    const size_t bytes = dynamic_bytes_of_block != NULL ? dynamic_bytes_of_block(size) : dynamic_bytes;
    int32_t blocks;
    result = orion_occupancy_blocks(function, size, bytes, flags, &blocks);
    if (result != CUDA_SUCCESS) return result;
    if (size * blocks > best_threads) {
      best_threads = size * blocks;
      best_blocks = blocks;
      best_size = size;
    }
    if (best_threads >= resident_limit) break;
  }
  *min_grid_size = best_blocks * attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
  *block_size = best_size;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuOccupancyMaxPotentialBlockSize(int* min_grid_size, int* block_size, CUfunction function,
                                                    CUoccupancyB2DSize dynamic_bytes_of_block, size_t dynamic_bytes,
                                                    int block_size_limit) {
  ORION_COUNTED();

  return cuOccupancyMaxPotentialBlockSizeWithFlags(min_grid_size, block_size, function, dynamic_bytes_of_block,
                                                   dynamic_bytes, block_size_limit, CU_OCCUPANCY_DEFAULT);
}
