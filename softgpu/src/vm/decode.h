// AST of one function -> Code. Builders, named by the rows of ../ptx/ops.def, turn one PTX instruction into one or
// more Insn with the help of this class.
#pragma once
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../ptx/ast.h"
#include "vm.h"

namespace sg::vm {

using ptx::Operand;
using ptx::Space;
using ptx::Type;

/// Bytes of one lane of a register for values of so many bytes.
inline uint32_t cell_bytes(uint32_t bytes) { return bytes <= 4 ? 4 : bytes; }
/// A name out of a text of a client, for a message.
inline std::string str(std::string_view s) { return std::string(s.substr(0, 200)); }

class Decoder;
using Builder = void (*)(Decoder& d);

/// One row of ops.def.
struct OpRow {
  const char* opcode;
  const char* pattern;
  Builder build;
};

struct OpRows {
  const OpRow* rows;
  size_t count;
};

// Of files that are built for more than one instruction set.
inline namespace SG_ISA {
OpRows int_rows();
OpRows logic_rows();
OpRows float_rows();
OpRows half_rows();
OpRows cvt_rows();
OpRows mem_rows();
}  // namespace SG_ISA

OpRows tex_rows();
OpRows atom_rows();
OpRows warp_rows();
OpRows mma_rows();
OpRows wmma_rows();
OpRows mbarrier_rows();
OpRows stack_rows();
OpRows control_rows();

/// The words after an opcode, matched against a row. Each must be asked for by the builder (or be marked as without
/// effect in the row); what nobody asked for refuses the instruction, so that no modifier is ever ignored silently.
class Modifiers {
 public:
  bool has(std::string_view word);
  /// The one of `words` that is present, or "".
  std::string_view one_of(std::initializer_list<std::string_view> words);
  /// The n-th word that is a type. Type::none if there are fewer.
  Type type(size_t n = 0);
  void add(std::string_view word, bool without_effect);
  const std::string_view* unused() const;
  void clear();

 private:
  struct Word {
    std::string_view text;
    bool used;
  };
  std::vector<Word> words_;
};

/// A name at module scope, after linking.
struct Symbol {
  enum class Kind : uint8_t { variable, shared, function };
  Kind kind = Kind::variable;
  uint64_t address = 0;  // variable
  const ptx::Variable* variable = nullptr;
  uint32_t function_index = 0;
};

/// What the decoder asks about the world outside the function. Implemented by the linker.
class Resolver {
 public:
  virtual ~Resolver() = default;
  virtual const Symbol* find(std::string_view name) = 0;
  /// The code of a function of this image, decoded sooner or later; null if it has no body.
  virtual const Code* function(uint32_t function_index) = 0;
  /// Offset of a shared variable in the image's shared memory; `dynamic` if it is an unsized extern array.
  virtual uint32_t shared_offset(const ptx::Variable& variable, bool* dynamic) = 0;
  virtual void uses_indirect_calls() = 0;
};

struct Address {
  uint32_t slot = 0;
  bool wide = true;  // 8-byte lanes
  int64_t imm = 0;
  // A variable that lies in the frame's local bytes or the kernel's parameters, at a fixed place:
  bool in_frame = false, in_params = false;
  uint32_t offset = 0;  // of the access
};

class Decoder {
 public:
  Decoder(const ptx::Function& function, Code* code, Kernel* kernel, Resolver* resolver, int version, int target_sm)
      : function_(function), code_(*code), kernel_(kernel), resolver_(*resolver), version_(version), sm_(target_sm) {}

  /// Throws ptx::Error.
  void run();

  // For builders.
  const ptx::Instruction& in() const { return *in_; }
  Modifiers mods;
  size_t count() const { return in_->operands.size(); }
  const Operand& op(size_t i) const;
  void expect_operands(size_t least, size_t most);
  void expect_operands(size_t n) { expect_operands(n, n); }
  [[noreturn]] void fail(const std::string& what) const;
  std::string text() const;  // opcode with modifiers

  uint32_t src(size_t i, Type type) { return src(op(i), type); }
  uint32_t src(const Operand& o, Type type);
  uint32_t dst(size_t i, Type type) { return dst(op(i), type); }
  uint32_t dst(const Operand& o, Type type);
  /// Like src and dst, but the register may be wider than the type (ld, st, cvt).
  uint32_t wide_src(const Operand& o, Type type);
  uint32_t wide_dst(const Operand& o, Type type);
  /// Copies what wide_dst handed out to the real registers. After the instruction.
  void finish_wide();
  uint32_t pred_src(const Operand& o);
  uint32_t pred_dst(const Operand& o);
  uint32_t pred_dst(std::string_view name, uint32_t line);
  Address address(const Operand& o, Space space, uint32_t bytes);
  uint32_t constant(uint64_t value, uint32_t bytes);
  uint32_t fill(Fill kind, uint32_t bytes, uint64_t value = 0);
  uint32_t temp(uint32_t bytes);  // lanes of 4, 8 or 16 bytes
  uint32_t temp_pred();
  bool is_pred(const Operand& o);
  /// The value of an operand that must be an integer constant.
  int64_t integer(const Operand& o) const;
  bool is_register(const Operand& o);
  uint32_t register_bytes(const Operand& o);  // per lane: 4, 8, 16; 0 if not a register

  Insn& emit(Handler fn, Kind kind = Kind::data);
  /// Marks a load or store that may share its AccessPlan with others at the same address register.
  /// With a plan that is already there it runs as `again`, unless that is null.
  void plan_access(const Insn& insn, const Address& address, uint32_t bytes, Handler again);
  /// Says that the load reads at a fixed place of the kernel's parameters.
  void reads_only_parameters() { parameter_load_ = true; }
  uint32_t aux(const std::vector<uint32_t>& list);
  Code& code() { return code_; }
  Resolver& resolver() { return resolver_; }
  bool is_entry() const { return function_.is_entry; }
  int target_sm() const { return sm_; }
  int version() const { return version_; }  // of PTX, 10 * major + minor

  // Control flow.
  uint32_t label(const Operand& o);  // id for branch_to
  std::vector<uint32_t> branch_targets(std::string_view name);
  void jump(Insn& insn, uint32_t label_id);
  void jump_table(uint32_t aux_index, const std::vector<uint32_t>& label_ids);
  const ptx::Signature* prototype(std::string_view name) const;
  const Symbol* symbol(std::string_view name) { return resolver_.find(name); }
  /// A variable of the function (register, .param or .local) as an argument or result of a call.
  Formal formal(const Operand& o, bool result);

 private:
  struct Register {
    Type type = Type::none;
    uint32_t slot = 0;
  };
  struct Range {
    std::string_view prefix;
    uint32_t count;
    Type type;
  };
  struct Local {
    const ptx::Variable* variable;
    uint32_t offset;
    bool kernel_param;
  };
  struct Scope {
    std::unordered_map<std::string_view, Register> registers;
    std::vector<Range> ranges;
    std::unordered_map<std::string_view, Local> locals;
    std::unordered_map<std::string_view, const ptx::Variable*> shared;
    uint32_t id = 0;
  };
  struct Widen {
    uint32_t temp, dst;
    Type type;
    uint32_t bytes;
  };

  void declare(const ptx::Variable& v);
  void params();
  void scan_labels();
  void hoist();
  void drop(const std::vector<bool>& gone);
  void share_plans();
  bool is_pure() const;
  uint32_t written(uint32_t slot);
  uint32_t read(uint32_t slot);
  void decode(const ptx::Instruction& i);
  Register* find_register(std::string_view name);
  const Local* find_local(std::string_view name) const;
  const ptx::Variable* find_shared(std::string_view name) const;
  Register reg(const Operand& o);
  uint32_t allocate(uint32_t bytes, uint32_t align);
  uint32_t allocate_type(Type type);
  uint32_t allocate_local(uint64_t bytes, uint32_t align);
  /// Slot with the address of a variable, special register or function; 0xffffffff if the name is none of these.
  uint32_t named_value(const Operand& o, uint32_t bytes);

  const ptx::Function& function_;
  Code& code_;
  Kernel* kernel_;
  Resolver& resolver_;
  int version_;
  int sm_;
  const ptx::Instruction* in_ = nullptr;
  std::vector<Scope> scopes_;
  uint32_t next_scope_ = 0;
  std::map<std::pair<uint32_t, std::string_view>, uint32_t> labels_;  // (scope, name) -> id
  std::vector<uint32_t> label_pc_;
  std::map<std::string_view, std::vector<std::string_view>> target_lists_;
  std::map<std::string_view, const ptx::Signature*> prototypes_;
  std::vector<std::pair<uint32_t, uint32_t>> jumps_;        // insn, label id
  std::vector<std::pair<uint32_t, uint32_t>> table_jumps_;  // aux index, label id
  std::map<std::tuple<uint8_t, uint32_t, uint64_t>, uint32_t> fills_;
  std::vector<Widen> widen_;
  // What each PTX instruction became: insns [first, end), which write the registers writes_[from, to) and read
  // reads_[reads_from, reads_to). Registers that only the unit's own insns see are in neither.
  struct Unit {
    uint32_t first, end, from, to, reads_from, reads_to;
    bool pure;  // no effect but on those it writes, no input but those it reads; cannot fault
    bool move;
  };
  struct Access {
    uint32_t insn, slot, bytes;
    bool wide;
    Handler again;
  };
  std::vector<Unit> units_;
  std::vector<uint32_t> writes_, reads_;
  bool parameter_load_ = false;
  std::vector<Access> accesses_;
  std::vector<std::string> component_names_;
  uint32_t next_pred_ = 0, pred_room_ = 0;
};

/// Finds the row for the instruction, fills `mods`. Throws ptx::Error that names what is unknown.
const OpRow& match_row(const ptx::Instruction& i, Modifiers* mods);

}  // namespace sg::vm
