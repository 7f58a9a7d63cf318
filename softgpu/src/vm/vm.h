// The machine: decoded instructions, warps, blocks.
//
// A register ("slot") holds 32 lanes of 4 or 8 bytes; a predicate is one 32-bit mask. Registers narrower than 32 bits
// live in 4-byte lanes whose upper bits mean nothing: every handler truncates what it reads. Immediates, special
// registers and addresses of symbols are slots too, filled in before the code runs, so that handlers see only slots.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "sg.h"

// Files of handlers are built once for any processor and once for AVX2. What they hold, and the inline functions that
// they share, lie in a namespace of the build, so that the linker never gives the one build's function to the other.
#ifndef SG_ISA
#define SG_ISA baseline
#endif

namespace sg::vm {

inline namespace SG_ISA {}

constexpr uint32_t kLanes = 32;
constexpr uint32_t kFullMask = 0xffffffffu;
constexpr uint32_t kNoGuard = 0xffffffffu;
constexpr uint32_t kBarriers = 16;

struct Warp;
struct Block;
struct Code;
struct Insn;

/// Runs one instruction for the lanes in `mask`, which is never 0.
using Handler = void (*)(Warp& w, const Insn& in, uint32_t mask);

/// How the scheduler treats an instruction. All but `data` and `sync` are carried out by the scheduler itself.
enum class Kind : uint8_t {
  data,
  sync,  // data, after the lanes of a member mask have come together (shfl.sync ...)
  branch,
  branch_index,
  call,
  call_indirect,
  builtin,  // call of a function that the machine itself provides
  ret,
  exit,
  barrier,
  warp_barrier,
  trap,
};

struct Insn {
  Handler fn = nullptr;
  uint32_t d = 0, a = 0, b = 0, c = 0;  // offsets of slots in a frame's registers, or what the handler says
  uint32_t e = 0;
  uint32_t guard = kNoGuard;
  int64_t imm = 0;
  uint32_t line = 0;
  uint32_t run = 0;  // so many instructions from here on are plain data ones: no guard, no leader after the first
  Kind kind = Kind::data;
  bool guard_negated = false;
  bool leader = false;  // groups of lanes can meet here
  uint8_t n = 0;
  uint8_t plan = 0;        // loads and stores: 0, or 1 + the warp's plan that is made here, or used here if
  bool plan_made = false;  // an instruction before, which ran for at least the same lanes, has made it
};

/// How the addresses in a register lie when all lanes run: for each eight lanes either next to each other or the same.
/// Without the offset that an instruction adds. What lies otherwise has no shape.
struct AccessPlan {
  uint64_t base[4];  // of lanes 0, 8, 16, 24
  uint64_t low;      // the lowest address
  uint64_t span;     // bytes from there to the end of the highest element
  bool same[4];
  enum Shape : uint8_t { none, dense /* all 32 lanes */, rows, all_same, mixed } shape;
  bool usable() const { return shape != none; }
};
constexpr uint32_t kPlans = 4;

/// A value that a slot gets when a frame is made.
enum class Fill : uint8_t {
  constant,
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  lane,
  warp,
  warps,
  sm,
  sms,
  grid_id,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  dynamic_shared_bytes,
  total_shared_bytes,
  envreg1,
  envreg2,
  shared_address,
  dynamic_shared_address,
  local_address,
  param_address,
};  // clang-format: rows by meaning

struct Slot {
  uint32_t offset = 0;
  uint8_t bytes = 4;  // per lane
  Fill fill = Fill::constant;
  uint64_t value = 0;  // of a constant; added to an address
};

/// Where a parameter or result of a device function lives: in the frame's local bytes, or in a register.
struct Formal {
  uint32_t offset = 0;
  uint32_t bytes = 0;
  bool in_register = false;
};

struct CallSite {
  const Code* callee = nullptr;  // null: indirect
  uint32_t builtin = 0;
  uint32_t target_slot = 0;  // indirect: slot of the function's address
  std::vector<Formal> args, results;
};

/// One decoded function or kernel.
struct Code {
  std::string name;
  bool is_entry = false;
  bool decoded = false;
  std::vector<Insn> insns;
  std::vector<uint32_t> aux;  // operand lists
  std::vector<CallSite> calls;
  std::vector<Slot> slots;  // constants, then what changes with the launch or the frame, the warp, the block
  uint32_t launch_slots = 0, warp_slots = 0, block_slots = 0;  // where these begin
  std::vector<Insn> prologue;  // what has one value for a launch: runs for all lanes when a frame is first used in it
  std::vector<Formal> formals, results;
  uint32_t register_bytes = 0;
  uint32_t local_bytes = 0;  // per lane, a multiple of local_align
  uint32_t local_align = 16;
};

constexpr uint64_t kStackBytes = 64 * 1024;  // for alloca, of one lane in one call

struct FreeBytes {
  void operator()(uint8_t* p) const { std::free(p); }
};

/// Registers and local memory of one call.
struct Frame {
  const Code* code = nullptr;
  Frame* parent = nullptr;
  const CallSite* site = nullptr;
  uint32_t return_pc = 0;
  uint32_t depth = 0;
  uint32_t lanes = 0;          // that have not yet returned
  uint64_t filled_launch = 0;  // id of the launch whose values the slots hold; 0: none
  uint32_t filled_warp = 0;    // of which warp
  uint8_t* regs = nullptr;
  uint8_t* local = nullptr;  // lane i at i * code->local_bytes
  std::unique_ptr<uint8_t[]> memory;
  std::unique_ptr<uint8_t, FreeBytes> stack;  // of alloca: kStackBytes for each lane; null: none yet
  uint32_t stack_used[kLanes] = {};           // bytes
};

enum class GroupState : uint8_t { ready, waiting, barrier };

/// Lanes of a warp that are at the same instruction of the same frame.
struct Group {
  uint32_t pc = 0;
  uint32_t mask = 0;
  Frame* frame = nullptr;
  GroupState state = GroupState::ready;
  uint8_t barrier = 0;
  uint32_t members = 0;   // waiting: for whom
  uint64_t last_run = 0;  // in steps of the warp
};

struct Warp {
  uint8_t* regs = nullptr;  // of the current group's frame
  Frame* frame = nullptr;
  Block* block = nullptr;
  uint32_t mask = 0;   // lanes of the current group
  uint32_t alive = 0;  // lanes that exist and have not exited
  uint32_t lanes = 0;  // lanes that exist
  uint32_t index = 0;
  uint32_t current = 0;  // of groups
  uint64_t steps = 0;
  uint64_t switched_at = 0;  // last turn given out of fairness
  uint64_t turn_until = 0;
  uint32_t last_lane = 0;            // to have a turn, where each lane runs by itself
  uint32_t parked = 0;               // lanes at a block barrier
  uint32_t arrived[kBarriers] = {};  // lanes that have come to a barrier with a count of threads
  bool started = false;
  AccessPlan plans[kPlans];
  std::vector<Group> groups;
  Fault fault = Fault::none;
  uint64_t fault_address = 0;
  std::string fault_text;
  uint32_t fault_line = 0;
  std::string fault_function;
  std::vector<std::pair<const Code*, std::vector<std::unique_ptr<Frame>>>> free_frames;
  std::vector<std::unique_ptr<Frame>> live_frames;
  uint64_t frame_bytes = 0;

  template <class T>
  T* reg(uint32_t offset) const {
    return reinterpret_cast<T*>(regs + offset);
  }
  uint32_t& pred(uint32_t offset) const { return *reinterpret_cast<uint32_t*>(regs + offset); }
  void raise(Fault f, uint64_t address = 0, std::string text = {}) {
    if (fault != Fault::none) return;
    fault = f;
    fault_address = address;
    fault_text = std::move(text);
  }
};

struct Barrier {
  uint32_t arrived = 0;   // threads; where a count is expected, only of warps that came once more (see Warp::arrived)
  uint32_t arrivals = 0;  // calls, of which the block counts the sum
  uint32_t expected = 0;  // 0: all threads of the block
  uint32_t votes_and = 1, votes_or = 0, votes_count = 0;
};

struct KernelImage;
struct LaunchState;

struct Block {
  LaunchState* launch = nullptr;
  const KernelImage* image = nullptr;
  uint32_t index[3] = {0, 0, 0};
  uint32_t threads = 0;
  uint32_t live_threads = 0;
  uint32_t arrivals = 0;      // at barriers that have not yet let go
  uint64_t unreported = 0;    // steps that launch->steps does not have yet
  uint8_t* shared = nullptr;  // below 4 GiB
  size_t shared_bytes = 0;    // in use by this launch
  size_t shared_capacity = 0;
  Barrier barriers[kBarriers];
  // Ranges of device memory where earlier accesses hit, most recent first; valid while the address space's epoch is
  // `epoch`.
  Range ranges[4];
  uint64_t epoch = ~uint64_t{0};
  std::vector<Warp> warps;
  // Frames of the kernel itself that no warp uses. A warp that ends leaves its frame, still in the processor's cache,
  // to the next one.
  std::vector<std::unique_ptr<Frame>> entry_frames;
  bool done = false;

  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();
  /// False if no memory below 4 GiB is to be had.
  bool reserve_shared(size_t bytes);
};

/// A kernel with everything it can call, decoded together, so that its shared memory has one layout.
struct KernelImage {
  Kernel kernel;
  const Code* entry = nullptr;
  std::vector<std::unique_ptr<Code>> codes;
  std::vector<const Code*> by_function_index;  // function address -> code; null: not part of this image
  uint32_t static_shared_bytes = 0;            // kernel.static_shared_bytes rounded up for what is dynamic
  std::vector<std::unique_ptr<Block>> idle;    // guarded by the program's mutex
};

/// What kernels of a program got from malloc.
struct Heap {
  std::mutex mutex;
  std::unordered_map<uint64_t, uint64_t> allocations;  // address -> bytes
  uint64_t used_bytes = 0;
};

/// One launch, seen by all its blocks.
struct LaunchState {
  const KernelImage* image = nullptr;
  const Launch* launch = nullptr;
  AddressSpace* memory = nullptr;
  const std::atomic<uint64_t>* epoch = nullptr;  // of the memory; null: ask it
  Heap* heap = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  const std::function<void(std::string_view)>* print = nullptr;
  uint64_t id = 0;  // never 0
  Range params, constants;
  uint64_t grid_workspace = 0;  // %envreg1:%envreg2, where grid-wide barriers of cooperative groups live
  uint64_t step_limit = 0;
  bool one_lane = false;  // each lane runs by itself between the instructions where lanes meet (SOFTGPU_ONE_LANE)
  std::atomic<uint64_t> steps{0};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> next_block{0};
  uint64_t blocks = 0;
};

// A function's "address": an index in a range where no memory can be.
constexpr uint64_t kFunctionBase = 0xf0c0'0000'0000'0000u;
constexpr uint64_t kFunctionStride = 16;

/// The range that holds `bytes` at `address`, for any state space a generic address can mean. Raises a fault and
/// returns false if there is none.
bool find_range(Warp& w, uint64_t address, uint64_t bytes, Range* out);
/// Copies a NUL-terminated string that a kernel points to; stops at `most` bytes. False after raising a fault.
bool read_string(Warp& w, uint64_t address, size_t most, std::string* out);

enum Builtin : uint32_t { kBuiltinNone, kBuiltinVprintf, kBuiltinAssert, kBuiltinMalloc, kBuiltinFree };
uint32_t builtin_named(std::string_view name);
void run_builtin(Warp& w, const CallSite& site, uint32_t mask);

/// Frames. make_frame returns null after raising a fault.
void fill_slots(const Warp& w, Frame* frame, bool constants_too);
/// How often a slot has to be filled anew. 0: never, 1: with the launch, 2: with the warp, 3: with the block.
uint32_t rank_of(Fill fill);
Frame* make_frame(Warp& w, const Code& code, uint32_t lanes, Frame* parent);
void release_frame(Warp& w, Frame* frame);

void begin_block(Block& b, LaunchState& launch, uint64_t linear_index);
/// Adds the block's steps to the launch's.
void report_steps(Block& b);
/// Runs until the block ends or about `budget` warp instructions have run. Sets b.done at the end.
/// Returns false when a fault ended it; *culprit is then the warp.
bool run_block(Block& b, uint64_t budget, Warp** culprit);

}  // namespace sg::vm
