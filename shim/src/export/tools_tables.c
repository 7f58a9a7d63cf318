// Four small tables of the runtime: hooks for tools (none is ever attached), the thread's context, context wrapping,
// error logging.
#include "export.h"

enum { HOOKS_SLOTS = 7, THREAD_SLOTS = 3, CHECKS_SLOTS = 15, LOGGING_SLOTS = 3 };

static CUresult nothing(void) { return CUDA_SUCCESS; }

// ---------------------------------------------------------------------------------------------------------- hooks

/// Flags that tools set for each function of the runtime. All stay zero: no tool. The runtime may write, and reads
/// words, so there is one word for each of the flags that the driver counts.
static uint32_t function_flags[1024], other_flags[14];

static void give_function_flags(void** flags, size_t* count) {
  *flags = function_flags;
  *count = sizeof function_flags / sizeof function_flags[0];
}

static void give_other_flags(void** flags, size_t* count) {
  *flags = other_flags;
  *count = sizeof other_flags / sizeof other_flags[0];
}

const void* orion_hooks_table(void) {
  static orion_export_slot slots[HOOKS_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_HOOKS, HOOKS_SLOTS);
  for (int i = 1; i < HOOKS_SLOTS; i++) slots[i] = ORION_EXPORT_SLOT(nothing);
  slots[2] = ORION_EXPORT_SLOT(give_function_flags);
  slots[6] = ORION_EXPORT_SLOT(give_other_flags);
  return slots;
}

// ---------------------------------------------------------------------------------------------------------- thread

static CUresult current_context(CUcontext* context) { return cuCtxGetCurrent(context); }

const void* orion_thread_table(void) {
  static orion_export_slot slots[THREAD_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_THREAD, THREAD_SLOTS);
  slots[2] = ORION_EXPORT_SLOT(current_context);
  return slots;
}

// ---------------------------------------------------------------------------------------------------------- checks

/// No context is wrapped in another one.
static CUresult is_wrapped(CUcontext context, uint32_t* wrapped, void** inner) {
  (void)context, (void)inner;
  ORION_REQUIRE(wrapped != NULL, CUDA_ERROR_INVALID_VALUE);
  *wrapped = 0;
  return CUDA_SUCCESS;
}

static uint32_t zero(void) { return 0; }

const void* orion_checks_table(void) {
  static orion_export_slot slots[CHECKS_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_CHECKS, CHECKS_SLOTS);
  slots[2] = ORION_EXPORT_SLOT(is_wrapped);
  slots[3] = ORION_EXPORT_SLOT(zero);
  return slots;
}

// ---------------------------------------------------------------------------------------------------------- logging

const void* orion_logging_table(void) {
  static orion_export_slot slots[LOGGING_SLOTS];
  if (slots[0].bytes != 0) return slots;
  orion_table_begin(slots, ORION_TABLE_LOGGING, LOGGING_SLOTS);
  slots[1] = ORION_EXPORT_SLOT(nothing);
  slots[2] = ORION_EXPORT_SLOT(nothing);  // suspends and resumes the driver's error log around calls that may fail
  return slots;
}
