// What CUDA's runtime library asks of the driver: the primary context's handle before it exists, and (up to 11.8)
// loading code.
#include "export.h"

enum { SLOTS = 13, SLOT_WITHOUT_FUNCTION = 10 };

/// The handle that a later retain gives. The context is neither made nor retained.
static CUresult primary_context(CUcontext* handle, CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_device_state* state = orion_device_state_at(device);
  ORION_REQUIRE(state != NULL, CUDA_ERROR_INVALID_DEVICE);
  const orion_context* context = orion_primary_of(state);
  ORION_REQUIRE(context != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  *handle = (CUcontext)(uintptr_t)context->handle;
  return CUDA_SUCCESS;
}

static CUresult load(CUmodule* module, const void* wrapper) { return cuModuleLoadData(module, wrapper); }

/// The pairs describe variables of the host program; they say nothing about what is loaded.
static CUresult load_for_host(CUmodule* module, const void* wrapper, void* pairs, void* other_pairs, uint32_t count) {
  (void)pairs, (void)other_pairs, (void)count;
  return cuModuleLoadData(module, wrapper);
}

static CUresult load_container(const void* container, CUmodule* module, void* pairs, void* other_pairs,
                               uint32_t count) {
  (void)pairs, (void)other_pairs, (void)count;
  return cuModuleLoadData(module, container);
}

/// Nothing is kept of an image after its load.
static void forget_image(const void* wrapper) { (void)wrapper; }

/// Natively loads compilers beforehand; they are beside the GPU.
static CUresult prepare_compilers(void) { return CUDA_SUCCESS; }

const void* orion_runtime_table(void) {
  static orion_export_slot slots[SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_RUNTIME, SLOTS);
  slots[1] = ORION_EXPORT_SLOT(load);
  slots[2] = ORION_EXPORT_SLOT(primary_context);
  slots[6] = ORION_EXPORT_SLOT(load_for_host);
  slots[7] = ORION_EXPORT_SLOT(forget_image);
  slots[8] = ORION_EXPORT_SLOT(load_container);
  slots[SLOT_WITHOUT_FUNCTION].function = NULL;
  slots[12] = ORION_EXPORT_SLOT(prepare_compilers);
  return slots;
}
