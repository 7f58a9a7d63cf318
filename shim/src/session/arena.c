// Pinned memory: a first-fit list of the free intervals of the host arena behind staging.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "../transport/transport.h"
#include "internal.h"

enum { PAGE_BYTES = 4096 };

typedef struct interval {
  uint64_t first, end;  // offsets in the arena
  struct interval* next;
} interval;

struct orion_arena {
  pthread_mutex_t lock;
  interval* free_list;  // by address, never adjacent
};

orion_arena* orion_arena_new(uint64_t first, uint64_t bytes) {
  orion_arena* arena = calloc(1, sizeof *arena);
  interval* all = calloc(1, sizeof *all);
  if (!arena || !all) {
    free(arena);
    free(all);
    return NULL;
  }
  pthread_mutex_init(&arena->lock, NULL);
  *all = (interval){first, first + bytes, NULL};
  arena->free_list = all;
  return arena;
}

void orion_arena_delete(orion_arena* arena) {
  if (!arena) return;
  for (interval* item = arena->free_list; item;) {
    interval* next = item->next;
    free(item);
    item = next;
  }
  pthread_mutex_destroy(&arena->lock);
  free(arena);
}

static uint64_t whole_pages(uint64_t bytes) { return (bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1); }

void* orion_arena_allocate(orion_session* session, uint64_t bytes) {
  if (bytes == 0 || bytes > ORION_HOST_ARENA_BYTES || atomic_load(&session->lost)) return NULL;
  const uint64_t wanted = whole_pages(bytes);
  orion_arena* arena = orion_impl(session)->arena;
  void* address = NULL;
  pthread_mutex_lock(&arena->lock);
  for (interval** link = &arena->free_list; *link; link = &(*link)->next) {
    interval* item = *link;
    if (item->end - item->first < wanted) continue;
    address = session->host_base + item->first;
    item->first += wanted;
    if (item->first == item->end) {
      *link = item->next;
      free(item);
    }
    break;
  }
  pthread_mutex_unlock(&arena->lock);
  return address;
}

void orion_arena_free(orion_session* session, void* address, uint64_t bytes) {
  const uint64_t first = (uint64_t)((uint8_t*)address - session->host_base);
  if (!address || bytes == 0 || bytes > ORION_HOST_ARENA_BYTES || first < ORION_STAGING_BYTES ||
      first >= ORION_HOST_ARENA_BYTES || atomic_load(&session->lost))
    return;
  const uint64_t end = first + whole_pages(bytes);
  if (end > ORION_HOST_ARENA_BYTES) return;
  session->transport->drop_pages(session, address, end - first);
  orion_arena* arena = orion_impl(session)->arena;
  pthread_mutex_lock(&arena->lock);
  interval* before = NULL;
  interval* after = arena->free_list;
  while (after && after->first < first) {
    before = after;
    after = after->next;
  }
  const bool joins_before = before && before->end == first;
  const bool joins_after = after && after->first == end;
  if (joins_before) {
    before->end = joins_after ? after->end : end;
    if (joins_after) {
      before->next = after->next;
      free(after);
    }
  } else if (joins_after) {
    after->first = first;
  } else {
    interval* item = malloc(sizeof *item);
    if (item) {  // out of memory: the range is lost for later allocations, nothing else
      *item = (interval){first, end, after};
      if (before)
        before->next = item;
      else
        arena->free_list = item;
    }
  }
  pthread_mutex_unlock(&arena->lock);
}
