// Memory that the program and kernels use and of which both ends hold copies: host memory over a network, and managed
// variables over any transport: which of it an operation may touch, and when its bytes travel.
//
// Before an operation that may read such memory, what the program has changed is sent, and the operation waits for it.
// Behind one that may write it, the next marker of the stream (a wait, a record, a host function) is preceded by
// HOST_PUBLISH, so that what the work has changed is here before the program can know that the work is done.
#ifndef ORION_SHIM_COHERENT_H
#define ORION_SHIM_COHERENT_H

#include "state.h"

/// Host allocations that kernels could use and that are not shared with their worker, and managed ones that it does not
/// know yet. 0: nothing below does anything.
extern _Atomic uint32_t orion_coherent_candidates;

/// A host allocation of `session` that kernels reach at `address` (and, as arena memory, at its own) is there.
void orion_coherent_add(orion_session* session, uint64_t address, uint64_t arena_offset, uint64_t bytes);
/// It is about to end; no work uses it any more.
void orion_coherent_remove(orion_session* session, uint64_t arena_offset);

/// Before such memory becomes the program's alone: what the session's work so far has written is sent before anything
/// that is submitted afterwards is answered.
void orion_coherent_flush(orion_session* session);

/// orion_coherent_add for managed memory, which every launch may use, whatever its parameters are. Nothing of it has
/// travelled: it is zero on the worker's side. False: out of memory.
bool orion_coherent_add_managed(orion_session* session, uint64_t arena_offset, uint64_t bytes, uint32_t context);

/// The arena's pages stand for those of a managed variable, which the worker has at `address` and the program has too;
/// they are zero, and have the variable's content when this returns. All work of the session may use it.
CUresult orion_coherent_add_variable(orion_session* session, uint64_t address, uint64_t arena_offset, uint64_t bytes);

/// How many there are. 0: the next function has nothing to do.
extern _Atomic uint32_t orion_coherent_variables;
/// Before any operation that is work of `stream`: variables have what the program has written. The result goes into
/// stream->coherent behind it.
uint64_t orion_coherent_before_work(orion_stream* stream, orion_op* op);

/// What every launch of `stream` may use, and what `params` point to. Once for each operation, and once for each of the
/// kernels in it.
uint64_t orion_coherent_always(orion_stream* stream, orion_op* op);
uint64_t orion_coherent_params(orion_stream* stream, orion_op* op, const void* params, uint32_t bytes);
void orion_coherent_publish(orion_stream* stream);

/// Before the submission of a launch: sends what its parameters point to and sets op->bulk_seq. The result goes to
/// orion_coherent_after when the launch has been submitted.
static inline uint64_t orion_coherent_before(orion_stream* stream, orion_op* op, const void* params, uint32_t bytes) {
  if (__builtin_expect(atomic_load_explicit(&orion_coherent_candidates, memory_order_relaxed) == 0, 1)) return 0;
  const uint64_t always = orion_coherent_always(stream, op);
  return always | orion_coherent_params(stream, op, params, bytes);
}

/// Set before and after: a marker of another thread may take the first set before the launch is in the ring, and this
/// thread's own marker must find the second.
static inline void orion_coherent_after(orion_stream* stream, uint64_t seen) {
  if (__builtin_expect(seen != 0, 0)) atomic_fetch_or(&stream->coherent, seen);
}

/// Under the stream's mutex, before a marker.
static inline void orion_coherent_mark(orion_stream* stream) {
  if (__builtin_expect(atomic_load_explicit(&stream->coherent, memory_order_acquire) != 0, 0)) {
    orion_coherent_publish(stream);
  }
}

#endif
