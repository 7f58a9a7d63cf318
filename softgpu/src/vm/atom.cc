// Atomic read-modify-write on memory: atomics of the host, so that blocks on several host threads agree.
#include "access.h"
#include "decode.h"
#include "float_bits.h"

namespace sg::vm {
namespace {

template <class T, class F>
inline T update(uint64_t address, F f) {
  T* p = reinterpret_cast<T*>(address);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, f(old), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return old;
}

// Operations: f(address, b, c) gives the old value. T is the unsigned or signed integer of the operand's size.
// clang-format off
struct Add { template <class T> static T f(uint64_t p, T b, T) { return __atomic_fetch_add(reinterpret_cast<T*>(p), b, __ATOMIC_SEQ_CST); } };
struct And { template <class T> static T f(uint64_t p, T b, T) { return __atomic_fetch_and(reinterpret_cast<T*>(p), b, __ATOMIC_SEQ_CST); } };
struct Or { template <class T> static T f(uint64_t p, T b, T) { return __atomic_fetch_or(reinterpret_cast<T*>(p), b, __ATOMIC_SEQ_CST); } };
struct Xor { template <class T> static T f(uint64_t p, T b, T) { return __atomic_fetch_xor(reinterpret_cast<T*>(p), b, __ATOMIC_SEQ_CST); } };
struct Exch { template <class T> static T f(uint64_t p, T b, T) { return __atomic_exchange_n(reinterpret_cast<T*>(p), b, __ATOMIC_SEQ_CST); } };
struct Min { template <class T> static T f(uint64_t p, T b, T) { return update<T>(p, [b](T v) { return b < v ? b : v; }); } };
struct Max { template <class T> static T f(uint64_t p, T b, T) { return update<T>(p, [b](T v) { return b > v ? b : v; }); } };
struct Inc { template <class T> static T f(uint64_t p, T b, T) { return update<T>(p, [b](T v) { return v >= b ? T(0) : T(v + 1); }); } };
struct Dec { template <class T> static T f(uint64_t p, T b, T) { return update<T>(p, [b](T v) { return v == 0 || v > b ? b : T(v - 1); }); } };
// clang-format on
struct Cas {
  template <class T>
  static T f(uint64_t p, T b, T c) {
    __atomic_compare_exchange_n(reinterpret_cast<T*>(p), &b, c, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return b;
  }
};
struct AddF32 {
  template <class T>
  static T f(uint64_t p, T b, T) {
    return update<T>(p, [b](T v) { return bits_as<T>(bits_as<float>(v) + bits_as<float>(b)); });
  }
};
// Additions of f32 in global memory flush subnormals on NVIDIA's GPUs.
struct AddF32Flush {
  template <class T>
  static T f(uint64_t p, T b, T) {
    return update<T>(p, [b](T v) { return bits_as<T>(flush(flush(bits_as<float>(v)) + flush(bits_as<float>(b)))); });
  }
};
struct AddF64 {
  template <class T>
  static T f(uint64_t p, T b, T) {
    return update<T>(p, [b](T v) { return bits_as<T>(bits_as<double>(v) + bits_as<double>(b)); });
  }
};
template <class F>
struct AddHalf {
  template <class T>
  static T f(uint64_t p, T b, T) {
    return update<T>(p, [b](T v) {
      T r = 0;
      for (uint32_t s = 0; s < 8 * sizeof(T); s += 16) {
        double sum =
            static_cast<double>(F::widen(static_cast<uint16_t>(v >> s))) + F::widen(static_cast<uint16_t>(b >> s));
        r = static_cast<T>(r | static_cast<T>(F::narrow(sum)) << s);
      }
      return r;
    });
  }
};

// in.a: address, in.b, in.c: operands, in.d: old value (0: not wanted), in.imm: offset, in.e: Where | wide << 8.
template <class Op, class T>
void h_atomic(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t a[kLanes];
  addresses(w, in.a, in.e >> 8 & 1, in.imm, a);
  if (!check(w, a, mask, sizeof(T), sizeof(T), static_cast<Where>(in.e & 0xff))) return;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    T b = get<T>(w.regs + in.b, l), c = in.c ? get<T>(w.regs + in.c, l) : T(0);
    T old = Op::template f<T>(a[l], b, c);
    if (in.d) put<T>(w.regs + in.d, l, old);
  }
}

template <class Op>
Handler bits(Type t) {
  switch (ptx::bytes_of(t)) {
    case 2:
      return h_atomic<Op, uint16_t>;
    case 4:
      return h_atomic<Op, uint32_t>;
    default:
      return h_atomic<Op, uint64_t>;
  }
}

template <class Op>
Handler ordered(Type t) {
  switch (t) {
    case Type::s32:
      return h_atomic<Op, int32_t>;
    case Type::s64:
      return h_atomic<Op, int64_t>;
    case Type::u64:
      return h_atomic<Op, uint64_t>;
    default:
      return h_atomic<Op, uint32_t>;
  }
}

Handler add(Type t, Space space) {
  switch (t) {
    case Type::f32:
      return space == Space::shared ? h_atomic<AddF32, uint32_t> : h_atomic<AddF32Flush, uint32_t>;
    case Type::f64:
      return h_atomic<AddF64, uint64_t>;
    case Type::f16:
      return h_atomic<AddHalf<F16>, uint16_t>;
    case Type::f16x2:
      return h_atomic<AddHalf<F16>, uint32_t>;
    case Type::bf16:
      return h_atomic<AddHalf<BF16>, uint16_t>;
    case Type::bf16x2:
      return h_atomic<AddHalf<BF16>, uint32_t>;
    default:
      return bits<Add>(t);
  }
}

void emit_atomic(Decoder& d, bool wants_old) {
  std::string_view s = d.mods.one_of({"global", "shared", "shared::cta"});
  Space space = s.empty() ? Space::generic : s == "global" ? Space::global : Space::shared;
  std::string_view op = d.mods.one_of({"add", "and", "or", "xor", "exch", "cas", "min", "max", "inc", "dec"});
  Type t = d.mods.type();
  size_t at = wants_old ? 1 : 0;
  size_t least = at + (op == "cas" ? 3 : 2);
  d.expect_operands(least, least + 1);  // the last: a cache policy
  Address a = d.address(d.op(at), space, ptx::bytes_of(t));
  if (a.in_frame || a.in_params) d.fail("atomic operation on a local variable");
  uint32_t b = d.src(at + 1, t), c = op == "cas" ? d.src(at + 2, t) : 0;
  uint32_t to = wants_old && d.op(0).name != "_" ? d.dst(0, t) : 0;
  Handler h = op == "add"    ? add(t, space)
              : op == "and"  ? bits<And>(t)
              : op == "or"   ? bits<Or>(t)
              : op == "xor"  ? bits<Xor>(t)
              : op == "exch" ? bits<Exch>(t)
              : op == "cas"  ? bits<Cas>(t)
              : op == "min"  ? ordered<Min>(t)
              : op == "max"  ? ordered<Max>(t)
              : op == "inc"  ? h_atomic<Inc, uint32_t>
                             : h_atomic<Dec, uint32_t>;
  Insn& n = d.emit(h);
  n.a = a.slot;
  n.b = b;
  n.c = c;
  n.d = to;
  n.imm = a.imm;
  Where where = space == Space::shared ? Where::shared : space == Space::global ? Where::global : Where::generic;
  n.e = static_cast<uint32_t>(where) | (a.wide ? 256 : 0);
}

template <class F, bool Largest>
struct ExtremumHalf {
  template <class T>
  static T f(uint64_t p, T b, T) {
    return update<T>(p, [b](T v) {
      T r = 0;
      for (uint32_t s = 0; s < 8 * sizeof(T); s += 16) {
        uint16_t x = static_cast<uint16_t>(v >> s), y = static_cast<uint16_t>(b >> s);
        auto is_nan = [](uint16_t h) { return (h & 0x7fff) > F::infinity; };
        auto key = [](uint16_t h) { return h & 0x8000 ? -1 - (h & 0x7fff) : int{h}; };
        uint16_t best = is_nan(x) && is_nan(y)         ? F::nan
                        : is_nan(x)                    ? y
                        : is_nan(y)                    ? x
                        : (key(x) < key(y)) != Largest ? x
                                                       : y;
        r = static_cast<T>(r | static_cast<T>(best) << s);
      }
      return r;
    });
  }
};

template <class F>
Handler half_vector(std::string_view op, bool packed) {
  if (op == "add") return packed ? h_atomic<AddHalf<F>, uint32_t> : h_atomic<AddHalf<F>, uint16_t>;
  if (op == "min") {
    return packed ? h_atomic<ExtremumHalf<F, false>, uint32_t> : h_atomic<ExtremumHalf<F, false>, uint16_t>;
  }
  return packed ? h_atomic<ExtremumHalf<F, true>, uint32_t> : h_atomic<ExtremumHalf<F, true>, uint16_t>;
}

// The whole vector is checked, then each element is an operation of its own, as on a GPU.
void h_check_vector(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t a[kLanes];
  addresses(w, in.a, in.e >> 8 & 1, in.imm, a);
  check(w, a, mask, in.n, in.n, static_cast<Where>(in.e & 0xff));
}

void emit_vector(Decoder& d, bool wants_old) {
  bool global = d.mods.has("global");
  std::string_view op = d.mods.one_of({"add", "min", "max"});
  uint32_t count = static_cast<uint32_t>(d.mods.one_of({"v2", "v4", "v8"})[1] - '0');
  Type t = d.mods.type();
  uint32_t bytes = ptx::bytes_of(t);
  size_t at = wants_old ? 1 : 0;
  d.expect_operands(at + 2, at + 3);
  if (count * bytes > 16) d.fail("vector is too large");
  Address a = d.address(d.op(at), global ? Space::global : Space::generic, count * bytes);
  if (a.in_frame || a.in_params) d.fail("atomic operation on a local variable");
  auto elements = [&](const Operand& o) -> const std::vector<Operand>& {
    if (o.kind != Operand::Kind::vector || o.sub.size() != count) {
      d.fail("operand must be a list of " + std::to_string(count) + " registers in braces");
    }
    return o.sub;
  };
  std::vector<uint32_t> from, to(count, 0);
  for (const Operand& o : elements(d.op(at + 1))) from.push_back(d.src(o, t));
  if (wants_old && d.op(0).name != "_") {
    const std::vector<Operand>& results = elements(d.op(0));
    for (uint32_t i = 0; i < count; ++i) to[i] = results[i].name == "_" ? 0 : d.dst(results[i], t);
    // An element's result must not overwrite an operand of a later one.
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t copy = d.temp(4);
      Insn& n = d.emit([](Warp& w, const Insn& in, uint32_t mask) {
        map1<uint32_t, uint32_t>(w, in, mask, [](uint32_t v) { return v; });
      });
      n.d = copy;
      n.a = from[i];
      from[i] = copy;
    }
  }
  bool packed = t == Type::f16x2 || t == Type::bf16x2, bf = t == Type::bf16 || t == Type::bf16x2;
  Handler h = t == Type::f32 ? add(t, Space::global)
              : bf           ? half_vector<BF16>(op, packed)
                             : half_vector<F16>(op, packed);
  uint32_t mode = static_cast<uint32_t>(global ? Where::global : Where::generic) | (a.wide ? 256 : 0);
  // The address register may be a result too: keep it.
  uint32_t base = d.temp(8);
  Insn& keep = d.emit(a.wide ? static_cast<Handler>([](Warp& w, const Insn& in, uint32_t mask) {
    map1<uint64_t, uint64_t>(w, in, mask, [](uint64_t v) { return v; });
  })
                             : static_cast<Handler>([](Warp& w, const Insn& in, uint32_t mask) {
                                 map1<uint32_t, uint64_t>(w, in, mask, [](uint32_t v) { return uint64_t{v}; });
                               }));
  keep.d = base;
  keep.a = a.slot;
  mode |= 256;
  Insn& whole = d.emit(h_check_vector);
  whole.a = base;
  whole.imm = a.imm;
  whole.e = mode;
  whole.n = static_cast<uint8_t>(count * bytes);
  for (uint32_t i = 0; i < count; ++i) {
    Insn& n = d.emit(h);
    n.a = base;
    n.b = from[i];
    n.d = to[i];
    n.imm = a.imm + i * bytes;
    n.e = mode;
  }
}
void atom_vector(Decoder& d) { emit_vector(d, true); }
void red_vector(Decoder& d) { emit_vector(d, false); }

struct Wide {
  uint64_t low, high;
};

/// Stores `wanted` if *p is *expected; else *expected becomes *p.
bool swap_wide(uint64_t address, Wide* expected, const Wide& wanted) {
  bool done;
  asm volatile("lock cmpxchg16b %1"
               : "=@ccz"(done), "+m"(*reinterpret_cast<Wide*>(address)), "+a"(expected->low), "+d"(expected->high)
               : "b"(wanted.low), "c"(wanted.high)
               : "memory");
  return done;
}

// As h_atomic; in.n: compare first.
void h_atomic_wide(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t a[kLanes];
  addresses(w, in.a, in.e >> 8 & 1, in.imm, a);
  if (!check(w, a, mask, 16, 16, static_cast<Where>(in.e & 0xff))) return;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    Wide b = w.reg<Wide>(in.b)[l], old = b;
    if (in.n) {
      swap_wide(a[l], &old, w.reg<Wide>(in.c)[l]);
    } else {
      while (!swap_wide(a[l], &old, b)) {
      }
    }
    if (in.d) w.reg<Wide>(in.d)[l] = old;
  }
}

void atom_wide(Decoder& d) {
  std::string_view s = d.mods.one_of({"global", "shared", "shared::cta"});
  Space space = s.empty() ? Space::generic : s == "global" ? Space::global : Space::shared;
  bool compare = d.mods.one_of({"exch", "cas"}) == "cas";
  Type t = d.mods.type();
  size_t least = compare ? 4 : 3;
  d.expect_operands(least, least + 1);
  Address a = d.address(d.op(1), space, 16);
  if (a.in_frame || a.in_params) d.fail("atomic operation on a local variable");
  uint32_t b = d.src(2, t), c = compare ? d.src(3, t) : 0, to = d.op(0).name != "_" ? d.dst(0, t) : 0;
  Insn& n = d.emit(h_atomic_wide);
  n.a = a.slot;
  n.b = b;
  n.c = c;
  n.d = to;
  n.imm = a.imm;
  n.n = compare;
  Where where = space == Space::shared ? Where::shared : space == Space::global ? Where::global : Where::generic;
  n.e = static_cast<uint32_t>(where) | (a.wide ? 256 : 0);
}

void atom(Decoder& d) { emit_atomic(d, true); }
void red(Decoder& d) { emit_atomic(d, false); }

constexpr OpRow kRows[] = {
#define SG_OPS_ATOM
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows atom_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
