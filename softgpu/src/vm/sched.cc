// Groups of lanes, warps, barriers, blocks.
//
// The lanes of a warp that are at the same instruction of the same frame form a group. The group in the deepest call
// at the lowest pc runs first and joins others where it meets them, so divergent code reconverges without an analysis
// of the control flow. Every kFairSteps steps the group that has waited longest gets a turn of kTurnSteps, so that a
// group may wait in a loop for what another one does.
#include <sys/mman.h>

#include <algorithm>

#include "handlers.h"

namespace sg::vm {

namespace {

constexpr uint64_t kFairSteps = 4096;
constexpr uint64_t kTurnSteps = 1024;
constexpr uint64_t kSliceSteps = 2048;  // of one warp before the next of its block
constexpr uint32_t kMaxDepth = 4096;
constexpr uint64_t kMaxFrameBytes = uint64_t{256} << 20;  // of one warp

bool better(const Group& a, const Group& b) {
  if (a.frame->depth != b.frame->depth) return a.frame->depth > b.frame->depth;
  return a.pc < b.pc;
}

bool one_lane(const Warp& w) { return w.block->launch->one_lane; }

/// Adds lanes to the group that is already there, or makes one.
void add_group(Warp& w, uint32_t pc, uint32_t mask, Frame* frame) {
  for (uint32_t i = 0; i < w.groups.size() && !one_lane(w); ++i) {
    Group& g = w.groups[i];
    if (i != w.current && g.state != GroupState::barrier && g.pc == pc && g.frame == frame) {
      g.mask |= mask;
      g.state = GroupState::ready;
      return;
    }
  }
  Group g;
  g.pc = pc;
  g.mask = mask;
  g.frame = frame;
  g.last_run = w.steps;
  w.groups.push_back(g);
}

void erase_group(Warp& w, uint32_t i) {
  w.groups[i] = w.groups.back();
  w.groups.pop_back();
}

/// The current group takes in those that are at the same place.
void merge_current(Warp& w) {
  for (uint32_t i = 0; i < w.groups.size();) {
    Group &c = w.groups[w.current], &g = w.groups[i];
    if (i == w.current || g.state == GroupState::barrier || g.pc != c.pc || g.frame != c.frame) {
      ++i;
      continue;
    }
    c.mask |= g.mask;
    uint32_t last = static_cast<uint32_t>(w.groups.size()) - 1;
    erase_group(w, i);
    if (w.current == last) w.current = i;
  }
}

/// Chooses w.current among the ready groups. *forced: no group is ready, so one that waits for lanes of its member
/// mask goes on without them. False if all groups are at block barriers (or gone).
bool choose(Warp& w, uint64_t* fair_at, uint64_t* turn_until, bool* forced) {
  *forced = false;
  uint32_t best = ~0u, oldest = ~0u, waiting = ~0u, ready = 0;
  for (uint32_t i = 0; i < w.groups.size(); ++i) {
    const Group& g = w.groups[i];
    if (g.state == GroupState::waiting) {
      if (waiting == ~0u || better(g, w.groups[waiting])) waiting = i;
      continue;
    }
    if (g.state != GroupState::ready) continue;
    ++ready;
    if (best == ~0u || better(g, w.groups[best])) best = i;
    if (oldest == ~0u || g.last_run < w.groups[oldest].last_run) oldest = i;
  }
  if (best == ~0u) {
    if (waiting == ~0u) return false;
    *forced = true;
    w.groups[waiting].state = GroupState::ready;
    w.current = waiting;
    return true;
  }
  if (ready > 1 && w.steps < *turn_until && w.current < w.groups.size() &&
      w.groups[w.current].state == GroupState::ready) {
    return true;
  }
  if (ready > 1 && w.steps - *fair_at > kFairSteps) {
    *fair_at = w.steps;
    *turn_until = w.steps + kTurnSteps;
    best = oldest;
  }
  w.current = best;
  return true;
}

/// The same where each lane runs by itself: the current one goes on while it can, then the next in the order of lanes.
bool choose_lane(Warp& w, bool* forced) {
  *forced = false;
  auto lane = [](const Group& g) { return static_cast<uint32_t>(__builtin_ctz(g.mask)); };
  bool turn = w.steps - w.switched_at > kFairSteps;
  if (!turn && w.current < w.groups.size() && w.groups[w.current].state == GroupState::ready) return true;
  uint32_t next = ~0u, waiting = ~0u, distance = kLanes;
  for (uint32_t i = 0; i < w.groups.size(); ++i) {
    const Group& g = w.groups[i];
    if (g.state == GroupState::waiting && (waiting == ~0u || better(g, w.groups[waiting]))) waiting = i;
    uint32_t ahead = (lane(g) - w.last_lane - 1) % kLanes;
    if (g.state != GroupState::ready || ahead >= distance) continue;
    distance = ahead;
    next = i;
  }
  *forced = next == ~0u;
  if (*forced) next = waiting;
  if (next == ~0u) return false;
  w.groups[next].state = GroupState::ready;
  w.switched_at = w.steps;
  w.current = next;
  w.last_lane = lane(w.groups[next]);
  return true;
}

/// Makes a group of each lane of the current one; the lowest stays the current one.
void split_current(Warp& w) {
  Group part = w.groups[w.current];
  uint32_t rest = part.mask & (part.mask - 1);
  w.groups[w.current].mask ^= rest;
  for (; rest; rest &= rest - 1) {
    part.mask = rest & -rest;
    w.groups.push_back(part);
  }
}

/// Lets the waiting threads go if enough have arrived.
void try_release(Block& b, uint32_t id) {
  Barrier& bar = b.barriers[id];
  if (bar.expected) {
    // A warp counts as a whole once all its living lanes are there.
    uint32_t here = bar.arrived;
    for (const Warp& w : b.warps) {
      if (w.arrived[id]) here += static_cast<uint32_t>(__builtin_popcount(w.arrived[id] | ~w.alive));
    }
    if (here < bar.expected) return;
  } else if (bar.arrived == 0 || bar.arrived < b.live_threads) {
    return;
  }
  b.arrivals -= bar.arrivals;
  for (Warp& w : b.warps) {
    w.arrived[id] = 0;
    for (Group& g : w.groups) {
      if (g.state != GroupState::barrier || g.barrier != id) continue;
      g.state = GroupState::ready;
      w.parked &= ~g.mask;
      const Insn& in = g.frame->code->insns[g.pc - 1];
      if (in.n != 2) continue;
      uint8_t* regs = g.frame->regs;
      if (in.imm == 1) {
        for_lanes(g.mask, [&](uint32_t l) { put<uint32_t>(regs + in.d, l, bar.votes_count); });
      } else {
        uint32_t all = (in.imm == 2 ? bar.votes_and : bar.votes_or) ? kFullMask : 0;
        set_pred(reinterpret_cast<uint32_t*>(regs + in.d), g.mask, all);
      }
    }
  }
  bar = {};
}

void release_all(Block& b) {
  if (b.arrivals == 0) return;
  for (uint32_t id = 0; id < kBarriers; ++id) try_release(b, id);
}

uint32_t guarded(const Warp& w, const Insn& in, uint32_t mask) {
  if (in.guard == kNoGuard) return mask;
  uint32_t p = w.pred(in.guard);
  return mask & (in.guard_negated ? ~p : p);
}

void copy_formal(uint32_t mask, Frame* from, const Formal& f, Frame* to, const Formal& t) {
  uint32_t bytes = std::min(f.bytes, t.bytes);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    auto place = [l](Frame* frame, const Formal& x) {
      return x.in_register ? frame->regs + x.offset +
                                 l * (x.bytes == 8    ? 8
                                      : x.bytes == 16 ? 16
                                                      : 4)
                           : frame->local + uint64_t{l} * frame->code->local_bytes + x.offset;
    };
    std::memcpy(place(to, t), place(from, f), bytes);
  }
}

bool same_shape(const std::vector<Formal>& a, const std::vector<Formal>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].bytes != b[i].bytes && !(a[i].in_register && b[i].in_register)) return false;
  }
  return true;
}

/// Moves lanes of the current group into a new frame. The group in w.current must hold exactly these lanes.
bool enter(Warp& w, const CallSite& site, const Code& callee, uint32_t mask, Group* g) {
  // A caller may ask for a result of a function that gives none: linkers let C functions be declared so.
  if (!same_shape(site.args, callee.formals) ||
      (!callee.results.empty() && !same_shape(site.results, callee.results))) {
    w.raise(Fault::launch_failed, 0, "call of " + callee.name + " with parameters of other sizes");
    return false;
  }
  Frame* caller = g->frame;
  Frame* f = make_frame(w, callee, mask, caller);
  if (!f) return false;
  f->site = &site;
  f->return_pc = g->pc + 1;
  for (size_t i = 0; i < site.args.size(); ++i) copy_formal(mask, caller, site.args[i], f, callee.formals[i]);
  g->frame = f;
  g->pc = 0;
  return true;
}

/// Leaves lanes at pc + 1 and keeps `mask` in the current group.
void leave_behind(Warp& w, uint32_t mask) {
  Group& g = w.groups[w.current];
  uint32_t rest = g.mask & ~mask;
  if (!rest) return;
  uint32_t pc = g.pc + 1;
  Frame* frame = g.frame;
  g.mask = mask;
  add_group(w, pc, rest, frame);
}

void exit_lanes(Warp& w, uint32_t mask) {
  Group& g = w.groups[w.current];
  w.block->live_threads -= static_cast<uint32_t>(__builtin_popcount(w.alive & mask));
  w.alive &= ~mask;
  for (Frame* f = g.frame; f;) {
    Frame* parent = f->parent;
    f->lanes &= ~mask;
    if (!f->lanes) release_frame(w, f);
    f = parent;
  }
  g.mask &= ~mask;
  if (!g.mask) erase_group(w, w.current);
}

class Runner {
 public:
  Runner(Warp& w, uint64_t budget) : w_(w), end_(w.steps + budget) {}

  /// Runs till the budget is used up, nothing is ready, or a fault.
  void run() {
    while (w_.fault == Fault::none && w_.steps < end_) {
      if (one_lane(w_)) {
        if (!choose_lane(w_, &forced_)) return;
        const Group& g = w_.groups[w_.current];
        // Where lanes exchange values they must be together; behind it each is alone again.
        g.frame->code->insns[g.pc].kind == Kind::sync ? merge_current(w_) : split_current(w_);
      } else {
        if (!choose(w_, &w_.switched_at, &w_.turn_until, &forced_)) return;
        merge_current(w_);
      }
      load();
      run_group();
    }
    if (w_.fault != Fault::none && at_) {
      w_.fault_line = at_->line;
      w_.fault_function = at_code_->name;
    }
  }

 private:
  void load() {
    Group& g = w_.groups[w_.current];
    g.state = GroupState::ready;
    w_.frame = g.frame;
    w_.regs = g.frame->regs;
    w_.mask = g.mask;
    at_code_ = g.frame->code;
  }

  /// Runs the current group until another may have to run.
  void run_group() {
    uint32_t pc = w_.groups[w_.current].pc;
    const Insn* insns = w_.frame->code->insns.data();
    bool fresh = true;
    for (;;) {
      const Insn& in = insns[pc];
      at_ = &in;
      if (in.leader && !fresh && (w_.groups.size() > 1 || w_.steps >= end_)) break;
      fresh = false;
      if (in.run) {
        w_.steps += in.run;
        if (!run_plain(&in)) break;
        pc += in.run;
        continue;
      }
      ++w_.steps;
      uint32_t mask = guarded(w_, in, w_.mask);
      if (in.kind == Kind::data) {
        if (mask && in.fn) {
          in.fn(w_, in, mask);
          if (__builtin_expect(w_.fault != Fault::none, 0)) break;
        }
        ++pc;
        continue;
      }
      if (in.kind == Kind::branch && (mask == w_.mask || mask == 0)) {
        pc = mask ? static_cast<uint32_t>(in.imm) : pc + 1;
        if (w_.steps >= end_) break;
        continue;
      }
      w_.groups[w_.current].pc = pc;
      if (mask == 0) {
        ++pc;
        if (one_lane(w_)) break;
        continue;
      }
      if (in.kind == Kind::sync && together(in, mask)) {
        in.fn(w_, in, mask);
        if (w_.fault != Fault::none) break;
        ++pc;
        if (one_lane(w_)) break;
        continue;
      }
      control(in, mask);
      return;
    }
    Group& g = w_.groups[w_.current];
    g.pc = pc;
    g.last_run = w_.steps;
  }

  /// The instructions of one run, without a look at anything but faults. False after one.
  bool run_plain(const Insn* in) {
    Warp& w = w_;
    uint32_t mask = w.mask;
    for (const Insn* end = in + in->run; in != end; ++in) {
      in->fn(w, *in, mask);
      if (__builtin_expect(w.fault != Fault::none, 0)) {
        at_ = in;
        return false;
      }
    }
    return true;
  }

  /// True if all living lanes that the instruction's member mask names are in `mask`, or need not be waited for.
  bool together(const Insn& in, uint32_t mask) {
    if (forced_) {
      forced_ = false;
      return true;
    }
    uint32_t members = get<uint32_t>(w_.regs + in.e, static_cast<uint32_t>(__builtin_ctz(mask))) & w_.alive;
    members_ = members;
    return (members & ~mask) == 0;
  }

  void control(const Insn& in, uint32_t mask) {
    Group* g = &w_.groups[w_.current];
    g->last_run = w_.steps;
    uint32_t pc = g->pc;
    switch (in.kind) {
      case Kind::branch: {
        leave_behind(w_, mask);
        w_.groups[w_.current].pc = static_cast<uint32_t>(in.imm);
        break;
      }
      case Kind::branch_index:
        branch_index(in, mask);
        break;
      case Kind::call: {
        const CallSite& site = w_.frame->code->calls[static_cast<size_t>(in.imm)];
        leave_behind(w_, mask);
        enter(w_, site, *site.callee, mask, &w_.groups[w_.current]);
        break;
      }
      case Kind::call_indirect:
        call_indirect(in, mask);
        break;
      case Kind::builtin:
        run_builtin(w_, w_.frame->code->calls[static_cast<size_t>(in.imm)], mask);
        if (w_.fault == Fault::none) g->pc = pc + 1;
        break;
      case Kind::ret:
        ret(mask);
        break;
      case Kind::exit:
        leave_behind(w_, mask);
        exit_lanes(w_, mask);
        release_all(*w_.block);
        break;
      case Kind::barrier:
        barrier(in, mask);
        break;
      case Kind::warp_barrier:
        warp_barrier(in, mask);
        break;
      case Kind::sync:
        // Lanes that take part are elsewhere: wait for them here.
        g->state = GroupState::waiting;
        g->members = members_;
        break;
      case Kind::trap:
        w_.raise(Fault::launch_failed, 0, "trap");
        break;
      case Kind::data:
        break;
    }
  }

  void branch_index(const Insn& in, uint32_t mask) {
    leave_behind(w_, mask);
    for (uint32_t rest = mask; rest;) {
      uint32_t index = get<uint32_t>(w_.regs + in.a, static_cast<uint32_t>(__builtin_ctz(rest))), same = 0;
      for_lanes(rest,
                [&](uint32_t l) { same |= static_cast<uint32_t>(get<uint32_t>(w_.regs + in.a, l) == index) << l; });
      if (index >= static_cast<uint64_t>(in.imm))
        return w_.raise(Fault::invalid_pc, index, "branch index out of range");
      uint32_t target = w_.frame->code->aux[in.e + index];
      rest &= ~same;
      if (rest) {
        w_.groups[w_.current].mask = rest;
        add_group(w_, target, same, w_.frame);
      } else {
        Group& g = w_.groups[w_.current];
        g.mask = same;
        g.pc = target;
      }
    }
  }

  void call_indirect(const Insn& in, uint32_t mask) {
    const CallSite& site = w_.frame->code->calls[static_cast<size_t>(in.imm)];
    const std::vector<const Code*>& codes = w_.block->image->by_function_index;
    leave_behind(w_, mask);
    Frame* frame = w_.frame;
    uint32_t pc = w_.groups[w_.current].pc;
    for (uint32_t rest = mask; rest;) {
      const uint64_t* target = reinterpret_cast<const uint64_t*>(frame->regs + site.target_slot);
      uint64_t address = target[__builtin_ctz(rest)], index = (address - kFunctionBase) / kFunctionStride;
      uint32_t same = 0;
      for_lanes(rest, [&](uint32_t l) { same |= static_cast<uint32_t>(target[l] == address) << l; });
      if (address < kFunctionBase || index >= codes.size() || (address - kFunctionBase) % kFunctionStride ||
          !codes[index]) {
        return w_.raise(Fault::invalid_pc, address, "call of an address that is not a function");
      }
      rest &= ~same;
      Group part;
      part.pc = pc;
      part.mask = same;
      part.frame = frame;
      part.last_run = w_.steps;
      if (!enter(w_, site, *codes[index], same, &part)) return;
      if (rest) {
        w_.groups.push_back(part);
      } else {
        w_.groups[w_.current] = part;
      }
    }
  }

  void ret(uint32_t mask) {
    leave_behind(w_, mask);
    Group& g = w_.groups[w_.current];
    Frame* f = g.frame;
    if (!f->parent) {
      exit_lanes(w_, mask);
      release_all(*w_.block);
      return;
    }
    for (size_t i = 0; i < f->code->results.size(); ++i) {
      copy_formal(mask, f, f->code->results[i], f->parent, f->site->results[i]);
    }
    g.frame = f->parent;
    g.pc = f->return_pc;
    f->lanes &= ~mask;
    if (!f->lanes) release_frame(w_, f);
  }

  void barrier(const Insn& in, uint32_t mask) {
    uint32_t lane = static_cast<uint32_t>(__builtin_ctz(mask));
    uint32_t id = get<uint32_t>(w_.regs + in.a, lane);
    uint32_t threads = in.b ? get<uint32_t>(w_.regs + in.b, lane) : 0;
    if (id >= kBarriers || (in.b && (threads == 0 || threads % kLanes))) {
      return w_.raise(Fault::illegal_instruction, id, "barrier number or thread count out of range");
    }
    leave_behind(w_, mask);
    Group& g = w_.groups[w_.current];
    Barrier& bar = w_.block->barriers[id];
    bar.expected = threads;
    if (in.n == 2) {
      uint32_t p = w_.pred(in.c) & mask;
      bar.votes_count += static_cast<uint32_t>(__builtin_popcount(p));
      bar.votes_and &= p == mask;
      bar.votes_or |= p != 0;
    }
    if (threads) {
      uint32_t& here = w_.arrived[id];
      if (here & mask) {
        bar.arrived += kLanes;
        here = 0;
      }
      here |= mask;
    } else {
      bar.arrived += static_cast<uint32_t>(__builtin_popcount(mask));
    }
    ++bar.arrivals;
    ++w_.block->arrivals;
    g.pc += 1;
    if (in.n != 1) {
      g.state = GroupState::barrier;
      g.barrier = static_cast<uint8_t>(id);
      w_.parked |= mask;
    }
    try_release(*w_.block, id);
  }

  void warp_barrier(const Insn& in, uint32_t mask) {
    leave_behind(w_, mask);
    Group& g = w_.groups[w_.current];
    if (together(in, mask)) {
      g.pc += 1;
      return;
    }
    uint32_t here = mask;
    auto same = [&](const Group& o) {
      return o.state == GroupState::waiting && o.members == members_ &&
             o.frame->code->insns[o.pc].kind == Kind::warp_barrier;
    };
    for (const Group& o : w_.groups) here |= same(o) ? o.mask : 0;
    if (members_ & ~here) {
      g.state = GroupState::waiting;
      g.members = members_;
      return;
    }
    for (Group& o : w_.groups) {
      if (!same(o)) continue;
      o.state = GroupState::ready;
      o.pc += 1;
    }
    g.pc += 1;
  }

  Warp& w_;
  uint64_t end_;
  const Insn* at_ = nullptr;  // the latest instruction, for the report of a fault
  const Code* at_code_ = nullptr;
  bool forced_ = false;
  uint32_t members_ = 0;
};

}  // namespace

Frame* make_frame(Warp& w, const Code& code, uint32_t lanes, Frame* parent) {
  uint32_t depth = parent ? parent->depth + 1 : 0;
  uint64_t bytes = uint64_t{code.register_bytes} + uint64_t{kLanes} * code.local_bytes + 64 + code.local_align;
  std::unique_ptr<Frame> f;
  // Local memory has an address that no other thread of the block has had.
  bool passed_on = !parent && code.local_bytes == 0;
  std::vector<std::unique_ptr<Frame>>& entries = w.block->entry_frames;
  if (passed_on && !entries.empty()) {
    f = std::move(entries.back());
    entries.pop_back();
  }
  for (auto& [owner, frames] : w.free_frames) {
    if (!passed_on && owner == &code && !frames.empty()) {
      f = std::move(frames.back());
      frames.pop_back();
      break;
    }
  }
  bool fresh = !f;
  if (fresh) {
    if (depth > kMaxDepth || w.frame_bytes + bytes > kMaxFrameBytes) {
      w.raise(Fault::launch_failed, 0, "stack overflow: calls of " + code.name + " are nested too deeply");
      return nullptr;
    }
    f = std::make_unique<Frame>();
    f->memory.reset(new uint8_t[bytes]());
    uint64_t at = (reinterpret_cast<uint64_t>(f->memory.get()) + 63) / 64 * 64;
    f->regs = reinterpret_cast<uint8_t*>(at);
    at = (at + code.register_bytes + code.local_align - 1) / code.local_align * code.local_align;
    f->local = code.local_bytes ? reinterpret_cast<uint8_t*>(at) : nullptr;
    if (!passed_on) w.frame_bytes += bytes;
  }
  f->code = &code;
  f->parent = parent;
  f->depth = depth;
  f->lanes = lanes;
  if (f->stack) {
    f->stack.reset();
    std::memset(f->stack_used, 0, sizeof f->stack_used);
  }
  bool first = f->filled_launch != w.block->launch->id;
  fill_slots(w, f.get(), fresh);
  if (first && !code.prologue.empty()) {
    Frame* frame = w.frame;
    uint8_t* regs = w.regs;
    w.frame = f.get();
    w.regs = f->regs;
    for (const Insn& in : code.prologue) in.fn(w, in, kFullMask);
    w.frame = frame;
    w.regs = regs;
  }
  w.live_frames.push_back(std::move(f));
  return w.live_frames.back().get();
}

void release_frame(Warp& w, Frame* frame) {
  for (size_t i = w.live_frames.size(); i-- > 0;) {
    if (w.live_frames[i].get() != frame) continue;
    std::unique_ptr<Frame> f = std::move(w.live_frames[i]);
    w.live_frames[i] = std::move(w.live_frames.back());
    w.live_frames.pop_back();
    if (!f->parent && f->code->local_bytes == 0) return w.block->entry_frames.push_back(std::move(f));
    for (auto& [owner, frames] : w.free_frames) {
      if (owner == f->code) return frames.push_back(std::move(f));
    }
    const Code* code = f->code;
    w.free_frames.emplace_back(code, std::vector<std::unique_ptr<Frame>>());
    w.free_frames.back().second.push_back(std::move(f));
    return;
  }
}

Block::~Block() {
  if (shared) munmap(shared, shared_capacity);
}

bool Block::reserve_shared(size_t bytes) {
  constexpr size_t kPage = 4096;
  size_t wanted = (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage;
  if (wanted <= shared_capacity) return true;
  // Compilers keep addresses of shared memory in 32-bit registers.
  void* p = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (p == MAP_FAILED) return false;
  if (shared) munmap(shared, shared_capacity);
  shared = static_cast<uint8_t*>(p);
  shared_capacity = wanted;
  return true;
}

void begin_block(Block& b, LaunchState& launch, uint64_t linear_index) {
  const Launch& l = *launch.launch;
  b.launch = &launch;
  b.image = launch.image;
  b.index[0] = static_cast<uint32_t>(linear_index % l.grid[0]);
  b.index[1] = static_cast<uint32_t>(linear_index / l.grid[0] % l.grid[1]);
  b.index[2] = static_cast<uint32_t>(linear_index / l.grid[0] / l.grid[1]);
  b.threads = b.live_threads = l.block[0] * l.block[1] * l.block[2];
  b.arrivals = 0;
  b.shared_bytes = uint64_t{launch.image->static_shared_bytes} + l.dynamic_shared_bytes;
  std::memset(b.shared, 0, b.shared_bytes);
  for (Barrier& bar : b.barriers) bar = {};
  uint32_t warps = (b.threads + kLanes - 1) / kLanes;
  if (b.warps.size() != warps) b.warps.resize(warps);
  b.done = false;
  for (uint32_t i = 0; i < warps; ++i) {
    Warp& w = b.warps[i];
    w.block = &b;
    while (!w.live_frames.empty()) release_frame(w, w.live_frames.back().get());
    uint32_t left = b.threads - i * kLanes;
    w.index = i;
    w.lanes = w.alive = left >= kLanes ? kFullMask : (1u << left) - 1;
    w.steps = w.switched_at = w.turn_until = 0;
    w.last_lane = kLanes - 1;
    w.parked = 0;
    std::fill(std::begin(w.arrived), std::end(w.arrived), 0u);
    w.current = 0;
    w.fault = Fault::none;
    w.groups.clear();
    w.started = false;
  }
}

namespace {

void start_warp(Warp& w) {
  w.started = true;
  Group g;
  g.mask = w.alive;
  g.frame = make_frame(w, *w.block->image->entry, w.alive, nullptr);
  if (g.frame) w.groups.push_back(g);
}

}  // namespace

void report_steps(Block& b) {
  if (!b.unreported) return;  // b.launch may be an earlier one
  b.launch->steps.fetch_add(b.unreported, std::memory_order_relaxed);
  b.unreported = 0;
}

bool run_block(Block& b, uint64_t budget, Warp** culprit) {
  LaunchState& launch = *b.launch;
  for (Warp& w : b.warps) {
    if (w.fault != Fault::none) {
      *culprit = &w;
      return false;
    }
  }
  uint64_t used = 0;
  while (used < budget) {
    bool progress = false;
    for (Warp& w : b.warps) {
      if (!w.alive) continue;
      uint64_t before = w.steps;
      if (!w.started) start_warp(w);
      if (w.parked != w.alive) Runner(w, kSliceSteps).run();
      uint64_t ran = w.steps - before;
      used += ran;
      b.unreported += ran;
      progress |= ran != 0;
      if (w.fault != Fault::none) {
        *culprit = &w;
        return false;
      }
    }
    if (launch.step_limit) report_steps(b);
    if (b.live_threads == 0) {
      b.done = true;
      return true;
    }
    Warp* first = nullptr;
    for (Warp& w : b.warps) {
      if (w.alive && !first) first = &w;
    }
    if (first && !progress) {
      first->raise(Fault::launch_failed, 0, "barrier that not all threads of the block reach");
    } else if (first && launch.step_limit && launch.steps.load(std::memory_order_relaxed) >= launch.step_limit) {
      first->raise(Fault::launch_timeout, 0, "step limit of " + std::to_string(launch.step_limit) + " reached");
    } else if (first && launch.cancel && launch.cancel->load(std::memory_order_relaxed)) {
      first->raise(Fault::launch_failed, 0, "cancelled");
    }
    if (first && first->fault != Fault::none) {
      *culprit = first;
      return false;
    }
    if (launch.stop.load(std::memory_order_relaxed)) return true;
  }
  return true;
}

}  // namespace sg::vm
