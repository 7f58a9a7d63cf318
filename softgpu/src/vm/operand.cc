// Operands of PTX instructions -> slots: names of registers, variables and special registers, constants, addresses.
#include <time.h>

#include "decode.h"
#include "handlers.h"

namespace sg::vm {
namespace {

using ptx::Variable;

constexpr uint32_t kNone = 0xffffffffu;

template <class From, class To>
void h_extend(Warp& w, const Insn& in, uint32_t mask) {
  map1<From, To>(w, in, mask, [](From v) { return static_cast<To>(v); });
}

Handler extend_handler(Type from, uint32_t to_bytes) {
  bool wide = to_bytes == 8;
  switch (from) {
    case Type::s8:
      return wide ? h_extend<int8_t, int64_t> : h_extend<int8_t, int32_t>;
    case Type::s16:
      return wide ? h_extend<int16_t, int64_t> : h_extend<int16_t, int32_t>;
    case Type::s32:
      return h_extend<int32_t, int64_t>;
    default:
      break;
  }
  switch (ptx::bytes_of(from)) {
    case 1:
      return wide ? h_extend<uint8_t, uint64_t> : h_extend<uint8_t, uint32_t>;
    case 2:
      return wide ? h_extend<uint16_t, uint64_t> : h_extend<uint16_t, uint32_t>;
    default:
      return h_extend<uint32_t, uint64_t>;
  }
}

void h_truncate(Warp& w, const Insn& in, uint32_t mask) {
  map1<uint64_t, uint32_t>(w, in, mask, [](uint64_t v) { return static_cast<uint32_t>(v); });
}

void h_not_pred(Warp& w, const Insn& in, uint32_t mask) { set_pred(&w.pred(in.d), mask, ~w.pred(in.a)); }

template <class T>
void h_negate(Warp& w, const Insn& in, uint32_t mask) {
  map1<T, T>(w, in, mask, [](T v) { return static_cast<T>(-v); });
}

uint64_t now_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

// in.imm: bits to shift right; clocks count nanoseconds.
template <class T, clockid_t Clock>
void h_clock(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t now = now_ns(Clock) >> in.imm;
  for_lanes(mask, [&](uint32_t l) { put<T>(w.regs + in.d, l, static_cast<T>(now)); });
}

struct Special {
  std::string_view name;
  char component;
  Fill fill;
  uint64_t value;
};

constexpr Special kSpecials[] = {
    {"%tid", 'x', Fill::tid_x, 0},
    {"%tid", 'y', Fill::tid_y, 0},
    {"%tid", 'z', Fill::tid_z, 0},
    {"%ntid", 'x', Fill::ntid_x, 0},
    {"%ntid", 'y', Fill::ntid_y, 0},
    {"%ntid", 'z', Fill::ntid_z, 0},
    {"%ctaid", 'x', Fill::ctaid_x, 0},
    {"%ctaid", 'y', Fill::ctaid_y, 0},
    {"%ctaid", 'z', Fill::ctaid_z, 0},
    {"%nctaid", 'x', Fill::nctaid_x, 0},
    {"%nctaid", 'y', Fill::nctaid_y, 0},
    {"%nctaid", 'z', Fill::nctaid_z, 0},
    {"%laneid", 0, Fill::lane, 0},
    {"%warpid", 0, Fill::warp, 0},
    {"%nwarpid", 0, Fill::warps, 0},
    {"%smid", 0, Fill::sm, 0},
    {"%nsmid", 0, Fill::sms, 0},
    {"%gridid", 0, Fill::grid_id, 0},
    {"%lanemask_eq", 0, Fill::lanemask_eq, 0},
    {"%lanemask_le", 0, Fill::lanemask_le, 0},
    {"%lanemask_lt", 0, Fill::lanemask_lt, 0},
    {"%lanemask_ge", 0, Fill::lanemask_ge, 0},
    {"%lanemask_gt", 0, Fill::lanemask_gt, 0},
    {"%dynamic_smem_size", 0, Fill::dynamic_shared_bytes, 0},
    {"%total_smem_size", 0, Fill::total_shared_bytes, 0},
    {"%envreg1", 0, Fill::envreg1, 0},
    {"%envreg2", 0, Fill::envreg2, 0},
    {"WARP_SZ", 0, Fill::constant, 32},
    // A launch without clusters is one of clusters of one block.
    {"%is_explicit_cluster", 0, Fill::constant, 0},
    {"%cluster_ctarank", 0, Fill::constant, 0},
    {"%cluster_nctarank", 0, Fill::constant, 1},
    {"%cluster_ctaid", 'x', Fill::constant, 0},
    {"%cluster_ctaid", 'y', Fill::constant, 0},
    {"%cluster_ctaid", 'z', Fill::constant, 0},
    {"%cluster_nctaid", 'x', Fill::constant, 1},
    {"%cluster_nctaid", 'y', Fill::constant, 1},
    {"%cluster_nctaid", 'z', Fill::constant, 1},
    {"%clusterid", 'x', Fill::ctaid_x, 0},
    {"%clusterid", 'y', Fill::ctaid_y, 0},
    {"%clusterid", 'z', Fill::ctaid_z, 0},
    {"%nclusterid", 'x', Fill::nctaid_x, 0},
    {"%nclusterid", 'y', Fill::nctaid_y, 0},
    {"%nclusterid", 'z', Fill::nctaid_z, 0},
};

}  // namespace

Decoder::Register* Decoder::find_register(std::string_view name) {
  size_t digits = 0;
  while (digits < name.size() && name[name.size() - 1 - digits] >= '0' && name[name.size() - 1 - digits] <= '9') {
    ++digits;
  }
  uint64_t number = 0;
  bool numbered = digits > 0 && digits <= 8 && (digits == 1 || name[name.size() - digits] != '0');
  if (numbered) {
    for (char c : name.substr(name.size() - digits)) number = number * 10 + static_cast<uint64_t>(c - '0');
  }
  std::string_view prefix = name.substr(0, name.size() - digits);
  for (size_t s = scopes_.size(); s-- > 0;) {
    Scope& scope = scopes_[s];
    auto it = scope.registers.find(name);
    if (it != scope.registers.end()) return &it->second;
    if (!numbered) continue;
    for (const Range& r : scope.ranges) {
      if (r.prefix == prefix && number < r.count) {
        return &(scope.registers[name] = {r.type, allocate_type(r.type)});
      }
    }
  }
  return nullptr;
}

const Decoder::Local* Decoder::find_local(std::string_view name) const {
  for (size_t s = scopes_.size(); s-- > 0;) {
    auto it = scopes_[s].locals.find(name);
    if (it != scopes_[s].locals.end()) return &it->second;
  }
  return nullptr;
}

const Variable* Decoder::find_shared(std::string_view name) const {
  for (size_t s = scopes_.size(); s-- > 0;) {
    auto it = scopes_[s].shared.find(name);
    if (it != scopes_[s].shared.end()) return it->second;
  }
  return nullptr;
}

Decoder::Register Decoder::reg(const Operand& o) {
  if (o.kind != Operand::Kind::name) return {};
  Register* r;
  if (o.component) {
    char c = o.component;
    c = c == 'r' ? 'x' : c == 'g' ? 'y' : c == 'b' ? 'z' : c == 'a' ? 'w' : c;
    r = find_register(std::string(o.name) + "." + c);
  } else {
    r = find_register(o.name);
  }
  return r ? *r : Register{};
}

bool Decoder::is_register(const Operand& o) { return reg(o).type != Type::none; }
bool Decoder::is_pred(const Operand& o) { return reg(o).type == Type::pred; }
uint32_t Decoder::register_bytes(const Operand& o) {
  Register r = reg(o);
  return r.type == Type::none || r.type == Type::pred ? 0 : cell_bytes(ptx::bytes_of(r.type));
}

uint32_t Decoder::fill(Fill kind, uint32_t bytes, uint64_t value) {
  bytes = cell_bytes(bytes);
  auto key = std::make_tuple(static_cast<uint8_t>(kind), bytes, value);
  auto it = fills_.find(key);
  if (it != fills_.end()) return it->second;
  uint32_t slot = temp(bytes);
  code_.slots.push_back({slot, static_cast<uint8_t>(bytes), kind, value});
  fills_.emplace(key, slot);
  return slot;
}

uint32_t Decoder::constant(uint64_t value, uint32_t bytes) {
  if (bytes < 8) value &= (uint64_t{1} << (8 * bytes)) - 1;
  return fill(Fill::constant, bytes, value);
}

int64_t Decoder::integer(const Operand& o) const {
  if (o.kind == Operand::Kind::name && o.name == "WARP_SZ") return 32;
  if (o.kind != Operand::Kind::integer) fail("operand must be an integer constant");
  return o.value;
}

uint32_t Decoder::named_value(const Operand& o, uint32_t bytes) {
  for (const Special& s : kSpecials) {
    if (s.name == o.name && s.component == o.component) return fill(s.fill, bytes, s.value);
  }
  if (o.name == "%clock64" || o.name == "%clock" || o.name == "%clock_hi" || o.name == "%globaltimer" ||
      o.name == "%globaltimer_lo" || o.name == "%globaltimer_hi") {
    uint32_t slot = temp(bytes);
    bool global = o.name[1] == 'g';
    Insn& n = emit(bytes == 8 ? (global ? h_clock<uint64_t, CLOCK_REALTIME> : h_clock<uint64_t, CLOCK_MONOTONIC>)
                              : (global ? h_clock<uint32_t, CLOCK_REALTIME> : h_clock<uint32_t, CLOCK_MONOTONIC>));
    n.d = slot;
    n.imm = o.name.substr(o.name.size() - 3) == "_hi" ? 32 : 0;
    return slot;
  }
  if (o.name.substr(0, 7) == "%envreg" || o.name.substr(0, 3) == "%pm") return constant(0, bytes);
  if (o.component) return kNone;
  uint64_t add = static_cast<uint64_t>(o.value);
  if (const Local* l = find_local(o.name)) {
    return fill(l->kernel_param ? Fill::param_address : Fill::local_address, bytes, l->offset + add);
  }
  const Variable* shared = find_shared(o.name);
  const Symbol* s = shared ? nullptr : resolver_.find(o.name);
  if (s && s->kind == Symbol::Kind::shared) shared = s->variable;
  if (shared) {
    bool dynamic = false;
    uint64_t offset = resolver_.shared_offset(*shared, &dynamic);
    return fill(dynamic ? Fill::dynamic_shared_address : Fill::shared_address, bytes, offset + add);
  }
  if (!s) return kNone;
  if (s->kind == Symbol::Kind::variable) return constant(s->address + add, bytes);
  resolver_.function(s->function_index);
  return constant(kFunctionBase + kFunctionStride * s->function_index, bytes);
}

uint32_t Decoder::src(const Operand& o, Type type) {
  uint32_t bytes = ptx::bytes_of(type);
  switch (o.kind) {
    case Operand::Kind::integer:
      if (type == Type::f32 || type == Type::f64) fail("integer constant where a floating point one is needed");
      return read(constant(static_cast<uint64_t>(o.value), bytes));
    case Operand::Kind::f32:
    case Operand::Kind::f64: {
      double d;
      float f;
      if (o.kind == Operand::Kind::f32) {
        f = bits_as<float>(static_cast<uint32_t>(o.value));
        d = f;
        if (bytes == 4) return read(constant(static_cast<uint64_t>(o.value), 4));
      } else {
        d = bits_as<double>(o.value);
        f = static_cast<float>(d);
      }
      if (bytes == 8) {
        return read(constant(o.kind == Operand::Kind::f64 ? static_cast<uint64_t>(o.value) : bits_as<uint64_t>(d), 8));
      }
      if (bytes == 4) return read(constant(bits_as<uint32_t>(f), 4));
      fail("floating point constant for a type of other size");
    }
    case Operand::Kind::name:
      break;
    default:
      fail("operand is not a value");
  }
  Register r = reg(o);
  if (r.type == Type::none) {
    uint32_t slot = named_value(o, bytes);
    if (slot == kNone) fail("unknown name " + str(o.name));
    return read(slot);
  }
  if (r.type == Type::pred) fail("predicate " + str(o.name) + " used as a value");
  if (o.value) fail("register with an offset");
  if (o.second.size()) fail("unexpected '|'");
  if (cell_bytes(ptx::bytes_of(r.type)) != cell_bytes(bytes)) {
    fail("register " + str(o.name) + " does not have the size of ." + std::string(ptx::name_of(type)));
  }
  if (o.negated) fail("unexpected '!'");
  read(r.slot);
  if (o.minus) {
    uint32_t slot = temp(bytes);
    Handler h = type == Type::f32   ? h_negate<float>
                : type == Type::f64 ? h_negate<double>
                : bytes == 8        ? h_negate<int64_t>
                                    : h_negate<int32_t>;
    Insn& n = emit(h);
    n.d = slot;
    n.a = r.slot;
    return slot;
  }
  return r.slot;
}

uint32_t Decoder::dst(const Operand& o, Type type) {
  if (o.kind != Operand::Kind::name || o.negated || o.minus || o.value) fail("destination is not a register");
  if (o.name == "_") return temp(ptx::bytes_of(type));
  Register r = reg(o);
  if (r.type == Type::none || r.type == Type::pred) fail("destination " + str(o.name) + " is not a register");
  if (cell_bytes(ptx::bytes_of(r.type)) != cell_bytes(ptx::bytes_of(type))) {
    fail("register " + str(o.name) + " does not have the size of ." + std::string(ptx::name_of(type)));
  }
  return written(r.slot);
}

uint32_t Decoder::wide_src(const Operand& o, Type type) {
  uint32_t have = register_bytes(o);
  if (have == 8 && ptx::bytes_of(type) < 8) {
    uint32_t slot = temp(4);
    uint32_t from = read(reg(o).slot);
    Insn& n = emit(h_truncate);
    n.d = slot;
    n.a = from;
    return slot;
  }
  return src(o, type);
}

uint32_t Decoder::wide_dst(const Operand& o, Type type) {
  uint32_t have = o.kind == Operand::Kind::name && o.name != "_" ? register_bytes(o) : 0;
  uint32_t bytes = ptx::bytes_of(type);
  if ((have == 8 && bytes < 8) || (have == 4 && bytes < 4 && ptx::is_signed(type))) {
    uint32_t slot = temp(4);
    widen_.push_back({slot, written(reg(o).slot), type, have});
    return slot;
  }
  return dst(o, type);
}

void Decoder::finish_wide() {
  for (const Widen& x : widen_) {
    Insn& n = emit(extend_handler(x.type, x.bytes));
    n.d = x.dst;
    n.a = x.temp;
  }
  widen_.clear();
}

uint32_t Decoder::pred_src(const Operand& o) {
  if (o.kind == Operand::Kind::integer) {
    return read(fill(Fill::constant, 4, o.value ? kFullMask : 0));  // the first lane's word is read as the mask
  }
  Register r = reg(o);
  if (r.type != Type::pred) fail("operand " + str(o.name) + " is not a predicate");
  read(r.slot);
  if (!o.negated) return r.slot;
  uint32_t slot = temp_pred();
  Insn& n = emit(h_not_pred);
  n.d = slot;
  n.a = r.slot;
  return slot;
}

uint32_t Decoder::pred_dst(std::string_view name, uint32_t) {
  if (name == "_") return temp_pred();
  Register* r = find_register(name);
  if (!r || r->type != Type::pred) fail("destination " + str(name) + " is not a predicate");
  return written(r->slot);
}

uint32_t Decoder::pred_dst(const Operand& o) {
  if (o.kind != Operand::Kind::name || o.negated) fail("destination is not a predicate");
  return pred_dst(o.name, o.line);
}

Address Decoder::address(const Operand& o, Space space, uint32_t bytes) {
  if (o.kind != Operand::Kind::address) fail("operand must be an address in brackets");
  if (!o.sub.empty()) fail("address with coordinates");
  Address a;
  a.imm = o.value;
  if (o.name.empty()) {
    a.slot = constant(static_cast<uint64_t>(o.value), 8);
    a.imm = 0;
    return a;
  }
  Operand plain = o;
  plain.kind = Operand::Kind::name;
  plain.value = 0;
  plain.sub.clear();
  Register r = reg(plain);
  if (r.type != Type::none) {
    read(r.slot);
    uint32_t width = r.type == Type::pred ? 0 : ptx::bytes_of(r.type);
    if (width != 4 && width != 8) fail("register " + str(o.name) + " cannot hold an address");
    a.slot = r.slot;
    a.wide = width == 8;
    return a;
  }
  if (const Local* l = find_local(o.name)) {
    if (space == Space::param || space == Space::local) {
      if (o.value < 0 || static_cast<uint64_t>(o.value) + bytes > l->variable->size_bytes()) {
        fail("access outside of " + str(o.name));
      }
      a.offset = l->offset + static_cast<uint32_t>(o.value);
      a.in_params = l->kernel_param;
      a.in_frame = !l->kernel_param;
      if (a.offset % bytes != 0) fail("misaligned access to " + str(o.name));
      return a;
    }
  } else if (space == Space::param) {
    fail("unknown parameter " + str(o.name));
  }
  a.slot = named_value(plain, 8);
  if (a.slot == kNone) fail("unknown name " + str(o.name));
  read(a.slot);
  return a;
}

Formal Decoder::formal(const Operand& o, bool result) {
  if (o.kind == Operand::Kind::name && !o.component) {
    if (const Local* l = find_local(o.name)) {
      if (l->kernel_param) fail("kernel parameter as an argument");
      return {l->offset, static_cast<uint32_t>(l->variable->size_bytes()), false};
    }
  }
  Register r = reg(o);
  if (r.type == Type::pred) fail("predicate as an argument");
  if (r.type != Type::none) return {result ? written(r.slot) : r.slot, ptx::bytes_of(r.type), true};
  if (result) fail("result of a call must be a register or a .param variable");
  return {src(o, Type::b32), 4, true};
}

}  // namespace sg::vm
