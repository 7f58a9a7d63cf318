// The program's own virtual memory: handles of physical memory, their mappings inside the slots, and access rights.
//
// The driver decides what is valid natively; what is checked here is only what keeps the engine's own map true:
// indices, that a mapping lies in a slot where nothing is mapped, and that a range names whole mappings of this kind.
#include <string.h>

#include "ledger.h"

#define ACCESS_MAX 256u

memory_state* vmm_memory(orion_engine* e, uint32_t index) {
  return index && index < ORION_MEMORIES && e->memories[index].alive ? &e->memories[index] : NULL;
}

// The loop sets its own when it next needs one, so whichever is current now will do.
int32_t vmm_some_context(orion_engine* e) {
  if (e->current_context) return 0;
  return (int32_t)e->driver.context_set_current(e->devices[0].primary);
}

static bool is_free(const orion_engine* e, uint32_t index) {
  return index && index < ORION_MEMORIES && !e->memories[index].alive;
}

/// Index of a device of the session; device_count: it has no such device.
static uint32_t device_of(const orion_engine* e, uint32_t ordinal) {
  uint32_t device = 0;
  while (device < e->device_count && (e->devices[device].ordinal != ordinal || !e->devices[device].reserved)) device++;
  return device;
}

static void bind_memory(orion_engine* e, uint32_t index, CUmemGenericAllocationHandle handle, uint64_t bytes,
                        uint32_t device) {
  e->memories[index] = (memory_state){.bytes = bytes, .handle = handle, .device = (uint16_t)device, .alive = true};
  if (e->memory_high <= index) e->memory_high = index + 1;
}

int32_t vmm_create(orion_engine* e, const orion_op_vmm_create* o) {
  if (!is_free(e, o->memory)) return CUDA_ERROR_INVALID_HANDLE;
  const uint32_t device = device_of(e, o->device);
  if (device == e->device_count) return CUDA_ERROR_INVALID_DEVICE;
  device_state* d = &e->devices[device];
  if (!o->size_bytes || o->size_bytes % ORION_CHUNK_BYTES) return CUDA_ERROR_INVALID_VALUE;
  CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                    .requestedHandleTypes = (CUmemAllocationHandleType)o->handle_types,
                                    .location = {CU_MEM_LOCATION_TYPE_DEVICE, (int)d->ordinal}};
  properties.allocFlags.compressionType = (unsigned char)o->alloc_flags;
  properties.allocFlags.gpuDirectRDMACapable = (unsigned char)(o->alloc_flags >> 8);
  properties.allocFlags.usage = (unsigned short)(o->alloc_flags >> 16);
  CUmemGenericAllocationHandle handle = 0;
  int32_t result = ledger_charge(e, &o->op, device, ORION_MEMORY_VIRTUAL, o->size_bytes);
  if (result) return result;
  result = vmm_some_context(e);
  if (!result) result = (int32_t)e->driver.memory_create(&handle, o->size_bytes, &properties, 0);
  if (result) {
    ledger_uncharge(e, device, ORION_MEMORY_VIRTUAL, o->size_bytes);
    return result;
  }
  bind_memory(e, o->memory, handle, o->size_bytes, device);
  atomic_fetch_add_explicit(&d->mapped_bytes, o->size_bytes, memory_order_relaxed);
  return 0;
}

int32_t vmm_adopt(orion_engine* e, uint32_t index, CUmemGenericAllocationHandle handle, uint64_t bytes, int ordinal) {
  const uint32_t device = device_of(e, (uint32_t)ordinal);
  if (!is_free(e, index)) return CUDA_ERROR_INVALID_HANDLE;
  if (device == e->device_count) return CUDA_ERROR_INVALID_DEVICE;
  bind_memory(e, index, handle, bytes, device);
  e->memories[index].imported = true;
  return 0;
}

static void release(orion_engine* e, memory_state* m) {
  share_withdraw(e, &m->token);
  (void)e->driver.memory_release(m->handle);
  if (!m->imported) {
    ledger_uncharge(e, m->device, ORION_MEMORY_VIRTUAL, m->bytes);
    atomic_fetch_sub_explicit(&e->devices[m->device].mapped_bytes, m->bytes, memory_order_relaxed);
  }
  *m = (memory_state){0};
  e->frees_progressed = true;
}

/// The slot that holds all of [address, +bytes), on chunk boundaries; NULL if none does.
static device_state* slot_of(const orion_engine* e, uint64_t address, uint64_t bytes) {
  device_state* d = memory_device_at(e, address);
  if (!d || !bytes || (address | bytes) % ORION_CHUNK_BYTES || bytes > d->bytes - (address - d->base)) return NULL;
  return d;
}

static int32_t map(orion_engine* e, const orion_op_vmm_map* o) {
  memory_state* m = vmm_memory(e, o->memory);
  if (!m) return CUDA_ERROR_INVALID_HANDLE;
  device_state* d = slot_of(e, o->device_address, o->size_bytes);
  if (!d || o->offset_bytes % ORION_CHUNK_BYTES || o->offset_bytes > m->bytes ||
      o->size_bytes > m->bytes - o->offset_bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint64_t first = (o->device_address - d->base) / ORION_CHUNK_BYTES;
  for (uint64_t i = 0; i < o->size_bytes / ORION_CHUNK_BYTES; i++) {
    if (d->chunk_range[first + i]) return CUDA_ERROR_INVALID_VALUE;
  }
  const uint32_t index = memory_range_new(e);
  if (!index) return CUDA_ERROR_OUT_OF_MEMORY;
  const int32_t result = (int32_t)e->driver.memory_map(o->device_address, o->size_bytes, o->offset_bytes, m->handle, 0);
  if (result) {
    memory_range_give(e, index);
    return result;
  }
  e->ranges[index] =
      (range){.base = o->device_address, .bytes = o->size_bytes, .serial = ++e->range_serial, .memory = o->memory};
  m->mappings++;
  memory_set_chunks(d, o->device_address, o->size_bytes, index);
  return 0;
}

/// True when [address, +bytes) is made of whole mappings of program memory.
static bool whole_mappings(const orion_engine* e, const device_state* d, uint64_t address, uint64_t bytes) {
  while (bytes) {
    const uint32_t index = d->chunk_range[(address - d->base) / ORION_CHUNK_BYTES];
    if (!index) return false;
    const range* r = &e->ranges[index];
    if (!r->memory || r->base != address || r->bytes > bytes) return false;
    address += r->bytes;
    bytes -= r->bytes;
  }
  return true;
}

static void unmap_one(orion_engine* e, device_state* d, uint32_t index) {
  const range* r = &e->ranges[index];
  e->memories[r->memory].mappings--;
  memory_set_chunks(d, r->base, r->bytes, 0);
  memory_range_give(e, index);
}

static int32_t unmap(orion_engine* e, const orion_op_vmm_unmap* o) {
  device_state* d = slot_of(e, o->device_address, o->size_bytes);
  if (!d || !whole_mappings(e, d, o->device_address, o->size_bytes)) return CUDA_ERROR_INVALID_VALUE;
  for (uint64_t at = o->device_address; at - o->device_address < o->size_bytes;) {
    const uint32_t index = d->chunk_range[(at - d->base) / ORION_CHUNK_BYTES];
    const uint64_t bytes = e->ranges[index].bytes;
    const int32_t result = (int32_t)e->driver.memory_unmap(at, bytes);
    if (result) return result;
    unmap_one(e, d, index);
    at += bytes;
  }
  return 0;
}

static int32_t set_access(orion_engine* e, const orion_op* op) {
  const orion_op_vmm_set_access* o = (const orion_op_vmm_set_access*)op;
  const device_state* d = slot_of(e, o->device_address, o->size_bytes);
  if (!d || !o->count || o->count > ACCESS_MAX || op_tail_bytes(op) != o->count * 16 ||
      !whole_mappings(e, d, o->device_address, o->size_bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  CUmemAccessDesc access[ACCESS_MAX];
  for (uint32_t i = 0; i < o->count; i++) {
    uint32_t entry[4];
    memcpy(entry, op_tail(op) + i * sizeof entry, sizeof entry);
    access[i] = (CUmemAccessDesc){{(CUmemLocationType)entry[0], (int)entry[1]}, (CUmemAccess_flags)entry[2]};
  }
  return (int32_t)e->driver.memory_set_access(o->device_address, o->size_bytes, access, o->count);
}

static int32_t release_op(orion_engine* e, const orion_op_vmm_release* o) {
  memory_state* m = vmm_memory(e, o->memory);
  if (!m) return CUDA_ERROR_INVALID_HANDLE;
  if (m->mappings) return CUDA_ERROR_INVALID_VALUE;
  release(e, m);
  return 0;
}

void vmm_simple(orion_engine* e, const orion_op* op) {
  int32_t result = vmm_some_context(e);
  if (!result) {
    switch (op->code) {
      case ORION_OP_VMM_MAP:
        result = map(e, (const orion_op_vmm_map*)op);
        break;
      case ORION_OP_VMM_UNMAP:
        result = unmap(e, (const orion_op_vmm_unmap*)op);
        break;
      case ORION_OP_VMM_SET_ACCESS:
        result = set_access(e, op);
        break;
      default:
        result = release_op(e, (const orion_op_vmm_release*)op);
    }
  }
  answer_result(e, op, result);
}

void vmm_free_all(orion_engine* e) {
  for (uint32_t i = 1; i < e->range_fresh; i++) {
    const range* r = &e->ranges[i];
    if (!r->serial || !r->memory) continue;
    (void)e->driver.memory_unmap(r->base, r->bytes);
    unmap_one(e, memory_device_at(e, r->base), i);
  }
  for (uint32_t i = 1; i < e->memory_high; i++) {
    if (e->memories[i].alive) release(e, &e->memories[i]);
  }
}
