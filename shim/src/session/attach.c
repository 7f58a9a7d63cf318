// From nothing to sessions: once per process, at cuInit. Fork and exit end what this began.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../transport/transport.h"
#include "allocate.h"
#include "attached.h"
#include "copier.h"
#include "futex.h"
#include "identity.h"
#include "internal.h"
#include "orion_seal.h"
#include "orion_ucx_link.h"
#include "stages.h"
#include "stats.h"

enum attach_state { NEW, ATTACHED = ORION_STATE_ATTACHED, FAILED, FORKED, EXITING };

_Atomic int orion_attach_state = NEW;
static _Atomic int32_t failure;
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;

orion_session_impl* orion_sessions[ORION_SESSIONS_MAX];
uint32_t orion_session_count;
static orion_device** devices;
static uint32_t device_count;

enum {
  GIVE_BACK_MS = 1000,    // for the answers of all servers
  UCX_CONNECT_MS = 3000,  // then tcp; more where ORION_ATTACH_TIMEOUT_MS is more than twice that
};

// One server while it is being attached to.
typedef struct attach_job {
  const char* address;
  const char* server_key;        // z85; empty: its control port is not encrypted
  const orion_granted* granted;  // what a controller gave; NULL: there is none
  orion_control control;
  orion_attach_answer attached;
  orion_session_impl* impl;
  bool is_open, is_asked, is_attached;
  bool visible[ORION_DEVICES];  // by position in attached.devices
  bool needed;
  uint64_t host_base;
  orion_stages stages;
} attach_job;

CUresult orion_ready_slow(void) {
  switch (atomic_load_explicit(&orion_attach_state, memory_order_acquire)) {
    case ATTACHED:
      return CUDA_SUCCESS;
    case EXITING:
      return CUDA_ERROR_DEINITIALIZED;
    default:
      return CUDA_ERROR_NOT_INITIALIZED;
  }
}

bool orion_attached(void) { return atomic_load_explicit(&orion_attach_state, memory_order_acquire) == ATTACHED; }

uint32_t orion_device_count(void) { return orion_attached() ? device_count : 0; }

orion_device* orion_device_at(uint32_t ordinal) {
  return orion_attached() && ordinal < device_count ? devices[ordinal] : NULL;
}

// ------------------------------------------------------------------------------------------------- fork and exit

static void after_fork_in_child(void) {
  const int before = atomic_load(&orion_attach_state);
  pthread_mutex_init(&attach_lock, NULL);
  orion_threads_after_fork();
  orion_copier_after_fork();
  if (before == FAILED) atomic_store(&orion_attach_state, NEW);
  if (before != ATTACHED && before != EXITING) return;
  if (before == ATTACHED) atomic_store(&orion_attach_state, FORKED);
  for (uint32_t i = 0; i < orion_session_count; i++) {
    orion_session* session = &orion_sessions[i]->base;
    atomic_store(&session->lost, CUDA_ERROR_NOT_INITIALIZED);
    session->transport->after_fork(session);
    // The parent's segment is not inherited. Empty pages in its place make a stray load harmless.
    if (mmap(session->segment, sizeof *session->segment, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
      continue;
  }
  orion_stats_after_fork();
  orion_api_after_fork();
}

static void at_exit(void) {
  int expected = ATTACHED;
  if (!atomic_compare_exchange_strong(&orion_attach_state, &expected, EXITING)) return;
  orion_stats_tell();
  for (uint32_t i = 0; i < orion_session_count; i++) {
    orion_session* session = &orion_sessions[i]->base;
    if (atomic_load(&session->lost) == 0) {
      orion_op_detach detach = {.op = {.code = ORION_OP_DETACH}};
      orion_try_push(session, &detach.op, sizeof detach, NULL, 0);
    }
    session->transport->close(session);
    orion_session_lose(session, CUDA_ERROR_DEINITIALIZED, NULL);
  }
}

static void register_handlers(void) {
  pthread_atfork(NULL, NULL, after_fork_in_child);
  atexit(at_exit);
}

// ------------------------------------------------------------------------------------------------- attach

static bool is_forwarded(const char* name) {
  const char* value = getenv(name);
  return value && strlen(value) <= 64;  // every meaningful value is a short word or number
}

// How the data lanes may be encrypted, and the shared key, which is told to nobody but the server whose key we know; a
// server of a pool checks the ticket, and the pool's key is none of its business.
static void pack_security(const attach_job* job, const orion_config* config, orion_packer* p) {
  static const char* const wishes[] = {"auto", "on", "off"};
  static const char* const names[] = {"", "aes256gcm", "chacha20poly1305"};
  const char* offered[2];
  uint32_t count = 0;
  for (uint32_t i = ORION_CIPHER_AES256GCM; i <= ORION_CIPHER_CHACHA20POLY1305 && job->control.is_encrypted; i++)
    if (config->ciphers[i] && orion_cipher_usable((enum orion_cipher)i)) offered[count++] = names[i];
  orion_pack_string(p, "encrypt");
  orion_pack_string(p, wishes[config->encrypt]);
  orion_pack_string(p, "ciphers");
  orion_pack_array(p, count);
  for (uint32_t i = 0; i < count; i++) orion_pack_string(p, offered[i]);
  orion_pack_string(p, "key");
  orion_pack_string(p, job->control.is_encrypted && !job->granted ? config->client_key : "");
}

// Whether lanes of UCX are asked for: "rdma" where both sides must have a device, "any" where the user wants them
// whatever carries them. They are never encrypted.
static const char* ucx_wish(const orion_config* config) {
  char device[64];
  if (config->encrypt == ORION_ENCRYPT_ON) return "";
  if (config->transport == ORION_WISH_UCX) return "any";
  const bool has_device = config->transport == ORION_WISH_AUTO && orion_rdma_device(config->ibverbs_device, device);
  return has_device && !config->emulate_rtt_ns && !config->emulate_bytes_per_second ? "rdma" : "";
}

static void ask(attach_job* job, const orion_config* config) {
  static const char* const forwarded[] = {"CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_MAX_COPY_CONNECTIONS",
                                          "CUDA_MODULE_LOADING",         "CUDA_MODULE_DATA_LOADING",
                                          "CUDA_FORCE_PTX_JIT",          "CUDA_DISABLE_PTX_JIT"};
  enum { FORWARDED = sizeof forwarded / sizeof *forwarded };
  uint8_t buffer[16384];
  orion_packer p = {buffer, 0, sizeof buffer, false};
  const orion_granted* granted = job->granted;
  const char* ucx = ucx_wish(config);
  orion_control_begin(&job->control, &p, "attach", ORION_IDENTITY_PAIRS + 13 + (granted != NULL));
  orion_pack_identity(&p);
  pack_security(job, config, &p);
  if (granted) {
    orion_pack_string(&p, "ticket");
    orion_pack_binary(&p, granted->ticket, granted->ticket_bytes);
  }
  orion_pack_string(&p, "transports");
  orion_pack_array(&p, config->transport == ORION_WISH_AUTO ? 2 : 1);
  if (config->transport == ORION_WISH_AUTO || config->transport == ORION_WISH_SHM) orion_pack_string(&p, "shm");
  if (config->transport != ORION_WISH_SHM) orion_pack_string(&p, "tcp");
  orion_pack_string(&p, "ucx");
  orion_pack_string(&p, ucx);
  orion_pack_string(&p, "lanes");
  orion_pack_array(&p, config->tcp_lanes == (ORION_LANES_RAW | ORION_LANES_ZMQ) ? 2 : 1);
  if (config->tcp_lanes & ORION_LANES_RAW) orion_pack_string(&p, "raw");
  if (config->tcp_lanes & ORION_LANES_ZMQ) orion_pack_string(&p, "zmq");
  orion_pack_string(&p, "vgpu");
  orion_pack_unsigned(&p, granted ? 0 : config->vgpu_count);  // a ticket says how many, and how large
  orion_pack_string(&p, "gmem_mib");
  orion_pack_unsigned(&p, granted ? 0 : config->gmem_mib);
  orion_pack_string(&p, "ratio");
  orion_pack_unsigned(&p, granted ? 0 : config->ratio_percent);
  orion_pack_string(&p, "group");
  orion_pack_string(&p, config->group);
  orion_pack_string(&p, "res_group");
  orion_pack_string(&p, config->shares_vgpu ? "BOX" : "");
  orion_pack_string(&p, "ratio_policy");
  orion_pack_string(&p, granted ? "" : config->ratio_policy);
  orion_pack_string(&p, "env");
  uint32_t set = 0;
  for (int i = 0; i < FORWARDED; i++) set += is_forwarded(forwarded[i]);
  orion_pack_map(&p, set);
  for (int i = 0; i < FORWARDED; i++) {
    if (!is_forwarded(forwarded[i])) continue;
    orion_pack_string(&p, forwarded[i]);
    orion_pack_string(&p, getenv(forwarded[i]));
  }
  orion_control_tell(&job->control, &p);  // what it says is bounded, and fits
  job->is_asked = true;
}

static CUresult await_attached(attach_job* job) {
  char type[32];
  job->is_asked = false;
  const CUresult result = orion_control_await(&job->control, job->control.timeout_ms, type, false);
  if (result != CUDA_SUCCESS) return result;
  const char* address = job->control.address;
  if (strcmp(type, "attached") != 0 || !orion_attached_read(&job->control, &job->attached)) {
    orion_log(ORION_LOG_ERROR, "%s answered the attach request with something else: check ORION_SERVER", address);
    return CUDA_ERROR_NO_DEVICE;
  }
  job->is_attached = true;
  if (job->attached.wire_major != ORION_WIRE_MAJOR) {
    orion_log(ORION_LOG_ERROR,
              "%s uses wire version %lld.%lld and this client %d.%d: install the same release on both sides", address,
              (long long)job->attached.wire_major, (long long)job->attached.wire_minor, ORION_WIRE_MAJOR,
              ORION_WIRE_MINOR);
    return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
  }
  return CUDA_SUCCESS;
}

static void tell_detach(attach_job* job) {
  uint8_t buffer[1024];
  orion_packer p = {buffer, 0, sizeof buffer, false};
  orion_control_begin(&job->control, &p, "detach", 2);
  orion_pack_string(&p, "session");
  orion_pack_raw(&p, job->attached.session_id, job->attached.session_id_bytes);
  orion_pack_string(&p, "token");
  orion_pack_binary(&p, job->attached.token, sizeof job->attached.token);
  orion_control_tell(&job->control, &p);
}

// After a failure elsewhere: what this server has given in the meantime, or gives soon, is given back.
static void give_back(attach_job* job, uint64_t until_ns) {
  char type[32];
  const uint64_t now_ns = orion_now_ns();
  const uint32_t left_ms = until_ns > now_ns ? (uint32_t)((until_ns - now_ns) / 1000000) : 0;
  if (job->is_asked && orion_control_await(&job->control, left_ms, type, true) == CUDA_SUCCESS &&
      strcmp(type, "attached") == 0)
    job->is_attached = orion_attached_read(&job->control, &job->attached);
  if (job->is_attached) tell_detach(job);
}

static bool reserve_device(attach_job* job, uint32_t i) {
  orion_device* device = &job->attached.devices[i];
  if (orion_reserve_device(device->slot_bytes, &device->slot_base)) return true;
  orion_log(ORION_LOG_ERROR, "no free address range for device %u of %s (is RLIMIT_AS set?)", i, job->control.address);
  return false;
}

static bool reserve_host(attach_job* job) {
  if (orion_reserve_host(&job->host_base)) return true;
  orion_log(ORION_LOG_ERROR, "no free address range for pinned memory of %s (is RLIMIT_AS set?)", job->control.address);
  return false;
}

// Lets go of the ranges that the worker cannot have, and takes the next candidates. False when none is left.
static bool next_candidates(attach_job* job) {
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(&job->control, &pairs);
  bool any = false;
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "host")) {
      if (!orion_unpack_integer(&u) || u.bad) continue;
      orion_unreserve(job->host_base, ORION_HOST_ARENA_BYTES);
      job->host_base = 0;
      if (!reserve_host(job)) return false;
      any = true;
    } else if (orion_unpack_equals(key, n, "devices")) {
      for (uint32_t left = orion_unpack_array(&u); left && !u.bad; left--) {
        const int64_t ordinal = orion_unpack_integer(&u);
        for (uint32_t i = 0; i < job->attached.device_count && !u.bad; i++) {
          orion_device* device = &job->attached.devices[i];
          if (!job->visible[i] || (int64_t)device->remote_ordinal != ordinal) continue;
          orion_unreserve(device->slot_base, device->slot_bytes);
          device->slot_base = 0;
          if (!reserve_device(job, i)) return false;
          any = true;
        }
      }
    } else {
      orion_unpack_skip(&u);
    }
  }
  if (!any) orion_log(ORION_LOG_ERROR, "%s names an address conflict that does not exist", job->control.address);
  return any && !u.bad;
}

static void read_server_stages(attach_job* job) {
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(&job->control, &pairs);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "stages"))
      orion_stages_read(&job->attached.server_stages, &u);
    else
      orion_unpack_skip(&u);
  }
}

static CUresult bind_addresses(attach_job* job, const char* transport) {
  uint32_t visible = 0;
  orion_stages_begin(&job->stages);
  if (!reserve_host(job)) return CUDA_ERROR_OUT_OF_MEMORY;
  for (uint32_t i = 0; i < job->attached.device_count; i++) {
    if (!job->visible[i]) continue;
    visible++;
    if (!reserve_device(job, i)) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  orion_stages_lap(&job->stages, "reserve");
  for (uint32_t attempt = 0; attempt < ORION_CANDIDATES; attempt++) {
    uint8_t buffer[8192];
    orion_packer p = {buffer, 0, sizeof buffer, false};
    orion_control_begin(&job->control, &p, "bind", 5);
    orion_pack_string(&p, "session");
    orion_pack_raw(&p, job->attached.session_id, job->attached.session_id_bytes);
    orion_pack_string(&p, "token");
    orion_pack_binary(&p, job->attached.token, sizeof job->attached.token);
    orion_pack_string(&p, "transport");
    orion_pack_string(&p, transport);
    orion_pack_string(&p, "host_base");
    orion_pack_unsigned(&p, job->host_base);
    orion_pack_string(&p, "devices");
    orion_pack_array(&p, visible);
    for (uint32_t i = 0; i < job->attached.device_count; i++) {
      if (!job->visible[i]) continue;
      orion_pack_map(&p, 3);
      orion_pack_string(&p, "ordinal");
      orion_pack_unsigned(&p, job->attached.devices[i].remote_ordinal);
      orion_pack_string(&p, "base");
      orion_pack_unsigned(&p, job->attached.devices[i].slot_base);
      orion_pack_string(&p, "bytes");
      orion_pack_unsigned(&p, job->attached.devices[i].slot_bytes);
    }
    char type[32];
    const CUresult result = orion_control_request(&job->control, &p, type, false);
    if (result != CUDA_SUCCESS) return result;
    orion_stages_lap(&job->stages, "bind");
    if (strcmp(type, "bound") == 0) {
      read_server_stages(job);
      return CUDA_SUCCESS;
    }
    if (strcmp(type, "conflict") != 0) {
      orion_log(ORION_LOG_ERROR, "%s answered the bind request with \"%s\"", job->control.address, type);
      return CUDA_ERROR_NO_DEVICE;
    }
    if (!next_candidates(job)) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  orion_log(ORION_LOG_ERROR, "%s and this process found no common address range in %u attempts", job->control.address,
            ORION_CANDIDATES);
  return CUDA_ERROR_OUT_OF_MEMORY;
}

static uint32_t ucx_timeout_ms(uint32_t timeout_ms) {
  if (timeout_ms > 2 * UCX_CONNECT_MS) return timeout_ms / 2;
  return timeout_ms < UCX_CONNECT_MS ? timeout_ms : UCX_CONNECT_MS;
}

// UCX's lanes, where the server offers them, else tcp's.
static bool open_network(const attach_job* job, const orion_config* config) {
  const orion_attach_answer* attached = &job->attached;
  orion_session* session = &job->impl->base;
  const uint32_t timeout_ms = job->control.timeout_ms;
  if (attached->ucx[0]) {
    const bool only = config->transport == ORION_WISH_UCX;
    if (orion_tcp_open(session, config, attached->ucx, "", ORION_CIPHER_NONE, attached->token,
                       only ? timeout_ms : ucx_timeout_ms(timeout_ms), only ? NULL : "tcp")) {
      if (config->ucx_spin_us != UINT32_MAX) job->impl->spin_us = config->ucx_spin_us;
      return true;
    }
    if (only) return false;
  }
  return orion_tcp_open(session, config, attached->tcp_ops, attached->tcp_bulk, attached->cipher, attached->token,
                        timeout_ms, NULL);
}

static void tell_attached(const attach_job* job) {
  const orion_attach_answer* attached = &job->attached;
  const orion_session* session = &job->impl->base;
  const bool is_raw = strncmp(attached->tcp_ops, "raw://", 6) == 0;
  char how[224] = "";
  if (strcmp(session->transport_name, "ucx") == 0)
    snprintf(how, sizeof how, " (%s), not encrypted", orion_tcp_ucx_carriers(session));
  else if (strcmp(session->transport_name, "tcp") == 0)
    snprintf(how, sizeof how, "%s%s", is_raw ? " (plain sockets)" : " (ZeroMQ)",
             attached->cipher == ORION_CIPHER_NONE        ? ""
             : attached->cipher == ORION_CIPHER_AES256GCM ? ", encrypted (AES-256-GCM)"
                                                          : ", encrypted (ChaCha20-Poly1305)");
  orion_log(ORION_LOG_INFO, "attached to %s (%s, %s) over %s%s", job->control.address, attached->server_version,
            attached->is_softgpu ? "softgpu" : "nvidia", session->transport_name, how);
  if (attached->ucx_refused[0] && strcmp(session->transport_name, "tcp") == 0)
    orion_log(ORION_LOG_INFO, "%s offers no RDMA: %s; using tcp", job->control.address, attached->ucx_refused);
}

// Whether the server's network lanes are what the user asked for. False after one line.
static bool may_use_network(const attach_job* job, const orion_config* config) {
  const orion_attach_answer* attached = &job->attached;
  const char* address = job->control.address;
  const bool is_raw = strncmp(attached->tcp_ops, "raw://", 6) == 0;
  const char* why = NULL;
  if (config->transport == ORION_WISH_UCX) {
    if (attached->ucx[0]) return true;
    orion_log(ORION_LOG_ERROR, "%s offers no UCX lanes: %s (ORION_TRANSPORT=auto falls back to tcp)", address,
              attached->ucx_refused[0] ? attached->ucx_refused : "it is too old, or ORION_ENCRYPT is on");
    return false;
  }
  if (!attached->tcp_ops[0] || (!is_raw && !attached->tcp_bulk[0]))
    why = "offers neither shared memory nor tcp to this process";
  else if (!(config->tcp_lanes & (is_raw ? ORION_LANES_RAW : ORION_LANES_ZMQ)))
    why = "offers other tcp lanes than ORION_TCP_LANES asks for: leave it at auto";
  if (why) orion_log(ORION_LOG_ERROR, "%s %s", address, why);
  return why == NULL;
}

static CUresult connect_job(attach_job* job, const orion_config* config) {
  const orion_attach_answer* attached = &job->attached;
  const char* address = job->control.address;
  const bool wants_shm = config->transport == ORION_WISH_SHM;
  int socket_fd = -1;
  if ((wants_shm || config->transport == ORION_WISH_AUTO) && attached->shm_socket[0]) {
    socket_fd = orion_shm_connect(attached->shm_socket);
    if (socket_fd < 0)
      orion_log(wants_shm ? ORION_LOG_ERROR : ORION_LOG_INFO, "no shared memory with %s: %s: %s%s", address,
                attached->shm_socket, strerror(errno),
                wants_shm ? " (ORION_TRANSPORT=auto falls back to tcp)" : "; using the network");
  } else if (wants_shm) {
    orion_log(ORION_LOG_ERROR,
              "%s offers no shared memory to this process: is it on another host? (ORION_TRANSPORT=auto"
              " falls back to tcp)",
              address);
  }
  if (socket_fd < 0 && (wants_shm || !may_use_network(job, config))) return CUDA_ERROR_NO_DEVICE;
  const bool is_sealed = strncmp(attached->tcp_ops, "raw://", 6) == 0 && attached->cipher != ORION_CIPHER_NONE;
  if (socket_fd < 0 && config->encrypt == ORION_ENCRYPT_ON && !is_sealed) {
    orion_log(ORION_LOG_ERROR, "%s does not encrypt its lanes and ORION_ENCRYPT=on asks for that", address);
    return CUDA_ERROR_NOT_PERMITTED;
  }
  const CUresult result = bind_addresses(job, socket_fd >= 0 ? "shm" : "tcp");
  if (result != CUDA_SUCCESS) {
    if (socket_fd >= 0) close(socket_fd);
    return result;
  }
  orion_stages_begin(&job->stages);
  orion_session* session = &job->impl->base;
  session->host_base = (uint8_t*)(uintptr_t)job->host_base;
  session->driver_version = attached->driver_version;
  session->is_softgpu = attached->is_softgpu;
  session->runtime_validated = attached->runtime_validated;
  session->runtime_selftest = config->runtime_selftest;
  snprintf(session->server_address, sizeof session->server_address, "%s", address);
  const bool opened = socket_fd >= 0 ? orion_shm_open(session, socket_fd, attached->token, job->control.timeout_ms)
                                     : open_network(job, config);
  if (!opened) return CUDA_ERROR_NO_DEVICE;
  if (!orion_session_start(job->impl)) return CUDA_ERROR_OUT_OF_MEMORY;
  orion_stages_lap(&job->stages, "open");
  tell_attached(job);
  return CUDA_SUCCESS;
}

// Chooses the devices that the program sees, and with them the sessions that are needed.
static CUresult choose_devices(attach_job* jobs, uint32_t job_count) {
  orion_device* all[ORION_DEVICES_MAX];
  uint32_t count = 0;
  for (uint32_t j = 0; j < job_count; j++) {
    for (uint32_t i = 0; i < jobs[j].attached.device_count; i++) {
      jobs[j].attached.devices[i].session = &jobs[j].impl->base;
      if (count == ORION_DEVICES_MAX) {
        orion_log(ORION_LOG_ERROR, "the servers have more than %d devices: name fewer servers, or set ORION_VGPU",
                  ORION_DEVICES_MAX);
        return CUDA_ERROR_INVALID_VALUE;
      }
      all[count++] = &jobs[j].attached.devices[i];
    }
  }
  devices = calloc(count + 1, sizeof(orion_device*));
  if (!devices) return CUDA_ERROR_OUT_OF_MEMORY;
  // A controller has put the devices in order, over all servers, whose bus ids and speeds say nothing to each other.
  const char* order = jobs[0].granted ? ORION_ORDER_AS_GIVEN : getenv("CUDA_DEVICE_ORDER");
  device_count = orion_visible_devices(all, count, order, getenv("CUDA_VISIBLE_DEVICES"), devices);
  if (device_count == 0) {
    orion_log(count ? ORION_LOG_INFO : ORION_LOG_ERROR, "no device is visible: %s",
              count ? "CUDA_VISIBLE_DEVICES hides them all" : "the server has none to give");
    return CUDA_ERROR_NO_DEVICE;
  }
  for (uint32_t d = 0; d < device_count; d++) {
    for (uint32_t j = 0; j < job_count; j++) {
      if (devices[d]->session != &jobs[j].impl->base) continue;
      jobs[j].needed = true;
      jobs[j].visible[devices[d] - jobs[j].attached.devices] = true;
    }
  }
  return CUDA_SUCCESS;
}

static void undo(attach_job* job) {
  orion_session* session = job->impl ? &job->impl->base : NULL;
  if (session && session->transport) {
    session->transport->close(session);
    munmap(session->segment, sizeof *session->segment);
  }
  if (job->host_base) orion_unreserve(job->host_base, ORION_HOST_ARENA_BYTES);
  for (uint32_t i = 0; i < job->attached.device_count; i++)
    if (job->attached.devices[i].slot_base)
      orion_unreserve(job->attached.devices[i].slot_base, job->attached.devices[i].slot_bytes);
  free(job->attached.devices);
  orion_session_free(job->impl);
}

static void keep_stages(const attach_job* job, const char* address) {
  orion_attach_record* record = &orion_attach_took.records[orion_attach_took.count++];
  snprintf(record->address, sizeof record->address, "%s", address);
  record->transport = job->impl->base.transport_name;
  record->worker_was_warm = job->attached.worker_was_warm;
  record->own = job->stages;
  record->server = job->attached.server_stages;
}

static CUresult open_job(attach_job* job, const orion_config* config, const orion_allocation* allocation) {
  job->impl = orion_session_new(config);
  if (!job->impl) return CUDA_ERROR_OUT_OF_MEMORY;
  const uint64_t left_ms = allocation ? orion_allocation_left_ms(allocation) : UINT32_MAX;
  const uint32_t timeout_ms = left_ms < config->attach_timeout_ms ? (uint32_t)left_ms : config->attach_timeout_ms;
  const CUresult result = orion_control_open(&job->control, job->address, job->server_key, config->server_is_default,
                                             timeout_ms, allocation != NULL);
  if (allocation) job->control.peer = ORION_PEER_OF_POOL;
  if (allocation) snprintf(job->impl->allocation, sizeof job->impl->allocation, "%s", allocation->grant.allocation);
  if (result != CUDA_SUCCESS && allocation)
    orion_log(ORION_LOG_ERROR,
              "no server at %s (%s), where the controller %s gave vGPUs: is that address right, and can it be reached "
              "from here?",
              job->address, job->control.why, allocation->controller.address);
  return result;
}

static void tell_devices(const attach_job* jobs, uint32_t job_count, const orion_allocation* allocation) {
  char text[600] = "";
  size_t used = 0;
  for (uint32_t j = 0; j < job_count && used < sizeof text; j++) {
    const orion_attach_answer* attached = &jobs[j].attached;
    used += (size_t)snprintf(text + used, sizeof text - used, "%s%s:", j ? ", " : "", jobs[j].address);
    for (uint32_t i = 0; i < attached->device_count && used < sizeof text; i++)
      used += (size_t)snprintf(text + used, sizeof text - used, " %u", attached->devices[i].remote_ordinal);
  }
  orion_log(ORION_LOG_INFO, "using vGPUs on GPUs %s, of allocation %s from %s", text, allocation->grant.allocation,
            allocation->controller.address);
}

// A server that is there several times starts as many workers at once, and each has its share of that machine.
static uint32_t answer_timeout_ms(const attach_job* jobs, uint32_t job_count, uint32_t of, const orion_config* config,
                                  const orion_allocation* allocation) {
  uint64_t most_ms = 0;
  for (uint32_t j = 0; j < job_count; j++)
    if (strcmp(jobs[j].address, jobs[of].address) == 0) most_ms += config->attach_timeout_ms;
  const uint64_t left_ms = allocation ? orion_allocation_left_ms(allocation) : UINT32_MAX;
  return (uint32_t)(most_ms < left_ms ? most_ms : left_ms);
}

// All servers prepare their workers at the same time. The first failure ends it. With an allocation the servers
// together have as long as that waits for its client.
static CUresult attach_all(const orion_config* config, attach_job* jobs, uint32_t job_count,
                           const orion_allocation* allocation) {
  CUresult result = CUDA_SUCCESS;
  for (uint32_t j = 0; j < job_count && result == CUDA_SUCCESS; j++) {
    orion_stages_begin(&jobs[j].stages);
    result = open_job(&jobs[j], config, allocation);
    jobs[j].is_open = result == CUDA_SUCCESS;
    orion_stages_lap(&jobs[j].stages, "connect");
    if (result == CUDA_SUCCESS) ask(&jobs[j], config);
  }
  for (uint32_t j = 0; j < job_count && result == CUDA_SUCCESS; j++) {
    jobs[j].control.timeout_ms = answer_timeout_ms(jobs, job_count, j, config, allocation);
    result = await_attached(&jobs[j]);
    orion_stages_lap(&jobs[j].stages, "attach");
  }
  if (result == CUDA_SUCCESS) result = choose_devices(jobs, job_count);
  for (uint32_t j = 0; j < job_count && result == CUDA_SUCCESS; j++) {
    if (allocation) jobs[j].control.timeout_ms = answer_timeout_ms(jobs, job_count, j, config, allocation);
    if (jobs[j].needed) result = connect_job(&jobs[j], config);
  }
  if (result == CUDA_SUCCESS && allocation) tell_devices(jobs, job_count, allocation);
  const uint64_t give_back_until_ns = orion_now_ns() + GIVE_BACK_MS * 1000000ull;
  for (uint32_t j = 0; j < job_count; j++) {
    if (result != CUDA_SUCCESS || !jobs[j].needed) give_back(&jobs[j], give_back_until_ns);
    orion_stages_begin(&jobs[j].stages);
    if (jobs[j].is_open) orion_control_close(&jobs[j].control);
    orion_stages_lap(&jobs[j].stages, "close");
    if (result != CUDA_SUCCESS || !jobs[j].needed) {
      undo(&jobs[j]);
    } else {
      orion_sessions[orion_session_count++] = jobs[j].impl;  // its devices live as long as the process
      keep_stages(&jobs[j], jobs[j].address);
    }
  }
  if (result != CUDA_SUCCESS) {
    free(devices);
    devices = NULL;
    device_count = 0;
  }
  return result;
}

static CUresult attach_named(const orion_config* config) {
  attach_job* jobs = calloc(config->server_count, sizeof *jobs);
  if (!jobs) return CUDA_ERROR_OUT_OF_MEMORY;
  for (uint32_t j = 0; j < config->server_count; j++) {
    jobs[j].address = config->servers[j];
    jobs[j].server_key = config->server_keys[j];
  }
  const CUresult result = attach_all(config, jobs, config->server_count, NULL);
  free(jobs);
  return result;
}

static CUresult attach_allocated(const orion_config* config) {
  orion_allocation* allocation = calloc(1, sizeof *allocation);
  CUresult result = allocation ? orion_allocate(config, allocation) : CUDA_ERROR_OUT_OF_MEMORY;
  if (result == CUDA_SUCCESS) {
    const orion_grant* grant = &allocation->grant;
    attach_job* jobs = calloc(grant->count, sizeof *jobs);
    for (uint32_t j = 0; jobs && j < grant->count; j++) {
      jobs[j].address = grant->servers[j].address;
      jobs[j].server_key = grant->servers[j].public_key;
      jobs[j].granted = &grant->servers[j];
    }
    result = jobs ? attach_all(config, jobs, grant->count, allocation) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) orion_allocation_give_up(config, allocation);
    orion_allocation_close(allocation);
    free(jobs);
  }
  free(allocation);
  return result;
}

static CUresult attach_locked(void) {
  orion_attach_begins();
  orion_config* config = calloc(1, sizeof *config);
  if (!config) return CUDA_ERROR_OUT_OF_MEMORY;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  if (orion_config_read(config)) {
    orion_attach_took.config_ns = orion_now_ns() - orion_attach_took.began_ns;
    result = config->controller_count ? attach_allocated(config) : attach_named(config);
    orion_attach_took.total_ns = orion_now_ns() - orion_attach_took.began_ns;
    if (result == CUDA_SUCCESS) orion_attach_log();
    if (result == CUDA_SUCCESS) orion_stats_start(config->stats);
  }
  free(config);
  return result;
}

// UCX may look for CUDA devices while it is opened, and finds this library.
static _Thread_local bool is_attaching __attribute__((tls_model("initial-exec")));

CUresult orion_attach(void) {
  int now = atomic_load_explicit(&orion_attach_state, memory_order_acquire);
  if (now == NEW) {
    if (is_attaching) return CUDA_ERROR_NOT_INITIALIZED;
    is_attaching = true;
    pthread_once(&handlers_once, register_handlers);
    pthread_mutex_lock(&attach_lock);
    if (atomic_load(&orion_attach_state) == NEW) {
      const CUresult result = attach_locked();
      atomic_store(&failure, (int32_t)result);
      atomic_store_explicit(&orion_attach_state, result == CUDA_SUCCESS ? ATTACHED : FAILED, memory_order_release);
    }
    pthread_mutex_unlock(&attach_lock);
    is_attaching = false;
    now = atomic_load_explicit(&orion_attach_state, memory_order_acquire);
  }
  return now == FAILED ? (CUresult)atomic_load(&failure) : orion_ready();
}
