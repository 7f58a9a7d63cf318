// Libraries and kernels: context-independent code, loaded as a module into each context that uses it.
#ifndef ORION_SHIM_LIBRARY_H
#define ORION_SHIM_LIBRARY_H

#include "state.h"

#define ORION_PARAM_MAX_BYTES 32764u

/// The kernel's function in the current context.
CUresult orion_kernel_function(CUkernel handle, orion_function** function);

/// module.c: makes a loaded module's handle. `library`: handle of its owner, 0: none.
CUmodule orion_module_publish(orion_module* module, orion_context* context, uint32_t function_count, uint64_t library);
/// module.c: calls `put` for each name that `op` (LIBRARY_NAMES, MODULE_NAMES; `skip` is its field) lists, at most
/// `limit` times.
CUresult orion_each_name(orion_session* session, orion_op* op, uint32_t op_bytes, uint32_t* skip, uint32_t limit,
                         CUresult (*put)(void* to, const char* name), void* to, uint32_t* total);
void orion_occupancy_forget(orion_function* function);  // occupancy.c; nobody uses the entry
CUresult orion_function_get_attribute(const orion_function* function, CUfunction_attribute attribute, int* value);
CUresult orion_function_set_attribute(orion_function* function, CUfunction_attribute attribute, int value);
CUresult orion_function_param_info(const orion_function* function, size_t index, size_t* offset, size_t* bytes);

#endif
