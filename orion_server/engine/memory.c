// Device memory inside the agreed slots, registered host memory, and when freed memory may be used again.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ledger.h"
#include "swap.h"

// ------------------------------------------------------------------------------------------------ slots
int memory_bind_device(orion_engine* e, uint32_t index) {
  device_state* d = &e->devices[index];
  CUdeviceptr address = 0;
  const int result = (int)e->driver.address_reserve(&address, d->bytes, ORION_CHUNK_BYTES, d->base, 0);
  // The driver takes the address as a hint: another one means that ours is in use on this side.
  if (result == CUDA_ERROR_OUT_OF_MEMORY || result == CUDA_ERROR_INVALID_VALUE) return -1;
  if (result) return result;
  if (address != d->base) {
    (void)e->driver.address_free(address, d->bytes);
    return -1;
  }
  d->reserved = true;
  d->chunk_range = calloc(d->bytes / ORION_CHUNK_BYTES, sizeof *d->chunk_range);
  return d->chunk_range ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
}

void memory_release_device(orion_engine* e, uint32_t index) {
  device_state* d = &e->devices[index];
  if (d->reserved) (void)e->driver.address_free(d->base, d->bytes);
  d->reserved = false;
  free(d->chunk_range);
  d->chunk_range = NULL;
}

device_state* memory_device_at(const orion_engine* e, uint64_t address) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    const device_state* d = &e->devices[i];
    if (d->reserved && address >= d->base && address - d->base < d->bytes) return (device_state*)d;
  }
  return NULL;
}

uint32_t memory_range_new(orion_engine* e) {
  if (e->range_first_free) {
    const uint32_t index = e->range_first_free;
    e->range_first_free = e->ranges[index].next_free;
    return index;
  }
  if (!e->range_fresh) e->range_fresh = 1;
  if (e->range_fresh == e->range_capacity || !e->range_capacity) {
    const uint32_t capacity = e->range_capacity ? e->range_capacity * 2 : 256;
    range* grown = realloc(e->ranges, capacity * sizeof *grown);
    if (!grown) return 0;
    e->ranges = grown;
    e->range_capacity = capacity;
  }
  return e->range_fresh++;
}

void memory_range_give(orion_engine* e, uint32_t index) {
  e->ranges[index] = (range){.next_free = e->range_first_free};
  e->range_first_free = index;
}

void memory_set_chunks(device_state* d, uint64_t base, uint64_t bytes, uint32_t value) {
  const uint64_t first = (base - d->base) / ORION_CHUNK_BYTES, count = bytes / ORION_CHUNK_BYTES;
  for (uint64_t i = 0; i < count; i++) d->chunk_range[first + i] = value;
}

static int32_t set_access(orion_engine* e, const device_state* owner, uint64_t base, uint64_t bytes) {
  CUmemAccessDesc access[ORION_DEVICES];
  size_t count = 0;
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (&e->devices[i] != owner && !(owner->peers >> i & 1)) continue;
    access[count++] = (CUmemAccessDesc){{CU_MEM_LOCATION_TYPE_DEVICE, (int)e->devices[i].ordinal},
                                        CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  }
  return (int32_t)e->driver.memory_set_access(base, bytes, access, count);
}

int32_t memory_back(orion_engine* e, range* r) {
  const device_state* d = &e->devices[e->contexts[r->context].device];
  CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                    .location = {CU_MEM_LOCATION_TYPE_DEVICE, (int)d->ordinal}};
  // Whether the program will share an allocation is not known when it is made.
  if (!e->memory_stays_here) properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.allocFlags.gpuDirectRDMACapable = e->memory_for_rdma;
  int32_t result = (int32_t)e->driver.memory_create(&r->handle, r->bytes, &properties, 0);
  if (e->memory_for_rdma && (result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_VALUE)) {
    e->memory_for_rdma = false;
    properties.allocFlags.gpuDirectRDMACapable = 0;
    result = (int32_t)e->driver.memory_create(&r->handle, r->bytes, &properties, 0);
  }
  if (result == CUDA_ERROR_NOT_SUPPORTED && !e->memory_stays_here) {
    e->memory_stays_here = true;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
    result = (int32_t)e->driver.memory_create(&r->handle, r->bytes, &properties, 0);
  }
  if (result) return result;
  result = (int32_t)e->driver.memory_map(r->base, r->bytes, 0, r->handle, 0);
  if (!result) {
    result = set_access(e, d, r->base, r->bytes);
    if (result) (void)e->driver.memory_unmap(r->base, r->bytes);
  }
  if (result) (void)e->driver.memory_release(r->handle);
  return result;
}

static int32_t map_range(orion_engine* e, const orion_op* op, uint64_t base, uint64_t bytes) {
  const uint32_t context = op->context, device = e->contexts[context].device;
  device_state* d = &e->devices[device];
  const uint32_t index = memory_range_new(e);
  if (!index) return CUDA_ERROR_OUT_OF_MEMORY;
  const int32_t refused = ledger_charge(e, op, device, ORION_MEMORY_BUFFER, bytes);
  if (refused) {
    memory_range_give(e, index);
    return refused;
  }
  range* r = &e->ranges[index];
  *r = (range){.base = base, .bytes = bytes, .context = (uint16_t)context};
  const int32_t result = memory_back(e, r);
  if (result) {
    ledger_uncharge(e, device, ORION_MEMORY_BUFFER, bytes);
    memory_range_give(e, index);
    return result;
  }
  r->serial = ++e->range_serial;
  memory_set_chunks(d, base, bytes, index);
  atomic_fetch_add_explicit(&d->mapped_bytes, bytes, memory_order_relaxed);
  return 0;
}

static void unmap_range(orion_engine* e, uint32_t index) {
  range* r = &e->ranges[index];
  device_state* d = memory_device_at(e, r->base);
  share_withdraw(e, &r->token);
  if (!r->is_out) {
    if (e->direct) direct_forget(e, r->serial);
    (void)e->driver.memory_unmap(r->base, r->bytes);
    (void)e->driver.memory_release(r->handle);
  }
  swap_forget(e, r);
  memory_set_chunks(d, r->base, r->bytes, 0);
  ledger_uncharge(e, (uint32_t)(d - e->devices), ORION_MEMORY_BUFFER, r->bytes);
  atomic_fetch_sub_explicit(&d->mapped_bytes, r->bytes, memory_order_relaxed);
  memory_range_give(e, index);
  e->frees_progressed = true;
}

// ------------------------------------------------------------------------------------------------ map
static bool frees_may_help(const orion_engine* e) { return e->first_batch || e->parked_frees || e->swap.holds; }

static int32_t map_checked(orion_engine* e, const orion_op_mem_map* o) {
  const device_state* d = &e->devices[e->contexts[o->op.context].device];
  if (!o->size_bytes || o->device_address % ORION_CHUNK_BYTES || o->size_bytes % ORION_CHUNK_BYTES ||
      o->device_address < d->base || o->size_bytes > d->bytes ||
      o->device_address - d->base > d->bytes - o->size_bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint64_t first = (o->device_address - d->base) / ORION_CHUNK_BYTES;
  for (uint64_t i = 0; i < o->size_bytes / ORION_CHUNK_BYTES; i++) {
    if (d->chunk_range[first + i]) return CUDA_ERROR_INVALID_VALUE;
  }
  return answer_check(e, o->op.context, map_range(e, &o->op, o->device_address, o->size_bytes));
}

// One attempt. 0 when the operation is answered; else CUDA_ERROR_OUT_OF_MEMORY or LEDGER_WAITS.
static int32_t attempt(orion_engine* e, const orion_op* op, bool last) {
  const bool map = op->code == ORION_OP_MEM_MAP;
  if (map && !use_context(e, op)) return 0;
  const int32_t result =
      map ? map_checked(e, (const orion_op_mem_map*)op) : vmm_create(e, (const orion_op_vmm_create*)op);
  if (result == LEDGER_WAITS || (result == CUDA_ERROR_OUT_OF_MEMORY && !last)) return result;
  answer_reply(e, op, result, NULL, 0);
  return 0;
}

// An allocation travels in the express ring and may have overtaken the frees that make room for it. It waits until all
// that was in the main ring when it failed has been read and every free among it has been reclaimed. So it does while
// orion-server has been asked for a larger grant, and while other memory of the session leaves the GPU for somebody
// else's.
void memory_allocate(orion_engine* e, const orion_op* op) {
  const int32_t result = e->swap.holds ? CUDA_ERROR_OUT_OF_MEMORY : attempt(e, op, false);
  if (!result) return;
  uint64_t until = atomic_load_explicit(&e->main_ring.control->tail, memory_order_acquire);
  if (until - e->main_position > ORION_MAIN_SLOTS) until = e->main_position + ORION_MAIN_SLOTS;
  parked_op* node = NULL;
  const bool behind = until != e->main_position || e->main_in_hand;
  if ((behind || frees_may_help(e) || result == LEDGER_WAITS) && e->maps_count < MAPS_WAITING_MAX) {
    node = calloc(1, sizeof *node + op->bytes);
  }
  if (!node) {
    answer_reply(e, op, CUDA_ERROR_OUT_OF_MEMORY, NULL, 0);
    return;
  }
  memcpy(&node->op, op, op->bytes);
  *e->maps_last = node;
  e->maps_last = &node->next;
  e->maps_count++;
  e->maps_until = until;
  STAT_SET(e, stat_maps, e->maps_count);
}

static bool try_waiting_maps(orion_engine* e) {
  if (e->swap.holds) return false;
  const bool last_chance = (int64_t)(e->main_position - e->maps_until) >= 0 && !frees_may_help(e);
  if (!e->frees_progressed && !last_chance && !ledger_answered(e)) return false;
  e->frees_progressed = false;
  parked_op* node = e->maps_first;
  e->maps_first = NULL;
  e->maps_last = &e->maps_first;
  e->maps_count = 0;
  bool moved = false;
  while (node) {
    parked_op* next = node->next;
    node->next = NULL;
    if (!attempt(e, &node->op, last_chance)) {
      free(node);
      moved = true;
    } else {
      *e->maps_last = node;
      e->maps_last = &node->next;
      e->maps_count++;
    }
    node = next;
  }
  STAT_SET(e, stat_maps, e->maps_count);
  return moved;
}

// ------------------------------------------------------------------------------------------------ free
// Every MEM_FREE counts, valid or not: the client numbers them.
void memory_free(orion_engine* e, const orion_op* op) {
  const orion_op_mem_free* o = (const orion_op_mem_free*)op;
  uint32_t index = 0;
  int32_t result = 0;
  if (o->unmap) {
    const device_state* d = memory_device_at(e, o->device_address);
    index = d ? d->chunk_range[(o->device_address - d->base) / ORION_CHUNK_BYTES] : 0;
    if (!index || e->ranges[index].memory || e->ranges[index].base != o->device_address ||
        e->ranges[index].bytes != o->size_bytes) {
      index = 0;
      result = CUDA_ERROR_INVALID_VALUE;
    }
  }
  free_batch* batch = e->last_batch;
  if (!batch || batch->closed) {
    batch = calloc(1, sizeof *batch);
    if (batch) {
      batch->last = &batch->first;
      if (e->last_batch) {
        e->last_batch->next = batch;
      } else {
        e->first_batch = batch;
      }
      e->last_batch = batch;
    }
  }
  free_entry* entry = batch ? calloc(1, sizeof *entry) : NULL;
  if (!entry) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  entry->range_index = index;
  entry->serial = index ? e->ranges[index].serial : 0;
  *batch->last = entry;
  batch->last = &entry->next;
  batch->count++;
  STAT_ADD(e, stat_frees, 1);
  answer_result(e, op, result);
}

bool memory_reclaim(orion_engine* e, bool close_batch) {
  if (swap_is_moving(e)) return false;
  uint64_t reclaimed = 0;
  for (free_batch* batch = e->first_batch; batch; batch = e->first_batch) {
    if (!batch->closed) {
      // One ticket for many frees: taken when the engine has nothing better to do, or an allocation waits, or the
      // batch has grown.
      if (!close_batch && batch->count < 64 && !e->maps_first) break;
      if (!order_take_ticket(e, 0, &batch->ticket)) break;
      batch->closed = true;
    }
    if (!order_ticket_reached(e, &batch->ticket)) break;
    for (free_entry* entry = batch->first; entry;) {
      free_entry* next = entry->next;
      if (entry->serial && e->ranges[entry->range_index].serial == entry->serial) unmap_range(e, entry->range_index);
      free(entry);
      entry = next;
    }
    reclaimed += batch->count;
    e->first_batch = batch->next;
    if (!e->first_batch) e->last_batch = NULL;
    order_ticket_free(&batch->ticket);
    free(batch);
  }
  if (reclaimed) {
    const uint64_t done = atomic_load_explicit(&e->stat_frees_done, memory_order_relaxed) + reclaimed;
    STAT_SET(e, stat_frees_done, done);
    STAT_ADD(e, stat_frees, -reclaimed);
    answer_set_word(e, ORION_WORD_FREES_DONE, done);
  }
  const bool mapped = e->maps_first && try_waiting_maps(e);
  return reclaimed || mapped;
}

void memory_drop_context(orion_engine* e, uint32_t context) {
  for (uint32_t i = 1; i < e->range_fresh; i++) {
    if (e->ranges[i].serial && !e->ranges[i].memory && e->ranges[i].context == context) unmap_range(e, i);
  }
}

void memory_free_all(orion_engine* e) {
  vmm_free_all(e);
  for (uint32_t i = 1; i < e->range_fresh; i++) {
    if (e->ranges[i].serial) unmap_range(e, i);
  }
  while (e->first_batch) {
    free_batch* batch = e->first_batch;
    e->first_batch = batch->next;
    for (free_entry* entry = batch->first; entry;) {
      free_entry* next = entry->next;
      free(entry);
      entry = next;
    }
    order_ticket_free(&batch->ticket);
    free(batch);
  }
  e->last_batch = NULL;
  for (uint32_t i = 1; i < e->pinned_count; i++) {
    ledger_unpin(e, e->pinned[i].bytes);
    (void)e->driver.host_unregister(e->arena + e->pinned[i].offset);
    if (e->pinned[i].alias) alias_drop(e, &e->pinned[i]);
  }
  e->pinned_count = e->pinned_count ? 1 : 0;
  coherent_drop(e, 0, UINT64_MAX);
}

void memory_allow_peer(orion_engine* e, uint32_t owner, uint32_t reader, bool allow) {
  device_state* d = &e->devices[owner];
  if (owner == reader) return;
  const uint64_t bit = 1ull << reader;
  if (!allow) {
    d->peers &= ~bit;  // ranges that exist keep the access; new ones do not get it
    return;
  }
  d->peers |= bit;
  for (uint32_t i = 1; i < e->range_fresh; i++) {
    if (e->ranges[i].serial && !e->ranges[i].memory && !e->ranges[i].is_out &&
        e->contexts[e->ranges[i].context].device == owner) {
      (void)set_access(e, d, e->ranges[i].base, e->ranges[i].bytes);
    }
  }
}

/// Of what the client has freed, and what still waits for the device: an allocation waits for it too, so it is free.
static uint64_t pending_bytes(const orion_engine* e, uint32_t device) {
  uint64_t bytes = 0;
  for (const free_batch* batch = e->first_batch; batch; batch = batch->next) {
    for (const free_entry* entry = batch->first; entry; entry = entry->next) {
      if (!entry->serial) continue;
      const range* r = &e->ranges[entry->range_index];
      if (r->serial == entry->serial && e->contexts[r->context].device == device) bytes += r->bytes;
    }
  }
  for (const parked_op* node = e->first_parked; node; node = node->next) {
    const orion_op_mem_free* o = (const orion_op_mem_free*)&node->op;
    if (node->op.code != ORION_OP_MEM_FREE || !o->unmap) continue;
    const device_state* d = memory_device_at(e, o->device_address);
    if (d == &e->devices[device]) bytes += o->size_bytes;
  }
  return bytes;
}

void memory_info(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return;
  const uint32_t device = e->contexts[op->context].device;
  size_t free_bytes = 0, total_bytes = 0;
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.memory_info(&free_bytes, &total_bytes));
  const uint64_t pending = pending_bytes(e, device);
  free_bytes = pending < total_bytes - free_bytes ? free_bytes + pending : total_bytes;
  orion_reply_mem_info reply = {free_bytes, total_bytes};
  // The device may have less than the quota leaves: tenants together may have been promised more than there is.
  if (!result && ledger_view(e, device, &reply.free_bytes, &reply.total_bytes)) {
    reply.free_bytes = pending < reply.total_bytes - reply.free_bytes ? reply.free_bytes + pending : reply.total_bytes;
    if (reply.free_bytes > free_bytes) reply.free_bytes = free_bytes / ORION_CHUNK_BYTES * ORION_CHUNK_BYTES;
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

// ------------------------------------------------------------------------------------------------ host memory
// Index of the first registered range that ends behind `offset`.
static uint32_t pinned_search(const orion_engine* e, uint64_t offset) {
  uint32_t low = 0, high = e->pinned_count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (e->pinned[middle].offset + e->pinned[middle].bytes <= offset) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

bool memory_host_ok(const orion_engine* e, uint64_t offset, uint64_t bytes) {
  // A copy may not span two registered ranges: the driver would take it for pageable memory.
  if (offset > e->arena_bytes || bytes > e->arena_bytes - offset) return false;
  const uint32_t i = pinned_search(e, offset);
  if (i == e->pinned_count) return bytes == 0;
  const host_range* r = &e->pinned[i];
  return offset >= r->offset && bytes <= r->bytes - (offset - r->offset);
}

bool memory_pin(orion_engine* e, uint64_t offset, uint64_t bytes, uint64_t alias) {
  if (e->pinned_count == e->pinned_capacity) {
    const uint32_t capacity = e->pinned_capacity ? e->pinned_capacity * 2 : 64;
    host_range* grown = realloc(e->pinned, capacity * sizeof *grown);
    if (!grown) return false;
    e->pinned = grown;
    e->pinned_capacity = capacity;
  }
  const uint32_t at = pinned_search(e, offset);
  memmove(&e->pinned[at + 1], &e->pinned[at], (e->pinned_count - at) * sizeof *e->pinned);
  e->pinned[at] = (host_range){.offset = offset, .bytes = bytes, .alias = alias};
  e->pinned_count++;
  STAT_ADD(e, stat_pinned, bytes);
  return true;
}

void memory_host_register(orion_engine* e, const orion_op* op) {
  const orion_op_host_register* o = (const orion_op_host_register*)op;  // HOST_REGISTER_AT begins like it
  const uint64_t alias = op->code == ORION_OP_HOST_REGISTER_AT ? ((const orion_op_host_register_at*)op)->address : 0;
  if (!use_context(e, op)) return;
  int32_t result = 0;
  if (!o->size_bytes || (o->arena_off | o->size_bytes) & 0xfff || o->arena_off > e->arena_bytes ||
      o->size_bytes > e->arena_bytes - o->arena_off) {
    result = CUDA_ERROR_INVALID_VALUE;
  } else {
    const uint32_t i = pinned_search(e, o->arena_off);
    if (i < e->pinned_count && e->pinned[i].offset < o->arena_off + o->size_bytes) {
      result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
  }
  bool charged = false;
  if (!result) {
    charged = ledger_pin(e, o->size_bytes);
    if (!charged) result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (!result && op->code == ORION_OP_HOST_REGISTER_AT) {
    result = answer_check(e, op->context, alias_add(e, o->arena_off, o->size_bytes, alias));
  }
  if (!result) {
    // Always portable and mapped: several contexts of the session may name it, at one address.
    const unsigned int flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
    uint8_t* address = e->arena + o->arena_off;
    result = answer_check(e, op->context, (int32_t)e->driver.host_register(address, o->size_bytes, flags));
    if (!result && !memory_pin(e, o->arena_off, o->size_bytes, alias)) {
      (void)e->driver.host_unregister(address);
      result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result && alias) alias_drop(e, &(host_range){o->arena_off, o->size_bytes, alias});
  }
  if (result && charged) ledger_unpin(e, o->size_bytes);
  answer_reply(e, op, result, NULL, 0);
}

enum step memory_host_unregister(orion_engine* e, const orion_op* op) {
  const orion_op_host_unregister* o = (const orion_op_host_unregister*)op;
  if (!use_context(e, op)) return STEP_DONE;
  const uint32_t i = pinned_search(e, o->arena_off);
  if (i == 0 || i == e->pinned_count || e->pinned[i].offset != o->arena_off ||
      e->pinned[i].bytes != o->size_bytes) {  // entry 0 is staging, which is the session's
    answer_reply(e, op, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, NULL, 0);
    return STEP_DONE;
  }
  // All work is done; what it brought must be with the client before the memory is the client's alone.
  if (!coherent_settled(e)) return STEP_AGAIN;
  coherent_drop(e, o->arena_off, o->size_bytes);
  const host_range ended = e->pinned[i];
  memmove(&e->pinned[i], &e->pinned[i + 1], (e->pinned_count - i - 1) * sizeof *e->pinned);
  e->pinned_count--;
  STAT_ADD(e, stat_pinned, -o->size_bytes);
  ledger_unpin(e, o->size_bytes);
  uint8_t* address = e->arena + o->arena_off;
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.host_unregister(address));
  if (ended.alias) alias_drop(e, &ended);
  // The client's next allocation there is zero on its side.
  if (e->net) (void)madvise(address, o->size_bytes, MADV_DONTNEED);
  answer_reply(e, op, result, NULL, 0);
  return STEP_DONE;
}

// ------------------------------------------------------------------------------------------------ addresses
bool memory_device_ok(const orion_engine* e, uint64_t address, uint64_t bytes) {
  const uint64_t arena = (uint64_t)(uintptr_t)e->arena;
  if (address >= arena && address - arena < e->arena_bytes) return memory_host_ok(e, address - arena, bytes);
  const device_state* d = memory_device_at(e, address);
  if (d) {
    if (bytes > d->bytes - (address - d->base)) return false;
    while (bytes) {
      const uint32_t index = d->chunk_range[(address - d->base) / ORION_CHUNK_BYTES];
      if (!index) return false;
      const uint64_t left = e->ranges[index].base + e->ranges[index].bytes - address;
      if (bytes <= left) return true;
      bytes -= left;
      address += left;
    }
    return true;
  }
  for (uint32_t i = 0; i < e->global_count; i++) {
    const global_state* g = &e->globals[i];
    // Another one may begin where this ends.
    const uint64_t at = address - g->address;
    if (address >= g->address && at <= g->bytes && bytes <= g->bytes - at) return true;
  }
  if (variable_contains(e, address, bytes)) return true;
  uint64_t offset;
  return alias_offset(e, address, &offset) && memory_host_ok(e, offset, bytes);
}
