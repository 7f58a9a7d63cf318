// What tools ask of the driver: its log, core dumps of the GPU, notifications. None of it has anything to tell here,
// and programs that ask must go on: each call keeps what it is given and answers as a driver to which nothing has
// happened.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

// ------------------------------------------------------------------------------------------------ callbacks

typedef struct orion_callback {
  struct orion_callback* next;
  int owner;  // a device, or -1: the log
} orion_callback;

static pthread_mutex_t callbacks_mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_callback* callbacks;

static orion_callback* add_callback(int owner) {
  orion_callback* added = malloc(sizeof *added);
  if (added == NULL) return NULL;
  added->owner = owner;
  pthread_mutex_lock(&callbacks_mutex);
  added->next = callbacks;
  callbacks = added;
  pthread_mutex_unlock(&callbacks_mutex);
  return added;
}

static CUresult remove_callback(const void* handle, int owner) {
  pthread_mutex_lock(&callbacks_mutex);
  orion_callback** at = &callbacks;
  while (*at != NULL && (*at != handle || (*at)->owner != owner)) at = &(*at)->next;
  orion_callback* found = *at;
  if (found != NULL) *at = found->next;
  pthread_mutex_unlock(&callbacks_mutex);
  free(found);
  return found == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ the log
// It explains calls that were refused in the program's own process; Orion's own explanations are in its log.

ORION_API CUresult cuLogsRegisterCallback(CUlogsCallback function, void* data, CUlogsCallbackHandle* handle) {
  (void)data;
  ORION_REQUIRE(function != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_callback* added = add_callback(-1);
  ORION_REQUIRE(added != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  if (handle != NULL) *handle = (CUlogsCallbackHandle)(void*)added;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle handle) { return remove_callback(handle, -1); }

ORION_API CUresult cuLogsCurrent(CUlogIterator* iterator, unsigned int flags) {
  (void)flags;  // the driver of an H100 takes any
  ORION_REQUIRE(iterator != NULL, CUDA_ERROR_INVALID_VALUE);
  *iterator = 0;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLogsDumpToFile(CUlogIterator* iterator, const char* path, unsigned int flags) {
  (void)iterator;  // it stays where it is: nothing was written
  ORION_REQUIRE(path != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  FILE* file = fopen(path, "we");
  ORION_REQUIRE(file != NULL, CUDA_ERROR_INVALID_VALUE);
  return fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

ORION_API CUresult cuLogsDumpToMemory(CUlogIterator* iterator, char* buffer, size_t* size_bytes, unsigned int flags) {
  (void)iterator;
  ORION_REQUIRE(buffer != NULL && size_bytes != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  if (*size_bytes != 0) buffer[0] = 0;
  *size_bytes = 0;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ notifications

/// Told are processes over their budget of device memory: here an allocation over it fails instead.
ORION_API CUresult cuDeviceRegisterAsyncNotification(CUdevice device, CUasyncCallback function, void* data,
                                                     CUasyncCallbackHandle* handle) {
  ORION_ENTER();
  (void)data;
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(function != NULL && handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_callback* added = add_callback(device);
  ORION_REQUIRE(added != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  *handle = (CUasyncCallbackHandle)(void*)added;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceUnregisterAsyncNotification(CUdevice device, CUasyncCallbackHandle handle) {
  ORION_ENTER();
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  return remove_callback(handle, device);
}

// ------------------------------------------------------------------------------------------------ core dumps

#define CORE_NAME_BYTES 1024u

typedef struct core_settings {
  uint64_t context_id;  // whose they are; 0: all contexts'
  uint32_t set;         // one bit for each attribute
  bool switches[CU_COREDUMP_MAX];
  int generation_flags;
  char names[2][CORE_NAME_BYTES];    // CU_COREDUMP_FILE, CU_COREDUMP_PIPE
  uint64_t set_at[CU_COREDUMP_MAX];  // of all contexts': younger contexts begin with the value
} core_settings;

static pthread_mutex_t core_mutex = PTHREAD_MUTEX_INITIALIZER;
static core_settings core_of_all;
static core_settings* core_of_context[ORION_CONTEXTS];

static bool is_name(unsigned id) { return id == CU_COREDUMP_FILE || id == CU_COREDUMP_PIPE; }

static size_t core_bytes(unsigned id) {
  if (is_name(id)) return CORE_NAME_BYTES;
  return id == CU_COREDUMP_GENERATION_FLAGS ? sizeof(int) : sizeof(bool);
}

/// Names are empty, as on a driver that has been told none: it makes them up when it writes.
static void core_default(unsigned id, uint8_t* value) {
  memset(value, 0, core_bytes(id));
  if (id == CU_COREDUMP_TRIGGER_HOST) value[0] = 1;
}

static void* core_place(core_settings* settings, unsigned id) {
  if (is_name(id)) return settings->names[id == CU_COREDUMP_PIPE];
  return id == CU_COREDUMP_GENERATION_FLAGS ? (void*)&settings->generation_flags : (void*)&settings->switches[id];
}

/// Under the mutex. NULL where nothing of this context was set, or without memory for `add`.
static core_settings* core_settings_of(const orion_context* context, bool add) {
  core_settings** at = &core_of_context[context->entry.index];
  if (*at == NULL && add) *at = calloc(1, sizeof **at);
  if (*at == NULL || (*at)->context_id == context->id) return *at;
  if (!add) return NULL;  // a former context's
  **at = (core_settings){.context_id = context->id};
  return *at;
}

static CUresult core_get(const orion_context* context, unsigned id, void* value, size_t* size_bytes) {
  ORION_REQUIRE(id > 0 && id < CU_COREDUMP_MAX && size_bytes != NULL, CUDA_ERROR_INVALID_VALUE);
  const size_t bytes = core_bytes(id);
  if (value == NULL) {
    *size_bytes = bytes;
    return CUDA_SUCCESS;
  }
  uint8_t found[CORE_NAME_BYTES];
  core_default(id, found);
  pthread_mutex_lock(&core_mutex);
  core_settings* own = context == NULL ? NULL : core_settings_of(context, false);
  core_settings* from = own != NULL && (own->set >> id & 1) != 0 ? own : &core_of_all;
  const bool holds = from == own || context == NULL || from->set_at[id] < context->id;
  if (holds && (from->set >> id & 1) != 0) memcpy(found, core_place(from, id), bytes);
  pthread_mutex_unlock(&core_mutex);
  const size_t needed = is_name(id) ? strlen((const char*)found) + 1 : bytes;
  ORION_REQUIRE(*size_bytes >= needed, CUDA_ERROR_INVALID_VALUE);
  memcpy(value, found, needed);
  return CUDA_SUCCESS;
}

static CUresult core_set(const orion_context* context, unsigned id, const void* value, size_t* size_bytes) {
  ORION_REQUIRE(id > 0 && id < CU_COREDUMP_MAX && size_bytes != NULL, CUDA_ERROR_INVALID_VALUE);
  const size_t bytes = core_bytes(id);
  if (value == NULL) {
    *size_bytes = bytes;
    return CUDA_SUCCESS;
  }
  if (is_name(id)) {
    ORION_REQUIRE(*size_bytes != 0 && strnlen(value, *size_bytes) < CORE_NAME_BYTES, CUDA_ERROR_INVALID_VALUE);
  } else {
    ORION_REQUIRE(*size_bytes >= bytes, CUDA_ERROR_INVALID_VALUE);
  }
  if (id == CU_COREDUMP_ENABLE_ON_EXCEPTION && *(const uint8_t*)value != 0) {
    orion_log(ORION_LOG_WARN, "core dumps of the GPU are not written (docs/limits.md)");
  }
  pthread_mutex_lock(&core_mutex);
  core_settings* to = context == NULL ? &core_of_all : core_settings_of(context, true);
  if (to != NULL) {
    if (context != NULL) to->context_id = context->id;
    if (is_name(id)) {
      const size_t length = strnlen(value, *size_bytes);
      memcpy(core_place(to, id), value, length);
      ((char*)core_place(to, id))[length] = 0;
    } else {
      memcpy(core_place(to, id), value, bytes);
    }
    to->set |= 1u << id;
    to->set_at[id] = orion_next_id();
  }
  pthread_mutex_unlock(&core_mutex);
  return to == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

ORION_API CUresult cuCoredumpGetAttribute(CUcoredumpSettings attribute, void* value, size_t* size_bytes) {
  ORION_ENTER_CONTEXT(context);
  return core_get(context, attribute, value, size_bytes);
}

ORION_API CUresult cuCoredumpGetAttributeGlobal(CUcoredumpSettings attribute, void* value, size_t* size_bytes) {
  ORION_ENTER();
  return core_get(NULL, attribute, value, size_bytes);
}

ORION_API CUresult cuCoredumpSetAttribute(CUcoredumpSettings attribute, void* value, size_t* size_bytes) {
  ORION_ENTER_CONTEXT(context);
  // There is one pipe for the process. cuda.h has 800 for both; the driver answers 1 to the first.
  ORION_REQUIRE(attribute != CU_COREDUMP_ENABLE_USER_TRIGGER, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(attribute != CU_COREDUMP_PIPE, CUDA_ERROR_NOT_PERMITTED);
  return core_set(context, attribute, value, size_bytes);
}

ORION_API CUresult cuCoredumpSetAttributeGlobal(CUcoredumpSettings attribute, void* value, size_t* size_bytes) {
  ORION_ENTER();
  return core_set(NULL, attribute, value, size_bytes);
}

// ------------------------------------------------------------------------------------------------ small ones

/// As the driver has it since CUDA 12.0.
ORION_API CUresult cuProfilerInitialize(const char* configuration, const char* output, CUoutput_mode mode) {
  (void)configuration, (void)output, (void)mode;
  return CUDA_ERROR_NOT_SUPPORTED;
}

/// No device on the client's host writes into the GPU's memory: there is nothing to flush.
ORION_API CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target,
                                              CUflushGPUDirectRDMAWritesScope scope) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(target == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX &&
                    (scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER ||
                     scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES),
                CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
}

static CUresult no_atomics(unsigned* capabilities, const CUatomicOperation* operations, unsigned count) {
  ORION_REQUIRE(capabilities != NULL && operations != NULL && count != 0, CUDA_ERROR_INVALID_VALUE);
  for (unsigned i = 0; i < count; i++) ORION_REQUIRE(operations[i] < CU_ATOMIC_OPERATION_MAX, CUDA_ERROR_INVALID_VALUE);
  memset(capabilities, 0, count * sizeof *capabilities);
  return CUDA_SUCCESS;
}

/// None that the program's processor takes part in: it may be on the other side of a network.
ORION_API CUresult cuDeviceGetHostAtomicCapabilities(unsigned int* capabilities, const CUatomicOperation* operations,
                                                     unsigned int count, CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  return no_atomics(capabilities, operations, count);
}

/// None is promised: a program that finds none keeps to memory of one device, which is right everywhere.
ORION_API CUresult cuDeviceGetP2PAtomicCapabilities(unsigned int* capabilities, const CUatomicOperation* operations,
                                                    unsigned int count, CUdevice source, CUdevice destination) {
  ORION_ENTER();
  ORION_REQUIRE(
      orion_device_state_at(source) != NULL && orion_device_state_at(destination) != NULL && source != destination,
      CUDA_ERROR_INVALID_DEVICE);
  return no_atomics(capabilities, operations, count);
}
