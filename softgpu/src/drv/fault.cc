#include "fault.h"

#include <dlfcn.h>
#include <unwind.h>

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "state.h"

namespace sg {

namespace {

constexpr unsigned kMaxSlowMs = 600'000;
constexpr unsigned kMaxResult = 999;
constexpr int kMaxFrames = 64;

template <class T>
bool number(std::string_view text, T* out) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return failed == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

/// Cuts `text` at the first `mark`; what follows it, or nothing.
std::string_view cut(std::string_view* text, char mark, bool* found) {
  const size_t at = text->find(mark);
  *found = at != std::string_view::npos;
  const std::string_view rest = *found ? text->substr(at + 1) : std::string_view();
  *text = trimmed(text->substr(0, at));
  return trimmed(rest);
}

/// The start of an exported function of this library, or 0.
uint64_t exported_function(const std::string& name) {
  Dl_info self{};
  if (name.compare(0, 2, "cu") != 0 || !dladdr(reinterpret_cast<void*>(&exported_function), &self)) return 0;
  void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return 0;
  void* found = dlsym(library, name.c_str());
  Dl_info there{};
  if (found && (!dladdr(found, &there) || there.dli_fbase != self.dli_fbase)) found = nullptr;
  dlclose(library);
  return reinterpret_cast<uint64_t>(found);
}

/// The starts of the functions that the calling thread is inside of. The driver's part of the library is built so that
/// an exported function keeps its frame (CMakeLists.txt).
struct Frames {
  uint64_t starts[kMaxFrames];
  int count = 0;

  Frames() {
    _Unwind_Backtrace(
        [](_Unwind_Context* at, void* all) {
          auto* frames = static_cast<Frames*>(all);
          if (frames->count == kMaxFrames) return _URC_END_OF_STACK;
          frames->starts[frames->count++] = _Unwind_GetRegionStart(at);
          return _URC_NO_REASON;
        },
        this);
  }
  bool contains(uint64_t start) const {
    for (int i = 0; i < count; ++i) {
      if (starts[i] == start) return true;
    }
    return false;
  }
};

}  // namespace

struct Faults::Rule {
  Point point = Point::call;
  uint64_t function = 0;
  std::string kernel;  // empty: any
  uint64_t bytes = 0;  // 0: any
  uint64_t nth = 1;
  bool and_later = false;
  CUresult result = CUDA_SUCCESS;
  unsigned slow_ms = 0;
  bool lost = false;
  std::string text;
  std::atomic<uint64_t> seen{0};
};

Faults& Faults::get() {
  static auto* faults = new Faults;
  return *faults;
}

Faults::Faults() {
  const char* text = std::getenv("SOFTGPU_FAULT");
  if (!text) return;
  std::string_view rest = text;
  while (error_.empty() && !rest.empty()) {
    bool more = false;
    std::string_view one = rest;
    rest = cut(&one, ';', &more);
    if (!one.empty()) parse(one);
  }
  armed_ = error_.empty() && !rules_.empty();
}

bool Faults::parse(std::string_view text) {
  auto rule = std::make_unique<Rule>();
  rule->text = std::string(text);
  const auto refuse = [&](const std::string& why) {
    error_ = "SOFTGPU_FAULT: \"" + rule->text + "\" " + why;
    return false;
  };
  bool has_effect = false, has_count = false, has_argument = false;
  std::string_view what = text;
  const std::string_view effect = cut(&what, '=', &has_effect);
  std::string_view count = cut(&what, '#', &has_count);
  std::string_view argument = cut(&what, '(', &has_argument);
  if (!has_effect) return refuse("has no effect: write WHAT=EFFECT, as in cuMemAlloc_v2#3=2");
  if (has_argument && (argument.empty() || argument.back() != ')')) return refuse("has no closing parenthesis");
  if (has_argument) argument = trimmed(argument.substr(0, argument.size() - 1));

  if (has_count) {
    if (!count.empty() && count.back() == '+') {
      rule->and_later = true;
      count.remove_suffix(1);
    }
    if (!number(count, &rule->nth) || rule->nth == 0) {
      return refuse("has no count after #: write #3 for the third, #3+ for the third and all later ones");
    }
  }
  if (what == "launch") {
    rule->point = Point::launch;
    rule->kernel = std::string(argument);
    if (has_argument && argument.empty()) return refuse("names no kernel: write launch(NAME)");
  } else if (what == "alloc" || what == "copy") {
    rule->point = what == "alloc" ? Point::allocation : Point::copy;
    if (has_argument && (!number(argument, &rule->bytes) || rule->bytes == 0)) {
      return refuse("has no number of bytes in its parentheses");
    }
  } else if (what == "call") {
    if (has_argument) return refuse("takes no parentheses");
  } else {
    rule->point = Point::function;
    if (has_argument) return refuse("takes no parentheses");
    rule->function = exported_function(std::string(what));
    if (rule->function == 0) {
      return refuse("names neither launch, alloc, copy, call nor a function of the driver (cuMemAlloc_v2, ...)");
    }
  }
  bool has_value = false;
  std::string_view kind = effect;
  const std::string_view value = cut(&kind, ':', &has_value);
  if (kind == "slow") {
    if (!number(value, &rule->slow_ms) || rule->slow_ms == 0 || rule->slow_ms > kMaxSlowMs) {
      return refuse("has no milliseconds: write slow:500, at most slow:600000");
    }
  } else {
    rule->lost = kind == "lost";
    rule->result = CUDA_ERROR_UNKNOWN;
    const std::string_view digits = rule->lost ? value : effect;
    if (!(rule->lost && !has_value) &&
        (!number(digits, &rule->result) || rule->result <= 0 || rule->result > static_cast<int>(kMaxResult))) {
      return refuse("has no effect that is known: write a CUresult (2, 700), slow:MILLISECONDS, lost or lost:CUresult");
    }
  }
  rules_.push_back(std::move(rule));
  return true;
}

CUresult Faults::apply(Rule& rule) {
  const uint64_t now = rule.seen.fetch_add(1) + 1;
  if (now != rule.nth && !(rule.and_later && now > rule.nth)) return CUDA_SUCCESS;
  Driver& driver = Driver::get();
  if (driver.verbose) {
    std::fprintf(stderr, "softgpu: fault %s at its %llu\n", rule.text.c_str(), static_cast<unsigned long long>(now));
  }
  if (rule.slow_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(rule.slow_ms));
  if (!rule.lost) return rule.result;
  lost_ = rule.result;
  for (auto& context : driver.contexts.all()) {
    context->set_fault(rule.result, "the device fell off (SOFTGPU_FAULT)");
    context->cancel = true;  // kernels that run end
  }
  return rule.result;
}

template <class Matches>
CUresult Faults::at(Matches matches) {
  CUresult result = CUDA_SUCCESS;
  for (auto& rule : rules_) {
    if (!matches(*rule)) continue;
    const CUresult one = apply(*rule);
    if (result == CUDA_SUCCESS) result = one;
  }
  return result;
}

CUresult Faults::at_call() {
  if (const int lost = lost_.load()) return lost;
  const Frames frames;
  return at([&](const Rule& rule) {
    return rule.point == Point::call || (rule.point == Point::function && frames.contains(rule.function));
  });
}

CUresult Faults::at_allocation(uint64_t bytes) {
  return at(
      [&](const Rule& rule) { return rule.point == Point::allocation && (rule.bytes == 0 || rule.bytes == bytes); });
}

CUresult Faults::at_launch(std::string_view kernel) {
  return at(
      [&](const Rule& rule) { return rule.point == Point::launch && (rule.kernel.empty() || rule.kernel == kernel); });
}

CUresult Faults::at_copy(uint64_t bytes) {
  return at([&](const Rule& rule) { return rule.point == Point::copy && (rule.bytes == 0 || rule.bytes == bytes); });
}

}  // namespace sg
