// Elements of matrices as the registers of a warp hold them.
#pragma once
#include "decode.h"
#include "float_bits.h"
#include "handlers.h"

namespace sg::vm {

/// Bits of one element of a matrix operand.
inline uint32_t element_bits(Type t) {
  switch (t) {
    case Type::b1:
      return 1;
    case Type::u4:
    case Type::s4:
      return 4;
    case Type::tf32:
      return 32;
    default:
      return 8 * ptx::bytes_of(t);
  }
}

inline bool is_integer_matrix(Type t) {
  return t == Type::u8 || t == Type::s8 || t == Type::u4 || t == Type::s4 || t == Type::b1 || t == Type::s32;
}

inline double e4m3_to_double(uint32_t v) {
  if ((v & 0x7f) == 0x7f) return std::nan("");
  uint32_t exponent = v >> 3 & 15, fraction = v & 7;
  double d = exponent ? std::ldexp(8 + fraction, static_cast<int>(exponent) - 10) : std::ldexp(fraction, -9);
  return v & 0x80 ? -d : d;
}

/// The value of an element whose bits are the low ones of `raw`.
inline double real_element(Type t, uint64_t raw) {
  switch (t) {
    case Type::f16:
      return half_to_float(static_cast<uint16_t>(raw));
    case Type::bf16:
      return bf16_to_float(static_cast<uint16_t>(raw));
    case Type::tf32:
      return bits_as<float>(static_cast<uint32_t>(raw) & 0xffffe000u);
    case Type::e4m3:
      return e4m3_to_double(static_cast<uint32_t>(raw));
    case Type::e5m2:
      return half_to_float(static_cast<uint16_t>(raw << 8));
    case Type::f32:
      return bits_as<float>(static_cast<uint32_t>(raw));
    default:
      return bits_as<double>(raw);
  }
}

inline int64_t integer_element(Type t, uint64_t raw) {
  switch (t) {
    case Type::u8:
      return static_cast<uint8_t>(raw);
    case Type::s8:
      return static_cast<int8_t>(raw);
    case Type::u4:
      return static_cast<int64_t>(raw & 15);
    case Type::s4:
      return static_cast<int64_t>(raw & 15) - (raw & 8 ? 16 : 0);
    default:
      return static_cast<int32_t>(raw);
  }
}

constexpr uint32_t kMaxRows = 32, kMaxDepth = 256;  // of a matrix: M and N, K

/// What all products of matrices have in common. Raw elements go in and come out.
struct MatrixProduct {
  uint32_t m = 0, n = 0, k = 0;
  Type a = Type::none, b = Type::none, c = Type::none, d = Type::none;
  bool saturate = false, bits_and = false;
};

/// d[m][n] = a[m][k] * b[k][n] + c[m][n]. Integers wrap (or saturate) to 32 bits. Products of reals are summed in
/// double precision and rounded once; a GPU's own order and width of these sums is not documented.
void multiply(const MatrixProduct& p, const uint64_t* a, const uint64_t* b, const uint64_t* c, uint64_t* d);

/// False after raising a fault: these instructions need every lane of a warp.
bool needs_whole_warp(Warp& w, uint32_t mask);

/// Element `i` of a lane's fragment whose registers are in `slots`.
inline uint64_t fragment_get(const Warp& w, const uint32_t* slots, uint32_t bits, uint32_t lane, uint32_t i) {
  if (bits == 64) return w.reg<uint64_t>(slots[i])[lane];
  uint32_t per = 32 / bits, raw = w.reg<uint32_t>(slots[i / per])[lane];
  return bits == 32 ? raw : raw >> (i % per * bits) & ((1u << bits) - 1);
}
inline void fragment_put(const Warp& w, const uint32_t* slots, uint32_t bits, uint32_t lane, uint32_t i, uint64_t v) {
  if (bits == 64) {
    w.reg<uint64_t>(slots[i])[lane] = v;
    return;
  }
  uint32_t per = 32 / bits, shift = i % per * bits;
  uint32_t& to = w.reg<uint32_t>(slots[i / per])[lane];
  uint32_t keep = bits == 32 ? 0 : to & ~(((1u << bits) - 1) << shift);
  to = keep | static_cast<uint32_t>(v) << shift;
}

/// Slots of the `count` registers of a fragment, which stand in braces (or alone).
std::vector<uint32_t> fragment(Decoder& d, const Operand& o, Type element, uint32_t count, bool result);

/// "m16n8k16" -> 16, 8, 16. Fails if `word` is not of this form.
void parse_shape(Decoder& d, std::string_view word, MatrixProduct* p);

}  // namespace sg::vm
