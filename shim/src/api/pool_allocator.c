// Lock order: the list's mutex, a pool's, then what state.h says. None is held while memory is made or waited for.
#include <stdlib.h>

#include "pool.h"

#define PIECE_BYTES (32ull << 20)
#define BLOCK_BYTES 512ull

orion_table orion_pools = ORION_TABLE(ORION_TAG_POOL, orion_pool, 65536, 0);
_Atomic bool orion_pools_over, orion_pools_used;

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_pool* list;

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

// ------------------------------------------------------------------------------------------------ points in streams

/// The point behind all that was submitted to the stream so far. It places no marker: the next one, whoever places it,
/// has the value, as with the record of an event that nobody asks for.
static orion_point point_of(orion_stream* stream) {
  const bool dirty = atomic_load_explicit(&stream->dirty, memory_order_acquire) != 0;
  orion_point point = {.stream = stream,
                       .context = stream->context,
                       .stream_id = stream->id,
                       .value = atomic_load_explicit(&stream->marker, memory_order_acquire) + dirty,
                       .word = stream->word,
                       .epoch = atomic_load(&stream->context->epoch)};
  // The NULL stream's order includes the blocking streams' work, which its own markers do not show.
  if (stream->wire_index == 0 && atomic_load(&stream->context->blocking_streams) != 0) {
    if (orion_fence(stream->context->device->peer, &point.fence) != CUDA_SUCCESS) point.fence = UINT64_MAX;
  }
  return point;
}

static bool reached(const orion_point* point) {
  const orion_context* context = point->context;
  if (!orion_same_epoch(context, point->epoch)) return true;
  return orion_word(context->session, point->word) >= point->value &&
         (point->fence == 0 || orion_word(context->session, ORION_WORD_FREES_DONE) >= point->fence);
}

/// Sees to it that a marker for the point is on its way.
static void place_marker(const orion_point* point) {
  orion_stream* stream = point->stream;
  if (stream->id != point->stream_id || !orion_same_epoch(point->context, point->epoch)) return;  // ended: placed
  if (atomic_load_explicit(&stream->marker, memory_order_acquire) >= point->value) return;
  uint64_t value;
  (void)orion_stream_ticket(stream, &value);
}

/// True when all of the stream's later work comes after the point by its waits for events.
static bool follows(const orion_stream* stream, const orion_point* point) {
  if (point->fence != 0) return false;
  for (uint32_t i = 0; i < ORION_WAITS_KEPT; i++) {
    const uint64_t waited = atomic_load_explicit(&stream->waited[i], memory_order_relaxed);
    if (waited >> 48 == point->word && (waited & 0xffffffffffffull) >= point->value) return true;
  }
  return false;
}

// ------------------------------------------------------------------------------------------------ lanes

static void move_all(orion_extent** to, orion_extent** from) {
  while (*from != NULL) {
    orion_extent* node = *from;
    orion_extent_remove(from, node);
    (void)orion_free_list_give(to, node->start, node->bytes, 0);
    free(node);
  }
}

/// Under the pool's mutex: what is done becomes ready. With `push`, what still has no marker gets one.
static void settle(orion_pool* pool, bool push) {
  for (orion_pool_lane** link = &pool->lanes; *link != NULL;) {
    orion_pool_lane* lane = *link;
    if (lane->settling != NULL && reached(&lane->settling_point)) move_all(&pool->ready, &lane->settling);
    if (lane->recent != NULL && reached(&lane->recent_point)) move_all(&pool->ready, &lane->recent);
    if (push && lane->settling == NULL && lane->recent != NULL) {
      lane->settling = lane->recent;
      lane->settling_point = lane->recent_point;
      lane->recent = NULL;
      place_marker(&lane->settling_point);
    }
    if (lane->settling != NULL || lane->recent != NULL) {
      link = &lane->next;
    } else {
      *link = lane->next;
      free(lane);
    }
  }
}

static bool is_own(const orion_pool_lane* lane, const orion_stream* stream) {
  const orion_point* point = lane->recent != NULL ? &lane->recent_point : &lane->settling_point;
  return point->stream == stream && point->stream_id == stream->id;
}

/// Under the pool's mutex.
static uint64_t take_own(orion_pool* pool, const orion_stream* stream, uint64_t bytes) {
  for (orion_pool_lane* lane = pool->lanes; lane != NULL; lane = lane->next) {
    if (!is_own(lane, stream)) continue;
    // A fence stands for other streams' work, and theirs would not wait for an allocation, which submits nothing.
    uint64_t start = 0;
    if (lane->recent_point.fence == 0) start = orion_free_list_take(&lane->recent, bytes);
    if (start == 0 && lane->settling_point.fence == 0) start = orion_free_list_take(&lane->settling, bytes);
    return start;
  }
  return 0;
}

/// Under the pool's mutex.
static uint64_t take_following(orion_pool* pool, const orion_stream* stream, uint64_t bytes) {
  uint64_t start = 0;
  for (orion_pool_lane* lane = pool->lanes; lane != NULL && start == 0; lane = lane->next) {
    if (lane->settling != NULL && follows(stream, &lane->settling_point)) {
      start = orion_free_list_take(&lane->settling, bytes);
    }
    if (start == 0 && lane->recent != NULL && follows(stream, &lane->recent_point)) {
      start = orion_free_list_take(&lane->recent, bytes);
    }
  }
  return start;
}

/// Under the pool's mutex. False without memory for the record.
static bool give_lane(orion_pool* pool, const orion_point* point, uint64_t start, uint64_t bytes) {
  orion_pool_lane* lane = pool->lanes;
  while (lane != NULL && !is_own(lane, point->stream)) lane = lane->next;
  if (lane == NULL) {
    lane = calloc(1, sizeof *lane);
    if (lane == NULL) return false;
    lane->next = pool->lanes;
    pool->lanes = lane;
  }
  lane->recent_point = *point;
  return orion_free_list_give(&lane->recent, start, bytes, 0);
}

// ------------------------------------------------------------------------------------------------ pieces

static size_t access_list(const orion_pool* pool, CUmemAccessDesc* access) {
  size_t count = 0;
  for (uint32_t i = 0; i < ORION_DEVICES; i++) {
    if (pool->access[i] == 0) continue;
    access[count++] = (CUmemAccessDesc){{CU_MEM_LOCATION_TYPE_DEVICE, (int)i}, (CUmemAccess_flags)pool->access[i]};
  }
  return count;
}

/// A new piece of `bytes`, ready for use. Under no lock; the pool is locked when it is added.
static CUresult add_piece(orion_pool* pool, uint64_t bytes) {
  orion_device_state* device = pool->device;
  orion_session* session = device->info->session;
  const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                          .requestedHandleTypes = pool->properties.handleTypes,
                                          .location = pool->properties.location};
  orion_pool_piece* piece = calloc(1, sizeof *piece);
  if (piece == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  CUresult result = orion_memory_create(device, bytes, &properties, &piece->memory);
  if (result != CUDA_SUCCESS) {
    free(piece);
    return result;
  }
  // One more chunk of addresses than of memory: blocks of two pieces are never neighbours, so they never merge.
  uint64_t start;
  result = orion_addresses_take(device, bytes + ORION_CHUNK_BYTES, ORION_CHUNK_BYTES, 0, &start);
  if (result == CUDA_SUCCESS) result = orion_memory_map(piece->memory, start, bytes, 0);
  if (result != CUDA_SUCCESS) {
    (void)orion_memory_destroy(piece->memory);
    free(piece);
    return result;
  }
  piece->extent = (orion_extent){.start = start, .bytes = bytes};
  pthread_mutex_lock(&pool->mutex);
  CUmemAccessDesc access[ORION_DEVICES];
  const size_t count = access_list(pool, access);
  result = orion_memory_set_access(session, start, bytes, access, count, count > 1);
  orion_extent_insert(&pool->pieces, &piece->extent);
  (void)orion_free_list_give(&pool->ready, start, bytes, 0);
  pool->reserved_bytes += bytes;
  if (pool->reserved_bytes > pool->reserved_high_bytes) pool->reserved_high_bytes = pool->reserved_bytes;
  pthread_mutex_unlock(&pool->mutex);
  return result;
}

/// Under the pool's mutex.
static void release_piece(orion_pool* pool, orion_pool_piece* piece) {
  const uint64_t start = piece->extent.start, bytes = piece->extent.bytes;
  orion_extent_remove(&pool->pieces, &piece->extent);
  pool->reserved_bytes -= bytes;
  (void)orion_memory_unmap(pool->device->info->session, start, bytes);
  (void)orion_memory_destroy(piece->memory);
  (void)orion_addresses_give(pool->device, start, bytes + ORION_CHUNK_BYTES);
  free(piece);
}

/// Under the pool's mutex: gives whole unused pieces back while more than `keep_bytes` is held. True: something was.
static bool trim(orion_pool* pool, uint64_t keep_bytes) {
  bool any = false;
  settle(pool, true);
  for (orion_extent* node = orion_extent_at_or_above(pool->pieces, 0);
       node != NULL && pool->reserved_bytes > keep_bytes && pool->used_bytes < pool->reserved_bytes;) {
    orion_pool_piece* piece = (orion_pool_piece*)node;
    const uint64_t start = node->start;
    if (orion_free_list_take_at(&pool->ready, start, node->bytes)) {
      release_piece(pool, piece);
      any = true;
    }
    node = orion_extent_at_or_above(pool->pieces, start + 1);
  }
  return any;
}

static uint64_t kept_bytes(const orion_pool* pool) { return pool->destroyed ? 0 : pool->release_threshold_bytes; }

// ------------------------------------------------------------------------------------------------ allocation

/// Under the pool's mutex: a block of what the pool holds, or 0.
static uint64_t take(orion_pool* pool, const orion_stream* stream, uint64_t bytes) {
  uint64_t start = take_own(pool, stream, bytes);
  if (start != 0) return start;
  // Without the permission, what other streams have freed becomes ready only at the program's own waits.
  if (pool->reuse[CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC]) settle(pool, true);
  start = orion_free_list_take(&pool->ready, bytes);
  if (start == 0 && pool->reuse[CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES]) {
    start = take_following(pool, stream, bytes);
  }
  return start;
}

/// Waits until all that was freed is ready.
static void drain(orion_pool* pool) {
  uint64_t fence;
  orion_peer* peer = pool->device->peer;
  if (orion_fence(peer, &fence) == CUDA_SUCCESS) {
    (void)orion_wait_word(peer->session, ORION_WORD_FREES_DONE, fence, 0);
  }
  pthread_mutex_lock(&pool->mutex);
  // The fence covers all work: the markers need not be there.
  for (orion_pool_lane* lane = pool->lanes; lane != NULL; lane = lane->next) {
    move_all(&pool->ready, &lane->settling);
    move_all(&pool->ready, &lane->recent);
  }
  settle(pool, false);
  pthread_mutex_unlock(&pool->mutex);
}

static bool below_limit(const orion_pool* pool, uint64_t more_bytes) {
  const uint64_t limit = pool->properties.maxSize;
  return limit == 0 || (pool->reserved_bytes <= limit && more_bytes <= limit - pool->reserved_bytes);
}

static CUresult grow(orion_pool* pool, uint64_t bytes) {
  const uint64_t least = round_up(bytes, ORION_CHUNK_BYTES), usual = least < PIECE_BYTES ? PIECE_BYTES : least;
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  if (below_limit(pool, usual)) result = add_piece(pool, usual);
  if (result == CUDA_ERROR_OUT_OF_MEMORY && least < usual && below_limit(pool, least)) result = add_piece(pool, least);
  return result;
}

CUresult orion_pool_allocate(orion_pool* pool, uint64_t bytes, orion_stream* stream, uint64_t* address) {
  if (bytes > pool->device->info->slot_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const uint64_t block_bytes = round_up(bytes, BLOCK_BYTES);
  orion_pool_block* block = calloc(1, sizeof *block);
  if (block == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  atomic_store_explicit(&orion_pools_used, true, memory_order_relaxed);
  bool drained = false;
  uint64_t start;
  pthread_mutex_lock(&pool->mutex);
  while ((start = take(pool, stream, block_bytes)) == 0) {
    pthread_mutex_unlock(&pool->mutex);
    CUresult result = grow(pool, block_bytes);
    if (result == CUDA_ERROR_OUT_OF_MEMORY && !drained) {
      // Frees on their way count before an allocation fails; and a small piece may have to go for a large one.
      drain(pool);
      drained = true;
      result = CUDA_SUCCESS;
      pthread_mutex_lock(&pool->mutex);
      start = take(pool, stream, block_bytes);
      if (start == 0) (void)trim(pool, 0);
      pthread_mutex_unlock(&pool->mutex);
      if (start == 0) result = grow(pool, block_bytes);
    }
    if (result != CUDA_SUCCESS) {
      free(block);
      return result;
    }
    pthread_mutex_lock(&pool->mutex);
    if (start != 0) break;
  }
  pool->used_bytes += bytes;
  if (pool->used_bytes > pool->used_high_bytes) pool->used_high_bytes = pool->used_bytes;
  pthread_mutex_unlock(&pool->mutex);
  block->pool = pool;
  block->allocation = (orion_allocation){.extent = {.start = start, .bytes = bytes},
                                         .kind = ORION_MEMORY_POOL,
                                         .context = orion_primary_of(pool->device),
                                         .reserved_bytes = block_bytes,
                                         .buffer_id = orion_next_id()};
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent_insert(&orion_allocations, &block->allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  *address = start;
  return CUDA_SUCCESS;
}

CUresult orion_pool_free(uint64_t address, orion_stream* stream) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_pool_block* block = (orion_pool_block*)orion_extent_starting_at(orion_allocations, address);
  if (block != NULL && block->allocation.kind != ORION_MEMORY_POOL) block = NULL;
  if (block != NULL) orion_extent_remove(&orion_allocations, &block->allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (block == NULL) return CUDA_ERROR_INVALID_VALUE;
  orion_pool* pool = block->pool;
  const uint64_t used_bytes = block->allocation.extent.bytes, block_bytes = block->allocation.reserved_bytes;
  free(block);
  CUresult result = CUDA_SUCCESS;
  orion_point point = {0};
  if (stream != NULL) {
    point = point_of(stream);
  } else {
    orion_peer* peer = pool->device->peer;
    uint64_t fence;
    result = orion_fence(peer, &fence);
    if (result == CUDA_SUCCESS) result = orion_wait_word(peer->session, ORION_WORD_FREES_DONE, fence, 0);
  }
  pthread_mutex_lock(&pool->mutex);
  pool->used_bytes -= used_bytes;
  // Without memory for a record, or without an end to wait for, the block is lost to the pool, never given out twice.
  if (stream != NULL) {
    if (!give_lane(pool, &point, address, block_bytes)) result = CUDA_ERROR_OUT_OF_MEMORY;
  } else if (result == CUDA_SUCCESS) {
    (void)orion_free_list_give(&pool->ready, address, block_bytes, 0);
  }
  const bool over = pool->reserved_bytes > kept_bytes(pool) && pool->reserved_bytes > pool->used_bytes;
  pthread_mutex_unlock(&pool->mutex);
  if (over) atomic_store_explicit(&orion_pools_over, true, memory_order_relaxed);
  return result;
}

// ------------------------------------------------------------------------------------------------ pools

orion_pool* orion_pool_new(orion_device_state* device, const CUmemPoolProps* properties) {
  orion_pool* pool = orion_table_take(&orion_pools);
  if (pool == NULL) return NULL;
  if (pool->handle == 0) pthread_mutex_init(&pool->mutex, NULL);
  pool->device = device;
  pool->is_default = pool->destroyed = false;
  pool->properties = *properties;
  pool->release_threshold_bytes = 0;
  pool->reserved_bytes = pool->reserved_high_bytes = pool->used_bytes = pool->used_high_bytes = 0;
  for (uint32_t i = 1; i < 4; i++) pool->reuse[i] = 1;
  for (uint32_t i = 0; i < ORION_DEVICES; i++) pool->access[i] = 0;
  pool->access[device->ordinal] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  pool->pieces = pool->ready = NULL;
  pool->lanes = NULL;
  pool->handle = orion_table_publish(&orion_pools, pool);
  pthread_mutex_lock(&list_mutex);
  pool->next = list;
  list = pool;
  pthread_mutex_unlock(&list_mutex);
  return pool;
}

void orion_pool_trim(orion_pool* pool, uint64_t keep_bytes) {
  pthread_mutex_lock(&pool->mutex);
  (void)trim(pool, keep_bytes);
  pthread_mutex_unlock(&pool->mutex);
}

/// Under the list's mutex: forgets destroyed pools that hold nothing any more.
static void collect(void) {
  for (orion_pool** link = &list; *link != NULL;) {
    orion_pool* pool = *link;
    pthread_mutex_lock(&pool->mutex);
    const bool gone = pool->destroyed && pool->pieces == NULL;
    if (gone) settle(pool, false);
    pthread_mutex_unlock(&pool->mutex);
    if (gone) {
      *link = pool->next;
      orion_table_give(&orion_pools, pool);
    } else {
      link = &pool->next;
    }
  }
}

void orion_pool_destroy(orion_pool* pool) {
  pthread_mutex_lock(&list_mutex);
  pthread_mutex_lock(&pool->mutex);
  pool->destroyed = true;
  (void)trim(pool, 0);
  pthread_mutex_unlock(&pool->mutex);
  collect();
  pthread_mutex_unlock(&list_mutex);
  atomic_store_explicit(&orion_pools_over, true, memory_order_relaxed);
}

void orion_pools_at_sync(void) {
  atomic_store_explicit(&orion_pools_over, false, memory_order_relaxed);
  bool over = false;
  pthread_mutex_lock(&list_mutex);
  for (orion_pool* pool = list; pool != NULL; pool = pool->next) {
    pthread_mutex_lock(&pool->mutex);
    const uint64_t keep_bytes = kept_bytes(pool);
    if (pool->reserved_bytes > keep_bytes) (void)trim(pool, keep_bytes);
    settle(pool, false);  // a wait makes what is done ready, also where reuse is not opportunistic
    over = over || (pool->lanes != NULL && pool->reserved_bytes > keep_bytes);
    pthread_mutex_unlock(&pool->mutex);
  }
  collect();
  pthread_mutex_unlock(&list_mutex);
  if (over) atomic_store_explicit(&orion_pools_over, true, memory_order_relaxed);
}

bool orion_pools_release(const orion_device_state* device) {
  bool any = false;
  pthread_mutex_lock(&list_mutex);
  for (orion_pool* pool = list; pool != NULL; pool = pool->next) {
    if (pool->device != device) continue;
    pthread_mutex_lock(&pool->mutex);
    any = trim(pool, 0) || any;
    pthread_mutex_unlock(&pool->mutex);
  }
  pthread_mutex_unlock(&list_mutex);
  return any;
}

CUresult orion_pool_set_access(orion_pool* pool, const CUmemAccessDesc* access, size_t count) {
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&pool->mutex);
  for (orion_extent* node = orion_extent_at_or_above(pool->pieces, 0); node != NULL && result == CUDA_SUCCESS;
       node = orion_extent_at_or_above(pool->pieces, node->start + 1)) {
    result = orion_memory_set_access(pool->device->info->session, node->start, node->bytes, access, count, true);
  }
  for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    pool->access[access[i].location.id] = (uint8_t)access[i].flags;
  }
  pthread_mutex_unlock(&pool->mutex);
  return result;
}
