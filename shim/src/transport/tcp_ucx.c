// Lanes over UCX (RDMA where the machine has it): life, and who moves the bytes. As over plain sockets, whoever holds
// `moving` does: a thread that waits for something moves them itself, the I/O thread does it for programs that do not
// wait. UCX is called under `moving` alone.
#define _GNU_SOURCE
#include "tcp_ucx.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"

enum { IDLE_NS = 100000000, SPIN_LOOKS = 32, PROGRESS_MOST = 64 };

static bool try_move(ucx_lanes* ucx) {
  return atomic_load_explicit(&ucx->moving, memory_order_relaxed) == 0 &&
         atomic_exchange_explicit(&ucx->moving, 1, memory_order_acquire) == 0;
}

static void end_move(ucx_lanes* ucx) { atomic_store_explicit(&ucx->moving, 0, memory_order_release); }

// ------------------------------------------------------------------------------------------------- one round

// Lets UCX work. True when it has called back.
static bool progress(ucx_lanes* ucx) {
  const uint64_t before = ucx->events;
  for (int i = 0; i < PROGRESS_MOST && ucx->link.api.worker_progress(ucx->link.worker); i++) continue;
  orion_ucx_take_due(ucx);
  return ucx->events != before;
}

static void tell_loss(ucx_lanes* ucx) {
  if (!ucx->broken || ucx->at_end) return;
  ucx->at_end = true;
  orion_tcp_connection_lost_since(ucx->state, ucx->link.api.status_string(ucx->fault));
}

static bool move_once(ucx_lanes* ucx) {
  bool any = orion_ucx_send_out(ucx);
  const bool moved = progress(ucx);
  tell_loss(ucx);
  if (moved) orion_wake_clients(ucx->state->session);
  return any || moved;
}

static void set_word(_Atomic uint32_t* word, uint32_t value) {
  // Producers read it at every push: it is written only where it changes.
  if (atomic_load_explicit(word, memory_order_relaxed) != value)
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static void set_parked(const ucx_lanes* ucx, uint32_t parked) {
  const orion_session* session = ucx->state->session;
  set_word(&session->main_ring.control->consumer_parked, parked);
  set_word(&session->express_ring.control->consumer_parked, parked);
  if (parked) atomic_thread_fence(memory_order_seq_cst);
}

static void drain_wakes(const ucx_lanes* ucx) {
  uint64_t count = 0;
  if (read(ucx->state->wake_fd, &count, sizeof count) < 0) return;  // nothing there
}

static struct timespec time_left(uint64_t until_ns) {
  const uint64_t now_ns = orion_now_ns();
  const uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
  return (struct timespec){(time_t)(left_ns / 1000000000ull), (long)(left_ns % 1000000000ull)};
}

// Sleeps until something can be moved, or until_ns.
static void sleep_moving(ucx_lanes* ucx, uint64_t until_ns) {
  set_parked(ucx, 1);
  if (!orion_ucx_can_send(ucx) && !orion_ucx_busy(&ucx->link, &ucx->events)) {
    struct pollfd fds[] = {{ucx->state->wake_fd, POLLIN, 0}, {ucx->link.efd, POLLIN, 0}};
    const struct timespec timeout = time_left(until_ns);
    if (ppoll(fds, 2, &timeout, NULL) > 0 && fds[0].revents) drain_wakes(ucx);
  }
  set_parked(ucx, 0);
}

// ------------------------------------------------------------------------------------------------- those who wait

static void watch_lane(ucx_lanes* ucx, bool io_thread_does) {
  struct epoll_event event = {.events = io_thread_does ? EPOLLIN : 0};
  epoll_ctl(ucx->io_fd, EPOLL_CTL_MOD, ucx->all_fd, &event);
}

// Whoever has moved bytes for itself leaves them to the I/O thread. Where that sleeps, a producer or UCX wakes it from
// here on, and what came meanwhile does so at once.
static void hand_over(ucx_lanes* ucx) {
  if (atomic_load(&ucx->io_awake)) {
    // Pairs with sleep_beside: either it sees that nobody moves, or this sees that it sleeps.
    atomic_store(&ucx->moving, 0);
    if (atomic_load(&ucx->io_awake) || !try_move(ucx)) return;
  }
  set_parked(ucx, 1);
  const bool work = orion_ucx_can_send(ucx) || orion_ucx_busy(&ucx->link, &ucx->events) || ucx->broken;
  end_move(ucx);
  const uint64_t one = 1;
  if (work && write(ucx->state->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

enum orion_help orion_tcp_ucx_help(orion_session* session, bool (*ready)(void* argument), void* argument,
                                   uint32_t context, uint64_t spin_until_ns, uint64_t until_ns) {
  tcp_state* state = session->transport_state;
  ucx_lanes* ucx = orion_ucx_of(state);
  if (atomic_load(&state->stop) || !try_move(ucx)) return ORION_HELP_BUSY;
  // A cancelled thread would take `moving` with it.
  int cancel_state = 0;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  bool watched = true;
  set_parked(ucx, 0);
  enum orion_help result = ORION_HELP_LATER;
  for (;;) {
    const bool moved = move_once(ucx);
    if (ready(argument)) {
      result = ORION_HELP_READY;
      break;
    }
    if (moved && orion_context_error(session, context) != CUDA_SUCCESS) break;
    if (ucx->at_end || atomic_load(&state->stop)) break;
    if (moved) continue;
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= until_ns) break;
    if (now_ns < spin_until_ns) {
      orion_cpu_relax();
      continue;
    }
    if (watched) {
      watch_lane(ucx, false);
      watched = false;
    }
    sleep_moving(ucx, until_ns);
  }
  if (!watched) watch_lane(ucx, true);
  hand_over(ucx);
  pthread_setcancelstate(cancel_state, NULL);
  return result;
}

// ------------------------------------------------------------------------------------------------- the I/O thread

static void sleep_until_needed(ucx_lanes* ucx) {
  set_parked(ucx, 1);
  const bool work =
      orion_ucx_can_send(ucx) || atomic_load(&ucx->state->stop) || orion_ucx_busy(&ucx->link, &ucx->events);
  atomic_store(&ucx->io_awake, work);
  end_move(ucx);
  if (!work) {
    struct pollfd fd = {ucx->io_fd, POLLIN, 0};
    if (poll(&fd, 1, IDLE_NS / 1000000) > 0) drain_wakes(ucx);
  }
  atomic_store(&ucx->io_awake, true);
}

// Another thread moves the bytes: the I/O thread sleeps until that one hands over, or wakes it.
static void sleep_beside(ucx_lanes* ucx) {
  atomic_store(&ucx->io_awake, false);
  if (atomic_load(&ucx->moving)) {
    struct pollfd fd = {ucx->io_fd, POLLIN, 0};
    (void)poll(&fd, 1, IDLE_NS / 1000000);
  }
  atomic_store(&ucx->io_awake, true);
}

static bool is_drained(const ucx_lanes* ucx) {
  tcp_state* state = ucx->state;
  return ucx->slots_busy == 0 && ucx->pieces_busy == 0 && !state->main_batch.bytes && !state->express_batch.bytes &&
         !orion_ring_ready(state->session->main_ring, state->main_position) &&
         !orion_ring_ready(state->session->express_ring, state->express_position) &&
         !atomic_load(&state->has_client_words) && orion_tcp_all_sent(state);
}

static void pause_briefly(void) {
  const struct timespec pause = {0, 100000};
  nanosleep(&pause, NULL);
}

// Closes the endpoints. Not by force, what was sent arrives first, until `until_ns`.
static void close_eps(ucx_lanes* ucx, bool force, uint64_t until_ns) {
  void* requests[1 + ORION_STRIPES_MAX] = {NULL};
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    if (ucx->eps[i]) requests[i] = orion_ucx_close_ep(&ucx->link, ucx->eps[i], force);
    ucx->eps[i] = NULL;
  }
  ucx->broken = true;
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    while (requests[i] && ucx->link.api.request_check_status(requests[i]) == ORION_UCS_INPROGRESS &&
           orion_now_ns() < until_ns)
      if (!ucx->link.api.worker_progress(ucx->link.worker)) pause_briefly();
    if (requests[i]) ucx->link.api.request_free(requests[i]);
  }
}

// What the program has left behind goes out, for a bounded time. Keeps `moving`: true when it has it.
static bool run_to_the_end(ucx_lanes* ucx) {
  const uint64_t until_ns = orion_now_ns() + TCP_CLOSE_LIMIT_MS * 1000000ull;
  bool moving = false;
  while (orion_now_ns() < until_ns && !atomic_load(&ucx->state->session->lost)) {
    moving = moving || try_move(ucx);
    if (moving && (ucx->broken || ucx->at_end || is_drained(ucx))) break;
    if (!moving || !move_once(ucx)) pause_briefly();
  }
  while (!moving && orion_now_ns() < until_ns) moving = try_move(ucx);
  if (moving) close_eps(ucx, ucx->broken, until_ns);
  return moving;
}

static void run(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  const uint64_t spin_ns = orion_impl(state->session)->spin_us * 1000ull;
  uint64_t busy_at_ns = orion_now_ns();
  bool was_beside = false;
  atomic_store(&ucx->io_awake, true);
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  while (!atomic_load(&state->stop) && !atomic_load(&state->session->lost)) {
    if (!try_move(ucx)) {
      const bool soon = spin_ns && orion_now_ns() - busy_at_ns < spin_ns;
      if (soon)
        orion_cpu_relax();
      else
        sleep_beside(ucx);
      was_beside = true;
      continue;
    }
    if (was_beside) busy_at_ns = orion_now_ns();
    was_beside = false;
    set_parked(ucx, 0);
    if (move_once(ucx)) {
      busy_at_ns = orion_now_ns();
      end_move(ucx);
    } else if (spin_ns && orion_now_ns() - busy_at_ns < spin_ns) {
      for (int i = 0; i < SPIN_LOOKS && !orion_ucx_can_send(ucx); i++) orion_cpu_relax();
      end_move(ucx);
      orion_cpu_relax();
    } else {
      sleep_until_needed(ucx);
    }
  }
  if (!run_to_the_end(ucx)) ucx->link.worker = NULL;  // somebody is inside UCX still: it is left as it is
}

// ------------------------------------------------------------------------------------------------- life

static void close_lanes(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  if (!ucx) return;
  atomic_store(&state->stripes_stop, true);
  pthread_mutex_lock(&state->lock);
  pthread_cond_broadcast(&state->in_place_ended);
  pthread_mutex_unlock(&state->lock);
  if (ucx->link.worker) {
    close_eps(ucx, true, orion_now_ns() + TCP_CLOSE_LIMIT_MS * 1000000ull);
    orion_ucx_close(&ucx->link);
  }
  if (ucx->io_fd >= 0) close(ucx->io_fd);
  if (ucx->all_fd >= 0) close(ucx->all_fd);
  // Threads that wait may still look at the memory of a session that was open.
  if (state->has_thread) return;
  orion_ucx_free_frames(ucx);
  free(ucx);
  state->lanes_state = NULL;
}

static void after_fork(tcp_state* state) {
  ucx_lanes* ucx = orion_ucx_of(state);
  for (uint32_t i = 0; i < ucx->fd_count; i++) close(ucx->fds[i]);
  close(ucx->io_fd);
  close(ucx->all_fd);
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
  ucx->broken = true;
  if (ucx->fault == ORION_UCS_OK) ucx->fault = status;
  ucx->events++;
}

static void on_log(int level, const char* line) {
  orion_log(level == ORION_UCS_LOG_ERROR ? ORION_LOG_INFO : ORION_LOG_DEBUG, "UCX: %s", line);
}

static const char* read_address(const tcp_state* state, const char* endpoint, struct sockaddr_in* address) {
  char text[320];
  orion_tcp_resolve(state, "ucx", endpoint, text);
  char* colon = strrchr(text, ':');
  if (strlen(text) < 7 || colon < text + 6) return "its endpoint is malformed";
  *colon = 0;
  const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
  struct addrinfo* found = NULL;
  const int error = getaddrinfo(text + 6, colon + 1, &hints, &found);
  if (error || !found) return gai_strerror(error);
  memcpy(address, found->ai_addr, sizeof *address);
  freeaddrinfo(found);
  return NULL;
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
    if (ucx->broken) return orion_ucx_why(&ucx->link, "the worker cannot be reached, or refused the token", ucx->fault);
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= deadline_ns) return "the worker did not answer the token in time";
    if (ucx->link.api.worker_progress(ucx->link.worker) || orion_ucx_busy(&ucx->link, &ucx->events)) continue;
    struct pollfd fd = {ucx->link.efd, POLLIN, 0};
    const struct timespec timeout = time_left(deadline_ns < now_ns + IDLE_NS ? deadline_ns : now_ns + IDLE_NS);
    (void)ppoll(&fd, 1, &timeout, NULL);
  }
  return NULL;
}

static bool make_watches(ucx_lanes* ucx) {
  ucx->all_fd = epoll_create1(EPOLL_CLOEXEC);
  ucx->io_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  return ucx->all_fd >= 0 && ucx->io_fd >= 0 && epoll_ctl(ucx->all_fd, EPOLL_CTL_ADD, ucx->link.efd, &event) == 0 &&
         epoll_ctl(ucx->all_fd, EPOLL_CTL_ADD, ucx->state->wake_fd, &event) == 0 &&
         epoll_ctl(ucx->io_fd, EPOLL_CTL_ADD, ucx->all_fd, &event) == 0;
}

static const char* open_lanes(tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                              uint64_t deadline_ns) {
  ucx_lanes* ucx = calloc(1, sizeof *ucx);
  if (!ucx) return "out of memory";
  state->lanes_state = ucx;
  state->credit_bytes = ORION_OPS_CREDIT_BYTES;
  state->mover_stripes = true;
  ucx->state = state;
  ucx->all_fd = ucx->io_fd = -1;
  orion_ucx_token(token, ucx->token);
  ucx->cookie = orion_ucx_cookie(ucx->token);
  for (uint32_t i = 0; i < ORION_UCX_IN_FLIGHT; i++) ucx->pieces[i].ucx = ucx;
  for (uint32_t i = 0; i < UCX_SLOTS; i++) {
    ucx->slots[i] = malloc(sizeof *ucx->slots[i]);
    if (!ucx->slots[i]) return "out of memory";
    ucx->slots[i]->ucx = ucx;
    ucx->slots[i]->busy = false;
  }
  struct sockaddr_in address;
  const char* why = read_address(state, endpoints[0], &address);
  if (why) return why;
  char text[INET_ADDRSTRLEN] = "";
  (void)inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
  int before[UCX_FDS];
  const uint32_t before_count = list_fds(&address, before);
  // No CUDA here: UCX would find this very library.
  why = orion_ucx_open(&ucx->link, state->ucx_devices, "^cuda,rocm,gdr_copy", orion_ucx_managers(text), orion_ucx_take,
                       ucx, on_log);
  if (!why && state->ucx_registers)
    why = orion_ucx_register(&ucx->link, state->session->host_base, ORION_STAGING_BYTES);
  for (uint32_t i = 0; i <= state->stripe_count && !why; i++) why = connect_lane(ucx, i, &address);
  if (!why) why = await_welcome(ucx, deadline_ns);
  if (!why) orion_ucx_confirm(ucx);
  if (!why && !make_watches(ucx)) why = "out of descriptors";
  if (why) return why;
  note_fds(ucx, &address, before, before_count);
  orion_ucx_describe(&ucx->link, ucx->eps[0], ucx->carriers, sizeof ucx->carriers);
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
