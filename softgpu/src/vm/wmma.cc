// wmma: matrices whose layout among the lanes is the machine's own affair. Element e of a matrix, counted row by row,
// is element e % per of lane e / per, where per = elements / 32. Registers that a fragment has beyond that (those of
// f16 operands) repeat its elements.
#include "access.h"
#include "matrix.h"

namespace sg::vm {
namespace {

enum class Part : uint32_t { a, b, c, d };

/// Rows and columns of an operand.
void extent(const MatrixProduct& p, Part part, uint32_t* rows, uint32_t* columns) {
  *rows = part == Part::b ? p.k : p.m;
  *columns = part == Part::a ? p.k : p.n;
}

/// Registers that a fragment of elements of `t` has in PTX.
uint32_t registers(const MatrixProduct& p, Part part, Type t) {
  uint32_t rows, columns;
  extent(p, part, &rows, &columns);
  uint32_t bits = element_bits(t);
  if (part < Part::c && t == Type::f16) return 8;
  return rows * columns * bits / (kLanes * (bits == 64 ? 64 : 32));
}

// Aux list of load and store: rows, columns, by columns, bits of an element, registers, offset of the address, slots.
constexpr uint32_t kHead = 6;

bool row_addresses(Warp& w, const Insn& in, const uint32_t* x, uint64_t* row) {
  uint64_t base[kLanes];
  addresses(w, in.a, in.c & 1, static_cast<int32_t>(x[5]), base);
  uint32_t lines = x[2] ? x[1] : x[0], length = x[2] ? x[0] : x[1];
  uint64_t stride = in.b ? get<uint32_t>(w.regs + in.b, 0) : length;
  for (uint32_t i = 0; i < kLanes; ++i) row[i] = base[0] + i * stride * x[3] / 8;
  uint32_t used = lines == kLanes ? kFullMask : (1u << lines) - 1, bytes = length * x[3] / 8;
  return check(w, row, used, bytes, x[3] < 8 ? 4 : x[3] / 8, static_cast<Where>(in.c >> 8));
}

uint64_t read_bits(uint64_t line, uint32_t index, uint32_t bits) {
  uint64_t v = 0;
  if (bits >= 8) {
    std::memcpy(&v, reinterpret_cast<const void*>(line + index * (bits / 8)), bits / 8);
    return v;
  }
  uint8_t byte = load_from<uint8_t>(line + index * bits / 8);
  return byte >> (index * bits % 8) & ((1u << bits) - 1);
}

void h_load(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* x = &w.frame->code->aux[static_cast<size_t>(in.imm)];
  uint64_t line[kLanes];
  if (!row_addresses(w, in, x, line)) return;
  uint32_t rows = x[0], columns = x[1], bits = x[3], per = rows * columns / kLanes;
  uint32_t room = bits == 64 ? x[4] : x[4] * 32 / bits;
  for (uint32_t l = 0; l < kLanes; ++l) {
    for (uint32_t i = 0; i < room; ++i) {
      uint32_t e = l * per + i % per, r = e / columns, c = e % columns;
      fragment_put(w, x + kHead, bits, l, i, x[2] ? read_bits(line[c], r, bits) : read_bits(line[r], c, bits));
    }
  }
}

void h_store(Warp& w, const Insn& in, uint32_t mask) {
  if (!needs_whole_warp(w, mask)) return;
  const uint32_t* x = &w.frame->code->aux[static_cast<size_t>(in.imm)];
  uint64_t line[kLanes];
  if (!row_addresses(w, in, x, line)) return;
  uint32_t rows = x[0], columns = x[1], bits = x[3], per = rows * columns / kLanes;
  for (uint32_t l = 0; l < kLanes; ++l) {
    for (uint32_t i = 0; i < per; ++i) {
      uint32_t e = l * per + i, r = e / columns, c = e % columns;
      uint64_t v = fragment_get(w, x + kHead, bits, l, i);
      uint64_t to = x[2] ? line[c] + r * (bits / 8) : line[r] + c * (bits / 8);
      std::memcpy(reinterpret_cast<void*>(to), &v, bits / 8);
    }
  }
}

std::string_view shape_word(Decoder& d) {
  for (std::string_view word : d.in().modifiers) {
    if (word.size() > 3 && word[0] == 'm' && word[1] >= '0' && word[1] <= '9') return word;
  }
  d.fail("missing shape");
}

void read_shape(Decoder& d, MatrixProduct* p) {
  std::string_view word = shape_word(d);
  d.mods.has(word);
  parse_shape(d, word, p);
}

void transfer(Decoder& d, bool load) {
  d.expect_operands(2, 3);
  for (std::string_view word : {"load", "store", "sync", "aligned"}) d.mods.has(word);
  std::string_view which = d.mods.one_of({"a", "b", "c", "d"});
  MatrixProduct p;
  read_shape(d, &p);
  bool by_columns = d.mods.one_of({"row", "col"}) == "col";
  std::string_view s = d.mods.one_of({"global", "shared", "shared::cta"});
  Space space = s.empty() ? Space::generic : s == "global" ? Space::global : Space::shared;
  Type t = d.mods.type();
  Part part = which == "a" ? Part::a : which == "b" ? Part::b : Part::c;
  if (element_bits(t) < 8 && by_columns != (part == Part::b)) d.fail("A must be .row and B .col for this type");
  uint32_t rows, columns, count = registers(p, part, t);
  extent(p, part, &rows, &columns);
  Address a = d.address(d.op(load ? 1 : 0), space, 1);
  if (a.imm != static_cast<int32_t>(a.imm)) d.fail("offset too large");
  if (a.in_frame || a.in_params) d.fail("matrix in a local variable");
  std::vector<uint32_t> list = {rows, columns, by_columns, element_bits(t), count, static_cast<uint32_t>(a.imm)};
  for (uint32_t slot : fragment(d, d.op(load ? 0 : 1), t, count, load)) list.push_back(slot);
  uint32_t stride = d.count() > 2 ? d.src(2, Type::u32) : 0;
  uint32_t everyone = d.constant(kFullMask, 4), at = d.aux(list);
  Insn& n = d.emit(load ? h_load : h_store, Kind::sync);
  n.a = a.slot;
  n.b = stride;
  Where where = space == Space::shared ? Where::shared : space == Space::global ? Where::global : Where::generic;
  n.c = (a.wide ? 1u : 0u) | static_cast<uint32_t>(where) << 8;
  n.imm = at;
  n.e = everyone;
}
void wmma_load(Decoder& d) { transfer(d, true); }
void wmma_store(Decoder& d) { transfer(d, false); }

// Aux list: m, n, k, types of a, b, c, d, flags, registers of a, b, c, then the slots of a, b, c, d.
constexpr uint32_t kMmaHead = 11;

void h_wmma(Warp& w, const Insn& in, uint32_t mask) {
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
  const uint32_t* slots = x + kMmaHead;
  auto gather = [&](uint32_t count, Type t, uint64_t* to) {
    uint32_t per = count / kLanes, bits = element_bits(t);
    for (uint32_t l = 0; l < kLanes; ++l) {
      for (uint32_t i = 0; i < per; ++i) to[l * per + i] = fragment_get(w, slots, bits, l, i);
    }
  };
  gather(p.m * p.k, p.a, a);
  slots += x[8];
  gather(p.k * p.n, p.b, b);
  slots += x[9];
  gather(p.m * p.n, p.c, c);
  slots += x[10];
  multiply(p, a, b, c, d);
  uint32_t per = p.m * p.n / kLanes, bits = element_bits(p.d);
  for (uint32_t l = 0; l < kLanes; ++l) {
    for (uint32_t i = 0; i < per; ++i) fragment_put(w, slots, bits, l, i, d[l * per + i]);
  }
}

void wmma_mma(Decoder& d) {
  d.expect_operands(4);
  for (std::string_view word : {"mma", "sync", "aligned", "row", "col", "popc", "rn"}) d.mods.has(word);
  MatrixProduct p;
  read_shape(d, &p);
  p.saturate = d.mods.has("satfinite");
  p.bits_and = d.mods.one_of({"xor", "and"}) == "and";
  p.d = d.mods.type(0);
  p.a = d.mods.type(1);
  p.b = d.mods.type(2);
  p.c = d.mods.type(3);
  if (p.b == Type::none) {  // two types only, those of d and c: the operands are f16
    p.c = p.a;
    p.a = p.b = Type::f16;
  }
  uint32_t na = registers(p, Part::a, p.a), nb = registers(p, Part::b, p.b), nc = registers(p, Part::c, p.c);
  std::vector<uint32_t> list = {p.m,
                                p.n,
                                p.k,
                                static_cast<uint32_t>(p.a),
                                static_cast<uint32_t>(p.b),
                                static_cast<uint32_t>(p.c),
                                static_cast<uint32_t>(p.d),
                                (p.saturate ? 1u : 0u) | (p.bits_and ? 2u : 0u),
                                na,
                                nb,
                                nc};
  auto append = [&](const std::vector<uint32_t>& slots) { list.insert(list.end(), slots.begin(), slots.end()); };
  append(fragment(d, d.op(1), p.a, na, false));
  append(fragment(d, d.op(2), p.b, nb, false));
  append(fragment(d, d.op(3), p.c, nc, false));
  append(fragment(d, d.op(0), p.d, registers(p, Part::d, p.d), true));
  uint32_t everyone = d.constant(kFullMask, 4), at = d.aux(list);
  Insn& n = d.emit(h_wmma, Kind::sync);
  n.imm = at;
  n.e = everyone;
}

constexpr OpRow kRows[] = {
#define SG_OPS_WMMA
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows wmma_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
