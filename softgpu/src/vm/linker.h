// Modules of a program put together: names resolved, variables in memory.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "decode.h"

namespace sg::vm {

struct FunctionRef {
  const ptx::Module* module = nullptr;
  uint32_t module_index = 0;
  const ptx::Function* function = nullptr;
};

struct Linked {
  std::vector<std::string> texts;
  std::vector<ptx::Module> modules;
  std::vector<FunctionRef> functions;
  std::vector<std::unordered_map<std::string_view, Symbol>> names;  // per module
  std::unordered_map<std::string_view, uint32_t> kernels;           // name -> index into functions
  std::vector<uint32_t> address_taken;                              // functions that initialisers name
  std::vector<Global> globals;
  uint32_t const_bytes = 0;
  void* memory = nullptr;
  Range constants;            // in memory
  void* managed = nullptr;    // where the managed variables lie
  bool owns_managed = false;  // they are this program's, and not another's
};

/// Fills `out` from out->texts. Throws ptx::Error, whose code() is a CUresult. out->memory, if set, belongs to the
/// caller, also after an error; so does out->managed, if out->owns_managed.
void link(AddressSpace& memory, Linked* out);

}  // namespace sg::vm
