// Formats of floating point numbers as bits, and rounding between them.
#pragma once
#include <cmath>
#include <cstdint>

#include "handlers.h"

namespace sg::vm {

inline namespace SG_ISA {

enum class Round : uint8_t { nearest, zero, down, up, away /* ties away from 0 */ };

/// Rounds `v` to a format with `E` exponent and `M` mantissa bits; the result sits in the low bits. Infinity and NaN
/// as in IEEE formats. NaN becomes the canonical one of NVIDIA's GPUs: all bits set but the sign.
template <int E, int M>
inline uint32_t encode(double v, Round mode) {
  constexpr int bias = (1 << (E - 1)) - 1;
  constexpr uint32_t infinity = ((1u << E) - 1) << M;
  uint64_t bits = bits_as<uint64_t>(v);
  uint32_t sign = static_cast<uint32_t>(bits >> 63) << (E + M);
  uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  int exponent = static_cast<int>(bits >> 52 & 0x7ff);
  if (exponent == 0x7ff) return fraction ? (1u << (E + M)) - 1 : sign | infinity;
  if (exponent == 0 && fraction == 0) return sign;
  uint64_t mantissa = exponent ? fraction | uint64_t{1} << 52 : fraction;
  int e = (exponent ? exponent : 1) - 1023 + bias;  // biased exponent in the new format
  int drop = 52 - M;
  if (e < 1) {
    drop += 1 - e;
    e = 0;
  }
  uint64_t kept, rest, half;
  if (drop > 63) {
    kept = 0;
    rest = 1;
    half = 2;
  } else {
    kept = mantissa >> drop;
    rest = mantissa & ((uint64_t{1} << drop) - 1);
    half = uint64_t{1} << (drop - 1);
  }
  bool up = false;
  switch (mode) {
    case Round::nearest:
      up = rest > half || (rest == half && (kept & 1));
      break;
    case Round::away:
      up = rest >= half;
      break;
    case Round::zero:
      break;
    case Round::down:
      up = rest && sign;
      break;
    case Round::up:
      up = rest && !sign;
      break;
  }
  uint64_t magnitude = (e > 1 ? static_cast<uint64_t>(e - 1) << M : 0) + kept + (up ? 1 : 0);
  if (magnitude >= infinity) {
    bool to_largest = mode == Round::zero || (mode == Round::down && !sign) || (mode == Round::up && sign);
    magnitude = to_largest ? infinity - 1 : infinity;
  }
  return sign | static_cast<uint32_t>(magnitude);
}

inline float half_to_float(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return bits_as<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  if (rest < 0x400) {
    float f = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -f : f;
  }
  return bits_as<float>(sign | ((rest << 13) + (112u << 23)));
}

inline float bf16_to_float(uint16_t b) { return bits_as<float>(static_cast<uint32_t>(b) << 16); }

/// 16-bit formats by tag.
struct F16 {
  static float widen(uint16_t v) { return half_to_float(v); }
  static uint16_t narrow(double v, Round r = Round::nearest) { return static_cast<uint16_t>(encode<5, 10>(v, r)); }
  static constexpr uint16_t infinity = 0x7c00, nan = 0x7fff, one = 0x3c00, smallest_normal = 0x400;
};
struct BF16 {
  static float widen(uint16_t v) { return bf16_to_float(v); }
  static uint16_t narrow(double v, Round r = Round::nearest) { return static_cast<uint16_t>(encode<8, 7>(v, r)); }
  static constexpr uint16_t infinity = 0x7f80, nan = 0x7fff, one = 0x3f80, smallest_normal = 0x80;
};

inline float flush(float v) {
  uint32_t b = bits_as<uint32_t>(v);
  return (b & 0x7f800000u) == 0 ? bits_as<float>(b & 0x80000000u) : v;
}

}  // namespace SG_ISA
}  // namespace sg::vm
