// Arrays, mipmapped arrays, textures and surfaces. An array's elements lie in device memory row by row, so copies treat
// it as memory with a pitch, and a kernel that outlives it faults as with any freed memory.
#pragma once
#include <memory>
#include <vector>

#include "cuda_types.h"
#include "sg_texture.h"

using CUmipmappedArray = struct CUmipmappedArray_st*;
using CUtexObject = unsigned long long;
using CUsurfObject = unsigned long long;

struct CUDA_ARRAY_DESCRIPTOR {
  size_t Width, Height;
  int Format;
  unsigned NumChannels;
};
static_assert(sizeof(CUDA_ARRAY_DESCRIPTOR) == 24);

struct CUDA_ARRAY3D_DESCRIPTOR {
  size_t Width, Height, Depth;
  int Format;
  unsigned NumChannels, Flags;
};
static_assert(sizeof(CUDA_ARRAY3D_DESCRIPTOR) == 40);

enum : unsigned {
  CUDA_ARRAY3D_LAYERED = 1,
  CUDA_ARRAY3D_SURFACE_LDST = 2,
  CUDA_ARRAY3D_CUBEMAP = 4,
  CUDA_ARRAY3D_TEXTURE_GATHER = 8,
  CUDA_ARRAY3D_SPARSE = 0x40,
  CUDA_ARRAY3D_DEFERRED_MAPPING = 0x80,
};

enum CUresourcetype : int {
  CU_RESOURCE_TYPE_ARRAY = 0,
  CU_RESOURCE_TYPE_MIPMAPPED_ARRAY = 1,
  CU_RESOURCE_TYPE_LINEAR = 2,
  CU_RESOURCE_TYPE_PITCH2D = 3,
};

struct CUDA_RESOURCE_DESC {  // NOLINT(bugprone-tagged-union-member-count): the fifth reserves room
  CUresourcetype resType;
  union {
    CUarray array;
    CUmipmappedArray mipmap;
    struct {
      CUdeviceptr devPtr;
      int format;
      unsigned numChannels;
      size_t sizeInBytes;
    } linear;
    struct {
      CUdeviceptr devPtr;
      int format;
      unsigned numChannels;
      size_t width, height, pitchInBytes;
    } pitch2D;
    int reserved[32];
  } res;
  unsigned flags;
};
static_assert(sizeof(CUDA_RESOURCE_DESC) == 144);

enum : unsigned { CU_TRSF_READ_AS_INTEGER = 1, CU_TRSF_NORMALIZED_COORDINATES = 2 };

struct CUDA_TEXTURE_DESC {
  int addressMode[3];
  int filterMode;
  unsigned flags, maxAnisotropy;
  int mipmapFilterMode;
  float mipmapLevelBias, minMipmapLevelClamp, maxMipmapLevelClamp, borderColor[4];
  int reserved[12];
};
static_assert(sizeof(CUDA_TEXTURE_DESC) == 104);

struct CUDA_RESOURCE_VIEW_DESC {
  int format;
  size_t width, height, depth;
  unsigned firstMipmapLevel, lastMipmapLevel, firstLayer, lastLayer, reserved[16];
};
static_assert(sizeof(CUDA_RESOURCE_VIEW_DESC) == 112);

namespace sg {

struct Context;

struct Array {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  CUDA_ARRAY3D_DESCRIPTOR descriptor{};
  TextureLevel level;
  uint32_t element_bytes = 0;
  bool is_level = false;  // of a mipmapped array, which owns the memory
};

struct MipmappedArray {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  CUDA_ARRAY3D_DESCRIPTOR descriptor{};
  uint64_t address = 0;
  std::vector<std::shared_ptr<Array>> levels;
};

struct TextureObject {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  Texture texture;
  CUDA_RESOURCE_DESC resource{};
  CUDA_TEXTURE_DESC description{};
  CUDA_RESOURCE_VIEW_DESC view{};
  bool has_view = false;
};

/// How elements of a format are read; false for a format that the machine does not know.
bool set_format(int format, unsigned channels, Texture* texture);

}  // namespace sg
