#include "decode.h"

#include <time.h>

#include <algorithm>
#include <unordered_set>

#include "handlers.h"

namespace sg::vm {
namespace {

using ptx::Error;
using ptx::Statement;
using ptx::Variable;

constexpr uint32_t kNone = 0xffffffffu;
constexpr uint32_t kMaxRegisterBytes = 64u << 20;
constexpr uint64_t kMaxLocalBytes = 512 * 1024;  // per thread, as CUDA
constexpr uint32_t kMaxLocalAlign = 4096;        // of what shows in an address

uint32_t cell_bytes(uint32_t bytes) { return bytes <= 4 ? 4 : bytes; }

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

std::string str(std::string_view s) { return std::string(s.substr(0, 200)); }

}  // namespace

const Operand& Decoder::op(size_t i) const {
  if (i >= in_->operands.size()) fail("too few operands");
  return in_->operands[i];
}

void Decoder::expect_operands(size_t least, size_t most) {
  if (count() < least || count() > most) fail("wrong number of operands");
}

std::string Decoder::text() const {
  std::string s(in_->opcode);
  for (std::string_view m : in_->modifiers) s.append(".").append(m);
  return s;
}

void Decoder::fail(const std::string& what) const {
  throw Error(in_ ? in_->line : function_.line, what + (in_ ? " in " + text() : ""));
}

uint32_t Decoder::allocate(uint32_t bytes, uint32_t align) {
  uint64_t at = (uint64_t{code_.register_bytes} + align - 1) / align * align;
  if (at + bytes > kMaxRegisterBytes) fail("function uses too many registers");
  code_.register_bytes = static_cast<uint32_t>(at + bytes);
  return static_cast<uint32_t>(at);
}

uint32_t Decoder::temp(uint32_t bytes) { return allocate(cell_bytes(bytes) * kLanes, 64); }

uint32_t Decoder::temp_pred() {
  if (pred_room_ == 0) {
    next_pred_ = allocate(64, 64);
    pred_room_ = 16;
  }
  --pred_room_;
  next_pred_ += 4;
  return next_pred_ - 4;
}

uint32_t Decoder::allocate_type(Type type) { return type == Type::pred ? temp_pred() : temp(ptx::bytes_of(type)); }

uint32_t Decoder::allocate_local(uint64_t bytes, uint32_t align) {
  uint64_t at = (uint64_t{code_.local_bytes} + align - 1) / align * align;
  if (bytes > kMaxLocalBytes || at + bytes > kMaxLocalBytes) fail("function needs more than 512 KiB of local memory");
  code_.local_bytes = static_cast<uint32_t>(at + bytes);
  code_.local_align = std::clamp(align, code_.local_align, kMaxLocalAlign);
  return static_cast<uint32_t>(at);
}

void Decoder::declare(const Variable& v) {
  Scope& scope = scopes_.back();
  switch (v.space) {
    case Space::reg:
      if (v.register_count) {
        scope.ranges.push_back({v.name, v.register_count, v.type});
      } else if (v.vector_width > 1) {
        for (uint32_t i = 0; i < v.vector_width && i < 4; ++i) {
          std::string name = std::string(v.name) + "." + "xyzw"[i];
          component_names_.push_back(name);
          scope.registers[component_names_.back()] = {v.type, allocate_type(v.type)};
        }
      } else {
        if (v.is_array) throw Error(v.line, "array of registers");
        scope.registers[v.name] = {v.type, allocate_type(v.type)};
      }
      break;
    case Space::local:
    case Space::param: {
      if (v.unsized) throw Error(v.line, "variable " + str(v.name) + " has no size");
      uint32_t offset = allocate_local(v.size_bytes(), v.alignment());
      scope.locals[v.name] = {&v, offset, false};
      break;
    }
    case Space::shared:
      scope.shared[v.name] = &v;
      break;
    default:
      // Variables of static device storage inside a function are laid out by the linker under their own name.
      break;
  }
}

void Decoder::params() {
  if (function_.is_entry) {
    uint64_t at = 0;
    for (const Variable& v : function_.signature.params) {
      if (v.space != Space::param) throw Error(v.line, "kernel parameter in a register");
      at = (at + v.alignment() - 1) / v.alignment() * v.alignment();
      scopes_.back().locals[v.name] = {&v, static_cast<uint32_t>(at), true};
      if (kernel_) {
        kernel_->params.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(v.size_bytes()), v.alignment()});
      }
      at += v.size_bytes();
      if (at > 32764) throw Error(v.line, "kernel parameters take more than 32764 bytes");
    }
    if (kernel_) kernel_->param_bytes = static_cast<uint32_t>(at);
    return;
  }
  auto add = [&](const std::vector<Variable>& from, std::vector<Formal>* to) {
    for (const Variable& v : from) {
      declare(v);
      if (v.space == Space::reg) {
        to->push_back({scopes_.back().registers.at(v.name).slot, ptx::bytes_of(v.type), true});
      } else {
        to->push_back({scopes_.back().locals.at(v.name).offset, static_cast<uint32_t>(v.size_bytes()), false});
      }
    }
  };
  add(function_.signature.returns, &code_.results);
  add(function_.signature.params, &code_.formals);
}

void Decoder::scan_labels() {
  std::vector<uint32_t> open = {0};
  uint32_t next = 1;
  for (const Statement& s : function_.body) {
    switch (s.kind) {
      case Statement::Kind::open:
        open.push_back(next++);
        break;
      case Statement::Kind::close:
        open.pop_back();
        break;
      case Statement::Kind::label: {
        auto [it, fresh] = labels_.emplace(std::make_pair(open.back(), s.name), label_pc_.size());
        if (!fresh) throw Error(s.line, "label " + str(s.name) + " is defined twice");
        label_pc_.push_back(kNone);
        break;
      }
      case Statement::Kind::branch_targets:
        target_lists_[s.name] = s.labels;
        break;
      case Statement::Kind::prototype:
        prototypes_[s.name] = &function_.prototypes[s.index];
        break;
      default:
        break;
    }
  }
}

void Decoder::run() {
  component_names_.reserve(4 * function_.variables.size() + 64);
  allocate(64, 64);  // offset 0 means "none"
  scan_labels();
  scopes_.emplace_back();
  next_scope_ = 1;
  params();
  for (const Statement& s : function_.body) {
    switch (s.kind) {
      case Statement::Kind::instruction:
        decode(function_.instructions[s.index]);
        break;
      case Statement::Kind::variable:
        declare(function_.variables[s.index]);
        break;
      case Statement::Kind::open:
        scopes_.emplace_back();
        scopes_.back().id = next_scope_++;
        break;
      case Statement::Kind::close:
        scopes_.pop_back();
        break;
      case Statement::Kind::label:
        label_pc_[labels_.at({scopes_.back().id, s.name})] = static_cast<uint32_t>(code_.insns.size());
        break;
      default:
        break;
    }
  }
  in_ = nullptr;
  if (function_.is_entry) hoist();
  Insn end;
  end.kind = Kind::ret;
  end.line = code_.insns.empty() ? function_.line : code_.insns.back().line;
  code_.insns.push_back(end);
  for (auto [insn, id] : jumps_) code_.insns[insn].imm = label_pc_[id];
  for (auto [index, id] : table_jumps_) code_.aux[index] = label_pc_[id];
  for (uint32_t pc : label_pc_) code_.insns[pc].leader = true;
  for (size_t i = 0; i + 1 < code_.insns.size(); ++i) {
    if (code_.insns[i].kind != Kind::data) code_.insns[i + 1].leader = true;
    if (code_.insns[i].kind == Kind::sync || code_.insns[i].kind == Kind::warp_barrier) code_.insns[i].leader = true;
  }
  share_plans();
  for (size_t i = code_.insns.size(); i-- > 0;) {
    Insn& x = code_.insns[i];
    if (x.kind != Kind::data || !x.fn || x.guard != kNoGuard) continue;
    bool joined = i + 1 < code_.insns.size() && !code_.insns[i + 1].leader;
    x.run = 1 + (joined ? code_.insns[i + 1].run : 0);
  }
  std::stable_sort(code_.slots.begin(), code_.slots.end(),
                   [](const Slot& a, const Slot& b) { return rank_of(a.fill) < rank_of(b.fill); });
  for (const Slot& x : code_.slots) {
    code_.launch_slots += rank_of(x.fill) < 1;
    code_.warp_slots += rank_of(x.fill) < 2;
    code_.block_slots += rank_of(x.fill) < 3;
  }
  code_.register_bytes = (code_.register_bytes + 63) / 64 * 64;
  code_.local_bytes = (code_.local_bytes + code_.local_align - 1) / code_.local_align * code_.local_align;
  code_.decoded = true;
}

uint32_t Decoder::written(uint32_t slot) {
  writes_.push_back(slot);
  return slot;
}

uint32_t Decoder::read(uint32_t slot) {
  reads_.push_back(slot);
  return slot;
}

void Decoder::plan_access(const Insn& insn, const Address& address, uint32_t bytes, Handler again) {
  if (bytes > 8) return;
  accesses_.push_back({static_cast<uint32_t>(&insn - code_.insns.data()), address.slot, bytes, address.wide, again});
}

/// Whether the instruction may be carried out once instead of each time when its operands never change.
bool Decoder::is_pure() const {
  if (!in_->guard.empty()) return false;
  for (std::string_view m : in_->modifiers) {
    if (m == "cc") return false;  // the carry is no operand
  }
  if (in_->opcode == "ld") return parameter_load_;
  static constexpr std::string_view kPure[] = {"mov", "cvta", "add", "sub", "mul", "mad", "shl", "shr", "and",  "or",
                                               "xor", "not",  "neg", "min", "max", "div", "rem", "cvt", "setp", "selp"};
  return std::find(std::begin(kPure), std::end(kPure), in_->opcode) != std::end(kPure);
}

/// Takes out of a kernel what has the same value each time: pure instructions on constants, parameters and what else
/// does not change during a launch go to the prologue, moves of special registers become slots of their own. Only for
/// registers that a single instruction writes: any use then sees its value, or one that PTX leaves undefined.
void Decoder::hoist() {
  std::unordered_map<uint32_t, uint32_t> definitions;
  for (uint32_t slot : writes_) ++definitions[slot];
  std::unordered_map<uint32_t, Slot> filled;
  for (const Slot& s : code_.slots) filled.emplace(s.offset, s);
  std::unordered_map<uint32_t, bool> invariant;
  std::vector<bool> gone(code_.insns.size());
  for (const Unit& u : units_) {
    if (!u.pure || u.first == u.end || u.from == u.to) continue;
    bool single = true, fixed = true;
    for (uint32_t i = u.from; i < u.to; ++i) single &= definitions[writes_[i]] == 1;
    for (uint32_t i = u.reads_from; i < u.reads_to; ++i) {
      auto f = filled.find(reads_[i]);
      fixed &= (f != filled.end() && rank_of(f->second.fill) <= 1) || invariant.count(reads_[i]) != 0;
    }
    if (!single) continue;
    auto source = u.reads_to - u.reads_from == 1 ? filled.find(reads_[u.reads_from]) : filled.end();
    if (fixed) {
      for (uint32_t i = u.from; i < u.to; ++i) invariant[writes_[i]] = true;
      code_.prologue.insert(code_.prologue.end(), code_.insns.begin() + u.first, code_.insns.begin() + u.end);
    } else if (u.move && u.end - u.first == 1 && u.to - u.from == 1 && source != filled.end()) {
      Slot copy = source->second;
      copy.offset = writes_[u.from];
      code_.slots.push_back(copy);
    } else {
      continue;
    }
    std::fill(gone.begin() + u.first, gone.begin() + u.end, true);
  }
  // Special registers of which there are only copies left need not be filled in for each warp and block.
  std::unordered_set<uint32_t> used;
  for (const Unit& u : units_) {
    if (u.first == u.end || !gone[u.first]) used.insert(reads_.begin() + u.reads_from, reads_.begin() + u.reads_to);
  }
  for (const auto& entry : filled) {
    uint32_t slot = entry.first;
    if (rank_of(entry.second.fill) < 2 || used.count(slot)) continue;
    code_.slots.erase(
        std::find_if(code_.slots.begin(), code_.slots.end(), [slot](const Slot& s) { return s.offset == slot; }));
  }
  if (std::find(gone.begin(), gone.end(), true) != gone.end()) drop(gone);
}

void Decoder::drop(const std::vector<bool>& gone) {
  std::vector<uint32_t> place(gone.size() + 1);  // old index -> new one, that of what follows if it is gone
  std::vector<Insn> kept;
  for (size_t i = 0; i < gone.size(); ++i) {
    place[i] = static_cast<uint32_t>(kept.size());
    if (!gone[i]) kept.push_back(code_.insns[i]);
  }
  place[gone.size()] = static_cast<uint32_t>(kept.size());
  code_.insns = std::move(kept);
  for (uint32_t& pc : label_pc_) pc = place[pc];
  for (auto& [insn, id] : jumps_) insn = place[insn];
  for (Access& a : accesses_) a.insn = place[a.insn];
  for (Unit& u : units_) {
    u.first = place[u.first];
    u.end = place[u.end];
  }
}

/// Loads and stores at the same register with nothing in between that could change it, or the lanes that run, make its
/// plan once. A guarded one may use a plan, since its lanes are among those that have made it, but makes none.
void Decoder::share_plans() {
  struct Live {
    uint32_t slot = kNone, bytes = 0;
    bool wide = false;
  } live[kPlans];
  uint32_t next = 0;
  auto access = accesses_.begin();
  for (const Unit& u : units_) {
    for (uint32_t i = u.first; i < u.end; ++i) {
      Insn& x = code_.insns[i];
      if (x.leader) std::fill(live, live + kPlans, Live{});
      if (access == accesses_.end() || access->insn != i) continue;
      uint32_t p = 0;
      while (p < kPlans &&
             !(live[p].slot == access->slot && live[p].bytes == access->bytes && live[p].wide == access->wide)) {
        ++p;
      }
      if (p < kPlans) {
        x.plan = static_cast<uint8_t>(p + 1);
        x.plan_made = true;
        if (access->again) x.fn = access->again;
      } else if (x.guard == kNoGuard) {
        p = next++ % kPlans;
        live[p].slot = access->slot;
        live[p].bytes = access->bytes;
        live[p].wide = access->wide;
        x.plan = static_cast<uint8_t>(p + 1);
      }
      ++access;
    }
    for (uint32_t i = u.from; i < u.to; ++i) {
      for (Live& l : live) {
        if (l.slot == writes_[i]) l = Live{};
      }
    }
  }
}

void Decoder::decode(const ptx::Instruction& i) {
  in_ = &i;
  Unit unit{};
  unit.first = static_cast<uint32_t>(code_.insns.size());
  unit.from = static_cast<uint32_t>(writes_.size());
  unit.reads_from = static_cast<uint32_t>(reads_.size());
  parameter_load_ = false;
  const OpRow& row = match_row(i, &mods);
  row.build(*this);
  if (!widen_.empty()) fail("internal error: unfinished wide operand");
  if (const std::string_view* word = mods.unused()) fail("unsupported modifier ." + str(*word));
  unit.end = static_cast<uint32_t>(code_.insns.size());
  unit.to = static_cast<uint32_t>(writes_.size());
  unit.reads_to = static_cast<uint32_t>(reads_.size());
  unit.pure = is_pure();
  unit.move = i.opcode == "mov";
  units_.push_back(unit);
}

Insn& Decoder::emit(Handler fn, Kind kind) {
  Insn n;
  n.fn = fn;
  n.kind = kind;
  n.line = in_->line;
  if (!in_->guard.empty()) {
    Register* r = find_register(in_->guard);
    if (!r || r->type != Type::pred) fail("guard " + str(in_->guard) + " is not a predicate");
    n.guard = r->slot;
    n.guard_negated = in_->guard_negated;
  }
  code_.insns.push_back(n);
  return code_.insns.back();
}

uint32_t Decoder::aux(const std::vector<uint32_t>& list) {
  uint32_t at = static_cast<uint32_t>(code_.aux.size());
  code_.aux.insert(code_.aux.end(), list.begin(), list.end());
  return at;
}

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

uint32_t Decoder::label(const Operand& o) {
  for (size_t s = scopes_.size(); s-- > 0;) {
    auto it = labels_.find({scopes_[s].id, o.name});
    if (it != labels_.end()) return it->second;
  }
  fail("unknown label " + str(o.name));
}

std::vector<uint32_t> Decoder::branch_targets(std::string_view name) {
  auto it = target_lists_.find(name);
  if (it == target_lists_.end()) fail("unknown list of branch targets " + str(name));
  std::vector<uint32_t> ids;
  for (std::string_view l : it->second) {
    Operand o;
    o.name = l;
    ids.push_back(label(o));
  }
  return ids;
}

void Decoder::jump(Insn& insn, uint32_t label_id) {
  jumps_.emplace_back(static_cast<uint32_t>(&insn - code_.insns.data()), label_id);
}

void Decoder::jump_table(uint32_t aux_index, const std::vector<uint32_t>& label_ids) {
  for (uint32_t i = 0; i < label_ids.size(); ++i) table_jumps_.emplace_back(aux_index + i, label_ids[i]);
}

const ptx::Signature* Decoder::prototype(std::string_view name) const {
  auto it = prototypes_.find(name);
  return it == prototypes_.end() ? nullptr : it->second;
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
