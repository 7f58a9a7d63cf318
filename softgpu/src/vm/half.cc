// Arithmetic on f16 and bf16, single and packed. Values are computed in double and rounded once.
#include <cmath>

#include "decode.h"
#include "float_bits.h"
#include "handlers.h"

namespace sg::vm {
inline namespace SG_ISA {
namespace {

enum Flag : uint8_t { kFlush = 1, kSaturate = 2, kNan = 4, kXorSign = 8, kRelu = 16, kMax = 32 };

/// a * b + c of values whose product is exact in double, rounded to odd: a second rounding to a format with less than
/// half the bits then gives what one rounding would.
double fused_to_odd(double a, double b, double c) {
  double p = a * b, s = p + c;
  if (!std::isfinite(s)) return s;
  double t = s - p, error = (p - (s - t)) + (c - t);
  uint64_t bits = bits_as<uint64_t>(s);
  if (error == 0 || (bits & 1)) return s;
  bool outward = (error > 0) == (s > 0);
  return bits_as<double>(outward ? bits + 1 : bits - 1);
}

template <class F>
double widen(uint16_t h, uint8_t flags) {
  if ((flags & kFlush) && (h & F::infinity) == 0) h &= 0x8000;
  return F::widen(h);
}

template <class F>
uint16_t narrow(double v, uint8_t flags) {
  if (flags & kSaturate) v = v > 0 ? (v < 1 ? v : 1) : 0;
  if ((flags & kRelu) && v <= 0) v = 0;
  uint16_t h = F::narrow(v);
  if ((flags & kFlush) && (h & F::infinity) == 0) h &= 0x8000;
  return h;
}

// clang-format off
struct HAdd { static double f(double a, double b) { return a + b; } };
struct HSub { static double f(double a, double b) { return a - b; } };
struct HMul { static double f(double a, double b) { return a * b; } };
struct HEx2 { static double f(double a) { return std::exp2(a); } };
struct HTanh { static double f(double a) { return std::tanh(a); } };
// clang-format on

/// Calls f for one or both (in.e = 32 bits) halves of the operands.
template <class Body>
void halves(Warp& w, const Insn& in, uint32_t mask, Body f) {
  const uint32_t *a = w.reg<uint32_t>(in.a), *b = w.reg<uint32_t>(in.b), *c = w.reg<uint32_t>(in.c);
  uint32_t* d = w.reg<uint32_t>(in.d);
  for_lanes(mask, [&](uint32_t l) {
    uint32_t r = 0;
    for (uint32_t s = 0; s < in.e; s += 16) {
      r |= static_cast<uint32_t>(
               f(static_cast<uint16_t>(a[l] >> s), static_cast<uint16_t>(b[l] >> s), static_cast<uint16_t>(c[l] >> s)))
           << s;
    }
    d[l] = r;
  });
}

template <class Op, class F>
void h_half1(Warp& w, const Insn& in, uint32_t mask) {
  halves(w, in, mask, [n = in.n](uint16_t a, uint16_t, uint16_t) { return narrow<F>(Op::f(widen<F>(a, n)), n); });
}
template <class Op, class F>
void h_half2(Warp& w, const Insn& in, uint32_t mask) {
  halves(w, in, mask,
         [n = in.n](uint16_t a, uint16_t b, uint16_t) { return narrow<F>(Op::f(widen<F>(a, n), widen<F>(b, n)), n); });
}
template <class F>
void h_half_fma(Warp& w, const Insn& in, uint32_t mask) {
  halves(w, in, mask, [n = in.n](uint16_t a, uint16_t b, uint16_t c) {
    return narrow<F>(fused_to_odd(widen<F>(a, n), widen<F>(b, n), widen<F>(c, n)), n);
  });
}

// in.imm: 0x8000 to flip the sign, 0 to clear it.
template <class F>
void h_half_sign(Warp& w, const Insn& in, uint32_t mask) {
  bool negate = in.imm != 0;
  halves(w, in, mask, [&in, negate](uint16_t a, uint16_t, uint16_t) {
    if ((in.n & kFlush) && (a & F::infinity) == 0) a &= 0x8000;
    return static_cast<uint16_t>(negate ? a ^ 0x8000 : a & 0x7fff);
  });
}

template <class F>
void h_half_extremum(Warp& w, const Insn& in, uint32_t mask) {
  halves(w, in, mask, [n = in.n](uint16_t a, uint16_t b, uint16_t) -> uint16_t {
    auto is_nan = [](uint16_t h) { return (h & 0x7fff) > F::infinity; };
    if (n & kFlush) {
      if ((a & F::infinity) == 0) a &= 0x8000;
      if ((b & F::infinity) == 0) b &= 0x8000;
    }
    uint16_t sign = static_cast<uint16_t>((a ^ b) & 0x8000);
    if ((is_nan(a) && is_nan(b)) || ((n & kNan) && (is_nan(a) || is_nan(b)))) return F::nan;
    if (n & kXorSign) {
      a &= 0x7fff;
      b &= 0x7fff;
    }
    // Order of the bits as signed magnitudes, -0 below +0.
    auto key = [](uint16_t h) { return h & 0x8000 ? -1 - (h & 0x7fff) : int{h}; };
    uint16_t r = is_nan(a) ? b : is_nan(b) ? a : (key(a) < key(b)) != ((n & kMax) != 0) ? a : b;
    return n & kXorSign ? static_cast<uint16_t>(r | sign) : r;
  });
}

bool is_bf16(Type t) { return t == Type::bf16 || t == Type::bf16x2; }

uint8_t flags(Decoder& d) {
  return static_cast<uint8_t>((d.mods.has("ftz") ? kFlush : 0) | (d.mods.has("sat") ? kSaturate : 0) |
                              (d.mods.has("NaN") ? kNan : 0) | (d.mods.has("relu") ? kRelu : 0));
}

Insn& emit_half(Decoder& d, size_t sources, Handler f16, Handler bf16) {
  d.expect_operands(sources + 1);
  d.mods.has("rn");
  uint8_t f = flags(d);
  Type t = d.mods.type();
  uint32_t s[3] = {0, 0, 0};
  for (size_t i = 0; i < sources; ++i) s[i] = d.src(i + 1, t);
  uint32_t to = d.dst(0, t);
  Insn& n = d.emit(is_bf16(t) ? bf16 : f16);
  n.d = to;
  n.a = s[0];
  n.b = s[1];
  n.c = s[2];
  n.n = f;
  n.e = 8 * ptx::bytes_of(t);
  return n;
}

template <class Op>
void half1(Decoder& d) {
  d.mods.has("approx");
  emit_half(d, 1, h_half1<Op, F16>, h_half1<Op, BF16>);
}
template <class Op>
void half2(Decoder& d) {
  emit_half(d, 2, h_half2<Op, F16>, h_half2<Op, BF16>);
}
void half_fma(Decoder& d) { emit_half(d, 3, h_half_fma<F16>, h_half_fma<BF16>); }
void half_sign(Decoder& d) {
  emit_half(d, 1, h_half_sign<F16>, h_half_sign<BF16>).imm = d.in().opcode == "neg" ? 0x8000 : 0;
}
void half_extremum(Decoder& d) {
  bool x = d.mods.has("xorsign");
  d.mods.has("abs");
  Insn& n = emit_half(d, 2, h_half_extremum<F16>, h_half_extremum<BF16>);
  n.n = static_cast<uint8_t>(n.n | (x ? kXorSign : 0) | (d.in().opcode == "max" ? kMax : 0));
}

constexpr OpRow kRows[] = {
#define SG_OPS_HALF
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows half_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
