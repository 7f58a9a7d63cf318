// Integer arithmetic and bit fields.
#include <algorithm>
#include <limits>

#include "decode.h"
#include "handlers.h"

namespace sg::vm {
inline namespace SG_ISA {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);
// Arithmetic that may overflow: unsigned, and at least as wide as int, since narrower types promote to signed int.
template <class T>
using Wrap = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
using Twice =
    std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;

template <class T>
T saturate(int64_t v) {
  constexpr int64_t low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return static_cast<T>(v < low ? low : v > high ? high : v);
}

// clang-format off
struct Add { template <class T> static T f(T a, T b) { return static_cast<T>(Wrap<T>(a) + Wrap<T>(b)); } };
struct Sub { template <class T> static T f(T a, T b) { return static_cast<T>(Wrap<T>(a) - Wrap<T>(b)); } };
struct AddSat { template <class T> static T f(T a, T b) { return saturate<int32_t>(int64_t{1} * a + b); } };
struct SubSat { template <class T> static T f(T a, T b) { return saturate<int32_t>(int64_t{1} * a - b); } };
struct Min { template <class T> static T f(T a, T b) { return a < b ? a : b; } };
struct Max { template <class T> static T f(T a, T b) { return a > b ? a : b; } };
struct MinRelu { template <class T> static T f(T a, T b) { T m = a < b ? a : b; return m < T(0) ? T(0) : m; } };
struct MaxRelu { template <class T> static T f(T a, T b) { T m = a > b ? a : b; return m < T(0) ? T(0) : m; } };
struct Abs { template <class T> static T f(T a) { return static_cast<T>(a < T(0) ? Wrap<T>(0) - Wrap<T>(a) : Wrap<T>(a)); } };
struct Neg { template <class T> static T f(T a) { return static_cast<T>(Wrap<T>(0) - Wrap<T>(a)); } };
struct MulLo { template <class T> static T f(T a, T b) { return static_cast<T>(Wrap<T>(a) * Wrap<T>(b)); } };
struct MulHi { template <class T> static T f(T a, T b) {
  return static_cast<T>((Twice<T>(a) * Twice<T>(b)) >> kBits<T>); } };
// PTX leaves division by zero open; NVIDIA's code sequences give all ones as quotient and as remainder.
struct Div { template <class T> static T f(T a, T b) {
  if (b == T(0)) return static_cast<T>(~Unsigned<T>(0));
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Neg::f<T>(a);
  return static_cast<T>(a / b); } };
struct Rem { template <class T> static T f(T a, T b) {
  if (b == T(0)) return static_cast<T>(~Unsigned<T>(0));
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T(0);
  return static_cast<T>(a % b); } };
struct Sad { template <class T> static T f(T a, T b, T c) {
  return static_cast<T>(Wrap<T>(c) + (a < b ? Wrap<T>(b) - Wrap<T>(a) : Wrap<T>(a) - Wrap<T>(b))); } };
struct Brev { template <class T> static T f(T v) {
  Unsigned<T> a = static_cast<Unsigned<T>>(v), r = 0;
  for (uint32_t i = 0; i < kBits<T>; ++i) r = static_cast<Unsigned<T>>(r << 1 | (a >> i & 1));
  return static_cast<T>(r); } };
struct Popc { template <class T> static uint32_t f(T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); } };
struct Clz { template <class T> static uint32_t f(T a) {
  return a ? static_cast<uint32_t>(__builtin_clzll(a)) - (64 - kBits<T>) : kBits<T>; } };
// clang-format on

template <class Op, class T>
void h1(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, T>(w, in, mask, [](T a) { return Op::template f<T>(a); });
}
template <class Op, class T>
void h2(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, T, T>(w, in, mask, [](T a, T b) { return Op::template f<T>(a, b); });
}
template <class Op, class T>
void h3(Warp& w, const Insn& in, uint32_t mask) {
  map3<T, T, T, T>(w, in, mask, [](T a, T b, T c) { return Op::template f<T>(a, b, c); });
}

// Picks the instance of a template of handlers for an integer type.
#define SG_PICK_INT(type, ...) \
  [&](Type t_) -> Handler {    \
    switch (t_) {              \
      case Type::u16:          \
      case Type::b16: {        \
        using T = uint16_t;    \
        return __VA_ARGS__;    \
      }                        \
      case Type::s16: {        \
        using T = int16_t;     \
        return __VA_ARGS__;    \
      }                        \
      case Type::u32:          \
      case Type::b32: {        \
        using T = uint32_t;    \
        return __VA_ARGS__;    \
      }                        \
      case Type::s32: {        \
        using T = int32_t;     \
        return __VA_ARGS__;    \
      }                        \
      case Type::u64:          \
      case Type::b64: {        \
        using T = uint64_t;    \
        return __VA_ARGS__;    \
      }                        \
      case Type::s64: {        \
        using T = int64_t;     \
        return __VA_ARGS__;    \
      }                        \
      default:                 \
        return nullptr;        \
    }                          \
  }(type)

void emit_n(Decoder& d, Handler h, Type result, std::initializer_list<Type> types) {
  d.expect_operands(types.size() + 1);
  uint32_t s[3] = {0, 0, 0};
  size_t i = 0;
  for (Type t : types) {
    s[i] = d.src(i + 1, t);
    ++i;
  }
  uint32_t to = d.dst(0, result);
  Insn& n = d.emit(h);
  n.d = to;
  n.a = s[0];
  n.b = s[1];
  n.c = s[2];
}

template <class Op>
void int1(Decoder& d) {
  Type t = d.mods.type();
  emit_n(d, SG_PICK_INT(t, h1<Op, T>), t, {t});
}

template <class Op>
void int2(Decoder& d) {
  for (std::string_view word : {"sat", "relu"}) d.mods.has(word);  // part of Op
  Type t = d.mods.type();
  emit_n(d, SG_PICK_INT(t, h2<Op, T>), t, {t, t});
}

template <class Op>
void int3(Decoder& d) {
  Type t = d.mods.type();
  emit_n(d, SG_PICK_INT(t, h3<Op, T>), t, {t, t, t});
}

template <class Op, class T>
void h_pair2(Warp& w, const Insn& in, uint32_t mask) {
  map2<uint32_t, uint32_t, uint32_t>(w, in, mask, [](uint32_t a, uint32_t b) {
    uint16_t lo = static_cast<uint16_t>(Op::template f<T>(static_cast<T>(a), static_cast<T>(b)));
    uint16_t hi = static_cast<uint16_t>(Op::template f<T>(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
    return static_cast<uint32_t>(lo) | static_cast<uint32_t>(hi) << 16;
  });
}

template <class Op>
void pair2(Decoder& d) {
  d.mods.has("relu");  // part of Op
  Type t = d.mods.type();
  emit_n(d, t == Type::s16x2 ? h_pair2<Op, int16_t> : h_pair2<Op, uint16_t>, t, {t, t});
}

template <class T>
void h_mul_wide(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, T, Twice<T>>(w, in, mask, [](T a, T b) { return static_cast<Twice<T>>(Twice<T>(a) * Twice<T>(b)); });
}
template <class T>
void h_mad_wide(Warp& w, const Insn& in, uint32_t mask) {
  using U = Unsigned<Twice<T>>;
  map3<T, T, Twice<T>, Twice<T>>(w, in, mask, [](T a, T b, Twice<T> c) {
    return static_cast<Twice<T>>(static_cast<U>(Twice<T>(a) * Twice<T>(b)) + static_cast<U>(c));
  });
}
template <class T>
void h_mad_lo(Warp& w, const Insn& in, uint32_t mask) {
  map3<T, T, T, T>(w, in, mask, [](T a, T b, T c) { return Add::f<T>(MulLo::f<T>(a, b), c); });
}
template <class T>
void h_mad_hi(Warp& w, const Insn& in, uint32_t mask) {
  map3<T, T, T, T>(w, in, mask, [](T a, T b, T c) { return Add::f<T>(MulHi::f<T>(a, b), c); });
}
void h_mad_hi_sat(Warp& w, const Insn& in, uint32_t mask) {
  using T = int32_t;
  map3<T, T, T, T>(w, in, mask, [](T a, T b, T c) { return AddSat::f<T>(MulHi::f<T>(a, b), c); });
}

Type double_width(Type t) {
  switch (t) {
    case Type::u16:
      return Type::u32;
    case Type::s16:
      return Type::s32;
    case Type::u32:
      return Type::u64;
    default:
      return Type::s64;
  }
}

Handler wide_handler(Type t, bool add) {
  switch (t) {
    case Type::u16:
      return add ? h_mad_wide<uint16_t> : h_mul_wide<uint16_t>;
    case Type::s16:
      return add ? h_mad_wide<int16_t> : h_mul_wide<int16_t>;
    case Type::u32:
      return add ? h_mad_wide<uint32_t> : h_mul_wide<uint32_t>;
    default:
      return add ? h_mad_wide<int32_t> : h_mul_wide<int32_t>;
  }
}

void mul(Decoder& d) {
  Type t = d.mods.type();
  if (d.mods.has("wide")) return emit_n(d, wide_handler(t, false), double_width(t), {t, t});
  bool high = d.mods.one_of({"lo", "hi"}) == "hi";
  emit_n(d, high ? SG_PICK_INT(t, h2<MulHi, T>) : SG_PICK_INT(t, h2<MulLo, T>), t, {t, t});
}

void mad(Decoder& d) {
  Type t = d.mods.type();
  if (d.mods.has("wide")) return emit_n(d, wide_handler(t, true), double_width(t), {t, t, double_width(t)});
  bool high = d.mods.one_of({"lo", "hi"}) == "hi";
  Handler h = d.mods.has("sat") ? h_mad_hi_sat : high ? SG_PICK_INT(t, h_mad_hi<T>) : SG_PICK_INT(t, h_mad_lo<T>);
  emit_n(d, h, t, {t, t, t});
}

// in.imm: 0 = bits 31..0 of the 48-bit product, 16 = bits 47..16. in.n: saturate the sum.
template <class T>
void h_mul24(Warp& w, const Insn& in, uint32_t mask) {
  auto low24 = [](T v) -> int64_t {
    if constexpr (std::is_signed_v<T>) return static_cast<int32_t>(static_cast<uint32_t>(v) << 8) >> 8;
    return v & 0xffffff;
  };
  bool add = in.c != 0;  // no operand's slot is at offset 0
  const uint8_t* c = w.regs + in.c;
  for_lanes(mask, [&](uint32_t l) {
    int64_t p = low24(get<T>(w.regs + in.a, l)) * low24(get<T>(w.regs + in.b, l)) >> in.imm;
    T v = static_cast<T>(p);
    if (add) v = in.n ? saturate<int32_t>(int64_t{static_cast<int32_t>(v)} + get<T>(c, l)) : Add::f<T>(v, get<T>(c, l));
    put<T>(w.regs + in.d, l, v);
  });
}

void mul24(Decoder& d) {
  Type t = d.mods.type();
  bool high = d.mods.one_of({"lo", "hi"}) == "hi";
  bool sat = d.mods.has("sat");
  bool add = d.in().opcode == "mad24";
  Handler h = t == Type::s32 ? h_mul24<int32_t> : h_mul24<uint32_t>;
  add ? emit_n(d, h, t, {t, t, t}) : emit_n(d, h, t, {t, t});
  d.code().insns.back().imm = high ? 16 : 0;
  d.code().insns.back().n = sat;
}

// Extended precision. The carry flag of each lane is a bit of a predicate slot, in.e. in.n: 1 = reads it, 2 = writes.
// CC.CF after sub is the borrow.
template <class T>
void h_carry_add(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t carry_in = in.n & 1 ? w.pred(in.e) : 0, carry = 0;
  for_lanes(mask, [&](uint32_t l) {
    T a = get<T>(w.regs + in.a, l), b = get<T>(w.regs + in.b, l), s, r;
    bool c1 = __builtin_add_overflow(a, b, &s);
    bool c2 = __builtin_add_overflow(s, static_cast<T>(carry_in >> l & 1), &r);
    put<T>(w.regs + in.d, l, r);
    carry |= static_cast<uint32_t>(c1 | c2) << l;
  });
  if (in.n & 2) set_pred(&w.pred(in.e), mask, carry);
}
template <class T>
void h_carry_sub(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t borrow_in = in.n & 1 ? w.pred(in.e) : 0, borrow = 0;
  for_lanes(mask, [&](uint32_t l) {
    T a = get<T>(w.regs + in.a, l), b = get<T>(w.regs + in.b, l), s, r;
    bool c1 = __builtin_sub_overflow(a, b, &s);
    bool c2 = __builtin_sub_overflow(s, static_cast<T>(borrow_in >> l & 1), &r);
    put<T>(w.regs + in.d, l, r);
    borrow |= static_cast<uint32_t>(c1 | c2) << l;
  });
  if (in.n & 2) set_pred(&w.pred(in.e), mask, borrow);
}

uint32_t carry_slot(Decoder& d) { return d.fill(Fill::constant, 4, uint64_t{1} << 32); }  // a slot of its own: 0

void carry2(Decoder& d, Handler h, Type t, bool reads) {
  bool writes = d.mods.has("cc");
  emit_n(d, h, t, {t, t});
  uint32_t cc = carry_slot(d);
  d.code().insns.back().e = cc;
  d.code().insns.back().n = static_cast<uint8_t>((reads ? 1 : 0) | (writes ? 2 : 0));
}

void carry_add(Decoder& d) {
  Type t = d.mods.type();
  bool wide = ptx::bytes_of(t) == 8;
  carry2(d, wide ? h_carry_add<uint64_t> : h_carry_add<uint32_t>, t, d.in().opcode == "addc");
}
void carry_sub(Decoder& d) {
  Type t = d.mods.type();
  bool wide = ptx::bytes_of(t) == 8;
  carry2(d, wide ? h_carry_sub<uint64_t> : h_carry_sub<uint32_t>, t, d.in().opcode == "subc");
}

void carry_mad(Decoder& d) {
  d.expect_operands(4);
  Type t = d.mods.type();
  bool wide = ptx::bytes_of(t) == 8;
  bool high = d.mods.one_of({"lo", "hi"}) == "hi", writes = d.mods.has("cc");
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t);
  uint32_t product = d.temp(wide ? 8 : 4), cc = carry_slot(d);
  Insn& m = d.emit(high ? SG_PICK_INT(t, h2<MulHi, T>) : SG_PICK_INT(t, h2<MulLo, T>));
  m.d = product;
  m.a = a;
  m.b = b;
  Insn& s = d.emit(wide ? h_carry_add<uint64_t> : h_carry_add<uint32_t>);
  s.d = to;
  s.a = product;
  s.b = c;
  s.e = cc;
  s.n = static_cast<uint8_t>((d.in().opcode == "madc" ? 1 : 0) | (writes ? 2 : 0));
}

template <class Op, class T>
void h_count(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, uint32_t>(w, in, mask, [](T a) { return Op::template f<T>(a); });
}

template <class Op>
void count(Decoder& d) {
  Type t = d.mods.type();
  emit_n(d, t == Type::b64 ? h_count<Op, uint64_t> : h_count<Op, uint32_t>, Type::u32, {t});
}

// in.n: give the shift that brings the bit to the top instead of its position.
template <class T>
void h_bfind(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, uint32_t>(w, in, mask, [n = in.n](T v) {
    Unsigned<T> a = static_cast<Unsigned<T>>(std::is_signed_v<T> && v < T(0) ? ~v : v);
    if (!a) return ~0u;
    uint32_t at = kBits<T> - 1 - Clz::f<Unsigned<T>>(a);
    return n ? kBits<T> - 1 - at : at;
  });
}

void bfind(Decoder& d) {
  Type t = d.mods.type();
  bool shift = d.mods.has("shiftamt");
  emit_n(d, SG_PICK_INT(t, h_bfind<T>), Type::u32, {t});
  d.code().insns.back().n = shift;
}

void h_fns(Warp& w, const Insn& in, uint32_t mask) {
  map3<uint32_t, uint32_t, int32_t, uint32_t>(w, in, mask, [](uint32_t bits, uint32_t base, int32_t offset) {
    if (base > 31) return ~0u;
    if (offset == 0) return bits >> base & 1 ? base : ~0u;
    int step = offset > 0 ? 1 : -1;
    int64_t left = offset > 0 ? offset : -int64_t{offset};
    for (int at = static_cast<int>(base); at >= 0 && at < 32; at += step) {
      if ((bits >> at & 1) && --left == 0) return static_cast<uint32_t>(at);
    }
    return ~0u;
  });
}

void fns(Decoder& d) {
  d.mods.type();
  emit_n(d, h_fns, Type::b32, {Type::b32, Type::b32, Type::s32});
}

/// Position or length of a bit field. PTX allows 0..255 only; of what exceeds it a GPU takes 8 bits for fields of 32
/// bits and all for 64.
template <class T>
uint32_t bit_count(uint32_t v) {
  return sizeof(T) == 8 ? std::min(v, 255u) : v & 0xff;
}

template <class T>
void h_bfe(Warp& w, const Insn& in, uint32_t mask) {
  map3<T, uint32_t, uint32_t, T>(w, in, mask, [](T a, uint32_t pos, uint32_t len) {
    pos = bit_count<T>(pos);
    len = bit_count<T>(len);
    if (len == 0) return T(0);
    constexpr uint32_t msb = kBits<T> - 1;
    uint32_t last = pos + len - 1 < msb ? pos + len - 1 : msb;
    bool sign = std::is_signed_v<T> && (static_cast<Unsigned<T>>(a) >> last & 1);
    Unsigned<T> field = pos > msb ? 0 : static_cast<Unsigned<T>>(a) >> pos;
    uint32_t have = pos > msb ? 0 : last - pos + 1;
    if (have < kBits<T>) {
      Unsigned<T> keep = (Unsigned<T>(1) << have) - 1;
      field = (field & keep) | (sign ? ~keep : 0);
    }
    return static_cast<T>(field);
  });
}

void bfe(Decoder& d) {
  Type t = d.mods.type();
  emit_n(d, SG_PICK_INT(t, h_bfe<T>), t, {t, Type::u32, Type::u32});
}

template <class T>
void h_bfi(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    T a = get<T>(w.regs + in.a, l), b = get<T>(w.regs + in.b, l);
    uint32_t pos = bit_count<T>(get<uint32_t>(w.regs + in.c, l)), len = bit_count<T>(get<uint32_t>(w.regs + in.e, l));
    T field = len >= kBits<T> ? ~T(0) : (T(1) << len) - 1;
    if (pos >= kBits<T>) {
      field = 0;
      pos = 0;
    }
    put<T>(w.regs + in.d, l, (b & ~(field << pos)) | (a & field) << pos);
  });
}

void bfi(Decoder& d) {
  d.expect_operands(5);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, Type::u32), e = d.src(4, Type::u32), to = d.dst(0, t);
  Insn& n = d.emit(t == Type::b64 ? h_bfi<uint64_t> : h_bfi<uint32_t>);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.e = e;
}

// in.n: wrap the position instead of clamping it.
template <class T>
void h_szext(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, uint32_t, T>(w, in, mask, [n = in.n](T a, uint32_t bits) {
    if (n) bits &= 31;
    if (bits >= 32) return a;
    if (bits == 0) return T(0);
    uint32_t up = static_cast<uint32_t>(a) << (32 - bits);
    return static_cast<T>(static_cast<T>(up) >> (32 - bits));
  });
}

void szext(Decoder& d) {
  Type t = d.mods.type();
  bool wrap = d.mods.one_of({"clamp", "wrap"}) == "wrap";
  emit_n(d, t == Type::s32 ? h_szext<int32_t> : h_szext<uint32_t>, t, {t, Type::u32});
  d.code().insns.back().n = wrap;
}

void h_bmsk(Warp& w, const Insn& in, uint32_t mask) {
  map2<uint32_t, uint32_t, uint32_t>(w, in, mask, [n = in.n](uint32_t pos, uint32_t len) {
    if (n) {
      pos &= 31;
      len &= 31;
    }
    if (pos >= 32 || len == 0) return 0u;
    return (len >= 32 ? ~0u : (1u << len) - 1) << pos;
  });
}

void bmsk(Decoder& d) {
  d.mods.type();
  bool wrap = d.mods.one_of({"clamp", "wrap"}) == "wrap";
  emit_n(d, h_bmsk, Type::b32, {Type::u32, Type::u32});
  d.code().insns.back().n = wrap;
}

template <class A, class B>
void h_dp4a(Warp& w, const Insn& in, uint32_t mask) {
  map3<uint32_t, uint32_t, uint32_t, uint32_t>(w, in, mask, [](uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8) {
      c += static_cast<uint32_t>(int32_t{static_cast<A>(a >> i)} * int32_t{static_cast<B>(b >> i)});
    }
    return c;
  });
}

void dp4a(Decoder& d) {
  bool sa = d.mods.type(0) == Type::s32, sb = d.mods.type(1) == Type::s32;
  Handler h = sa ? (sb ? h_dp4a<int8_t, int8_t> : h_dp4a<int8_t, uint8_t>)
                 : (sb ? h_dp4a<uint8_t, int8_t> : h_dp4a<uint8_t, uint8_t>);
  emit_n(d, h, Type::b32, {Type::b32, Type::b32, Type::b32});
}

// in.imm: first bit of the two bytes of b.
template <class A, class B>
void h_dp2a(Warp& w, const Insn& in, uint32_t mask) {
  map3<uint32_t, uint32_t, uint32_t, uint32_t>(w, in, mask, [s = in.imm](uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 2; ++i) {
      c += static_cast<uint32_t>(int32_t{static_cast<A>(a >> (16 * i))} * int32_t{static_cast<B>(b >> (s + 8 * i))});
    }
    return c;
  });
}

void dp2a(Decoder& d) {
  bool sa = d.mods.type(0) == Type::s32, sb = d.mods.type(1) == Type::s32;
  bool high = d.mods.one_of({"lo", "hi"}) == "hi";
  Handler h = sa ? (sb ? h_dp2a<int16_t, int8_t> : h_dp2a<int16_t, uint8_t>)
                 : (sb ? h_dp2a<uint16_t, int8_t> : h_dp2a<uint16_t, uint8_t>);
  emit_n(d, h, Type::b32, {Type::b32, Type::b32, Type::b32});
  d.code().insns.back().imm = high ? 16 : 0;
}

constexpr OpRow kRows[] = {
#define SG_OPS_INT
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows int_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
