#include "kernel.h"

#include <stdlib.h>
#include <string.h>

static orion_table kernels = ORION_TABLE(ORION_TAG_KERNEL, orion_kernel, 1048576, 16);

static orion_kernel* find_kernel(CUkernel handle) {
  return orion_table_find(&kernels, (uint64_t)(uintptr_t)handle, NULL);
}

void orion_kernels_end(orion_library* library) {
  while (library->kernels != NULL) {
    orion_kernel* kernel = library->kernels;
    library->kernels = kernel->next;
    (void)orion_table_retire(&kernels, kernel, atomic_load(&kernel->entry.generation));
    orion_table_give(&kernels, kernel);  // name and answers stay until the entry's next owner: they were handed out
  }
}

static void forget_answers(orion_kernel* kernel) {
  free(kernel->name);
  free(atomic_load(&kernel->layout));
  atomic_store(&kernel->layout, NULL);
  for (uint32_t i = 0; i < ORION_DEVICES; i++) {
    free(atomic_load(&kernel->devices[i]));
    atomic_store(&kernel->devices[i], NULL);
  }
}

/// Under the library's mutex.
static CUresult make_kernel(orion_library* library, const char* name, orion_kernel** out) {
  orion_kernel* kernel = orion_table_take(&kernels);
  ORION_REQUIRE(kernel != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  if (kernel->devices == NULL) kernel->devices = calloc(ORION_DEVICES, sizeof *kernel->devices);
  char* copy = strdup(name);
  if (kernel->devices == NULL || copy == NULL) {
    orion_table_give(&kernels, kernel);
    free(copy);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  forget_answers(kernel);
  kernel->name = copy;
  kernel->library = library->handle;
  kernel->bound = 0;
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) atomic_store_explicit(&kernel->functions[i], 0, memory_order_relaxed);
  kernel->next = library->kernels;
  library->kernels = kernel;
  kernel->handle = orion_table_publish(&kernels, kernel);
  *out = kernel;
  return CUDA_SUCCESS;
}

static orion_kernel* kernel_named(const orion_library* library, const char* name) {
  orion_kernel* kernel = library->kernels;
  while (kernel != NULL && strcmp(kernel->name, name) != 0) kernel = kernel->next;
  return kernel;
}

/// Tells `session` the index of the kernel called `name`. Under the library's mutex.
static CUresult bind(const orion_library* library, orion_session* session, uint32_t index, const char* name) {
  orion_op_library_get_kernel op = {
      .op = {.code = ORION_OP_LIBRARY_GET_KERNEL}, .library = library->entry.index, .kernel = index};
  return orion_call(session, &op.op, sizeof op, name, (uint32_t)strlen(name), NULL, 0, NULL);
}

/// The kernel's library, loaded on `session` and the kernel bound there.
static CUresult prepare(orion_kernel* kernel, orion_session* session, orion_library** out) {
  orion_library* library = orion_library_find((CUlibrary)(uintptr_t)kernel->library, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  *out = library;
  CUresult result = orion_library_load_on(library, session);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t bit = 1ull << orion_session_number(session);
  pthread_mutex_lock(&library->mutex);
  if ((kernel->bound & bit) == 0) {
    result = bind(library, session, kernel->entry.index, kernel->name);
    if (result == CUDA_SUCCESS) kernel->bound |= bit;
  }
  pthread_mutex_unlock(&library->mutex);
  return result;
}

ORION_API CUresult cuLibraryGetKernel(CUkernel* handle, CUlibrary library_handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && name != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library = orion_library_find(library_handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(name[0] != '\0' && strlen(name) <= ORION_NAME_LIMIT_BYTES, CUDA_ERROR_NOT_FOUND);
  orion_session* session = orion_library_session();
  CUresult result = orion_library_load_on(library, session);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&library->mutex);
  orion_kernel* kernel = kernel_named(library, name);
  if (kernel == NULL) {
    result = make_kernel(library, name, &kernel);
    if (result == CUDA_SUCCESS) result = bind(library, session, kernel->entry.index, name);
    if (result == CUDA_SUCCESS) {
      kernel->bound = 1ull << orion_session_number(session);
    } else if (kernel != NULL) {  // no such kernel
      library->kernels = kernel->next;
      (void)orion_table_retire(&kernels, kernel, atomic_load(&kernel->entry.generation));
      orion_table_give(&kernels, kernel);
    }
  }
  if (result == CUDA_SUCCESS) *handle = (CUkernel)(uintptr_t)kernel->handle;
  pthread_mutex_unlock(&library->mutex);
  return result;
}

// ------------------------------------------------------------------------------------------------ enumeration
typedef struct kernel_list {
  orion_library* library;
  CUkernel* handles;
  uint32_t count;
} kernel_list;

static CUresult put_kernel(void* to, const char* name) {
  kernel_list* list = to;
  orion_kernel* kernel = kernel_named(list->library, name);
  const CUresult result = kernel != NULL ? CUDA_SUCCESS : make_kernel(list->library, name, &kernel);
  if (result == CUDA_SUCCESS) list->handles[list->count++] = (CUkernel)(uintptr_t)kernel->handle;
  return result;
}

static CUresult put_nothing(void* to, const char* name) {
  (void)to, (void)name;
  return CUDA_SUCCESS;
}

static CUresult each_kernel(orion_library* library, uint32_t limit, CUresult (*put)(void*, const char*), void* to) {
  orion_session* session = orion_library_session();
  CUresult result = orion_library_load_on(library, session);
  if (result != CUDA_SUCCESS) return result;
  orion_op_library_names op = {.op = {.code = ORION_OP_LIBRARY_NAMES}, .library = library->entry.index};
  uint32_t total = 0;
  pthread_mutex_lock(&library->mutex);
  result = orion_each_name(session, &op.op, sizeof op, &op.skip, limit, put, to, &total);
  if (result == CUDA_SUCCESS) {
    library->counted = true;
    library->kernel_count = total;
  }
  pthread_mutex_unlock(&library->mutex);
  return result;
}

ORION_API CUresult cuLibraryGetKernelCount(unsigned int* count, CUlibrary handle) {
  ORION_ENTER();
  orion_library* library = orion_library_find(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = library->counted ? CUDA_SUCCESS : each_kernel(library, 0, put_nothing, NULL);
  if (result == CUDA_SUCCESS) *count = library->kernel_count;
  return result;
}

ORION_API CUresult cuLibraryEnumerateKernels(CUkernel* handles, unsigned int count, CUlibrary handle) {
  ORION_ENTER();
  orion_library* library = orion_library_find(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(handles != NULL || count == 0, CUDA_ERROR_INVALID_VALUE);
  kernel_list list = {library, handles, 0};
  return count == 0 ? CUDA_SUCCESS : each_kernel(library, count, put_kernel, &list);
}

// ------------------------------------------------------------------------------------------------ functions
static orion_kernel_device* device_answers(const orion_kernel* kernel, uint32_t ordinal) {
  return atomic_load_explicit(&kernel->devices[ordinal], memory_order_acquire);
}

static CUresult function_in(orion_kernel* kernel, orion_context* context, orion_function** function) {
  _Atomic uint64_t* known = &kernel->functions[context->entry.index];
  const uint64_t handle = atomic_load_explicit(known, memory_order_acquire);
  if (handle != 0 && orion_object_find(&orion_functions, (void*)(uintptr_t)handle, function) == CUDA_SUCCESS) {
    return CUDA_SUCCESS;
  }
  orion_library* library;
  orion_module* module;
  CUresult result = prepare(kernel, context->session, &library);
  if (result == CUDA_SUCCESS) result = orion_library_module(library, context, &module);
  if (result == CUDA_SUCCESS) result = orion_module_function(module, kernel->name, kernel->entry.index, function);
  if (result != CUDA_SUCCESS) return result;
  const orion_kernel_device* answers = device_answers(kernel, context->device->ordinal);
  for (uint32_t i = 0; answers != NULL && i < ORION_FUNCTION_ATTRIBUTES; i++) {
    if ((answers->set_mask & 1u << i) == 0) continue;
    const int32_t value = atomic_load_explicit(&answers->attributes[i], memory_order_relaxed);
    if (orion_function_attribute(*function, i) == value) continue;
    (void)orion_function_set_attribute(*function, (CUfunction_attribute)i, value);
  }
  atomic_store(&(*function)->kernel, kernel->handle);
  atomic_store_explicit(known, (*function)->handle, memory_order_release);
  return CUDA_SUCCESS;
}

CUresult orion_kernel_function(CUkernel handle, orion_function** function) {
  orion_kernel* kernel = find_kernel(handle);
  if (kernel == NULL) return CUDA_ERROR_INVALID_HANDLE;
  orion_context* context;
  const CUresult result = orion_current(&context);
  return result == CUDA_SUCCESS ? function_in(kernel, context, function) : result;
}

ORION_API CUresult cuKernelGetFunction(CUfunction* handle, CUkernel kernel) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_function* function;
  const CUresult result = orion_kernel_function(kernel, &function);
  if (result == CUDA_SUCCESS) *handle = (CUfunction)(uintptr_t)function->handle;
  return result;
}

ORION_API CUresult cuKernelGetLibrary(CUlibrary* library, CUkernel handle) {
  ORION_ENTER();
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_kernel* kernel = find_kernel(handle);
  ORION_REQUIRE(kernel != NULL, CUDA_ERROR_INVALID_HANDLE);
  *library = (CUlibrary)(uintptr_t)kernel->library;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuKernelGetName(const char** name, CUkernel handle) {
  ORION_ENTER();
  ORION_REQUIRE(name != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_kernel* kernel = find_kernel(handle);
  ORION_REQUIRE(kernel != NULL, CUDA_ERROR_INVALID_HANDLE);
  *name = kernel->name;
  return CUDA_SUCCESS;
}

// ------------------------------------------------------------------------------------------------ attributes, layout
/// Asks for all attributes at once. Another thread may do the same: the first answer stays.
static CUresult ask_attributes(orion_kernel* kernel, const orion_device_state* device, orion_kernel_device** out) {
  orion_library* library;
  orion_session* session = device->info->session;
  CUresult result = prepare(kernel, session, &library);
  if (result != CUDA_SUCCESS) return result;
  orion_op_kernel_get_attributes op = {.op = {.code = ORION_OP_KERNEL_GET_ATTRIBUTES},
                                       .kernel = kernel->entry.index,
                                       .device = device->info->remote_ordinal};
  struct {
    orion_reply_kernel_get_attributes head;
    int32_t pairs[2 * ORION_FUNCTION_ATTRIBUTES];
  } reply = {0};
  uint32_t bytes = 0;
  result = orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, &bytes);
  if (result != CUDA_SUCCESS) return result;
  if (bytes < sizeof reply.head || reply.head.attribute_count > (bytes - sizeof reply.head) / 8) {
    return CUDA_ERROR_UNKNOWN;
  }
  orion_kernel_device* made = calloc(1, sizeof *made);
  ORION_REQUIRE(made != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  for (uint32_t i = 0; i < reply.head.attribute_count; i++) {
    const int32_t attribute = reply.pairs[2 * i];
    if (attribute < 0 || attribute >= (int32_t)ORION_FUNCTION_ATTRIBUTES) continue;
    made->mask |= 1u << attribute;
    atomic_store_explicit(&made->attributes[attribute], reply.pairs[2 * i + 1], memory_order_relaxed);
  }
  *out = NULL;
  if (atomic_compare_exchange_strong(&kernel->devices[device->ordinal], out, made)) {
    *out = made;
  } else {
    free(made);
  }
  return CUDA_SUCCESS;
}

static CUresult answers_of(CUkernel handle, CUdevice ordinal, orion_kernel** kernel, orion_device_state** device,
                           orion_kernel_device** answers) {
  *kernel = find_kernel(handle);
  ORION_REQUIRE(*kernel != NULL, CUDA_ERROR_INVALID_HANDLE);
  *device = orion_device_state_at(ordinal);
  ORION_REQUIRE(*device != NULL, CUDA_ERROR_INVALID_DEVICE);
  *answers = device_answers(*kernel, (*device)->ordinal);
  return *answers != NULL ? CUDA_SUCCESS : ask_attributes(*kernel, *device, answers);
}

ORION_API CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel handle, CUdevice ordinal) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && (unsigned)attribute < ORION_FUNCTION_ATTRIBUTES, CUDA_ERROR_INVALID_VALUE);
  orion_kernel* kernel;
  orion_device_state* device;
  orion_kernel_device* answers;
  const CUresult result = answers_of(handle, ordinal, &kernel, &device, &answers);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE((answers->mask & 1u << attribute) != 0, CUDA_ERROR_INVALID_VALUE);
  *value = atomic_load_explicit(&answers->attributes[attribute], memory_order_relaxed);
  return CUDA_SUCCESS;
}

/// Frameworks set the same value before every launch: only a new one travels.
ORION_API CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle, CUdevice ordinal) {
  ORION_ENTER();
  orion_kernel* kernel;
  orion_device_state* device;
  orion_kernel_device* answers;
  CUresult result = answers_of(handle, ordinal, &kernel, &device, &answers);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE((unsigned)attribute < ORION_FUNCTION_ATTRIBUTES, CUDA_ERROR_INVALID_VALUE);
  if ((answers->set_mask & 1u << attribute) != 0 &&
      atomic_load_explicit(&answers->attributes[attribute], memory_order_relaxed) == value) {
    return CUDA_SUCCESS;
  }
  orion_op_kernel_set_attribute op = {.op = {.code = ORION_OP_KERNEL_SET_ATTRIBUTE},
                                      .kernel = kernel->entry.index,
                                      .attribute = (int32_t)attribute,
                                      .value = value,
                                      .device = device->info->remote_ordinal};
  result = orion_call(device->info->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result != CUDA_SUCCESS) return result;
  atomic_store_explicit(&answers->attributes[attribute], value, memory_order_relaxed);
  answers->mask |= 1u << attribute;
  answers->set_mask |= 1u << attribute;
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) {
    orion_function* function;
    const uint64_t known = atomic_load_explicit(&kernel->functions[i], memory_order_acquire);
    if (known == 0 || orion_object_find(&orion_functions, (void*)(uintptr_t)known, &function) != CUDA_SUCCESS) continue;
    if (function->context->device == device) (void)orion_function_set_attribute(function, attribute, value);
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuKernelSetCacheConfig(CUkernel handle, CUfunc_cache config, CUdevice ordinal) {
  ORION_ENTER();
  orion_kernel* kernel = find_kernel(handle);
  ORION_REQUIRE(kernel != NULL, CUDA_ERROR_INVALID_HANDLE);
  const orion_device_state* device = orion_device_state_at(ordinal);
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE((unsigned)config <= CU_FUNC_CACHE_PREFER_EQUAL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library;
  const CUresult result = prepare(kernel, device->info->session, &library);
  if (result != CUDA_SUCCESS) return result;
  orion_op_kernel_set_cache_config op = {.op = {.code = ORION_OP_KERNEL_SET_CACHE_CONFIG},
                                         .kernel = kernel->entry.index,
                                         .config = (uint32_t)config,
                                         .device = device->info->remote_ordinal};
  return orion_submit(device->info->session, &op.op, sizeof op, NULL, 0);
}

static CUresult ask_layout(orion_kernel* kernel, const orion_context* context, orion_kernel_layout** out) {
  orion_session* session = context->session;
  orion_library* library;
  CUresult result = prepare(kernel, session, &library);
  if (result != CUDA_SUCCESS) return result;
  orion_op_kernel_get_params op = {
      .op = {.code = ORION_OP_KERNEL_GET_PARAMS, .context = (uint16_t)context->entry.index},
      .kernel = kernel->entry.index};
  uint8_t* payload = malloc(ORION_REPLY_BYTES);
  ORION_REQUIRE(payload != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  uint32_t bytes = 0;
  orion_reply_kernel_get_params head = {0};
  result = orion_call(session, &op.op, sizeof op, NULL, 0, payload, ORION_REPLY_BYTES, &bytes);
  if (result == CUDA_SUCCESS && bytes < sizeof head) result = CUDA_ERROR_UNKNOWN;
  if (result == CUDA_SUCCESS) memcpy(&head, payload, sizeof head);
  if (result == CUDA_SUCCESS && head.param_count > (bytes - sizeof head) / 8) result = CUDA_ERROR_UNKNOWN;
  if (result == CUDA_SUCCESS) {
    const size_t pair_bytes = (size_t)head.param_count * 8;
    orion_kernel_layout* made = malloc(sizeof *made + pair_bytes);
    *out = NULL;
    if (made == NULL) {
      result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
      made->count = head.param_count;
      memcpy(made->pairs, payload + sizeof head, pair_bytes);
      if (atomic_compare_exchange_strong(&kernel->layout, out, made)) {
        *out = made;
      } else {
        free(made);
      }
    }
  }
  free(payload);
  return result;
}

ORION_API CUresult cuKernelGetParamInfo(CUkernel handle, size_t index, size_t* offset, size_t* bytes) {
  ORION_ENTER_CONTEXT(context);  // unlike its other questions this one needs a context
  orion_kernel* kernel = find_kernel(handle);
  ORION_REQUIRE(kernel != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(offset != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_kernel_layout* layout = atomic_load_explicit(&kernel->layout, memory_order_acquire);
  const CUresult result = layout != NULL ? CUDA_SUCCESS : ask_layout(kernel, context, &layout);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(index < layout->count, CUDA_ERROR_INVALID_VALUE);
  *offset = layout->pairs[index][0];
  if (bytes != NULL) *bytes = layout->pairs[index][1];
  return CUDA_SUCCESS;
}
