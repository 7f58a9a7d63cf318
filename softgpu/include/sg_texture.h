// What a texture or surface handle means to kernels: where its elements lie, and how they are read.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sg {

constexpr uint32_t kTextureLevels = 17;

/// Elements in rows of `pitch_bytes`, rows in slices of `slice_bytes`.
struct TextureLevel {
  uint64_t address = 0;
  uint32_t width = 1, height = 1, depth = 1;  // in elements; 1 where there is no such dimension
  size_t pitch_bytes = 0, slice_bytes = 0;
};

struct Texture {
  enum class Element : uint8_t { unsigned_integer, signed_integer, real };
  enum class Mode : uint8_t { wrap, clamp, mirror, border };
  TextureLevel levels[kTextureLevels];
  uint32_t level_count = 1;
  uint32_t layers = 0;  // 0: not layered; the depth of a level counts layers then
  Element element = Element::real;
  uint32_t channels = 1, channel_bytes = 4;
  bool is_surface = false;
  bool is_linear = false;  // plain memory: fetched by index, 0 outside
  bool linear_filter = false;
  bool normalized_coordinates = false;
  bool reads_as_integer = false;  // integers as they are, not as fractions of their range
  Mode mode[3] = {Mode::wrap, Mode::wrap, Mode::wrap};
  float border[4] = {0, 0, 0, 0};

  uint32_t element_bytes() const { return channels * channel_bytes; }
};

}  // namespace sg
