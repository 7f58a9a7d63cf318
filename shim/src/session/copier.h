// Large copies between the program's memory and staging, by several threads: one core moves about 8 GB/s, a GPU's
// bus 50.
#ifndef ORION_SHIM_COPIER_H
#define ORION_SHIM_COPIER_H

#include <stdint.h>

/// How many threads share a large copy, the caller among them; 1: none but the caller. Once, before the first copy.
void orion_copier_set(uint32_t threads);

/// memcpy. Large copies are shared with helper threads, which are made at the first such copy and sleep between them.
/// While another thread's copy has the helpers, the caller copies alone.
void orion_copy_bytes(void* to, const void* from, uint64_t bytes);

/// In the child after fork: the helpers are gone.
void orion_copier_after_fork(void);

#endif
