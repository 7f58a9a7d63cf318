// Who moves the bytes of lane 0. A thread that waits for something moves them itself, so that a round trip wakes the
// worker and this thread, nobody else; the I/O thread does it for programs that do not wait.
#define _GNU_SOURCE
#include "tcp_mover.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "tcp.h"

enum { IDLE_NS = 100000000, DELAY_SPIN_NS = 100000, SPIN_LOOKS = 32 };

static bool try_move(tcp_mover* m) {
  return atomic_load_explicit(&m->moving, memory_order_relaxed) == 0 &&
         atomic_exchange_explicit(&m->moving, 1, memory_order_acquire) == 0;
}

static void end_move(tcp_mover* m) { atomic_store_explicit(&m->moving, 0, memory_order_release); }

static bool may_sleep(tcp_state* state) {
  const tcp_moves* moves = state->mover.moves;
  return !moves->has_work(state) && (!moves->may_sleep || moves->may_sleep(state));
}

static bool is_held(const tcp_state* state) {
  const tcp_moves* moves = state->mover.moves;
  return moves->is_held && moves->is_held(state);
}

static void set_word(_Atomic uint32_t* word, uint32_t value) {
  // Producers read it at every push: it is written only where it changes.
  if (atomic_load_explicit(word, memory_order_relaxed) != value)
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static void set_parked(const tcp_state* state, uint32_t parked) {
  const orion_session* session = state->session;
  set_word(&session->main_ring.control->consumer_parked, parked);
  set_word(&session->express_ring.control->consumer_parked, parked);
  if (parked) atomic_thread_fence(memory_order_seq_cst);
}

static void drain_wakes(const tcp_state* state) {
  uint64_t count = 0;
  if (read(state->wake_fd, &count, sizeof count) < 0) return;  // nothing there
}

struct timespec orion_time_left(uint64_t until_ns) {
  const uint64_t now_ns = orion_now_ns();
  const uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
  return (struct timespec){(time_t)(left_ns / 1000000000ull), (long)(left_ns % 1000000000ull)};
}

// Sleeps until something can be moved, or until_ns; keeps `moving`.
static void sleep_moving(tcp_state* state, uint64_t until_ns) {
  const tcp_mover* m = &state->mover;
  const uint64_t due_ns = m->due_ns < until_ns ? m->due_ns : until_ns;
  if (due_ns < until_ns && due_ns < orion_now_ns() + DELAY_SPIN_NS) return;  // a sleep would oversleep
  set_parked(state, 1);
  if (may_sleep(state)) {
    const short events = (short)((is_held(state) ? 0 : POLLIN) | (m->blocked ? POLLOUT : 0));
    struct pollfd fds[] = {{state->wake_fd, POLLIN, 0}, {m->lane_fd, events, 0}};
    const struct timespec timeout = orion_time_left(due_ns);
    if (ppoll(fds, m->at_end ? 1 : 2, &timeout, NULL) > 0 && fds[0].revents) drain_wakes(state);
  }
  set_parked(state, 0);
}

// ------------------------------------------------------------------------------------------------- those who wait

static void watch_lane(const tcp_mover* m, bool io_thread_does) {
  struct epoll_event event = {.events = io_thread_does ? EPOLLIN : 0};
  epoll_ctl(m->io_fd, EPOLL_CTL_MOD, m->all_fd, &event);
}

// Whoever has moved bytes for itself leaves them to the I/O thread. Where that sleeps, a producer or the lane wakes it
// from here on, and what came meanwhile does so at once.
static void hand_over(tcp_state* state) {
  tcp_mover* m = &state->mover;
  if (atomic_load(&m->io_awake)) {
    // Pairs with sleep_beside: either it sees that nobody moves, or this sees that it sleeps.
    atomic_store(&m->moving, 0);
    if (atomic_load(&m->io_awake) || !try_move(m)) return;
  }
  set_parked(state, 1);
  const bool work = !may_sleep(state) || m->due_ns != UINT64_MAX || m->blocked || m->broken;
  end_move(m);
  const uint64_t one = 1;
  if (work && write(state->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

enum orion_help orion_mover_help(orion_session* session, bool (*ready)(void* argument), void* argument,
                                 uint32_t context, uint64_t spin_until_ns, uint64_t until_ns) {
  tcp_state* state = session->transport_state;
  tcp_mover* m = &state->mover;
  if (atomic_load(&state->stop) || !try_move(m)) return ORION_HELP_BUSY;
  // A cancelled thread would take `moving` with it.
  int cancel_state = 0;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  bool watched = true;
  set_parked(state, 0);
  enum orion_help result = ORION_HELP_LATER;
  for (;;) {
    const bool moved = m->moves->once(state);
    if (ready(argument)) {
      result = ORION_HELP_READY;
      break;
    }
    if (moved && orion_context_error(session, context) != CUDA_SUCCESS) break;
    if (m->at_end || atomic_load(&state->stop)) break;
    if (moved) continue;
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= until_ns) break;
    if (now_ns < spin_until_ns) {
      orion_cpu_relax();
      continue;
    }
    if (watched) {
      watch_lane(m, false);
      watched = false;
    }
    sleep_moving(state, until_ns);
  }
  if (!watched) watch_lane(m, true);
  hand_over(state);
  pthread_setcancelstate(cancel_state, NULL);
  return result;
}

// ------------------------------------------------------------------------------------------------- the I/O thread

static void watch_room(tcp_mover* m) {
  if (m->blocked == m->watches_room) return;
  struct epoll_event event = {.events = EPOLLIN | (m->blocked ? EPOLLOUT : 0)};
  epoll_ctl(m->all_fd, EPOLL_CTL_MOD, m->lane_fd, &event);
  m->watches_room = m->blocked;
}

static void sleep_until_needed(tcp_state* state) {
  tcp_mover* m = &state->mover;
  watch_room(m);
  if (is_held(state)) {  // the lane stays readable: only another lane or a producer ends this
    sleep_moving(state, orion_now_ns() + IDLE_NS);
    end_move(m);
    return;
  }
  const uint64_t idle_ns = orion_now_ns() + IDLE_NS, until_ns = m->due_ns < idle_ns ? m->due_ns : idle_ns;
  set_parked(state, 1);
  const bool work = !may_sleep(state) || atomic_load(&state->stop);
  atomic_store(&m->io_awake, work);
  end_move(m);
  if (!work) {
    struct pollfd fd = {m->io_fd, POLLIN, 0};
    const struct timespec timeout = orion_time_left(until_ns);
    if (ppoll(&fd, 1, &timeout, NULL) > 0) drain_wakes(state);
  }
  atomic_store(&m->io_awake, true);
}

// Another thread moves the bytes: the I/O thread sleeps until that one hands over, or wakes it.
static void sleep_beside(tcp_mover* m) {
  atomic_store(&m->io_awake, false);
  if (atomic_load(&m->moving)) {
    struct pollfd fd = {m->io_fd, POLLIN, 0};
    (void)poll(&fd, 1, IDLE_NS / 1000000);
  }
  atomic_store(&m->io_awake, true);
}

static void pause_briefly(void) {
  const struct timespec pause = {0, 100000};
  nanosleep(&pause, NULL);
}

// What the program has left behind goes out, for a bounded time. Keeps `moving`: true when it has it.
static bool run_to_the_end(tcp_state* state) {
  tcp_mover* m = &state->mover;
  const uint64_t until_ns = orion_now_ns() + TCP_CLOSE_LIMIT_MS * 1000000ull;
  bool moving = false;
  while (orion_now_ns() < until_ns && !atomic_load(&state->session->lost)) {
    moving = moving || try_move(m);
    if (moving && (m->at_end || m->broken || m->moves->is_drained(state))) break;
    if (!moving || !m->moves->once(state)) pause_briefly();
  }
  while (!moving && orion_now_ns() < until_ns) moving = try_move(m);
  return moving;
}

bool orion_mover_run(tcp_state* state) {
  tcp_mover* m = &state->mover;
  const uint64_t spin_ns = orion_impl(state->session)->spin_us * 1000ull;
  uint64_t busy_at_ns = orion_now_ns();
  bool was_beside = false;
  atomic_store(&m->io_awake, true);
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  while (!atomic_load(&state->stop) && !atomic_load(&state->session->lost)) {
    if (!try_move(m)) {
      // Somebody who waits moves the bytes. Programs that wait often are served best by a thread that is awake when
      // they go on.
      const bool soon = spin_ns && orion_now_ns() - busy_at_ns < spin_ns;
      if (soon)
        orion_cpu_relax();
      else
        sleep_beside(m);
      was_beside = true;
      continue;
    }
    if (was_beside) busy_at_ns = orion_now_ns();
    was_beside = false;
    set_parked(state, 0);
    if (m->moves->once(state)) {
      busy_at_ns = orion_now_ns();
      end_move(m);
    } else if (spin_ns && orion_now_ns() - busy_at_ns < spin_ns) {
      // Looks at the rings alone: asking the network costs more.
      for (int i = 0; i < SPIN_LOOKS && !m->moves->has_work(state); i++) orion_cpu_relax();
      end_move(m);
      orion_cpu_relax();
    } else if (m->due_ns < orion_now_ns() + DELAY_SPIN_NS) {
      end_move(m);
    } else {
      sleep_until_needed(state);
    }
  }
  return run_to_the_end(state);
}

// ------------------------------------------------------------------------------------------------- life

bool orion_mover_open(tcp_state* state, const tcp_moves* moves, int lane_fd) {
  tcp_mover* m = &state->mover;
  m->moves = moves;
  m->lane_fd = lane_fd;
  m->all_fd = epoll_create1(EPOLL_CLOEXEC);
  m->io_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  return m->all_fd >= 0 && m->io_fd >= 0 && epoll_ctl(m->all_fd, EPOLL_CTL_ADD, lane_fd, &event) == 0 &&
         epoll_ctl(m->all_fd, EPOLL_CTL_ADD, state->wake_fd, &event) == 0 &&
         epoll_ctl(m->io_fd, EPOLL_CTL_ADD, m->all_fd, &event) == 0;
}

void orion_mover_close(const tcp_state* state) {
  if (state->mover.io_fd >= 0) close(state->mover.io_fd);
  if (state->mover.all_fd >= 0) close(state->mover.all_fd);
}
