// The client's side of every CUDA object. Calls are answered from here; the worker is asked only where it must be.
//
// Lock order: a context's mutex, then a stream's, then memory_mutex, then a session's free_mutex. Nothing is held while
// a reply is awaited, except a device's primary_mutex (its calls are serial by nature).
#ifndef ORION_SHIM_STATE_H
#define ORION_SHIM_STATE_H

#include <pthread.h>

#include "cuda_types.h"
#include "extent.h"
#include "handles.h"
#include "session.h"

struct orion_context;
struct orion_callback_lane;
struct orion_heap;

/// What the API side keeps for one session.
#define ORION_RELAY_BLOCKS 8u
typedef struct orion_peer {
  orion_session* session;
  // relay.c: blocks of staging that nothing else uses, of ORION_COPY_PIECE_BYTES.
  bool relay_ready;
  uint32_t relay_free;
  uint64_t relay_blocks[ORION_RELAY_BLOCKS];
  pthread_mutex_t free_mutex;  // numbers MEM_FREE operations and submits them in that order
  uint64_t frees_submitted;
  _Atomic bool releases_unsettled;  // memory was given back one-way, and nothing has shown yet that the worker knows
  struct orion_pending_free *pending_head, *pending_tail;  // in the order of their numbers
} orion_peer;

/// An answer that never changes.
typedef struct orion_sm_resource {
  _Atomic uint32_t count, least, alignment;
  _Atomic bool known;
} orion_sm_resource;

typedef struct orion_device_state {
  orion_device* info;
  orion_peer* peer;
  uint32_t ordinal;
  pthread_mutex_t primary_mutex;
  struct orion_context* _Atomic primary;  // made when first asked for, then the same for ever
  _Atomic uint32_t primary_references;
  uint32_t primary_flags;
  orion_extent* free_addresses;      // under memory_mutex
  orion_sm_resource sm_resource[2];  // of the device, of its contexts
} orion_device_state;

/// How everything that belongs to a context begins.
typedef struct orion_object {
  orion_entry entry;
  struct orion_context* context;
  uint32_t epoch;
} orion_object;

/// Hints that a program gives a stream; what it has not set has its default.
typedef struct orion_stream_attributes {
  uint32_t set;  // one bit for each attribute
  CUsynchronizationPolicy sync_policy;
  CUlaunchMemSyncDomain domain;
  CUlaunchMemSyncDomainMap domain_map;
  CUaccessPolicyWindow access_policy;
} orion_stream_attributes;

/// One ordered queue of work. The NULL stream of a context is one too, with wire index 0.
#define ORION_WAITS_KEPT 8u
typedef struct orion_stream {
  orion_entry entry;
  struct orion_context* context;
  uint32_t epoch;       // the context's when this was made
  uint32_t wire_index;  // 0: NULL stream
  orion_session* session;
  uint32_t word;
  uint32_t flags;
  int32_t priority;
  uint64_t id;
  uint64_t handle;
  pthread_mutex_t mutex;    // numbers markers and submits them in that order
  _Atomic uint64_t marker;  // last value minted for `word`; never falls, not even when the index is used again
  _Atomic uint32_t dirty;   // set after an operation is committed: work that no marker follows yet
  struct orion_stream_capture* _Atomic capture;  // capture.c; NULL: operations go to the worker
  struct orion_callback_lane* _Atomic lane;
  _Atomic uint64_t coherent;             // coherent ranges that work behind the last marker may have written
  _Atomic uint64_t host_function;        // the last one of this stream: client word << 48 | generation; 0: none
  struct orion_stream *previous, *next;  // in the context's list
  // Tickets (word << 48 | value) of events that the stream has waited for lately: its later work comes after them.
  _Atomic uint64_t waited[ORION_WAITS_KEPT];
  _Atomic uint32_t waited_next;
  orion_stream_attributes attributes;  // under the mutex
} orion_stream;

/// Work of a destroyed stream that a context-wide wait still has to cover.
typedef struct orion_ticket {
  uint32_t word;
  bool blocking;  // of a stream that the NULL stream waits for
  uint64_t value;
} orion_ticket;

/// For context_order.c.
typedef struct orion_context_order {
  orion_stream* join;
  struct orion_event *mark, *own_gate;
  struct orion_event* _Atomic gate;  // own_gate once something waits for it
  uint32_t epoch;                    // of the context, when they were made
} orion_context_order;

typedef struct orion_context {
  orion_entry entry;
  orion_device_state* device;
  orion_session* session;
  bool is_primary;
  _Atomic bool active;     // the worker knows it
  _Atomic uint32_t epoch;  // grows when all that the context held is gone (destroy, reset, last release)
  _Atomic uint32_t ends;   // the same, but once the worker has confirmed it: its work has ended
  uint32_t flags;
  uint32_t api_version;
  uint64_t id;
  uint64_t handle;
  orion_stream null_stream;
  pthread_mutex_t mutex;
  orion_stream* streams;  // live created streams
  _Atomic uint32_t blocking_streams;
  orion_ticket* retired;
  uint32_t retired_count, retired_capacity;
  _Atomic uint32_t attachments;  // cuCtxAttach and cuCtxDetach: counted beside cuCtxCreate's own
  _Atomic int32_t cache_config;
  _Atomic uint64_t limits[CU_LIMIT_MAX];  // value + 1 as the driver last told it; 0: not known
  _Atomic uint64_t peer_access;           // one bit for each context index
  struct orion_heap* heap;                // under memory_mutex
  orion_context_order order;
  orion_stream* private_stream;  // for relay.c; in no list, held back by nothing
  uint32_t private_epoch;        // of the context, when that was made
} orion_context;

typedef struct orion_event {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  uint32_t flags;
  uint64_t handle;
  struct orion_event_capture* _Atomic capture;  // last recorded in a capture; NULL: the ticket counts
  // Ticket of the last record: word << 48 | value; 0: never recorded.
  _Atomic uint64_t ticket;
  // Other processes may record it too: then the ticket is only what this one did, and the driver is asked besides.
  _Atomic bool shared;
} orion_event;

typedef struct orion_global {
  char* name;
  uint64_t address, bytes;
  struct orion_global* next;
} orion_global;

typedef struct orion_module {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  uint64_t handle;
  uint32_t function_count;
  uint64_t library;  // handle of the library that owns it; 0: none
  pthread_mutex_t mutex;
  struct orion_function* _Atomic functions;
  orion_global* globals;
} orion_module;

#define ORION_FUNCTION_ATTRIBUTES 32u

typedef struct orion_function {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  orion_module* module;
  uint64_t module_handle;
  uint64_t handle;
  _Atomic uint64_t kernel;  // handle of the library's kernel that it stands for; 0: none
  char* name;
  uint32_t attribute_mask;
  _Atomic uint32_t set_mask;  // attributes that the driver has taken from this process as they are here
  _Atomic int32_t attributes[ORION_FUNCTION_ATTRIBUTES];
  uint32_t param_count, param_bytes;
  bool layout_known;
  uint32_t *param_offsets, *param_sizes;
  _Atomic uint64_t cooperative_key;           // the last cooperative configuration asked for ...
  _Atomic uint32_t cooperative_limit;         // ... and how many blocks fit
  struct orion_legacy_launch* legacy;         // what the calls before CUDA 4.0 have set
  struct orion_occupancy* _Atomic occupancy;  // answers by arguments; occupancy.c
  _Atomic uint32_t settings;                  // grows when something is set that occupancy depends on
  struct orion_function* next;
} orion_function;

typedef struct orion_context_ref {
  orion_context* context;
  uint32_t generation;
} orion_context_ref;

/// A value that a library keeps with a context, as this thread last saw it (export/context_storage.c).
typedef struct orion_remembered {
  const orion_context* context;
  const void* key;
  void* value;
  uint64_t changes;
  uint32_t generation;
} orion_remembered;
#define ORION_REMEMBERED 16u

/// What one client thread has: its context stack, its per-thread streams, scratch for parameters.
typedef struct orion_thread {
  orion_context_ref* stack;
  uint32_t depth, capacity;
  uint64_t thread_streams[ORION_CONTEXTS];  // handles, by context index
  uint8_t* scratch;                         // ORION_OP_MAX_BYTES
  CUstreamCaptureMode capture_mode;
  orion_remembered remembered[ORION_REMEMBERED];
} orion_thread;

#define ORION_OBJECT_CHECK(type)                                               \
  _Static_assert(offsetof(type, context) == offsetof(orion_object, context) && \
                     offsetof(type, epoch) == offsetof(orion_object, epoch),   \
                 #type)
ORION_OBJECT_CHECK(orion_stream);
ORION_OBJECT_CHECK(orion_event);
ORION_OBJECT_CHECK(orion_module);
ORION_OBJECT_CHECK(orion_function);

extern orion_table orion_contexts, orion_streams, orion_events, orion_modules, orion_functions;
extern pthread_mutex_t orion_memory_mutex;
extern _Thread_local orion_thread* orion_self __attribute__((tls_model("initial-exec")));
extern _Thread_local bool orion_in_host_function __attribute__((tls_model("initial-exec")));

// state.c
CUresult orion_start(void);  // after a successful attach: device states. Idempotent.
orion_device_state* orion_device_state_at(CUdevice device);
uint32_t orion_device_states(void);
orion_thread* orion_thread_state_new(void);
static inline orion_thread* orion_thread_state(void) {  // NULL only without memory
  orion_thread* thread = orion_self;
  return __builtin_expect(thread != NULL, 1) ? thread : orion_thread_state_new();
}
uint64_t orion_next_id(void);
/// orion_table_take; a full table first takes back what belongs to contexts that are gone.
void* orion_object_take(orion_table* table);
extern bool orion_launch_is_blocking;  // CUDA_LAUNCH_BLOCKING=1

// context.c
/// Maybe an inactive primary.
static inline CUresult orion_current_any(orion_context** context) {
  const orion_thread* thread = orion_self;
  if (__builtin_expect(thread == NULL || thread->depth == 0, 0)) return CUDA_ERROR_INVALID_CONTEXT;
  const orion_context_ref* top = &thread->stack[thread->depth - 1];
  if (__builtin_expect(atomic_load_explicit(&top->context->entry.generation, memory_order_acquire) != top->generation,
                       0)) {
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  *context = top->context;
  return CUDA_SUCCESS;
}
static inline CUresult orion_usable(orion_context* context) {
  if (__builtin_expect(!atomic_load_explicit(&context->active, memory_order_acquire), 0)) {
    return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  return orion_context_error(context->session, context->entry.index);
}
/// Usable for work.
static inline CUresult orion_current(orion_context** context) {
  const CUresult result = orion_current_any(context);
  return __builtin_expect(result == CUDA_SUCCESS, 1) ? orion_usable(*context) : result;
}
CUresult orion_context_of(CUcontext handle, orion_context** context);  // NULL: current
orion_context* orion_primary_of(orion_device_state* device);           // stable, not retained; NULL without memory
CUresult orion_context_synchronize(orion_context* context);
static inline bool orion_same_epoch(const orion_context* context, uint32_t epoch) {
  return atomic_load_explicit(&context->epoch, memory_order_acquire) == epoch;
}
/// The object behind a handle: 400 for one that names nothing, 709 when its context's contents are gone.
static inline CUresult orion_object_find(orion_table* table, const void* handle, void* out) {
  orion_object* object = orion_table_find(table, (uint64_t)(uintptr_t)handle, NULL);
  if (__builtin_expect(object == NULL, 0)) return CUDA_ERROR_INVALID_HANDLE;
  if (__builtin_expect(!orion_same_epoch(object->context, object->epoch), 0)) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  *(void**)out = object;
  return CUDA_SUCCESS;
}

// context_order.c
/// Has issue(stream, argument) submit on a stream that has waited for all work of `count` contexts, the first of which
/// is its own; whatever these contexts get later waits for it. *issued: whether `issue` has succeeded, on any result.
CUresult orion_context_serialize(orion_context* const* contexts, uint32_t count,
                                 CUresult (*issue)(orion_stream* stream, void* argument), void* argument, bool* issued);
/// A new stream waits for what its context waits for.
CUresult orion_context_gate(orion_stream* stream);

// stream.c
CUresult orion_resolve_stream(CUstream handle, orion_stream** stream);
void orion_stream_prepare_null(orion_context* context);
/// Fills context and stream into `op`, submits, and leaves the stream dirty.
bool orion_over_network(const orion_session* session);
CUresult orion_stream_submit(orion_stream* stream, orion_op* op, uint32_t head_bytes, const void* tail,
                             uint32_t tail_bytes);
/// A marker behind everything submitted so far; *value is reached when all of it is done. Places none when the last
/// one still covers everything.
CUresult orion_stream_ticket(orion_stream* stream, uint64_t* value);
/// Submits `op`, whose `word` and `value` fields are set here to the stream's next marker.
CUresult orion_stream_submit_marked(orion_stream* stream, orion_op* op, uint32_t head_bytes, uint32_t* word,
                                    uint64_t* value);
CUresult orion_stream_synchronize(orion_stream* stream);
CUresult orion_stream_wait(orion_stream* stream, uint64_t value);
CUresult orion_stream_create(orion_context* context, uint32_t flags, int32_t priority, orion_stream** out);
/// A non-blocking stream of the context that no wait for the whole context and no gate knows. Nothing may be put on it
/// that could hold it back.
CUresult orion_private_stream(orion_context* context, orion_stream** out);
void orion_thread_streams_end(orion_thread* thread);
void orion_context_streams_end(orion_context* context);  // the worker has dropped them

// event.c
CUresult orion_event_create(orion_context* context, uint32_t flags, orion_event** out);
CUresult orion_event_of(CUevent handle, orion_event** event);
/// The event that a token stands for (EVENT_EXPORT).
CUresult orion_event_import(orion_context* context, const uint64_t token[2], orion_event** out);
CUresult orion_event_record(orion_event* event, orion_stream* stream, uint32_t flags);
/// The event counts as recorded where the stream reaches `value`.
void orion_event_set_ticket(orion_event* event, const orion_stream* stream, uint64_t value);
CUresult orion_event_wait(orion_event* event, orion_stream* stream, uint32_t flags);

// module.c and function.c
CUresult orion_module_load(orion_context* context, const void* image, uint32_t option_count, CUjit_option* options,
                           void** values, CUmodule* module);
CUresult orion_module_unload(CUmodule handle);
CUresult orion_module_of(CUmodule handle, orion_module** module);
/// `kernel`: index of the library's kernel that it is the function of, 0: none.
CUresult orion_module_function(orion_module* module, const char* name, uint32_t kernel, orion_function** function);
CUresult orion_module_global(orion_module* module, const char* name, uint64_t* address, uint64_t* bytes);
/// `handle` may be a CUkernel, as CUDA allows: then its function in the current context.
CUresult orion_function_of(CUfunction handle, orion_function** function);
static inline int32_t orion_function_attribute(const orion_function* function, uint32_t attribute) {
  return atomic_load_explicit(&function->attributes[attribute], memory_order_relaxed);
}
CUresult orion_occupancy_blocks(orion_function* function, int32_t block_size, uint64_t dynamic_bytes, uint32_t flags,
                                int32_t* blocks);

// jit.c: options and logs of module loads and links
typedef struct orion_jit {
  uint32_t pairs[64][2];
  uint32_t pair_count;
  char *info_log, *error_log;
  uint32_t info_log_bytes, error_log_bytes;
  uint32_t info_size_at, error_size_at, wall_time_at;  // index into values, UINT32_MAX: none
  void** values;
} orion_jit;
CUresult orion_jit_parse(orion_jit* jit, uint32_t count, const CUjit_option* options, void** values);
void orion_jit_finish(orion_jit* jit, const uint8_t* logs, uint32_t info_bytes, uint32_t error_bytes);
CUresult orion_read_file(const char* path, uint8_t** bytes, uint64_t* size);  // module.c; the caller frees *bytes
/// Bytes of an image that begins at `image`, or 0 when it is none. *data is what to send (a wrapper's container).
uint64_t orion_image_bytes(const void* image, const void** data);

#endif
