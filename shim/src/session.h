// The seam inside the shim: sessions and transports below (shim/src/session, shim/src/transport), CUDA's API above
// (shim/src/api). The API side knows operations, words and replies; it never knows which transport carries them.
#ifndef ORION_SHIM_SESSION_H
#define ORION_SHIM_SESSION_H

#include <signal.h>

#include "cuda_types.h"
#include "gen_ops.h"
#include "orion_ring.h"

enum { ORION_PEER_VALUES = 6 };

/// What attach told about one device. Immutable after attach.
typedef struct orion_device {
  struct orion_session* session;
  uint32_t remote_ordinal;  // on its server
  char name[256];
  CUuuid uuid;
  char pci_bus_id[32];
  uint64_t total_bytes;
  int32_t attributes[256];
  bool has_attribute[256];
  int32_t least_priority, greatest_priority;
  // By remote ordinal: whether kernels reach that device's memory, then the P2P attributes from 1.
  int32_t peers[ORION_DEVICES][ORION_PEER_VALUES];
  uint64_t slot_base, slot_bytes;  // agreed device address range
} orion_device;

/// Which page-locked memory is kept coherent for kernels over a network (ORION_COHERENT).
enum orion_coherent_wish { ORION_COHERENT_PARAMS, ORION_COHERENT_ALL, ORION_COHERENT_OFF };

#define ORION_OUTPUT_NEVER UINT32_MAX

// What a block of staging holds: larger images would need a range of the arena, and a copy of their own in each worker.
#define ORION_IMAGE_OFFER_MIN_SHM_BYTES (4ull << 20)

typedef struct orion_session {
  orion_segment* segment;
  orion_ring main_ring, express_ring;
  uint8_t* host_base;              // host arena; equal address in the worker
  uint64_t image_offer_min_bytes;  // smaller images go with their load: asking for them would take longer
  int driver_version;
  bool is_softgpu;
  bool runtime_validated;      // the server ran NVIDIA's runtime on its driver
  bool runtime_selftest;       // ORION_RUNTIME_SELFTEST
  const char* transport_name;  // "shm", "tcp" or "ucx"
  enum orion_coherent_wish coherent;
  uint32_t device_output_from;  // value of its word from which waits ask for what kernels print (ORION_DEVICE_PRINTF)
  char server_address[128];
  _Atomic int32_t lost;  // 0, or the CUresult that every call on this session returns from now on
  const struct orion_transport* transport;
  void* transport_state;
} orion_session;

/// Attaches once per process (thread-safe, fork-aware): reads the configuration, attaches to every server named in
/// ORION_SERVER or by the controller, applies CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER. Returns CUDA_SUCCESS or the
/// code for cuInit, with one line on stderr. Later calls return the first call's result at the cost of one load.
CUresult orion_attach(void);
/// True between a successful orion_attach and exit, in this process (not in a forked child).
bool orion_attached(void);
/// CUDA_SUCCESS, or why no call can be served: 3 before cuInit and in forked children, 4 once exit has begun.
CUresult orion_ready_slow(void);
#define ORION_STATE_ATTACHED 1
extern _Atomic int orion_attach_state;  // attach.c's
static inline CUresult orion_ready(void) {
  const int state = atomic_load_explicit(&orion_attach_state, memory_order_acquire);
  return __builtin_expect(state == ORION_STATE_ATTACHED, 1) ? CUDA_SUCCESS : orion_ready_slow();
}
/// Devices after CUDA_VISIBLE_DEVICES, in CUDA's order.
uint32_t orion_device_count(void);
orion_device* orion_device_at(uint32_t ordinal);  // NULL when out of range

/// Dense index of the calling thread, for op.thread. Made at first use; given back at thread exit.
uint16_t orion_thread_index_take(void);
extern _Thread_local uint32_t orion_thread_index_plus_one __attribute__((tls_model("initial-exec")));
static inline uint16_t orion_thread_index(void) {
  const uint32_t known = orion_thread_index_plus_one;
  return __builtin_expect(known != 0, 1) ? (uint16_t)(known - 1) : orion_thread_index_take();
}

/// Pushes one-way: stages nothing, blocks only while the ring is full. `op` is complete but for `thread`, `reply_*`;
/// op->bytes = head_bytes + tail_bytes is set here. Chooses the ring from ORION_OP_INFO. ORION_SYNC=1 makes it wait.
/// CUDA_SUCCESS or the session's error.
CUresult orion_submit(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes);

/// Pushes and waits for the reply. Copies at most `capacity` bytes of payload to `payload` and stores the length (of
/// what was copied) in *payload_bytes if not NULL. Returns the operation's CUresult, or the session's error.
CUresult orion_call(orion_session* session, orion_op* op, uint32_t head_bytes, const void* tail, uint32_t tail_bytes,
                    void* payload, uint32_t capacity, uint32_t* payload_bytes);

static inline uint64_t orion_word(const orion_session* session, uint32_t word) {
  return atomic_load_explicit(&session->segment->words[word], memory_order_acquire);
}
/// Waits until words[word] >= value. Returns CUDA_SUCCESS, the sticky error of `context`, or the session's error.
/// Spins briefly (never on <= 2 cores), then parks.
CUresult orion_wait_word(orion_session* session, uint32_t word, uint64_t value, uint32_t context);
/// The same, but it also ends, with CUDA_SUCCESS, when *count is no longer `expected`: looked at every 100 ms.
CUresult orion_wait_word_until(orion_session* session, uint32_t word, uint64_t value, uint32_t context,
                               const _Atomic uint32_t* count, uint32_t expected);
/// The sticky error of a context index, or the session's error; CUDA_SUCCESS if none. Three loads.
CUresult orion_context_error_slow(orion_session* session, uint32_t context);
static inline CUresult orion_context_error(orion_session* session, uint32_t context) {
  const _Atomic uint64_t* words = session->segment->words;
  if (__builtin_expect(context < ORION_CONTEXTS && atomic_load_explicit(&session->lost, memory_order_relaxed) == 0 &&
                           atomic_load_explicit(&words[ORION_WORD_SESSION_ERROR], memory_order_acquire) == 0 &&
                           atomic_load_explicit(&words[ORION_WORD_CONTEXT_ERROR + context], memory_order_acquire) == 0,
                       1)) {
    return CUDA_SUCCESS;
  }
  return orion_context_error_slow(session, context);
}
/// The late error of the calling thread, told once (CUDA_SUCCESS if none). Logs op name and code.
CUresult orion_take_late_error(orion_session* session);
/// A late error of this side's: `what`, which thread `thread` had asked for, has failed. Logged now.
void orion_note_late_error(orion_session* session, uint16_t thread, const char* what, CUresult code);

/// Staging: blocks inside the first ORION_STAGING_BYTES of the host arena, 64-byte aligned, at most 4 MiB each.
/// Waits (helping reclaim) while none is free. The address is session->host_base + *offset.
CUresult orion_staging_take(orion_session* session, uint64_t bytes, uint64_t* offset);
/// Gives a block back for reuse once words[word] >= value (word 0: at once).
void orion_staging_give(orion_session* session, uint64_t offset, uint32_t word, uint64_t value);

/// Pinned memory: page-aligned ranges of the host arena after staging. Only address management and pages; the API
/// side sends HOST_REGISTER / HOST_UNREGISTER. Returns NULL when the arena is full.
void* orion_arena_allocate(orion_session* session, uint64_t bytes);
void orion_arena_free(orion_session* session, void* address, uint64_t bytes);  // also drops the pages

/// Makes arena bytes visible to the worker; the op that reads them carries the returned number as bulk_seq.
/// shm: 0, nothing to do. tcp: queues the bytes; they are read in place, so the caller keeps them unchanged until the
/// op's completion. Ranges that an unfinished COPY_D2H of ours is writing must not be pushed: orion_note_pull.
uint64_t orion_push_host(orion_session* session, uint64_t offset, uint64_t bytes);
/// The same for page-locked memory of the program, which host functions that have not returned yet may still write.
/// `callback`, `generation`: the last host function of the reading operation's own stream (callback 0: none). While
/// that one has not returned, nothing is sent and 0 returned: its return sends the range before the stream goes on.
/// Functions of other streams may precede the operation through events, so the return of each one sends the range
/// again.
uint64_t orion_push_pinned(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                           uint64_t generation);
/// Called before the HOST_FUNCTION operation is submitted; orion_set_client_word ends it. `word`: of its stream.
void orion_begin_host_function(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word);
/// Rows of the arena, `pitch_bytes` apart.
typedef struct orion_pulled_rows {
  uint64_t offset, width_bytes, pitch_bytes, rows;
} orion_pulled_rows;
/// Tells the transport that an operation already submitted writes these arena bytes and that they are delivered
/// before words[word] >= value. Until then orion_push_host leaves the range out: the worker's copy is the newer one.
void orion_note_pull(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t word, uint64_t value);
void orion_note_pulled_rows(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value);

/// Host memory that kernels use, where both ends hold copies of it (never over shm). Begin: HOST_COHERENT has been
/// submitted; `unsent`: the range is still zero on the worker's side, and only what is not travels. Push: sends what
/// the program has changed; the returned number is the bulk_seq of the operation that relies on it.
bool orion_coherent_begin(orion_session* session, uint64_t offset, uint64_t bytes, bool unsent);
uint64_t orion_coherent_push(orion_session* session, uint64_t offset, uint64_t bytes);
void orion_coherent_end(orion_session* session, uint64_t offset, uint64_t bytes);

/// Memory of the program that becomes part of the arena (cuMemHostRegister): afterwards it is what lies in the arena at
/// arena_offset + address % page, and this layer reads and writes the program's where a call names the arena's. NULL,
/// or why not; after orion_adopt has failed, orion_adopt_end undoes what it has done. False from that: the arena range,
/// whole pages, stays in use.
const char* orion_adoptable(orion_session* session, uint64_t address, uint64_t bytes);
const char* orion_adopt(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset);
bool orion_adopt_end(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset);
// The reasons for which the driver registers nothing at all.
extern const char orion_adopt_unmapped[], orion_adopt_unwritable[];
/// Pages at an address where the program has nothing: they stand for that range of the arena. NULL, or why not. The
/// arena's range must be zero.
const char* orion_place_pages(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset);
void orion_unplace_pages(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset);

/// For the start of a thread: it handles none of the program's signals but those of its own faults.
void orion_block_signals(sigset_t* before);

/// Tells the engine that host function `callback`, generation `generation`, has returned (ORION_OP_HOST_FUNCTION).
/// Never waits and never travels through a ring, so it cannot stand behind a full one. Use this, not a plain store:
/// over tcp the value has to be sent.
void orion_set_client_word(orion_session* session, uint32_t callback, uint64_t generation);

/// ORION_SYNC=1 uses the last ORION_THREADS dynamic words for its own markers: the API side takes dynamic words from
/// ORION_WORD_DYNAMIC up to here.
#define ORION_WORD_SYNC (ORION_WORDS - ORION_THREADS)

/// Logging to stderr (ORION_LOG=error|warn|info|debug, default warn) and ORION_LOG_FILE.
enum orion_log_level { ORION_LOG_ERROR, ORION_LOG_WARN, ORION_LOG_INFO, ORION_LOG_DEBUG };
__attribute__((format(printf, 2, 3))) void orion_log(enum orion_log_level level, const char* format, ...);

/// Called by the API side once per unimplemented function: logs the name once, returns CUDA_ERROR_NOT_SUPPORTED.
CUresult orion_not_implemented(const char* function);

/// Registered by the API side; the session side calls it in the child after fork and at exit (destructors never run
/// CUDA work: this only detaches).
void orion_api_after_fork(void);

#endif
