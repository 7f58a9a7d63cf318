#include "linker.h"

#include <unordered_set>

#include "handlers.h"

namespace sg::vm {
namespace {

using ptx::Error;
using ptx::Function;
using ptx::Initializer;
using ptx::Module;
using ptx::Variable;

constexpr int kOutOfMemory = 2;
constexpr int kSymbolNotFound = 302;
constexpr uint64_t kMaxModuleBytes = uint64_t{1} << 36;

struct Placed {
  const Variable* variable;
  uint32_t module;
  uint64_t offset;  // in the memory of its kind
};

class Linker {
 public:
  Linker(AddressSpace& memory, Linked* out) : memory_(memory), out_(*out) {}

  void run() {
    for (size_t i = 0; i < out_.texts.size(); ++i) {
      try {
        out_.modules.push_back(ptx::parse(out_.texts[i]));
      } catch (const Error& e) {
        if (out_.texts.size() == 1) throw;
        throw Error(0, "in text " + std::to_string(i + 1) + ": " + e.what(), e.code());
      }
    }
    out_.names.resize(out_.modules.size());
    for (uint32_t m = 0; m < out_.modules.size(); ++m) define(m);
    for (uint32_t m = 0; m < out_.modules.size(); ++m) declare(m);
    place();
    for (const Placed& p : placed_) initialize(p);
  }

 private:
  void define_name(uint32_t m, std::string_view name, bool visible, bool weak, const Symbol& s, uint32_t line) {
    auto& names = out_.names[m];
    if (!visible) {
      if (!names.emplace(name, s).second) throw Error(line, str(name) + " is defined twice");
      return;
    }
    auto [it, fresh] = visible_.emplace(name, Visible{s, weak});
    if (!fresh && !weak && !it->second.weak) throw Error(line, str(name) + " is defined twice");
    if (!fresh && it->second.weak && !weak) it->second = Visible{s, weak};
  }

  void define(uint32_t m) {
    const Module& module = out_.modules[m];
    for (const Function& f : module.functions) {
      if (!f.has_body) continue;
      Symbol s;
      s.kind = Symbol::Kind::function;
      s.function_index = static_cast<uint32_t>(out_.functions.size());
      out_.functions.push_back({&module, m, &f});
      define_name(m, f.name, f.visible || f.is_entry, f.weak, s, f.line);
      if (f.is_entry) out_.kernels[f.name] = s.function_index;
    }
    for (const Variable& v : module.variables) {
      Symbol s;
      s.variable = &v;
      if (v.space == Space::shared) {
        s.kind = Symbol::Kind::shared;
        bool dynamic = v.external || v.unsized;
        define_name(m, v.name, v.visible && !dynamic, v.weak, s, v.line);
        continue;
      }
      if (v.space == Space::param) throw Error(v.line, ".param variable at module scope");
      if (v.external) continue;
      if (v.unsized) throw Error(v.line, "variable " + str(v.name) + " has no size");
      uint64_t& bytes = v.managed ? managed_bytes_ : v.space == Space::constant ? const_bytes_ : bytes_;
      align_ = std::max<uint64_t>(align_, v.alignment());
      uint64_t at = (bytes + v.alignment() - 1) / v.alignment() * v.alignment();
      bytes = at + v.size_bytes();
      if (bytes > kMaxModuleBytes) throw Error(v.line, "variables of the module are too large", kOutOfMemory);
      s.address = placed_.size();  // until place() knows better
      define_name(m, v.name, v.visible, v.weak, s, v.line);
      placed_.push_back({&v, m, at});
    }
  }

  /// Makes visible names of all modules known in module m, and its declarations without a definition.
  void declare(uint32_t m) {
    auto& names = out_.names[m];
    const Module& module = out_.modules[m];
    for (const auto& [name, v] : visible_) names.emplace(name, v.symbol);
    for (const Function& f : module.functions) {
      if (names.count(f.name)) continue;
      Symbol s;
      s.kind = Symbol::Kind::function;
      s.function_index = static_cast<uint32_t>(out_.functions.size());
      out_.functions.push_back({&module, m, &f});
      names.emplace(f.name, s);
    }
    for (const Variable& v : module.variables) {
      if (!names.count(v.name)) {
        throw Error(v.line, "unresolved external variable " + str(v.name), kSymbolNotFound);
      }
    }
    for (auto [alias, target] : module.aliases) {
      auto it = names.find(target);
      if (it == names.end()) throw Error(1, "alias of the unknown function " + str(target));
      names[alias] = it->second;
    }
  }

  void place() {
    bytes_begin_ = (const_bytes_ + align_ - 1) / align_ * align_;
    if (bytes_begin_ + bytes_) {
      out_.memory = memory_.allocate_module_memory(bytes_begin_ + bytes_);
      if (!out_.memory) throw Error(1, "out of memory for the module's variables", kOutOfMemory);
      out_.constants.begin = reinterpret_cast<uint64_t>(out_.memory);
      out_.constants.end = out_.constants.begin + const_bytes_;
    }
    if (managed_bytes_ && !out_.managed) {
      out_.managed = memory_.allocate_managed_memory(managed_bytes_);
      if (!out_.managed) throw Error(1, "out of memory for the module's managed variables", kOutOfMemory);
      out_.owns_managed = true;
    }
    for (auto& names : out_.names) {
      for (auto& [name, s] : names) {
        if (s.kind == Symbol::Kind::variable) s.address = reinterpret_cast<uint64_t>(place_of(placed_[s.address]));
      }
    }
    std::unordered_set<std::string_view> named;
    for (const Placed& p : placed_) {
      const Variable& v = *p.variable;
      if (v.space == Space::constant) out_.const_bytes += static_cast<uint32_t>(v.size_bytes());
      // Compilers leave .visible away where the host's code still asks for the variable by name: all can be found, a
      // visible one before another of the same name.
      auto it = visible_.find(v.name);
      if (it != visible_.end() ? it->second.symbol.variable == &v : named.insert(v.name).second) {
        out_.globals.push_back(
            {std::string(v.name), reinterpret_cast<uint64_t>(place_of(p)), v.size_bytes(), v.managed});
      }
    }
  }

  uint8_t* place_of(const Placed& p) const {
    if (p.variable->managed) return static_cast<uint8_t*>(out_.managed) + p.offset;
    uint64_t begin = p.variable->space == Space::constant ? 0 : bytes_begin_;
    return static_cast<uint8_t*>(out_.memory) + begin + p.offset;
  }

  uint64_t address_of(uint32_t m, const Initializer& e) {
    auto it = out_.names[m].find(e.symbol);
    if (it == out_.names[m].end()) throw Error(e.line, "unknown name " + str(e.symbol));
    const Symbol& s = it->second;
    switch (s.kind) {
      case Symbol::Kind::function:
        out_.address_taken.push_back(s.function_index);
        return kFunctionBase + kFunctionStride * s.function_index;
      case Symbol::Kind::shared:
        throw Error(e.line, "address of shared memory as an initial value");
      default:
        return s.address + static_cast<uint64_t>(e.value);
    }
  }

  void initialize(const Placed& p) {
    const Variable& v = *p.variable;
    if (v.managed && !out_.owns_managed) return;  // their owner has done so, and kernels may have changed them
    uint8_t* to = place_of(p);
    uint32_t bytes = ptx::bytes_of(v.type);
    bool real = v.type == Type::f32 || v.type == Type::f64;
    for (const Initializer& e : v.init) {
      uint64_t value = static_cast<uint64_t>(e.value);
      if (e.is_symbol) {
        value = address_of(p.module, e);
        if (e.mask) value = (value & e.mask) >> __builtin_ctzll(e.mask);
        if (!e.mask && bytes < 8) throw Error(e.line, "address as the initial value of a type that is too small");
      } else if (real) {
        double d = e.is_float ? bits_as<double>(e.value) : static_cast<double>(e.value);
        value = bytes == 8 ? bits_as<uint64_t>(d) : bits_as<uint32_t>(static_cast<float>(d));
      } else if (e.is_float) {
        throw Error(e.line, "floating point initial value of an integer");
      }
      std::memcpy(to, &value, bytes < 8 ? bytes : 8);
      to += bytes;
    }
  }

  struct Visible {
    Symbol symbol;
    bool weak;
  };

  AddressSpace& memory_;
  Linked& out_;
  std::unordered_map<std::string_view, Visible> visible_;
  std::vector<Placed> placed_;
  // Constants lie in front of the rest, so that they are one range.
  uint64_t const_bytes_ = 0, bytes_ = 0, managed_bytes_ = 0;
  uint64_t align_ = 1, bytes_begin_ = 0;
};

}  // namespace

void link(AddressSpace& memory, Linked* out) { Linker(memory, out).run(); }

}  // namespace sg::vm
