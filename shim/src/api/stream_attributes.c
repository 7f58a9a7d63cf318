// Attributes of streams. All of them are hints for the GPU's caches and scheduler or for how a thread waits: they are
// kept here and given back, and never change a result, so nothing of them travels.
#include <string.h>

#include "api.h"

static const CUstreamAttrValue* default_value(const orion_stream* stream, CUstreamAttrID id, CUstreamAttrValue* value) {
  memset(value, 0, sizeof *value);
  switch (id) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
      return value;
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      value->syncPolicy = CU_SYNC_POLICY_AUTO;
      return value;
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
      value->priority = stream->priority;
      return value;
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
      value->memSyncDomainMap = (CUlaunchMemSyncDomainMap){.default_ = 0, .remote = 1};
      return value;
    default:
      return NULL;  // an attribute of launches only
  }
}

static void read_value(orion_stream* stream, CUstreamAttrID id, CUstreamAttrValue* value) {
  const orion_stream_attributes* kept = &stream->attributes;
  if ((kept->set >> id & 1) == 0) return;  // the default is there already
  if (id == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW) value->accessPolicyWindow = kept->access_policy;
  if (id == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY) value->syncPolicy = kept->sync_policy;
  if (id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP) value->memSyncDomainMap = kept->domain_map;
  if (id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN) value->memSyncDomain = kept->domain;
}

static bool is_valid(const orion_stream* stream, CUstreamAttrID id, const CUstreamAttrValue* value) {
  const int32_t* limits = stream->context->device->info->attributes;
  if (id == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW) {
    const CUaccessPolicyWindow* window = &value->accessPolicyWindow;
    return window->num_bytes <= (uint32_t)limits[CU_DEVICE_ATTRIBUTE_MAX_ACCESS_POLICY_WINDOW_SIZE] &&
           window->hitRatio >= 0 && window->hitRatio <= 1;
  }
  if (id == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY)
    return value->syncPolicy >= CU_SYNC_POLICY_AUTO && value->syncPolicy <= CU_SYNC_POLICY_BLOCKING_SYNC;
  if (id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN) return (unsigned)value->memSyncDomain <= 1;
  return true;
}

ORION_API CUresult cuStreamGetAttribute(CUstream handle, CUstreamAttrID id, CUstreamAttrValue* out) {
  ORION_ENTER_STREAM(stream, handle);
  CUstreamAttrValue value;
  ORION_REQUIRE(out != NULL && default_value(stream, id, &value) != NULL, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&stream->mutex);
  read_value(stream, id, &value);
  pthread_mutex_unlock(&stream->mutex);
  *out = value;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamSetAttribute(CUstream handle, CUstreamAttrID id, const CUstreamAttrValue* value) {
  ORION_ENTER_STREAM(stream, handle);
  CUstreamAttrValue known;
  ORION_REQUIRE(value != NULL && default_value(stream, id, &known) != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(is_valid(stream, id, value), CUDA_ERROR_INVALID_VALUE);
  orion_stream_attributes* kept = &stream->attributes;
  pthread_mutex_lock(&stream->mutex);
  if (id == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW) kept->access_policy = value->accessPolicyWindow;
  if (id == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY) kept->sync_policy = value->syncPolicy;
  if (id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP) kept->domain_map = value->memSyncDomainMap;
  if (id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN) kept->domain = value->memSyncDomain;
  if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY) stream->priority = value->priority;
  kept->set |= 1u << id;
  pthread_mutex_unlock(&stream->mutex);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuStreamCopyAttributes(CUstream destination_handle, CUstream source_handle) {
  ORION_ENTER_STREAM(source, source_handle);
  orion_stream* destination = NULL;
  const CUresult result = orion_resolve_stream(destination_handle, &destination);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(source->context == destination->context, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&source->mutex);
  const orion_stream_attributes copy = source->attributes;
  const int32_t priority = source->priority;
  pthread_mutex_unlock(&source->mutex);
  pthread_mutex_lock(&destination->mutex);
  destination->attributes = copy;
  destination->priority = priority;
  pthread_mutex_unlock(&destination->mutex);
  return CUDA_SUCCESS;
}

/// No stream here belongs to a green context.
ORION_API CUresult cuStreamGetGreenCtx(CUstream handle, CUgreenCtx* green) {
  ORION_ENTER_STREAM(stream, handle);
  (void)stream;
  ORION_REQUIRE(green != NULL, CUDA_ERROR_INVALID_VALUE);
  *green = NULL;
  return CUDA_SUCCESS;
}
