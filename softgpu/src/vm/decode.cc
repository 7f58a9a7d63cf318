#include "decode.h"

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

}  // namespace sg::vm
