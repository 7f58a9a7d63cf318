// Texture and surface objects. Their handles are the worker's driver's own values, because kernels take them as
// parameters; they are known here by value and context, with what they were made from.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "array.h"

#define BUCKETS 1024u

typedef struct object {
  struct object* next;
  orion_context* context;
  uint32_t epoch;
  uint64_t handle;
  uint32_t index;  // on the wire
  bool surface, has_view;
  CUDA_RESOURCE_DESC resource;
  CUDA_TEXTURE_DESC texture;
  CUDA_RESOURCE_VIEW_DESC view;
} object;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static object* buckets[BUCKETS];
static uint32_t free_indices[ORION_TEXTURES], free_count, next_index = 1;

static uint32_t bucket_of(uint64_t handle) { return (uint32_t)((handle * 0x9e3779b97f4a7c15ull) >> 40) % BUCKETS; }

/// Unlinks what belongs to contexts that are gone. Under the mutex.
static void forget_ended(uint32_t bucket) {
  for (object** link = &buckets[bucket]; *link != NULL;) {
    object* o = *link;
    if (orion_same_epoch(o->context, o->epoch)) {
      link = &o->next;
      continue;
    }
    *link = o->next;
    free_indices[free_count++] = o->index;
    free(o);
  }
}

static uint32_t take_index(void) {
  if (free_count == 0 && next_index == ORION_TEXTURES) {
    for (uint32_t i = 0; i < BUCKETS; i++) forget_ended(i);
  }
  if (free_count > 0) return free_indices[--free_count];
  return next_index < ORION_TEXTURES ? next_index++ : 0;
}

static uint32_t take_index_locked(void) {
  pthread_mutex_lock(&mutex);
  const uint32_t index = take_index();
  pthread_mutex_unlock(&mutex);
  return index;
}

static void give_index_locked(uint32_t index) {
  pthread_mutex_lock(&mutex);
  free_indices[free_count++] = index;
  pthread_mutex_unlock(&mutex);
}

static void remember(object* o) {
  const uint32_t bucket = bucket_of(o->handle);
  pthread_mutex_lock(&mutex);
  forget_ended(bucket);
  o->next = buckets[bucket];
  buckets[bucket] = o;
  pthread_mutex_unlock(&mutex);
}

/// The place of the object that `handle` means in the context. Under the mutex; NULL when there is none.
static object** find(const orion_context* context, uint64_t handle, bool surface) {
  const uint32_t bucket = bucket_of(handle);
  forget_ended(bucket);
  for (object** link = &buckets[bucket]; *link != NULL; link = &(*link)->next) {
    const object* o = *link;
    if (o->handle == handle && o->surface == surface && o->context == context) return link;
  }
  return NULL;
}

// ------------------------------------------------------------------------------------------------ making

typedef struct texture_tail {
  uint32_t address_mode[3], filter, flags, anisotropy, mipmap_filter;
  float bias, minimum, maximum, border[4];
} texture_tail;

typedef struct view_tail {
  uint64_t width, height, depth;
  uint32_t format, first_level, last_level, first_layer, last_layer, zero;
} view_tail;

typedef struct tail {
  texture_tail texture;
  view_tail view;
} tail;
_Static_assert(sizeof(tail) == sizeof(texture_tail) + sizeof(view_tail), "the tail has no padding");

static CUresult set_resource(orion_op_texture_create* op, const CUDA_RESOURCE_DESC* r) {
  if (r->flags != 0) return CUDA_ERROR_INVALID_VALUE;
  op->resource = (uint32_t)r->resType;
  orion_array* array;
  CUresult result = CUDA_SUCCESS;
  switch (r->resType) {
    case CU_RESOURCE_TYPE_ARRAY:
      result = orion_array_of(r->res.array.hArray, &array);
      if (result == CUDA_SUCCESS) op->array = array->entry.index;
      return result;
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY:
      result = orion_mipmap_of(r->res.mipmap.hMipmappedArray, &array);
      if (result == CUDA_SUCCESS) op->array = array->entry.index;
      return result;
    case CU_RESOURCE_TYPE_LINEAR:
      op->device_address = r->res.linear.devPtr;
      op->format = (uint32_t)r->res.linear.format;
      op->channels = r->res.linear.numChannels;
      op->size_bytes = r->res.linear.sizeInBytes;
      return CUDA_SUCCESS;
    case CU_RESOURCE_TYPE_PITCH2D:
      op->device_address = r->res.pitch2D.devPtr;
      op->format = (uint32_t)r->res.pitch2D.format;
      op->channels = r->res.pitch2D.numChannels;
      op->width = r->res.pitch2D.width;
      op->height = r->res.pitch2D.height;
      op->pitch_bytes = r->res.pitch2D.pitchInBytes;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

static uint32_t fill_tail(tail* out, const CUDA_TEXTURE_DESC* t, const CUDA_RESOURCE_VIEW_DESC* v) {
  memset(out, 0, sizeof *out);
  for (int i = 0; i < 3; i++) out->texture.address_mode[i] = (uint32_t)t->addressMode[i];
  out->texture.filter = (uint32_t)t->filterMode;
  out->texture.flags = t->flags;
  out->texture.anisotropy = t->maxAnisotropy;
  out->texture.mipmap_filter = (uint32_t)t->mipmapFilterMode;
  out->texture.bias = t->mipmapLevelBias;
  out->texture.minimum = t->minMipmapLevelClamp;
  out->texture.maximum = t->maxMipmapLevelClamp;
  memcpy(out->texture.border, t->borderColor, sizeof out->texture.border);
  if (v == NULL) return sizeof out->texture;
  out->view = (view_tail){.width = v->width,
                          .height = v->height,
                          .depth = v->depth,
                          .format = v->format,
                          .first_level = v->firstMipmapLevel,
                          .last_level = v->lastMipmapLevel,
                          .first_layer = v->firstLayer,
                          .last_layer = v->lastLayer};
  return sizeof *out;
}

static CUresult create(uint64_t* handle, bool surface, const CUDA_RESOURCE_DESC* resource,
                       const CUDA_TEXTURE_DESC* texture, const CUDA_RESOURCE_VIEW_DESC* view) {
  ORION_ENTER_CONTEXT(context);
  orion_op_texture_create op = {.op = {.code = ORION_OP_TEXTURE_CREATE, .context = (uint16_t)context->entry.index},
                                .surface = surface};
  CUresult result = set_resource(&op, resource);
  if (result != CUDA_SUCCESS) return result;
  object* o = calloc(1, sizeof *o);
  if (o == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  o->index = op.object = take_index_locked();
  if (o->index == 0) {
    free(o);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  tail description;
  const uint32_t tail_bytes = surface ? 0 : fill_tail(&description, texture, view);
  orion_reply_texture_create reply = {0};
  result = orion_call(context->session, &op.op, sizeof op, &description, tail_bytes, &reply, sizeof reply, NULL);
  if (result != CUDA_SUCCESS) {
    give_index_locked(o->index);
    free(o);
    return result;
  }
  o->context = context;
  o->epoch = atomic_load_explicit(&context->epoch, memory_order_acquire);
  o->handle = *handle = reply.handle;
  o->surface = surface;
  o->resource = *resource;
  if (texture != NULL) o->texture = *texture;
  o->has_view = view != NULL;
  if (view != NULL) o->view = *view;
  remember(o);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuTexObjectCreate(CUtexObject* handle, const CUDA_RESOURCE_DESC* resource,
                                     const CUDA_TEXTURE_DESC* texture, const CUDA_RESOURCE_VIEW_DESC* view) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && resource != NULL && texture != NULL, CUDA_ERROR_INVALID_VALUE);
  uint64_t made;
  const CUresult result = create(&made, false, resource, texture, view);
  if (result == CUDA_SUCCESS) *handle = made;
  return result;
}

ORION_API CUresult cuSurfObjectCreate(CUsurfObject* handle, const CUDA_RESOURCE_DESC* resource) {
  ORION_ENTER();
  ORION_REQUIRE(handle != NULL && resource != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(resource->resType == CU_RESOURCE_TYPE_ARRAY, CUDA_ERROR_INVALID_VALUE);
  uint64_t made;
  const CUresult result = create(&made, true, resource, NULL, NULL);
  if (result == CUDA_SUCCESS) *handle = made;
  return result;
}

// ------------------------------------------------------------------------------------------------ ending, questions

static CUresult destroy(uint64_t handle, bool surface) {
  ORION_ENTER_CONTEXT(context);
  pthread_mutex_lock(&mutex);
  object** link = find(context, handle, surface);
  object* o = link == NULL ? NULL : *link;
  if (link != NULL) *link = o->next;
  pthread_mutex_unlock(&mutex);
  ORION_REQUIRE(o != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_op_texture_destroy op = {.op = {.code = ORION_OP_TEXTURE_DESTROY, .context = (uint16_t)context->entry.index},
                                 .object = o->index};
  const CUresult result = orion_submit(context->session, &op.op, sizeof op, NULL, 0);
  give_index_locked(o->index);
  free(o);
  return result;
}

ORION_API CUresult cuTexObjectDestroy(CUtexObject handle) {
  ORION_COUNTED();
  return destroy(handle, false);
}

ORION_API CUresult cuSurfObjectDestroy(CUsurfObject handle) {
  ORION_COUNTED();
  return destroy(handle, true);
}

/// A copy of what is known of an object. False for a handle that means none.
static bool look_up(const orion_context* context, uint64_t handle, bool surface, object* out) {
  pthread_mutex_lock(&mutex);
  object** link = find(context, handle, surface);
  if (link != NULL) *out = **link;
  pthread_mutex_unlock(&mutex);
  return link != NULL;
}

ORION_API CUresult cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC* resource, CUtexObject handle) {
  ORION_ENTER_CONTEXT(context);
  object o;
  ORION_REQUIRE(resource != NULL && look_up(context, handle, false, &o), CUDA_ERROR_INVALID_VALUE);
  *resource = o.resource;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuTexObjectGetTextureDesc(CUDA_TEXTURE_DESC* texture, CUtexObject handle) {
  ORION_ENTER_CONTEXT(context);
  object o;
  ORION_REQUIRE(texture != NULL && look_up(context, handle, false, &o), CUDA_ERROR_INVALID_VALUE);
  *texture = o.texture;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuTexObjectGetResourceViewDesc(CUDA_RESOURCE_VIEW_DESC* view, CUtexObject handle) {
  ORION_ENTER_CONTEXT(context);
  object o;
  ORION_REQUIRE(view != NULL && look_up(context, handle, false, &o), CUDA_ERROR_INVALID_VALUE);
  *view = o.view;  // all zero without one
  return CUDA_SUCCESS;
}

ORION_API CUresult cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC* resource, CUsurfObject handle) {
  ORION_ENTER_CONTEXT(context);
  object o;
  ORION_REQUIRE(resource != NULL && look_up(context, handle, true, &o), CUDA_ERROR_INVALID_VALUE);
  *resource = o.resource;
  return CUDA_SUCCESS;
}
