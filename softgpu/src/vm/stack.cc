// alloca, stacksave, stackrestore: memory of a frame whose size is known only when it runs.
#include <cstdlib>
#include <new>

#include "decode.h"
#include "handlers.h"

namespace sg::vm {
namespace {

/// False after raising a fault. The bytes are 0 at first: nothing of another program may show in them.
bool reserve_stack(Warp& w) {
  Frame& f = *w.frame;
  if (f.stack) return true;
  f.stack.reset(static_cast<uint8_t*>(std::calloc(kLanes, kStackBytes)));
  if (!f.stack) {
    w.raise(Fault::launch_failed, 0, "stack overflow: no memory for alloca");
    return false;
  }
  return true;
}

// in.a: size, in.imm: alignment, in.d: address, in.n: bytes of a lane of both.
void h_alloca(Warp& w, const Insn& in, uint32_t mask) {
  if (!reserve_stack(w)) return;
  Frame& f = *w.frame;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    uint64_t size = in.n == 8 ? get<uint64_t>(w.regs + in.a, l) : get<uint32_t>(w.regs + in.a, l);
    uint64_t align = static_cast<uint64_t>(in.imm), base = reinterpret_cast<uint64_t>(f.stack.get()) + l * kStackBytes;
    uint64_t at = (base + f.stack_used[l] + align - 1) / align * align;
    if (size > kStackBytes || at - base + size > kStackBytes) {
      return w.raise(Fault::launch_failed, 0, "stack overflow: alloca beyond 64 KiB in one call");
    }
    f.stack_used[l] = static_cast<uint32_t>(at - base + size);
    if (in.n == 8) {
      put<uint64_t>(w.regs + in.d, l, at);
    } else {
      put<uint32_t>(w.regs + in.d, l, static_cast<uint32_t>(at));
    }
  }
}

void h_stacksave(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    if (in.n == 8) {
      put<uint64_t>(w.regs + in.d, l, w.frame->stack_used[l]);
    } else {
      put<uint32_t>(w.regs + in.d, l, w.frame->stack_used[l]);
    }
  });
}

void h_stackrestore(Warp& w, const Insn& in, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    uint64_t to = in.n == 8 ? get<uint64_t>(w.regs + in.a, l) : get<uint32_t>(w.regs + in.a, l);
    if (to > w.frame->stack_used[l]) return w.raise(Fault::launch_failed, to, "stackrestore of what was not saved");
    w.frame->stack_used[l] = static_cast<uint32_t>(to);
  });
}

void alloca_(Decoder& d) {
  d.expect_operands(2, 3);
  Type t = d.mods.type();
  if (t != Type::u64) d.fail("local addresses have 64 bits on this machine");
  int64_t align = d.count() == 3 ? d.integer(d.op(2)) : 8;
  if (align < 1 || align > 4096 || (align & (align - 1))) d.fail("alignment is not a power of two up to 4096");
  uint32_t size = d.src(1, t), to = d.dst(0, t);
  Insn& n = d.emit(h_alloca);
  n.a = size;
  n.d = to;
  n.imm = align;
  n.n = 8;
}

void stacksave(Decoder& d) {
  d.expect_operands(1);
  Type t = d.mods.type();
  uint32_t to = d.dst(0, t);
  Insn& n = d.emit(h_stacksave);
  n.d = to;
  n.n = static_cast<uint8_t>(ptx::bytes_of(t));
}

void stackrestore(Decoder& d) {
  d.expect_operands(1);
  Type t = d.mods.type();
  uint32_t a = d.src(0, t);
  Insn& n = d.emit(h_stackrestore);
  n.a = a;
  n.n = static_cast<uint8_t>(ptx::bytes_of(t));
}

constexpr OpRow kRows[] = {
#define SG_OPS_STACK
#define SG_OP(...) {__VA_ARGS__},
#include "../ptx/ops.def"
};

}  // namespace

OpRows stack_rows() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

}  // namespace sg::vm
