// Bit logic, shifts, comparisons, selections, moves.
#include "decode.h"
#include "float_bits.h"
#include "handlers.h"

namespace sg::vm {
inline namespace SG_ISA {
namespace {

// clang-format off
struct And { template <class T> static T f(T a, T b) { return a & b; } };
struct Or { template <class T> static T f(T a, T b) { return a | b; } };
struct Xor { template <class T> static T f(T a, T b) { return a ^ b; } };
struct Not { template <class T> static T f(T a) { return ~a; } };
struct Cnot { template <class T> static T f(T a) { return a == 0; } };
// clang-format on

template <class Op, class T>
void h_bits1(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, T>(w, in, mask, [](T a) { return Op::template f<T>(a); });
}
template <class Op, class T>
void h_bits2(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, T, T>(w, in, mask, [](T a, T b) { return Op::template f<T>(a, b); });
}

template <class Op>
void bits1(Decoder& d) {
  d.expect_operands(2);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), to = d.dst(0, t);
  uint32_t bytes = ptx::bytes_of(t);
  Insn& n = d.emit(bytes == 8 ? h_bits1<Op, uint64_t> : bytes == 4 ? h_bits1<Op, uint32_t> : h_bits1<Op, uint16_t>);
  n.d = to;
  n.a = a;
}

template <class Op>
void bits2(Decoder& d) {
  d.expect_operands(3);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), to = d.dst(0, t);
  Insn& n = d.emit(ptx::bytes_of(t) == 8 ? h_bits2<Op, uint64_t> : h_bits2<Op, uint32_t>);
  n.d = to;
  n.a = a;
  n.b = b;
}

template <class Op>
void h_pred2(Warp& w, const Insn& in, uint32_t mask) {
  set_pred(&w.pred(in.d), mask, Op::template f<uint32_t>(w.pred(in.a), w.pred(in.b)));
}

template <class Op>
void pred2(Decoder& d) {
  d.expect_operands(3);
  d.mods.type();
  uint32_t a = d.pred_src(d.op(1)), b = d.pred_src(d.op(2)), to = d.pred_dst(d.op(0));
  Insn& n = d.emit(h_pred2<Op>);
  n.d = to;
  n.a = a;
  n.b = b;
}

void h_pred_not(Warp& w, const Insn& in, uint32_t mask) { set_pred(&w.pred(in.d), mask, ~w.pred(in.a)); }
void h_pred_mov(Warp& w, const Insn& in, uint32_t mask) { set_pred(&w.pred(in.d), mask, w.pred(in.a)); }

void pred_unary(Decoder& d, Handler h) {
  d.expect_operands(2);
  d.mods.type();
  uint32_t a = d.pred_src(d.op(1)), to = d.pred_dst(d.op(0));
  Insn& n = d.emit(h);
  n.d = to;
  n.a = a;
}
void pred_not(Decoder& d) { pred_unary(d, h_pred_not); }
void mov_pred(Decoder& d) { pred_unary(d, h_pred_mov); }

// Shift amounts are unsigned and clamp at the width.
template <class T>
void h_shl(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, uint32_t, T>(w, in, mask, [](T a, uint32_t s) { return s < 8 * sizeof(T) ? static_cast<T>(a << s) : T(0); });
}
template <class T>
void h_shr(Warp& w, const Insn& in, uint32_t mask) {
  map2<T, uint32_t, T>(w, in, mask, [](T a, uint32_t s) {
    constexpr uint32_t top = 8 * sizeof(T) - 1;
    if (std::is_signed_v<T>) return static_cast<T>(a >> (s < top ? s : top));
    return s <= top ? static_cast<T>(a >> s) : T(0);
  });
}

void shift(Decoder& d) {
  d.expect_operands(3);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, Type::u32), to = d.dst(0, t);
  uint32_t bytes = ptx::bytes_of(t);
  Handler h;
  if (d.in().opcode == "shl") {
    h = bytes == 8 ? h_shl<uint64_t> : bytes == 4 ? h_shl<uint32_t> : h_shl<uint16_t>;
  } else if (ptx::is_signed(t)) {
    h = bytes == 8 ? h_shr<int64_t> : bytes == 4 ? h_shr<int32_t> : h_shr<int16_t>;
  } else {
    h = bytes == 8 ? h_shr<uint64_t> : bytes == 4 ? h_shr<uint32_t> : h_shr<uint16_t>;
  }
  Insn& n = d.emit(h);
  n.d = to;
  n.a = a;
  n.b = b;
}

template <bool Left, bool Wrap>
void h_funnel(Warp& w, const Insn& in, uint32_t mask) {
  map3<uint32_t, uint32_t, uint32_t, uint32_t>(w, in, mask, [](uint32_t lo, uint32_t hi, uint32_t s) {
    s = Wrap ? s & 31 : s < 32 ? s : 32;
    uint64_t v = static_cast<uint64_t>(hi) << 32 | lo;
    return static_cast<uint32_t>(Left ? v << s >> 32 : v >> s);
  });
}

void funnel(Decoder& d) {
  d.expect_operands(4);
  Type t = d.mods.type();
  bool left = d.mods.one_of({"l", "r"}) == "l", wrap = d.mods.one_of({"clamp", "wrap"}) == "wrap";
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t);
  Insn& n = d.emit(left ? (wrap ? h_funnel<true, true> : h_funnel<true, false>)
                        : (wrap ? h_funnel<false, true> : h_funnel<false, false>));
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
}

inline uint32_t table3(uint32_t a, uint32_t b, uint32_t c, uint32_t lut) {
  uint32_t r = 0;
  if (lut & 1) r |= ~a & ~b & ~c;
  if (lut & 2) r |= ~a & ~b & c;
  if (lut & 4) r |= ~a & b & ~c;
  if (lut & 8) r |= ~a & b & c;
  if (lut & 16) r |= a & ~b & ~c;
  if (lut & 32) r |= a & ~b & c;
  if (lut & 64) r |= a & b & ~c;
  if (lut & 128) r |= a & b & c;
  return r;
}

void h_lop3(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t lut = static_cast<uint32_t>(in.imm);
  map3<uint32_t, uint32_t, uint32_t, uint32_t>(
      w, in, mask, [lut](uint32_t a, uint32_t b, uint32_t c) { return table3(a, b, c, lut); });
}

uint8_t lut_of(Decoder& d, size_t i) {
  int64_t lut = d.integer(d.op(i));
  if (lut < 0 || lut > 255) d.fail("look-up table is not a byte");
  return static_cast<uint8_t>(lut);
}

void lop3(Decoder& d) {
  d.expect_operands(5);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t);
  uint8_t lut = lut_of(d, 4);
  Insn& n = d.emit(h_lop3);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.imm = lut;
}

// aux: slots of d, p (0: none), q; in.n: 1 = or.
void h_lop3_pred(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  uint32_t bits = 0;
  for_lanes(mask, [&](uint32_t l) {
    uint32_t r = table3(get<uint32_t>(w.regs + in.a, l), get<uint32_t>(w.regs + in.b, l),
                        get<uint32_t>(w.regs + in.c, l), static_cast<uint32_t>(in.imm));
    put<uint32_t>(w.regs + x[0], l, r);
    bits |= static_cast<uint32_t>(r != 0) << l;
  });
  uint32_t q = w.pred(x[2]);
  set_pred(&w.pred(x[1]), mask, in.n ? bits | q : bits & q);
}

void lop3_pred(Decoder& d) {
  d.expect_operands(6);
  Type t = d.mods.type();
  bool is_or = d.mods.one_of({"and", "or"}) == "or";
  Operand value = d.op(0);
  if (value.second.empty()) d.fail("destination must be d|p");
  value.second = {};
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t);
  uint8_t lut = lut_of(d, 4);
  uint32_t q = d.pred_src(d.op(5));
  uint32_t list = d.aux({d.dst(value, t), d.pred_dst(d.op(0).second, d.in().line), q});
  Insn& n = d.emit(h_lop3_pred);
  n.a = a;
  n.b = b;
  n.c = c;
  n.e = list;
  n.imm = lut;
  n.n = is_or;
}

// Selector of each special mode by the two low bits of c.
uint32_t permute_selector(uint8_t mode, uint32_t c) {
  static constexpr uint16_t kModes[7][4] = {{},
                                            {0x3210, 0x4321, 0x5432, 0x6543},
                                            {0x5670, 0x6701, 0x7012, 0x0123},
                                            {0x0000, 0x1111, 0x2222, 0x3333},
                                            {0x3210, 0x3211, 0x3222, 0x3333},
                                            {0x0000, 0x1110, 0x2210, 0x3210},
                                            {0x1010, 0x3232, 0x1010, 0x3232}};
  return mode ? kModes[mode][c & 3] : c;
}

void h_prmt(Warp& w, const Insn& in, uint32_t mask) {
  map3<uint32_t, uint32_t, uint32_t, uint32_t>(w, in, mask, [mode = in.n](uint32_t a, uint32_t b, uint32_t c) {
    uint64_t v = static_cast<uint64_t>(b) << 32 | a;
    uint32_t s = permute_selector(mode, c), r = 0;
    for (int i = 0; i < 4; ++i) {
      uint32_t nibble = s >> (4 * i) & 15;
      uint32_t byte = static_cast<uint32_t>(v >> (8 * (nibble & 7))) & 0xff;
      if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
      r |= byte << (8 * i);
    }
    return r;
  });
}

void prmt(Decoder& d) {
  d.expect_operands(4);
  Type t = d.mods.type();
  static constexpr std::string_view kNames[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
  uint8_t mode = 0;
  for (uint8_t i = 1; i < 7; ++i) {
    if (d.mods.has(kNames[i])) mode = i;
  }
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), to = d.dst(0, t);
  Insn& n = d.emit(h_prmt);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.n = mode;
}

template <class T>
void h_selp(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t p = w.pred(in.c);
  const T *a = w.reg<T>(in.a), *b = w.reg<T>(in.b);
  T* to = w.reg<T>(in.d);
  for_lanes(mask, [&](uint32_t l) { to[l] = p >> l & 1 ? a[l] : b[l]; });
}

void selp(Decoder& d) {
  d.expect_operands(4);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), b = d.src(2, t), p = d.pred_src(d.op(3)), to = d.dst(0, t);
  Insn& n = d.emit(ptx::bytes_of(t) == 8 ? h_selp<uint64_t> : h_selp<uint32_t>);
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = p;
}

template <class T, class C>
void h_slct(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    // A subnormal that .ftz flushes becomes a zero of either sign, which is >= 0.
    C c = get<C>(w.regs + in.c, l);
    if constexpr (std::is_same_v<C, float>) c = in.n ? flush(c) : c;
    w.reg<T>(in.d)[l] = c >= C(0) ? w.reg<T>(in.a)[l] : w.reg<T>(in.b)[l];
  });
}

void slct(Decoder& d) {
  d.expect_operands(4);
  bool ftz = d.mods.has("ftz");
  Type t = d.mods.type(0), s = d.mods.type(1);
  if (s == Type::none) s = t;
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, s), to = d.dst(0, t);
  bool wide = ptx::bytes_of(t) == 8, real = s == Type::f32;
  Insn& n = d.emit(wide ? (real ? h_slct<uint64_t, float> : h_slct<uint64_t, int32_t>)
                        : (real ? h_slct<uint32_t, float> : h_slct<uint32_t, int32_t>));
  n.d = to;
  n.a = a;
  n.b = b;
  n.c = c;
  n.n = ftz;
}

// Comparisons. The ordered ones are false and the unordered ones (…u) true if an operand is NaN.
enum class Cmp : uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Cmp C, class T>
inline bool compare(T a, T b) {
  if constexpr (C == Cmp::eq) return a == b;
  if constexpr (C == Cmp::lt) return a < b;
  if constexpr (C == Cmp::le) return a <= b;
  if constexpr (C == Cmp::gt) return a > b;
  if constexpr (C == Cmp::ge) return a >= b;
  if constexpr (C == Cmp::ne) return std::is_floating_point_v<T> ? a < b || a > b : a != b;
  if constexpr (C == Cmp::equ) return !(a < b || a > b);
  if constexpr (C == Cmp::neu) return !(a == b);
  if constexpr (C == Cmp::ltu) return !(a >= b);
  if constexpr (C == Cmp::leu) return !(a > b);
  if constexpr (C == Cmp::gtu) return !(a <= b);
  if constexpr (C == Cmp::geu) return !(a < b);
  if constexpr (C == Cmp::num) return a == a && b == b;
  if constexpr (C == Cmp::nan) return a != a || b != b;
}

/// What a comparison leaves: in.d = p, in.e = q (0: none), in.c = the third predicate, in.n = 1 and, 2 or, 3 xor.
inline void store_compare(Warp& w, const Insn& in, uint32_t mask, uint32_t bits) {
  uint32_t inverse = ~bits;
  if (in.n) {
    uint32_t c = w.pred(in.c);
    bits = in.n == 1 ? bits & c : in.n == 2 ? bits | c : bits ^ c;
    inverse = in.n == 1 ? inverse & c : in.n == 2 ? inverse | c : inverse ^ c;
  }
  set_pred(&w.pred(in.d), mask, bits);
  if (in.e) set_pred(&w.pred(in.e), mask, inverse);
}

// in.imm: flush subnormal operands.
template <Cmp C, class T>
void h_setp(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t bits = 0;
  const uint8_t *a = w.regs + in.a, *b = w.regs + in.b;
  if (std::is_same_v<T, float> && in.imm) {
    for_lanes(mask, [&](uint32_t l) {
      float x = flush(get<float>(a, l)), y = flush(get<float>(b, l));
      bits |= static_cast<uint32_t>(compare<C, float>(x, y)) << l;
    });
  } else if (mask == kFullMask) {
    for (uint32_t l = 0; l < kLanes; ++l) bits |= static_cast<uint32_t>(compare<C, T>(get<T>(a, l), get<T>(b, l))) << l;
  } else {
    for_lanes(mask, [&](uint32_t l) { bits |= static_cast<uint32_t>(compare<C, T>(get<T>(a, l), get<T>(b, l))) << l; });
  }
  store_compare(w, in, mask, bits);
}

template <class T>
Handler pick_int_compare(Cmp c) {
  switch (c) {
    case Cmp::eq:
      return h_setp<Cmp::eq, T>;
    case Cmp::ne:
      return h_setp<Cmp::ne, T>;
    case Cmp::lt:
      return h_setp<Cmp::lt, T>;
    case Cmp::le:
      return h_setp<Cmp::le, T>;
    case Cmp::gt:
      return h_setp<Cmp::gt, T>;
    default:
      return h_setp<Cmp::ge, T>;
  }
}

template <class T>
Handler pick_float_compare(Cmp c) {
  switch (c) {
    case Cmp::equ:
      return h_setp<Cmp::equ, T>;
    case Cmp::neu:
      return h_setp<Cmp::neu, T>;
    case Cmp::ltu:
      return h_setp<Cmp::ltu, T>;
    case Cmp::leu:
      return h_setp<Cmp::leu, T>;
    case Cmp::gtu:
      return h_setp<Cmp::gtu, T>;
    case Cmp::geu:
      return h_setp<Cmp::geu, T>;
    case Cmp::num:
      return h_setp<Cmp::num, T>;
    case Cmp::nan:
      return h_setp<Cmp::nan, T>;
    default:
      return pick_int_compare<T>(c);
  }
}

Handler pick_compare(Type t, Cmp c) {
  switch (t) {
    case Type::b16:
    case Type::u16:
      return pick_int_compare<uint16_t>(c);
    case Type::s16:
      return pick_int_compare<int16_t>(c);
    case Type::b32:
    case Type::u32:
      return pick_int_compare<uint32_t>(c);
    case Type::s32:
      return pick_int_compare<int32_t>(c);
    case Type::b64:
    case Type::u64:
      return pick_int_compare<uint64_t>(c);
    case Type::s64:
      return pick_int_compare<int64_t>(c);
    case Type::f32:
      return pick_float_compare<float>(c);
    default:
      return pick_float_compare<double>(c);
  }
}

Cmp comparison(Decoder& d, Type t) {
  static constexpr std::string_view kNames[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                                "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  static constexpr std::pair<std::string_view, Cmp> kUnsigned[] = {
      {"lo", Cmp::lt}, {"ls", Cmp::le}, {"hi", Cmp::gt}, {"hs", Cmp::ge}};
  for (uint8_t i = 0; i < 14; ++i) {
    if (!d.mods.has(kNames[i])) continue;
    if ((t == Type::b16 || t == Type::b32 || t == Type::b64) && i > 1) d.fail("bits have no order");
    return static_cast<Cmp>(i);
  }
  for (auto [name, c] : kUnsigned) {
    if (!d.mods.has(name)) continue;
    if (t != Type::u16 && t != Type::u32 && t != Type::u64) d.fail("." + std::string(name) + " needs an unsigned type");
    return c;
  }
  d.fail("no comparison");
}

uint8_t bool_op(Decoder& d) {
  std::string_view w = d.mods.one_of({"and", "or", "xor"});
  return w == "and" ? 1 : w == "or" ? 2 : w == "xor" ? 3 : 0;
}

/// Emits the comparison of operands 1 and 2 (and 3) into predicate p and, if not 0, q.
void emit_compare(Decoder& d, Handler h, uint32_t a, uint32_t b, uint8_t combine, bool ftz, uint32_t p, uint32_t q) {
  d.expect_operands(combine ? 4 : 3);
  uint32_t c = combine ? d.pred_src(d.op(3)) : 0;
  Insn& n = d.emit(h);
  n.d = p;
  n.e = q;
  n.a = a;
  n.b = b;
  n.c = c;
  n.n = combine;
  n.imm = ftz;
}

void setp(Decoder& d) {
  uint8_t combine = bool_op(d);
  bool ftz = d.mods.has("ftz");
  Type t = d.mods.type();
  Cmp c = comparison(d, t);
  uint32_t a = d.src(1, t), b = d.src(2, t);
  uint32_t p = d.pred_dst(d.op(0)), q = d.op(0).second.empty() ? 0 : d.pred_dst(d.op(0).second, d.in().line);
  emit_compare(d, pick_compare(t, c), a, b, combine, ftz, p, q);
}

// in.imm: what true is; false is 0.
void h_pred_to_value(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t p = w.pred(in.a), yes = static_cast<uint32_t>(in.imm);
  for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = p >> l & 1 ? yes : 0; });
}

void set(Decoder& d) {
  uint8_t combine = bool_op(d);
  bool ftz = d.mods.has("ftz");
  Type to = d.mods.type(0), t = d.mods.type(1);
  if (t == Type::none) t = to;
  Cmp c = comparison(d, t);
  uint32_t a = d.src(1, t), b = d.src(2, t), p = d.temp_pred();
  emit_compare(d, pick_compare(t, c), a, b, combine, ftz, p, 0);
  uint32_t dst = d.dst(0, to);
  Insn& n = d.emit(h_pred_to_value);
  n.d = dst;
  n.a = p;
  n.imm = to == Type::f32 ? 0x3f800000 : 0xffffffff;
}

bool compare_as(Cmp c, float a, float b) {
  switch (c) {
    case Cmp::eq:
      return compare<Cmp::eq>(a, b);
    case Cmp::ne:
      return compare<Cmp::ne>(a, b);
    case Cmp::lt:
      return compare<Cmp::lt>(a, b);
    case Cmp::le:
      return compare<Cmp::le>(a, b);
    case Cmp::gt:
      return compare<Cmp::gt>(a, b);
    case Cmp::ge:
      return compare<Cmp::ge>(a, b);
    case Cmp::equ:
      return compare<Cmp::equ>(a, b);
    case Cmp::neu:
      return compare<Cmp::neu>(a, b);
    case Cmp::ltu:
      return compare<Cmp::ltu>(a, b);
    case Cmp::leu:
      return compare<Cmp::leu>(a, b);
    case Cmp::gtu:
      return compare<Cmp::gtu>(a, b);
    case Cmp::geu:
      return compare<Cmp::geu>(a, b);
    case Cmp::num:
      return compare<Cmp::num>(a, b);
    default:
      return compare<Cmp::nan>(a, b);
  }
}

// One half of the operands: in.imm = comparison | flush << 8 | shift << 16.
template <class F>
void h_setp_half(Warp& w, const Insn& in, uint32_t mask) {
  Cmp c = static_cast<Cmp>(in.imm & 0xff);
  bool ftz = in.imm >> 8 & 1;
  uint32_t shift = static_cast<uint32_t>(in.imm >> 16), bits = 0;
  auto value = [&](uint32_t slot, uint32_t l) {
    uint16_t h = static_cast<uint16_t>(get<uint32_t>(w.regs + slot, l) >> shift);
    if (ftz && (h & F::infinity) == 0) h &= 0x8000;
    return F::widen(h);
  };
  for_lanes(mask,
            [&](uint32_t l) { bits |= static_cast<uint32_t>(compare_as(c, value(in.a, l), value(in.b, l))) << l; });
  store_compare(w, in, mask, bits);
}

bool is_bf16(Type t) { return t == Type::bf16 || t == Type::bf16x2; }

void emit_half_compare(Decoder& d, Type t, Cmp c, uint8_t combine, bool ftz, uint32_t a, uint32_t b, uint32_t shift,
                       uint32_t p, uint32_t q) {
  emit_compare(d, is_bf16(t) ? h_setp_half<BF16> : h_setp_half<F16>, a, b, combine, false, p, q);
  d.code().insns.back().imm = static_cast<int64_t>(c) | (ftz ? 256 : 0) | static_cast<int64_t>(shift) << 16;
}

void setp_half(Decoder& d) {
  uint8_t combine = bool_op(d);
  bool ftz = d.mods.has("ftz");
  Type t = d.mods.type();
  Cmp c = comparison(d, t);
  uint32_t a = d.src(1, t), b = d.src(2, t);
  uint32_t p = d.pred_dst(d.op(0)), q = d.op(0).second.empty() ? 0 : d.pred_dst(d.op(0).second, d.in().line);
  bool packed = t == Type::f16x2 || t == Type::bf16x2;
  if (!packed && q) d.fail("two predicates for one comparison");
  if (!packed) return emit_half_compare(d, t, c, combine, ftz, a, b, 0, p, q);
  // Packed: p is for the low halves, q for the high ones. c may be p itself, so both are written at the end.
  uint32_t low = d.temp_pred();
  emit_half_compare(d, t, c, combine, ftz, a, b, 0, low, 0);
  if (q) emit_half_compare(d, t, c, combine, ftz, a, b, 16, q, 0);
  Insn& n = d.emit(h_pred_mov);
  n.d = p;
  n.a = low;
}

// Packs two predicates into a register of two halves; in.imm: what true is in the low half.
void h_preds_to_pair(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t lo = w.pred(in.a), hi = w.pred(in.b), yes = static_cast<uint32_t>(in.imm);
  for_lanes(mask,
            [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = (lo >> l & 1 ? yes : 0) | (hi >> l & 1 ? yes << 16 : 0); });
}

void set_half(Decoder& d) {
  uint8_t combine = bool_op(d);
  bool ftz = d.mods.has("ftz");
  Type to = d.mods.type(0), t = d.mods.type(1);
  if (t == Type::none) t = to;
  Cmp c = comparison(d, t);
  uint32_t a = d.src(1, t), b = d.src(2, t), p = d.temp_pred();
  bool packed = t == Type::f16x2 || t == Type::bf16x2;
  emit_half_compare(d, t, c, combine, ftz, a, b, 0, p, 0);
  int64_t yes = to == Type::f16 || to == Type::f16x2     ? F16::one
                : to == Type::bf16 || to == Type::bf16x2 ? BF16::one
                : ptx::bytes_of(to) == 2                 ? 0xffff
                                                         : 0xffffffff;
  uint32_t q = 0;
  if (packed) {
    q = d.temp_pred();
    emit_half_compare(d, t, c, combine, ftz, a, b, 16, q, 0);
  }
  uint32_t dst = d.dst(0, to);
  Insn& n = d.emit(packed ? h_preds_to_pair : h_pred_to_value);
  n.d = dst;
  n.a = p;
  n.b = q;
  n.imm = yes;
}

template <class T>
void h_mov(Warp& w, const Insn& in, uint32_t mask) {
  const T* a = w.reg<T>(in.a);
  T* to = w.reg<T>(in.d);
  for_lanes(mask, [&](uint32_t l) { to[l] = a[l]; });
}

struct Wide {
  uint64_t lo, hi;
};

// Parts of a register to and from a list of narrower ones: in.n parts of in.imm bytes each, aux = their slots.
template <class T>
void h_pack(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  uint32_t bits = static_cast<uint32_t>(in.imm) * 8;
  for_lanes(mask, [&](uint32_t l) {
    uint64_t v = 0;
    for (uint32_t i = 0; i < in.n; ++i) {
      uint64_t part = get<uint32_t>(w.regs + x[i], l) & ((uint64_t{1} << bits) - 1);
      v |= part << (bits * i);
    }
    put<T>(w.regs + in.d, l, static_cast<T>(v));
  });
}
template <class T>
void h_unpack(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  uint32_t bits = static_cast<uint32_t>(in.imm) * 8;
  for_lanes(mask, [&](uint32_t l) {
    uint64_t v = get<T>(w.regs + in.a, l);
    for (uint32_t i = 0; i < in.n; ++i) {
      put<uint32_t>(w.regs + x[i], l, static_cast<uint32_t>(v >> (bits * i) & ((uint64_t{1} << bits) - 1)));
    }
  });
}
void h_pack128(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  for_lanes(mask, [&](uint32_t l) { w.reg<Wide>(in.d)[l] = {w.reg<uint64_t>(x[0])[l], w.reg<uint64_t>(x[1])[l]}; });
}
void h_unpack128(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  for_lanes(mask, [&](uint32_t l) {
    Wide v = w.reg<Wide>(in.a)[l];
    w.reg<uint64_t>(x[0])[l] = v.lo;
    w.reg<uint64_t>(x[1])[l] = v.hi;
  });
}

Type part_type(Decoder& d, size_t bytes) {
  switch (bytes) {
    case 1:
      return Type::b8;
    case 2:
      return Type::b16;
    case 4:
      return Type::b32;
    case 8:
      return Type::b64;
    default:
      d.fail("vector does not fit the type");
  }
}

void mov(Decoder& d) {
  d.expect_operands(2);
  Type t = d.mods.type();
  uint32_t bytes = ptx::bytes_of(t);
  const Operand &to = d.op(0), &from = d.op(1);
  bool pack = from.kind == Operand::Kind::vector, unpack = to.kind == Operand::Kind::vector;
  if (!pack && !unpack) {
    uint32_t a = d.src(from, t), dst = d.dst(to, t);
    Insn& n = d.emit(bytes == 16 ? h_mov<Wide> : bytes == 8 ? h_mov<uint64_t> : h_mov<uint32_t>);
    n.d = dst;
    n.a = a;
    return;
  }
  if (pack && unpack) d.fail("both operands are vectors");
  const std::vector<Operand>& parts = pack ? from.sub : to.sub;
  size_t count = parts.size();
  if (count < 2 || count > 4 || bytes % count) d.fail("vector does not fit the type");
  Type part = part_type(d, bytes / count);
  if (bytes == 16 && part != Type::b64) d.fail("only {b64, b64} is supported");
  std::vector<uint32_t> slots;
  for (const Operand& o : parts) slots.push_back(pack ? d.src(o, part) : d.dst(o, part));
  uint32_t whole = pack ? d.dst(to, t) : d.src(from, t);
  uint32_t list = d.aux(slots);
  Handler h = pack ? (bytes == 16  ? h_pack128
                      : bytes == 8 ? h_pack<uint64_t>
                                   : h_pack<uint32_t>)
                   : (bytes == 16  ? h_unpack128
                      : bytes == 8 ? h_unpack<uint64_t>
                                   : h_unpack<uint32_t>);
  Insn& n = d.emit(h);
  (pack ? n.d : n.a) = whole;
  n.e = list;
  n.n = static_cast<uint8_t>(count);
  n.imm = static_cast<int64_t>(bytes / count);
}

constexpr OpRow kRows[] = {
#define SG_OPS_LOGIC
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows logic_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
