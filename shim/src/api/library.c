#include "library.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"

typedef struct orion_kernel {
  orion_entry entry;
  uint64_t library;  // handle
  uint64_t handle;
  char* name;
  struct orion_kernel* next;
  _Atomic uint64_t functions[ORION_CONTEXTS];  // handles, by context index
} orion_kernel;

typedef struct orion_library {
  orion_entry entry;
  uint64_t handle;
  void* code;
  pthread_mutex_t mutex;
  CUmodule modules[ORION_CONTEXTS];
  orion_kernel* kernels;
} orion_library;

static orion_table libraries = ORION_TABLE(ORION_TAG_LIBRARY, orion_library, 65536, 16);
static orion_table kernels = ORION_TABLE(ORION_TAG_KERNEL, orion_kernel, 1048576, 16);

static orion_library* find_library(CUlibrary handle, uint32_t* generation) {
  return orion_table_find(&libraries, (uint64_t)(uintptr_t)handle, generation);
}

static orion_kernel* find_kernel(CUkernel handle) {
  return orion_table_find(&kernels, (uint64_t)(uintptr_t)handle, NULL);
}

/// The library's module in `context`, loaded at first use. Under the library's mutex.
static CUresult module_in(orion_library* library, orion_context* context, uint32_t option_count, CUjit_option* options,
                          void** values, orion_module** module) {
  CUmodule* handle = &library->modules[context->entry.index];
  if (*handle != NULL && orion_module_of(*handle, module) == CUDA_SUCCESS && (*module)->context == context) {
    return CUDA_SUCCESS;
  }
  const CUresult result = orion_module_load(context, library->code, option_count, options, values, handle);
  return result == CUDA_SUCCESS ? orion_module_of(*handle, module) : result;
}

static CUresult current_module(orion_library* library, orion_module** module) {
  orion_context* context;
  CUresult result = orion_current(&context);
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&library->mutex);
  result = module_in(library, context, 0, NULL, NULL, module);
  pthread_mutex_unlock(&library->mutex);
  return result;
}

ORION_API CUresult cuLibraryLoadData(CUlibrary* handle, const void* code, CUjit_option* options, void** values,
                                     unsigned int option_count, CUlibraryOption* library_options, void** library_values,
                                     unsigned int library_option_count) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && code != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(library_option_count == 0 || library_options != NULL, CUDA_ERROR_INVALID_VALUE);
  (void)library_values;  // they concern how the driver may share memory with the program; the code is copied
  const void* data = NULL;
  const uint64_t bytes = orion_image_bytes(code, &data);
  ORION_REQUIRE(bytes != 0, CUDA_ERROR_INVALID_IMAGE);
  orion_library* library = orion_table_take(&libraries);
  void* copy = malloc(bytes);
  if (library == NULL || copy == NULL) {
    if (library != NULL) orion_table_give(&libraries, library);
    free(copy);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  memcpy(copy, data, bytes);
  if (library->handle == 0) pthread_mutex_init(&library->mutex, NULL);
  library->code = copy;
  library->kernels = NULL;
  memset(library->modules, 0, sizeof library->modules);
  orion_context* context;
  if (orion_current(&context) == CUDA_SUCCESS) {  // errors of the image show now where a context is there to ask
    orion_module* module;
    const CUresult result = module_in(library, context, option_count, options, values, &module);
    if (result != CUDA_SUCCESS) {
      free(copy);
      orion_table_give(&libraries, library);
      return result;
    }
  }
  library->handle = orion_table_publish(&libraries, library);
  *handle = (CUlibrary)(uintptr_t)library->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLibraryLoadFromFile(CUlibrary* handle, const char* path, CUjit_option* options, void** values,
                                         unsigned int option_count, CUlibraryOption* library_options,
                                         void** library_values, unsigned int library_option_count) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && path != NULL, CUDA_ERROR_INVALID_VALUE);
  uint8_t* code;
  uint64_t bytes;
  CUresult result = orion_read_file(path, &code, &bytes);
  if (result != CUDA_SUCCESS) return result;
  const void* data = NULL;
  result = orion_image_bytes(code, &data) > bytes + 1
               ? CUDA_ERROR_INVALID_IMAGE
               : cuLibraryLoadData(handle, code, options, values, option_count, library_options, library_values,
                                   library_option_count);
  free(code);
  return result;
}

ORION_API CUresult cuLibraryUnload(CUlibrary handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_library* library = find_library(handle, &generation);
  if (library == NULL || !orion_table_retire(&libraries, library, generation)) return CUDA_ERROR_INVALID_HANDLE;
  pthread_mutex_lock(&library->mutex);
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) {
    if (library->modules[i] != NULL) (void)orion_module_unload(library->modules[i]);
  }
  while (library->kernels != NULL) {
    orion_kernel* kernel = library->kernels;
    library->kernels = kernel->next;
    (void)orion_table_retire(&kernels, kernel, atomic_load(&kernel->entry.generation));
    orion_table_give(&kernels, kernel);  // the name stays: cuKernelGetName handed it out
  }
  free(library->code);
  library->code = NULL;
  pthread_mutex_unlock(&library->mutex);
  orion_table_give(&libraries, library);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLibraryGetModule(CUmodule* module_handle, CUlibrary handle) {
  ORION_ENTER();
  ORION_REQUIRE(module_handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library = find_library(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  orion_module* module;
  const CUresult result = current_module(library, &module);
  if (result == CUDA_SUCCESS) *module_handle = (CUmodule)(uintptr_t)module->handle;
  return result;
}

ORION_API CUresult cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(name != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library = find_library(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  orion_module* module;
  uint64_t start, size;
  CUresult result = current_module(library, &module);
  if (result == CUDA_SUCCESS) result = orion_module_global(module, name, &start, &size);
  if (result != CUDA_SUCCESS) return result;
  if (address != NULL) *address = start;
  if (bytes != NULL) *bytes = size;
  return CUDA_SUCCESS;
}

/// Under the library's mutex.
static CUresult make_kernel(orion_library* library, const char* name, orion_kernel** out) {
  orion_kernel* kernel = orion_table_take(&kernels);
  char* copy = strdup(name);
  if (kernel == NULL || copy == NULL) {
    if (kernel != NULL) orion_table_give(&kernels, kernel);
    free(copy);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  free(kernel->name);
  kernel->name = copy;
  kernel->library = library->handle;
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) atomic_store_explicit(&kernel->functions[i], 0, memory_order_relaxed);
  kernel->next = library->kernels;
  library->kernels = kernel;
  kernel->handle = orion_table_publish(&kernels, kernel);
  *out = kernel;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLibraryGetKernel(CUkernel* handle, CUlibrary library_handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && name != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library = find_library(library_handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  pthread_mutex_lock(&library->mutex);
  CUresult result = CUDA_SUCCESS;
  orion_kernel* kernel = library->kernels;
  while (kernel != NULL && strcmp(kernel->name, name) != 0) kernel = kernel->next;
  if (kernel == NULL) {
    orion_context* context;
    orion_module* module;
    orion_function* function;
    result = orion_current(&context);
    if (result == CUDA_SUCCESS) result = module_in(library, context, 0, NULL, NULL, &module);
    if (result == CUDA_SUCCESS) result = orion_module_function(module, name, &function);
    if (result == CUDA_SUCCESS) result = make_kernel(library, name, &kernel);
    if (result == CUDA_SUCCESS) atomic_store(&kernel->functions[context->entry.index], function->handle);
  }
  if (result == CUDA_SUCCESS) *handle = (CUkernel)(uintptr_t)kernel->handle;
  pthread_mutex_unlock(&library->mutex);
  return result;
}

static CUresult function_in(orion_kernel* kernel, orion_context* context, orion_function** function) {
  _Atomic uint64_t* known = &kernel->functions[context->entry.index];
  const uint64_t handle = atomic_load_explicit(known, memory_order_acquire);
  if (handle != 0 && orion_object_find(&orion_functions, (void*)(uintptr_t)handle, function) == CUDA_SUCCESS) {
    return CUDA_SUCCESS;
  }
  orion_library* library = find_library((CUlibrary)(uintptr_t)kernel->library, NULL);
  if (library == NULL) return CUDA_ERROR_INVALID_HANDLE;
  orion_module* module;
  pthread_mutex_lock(&library->mutex);
  CUresult result = module_in(library, context, 0, NULL, NULL, &module);
  pthread_mutex_unlock(&library->mutex);
  if (result == CUDA_SUCCESS) result = orion_module_function(module, kernel->name, function);
  if (result == CUDA_SUCCESS) atomic_store_explicit(known, (*function)->handle, memory_order_release);
  return result;
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

/// The kernel's function on `device`: in the current context if it is of that device, else in its primary context.
static CUresult function_on(CUkernel handle, CUdevice ordinal, orion_function** function) {
  orion_kernel* kernel = find_kernel(handle);
  if (kernel == NULL) return CUDA_ERROR_INVALID_HANDLE;
  orion_device_state* device = orion_device_state_at(ordinal);
  if (device == NULL) return CUDA_ERROR_INVALID_DEVICE;
  orion_context* context;
  if (orion_current(&context) != CUDA_SUCCESS || context->device != device) context = orion_primary_of(device);
  if (context == NULL || !atomic_load(&context->active)) return CUDA_ERROR_INVALID_CONTEXT;
  return function_in(kernel, context, function);
}

ORION_API CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel, CUdevice device) {
  ORION_ENTER();
  orion_function* function;
  const CUresult result = function_on(kernel, device, &function);
  return result == CUDA_SUCCESS ? orion_function_get_attribute(function, attribute, value) : result;
}

ORION_API CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
  ORION_ENTER();
  orion_function* function;
  const CUresult result = function_on(kernel, device, &function);
  return result == CUDA_SUCCESS ? orion_function_set_attribute(function, attribute, value) : result;
}

ORION_API CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* bytes) {
  ORION_ENTER();
  orion_function* function;
  const CUresult result = orion_kernel_function(kernel, &function);
  return result == CUDA_SUCCESS ? orion_function_param_info(function, index, offset, bytes) : result;
}
