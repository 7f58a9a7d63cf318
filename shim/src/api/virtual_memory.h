// Physical memory, its mappings, and address reservations (cuMemCreate and its like). Pools are made of the same parts.
#ifndef ORION_SHIM_VIRTUAL_MEMORY_H
#define ORION_SHIM_VIRTUAL_MEMORY_H

#include "memory.h"

typedef struct orion_memory {
  orion_entry entry;
  orion_device_state* device;
  uint64_t bytes;
  uint64_t block_id;  // never reused
  uint64_t handle;
  CUmemAllocationProp properties;
  bool exportable;  // an imported one is, though its properties, as natively, name no types of handles
  // Under the memory mutex. The worker's memory goes when both are 0: a released handle lives on in its mappings.
  uint32_t references, mappings;
} orion_memory;

/// An allocation of kind ORION_MEMORY_MAPPED.
typedef struct orion_mapping {
  orion_allocation allocation;  // first
  orion_memory* memory;
  uint64_t offset_bytes;
  uint8_t access[ORION_DEVICES];  // CUmemAccess_flags by device ordinal
} orion_mapping;

extern orion_table orion_memories;

/// Under the memory mutex: the reservation of addresses in which this one lies, or NULL.
const orion_extent* orion_reservation_around(uint64_t address);

/// Memory of the device, with one reference. The only call that waits for the worker and can run out of memory.
CUresult orion_memory_create(orion_device_state* device, uint64_t bytes, const CUmemAllocationProp* properties,
                             orion_memory** memory);
/// Memory of another process, by its token, with one reference. CUDA_ERROR_INVALID_VALUE: the server of `any`, a
/// device whose memory need not be meant, has no such.
CUresult orion_memory_import(orion_device_state* any, const uint64_t token[2], orion_memory** memory);
/// One more reference to what the handle names, which cuMemRelease gives back; NULL: nobody holds it.
orion_memory* orion_memory_hold(CUmemGenericAllocationHandle handle);
/// Under no lock, after the last reference and the last mapping went.
CUresult orion_memory_destroy(orion_memory* memory);
/// One-way: what the worker is told. The caller has checked everything and keeps the map.
CUresult orion_memory_map(orion_memory* memory, uint64_t address, uint64_t bytes, uint64_t offset_bytes);
CUresult orion_memory_unmap(orion_session* session, uint64_t address, uint64_t bytes);
/// With `wait`, the driver's own answer.
CUresult orion_memory_set_access(orion_session* session, uint64_t address, uint64_t bytes,
                                 const CUmemAccessDesc* access, size_t count, bool wait);
/// Notes that something one-way has been sent that gives memory back.
void orion_memory_released(orion_peer* peer);
/// Waits until the worker knows of all that was sent before it: what it says of free memory counts them.
CUresult orion_memory_settle(orion_peer* peer);

#endif
