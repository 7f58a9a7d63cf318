// Tensor maps: arguments checked by CUDA's rules, encoded in a format of our own. The machine has no instruction that
// reads one; the encoding exists so that what carries maps about can be tested.
#include <cstring>

#include "api.h"

using namespace sg;

namespace {

struct alignas(64) TensorMap {
  uint64_t words[16];
};

constexpr uint32_t kRankMax = 5;
constexpr uint32_t kDataTypes = 16;
constexpr uint32_t kFirstPacked = 13;  // 16U4_ALIGN8B, 16U4_ALIGN16B, 16U6_ALIGN16B

struct Layout {
  uint32_t data_type, rank;
  uint64_t address;
  const uint64_t* dimensions;
  const uint64_t* strides;
  const uint32_t* element_strides;
  uint32_t interleave, swizzle, l2_promotion, oob_fill;
};

uint32_t element_bits(uint32_t data_type) {
  constexpr uint32_t kBits[kDataTypes] = {8, 16, 32, 32, 64, 64, 16, 32, 64, 16, 32, 32, 32, 4, 8, 8};
  return kBits[data_type];
}

bool is_float(uint32_t data_type) { return data_type >= 6 && data_type <= 12; }

bool layout_ok(const Layout& l, uint64_t inner_elements) {
  if (l.data_type >= kDataTypes || l.rank == 0 || l.rank > kRankMax || l.interleave > 2 || l.swizzle > 6 ||
      l.l2_promotion > 3 || l.oob_fill > 1 || !l.dimensions || !l.element_strides || (l.rank > 1 && !l.strides)) {
    return false;
  }
  const bool wide = l.interleave == 2 || l.data_type > kFirstPacked;
  const uint64_t alignment = wide ? 32 : 16;
  if (l.address % alignment || (l.interleave && l.rank < 3) || (l.interleave == 2 && l.swizzle != 1)) return false;
  if (l.oob_fill && !is_float(l.data_type)) return false;
  for (uint32_t i = 0; i < l.rank; ++i) {
    if (l.dimensions[i] == 0 || l.dimensions[i] > uint64_t{1} << 32) return false;
    if (l.element_strides[i] == 0 || l.element_strides[i] > 8) return false;
    if (i + 1 < l.rank && (l.strides[i] % alignment || l.strides[i] >= uint64_t{1} << 40)) return false;
  }
  const uint64_t inner_bytes = inner_elements * element_bits(l.data_type) / 8;
  if (l.interleave == 0) {
    constexpr uint64_t kSpans[] = {~uint64_t{0}, 32, 64, 128, 128, 128, 128};
    if (inner_bytes % 16 || inner_bytes > kSpans[l.swizzle]) return false;
  }
  return true;
}

/// Word 0 is the address; the rest is a digest of everything else, so that different arguments make different maps.
void encode(TensorMap* map, const Layout& l, uint32_t kind, std::initializer_list<uint64_t> more) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  auto mix = [&](uint64_t v) { hash = (hash ^ v) * 0xff51afd7ed558ccdu, hash ^= hash >> 29; };
  std::memset(map, 0, sizeof *map);
  map->words[0] = l.address;
  for (uint64_t v : {uint64_t{kind}, uint64_t{l.data_type}, uint64_t{l.rank}, uint64_t{l.interleave},
                     uint64_t{l.swizzle}, uint64_t{l.l2_promotion}, uint64_t{l.oob_fill}}) {
    mix(v);
  }
  for (uint64_t v : more) mix(v);
  for (uint32_t i = 0; i < l.rank; ++i) {
    mix(l.element_strides[i]);
    mix(i + 1 < l.rank ? l.strides[i] : 0);
    mix(l.dimensions[i]);
    map->words[2 + i] = l.dimensions[i];
  }
  map->words[1] = hash | 1;  // never 0: tells a map from zeroed memory
}

}  // namespace

SG_API cuTensorMapEncodeTiled(TensorMap* map, uint32_t data_type, uint32_t rank, void* address,
                              const uint64_t* dimensions, const uint64_t* strides, const uint32_t* box,
                              const uint32_t* element_strides, uint32_t interleave, uint32_t swizzle,
                              uint32_t l2_promotion, uint32_t oob_fill) {
  return with_context([&](Driver&, Context&) -> CUresult {
    const Layout l{data_type,  rank,    from_handle(address), dimensions, strides, element_strides,
                   interleave, swizzle, l2_promotion,         oob_fill};
    if (!map || !box || !layout_ok(l, box[0])) return CUDA_ERROR_INVALID_VALUE;
    uint64_t boxes[2] = {0, 0};
    for (uint32_t i = 0; i < rank; ++i) {
      if (box[i] == 0 || box[i] > 256) return CUDA_ERROR_INVALID_VALUE;
      boxes[i / 3] = boxes[i / 3] << 16 | box[i];
    }
    encode(map, l, 0, {boxes[0], boxes[1]});
    return CUDA_SUCCESS;
  });
}

SG_API cuTensorMapEncodeIm2col(TensorMap* map, uint32_t data_type, uint32_t rank, void* address,
                               const uint64_t* dimensions, const uint64_t* strides, const int* lower, const int* upper,
                               uint32_t channels, uint32_t pixels, const uint32_t* element_strides, uint32_t interleave,
                               uint32_t swizzle, uint32_t l2_promotion, uint32_t oob_fill) {
  return with_context([&](Driver&, Context&) -> CUresult {
    const Layout l{data_type,  rank,    from_handle(address), dimensions, strides, element_strides,
                   interleave, swizzle, l2_promotion,         oob_fill};
    if (!map || !lower || !upper || rank < 3 || !layout_ok(l, channels)) return CUDA_ERROR_INVALID_VALUE;
    if (channels == 0 || channels > 256 || pixels == 0 || pixels > 1024) return CUDA_ERROR_INVALID_VALUE;
    constexpr int kLimit[] = {32768, 128, 16};
    uint64_t corners = 0;
    for (uint32_t i = 0; i + 2 < rank; ++i) {
      const int limit = kLimit[rank - 3];
      if (lower[i] < -limit || lower[i] >= limit || upper[i] < -limit || upper[i] >= limit) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      corners =
          corners * 131071 + static_cast<uint64_t>(lower[i] + limit) * 65537 + static_cast<uint64_t>(upper[i] + limit);
    }
    encode(map, l, 1, {corners, channels, pixels});
    return CUDA_SUCCESS;
  });
}

SG_API cuTensorMapEncodeIm2colWide(TensorMap*, uint32_t, uint32_t, void*, const uint64_t*, const uint64_t*, int, int,
                                   uint32_t, uint32_t, const uint32_t*, uint32_t, uint32_t, uint32_t, uint32_t,
                                   uint32_t) {
  return with_driver([](Driver&) -> CUresult { return CUDA_ERROR_NOT_SUPPORTED; });  // compute capability 10 only
}

SG_API cuTensorMapReplaceAddress(TensorMap* map, void* address) {
  return with_driver([&](Driver&) -> CUresult {
    if (!map || from_handle(address) % 16 || map->words[1] == 0) return CUDA_ERROR_INVALID_VALUE;
    map->words[0] = from_handle(address);
    return CUDA_SUCCESS;
  });
}
