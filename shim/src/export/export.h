// The driver's private function tables, which NVIDIA's libraries ask for by UUID (cuGetExportTable). All are answered
// here, from what the public API knows; nothing of them travels. One fixed table for each UUID, for the whole life of
// the process: the runtime's self-test covers their addresses.
#ifndef ORION_SHIM_EXPORT_H
#define ORION_SHIM_EXPORT_H

#include <stddef.h>

#include "api.h"

/// One word of a table. Word 0 of most tables is the table's size in bytes.
typedef union orion_export_slot {
  size_t bytes;
  void (*function)(void);
} orion_export_slot;

#define ORION_EXPORT_SLOT(name) ((orion_export_slot){.function = (void (*)(void))(name)})

enum orion_table_id {
  ORION_TABLE_RUNTIME,
  ORION_TABLE_HOOKS,
  ORION_TABLE_THREAD,
  ORION_TABLE_CHECKS,
  ORION_TABLE_SELF_TEST,
  ORION_TABLE_LOGGING,
  ORION_TABLE_BLAS,
  // Below: tables of many words.
  ORION_TABLE_CONTEXT,
  ORION_TABLE_MODULE,
  ORION_TABLE_COUNT,
  ORION_TABLE_FIRST_LONG = ORION_TABLE_CONTEXT,
};

/// Longest tables: of the small kind and of the long kind.
enum { ORION_SHORT_SLOTS = 20, ORION_LONG_SLOTS = 100 };

/// A function that says once that `slot` was called, and answers CUDA_ERROR_NOT_SUPPORTED.
orion_export_slot orion_unexpected_export(enum orion_table_id table, unsigned slot);

/// Fills `slots` with the size and unexpected slots; the owner then sets those that it knows.
void orion_table_begin(orion_export_slot* slots, enum orion_table_id table, unsigned count);

// Each returns its table, filled at the first call. Called one at a time.
const void* orion_runtime_table(void);
const void* orion_hooks_table(void);
const void* orion_thread_table(void);
const void* orion_checks_table(void);
const void* orion_logging_table(void);
const void* orion_storage_table(void);
const void* orion_self_test_table(void);
const void* orion_context_table(void);
const void* orion_module_table(void);
const void* orion_blas_table(void);

#endif
