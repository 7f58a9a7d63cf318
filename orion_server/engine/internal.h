// The engine's own state. Everything here belongs to the thread inside orion_engine_run, except where a member says so.
//
// What decides (issued, complete, ledger, order) lives in this structure and in the private completion page; the
// client's segment is only read for operations, host function generations and waiters, and only written otherwise.
#ifndef ORION_ENGINE_INTERNAL_H
#define ORION_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "driver.h"
#include "engine.h"
#include "gen_ops.h"
#include "orion_launch.h"
#include "orion_ring.h"
#include "orion_runs.h"
#include "orion_seat.h"

// Stream indices above the client's: the NULL stream and the engine's own blocking stream of each context.
#define STREAM_NULL_BASE ORION_STREAMS
#define STREAM_PRIVATE_BASE (ORION_STREAMS + ORION_CONTEXTS)
#define STREAM_COUNT (ORION_STREAMS + 2 * ORION_CONTEXTS)
#define TRACK_COUNT 65536u        // live streams and destroyed ones that still have work
#define TRACK_MARK_EVERY 64u      // driver entries between two private markers
#define STREAM_DEPTH 768u         // driver entries in flight: number 1021 would block inside the driver
#define STREAM_DEPTH_RESUME 512u  // a full stream goes on below this, so that a pass over parked ops is worth it
#define PARKED_MAX_BYTES (8u << 20)
#define PARKED_MAX_COUNT 8192u
#define CAUSE_COUNT 64u
// Events that only parked operations name (pending.c). No operation of a client can: its indices end below them, and
// the entry between names nothing.
#define EVENT_SPARE_BASE (ORION_EVENTS + 1u)
#define EVENT_SPARES 8192u
#define EVENT_TABLE (EVENT_SPARE_BASE + EVENT_SPARES)
#define IMAGE_MAX_BYTES (2ull << 30)
#define LOG_MAX_BYTES (1u << 20)
#define SLOT_MAX_BYTES (1ull << 40)
#define MAPS_WAITING_MAX 256u

#define LAUNCH_TIMED_EVERY 64u  // launches of which one is timed

/// What the loop's thread is at.
enum engine_state { ENGINE_BUSY, ENGINE_LOOKING, ENGINE_ASLEEP, ENGINE_STATES };

// CUresults that are not CUDA's business: what a handler tells the loop.
enum step {
  STEP_DONE,   // executed (or refused: the answer has been given)
  STEP_AGAIN,  // its own condition does not hold yet: park it
};

// Completion of one stream's work, known without asking the client's memory. `issued` counts driver entries; the GPU
// writes private markers into engine->done[index].
typedef struct track {
  uint64_t issued;
  uint64_t marked;      // value of the last private marker
  uint64_t known_done;  // learned by the CPU: cuStreamQuery said idle, or the context is dead
  uint64_t handed;      // place of its last entry in its launcher's queue
  CUstream stream;      // where private markers go; only while `open`
  uint32_t next_dirty;  // list of tracks with work outstanding, 0 ends it
  uint16_t context;
  bool open;         // its stream exists
  bool dirty;        // in the list
  uint8_t launcher;  // number of its launcher (launcher.h), 0: none yet
} track;

typedef struct stream_state {
  CUstream handle;
  uint32_t track;          // 0: none yet
  uint32_t blocked_epoch;  // == engine->epoch: an operation of this stream is parked
  uint16_t context;
  bool alive;
  bool blocking;
  uint64_t marked_value;  // of the last marker for its own word
  uint64_t word_wait;     // of the track, behind the last wait for a word; 0: it has passed
  bool full;              // reached STREAM_DEPTH and not yet fallen below STREAM_DEPTH_RESUME
} stream_state;

/// What orion-server calls exported memory or an exported event. Zero: nothing.
typedef struct share_token {
  uint64_t words[2];
} share_token;

typedef struct event_state {
  CUevent handle;
  share_token* token;     // NULL: not exported
  uint32_t record_epoch;  // == engine->epoch: a record (or creation, or destruction) is parked
  uint32_t use_epoch;     // == engine->epoch: a wait is parked
  uint32_t flags;         // of its creation
  uint32_t users;         // of a spare: parked operations that name it
  uint32_t next_spare;
  uint16_t context;
  bool alive;
  bool recorded;
  bool in_graph;  // a graph names its handle, which therefore stays
  bool shared;    // other processes name it, or have made it
} event_state;

typedef struct module_state {
  CUmodule handle;
  uint32_t first_function;  // list through function_state.next; an entry is index + 1, 0 ends it
  uint32_t library;         // index + 1 of the library that owns it, 0: none
  uint64_t charged_bytes;
  uint16_t context;
  bool alive;
} module_state;

typedef struct function_state {
  CUfunction handle;
  uint32_t module;
  uint32_t next;
  uint32_t previous;
  uint32_t param_bytes;
  uint32_t local_bytes;  // a thread
  bool layout_known;
  bool alive;
} function_state;

typedef struct context_state {
  CUcontext handle;
  uint64_t mapped_bytes;
  uint32_t device;            // index into engine->devices
  uint32_t blocking_streams;  // the client's
  uint32_t null_epoch;        // == epoch: an operation of the NULL stream is parked
  uint32_t blocking_epoch;    // == epoch: an operation of some blocking stream is parked
  uint32_t any_epoch;         // == epoch: some operation of this context is parked
  uint32_t unload_epoch;      // == epoch: a MODULE_UNLOAD or the end of an array or texture is parked
  uint32_t barrier_epoch;     // == epoch: a reset or destroy is parked; nothing of the context passes it
  int32_t sticky;             // 0 or the CUresult that corrupted it
  bool alive;
  bool primary;
} context_state;

typedef struct range {
  uint64_t base, bytes;
  uint64_t serial;  // 0: unused entry. Tells a range from a later one at the same address
  CUmemGenericAllocationHandle handle;
  share_token token;  // zero: not exported
  uint32_t next_free;
  uint32_t memory;   // index into engine->memories whose part is mapped; 0: the range owns `handle`
  uint16_t context;  // 0 where `memory` is not: bound to no context
  bool stays;        // an export has been asked for: other processes may know it
  bool is_out;       // its content is in `backing` alone; nothing is mapped at its address (swap.c)
  uint8_t* backing;  // host memory kept for it, registered as far as `backed_bytes`; NULL: none
  uint64_t backed_bytes;
} range;

/// Memory that the client has made by VMM_CREATE or SHARE_IMPORT.
typedef struct memory_state {
  uint64_t bytes;
  CUmemGenericAllocationHandle handle;
  share_token token;  // zero: not exported
  uint32_t mappings;
  uint16_t device;  // index into engine->devices
  bool alive;
  bool imported;  // counted as used by the session that made it
} memory_state;

typedef struct device_state {
  uint32_t ordinal;
  uint64_t base, bytes;
  uint32_t* chunk_range;  // per 2 MiB chunk: index into engine->ranges, 0: nothing mapped
  CUcontext primary;
  uint64_t peers;  // bit i: devices[i] may access memory of this device
  bool retained;   // by the engine
  bool reserved;
  _Atomic uint64_t mapped_bytes;
} device_state;

typedef struct global_state {
  uint64_t address, bytes;
  uint32_t module;
} global_state;

typedef struct host_range {
  uint64_t offset, bytes;
  uint64_t alias;  // of registered ranges: the program's address, where the same pages are mapped too; 0: none
} host_range;

// Part of the arena of which the client's knowledge is kept (coherent.c). With a mirror (variable.c) it stands for
// memory of the driver's, and its own bytes are what the client has.
struct mirror;
typedef struct coherent_range {
  uint64_t offset, bytes;
  uint8_t* known;
  struct mirror* mirror;  // it owns `known`; NULL: none
} coherent_range;

/// A managed variable of a module or library, as the driver has told it.
typedef struct variable_state {
  uint64_t address, bytes;
  uint32_t owner;
} variable_state;

// A ticket: work of many streams. Reached when every pair is.
typedef struct ticket_part {
  uint32_t track;
  uint64_t value;
} ticket_part;
typedef struct ticket {
  ticket_part* parts;
  uint32_t count, capacity;
} ticket;

typedef struct parked_op {
  struct parked_op* next;
  uint64_t deadline_ns;
  ticket ticket;
  bool has_ticket;
  bool second_stage;  // HOST_FUNCTION: the client has been told, its answer is awaited
  bool express;
  orion_op op;  // op.bytes bytes follow from here
} parked_op;

/// This worker's turns on one device of the session (turns.c).
typedef struct turn {
  // as the server has told
  bool is_limited;
  uint64_t grant, budget_ns, recalled;
  // as the server is told
  bool wants;
  uint64_t returned, ending;
  uint64_t spent_ns, in_flight_ns, throttled_ns, works, cold_works;
  uint64_t admitted_ns;      // of this grant: measured, and by estimate what is not measured yet
  uint64_t ran_since_ns;     // when the oldest of what is in flight began, as far as is known
  uint64_t idle_since_ns;    // nothing of it runs or waits; 0: something does
  uint64_t waited_since_ns;  // up to when waiting has been counted; 0: nothing waits
  uint32_t wait_epoch;       // == epoch: an operation waits for this turn
  bool outstanding;          // something issued is not measured yet
  uint32_t cold_in_flight;   // among it, operations without an estimate
  uint32_t cold_epoch;       // of the last pass in which one without an estimate had to wait
  bool has_asked_for_more;   // the server knows that the budget is nearly used up
} turn;
struct interval;
typedef struct turns_state {
  turn devices[ORION_DEVICES];
  bool is_on;  // some device is limited
  struct meter* meter;
  struct interval* sample;  // around the operation that is being issued, for its estimate; NULL: none
  // What the meter knows of the operation that was looked at last: it is admitted and issued in one go.
  const orion_op* looked_at;  // NULL: none
  uint64_t identity, estimate_ns;
  uint32_t key;
} turns_state;

/// Where the memory of one device of the session is, or is going (swap.c).
enum swap_phase { SWAP_RESIDENT, SWAP_ENDING, SWAP_LEAVING, SWAP_GONE, SWAP_RETURNING };
#define SWAP_BATCH 64u
typedef struct swap_device {
  enum swap_phase phase;
  uint64_t wish;  // value of the seat's residency that is being done, or has been
  uint32_t next;  // range to look at next
  CUstream stream;
  uint32_t batch[SWAP_BATCH];  // ranges whose copies are on their way
  uint32_t batch_count;
  uint64_t batch_bytes, batch_at_ns;
} swap_device;
typedef struct swap_state {
  swap_device devices[ORION_DEVICES];
  bool holds;       // a device is not whole: work waits
  uint32_t moving;  // batches on their way
  ticket ticket;    // of all that ran when memory was asked to leave
  bool has_ticket;
} swap_state;

enum cause_kind {
  CAUSE_DEPTH,
  CAUSE_HOST_FUNCTION,
  CAUSE_TICKET,
  CAUSE_BULK,
  CAUSE_TIME,
  CAUSE_RESIDENCY,
  CAUSE_TURN,
  CAUSE_WORD,
  CAUSE_DIRECT
};
typedef struct cause {
  enum cause_kind kind;
  uint32_t index;
  uint64_t value;
  const ticket* ticket;
} cause;

typedef struct free_entry {
  struct free_entry* next;
  uint64_t serial;  // of the range; 0: nothing to unmap
  uint32_t range_index;
} free_entry;
// Frees that share one ticket, taken when the batch closes: later than each of them, hence never too early.
typedef struct free_batch {
  struct free_batch* next;
  free_entry *first, **last;
  uint32_t count;
  bool closed;
  ticket ticket;
} free_batch;

struct orion_net;
struct array_ledger;

#define LEDGER_LIMITS 8u  // CUlimit: those that compute programs may set

/// What is charged to a context itself, beside its objects (ledger.c).
typedef struct ledger_context {
  uint64_t own_bytes;                           // of one that the program has made
  uint64_t local_charged_bytes;                 // local memory of its kernels
  uint64_t limit_charged_bytes[LEDGER_LIMITS];  // by CUlimit
  uint64_t limit_before[LEDGER_LIMITS];         // values that the program has changed
  uint32_t limits_changed;                      // bit i: limit i
  uint32_t local_bytes;                         // a thread: the largest of any kernel so far
} ledger_context;

/// What an operation has asked orion-server for.
typedef struct ledger_question {
  uint64_t key;  // of the operation; 0: none
  uint64_t number;
  uint64_t deadline_ns;
} ledger_question;

typedef struct ledger_state {
  ledger_context contexts[ORION_CONTEXTS];
  ledger_question questions[ORION_DEVICES];
  uint64_t threads[ORION_DEVICES];  // that the device can hold at once; 0: not asked yet
} ledger_state;

// Rows of the arena that a 2D or 3D copy writes.
typedef struct net_rows {
  uint64_t offset, width, pitch, rows, slice_pitch, slices;
} net_rows;

/// Of the process's stdout and stderr, which are files (output.c).
typedef struct output_state {
  uint64_t taken[2];  // bytes that the client has been given
  uint64_t freed[2];
  uint64_t flushes, awaited[ORION_CONTEXTS];  // values of the word done[0]
  uint32_t may_print;                         // what ORION_WORD_DEVICE_OUTPUT says
  CUstream streams[ORION_CONTEXTS];
} output_state;

struct orion_engine {
  orion_engine_config config;
  orion_driver driver;
  bool spin_allowed;
  uint64_t spin_ns;

  // segment and address space
  orion_segment* segment;
  int segment_fd, arena_fd;  // which files are mapped; -1: memory of this process alone
  orion_ring main_ring, express_ring;
  uint64_t main_position, express_position;
  bool main_in_hand;                    // an operation of the main ring is popped and not dispatched yet
  uint64_t gap_position, gap_since_ns;  // a main entry that is reserved and not committed
  bool gap_logged;
  uint8_t* arena;
  uint64_t arena_bytes;
  CUdeviceptr words_device;  // device address of segment->words
  _Atomic uint64_t* done;    // private completion page, TRACK_COUNT words
  CUdeviceptr done_device;
  bool words_registered, done_registered, staging_registered;
  bool bound;
  orion_engine_bind_times bind_times;

  // tables, indexed by what the client mints
  stream_state* streams;
  event_state* events;
  module_state* modules;
  function_state* functions;
  context_state contexts[ORION_CONTEXTS];
  uint32_t event_high;  // one past the highest index in use, so that a reset need not look at a million
  uint32_t module_high;
  uint32_t function_high;
  uint32_t event_first_spare, event_spares_used;
  uint32_t stream_high;
  track* tracks;
  uint32_t* free_tracks;
  uint32_t free_track_count, fresh_track;
  uint32_t first_dirty;
  range* ranges;
  uint32_t range_capacity, range_fresh, range_first_free;
  uint64_t range_serial;
  memory_state* memories;
  uint32_t memory_high;
  device_state devices[ORION_DEVICES];
  uint32_t device_count;
  global_state* globals;
  uint32_t global_count, global_capacity;
  host_range* pinned;  // sorted by offset; the first is staging
  uint32_t pinned_count, pinned_capacity;
  coherent_range* coherent;  // sorted by offset, disjoint
  uint32_t coherent_count, coherent_capacity;
  variable_state* variables;
  uint32_t variable_count, variable_capacity;
  uint32_t mirror_count;        // coherent ranges that have one
  uint32_t current_context;     // index that is current in the driver, 0: none
  uint32_t context_generation;  // grows when a context goes: its handle may come back

  // parking
  uint32_t epoch;
  parked_op *first_parked, **last_parked;
  uint64_t parked_bytes;
  uint32_t parked_count;
  uint32_t parked_frees;  // of them, those that give memory back: MEM_FREE, ends of arrays
  uint32_t any_epoch;     // == epoch: something is parked
  cause causes[CAUSE_COUNT];
  uint32_t cause_count;
  bool causes_overflow;

  // frees and allocations that wait for them
  free_batch *first_batch, *last_batch;
  parked_op *maps_first, **maps_last;
  uint32_t maps_count;
  uint64_t maps_until;    // main ring position up to which frees may still help the last waiting allocation
  bool frees_progressed;  // something was reclaimed since the waiting maps were last tried

  swap_state swap;
  turns_state turns;

  parked_op* first_query;  // STREAM_QUERY that wait for their marker, EVENT_QUERY that wait for their event
  uint32_t query_count;
  struct graph_table* graphs;
  _Atomic uint32_t graph_signal;  // set by the driver's threads: a host node waits for the client

  // answers
  uint32_t late_count[ORION_THREADS];
  bool wake_pending;
  uint64_t last_fault_check_ns;
  uint64_t bulk_arrived;  // tcp: bulk transfers received; shm: unused

  // how it ends
  _Atomic int stop_requested;  // enum orion_engine_end, from other threads
  int end;                     // enum orion_engine_end
  char reason[256];
  pthread_mutex_t reason_lock;

  pthread_t watcher;
  bool watcher_running;
  _Atomic bool watcher_stop;

  output_state output;
  orion_seat* seat;  // NULL: nothing is limited
  ledger_state ledger;
  struct orion_net* net;
  struct direct_table* direct;       // net_ucx_direct.c; NULL: all copies go through the arena
  bool memory_for_rdma;              // memory is made so that network devices may reach it
  struct image_table* images;        // image.c; NULL until the first offer
  struct share_table* shares;        // share.c; NULL until the first question
  bool memory_stays_here;            // the driver refuses memory that could be exported
  struct library_table* libraries;   // library.c; NULL until the first load
  struct array_ledger* arrays;       // NULL until the first array or texture
  struct launcher_table* launchers;  // launcher.c; NULL: this thread makes all calls

  // Counters that other threads read.
  _Atomic uint64_t stat_operations, stat_launches, stat_work, stat_replies, stat_late, stat_parked, stat_parked_now;
  _Atomic bool lanes_are_ucx;
  _Atomic uint64_t stat_frees, stat_frees_done, stat_maps, stat_pinned, stat_in, stat_out, stat_lanes, stat_fatal,
      stat_gaps, stat_image_bytes;
  _Atomic uint64_t stat_time[ENGINE_STATES], stat_launches_timed, stat_launches_timed_ns, stat_handed;

  // Operations just copied out of the rings. Two, because express operations run between a main one's pop and its turn.
  _Alignas(64) uint8_t popped[ORION_OP_MAX_BYTES + 64];
  _Alignas(64) uint8_t popped_main[ORION_OP_MAX_BYTES + 64];
};

#define STAT_ADD(e, member, n)                                                                        \
  atomic_store_explicit(&(e)->member, atomic_load_explicit(&(e)->member, memory_order_relaxed) + (n), \
                        memory_order_relaxed)
#define STAT_SET(e, member, n) atomic_store_explicit(&(e)->member, (n), memory_order_relaxed)

// ---- engine.c
static inline void engine_pause(int count) {
  for (int i = 0; i < count; i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
  }
}
uint64_t engine_now_ns(void);
int engine_futex_wait(_Atomic uint32_t* address, uint32_t expected, uint64_t timeout_ns);
void engine_futex_wake(_Atomic uint32_t* address);
enum engine_log_level { ENGINE_LOG_ERROR, ENGINE_LOG_WARN, ENGINE_LOG_INFO, ENGINE_LOG_DEBUG };
__attribute__((format(printf, 3, 4))) void engine_log(orion_engine* e, int level, const char* format, ...);
/// Ends the session: the loop stops at the next look. The first reason stands.
__attribute__((format(printf, 3, 4))) void engine_end(orion_engine* e, int end, const char* format, ...);
/// Copies the operation `op` (validated header) through validation, order and execution.
void engine_dispatch(orion_engine* e, const orion_op* op, bool express);
/// Ends the loop's sleep. From any thread.
void engine_wake(orion_engine* e);
/// Takes up to `limit` operations out of the express ring. Returns how many.
uint32_t engine_drain_express(orion_engine* e, uint32_t limit);
/// What is wrong with the header of a whole operation; NULL: nothing.
const char* engine_header_fault(const orion_op* op, bool express);
/// Checks code and size of a whole operation; ends the session and returns false if no correct client sends it.
bool engine_check_header(orion_engine* e, const orion_op* op, bool express);

// ---- answer.c
void answer_reply(orion_engine* e, const orion_op* op, int32_t result, const void* payload, uint32_t bytes);
/// The outcome of an operation without outputs: a reply if one is awaited, else a late error unless it succeeded.
void answer_result(orion_engine* e, const orion_op* op, int32_t result);
void answer_set_word(orion_engine* e, uint32_t word, uint64_t value);
/// Notes a driver result: a fatal one becomes the context's error word. Returns the result.
int32_t answer_check(orion_engine* e, uint32_t context, int32_t result);
void answer_fault(orion_engine* e, uint32_t context, int32_t result);
bool answer_is_fatal(int32_t result);
/// Wakes client threads if words or replies were written since the last call.
void answer_flush(orion_engine* e);

// ---- order.c: streams' completion and tickets
bool order_init(orion_engine* e);
void order_free(orion_engine* e);
uint32_t order_track_open(orion_engine* e, CUstream stream, uint32_t context);
void order_track_close(orion_engine* e, uint32_t track_index);
static inline uint64_t order_track_done(const orion_engine* e, uint32_t index) {
  const uint64_t gpu = atomic_load_explicit(&e->done[index], memory_order_acquire);
  return gpu > e->tracks[index].known_done ? gpu : e->tracks[index].known_done;
}
static inline bool order_track_idle(const orion_engine* e, uint32_t index) {
  return e->tracks[index].issued == e->tracks[index].known_done ||
         order_track_done(e, index) >= e->tracks[index].issued;
}
/// Counts one driver entry into a stream; places a private marker now and then.
void order_issued(orion_engine* e, stream_state* stream);
void order_mark_track(orion_engine* e, uint32_t track_index);
/// Tracks with work outstanding, of one context (0: of all), with private markers placed, into `out`.
bool order_take_ticket(orion_engine* e, uint32_t context, ticket* out);
bool order_ticket_reached(const orion_engine* e, const ticket* t);
void order_ticket_free(ticket* t);
/// Asks the driver about outstanding work: learns what is done and finds faults. At most every 2 ms.
void order_check_faults(orion_engine* e, uint64_t now_ns);
/// Everything of a context that will never finish counts as finished.
void order_abandon(orion_engine* e, uint32_t context);
void order_sweep(orion_engine* e);

// ---- park.c
/// Runs the operation if it may run now. `node` is its parked entry if it has one. False: it is, or is to be, parked,
/// and what it touches is blocked for later operations of this pass.
bool park_try(orion_engine* e, const orion_op* op, parked_op* node);
void park_append(orion_engine* e, const orion_op* op);
/// True when a record of the event, its creation or its end, is parked.
static inline bool park_holds_record(const orion_engine* e, const event_state* v) {
  return e->any_epoch == e->epoch && v->record_epoch == e->epoch;
}
bool park_has_room(const orion_engine* e);
/// True when orion-server alone can make parked operations go on: it wakes the loop.
bool park_waits_for_server(const orion_engine* e);
/// One ordered look at all parked operations, if anything they wait for has changed. Returns how many ran.
uint32_t park_pass(orion_engine* e);
void park_cause(orion_engine* e, enum cause_kind kind, uint32_t index, uint64_t value, const ticket* t);
void park_free_all(orion_engine* e);
/// The event that an operation names; ORION_EVENTS if none.
uint32_t park_event_of(const orion_op* op);
static inline const uint8_t* op_tail(const orion_op* op) {
  return (const uint8_t*)op + ORION_OP_INFO[op->code].fixed_bytes;
}
static inline uint32_t op_tail_bytes(const orion_op* op) { return op->bytes - ORION_OP_INFO[op->code].fixed_bytes; }

// ---- execution, by area. Each handler answers the operation itself.
enum step execute(orion_engine* e, const orion_op* op, parked_op* node);
/// Makes the context current. Returns NULL, having answered the operation, when it cannot be used.
context_state* use_context(orion_engine* e, const orion_op* op);
/// The operation's stream, in a usable context that is current; NULL: answered.
stream_state* use_stream(orion_engine* e, const orion_op* op);
static inline uint32_t stream_index(const orion_op* op) {
  return op->stream ? op->stream : STREAM_NULL_BASE + op->context;
}
/// Where a marker for `stream` may be placed (protocol: the NULL stream's goes to a private blocking stream while
/// the context has blocking streams). NULL: none can be made.
stream_state* marker_stream(orion_engine* e, stream_state* stream);
/// words[word] = value behind the stream's work.
int32_t place_marker(orion_engine* e, stream_state* stream, uint32_t word, uint64_t value);

void context_primary(orion_engine* e, const orion_op* op);
void context_create(orion_engine* e, const orion_op* op);
void context_destroy(orion_engine* e, const orion_op* op);
void context_reset(orion_engine* e, const orion_op* op);
void context_simple(orion_engine* e, const orion_op* op);
void context_get_resource(orion_engine* e, const orion_op* op);
void context_peer(orion_engine* e, const orion_op* op);
void context_close(orion_engine* e, uint32_t index);  // ledger and binding, without an answer

void stream_create(orion_engine* e, const orion_op* op);
void stream_destroy(orion_engine* e, const orion_op* op);
void stream_close(orion_engine* e, uint32_t index);
void stream_mark(orion_engine* e, const orion_op* op);
void stream_wait_event(orion_engine* e, const orion_op* op);
void stream_value(orion_engine* e, const orion_op* op);
enum step stream_host_function(orion_engine* e, const orion_op* op, parked_op* node);
void event_create(orion_engine* e, const orion_op* op);
void event_destroy(orion_engine* e, const orion_op* op);
void event_record(orion_engine* e, const orion_op* op);
void event_issued(orion_engine* e, const orion_op* op);
/// Binds a driver event to a free index of the operation's context, which is current.
void event_bind(orion_engine* e, const orion_op* op, uint32_t index, CUevent handle, uint32_t flags);
/// The event's end: of its driver event, and of its token.
int32_t event_close(orion_engine* e, uint32_t index);
enum step event_elapsed(orion_engine* e, const orion_op* op, parked_op* node);

// ---- pending.c: events whose operations are parked, and queries
/// Gives the event a driver event of its own, apart from what parked operations before `until` (NULL: all) mean by it.
/// False: it cannot be.
bool event_detach(orion_engine* e, uint32_t index, const parked_op* until);
/// Parked waits for a shared event get an event of their own, complete when its last record so far is: another process
/// may record it again before they are issued.
void event_keep(orion_engine* e, uint32_t index);
/// A parked operation that named a spare event is done.
void event_let_go(orion_engine* e, uint32_t index);
void event_drop_spares(orion_engine* e, uint32_t context);
/// STREAM_QUERY and EVENT_QUERY.
void query_start(orion_engine* e, const orion_op* op);
bool query_pass(orion_engine* e);
void query_free(orion_engine* e);

int memory_bind_device(orion_engine* e, uint32_t index);
void memory_release_device(orion_engine* e, uint32_t index);
/// MEM_MAP and VMM_CREATE: answers, or waits for frees that may still make room.
void memory_allocate(orion_engine* e, const orion_op* op);
device_state* memory_device_at(const orion_engine* e, uint64_t address);
uint32_t memory_range_new(orion_engine* e);  // 0: no memory
void memory_range_give(orion_engine* e, uint32_t index);
void memory_set_chunks(device_state* d, uint64_t base, uint64_t bytes, uint32_t value);
void memory_free(orion_engine* e, const orion_op* op);
void memory_info(orion_engine* e, const orion_op* op);
void memory_host_register(orion_engine* e, const orion_op* op);
enum step memory_host_unregister(orion_engine* e, const orion_op* op);
void memory_drop_context(orion_engine* e, uint32_t context);
void memory_allow_peer(orion_engine* e, uint32_t owner, uint32_t reader, bool allow);
/// Memory for a range that has none (swap.c), at its address, with the access that its device allows. 0 or a CUresult.
int32_t memory_back(orion_engine* e, range* r);
/// Reclaims frees whose ticket is reached, then tries waiting allocations. Returns whether something happened.
bool memory_reclaim(orion_engine* e, bool close_batch);
void memory_free_all(orion_engine* e);
/// True when [address, +bytes) may be named by a copy: mapped device memory, a module's global, registered memory.
bool memory_device_ok(const orion_engine* e, uint64_t address, uint64_t bytes);
/// True when [offset, +bytes) of the host arena is staging or registered.
bool memory_host_ok(const orion_engine* e, uint64_t offset, uint64_t bytes);
bool memory_pin(orion_engine* e, uint64_t offset, uint64_t bytes, uint64_t alias);

// ---- alias.c: arena pages at a second address
/// Maps and registers [offset, +bytes) of the arena, whose bounds are checked, at `address` too.
int32_t alias_add(orion_engine* e, uint64_t offset, uint64_t bytes, uint64_t address);
void alias_drop(orion_engine* e, const host_range* r);
/// Where in the arena the memory at `address` lies, when a kernel could name it so: by the arena's address or another.
bool alias_offset(const orion_engine* e, uint64_t address, uint64_t* offset);

// virtual_memory.c
int32_t vmm_create(orion_engine* e, const orion_op_vmm_create* o);
void vmm_simple(orion_engine* e, const orion_op* op);
void vmm_free_all(orion_engine* e);
/// Binds a free index to memory of the driver's device `ordinal`. 0 or a CUresult; the handle is the caller's then.
int32_t vmm_adopt(orion_engine* e, uint32_t index, CUmemGenericAllocationHandle handle, uint64_t bytes, int ordinal);
memory_state* vmm_memory(orion_engine* e, uint32_t index);  // NULL: no such memory
/// The calls of virtual memory belong to no context, but the driver may want one to be current.
int32_t vmm_some_context(orion_engine* e);

// ---- share.c: memory and events of other workers
enum step share_execute(orion_engine* e, const orion_op* op, parked_op* node);
/// The memory or event goes: nobody can import it any more.
void share_withdraw(orion_engine* e, share_token* token);
void share_free_all(orion_engine* e);

// ---- coherent.c: host memory that kernels use over a network, and managed variables
void coherent_add(orion_engine* e, const orion_op* op);
void coherent_publish(orion_engine* e, const orion_op* op);
/// The client knows these bytes now: it has sent them or they have been sent to it.
void coherent_known(orion_engine* e, uint64_t offset, const uint8_t* from, uint64_t bytes);
/// What the client knows of [offset, +bytes); NULL when that is not part of one coherent range.
uint8_t* coherent_copy(const orion_engine* e, uint64_t offset, uint64_t bytes);
/// Whether a byte of [offset, +bytes) is in a coherent range.
bool coherent_touches(const orion_engine* e, uint64_t offset, uint64_t bytes);
/// Over a network: what has been published and copied out is on its way ahead of the next answer. False: the operation
/// has been given a cause to be looked at again.
bool coherent_settled(orion_engine* e);
void coherent_drop(orion_engine* e, uint64_t offset, uint64_t bytes);
/// The client has sent these bytes, which are in the arena: it knows them, and a mirror gets them too.
void coherent_arrived(orion_engine* e, uint64_t offset, const uint8_t* from, uint64_t bytes);
/// Where kernels write what the arena has at `offset`: there, or in the mirror of its coherent range.
const uint8_t* coherent_source(const orion_engine* e, uint64_t offset);
/// Exactly this range; NULL: there is none.
coherent_range* coherent_find(const orion_engine* e, uint64_t offset, uint64_t bytes);
/// 0 or a CUresult: 1 where it touches another.
int32_t coherent_insert(orion_engine* e, const coherent_range* range);

// ---- variable.c: managed variables of modules and libraries
static inline uint32_t variable_owner_library(uint32_t library) { return library + 1; }
static inline uint32_t variable_owner_module(uint32_t module) { return (module + 1) | 1u << 31; }
/// The driver has told a managed variable: the client may ask for its pages. 0 or a CUresult.
int32_t variable_told(orion_engine* e, uint32_t owner, uint64_t address, uint64_t bytes);
/// Before the owner's memory goes.
void variable_forget(orion_engine* e, uint32_t owner);
bool variable_contains(const orion_engine* e, uint64_t address, uint64_t bytes);
enum step variable_map(orion_engine* e, const orion_op* op);
enum step variable_end(orion_engine* e, const orion_op* op);
void variable_pull(orion_engine* e, const orion_op* op);
/// All of them: a host function of the client, which may have changed any, has returned.
void variable_pull_all(orion_engine* e);
/// Over shared memory: what the stream's work so far has written is in the arena before its next marker. 0 or a
/// CUresult.
int32_t variable_publish(orion_engine* e, stream_state* stream, struct mirror* mirror);
uint8_t* variable_memory(const struct mirror* mirror);
/// Nothing uses the mirror's memory from here on, not even what is queued already.
void variable_mirror_end(struct mirror* mirror);

void copy_linear(orion_engine* e, const orion_op* op);
void copy_3d(orion_engine* e, const orion_op* op);
void copy_set(orion_engine* e, const orion_op* op);
/// Checks a COPY_3D and translates it; `peers` when it is between contexts, `written` the arena bytes that it writes.
int32_t copy_3d_describe(const orion_engine* e, const orion_op_copy_3d* o, CUDA_MEMCPY3D_PEER* c, bool* peers,
                         host_range* written);
bool copy_set_ok(const orion_engine* e, const orion_op_memset* o);

void module_load(orion_engine* e, const orion_op* op);
void module_unload(orion_engine* e, const orion_op* op);
void module_close(orion_engine* e, uint32_t index);
void module_get_function(orion_engine* e, const orion_op* op);
void module_get_global(orion_engine* e, const orion_op* op);
void module_link(orion_engine* e, const orion_op* op);
void function_simple(orion_engine* e, const orion_op* op);
/// Registers a function of a module under the client's index and answers with its attributes and layout.
void function_open(orion_engine* e, const orion_op* op, uint32_t module, uint32_t index, CUfunction handle);
/// The operation's function, in its context; NULL: answered.
function_state* function_of(orion_engine* e, const orion_op* op, uint32_t index);
/// Launch attributes of an operation, checked, into the driver's form. 0 or a CUresult.
int32_t launch_attributes(const orion_engine* e, const uint8_t* tail, uint32_t count, CUlaunchAttribute* to);
/// Whether a launch's tail (LAUNCH or LAUNCH_EX) is what its fields say and what the kernel reads.
bool launch_tail_ok(const orion_op* op, const function_state* f, uint32_t attribute_count);
void launch_kernel(orion_engine* e, const orion_op* op);
/// The driver's call of a launch whose tail and attributes have been checked. From any thread.
int32_t launch_call(const orion_driver* driver, const orion_op* op, CUfunction function, CUstream stream);
bool launch_attribute_ok(const orion_engine* e, uint32_t id, const void* value);

// ---- graph.c: executable graphs; their state is graph.c's own
bool graph_init(orion_engine* e);
/// Lets host nodes that wait for the client go on, for the driver's sake: nothing waits for the client any more.
void graph_end(orion_engine* e);
void graph_free(orion_engine* e);
void graph_operation(orion_engine* e, const orion_op* op);
void graph_drop_context(orion_engine* e, uint32_t context);
/// The executable graphs that an operation names: ORION_GRAPHS if none.
uint32_t graph_of(const orion_op* op, uint32_t* other);
bool graph_is_blocked(const orion_engine* e, uint32_t index);
void graph_block(orion_engine* e, uint32_t index);
/// Tells the client which host nodes have been reached. Called by the loop when graph_signal is set.
void graph_publish(orion_engine* e);
/// False when an image's own headers name bytes beyond its end. `text` tells PTX, which needs a terminator.
bool image_check(const uint8_t* image, uint64_t bytes, bool* text);
static inline bool part_inside(uint64_t offset, uint64_t bytes, uint64_t total) {
  return offset <= total && bytes <= total - offset;
}

// ---- image.c: offered images; library.c: libraries and kernels
enum step image_execute(orion_engine* e, const orion_op* op, parked_op* node);
void image_free_all(orion_engine* e);
void library_execute(orion_engine* e, const orion_op* op);
void library_free_all(orion_engine* e);
/// What is charged to a library's module is given back with its context, or else with its library.
void library_module_end(orion_engine* e, const module_state* m);

// ---- array.c: arrays, mipmapped arrays, textures and surfaces
enum step array_create(orion_engine* e, const orion_op* op);
void array_destroy(orion_engine* e, const orion_op* op);
void array_view(orion_engine* e, const orion_op* op);
void texture_create(orion_engine* e, const orion_op* op);
void texture_destroy(orion_engine* e, const orion_op* op);
void array_drop_context(orion_engine* e, uint32_t context);
void array_free_all(orion_engine* e);
/// The array that a copy names by its index, or NULL.
CUarray array_handle(const orion_engine* e, uint64_t index);
/// Operations that end or bind such objects wait for one another's turn, so that an index is never used twice.
static inline bool array_is_release(uint32_t code) {
  return code == ORION_OP_ARRAY_DESTROY || code == ORION_OP_MIPMAP_DESTROY || code == ORION_OP_TEXTURE_DESTROY;
}
static inline bool array_is_binding(uint32_t code) {
  return code == ORION_OP_ARRAY_CREATE || code == ORION_OP_MIPMAP_CREATE || code == ORION_OP_ARRAY_VIEW ||
         code == ORION_OP_TEXTURE_CREATE;
}

// ---- tensor_map.c
void tensor_map_encode(orion_engine* e, const orion_op* op);
void tensor_map_replace_address(orion_engine* e, const orion_op* op);

// ---- output.c: what kernels print
void output_begin(orion_engine* e);
void output_end(orion_engine* e);
void output_take(orion_engine* e, const orion_op* op);
/// Forgets what a client has not asked for, beyond a bound.
void output_bound(orion_engine* e);
void output_drop_context(orion_engine* e, uint32_t index);
/// Looks for printing kernels in an image that image_check has passed.
void output_scan(orion_engine* e, const uint8_t* image, uint64_t bytes);

// ---- watcher.c
bool watcher_start(orion_engine* e);
void watcher_stop(orion_engine* e);

#include "net_calls.h"

#endif
