// What the parser makes of a PTX text. Names are views into the text, which must outlive the tree.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "types.h"

namespace sg::ptx {

/// Refusal of a text: what() is a sentence with the line in front.
class Error : public std::runtime_error {
 public:
  Error(uint32_t line, const std::string& what, int code = 218)
      : std::runtime_error("line " + std::to_string(line) + ": " + what), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

struct Operand {
  enum class Kind : uint8_t {
    name,     // register, special register, variable, label; value = byte offset of name+imm
    integer,  // value
    f32,      // value = bits
    f64,      // value = bits
    address,  // [name+value] or [value]; sub = further coordinates
    vector,   // {sub...}
    list,     // (sub...), only in calls
  };
  Kind kind = Kind::name;
  bool negated = false;  // !p
  bool minus = false;    // -x, for registers only
  char component = 0;    // %v.x -> 'x'
  uint32_t line = 0;
  std::string_view name;    // empty: none
  std::string_view second;  // p|q: the q
  int64_t value = 0;
  std::vector<Operand> sub;
};

struct Instruction {
  uint32_t line = 0;
  std::string_view guard;
  bool guard_negated = false;
  std::string_view opcode;
  std::vector<std::string_view> modifiers;
  std::vector<Operand> operands;
};

/// One element of an initialiser: a number, or an address plus an offset, of which `mask` picks bytes.
struct Initializer {
  bool is_symbol = false;
  bool is_float = false;  // value = bits of a double
  bool generic = false;
  std::string_view symbol;
  int64_t value = 0;
  uint64_t mask = 0;
  uint32_t line = 0;
};

struct Variable {
  uint32_t line = 0;
  Space space = Space::reg;
  Type type = Type::none;
  uint32_t vector_width = 1;
  uint32_t align_bytes = 0;
  std::string_view name;
  uint64_t elements = 1;  // product of the dimensions
  bool is_array = false;
  bool unsized = false;         // name[]
  uint32_t register_count = 0;  // %r<n>
  bool external = false, weak = false, visible = false;
  bool managed = false;
  std::vector<Initializer> init;

  uint64_t element_bytes() const { return uint64_t{bytes_of(type)} * vector_width; }
  uint64_t size_bytes() const { return element_bytes() * elements; }
  uint32_t alignment() const {
    return align_bytes ? align_bytes : (element_bytes() ? static_cast<uint32_t>(element_bytes()) : 4);
  }
};

/// What a callee looks like from outside; also .callprototype.
struct Signature {
  std::vector<Variable> returns;
  std::vector<Variable> params;
};

struct Statement {
  enum class Kind : uint8_t { instruction, label, variable, open, close, branch_targets, prototype, call_targets };
  Kind kind = Kind::instruction;
  uint32_t line = 0;
  uint32_t index = 0;                    // into the function's instructions, variables or signatures
  std::string_view name;                 // label, or the label of a list
  std::vector<std::string_view> labels;  // branch_targets
};

struct Function {
  uint32_t line = 0;
  std::string_view name;
  bool is_entry = false, external = false, weak = false, visible = false, has_body = false;
  Signature signature;
  uint32_t max_threads[3] = {0, 0, 0};
  uint32_t required_threads[3] = {0, 0, 0};
  std::vector<Statement> body;
  std::vector<Instruction> instructions;
  std::vector<Variable> variables;
  std::vector<Signature> prototypes;
};

struct Module {
  int version = 0;  // 10 * major + minor
  int target_sm = 0;
  uint32_t address_bytes = 8;
  std::vector<Variable> variables;
  std::vector<Function> functions;
  std::vector<std::pair<std::string_view, std::string_view>> aliases;  // alias, aliasee
};

/// Throws Error.
Module parse(std::string_view text);

}  // namespace sg::ptx
