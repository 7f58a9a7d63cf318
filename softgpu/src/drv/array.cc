// Arrays and mipmapped arrays: creation, memory, questions.
#include "array.h"

#include <algorithm>
#include <cstring>

#include "api.h"

namespace sg {

bool set_format(int format, unsigned channels, Texture* texture) {
  if (channels != 1 && channels != 2 && channels != 4) return false;
  texture->channels = channels;
  switch (format) {
    case 1:
    case 2:
    case 3:
      texture->element = Texture::Element::unsigned_integer;
      texture->channel_bytes = 1u << (format - 1);
      return true;
    case 8:
    case 9:
    case 10:
      texture->element = Texture::Element::signed_integer;
      texture->channel_bytes = 1u << (format - 8);
      return true;
    case 16:
    case 32:
      texture->element = Texture::Element::real;
      texture->channel_bytes = static_cast<uint32_t>(format) / 8;
      return true;
    default:
      return false;
  }
}

}  // namespace sg

using namespace sg;

namespace {

constexpr size_t kMaxWidth = 131072;
constexpr size_t kMaxHeight = 65536;
constexpr size_t kMaxEdge3d = 16384;
constexpr size_t kMaxLayers = 2048;

CUresult check_descriptor(const CUDA_ARRAY3D_DESCRIPTOR& d, uint32_t* element_bytes) {
  const unsigned known =
      CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_SURFACE_LDST | CUDA_ARRAY3D_CUBEMAP | CUDA_ARRAY3D_TEXTURE_GATHER;
  if (d.Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) return CUDA_ERROR_NOT_SUPPORTED;
  Texture texture;
  if ((d.Flags & ~known) != 0 || !set_format(d.Format, d.NumChannels, &texture)) return CUDA_ERROR_INVALID_VALUE;
  const bool layered = d.Flags & CUDA_ARRAY3D_LAYERED, cube = d.Flags & CUDA_ARRAY3D_CUBEMAP;
  const bool deep = d.Depth > 0 && !layered && !cube;
  if (d.Width == 0 || (deep && d.Height == 0) || (layered && d.Depth == 0)) return CUDA_ERROR_INVALID_VALUE;
  if (cube && (d.Width != d.Height || d.Depth % 6 || d.Depth == 0 || (!layered && d.Depth != 6))) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (d.Width > (deep ? kMaxEdge3d : kMaxWidth) || d.Height > (deep ? kMaxEdge3d : kMaxHeight) ||
      d.Depth > (deep ? kMaxEdge3d : kMaxLayers)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *element_bytes = texture.element_bytes();
  return CUDA_SUCCESS;
}

TextureLevel level_of(const CUDA_ARRAY3D_DESCRIPTOR& d, uint32_t element_bytes) {
  TextureLevel level;
  level.width = static_cast<uint32_t>(d.Width);
  level.height = static_cast<uint32_t>(std::max<size_t>(d.Height, 1));
  level.depth = static_cast<uint32_t>(std::max<size_t>(d.Depth, 1));
  level.pitch_bytes = size_t{level.width} * element_bytes;
  level.slice_bytes = level.pitch_bytes * level.height;
  return level;
}

uint64_t take_memory(Driver& driver, Context& context, size_t bytes) {
  Region region;
  region.begin = driver.devices[context.device]->arena->allocate(bytes, &region.charged_bytes);
  if (region.begin == 0) return 0;
  region.end = region.begin + bytes;
  region.device = context.device;
  region.context_id = context.id;
  region.buffer_id = driver.map.next_buffer_id();
  const uint64_t address = region.begin;
  driver.map.insert(std::move(region));
  return address;
}

void give_memory(Driver& driver, Context& context, uint64_t address) {
  context.synchronize();
  auto region = driver.map.remove(address);
  if (region) driver.release_regions({*region});
}

CUresult create(CUarray* out, const CUDA_ARRAY3D_DESCRIPTOR& descriptor) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    auto array = std::make_shared<Array>();
    const CUresult checked = check_descriptor(descriptor, &array->element_bytes);
    if (checked != CUDA_SUCCESS) return checked;
    array->context = context.shared_from_this();
    array->descriptor = descriptor;
    array->level = level_of(descriptor, array->element_bytes);
    const CUresult injected = allocation_fault(array->level.slice_bytes * array->level.depth);
    if (injected != CUDA_SUCCESS) return injected;
    array->level.address = take_memory(driver, context, array->level.slice_bytes * array->level.depth);
    if (array->level.address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = to_handle<CUarray>(driver.arrays.add(array));
    return CUDA_SUCCESS;
  });
}

/// The descriptor of the next smaller level.
CUDA_ARRAY3D_DESCRIPTOR halved(CUDA_ARRAY3D_DESCRIPTOR d) {
  const bool layers = d.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
  d.Width = std::max<size_t>(d.Width / 2, 1);
  if (d.Height) d.Height = std::max<size_t>(d.Height / 2, 1);
  if (d.Depth && !layers) d.Depth = std::max<size_t>(d.Depth / 2, 1);
  return d;
}

unsigned level_limit(const CUDA_ARRAY3D_DESCRIPTOR& d) {
  const bool layers = d.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
  size_t largest = std::max({d.Width, d.Height, layers ? size_t{1} : d.Depth});
  unsigned count = 1;
  for (; largest > 1; largest /= 2) ++count;
  return count;
}

}  // namespace

SG_API cuArray3DCreate_v2(CUarray* out, const CUDA_ARRAY3D_DESCRIPTOR* descriptor) {
  if (!out || !descriptor) return CUDA_ERROR_INVALID_VALUE;
  return create(out, *descriptor);
}

SG_API cuArrayCreate_v2(CUarray* out, const CUDA_ARRAY_DESCRIPTOR* d) {
  if (!out || !d) return CUDA_ERROR_INVALID_VALUE;
  return create(out, CUDA_ARRAY3D_DESCRIPTOR{d->Width, d->Height, 0, d->Format, d->NumChannels, 0});
}

SG_API cuArrayDestroy(CUarray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto array = driver.arrays.get(handle);
    if (!array && driver.arrays.ever_issued(from_handle(handle))) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!array || array->is_level || !driver.arrays.take(handle)) return CUDA_ERROR_INVALID_HANDLE;
    give_memory(driver, *array->context, array->level.address);
    return CUDA_SUCCESS;
  });
}

SG_API cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR* out, CUarray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto array = driver.arrays.get(handle);
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!array) return CUDA_ERROR_INVALID_HANDLE;
    *out = array->descriptor;
    return CUDA_SUCCESS;
  });
}

SG_API cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR* out, CUarray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto array = driver.arrays.get(handle);
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!array) return CUDA_ERROR_INVALID_HANDLE;
    const CUDA_ARRAY3D_DESCRIPTOR& d = array->descriptor;
    *out = CUDA_ARRAY_DESCRIPTOR{d.Width, d.Height, d.Format, d.NumChannels};
    return CUDA_SUCCESS;
  });
}

SG_API cuArrayGetPlane(CUarray* out, CUarray handle, unsigned) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    return driver.arrays.get(handle) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;  // none is planar
  });
}

// No array here is mapped piece by piece.
SG_API cuArrayGetMemoryRequirements(void* out, CUarray handle, CUdevice) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    return out && !driver.arrays.get(handle) ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
  });
}
SG_API cuArrayGetSparseProperties(void* out, CUarray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    return out && !driver.arrays.get(handle) ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
  });
}
SG_API cuMipmappedArrayGetMemoryRequirements(void* out, CUmipmappedArray handle, CUdevice) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    return out && !driver.mipmapped_arrays.get(handle) ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
  });
}
SG_API cuMipmappedArrayGetSparseProperties(void* out, CUmipmappedArray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    return out && !driver.mipmapped_arrays.get(handle) ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
  });
}

SG_API cuMipmappedArrayCreate(CUmipmappedArray* out, const CUDA_ARRAY3D_DESCRIPTOR* descriptor, unsigned levels) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || !descriptor) return CUDA_ERROR_INVALID_VALUE;
    uint32_t element_bytes = 0;
    const CUresult checked = check_descriptor(*descriptor, &element_bytes);
    if (checked != CUDA_SUCCESS) return checked;
    auto mipmap = std::make_shared<MipmappedArray>();
    mipmap->context = context.shared_from_this();
    mipmap->descriptor = *descriptor;
    const unsigned count = std::min({std::max(levels, 1u), level_limit(*descriptor), kTextureLevels});
    CUDA_ARRAY3D_DESCRIPTOR d = *descriptor;
    size_t bytes = 0;
    for (unsigned i = 0; i < count; ++i, d = halved(d)) {
      auto level = std::make_shared<Array>();
      level->context = mipmap->context;
      level->descriptor = d;
      level->element_bytes = element_bytes;
      level->level = level_of(d, element_bytes);
      level->level.address = bytes;
      level->is_level = true;
      bytes += round_up(level->level.slice_bytes * level->level.depth, 512);
      mipmap->levels.push_back(std::move(level));
    }
    mipmap->address = take_memory(driver, context, bytes);
    if (mipmap->address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    for (auto& level : mipmap->levels) {
      level->level.address += mipmap->address;
      driver.arrays.add(level);
    }
    *out = to_handle<CUmipmappedArray>(driver.mipmapped_arrays.add(mipmap));
    return CUDA_SUCCESS;
  });
}

SG_API cuMipmappedArrayDestroy(CUmipmappedArray handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto mipmap = driver.mipmapped_arrays.take(handle);
    if (!mipmap) {
      return driver.mipmapped_arrays.ever_issued(from_handle(handle)) ? CUDA_ERROR_CONTEXT_IS_DESTROYED
                                                                      : CUDA_ERROR_INVALID_HANDLE;
    }
    for (auto& level : mipmap->levels) driver.arrays.take(level->handle);
    give_memory(driver, *mipmap->context, mipmap->address);
    return CUDA_SUCCESS;
  });
}

SG_API cuMipmappedArrayGetLevel(CUarray* out, CUmipmappedArray handle, unsigned number) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto mipmap = driver.mipmapped_arrays.get(handle);
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!mipmap) return CUDA_ERROR_INVALID_HANDLE;
    if (number >= mipmap->levels.size()) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUarray>(mipmap->levels[number]->handle);
    return CUDA_SUCCESS;
  });
}
