#include "handles.h"

#include <stdlib.h>

void* orion_table_at(orion_table* table, uint32_t index) {
  if (index / ORION_HANDLE_CHUNK >= ORION_HANDLE_CHUNKS) return NULL;
  uint8_t* chunk = atomic_load_explicit(&table->chunks[index / ORION_HANDLE_CHUNK], memory_order_acquire);
  return chunk == NULL ? NULL : chunk + (uint64_t)(index % ORION_HANDLE_CHUNK) * table->entry_bytes;
}

static orion_entry* take_free(orion_table* table) {
  orion_entry* entry = orion_table_at(table, table->free_head);
  table->free_head = entry->next_free;
  if (table->free_head == 0) table->free_tail = 0;
  table->free_count--;
  return entry;
}

static orion_entry* take_unused(orion_table* table) {
  const uint32_t index = table->next_unused;
  if (index >= table->limit) return NULL;
  _Atomic(uint8_t*)* chunk = &table->chunks[index / ORION_HANDLE_CHUNK];
  if (atomic_load_explicit(chunk, memory_order_relaxed) == NULL) {
    uint8_t* fresh = calloc(ORION_HANDLE_CHUNK, table->entry_bytes);
    if (fresh == NULL) return NULL;
    atomic_store_explicit(chunk, fresh, memory_order_release);
  }
  table->next_unused++;
  orion_entry* entry = orion_table_at(table, index);
  entry->index = index;
  return entry;
}

void* orion_table_take(orion_table* table) {
  pthread_mutex_lock(&table->mutex);
  orion_entry* entry = NULL;
  if (table->free_count > table->keep_free) entry = take_free(table);
  if (entry == NULL) entry = take_unused(table);
  if (entry == NULL && table->free_count > 0) entry = take_free(table);
  pthread_mutex_unlock(&table->mutex);
  return entry;
}

void* orion_table_take_unused(orion_table* table) {
  pthread_mutex_lock(&table->mutex);
  orion_entry* entry = take_unused(table);
  pthread_mutex_unlock(&table->mutex);
  return entry;
}

uint64_t orion_table_publish(orion_table* table, void* entry_address) {
  orion_entry* entry = entry_address;
  const uint32_t generation = atomic_load_explicit(&entry->generation, memory_order_relaxed) + 1;
  atomic_store_explicit(&entry->generation, generation, memory_order_release);
  return orion_handle_of(table->tag, entry->index, generation);
}

bool orion_table_retire(orion_table* table, void* entry_address, uint32_t generation) {
  (void)table;
  orion_entry* entry = entry_address;
  return atomic_compare_exchange_strong(&entry->generation, &generation, generation + 1);
}

bool orion_table_has_ended(orion_table* table, uint64_t handle) {
  if (handle >> 48 != (uint64_t)table->tag || (handle & 15) != 0) return false;
  const orion_entry* entry = orion_table_at(table, (uint32_t)(handle >> 4) & 0xfffff);
  if (entry == NULL) return false;
  // Live generations are odd; the handle has the lower 24 bits of its own.
  const uint32_t then = (uint32_t)(handle >> 24) & 0xffffff, now = atomic_load(&entry->generation) & 0xffffff;
  return (then & 1) != 0 && now > then;
}

void orion_table_give(orion_table* table, void* entry_address) {
  orion_entry* entry = entry_address;
  pthread_mutex_lock(&table->mutex);
  entry->next_free = 0;
  if (table->free_tail != 0) {
    ((orion_entry*)orion_table_at(table, table->free_tail))->next_free = entry->index;
  } else {
    table->free_head = entry->index;
  }
  table->free_tail = entry->index;
  table->free_count++;
  pthread_mutex_unlock(&table->mutex);
}

uint32_t orion_table_end(orion_table* table) {
  pthread_mutex_lock(&table->mutex);
  const uint32_t end = table->next_unused;
  pthread_mutex_unlock(&table->mutex);
  return end;
}
