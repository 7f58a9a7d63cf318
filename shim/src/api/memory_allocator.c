// Device addresses are this side's business: 2 MiB-multiples of the agreed slot are mapped by the worker (MEM_MAP, the
// only step that can run out of memory), small blocks are cut out of mapped chunks here.
//
// A freed block or range is used again only when words[FREES_DONE] has counted its MEM_FREE, that is when all work
// issued before the free is done.
#include <stdlib.h>

#include "memory.h"
#include "pool.h"
#include "virtual_memory.h"

#define SMALL_LIMIT_BYTES (1ull << 20)
#define BLOCK_BYTES 512ull

typedef struct orion_chunk {
  orion_extent extent;  // first; start of a mapped 2 MiB chunk
  uint32_t used_blocks;
} orion_chunk;

/// A context's mapped chunks.
typedef struct orion_heap {
  orion_extent* free_blocks;
  orion_extent* chunks;
  uint32_t empty_chunks;
} orion_heap;

typedef struct orion_pending_free {
  struct orion_pending_free* next;
  uint64_t number;
  uint64_t start, bytes;
  orion_context* context;  // NULL: what is given back belongs to none
  orion_device_state* device;
  struct orion_memory* memory;  // an index that may be used again; nothing else then
  uint64_t* told;               // receives the number
  uint32_t epoch;
  bool is_range;
} orion_pending_free;

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

// ------------------------------------------------------------------------------------------------ frees

/// Numbers and submits one MEM_FREE; `pending` waits for its number.
static CUresult submit_free(orion_peer* peer, orion_pending_free* pending) {
  orion_op_mem_free op = {.op = {.code = ORION_OP_MEM_FREE},
                          .device_address = pending->start,
                          .size_bytes = pending->bytes,
                          .unmap = pending->is_range && pending->context != NULL};
  if (pending->context != NULL) op.op.context = (uint16_t)pending->context->entry.index;
  pending->next = NULL;
  pthread_mutex_lock(&peer->free_mutex);
  const CUresult result = orion_submit(peer->session, &op.op, sizeof op, NULL, 0);
  if (result == CUDA_SUCCESS) {
    pending->number = ++peer->frees_submitted;
    if (pending->told != NULL) *pending->told = pending->number;
    if (peer->pending_tail != NULL) {
      peer->pending_tail->next = pending;
    } else {
      peer->pending_head = pending;
    }
    peer->pending_tail = pending;
    orion_memory_released(peer);
  }
  pthread_mutex_unlock(&peer->free_mutex);
  if (result != CUDA_SUCCESS) free(pending);
  return result;
}

static void release_chunk(orion_heap* heap, orion_chunk* chunk, orion_pending_free* pending) {
  orion_extent_remove(&heap->chunks, &chunk->extent);
  (void)orion_free_list_take_at(&heap->free_blocks, chunk->extent.start, ORION_CHUNK_BYTES);
  heap->empty_chunks--;
  *pending = (orion_pending_free){.start = chunk->extent.start,
                                  .bytes = ORION_CHUNK_BYTES,
                                  .context = pending->context,
                                  .device = pending->device,
                                  .epoch = pending->epoch,
                                  .is_range = true};
  free(chunk);
  (void)submit_free(pending->device->peer, pending);
}

/// Under the memory mutex: a block is free for use again. Keeps one empty chunk, gives further ones back.
static void reclaim_block(orion_pending_free* pending) {
  orion_heap* heap = pending->context->heap;
  orion_chunk* chunk = (orion_chunk*)orion_extent_containing(heap->chunks, pending->start);
  (void)orion_free_list_give(&heap->free_blocks, pending->start, pending->bytes, ORION_CHUNK_BYTES);
  chunk->used_blocks--;
  if (chunk->used_blocks == 0 && ++heap->empty_chunks > 1) {
    release_chunk(heap, chunk, pending);
  } else {
    free(pending);
  }
}

/// Under the memory mutex: takes back what the worker has counted.
static void reap(orion_peer* peer) {
  const uint64_t done = orion_word(peer->session, ORION_WORD_FREES_DONE);
  for (;;) {
    pthread_mutex_lock(&peer->free_mutex);
    orion_pending_free* pending = peer->pending_head;
    if (pending != NULL && pending->number <= done) {
      peer->pending_head = pending->next;
      if (peer->pending_head == NULL) peer->pending_tail = NULL;
    } else {
      pending = NULL;
    }
    pthread_mutex_unlock(&peer->free_mutex);
    if (pending == NULL) return;
    if (pending->memory != NULL) {
      orion_table_give(&orion_memories, pending->memory);
      free(pending);
    } else if (pending->is_range) {
      (void)orion_free_list_give(&pending->device->free_addresses, pending->start, pending->bytes, 0);
      free(pending);
    } else if (pending->context != NULL && orion_same_epoch(pending->context, pending->epoch)) {
      reclaim_block(pending);
    } else {
      free(pending);  // a fence; or the context has ended, its chunks with it
    }
  }
}

CUresult orion_device_free(uint64_t address) {
  orion_pending_free* pending = malloc(sizeof *pending);
  if (pending == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  pthread_mutex_lock(&orion_memory_mutex);
  orion_allocation* found = (orion_allocation*)orion_extent_starting_at(orion_allocations, address);
  const bool pooled = found != NULL && found->kind == ORION_MEMORY_POOL;
  if (found != NULL && found->kind != ORION_MEMORY_DEVICE) found = NULL;
  if (found != NULL) orion_extent_remove(&orion_allocations, &found->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (found == NULL) {
    free(pending);
    return pooled ? orion_pool_free(address, NULL) : CUDA_ERROR_INVALID_VALUE;
  }
  *pending = (orion_pending_free){.start = found->extent.start,
                                  .bytes = found->reserved_bytes,
                                  .context = found->context,
                                  .device = found->context->device,
                                  .epoch = atomic_load(&found->context->epoch),
                                  .is_range = found->is_mapped_range};
  free(found);
  return submit_free(pending->device->peer, pending);
}

static CUresult give_later(const orion_pending_free* what, orion_peer* peer) {
  orion_pending_free* pending = malloc(sizeof *pending);
  if (pending == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *pending = *what;
  return submit_free(peer, pending);
}

CUresult orion_addresses_give(orion_device_state* device, uint64_t start, uint64_t bytes) {
  return give_later(&(orion_pending_free){.start = start, .bytes = bytes, .device = device, .is_range = true},
                    device->peer);
}

CUresult orion_fence(orion_peer* peer, uint64_t* number) {
  return give_later(&(orion_pending_free){.told = number}, peer);
}

CUresult orion_memory_index_give(orion_peer* peer, orion_memory* memory) {
  return give_later(&(orion_pending_free){.memory = memory}, peer);
}

// ------------------------------------------------------------------------------------------------ ranges

/// Under the memory mutex. 0: no room.
static uint64_t take_aligned(orion_device_state* device, uint64_t bytes, uint64_t alignment_bytes, uint64_t hint) {
  if (hint != 0 && orion_free_list_take_at(&device->free_addresses, hint, bytes)) return hint;
  if (alignment_bytes <= ORION_CHUNK_BYTES) return orion_free_list_take(&device->free_addresses, bytes);
  const orion_extent* room = orion_extent_fit(device->free_addresses, bytes + alignment_bytes);
  if (room == NULL) return 0;
  const uint64_t start = round_up(room->start, alignment_bytes);
  return orion_free_list_take_at(&device->free_addresses, start, bytes) ? start : 0;
}

CUresult orion_addresses_take(orion_device_state* device, uint64_t bytes, uint64_t alignment_bytes, uint64_t hint,
                              uint64_t* start) {
  orion_peer* peer = device->peer;
  // Waits for frees on their way when the slot has no room.
  for (;;) {
    pthread_mutex_lock(&orion_memory_mutex);
    reap(peer);
    *start = take_aligned(device, bytes, alignment_bytes, hint);
    pthread_mutex_unlock(&orion_memory_mutex);
    if (*start != 0) return CUDA_SUCCESS;
    pthread_mutex_lock(&peer->free_mutex);
    const uint64_t number = peer->pending_head == NULL ? 0 : peer->pending_head->number;
    pthread_mutex_unlock(&peer->free_mutex);
    if (number == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = orion_wait_word(peer->session, ORION_WORD_FREES_DONE, number, 0);
    if (result != CUDA_SUCCESS) return result;
  }
}

static void give_range(orion_device_state* device, uint64_t start, uint64_t bytes) {
  pthread_mutex_lock(&orion_memory_mutex);
  (void)orion_free_list_give(&device->free_addresses, start, bytes, 0);
  pthread_mutex_unlock(&orion_memory_mutex);
}

/// Gives the spare empty chunk back to the worker. True when there was one: a refused mapping is worth another try.
static bool release_spare(orion_context* context) {
  orion_pending_free* pending = malloc(sizeof *pending);
  if (pending == NULL) return false;
  *pending = (orion_pending_free){.context = context, .device = context->device, .epoch = atomic_load(&context->epoch)};
  pthread_mutex_lock(&orion_memory_mutex);
  orion_heap* heap = context->heap;
  orion_extent* block =
      heap == NULL || heap->empty_chunks == 0 ? NULL : orion_extent_fit(heap->free_blocks, ORION_CHUNK_BYTES);
  orion_chunk* chunk = block == NULL ? NULL : (orion_chunk*)orion_extent_starting_at(heap->chunks, block->start);
  if (chunk != NULL) {
    release_chunk(heap, chunk, pending);
  } else {
    free(pending);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return chunk != NULL;
}

/// Waits until one more of the frees on their way has been counted. False when none is.
static bool wait_for_a_free(orion_peer* peer, uint64_t done_before) {
  pthread_mutex_lock(&peer->free_mutex);
  const uint64_t submitted = peer->frees_submitted;
  pthread_mutex_unlock(&peer->free_mutex);
  return submitted > done_before &&
         orion_wait_word(peer->session, ORION_WORD_FREES_DONE, done_before + 1, 0) == CUDA_SUCCESS;
}

uint64_t orion_frees_done(const orion_device_state* device) {
  return orion_word(device->peer->session, ORION_WORD_FREES_DONE);
}

bool orion_make_room(orion_device_state* device, uint64_t done) {
  orion_context* primary = atomic_load_explicit(&device->primary, memory_order_acquire);
  return (primary != NULL && release_spare(primary)) || orion_pools_release(device) ||
         wait_for_a_free(device->peer, done);
}

/// A mapped range of a multiple of 2 MiB.
static CUresult map_range(orion_context* context, uint64_t bytes, uint64_t* start) {
  CUresult result = orion_addresses_take(context->device, bytes, ORION_CHUNK_BYTES, 0, start);
  if (result != CUDA_SUCCESS) return result;
  orion_op_mem_map op = {.op = {.code = ORION_OP_MEM_MAP, .context = (uint16_t)context->entry.index},
                         .device_address = *start,
                         .size_bytes = bytes};
  // Mapping is express and frees are not: over a network the worker may refuse before it has seen frees that this
  // thread made first. `done` is read before, so that a free counted meanwhile is worth another try too.
  uint64_t done;
  do {
    done = orion_word(context->session, ORION_WORD_FREES_DONE);
    result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  } while (result == CUDA_ERROR_OUT_OF_MEMORY && (release_spare(context) || orion_make_room(context->device, done)));
  if (result != CUDA_SUCCESS) give_range(context->device, *start, bytes);
  return result;
}

static CUresult add_chunk(orion_context* context) {
  orion_chunk* chunk = calloc(1, sizeof *chunk);
  if (chunk == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  uint64_t start;
  const CUresult result = map_range(context, ORION_CHUNK_BYTES, &start);
  if (result != CUDA_SUCCESS) {
    free(chunk);
    return result;
  }
  chunk->extent = (orion_extent){.start = start, .bytes = ORION_CHUNK_BYTES};
  pthread_mutex_lock(&orion_memory_mutex);
  if (context->heap == NULL) context->heap = calloc(1, sizeof *context->heap);
  const bool added = context->heap != NULL &&
                     orion_free_list_give(&context->heap->free_blocks, start, ORION_CHUNK_BYTES, ORION_CHUNK_BYTES);
  if (added) {
    orion_extent_insert(&context->heap->chunks, &chunk->extent);
    context->heap->empty_chunks++;
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  if (!added) free(chunk);
  return added ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/// Under the memory mutex: a block of a mapped chunk, or 0.
static uint64_t take_block(orion_context* context, uint64_t bytes) {
  orion_heap* heap = context->heap;
  if (heap == NULL) return 0;
  const uint64_t start = orion_free_list_take(&heap->free_blocks, bytes);
  if (start == 0) return 0;
  orion_chunk* chunk = (orion_chunk*)orion_extent_containing(heap->chunks, start);
  if (chunk->used_blocks++ == 0) heap->empty_chunks--;
  return start;
}

CUresult orion_device_allocate(orion_context* context, uint64_t bytes, uint64_t* address) {
  if (bytes > context->device->info->slot_bytes - ORION_CHUNK_BYTES) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_allocation* allocation = calloc(1, sizeof *allocation);
  if (allocation == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  allocation->kind = ORION_MEMORY_DEVICE;
  allocation->context = context;
  allocation->buffer_id = orion_next_id();
  allocation->is_mapped_range = bytes >= SMALL_LIMIT_BYTES;
  allocation->reserved_bytes = round_up(bytes, allocation->is_mapped_range ? ORION_CHUNK_BYTES : BLOCK_BYTES);
  uint64_t start = 0;
  CUresult result = CUDA_SUCCESS;
  if (allocation->is_mapped_range) {
    result = map_range(context, allocation->reserved_bytes, &start);
    pthread_mutex_lock(&orion_memory_mutex);
  } else {
    pthread_mutex_lock(&orion_memory_mutex);
    reap(context->device->peer);
    while ((start = take_block(context, allocation->reserved_bytes)) == 0) {
      pthread_mutex_unlock(&orion_memory_mutex);
      result = add_chunk(context);
      pthread_mutex_lock(&orion_memory_mutex);
      if (result != CUDA_SUCCESS) break;
    }
  }
  if (result == CUDA_SUCCESS) {
    allocation->extent = (orion_extent){.start = start, .bytes = bytes};
    orion_extent_insert(&orion_allocations, &allocation->extent);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  if (result != CUDA_SUCCESS) {
    free(allocation);
    return result;
  }
  *address = start;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ a context's end

static void free_extents(orion_extent* node) {
  if (node == NULL) return;
  free_extents(node->left);
  free_extents(node->right);
  free(node);
}

void orion_context_memory_end(orion_context* context) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent* node = orion_extent_at_or_above(orion_allocations, 0);
  while (node != NULL) {
    orion_allocation* allocation = (orion_allocation*)node;
    orion_extent* next = orion_extent_at_or_above(orion_allocations, node->start + 1);
    const bool bound = allocation->kind == ORION_MEMORY_DEVICE || allocation->kind == ORION_MEMORY_GLOBAL;
    if (allocation->context == context && bound) {
      if (allocation->is_mapped_range) {
        (void)orion_free_list_give(&context->device->free_addresses, node->start, allocation->reserved_bytes, 0);
      }
      orion_extent_remove(&orion_allocations, node);
      free(allocation);
    }
    node = next;
  }
  orion_heap* heap = context->heap;
  context->heap = NULL;
  if (heap != NULL) {
    for (node = orion_extent_at_or_above(heap->chunks, 0); node != NULL;
         node = orion_extent_at_or_above(heap->chunks, node->start + 1)) {
      (void)orion_free_list_give(&context->device->free_addresses, node->start, ORION_CHUNK_BYTES, 0);
    }
    free_extents(heap->chunks);
    free_extents(heap->free_blocks);
    free(heap);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
}
