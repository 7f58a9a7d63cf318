// Conversions.
#include <cmath>
#include <limits>

#include "decode.h"
#include "float_bits.h"
#include "handlers.h"

namespace sg::vm {
inline namespace SG_ISA {
namespace {

enum Flag : uint8_t { kFlush = 1, kSaturate = 2, kFinite = 4, kRelu = 8, kInteger = 16 };

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <class T>
constexpr bool kReal = std::is_same_v<T, Half> || std::is_same_v<T, Bfloat> || std::is_floating_point_v<T>;

inline double value_of(Half v) { return half_to_float(v.bits); }
inline double value_of(Bfloat v) { return bf16_to_float(v.bits); }
inline double value_of(float v) { return v; }
inline double value_of(double v) { return v; }

double round_to_integer(double v, Round r) {
  switch (r) {
    case Round::nearest:
      return std::nearbyint(v);
    case Round::zero:
      return std::trunc(v);
    case Round::down:
      return std::floor(v);
    default:
      return std::ceil(v);
  }
}

/// Integer to double; what does not fit is rounded to odd, so that a second rounding to a shorter format is exact.
double integer_to_odd(uint64_t magnitude, bool negative) {
  if (magnitude >> 53) {
    int drop = 11 - __builtin_clzll(magnitude);
    uint64_t sticky = (magnitude & ((uint64_t{1} << drop) - 1)) != 0;
    magnitude = ((magnitude >> drop) | sticky) << drop;
  }
  double d = static_cast<double>(magnitude);
  return negative ? -d : d;
}

/// Integer to double, rounded in the given direction.
double integer_to_double(uint64_t magnitude, bool negative, Round r) {
  if (magnitude >> 53) {
    int drop = 11 - __builtin_clzll(magnitude);
    uint64_t rest = magnitude & ((uint64_t{1} << drop) - 1), half = uint64_t{1} << (drop - 1);
    uint64_t kept = magnitude >> drop;
    bool up = r == Round::nearest ? rest > half || (rest == half && (kept & 1))
              : r == Round::down  ? rest && negative
              : r == Round::up    ? rest && !negative
                                  : false;
    double d = std::ldexp(static_cast<double>(kept + up), drop);
    return negative ? -d : d;
  }
  double d = static_cast<double>(magnitude);
  return negative ? -d : d;
}

template <class D>
D make_real(double v, Round r, uint8_t flags) {
  if (flags & kSaturate) v = v > 0 ? (v < 1 ? v : 1) : 0;
  if ((flags & kRelu) && v <= 0) v = 0;
  if constexpr (std::is_same_v<D, double>) {
    return v;
  } else if constexpr (std::is_same_v<D, float>) {
    float f = r == Round::nearest ? static_cast<float>(v) : bits_as<float>(encode<8, 23>(v, r));
    return flags & kFlush ? flush(f) : f;
  } else {
    constexpr bool half = std::is_same_v<D, Half>;
    uint16_t bits = half ? F16::narrow(v, r) : BF16::narrow(v, r);
    constexpr uint16_t infinity = half ? F16::infinity : BF16::infinity;
    if ((flags & kFinite) && (bits & 0x7fff) == infinity) bits = static_cast<uint16_t>(bits - 1);
    return D{bits};
  }
}

template <class D, class S>
D convert(S s, Round r, uint8_t flags) {
  if constexpr (kReal<S>) {
    double v = value_of(s);
    // On the way to f16 a GPU rounds subnormals like any number.
    if constexpr (std::is_same_v<S, float> && !std::is_same_v<D, Half>) {
      if (flags & kFlush) v = flush(s);
    }
    if constexpr (kReal<D>) {
      if (flags & kInteger) return make_real<D>(round_to_integer(v, r), Round::nearest, flags);
      return make_real<D>(v, r, flags);
    } else {
      using L = std::numeric_limits<D>;
      if (v != v) {
        bool zero = !std::is_same_v<S, double> && sizeof(D) != 8;
        return zero ? D(0) : static_cast<D>(std::make_unsigned_t<D>(1) << (8 * sizeof(D) - 1));
      }
      v = round_to_integer(v, r);
      if (v <= static_cast<double>(L::min())) return L::min();
      if (v >= static_cast<double>(L::max())) return L::max();
      return static_cast<D>(v);
    }
  } else if constexpr (kReal<D>) {
    bool negative = s < S(0);
    uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(s) : static_cast<uint64_t>(s);
    if constexpr (std::is_same_v<D, double>) {
      return make_real<D>(integer_to_double(magnitude, negative, r), r, flags);
    } else {
      return make_real<D>(integer_to_odd(magnitude, negative), r, flags);
    }
  } else {
    if (flags & kSaturate) {
      __int128 v = s, low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
      return static_cast<D>(v < low ? low : v > high ? high : v);
    }
    return static_cast<D>(s);
  }
}

template <class D, class S>
void h_cvt(Warp& w, const Insn& in, uint32_t mask) {
  Round r = static_cast<Round>(in.imm);
  uint8_t flags = in.n;
  map1<S, D>(w, in, mask, [r, flags](S s) { return convert<D, S>(s, r, flags); });
}

// The same when the language's conversion is the one wanted.
template <class D, class S>
void h_cast(Warp& w, const Insn& in, uint32_t mask) {
  map1<S, D>(w, in, mask, [](S s) { return static_cast<D>(s); });
}

#define SG_BY_TYPE(t, ...) \
  switch (t) {             \
    case Type::u8: {       \
      using T = uint8_t;   \
      __VA_ARGS__;         \
    }                      \
    case Type::s8: {       \
      using T = int8_t;    \
      __VA_ARGS__;         \
    }                      \
    case Type::u16: {      \
      using T = uint16_t;  \
      __VA_ARGS__;         \
    }                      \
    case Type::s16: {      \
      using T = int16_t;   \
      __VA_ARGS__;         \
    }                      \
    case Type::u32: {      \
      using T = uint32_t;  \
      __VA_ARGS__;         \
    }                      \
    case Type::s32: {      \
      using T = int32_t;   \
      __VA_ARGS__;         \
    }                      \
    case Type::u64: {      \
      using T = uint64_t;  \
      __VA_ARGS__;         \
    }                      \
    case Type::s64: {      \
      using T = int64_t;   \
      __VA_ARGS__;         \
    }                      \
    case Type::f16: {      \
      using T = Half;      \
      __VA_ARGS__;         \
    }                      \
    case Type::bf16: {     \
      using T = Bfloat;    \
      __VA_ARGS__;         \
    }                      \
    case Type::f32: {      \
      using T = float;     \
      __VA_ARGS__;         \
    }                      \
    default: {             \
      using T = double;    \
      __VA_ARGS__;         \
    }                      \
  }

template <class S>
Handler pick_to(Type to) {
  SG_BY_TYPE(to, return h_cvt<T, S>)
}

bool is_real(Type t) { return t == Type::f16 || t == Type::bf16 || t == Type::f32 || t == Type::f64; }

Handler pick_cast(Type to, Type from) {
  if (to == Type::f32 && from == Type::s32) return h_cast<float, int32_t>;
  if (to == Type::f32 && from == Type::u32) return h_cast<float, uint32_t>;
  if (to == Type::f64 && from == Type::s32) return h_cast<double, int32_t>;
  if (to == Type::f64 && from == Type::u32) return h_cast<double, uint32_t>;
  if (to == Type::f64 && from == Type::f32) return h_cast<double, float>;
  if (to == Type::f32 && from == Type::f64) return h_cast<float, double>;
  if (to == Type::s64 && from == Type::s32) return h_cast<int64_t, int32_t>;
  if (to == Type::u64 && from == Type::u32) return h_cast<uint64_t, uint32_t>;
  if ((to == Type::u32 || to == Type::s32) && (from == Type::u64 || from == Type::s64)) {
    return h_cast<uint32_t, uint64_t>;
  }
  return nullptr;
}

Round rounding(std::string_view r) {
  if (r.substr(0, 2) == "rz") return Round::zero;
  if (r.substr(0, 2) == "rm") return Round::down;
  if (r.substr(0, 2) == "rp") return Round::up;
  return Round::nearest;
}

uint8_t flags_of(Decoder& d) {
  return static_cast<uint8_t>((d.mods.has("ftz") ? kFlush : 0) | (d.mods.has("sat") ? kSaturate : 0) |
                              (d.mods.has("satfinite") ? kFinite : 0) | (d.mods.has("relu") ? kRelu : 0));
}

void cvt(Decoder& d) {
  d.expect_operands(2);
  std::string_view to_integer = d.mods.one_of({"rni", "rzi", "rmi", "rpi"});
  std::string_view r = d.mods.one_of({"rn", "rz", "rm", "rp"});
  uint8_t flags = flags_of(d);
  Type to = d.mods.type(0), from = d.mods.type(1);
  if (from == Type::none) from = to;
  if (is_real(to) && is_real(from)) {
    // Which float-to-float conversions need a rounding and which must not have one. NVIDIA's compiler is lenient with
    // bf16, and others rely on it: from and to f16 it takes none for the nearest, and any where nothing is lost.
    bool narrowing = ptx::bytes_of(to) < ptx::bytes_of(from) || (to != from && ptx::bytes_of(to) == 2);
    bool halves = ptx::bytes_of(to) == 2 && ptx::bytes_of(from) == 2,
         widened = from == Type::bf16 && ptx::bytes_of(to) > 2;
    if (!to_integer.empty() && to != from) d.fail("rounding to an integer between different types");
    if (to_integer.empty() && narrowing && r.empty() && !halves) d.fail("missing rounding");
    if (to_integer.empty() && !narrowing && !r.empty() && !widened) d.fail("unexpected rounding");
  }
  // What the PTX ISA does not have: modifiers that could have no effect, or that no machine has.
  bool limits = (flags & kFinite) || (flags & kRelu);
  if (limits && (ptx::bytes_of(to) != 2 || from != Type::f32 || (flags & kFlush) || (r != "rn" && r != "rz"))) {
    d.fail("unexpected modifier");
  }
  if ((flags & kFlush) && to != Type::f32 && from != Type::f32) d.fail("unexpected modifier .ftz");
  if ((flags & kSaturate) && (to == Type::bf16 || from == Type::bf16)) d.fail("unexpected modifier .sat");
  if ((flags & kSaturate) && !is_real(to) && !is_real(from)) {
    bool holds = ptx::is_signed(from) ? ptx::is_signed(to) && ptx::bytes_of(from) <= ptx::bytes_of(to)
                                      : ptx::bytes_of(from) < ptx::bytes_of(to) + (ptx::is_signed(to) ? 0 : 1);
    if (holds) d.fail("unexpected modifier .sat: every value fits");
  }
  uint32_t a = d.wide_src(d.op(1), from), dst = d.wide_dst(d.op(0), to);
  Handler h = flags || !to_integer.empty() || (!r.empty() && r != "rn") ? nullptr : pick_cast(to, from);
  auto general = [&]() -> Handler { SG_BY_TYPE(from, return pick_to<T>(to)) };
  Insn& n = d.emit(h ? h : general());
  n.d = dst;
  n.a = a;
  n.n = static_cast<uint8_t>(flags | (to_integer.empty() ? 0 : kInteger));
  n.imm = static_cast<int64_t>(rounding(to_integer.empty() ? r : to_integer));
  d.finish_wide();
}

// 8-bit formats. e4m3 has no infinity: all ones is NaN. Conversions to them always saturate to the largest number.
template <int E, int M, uint32_t Largest>
uint8_t encode8(double v) {
  if (v != v) return 0x7f;
  uint32_t sign = std::signbit(v) ? 0x80 : 0;
  // One more exponent bit than the format has, so that nothing overflows before it is clamped.
  double magnitude = std::fabs(v);
  constexpr int bias = (1 << (E - 1)) - 1;
  constexpr double smallest = 1.0 / (uint64_t{1} << (bias - 1 + M));  // of the subnormals
  double largest = (1.0 + static_cast<double>(Largest & ((1u << M) - 1)) / (1 << M)) *
                   std::ldexp(1.0, static_cast<int>(Largest >> M) - bias);
  if (magnitude >= largest) return static_cast<uint8_t>(sign | Largest);
  if (magnitude < std::ldexp(1.0, 1 - bias)) {
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude / smallest)));
  }
  int e;
  double f = std::frexp(magnitude, &e);  // 0.5 <= f < 1
  uint32_t mantissa = static_cast<uint32_t>(std::nearbyint(std::ldexp(f, M + 1)));
  uint32_t bits = (static_cast<uint32_t>(e - 1 + bias) << M) + mantissa - (1u << M);
  return static_cast<uint8_t>(sign | (bits > Largest ? Largest : bits));
}

double decode_e4m3(uint8_t v) {
  if ((v & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  int e = v >> 3 & 15, m = v & 7;
  double d = e ? std::ldexp(8 + m, e - 10) : std::ldexp(m, -9);
  return v & 0x80 ? -d : d;
}
double decode_e5m2(uint8_t v) { return half_to_float(static_cast<uint16_t>(v << 8)); }

// A power of two; the sign of the operand is lost.
uint8_t encode_e8m0(double v, Round r) {
  if (v != v) return 0xff;
  double magnitude = std::fabs(v);
  if (std::isinf(magnitude)) return 0xfe;
  if (magnitude < 0x1p-127) return 0;
  int e;
  double f = std::frexp(magnitude, &e);
  int bits = e - 1 + 127 + (r == Round::up && f > 0.5 ? 1 : 0);
  return static_cast<uint8_t>(bits > 254 ? 254 : bits);
}

uint32_t encode_pair_element(Type t, double v, Round r, uint8_t flags) {
  if ((flags & kRelu) && v <= 0) v = 0;
  switch (t) {
    case Type::f16x2:
      return make_real<Half>(v, r, flags).bits;
    case Type::bf16x2:
      return make_real<Bfloat>(v, r, flags).bits;
    case Type::e4m3x2:
      return encode8<4, 3, 0x7e>(v);
    case Type::e5m2x2:
      return encode8<5, 2, 0x7b>(v);
    default:
      return encode_e8m0(v, r);
  }
}

double decode_pair_element(Type t, uint32_t v) {
  switch (t) {
    case Type::f16x2:
      return half_to_float(static_cast<uint16_t>(v));
    case Type::bf16x2:
      return bf16_to_float(static_cast<uint16_t>(v));
    case Type::e4m3x2:
      return decode_e4m3(static_cast<uint8_t>(v));
    case Type::e5m2x2:
      return decode_e5m2(static_cast<uint8_t>(v));
    default:
      return (v & 0xff) == 0xff ? std::numeric_limits<double>::quiet_NaN()
                                : std::ldexp(1.0, static_cast<int>(v & 0xff) - 127);
  }
}

// in.c: type to, in.e: type from (f32: in.a is the upper element and in.b the lower one), in.imm: rounding.
void h_pair(Warp& w, const Insn& in, uint32_t mask) {
  Type to = static_cast<Type>(in.c), from = static_cast<Type>(in.e);
  Round r = static_cast<Round>(in.imm);
  uint32_t from_bits = 4 * ptx::bytes_of(from), to_bits = 4 * ptx::bytes_of(to);
  for_lanes(mask, [&](uint32_t l) {
    double high, low;
    if (from == Type::f32) {
      high = get<float>(w.regs + in.a, l);
      low = get<float>(w.regs + in.b, l);
    } else {
      uint32_t v = get<uint32_t>(w.regs + in.a, l);
      high = decode_pair_element(from, v >> from_bits);
      low = decode_pair_element(from, v);
    }
    put<uint32_t>(w.regs + in.d, l,
                  encode_pair_element(to, high, r, in.n) << to_bits | encode_pair_element(to, low, r, in.n));
  });
}

void cvt_pair(Decoder& d) {
  std::string_view r = d.mods.one_of({"rn", "rz", "rp"});
  uint8_t flags = flags_of(d);
  Type to = d.mods.type(0), from = d.mods.type(1);
  if (from == Type::none) from = to;
  bool two = from == Type::f32;
  d.expect_operands(two ? 3 : 2);
  uint32_t a = d.src(1, from), b = two ? d.src(2, from) : 0, dst = d.dst(0, to);
  Insn& n = d.emit(h_pair);
  n.d = dst;
  n.a = a;
  n.b = b;
  n.c = static_cast<uint32_t>(to);
  n.e = static_cast<uint32_t>(from);
  n.n = flags;
  n.imm = static_cast<int64_t>(rounding(r));
}

// tf32 is an f32 whose lower 13 bits are 0. Rounding away from 0, a GPU only cuts them off a NaN, even if that leaves
// an infinity.
void h_tf32(Warp& w, const Insn& in, uint32_t mask) {
  Round r = static_cast<Round>(in.imm);
  map1<float, uint32_t>(w, in, mask, [&in, r](float v) {
    if ((in.n & kRelu) && v <= 0) v = 0;
    uint32_t bits = encode<8, 10>(v, r) << 13;
    if (v != v) bits = (r == Round::away ? bits_as<uint32_t>(v) : 0x7fffffff) & 0xffffe000;
    return (in.n & kFinite) && (bits & 0x7fffffff) == 0x7f800000 ? bits - 0x2000 : bits;
  });
}

void cvt_tf32(Decoder& d) {
  d.expect_operands(2);
  std::string_view r = d.mods.one_of({"rna", "rn", "rz"});
  uint8_t flags = flags_of(d);
  d.mods.type(0);
  uint32_t a = d.src(1, d.mods.type(1)), dst = d.dst(0, Type::b32);
  Insn& n = d.emit(h_tf32);
  n.d = dst;
  n.a = a;
  n.n = flags;
  n.imm = static_cast<int64_t>(r == "rna" ? Round::away : rounding(r));
}

constexpr OpRow kRows[] = {
#define SG_OPS_CVT
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows cvt_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
