#include "state.h"

#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "memory.h"
#include "relay.h"

orion_table orion_contexts = ORION_TABLE(ORION_TAG_CONTEXT, orion_context, ORION_CONTEXTS, 0);
orion_table orion_streams = ORION_TABLE(ORION_TAG_STREAM, orion_stream, ORION_STREAMS, 32);
orion_table orion_events = ORION_TABLE(ORION_TAG_EVENT, orion_event, ORION_EVENTS, 4096);
orion_table orion_modules = ORION_TABLE(ORION_TAG_MODULE, orion_module, ORION_MODULES, 64);
orion_table orion_functions = ORION_TABLE(ORION_TAG_FUNCTION, orion_function, ORION_FUNCTIONS, 1024);

_Thread_local orion_thread* orion_self __attribute__((tls_model("initial-exec")));
_Thread_local bool orion_in_host_function __attribute__((tls_model("initial-exec")));
_Thread_local uintptr_t orion_default_stream_override __attribute__((tls_model("initial-exec")));

static orion_device_state device_states[ORION_DEVICES];
static orion_peer peers[ORION_DEVICES];
static uint32_t device_count, peer_count;
static CUresult start_result;
bool orion_launch_is_blocking;
static pthread_once_t start_once = PTHREAD_ONCE_INIT;
static pthread_key_t thread_key;
static _Atomic uint64_t last_id;

uint64_t orion_next_id(void) { return atomic_fetch_add_explicit(&last_id, 1, memory_order_relaxed) + 1; }

static bool is_orphan(const orion_object* object) { return !orion_same_epoch(object->context, object->epoch); }

void* orion_object_take(orion_table* table) {
  orion_object* object = orion_table_take(table);
  if (object != NULL) return object;
  const uint32_t end = orion_table_end(table);
  for (uint32_t i = 1; i < end; i++) {
    object = orion_table_at(table, i);
    const uint32_t generation = atomic_load(&object->entry.generation);
    if ((generation & 1) == 0 || !is_orphan(object)) continue;
    if (orion_table_retire(table, object, generation)) orion_table_give(table, object);
  }
  return orion_table_take(table);
}

static void end_thread(void* value) {
  orion_thread* thread = value;
  orion_self = thread;  // TLS of this library may already be back at its initial value
  if (orion_ready() == CUDA_SUCCESS) orion_thread_streams_end(thread);
  orion_self = NULL;
  free(thread->stack);
  free(thread->scratch);
  free(thread);
}

orion_thread* orion_thread_state_new(void) {
  orion_thread* thread = calloc(1, sizeof *thread);
  if (thread == NULL) return NULL;
  thread->scratch = malloc(ORION_OP_MAX_BYTES);
  if (thread->scratch == NULL || pthread_setspecific(thread_key, thread) != 0) {
    free(thread->scratch);
    free(thread);
    return NULL;
  }
  orion_self = thread;
  return thread;
}

static orion_peer* peer_of(orion_session* session) {
  for (uint32_t i = 0; i < peer_count; i++) {
    if (peers[i].session == session) return &peers[i];
  }
  orion_peer* peer = &peers[peer_count++];
  peer->session = session;
  pthread_mutex_init(&peer->free_mutex, NULL);
  return peer;
}

static void start(void) {
  if (pthread_key_create(&thread_key, end_thread) != 0) {
    start_result = CUDA_ERROR_OPERATING_SYSTEM;
    return;
  }
  const char* blocking = getenv("CUDA_LAUNCH_BLOCKING");
  orion_launch_is_blocking = blocking != NULL && strcmp(blocking, "1") == 0;
  const uint32_t count = orion_device_count();
  for (uint32_t i = 0; i < count && i < ORION_DEVICES; i++) {
    orion_device_state* state = &device_states[i];
    state->info = orion_device_at(i);
    state->peer = peer_of(state->info->session);
    state->ordinal = i;
    pthread_mutex_init(&state->primary_mutex, NULL);
    if (!orion_free_list_give(&state->free_addresses, state->info->slot_base, state->info->slot_bytes, 0)) {
      start_result = CUDA_ERROR_OUT_OF_MEMORY;
      return;
    }
    device_count = i + 1;
  }
  // Now, while nothing else has any staging.
  for (uint32_t i = 0; i < peer_count && peer_count > 1; i++) {
    if (!orion_relay_start(&peers[i])) {
      orion_log(ORION_LOG_WARN, "no staging for copies between %s and other servers", peers[i].session->server_address);
    }
  }
}

CUresult orion_start(void) {
  pthread_once(&start_once, start);
  return start_result;
}

orion_device_state* orion_device_state_at(CUdevice device) {
  return device >= 0 && (uint32_t)device < device_count ? &device_states[device] : NULL;
}

uint32_t orion_device_states(void) { return device_count; }

// A forked child of an initialised parent is refused by orion_ready before it can touch anything here, so there is
// nothing to mend: the mutexes that another thread held at the fork are never taken again.
void orion_api_after_fork(void) { orion_self = NULL; }
