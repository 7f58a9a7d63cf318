// Arrays and mipmapped arrays. The worker's driver judges descriptors when it makes them; everything else is answered
// here.
#include "array.h"

#include <string.h>

#include "api.h"
#include "relay.h"
#include "virtual_memory.h"

ORION_OBJECT_CHECK(orion_array);

static orion_table arrays = ORION_TABLE(ORION_TAG_ARRAY, orion_array, ORION_ARRAYS, 16);
static orion_table mipmaps = ORION_TABLE(ORION_TAG_MIPMAP, orion_array, ORION_MIPMAPS, 16);

CUresult orion_array_of(CUarray handle, orion_array** array) { return orion_object_find(&arrays, handle, array); }

CUresult orion_mipmap_of(CUmipmappedArray handle, orion_array** mipmap) {
  return orion_object_find(&mipmaps, handle, mipmap);
}

uint32_t orion_format_bytes(CUarray_format format, unsigned int channels, uint32_t* side) {
  *side = 1;
  switch ((int)format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return channels;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
      return 2 * channels;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return 4 * channels;
    case CU_AD_FORMAT_UNORM_INT8X1:
    case CU_AD_FORMAT_SNORM_INT8X1:
      return 1;
    case CU_AD_FORMAT_UNORM_INT8X2:
    case CU_AD_FORMAT_SNORM_INT8X2:
    case CU_AD_FORMAT_UNORM_INT16X1:
    case CU_AD_FORMAT_SNORM_INT16X1:
      return 2;
    case CU_AD_FORMAT_UNORM_INT8X4:
    case CU_AD_FORMAT_SNORM_INT8X4:
    case CU_AD_FORMAT_UNORM_INT16X2:
    case CU_AD_FORMAT_SNORM_INT16X2:
      return 4;
    case CU_AD_FORMAT_UNORM_INT16X4:
    case CU_AD_FORMAT_SNORM_INT16X4:
      return 8;
    case CU_AD_FORMAT_BC1_UNORM:
    case CU_AD_FORMAT_BC1_UNORM_SRGB:
    case CU_AD_FORMAT_BC4_UNORM:
    case CU_AD_FORMAT_BC4_SNORM:
      *side = 4;
      return 8;
    case CU_AD_FORMAT_BC2_UNORM:
    case CU_AD_FORMAT_BC2_UNORM_SRGB:
    case CU_AD_FORMAT_BC3_UNORM:
    case CU_AD_FORMAT_BC3_UNORM_SRGB:
    case CU_AD_FORMAT_BC5_UNORM:
    case CU_AD_FORMAT_BC5_SNORM:
    case CU_AD_FORMAT_BC6H_UF16:
    case CU_AD_FORMAT_BC6H_SF16:
    case CU_AD_FORMAT_BC7_UNORM:
    case CU_AD_FORMAT_BC7_UNORM_SRGB:
      *side = 4;
      return 16;
    default:
      return 0;
  }
}

// ------------------------------------------------------------------------------------------------ making and ending

static orion_array* take(orion_table* table, orion_context* context, const CUDA_ARRAY3D_DESCRIPTOR* descriptor) {
  orion_array* array = orion_object_take(table);
  if (array == NULL) return NULL;
  if (!array->mutex_made) pthread_mutex_init(&array->views_mutex, NULL);
  array->mutex_made = true;
  array->context = context;
  array->epoch = atomic_load_explicit(&context->epoch, memory_order_acquire);
  array->descriptor = *descriptor;
  array->is_view = false;
  array->level_count = 0;
  memset(array->views, 0, sizeof array->views);
  return array;
}

static uint64_t publish(orion_table* table, orion_array* array) {
  array->handle = orion_table_publish(table, array);
  return array->handle;
}

/// Memory mapped into arrays piece by piece (cuMemMapArrayAsync) is not served.
static bool wants_mapping(const CUDA_ARRAY3D_DESCRIPTOR* d) {
  if ((d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) == 0) return false;
  orion_log(ORION_LOG_WARN, "sparse and deferred-mapping arrays are not supported");
  return true;
}

static CUresult create(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR* descriptor) {
  ORION_ENTER_CONTEXT(context);
  if (wants_mapping(descriptor)) return CUDA_ERROR_NOT_SUPPORTED;
  orion_array* array = take(&arrays, context, descriptor);
  if (array == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_op_array_create op = {.op = {.code = ORION_OP_ARRAY_CREATE, .context = (uint16_t)context->entry.index},
                              .array = array->entry.index,
                              .array_flags = descriptor->Flags,
                              .format = (uint32_t)descriptor->Format,
                              .channels = descriptor->NumChannels,
                              .width = descriptor->Width,
                              .height = descriptor->Height,
                              .depth = descriptor->Depth};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&arrays, array);
    return result;
  }
  *handle = (CUarray)(uintptr_t)publish(&arrays, array);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuArray3DCreate_v2(CUarray* handle, const CUDA_ARRAY3D_DESCRIPTOR* descriptor) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && descriptor != NULL, CUDA_ERROR_INVALID_VALUE);
  return create(handle, descriptor);
}

ORION_API CUresult cuArrayCreate_v2(CUarray* handle, const CUDA_ARRAY_DESCRIPTOR* descriptor) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && descriptor != NULL, CUDA_ERROR_INVALID_VALUE);
  const CUDA_ARRAY3D_DESCRIPTOR deep = {.Width = descriptor->Width,
                                        .Height = descriptor->Height,
                                        .Format = descriptor->Format,
                                        .NumChannels = descriptor->NumChannels};
  return create(handle, &deep);
}

static void end_views(orion_array* source) {
  for (uint32_t i = 0; i < ORION_ARRAY_VIEWS; i++) {
    orion_array* view;
    if (source->views[i] == 0) continue;
    if (orion_object_find(&arrays, (void*)(uintptr_t)source->views[i], &view) != CUDA_SUCCESS) continue;
    if (orion_table_retire(&arrays, view, atomic_load(&view->entry.generation))) orion_table_give(&arrays, view);
  }
}

/// Natively the call waits for work that may use the memory. Here the worker does, and the caller goes on.
static CUresult end(orion_table* table, orion_array* array, uint16_t code) {
  orion_context* context = array->context;
  uint32_t generation;
  if (orion_table_find(table, array->handle, &generation) != array || !orion_table_retire(table, array, generation)) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  orion_relay_settle((uint64_t)(uintptr_t)array, 1);
  end_views(array);
  orion_op_array_destroy op = {.op = {.code = code, .context = (uint16_t)context->entry.index},
                               .array = array->entry.index};
  const CUresult result = orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  orion_memory_released(context->device->peer);
  orion_table_give(table, array);
  return result;
}

/// As the driver has it: what was destroyed before is told apart from what never was.
static CUresult find_to_destroy(orion_table* table, void* handle, orion_array** array) {
  if (orion_table_has_ended(table, (uint64_t)(uintptr_t)handle)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return orion_object_find(table, handle, array);
}

ORION_API CUresult cuArrayDestroy(CUarray handle) {
  ORION_ENTER();
  orion_array* array;
  const CUresult result = find_to_destroy(&arrays, handle, &array);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(!array->is_view, CUDA_ERROR_INVALID_HANDLE);
  return end(&arrays, array, ORION_OP_ARRAY_DESTROY);
}

// ------------------------------------------------------------------------------------------------ questions

ORION_API CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR* descriptor, CUarray handle) {
  ORION_ENTER();
  ORION_REQUIRE(descriptor != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_array* array;
  const CUresult result = orion_array_of(handle, &array);
  if (result == CUDA_SUCCESS) *descriptor = array->descriptor;
  return result;
}

ORION_API CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR* descriptor, CUarray handle) {
  ORION_ENTER();
  ORION_REQUIRE(descriptor != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_array* array;
  const CUresult result = orion_array_of(handle, &array);
  if (result != CUDA_SUCCESS) return result;
  *descriptor = (CUDA_ARRAY_DESCRIPTOR){.Width = array->descriptor.Width,
                                        .Height = array->descriptor.Height,
                                        .Format = array->descriptor.Format,
                                        .NumChannels = array->descriptor.NumChannels};
  return CUDA_SUCCESS;
}

// The next four speak of arrays whose memory is mapped piece by piece, of which none can exist here.

ORION_API CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS* requirements, CUarray handle,
                                                CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(requirements != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  orion_array* array;
  const CUresult result = orion_array_of(handle, &array);
  return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

ORION_API CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS* requirements,
                                                         CUmipmappedArray handle, CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(requirements != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  orion_array* mipmap;
  const CUresult result = orion_mipmap_of(handle, &mipmap);
  return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

ORION_API CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES* properties, CUarray handle) {
  ORION_ENTER();
  ORION_REQUIRE(properties != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_array* array;
  const CUresult result = orion_array_of(handle, &array);
  return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

ORION_API CUresult cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES* properties,
                                                       CUmipmappedArray handle) {
  ORION_ENTER();
  ORION_REQUIRE(properties != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_array* mipmap;
  const CUresult result = orion_mipmap_of(handle, &mipmap);
  return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

// ------------------------------------------------------------------------------------------------ levels and planes

static CUresult make_view(orion_array* source, uint32_t kind, uint32_t number, uint64_t* handle) {
  orion_context* context = source->context;
  orion_array* view = take(&arrays, context, &source->descriptor);
  if (view == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_op_array_view op = {.op = {.code = ORION_OP_ARRAY_VIEW, .context = (uint16_t)context->entry.index},
                            .array = view->entry.index,
                            .source = source->entry.index,
                            .kind = kind,
                            .number = number};
  orion_reply_array_view reply = {0};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&arrays, view);
    return result;
  }
  view->is_view = true;
  view->descriptor = (CUDA_ARRAY3D_DESCRIPTOR){.Width = reply.width,
                                               .Height = reply.height,
                                               .Depth = reply.depth,
                                               .Format = (CUarray_format)reply.format,
                                               .NumChannels = reply.channels,
                                               .Flags = reply.array_flags};
  *handle = publish(&arrays, view);
  return CUDA_SUCCESS;
}

static CUresult view_of(orion_array* source, uint32_t kind, uint32_t number, CUarray* handle) {
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&source->views_mutex);
  if (source->views[number] == 0) result = make_view(source, kind, number, &source->views[number]);
  if (result == CUDA_SUCCESS) *handle = (CUarray)(uintptr_t)source->views[number];
  pthread_mutex_unlock(&source->views_mutex);
  return result;
}

ORION_API CUresult cuArrayGetPlane(CUarray* plane, CUarray handle, unsigned int number) {
  ORION_ENTER();
  ORION_REQUIRE(plane != NULL && number < ORION_ARRAY_VIEWS, CUDA_ERROR_INVALID_VALUE);
  orion_array* array;
  const CUresult result = orion_array_of(handle, &array);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(!array->is_view, CUDA_ERROR_INVALID_VALUE);
  return view_of(array, 1, number, plane);
}

/// CUDA takes too many levels for as many as there can be, and none for one.
static uint32_t clamp_levels(const CUDA_ARRAY3D_DESCRIPTOR* d, uint32_t wanted) {
  const bool layers = (d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
  size_t largest = d->Width > d->Height ? d->Width : d->Height;
  if (!layers && d->Depth > largest) largest = d->Depth;
  uint32_t most = 1;
  while (largest > 1 && most < ORION_ARRAY_VIEWS) {
    largest /= 2;
    most++;
  }
  if (wanted == 0) return 1;
  return wanted < most ? wanted : most;
}

ORION_API CUresult cuMipmappedArrayCreate(CUmipmappedArray* handle, const CUDA_ARRAY3D_DESCRIPTOR* descriptor,
                                          unsigned int levels) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(handle != NULL && descriptor != NULL, CUDA_ERROR_INVALID_VALUE);
  if (wants_mapping(descriptor)) return CUDA_ERROR_NOT_SUPPORTED;
  orion_array* mipmap = take(&mipmaps, context, descriptor);
  if (mipmap == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  mipmap->level_count = clamp_levels(descriptor, levels);
  orion_op_mipmap_create op = {.op = {.code = ORION_OP_MIPMAP_CREATE, .context = (uint16_t)context->entry.index},
                               .mipmap = mipmap->entry.index,
                               .array_flags = descriptor->Flags,
                               .format = (uint32_t)descriptor->Format,
                               .channels = descriptor->NumChannels,
                               .width = descriptor->Width,
                               .height = descriptor->Height,
                               .depth = descriptor->Depth,
                               .levels = mipmap->level_count};
  const CUresult result = orion_call(context->session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&mipmaps, mipmap);
    return result;
  }
  *handle = (CUmipmappedArray)(uintptr_t)publish(&mipmaps, mipmap);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMipmappedArrayDestroy(CUmipmappedArray handle) {
  ORION_ENTER();
  orion_array* mipmap;
  const CUresult result = find_to_destroy(&mipmaps, handle, &mipmap);
  return result == CUDA_SUCCESS ? end(&mipmaps, mipmap, ORION_OP_MIPMAP_DESTROY) : result;
}

ORION_API CUresult cuMipmappedArrayGetLevel(CUarray* level_array, CUmipmappedArray handle, unsigned int level) {
  ORION_ENTER();
  ORION_REQUIRE(level_array != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_array* mipmap;
  const CUresult result = orion_mipmap_of(handle, &mipmap);
  if (result != CUDA_SUCCESS) return result;
  ORION_REQUIRE(level < mipmap->level_count, CUDA_ERROR_INVALID_VALUE);
  return view_of(mipmap, 0, level, level_array);
}
