// Loads, stores, address conversions.
#include "access.h"
#include "decode.h"

namespace sg::vm {
inline namespace SG_ISA {

namespace {

struct Wide {
  uint64_t lo, hi;
};

// Conventions of loads and stores: in.a = address slot, in.imm = offset, in.c = Where | wide << 8, in.n = elements;
// in.d (load) or in.b (store) = slot of the only element, or, from two elements on, in.e = aux list of slots.
struct AccessMode {
  Where where;
  bool wide;
  explicit AccessMode(uint32_t c) : where(static_cast<Where>(c & 0xff)), wide(c >> 8 & 1) {}
};

// Eight cells of a register or elements of memory at once.
template <size_t bytes>
struct EightCells;
template <>
struct EightCells<4> {
  typedef uint32_t Type __attribute__((vector_size(32), aligned(4), may_alias));
};
template <>
struct EightCells<8> {
  typedef uint64_t Type __attribute__((vector_size(64), aligned(8), may_alias));
};

template <class T>
struct Eight {
  using Cells = typename EightCells<sizeof(Cell<T>)>::Type;
  static void load(uint64_t from, uint8_t* d) {
    if constexpr (sizeof(T) >= 4) {
      *reinterpret_cast<Cells*>(d) = *reinterpret_cast<const Cells*>(from);
    } else {
      SG_IVDEP
      for (uint32_t i = 0; i < 8; ++i) put<T>(d, i, load_from<T>(from + i * sizeof(T)));
    }
  }
  static void load_same(uint64_t from, uint8_t* d) {
    *reinterpret_cast<Cells*>(d) = Cells{} + static_cast<Cell<T>>(bits_as<Bits<T>>(load_from<T>(from)));
  }
  static void store(uint64_t to, const uint8_t* from) {
    if constexpr (sizeof(T) >= 4) {
      *reinterpret_cast<Cells*>(to) = *reinterpret_cast<const Cells*>(from);
    } else {
      SG_IVDEP
      for (uint32_t i = 0; i < 8; ++i) store_to<T>(to + i * sizeof(T), get<T>(from, i));
    }
  }
  // The highest lane wins.
  static void store_same(uint64_t to, const uint8_t* from) { store_to<T>(to, get<T>(from, 7)); }
  static constexpr uint32_t kBytes = sizeof(Cells);
};

// Rows of eight lanes one after the other, so that of several lanes that store to one address the highest wins.
template <class T>
inline void load_planned(const AccessPlan& p, uint64_t imm, uint8_t* d) {
  using E = Eight<T>;
  switch (p.shape) {
    case AccessPlan::dense:
      for (uint32_t g = 0; g < 4; ++g) E::load(p.base[0] + imm + g * 8 * sizeof(T), d + g * E::kBytes);
      return;
    case AccessPlan::rows:
      for (uint32_t g = 0; g < 4; ++g) E::load(p.base[g] + imm, d + g * E::kBytes);
      return;
    case AccessPlan::all_same:
      for (uint32_t g = 0; g < 4; ++g) E::load_same(p.base[g] + imm, d + g * E::kBytes);
      return;
    default:
      for (uint32_t g = 0; g < 4; ++g) {
        (p.same[g] ? E::load_same : E::load)(p.base[g] + imm, d + g * E::kBytes);
      }
  }
}
template <class T>
inline void store_planned(const AccessPlan& p, uint64_t imm, const uint8_t* from) {
  using E = Eight<T>;
  if (p.shape == AccessPlan::dense) {
    for (uint32_t g = 0; g < 4; ++g) E::store(p.base[0] + imm + g * 8 * sizeof(T), from + g * E::kBytes);
    return;
  }
  for (uint32_t g = 0; g < 4; ++g) {
    (p.same[g] ? E::store_same : E::store)(p.base[g] + imm, from + g * E::kBytes);
  }
}

template <class T>
void h_ld(Warp& w, const Insn& in, uint32_t mask) {
  AccessMode mode(in.c);
  if constexpr (sizeof(T) <= 8) {
    AccessPlan own;
    if (const AccessPlan* p = plan_access<T>(w, in, mode.wide, mode.where, mask, &own)) {
      return load_planned<T>(*p, static_cast<uint64_t>(in.imm), w.regs + in.d);
    }
  }
  uint64_t a[kLanes];
  addresses(w, in.a, mode.wide, in.imm, a);
  if (!check(w, a, mask, sizeof(T), sizeof(T), mode.where)) return;
  if constexpr (sizeof(T) == 16) {
    for_lanes(mask, [&](uint32_t l) { w.reg<T>(in.d)[l] = load_from<T>(a[l]); });
  } else {
    uint8_t* d = w.regs + in.d;
    for_lanes(mask, [&](uint32_t l) { put<T>(d, l, load_from<T>(a[l])); });
  }
}

template <class T>
void h_ld_vector(Warp& w, const Insn& in, uint32_t mask) {
  AccessMode mode(in.c);
  uint64_t a[kLanes];
  addresses(w, in.a, mode.wide, in.imm, a);
  uint32_t bytes = in.n * static_cast<uint32_t>(sizeof(T));
  if (!check(w, a, mask, bytes, bytes, mode.where)) return;
  const uint32_t* x = &w.frame->code->aux[in.e];
  for (uint32_t i = 0; i < in.n; ++i) {
    uint8_t* d = w.regs + x[i];
    for_lanes(mask, [&](uint32_t l) { put<T>(d, l, load_from<T>(a[l] + i * sizeof(T))); });
  }
}

template <class T>
void h_st(Warp& w, const Insn& in, uint32_t mask) {
  AccessMode mode(in.c);
  if constexpr (sizeof(T) <= 8) {
    AccessPlan own;
    if (const AccessPlan* p = plan_access<T>(w, in, mode.wide, mode.where, mask, &own)) {
      return store_planned<T>(*p, static_cast<uint64_t>(in.imm), w.regs + in.b);
    }
  }
  uint64_t a[kLanes];
  addresses(w, in.a, mode.wide, in.imm, a);
  if (!check(w, a, mask, sizeof(T), sizeof(T), mode.where)) return;
  // Lanes may store to the same address: one lane after the other, the highest wins.
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    if constexpr (sizeof(T) == 16) {
      store_to<T>(a[l], w.reg<T>(in.b)[l]);
    } else {
      store_to<T>(a[l], get<T>(w.regs + in.b, l));
    }
  }
}

template <class T>
void h_st_vector(Warp& w, const Insn& in, uint32_t mask) {
  AccessMode mode(in.c);
  uint64_t a[kLanes];
  addresses(w, in.a, mode.wide, in.imm, a);
  uint32_t bytes = in.n * static_cast<uint32_t>(sizeof(T));
  if (!check(w, a, mask, bytes, bytes, mode.where)) return;
  const uint32_t* x = &w.frame->code->aux[in.e];
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    for (uint32_t i = 0; i < in.n; ++i) store_to<T>(a[l] + i * sizeof(T), get<T>(w.regs + x[i], l));
  }
}

// Kernel parameters: the same for all lanes; in.imm = offset, which the decoder has checked.
template <class T>
void h_ld_param(Warp& w, const Insn& in, uint32_t mask) {
  T v = load_from<T>(w.block->launch->params.begin + static_cast<uint64_t>(in.imm));
  if constexpr (sizeof(T) == 16) {
    for_lanes(mask, [&](uint32_t l) { w.reg<T>(in.d)[l] = v; });
  } else {
    for_lanes(mask, [&](uint32_t l) { put<T>(w.regs + in.d, l, v); });
  }
}

// Variables of the frame at a fixed offset (in.imm), which the decoder has checked.
template <class T>
void h_ld_frame(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t base = reinterpret_cast<uint64_t>(w.frame->local) + static_cast<uint64_t>(in.imm);
  uint64_t stride = w.frame->code->local_bytes;
  if constexpr (sizeof(T) == 16) {
    for_lanes(mask, [&](uint32_t l) { w.reg<T>(in.d)[l] = load_from<T>(base + l * stride); });
  } else {
    for_lanes(mask, [&](uint32_t l) { put<T>(w.regs + in.d, l, load_from<T>(base + l * stride)); });
  }
}
template <class T>
void h_st_frame(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t base = reinterpret_cast<uint64_t>(w.frame->local) + static_cast<uint64_t>(in.imm);
  uint64_t stride = w.frame->code->local_bytes;
  if constexpr (sizeof(T) == 16) {
    for_lanes(mask, [&](uint32_t l) { store_to<T>(base + l * stride, w.reg<T>(in.b)[l]); });
  } else {
    for_lanes(mask, [&](uint32_t l) { store_to<T>(base + l * stride, get<T>(w.regs + in.b, l)); });
  }
}

// A load whose plan has been made before: little else, since kernels have many of them.
template <class T, Where where>
void h_ld_again(Warp& w, const Insn& in, uint32_t mask) {
  const AccessPlan& p = w.plans[in.plan - 1];
  uint64_t imm = static_cast<uint64_t>(in.imm);
  if (mask == kFullMask && p.usable() && ((p.base[0] + imm) & (sizeof(T) - 1)) == 0 &&
      known_range(*w.block, p.low + imm, p.span, where).end) {
    return load_planned<T>(p, imm, w.regs + in.d);
  }
  return h_ld<T>(w, in, mask);
}
#define SG_LOAD_AGAIN(where)                                                                                          \
  {h_ld_again<uint8_t, where>, h_ld_again<uint16_t, where>, h_ld_again<uint32_t, where>, h_ld_again<uint64_t, where>, \
   nullptr}
// By Where, then as kLoad.
constexpr Handler kLoadAgain[][5] = {SG_LOAD_AGAIN(Where::generic), SG_LOAD_AGAIN(Where::global),
                                     SG_LOAD_AGAIN(Where::shared)};

// By log2 of the size of an element.
constexpr Handler kLoad[] = {h_ld<uint8_t>, h_ld<uint16_t>, h_ld<uint32_t>, h_ld<uint64_t>, h_ld<Wide>};
constexpr Handler kLoadVector[] = {h_ld_vector<uint8_t>, h_ld_vector<uint16_t>, h_ld_vector<uint32_t>,
                                   h_ld_vector<uint64_t>};
constexpr Handler kStore[] = {h_st<uint8_t>, h_st<uint16_t>, h_st<uint32_t>, h_st<uint64_t>, h_st<Wide>};
constexpr Handler kStoreVector[] = {h_st_vector<uint8_t>, h_st_vector<uint16_t>, h_st_vector<uint32_t>,
                                    h_st_vector<uint64_t>};
constexpr Handler kLoadParam[] = {h_ld_param<uint8_t>, h_ld_param<uint16_t>, h_ld_param<uint32_t>, h_ld_param<uint64_t>,
                                  h_ld_param<Wide>};
constexpr Handler kLoadFrame[] = {h_ld_frame<uint8_t>, h_ld_frame<uint16_t>, h_ld_frame<uint32_t>, h_ld_frame<uint64_t>,
                                  h_ld_frame<Wide>};
constexpr Handler kStoreFrame[] = {h_st_frame<uint8_t>, h_st_frame<uint16_t>, h_st_frame<uint32_t>,
                                   h_st_frame<uint64_t>, h_st_frame<Wide>};

Space space_of(Decoder& d) {
  std::string_view s =
      d.mods.one_of({"global", "local", "shared", "shared::cta", "param", "param::entry", "param::func", "const"});
  if (s == "global") return Space::global;
  if (s == "local") return Space::local;
  if (s.substr(0, 6) == "shared") return Space::shared;
  if (s.substr(0, 5) == "param") return Space::param;
  if (s == "const") return Space::constant;
  return d.in().opcode == "ldu" ? Space::global : Space::generic;
}

uint32_t mode_bits(Space space, bool wide) {
  Where where = space == Space::shared                               ? Where::shared
                : space == Space::global || space == Space::constant ? Where::global
                                                                     : Where::generic;
  return static_cast<uint32_t>(where) | (wide ? 256 : 0);
}

uint32_t elements(Decoder& d) {
  std::string_view v = d.mods.one_of({"v2", "v4", "v8"});
  return v.empty() ? 1 : static_cast<uint32_t>(v[1] - '0');
}

std::vector<const Operand*> element_operands(Decoder& d, const Operand& o, uint32_t n) {
  std::vector<const Operand*> out;
  if (n == 1) {
    bool braces = o.kind == Operand::Kind::vector && o.sub.size() == 1;
    out.push_back(braces ? &o.sub[0] : &o);
    return out;
  }
  if (o.kind != Operand::Kind::vector || o.sub.size() != n) {
    d.fail("operand must be a list of " + std::to_string(n) + " registers in braces");
  }
  for (const Operand& e : o.sub) out.push_back(&e);
  return out;
}

void ld(Decoder& d) {
  d.expect_operands(2, 3);  // the third is a cache policy
  Space space = space_of(d);
  uint32_t n = elements(d);
  Type t = d.mods.type();
  uint32_t bytes = ptx::bytes_of(t), log = static_cast<uint32_t>(__builtin_ctz(bytes));
  uint32_t most = space == Space::global && d.in().opcode == "ld" ? 32 : 16;
  if (n > 1 && (bytes == 16 || n * bytes > most)) d.fail("vector is too large");
  Address a = d.address(d.op(1), space, n * bytes);
  std::vector<uint32_t> to;
  for (const Operand* o : element_operands(d, d.op(0), n)) to.push_back(d.wide_dst(*o, t));
  if (a.in_params || a.in_frame) {
    if (a.in_params) d.reads_only_parameters();
    for (uint32_t i = 0; i < n; ++i) {
      Insn& x = d.emit(a.in_params ? kLoadParam[log] : kLoadFrame[log]);
      x.d = to[i];
      x.imm = a.offset + i * bytes;
    }
  } else if (n == 1) {
    Insn& x = d.emit(kLoad[log]);
    d.plan_access(x, a, bytes, kLoadAgain[mode_bits(space, a.wide) & 0xff][log]);
    x.d = to[0];
    x.a = a.slot;
    x.imm = a.imm;
    x.c = mode_bits(space, a.wide);
    x.n = 1;
  } else {
    uint32_t list = d.aux(to);
    Insn& x = d.emit(kLoadVector[log]);
    x.a = a.slot;
    x.imm = a.imm;
    x.c = mode_bits(space, a.wide);
    x.e = list;
    x.n = static_cast<uint8_t>(n);
  }
  d.finish_wide();
}

void st(Decoder& d) {
  d.expect_operands(2, 3);
  Space space = space_of(d);
  uint32_t n = elements(d);
  Type t = d.mods.type();
  uint32_t bytes = ptx::bytes_of(t), log = static_cast<uint32_t>(__builtin_ctz(bytes));
  if (n > 1 && (bytes == 16 || n * bytes > (space == Space::global ? 32u : 16u))) d.fail("vector is too large");
  Address a = d.address(d.op(0), space, n * bytes);
  if (a.in_params) d.fail("store to a kernel parameter");
  std::vector<uint32_t> from;
  for (const Operand* o : element_operands(d, d.op(1), n)) from.push_back(d.wide_src(*o, t));
  if (a.in_frame) {
    for (uint32_t i = 0; i < n; ++i) {
      Insn& x = d.emit(kStoreFrame[log]);
      x.b = from[i];
      x.imm = a.offset + i * bytes;
    }
  } else if (n == 1) {
    Insn& x = d.emit(kStore[log]);
    d.plan_access(x, a, bytes, nullptr);
    x.a = a.slot;
    x.b = from[0];
    x.imm = a.imm;
    x.c = mode_bits(space, a.wide);
    x.n = 1;
  } else {
    uint32_t list = d.aux(from);
    Insn& x = d.emit(kStoreVector[log]);
    x.a = a.slot;
    x.imm = a.imm;
    x.c = mode_bits(space, a.wide);
    x.e = list;
    x.n = static_cast<uint8_t>(n);
  }
}

void h_copy64(Warp& w, const Insn& in, uint32_t mask) {
  map1<uint64_t, uint64_t>(w, in, mask, [](uint64_t v) { return v; });
}
void h_copy32(Warp& w, const Insn& in, uint32_t mask) {
  map1<uint32_t, uint32_t>(w, in, mask, [](uint32_t v) { return v; });
}

// A generic address is the address in its space.
void cvta(Decoder& d) {
  d.expect_operands(2);
  Type t = d.mods.type();
  uint32_t a = d.src(1, t), to = d.dst(0, t);
  Insn& n = d.emit(t == Type::u64 ? h_copy64 : h_copy32);
  n.d = to;
  n.a = a;
}

// in.c: the space. Parameters, says the ISA, are in the global one too; constants are not.
void h_isspacep(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t a[kLanes];
  addresses(w, in.a, in.n != 0, in.imm, a);
  uint32_t bits = 0;
  Range r;
  for_lanes(mask, [&](uint32_t l) {
    bool is = false;
    switch (static_cast<Space>(in.c)) {
      case Space::shared:
        is = shared_range(w).contains(a[l], 1);
        break;
      case Space::local:
        is = find_local(w, a[l], 1, &r);
        break;
      case Space::param:
        is = w.block->launch->params.contains(a[l], 1);
        break;
      case Space::global:
        is = w.block->launch->params.contains(a[l], 1) ||
             (find_device_range(w, a[l], 1, &r) && !w.block->launch->constants.contains(a[l], 1));
        break;
      case Space::constant:
        is = w.block->launch->constants.contains(a[l], 1);
        break;
      default:
        break;
    }
    bits |= static_cast<uint32_t>(is) << l;
  });
  set_pred(&w.pred(in.d), mask, bits);
}

void isspacep(Decoder& d) {
  d.expect_operands(2);
  Space s = space_of(d);
  bool wide = d.register_bytes(d.op(1)) != 4;
  uint32_t a = d.src(1, wide ? Type::u64 : Type::u32), p = d.pred_dst(d.op(0));
  Insn& n = d.emit(h_isspacep);
  n.d = p;
  n.a = a;
  n.c = static_cast<uint32_t>(s);
  n.n = wide;
}

void nothing(Decoder&) {}

// A cache policy is a number that nothing looks at.
void policy(Decoder& d) {
  uint32_t zero = d.constant(0, 8), to = d.dst(0, Type::b64);
  Insn& n = d.emit(h_copy64);
  n.d = to;
  n.a = zero;
}

// Copies at once what may be copied until the next wait. in.a: shared address, in.b: global address, in.c: wide bits of
// both, in.n: bytes, in.d: slot of the number of bytes to read (0: all), the rest becomes zero. aux: the offsets of
// both addresses, and a predicate (0: none) under which nothing is read.
void h_cp_async(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  uint64_t to[kLanes], from[kLanes];
  addresses(w, in.a, in.c & 1, static_cast<int32_t>(x[0]), to);
  addresses(w, in.b, in.c >> 1 & 1, static_cast<int32_t>(x[1]), from);
  if (!check(w, to, mask, in.n, in.n, Where::shared)) return;
  uint32_t ignore = x[2] ? w.pred(x[2]) : 0;
  uint32_t reading = 0;
  uint32_t size[kLanes];
  for_lanes(mask, [&](uint32_t l) {
    size[l] = in.d ? get<uint32_t>(w.regs + in.d, l) : in.n;
    if (size[l] > in.n) size[l] = in.n;
    if (ignore >> l & 1) size[l] = 0;
    if (size[l]) reading |= 1u << l;
  });
  if (reading && !check(w, from, reading, in.n, in.n, Where::global)) return;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    uint8_t buffer[16] = {};
    if (size[l]) std::memcpy(buffer, reinterpret_cast<const void*>(from[l]), size[l]);
    std::memcpy(reinterpret_cast<void*>(to[l]), buffer, in.n);
  }
}

void cp_async(Decoder& d) {
  for (std::string_view word : {"async", "shared", "shared::cta", "global"}) d.mods.has(word);
  d.expect_operands(3, 5);
  Address to = d.address(d.op(0), Space::shared, 1), from = d.address(d.op(1), Space::global, 1);
  int64_t bytes = d.integer(d.op(2));
  if (bytes != 4 && bytes != 8 && bytes != 16) d.fail("copies 4, 8 or 16 bytes");
  if (to.imm != static_cast<int32_t>(to.imm) || from.imm != static_cast<int32_t>(from.imm)) d.fail("offset too large");
  uint32_t size = 0, ignore = 0;
  if (d.count() > 3) {
    if (d.is_pred(d.op(3))) {
      ignore = d.pred_src(d.op(3));
    } else if (d.register_bytes(d.op(3)) != 8) {  // 8 bytes: a cache policy
      size = d.src(3, Type::u32);
    }
  }
  uint32_t list = d.aux({static_cast<uint32_t>(to.imm), static_cast<uint32_t>(from.imm), ignore});
  Insn& n = d.emit(h_cp_async);
  n.a = to.slot;
  n.b = from.slot;
  n.c = (to.wide ? 1 : 0) | (from.wide ? 2 : 0);
  n.d = size;
  n.e = list;
  n.n = static_cast<uint8_t>(bytes);
}

constexpr OpRow kRows[] = {
#define SG_OPS_MEM
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows mem_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace SG_ISA
}  // namespace sg::vm
