// Compile options and logs of one load or link.
#ifndef ORION_ENGINE_JIT_H
#define ORION_ENGINE_JIT_H

#include "internal.h"

#define JIT_OPTIONS_MAX 32u

typedef struct jit {
  CUjit_option options[JIT_OPTIONS_MAX + 4];
  void* values[JIT_OPTIONS_MAX + 4];
  uint32_t count;
  char *info, *error;
  uint32_t info_bytes, error_bytes;
} jit;

/// Options from the operation's tail, and private log buffers. 0 or a CUresult.
int32_t jit_begin(const orion_engine* e, jit* j, const orion_op* op, uint32_t count, uint64_t log_off,
                  uint32_t info_bytes, uint32_t error_bytes);
/// Copies both logs into the arena: info at log_off, errors behind the space for info. Lengths are without terminator.
void jit_deliver(orion_engine* e, const jit* j, uint64_t log_off, uint32_t* info_bytes, uint32_t* error_bytes);
void jit_end(jit* j);

#endif
