// Functions: attributes and parameter layout come with the first look-up; later questions are answered here.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "library.h"

#define NAME_LIMIT_BYTES 32768u

CUresult orion_function_of(CUfunction handle, orion_function** function) {
  if ((uint64_t)(uintptr_t)handle >> 48 == ORION_TAG_KERNEL) return orion_kernel_function((CUkernel)handle, function);
  return orion_object_find(&orion_functions, handle, function);
}

static void store_attributes(orion_function* function, const uint8_t* pairs, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    int32_t pair[2];
    memcpy(pair, pairs + (size_t)i * sizeof pair, sizeof pair);
    if (pair[0] < 0 || pair[0] >= (int32_t)ORION_FUNCTION_ATTRIBUTES) continue;
    atomic_store_explicit(&function->attributes[pair[0]], pair[1], memory_order_relaxed);
    function->attribute_mask |= 1u << pair[0];
  }
}

/// Offsets and sizes in one allocation. They come from another process: packing must stay inside its buffer.
static CUresult store_layout(orion_function* function, const uint8_t* pairs, uint32_t count) {
  uint32_t* layout = malloc(2 * sizeof *layout * (count == 0 ? 1 : count));
  if (layout == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  uint32_t end = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t pair[2];
    memcpy(pair, pairs + (size_t)i * sizeof pair, sizeof pair);
    if (pair[0] > ORION_PARAM_MAX_BYTES || pair[1] > ORION_PARAM_MAX_BYTES - pair[0]) {
      free(layout);
      return CUDA_ERROR_UNKNOWN;
    }
    layout[i] = pair[0];
    layout[count + i] = pair[1];
    if (pair[0] + pair[1] > end) end = pair[0] + pair[1];
  }
  function->param_offsets = layout;
  function->param_sizes = layout + count;
  function->param_count = count;
  function->param_bytes = end;
  function->layout_known = true;
  return CUDA_SUCCESS;
}

static CUresult parse_reply(orion_function* function, const uint8_t* payload, uint32_t bytes) {
  orion_reply_module_get_function counts;
  if (bytes < sizeof counts) return CUDA_ERROR_UNKNOWN;
  memcpy(&counts, payload, sizeof counts);
  payload += sizeof counts;
  bytes -= (uint32_t)sizeof counts;
  if (counts.attribute_count > bytes / 8) return CUDA_ERROR_UNKNOWN;
  store_attributes(function, payload, counts.attribute_count);
  payload += counts.attribute_count * 8;
  bytes -= counts.attribute_count * 8;
  if (counts.param_count == UINT32_MAX) return CUDA_SUCCESS;  // the worker's driver does not tell: only `extra` works
  if (counts.param_count > bytes / 8) return CUDA_ERROR_UNKNOWN;
  return store_layout(function, payload, counts.param_count);
}

static CUresult ask_worker(orion_module* module, orion_function* function, const char* name, uint32_t name_bytes,
                           uint32_t kernel) {
  uint8_t* payload = malloc(ORION_REPLY_BYTES);
  if (payload == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_session* session = module->context->session;
  const uint16_t context = (uint16_t)module->context->entry.index;
  uint32_t bytes = 0;
  CUresult result;
  if (kernel != 0) {
    orion_op_kernel_function op = {.op = {.code = ORION_OP_KERNEL_FUNCTION, .context = context},
                                   .kernel = kernel,
                                   .module = module->entry.index,
                                   .function = function->entry.index};
    result = orion_call(session, &op.op, sizeof op, NULL, 0, payload, ORION_REPLY_BYTES, &bytes);
  } else {
    orion_op_module_get_function op = {.op = {.code = ORION_OP_MODULE_GET_FUNCTION, .context = context},
                                       .module = module->entry.index,
                                       .function = function->entry.index};
    result = orion_call(session, &op.op, sizeof op, name, name_bytes, payload, ORION_REPLY_BYTES, &bytes);
  }
  if (result == CUDA_SUCCESS) result = parse_reply(function, payload, bytes);
  free(payload);
  return result;
}

/// Under the module's mutex.
static CUresult make_function(orion_module* module, const char* name, uint32_t name_bytes, uint32_t kernel,
                              orion_function** out) {
  orion_function* function = orion_object_take(&orion_functions);
  if (function == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  free(function->name);
  free(function->param_offsets);
  free(function->legacy);
  function->legacy = NULL;
  orion_occupancy_forget(function);
  function->context = module->context;
  function->epoch = module->epoch;
  function->module = module;
  function->module_handle = module->handle;
  function->name = strdup(name);
  function->attribute_mask = 0;
  atomic_store(&function->set_mask, 0);
  function->param_offsets = function->param_sizes = NULL;
  function->param_count = function->param_bytes = 0;
  function->layout_known = false;
  atomic_store(&function->kernel, 0);
  atomic_store(&function->cooperative_key, 0);
  const CUresult result =
      function->name == NULL ? CUDA_ERROR_OUT_OF_MEMORY : ask_worker(module, function, name, name_bytes, kernel);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&orion_functions, function);
    return result;
  }
  function->next = atomic_load(&module->functions);
  function->handle = orion_table_publish(&orion_functions, function);
  atomic_store_explicit(&module->functions, function, memory_order_release);
  *out = function;
  return CUDA_SUCCESS;
}

CUresult orion_module_function(orion_module* module, const char* name, uint32_t kernel, orion_function** out) {
  const size_t name_bytes = strlen(name);
  ORION_REQUIRE(name_bytes <= NAME_LIMIT_BYTES, CUDA_ERROR_NOT_FOUND);
  pthread_mutex_lock(&module->mutex);
  orion_function* function = atomic_load(&module->functions);
  while (function != NULL && strcmp(function->name, name) != 0) function = function->next;
  CUresult result = CUDA_SUCCESS;
  if (function != NULL) {
    *out = function;
  } else {
    result = make_function(module, name, (uint32_t)name_bytes, kernel, out);
  }
  pthread_mutex_unlock(&module->mutex);
  return result;
}

CUresult orion_function_get_attribute(const orion_function* function, CUfunction_attribute attribute, int* value) {
  if (value == NULL || (unsigned)attribute >= ORION_FUNCTION_ATTRIBUTES ||
      (function->attribute_mask & 1u << attribute) == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *value = orion_function_attribute(function, (uint32_t)attribute);
  return CUDA_SUCCESS;
}

/// Libraries set the same value before every launch: only one that the driver has not taken yet travels.
CUresult orion_function_set_attribute(orion_function* function, CUfunction_attribute attribute, int value) {
  const bool kept = (unsigned)attribute < ORION_FUNCTION_ATTRIBUTES;
  if (kept && (atomic_load_explicit(&function->set_mask, memory_order_acquire) & 1u << attribute) != 0 &&
      orion_function_attribute(function, (uint32_t)attribute) == value) {
    return orion_context_error(function->context->session, function->context->entry.index);
  }
  orion_op_function_set_attribute op = {
      .op = {.code = ORION_OP_FUNCTION_SET_ATTRIBUTE, .context = (uint16_t)function->context->entry.index},
      .function = function->entry.index,
      .attribute = (int32_t)attribute,
      .value = value};
  const CUresult result = orion_call(function->context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result == CUDA_SUCCESS && kept) {
    atomic_store_explicit(&function->attributes[attribute], value, memory_order_relaxed);
    atomic_fetch_or_explicit(&function->set_mask, 1u << attribute, memory_order_release);
    atomic_store(&function->cooperative_key, 0);
    atomic_fetch_add(&function->settings, 1);
  }
  return result;
}

CUresult orion_function_param_info(const orion_function* function, size_t index, size_t* offset, size_t* bytes) {
  if (offset == NULL || index >= function->param_count) return CUDA_ERROR_INVALID_VALUE;
  *offset = function->param_offsets[index];
  if (bytes != NULL) *bytes = function->param_sizes[index];
  return CUDA_SUCCESS;
}

#define ORION_ENTER_FUNCTION(function, handle)                      \
  ORION_ENTER();                                                    \
  orion_function* function;                                         \
  do {                                                              \
    const CUresult found_ = orion_function_of((handle), &function); \
    if (found_ != CUDA_SUCCESS) return found_;                      \
  } while (0)

ORION_API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  ORION_ENTER();
  orion_function* function;  // a CUkernel is not taken for one here, unlike in launches
  const CUresult result = orion_object_find(&orion_functions, handle, &function);
  if (result != CUDA_SUCCESS) return result;
  return orion_function_get_attribute(function, attribute, value);
}

ORION_API CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  ORION_ENTER_FUNCTION(function, handle);
  return orion_function_set_attribute(function, attribute, value);
}

ORION_API CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache config) {
  ORION_ENTER_FUNCTION(function, handle);
  ORION_REQUIRE((unsigned)config <= CU_FUNC_CACHE_PREFER_EQUAL, CUDA_ERROR_INVALID_VALUE);
  orion_op_function_set_cache_config op = {
      .op = {.code = ORION_OP_FUNCTION_SET_CACHE_CONFIG, .context = (uint16_t)function->context->entry.index},
      .function = function->entry.index,
      .config = (uint32_t)config};
  return orion_submit(function->context->session, &op.op, sizeof op, NULL, 0);
}

ORION_API CUresult cuFuncSetSharedMemConfig(CUfunction handle, CUsharedconfig config) {
  ORION_ENTER_FUNCTION(function, handle);
  (void)function;
  ORION_REQUIRE((unsigned)config <= CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE, CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;  // without effect on all devices that are served
}

ORION_API CUresult cuFuncGetModule(CUmodule* module, CUfunction handle) {
  ORION_ENTER_FUNCTION(function, handle);
  ORION_REQUIRE(module != NULL, CUDA_ERROR_INVALID_VALUE);
  *module = (CUmodule)(uintptr_t)function->module_handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuFuncGetName(const char** name, CUfunction handle) {
  ORION_ENTER_FUNCTION(function, handle);
  ORION_REQUIRE(name != NULL, CUDA_ERROR_INVALID_VALUE);
  *name = function->name;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* bytes) {
  ORION_ENTER_FUNCTION(function, handle);
  return orion_function_param_info(function, index, offset, bytes);
}

ORION_API CUresult cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction handle) {
  ORION_ENTER_FUNCTION(function, handle);
  (void)function;
  ORION_REQUIRE(state != NULL, CUDA_ERROR_INVALID_VALUE);
  *state = CU_FUNCTION_LOADING_STATE_LOADED;  // its attributes were read, which loads it
  return CUDA_SUCCESS;
}

ORION_API CUresult cuFuncLoad(CUfunction handle) {
  ORION_ENTER_FUNCTION(function, handle);
  (void)function;
  return CUDA_SUCCESS;
}
