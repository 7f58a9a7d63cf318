// Virtual memory: reservations are parts of the agreed slots and never leave the client; memory is made by a reply;
// mapping, access and unmapping are checked here against the map of all memory and then sent without waiting.
#include "virtual_memory.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"

#define ACCESS_MOST 256u

typedef struct orion_reservation {
  orion_extent extent;  // first
  orion_device_state* device;
} orion_reservation;

orion_table orion_memories = ORION_TABLE(ORION_TAG_MEMORY, orion_memory, ORION_MEMORIES, 0);

static orion_extent* reservations;  // under orion_memory_mutex

static bool granular(uint64_t value) { return value % ORION_CHUNK_BYTES == 0; }

// ------------------------------------------------------------------------------------------------ the worker's part

CUresult orion_memory_create(orion_device_state* device, uint64_t bytes, const CUmemAllocationProp* properties,
                             orion_memory** out) {
  orion_memory* memory = orion_table_take(&orion_memories);
  if (memory == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  memory->device = device;
  memory->bytes = bytes;
  memory->block_id = orion_next_id();
  memory->properties = *properties;
  memory->exportable = properties->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  memory->references = 1;
  memory->mappings = 0;
  orion_op_vmm_create op = {.op = {.code = ORION_OP_VMM_CREATE},
                            .memory = memory->entry.index,
                            .device = device->info->remote_ordinal,
                            .size_bytes = bytes,
                            .handle_types = (uint32_t)properties->requestedHandleTypes,
                            .alloc_flags = (uint32_t)properties->allocFlags.compressionType |
                                           (uint32_t)properties->allocFlags.gpuDirectRDMACapable << 8 |
                                           (uint32_t)properties->allocFlags.usage << 16};
  CUresult result;
  uint64_t done;
  do {
    done = orion_frees_done(device);
    result = orion_call(device->info->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  } while (result == CUDA_ERROR_OUT_OF_MEMORY && orion_make_room(device, done));
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_memories, memory);
    return result;
  }
  memory->handle = orion_table_publish(&orion_memories, memory);
  *out = memory;
  return CUDA_SUCCESS;
}

CUresult orion_memory_import(orion_device_state* any, const uint64_t token[2], orion_memory** out) {
  orion_session* session = any->info->session;
  orion_memory* memory = orion_table_take(&orion_memories);
  if (memory == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_op_share_import op = {
      .op = {.code = ORION_OP_SHARE_IMPORT}, .memory = memory->entry.index, .token_0 = token[0], .token_1 = token[1]};
  orion_reply_share_import reply = {0};
  const CUresult result = orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_memories, memory);
    if (result == CUDA_ERROR_INVALID_VALUE) {
      orion_log(ORION_LOG_WARN,
                "shared memory is not on this server for this group: freed since, of another server, "
                "or of another host, user or ORION_GROUP_ID");
    }
    return result;
  }
  // The worker has refused memory of a device that the session does not have; CUDA_VISIBLE_DEVICES may hide it too.
  // Then some device of the session stands in, to give the memory back.
  bool visible = false;
  orion_device_state* device = any;
  for (uint32_t i = 0; i < orion_device_states() && !visible; i++) {
    device = orion_device_state_at((CUdevice)i);
    visible = device->info->session == session && device->info->remote_ordinal == reply.device;
  }
  memory->device = visible ? device : any;
  memory->bytes = reply.size_bytes;
  memory->block_id = orion_next_id();
  memory->properties =
      (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = (int)memory->device->ordinal}};
  memory->exportable = true;
  memory->references = 1;
  memory->mappings = 0;
  memory->handle = orion_table_publish(&orion_memories, memory);
  if (!visible) {
    orion_log(ORION_LOG_WARN, "shared memory lies on GPU %u of the server, which this process does not see",
              reply.device);
    (void)orion_memory_destroy(memory);
    return CUDA_ERROR_INVALID_DEVICE;
  }
  *out = memory;
  return CUDA_SUCCESS;
}

CUresult orion_memory_destroy(orion_memory* memory) {
  orion_session* session = memory->device->info->session;
  orion_op_vmm_release op = {.op = {.code = ORION_OP_VMM_RELEASE}, .memory = memory->entry.index};
  (void)orion_table_retire(&orion_memories, memory, atomic_load(&memory->entry.generation));
  const CUresult result = orion_submit(session, &op.op, sizeof op, NULL, 0);
  orion_memory_released(memory->device->peer);
  // Creation is express: the index rests until the worker has surely seen the release.
  const CUresult given = orion_memory_index_give(memory->device->peer, memory);
  return result == CUDA_SUCCESS ? given : result;
}

CUresult orion_memory_map(orion_memory* memory, uint64_t address, uint64_t bytes, uint64_t offset_bytes) {
  orion_op_vmm_map op = {.op = {.code = ORION_OP_VMM_MAP},
                         .device_address = address,
                         .size_bytes = bytes,
                         .offset_bytes = offset_bytes,
                         .memory = memory->entry.index};
  orion_session* session = memory->device->info->session;
  // A part of the memory is what the driver may refuse: then its own answer is given.
  if (bytes != memory->bytes) return orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  return orion_submit(session, &op.op, sizeof op, NULL, 0);
}

CUresult orion_memory_unmap(orion_session* session, uint64_t address, uint64_t bytes) {
  orion_op_vmm_unmap op = {.op = {.code = ORION_OP_VMM_UNMAP}, .device_address = address, .size_bytes = bytes};
  return orion_submit(session, &op.op, sizeof op, NULL, 0);
}

CUresult orion_memory_set_access(orion_session* session, uint64_t address, uint64_t bytes,
                                 const CUmemAccessDesc* access, size_t count, bool wait) {
  uint32_t entries[ACCESS_MOST][4];
  if (count > ACCESS_MOST) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; i++) {
    int32_t id = access[i].location.id;
    if (access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
      id = (int32_t)orion_device_state_at(id)->info->remote_ordinal;
    }
    entries[i][0] = (uint32_t)access[i].location.type;
    entries[i][1] = (uint32_t)id;
    entries[i][2] = (uint32_t)access[i].flags;
    entries[i][3] = 0;
  }
  orion_op_vmm_set_access op = {.op = {.code = ORION_OP_VMM_SET_ACCESS},
                                .device_address = address,
                                .size_bytes = bytes,
                                .count = (uint32_t)count};
  const uint32_t tail_bytes = (uint32_t)(count * sizeof entries[0]);
  if (wait) return orion_call(session, &op.op, sizeof op, entries, tail_bytes, NULL, 0, NULL);
  return orion_submit(session, &op.op, sizeof op, entries, tail_bytes);
}

void orion_memory_released(orion_peer* peer) {
  if (!atomic_load_explicit(&peer->releases_unsettled, memory_order_relaxed))
    atomic_store(&peer->releases_unsettled, true);
}

CUresult orion_memory_settle(orion_peer* peer) {
  if (!atomic_exchange(&peer->releases_unsettled, false)) return CUDA_SUCCESS;
  orion_op_nop op = {.op = {.code = ORION_OP_NOP}};
  return orion_call(peer->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
}

// ------------------------------------------------------------------------------------------------ handles

static CUresult check_properties(const CUmemAllocationProp* properties, orion_device_state** device) {
  ORION_REQUIRE(properties != NULL && properties->type == CU_MEM_ALLOCATION_TYPE_PINNED, CUDA_ERROR_INVALID_VALUE);
  const int location = (int)properties->location.type;
  // Memory of the host would have to lie in the arena that both sides hold: not offered, and the attributes say so.
  ORION_REQUIRE(location != CU_MEM_LOCATION_TYPE_HOST && location != CU_MEM_LOCATION_TYPE_HOST_NUMA,
                CUDA_ERROR_NOT_SUPPORTED);
  ORION_REQUIRE(location == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_INVALID_VALUE);
  *device = orion_device_state_at(properties->location.id);
  ORION_REQUIRE(*device != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(((unsigned)properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0,
                CUDA_ERROR_NOT_SUPPORTED);
  return CUDA_SUCCESS;
}

/// Under the memory mutex: memory whose handle the program holds.
static orion_memory* held(CUmemGenericAllocationHandle handle) {
  orion_memory* memory = orion_table_find(&orion_memories, handle, NULL);
  return memory != NULL && memory->references != 0 ? memory : NULL;
}

/// Under the memory mutex: memory that there is: held by the program, or mapped somewhere.
static orion_memory* existing(CUmemGenericAllocationHandle handle) {
  orion_memory* memory = orion_table_find(&orion_memories, handle, NULL);
  return memory != NULL && (memory->references != 0 || memory->mappings != 0) ? memory : NULL;
}

ORION_API CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp* properties,
                                                 CUmemAllocationGranularity_flags option) {
  ORION_ENTER();
  // The driver does not look at the properties either, except whether there are any.
  ORION_REQUIRE(granularity != NULL && properties != NULL && (unsigned)option <= CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
                CUDA_ERROR_INVALID_VALUE);
  *granularity = ORION_CHUNK_BYTES;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                               const CUmemAllocationProp* properties, unsigned long long flags) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && bytes != 0 && granular(bytes) && flags == 0, CUDA_ERROR_INVALID_VALUE);
  orion_device_state* device;
  CUresult result = check_properties(properties, &device);
  orion_memory* memory;
  if (result == CUDA_SUCCESS) result = orion_memory_create(device, bytes, properties, &memory);
  if (result == CUDA_SUCCESS) *handle = memory->handle;
  return result;
}

ORION_API CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  ORION_ENTER();
  pthread_mutex_lock(&orion_memory_mutex);
  orion_memory* memory = held(handle);
  const bool last = memory != NULL && --memory->references == 0 && memory->mappings == 0;
  pthread_mutex_unlock(&orion_memory_mutex);
  ORION_REQUIRE(memory != NULL, CUDA_ERROR_INVALID_VALUE);
  return last ? orion_memory_destroy(memory) : CUDA_SUCCESS;
}

orion_memory* orion_memory_hold(CUmemGenericAllocationHandle handle) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_memory* memory = held(handle);
  if (memory != NULL) memory->references++;
  pthread_mutex_unlock(&orion_memory_mutex);
  return memory;
}

ORION_API CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_memory_mutex);
  orion_mapping* mapping = (orion_mapping*)orion_extent_containing(orion_allocations, (uint64_t)(uintptr_t)address);
  if (mapping != NULL && mapping->allocation.kind != ORION_MEMORY_MAPPED) mapping = NULL;
  if (mapping != NULL) {
    mapping->memory->references++;
    *handle = mapping->memory->handle;
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return mapping == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

ORION_API CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* properties,
                                                          CUmemGenericAllocationHandle handle) {
  ORION_ENTER();
  ORION_REQUIRE(properties != NULL, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_memory* memory = held(handle);
  if (memory != NULL) *properties = memory->properties;
  pthread_mutex_unlock(&orion_memory_mutex);
  return memory == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ reservations

ORION_API CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment_bytes, CUdeviceptr hint,
                                       unsigned long long flags) {
  ORION_ENTER();
  ORION_REQUIRE(
      address != NULL && bytes != 0 && granular(bytes) && flags == 0 && (alignment_bytes & (alignment_bytes - 1)) == 0,
      CUDA_ERROR_INVALID_VALUE);
  // A reservation names no device: it is made in the slot of the current one, where its memory most likely belongs.
  orion_context* context;
  orion_device_state* device = orion_current_any(&context) == CUDA_SUCCESS ? context->device : orion_device_state_at(0);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  const uint64_t slot_bytes = device->info->slot_bytes;
  ORION_REQUIRE(bytes <= slot_bytes && alignment_bytes <= slot_bytes, CUDA_ERROR_OUT_OF_MEMORY);
  orion_reservation* reservation = calloc(1, sizeof *reservation);
  ORION_REQUIRE(reservation != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  const bool usable_hint = granular(hint) && (alignment_bytes == 0 || hint % alignment_bytes == 0);
  uint64_t start;
  const CUresult result = orion_addresses_take(device, bytes, alignment_bytes, usable_hint ? hint : 0, &start);
  if (result != CUDA_SUCCESS) {
    free(reservation);
    return result;
  }
  reservation->extent = (orion_extent){.start = start, .bytes = bytes};
  reservation->device = device;
  pthread_mutex_lock(&orion_memory_mutex);
  orion_extent_insert(&reservations, &reservation->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  *address = start;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  ORION_ENTER();
  pthread_mutex_lock(&orion_memory_mutex);
  orion_reservation* found = (orion_reservation*)orion_extent_starting_at(reservations, address);
  if (found != NULL && (found->extent.bytes != bytes || orion_overlaps(address, bytes))) found = NULL;
  if (found != NULL) orion_extent_remove(&reservations, &found->extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  ORION_REQUIRE(found != NULL, CUDA_ERROR_INVALID_VALUE);
  // Other memory is mapped by express operations: not here before the worker has unmapped what was.
  const CUresult result = orion_addresses_give(found->device, address, bytes);
  free(found);
  return result;
}

// ------------------------------------------------------------------------------------------------ mappings

/// Under the memory mutex: whether all of [address, +bytes) is reserved on the memory's server and nothing is there.
static CUresult check_place(const orion_memory* memory, uint64_t address, uint64_t bytes, uint64_t offset_bytes) {
  const orion_reservation* reservation = (orion_reservation*)orion_extent_containing(reservations, address);
  ORION_REQUIRE(memory != NULL && reservation != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(bytes <= reservation->extent.bytes - (address - reservation->extent.start), CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(!orion_overlaps(address, bytes), CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(offset_bytes <= memory->bytes && bytes <= memory->bytes - offset_bytes, CUDA_ERROR_NOT_SUPPORTED);
  // The addresses of another server's slot mean nothing to this one.
  ORION_REQUIRE(reservation->device->info->session == memory->device->info->session, CUDA_ERROR_NOT_SUPPORTED);
  return CUDA_SUCCESS;
}

/// Under the memory mutex. True when the memory is to be destroyed, once the lock is given back.
static bool drop_mapping(orion_mapping* mapping) {
  orion_memory* memory = mapping->memory;
  orion_extent_remove(&orion_allocations, &mapping->allocation.extent);
  free(mapping);
  return --memory->mappings == 0 && memory->references == 0;
}

ORION_API CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset_bytes, CUmemGenericAllocationHandle handle,
                            unsigned long long flags) {
  ORION_ENTER();
  ORION_REQUIRE(bytes != 0 && granular(address) && granular(bytes) && granular(offset_bytes) && flags == 0,
                CUDA_ERROR_INVALID_VALUE);
  orion_mapping* mapping = calloc(1, sizeof *mapping);
  ORION_REQUIRE(mapping != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  pthread_mutex_lock(&orion_memory_mutex);
  orion_memory* memory = existing(handle);
  CUresult result = check_place(memory, address, bytes, offset_bytes);
  if (result == CUDA_SUCCESS) {
    mapping->allocation = (orion_allocation){.extent = {.start = address, .bytes = bytes},
                                             .kind = ORION_MEMORY_MAPPED,
                                             .context = orion_primary_of(memory->device),
                                             .reserved_bytes = bytes,
                                             .buffer_id = orion_next_id()};
    mapping->memory = memory;
    mapping->offset_bytes = offset_bytes;
    memory->mappings++;
    orion_extent_insert(&orion_allocations, &mapping->allocation.extent);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  if (result != CUDA_SUCCESS) {
    free(mapping);
    return result;
  }
  result = orion_memory_map(memory, address, bytes, offset_bytes);
  if (result == CUDA_SUCCESS) return CUDA_SUCCESS;
  pthread_mutex_lock(&orion_memory_mutex);
  const bool last = drop_mapping(mapping);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (last) (void)orion_memory_destroy(memory);
  return result;
}

/// Under the memory mutex: the first of the mappings that make up exactly [address, +bytes). NULL if none do.
static orion_mapping* whole_mappings(uint64_t address, uint64_t bytes) {
  orion_mapping* first = (orion_mapping*)orion_extent_starting_at(orion_allocations, address);
  for (orion_mapping* at = first; at != NULL && at->allocation.kind == ORION_MEMORY_MAPPED;) {
    const uint64_t step = at->allocation.extent.bytes;
    if (step > bytes) return NULL;
    address += step;
    bytes -= step;
    if (bytes == 0) return first;
    at = (orion_mapping*)orion_extent_starting_at(orion_allocations, address);
  }
  return NULL;
}

const orion_extent* orion_reservation_around(uint64_t address) {
  return orion_extent_containing(reservations, address);
}

/// Under the memory mutex.
static bool is_reserved_and_free(uint64_t address, uint64_t bytes) {
  const orion_extent* reserved = orion_extent_containing(reservations, address);
  if (reserved == NULL || bytes > reserved->bytes - (address - reserved->start)) return false;
  const orion_extent* next = orion_extent_at_or_above(orion_allocations, address);
  return orion_extent_containing(orion_allocations, address) == NULL &&
         (next == NULL || next->start - address >= bytes);
}

ORION_API CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  ORION_ENTER();
  ORION_REQUIRE(bytes != 0 && granular(address) && granular(bytes), CUDA_ERROR_INVALID_VALUE);
  // One at a time: each may be the last of its memory.
  pthread_mutex_lock(&orion_memory_mutex);
  const bool whole = whole_mappings(address, bytes) != NULL;
  const bool nothing = !whole && is_reserved_and_free(address, bytes);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (nothing) return CUDA_SUCCESS;  // as the driver has it
  ORION_REQUIRE(whole, CUDA_ERROR_INVALID_VALUE);
  CUresult result = CUDA_SUCCESS;
  while (bytes != 0 && result == CUDA_SUCCESS) {
    pthread_mutex_lock(&orion_memory_mutex);
    orion_mapping* mapping = (orion_mapping*)orion_extent_starting_at(orion_allocations, address);
    if (mapping == NULL || mapping->allocation.kind != ORION_MEMORY_MAPPED) {  // another thread was faster
      pthread_mutex_unlock(&orion_memory_mutex);
      return CUDA_ERROR_INVALID_VALUE;
    }
    orion_memory* memory = mapping->memory;
    const uint64_t step = mapping->allocation.extent.bytes;
    const bool last = drop_mapping(mapping);
    pthread_mutex_unlock(&orion_memory_mutex);
    result = orion_memory_unmap(memory->device->info->session, address, step);
    if (last) {
      const CUresult destroyed = orion_memory_destroy(memory);
      if (result == CUDA_SUCCESS) result = destroyed;
    }
    address += step;
    bytes -= step;
  }
  return result;
}

static CUresult check_access(const CUmemAccessDesc* access, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
      ORION_REQUIRE(orion_device_state_at(access[i].location.id) != NULL, CUDA_ERROR_INVALID_VALUE);
    } else {
      ORION_REQUIRE(access[i].location.type == CU_MEM_LOCATION_TYPE_HOST ||
                        access[i].location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA,
                    CUDA_ERROR_INVALID_VALUE);
    }
    ORION_REQUIRE(access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE ||
                      access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ ||
                      access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
                  CUDA_ERROR_INVALID_VALUE);
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  ORION_ENTER();
  ORION_REQUIRE(
      access != NULL && count != 0 && count <= ACCESS_MOST && bytes != 0 && granular(address) && granular(bytes),
      CUDA_ERROR_INVALID_VALUE);
  CUresult result = check_access(access, count);
  if (result != CUDA_SUCCESS) return result;
  // Whether another device or the host can have access is the driver's to say.
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_mapping* first = whole_mappings(address, bytes);
  orion_session* session = first == NULL ? NULL : first->memory->device->info->session;
  bool own = true;
  for (const orion_mapping* at = first; at != NULL && at->allocation.extent.start < address + bytes;) {
    for (size_t i = 0; i < count; i++) {
      own = own && access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
            (uint32_t)access[i].location.id == at->memory->device->ordinal;
    }
    at = (orion_mapping*)orion_extent_starting_at(orion_allocations,
                                                  at->allocation.extent.start + at->allocation.extent.bytes);
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  ORION_REQUIRE(first != NULL, CUDA_ERROR_INVALID_VALUE);
  for (size_t i = 0; i < count; i++) {
    ORION_REQUIRE(access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
                      orion_device_state_at(access[i].location.id)->info->session == session,
                  CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
  }
  result = orion_memory_set_access(session, address, bytes, access, count, !own);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&orion_memory_mutex);
  for (uint64_t at = address; at - address < bytes;) {
    orion_mapping* mapping = (orion_mapping*)orion_extent_starting_at(orion_allocations, at);
    if (mapping == NULL || mapping->allocation.kind != ORION_MEMORY_MAPPED) break;  // unmapped meanwhile
    for (size_t i = 0; i < count; i++) {
      if (access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
        mapping->access[access[i].location.id] = (uint8_t)access[i].flags;
      }
    }
    at += mapping->allocation.extent.bytes;
  }
  pthread_mutex_unlock(&orion_memory_mutex);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  ORION_ENTER();
  ORION_REQUIRE(flags != NULL && location != NULL && location->type == CU_MEM_LOCATION_TYPE_DEVICE,
                CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(location->id) != NULL, CUDA_ERROR_INVALID_DEVICE);
  pthread_mutex_lock(&orion_memory_mutex);
  const orion_mapping* mapping = (orion_mapping*)orion_extent_containing(orion_allocations, address);
  if (mapping != NULL && mapping->allocation.kind != ORION_MEMORY_MAPPED) mapping = NULL;
  if (mapping != NULL) *flags = mapping->access[location->id];
  pthread_mutex_unlock(&orion_memory_mutex);
  return mapping == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
