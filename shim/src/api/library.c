// cuLibrary*: the worker's driver holds the library itself, so that loading is lazy, errors come when they do natively,
// and no context is needed. The code is sent to a session when it is first used there; the first one at the load.
#include "library.h"

#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "upload.h"
#include "variable.h"
#include "virtual_memory.h"

static orion_table libraries = ORION_TABLE(ORION_TAG_LIBRARY, orion_library, 65536, 16);

orion_library* orion_library_find(CUlibrary handle, uint32_t* generation) {
  return orion_table_find(&libraries, (uint64_t)(uintptr_t)handle, generation);
}

/// Sessions are told apart by the lowest device of each.
uint32_t orion_session_number(const orion_session* session) {
  for (uint32_t i = 0; i < orion_device_states(); i++) {
    if (orion_device_state_at((CUdevice)i)->info->session == session) return i;
  }
  return 0;
}

static bool has_one_session(void) {
  for (uint32_t i = 1; i < orion_device_states(); i++) {
    if (orion_device_state_at((CUdevice)i)->info->session != orion_device_state_at(0)->info->session) return false;
  }
  return true;
}

/// Under the library's mutex, or before it is published.
static CUresult load_on(orion_library* library, orion_session* session) {
  const uint64_t bit = 1ull << orion_session_number(session);
  if ((library->loaded & bit) != 0) return CUDA_SUCCESS;
  orion_jit* jit = &library->jit;
  orion_shipment shipment;
  CUresult result =
      orion_shipment_make(&shipment, session, &library->image, (uint64_t)jit->info_log_bytes + jit->error_log_bytes);
  if (result != CUDA_SUCCESS) return result;
  orion_op_library_load op = {.op = {.code = ORION_OP_LIBRARY_LOAD, .bulk_seq = shipment.bulk_seq},
                              .library = library->entry.index,
                              .image = shipment.image,
                              .image_off = shipment.image_off,
                              .image_bytes = library->image.bytes,
                              .log_off = shipment.log_off,
                              .info_log_bytes = jit->info_log_bytes,
                              .error_log_bytes = jit->error_log_bytes,
                              .option_count = jit->pair_count};
  orion_reply_library_load reply = {0};
  result = orion_call(session, &op.op, sizeof op, jit->pairs, jit->pair_count * (uint32_t)sizeof jit->pairs[0], &reply,
                      sizeof reply, NULL);
  orion_jit_finish(jit, shipment.logs, reply.info_log_bytes, reply.error_log_bytes);
  orion_shipment_end(&shipment);
  if (result == CUDA_SUCCESS) library->loaded |= bit;
  return result;
}

CUresult orion_library_load_on(orion_library* library, orion_session* session) {
  pthread_mutex_lock(&library->mutex);
  const CUresult result = load_on(library, session);
  pthread_mutex_unlock(&library->mutex);
  return result;
}

/// Where a question without a context goes: the current context's session, else that of device 0.
orion_session* orion_library_session(void) {
  orion_context* context;
  if (orion_current_any(&context) == CUDA_SUCCESS) return context->session;
  return orion_device_state_at(0)->info->session;
}

static CUresult check_options(unsigned int count, const CUlibraryOption* options, void* const* values,
                              bool* preserved) {
  ORION_REQUIRE(count == 0 || options != NULL, CUDA_ERROR_INVALID_VALUE);
  *preserved = false;
  for (unsigned int i = 0; i < count; i++) {
    ORION_REQUIRE((unsigned)options[i] < CU_LIBRARY_NUM_OPTIONS, CUDA_ERROR_INVALID_VALUE);
    if (options[i] == CU_LIBRARY_BINARY_IS_PRESERVED && values != NULL) *preserved = values[i] != NULL;
  }
  return CUDA_SUCCESS;
}

static void drop_code(orion_library* library) {
  free(library->copy);
  library->copy = NULL;
  library->image = (orion_image){0};
}

static CUresult load_data(CUlibrary* handle, const void* code, CUjit_option* options, void** values,
                          unsigned int option_count, bool preserved) {
  orion_image image = {0};
  image.bytes = orion_image_bytes(code, &image.data);
  ORION_REQUIRE(image.bytes != 0, CUDA_ERROR_INVALID_IMAGE);
  orion_jit jit;
  CUresult result = orion_jit_parse(&jit, option_count, options, values);
  if (result != CUDA_SUCCESS) return result;
  orion_library* library = orion_table_take(&libraries);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  library->image = image;
  library->jit = jit;
  library->loaded = 0;
  library->kernels = NULL;
  library->counted = false;
  memset(library->modules, 0, sizeof library->modules);
  result = load_on(library, orion_library_session());
  // Log buffers and their sizes are the program's only during the call.
  library->jit.info_log = library->jit.error_log = NULL;
  library->jit.info_log_bytes = library->jit.error_log_bytes = 0;
  library->jit.info_size_at = library->jit.error_size_at = library->jit.wall_time_at = UINT32_MAX;
  library->jit.values = NULL;
  if (result == CUDA_SUCCESS && has_one_session()) {
    drop_code(library);
  } else if (result == CUDA_SUCCESS && !preserved) {
    library->copy = malloc(image.bytes);
    if (library->copy == NULL) result = CUDA_ERROR_OUT_OF_MEMORY;
    if (library->copy != NULL) memcpy(library->copy, image.data, image.bytes);
    library->image.data = library->copy;
  }
  if (result != CUDA_SUCCESS) {
    drop_code(library);
    orion_table_give(&libraries, library);
    return result;
  }
  if (library->handle == 0) pthread_mutex_init(&library->mutex, NULL);
  library->handle = orion_table_publish(&libraries, library);
  *handle = (CUlibrary)(uintptr_t)library->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLibraryLoadData(CUlibrary* handle, const void* code, CUjit_option* options, void** values,
                                     unsigned int option_count, CUlibraryOption* library_options, void** library_values,
                                     unsigned int library_option_count) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && code != NULL, CUDA_ERROR_INVALID_VALUE);
  bool preserved;
  const CUresult result = check_options(library_option_count, library_options, library_values, &preserved);
  return result == CUDA_SUCCESS ? load_data(handle, code, options, values, option_count, preserved) : result;
}

ORION_API CUresult cuLibraryLoadFromFile(CUlibrary* handle, const char* path, CUjit_option* options, void** values,
                                         unsigned int option_count, CUlibraryOption* library_options,
                                         void** library_values, unsigned int library_option_count) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && path != NULL, CUDA_ERROR_INVALID_VALUE);
  bool preserved;
  CUresult result = check_options(library_option_count, library_options, library_values, &preserved);
  if (result != CUDA_SUCCESS) return result;
  uint8_t* code;
  uint64_t bytes;
  result = orion_read_file(path, &code, &bytes);
  if (result != CUDA_SUCCESS) return result;
  const void* data = NULL;
  result = orion_image_bytes(code, &data) > bytes + 1 ? CUDA_ERROR_INVALID_IMAGE
                                                      : load_data(handle, code, options, values, option_count, false);
  free(code);
  return result;
}

ORION_API CUresult cuLibraryUnload(CUlibrary handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_library* library = orion_library_find(handle, &generation);
  if (library == NULL || !orion_table_retire(&libraries, library, generation)) return CUDA_ERROR_INVALID_HANDLE;
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&library->mutex);
  for (uint32_t i = 0; i < ORION_CONTEXTS; i++) {
    if (library->modules[i] != NULL) (void)orion_module_unload(library->modules[i]);
  }
  orion_kernels_end(library);
  orion_variables_end(library->handle);
  for (uint32_t i = 0; i < orion_device_states(); i++) {
    if ((library->loaded & 1ull << i) == 0) continue;
    orion_op_library_unload op = {.op = {.code = ORION_OP_LIBRARY_UNLOAD}, .library = library->entry.index};
    orion_device_state* device = orion_device_state_at((CUdevice)i);
    const CUresult sent = orion_submit(device->info->session, &op.op, sizeof op, NULL, 0);
    orion_memory_released(device->peer);
    if (sent != CUDA_SUCCESS) result = sent;
  }
  drop_code(library);
  pthread_mutex_unlock(&library->mutex);
  orion_table_give(&libraries, library);
  return result;
}

/// Under the library's mutex.
static CUresult module_in(orion_library* library, orion_context* context, orion_module** module) {
  CUmodule* handle = &library->modules[context->entry.index];
  if (*handle != NULL && orion_module_of(*handle, module) == CUDA_SUCCESS && (*module)->context == context) {
    return CUDA_SUCCESS;
  }
  CUresult result = load_on(library, context->session);
  if (result != CUDA_SUCCESS) return result;
  orion_module* made = orion_object_take(&orion_modules);
  ORION_REQUIRE(made != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  orion_op_library_get_module op = {
      .op = {.code = ORION_OP_LIBRARY_GET_MODULE, .context = (uint16_t)context->entry.index},
      .library = library->entry.index,
      .module = made->entry.index};
  orion_reply_library_get_module reply = {0};
  result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_modules, made);
    return result;
  }
  *handle = orion_module_publish(made, context, reply.function_count, library->handle);
  *module = made;
  return CUDA_SUCCESS;
}

CUresult orion_library_module(orion_library* library, orion_context* context, orion_module** module) {
  pthread_mutex_lock(&library->mutex);
  const CUresult result = module_in(library, context, module);
  pthread_mutex_unlock(&library->mutex);
  return result;
}

ORION_API CUresult cuLibraryGetModule(CUmodule* module_handle, CUlibrary handle) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(module_handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_library* library = orion_library_find(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  orion_module* module;
  const CUresult result = orion_library_module(library, context, &module);
  if (result == CUDA_SUCCESS) *module_handle = (CUmodule)(uintptr_t)module->handle;
  return result;
}

ORION_API CUresult cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(name != NULL && (address != NULL || bytes != NULL), CUDA_ERROR_INVALID_VALUE);
  orion_library* library = orion_library_find(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  orion_module* module;
  uint64_t start, size;
  CUresult result = orion_library_module(library, context, &module);
  if (result == CUDA_SUCCESS) result = orion_module_global(module, name, &start, &size);
  if (result != CUDA_SUCCESS) return result;
  if (address != NULL) *address = start;
  if (bytes != NULL) *bytes = size;
  return CUDA_SUCCESS;
}

enum { LOOKUP_MANAGED = 0, LOOKUP_UNIFIED = 1 };

/// In a context, or (NULL) without any.
static CUresult lookup(CUlibrary handle, const char* name, uint32_t kind, const orion_context* context,
                       orion_reply_library_lookup* reply) {
  orion_session* session = context != NULL ? context->session : orion_library_session();
  orion_library* library = orion_library_find(handle, NULL);
  ORION_REQUIRE(library != NULL, CUDA_ERROR_INVALID_HANDLE);
  const size_t name_bytes = strlen(name);
  ORION_REQUIRE(name_bytes != 0 && name_bytes <= ORION_NAME_LIMIT_BYTES, CUDA_ERROR_NOT_FOUND);
  const CUresult result = orion_library_load_on(library, session);
  if (result != CUDA_SUCCESS) return result;
  const uint16_t index = context != NULL ? (uint16_t)context->entry.index : 0;
  orion_op_library_lookup op = {
      .op = {.code = ORION_OP_LIBRARY_LOOKUP, .context = index}, .library = library->entry.index, .kind = kind};
  return orion_call(session, &op.op, sizeof op, name, (uint32_t)name_bytes, reply, sizeof *reply, NULL);
}

ORION_API CUresult cuLibraryGetManaged(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(name != NULL && (address != NULL || bytes != NULL), CUDA_ERROR_INVALID_VALUE);
  orion_reply_library_lookup reply = {0};
  CUresult result = lookup(handle, name, LOOKUP_MANAGED, NULL, &reply);
  if (result != CUDA_SUCCESS) return result;
  result = orion_variable_add(orion_library_session(), (uint64_t)(uintptr_t)handle, NULL, name, reply.address,
                              reply.size_bytes);
  if (result != CUDA_SUCCESS) return result;
  if (address != NULL) *address = reply.address;
  if (bytes != NULL) *bytes = reply.size_bytes;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuLibraryGetUnifiedFunction(void** address, CUlibrary handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(address != NULL && name != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_reply_library_lookup reply = {0};
  orion_context* context;
  CUresult result = orion_current(&context);
  if (result == CUDA_SUCCESS) result = lookup(handle, name, LOOKUP_UNIFIED, context, &reply);
  if (result == CUDA_SUCCESS) *address = (void*)(uintptr_t)reply.address;  // NOLINT(performance-no-int-to-ptr)
  return result;
}
