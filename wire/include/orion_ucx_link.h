// How both ends use UCX: one worker, one active message for each frame, and on the wire this header before every body.
//
// Endpoint 0 (lane 0) carries every kind of frame, sent eagerly. The further endpoints carry large BULK frames alone,
// by rendezvous, between the memory where the bytes are and the memory where they belong. Numbers and order are those
// of orion_lanes.h; the lane is in the frame's `flags`.
#ifndef ORION_UCX_LINK_H
#define ORION_UCX_LINK_H

#include <arpa/inet.h>
#include <dirent.h>
#include <sodium.h>
#include <stdlib.h>

#include "orion_lanes.h"
#include "orion_ucx.h"

#define ORION_UCX_AM 0x4f52u               // the active message's id
#define ORION_UCX_IN_FLIGHT 16u            // rendezvous that a sender has begun and not ended, at most
#define ORION_UCX_AHEAD_BYTES (64u << 20)  // of lane 0, received and not taken: more ends the session

// `cookie`: the end of the token that is shown over UCX. UCX tells nobody's name with a message, and whoever reaches
// the address may speak to it: only who has attached knows the token. `order` counts the frames of lane 0 in one
// direction from 1: that they arrive in order is UCX's practice and not its promise.
typedef struct orion_ucx_head {
  orion_frame frame;
  uint64_t order;
  uint64_t cookie;
} orion_ucx_head;
_Static_assert(sizeof(orion_ucx_head) == 48, "header of an active message");

/// What is shown over UCX, in clear: it tells nothing of the session's token, from which keys of other lanes come.
static inline void orion_ucx_token(const uint8_t session_token[32], uint8_t token[32]) {
  static const uint8_t purpose[] = "orion ucx lanes";
  crypto_generichash(token, 32, purpose, sizeof purpose, session_token, 32);
}

static inline uint64_t orion_ucx_cookie(const uint8_t token[32]) {
  uint64_t cookie;
  memcpy(&cookie, token + 32 - sizeof cookie, sizeof cookie);
  return cookie;
}

/// Whether a header may be looked at at all: it is of this session, and its size is true.
static inline bool orion_ucx_head_ok(const void* header, size_t header_bytes, size_t bytes, uint64_t cookie,
                                     orion_ucx_head* head) {
  if (header_bytes != sizeof *head) return false;
  memcpy(head, header, sizeof *head);
  return head->cookie == cookie && head->frame.bytes == bytes && bytes <= ORION_FRAME_MAX_BYTES;
}

typedef struct orion_ucx_link {
  orion_ucx_api api;
  void *context, *worker;
  void* memory;  // staging, registered; NULL: nothing
  int efd;       // readable after an event that orion_ucx_armed has asked for
  bool has_cuda;
  bool tells_all;  // efd stays readable while there is anything (orion_ucx_is_tcp): nothing has to be looked for
  char why[256];
} orion_ucx_link;

/// Whether this machine has an RDMA device with an active port; its first one, as UCX names it, in `name` (64 bytes).
/// `wanted`: only that one ("mlx5_0" or "mlx5_0:1"); empty: any.
static inline bool orion_rdma_device(const char* wanted, char* name) {
  DIR* devices = opendir("/sys/class/infiniband");
  if (!devices) return false;
  bool found = false;
  for (const struct dirent* device = readdir(devices); device && !found; device = readdir(devices)) {
    if (device->d_name[0] == '.' || strlen(device->d_name) > 48) continue;
    for (int port = 1; port <= 4 && !found; port++) {
      char path[160], state[32] = "";
      snprintf(path, sizeof path, "/sys/class/infiniband/%.48s/ports/%d/state", device->d_name, port);
      FILE* file = fopen(path, "re");
      if (!file) break;
      const bool read = fgets(state, sizeof state, file) != NULL;
      fclose(file);
      snprintf(name, 64, "%.48s:%d", device->d_name, port);
      const size_t n = strlen(wanted);
      found = read && state[0] == '4' &&
              (n == 0 || strcmp(wanted, name) == 0 || (strcmp(wanted, device->d_name) == 0 && !strchr(wanted, ':')));
    }
  }
  closedir(devices);
  return found;
}

/// Whether anything here has to move: false after which efd becomes readable at the next event. A completion queue of
/// verbs tells only what comes after it was armed (soft-RoCE, and the interface promises no more): what came between
/// the last look and that is looked for here; sockets tell it (`tells_all`), and each look is a call of the system.
/// `events` counts what UCX has called back for: its own count leaves some out. Call it when the last look found
/// nothing.
static inline bool orion_ucx_busy(const orion_ucx_link* link, const uint64_t* events) {
  const uint64_t before = *events;
  if (link->api.worker_arm(link->worker) != ORION_UCS_OK) return true;
  return !link->tells_all && (link->api.worker_progress(link->worker) != 0 || *events != before);
}

static inline const char* orion_ucx_why(orion_ucx_link* link, const char* what, orion_ucs_status status) {
  snprintf(link->why, sizeof link->why, "%s: %s", what, link->api.status_string(status));
  return link->why;
}

/// Which connection managers of UCX may be used for an IPv4 address, empty: all. Where there is RDMA, its own alone:
/// that of UCX's tcp ends a process whose port gets bytes that it does not understand (1.13).
static inline const char* orion_ucx_managers(const char* address) {
  char device[64];
  return strncmp(address, "127.", 4) != 0 && orion_rdma_device("", device) ? "rdmacm" : "";
}

/// Loads UCX and makes a context and a worker for one thread at a time. `devices`: UCX's NET_DEVICES where not empty;
/// `except`: transports that are never used ("^cuda..."), where the environment does not name any. NULL, or why not;
/// `managers`: orion_ucx_managers, where the environment does not name any. orion_ucx_close in either case.
static inline const char* orion_ucx_open(orion_ucx_link* link, const char* devices, const char* except,
                                         const char* managers, orion_ucp_am_handler handler, void* argument,
                                         orion_ucx_log log) {
  orion_ucx_api* api = &link->api;
  link->efd = -1;
  const char* why = orion_ucx_load(api, log, link->why, sizeof link->why);
  if (why) return why;
  void* config = NULL;
  orion_ucs_status status = api->config_read(NULL, NULL, &config);
  if (status) return orion_ucx_why(link, "UCX's settings (UCX_...) cannot be read", status);
  if (devices[0]) status = api->config_modify(config, "NET_DEVICES", devices);
  if (!status && except[0] && !getenv("UCX_TLS")) status = api->config_modify(config, "TLS", except);
  if (!status && managers[0] && !getenv("UCX_SOCKADDR_TLS_PRIORITY"))
    status = api->config_modify(config, "SOCKADDR_TLS_PRIORITY", managers);
  const orion_ucp_params params = {.mask = ORION_UCP_PARAM_FEATURES | ORION_UCP_PARAM_NAME,
                                   .features = ORION_UCP_FEATURE_AM | ORION_UCP_FEATURE_WAKEUP,
                                   .name = "orion"};
  if (!status) status = api->init_version(ORION_UCX_API_MAJOR, ORION_UCX_API_MINOR, &params, config, &link->context);
  api->config_release(config);
  if (status) {
    link->context = NULL;
    return orion_ucx_why(link, "UCX finds no device or transport that it may use", status);
  }
  orion_ucp_context_attr attr = {.mask = ORION_UCP_ATTR_MEMORY_TYPES};
  if (api->context_query(link->context, &attr) == ORION_UCS_OK)
    link->has_cuda = (attr.memory_types >> ORION_UCS_MEMORY_CUDA & 1) != 0;
  const orion_ucp_worker_params worker = {.mask = ORION_UCP_WORKER_THREAD_MODE | ORION_UCP_WORKER_FLAGS,
                                          .thread_mode = ORION_UCS_THREAD_SERIALIZED,
                                          .flags = ORION_UCP_WORKER_IGNORE_REQUEST_LEAK};
  status = api->worker_create(link->context, &worker, &link->worker);
  if (status) {
    link->worker = NULL;
    return orion_ucx_why(link, "UCX cannot open its devices", status);
  }
  const orion_ucp_am_handler_param am = {
      .mask = ORION_UCP_AM_HANDLER_ID | ORION_UCP_AM_HANDLER_CALLBACK | ORION_UCP_AM_HANDLER_ARGUMENT,
      .id = ORION_UCX_AM,
      .callback = handler,
      .argument = argument};
  status = api->worker_set_am_recv_handler(link->worker, &am);
  if (!status) status = api->worker_get_efd(link->worker, &link->efd);
  return status ? orion_ucx_why(link, "UCX cannot wait for events", status) : NULL;
}

static inline orion_ucs_status orion_ucx_map(const orion_ucx_link* link, void* address, size_t bytes, int memory_type,
                                             void** memory) {
  const orion_ucp_mem_map_params params = {.mask = ORION_UCP_MEM_ADDRESS | ORION_UCP_MEM_LENGTH | ORION_UCP_MEM_TYPE,
                                           .address = address,
                                           .length = bytes,
                                           .memory_type = memory_type};
  return link->api.mem_map(link->context, &params, memory);
}

/// Registers memory that is there for the whole session, so that no copy through it has to. NULL, or why not.
static inline const char* orion_ucx_register(orion_ucx_link* link, void* address, size_t bytes) {
  const orion_ucs_status status = orion_ucx_map(link, address, bytes, ORION_UCS_MEMORY_HOST, &link->memory);
  if (!status) return NULL;
  link->memory = NULL;
  return orion_ucx_why(link, "memory cannot be registered with the RDMA device (see `ulimit -l`)", status);
}

static inline void orion_ucx_close(orion_ucx_link* link) {
  if (link->worker) link->api.worker_destroy(link->worker);
  if (link->memory) (void)link->api.mem_unmap(link->context, link->memory);
  if (link->context) link->api.cleanup(link->context);
  link->context = link->worker = link->memory = NULL;
}

/// Sends one frame. `head` and `body` stay as they are until `sent` is called, if this does not return NULL (done) or
/// an error. `how`: ORION_UCP_AM_...; `memory_type`: ORION_UCS_MEMORY_..., of the body; `memory`: its registration,
/// NULL: UCX finds or makes one.
static inline void* orion_ucx_send(const orion_ucx_link* link, void* ep, const orion_ucx_head* head, const void* body,
                                   uint32_t how, int memory_type, void* memory, orion_ucp_sent sent, void* user_data) {
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_CALLBACK | ORION_UCP_OP_USER_DATA | ORION_UCP_OP_FLAGS |
                                                 ORION_UCP_OP_MEMORY_TYPE | (memory ? ORION_UCP_OP_MEMORY : 0),
                                         .flags = how,
                                         .callback.sent = sent,
                                         .user_data = user_data,
                                         .memory_type = memory_type,
                                         .memh = memory};
  return link->api.am_send_nbx(ep, ORION_UCX_AM, head, sizeof *head, body, head->frame.bytes, &param);
}

/// Receives the body of a rendezvous into `to`; as above.
static inline void* orion_ucx_receive(const orion_ucx_link* link, void* descriptor, void* to, size_t bytes,
                                      int memory_type, void* memory, orion_ucp_received received, void* user_data) {
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_CALLBACK | ORION_UCP_OP_USER_DATA |
                                                 ORION_UCP_OP_MEMORY_TYPE | (memory ? ORION_UCP_OP_MEMORY : 0),
                                         .callback.received = received,
                                         .user_data = user_data,
                                         .memory_type = memory_type,
                                         .memh = memory};
  return link->api.am_recv_data_nbx(link->worker, descriptor, to, bytes, &param);
}

/// Closes an endpoint: once all that was sent has arrived, or at once (`force`). NULL or a request.
static inline void* orion_ucx_close_ep(const orion_ucx_link* link, void* ep, bool force) {
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_FLAGS, .flags = force ? ORION_UCP_EP_CLOSE_FORCE : 0};
  void* request = link->api.ep_close_nbx(ep, &param);
  return orion_ucs_is_error(request) ? NULL : request;
}

/// Calls back for each lane of an endpoint, as UCX prints them, with all that follows in a line such as
/// "lane[1]:  6:rc_verbs/rxe0:1.0 md[5] -> ...", from the transport's name. (That of the connection manager has no
/// number and is left out.)
static inline void orion_ucx_each_lane(const orion_ucx_link* link, void* ep,
                                       void (*lane)(const char* line, void* argument), void* argument) {
  char* text = NULL;
  size_t bytes = 0;
  FILE* stream = open_memstream(&text, &bytes);
  if (!stream) return;
  link->api.ep_print_info(ep, stream);
  fclose(stream);
  for (const char* at = text ? strstr(text, "lane[") : NULL; at; at = strstr(at, "lane[")) {
    at += strcspn(at, ":\n");
    at += strspn(at, ": ");
    const size_t digits = strspn(at, "0123456789");
    if (digits && at[digits] == ':') lane(at + digits + 1, argument);
  }
  free(text);
}

typedef struct orion_ucx_names {
  char* out;
  size_t used, capacity;
} orion_ucx_names;

static inline void orion_ucx_add_name(const char* line, void* argument) {
  orion_ucx_names* names = argument;
  const size_t n = strcspn(line, " .\n");
  char item[64];
  snprintf(item, sizeof item, "%.*s", (int)(n < 63 ? n : 63), line);
  if (strstr(names->out, item) || names->used + n + 2 >= names->capacity) return;
  names->used +=
      (size_t)snprintf(names->out + names->used, names->capacity - names->used, "%s%s", names->used ? " " : "", item);
}

/// "rc_verbs/rxe0:1 tcp/eth0": what carries an endpoint, as far as UCX tells it; empty otherwise.
static inline void orion_ucx_describe(const orion_ucx_link* link, void* ep, char* out, size_t capacity) {
  out[0] = 0;
  orion_ucx_each_lane(link, ep, orion_ucx_add_name, &(orion_ucx_names){out, 0, capacity});
}

/// Whether a transport's name, or what follows it too, is an RDMA device's.
static inline bool orion_ucx_names_rdma(const char* name) {
  return strncmp(name, "rc_", 3) == 0 || strncmp(name, "dc_", 3) == 0 || strncmp(name, "ud_", 3) == 0;
}

/// Of what orion_ucx_describe told: whether an RDMA device is among it.
static inline bool orion_ucx_is_rdma(const char* carriers) {
  for (const char* at = carriers; *at; at += strcspn(at, " "), at += strspn(at, " "))
    if (orion_ucx_names_rdma(at)) return true;
  return false;
}

static inline void orion_ucx_add_domain(const char* line, void* argument) {
  const char* at = strstr(line, " md[");
  const unsigned long domain = at && at < line + strcspn(line, "\n") ? strtoul(at + 4, NULL, 10) : 64;
  if (orion_ucx_names_rdma(line) && domain < 64) *(uint64_t*)argument |= 1ull << domain;
}

/// A bit for each memory domain of an RDMA device that carries an endpoint.
static inline uint64_t orion_ucx_rdma_domains(const orion_ucx_link* link, void* ep) {
  uint64_t domains = 0;
  orion_ucx_each_lane(link, ep, orion_ucx_add_domain, &domains);
  return domains;
}

/// The domains that have registered this memory, of which UCX says nothing but in its remote key: it begins with a bit
/// for each (8 bytes), then the type of memory. That is not promised: ask it of memory first of which it is known. 0
/// where the key looks otherwise.
static inline uint64_t orion_ucx_domains(const orion_ucx_link* link, void* memory, int memory_type) {
  uint8_t* key = NULL;
  size_t bytes = 0;
  uint64_t domains = 0;
  if (link->api.rkey_pack(link->context, memory, (void**)&key, &bytes) != ORION_UCS_OK) return 0;
  if (bytes > sizeof domains && key[sizeof domains] == memory_type) memcpy(&domains, key, sizeof domains);
  link->api.rkey_buffer_release(key);
  return domains;
}

/// Of what orion_ucx_describe told: whether nothing but sockets carries it.
static inline bool orion_ucx_is_tcp(const char* carriers) {
  for (const char* at = carriers; *at; at += strcspn(at, " "), at += strspn(at, " "))
    if (strncmp(at, "tcp/", 4) != 0) return false;
  return carriers[0] != 0;
}

#endif
