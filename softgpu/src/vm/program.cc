// sg::Program: kernels decoded at first use, launches.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <new>

#include "linker.h"
#include "pool.h"

namespace sg::vm {
namespace {

constexpr int kOutOfMemory = 2, kInvalidPtx = 218, kNotFound = 500;
// Warp instructions before the next block of a cooperative grid has its turn: blocks spin for each other.
constexpr uint64_t kSliceOfBlock = 4096;
constexpr uint64_t kBlocksAtATime = 16;  // that a thread takes of a large grid
constexpr uint64_t kEndless = ~uint64_t{0} / 2;
constexpr size_t kSharedAlign = 16;
constexpr size_t kMaxShared = 227 * 1024;

uint64_t step_limit() {
  const char* s = std::getenv("SOFTGPU_STEP_LIMIT");
  return s ? std::strtoull(s, nullptr, 10) : 0;
}

/// For tests: what lanes do together must be what each does by itself (softgpu/tests/divergence.py).
bool one_lane() {
  const char* s = std::getenv("SOFTGPU_ONE_LANE");
  return s && std::strcmp(s, "1") == 0;
}

/// Decodes a kernel and what it can reach.
class ImageBuilder {
 public:
  ImageBuilder(const Linked& linked, KernelImage* image) : linked_(linked), image_(*image) {
    image_.by_function_index.resize(linked.functions.size());
  }

  void run(uint32_t entry) {
    const ptx::Function& f = *linked_.functions[entry].function;
    const ptx::Module& m = *linked_.functions[entry].module;
    Kernel& k = image_.kernel;
    k.name = std::string(f.name);
    k.ptx_version = m.version;
    k.target_sm = m.target_sm;
    limits(f, &k);
    image_.entry = want(entry);
    while (!queue_.empty()) {
      uint32_t index = queue_.front();
      queue_.pop_front();
      const FunctionRef& ref = linked_.functions[index];
      ModuleResolver resolver(this, ref.module_index);
      Code* code = const_cast<Code*>(image_.by_function_index[index]);
      Decoder(*ref.function, code, index == entry ? &k : nullptr, &resolver, ref.module->version, ref.module->target_sm)
          .run();
      if (queue_.empty() && indirect_) {
        for (uint32_t taken : linked_.address_taken) want(taken);
      }
    }
    k.static_shared_bytes = static_cast<uint32_t>(shared_bytes_);
    k.const_bytes = linked_.const_bytes;
    k.local_bytes = image_.entry->local_bytes;
    image_.static_shared_bytes =
        static_cast<uint32_t>((shared_bytes_ + kSharedAlign - 1) / kSharedAlign * kSharedAlign);
  }

 private:
  class ModuleResolver : public Resolver {
   public:
    ModuleResolver(ImageBuilder* builder, uint32_t module) : builder_(*builder), module_(module) {}
    const Symbol* find(std::string_view name) override {
      const auto& names = builder_.linked_.names[module_];
      auto it = names.find(name);
      return it == names.end() ? nullptr : &it->second;
    }
    const Code* function(uint32_t index) override { return builder_.want(index); }
    uint32_t shared_offset(const ptx::Variable& v, bool* dynamic) override {
      return builder_.shared_offset(v, dynamic);
    }
    void uses_indirect_calls() override { builder_.indirect_ = true; }

   private:
    ImageBuilder& builder_;
    uint32_t module_;
  };

  static void limits(const ptx::Function& f, Kernel* k) {
    auto product = [](const uint32_t* n) { return uint64_t{n[0]} * n[1] * n[2]; };
    for (const uint32_t* n : {f.max_threads, f.required_threads}) {
      if (n[0] == 0) continue;
      for (int i = 0; i < 3; ++i) {
        if (n[i] == 0 || n[i] > 1024) throw ptx::Error(f.line, "thread limit out of range");
      }
      k->max_threads_per_block = static_cast<uint32_t>(std::min<uint64_t>(product(n), 1024));
    }
    for (int i = 0; i < 3; ++i) k->required_block[i] = f.required_threads[i];
  }

  const Code* want(uint32_t index) {
    if (const Code* c = image_.by_function_index[index]) return c;
    const ptx::Function& f = *linked_.functions[index].function;
    if (!f.has_body) return nullptr;
    auto code = std::make_unique<Code>();
    code->name = std::string(f.name);
    code->is_entry = f.is_entry;
    image_.by_function_index[index] = code.get();
    image_.codes.push_back(std::move(code));
    queue_.push_back(index);
    return image_.by_function_index[index];
  }

  uint32_t shared_offset(const ptx::Variable& v, bool* dynamic) {
    *dynamic = v.unsized || v.external;
    if (*dynamic) return 0;
    auto it = shared_.find(&v);
    if (it != shared_.end()) return it->second;
    uint64_t at = (shared_bytes_ + v.alignment() - 1) / v.alignment() * v.alignment();
    shared_bytes_ = at + v.size_bytes();
    if (v.size_bytes() > kMaxShared || shared_bytes_ > kMaxShared) {
      throw ptx::Error(v.line, "kernel uses more than 227 KiB of static shared memory");
    }
    shared_[&v] = static_cast<uint32_t>(at);
    return static_cast<uint32_t>(at);
  }

  const Linked& linked_;
  KernelImage& image_;
  std::deque<uint32_t> queue_;
  std::map<const ptx::Variable*, uint32_t> shared_;
  uint64_t shared_bytes_ = 0;
  bool indirect_ = false;
};

class ProgramImpl : public Program {
 public:
  explicit ProgramImpl(AddressSpace& memory) : memory_(memory), step_limit_(step_limit()), one_lane_(one_lane()) {}

  ~ProgramImpl() override {
    images_.clear();
    for (const auto& [p, bytes] : heap_.allocations) memory_.free_module_memory(reinterpret_cast<void*>(p));
    if (linked_.memory) memory_.free_module_memory(linked_.memory);
    if (linked_.owns_managed) memory_.free_managed_memory(linked_.managed);
  }

  void load(const std::vector<std::string_view>& texts, void* managed) {
    linked_.managed = managed;
    for (std::string_view t : texts) linked_.texts.emplace_back(t);
    link(memory_, &linked_);
    for (const auto& module : linked_.modules) {
      for (const ptx::Function& f : module.functions) {
        if (f.is_entry && f.has_body) names_.emplace_back(f.name);
      }
    }
  }

  const std::vector<Global>& globals() const override { return linked_.globals; }
  void* managed_memory() const override { return linked_.managed; }
  const std::vector<std::string>& kernel_names() const override { return names_; }

  const Kernel* kernel(std::string_view name, std::string* error, int* code) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = images_.find(name);
    if (found == images_.end()) {
      auto it = linked_.kernels.find(name);
      if (it == linked_.kernels.end()) {
        *error = "no kernel named " + std::string(name.substr(0, 200));
        *code = kNotFound;
        return nullptr;
      }
      Decoded d;
      d.image = std::make_unique<KernelImage>();
      try {
        ImageBuilder(linked_, d.image.get()).run(it->second);
      } catch (const ptx::Error& e) {
        d.image.reset();
        d.error = "kernel " + std::string(name) + ": " + e.what();
        d.code = e.code();
      } catch (const std::bad_alloc&) {
        d.image.reset();
        d.error = "kernel " + std::string(name) + ": out of memory";
        d.code = kOutOfMemory;
      }
      found = images_.emplace(std::string(name), std::move(d)).first;
    }
    if (!found->second.image) {
      *error = found->second.error;
      *code = found->second.code;
      return nullptr;
    }
    return &found->second.image->kernel;
  }

  RunResult run(const Kernel& kernel, const Launch& launch, const std::atomic<bool>* cancel,
                const std::function<void(std::string_view)>& print) override {
    RunResult result;
    KernelImage* image = image_of(kernel);
    uint64_t threads = uint64_t{launch.block[0]} * launch.block[1] * launch.block[2];
    uint64_t shared = image ? uint64_t{image->static_shared_bytes} + launch.dynamic_shared_bytes : 0;
    unsigned __int128 blocks = static_cast<unsigned __int128>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    if (!image || threads == 0 || threads > 1024 || launch.block[0] > 1024 || launch.block[1] > 1024 ||
        launch.block[2] > 1024 || blocks == 0 || blocks > kEndless || shared > kMaxShared + kSharedAlign ||
        (launch.cooperative && blocks > 65536)) {
      result.fault = Fault::launch_failed;
      result.message = "launch of " + kernel.name + " with an impossible grid, block or amount of shared memory";
      return result;
    }
    alignas(64) uint8_t small[4096 + 64];
    std::unique_ptr<uint8_t[]> large;
    uint8_t* params = small;
    if (kernel.param_bytes > 4096) {
      large.reset(new uint8_t[kernel.param_bytes + 128]);
      params = reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(large.get()) + 63) / 64 * 64);
    }
    if (kernel.param_bytes) std::memcpy(params, launch.params, kernel.param_bytes);
    LaunchState state;
    state.image = image;
    state.launch = &launch;
    state.memory = &memory_;
    state.epoch = memory_.epoch_counter();
    state.heap = &heap_;
    state.cancel = cancel;
    state.print = &print;
    state.id = next_id_.fetch_add(1, std::memory_order_relaxed);
    state.constants = linked_.constants;
    state.params = {reinterpret_cast<uint64_t>(params), reinterpret_cast<uint64_t>(params) + kernel.param_bytes};
    state.step_limit = step_limit_;
    state.one_lane = one_lane_;
    state.blocks = static_cast<uint64_t>(blocks);
    void* workspace = nullptr;
    if (launch.cooperative) {
      workspace = memory_.allocate_module_memory(256);
      state.grid_workspace = reinterpret_cast<uint64_t>(workspace);
    }
    unsigned helpers = static_cast<unsigned>(std::min<uint64_t>(state.blocks, thread_limit()));
    if (launch.cooperative) {
      run_cooperative(image, &state, helpers, static_cast<size_t>(shared), &result);
    } else {
      auto work = [&] { run_blocks(image, &state, static_cast<size_t>(shared), &result); };
      helpers == 1 ? work() : run_parallel(helpers, work);
    }
    if (workspace) memory_.free_module_memory(workspace);
    result.steps = state.steps.load(std::memory_order_relaxed);
    return result;
  }

 private:
  struct Decoded {
    std::unique_ptr<KernelImage> image;
    std::string error;
    int code = kInvalidPtx;
  };

  KernelImage* image_of(const Kernel& kernel) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = images_.find(kernel.name);
    if (it == images_.end() || !it->second.image || &it->second.image->kernel != &kernel) return nullptr;
    return it->second.image.get();
  }

  std::unique_ptr<Block> take_block(KernelImage* image, size_t shared, LaunchState* state, RunResult* result) {
    std::unique_ptr<Block> b;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!image->idle.empty()) {
        b = std::move(image->idle.back());
        image->idle.pop_back();
      }
    }
    if (!b) b = std::make_unique<Block>();
    if (b->reserve_shared(shared)) return b;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!state->stop.exchange(true)) {
      result->fault = Fault::launch_failed;
      result->message = "no memory below 4 GiB left for shared memory";
    }
    return nullptr;
  }

  void give_block(KernelImage* image, std::unique_ptr<Block> b) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (image->idle.size() < thread_limit()) image->idle.push_back(std::move(b));
  }

  void report(LaunchState* state, const Block& b, const Warp& w, RunResult* result) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (state->stop.exchange(true)) return;
    result->fault = w.fault;
    char address[32];
    std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(w.fault_address));
    std::string what = w.fault_text;
    if (w.fault == Fault::illegal_address) what = std::string("illegal address ") + address;
    if (w.fault == Fault::misaligned_address) what = std::string("misaligned address ") + address;
    if (w.fault == Fault::invalid_pc) what += std::string(" (") + address + ")";
    std::string m = "kernel " + state->image->kernel.name;
    if (w.fault_line) {
      if (w.fault_function != state->image->kernel.name) m += ", function " + w.fault_function;
      m += ", line " + std::to_string(w.fault_line) + " of its PTX";
    }
    m += ", block (" + std::to_string(b.index[0]) + "," + std::to_string(b.index[1]) + "," +
         std::to_string(b.index[2]) + "), warp " + std::to_string(w.index) + ": " + what;
    result->message = std::move(m);
  }

  void run_blocks(KernelImage* image, LaunchState* state, size_t shared, RunResult* result) {
    std::unique_ptr<Block> b = take_block(image, shared, state, result);
    if (!b) return;
    // Few blocks are handed out one by one: programs may rely on some of them running at the same time.
    uint64_t share = state->blocks / (thread_limit() * 2 * kBlocksAtATime);
    uint64_t count = std::clamp<uint64_t>(share, 1, kBlocksAtATime);
    for (bool more = true; more;) {
      uint64_t index = state->next_block.fetch_add(count, std::memory_order_relaxed);
      uint64_t end = std::min(index + count, state->blocks);
      more = index < state->blocks;
      for (; more && index < end; ++index) {
        more = !state->stop.load(std::memory_order_relaxed);
        if (!more) break;
        begin_block(*b, *state, index);
        Warp* culprit = nullptr;
        if (!run_block(*b, kEndless, &culprit)) report(state, *b, *culprit, result);
      }
    }
    report_steps(*b);
    give_block(image, std::move(b));
  }

  /// All blocks exist at once and take turns, so each may wait for any other.
  void run_cooperative(KernelImage* image, LaunchState* state, unsigned helpers, size_t shared, RunResult* result) {
    std::deque<std::unique_ptr<Block>> ready;
    for (uint64_t i = 0; i < state->blocks; ++i) {
      std::unique_ptr<Block> b = take_block(image, shared, state, result);
      if (!b) return;
      begin_block(*b, *state, i);
      ready.push_back(std::move(b));
    }
    std::mutex mutex;
    run_parallel(helpers, [&] {
      for (;;) {
        std::unique_ptr<Block> b;
        {
          std::lock_guard<std::mutex> lock(mutex);
          if (ready.empty() || state->stop.load(std::memory_order_relaxed)) return;
          b = std::move(ready.front());
          ready.pop_front();
        }
        Warp* culprit = nullptr;
        bool whole = run_block(*b, kSliceOfBlock, &culprit);
        report_steps(*b);
        if (!whole) {
          report(state, *b, *culprit, result);
        } else if (!b->done) {
          std::lock_guard<std::mutex> lock(mutex);
          ready.push_back(std::move(b));
          continue;
        }
        give_block(image, std::move(b));
      }
    });
  }

  AddressSpace& memory_;
  const uint64_t step_limit_;
  const bool one_lane_;
  Linked linked_;
  Heap heap_;
  std::vector<std::string> names_;
  std::mutex mutex_;  // guards images_, idle blocks and the first fault of a launch
  std::map<std::string, Decoded, std::less<>> images_;
  std::atomic<uint64_t> next_id_{1};
};

}  // namespace
}  // namespace sg::vm

namespace sg {

std::unique_ptr<Program> link_ptx(const std::vector<std::string_view>& texts, AddressSpace& memory, std::string* log,
                                  int* code, void* managed) {
  auto program = std::make_unique<vm::ProgramImpl>(memory);
  try {
    program->load(texts, managed);
  } catch (const ptx::Error& e) {
    if (log) *log = e.what();
    if (code) *code = e.code();
    return nullptr;
  } catch (const std::bad_alloc&) {
    if (log) *log = "out of memory";
    if (code) *code = vm::kOutOfMemory;
    return nullptr;
  }
  return program;
}

}  // namespace sg
