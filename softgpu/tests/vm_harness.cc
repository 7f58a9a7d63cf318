// The PTX machine behind a C interface, with a simple memory of its own, for the tests in this folder.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "sg.h"

namespace {

class TestMemory : public sg::AddressSpace {
 public:
  bool find(uint64_t address, sg::Range* out) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = ranges_.upper_bound(address);
    if (it == ranges_.begin()) return false;
    --it;
    if (address >= it->second) return false;
    *out = {it->first, it->second};
    return true;
  }
  uint64_t epoch() const override { return epoch_.load(); }
  const std::atomic<uint64_t>* epoch_counter() const override { return &epoch_; }
  void* allocate_module_memory(size_t bytes) override {
    if (bytes > (size_t{1} << 32)) return nullptr;
    size_t room = (bytes + 255) / 256 * 256 + 256;
    void* p = std::aligned_alloc(256, room);
    if (!p) return nullptr;
    std::memset(p, 0, room);
    std::lock_guard<std::mutex> lock(mutex_);
    ranges_[reinterpret_cast<uint64_t>(p)] = reinterpret_cast<uint64_t>(p) + bytes;
    return p;
  }
  void free_module_memory(void* p) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ranges_.erase(reinterpret_cast<uint64_t>(p));
    }
    epoch_.fetch_add(1);
    std::free(p);
  }

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, uint64_t> ranges_;
  std::atomic<uint64_t> epoch_{0};
};

struct Session {
  TestMemory memory;
  std::unique_ptr<sg::Program> program;
  std::string text;     // error or fault message
  std::string printed;  // by kernels
  std::mutex print_mutex;
  std::atomic<bool> cancel{false};
};

}  // namespace

#define SGT_API extern "C" __attribute__((visibility("default")))

SGT_API Session* sgt_open() { return new Session; }
SGT_API void sgt_close(Session* s) { delete s; }
SGT_API const char* sgt_instruction_set() { return sg::instruction_set(); }
SGT_API void* sgt_alloc(Session* s, size_t bytes) { return s->memory.allocate_module_memory(bytes); }
SGT_API void sgt_free(Session* s, void* p) { s->memory.free_module_memory(p); }
SGT_API const char* sgt_text(Session* s) { return s->text.c_str(); }
SGT_API const char* sgt_printed(Session* s) { return s->printed.c_str(); }
SGT_API void sgt_cancel(Session* s, int on) { s->cancel = on != 0; }

SGT_API int sgt_link(Session* s, const char* const* texts, size_t count) {
  std::vector<std::string_view> views(texts, texts + count);
  int code = 0;
  s->text.clear();
  s->program.reset();
  s->program = sg::link_ptx(views, s->memory, &s->text, &code);
  return s->program ? 0 : code;
}

SGT_API const sg::Kernel* sgt_kernel(Session* s, const char* name, int* code) {
  *code = 0;
  s->text.clear();
  return s->program->kernel(name, &s->text, code);
}

SGT_API size_t sgt_kernel_count(Session* s) { return s->program->kernel_names().size(); }
SGT_API const char* sgt_kernel_name(Session* s, size_t i) { return s->program->kernel_names()[i].c_str(); }

/// out: param_bytes, static_shared_bytes, local_bytes, const_bytes, max threads, number of parameters.
SGT_API void sgt_kernel_info(const sg::Kernel* k, uint32_t* out) {
  out[0] = k->param_bytes;
  out[1] = k->static_shared_bytes;
  out[2] = k->local_bytes;
  out[3] = k->const_bytes;
  out[4] = k->max_threads_per_block;
  out[5] = static_cast<uint32_t>(k->params.size());
}
SGT_API void sgt_param(const sg::Kernel* k, uint32_t i, uint32_t* out) {
  out[0] = k->params[i].offset_bytes;
  out[1] = k->params[i].size_bytes;
  out[2] = k->params[i].align_bytes;
}

SGT_API uint64_t sgt_global(Session* s, const char* name, size_t* bytes) {
  for (const sg::Global& g : s->program->globals()) {
    if (g.name == name) {
      *bytes = g.size_bytes;
      return g.address;
    }
  }
  return 0;
}

SGT_API int sgt_run(Session* s, const sg::Kernel* k, const uint32_t* grid, const uint32_t* block,
                    uint32_t dynamic_shared_bytes, int cooperative, const void* params, uint64_t* steps) {
  sg::Launch launch;
  std::memcpy(launch.grid, grid, sizeof launch.grid);
  std::memcpy(launch.block, block, sizeof launch.block);
  launch.dynamic_shared_bytes = dynamic_shared_bytes;
  launch.cooperative = cooperative != 0;
  launch.params = params;
  s->printed.clear();
  sg::RunResult r = s->program->run(*k, launch, &s->cancel, [s](std::string_view text) {
    std::lock_guard<std::mutex> lock(s->print_mutex);
    s->printed.append(text);
  });
  s->text = r.message;
  if (steps) *steps = r.steps;
  return static_cast<int>(r.fault);
}
