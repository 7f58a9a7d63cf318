// What every file that defines CUDA functions includes: visibility, entry checks, the default stream.
#ifndef ORION_SHIM_API_H
#define ORION_SHIM_API_H

#include "cuda_types.h"
#include "gen_cuda_api.h"
#include "session/stats.h"
#include "state.h"

#define ORION_API __attribute__((visibility("default")))

/// What a NULL stream means inside the current call: 0 or CU_STREAM_PER_THREAD. The `_ptds` and `_ptsz` variants set it
/// around the call of the base function.
extern _Thread_local uintptr_t orion_default_stream_override __attribute__((tls_model("initial-exec")));
/// What batches refuse: the NULL stream of the program's own choice.
static inline bool orion_is_legacy(CUstream stream) {
  return stream == CU_STREAM_LEGACY || (stream == NULL && orion_default_stream_override == 0);
}

/// Generated: newest ABI variant of `name` for `cuda_version`; status 0 found, 1 unknown, 2 version not sufficient.
const void* orion_lookup_symbol(const char* name, int cuda_version, uint64_t flags, int* status);

/// Why no call can be served now: not initialised, forked, exiting, or inside a host function.
static inline CUresult orion_enter(void) {
  return __builtin_expect(orion_in_host_function, 0) ? CUDA_ERROR_NOT_PERMITTED : orion_ready();
}

#define ORION_ENTER()                              \
  ORION_COUNTED();                                 \
  do {                                             \
    const CUresult entered_ = orion_enter();       \
    if (entered_ != CUDA_SUCCESS) return entered_; \
  } while (0)

/// Enters and binds `context` to the calling thread's usable current context.
#define ORION_ENTER_CONTEXT(context)                                  \
  ORION_COUNTED();                                                    \
  orion_context* context = NULL;                                      \
  do {                                                                \
    CUresult entered_ = orion_enter();                                \
    if (entered_ == CUDA_SUCCESS) entered_ = orion_current(&context); \
    if (entered_ != CUDA_SUCCESS) return entered_;                    \
  } while (0)

/// Enters and binds `stream` to what `handle` names (NULL, legacy, per-thread or created).
#define ORION_ENTER_STREAM(stream, handle)                                            \
  ORION_COUNTED();                                                                    \
  orion_stream* stream = NULL;                                                        \
  do {                                                                                \
    CUresult entered_ = orion_enter();                                                \
    if (entered_ == CUDA_SUCCESS) entered_ = orion_resolve_stream((handle), &stream); \
    if (entered_ != CUDA_SUCCESS) return entered_;                                    \
  } while (0)

#define ORION_REQUIRE(condition, result) \
  do {                                   \
    if (!(condition)) return (result);   \
  } while (0)

#endif
