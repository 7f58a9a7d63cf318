// What Orion uses of UCX (libucp, API 1.13 and newer), declared here because the library is opened at run time:
// whatever the machine has, with verbs and CUDA where its vendor built them in. Parameter structures carry a mask of
// the fields that are set, so UCX keeps their layout; tests/wire/test_ucx_layout.py compares it with the headers of a
// release.
#ifndef ORION_UCX_H
#define ORION_UCX_H

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define ORION_UCX_LIBRARY "libucp.so.0"
#define ORION_UCX_API_MAJOR 1u
#define ORION_UCX_API_MINOR 13u

typedef int8_t orion_ucs_status;
enum { ORION_UCS_OK = 0, ORION_UCS_INPROGRESS = 1, ORION_UCS_ERR_BUSY = -15, ORION_UCS_ERR_LAST = -100 };

/// What calls that may go on return: NULL (done), a request, or an error.
static inline bool orion_ucs_is_error(const void* pointer) {
  return (uintptr_t)pointer >= (uintptr_t)(intptr_t)ORION_UCS_ERR_LAST;
}
static inline orion_ucs_status orion_ucs_error(const void* pointer) { return (orion_ucs_status)(intptr_t)pointer; }

enum { ORION_UCS_MEMORY_HOST = 0, ORION_UCS_MEMORY_CUDA = 1 };
enum { ORION_UCS_THREAD_SERIALIZED = 1 };
enum { ORION_UCS_LOG_ERROR = 1, ORION_UCS_LOG_WARN = 2 };

typedef struct orion_ucs_sockaddr {
  const struct sockaddr* address;
  socklen_t length;
} orion_ucs_sockaddr;

#define ORION_UCP_FEATURE_WAKEUP (1ull << 4)
#define ORION_UCP_FEATURE_AM (1ull << 6)
#define ORION_UCP_PARAM_FEATURES (1ull << 0)
#define ORION_UCP_PARAM_NAME (1ull << 8)
typedef struct orion_ucp_params {
  uint64_t mask;
  uint64_t features;
  size_t request_size;
  void (*request_init)(void*);
  void (*request_cleanup)(void*);
  uint64_t tag_sender_mask;
  int mt_workers_shared;
  size_t estimated_num_eps, estimated_num_ppn;
  const char* name;
} orion_ucp_params;

#define ORION_UCP_ATTR_MEMORY_TYPES (1ull << 2)
typedef struct orion_ucp_context_attr {
  uint64_t mask;
  size_t request_size;
  int thread_mode;
  uint64_t memory_types;
  char name[32];
} orion_ucp_context_attr;

#define ORION_UCP_WORKER_THREAD_MODE (1ull << 0)
#define ORION_UCP_WORKER_FLAGS (1ull << 5)
#define ORION_UCP_WORKER_IGNORE_REQUEST_LEAK 1u
typedef struct orion_ucp_worker_params {
  uint64_t mask;
  int thread_mode;
  uint64_t cpu_mask[16];
  unsigned events;
  void* user_data;
  int event_fd;
  uint64_t flags;
  const char* name;
  size_t am_alignment;
  uint64_t client_id;
} orion_ucp_worker_params;

typedef void (*orion_ucp_connection_handler)(void* request, void* argument);
#define ORION_UCP_LISTENER_SOCKADDR (1ull << 0)
#define ORION_UCP_LISTENER_CONNECTION (1ull << 2)
typedef struct orion_ucp_listener_params {
  uint64_t mask;
  orion_ucs_sockaddr address;
  struct {
    void* callback;
    void* argument;
  } accept;
  struct {
    orion_ucp_connection_handler callback;
    void* argument;
  } connection;
} orion_ucp_listener_params;

#define ORION_UCP_LISTENER_ATTR_SOCKADDR (1ull << 0)
typedef struct orion_ucp_listener_attr {
  uint64_t mask;
  struct sockaddr_storage address;
} orion_ucp_listener_attr;

typedef void (*orion_ucp_error_handler)(void* argument, void* ep, orion_ucs_status status);
#define ORION_UCP_EP_ERROR_MODE (1ull << 1)
#define ORION_UCP_EP_ERROR_HANDLER (1ull << 2)
#define ORION_UCP_EP_SOCKADDR (1ull << 4)
#define ORION_UCP_EP_FLAGS (1ull << 5)
#define ORION_UCP_EP_CONNECTION (1ull << 6)
#define ORION_UCP_EP_CLIENT_SERVER 1u
enum { ORION_UCP_ERRORS_OF_PEER = 1 };
typedef struct orion_ucp_ep_params {
  uint64_t mask;
  const void* address;
  int error_mode;
  struct {
    orion_ucp_error_handler callback;
    void* argument;
  } error;
  void* user_data;
  unsigned flags;
  orion_ucs_sockaddr peer;
  void* connection;
  const char* name;
  orion_ucs_sockaddr local;
} orion_ucp_ep_params;

#define ORION_UCP_EP_CLOSE_FORCE 1u
#define ORION_UCP_OP_CALLBACK (1u << 1)
#define ORION_UCP_OP_USER_DATA (1u << 2)
#define ORION_UCP_OP_FLAGS (1u << 4)
#define ORION_UCP_OP_MEMORY_TYPE (1u << 6)
#define ORION_UCP_OP_MEMORY (1u << 8)
#define ORION_UCP_AM_REPLY 1u
#define ORION_UCP_AM_EAGER 2u
#define ORION_UCP_AM_RNDV 4u
typedef void (*orion_ucp_sent)(void* request, orion_ucs_status status, void* user_data);
typedef void (*orion_ucp_received)(void* request, orion_ucs_status status, size_t bytes, void* user_data);
typedef struct orion_ucp_request_param {
  uint32_t mask;
  uint32_t flags;
  void* request;
  union {
    orion_ucp_sent sent;
    orion_ucp_received received;
  } callback;
  uint64_t datatype;
  void* user_data;
  void* reply_buffer;
  int memory_type;
  size_t* length;
  void* memh;
} orion_ucp_request_param;

#define ORION_UCP_AM_RECV_REPLY_EP (1ull << 0)
#define ORION_UCP_AM_RECV_RNDV (1ull << 17)
typedef struct orion_ucp_am_recv_param {
  uint64_t attr;
  void* reply_ep;
} orion_ucp_am_recv_param;

typedef orion_ucs_status (*orion_ucp_am_handler)(void* argument, const void* header, size_t header_bytes, void* data,
                                                 size_t bytes, const orion_ucp_am_recv_param* param);
#define ORION_UCP_AM_HANDLER_ID (1ull << 0)
#define ORION_UCP_AM_HANDLER_CALLBACK (1ull << 2)
#define ORION_UCP_AM_HANDLER_ARGUMENT (1ull << 3)
typedef struct orion_ucp_am_handler_param {
  uint64_t mask;
  unsigned id;
  uint32_t flags;
  orion_ucp_am_handler callback;
  void* argument;
} orion_ucp_am_handler_param;

#define ORION_UCP_MEM_ADDRESS (1ull << 0)
#define ORION_UCP_MEM_LENGTH (1ull << 1)
#define ORION_UCP_MEM_TYPE (1ull << 4)
typedef struct orion_ucp_mem_map_params {
  uint64_t mask;
  void* address;
  size_t length;
  unsigned flags, protection;
  int memory_type;
} orion_ucp_mem_map_params;

typedef struct orion_ucx_api {
  void (*get_version)(unsigned* major, unsigned* minor, unsigned* release);
  orion_ucs_status (*config_read)(const char* prefix, const char* file, void** config);
  orion_ucs_status (*config_modify)(void* config, const char* name, const char* value);
  void (*config_release)(void* config);
  orion_ucs_status (*init_version)(unsigned major, unsigned minor, const orion_ucp_params* params, const void* config,
                                   void** context);
  void (*cleanup)(void* context);
  orion_ucs_status (*context_query)(void* context, orion_ucp_context_attr* attr);
  orion_ucs_status (*worker_create)(void* context, const orion_ucp_worker_params* params, void** worker);
  void (*worker_destroy)(void* worker);
  unsigned (*worker_progress)(void* worker);
  orion_ucs_status (*worker_get_efd)(void* worker, int* fd);
  orion_ucs_status (*worker_arm)(void* worker);
  orion_ucs_status (*worker_set_am_recv_handler)(void* worker, const orion_ucp_am_handler_param* param);
  orion_ucs_status (*listener_create)(void* worker, const orion_ucp_listener_params* params, void** listener);
  orion_ucs_status (*listener_query)(void* listener, orion_ucp_listener_attr* attr);
  orion_ucs_status (*listener_reject)(void* listener, void* connection);
  void (*listener_destroy)(void* listener);
  orion_ucs_status (*ep_create)(void* worker, const orion_ucp_ep_params* params, void** ep);
  void* (*ep_close_nbx)(void* ep, const orion_ucp_request_param* param);
  void* (*ep_flush_nbx)(void* ep, const orion_ucp_request_param* param);
  void (*ep_print_info)(void* ep, FILE* stream);
  void* (*am_send_nbx)(void* ep, unsigned id, const void* header, size_t header_bytes, const void* body, size_t bytes,
                       const orion_ucp_request_param* param);
  void* (*am_recv_data_nbx)(void* worker, void* descriptor, void* to, size_t bytes,
                            const orion_ucp_request_param* param);
  void (*am_data_release)(void* worker, void* data);
  orion_ucs_status (*request_check_status)(void* request);
  void (*request_free)(void* request);
  orion_ucs_status (*mem_map)(void* context, const orion_ucp_mem_map_params* params, void** memory);
  orion_ucs_status (*mem_unmap)(void* context, void* memory);
  orion_ucs_status (*rkey_pack)(void* context, void* memory, void** key, size_t* bytes);
  void (*rkey_buffer_release)(void* key);
  const char* (*status_string)(orion_ucs_status status);  // libucs
  unsigned major, minor, release;
} orion_ucx_api;

// UCX prints its own messages to stdout, which is the program's. This takes their place where the library is ours.
typedef void (*orion_ucx_log)(int level, const char* line);
static orion_ucx_log orion_ucx_log_to;

static inline int orion_ucx_log_handler(const char* file, unsigned line, const char* function, int level,
                                        const void* component, const char* format, va_list arguments) {
  (void)file, (void)line, (void)function, (void)component;
  char text[256];
  if (orion_ucx_log_to && level <= ORION_UCS_LOG_WARN) {
    vsnprintf(text, sizeof text, format, arguments);
    orion_ucx_log_to(level, text);
  }
  return 0;  // nobody else's
}

// While it is loaded UCX sets handlers of fatal signals. They are the program's: what was there is put back.
typedef struct orion_signal_state {
  struct sigaction actions[32];
  bool known[32];
} orion_signal_state;

static inline void orion_signals_keep(orion_signal_state* state) {
  for (int i = 1; i < 32; i++) state->known[i] = sigaction(i, NULL, &state->actions[i]) == 0;
}

static inline void orion_signals_put_back(const orion_signal_state* state) {
  struct sigaction now;
  for (int i = 1; i < 32; i++) {
    if (!state->known[i] || sigaction(i, NULL, &now) != 0 || now.sa_sigaction == state->actions[i].sa_sigaction)
      continue;
    (void)sigaction(i, &state->actions[i], NULL);
  }
}

/// Opens libucp, the copy that the process has where it has one: two with one soname must not mix. NULL, or why it
/// cannot be used, in `why` where that needs room. Never closed again: its threads and exit handlers outlive us.
static inline const char* orion_ucx_load(orion_ucx_api* api, orion_ucx_log log, char* why, size_t capacity) {
  const char* const missing = "UCX is not installed here (Debian: libucx0; or the network vendor's UCX)";
  void* library = dlopen(ORION_UCX_LIBRARY, RTLD_NOW | RTLD_NOLOAD);
  if (!library) {
    orion_signal_state signals;
    orion_signals_keep(&signals);
    library = dlopen(ORION_UCX_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    orion_signals_put_back(&signals);
    if (!library) {
      const char* error = dlerror();
      if (!error || strstr(error, "No such file")) return missing;
      snprintf(why, capacity, "UCX cannot be loaded: %s", error);
      return why;
    }
    void (*push)(void*);
    *(void**)&push = dlsym(library, "ucs_log_push_handler");
    orion_ucx_log_to = log;
    if (push) push((void*)(uintptr_t)orion_ucx_log_handler);
  }
  static const char* const names[] = {
      "ucp_get_version",
      "ucp_config_read",
      "ucp_config_modify",
      "ucp_config_release",
      "ucp_init_version",
      "ucp_cleanup",
      "ucp_context_query",
      "ucp_worker_create",
      "ucp_worker_destroy",
      "ucp_worker_progress",
      "ucp_worker_get_efd",
      "ucp_worker_arm",
      "ucp_worker_set_am_recv_handler",
      "ucp_listener_create",
      "ucp_listener_query",
      "ucp_listener_reject",
      "ucp_listener_destroy",
      "ucp_ep_create",
      "ucp_ep_close_nbx",
      "ucp_ep_flush_nbx",
      "ucp_ep_print_info",
      "ucp_am_send_nbx",
      "ucp_am_recv_data_nbx",
      "ucp_am_data_release",
      "ucp_request_check_status",
      "ucp_request_free",
      "ucp_mem_map",
      "ucp_mem_unmap",
      "ucp_rkey_pack",
      "ucp_rkey_buffer_release",
      "ucs_status_string",
  };
  void** const slots = (void**)(void*)api;  // the pointers come first, in this order
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    slots[i] = dlsym(library, names[i]);
    if (slots[i]) continue;
    snprintf(why, capacity, "this UCX has no %s: 1.13 or newer is needed", names[i]);
    return why;
  }
  api->get_version(&api->major, &api->minor, &api->release);
  if (api->major == ORION_UCX_API_MAJOR && api->minor >= ORION_UCX_API_MINOR) return NULL;
  snprintf(why, capacity, "UCX %u.%u.%u is loaded: 1.13 or newer is needed", api->major, api->minor, api->release);
  return why;
}

#endif
