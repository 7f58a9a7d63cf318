// What of a device a context may use. The driver's own answer, asked once; it partitions nothing here (docs/limits.md).
#include <string.h>

#include "api.h"

static CUresult ask(orion_device_state* device, const orion_context* context, CUdevResource* resource,
                    CUdevResourceType type) {
  ORION_REQUIRE(resource != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
  orion_sm_resource* kept = &device->sm_resource[context != NULL];
  if (!atomic_load_explicit(&kept->known, memory_order_acquire)) {
    orion_op_ctx_get_resource op = {.op = {.code = ORION_OP_CTX_GET_RESOURCE},
                                    .device = device->info->remote_ordinal,
                                    .resource_type = (uint32_t)type};
    if (context != NULL) op.op.context = (uint16_t)context->entry.index;
    orion_reply_ctx_get_resource reply = {0};
    const CUresult result = orion_call(device->info->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
    if (result != CUDA_SUCCESS) return result;
    // Two threads that ask at once store the same.
    atomic_store(&kept->count, reply.sm_count);
    atomic_store(&kept->least, reply.least_sm_count);
    atomic_store(&kept->alignment, reply.sm_alignment);
    atomic_store_explicit(&kept->known, true, memory_order_release);
  }
  memset(resource, 0, sizeof *resource);
  resource->type = type;
  resource->sm = (CUdevSmResource){.smCount = atomic_load(&kept->count),
                                   .minSmPartitionSize = atomic_load(&kept->least),
                                   .smCoscheduledAlignment = atomic_load(&kept->alignment)};
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, CUdevResourceType type) {
  ORION_ENTER();
  orion_device_state* state = orion_device_state_at(device);
  ORION_REQUIRE(state != NULL, CUDA_ERROR_INVALID_DEVICE);
  return ask(state, NULL, resource, type);
}

ORION_API CUresult cuCtxGetDevResource(CUcontext handle, CUdevResource* resource, CUdevResourceType type) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_CONTEXT);  // not the current one
  orion_context* context;
  const CUresult result = orion_context_of(handle, &context);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(atomic_load(&context->active), CUDA_ERROR_CONTEXT_IS_DESTROYED);
  return ask(context->device, context, resource, type);
}
