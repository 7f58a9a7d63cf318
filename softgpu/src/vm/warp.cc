// Exchange between the lanes of a warp. in.e is the slot of the member mask of the .sync forms.
#include <cmath>

#include "decode.h"
#include "handlers.h"

namespace sg::vm {
namespace {

enum Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };

// in.n: mode; in.imm: slot of the predicate that says whether the source was in range (0: none).
void h_shfl(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t *a = w.reg<uint32_t>(in.a), *b = w.reg<uint32_t>(in.b), *c = w.reg<uint32_t>(in.c);
  uint32_t out[kLanes], valid = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    uint32_t delta = b[lane] & 31, clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
    uint32_t high = (lane & segment) | (clamp & ~segment & 31), low = lane & segment;
    int32_t j = static_cast<int32_t>(lane);
    bool ok = false;
    switch (in.n) {
      case kUp:
        j -= static_cast<int32_t>(delta);
        ok = j >= static_cast<int32_t>(high);
        break;
      case kDown:
        j += static_cast<int32_t>(delta);
        ok = j <= static_cast<int32_t>(high);
        break;
      case kButterfly:
        j ^= static_cast<int32_t>(delta);
        ok = j <= static_cast<int32_t>(high);
        break;
      default:
        j = static_cast<int32_t>(low | (delta & ~segment));
        ok = j <= static_cast<int32_t>(high);
        break;
    }
    out[lane] = a[ok ? static_cast<uint32_t>(j) & 31 : lane];
    valid |= static_cast<uint32_t>(ok) << lane;
  }
  uint32_t* d = w.reg<uint32_t>(in.d);
  for_lanes(mask, [&](uint32_t l) { d[l] = out[l]; });
  if (in.imm) set_pred(&w.pred(static_cast<uint32_t>(in.imm)), mask, valid);
}

void shfl(Decoder& d) {
  bool sync = d.mods.has("sync");
  d.expect_operands(sync ? 5 : 4);
  std::string_view mode = d.mods.one_of({"up", "down", "bfly", "idx"});
  Type t = d.mods.type();
  Operand to = d.op(0);
  uint32_t p = to.second.empty() ? 0 : d.pred_dst(to.second, d.in().line);
  to.second = {};
  uint32_t a = d.src(1, t), b = d.src(2, t), c = d.src(3, t), members = sync ? d.src(4, t) : 0;
  uint32_t dst = d.dst(to, t);
  Insn& n = d.emit(h_shfl, sync ? Kind::sync : Kind::data);
  n.d = dst;
  n.a = a;
  n.b = b;
  n.c = c;
  n.e = members;
  n.imm = p;
  n.n = mode == "up" ? kUp : mode == "down" ? kDown : mode == "bfly" ? kButterfly : kIndex;
}

/// Lanes that take part: all that run the instruction, less those that the member mask leaves out.
uint32_t members_of(const Warp& w, const Insn& in, uint32_t mask) {
  if (in.kind != Kind::sync) return mask;
  return mask & get<uint32_t>(w.regs + in.e, static_cast<uint32_t>(__builtin_ctz(mask)));
}

// in.n: 0 all, 1 any, 2 uni, 3 ballot.
void h_vote(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask), p = w.pred(in.a) & members;
  if (in.n == 3) {
    for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = p; });
    return;
  }
  bool yes = in.n == 0 ? p == members : in.n == 1 ? p != 0 : p == members || p == 0;
  set_pred(&w.pred(in.d), mask, yes ? kFullMask : 0);
}

void vote(Decoder& d) {
  bool sync = d.mods.has("sync");
  d.expect_operands(sync ? 3 : 2);
  std::string_view what = d.mods.one_of({"all", "any", "uni", "ballot"});
  d.mods.type();
  d.mods.has("pred");
  uint32_t a = d.pred_src(d.op(1)), members = sync ? d.src(2, Type::b32) : 0;
  uint32_t to = what == "ballot" ? d.dst(0, Type::b32) : d.pred_dst(d.op(0));
  Insn& n = d.emit(h_vote, sync ? Kind::sync : Kind::data);
  n.d = to;
  n.a = a;
  n.e = members;
  n.n = what == "all" ? 0 : what == "any" ? 1 : what == "uni" ? 2 : 3;
}

template <class T>
void h_match_any(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask), out[kLanes] = {};
  for_lanes(mask, [&](uint32_t l) {
    T v = get<T>(w.regs + in.a, l);
    for (uint32_t rest = members; rest; rest &= rest - 1) {
      uint32_t k = static_cast<uint32_t>(__builtin_ctz(rest));
      out[l] |= static_cast<uint32_t>(get<T>(w.regs + in.a, k) == v) << k;
    }
  });
  for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = out[l]; });
}

template <class T>
void h_match_all(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask);
  bool same = members != 0;
  T first = same ? get<T>(w.regs + in.a, static_cast<uint32_t>(__builtin_ctz(members))) : T(0);
  for (uint32_t rest = members; rest; rest &= rest - 1) {
    same &= get<T>(w.regs + in.a, static_cast<uint32_t>(__builtin_ctz(rest))) == first;
  }
  for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = same ? members : 0; });
  if (in.imm) set_pred(&w.pred(static_cast<uint32_t>(in.imm)), mask, same ? kFullMask : 0);
}

void match(Decoder& d) {
  d.mods.has("sync");
  d.expect_operands(3);
  bool all = d.mods.one_of({"any", "all"}) == "all";
  Type t = d.mods.type();
  Operand to = d.op(0);
  if (!all && !to.second.empty()) d.fail("unexpected '|'");
  uint32_t p = to.second.empty() ? 0 : d.pred_dst(to.second, d.in().line);
  to.second = {};
  uint32_t a = d.src(1, t), members = d.src(2, Type::b32), dst = d.dst(to, Type::b32);
  bool wide = t == Type::b64;
  Insn& n = d.emit(all ? (wide ? h_match_all<uint64_t> : h_match_all<uint32_t>)
                       : (wide ? h_match_any<uint64_t> : h_match_any<uint32_t>),
                   Kind::sync);
  n.d = dst;
  n.a = a;
  n.e = members;
  n.imm = p;
}

// clang-format off
struct Add { template <class T> static T f(T a, T b) { return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); } };
struct Min { template <class T> static T f(T a, T b) { return b < a ? b : a; } };
struct Max { template <class T> static T f(T a, T b) { return b > a ? b : a; } };
struct And { template <class T> static T f(T a, T b) { return a & b; } };
struct Or { template <class T> static T f(T a, T b) { return a | b; } };
struct Xor { template <class T> static T f(T a, T b) { return a ^ b; } };
// clang-format on

template <class Op, class T>
void h_redux(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask);
  if (!members) return;
  T v = get<T>(w.regs + in.a, static_cast<uint32_t>(__builtin_ctz(members)));
  for (uint32_t rest = members & (members - 1); rest; rest &= rest - 1) {
    v = Op::template f<T>(v, get<T>(w.regs + in.a, static_cast<uint32_t>(__builtin_ctz(rest))));
  }
  for_lanes(mask, [&](uint32_t l) { put<T>(w.regs + in.d, l, v); });
}

void redux(Decoder& d) {
  d.mods.has("sync");
  d.expect_operands(3);
  std::string_view op = d.mods.one_of({"add", "min", "max", "and", "or", "xor"});
  Type t = d.mods.type();
  bool s = t == Type::s32;
  Handler h = op == "add"   ? h_redux<Add, uint32_t>
              : op == "min" ? (s ? h_redux<Min, int32_t> : h_redux<Min, uint32_t>)
              : op == "max" ? (s ? h_redux<Max, int32_t> : h_redux<Max, uint32_t>)
              : op == "and" ? h_redux<And, uint32_t>
              : op == "or"  ? h_redux<Or, uint32_t>
                            : h_redux<Xor, uint32_t>;
  uint32_t a = d.src(1, t), members = d.src(2, Type::b32), to = d.dst(0, t);
  Insn& n = d.emit(h, Kind::sync);
  n.d = to;
  n.a = a;
  n.e = members;
}

// in.n: 1 the largest, 2 of magnitudes, 4 a NaN wins.
void h_redux_f32(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask);
  float best = 0;
  bool any = false, nan = false;
  for (uint32_t rest = members; rest; rest &= rest - 1) {
    float v = get<float>(w.regs + in.a, static_cast<uint32_t>(__builtin_ctz(rest)));
    if (v != v) {
      nan = true;
      continue;
    }
    if (in.n & 2) v = std::fabs(v);
    bool first = v == best ? std::signbit(v) != ((in.n & 1) != 0) : (in.n & 1 ? v > best : v < best);
    if (!any || first) best = v;
    any = true;
  }
  uint32_t bits = !any || (nan && (in.n & 4)) ? 0x7fffffffu : bits_as<uint32_t>(best);
  for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = bits; });
}

void redux_f32(Decoder& d) {
  d.mods.has("sync");
  d.expect_operands(3);
  bool largest = d.mods.one_of({"min", "max"}) == "max", magnitude = d.mods.has("abs"), nan = d.mods.has("NaN");
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), members = d.src(2, Type::b32), to = d.dst(0, t);
  Insn& n = d.emit(h_redux_f32, Kind::sync);
  n.d = to;
  n.a = a;
  n.e = members;
  n.n = static_cast<uint8_t>((largest ? 1 : 0) | (magnitude ? 2 : 0) | (nan ? 4 : 0));
}

void h_activemask(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = mask; });
}

void activemask(Decoder& d) {
  d.expect_operands(1);
  uint32_t to = d.dst(0, d.mods.type());
  d.emit(h_activemask).d = to;
}

void h_elect(Warp& w, const Insn& in, uint32_t mask) {
  uint32_t members = members_of(w, in, mask);
  uint32_t leader = members ? static_cast<uint32_t>(__builtin_ctz(members)) : 0;
  if (in.d) for_lanes(mask, [&](uint32_t l) { w.reg<uint32_t>(in.d)[l] = leader; });
  set_pred(&w.pred(in.a), mask, 1u << leader);
}

void elect(Decoder& d) {
  d.mods.has("sync");
  d.expect_operands(2);
  Operand to = d.op(0);
  if (to.second.empty()) d.fail("destination must be d|p");
  uint32_t p = d.pred_dst(to.second, d.in().line);
  to.second = {};
  uint32_t members = d.src(1, Type::b32), dst = to.name == "_" ? 0 : d.dst(to, Type::b32);
  Insn& n = d.emit(h_elect, Kind::sync);
  n.d = dst;
  n.a = p;
  n.e = members;
}

constexpr OpRow kRows[] = {
#define SG_OPS_WARP
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows warp_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
