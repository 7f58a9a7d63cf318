// Scalar types and state spaces of PTX.
#pragma once
#include <cstdint>
#include <string_view>

namespace sg::ptx {

// clang-format off
#define SG_TYPES(X)                                                                                        \
  X(pred, 0) X(b8, 1) X(u8, 1) X(s8, 1) X(b16, 2) X(u16, 2) X(s16, 2) X(b32, 4) X(u32, 4) X(s32, 4)        \
  X(b64, 8) X(u64, 8) X(s64, 8) X(b128, 16) X(f16, 2) X(f16x2, 4) X(bf16, 2) X(bf16x2, 4) X(f32, 4)        \
  X(f32x2, 8) X(f64, 8) X(tf32, 4) X(u16x2, 4) X(s16x2, 4) X(e4m3x2, 2) X(e5m2x2, 2) X(ue8m0x2, 2) \
  X(e4m3, 1) X(e5m2, 1) X(u4, 1) X(s4, 1) X(b1, 1)
// clang-format on

enum class Type : uint8_t {
  none,
#define X(name, bytes) name,
  SG_TYPES(X)
#undef X
};

/// Type::none if `text` (without the dot) names no type.
Type type_from(std::string_view text);
std::string_view name_of(Type type);
uint32_t bytes_of(Type type);
inline bool is_signed(Type t) { return t == Type::s8 || t == Type::s16 || t == Type::s32 || t == Type::s64; }

enum class Space : uint8_t { generic, reg, global, constant, shared, local, param };

}  // namespace sg::ptx
