// CUDA IPC and exported memory handles. Memory and events go from one worker to the other through orion-server; what
// the program passes on is a token (see orion_share).
//
// An allocation of cuMemAlloc is exported with the whole range that the worker has mapped for it, because the driver
// knows no smaller unit, and an importer maps that range whole.
#define _GNU_SOURCE
#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api.h"
#include "capture.h"

#define SHARE_MAGIC 0x4f524e53u

// Names of the kernel that C libraries before 2.27 do not declare.
#define SHARE_MEMFD_CLOEXEC 1u
#define SHARE_MEMFD_ALLOW_SEALING 2u
#define SHARE_ADD_SEALS 1033
#define SHARE_GET_SEALS 1034
#define SHARE_SEALS 0xf  // seal, shrink, grow, write

static pthread_mutex_t imports_mutex = PTHREAD_MUTEX_INITIALIZER;  // before orion_memory_mutex, held across replies
static orion_import* imports;

static CUresult process_number(uint64_t* number) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static uint64_t own;
  pthread_mutex_lock(&mutex);
  while (own == 0) {
    if (syscall(SYS_getrandom, &own, sizeof own, 0) != (long)sizeof own && errno != EINTR) break;
  }
  *number = own;
  pthread_mutex_unlock(&mutex);
  return *number != 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

/// Asks for a token. `memory` 0: for the allocation at `address`.
static CUresult export_memory(orion_session* session, enum orion_share_kind kind, uint32_t memory, uint64_t address,
                              uint64_t bytes, orion_share* share) {
  *share = (orion_share){.magic = SHARE_MAGIC, .kind = kind, .bytes = bytes};
  CUresult result = process_number(&share->process);
  if (result != CUDA_SUCCESS) return result;
  orion_op_share_export op = {.op = {.code = ORION_OP_SHARE_EXPORT}, .memory = memory, .device_address = address};
  orion_reply_share_export reply = {0};
  result = orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  share->token[0] = reply.token_0;
  share->token[1] = reply.token_1;
  share->offset_bytes = reply.offset_bytes;
  return result;
}

static bool is_share(const orion_share* share, enum orion_share_kind kind) {
  return share->magic == SHARE_MAGIC && share->kind == kind;
}

// ------------------------------------------------------------------------------------------------ files

CUresult orion_share_to_file(const orion_share* share, int* fd) {
  const int file = (int)syscall(SYS_memfd_create, "orion-share", SHARE_MEMFD_CLOEXEC | SHARE_MEMFD_ALLOW_SEALING);
  if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  if (pwrite(file, share, sizeof *share, 0) != (ssize_t)sizeof *share ||
      fcntl(file, SHARE_ADD_SEALS, SHARE_SEALS) != 0) {
    close(file);
    return CUDA_ERROR_OPERATING_SYSTEM;
  }
  *fd = file;
  return CUDA_SUCCESS;
}

CUresult orion_share_from_file(int fd, enum orion_share_kind kind, orion_share* share) {
  // Only such a file is read: reading another one, a pipe say, could wait or take something away.
  struct stat status;
  if (fcntl(fd, SHARE_GET_SEALS) != SHARE_SEALS || fstat(fd, &status) != 0 || status.st_size != sizeof *share ||
      pread(fd, share, sizeof *share, 0) != (ssize_t)sizeof *share || !is_share(share, kind)) {
    orion_log(ORION_LOG_WARN, "descriptor %d carries no memory of Orion", fd);
    return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                                CUmemAllocationHandleType type, unsigned long long flags) {
  ORION_ENTER();
  ORION_REQUIRE(shareable != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  const orion_memory* memory = orion_memory_hold(handle);
  ORION_REQUIRE(memory != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_share share;
  CUresult result = CUDA_SUCCESS;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
    result = CUDA_ERROR_NOT_SUPPORTED;
  } else if (!memory->exportable) {
    result = CUDA_ERROR_INVALID_VALUE;
  }
  if (result == CUDA_SUCCESS) {
    result =
        export_memory(memory->device->info->session, ORION_SHARE_MEMORY, memory->entry.index, 0, memory->bytes, &share);
  }
  if (result == CUDA_SUCCESS) result = orion_share_to_file(&share, shareable);
  const CUresult released = cuMemRelease(handle);
  return result == CUDA_SUCCESS ? released : result;
}

ORION_API CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shareable,
                                                  CUmemAllocationHandleType type) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_NOT_SUPPORTED);
  orion_share share;
  CUresult result = orion_share_from_file((int)(intptr_t)shareable, ORION_SHARE_MEMORY, &share);
  if (result != CUDA_SUCCESS) return result;
  // The token does not say which of the process's servers made it.
  orion_memory* memory = NULL;
  const orion_session* asked = NULL;
  result = CUDA_ERROR_INVALID_VALUE;
  for (uint32_t i = 0; i < orion_device_states() && result == CUDA_ERROR_INVALID_VALUE; i++) {
    orion_device_state* device = orion_device_state_at((CUdevice)i);
    if (device->info->session == asked) continue;
    asked = device->info->session;
    result = orion_memory_import(device, share.token, &memory);
  }
  if (result == CUDA_SUCCESS) *handle = memory->handle;
  return result;
}

// ------------------------------------------------------------------------------------------------ imported memory

/// Under the imports mutex.
static void close_import(orion_import* import) {
  if (--import->references != 0) return;
  for (orion_import** link = &imports; *link != NULL; link = &(*link)->next) {
    if (*link != import) continue;
    *link = import->next;
    break;
  }
  orion_device_state* device = import->memory->device;
  const uint64_t bytes = import->memory->bytes;
  (void)orion_memory_unmap(device->info->session, import->base, bytes);
  (void)orion_memory_destroy(import->memory);
  (void)orion_addresses_give(device, import->base, bytes);
  free(import);
}

static CUresult map_import(orion_import* import, const orion_device_state* user) {
  orion_memory* memory = import->memory;
  CUresult result = orion_addresses_take(memory->device, memory->bytes, ORION_CHUNK_BYTES, 0, &import->base);
  if (result != CUDA_SUCCESS) return result;
  const CUmemAccessDesc access[2] = {
      {{CU_MEM_LOCATION_TYPE_DEVICE, (int)memory->device->ordinal}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE},
      {{CU_MEM_LOCATION_TYPE_DEVICE, (int)user->ordinal}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE}};
  orion_session* session = memory->device->info->session;
  result = orion_memory_map(memory, import->base, memory->bytes, 0);
  if (result == CUDA_SUCCESS) {
    result =
        orion_memory_set_access(session, import->base, memory->bytes, access, user == memory->device ? 1 : 2, true);
    if (result != CUDA_SUCCESS) (void)orion_memory_unmap(session, import->base, memory->bytes);
  }
  if (result != CUDA_SUCCESS) (void)orion_addresses_give(memory->device, import->base, memory->bytes);
  return result;
}

/// Under the imports mutex: one reference to what the token stands for.
static CUresult open_import(const orion_context* context, const uint64_t token[2], orion_import** out) {
  for (orion_import* at = imports; at != NULL; at = at->next) {
    if (at->memory->device->info->session != context->session || memcmp(at->token, token, sizeof at->token) != 0) {
      continue;
    }
    at->references++;
    *out = at;
    return CUDA_SUCCESS;
  }
  orion_import* import = calloc(1, sizeof *import);
  if (import == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  memcpy(import->token, token, sizeof import->token);
  CUresult result = orion_memory_import(context->device, token, &import->memory);
  if (result == CUDA_SUCCESS) {
    result = map_import(import, context->device);
    if (result != CUDA_SUCCESS) (void)orion_memory_destroy(import->memory);
  }
  if (result != CUDA_SUCCESS) {
    free(import);
    return result;
  }
  import->references = 1;
  import->next = imports;
  imports = import;
  *out = import;
  return CUDA_SUCCESS;
}

/// Under the memory mutex: the opened allocation that begins there.
static orion_imported* imported_at(uint64_t address) {
  orion_imported* found = (orion_imported*)orion_extent_starting_at(orion_allocations, address);
  return found != NULL && found->allocation.kind == ORION_MEMORY_IMPORTED ? found : NULL;
}

/// Under the imports mutex, which keeps the reference to `import` that the caller hands over.
static CUresult open_allocation(orion_context* context, orion_import* import, const orion_share* share,
                                uint64_t* address) {
  const uint64_t limit_bytes = import->memory->bytes;
  if (share->bytes == 0 || share->offset_bytes > limit_bytes || share->bytes > limit_bytes - share->offset_bytes) {
    close_import(import);
    return CUDA_ERROR_INVALID_VALUE;
  }
  orion_imported* fresh = calloc(1, sizeof *fresh);
  if (fresh == NULL) {
    close_import(import);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  fresh->allocation = (orion_allocation){.extent = {.start = import->base + share->offset_bytes, .bytes = share->bytes},
                                         .kind = ORION_MEMORY_IMPORTED,
                                         .context = context,
                                         .reserved_bytes = share->bytes,
                                         .buffer_id = orion_next_id()};
  fresh->import = import;
  fresh->opened = 1;
  *address = fresh->allocation.extent.start;
  pthread_mutex_lock(&orion_memory_mutex);
  orion_imported* known = imported_at(*address);
  const bool again = known != NULL && known->allocation.extent.bytes == share->bytes;
  const bool taken = !again && orion_overlaps(*address, share->bytes);
  if (again) known->opened++;
  if (!again && !taken) orion_extent_insert(&orion_allocations, &fresh->allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  if (again || taken) {
    free(fresh);
    close_import(import);  // the allocation that is open has its own reference
  }
  return taken ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

ORION_API CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr address) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_range range = orion_find_range(address, 1);
  ORION_REQUIRE(range.kind == ORION_MEMORY_DEVICE, CUDA_ERROR_INVALID_VALUE);
  (void)context;
  orion_share share;
  const CUresult result =
      export_memory(range.context->session, ORION_SHARE_ALLOCATION, 0, range.start, range.bytes, &share);
  if (result == CUDA_SUCCESS) memcpy(handle, &share, sizeof share);
  return result;
}

ORION_API CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle handle, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  ORION_REQUIRE(address != NULL && flags == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, CUDA_ERROR_INVALID_VALUE);
  orion_share share;
  memcpy(&share, &handle, sizeof share);
  ORION_REQUIRE(is_share(&share, ORION_SHARE_ALLOCATION), CUDA_ERROR_INVALID_VALUE);
  uint64_t own;
  CUresult result = process_number(&own);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(share.process != own, CUDA_ERROR_INVALID_CONTEXT);  // natively so
  orion_import* import;
  uint64_t start = 0;
  pthread_mutex_lock(&imports_mutex);
  result = open_import(context, share.token, &import);
  if (result == CUDA_SUCCESS) result = open_allocation(context, import, &share, &start);
  pthread_mutex_unlock(&imports_mutex);
  if (result == CUDA_SUCCESS) *address = start;
  return result;
}

ORION_API CUresult cuIpcOpenMemHandle(CUdeviceptr* address, CUipcMemHandle handle, unsigned int flags) {
  ORION_COUNTED();

  return cuIpcOpenMemHandle_v2(address, handle, flags);
}

/// Takes an opened allocation out of the map when it was opened for the last time.
static orion_imported* close_allocation(uint64_t address, bool* known) {
  pthread_mutex_lock(&orion_memory_mutex);
  orion_imported* found = imported_at(address);
  *known = found != NULL;
  if (found != NULL && --found->opened != 0) found = NULL;
  if (found != NULL) orion_extent_remove(&orion_allocations, &found->allocation.extent);
  pthread_mutex_unlock(&orion_memory_mutex);
  return found;
}

ORION_API CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  ORION_ENTER_CONTEXT(context);
  ORION_CAPTURE_SAFE();
  const orion_range range = orion_find_range(address, 1);
  ORION_REQUIRE(range.kind == ORION_MEMORY_IMPORTED && range.start == address, CUDA_ERROR_INVALID_VALUE);
  // Like a free it comes after all work: unmapping itself waits for none.
  CUresult result = orion_context_synchronize(range.context);
  if (context != range.context) {
    const CUresult own = orion_context_synchronize(context);
    if (result == CUDA_SUCCESS) result = own;
  }
  if (result != CUDA_SUCCESS) return result;
  bool known;
  pthread_mutex_lock(&imports_mutex);
  orion_imported* last = close_allocation(address, &known);
  if (last != NULL) close_import(last->import);
  pthread_mutex_unlock(&imports_mutex);
  free(last);
  return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void orion_context_imports_end(orion_context* context) {
  for (uint64_t above = 0;;) {
    pthread_mutex_lock(&imports_mutex);
    pthread_mutex_lock(&orion_memory_mutex);
    orion_allocation* found;
    do {
      found = (orion_allocation*)orion_extent_at_or_above(orion_allocations, above);
      if (found != NULL) above = found->extent.start + 1;
    } while (found != NULL && (found->kind != ORION_MEMORY_IMPORTED || found->context != context));
    if (found != NULL) orion_extent_remove(&orion_allocations, &found->extent);
    pthread_mutex_unlock(&orion_memory_mutex);
    if (found != NULL) close_import(((orion_imported*)found)->import);
    pthread_mutex_unlock(&imports_mutex);
    if (found == NULL) return;
    free(found);
  }
}

// ------------------------------------------------------------------------------------------------ events
ORION_API CUresult cuIpcGetEventHandle(CUipcEventHandle* handle, CUevent event_handle) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_event* event;
  CUresult result = orion_event_of(event_handle, &event);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE((event->flags & CU_EVENT_INTERPROCESS) != 0, CUDA_ERROR_INVALID_HANDLE);
  orion_share share = {.magic = SHARE_MAGIC, .kind = ORION_SHARE_EVENT};
  result = process_number(&share.process);
  if (result != CUDA_SUCCESS) return result;
  // Before the handle is there: a record by another thread must not be believed issued when it is not.
  atomic_store(&event->shared, true);
  orion_op_event_export op = {.op = {.code = ORION_OP_EVENT_EXPORT, .context = (uint16_t)event->context->entry.index},
                              .event = event->entry.index};
  orion_reply_event_export reply = {0};
  result = orion_call(event->context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) return result;
  share.token[0] = reply.token_0;
  share.token[1] = reply.token_1;
  memcpy(handle, &share, sizeof share);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuIpcOpenEventHandle(CUevent* event_handle, CUipcEventHandle handle) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(event_handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_share share;
  memcpy(&share, &handle, sizeof share);
  ORION_REQUIRE(is_share(&share, ORION_SHARE_EVENT), CUDA_ERROR_MAP_FAILED);
  uint64_t own;
  CUresult result = process_number(&own);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(share.process != own, CUDA_ERROR_INVALID_CONTEXT);  // as with memory
  orion_event* event;
  result = orion_event_import(context, share.token, &event);
  // The worker's words for a handle that nobody has given out, or whose event is gone; the driver's is this one.
  if (result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_INVALID_HANDLE) result = CUDA_ERROR_MAP_FAILED;
  if (result == CUDA_SUCCESS) *event_handle = (CUevent)(uintptr_t)event->handle;
  return result;
}
