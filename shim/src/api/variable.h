// `__managed__` variables of libraries and modules: pages of the program at the address that the worker's driver has
// given the variable, kept equal by coherent.c.
#ifndef ORION_SHIM_VARIABLE_H
#define ORION_SHIM_VARIABLE_H

#include "managed.h"

/// An allocation of kind ORION_MEMORY_VARIABLE.
typedef struct orion_variable {
  orion_managed managed;  // first
  struct orion_variable* next;
  uint64_t owner;
  bool is_bound;  // its owner is a module, which ends with its context
} orion_variable;

/// The worker has told a variable of `owner` (handle of a library, or of a module in `context`; NULL for a library):
/// from now on the program has it at its address. Nothing to do when it is there already.
CUresult orion_variable_add(orion_session* session, uint64_t owner, orion_context* context, const char* name,
                            uint64_t address, uint64_t bytes);
/// Before the owner is unloaded.
void orion_variables_end(uint64_t owner);
/// Those of modules of a context that is about to end.
void orion_variables_end_in(const orion_context* context);
/// Whose memory it is for a copy that the calling thread makes.
orion_context* orion_variable_context(const orion_range* range);

#endif
