// Products of small matrices whose elements the lanes of a warp hold: mma, and ldmatrix, stmatrix, movmatrix.
//
// Fragments as the PTX ISA lays them out. With g = lane / 4, t = lane % 4 and P elements to a 32-bit register:
// register r of A holds row g + 8 * (r % rows8), columns t * P + 4 * P * (r / rows8) on (rows8 = M / 8);
// register r of B holds column g, rows t * P + 4 * P * r on; C and D hold rows g + 8 * i, columns 2 * t and 2 * t + 1.
#include "access.h"
#include "matrix.h"

namespace sg::vm {

bool needs_whole_warp(Warp& w, uint32_t mask) {
  if (mask == kFullMask) return true;
  w.raise(Fault::illegal_instruction, 0, "an .aligned instruction that not all 32 lanes of the warp run");
  return false;
}

namespace {

uint64_t encode_real(Type t, double v) {
  switch (t) {
    case Type::f16:
      return F16::narrow(v);
    case Type::f32:
      return v != v ? 0x7fffffffu : bits_as<uint32_t>(static_cast<float>(v));
    default:
      return v != v ? uint64_t{0x7fffffffffffffff} : bits_as<uint64_t>(v);
  }
}

}  // namespace

void multiply(const MatrixProduct& p, const uint64_t* a, const uint64_t* b, const uint64_t* c, uint64_t* d) {
  if (is_integer_matrix(p.a)) {
    for (uint32_t i = 0; i < p.m; ++i) {
      for (uint32_t j = 0; j < p.n; ++j) {
        int64_t sum = static_cast<int32_t>(c[i * p.n + j]);
        for (uint32_t k = 0; k < p.k; ++k) {
          uint64_t x = a[i * p.k + k], y = b[k * p.n + j];
          sum += p.a == Type::b1 ? static_cast<int64_t>((p.bits_and ? x & y : x ^ y) & 1)
                                 : integer_element(p.a, x) * integer_element(p.b, y);
        }
        if (p.saturate) sum = std::min<int64_t>(std::max<int64_t>(sum, INT32_MIN), INT32_MAX);
        d[i * p.n + j] = static_cast<uint32_t>(sum);
      }
    }
    return;
  }
  static thread_local double x[kMaxRows * kMaxDepth], y[kMaxRows * kMaxDepth];
  for (uint32_t i = 0; i < p.m * p.k; ++i) x[i] = real_element(p.a, a[i]);
  for (uint32_t k = 0; k < p.k; ++k) {
    for (uint32_t j = 0; j < p.n; ++j) y[j * p.k + k] = real_element(p.b, b[k * p.n + j]);
  }
  for (uint32_t i = 0; i < p.m; ++i) {
    for (uint32_t j = 0; j < p.n; ++j) {
      const double *row = x + i * p.k, *column = y + j * p.k;
      double sum = real_element(p.c, c[i * p.n + j]);
      if (p.d == Type::f64) {
        for (uint32_t k = 0; k < p.k; ++k) sum = __builtin_fma(row[k], column[k], sum);
      } else {
        double products = 0;
        for (uint32_t k = 0; k < p.k; ++k) products += row[k] * column[k];
        sum += products;
      }
      d[i * p.n + j] = encode_real(p.d, sum);
    }
  }
}

std::vector<uint32_t> fragment(Decoder& d, const Operand& o, Type element, uint32_t count, bool result) {
  uint32_t bits = element_bits(element);
  Type type = bits == 64 ? Type::f64 : element == Type::f32 || element == Type::s32 ? element : Type::b32;
  std::vector<uint32_t> slots;
  auto add = [&](const Operand& r) { slots.push_back(result ? d.dst(r, type) : d.src(r, type)); };
  if (o.kind == Operand::Kind::vector) {
    for (const Operand& r : o.sub) add(r);
  } else {
    add(o);
  }
  if (slots.size() != count) d.fail("a fragment of " + std::to_string(count) + " registers is needed");
  return slots;
}

void parse_shape(Decoder& d, std::string_view word, MatrixProduct* p) {
  uint32_t* to[] = {&p->m, &p->n, &p->k};
  size_t at = 0;
  for (int i = 0; i < 3; ++i) {
    if (at >= word.size() || word[at] != "mnk"[i]) d.fail("malformed shape");
    for (++at; at < word.size() && word[at] >= '0' && word[at] <= '9'; ++at) {
      *to[i] = *to[i] * 10 + static_cast<uint32_t>(word[at] - '0');
    }
  }
}

namespace {

// Aux list of an mma: m, n, k, types of a, b, c, d, flags, then the slots of the fragments of a, b, c, d.
constexpr uint32_t kHead = 8;

void h_mma(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* x = &w.frame->code->aux[static_cast<size_t>(in.imm)];
  MatrixProduct p;
  p.m = x[0];
  p.n = x[1];
  p.k = x[2];
  p.a = static_cast<Type>(x[3]);
  p.b = static_cast<Type>(x[4]);
  p.c = static_cast<Type>(x[5]);
  p.d = static_cast<Type>(x[6]);
  p.saturate = x[7] & 1;
  p.bits_and = x[7] & 2;
  static thread_local uint64_t a[kMaxRows * kMaxDepth], b[kMaxRows * kMaxDepth], c[kMaxRows * kMaxRows],
      d[kMaxRows * kMaxRows];
  uint32_t bits = element_bits(p.a), per = bits >= 32 ? 1 : 32 / bits, rows8 = p.m / 8;
  uint32_t registers_a = rows8 * p.k / (4 * per), registers_b = p.k / (4 * per);
  const uint32_t *slots_a = x + kHead, *slots_b = slots_a + registers_a, *slots_c = slots_b + registers_b;
  uint32_t bits_c = element_bits(p.c), bits_d = element_bits(p.d);
  const uint32_t* slots_d = slots_c + 2 * rows8 / (bits_c == 16 ? 2 : 1);
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t g = l / 4, t = l % 4;
    for (uint32_t r = 0; r < registers_a; ++r) {
      for (uint32_t e = 0; e < per; ++e) {
        a[(g + 8 * (r % rows8)) * p.k + t * per + e + 4 * per * (r / rows8)] =
            fragment_get(w, slots_a, bits, l, r * per + e);
      }
    }
    for (uint32_t r = 0; r < registers_b; ++r) {
      for (uint32_t e = 0; e < per; ++e) {
        b[(t * per + e + 4 * per * r) * p.n + g] = fragment_get(w, slots_b, bits, l, r * per + e);
      }
    }
    for (uint32_t i = 0; i < 2 * rows8; ++i) {
      c[(g + 8 * (i / 2)) * p.n + 2 * t + i % 2] = fragment_get(w, slots_c, bits_c, l, i);
    }
  }
  multiply(p, a, b, c, d);
  for (uint32_t l = 0; l < kLanes; ++l) {
    for (uint32_t i = 0; i < 2 * rows8; ++i) {
      fragment_put(w, slots_d, bits_d, l, i, d[(l / 4 + 8 * (i / 2)) * p.n + 2 * (l % 4) + i % 2]);
    }
  }
}

void mma(Decoder& d) {
  d.expect_operands(4);
  for (std::string_view word : {"sync", "aligned", "row", "col", "popc"}) d.mods.has(word);
  MatrixProduct p;
  for (std::string_view word : d.in().modifiers) {
    if (word.size() > 3 && word[0] == 'm' && word[1] >= '0' && word[1] <= '9') {
      d.mods.has(word);
      parse_shape(d, word, &p);
    }
  }
  p.saturate = d.mods.has("satfinite");
  p.bits_and = d.mods.one_of({"xor", "and"}) == "and";
  p.d = d.mods.type(0);
  p.a = d.mods.type(1);
  p.b = d.mods.type(2);
  p.c = d.mods.type(3);
  uint32_t bits = element_bits(p.a), per = bits >= 32 ? 1 : 32 / bits, rows8 = p.m / 8;
  auto accumulators = [&](Type t) { return 2 * rows8 / (t == Type::f16 ? 2 : 1); };
  std::vector<uint32_t> list = {p.m,
                                p.n,
                                p.k,
                                static_cast<uint32_t>(p.a),
                                static_cast<uint32_t>(p.b),
                                static_cast<uint32_t>(p.c),
                                static_cast<uint32_t>(p.d),
                                (p.saturate ? 1u : 0u) | (p.bits_and ? 2u : 0u)};
  auto append = [&](const std::vector<uint32_t>& slots) { list.insert(list.end(), slots.begin(), slots.end()); };
  append(fragment(d, d.op(1), p.a, rows8 * p.k / (4 * per), false));
  append(fragment(d, d.op(2), p.b, p.k / (4 * per), false));
  append(fragment(d, d.op(3), p.c, accumulators(p.c), false));
  append(fragment(d, d.op(0), p.d, accumulators(p.d), true));
  uint32_t everyone = d.constant(kFullMask, 4), at = d.aux(list);
  Insn& n = d.emit(h_mma, Kind::sync);
  n.imm = at;
  n.e = everyone;
}

// Aux list of ldmatrix and stmatrix: offset of the address, transposed, number of matrices, slots. in.a: address,
// in.c: wide | Where << 8.
void matrix_rows(Warp& w, const Insn& in, const uint32_t* x, uint64_t* address, bool* ok) {
  addresses(w, in.a, in.c & 1, static_cast<int32_t>(x[0]), address);
  uint32_t rows = x[2] == 4 ? kFullMask : (1u << (8 * x[2])) - 1;
  *ok = check(w, address, rows, 16, 16, static_cast<Where>(in.c >> 8));
}

void h_ldmatrix(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* x = &w.frame->code->aux[static_cast<size_t>(in.imm)];
  uint64_t address[kLanes];
  bool ok;
  matrix_rows(w, in, x, address, &ok);
  if (!ok) return;
  uint32_t out[4][kLanes];
  for (uint32_t i = 0; i < x[2]; ++i) {
    uint16_t m[8][8];
    for (uint32_t r = 0; r < 8; ++r) std::memcpy(m[r], reinterpret_cast<const void*>(address[8 * i + r]), 16);
    for (uint32_t l = 0; l < kLanes; ++l) {
      uint32_t r = l / 4, c = l % 4 * 2;
      out[i][l] = x[1] ? m[c][r] | static_cast<uint32_t>(m[c + 1][r]) << 16
                       : m[r][c] | static_cast<uint32_t>(m[r][c + 1]) << 16;
    }
  }
  for (uint32_t i = 0; i < x[2]; ++i) std::memcpy(w.reg<uint32_t>(x[3 + i]), out[i], sizeof out[i]);
}

void h_stmatrix(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* x = &w.frame->code->aux[static_cast<size_t>(in.imm)];
  uint64_t address[kLanes];
  bool ok;
  matrix_rows(w, in, x, address, &ok);
  if (!ok) return;
  for (uint32_t i = 0; i < x[2]; ++i) {
    uint16_t m[8][8];
    const uint32_t* from = w.reg<uint32_t>(x[3 + i]);
    for (uint32_t l = 0; l < kLanes; ++l) {
      for (uint32_t k = 0; k < 2; ++k) {
        uint32_t r = l / 4, c = l % 4 * 2 + k;
        (x[1] ? m[c][r] : m[r][c]) = static_cast<uint16_t>(from[l] >> (16 * k));
      }
    }
    for (uint32_t r = 0; r < 8; ++r) std::memcpy(reinterpret_cast<void*>(address[8 * i + r]), m[r], 16);
  }
}

void matrix_memory(Decoder& d, bool load) {
  d.expect_operands(2);
  for (std::string_view word : {"sync", "aligned", "m8n8", "b16"}) d.mods.has(word);
  uint32_t count = static_cast<uint32_t>(d.mods.one_of({"x1", "x2", "x4"})[1] - '0');
  bool transposed = d.mods.has("trans");
  bool shared = !d.mods.one_of({"shared", "shared::cta"}).empty();
  Address a = d.address(d.op(load ? 1 : 0), shared ? Space::shared : Space::generic, 16);
  if (a.imm != static_cast<int32_t>(a.imm)) d.fail("offset too large");
  std::vector<uint32_t> list = {static_cast<uint32_t>(a.imm), transposed, count};
  for (uint32_t s : fragment(d, d.op(load ? 0 : 1), Type::b32, count, load)) list.push_back(s);
  uint32_t everyone = d.constant(kFullMask, 4), at = d.aux(list);
  Insn& n = d.emit(load ? h_ldmatrix : h_stmatrix, Kind::sync);
  n.a = a.slot;
  n.imm = at;
  n.c = (a.wide ? 1u : 0u) | static_cast<uint32_t>(shared ? Where::shared : Where::generic) << 8;
  n.e = everyone;
}
void ldmatrix(Decoder& d) { matrix_memory(d, true); }
void stmatrix(Decoder& d) { matrix_memory(d, false); }

void h_movmatrix(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* a = w.reg<uint32_t>(in.a);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    out[l] = 0;
    for (uint32_t k = 0; k < 2; ++k) {
      uint32_t r = l % 4 * 2 + k, c = l / 4;
      out[l] |= (a[r * 4 + c / 2] >> (c % 2 * 16) & 0xffff) << (16 * k);
    }
  }
  std::memcpy(w.reg<uint32_t>(in.d), out, sizeof out);
}

void movmatrix(Decoder& d) {
  d.expect_operands(2);
  for (std::string_view word : {"sync", "aligned", "m8n8", "trans", "b16"}) d.mods.has(word);
  uint32_t everyone = d.constant(kFullMask, 4), a = d.src(1, Type::b32), to = d.dst(0, Type::b32);
  Insn& n = d.emit(h_movmatrix, Kind::sync);
  n.d = to;
  n.a = a;
  n.e = everyone;
}

constexpr OpRow kRows[] = {
#define SG_OPS_MMA
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows mma_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
