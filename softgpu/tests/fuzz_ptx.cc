// libFuzzer target: arbitrary bytes as PTX, linked and every kernel decoded. With clang:
//   clang++ -std=c++17 -g -fsanitize=fuzzer,address,undefined -fno-strict-aliasing -Isoftgpu/include \
//     softgpu/tests/fuzz_ptx.cc softgpu/src/ptx/*.cc softgpu/src/vm/*.cc -o fuzz_ptx && ./fuzz_ptx softgpu/tests/ptx
// Without libFuzzer (-DSOFTGPU_OWN_MUTATOR): fuzz_ptx ROUNDS SEED FILE... mutates the files by itself; a seed repeats.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>

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

#ifdef SOFTGPU_OWN_MUTATOR
int main(int argc, char** argv) {
  if (argc < 4) return 2;
  unsigned long rounds = std::strtoul(argv[1], nullptr, 10);
  std::mt19937 random(static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)));
  auto below = [&](size_t n) { return n ? random() % n : 0; };
  std::vector<std::string> seeds;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (seeds.back().empty()) return 2;
  }
  constexpr size_t kMost = 20000;  // bytes of an input: long texts only make it slow
  const char alphabet[] = "{}[]();,.:%@!|+-<>=0x9f_ \nabr";
  for (unsigned long round = 0; round < rounds; ++round) {
    std::string text = seeds[below(seeds.size())].substr(0, kMost);
    for (size_t edits = 1 + below(6); edits-- && !text.empty();) {
      size_t at = below(text.size()), length = 1 + below(40);
      switch (below(5)) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.insert(at, 1, alphabet[below(sizeof alphabet - 1)]);
          break;
        case 2:
          text.erase(at, length);
          break;
        case 3: {
          const std::string& other = seeds[below(seeds.size())];
          text.insert(at, other.substr(below(other.size()), length));
          break;
        }
        default:
          text.insert(at, text.substr(below(text.size()), length));
          break;
      }
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  }
  std::printf("fuzz_ptx: %lu texts\n", rounds);
  return 0;
}
#endif
