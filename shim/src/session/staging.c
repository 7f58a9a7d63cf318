// Staging: a buddy allocator over the first ORION_STAGING_BYTES of the host arena. A block that the worker still reads
// or writes waits in a list until its ticket is reached.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "futex.h"
#include "internal.h"

enum {
  LEAST_SHIFT = 12,  // a block is at least 4 KiB; smaller data travels inside operations
  ORDERS = 11,       // .. 4 MiB
  BLOCKS = ORION_STAGING_BYTES >> LEAST_SHIFT,
  NONE = -1,
};

enum block_state { INNER, FREE, TAKEN, GIVEN };  // INNER: not the first block of anything

struct orion_staging {
  pthread_mutex_t lock;
  int32_t free_heads[ORDERS];
  int32_t given_head, given_tail;  // oldest first
  int32_t next[BLOCKS], previous[BLOCKS];
  uint8_t order[BLOCKS], state[BLOCKS];
  uint32_t word[BLOCKS];
  uint64_t value[BLOCKS];
};

static void list_push(orion_staging* s, int32_t block, int order) {
  s->order[block] = (uint8_t)order;
  s->state[block] = FREE;
  s->previous[block] = NONE;
  s->next[block] = s->free_heads[order];
  if (s->free_heads[order] != NONE) s->previous[s->free_heads[order]] = block;
  s->free_heads[order] = block;
}

static void list_remove(orion_staging* s, int32_t block) {
  if (s->previous[block] != NONE)
    s->next[s->previous[block]] = s->next[block];
  else
    s->free_heads[s->order[block]] = s->next[block];
  if (s->next[block] != NONE) s->previous[s->next[block]] = s->previous[block];
  s->state[block] = INNER;
}

static void release(orion_staging* s, int32_t block) {
  int order = s->order[block];
  s->state[block] = INNER;
  while (order < ORDERS - 1) {
    const int32_t buddy = block ^ (1 << order);
    if (s->state[buddy] != FREE || s->order[buddy] != order) break;
    list_remove(s, buddy);
    block &= ~(1 << order);
    order++;
  }
  list_push(s, block, order);
}

static int32_t allocate(orion_staging* s, int order) {
  int from = order;
  while (from < ORDERS && s->free_heads[from] == NONE) from++;
  if (from == ORDERS) return NONE;
  const int32_t block = s->free_heads[from];
  list_remove(s, block);
  for (; from > order; from--) list_push(s, block + (1 << (from - 1)), from - 1);
  s->order[block] = (uint8_t)order;
  s->state[block] = TAKEN;
  return block;
}

// Frees given blocks whose ticket is reached: those at the head, or all of the list when `all`.
static void reclaim(orion_staging* s, orion_session* session, bool all) {
  int32_t before = NONE;
  int32_t block = s->given_head;
  while (block != NONE) {
    const int32_t next = s->next[block];
    if (orion_word(session, s->word[block]) >= s->value[block]) {
      if (before == NONE)
        s->given_head = next;
      else
        s->next[before] = next;
      if (s->given_tail == block) s->given_tail = before;
      release(s, block);
    } else {
      if (!all) return;
      before = block;
    }
    block = next;
  }
}

orion_staging* orion_staging_new(void) {
  orion_staging* s = calloc(1, sizeof *s);
  if (!s) return NULL;
  pthread_mutex_init(&s->lock, NULL);
  s->given_head = s->given_tail = NONE;
  for (int order = 0; order < ORDERS; order++) s->free_heads[order] = NONE;
  for (int32_t block = BLOCKS - (1 << (ORDERS - 1)); block >= 0; block -= 1 << (ORDERS - 1))
    list_push(s, block, ORDERS - 1);
  return s;
}

void orion_staging_free(orion_staging* staging) {
  if (!staging) return;
  pthread_mutex_destroy(&staging->lock);
  free(staging);
}

typedef struct staging_wait {
  orion_session* session;
  int order;
  int32_t block;
  CUresult context_error;
  uint32_t word;  // of the oldest given block
  uint64_t value;
} staging_wait;

static bool try_take(void* argument) {
  staging_wait* wait = argument;
  orion_staging* s = orion_impl(wait->session)->staging;
  pthread_mutex_lock(&s->lock);
  reclaim(s, wait->session, false);
  wait->block = allocate(s, wait->order);
  if (wait->block == NONE) {
    reclaim(s, wait->session, true);
    wait->block = allocate(s, wait->order);
  }
  wait->word = s->given_head == NONE ? 0 : s->word[s->given_head];
  wait->value = s->given_head == NONE ? 0 : s->value[s->given_head];
  pthread_mutex_unlock(&s->lock);
  if (wait->block != NONE) return true;
  // The tickets of a context that has faulted are never reached: say so rather than wait for ever.
  for (uint32_t context = 1; context < ORION_CONTEXTS; context++) {
    wait->context_error = orion_context_error(wait->session, context);
    if (wait->context_error != CUDA_SUCCESS) return true;
  }
  return false;
}

CUresult orion_staging_take(orion_session* session, uint64_t bytes, uint64_t* offset) {
  if (bytes > 1ull << (LEAST_SHIFT + ORDERS - 1)) return CUDA_ERROR_INVALID_VALUE;
  const int32_t lost = atomic_load_explicit(&session->lost, memory_order_relaxed);
  if (lost) return (CUresult)lost;
  staging_wait wait = {.session = session, .block = NONE, .context_error = CUDA_SUCCESS};
  while (bytes > 1ull << (LEAST_SHIFT + wait.order)) wait.order++;
  if (!try_take(&wait)) {
    const CUresult result = orion_park(session, try_take, &wait, wait.word, wait.value, 0);
    if (result != CUDA_SUCCESS) return result;
  }
  if (wait.block == NONE) return wait.context_error;
  *offset = (uint64_t)wait.block << LEAST_SHIFT;
  return CUDA_SUCCESS;
}

void orion_staging_give(orion_session* session, uint64_t offset, uint32_t word, uint64_t value) {
  if (atomic_load_explicit(&session->lost, memory_order_relaxed) || offset >= ORION_STAGING_BYTES) return;
  orion_staging* s = orion_impl(session)->staging;
  const int32_t block = (int32_t)(offset >> LEAST_SHIFT);
  pthread_mutex_lock(&s->lock);
  if (s->state[block] == TAKEN) {
    if (word == 0 || word >= ORION_WORDS) {
      release(s, block);
    } else {
      s->state[block] = GIVEN;
      s->word[block] = word;
      s->value[block] = value;
      s->next[block] = NONE;
      if (s->given_tail == NONE)
        s->given_head = block;
      else
        s->next[s->given_tail] = block;
      s->given_tail = block;
    }
  }
  pthread_mutex_unlock(&s->lock);
  if (word == 0) orion_wake_clients(session);
}
