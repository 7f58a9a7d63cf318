// Tables of cuBLASLt and cuFFT: context numbers, the functions of a module, and one whose presence is enough.
#include <stdlib.h>

#include "export.h"

// Each has one slot in which the driver has no function.
enum { CONTEXT_SLOTS = 93, CONTEXT_EMPTY = 91, MODULE_SLOTS = 99, MODULE_EMPTY = 93, BLAS_SLOTS = 17 };

_Static_assert((int)MODULE_SLOTS <= (int)ORION_LONG_SLOTS && (int)CONTEXT_SLOTS <= (int)ORION_LONG_SLOTS &&
                   (int)BLAS_SLOTS <= (int)ORION_SHORT_SLOTS,
               "every slot has a function");

/// A number that no two contexts of the process share; 0 for no context.
static CUresult context_number(CUcontext context, uint64_t* number) {
  ORION_ENTER();
  ORION_REQUIRE(number != NULL, CUDA_ERROR_INVALID_VALUE);
  unsigned long long id = 0;
  const CUresult result = context == NULL ? CUDA_SUCCESS : cuCtxGetId(context, &id);
  if (result == CUDA_SUCCESS) *number = id;
  return result;
}

const void* orion_context_table(void) {
  static orion_export_slot slots[CONTEXT_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_CONTEXT, CONTEXT_SLOTS);
  slots[4] = ORION_EXPORT_SLOT(context_number);
  slots[CONTEXT_EMPTY].function = NULL;
  return slots;
}

/// Calls `each` once for every function of the module and returns how many there are.
static uint64_t for_each_function(CUcontext context, CUmodule module, uint64_t (*each)(void*, CUfunction, uint64_t),
                                  void* argument) {
  (void)context;  // a module knows its own
  unsigned count = 0;
  if (each == NULL || cuModuleGetFunctionCount(&count, module) != CUDA_SUCCESS || count == 0) return 0;
  CUfunction* functions = calloc(count, sizeof(CUfunction));
  if (functions == NULL) return 0;
  const CUresult result = cuModuleEnumerateFunctions(functions, count, module);
  for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++) (void)each(argument, functions[i], 0);
  free(functions);
  return result == CUDA_SUCCESS ? count : 0;
}

const void* orion_module_table(void) {
  static orion_export_slot slots[MODULE_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_MODULE, MODULE_SLOTS);
  slots[7] = ORION_EXPORT_SLOT(for_each_function);
  slots[MODULE_EMPTY].function = NULL;
  return slots;
}

/// cuBLASLt asks for bytes of the driver's and goes on without them, but never without the table.
static CUresult no_bytes(uint8_t** begin, uint8_t** end) {
  if (begin != NULL) *begin = NULL;
  if (end != NULL) *end = NULL;
  return CUDA_ERROR_NOT_SUPPORTED;
}

static CUresult give_bytes_back(void) { return CUDA_SUCCESS; }

const void* orion_blas_table(void) {
  static orion_export_slot slots[BLAS_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_BLAS, BLAS_SLOTS);
  slots[4] = ORION_EXPORT_SLOT(no_bytes);
  slots[13] = ORION_EXPORT_SLOT(give_bytes_back);
  return slots;
}
