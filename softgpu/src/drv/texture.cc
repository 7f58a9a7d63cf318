// Texture and surface objects.
#include <cstring>

#include "api.h"

using namespace sg;

namespace {

constexpr size_t kAddressAlignment = 512;
constexpr size_t kPitchAlignment = 32;
constexpr size_t kMaxLinearElements = size_t{1} << 28;

CUresult set_level(Texture* t, uint32_t number, const Array& array) {
  if (!set_format(array.descriptor.Format, array.descriptor.NumChannels, t)) return CUDA_ERROR_NOT_SUPPORTED;
  t->levels[number] = array.level;
  const bool layered = array.descriptor.Flags & CUDA_ARRAY3D_LAYERED;
  t->layers = layered ? array.level.depth : 0;
  return CUDA_SUCCESS;
}

CUresult set_linear(Driver& driver, Context& context, const CUDA_RESOURCE_DESC& r, Texture* t) {
  const auto& linear = r.res.linear;
  if (!set_format(linear.format, linear.numChannels, t)) return CUDA_ERROR_INVALID_VALUE;
  const size_t elements = linear.sizeInBytes / t->element_bytes();
  if (linear.devPtr % t->element_bytes() || elements == 0 || elements > kMaxLinearElements) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!driver.map.covers(linear.devPtr, linear.sizeInBytes, context.device)) return CUDA_ERROR_INVALID_VALUE;
  t->is_linear = true;
  t->levels[0].address = linear.devPtr;
  t->levels[0].width = static_cast<uint32_t>(elements);
  t->levels[0].pitch_bytes = t->levels[0].slice_bytes = linear.sizeInBytes;
  return CUDA_SUCCESS;
}

CUresult set_pitched(Driver& driver, Context& context, const CUDA_RESOURCE_DESC& r, Texture* t) {
  const auto& p = r.res.pitch2D;
  if (!set_format(p.format, p.numChannels, t)) return CUDA_ERROR_INVALID_VALUE;
  const size_t row_bytes = p.width * t->element_bytes();
  if (p.width == 0 || p.height == 0 || p.width > 131072 || p.height > 65536 || p.devPtr % kAddressAlignment ||
      p.pitchInBytes % kPitchAlignment || p.pitchInBytes < row_bytes || p.pitchInBytes > size_t{1} << 21) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!driver.map.covers(p.devPtr, (p.height - 1) * p.pitchInBytes + row_bytes, context.device)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  t->levels[0].address = p.devPtr;
  t->levels[0].width = static_cast<uint32_t>(p.width);
  t->levels[0].height = static_cast<uint32_t>(p.height);
  t->levels[0].pitch_bytes = p.pitchInBytes;
  t->levels[0].slice_bytes = p.pitchInBytes * p.height;
  return CUDA_SUCCESS;
}

CUresult set_resource(Driver& driver, Context& context, const CUDA_RESOURCE_DESC& r, Texture* t) {
  if (r.flags != 0) return CUDA_ERROR_INVALID_VALUE;
  switch (r.resType) {
    case CU_RESOURCE_TYPE_ARRAY: {
      auto array = driver.arrays.get(r.res.array);
      return array ? set_level(t, 0, *array) : CUDA_ERROR_INVALID_HANDLE;
    }
    case CU_RESOURCE_TYPE_MIPMAPPED_ARRAY: {
      auto mipmap = driver.mipmapped_arrays.get(r.res.mipmap);
      if (!mipmap) return CUDA_ERROR_INVALID_HANDLE;
      t->level_count = static_cast<uint32_t>(mipmap->levels.size());
      for (uint32_t i = 0; i < t->level_count; ++i) {
        const CUresult set = set_level(t, i, *mipmap->levels[i]);
        if (set != CUDA_SUCCESS) return set;
      }
      return CUDA_SUCCESS;
    }
    case CU_RESOURCE_TYPE_LINEAR:
      return set_linear(driver, context, r, t);
    case CU_RESOURCE_TYPE_PITCH2D:
      return set_pitched(driver, context, r, t);
  }
  return CUDA_ERROR_INVALID_VALUE;
}

/// After the resource, whose format says what a filter may do.
CUresult set_reading(const CUDA_TEXTURE_DESC& d, Texture* t) {
  for (int i = 0; i < 3; ++i) {
    if (d.addressMode[i] < 0 || d.addressMode[i] > 3) return CUDA_ERROR_INVALID_VALUE;
    t->mode[i] = static_cast<Texture::Mode>(d.addressMode[i]);
  }
  if (d.filterMode < 0 || d.filterMode > 1 || d.maxAnisotropy > 16) return CUDA_ERROR_INVALID_VALUE;
  t->reads_as_integer = d.flags & CU_TRSF_READ_AS_INTEGER;
  t->normalized_coordinates = d.flags & CU_TRSF_NORMALIZED_COORDINATES;
  t->linear_filter = d.filterMode == 1;
  std::memcpy(t->border, d.borderColor, sizeof t->border);
  const bool real = t->element == Texture::Element::real;
  if (t->linear_filter && !real && (t->reads_as_integer || t->channel_bytes == 4)) return CUDA_ERROR_INVALID_VALUE;
  if (!t->normalized_coordinates) {  // repetition is defined over the unit interval only
    for (Texture::Mode& mode : t->mode) {
      if (mode == Texture::Mode::wrap || mode == Texture::Mode::mirror) mode = Texture::Mode::clamp;
    }
  }
  return CUDA_SUCCESS;
}

template <class Out>
CUresult question(bool surface, CUtexObject handle, Out* out, Out TextureObject::* member) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    auto object = driver.textures.get(handle);
    if (!out || !object || object->texture.is_surface != surface || object->context.get() != &context) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    *out = (*object).*member;
    return CUDA_SUCCESS;
  });
}

CUresult destroy(bool surface, CUtexObject handle) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    auto object = driver.textures.get(handle);
    if (!object || object->texture.is_surface != surface || object->context.get() != &context) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    driver.textures.take(handle);
    return CUDA_SUCCESS;
  });
}

}  // namespace

namespace sg {

bool ContextSpace::texture(uint64_t handle, Texture* out) const {
  auto object = Driver::get().textures.get(handle);
  if (!object || object->context->id != context_id_) return false;
  *out = object->texture;
  return true;
}

}  // namespace sg

SG_API cuTexObjectCreate(CUtexObject* out, const CUDA_RESOURCE_DESC* resource, const CUDA_TEXTURE_DESC* texture,
                         const CUDA_RESOURCE_VIEW_DESC* view) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || !resource || !texture) return CUDA_ERROR_INVALID_VALUE;
    if (view && view->format != 0) return CUDA_ERROR_NOT_SUPPORTED;
    auto object = std::make_shared<TextureObject>();
    CUresult set = set_resource(driver, context, *resource, &object->texture);
    if (set == CUDA_SUCCESS) set = set_reading(*texture, &object->texture);
    if (set != CUDA_SUCCESS) return set;
    object->context = context.shared_from_this();
    object->resource = *resource;
    object->description = *texture;
    object->has_view = view != nullptr;
    if (view) object->view = *view;
    *out = driver.textures.add(object);
    return CUDA_SUCCESS;
  });
}

SG_API cuTexObjectDestroy(CUtexObject handle) { return destroy(false, handle); }
SG_API cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC* out, CUtexObject handle) {
  return question(false, handle, out, &TextureObject::resource);
}
SG_API cuTexObjectGetTextureDesc(CUDA_TEXTURE_DESC* out, CUtexObject handle) {
  return question(false, handle, out, &TextureObject::description);
}
SG_API cuTexObjectGetResourceViewDesc(CUDA_RESOURCE_VIEW_DESC* out, CUtexObject handle) {
  return question(false, handle, out, &TextureObject::view);
}

SG_API cuSurfObjectCreate(CUsurfObject* out, const CUDA_RESOURCE_DESC* resource) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || !resource || resource->resType != CU_RESOURCE_TYPE_ARRAY) return CUDA_ERROR_INVALID_VALUE;
    auto array = driver.arrays.get(resource->res.array);
    if (!array) return CUDA_ERROR_INVALID_HANDLE;
    if (!(array->descriptor.Flags & CUDA_ARRAY3D_SURFACE_LDST)) return CUDA_ERROR_INVALID_VALUE;
    auto object = std::make_shared<TextureObject>();
    const CUresult set = set_resource(driver, context, *resource, &object->texture);
    if (set != CUDA_SUCCESS) return set;
    object->texture.is_surface = true;
    object->context = context.shared_from_this();
    object->resource = *resource;
    *out = driver.textures.add(object);
    return CUDA_SUCCESS;
  });
}

SG_API cuSurfObjectDestroy(CUsurfObject handle) { return destroy(true, handle); }
SG_API cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC* out, CUsurfObject handle) {
  return question(true, handle, out, &TextureObject::resource);
}
