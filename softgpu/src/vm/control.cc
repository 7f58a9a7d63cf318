// Branches, calls, barriers.
#include "decode.h"
#include "handlers.h"

namespace sg::vm {
namespace {

void bra(Decoder& d) {
  d.expect_operands(1);
  uint32_t target = d.label(d.op(0));
  d.jump(d.emit(nullptr, Kind::branch), target);
}

// in.a: slot of the index, in.e: aux list of targets, in.imm: how many.
void brx(Decoder& d) {
  d.mods.has("idx");
  d.expect_operands(2);
  std::vector<uint32_t> targets = d.branch_targets(d.op(1).name);
  uint32_t index = d.src(0, Type::u32);
  uint32_t list = d.aux(std::vector<uint32_t>(targets.size()));
  d.jump_table(list, targets);
  Insn& n = d.emit(nullptr, Kind::branch_index);
  n.a = index;
  n.e = list;
  n.imm = static_cast<int64_t>(targets.size());
}

uint64_t bytes_of(const ptx::Variable& v) { return v.size_bytes(); }

void check_signature(Decoder& d, const std::vector<Formal>& have, const std::vector<ptx::Variable>& want,
                     const char* what) {
  if (have.size() != want.size()) d.fail(std::string("wrong number of ") + what);
  for (size_t i = 0; i < have.size(); ++i) {
    uint64_t bytes = bytes_of(want[i]);
    bool immediate = have[i].in_register && bytes <= 4;
    if (have[i].bytes != bytes && !immediate) d.fail(std::string("size mismatch in ") + what);
  }
}

// in.imm: index into code.calls.
void call(Decoder& d) {
  size_t at = 0;
  CallSite site;
  auto add = [&](const Operand& list, std::vector<Formal>* to, bool result) {
    for (const Operand& o : list.sub) to->push_back(d.formal(o, result));
  };
  if (d.op(0).kind == Operand::Kind::list) add(d.op(at++), &site.results, true);
  const Operand& target = d.op(at++);
  if (target.kind != Operand::Kind::name) d.fail("call of something that is not a function");
  if (at < d.count() && d.op(at).kind == Operand::Kind::list) add(d.op(at++), &site.args, false);
  std::string_view list;
  if (at < d.count()) list = d.op(at++).name;
  if (at != d.count()) d.fail("wrong number of operands");
  Kind kind = Kind::call;
  if (d.is_register(target)) {
    kind = Kind::call_indirect;
    site.target_slot = d.src(target, Type::u64);
    if (const ptx::Signature* s = d.prototype(list)) {
      check_signature(d, site.args, s->params, "arguments");
      check_signature(d, site.results, s->returns, "results");
    }
    d.resolver().uses_indirect_calls();
  } else {
    const Symbol* s = d.symbol(target.name);
    if (!s || s->kind != Symbol::Kind::function) d.fail("unknown function " + std::string(target.name));
    site.callee = d.resolver().function(s->function_index);
    if (!site.callee) {
      site.builtin = builtin_named(target.name);
      if (site.builtin == kBuiltinNone) d.fail("unresolved external function " + std::string(target.name));
      kind = Kind::builtin;
    }
  }
  d.code().calls.push_back(std::move(site));
  d.emit(nullptr, kind).imm = static_cast<int64_t>(d.code().calls.size() - 1);
}

void ret(Decoder& d) {
  d.expect_operands(0);
  d.emit(nullptr, Kind::ret);
}
void exit_(Decoder& d) {
  d.expect_operands(0);
  d.emit(nullptr, Kind::exit);
}
void trap(Decoder& d) {
  d.expect_operands(0);
  d.emit(nullptr, Kind::trap);
}
void nothing(Decoder&) {}

void h_fence(Warp&, const Insn&, uint32_t) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void fence(Decoder& d) {
  d.expect_operands(0);
  d.emit(h_fence);
}

void nanosleep_(Decoder& d) { d.expect_operands(1); }

// in.a: slot of the barrier's number, in.b: slot of the number of threads (0: all); in.n: 0 sync, 1 arrive, 2 red;
// in.imm: 1 popc, 2 and, 3 or; in.c: predicate; in.d: result, a predicate but for popc.
void bar(Decoder& d) {
  std::string_view what = d.mods.one_of({"sync", "arrive", "red"});
  std::string_view op = d.mods.one_of({"popc", "and", "or"});
  if ((what == "red") == op.empty()) d.fail("reduction and operation do not match");
  size_t at = 0;
  uint32_t result = 0, pred = 0;
  if (what == "red") result = op == "popc" ? d.dst(at++, Type::u32) : d.pred_dst(d.op(at++));
  uint32_t number = d.src(at++, Type::u32), threads = 0;
  size_t left = d.count() - at;
  if (what == "red") {
    if (left == 2) threads = d.src(at++, Type::u32);
    pred = d.pred_src(d.op(at++));
  } else if (left == 1) {
    threads = d.src(at++, Type::u32);
  }
  if (at != d.count() || (what == "arrive" && !threads)) d.fail("wrong number of operands");
  Insn& n = d.emit(nullptr, Kind::barrier);
  n.a = number;
  n.b = threads;
  n.c = pred;
  n.d = result;
  n.n = what == "sync" ? 0 : what == "arrive" ? 1 : 2;
  n.imm = op == "popc" ? 1 : op == "and" ? 2 : 3;
}

// in.e: slot of the member mask.
void bar_warp(Decoder& d) {
  d.mods.has("warp");
  d.mods.has("sync");
  d.expect_operands(1);
  uint32_t members = d.src(0, Type::b32);
  d.emit(nullptr, Kind::warp_barrier).e = members;
}

constexpr OpRow kRows[] = {
#define SG_OPS_CONTROL
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows control_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
