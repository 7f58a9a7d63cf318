// Modules: the image travels once through the arena; functions and globals are asked for once and then known here.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "library.h"
#include "memory.h"
#include "upload.h"
#include "variable.h"
#include "virtual_memory.h"

#define NAME_LIMIT_BYTES 32768u
#define FILE_LIMIT_BYTES (1ull << 32)

CUresult orion_module_of(CUmodule handle, orion_module** module) {
  return orion_object_find(&orion_modules, handle, module);
}

static CUresult load_on_worker(orion_context* context, uint32_t index, orion_image* image, orion_jit* jit,
                               orion_reply_module_load* reply) {
  orion_shipment shipment;
  CUresult result =
      orion_shipment_make(&shipment, context->session, image, (uint64_t)jit->info_log_bytes + jit->error_log_bytes);
  if (result != CUDA_SUCCESS) return result;
  const uint32_t tail_bytes = jit->pair_count * (uint32_t)sizeof jit->pairs[0];
  const uint16_t context_index = (uint16_t)context->entry.index;
  if (shipment.image == ORION_IMAGE_IN_ARENA) {
    orion_op_module_load op = {
        .op = {.code = ORION_OP_MODULE_LOAD, .context = context_index, .bulk_seq = shipment.bulk_seq},
        .module = index,
        .option_count = jit->pair_count,
        .image_off = shipment.image_off,
        .image_bytes = image->bytes,
        .log_off = shipment.log_off,
        .info_log_bytes = jit->info_log_bytes,
        .error_log_bytes = jit->error_log_bytes};
    result = orion_call(context->session, &op.op, sizeof op, jit->pairs, tail_bytes, reply, sizeof *reply, NULL);
  } else {
    orion_op_image_module_load op = {.op = {.code = ORION_OP_IMAGE_MODULE_LOAD, .context = context_index},
                                     .module = index,
                                     .image = shipment.image,
                                     .log_off = shipment.log_off,
                                     .info_log_bytes = jit->info_log_bytes,
                                     .error_log_bytes = jit->error_log_bytes,
                                     .option_count = jit->pair_count};
    result = orion_call(context->session, &op.op, sizeof op, jit->pairs, tail_bytes, reply, sizeof *reply, NULL);
  }
  orion_jit_finish(jit, shipment.logs, reply->info_log_bytes, reply->error_log_bytes);
  orion_shipment_end(&shipment);
  return result;
}

CUmodule orion_module_publish(orion_module* module, orion_context* context, uint32_t function_count, uint64_t library) {
  if (module->handle == 0) pthread_mutex_init(&module->mutex, NULL);
  module->context = context;
  module->epoch = atomic_load(&context->epoch);
  module->function_count = function_count;
  module->library = library;
  atomic_store(&module->functions, NULL);
  while (module->globals != NULL) {  // what an owner left whose context ended
    orion_global* global = module->globals;
    module->globals = global->next;
    free(global->name);
    free(global);
  }
  module->handle = orion_table_publish(&orion_modules, module);
  return (CUmodule)(uintptr_t)module->handle;
}

CUresult orion_module_load(orion_context* context, const void* image, uint32_t option_count, CUjit_option* options,
                           void** values, CUmodule* handle) {
  orion_image sent = {0};
  sent.bytes = orion_image_bytes(image, &sent.data);
  ORION_REQUIRE(sent.bytes != 0, CUDA_ERROR_INVALID_IMAGE);
  orion_jit jit;
  CUresult result = orion_jit_parse(&jit, option_count, options, values);
  if (result != CUDA_SUCCESS) return result;
  orion_module* module = orion_object_take(&orion_modules);
  ORION_REQUIRE(module != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  orion_reply_module_load reply = {0};
  result = load_on_worker(context, module->entry.index, &sent, &jit, &reply);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_modules, module);
    return result;
  }
  *handle = orion_module_publish(module, context, reply.function_count, 0);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned int option_count,
                                      CUjit_option* options, void** values) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(module != NULL && image != NULL, CUDA_ERROR_INVALID_VALUE);
  return orion_module_load(context, image, option_count, options, values, module);
}

ORION_API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ORION_COUNTED();

  return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

ORION_API CUresult cuModuleLoadFatBinary(CUmodule* module, const void* image) {
  ORION_COUNTED();

  return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

CUresult orion_read_file(const char* path, uint8_t** bytes, uint64_t* size) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) return CUDA_ERROR_FILE_NOT_FOUND;
  CUresult result = CUDA_ERROR_INVALID_IMAGE;
  long end = -1;
  *bytes = NULL;
  if (fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) > 0 && (uint64_t)end < FILE_LIMIT_BYTES) {
    rewind(file);
    // Followed by zeros: text becomes a string, and looking at a truncated header stays inside the buffer.
    *bytes = calloc(1, (size_t)end + 64);
    if (*bytes != NULL && fread(*bytes, 1, (size_t)end, file) == (size_t)end) result = CUDA_SUCCESS;
  }
  fclose(file);
  if (result != CUDA_SUCCESS) free(*bytes);
  *size = (uint64_t)end;
  return result;
}

ORION_API CUresult cuModuleLoad(CUmodule* module, const char* path) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(module != NULL && path != NULL, CUDA_ERROR_INVALID_VALUE);
  uint8_t* image;
  uint64_t bytes;
  CUresult result = orion_read_file(path, &image, &bytes);
  if (result != CUDA_SUCCESS) return result;
  const void* data = NULL;
  // Sizes in a file's headers are checked against the file.
  result = orion_image_bytes(image, &data) > bytes + 1 ? CUDA_ERROR_INVALID_IMAGE
                                                       : orion_module_load(context, image, 0, NULL, NULL, module);
  free(image);
  return result;
}

CUresult orion_module_unload(CUmodule handle) {
  uint32_t generation;
  orion_module* module = orion_table_find(&orion_modules, (uint64_t)(uintptr_t)handle, &generation);
  if (module == NULL || !orion_table_retire(&orion_modules, module, generation)) return CUDA_ERROR_INVALID_HANDLE;
  CUresult result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (orion_same_epoch(module->context, module->epoch)) {
    pthread_mutex_lock(&module->mutex);
    for (orion_function* function = atomic_load(&module->functions); function != NULL;) {
      orion_function* next = function->next;
      const uint32_t function_generation = atomic_load(&function->entry.generation);
      if ((function_generation & 1) != 0 && orion_table_retire(&orion_functions, function, function_generation)) {
        orion_table_give(&orion_functions, function);
      }
      function = next;
    }
    atomic_store(&module->functions, NULL);
    for (const orion_global* global = module->globals; global != NULL; global = global->next) {
      orion_remove_global(module->context, global->address);
    }
    pthread_mutex_unlock(&module->mutex);
    orion_variables_end(module->handle);
    orion_op_module_unload op = {
        .op = {.code = ORION_OP_MODULE_UNLOAD, .context = (uint16_t)module->context->entry.index},
        .module = module->entry.index};
    // A library's module goes with LIBRARY_UNLOAD.
    result = module->library != 0 ? CUDA_SUCCESS : orion_submit(module->context->session, &op.op, sizeof op, NULL, 0);
    orion_memory_released(module->context->device->peer);
  }
  orion_table_give(&orion_modules, module);
  return result;
}

ORION_API CUresult cuModuleUnload(CUmodule handle) {
  ORION_ENTER();
  const orion_module* module = orion_table_find(&orion_modules, (uint64_t)(uintptr_t)handle, NULL);
  ORION_REQUIRE(module == NULL || module->library == 0, CUDA_ERROR_NOT_PERMITTED);
  return orion_module_unload(handle);
}

ORION_API CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  ORION_ENTER();
  ORION_REQUIRE(mode != NULL, CUDA_ERROR_INVALID_VALUE);
  const char* wish = getenv("CUDA_MODULE_LOADING");
  *mode = wish != NULL && strcmp(wish, "EAGER") == 0 ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuModuleGetFunctionCount(unsigned int* count, CUmodule handle) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_module* module;
  const CUresult result = orion_module_of(handle, &module);
  if (result == CUDA_SUCCESS) *count = module->function_count;
  return result;
}

CUresult orion_each_name(orion_session* session, orion_op* op, uint32_t op_bytes, uint32_t* skip, uint32_t limit,
                         CUresult (*put)(void* to, const char* name), void* to, uint32_t* total) {
  uint8_t* payload = malloc(ORION_REPLY_BYTES + 1);
  ORION_REQUIRE(payload != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  CUresult result = CUDA_SUCCESS;
  *skip = 0;
  while (result == CUDA_SUCCESS) {
    orion_reply_module_names head;
    uint32_t bytes = 0;
    result = orion_call(session, op, op_bytes, NULL, 0, payload, ORION_REPLY_BYTES, &bytes);
    if (result == CUDA_SUCCESS && bytes < sizeof head) result = CUDA_ERROR_UNKNOWN;
    if (result != CUDA_SUCCESS) break;
    memcpy(&head, payload, sizeof head);
    *total = head.total;
    uint32_t at = sizeof head;
    for (uint32_t i = 0; i < head.count && *skip < limit && result == CUDA_SUCCESS; i++) {
      uint16_t length;
      char name[UINT16_MAX + 1];
      if (bytes - at < sizeof length) result = CUDA_ERROR_UNKNOWN;
      if (result == CUDA_SUCCESS) memcpy(&length, payload + at, sizeof length);
      at += sizeof length;
      if (result == CUDA_SUCCESS && length > bytes - at) result = CUDA_ERROR_UNKNOWN;
      if (result != CUDA_SUCCESS) break;
      memcpy(name, payload + at, length);
      name[length] = '\0';
      at += length;
      ++*skip;
      result = put(to, name);
    }
    if (head.count == 0 || *skip >= limit || *skip >= head.total) break;
  }
  free(payload);
  return result;
}

typedef struct function_list {
  orion_module* module;
  CUfunction* functions;
  uint32_t count;
} function_list;

static CUresult put_function(void* to, const char* name) {
  function_list* list = to;
  orion_function* function;
  const CUresult result = orion_module_function(list->module, name, 0, &function);
  if (result == CUDA_SUCCESS) list->functions[list->count++] = (CUfunction)(uintptr_t)function->handle;
  return result;
}

ORION_API CUresult cuModuleEnumerateFunctions(CUfunction* functions, unsigned int count, CUmodule handle) {
  ORION_ENTER();
  orion_module* module;
  const CUresult result = orion_module_of(handle, &module);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(functions != NULL || count == 0, CUDA_ERROR_INVALID_VALUE);
  if (count == 0) return CUDA_SUCCESS;
  function_list list = {module, functions, 0};
  orion_op_module_names op = {.op = {.code = ORION_OP_MODULE_NAMES, .context = (uint16_t)module->context->entry.index},
                              .module = module->entry.index};
  uint32_t total;
  return orion_each_name(module->context->session, &op.op, sizeof op, &op.skip, count, put_function, &list, &total);
}

ORION_API CUresult cuModuleGetFunction(CUfunction* handle, CUmodule module_handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && name != NULL && name[0] != '\0', CUDA_ERROR_INVALID_VALUE);
  orion_module* module;
  CUresult result = orion_module_of(module_handle, &module);
  if (result != CUDA_SUCCESS) return result;
  orion_function* function;
  result = orion_module_function(module, name, 0, &function);
  if (result == CUDA_SUCCESS) *handle = (CUfunction)(uintptr_t)function->handle;
  return result;
}

CUresult orion_module_global(orion_module* module, const char* name, uint64_t* address, uint64_t* bytes) {
  const size_t name_bytes = strlen(name);
  ORION_REQUIRE(name_bytes != 0 && name_bytes <= NAME_LIMIT_BYTES, CUDA_ERROR_NOT_FOUND);
  pthread_mutex_lock(&module->mutex);
  orion_global* global = module->globals;
  while (global != NULL && strcmp(global->name, name) != 0) global = global->next;
  CUresult result = CUDA_SUCCESS;
  if (global == NULL) {
    orion_op_module_get_global op = {
        .op = {.code = ORION_OP_MODULE_GET_GLOBAL, .context = (uint16_t)module->context->entry.index},
        .module = module->entry.index};
    orion_reply_module_get_global reply = {0};
    result =
        orion_call(module->context->session, &op.op, sizeof op, name, (uint32_t)name_bytes, &reply, sizeof reply, NULL);
    if (result == CUDA_SUCCESS && reply.managed != 0) {
      const uint64_t owner = module->library != 0 ? module->library : module->handle;
      orion_context* bound = module->library != 0 ? NULL : module->context;
      result = orion_variable_add(module->context->session, owner, bound, name, reply.device_address, reply.size_bytes);
    }
    if (result == CUDA_SUCCESS) {
      global = calloc(1, sizeof *global);
      char* copy = strdup(name);
      if (global == NULL || copy == NULL) {
        free(global);
        free(copy);
        result = CUDA_ERROR_OUT_OF_MEMORY;
      } else {
        *global = (orion_global){copy, reply.device_address, reply.size_bytes, module->globals};
        module->globals = global;
        if (reply.managed == 0) orion_add_global(module->context, reply.device_address, reply.size_bytes);
      }
    }
  }
  if (result == CUDA_SUCCESS) {
    *address = global->address;
    *bytes = global->bytes;
  }
  pthread_mutex_unlock(&module->mutex);
  return result;
}

ORION_API CUresult cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule handle, const char* name) {
  ORION_ENTER();
  ORION_REQUIRE(name != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_module* module;
  CUresult result = orion_module_of(handle, &module);
  if (result != CUDA_SUCCESS) return result;
  uint64_t start = 0, size = 0;  // what an unknown name leaves, natively too
  result = orion_module_global(module, name, &start, &size);
  if (address != NULL) *address = start;
  if (bytes != NULL) *bytes = size;
  return result;
}
