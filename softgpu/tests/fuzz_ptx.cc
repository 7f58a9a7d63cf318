// libFuzzer target: arbitrary bytes as PTX, linked and every kernel decoded. tests/native/fuzz.sh builds and runs it,
// from the texts of all cases of softgpu/tests/agreement.
#include <cstdlib>

#include "sg.h"

namespace {

/// Hands out memory that no kernel ever runs on.
class FuzzMemory : public sg::AddressSpace {
 public:
  bool find(uint64_t, sg::Range*) const override { return false; }
  uint64_t epoch() const override { return 0; }
  void* allocate_module_memory(size_t bytes) override { return bytes > (1u << 24) ? nullptr : std::calloc(1, bytes); }
  void free_module_memory(void* p) override { std::free(p); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzMemory memory;
  std::string log;
  int code = 0;
  auto program = sg::link_ptx({{reinterpret_cast<const char*>(data), size}}, memory, &log, &code);
  if (!program) return 0;
  for (const std::string& name : program->kernel_names()) program->kernel(name, &log, &code);
  return 0;
}
