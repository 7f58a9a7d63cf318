// What stands in every slot whose meaning is not known: it says once that somebody called it.
#include "export.h"

static const char* const table_names[ORION_TABLE_COUNT] = {
    [ORION_TABLE_RUNTIME] = "6bd5fb6c", [ORION_TABLE_HOOKS] = "a094798c",     [ORION_TABLE_THREAD] = "42d85a81",
    [ORION_TABLE_CHECKS] = "263e8860",  [ORION_TABLE_SELF_TEST] = "d4082055", [ORION_TABLE_LOGGING] = "f8cff951",
    [ORION_TABLE_CONTEXT] = "21318c60", [ORION_TABLE_MODULE] = "6e163fbe",    [ORION_TABLE_BLAS] = "1734dc26",
};

static CUresult called(enum orion_table_id table, unsigned slot) {
  static _Atomic bool told[ORION_TABLE_COUNT][ORION_LONG_SLOTS];
  if (!atomic_exchange(&told[table][slot], true)) {
    orion_log(ORION_LOG_WARN,
              "slot %u of export table %s... was called, whose meaning is not known, and answered with "
              "CUDA_ERROR_NOT_SUPPORTED; please report this with the name of the program",
              slot, table_names[table]);
  }
  return CUDA_ERROR_NOT_SUPPORTED;
}

// A caller hands over nothing that says which slot it called, so each has a function of its own.
#define ONE(table, n) \
  static CUresult table##_##n(void) { return called(table, n); }
#define TEN(what, table, tens)                                                                             \
  what(table, tens##0) what(table, tens##1) what(table, tens##2) what(table, tens##3) what(table, tens##4) \
      what(table, tens##5) what(table, tens##6) what(table, tens##7) what(table, tens##8) what(table, tens##9)
#define SHORT(what, table) TEN(what, table, ) TEN(what, table, 1)
#define LONG(what, table) \
  SHORT(what, table)      \
  TEN(what, table, 2)     \
  TEN(what, table, 3)     \
  TEN(what, table, 4)     \
  TEN(what, table, 5) TEN(what, table, 6) TEN(what, table, 7) TEN(what, table, 8) TEN(what, table, 9)
#define NAME(table, n) table##_##n,

SHORT(ONE, ORION_TABLE_RUNTIME)
SHORT(ONE, ORION_TABLE_HOOKS)
SHORT(ONE, ORION_TABLE_THREAD)
SHORT(ONE, ORION_TABLE_CHECKS)
SHORT(ONE, ORION_TABLE_SELF_TEST)
SHORT(ONE, ORION_TABLE_LOGGING)
SHORT(ONE, ORION_TABLE_BLAS)
LONG(ONE, ORION_TABLE_CONTEXT)
LONG(ONE, ORION_TABLE_MODULE)

typedef CUresult (*slot_function)(void);

static const slot_function short_slots[ORION_TABLE_FIRST_LONG][ORION_SHORT_SLOTS] = {
    [ORION_TABLE_RUNTIME] = {SHORT(NAME, ORION_TABLE_RUNTIME)},
    [ORION_TABLE_HOOKS] = {SHORT(NAME, ORION_TABLE_HOOKS)},
    [ORION_TABLE_THREAD] = {SHORT(NAME, ORION_TABLE_THREAD)},
    [ORION_TABLE_CHECKS] = {SHORT(NAME, ORION_TABLE_CHECKS)},
    [ORION_TABLE_SELF_TEST] = {SHORT(NAME, ORION_TABLE_SELF_TEST)},
    [ORION_TABLE_LOGGING] = {SHORT(NAME, ORION_TABLE_LOGGING)},
    [ORION_TABLE_BLAS] = {SHORT(NAME, ORION_TABLE_BLAS)},
};

static const slot_function long_slots[ORION_TABLE_COUNT - ORION_TABLE_FIRST_LONG][ORION_LONG_SLOTS] = {
    [ORION_TABLE_CONTEXT - ORION_TABLE_FIRST_LONG] = {LONG(NAME, ORION_TABLE_CONTEXT)},
    [ORION_TABLE_MODULE - ORION_TABLE_FIRST_LONG] = {LONG(NAME, ORION_TABLE_MODULE)},
};

orion_export_slot orion_unexpected_export(enum orion_table_id table, unsigned slot) {
  if (table < ORION_TABLE_FIRST_LONG) return ORION_EXPORT_SLOT(short_slots[table][slot]);
  return ORION_EXPORT_SLOT(long_slots[table - ORION_TABLE_FIRST_LONG][slot]);
}

void orion_table_begin(orion_export_slot* slots, enum orion_table_id table, unsigned count) {
  slots[0].bytes = count * sizeof slots[0];
  for (unsigned i = 1; i < count; i++) slots[i] = orion_unexpected_export(table, i);
}
