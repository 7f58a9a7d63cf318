// Functions that a program calls and the machine provides: printf, assert, malloc, free.
#include <cstdio>
#include <mutex>

#include "access.h"

namespace sg::vm {
namespace {

constexpr size_t kMaxText = 4096;  // of one format or string

uint64_t argument(const Warp& w, const CallSite& site, size_t i, uint32_t lane) {
  if (i >= site.args.size()) return 0;
  const Formal& f = site.args[i];
  const uint8_t* p = f.in_register ? w.regs + f.offset + lane * (f.bytes == 8 ? 8 : 4)
                                   : w.frame->local + uint64_t{lane} * w.frame->code->local_bytes + f.offset;
  uint64_t v = 0;
  std::memcpy(&v, p, f.bytes < 8 ? f.bytes : 8);
  return v;
}

void set_result(const Warp& w, const CallSite& site, uint32_t lane, uint64_t value) {
  if (site.results.empty()) return;
  const Formal& f = site.results[0];
  uint8_t* p = f.in_register ? w.regs + f.offset + lane * (f.bytes == 8 ? 8 : 4)
                             : w.frame->local + uint64_t{lane} * w.frame->code->local_bytes + f.offset;
  std::memcpy(p, &value, f.bytes < 8 ? f.bytes : 8);
}

/// The next argument of a printf: an int in 4 bytes, everything else in 8, each at its own alignment.
bool next_argument(Warp& w, uint64_t* at, uint32_t bytes, uint64_t* value) {
  *at = (*at + bytes - 1) / bytes * bytes;
  Range r;
  if (!find_range(w, *at, bytes, &r)) {
    w.raise(Fault::illegal_address, *at);
    return false;
  }
  *value = bytes == 8 ? load_from<uint64_t>(*at) : load_from<uint32_t>(*at);
  *at += bytes;
  return true;
}

struct Conversion {
  std::string flags;     // "%-08.3" without length and letter
  bool is_long = false;  // 8-byte integer
  char letter = 0;
};

/// Appends one formatted argument. `c.flags` came from a kernel: only digits, "-+ #0." ever get into it.
bool convert(Warp& w, const Conversion& c, uint64_t* at, std::string* out) {
  char buffer[512];
  uint64_t v = 0;
  int n = 0;
  switch (c.letter) {
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o': {
      if (!next_argument(w, at, c.is_long ? 8 : 4, &v)) return false;
      std::string f = c.flags + "ll" + c.letter;
      bool is_signed = c.letter == 'd' || c.letter == 'i';
      if (!c.is_long && is_signed) v = static_cast<uint64_t>(int64_t{static_cast<int32_t>(v)});
      n = std::snprintf(buffer, sizeof buffer, f.c_str(), static_cast<long long>(v));
      break;
    }
    case 'c':
      if (!next_argument(w, at, 4, &v)) return false;
      n = std::snprintf(buffer, sizeof buffer, (c.flags + 'c').c_str(), static_cast<int>(v));
      break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
      if (!next_argument(w, at, 8, &v)) return false;
      n = std::snprintf(buffer, sizeof buffer, (c.flags + c.letter).c_str(), bits_as<double>(v));
      break;
    case 'p':
      if (!next_argument(w, at, 8, &v)) return false;
      n = std::snprintf(buffer, sizeof buffer, (c.flags + 'p').c_str(), reinterpret_cast<void*>(v));
      break;
    case 's': {
      if (!next_argument(w, at, 8, &v)) return false;
      std::string text;
      if (v == 0) {
        text = "(null)";
      } else if (!read_string(w, v, kMaxText, &text)) {
        return false;
      }
      std::string big(text.size() + sizeof buffer, '\0');
      n = std::snprintf(big.data(), big.size(), (c.flags + 's').c_str(), text.c_str());
      if (n > 0) out->append(big, 0, std::min<size_t>(static_cast<size_t>(n), big.size() - 1));
      return true;
    }
    default:
      return true;
  }
  if (n > 0) out->append(buffer, std::min<size_t>(static_cast<size_t>(n), sizeof buffer - 1));
  return true;
}

/// Text of a printf. *arguments: how many were used.
bool format_text(Warp& w, const std::string& format, uint64_t at, std::string* out, int* arguments) {
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out->push_back(format[i]);
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == '%') {
      out->push_back('%');
      ++i;
      continue;
    }
    Conversion c;
    c.flags = "%";
    size_t k = i + 1;
    int width = 0;
    for (; k < format.size(); ++k) {
      char ch = format[k];
      if (ch == '*') {
        uint64_t v;
        if (!next_argument(w, &at, 4, &v)) return false;
        int32_t wide = static_cast<int32_t>(v);
        c.flags += std::to_string(wide > 400 ? 400 : wide < -400 ? -400 : wide);
        ++*arguments;
      } else if (ch >= '0' && ch <= '9') {
        width = ch == '0' && width == 0 ? 0 : width * 10 + (ch - '0');
        if (width <= 400) c.flags += ch;
        if (width > 400) width = 401;
      } else if (ch == '-' || ch == '+' || ch == ' ' || ch == '#' || ch == '.') {
        width = 0;
        c.flags += ch;
      } else if (ch == 'l' || ch == 'j' || ch == 'z' || ch == 't') {
        c.is_long = true;
      } else if (ch != 'h') {
        break;
      }
    }
    if (k >= format.size()) {
      out->append(format, i, std::string::npos);
      return true;
    }
    c.letter = format[k];
    if (c.flags.size() > 32 || !std::strchr("diuxXocseEfFgGaAp", c.letter)) {
      out->append(format, i, k - i + 1);
    } else {
      if (!convert(w, c, &at, out)) return false;
      ++*arguments;
    }
    i = k;
  }
  return true;
}

void print(Warp& w, const std::string& text) {
  static std::mutex* const mutex = new std::mutex;  // one line of one thread at a time, of all launches
  std::lock_guard<std::mutex> lock(*mutex);
  const auto* to = w.block->launch->print;
  if (to && *to) {
    (*to)(text);
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
}

void run_vprintf(Warp& w, const CallSite& site, uint32_t mask) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    std::string format, text;
    int used = 0;
    if (!read_string(w, argument(w, site, 0, l), kMaxText, &format)) return;
    if (!format_text(w, format, argument(w, site, 1, l), &text, &used)) return;
    print(w, text);
    set_result(w, site, l, static_cast<uint32_t>(used));
  }
}

void run_assert(Warp& w, const CallSite& site, uint32_t mask) {
  const Block& b = *w.block;
  const uint32_t* n = b.launch->launch->block;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    std::string message, file, function;
    if (!read_string(w, argument(w, site, 0, l), kMaxText, &message)) return;
    if (!read_string(w, argument(w, site, 1, l), kMaxText, &file)) return;
    uint64_t at = argument(w, site, 3, l);
    if (at && !read_string(w, at, kMaxText, &function)) return;
    uint64_t t = uint64_t{w.index} * kLanes + l;
    char where[160];
    std::snprintf(where, sizeof where, "block: [%u,%u,%u], thread: [%u,%u,%u]", b.index[0], b.index[1], b.index[2],
                  static_cast<uint32_t>(t % n[0]), static_cast<uint32_t>(t / n[0] % n[1]),
                  static_cast<uint32_t>(t / n[0] / n[1]));
    std::string text = file + ":" + std::to_string(static_cast<uint32_t>(argument(w, site, 2, l))) + ": " + function +
                       ": " + where + " Assertion `" + message + "` failed.\n";
    std::fwrite(text.data(), 1, text.size(), stderr);
    if (rest == mask) w.raise(Fault::assert_failed, 0, text.substr(0, text.size() - 1));
  }
}

void run_malloc(Warp& w, const CallSite& site, uint32_t mask) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    uint64_t bytes = argument(w, site, 0, l);
    const uint64_t limit_bytes = w.block->launch->launch->heap_bytes;
    Heap& heap = *w.block->launch->heap;
    std::lock_guard<std::mutex> lock(heap.mutex);
    const bool fits = bytes != 0 && heap.used_bytes <= limit_bytes && bytes <= limit_bytes - heap.used_bytes;
    void* p = fits ? w.block->launch->memory->allocate_module_memory(bytes) : nullptr;
    if (p) {
      heap.allocations.emplace(reinterpret_cast<uint64_t>(p), bytes);
      heap.used_bytes += bytes;
    }
    set_result(w, site, l, reinterpret_cast<uint64_t>(p));
  }
}

void run_free(Warp& w, const CallSite& site, uint32_t mask) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint32_t l = static_cast<uint32_t>(__builtin_ctz(rest));
    uint64_t p = argument(w, site, 0, l);
    if (p == 0) continue;
    Heap& heap = *w.block->launch->heap;
    std::lock_guard<std::mutex> lock(heap.mutex);
    const auto found = heap.allocations.find(p);
    if (found == heap.allocations.end()) return w.raise(Fault::illegal_address, p);
    heap.used_bytes -= found->second;
    heap.allocations.erase(found);
    w.block->launch->memory->free_module_memory(reinterpret_cast<void*>(p));
  }
}

}  // namespace

uint32_t builtin_named(std::string_view name) {
  if (name == "vprintf") return kBuiltinVprintf;
  if (name == "__assertfail" || name == "__assert_fail") return kBuiltinAssert;
  if (name == "malloc") return kBuiltinMalloc;
  if (name == "free") return kBuiltinFree;
  return kBuiltinNone;
}

void run_builtin(Warp& w, const CallSite& site, uint32_t mask) {
  switch (site.builtin) {
    case kBuiltinVprintf:
      return run_vprintf(w, site, mask);
    case kBuiltinAssert:
      return run_assert(w, site, mask);
    case kBuiltinMalloc:
      return run_malloc(w, site, mask);
    case kBuiltinFree:
      return run_free(w, site, mask);
    default:
      break;
  }
}

}  // namespace sg::vm
