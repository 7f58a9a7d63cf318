// Lanes over UCX (RDMA where the machine has it): life. UCX is called by whoever moves the bytes alone (tcp_mover.h).
#define _GNU_SOURCE
#include "tcp_ucx.h"

#include <poll.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"

enum { IDLE_NS = 100000000, CLOSE_LIMIT_NS = 250000000, PROGRESS_MOST = 64 };
enum { MIXED_SINCE_MINOR = 22 };  // 1.22 and 1.23 worked together

// ------------------------------------------------------------------------------------------------- one round

// Lets UCX work. True when it has called back.
static bool progress(ucx_lanes* ucx) {
  const uint64_t before = ucx->events;
  for (int i = 0; i < PROGRESS_MOST && ucx->link.api.worker_progress(ucx->link.worker); i++) continue;
  orion_ucx_take_due(ucx);
  return ucx->events != before;
}

static void tell_loss(ucx_lanes* ucx) {
  if (!ucx->mover->broken || ucx->mover->at_end) return;
  ucx->mover->at_end = true;
  orion_tcp_connection_lost_since(ucx->state, ucx->link.api.status_string(ucx->fault));
}

static bool move_once(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  const bool any = orion_ucx_send_out(ucx);
  // Nothing came right behind what was sent just now: whoever sleeps is woken by what comes.
  const bool has_looked = ucx->has_looked && !any;
  ucx->has_looked = false;
  if (has_looked) return false;
  const bool moved = progress(ucx);
  ucx->has_looked = any && !moved && ucx->link.tells_all;
  tell_loss(ucx);
  if (moved) orion_wake_clients(state->session);
  return any || moved;
}

static bool has_work(const tcp_state* state) { return orion_ucx_can_send(orion_ucx_of(state)); }

static bool may_sleep(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  return !orion_ucx_busy(&ucx->link, &ucx->events);
}

static bool is_drained(tcp_state* state) {
  const ucx_lanes* ucx = orion_ucx_of(state);
  return ucx->slots_busy == 0 && ucx->pieces_busy == 0 && !state->main_batch.bytes && !state->express_batch.bytes &&
         !orion_ring_ready(state->session->main_ring, state->main_position) &&
         !orion_ring_ready(state->session->express_ring, state->express_position) &&
         !atomic_load(&state->has_client_words) && orion_tcp_all_sent(state);
}

static const tcp_moves moves = {
    .once = move_once,
    .has_work = has_work,
    .may_sleep = may_sleep,
    .is_drained = is_drained,
};

static void pause_briefly(void) {
  const struct timespec pause = {0, 100000};
  nanosleep(&pause, NULL);
}

// Closes the endpoints. Not by force, what was sent arrives first. False: UCX has not let go of all of them in time,
// and must be left as it is: it ends the process that destroys a worker whose endpoints have something left to do.
static bool close_eps(ucx_lanes* ucx, bool force) {
  const uint64_t until_ns = orion_now_ns() + CLOSE_LIMIT_NS;
  bool all = !force || !ucx->state->has_thread;
  void* requests[1 + ORION_STRIPES_MAX] = {NULL};
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    if (ucx->eps[i]) requests[i] = orion_ucx_close_ep(&ucx->link, ucx->eps[i], force);
    ucx->eps[i] = NULL;
  }
  ucx->mover->broken = true;
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    while (requests[i] && ucx->link.api.request_check_status(requests[i]) == ORION_UCS_INPROGRESS &&
           orion_now_ns() < until_ns)
      if (!ucx->link.api.worker_progress(ucx->link.worker)) pause_briefly();
    if (!requests[i]) continue;
    all &= ucx->link.api.request_check_status(requests[i]) != ORION_UCS_INPROGRESS;
    ucx->link.api.request_free(requests[i]);
  }
  return all && ucx->slots_busy == 0 && ucx->pieces_busy == 0 && ucx->receive_count == 0;
}

static void run(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  // Where somebody is inside UCX still it is left as it is, too.
  if (!orion_mover_run(state) || !close_eps(ucx, ucx->mover->broken)) ucx->link.worker = NULL;
}

// ------------------------------------------------------------------------------------------------- life

static void close_lanes(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  if (!ucx) return;
  atomic_store(&state->stripes_stop, true);
  pthread_mutex_lock(&state->lock);
  pthread_cond_broadcast(&state->in_place_ended);
  pthread_mutex_unlock(&state->lock);
  // The I/O thread has closed them where there was one.
  const bool is_left = ucx->link.worker && !state->has_thread && !close_eps(ucx, true);
  if (ucx->link.worker && !is_left) orion_ucx_close(&ucx->link);
  orion_mover_close(state);
  // Threads that wait may still look at the memory of a session that was open.
  if (state->has_thread || is_left) return;
  orion_ucx_free_frames(ucx);
  free(ucx);
  state->lanes_state = NULL;
}

static void after_fork(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  for (uint32_t i = 0; i < ucx->fd_count; i++) close(ucx->fds[i]);
  orion_mover_close(state);
}

// Connections to the worker's host and RDMA devices that this process has: (count, at most UCX_FDS).
static uint32_t list_fds(const struct sockaddr_in* server, int fds[UCX_FDS]) {
  uint32_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  for (const struct dirent* entry = folder ? readdir(folder) : NULL; entry && count < UCX_FDS;
       entry = readdir(folder)) {
    const int fd = atoi(entry->d_name);
    char path[64], target[64] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0) continue;
    target[n] = 0;
    struct sockaddr_in peer = {0};
    socklen_t bytes = sizeof peer;
    const bool connected = strncmp(target, "socket:", 7) == 0 &&
                           getpeername(fd, (struct sockaddr*)&peer, &bytes) == 0 && peer.sin_family == AF_INET &&
                           peer.sin_addr.s_addr == server->sin_addr.s_addr;
    if (connected || strncmp(target, "/dev/infiniband/", 16) == 0) fds[count++] = fd;
  }
  if (folder) closedir(folder);
  return count;
}

static void note_fds(ucx_lanes* ucx, const struct sockaddr_in* server, const int* before, uint32_t before_count) {
  int now[UCX_FDS];
  const uint32_t count = list_fds(server, now);
  for (uint32_t i = 0; i < count; i++) {
    bool known = false;
    for (uint32_t j = 0; j < before_count; j++) known |= before[j] == now[i];
    if (!known) ucx->fds[ucx->fd_count++] = now[i];
  }
}

static void on_error(void* argument, void* ep, orion_ucs_status status) {
  ucx_lanes* ucx = argument;
  (void)ep;
  ucx->mover->broken = true;
  if (ucx->fault == ORION_UCS_OK) ucx->fault = status;
  ucx->events++;
}

static void on_log(int level, const char* line) {
  orion_log(level == ORION_UCS_LOG_ERROR ? ORION_LOG_INFO : ORION_LOG_DEBUG, "UCX: %s", line);
}

static const char* connect_lane(ucx_lanes* ucx, uint32_t lane, const struct sockaddr_in* address) {
  const orion_ucp_ep_params params = {
      .mask = ORION_UCP_EP_FLAGS | ORION_UCP_EP_SOCKADDR | ORION_UCP_EP_ERROR_MODE | ORION_UCP_EP_ERROR_HANDLER,
      .error_mode = ORION_UCP_ERRORS_OF_PEER,
      .error = {on_error, ucx},
      .flags = ORION_UCP_EP_CLIENT_SERVER,
      .peer = {(const struct sockaddr*)address, sizeof *address}};
  orion_ucs_status status = ucx->link.api.ep_create(ucx->link.worker, &params, &ucx->eps[lane]);
  if (status) {
    ucx->eps[lane] = NULL;
    return orion_ucx_why(&ucx->link, "no connection", status);
  }
  orion_ucx_head* head = &ucx->greetings[lane];  // stays until it is sent
  *head = (orion_ucx_head){.frame = {.type = ORION_FRAME_CONTROL,
                                     .flags = (uint16_t)lane,
                                     .bytes = 32,
                                     .a = lane,
                                     .b = ucx->state->stripe_count},
                           .cookie = ucx->cookie};
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_FLAGS | ORION_UCP_OP_MEMORY_TYPE,
                                         .flags = ORION_UCP_AM_EAGER | ORION_UCP_AM_REPLY,
                                         .memory_type = ORION_UCS_MEMORY_HOST};
  void* request = ucx->link.api.am_send_nbx(ucx->eps[lane], ORION_UCX_AM, head, sizeof *head, ucx->token, 32, &param);
  if (orion_ucs_is_error(request)) return orion_ucx_why(&ucx->link, "no connection", orion_ucs_error(request));
  if (request) ucx->link.api.request_free(request);  // freed once it is done
  return NULL;
}

static const char* await_welcome(ucx_lanes* ucx, uint64_t deadline_ns) {
  const uint32_t all = (2u << ucx->state->stripe_count) - 1;
  while ((ucx->greeted & all) != all) {
    if (ucx->mover->broken)
      return orion_ucx_why(&ucx->link, "the worker cannot be reached, or refused the token", ucx->fault);
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= deadline_ns) return "the worker did not answer the token in time";
    if (ucx->link.api.worker_progress(ucx->link.worker) || orion_ucx_busy(&ucx->link, &ucx->events)) continue;
    struct pollfd fd = {ucx->link.efd, POLLIN, 0};
    const struct timespec timeout = orion_time_left(deadline_ns < now_ns + IDLE_NS ? deadline_ns : now_ns + IDLE_NS);
    (void)ppoll(&fd, 1, &timeout, NULL);
  }
  return NULL;
}

// UCX of two releases may not connect (1.13 and 1.18), or connect and fail at the first large copy (1.18 and 1.23).
static const char* other_release(ucx_lanes* ucx, const char* theirs) {
  orion_ucx_link* link = &ucx->link;
  unsigned major = 0, minor = 0;
  const bool known = sscanf(theirs, "%u.%u", &major, &minor) == 2 && major == link->api.major;
  const unsigned older = minor < link->api.minor ? minor : link->api.minor;
  if (known && (minor == link->api.minor || older >= MIXED_SINCE_MINOR)) return NULL;
  snprintf(link->why, sizeof link->why, "the worker's UCX is %.16s and this one %u.%u: both need the same release",
           theirs, link->api.major, link->api.minor);
  return link->why;
}

static const char* open_lanes(tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                              uint64_t deadline_ns) {
  ucx_lanes* ucx = calloc(1, sizeof *ucx);
  if (!ucx) return "out of memory";
  state->lanes_state = ucx;
  state->credit_bytes = ORION_OPS_CREDIT_BYTES;
  state->mover_stripes = true;
  ucx->state = state;
  ucx->mover = &state->mover;
  orion_ucx_token(token, ucx->token);
  ucx->cookie = orion_ucx_cookie(ucx->token);
  for (uint32_t i = 0; i < ORION_UCX_IN_FLIGHT; i++) ucx->pieces[i].ucx = ucx;
  for (uint32_t i = 0; i < UCX_SLOTS; i++) {
    ucx->slots[i] = malloc(sizeof *ucx->slots[i]);
    if (!ucx->slots[i]) return "out of memory";
    ucx->slots[i]->ucx = ucx;
    ucx->slots[i]->busy = false;
  }
  char endpoint[320];
  snprintf(endpoint, sizeof endpoint, "%s", endpoints[0]);
  const char* release = "";
  char* hash = strchr(endpoint, '#');
  if (hash) *hash = 0, release = hash + 1;
  struct sockaddr_in address;
  const char* why = orion_tcp_address(state, "ucx", endpoint, &address);
  if (why) return why;
  char text[INET_ADDRSTRLEN] = "";
  (void)inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
  int before[UCX_FDS];
  const uint32_t before_count = list_fds(&address, before);
  // No CUDA here: UCX would find this very library.
  why = orion_ucx_open(&ucx->link, state->ucx_devices, "^cuda,rocm,gdr_copy", orion_ucx_managers(text), orion_ucx_take,
                       ucx, on_log);
  if (!why) why = other_release(ucx, release);
  if (!why && state->ucx_registers)
    why = orion_ucx_register(&ucx->link, state->session->host_base, ORION_STAGING_BYTES);
  for (uint32_t i = 0; i <= state->stripe_count && !why; i++) why = connect_lane(ucx, i, &address);
  if (!why) why = await_welcome(ucx, deadline_ns);
  if (!why) orion_ucx_confirm(ucx);
  if (!why && !orion_mover_open(state, &moves, ucx->link.efd)) why = "out of descriptors";
  if (why) return why;
  note_fds(ucx, &address, before, before_count);
  orion_ucx_describe(&ucx->link, ucx->eps[0], ucx->carriers, sizeof ucx->carriers);
  ucx->link.tells_all = orion_ucx_is_tcp(ucx->carriers);
  return NULL;
}

const char* orion_tcp_ucx_carriers(const orion_session* session) {
  const tcp_state* state = session->transport_state;
  return orion_ucx_of(state)->carriers;
}

const tcp_lanes orion_tcp_ucx_lanes = {
    .open = open_lanes,
    .run = run,
    .close = close_lanes,
    .after_fork = after_fork,
};
