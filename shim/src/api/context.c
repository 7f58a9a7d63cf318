// Contexts: stacks, the current context, primary references and flags live here; the worker makes and ends them.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "device_output.h"
#include "export/context_storage.h"
#include "memory.h"
#include "relay.h"
#include "share.h"

#define CONTEXT_FLAGS 0xffu

static bool flags_valid(unsigned flags) {
  const unsigned schedule = flags & CU_CTX_SCHED_MASK;
  return (flags & ~CONTEXT_FLAGS) == 0 && (schedule & (schedule - 1)) == 0;
}

static orion_context* find_context(CUcontext handle, uint32_t* generation) {
  return orion_table_find(&orion_contexts, (uint64_t)(uintptr_t)handle, generation);
}

/// A handle that once named a context, now destroyed, is told apart from one that never did.
static CUresult unknown_context(CUcontext handle) {
  const uint64_t value = (uint64_t)(uintptr_t)handle;
  if (value >> 48 != ORION_TAG_CONTEXT || (value & 15) != 0) return CUDA_ERROR_INVALID_CONTEXT;
  const orion_entry* entry = orion_table_at(&orion_contexts, (uint32_t)(value >> 4) & 0xfffff);
  if (entry == NULL || entry->index == 0) return CUDA_ERROR_INVALID_CONTEXT;
  return CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult orion_context_of(CUcontext handle, orion_context** context) {
  if (handle == NULL) return orion_current_any(context);
  *context = find_context(handle, NULL);
  return *context == NULL ? unknown_context(handle) : CUDA_SUCCESS;
}

static bool push(orion_context* context) {
  orion_thread* thread = orion_thread_state();
  if (thread == NULL) return false;
  if (thread->depth == thread->capacity) {
    const uint32_t capacity = thread->capacity == 0 ? 8 : 2 * thread->capacity;
    orion_context_ref* stack = realloc(thread->stack, capacity * sizeof *stack);
    if (stack == NULL) return false;
    thread->stack = stack;
    thread->capacity = capacity;
  }
  const uint32_t generation = atomic_load_explicit(&context->entry.generation, memory_order_relaxed);
  thread->stack[thread->depth++] = (orion_context_ref){context, generation};
  return true;
}

// ------------------------------------------------------------------------------------------------ making and ending

static orion_context* new_context(orion_device_state* device, bool is_primary) {
  orion_context* context = orion_table_take(&orion_contexts);
  if (context == NULL) return NULL;
  if (context->id == 0) pthread_mutex_init(&context->mutex, NULL);
  context->device = device;
  context->session = device->info->session;
  context->is_primary = is_primary;
  context->flags = 0;
  context->id = orion_next_id();
  atomic_store(&context->active, false);
  atomic_store(&context->cache_config, CU_FUNC_CACHE_PREFER_NONE);
  atomic_store(&context->peer_access, 0);
  atomic_store(&context->attachments, 1);
  atomic_store(&context->blocking_streams, 0);
  context->streams = NULL;
  context->retired_count = 0;
  context->heap = NULL;
  context->order.join = NULL;
  context->private_stream = NULL;
  atomic_store(&context->order.gate, NULL);
  orion_stream_prepare_null(context);
  return context;
}

static void forget_limits(orion_context* context) {
  for (unsigned i = 0; i < CU_LIMIT_MAX; i++) atomic_store_explicit(&context->limits[i], 0, memory_order_release);
}

static CUresult open_on_worker(orion_context* context, uint32_t flags) {
  forget_limits(context);
  CUresult result;
  uint32_t bytes = 0;
  if (context->is_primary) {
    orion_op_ctx_primary op = {.op = {.code = ORION_OP_CTX_PRIMARY, .context = (uint16_t)context->entry.index},
                               .device = context->device->info->remote_ordinal,
                               .ctx_flags = flags};
    orion_reply_ctx_primary reply = {0};
    result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, &bytes);
    context->api_version = reply.api_version;
  } else {
    orion_op_ctx_create op = {.op = {.code = ORION_OP_CTX_CREATE, .context = (uint16_t)context->entry.index},
                              .device = context->device->info->remote_ordinal,
                              .ctx_flags = flags};
    orion_reply_ctx_create reply = {0};
    result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, &bytes);
    context->api_version = reply.api_version;
  }
  if (result != CUDA_SUCCESS) return result;
  context->flags = flags;
  atomic_store_explicit(&context->active, true, memory_order_release);
  return CUDA_SUCCESS;
}

/// Ends all that the context holds, on the worker (`code`) and here.
static CUresult end_contents(orion_context* context, uint16_t code) {
  if (orion_device_output_expected(context->session)) (void)orion_context_synchronize(context);
  orion_relay_settle_context(context);
  orion_context_pinned_end(context);
  atomic_store_explicit(&context->active, false, memory_order_release);
  atomic_fetch_add_explicit(&context->epoch, 1, memory_order_acq_rel);
  orion_op_ctx_destroy op = {.op = {.code = code, .context = (uint16_t)context->entry.index}};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  atomic_fetch_add_explicit(&context->ends, 1, memory_order_acq_rel);
  orion_context_imports_end(context);
  orion_context_memory_end(context);
  orion_context_streams_end(context);
  atomic_store(&context->peer_access, 0);
  return result;
}

orion_context* orion_primary_of(orion_device_state* device) {
  orion_context* context = atomic_load_explicit(&device->primary, memory_order_acquire);
  if (context != NULL) return context;
  pthread_mutex_lock(&device->primary_mutex);
  context = atomic_load_explicit(&device->primary, memory_order_relaxed);
  if (context == NULL && (context = new_context(device, true)) != NULL) {
    context->handle = orion_table_publish(&orion_contexts, context);
    atomic_store_explicit(&device->primary, context, memory_order_release);
  }
  pthread_mutex_unlock(&device->primary_mutex);
  return context;
}

ORION_API CUresult cuDevicePrimaryCtxRetain(CUcontext* handle, CUdevice ordinal) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  orion_context* context = orion_primary_of(device);
  ORION_REQUIRE(context != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  pthread_mutex_lock(&device->primary_mutex);
  CUresult result = CUDA_SUCCESS;
  if (!atomic_load(&context->active)) result = open_on_worker(context, device->primary_flags);
  if (result == CUDA_SUCCESS) {
    atomic_fetch_add(&device->primary_references, 1);
    *handle = (CUcontext)(uintptr_t)context->handle;
  }
  pthread_mutex_unlock(&device->primary_mutex);
  return result;
}

ORION_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  ORION_ENTER();
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  CUresult result = CUDA_ERROR_INVALID_CONTEXT;
  if (atomic_load(&device->primary_references) == 1) orion_storage_end(atomic_load(&device->primary));
  pthread_mutex_lock(&device->primary_mutex);
  if (atomic_load(&device->primary_references) > 0) {
    result = CUDA_SUCCESS;
    orion_context* context = atomic_load(&device->primary);
    if (atomic_fetch_sub(&device->primary_references, 1) == 1 && atomic_load(&context->active)) {
      (void)end_contents(context, ORION_OP_CTX_DESTROY);
    }
  }
  pthread_mutex_unlock(&device->primary_mutex);
  return result;
}

ORION_API CUresult cuDevicePrimaryCtxRelease(CUdevice ordinal) { return cuDevicePrimaryCtxRelease_v2(ordinal); }

/// Ends the contents whatever the count, and leaves the count: a later release still balances an earlier retain.
ORION_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
  ORION_ENTER();
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  CUresult result = CUDA_SUCCESS;
  orion_context* context = atomic_load(&device->primary);
  if (context != NULL && atomic_load(&context->active)) orion_storage_end(context);
  pthread_mutex_lock(&device->primary_mutex);
  context = atomic_load(&device->primary);
  if (context != NULL && atomic_load(&context->active)) result = end_contents(context, ORION_OP_CTX_DESTROY);
  pthread_mutex_unlock(&device->primary_mutex);
  return result;
}

ORION_API CUresult cuDevicePrimaryCtxReset(CUdevice ordinal) { return cuDevicePrimaryCtxReset_v2(ordinal); }

ORION_API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned int flags) {
  ORION_ENTER();
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(flags_valid(flags), CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&device->primary_mutex);
  device->primary_flags = flags;
  orion_context* context = atomic_load(&device->primary);
  if (context != NULL) context->flags = flags;
  pthread_mutex_unlock(&device->primary_mutex);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned int flags) {
  ORION_COUNTED();

  return cuDevicePrimaryCtxSetFlags_v2(ordinal, flags);
}

ORION_API CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned int* flags, int* active) {
  ORION_ENTER();
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(flags != NULL && active != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_context* context = atomic_load_explicit(&device->primary, memory_order_acquire);
  *flags = device->primary_flags;
  *active = context != NULL && atomic_load_explicit(&context->active, memory_order_acquire);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxCreate_v2(CUcontext* handle, unsigned int flags, CUdevice ordinal) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && flags_valid(flags), CUDA_ERROR_INVALID_VALUE);
  orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  orion_context* context = new_context(device, false);
  ORION_REQUIRE(context != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  CUresult result = open_on_worker(context, flags);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_contexts, context);
    return result;
  }
  context->handle = orion_table_publish(&orion_contexts, context);
  if (!push(context)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = (CUcontext)(uintptr_t)context->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxCreate(CUcontext* handle, unsigned int flags, CUdevice ordinal) {
  ORION_COUNTED();

  return cuCtxCreate_v2(handle, flags, ordinal);
}

ORION_API CUresult cuCtxCreate_v3(CUcontext* handle, CUexecAffinityParam* affinity, int affinity_count,
                                  unsigned int flags, CUdevice ordinal) {
  ORION_ENTER();
  ORION_REQUIRE(affinity_count == 0 || affinity != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(affinity_count == 0, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
  return cuCtxCreate_v2(handle, flags, ordinal);
}

ORION_API CUresult cuCtxCreate_v4(CUcontext* handle, CUctxCreateParams* parameters, unsigned int flags,
                                  CUdevice ordinal) {
  ORION_ENTER();
  if (parameters != NULL && parameters->numExecAffinityParams != 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  if (parameters != NULL && parameters->cigParams != NULL) return CUDA_ERROR_NOT_SUPPORTED;
  return cuCtxCreate_v2(handle, flags, ordinal);
}

ORION_API CUresult cuCtxDestroy_v2(CUcontext handle) {
  ORION_ENTER();
  uint32_t generation = 0;
  orion_context* context = find_context(handle, &generation);
  if (context == NULL) return handle == NULL ? CUDA_ERROR_INVALID_CONTEXT : unknown_context(handle);
  ORION_REQUIRE(!context->is_primary, CUDA_ERROR_INVALID_CONTEXT);
  orion_storage_end(context);
  if (!orion_table_retire(&orion_contexts, context, generation)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  orion_thread* thread = orion_self;
  if (thread != NULL && thread->depth > 0 && thread->stack[thread->depth - 1].context == context &&
      thread->stack[thread->depth - 1].generation == generation) {
    thread->depth--;
  }
  (void)end_contents(context, ORION_OP_CTX_DESTROY);
  orion_table_give(&orion_contexts, context);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxDestroy(CUcontext handle) { return cuCtxDestroy_v2(handle); }

ORION_API CUresult cuCtxAttach(CUcontext* handle, unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(handle != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  atomic_fetch_add(&context->attachments, 1);
  *handle = (CUcontext)(uintptr_t)context->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxDetach(CUcontext handle) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE((uint64_t)(uintptr_t)handle == context->handle, CUDA_ERROR_INVALID_CONTEXT);
  if (atomic_load(&context->attachments) > 1) {
    atomic_fetch_sub(&context->attachments, 1);
    return CUDA_SUCCESS;
  }
  return cuCtxDestroy_v2(handle);
}

// ------------------------------------------------------------------------------------------------ the current context

ORION_API CUresult cuCtxPushCurrent_v2(CUcontext handle) {
  ORION_ENTER();
  orion_context* context = find_context(handle, NULL);
  if (context == NULL) return handle == NULL ? CUDA_ERROR_INVALID_CONTEXT : unknown_context(handle);
  return push(context) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

ORION_API CUresult cuCtxPushCurrent(CUcontext handle) {
  ORION_COUNTED();
  return cuCtxPushCurrent_v2(handle);
}

/// The handle under which the thread knows the context, also when that is destroyed meanwhile.
static CUcontext handle_of(const orion_context_ref* reference) {
  return (CUcontext)(uintptr_t)orion_handle_of(ORION_TAG_CONTEXT, reference->context->entry.index,
                                               reference->generation);
}

ORION_API CUresult cuCtxPopCurrent_v2(CUcontext* handle) {
  ORION_ENTER();
  orion_thread* thread = orion_self;
  ORION_REQUIRE(thread != NULL && thread->depth > 0, CUDA_ERROR_INVALID_CONTEXT);
  thread->depth--;
  if (handle != NULL) *handle = handle_of(&thread->stack[thread->depth]);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxPopCurrent(CUcontext* handle) { return cuCtxPopCurrent_v2(handle); }

ORION_API CUresult cuCtxSetCurrent(CUcontext handle) {
  ORION_ENTER();
  orion_thread* thread = orion_thread_state();
  ORION_REQUIRE(thread != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  if (handle == NULL) {
    if (thread->depth > 0) thread->depth--;
    return CUDA_SUCCESS;
  }
  uint32_t generation = 0;
  orion_context* context = find_context(handle, &generation);
  if (context == NULL) return unknown_context(handle);
  if (thread->depth == 0) return push(context) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
  thread->stack[thread->depth - 1] = (orion_context_ref){context, generation};
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetCurrent(CUcontext* handle) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_thread* thread = orion_self;
  *handle = thread == NULL || thread->depth == 0 ? NULL : handle_of(&thread->stack[thread->depth - 1]);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext handle) {
  ORION_ENTER();
  orion_context* context;
  const CUresult result = orion_context_of(handle, &context);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_VALUE);
  *device = (CUdevice)context->device->ordinal;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetDevice(CUdevice* device) { return cuCtxGetDevice_v2(device, NULL); }

ORION_API CUresult cuCtxGetFlags(unsigned int* flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(flags != NULL, CUDA_ERROR_INVALID_VALUE);
  *flags = context->flags | CU_CTX_MAP_HOST;  // of every context since CUDA 3.2
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxSetFlags(unsigned int flags) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(flags_valid(flags), CUDA_ERROR_INVALID_VALUE);
  context->flags = flags;
  if (context->is_primary) context->device->primary_flags = flags;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetId(CUcontext handle, unsigned long long* id) {
  ORION_ENTER();
  orion_context* context;
  const CUresult result = orion_context_of(handle, &context);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(id != NULL, CUDA_ERROR_INVALID_VALUE);
  *id = context->id;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetApiVersion(CUcontext handle, unsigned int* version) {
  ORION_ENTER();
  orion_context* context;
  const CUresult result = orion_context_of(handle, &context);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(version != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(atomic_load(&context->active), CUDA_ERROR_INVALID_CONTEXT);
  *version = context->api_version;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxSynchronize(void) {
  ORION_ENTER_CONTEXT(context);
  const CUresult unsafe = orion_capture_check_context(context);
  return unsafe == CUDA_SUCCESS ? orion_context_synchronize(context) : unsafe;
}

ORION_API CUresult cuCtxSynchronize_v2(CUcontext handle) {
  ORION_ENTER();
  orion_context* context;
  CUresult result = orion_context_of(handle, &context);
  if (result == CUDA_SUCCESS) result = orion_usable(context);
  if (result == CUDA_SUCCESS) result = orion_capture_check_context(context);
  return result == CUDA_SUCCESS ? orion_context_synchronize(context) : result;
}

// ------------------------------------------------------------------------------------------------ limits and hints

ORION_API CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE((unsigned)limit < CU_LIMIT_MAX, CUDA_ERROR_INVALID_VALUE);
  orion_op_ctx_set_limit op = {.op = {.code = ORION_OP_CTX_SET_LIMIT, .context = (uint16_t)context->entry.index},
                               .limit = (uint32_t)limit,
                               .value = value};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  forget_limits(context);  // the driver rounds, and one limit may move another
  return result;
}

/// cuBLASLt asks before each product (24 times in one BERT inference): the first answer is kept.
ORION_API CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(value != NULL && (unsigned)limit < CU_LIMIT_MAX, CUDA_ERROR_INVALID_VALUE);
  const uint64_t known = atomic_load_explicit(&context->limits[limit], memory_order_acquire);
  if (known != 0) {
    *value = known - 1;
    return CUDA_SUCCESS;
  }
  orion_op_ctx_get_limit op = {.op = {.code = ORION_OP_CTX_GET_LIMIT, .context = (uint16_t)context->entry.index},
                               .limit = (uint32_t)limit};
  orion_reply_ctx_get_limit reply = {0};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) return result;
  *value = reply.value;
  atomic_store_explicit(&context->limits[limit], reply.value + 1, memory_order_release);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetCacheConfig(CUfunc_cache* config) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(config != NULL, CUDA_ERROR_INVALID_VALUE);
  *config = (CUfunc_cache)atomic_load(&context->cache_config);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE((unsigned)config <= CU_FUNC_CACHE_PREFER_EQUAL, CUDA_ERROR_INVALID_VALUE);
  orion_op_ctx_set_cache_config op = {
      .op = {.code = ORION_OP_CTX_SET_CACHE_CONFIG, .context = (uint16_t)context->entry.index},
      .config = (uint32_t)config};
  const CUresult result = orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  if (result == CUDA_SUCCESS) atomic_store(&context->cache_config, (int32_t)config);
  return result;
}

ORION_API CUresult cuCtxGetSharedMemConfig(CUsharedconfig* config) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE(config != NULL, CUDA_ERROR_INVALID_VALUE);
  *config = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE;  // fixed in the hardware since Maxwell
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  ORION_REQUIRE((unsigned)config <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE, CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;  // without effect on all devices that are served
}

ORION_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  ORION_ENTER_CONTEXT(context);
  if (least != NULL) *least = context->device->info->least_priority;
  if (greatest != NULL) *greatest = context->device->info->greatest_priority;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxGetExecAffinity(CUexecAffinityParam* affinity, CUexecAffinityType type) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(affinity != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(type == CU_EXEC_AFFINITY_TYPE_SM_COUNT, CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
  affinity->type = type;
  affinity->param.smCount.val = (unsigned)context->device->info->attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ peer access

static CUresult change_peer_access(CUcontext handle, bool enable) {
  ORION_ENTER_CONTEXT(context);
  orion_context* other = find_context(handle, NULL);
  if (other == NULL || !atomic_load(&other->active)) return CUDA_ERROR_INVALID_CONTEXT;
  // cuda.h says 201; an H100 looks at what the device can do first.
  ORION_REQUIRE(other != context, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
  const uint64_t bit = 1ull << other->entry.index;
  const bool enabled = (atomic_load(&context->peer_access) & bit) != 0;
  if (enable && enabled) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  if (!enable && !enabled) return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
  if (other->session != context->session) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
  orion_op_ctx_enable_peer op = {.op = {.code = enable ? ORION_OP_CTX_ENABLE_PEER : ORION_OP_CTX_DISABLE_PEER,
                                        .context = (uint16_t)context->entry.index},
                                 .peer_context = other->entry.index};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result != CUDA_SUCCESS) return result;
  if (enable) {
    atomic_fetch_or(&context->peer_access, bit);
  } else {
    atomic_fetch_and(&context->peer_access, ~bit);
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
  ORION_ENTER();
  ORION_REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  return change_peer_access(peer, true);
}

ORION_API CUresult cuCtxDisablePeerAccess(CUcontext peer) {
  ORION_COUNTED();
  return change_peer_access(peer, false);
}
