// Handles are opaque 64-bit values: tag, generation, index. A lookup takes no lock: entries live in chunks that never
// move and are never given back, and an entry's generation is odd exactly while it is live.
#ifndef ORION_SHIM_HANDLES_H
#define ORION_SHIM_HANDLES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define ORION_HANDLE_CHUNK 1024u
#define ORION_HANDLE_CHUNKS 1024u

enum orion_tag {
  ORION_TAG_CONTEXT = 0x11,
  ORION_TAG_STREAM,
  ORION_TAG_EVENT,
  ORION_TAG_MODULE,
  ORION_TAG_FUNCTION,
  ORION_TAG_LIBRARY,
  ORION_TAG_KERNEL,
  ORION_TAG_LINK,
  ORION_TAG_GRAPH = 0x40,
  ORION_TAG_GRAPH_NODE,
  ORION_TAG_GRAPH_EXEC,
  ORION_TAG_USER_OBJECT,
  ORION_TAG_MEMORY = 0x30,
  ORION_TAG_POOL,
  ORION_TAG_ARRAY = 0x40,
  ORION_TAG_MIPMAP,
};

/// First member of every object that a handle names.
typedef struct orion_entry {
  _Atomic uint32_t generation;
  uint32_t index;
  uint32_t next_free;
} orion_entry;

typedef struct orion_table {
  enum orion_tag tag;
  uint32_t entry_bytes;
  uint32_t limit;      // indices are 1 .. limit - 1
  uint32_t keep_free;  // an index rests until so many others were freed after it: its old use may still be queued
  uint32_t next_unused;
  uint32_t free_head, free_tail, free_count;
  pthread_mutex_t mutex;
  _Atomic(uint8_t*) chunks[ORION_HANDLE_CHUNKS];
} orion_table;

#define ORION_TABLE(tag_, type_, limit_, keep_free_) \
  {.tag = (tag_),                                    \
   .entry_bytes = sizeof(type_),                     \
   .limit = (limit_),                                \
   .keep_free = (keep_free_),                        \
   .next_unused = 1,                                 \
   .mutex = PTHREAD_MUTEX_INITIALIZER}

/// An entry that no handle names yet: the caller fills it, then publishes it. Fields keep what the last owner left.
/// NULL when the table or memory is full.
void* orion_table_take(orion_table* table);
/// The same, but never an index that was used before. NULL when all were.
void* orion_table_take_unused(orion_table* table);
/// Makes the entry live and returns its handle.
uint64_t orion_table_publish(orion_table* table, void* entry);
/// Ends the handle's life. False when it was not live (lost a race with another destroy).
bool orion_table_retire(orion_table* table, void* entry, uint32_t generation);
/// Whether the table gave `handle` out once and it has ended since.
bool orion_table_has_ended(orion_table* table, uint64_t handle);
/// Gives the index of a retired (or never published) entry back.
void orion_table_give(orion_table* table, void* entry);
uint32_t orion_table_end(orion_table* table);  // all indices in use are below
void* orion_table_at(orion_table* table, uint32_t index);

static inline bool orion_is_live(const orion_entry* entry) {
  return (atomic_load_explicit(&entry->generation, memory_order_acquire) & 1) != 0;
}

static inline uint64_t orion_handle_of(enum orion_tag tag, uint32_t index, uint32_t generation) {
  return (uint64_t)tag << 48 | (uint64_t)(generation & 0xffffff) << 24 | (uint64_t)index << 4;
}

/// The live object that `handle` names, or NULL. *generation receives the entry's whole generation.
static inline void* orion_table_find(orion_table* table, uint64_t handle, uint32_t* generation) {
  if (handle >> 48 != (uint64_t)table->tag || (handle & 15) != 0) return NULL;
  const uint32_t index = (uint32_t)(handle >> 4) & 0xfffff;
  uint8_t* chunk = atomic_load_explicit(&table->chunks[index / ORION_HANDLE_CHUNK], memory_order_acquire);
  if (chunk == NULL) return NULL;
  orion_entry* entry = (orion_entry*)(chunk + (uint64_t)(index % ORION_HANDLE_CHUNK) * table->entry_bytes);
  const uint32_t live = atomic_load_explicit(&entry->generation, memory_order_acquire);
  if ((live & 1) == 0 || (live & 0xffffff) != ((uint32_t)(handle >> 24) & 0xffffff)) return NULL;
  if (generation != NULL) *generation = live;
  return entry;
}

#endif
