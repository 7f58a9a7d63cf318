// Textures and surfaces by handle: fetches with CUDA's address modes and filters, raw loads and stores of surfaces.
#include <cmath>

#include "access.h"
#include "decode.h"
#include "float_bits.h"
#include "sg_texture.h"

namespace sg::vm {
namespace {

using Mode = Texture::Mode;
using Element = Texture::Element;

// aux of every instruction here: handle slot, dimensions (1 to 3), layered, then the slots of the layer (0: none) and
// of three coordinates (0: none), then what the instruction adds.
enum : uint32_t { kHandle, kDimensions, kLayered, kLayer, kX, kY, kZ, kFirstOwn };

enum class Out : uint8_t { trap, clamp, zero };

bool get_texture(Warp& w, uint64_t handle, bool surface, Texture* out) {
  if (w.block->launch->memory->texture(handle, out) && out->is_surface == surface) return true;
  w.raise(Fault::illegal_address, handle);
  return false;
}

/// The texture of each lane: looked up once for lanes with one handle.
class Handles {
 public:
  Handles(Warp& w, uint32_t slot, bool surface) : warp_(w), slots_(w.reg<uint64_t>(slot)), surface_(surface) {}
  const Texture* of(uint32_t lane) {
    if (!known_ || slots_[lane] != handle_) {
      handle_ = slots_[lane];
      known_ = get_texture(warp_, handle_, surface_, &texture_);
    }
    return known_ ? &texture_ : nullptr;
  }

 private:
  Warp& warp_;
  const uint64_t* slots_;
  bool surface_;
  bool known_ = false;
  uint64_t handle_ = 0;
  Texture texture_;
};

/// False after raising: the memory behind a texture may have been freed.
bool readable(Warp& w, uint64_t address, uint32_t bytes) {
  Range r;
  if (find_range(w, address, bytes, &r)) return true;
  w.raise(Fault::illegal_address, address);
  return false;
}

// ---------------------------------------------------------------------------------------------- texture fetches

/// An index inside [0, size), or -1 for the border.
int64_t place(Mode mode, int64_t i, int64_t size) {
  if (i >= 0 && i < size) return i;
  if (size < 1) return -1;
  switch (mode) {
    case Mode::wrap:
      return (i % size + size) % size;
    case Mode::mirror: {
      const int64_t j = (i % (2 * size) + 2 * size) % (2 * size);
      return j < size ? j : 2 * size - 1 - j;
    }
    case Mode::clamp:
      return i < 0 ? 0 : size - 1;
    default:
      return -1;
  }
}

struct Texel {
  uint32_t bits[4] = {0, 0, 0, 0};
};

uint32_t float_bits(float v) { return bits_as<uint32_t>(v); }

template <class T>
uint32_t integer_bits(const Texture& t, T v) {
  constexpr bool is_signed = std::is_signed_v<T>;
  if (t.reads_as_integer || sizeof(T) == 4) return static_cast<uint32_t>(static_cast<int64_t>(v));
  const float most = static_cast<float>(std::numeric_limits<T>::max());
  const float f = static_cast<float>(v) / most;
  return float_bits(is_signed && f < -1.0f ? -1.0f : f);
}

uint32_t channel_bits(const Texture& t, uint64_t at) {
  if (t.element == Element::real) {
    return t.channel_bytes == 4 ? load_from<uint32_t>(at) : float_bits(half_to_float(load_from<uint16_t>(at)));
  }
  const bool sign = t.element == Element::signed_integer;
  switch (t.channel_bytes) {
    case 1:
      return sign ? integer_bits(t, load_from<int8_t>(at)) : integer_bits(t, load_from<uint8_t>(at));
    case 2:
      return sign ? integer_bits(t, load_from<int16_t>(at)) : integer_bits(t, load_from<uint16_t>(at));
    default:
      return load_from<uint32_t>(at);
  }
}

bool yields_floats(const Texture& t) {
  return t.element == Element::real || (!t.reads_as_integer && t.channel_bytes < 4);
}

/// Channels that an element lacks read 0, the fourth 1.
Texel missing(const Texture& t) {
  Texel out;
  out.bits[3] = yields_floats(t) ? float_bits(1.0f) : 1;
  return out;
}

Texel border(const Texture& t) {
  Texel out;
  for (int i = 0; i < 4; ++i) {
    out.bits[i] = yields_floats(t) ? float_bits(t.border[i]) : static_cast<uint32_t>(static_cast<int64_t>(t.border[i]));
  }
  return out;
}

/// The element at whole coordinates, after the address modes.
bool element_at(Warp& w, const Texture& t, const TextureLevel& level, const int64_t* at, Texel* out) {
  const int64_t sizes[3] = {level.width, level.height, level.depth};
  int64_t index[3];
  for (int i = 0; i < 3; ++i) {
    index[i] = place(t.is_linear ? Mode::border : t.mode[i], at[i], sizes[i]);
    if (index[i] >= 0) continue;
    *out = t.is_linear ? Texel{} : border(t);
    return true;
  }
  const uint64_t address = level.address + static_cast<uint64_t>(index[2]) * level.slice_bytes +
                           static_cast<uint64_t>(index[1]) * level.pitch_bytes +
                           static_cast<uint64_t>(index[0]) * t.element_bytes();
  if (!readable(w, address, t.element_bytes())) return false;
  *out = missing(t);
  for (uint32_t c = 0; c < t.channels; ++c) out->bits[c] = channel_bits(t, address + c * t.channel_bytes);
  return true;
}

/// Weights have 8 bits of fraction, as CUDA's have.
double weight(double fraction) { return std::floor(fraction * 256 + 0.5) / 256; }

bool filtered(Warp& w, const Texture& t, const TextureLevel& level, const double* at, uint32_t dimensions,
              const int64_t* whole, Texel* out) {
  int64_t low[3];
  double share[3] = {0, 0, 0};
  for (uint32_t i = 0; i < 3; ++i) {
    low[i] = whole[i];
    if (i >= dimensions) continue;
    const double shifted = at[i] - 0.5;
    low[i] = static_cast<int64_t>(std::floor(shifted));
    share[i] = weight(shifted - std::floor(shifted));
  }
  double sum[4] = {0, 0, 0, 0};
  for (uint32_t corner = 0; corner < 1u << dimensions; ++corner) {
    int64_t index[3] = {low[0], low[1], low[2]};
    double part = 1;
    for (uint32_t i = 0; i < dimensions; ++i) {
      const bool high = corner >> i & 1;
      index[i] += high;
      part *= high ? share[i] : 1 - share[i];
    }
    Texel texel;
    if (!element_at(w, t, level, index, &texel)) return false;
    for (int c = 0; c < 4; ++c) sum[c] += part * static_cast<double>(bits_as<float>(texel.bits[c]));
  }
  for (int c = 0; c < 4; ++c) out->bits[c] = float_bits(static_cast<float>(sum[c]));
  return true;
}

/// Keeps huge and undefined coordinates inside what an integer holds.
double bounded(double v) { return std::isnan(v) ? 0 : std::fmin(std::fmax(v, -1e15), 1e15); }

bool fetch(Warp& w, const Texture& t, const TextureLevel& level, const double* given, bool whole_coordinates,
           uint32_t dimensions, int64_t layer, Texel* out) {
  const int64_t sizes[3] = {level.width, level.height, level.depth};
  double at[3] = {0, 0, 0};
  int64_t whole[3] = {0, 0, 0};
  for (uint32_t i = 0; i < dimensions; ++i) {
    const double scale = t.normalized_coordinates && !whole_coordinates ? static_cast<double>(sizes[i]) : 1;
    at[i] = bounded(given[i] * scale);
    whole[i] = static_cast<int64_t>(std::floor(at[i]));
  }
  if (t.layers) {  // a layer that is not there is the nearest one
    whole[2] = layer < 0 ? 0 : layer >= static_cast<int64_t>(t.layers) ? static_cast<int64_t>(t.layers) - 1 : layer;
  }
  if (t.linear_filter && !whole_coordinates && yields_floats(t)) {
    return filtered(w, t, level, at, dimensions, whole, out);
  }
  return element_at(w, t, level, whole, out);
}

// tex: in.n = 1 for whole coordinates. Own aux: slot of the level (0: none; in.c says whether it is a float), then the
// slots of the results.
void h_tex(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  const bool whole = in.n != 0;
  Handles handles(w, x[kHandle], false);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    const Texture* t = handles.of(l);
    if (!t) return;
    double at[3] = {0, 0, 0};
    for (uint32_t i = 0; i < x[kDimensions]; ++i) {
      at[i] = whole ? static_cast<double>(get<int32_t>(w.regs + x[kX + i], l))
                    : static_cast<double>(get<float>(w.regs + x[kX + i], l));
    }
    const int64_t layer = x[kLayered] ? get<uint32_t>(w.regs + x[kLayer], l) : 0;
    uint32_t level = 0;
    if (x[kFirstOwn]) {
      const double wanted = in.c ? static_cast<double>(get<float>(w.regs + x[kFirstOwn], l))
                                 : static_cast<double>(get<int32_t>(w.regs + x[kFirstOwn], l));
      const double nearest = std::floor(bounded(wanted) + 0.5);
      level = static_cast<uint32_t>(std::fmin(std::fmax(nearest, 0), t->level_count - 1));
    }
    Texel texel;
    if (!fetch(w, *t, t->levels[level], at, whole, x[kDimensions], layer, &texel)) return;
    for (uint32_t c = 0; c < 4; ++c) put<uint32_t>(w.regs + x[kFirstOwn + 1 + c], l, texel.bits[c]);
  }
}

// ---------------------------------------------------------------------------------------------- surfaces

/// Where `bytes` at byte x of a row lie; 0: outside, and what is outside reads zero and stores nothing.
uint64_t surface_address(Warp& w, const Texture& t, const uint32_t* x, uint32_t lane, uint32_t bytes, Out out) {
  const TextureLevel& level = t.levels[0];
  const int64_t row_bytes = static_cast<int64_t>(level.width) * t.element_bytes();
  int64_t at[3] = {0, 0, 0};
  for (uint32_t i = 0; i < x[kDimensions]; ++i) at[i] = get<int32_t>(w.regs + x[kX + i], lane);
  if (x[kLayered]) at[2] = get<uint32_t>(w.regs + x[kLayer], lane);
  const int64_t ends[3] = {row_bytes - bytes, level.height - 1, level.depth - 1};
  for (int i = 0; i < 3; ++i) {
    if (at[i] >= 0 && at[i] <= ends[i]) continue;
    if (out == Out::zero) return 0;
    if (out == Out::trap || ends[i] < 0) {
      w.raise(Fault::illegal_address, level.address);
      return 0;
    }
    at[i] = at[i] < 0 ? 0 : ends[i];
  }
  if (at[0] % bytes) {
    w.raise(Fault::misaligned_address, level.address + static_cast<uint64_t>(at[0]));
    return 0;
  }
  const uint64_t address = level.address + static_cast<uint64_t>(at[2]) * level.slice_bytes +
                           static_cast<uint64_t>(at[1]) * level.pitch_bytes + static_cast<uint64_t>(at[0]);
  return readable(w, address, bytes) ? address : 0;
}

// suld, sust: in.n = elements, in.c = Out. Own aux: slots of the values.
template <class T>
void h_suld(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  Handles handles(w, x[kHandle], true);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    const Texture* t = handles.of(l);
    if (!t) return;
    const uint64_t a = surface_address(w, *t, x, l, in.n * sizeof(T), static_cast<Out>(in.c));
    if (w.fault != Fault::none) return;
    for (uint32_t i = 0; i < in.n; ++i) {
      put<T>(w.regs + x[kFirstOwn + i], l, a ? load_from<T>(a + i * sizeof(T)) : T{0});
    }
  }
}

template <class T>
void h_sust(Warp& w, const Insn& in, uint32_t mask) {
  const uint32_t* x = &w.frame->code->aux[in.e];
  Handles handles(w, x[kHandle], true);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    const Texture* t = handles.of(l);
    if (!t) return;
    const uint64_t a = surface_address(w, *t, x, l, in.n * sizeof(T), static_cast<Out>(in.c));
    if (w.fault != Fault::none) return;
    for (uint32_t i = 0; a && i < in.n; ++i) store_to<T>(a + i * sizeof(T), get<T>(w.regs + x[kFirstOwn + i], l));
  }
}

constexpr Handler kSurfaceLoad[] = {h_suld<uint8_t>, h_suld<uint16_t>, h_suld<uint32_t>, h_suld<uint64_t>};
constexpr Handler kSurfaceStore[] = {h_sust<uint8_t>, h_sust<uint16_t>, h_sust<uint32_t>, h_sust<uint64_t>};

// ---------------------------------------------------------------------------------------------- decoding

/// Handle and coordinates of [handle, {...}] into the head of an aux list.
std::vector<uint32_t> place_operand(Decoder& d, const Operand& o, Type coordinate) {
  const std::string_view geometry = d.mods.one_of({"1d", "2d", "3d", "a1d", "a2d"});
  const bool layered = geometry[0] == 'a';
  const uint32_t dimensions = static_cast<uint32_t>(geometry[layered ? 1 : 0] - '0');
  if (o.kind != Operand::Kind::address || o.sub.size() != 1 || o.value != 0)
    d.fail("operand must be [handle, {x, ...}]");
  Operand handle;
  handle.line = o.line;
  handle.name = o.name;
  if (d.register_bytes(handle) != 8) d.fail("a texture or surface must be a handle in a 64-bit register");
  std::vector<uint32_t> list = {d.src(handle, Type::u64), dimensions, layered, 0, 0, 0, 0};
  const Operand& c = o.sub[0];
  const std::vector<Operand> alone(1, c);
  const std::vector<Operand>& given = c.kind == Operand::Kind::vector ? c.sub : alone;
  if (given.size() < dimensions + layered) d.fail("too few coordinates");
  if (layered) list[kLayer] = d.src(given[0], Type::b32);
  for (uint32_t i = 0; i < dimensions; ++i) list[kX + i] = d.src(given[i + layered], coordinate);
  return list;
}

void tex(Decoder& d) {
  const bool with_level = d.mods.has("level");
  d.mods.has("v4");
  d.expect_operands(with_level ? 3 : 2);
  const Type result = d.mods.type(0), coordinate = d.mods.type(1);
  std::vector<uint32_t> list = place_operand(d, d.op(1), coordinate);
  list.push_back(with_level ? d.src(2, coordinate) : 0);
  const Operand& to = d.op(0);
  if (to.kind != Operand::Kind::vector || to.sub.size() != 4) d.fail("result must be four registers in braces");
  for (const Operand& o : to.sub) list.push_back(d.dst(o, result));
  const uint32_t at = d.aux(list);
  Insn& n = d.emit(h_tex);
  n.e = at;
  n.n = coordinate != Type::f32;
  n.c = coordinate == Type::f32;
}

void surface(Decoder& d, bool store) {
  d.mods.has("b");
  d.expect_operands(2);
  const std::string_view v = d.mods.one_of({"v2", "v4"});
  const uint32_t count = v.empty() ? 1 : static_cast<uint32_t>(v[1] - '0');
  const Type t = d.mods.type();
  const std::string_view out = d.mods.one_of({"trap", "clamp", "zero"});
  if (count * ptx::bytes_of(t) > 16) d.fail("vector is too large");
  std::vector<uint32_t> list = place_operand(d, d.op(store ? 0 : 1), Type::b32);
  const Operand& o = d.op(store ? 1 : 0);
  const std::vector<Operand> alone(1, o);
  const std::vector<Operand>& values = o.kind == Operand::Kind::vector ? o.sub : alone;
  if (values.size() != count) d.fail("wrong number of registers");
  for (const Operand& value : values) list.push_back(store ? d.wide_src(value, t) : d.wide_dst(value, t));
  const uint32_t log = static_cast<uint32_t>(__builtin_ctz(ptx::bytes_of(t))), at = d.aux(list);
  Insn& n = d.emit(store ? kSurfaceStore[log] : kSurfaceLoad[log]);
  n.e = at;
  n.n = static_cast<uint8_t>(count);
  n.c = static_cast<uint32_t>(out == "trap" ? Out::trap : out == "clamp" ? Out::clamp : Out::zero);
  if (!store) d.finish_wide();
}

void suld(Decoder& d) { surface(d, false); }
void sust(Decoder& d) { surface(d, true); }

constexpr OpRow kRows[] = {
#define SG_OPS_TEX
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows tex_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
