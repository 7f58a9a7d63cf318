// Occupancy: the worker's driver knows; its answers are asked for once for each argument set in a search.
#include "api.h"

CUresult orion_occupancy_blocks(orion_function* function, int32_t block_size, uint64_t dynamic_bytes, uint32_t flags,
                                int32_t* blocks) {
  orion_op_occupancy_blocks op = {
      .op = {.code = ORION_OP_OCCUPANCY_BLOCKS, .context = (uint16_t)function->context->entry.index},
      .function = function->entry.index,
      .block_size = block_size,
      .dynamic_shared_bytes = dynamic_bytes,
      .occupancy_flags = flags};
  orion_reply_occupancy_blocks reply = {0};
  const CUresult result =
      orion_call(function->context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  *blocks = reply.blocks;
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
  orion_op_occupancy_shared op = {
      .op = {.code = ORION_OP_OCCUPANCY_SHARED, .context = (uint16_t)function->context->entry.index},
      .function = function->entry.index,
      .blocks = blocks,
      .block_size = block_size};
  orion_reply_occupancy_shared reply = {0};
  result = orion_call(function->context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result == CUDA_SUCCESS) *bytes = reply.size_bytes;
  return result;
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
