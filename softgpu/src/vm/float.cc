// Single and double precision arithmetic.
#include <xmmintrin.h>

#include <cmath>

#include "decode.h"
#include "float_bits.h"
#include "handlers.h"

namespace sg::vm {
inline namespace SG_ISA {
namespace {

// clang-format off
struct FAdd { template <class T> static T f(T a, T b) { return a + b; } };
struct FSub { template <class T> static T f(T a, T b) { return a - b; } };
struct FMul { template <class T> static T f(T a, T b) { return a * b; } };
struct FDiv { template <class T> static T f(T a, T b) { return a / b; } };
struct FSqrt { template <class T> static T f(T a) { return std::sqrt(a); } };
struct FRcp { template <class T> static T f(T a) { return T(1) / a; } };
struct FRsqrt { template <class T> static T f(T a) {
  return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a))); } };
// The .approx.ftz.f64 forms give the upper 32 bits of an approximation, the lower ones are 0.
inline double upper_half(double v) { return bits_as<double>(bits_as<uint64_t>(v) & 0xffffffff00000000u); }
inline double flush64(double v) { return std::fabs(v) < 0x1p-1022 ? std::copysign(0.0, v) : v; }
struct FRcpGross { template <class T> static T f(T a) {
  return static_cast<T>(upper_half(flush64(1.0 / flush64(a)))); } };
struct FRsqrtGross { template <class T> static T f(T a) { return static_cast<T>(upper_half(1.0 / std::sqrt(flush64(a)))); } };
struct FSin { template <class T> static T f(T a) { return std::sin(a); } };
struct FCos { template <class T> static T f(T a) { return std::cos(a); } };
struct FLg2 { template <class T> static T f(T a) { return std::log2(a); } };
struct FEx2 { template <class T> static T f(T a) { return std::exp2(a); } };
struct FTanh { template <class T> static T f(T a) { return std::tanh(a); } };
struct FNeg { template <class T> static T f(T a) { return -a; } };
struct FAbs { template <class T> static T f(T a) { return std::fabs(a); } };
// clang-format on

enum Flag : uint8_t { kFlush = 1, kSaturate = 2, kNan = 4, kXorSign = 8, kAbs = 16 };

template <class T>
T flush_to_zero(T v) {
  if constexpr (sizeof(T) == 4) return flush(v);
  return v;
}

// NaN becomes +0.
template <class T>
T saturate(T v) {
  return v > T(0) ? (v < T(1) ? v : T(1)) : T(0);
}

template <class T>
T before(T v, uint8_t flags) {
  return flags & kFlush ? flush_to_zero(v) : v;
}
template <class T>
T after(T v, uint8_t flags) {
  if (flags & kFlush) v = flush_to_zero(v);
  return flags & kSaturate ? saturate(v) : v;
}

/// Sets the rounding mode of SSE arithmetic while it lives, and whether it flushes: then, as on a GPU, results that
/// only the coarser rounding of subnormals would lift to the smallest normal number become 0 too. The arithmetic must
/// be in a function that is not inlined into the one with the scope, since the compiler does not know that it depends
/// on this.
class RoundingScope {
 public:
  RoundingScope(int64_t round, bool is_flushing) : saved_(_mm_getcsr()) {
    static constexpr unsigned kModes[] = {_MM_ROUND_NEAREST, _MM_ROUND_TOWARD_ZERO, _MM_ROUND_DOWN, _MM_ROUND_UP};
    constexpr unsigned changed = _MM_ROUND_MASK | _MM_FLUSH_ZERO_MASK;
    _mm_setcsr((saved_ & ~changed) | kModes[round & 3] | (is_flushing ? _MM_FLUSH_ZERO_ON : _MM_FLUSH_ZERO_OFF));
  }
  ~RoundingScope() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
};

template <class Op, class T>
void h_plain1(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, T>(w, in, mask, [](T a) { return Op::template f<T>(a); });
}
template <class Op, class T>
[[gnu::noinline]] void flagged1(Warp& w, const Insn& in, uint32_t mask) {
  uint8_t flags = in.n;
  map1<T, T>(w, in, mask, [flags](T a) { return after(Op::template f<T>(before(a, flags)), flags); });
}
template <class Op, class T>
void h_flagged1(Warp& w, const Insn& in, uint32_t mask) {
  RoundingScope scope(in.imm, sizeof(T) == 4 && (in.n & kFlush));
  flagged1<Op, T>(w, in, mask);
}

template <class Op, class T>
void h_plain2(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, T, T>(w, in, mask, [](T a, T b) { return Op::template f<T>(a, b); });
}
template <class Op, class T>
[[gnu::noinline]] void flagged2(Warp& w, const Insn& in, uint32_t mask) {
  uint8_t flags = in.n;
  map2<T, T, T>(w, in, mask,
                [flags](T a, T b) { return after(Op::template f<T>(before(a, flags), before(b, flags)), flags); });
}
template <class Op, class T>
void h_flagged2(Warp& w, const Insn& in, uint32_t mask) {
  RoundingScope scope(in.imm, sizeof(T) == 4 && (in.n & kFlush));
  flagged2<Op, T>(w, in, mask);
}

template <class T>
T fused(T a, T b, T c) {
  if constexpr (sizeof(T) == 4) return __builtin_fmaf(a, b, c);
  return __builtin_fma(a, b, c);
}

template <class T>
[[gnu::noinline]] void flagged_fma(Warp& w, const Insn& in, uint32_t mask) {
  uint8_t flags = in.n;
  map3<T, T, T, T>(w, in, mask, [flags](T a, T b, T c) {
    return after(fused(before(a, flags), before(b, flags), before(c, flags)), flags);
  });
}
template <class T>
void h_flagged_fma(Warp& w, const Insn& in, uint32_t mask) {
  RoundingScope scope(in.imm, sizeof(T) == 4 && (in.n & kFlush));
  flagged_fma<T>(w, in, mask);
}
template <class T>
void h_fma(Warp& w, const Insn& in, uint32_t mask) {
  map3<T, T, T, T>(w, in, mask, [](T a, T b, T c) { return fused(a, b, c); });
}

int64_t rounding(Decoder& d) {
  std::string_view r = d.mods.one_of({"rn", "rz", "rm", "rp"});
  return r == "rz" ? 1 : r == "rm" ? 2 : r == "rp" ? 3 : 0;
}

uint8_t flags(Decoder& d) {
  return static_cast<uint8_t>((d.mods.has("ftz") ? kFlush : 0) | (d.mods.has("sat") ? kSaturate : 0) |
                              (d.mods.has("NaN") ? kNan : 0));
}

template <class Op>
void arith1(Decoder& d) {
  d.expect_operands(2);
  d.mods.has("approx");  // computed to full precision or close to it
  int64_t round = rounding(d);
  uint8_t f = flags(d);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), to = d.dst(0, t);
  bool plain = !round && !f, wide = t == Type::f64;
  Insn& n = d.emit(plain ? (wide ? h_plain1<Op, double> : h_plain1<Op, float>)
                         : (wide ? h_flagged1<Op, double> : h_flagged1<Op, float>));
  n.d = to;
  n.a = a;
  n.n = f;
  n.imm = round;
}

template <class Op>
void arith2(Decoder& d) {
  d.expect_operands(3);
  d.mods.one_of({"approx", "full"});
  int64_t round = rounding(d);
  uint8_t f = flags(d);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), to = d.dst(0, t);
  bool plain = !round && !f, wide = t == Type::f64;
  Insn& n = d.emit(plain ? (wide ? h_plain2<Op, double> : h_plain2<Op, float>)
                         : (wide ? h_flagged2<Op, double> : h_flagged2<Op, float>));
  n.d = to;
  n.a = a;
  n.b = b;
  n.n = f;
  n.imm = round;
}

void fma(Decoder& d) {
  d.expect_operands(4);
  bool rounded = !d.mods.one_of({"rn", "rz", "rm", "rp"}).empty();
  if (!rounded && d.version() >= 20) d.fail("needs a rounding (before PTX 2.0 it did not)");
  int64_t round = rounding(d);
  uint8_t f = flags(d);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t);
  bool plain = !round && !f, wide = t == Type::f64;
  Handler h = plain ? (wide ? h_fma<double> : h_fma<float>) : (wide ? h_flagged_fma<double> : h_flagged_fma<float>);
  Insn& n = d.emit(h);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.n = f;
  n.imm = round;
}

// Two f32 in the halves of a 64-bit lane.
template <class F>
void packed_lanes(Warp& w, const Insn& in, uint32_t mask, F f) {
  const float *a = w.reg<float>(in.a), *b = w.reg<float>(in.b), *c = w.reg<float>(in.c);
  float* d = w.reg<float>(in.d);
  for_lanes(mask, [&](uint32_t l) {
    for (uint32_t i = 2 * l; i < 2 * l + 2; ++i) d[i] = f(a[i], b[i], c[i]);
  });
}
template <class Op>
[[gnu::noinline]] void packed2_lanes(Warp& w, const Insn& in, uint32_t mask) {
  packed_lanes(w, in, mask, [f = in.n](float a, float b, float) {
    return after(Op::template f<float>(before(a, f), before(b, f)), f);
  });
}
[[gnu::noinline]] void packed_fma_lanes(Warp& w, const Insn& in, uint32_t mask) {
  packed_lanes(w, in, mask, [f = in.n](float a, float b, float c) {
    return after(fused(before(a, f), before(b, f), before(c, f)), f);
  });
}
template <class Op>
void h_packed2(Warp& w, const Insn& in, uint32_t mask) {
  RoundingScope scope(in.imm, in.n & kFlush);
  packed2_lanes<Op>(w, in, mask);
}
void h_packed_fma(Warp& w, const Insn& in, uint32_t mask) {
  RoundingScope scope(in.imm, in.n & kFlush);
  packed_fma_lanes(w, in, mask);
}

void emit_packed(Decoder& d, size_t sources, Handler h) {
  d.expect_operands(sources + 1);
  int64_t round = rounding(d);
  uint8_t f = flags(d);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), c = sources == 3 ? d.src(3, t) : a, to = d.dst(0, t);
  Insn& n = d.emit(h);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.n = f;
  n.imm = round;
}
template <class Op>
void packed2(Decoder& d) {
  emit_packed(d, 2, h_packed2<Op>);
}
void packed_fma(Decoder& d) { emit_packed(d, 3, h_packed_fma); }

template <class T>
T canonical_nan() {
  if constexpr (sizeof(T) == 4) return bits_as<float>(0x7fffffffu);
  return bits_as<double>(uint64_t{0x7fffffffffffffff});
}

// -0 is smaller than +0; a NaN gives way to a number.
struct FMin {
  template <class T>
  static bool first(T a, T b) {
    return a < b || (a == b && std::signbit(a));
  }
};
struct FMax {
  template <class T>
  static bool first(T a, T b) {
    return a > b || (a == b && !std::signbit(a));
  }
};

template <class Op, class T>
void h_extremum(Warp& w, const Insn& in, uint32_t mask) {
  uint8_t f = in.n;
  map2<T, T, T>(w, in, mask, [f](T a, T b) {
    a = before(a, f);
    b = before(b, f);
    bool negative = std::signbit(a) != std::signbit(b);
    bool nan_a = a != a, nan_b = b != b;
    if ((nan_a && nan_b) || ((f & kNan) && (nan_a || nan_b))) return canonical_nan<T>();
    if (f & (kXorSign | kAbs)) {
      a = std::fabs(a);
      b = std::fabs(b);
    }
    T r = nan_a ? b : nan_b ? a : Op::template first<T>(a, b) ? a : b;
    return f & kXorSign ? (negative ? -r : r) : r;
  });
}

/// The three-operand forms: one after the other gives the same, since the smallest of all has no other order.
template <class Op>
void extremum3(Decoder& d) {
  d.expect_operands(4);
  uint8_t f = static_cast<uint8_t>(flags(d) | (d.mods.has("abs") ? kAbs : 0));
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t), between = d.temp(4);
  for (uint32_t i = 0; i < 2; ++i) {
    Insn& n = d.emit(h_extremum<Op, float>);
    n.d = i ? to : between;
    n.a = i ? between : a;
    n.b = i ? c : b;
    n.n = f;
  }
}

template <class Op>
void extremum(Decoder& d) {
  bool single = false;
  for (std::string_view word : d.in().modifiers) single |= word == "f32";
  if (single && d.count() == 4) return extremum3<Op>(d);
  d.expect_operands(3);
  uint8_t f = flags(d);
  if (d.mods.has("xorsign") && d.mods.has("abs")) f |= kXorSign;
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), to = d.dst(0, t);
  Insn& n = d.emit(t == Type::f64 ? h_extremum<Op, double> : h_extremum<Op, float>);
  n.d = to;
  n.a = a;
  n.b = b;
  n.n = f;
}

template <class T>
void h_copysign(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, T, T>(w, in, mask, [](T a, T b) { return std::copysign(b, a); });
}

void copysign_(Decoder& d) {
  d.expect_operands(3);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), to = d.dst(0, t);
  Insn& n = d.emit(t == Type::f64 ? h_copysign<double> : h_copysign<float>);
  n.d = to;
  n.a = a;
  n.b = b;
}

// in.n: which test, in the order of kTests.
constexpr std::string_view kTests[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};

template <class T>
void h_testp(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t bits = 0;
  for_lanes(mask, [&](uint32_t l) {
    T v = get<T>(w.regs + in.a, l);
    bool yes = false;
    switch (in.n) {
      case 0:
        yes = std::isfinite(v);
        break;
      case 1:
        yes = std::isinf(v);
        break;
      case 2:
        yes = !std::isnan(v);
        break;
      case 3:
        yes = std::isnan(v);
        break;
      case 4:
        yes = std::isnormal(v) || v == 0;  // zeros are normal numbers here
        break;
      case 5:
        yes = std::fpclassify(v) == FP_SUBNORMAL;
        break;
    }
    bits |= static_cast<uint32_t>(yes) << l;
  });
  set_pred(&w.pred(in.d), mask, bits);
}

void testp(Decoder& d) {
  d.expect_operands(2);
  uint8_t test = 0;
  for (uint8_t i = 0; i < 6; ++i) {
    if (d.mods.has(kTests[i])) test = i;
  }
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), p = d.pred_dst(d.op(0));
  Insn& n = d.emit(t == Type::f64 ? h_testp<double> : h_testp<float>);
  n.d = p;
  n.a = a;
  n.n = test;
}

constexpr OpRow kRows[] = {
#define SG_OPS_FLOAT
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows float_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
