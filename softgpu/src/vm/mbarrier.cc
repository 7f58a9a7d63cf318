// mbarrier objects in shared memory. The 64 bits of one are ours to lay out: pending arrivals (20 bits), expected
// arrivals of the next phases (20), bytes still to come (22, signed), the phase's parity (1). The warps of a block run
// on one host thread, so that no host atomics are needed.
#include "access.h"
#include "decode.h"

namespace sg::vm {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;

struct State {
  uint32_t pending, expected;
  int32_t bytes;
  bool phase;
  explicit State(uint64_t v)
      : pending(static_cast<uint32_t>(v) & kMaxCount),
        expected(static_cast<uint32_t>(v >> 20) & kMaxCount),
        bytes(static_cast<int32_t>(static_cast<int64_t>(v << 2) >> 42)),
        phase(v >> 62 & 1) {}
  uint64_t pack() const {
    return uint64_t{pending} | uint64_t{expected} << 20 | (static_cast<uint64_t>(bytes) & 0x3fffff) << 40 |
           static_cast<uint64_t>(phase) << 62;
  }
  void complete() {
    if (pending != 0 || bytes != 0) return;
    phase = !phase;
    pending = expected;
  }
};

enum Action : uint32_t { kInit, kArrive, kNoComplete, kExpect, kCompleteBytes, kTest, kParity, kArriveExpect };

// in.a: address, in.imm: offset, in.c: wide | Where << 8 | Action << 16 | drop << 24; in.b: count, bytes or state (0:
// none, a count of 1); in.d: the state before, or for the tests a predicate (0: not wanted).
void h_mbarrier(Warp& w, const Insn& in, uint32_t mask) {
  uint64_t a[kLanes];
  addresses(w, in.a, in.c & 1, in.imm, a);
  Action action = static_cast<Action>(in.c >> 16 & 0xff);
  bool drop = in.c >> 24;
  if (!check(w, a, mask, 8, 8, static_cast<Where>(in.c >> 8 & 0xff))) return;
  uint32_t ready = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    uint64_t before = load_from<uint64_t>(a[l]);
    State s(before);
    uint32_t n = action != kTest && in.b ? get<uint32_t>(w.regs + in.b, l) : 1;
    uint32_t arriving = action == kArriveExpect ? 1 : n;
    switch (action) {
      case kInit:
        if (n == 0 || n > kMaxCount) return w.raise(Fault::illegal_instruction, a[l], "mbarrier count out of range");
        s = State(uint64_t{n} | uint64_t{n} << 20);
        break;
      case kTest:
        ready |= static_cast<uint32_t>(s.phase != State(get<uint64_t>(w.regs + in.b, l)).phase) << l;
        continue;
      case kParity:
        ready |= static_cast<uint32_t>(s.phase != ((n & 1) != 0)) << l;
        continue;
      case kExpect:
      case kArriveExpect:
        s.bytes += static_cast<int32_t>(n & kMaxCount);
        if (action == kExpect) break;
        [[fallthrough]];
      case kArrive:
      case kNoComplete:
        if (arriving > s.pending) {
          return w.raise(Fault::illegal_instruction, a[l], "more arrivals at an mbarrier than it expects");
        }
        s.pending -= arriving;
        if (drop) s.expected -= std::min(arriving, s.expected);
        if (action == kNoComplete && s.pending == 0) {
          return w.raise(Fault::illegal_instruction, a[l], "arrive.noComplete that completes the phase");
        }
        s.complete();
        break;
      case kCompleteBytes:
        s.bytes -= static_cast<int32_t>(n & kMaxCount);
        s.complete();
        break;
    }
    store_to<uint64_t>(a[l], s.pack());
    if (in.d) put<uint64_t>(w.regs + in.d, l, before);
  }
  if ((action == kTest || action == kParity) && in.d) set_pred(&w.pred(in.d), mask, ready);
}

void h_pending_count(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) { put<uint32_t>(w.regs + in.d, l, State(get<uint64_t>(w.regs + in.a, l)).pending); });
}

void emit_at(Decoder& d, const Operand& where, Action action, uint32_t operand, uint32_t result, bool drop = false) {
  bool shared = !d.mods.one_of({"shared", "shared::cta"}).empty();
  Address a = d.address(where, shared ? Space::shared : Space::generic, 8);
  Insn& n = d.emit(h_mbarrier);
  n.a = a.slot;
  n.imm = a.imm;
  n.b = operand;
  n.d = result;
  n.c = (a.wide ? 1u : 0u) | static_cast<uint32_t>(shared ? Where::shared : Where::generic) << 8 |
        static_cast<uint32_t>(action) << 16 | (drop ? 1u << 24 : 0u);
}

void mbarrier_init(Decoder& d) {
  d.mods.has("init");
  d.mods.has("b64");
  d.expect_operands(2);
  emit_at(d, d.op(0), kInit, d.src(1, Type::u32), 0);
}

void mbarrier_inval(Decoder& d) {
  d.mods.has("inval");
  d.mods.has("b64");
  d.expect_operands(1);
  emit_at(d, d.op(0), kExpect, d.constant(0, 4), 0);  // checks the address, changes nothing
}

void mbarrier_arrive(Decoder& d) {
  d.mods.has("b64");
  bool drop = d.mods.one_of({"arrive", "arrive_drop"}) == "arrive_drop";
  bool expect = d.mods.has("expect_tx"), incomplete = d.mods.has("noComplete");
  d.expect_operands(2, 3);
  if ((expect || incomplete) && d.count() != 3) d.fail("wrong number of operands");
  uint32_t n = d.count() == 3 ? d.src(2, Type::u32) : 0;
  uint32_t to = d.op(0).name == "_" ? 0 : d.dst(0, Type::b64);
  emit_at(d, d.op(1), expect ? kArriveExpect : incomplete ? kNoComplete : kArrive, n, to, drop);
}

void mbarrier_wait(Decoder& d) {
  d.mods.has("b64");
  bool hint = d.mods.one_of({"test_wait", "try_wait"}) == "try_wait", parity = d.mods.has("parity");
  d.expect_operands(3, hint ? 4 : 3);  // the fourth: how long to wait at most
  uint32_t state = d.src(2, parity ? Type::u32 : Type::b64), to = d.pred_dst(d.op(0));
  emit_at(d, d.op(1), parity ? kParity : kTest, state, to);
}

void mbarrier_bytes(Decoder& d) {
  d.mods.has("b64");
  bool complete = d.mods.one_of({"expect_tx", "complete_tx"}) == "complete_tx";
  d.expect_operands(2);
  emit_at(d, d.op(0), complete ? kCompleteBytes : kExpect, d.src(1, Type::u32), 0);
}

void mbarrier_pending(Decoder& d) {
  d.mods.has("pending_count");
  d.mods.has("b64");
  d.expect_operands(2);
  uint32_t a = d.src(1, Type::b64), to = d.dst(0, Type::u32);
  Insn& n = d.emit(h_pending_count);
  n.a = a;
  n.d = to;
}

// The copies have been made by now: without .noinc the arrival only undoes what it added to the count.
void copies_arrive(Decoder& d) {
  for (std::string_view word : {"async", "mbarrier", "arrive", "b64"}) d.mods.has(word);
  bool counted = d.mods.has("noinc");
  d.expect_operands(1);
  emit_at(d, d.op(0), counted ? kArrive : kExpect, counted ? 0 : d.constant(0, 4), 0);
}

constexpr OpRow kRows[] = {
#define SG_OPS_MBARRIER
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows mbarrier_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
