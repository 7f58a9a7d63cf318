// What session.h does not show: the private half of a session, shared by session/ and transport/.
#ifndef ORION_SHIM_INTERNAL_H
#define ORION_SHIM_INTERNAL_H

#include <pthread.h>

#include "config.h"
#include "session.h"

typedef struct orion_staging orion_staging;
typedef struct orion_arena orion_arena;

typedef struct orion_session_impl {
  orion_session base;  // first: the public part
  // Hot: read at every submission, never written after attach.
  uint32_t spin_us;  // 0 on two CPUs or fewer
  bool sync;
  // Reply slots and waiter entries are taken for the time of one wait; a set bit is taken.
  _Alignas(64) _Atomic uint64_t reply_slots_taken;
  _Atomic uint64_t waiters_taken;
  uint32_t reply_seq[ORION_REPLY_SLOTS];  // touched only by the holder of the slot
  _Atomic uint32_t late_errors_told[ORION_THREADS];
  _Atomic int32_t late_errors_noted[ORION_THREADS];  // orion_note_late_error's; 0: none
  _Atomic uint64_t sync_values[ORION_THREADS];
  orion_staging* staging;
  orion_arena* arena;
  char allocation[65];  // of the pool, to which the session belongs; empty: no controller was asked
} orion_session_impl;

static inline orion_session_impl* orion_impl(orion_session* session) { return (orion_session_impl*)session; }

// Below this an upload costs less than asking whether it is needed: over a network a round trip or two, in shared
// memory two hashes of the image, each slower than the copy that it could save.
#define ORION_IMAGE_OFFER_MIN_BYTES (32ull << 10)

enum { ORION_SESSIONS_MAX = ORION_SERVERS_MAX, ORION_DEVICES_MAX = 1024 };  // the latter of all servers together
/// Sessions of this process, fixed once attach has succeeded.
extern orion_session_impl* orion_sessions[ORION_SESSIONS_MAX];
extern uint32_t orion_session_count;

/// A session whose memory is not there yet. NULL when out of memory.
orion_session_impl* orion_session_new(const orion_config* config);
/// After the transport has set segment, rings and host_base: staging and arena. False when out of memory.
bool orion_session_start(orion_session_impl* impl);
/// Frees a session that no other thread has seen.
void orion_session_free(orion_session_impl* impl);

/// Ends a session: every call returns `code` from now on, all waiters wake. The first caller's reason is told on stderr
/// (none when `format` is NULL).
__attribute__((format(printf, 3, 4))) void orion_session_lose(orion_session* session, CUresult code, const char* format,
                                                              ...);
/// Wakes the threads that wait for a reply, a word or staging, if there are any.
void orion_wake_clients(orion_session* session);
/// Pushes an operation if there is room. Never waits.
bool orion_try_push(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes);

/// Parks until ready(argument), the session's end or an error of `context` (0: none). `word` (0: none) is posted for
/// the worker's watcher. Returns CUDA_SUCCESS when ready.
CUresult orion_park(orion_session* session, bool (*ready)(void* argument), void* argument, uint32_t word,
                    uint64_t value, uint32_t context);

orion_staging* orion_staging_new(void);
void orion_staging_free(orion_staging* staging);
orion_arena* orion_arena_new(uint64_t first, uint64_t bytes);
void orion_arena_delete(orion_arena* arena);

/// In the child after fork: only the forking thread exists.
void orion_threads_after_fork(void);

// address.c. Reservations are PROT_NONE, not inherited by children, and never overlap what the program has mapped.
bool orion_reserve_host(uint64_t* base);
bool orion_reserve_device(uint64_t bytes, uint64_t* base);
void orion_unreserve(uint64_t base, uint64_t bytes);
/// Maps a segment, aligned as its layout asks: of `fd` (shared), or of zeros when fd is -1. NULL when that fails.
orion_segment* orion_map_segment(int fd);

// visible.c
/// Orders and filters `all`, ORION_DEVICES_MAX at most, by CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES (given as text;
/// NULL: not set).
#define ORION_ORDER_AS_GIVEN "AS_GIVEN"
uint32_t orion_visible_devices(orion_device* const* all, uint32_t count, const char* order, const char* visible,
                               orion_device** out);

#endif
