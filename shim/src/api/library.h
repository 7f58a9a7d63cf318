// Libraries and kernels: context-independent code, loaded as a module into each context that uses it.
#ifndef ORION_SHIM_LIBRARY_H
#define ORION_SHIM_LIBRARY_H

#include "state.h"

#define ORION_PARAM_MAX_BYTES 32764u

/// The kernel's function in the current context.
CUresult orion_kernel_function(CUkernel handle, orion_function** function);

CUresult orion_function_get_attribute(const orion_function* function, CUfunction_attribute attribute, int* value);
CUresult orion_function_set_attribute(orion_function* function, CUfunction_attribute attribute, int value);
CUresult orion_function_param_info(const orion_function* function, size_t index, size_t* offset, size_t* bytes);

#endif
