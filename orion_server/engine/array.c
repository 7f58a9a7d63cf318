// Arrays, mipmapped arrays, textures and surfaces, in tables that exist only in sessions that use them. Handles of
// textures and surfaces are the driver's own values, since kernels take them; the client names objects by index.
#include <stdlib.h>
#include <string.h>

#include "ledger.h"

#define VIEW_OF_ARRAY 0x80000000u
#define DIMENSION_MAX (1ull << 32)
#define ROWS_MAX (1ull << 24)
#define LEVELS_MAX 32u
#define RETRY_NS 200000u
#define VIEWED_ARRAY 1u
#define TRUE_UP_MOST_BYTES (32ull << 20)

typedef struct array_state {
  CUarray handle;
  uint32_t source;  // 0: its own; else the index of the mipmap it is a level of, | VIEW_OF_ARRAY: of a plane's array
  uint16_t context;
  uint64_t charged_bytes;
} array_state;

typedef struct mipmap_state {
  CUmipmappedArray handle;
  uint16_t context;
  uint64_t charged_bytes;
} mipmap_state;

typedef struct texture_state {
  uint64_t handle;
  uint16_t context;
  bool alive;
  bool surface;
} texture_state;

typedef struct array_ledger {
  array_state arrays[ORION_ARRAYS];
  mipmap_state mipmaps[ORION_MIPMAPS];
  texture_state textures[ORION_TEXTURES];
  uint32_t array_high, mipmap_high, texture_high;  // one past the highest index in use
} array_ledger;

static array_ledger* ledger_of(orion_engine* e) {
  if (!e->arrays) e->arrays = calloc(1, sizeof *e->arrays);
  return e->arrays;
}

static array_state* array_at(const orion_engine* e, uint64_t index) {
  if (!e->arrays || index >= ORION_ARRAYS) return NULL;
  array_state* a = &e->arrays->arrays[index];
  return a->handle ? a : NULL;
}

static mipmap_state* mipmap_at(const orion_engine* e, uint64_t index) {
  if (!e->arrays || index >= ORION_MIPMAPS) return NULL;
  mipmap_state* m = &e->arrays->mipmaps[index];
  return m->handle ? m : NULL;
}

CUarray array_handle(const orion_engine* e, uint64_t index) {
  const array_state* a = array_at(e, index);
  return a ? a->handle : NULL;
}

// ------------------------------------------------------------------------------------------------ memory
/// Charges the most that an array can take. One that no GPU could hold is the driver's to refuse.
static int32_t charge(orion_engine* e, const orion_op* op, const CUDA_ARRAY3D_DESCRIPTOR* d, uint32_t levels,
                      uint64_t* charged_bytes) {
  const uint64_t bytes = ledger_array_bytes(d, levels);
  if (bytes == UINT64_MAX) return 0;
  const int32_t result = ledger_charge(e, op, e->contexts[op->context].device, ORION_MEMORY_ARRAY, bytes);
  if (!result) *charged_bytes = bytes;
  return result;
}

/// Charges what the driver has taken beyond that.
static int32_t true_up(orion_engine* e, const orion_op* op, ledger_mark mark, uint64_t* charged_bytes) {
  const uint64_t most_bytes = *charged_bytes + TRUE_UP_MOST_BYTES;
  mark.free_bytes -= mark.free_bytes < *charged_bytes ? mark.free_bytes : *charged_bytes;
  return ledger_settle(e, e->contexts[op->context].device, ORION_MEMORY_ARRAY, mark, most_bytes, charged_bytes);
}

static void uncharge(orion_engine* e, uint32_t context, uint64_t bytes) {
  ledger_uncharge(e, e->contexts[context].device, ORION_MEMORY_ARRAY, bytes);
}

// ------------------------------------------------------------------------------------------------ arrays
static int32_t create_mipmap(orion_engine* e, const orion_op_mipmap_create* o, const CUDA_ARRAY3D_DESCRIPTOR* d) {
  array_ledger* ledger = ledger_of(e);
  if (!ledger) return CUDA_ERROR_OUT_OF_MEMORY;
  if (!o->mipmap || o->mipmap >= ORION_MIPMAPS || ledger->mipmaps[o->mipmap].handle || o->levels > LEVELS_MAX) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  CUmipmappedArray handle = NULL;
  uint64_t charged_bytes = 0;
  const ledger_mark mark = ledger_begin(e, e->contexts[o->op.context].device);
  int32_t result = charge(e, &o->op, d, o->levels, &charged_bytes);
  if (result) return result;
  result = answer_check(e, o->op.context, (int32_t)e->driver.mipmap_create(&handle, d, o->levels));
  if (!result) {
    result = true_up(e, &o->op, mark, &charged_bytes);
    if (result) (void)e->driver.mipmap_destroy(handle);
  }
  if (result) {
    uncharge(e, o->op.context, charged_bytes);
    return result;
  }
  ledger->mipmaps[o->mipmap] = (mipmap_state){handle, o->op.context, charged_bytes};
  if (o->mipmap >= ledger->mipmap_high) ledger->mipmap_high = o->mipmap + 1;
  return 0;
}

static void bind_array(orion_engine* e, const orion_op* op, uint32_t index, CUarray handle, uint32_t source,
                       uint64_t charged_bytes) {
  array_ledger* ledger = e->arrays;
  ledger->arrays[index] = (array_state){handle, source, op->context, charged_bytes};
  if (index >= ledger->array_high) ledger->array_high = index + 1;
}

static int32_t create_array(orion_engine* e, const orion_op* op, uint32_t index, const CUDA_ARRAY3D_DESCRIPTOR* d) {
  CUarray handle = NULL;
  uint64_t charged_bytes = 0;
  const ledger_mark mark = ledger_begin(e, e->contexts[op->context].device);
  int32_t result = charge(e, op, d, 1, &charged_bytes);
  if (result) return result;
  result = answer_check(e, op->context, (int32_t)e->driver.array_create(&handle, d));
  if (!result) {
    result = true_up(e, op, mark, &charged_bytes);
    if (result) (void)e->driver.array_destroy(handle);
  }
  if (result) {
    uncharge(e, op->context, charged_bytes);
  } else {
    bind_array(e, op, index, handle, 0, charged_bytes);
  }
  return result;
}

static bool array_is_free(orion_engine* e, uint32_t index) {
  return index && index < ORION_ARRAYS && ledger_of(e) && !e->arrays->arrays[index].handle;
}

enum step array_create(orion_engine* e, const orion_op* op) {
  const orion_op_array_create* o = (const orion_op_array_create*)op;  // both operations begin alike
  if (!use_context(e, op)) return STEP_DONE;
  const uint32_t refused = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;  // would need memory mapped into them
  int32_t result = 0;
  if (o->width > DIMENSION_MAX || o->height > DIMENSION_MAX || o->depth > DIMENSION_MAX) {
    result = CUDA_ERROR_INVALID_VALUE;
  } else if (o->array_flags & refused) {
    result = CUDA_ERROR_NOT_SUPPORTED;
  }
  if (result) {
    answer_result(e, op, result);
    return STEP_DONE;
  }
  const CUDA_ARRAY3D_DESCRIPTOR descriptor = {.Width = o->width,
                                              .Height = o->height,
                                              .Depth = o->depth,
                                              .Format = (CUarray_format)o->format,
                                              .NumChannels = o->channels,
                                              .Flags = o->array_flags};
  if (op->code == ORION_OP_MIPMAP_CREATE) {
    result = create_mipmap(e, (const orion_op_mipmap_create*)op, &descriptor);
  } else if (!array_is_free(e, o->array)) {
    result = CUDA_ERROR_INVALID_VALUE;
  } else {
    result = create_array(e, op, o->array, &descriptor);
  }
  // Memory that was freed before is on its way back, or orion-server has been asked for more.
  if (result == LEDGER_WAITS || (result == CUDA_ERROR_OUT_OF_MEMORY && e->first_batch)) {
    park_cause(e, CAUSE_TIME, 0, engine_now_ns() + RETRY_NS, NULL);
    return STEP_AGAIN;
  }
  answer_result(e, op, result);
  return STEP_DONE;
}

static void forget_views(orion_engine* e, uint32_t source) {
  for (uint32_t i = 0; i < e->arrays->array_high; i++) {
    if (e->arrays->arrays[i].source == source) e->arrays->arrays[i] = (array_state){0};
  }
}

static void close_array(orion_engine* e, uint32_t index) {
  array_state* a = &e->arrays->arrays[index];
  forget_views(e, index | VIEW_OF_ARRAY);
  (void)answer_check(e, a->context, (int32_t)e->driver.array_destroy(a->handle));
  uncharge(e, a->context, a->charged_bytes);
  *a = (array_state){0};
  e->frees_progressed = true;
}

static void close_mipmap(orion_engine* e, uint32_t index) {
  mipmap_state* m = &e->arrays->mipmaps[index];
  forget_views(e, index);
  (void)answer_check(e, m->context, (int32_t)e->driver.mipmap_destroy(m->handle));
  uncharge(e, m->context, m->charged_bytes);
  *m = (mipmap_state){0};
  e->frees_progressed = true;
}

void array_destroy(orion_engine* e, const orion_op* op) {
  const uint32_t index = ((const orion_op_array_destroy*)op)->array;  // both operations begin alike
  if (!use_context(e, op)) return;
  int32_t result = CUDA_ERROR_INVALID_HANDLE;
  if (op->code == ORION_OP_MIPMAP_DESTROY) {
    const mipmap_state* m = mipmap_at(e, index);
    if (m && m->context == op->context) {
      close_mipmap(e, index);
      result = 0;
    }
  } else {
    const array_state* a = array_at(e, index);
    if (a && a->context == op->context && !a->source) {
      close_array(e, index);
      result = 0;
    }
  }
  answer_result(e, op, result);
}

void array_view(orion_engine* e, const orion_op* op) {
  const orion_op_array_view* o = (const orion_op_array_view*)op;
  if (!use_context(e, op)) return;
  const mipmap_state* m = o->kind == 0 ? mipmap_at(e, o->source) : NULL;
  const array_state* a = o->kind == VIEWED_ARRAY ? array_at(e, o->source) : NULL;
  if ((!m && (!a || a->source)) || !array_is_free(e, o->array) || o->number >= LEVELS_MAX) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  CUarray handle = NULL;
  CUDA_ARRAY3D_DESCRIPTOR d = {0};
  int32_t result = (int32_t)(m ? e->driver.mipmap_level(&handle, m->handle, o->number)
                               : e->driver.array_plane(&handle, a->handle, o->number));
  if (!result) result = (int32_t)e->driver.array_descriptor(&d, handle);
  if (!result) bind_array(e, op, o->array, handle, m ? o->source : o->source | VIEW_OF_ARRAY, 0);
  const orion_reply_array_view reply = {.width = d.Width,
                                        .height = d.Height,
                                        .depth = d.Depth,
                                        .format = (uint32_t)d.Format,
                                        .channels = d.NumChannels,
                                        .array_flags = d.Flags};
  answer_reply(e, op, answer_check(e, op->context, result), &reply, sizeof reply);
}

// ------------------------------------------------------------------------------------------------ textures, surfaces
typedef struct texture_tail {
  uint32_t address_mode[3], filter, flags, anisotropy, mipmap_filter;
  float bias, minimum, maximum, border[4];
} texture_tail;
_Static_assert(sizeof(texture_tail) == 56, "the tail has no padding");

typedef struct view_tail {
  uint64_t width, height, depth;
  uint32_t format, first_level, last_level, first_layer, last_layer, zero;
} view_tail;
_Static_assert(sizeof(view_tail) == 48, "the tail has no padding");

// What the operation's resource is, with every array and address checked. False: refused.
static bool resource_of(const orion_engine* e, const orion_op_texture_create* o, CUDA_RESOURCE_DESC* r) {
  memset(r, 0, sizeof *r);
  r->resType = (CUresourcetype)o->resource;
  switch (o->resource) {
    case CU_RESOURCE_TYPE_ARRAY:
      r->res.array.hArray = array_handle(e, o->array);
      return r->res.array.hArray != NULL;
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY: {
      const mipmap_state* m = mipmap_at(e, o->array);
      if (!m) return false;
      r->res.mipmap.hMipmappedArray = m->handle;
      return true;
    }
    case CU_RESOURCE_TYPE_LINEAR:
      r->res.linear.devPtr = o->device_address;
      r->res.linear.format = (CUarray_format)o->format;
      r->res.linear.numChannels = o->channels;
      r->res.linear.sizeInBytes = o->size_bytes;
      return memory_device_ok(e, o->device_address, o->size_bytes);
    case CU_RESOURCE_TYPE_PITCH2D: {
      if (!o->height || o->height > ROWS_MAX || o->pitch_bytes > DIMENSION_MAX || o->width > DIMENSION_MAX) {
        return false;
      }
      r->res.pitch2D.devPtr = o->device_address;
      r->res.pitch2D.format = (CUarray_format)o->format;
      r->res.pitch2D.numChannels = o->channels;
      r->res.pitch2D.width = o->width;
      r->res.pitch2D.height = o->height;
      r->res.pitch2D.pitchInBytes = o->pitch_bytes;
      // An element has at least one byte: what the last row holds beyond that is the driver's to check.
      return memory_device_ok(e, o->device_address, (o->height - 1) * o->pitch_bytes + o->width);
    }
    default:
      return false;
  }
}

static bool texture_of(const orion_op* op, CUDA_TEXTURE_DESC* t, CUDA_RESOURCE_VIEW_DESC* v, bool* has_view) {
  texture_tail tail;
  view_tail view;
  const uint32_t bytes = op_tail_bytes(op);
  if (bytes != sizeof tail && bytes != sizeof tail + sizeof view) return false;
  memcpy(&tail, op_tail(op), sizeof tail);
  memset(t, 0, sizeof *t);
  for (int i = 0; i < 3; i++) t->addressMode[i] = (CUaddress_mode)tail.address_mode[i];
  t->filterMode = (CUfilter_mode)tail.filter;
  t->flags = tail.flags;
  t->maxAnisotropy = tail.anisotropy;
  t->mipmapFilterMode = (CUfilter_mode)tail.mipmap_filter;
  t->mipmapLevelBias = tail.bias;
  t->minMipmapLevelClamp = tail.minimum;
  t->maxMipmapLevelClamp = tail.maximum;
  memcpy(t->borderColor, tail.border, sizeof tail.border);
  *has_view = bytes > sizeof tail;
  if (!*has_view) return true;
  memcpy(&view, op_tail(op) + sizeof tail, sizeof view);
  *v = (CUDA_RESOURCE_VIEW_DESC){.format = view.format,
                                 .width = view.width,
                                 .height = view.height,
                                 .depth = view.depth,
                                 .firstMipmapLevel = view.first_level,
                                 .lastMipmapLevel = view.last_level,
                                 .firstLayer = view.first_layer,
                                 .lastLayer = view.last_layer};
  return true;
}

void texture_create(orion_engine* e, const orion_op* op) {
  const orion_op_texture_create* o = (const orion_op_texture_create*)op;
  if (!use_context(e, op)) return;
  array_ledger* ledger = ledger_of(e);
  CUDA_RESOURCE_DESC resource;
  CUDA_TEXTURE_DESC texture;
  CUDA_RESOURCE_VIEW_DESC view;
  bool has_view = false;
  if (!ledger || !o->object || o->object >= ORION_TEXTURES || ledger->textures[o->object].alive ||
      !resource_of(e, o, &resource) ||
      (o->surface ? op_tail_bytes(op) != 0 : !texture_of(op, &texture, &view, &has_view))) {
    answer_result(e, op, ledger ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY);
    return;
  }
  unsigned long long handle = 0;
  const int32_t result = answer_check(
      e, op->context,
      (int32_t)(o->surface ? e->driver.surface_create(&handle, &resource)
                           : e->driver.texture_create(&handle, &resource, &texture, has_view ? &view : NULL)));
  if (!result) {
    ledger->textures[o->object] = (texture_state){handle, op->context, true, o->surface != 0};
    if (o->object >= ledger->texture_high) ledger->texture_high = o->object + 1;
  }
  const orion_reply_texture_create reply = {handle};
  answer_reply(e, op, result, &reply, sizeof reply);
}

static int32_t close_texture(orion_engine* e, uint32_t index) {
  texture_state* t = &e->arrays->textures[index];
  const CUresult result = t->surface ? e->driver.surface_destroy(t->handle) : e->driver.texture_destroy(t->handle);
  const int32_t checked = answer_check(e, t->context, (int32_t)result);
  *t = (texture_state){0};
  return checked;
}

void texture_destroy(orion_engine* e, const orion_op* op) {
  const orion_op_texture_destroy* o = (const orion_op_texture_destroy*)op;
  if (!use_context(e, op)) return;
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (e->arrays && o->object < ORION_TEXTURES) {
    const texture_state* t = &e->arrays->textures[o->object];
    if (t->alive && t->context == op->context) result = close_texture(e, o->object);
  }
  answer_result(e, op, result);
}

// ------------------------------------------------------------------------------------------------ ends
void array_drop_context(orion_engine* e, uint32_t context) {
  array_ledger* ledger = e->arrays;
  if (!ledger) return;
  for (uint32_t i = 0; i < ledger->texture_high; i++) {
    if (ledger->textures[i].alive && ledger->textures[i].context == context) (void)close_texture(e, i);
  }
  for (uint32_t i = 0; i < ledger->mipmap_high; i++) {
    if (ledger->mipmaps[i].handle && ledger->mipmaps[i].context == context) close_mipmap(e, i);
  }
  for (uint32_t i = 0; i < ledger->array_high; i++) {
    const array_state* a = &ledger->arrays[i];
    if (a->handle && !a->source && a->context == context) close_array(e, i);
  }
}

void array_free_all(orion_engine* e) {
  free(e->arrays);
  e->arrays = NULL;
}
