#include "arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define TIMER_EVENT 0xFFFFFFFFu
#define STOP_EVENT 0xFFFFFFFEu
#define EVENTS 64

uint64_t arbiter_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

// ------------------------------------------------------------------------------------------------ looking
static void tell_policy(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  const seat* s = &a->seats[index];
  const orion_seat_device* d = seat_at(s, gpu);
  // Counters before what says that a turn is over: they are of that turn then.
  policy_report report = {.wants = get(&d->wants) != 0, .returned = get(&d->returned), .ending = get(&d->ending)};
  report.spent_ns = get(&d->spent_ns);
  report.in_flight_ns = get(&d->in_flight_ns);
  policy_tell(&a->gpus[gpu].turns, (uint32_t)s->places[gpu].policy_index, &report, now_ns);
}

static void publish_turn(orion_arbiter* a, uint32_t index, int gpu) {
  seat* s = &a->seats[index];
  place* p = &s->places[gpu];
  const policy_seat* turn = &a->gpus[gpu].turns.seats[p->policy_index];
  orion_seat_device* d = seat_at(s, gpu);
  // Before its first turn here a worker keeps the number of the last one that it has had.
  if (!turn->grant || (turn->grant == p->grant && turn->budget_ns == p->budget_ns && turn->recalled == p->recalled)) {
    return;
  }
  put(&d->budget_ns, turn->budget_ns);
  put(&d->recalled, turn->recalled);
  put(&d->grant, turn->grant);
  p->grant = turn->grant, p->budget_ns = turn->budget_ns, p->recalled = turn->recalled;
  s->has_changed = true;
}

static bool has_turns(const seat* s, int gpu) { return s->is_used && s->places[gpu].policy_index != NO_INDEX; }

/// What the workers of a GPU have used until now is charged as the limits are now.
static void tell_all(orion_arbiter* a, int gpu, uint64_t now_ns) {
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (has_turns(&a->seats[i], gpu)) tell_policy(a, i, gpu, now_ns);
  }
}

uint64_t arbiter_look(orion_arbiter* a, int gpu, uint64_t now_ns) {
  tell_all(a, gpu, now_ns);
  for (int i = 0; i < (int)a->slice_count; i++) {
    if (a->slices[i].is_used && a->slices[i].gpu == gpu) grants_answer(a, i);
  }
  uint64_t again_ns = moves_look(a, gpu, now_ns);
  const uint64_t turn_ns = policy_decide(&a->gpus[gpu].turns, now_ns);
  if (turn_ns < again_ns) again_ns = turn_ns;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (has_turns(&a->seats[i], gpu)) publish_turn(a, i, gpu);
  }
  return again_ns;
}

void arbiter_wake(orion_arbiter* a) {
  const uint64_t one = 1;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    seat* s = &a->seats[i];
    if (!s->is_used || !s->has_changed) continue;
    s->has_changed = false;
    atomic_fetch_add(&s->memory->wake, 1);
    (void)syscall(SYS_futex, &s->memory->wake, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    if (atomic_load(&s->memory->polls) && write(s->wake_fd, &one, sizeof one) < 0) continue;  // full: it is awake
  }
}

static void set_timer(orion_arbiter* a, uint64_t at_ns) {
  if (at_ns == a->timer_at_ns) return;
  a->timer_at_ns = at_ns;
  struct itimerspec when = {0};
  if (at_ns != POLICY_NEVER) {
    when.it_value.tv_sec = (time_t)(at_ns / 1000000000ull);
    when.it_value.tv_nsec = (long)(at_ns % 1000000000ull);
  }
  (void)timerfd_settime(a->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/// After anything that may have changed what is due: all GPUs, the workers, the timer.
static void settle(orion_arbiter* a) {
  const uint64_t now_ns = arbiter_now_ns();
  uint64_t again_ns = POLICY_NEVER;
  for (int gpu = 0; gpu < a->gpu_count; gpu++) {
    if (!a->gpus[gpu].is_used) continue;
    const uint64_t at_ns = arbiter_look(a, gpu, now_ns);
    if (at_ns < again_ns) again_ns = at_ns;
  }
  arbiter_wake(a);
  set_timer(a, again_ns);
}

// ------------------------------------------------------------------------------------------------ the thread
static void empty(int fd) {
  uint64_t ignored;
  if (read(fd, &ignored, sizeof ignored) < 0) return;
}

static void* run(void* argument) {
  orion_arbiter* a = argument;
  struct epoll_event events[EVENTS];
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  prctl(PR_SET_NAME, "arbiter", 0UL, 0UL, 0UL);
  for (;;) {
    const int count = epoll_wait(a->epoll_fd, events, EVENTS, -1);
    if (count < 0 && errno != EINTR) break;
    pthread_mutex_lock(&a->lock);
    for (int i = 0; i < count; i++) {
      const uint32_t which = events[i].data.u32;
      if (which == TIMER_EVENT) {
        empty(a->timer_fd);
        a->timer_at_ns = POLICY_NEVER;
      } else if (which < SEATS_MAX && a->seats[which].is_used) {
        empty(a->seats[which].doorbell_fd);
      }
    }
    const bool stops = a->stops;
    if (!stops) settle(a);
    pthread_mutex_unlock(&a->lock);
    if (stops) break;
  }
  return NULL;
}

static bool watch(const orion_arbiter* a, int fd, uint32_t which) {
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = which};
  return fd >= 0 && !epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

orion_arbiter* orion_arbiter_new(const orion_arbiter_options* options) {
  if (options->gpu_count < 1 || options->gpu_count > (int)GPUS_MAX) return NULL;
  orion_arbiter* a = calloc(1, sizeof *a);
  if (!a) return NULL;
  pthread_mutex_init(&a->lock, NULL);
  a->gpu_count = options->gpu_count;
  a->timer_at_ns = POLICY_NEVER;
  for (int i = 0; i < a->gpu_count; i++) policy_init(&a->gpus[i].turns, options->slice_ns, arbiter_now_ns());
  a->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  a->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  a->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (watch(a, a->timer_fd, TIMER_EVENT) && watch(a, a->stop_fd, STOP_EVENT)) {
    a->has_thread = !pthread_create(&a->thread, NULL, run, a);
  }
  if (a->has_thread) return a;
  orion_arbiter_free(a);
  return NULL;
}

static void close_seat(seat* s) {
  munmap(s->memory, sizeof *s->memory);
  close(s->doorbell_fd);
  close(s->wake_fd);
  *s = (seat){0};
}

void orion_arbiter_free(orion_arbiter* a) {
  if (!a) return;
  if (a->has_thread) {
    const uint64_t one = 1;
    pthread_mutex_lock(&a->lock);
    a->stops = true;
    pthread_mutex_unlock(&a->lock);
    if (write(a->stop_fd, &one, sizeof one) == sizeof one) pthread_join(a->thread, NULL);
  }
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    if (a->seats[i].is_used) close_seat(&a->seats[i]);
  }
  const int fds[] = {a->epoll_fd, a->timer_fd, a->stop_fd};
  for (int i = 0; i < 3; i++) {
    if (fds[i] >= 0) close(fds[i]);
  }
  pthread_mutex_destroy(&a->lock);
  free(a);
}

// ------------------------------------------------------------------------------------------------ slices
static bool limits_ok(const orion_slice_limits* l) {
  return l->ratio_percent <= 100 && (l->policy == ORION_POLICY_HARD || l->policy == ORION_POLICY_ELASTIC) &&
         l->quota_bytes < ORION_SEAT_NO_LIMIT && l->pinned_bytes < ORION_SEAT_NO_LIMIT;
}

/// Index of a slice by its number; NO_INDEX.
static int slice_index(const orion_arbiter* a, int number) {
  return number > 0 && number <= (int)SLICES_MAX && a->slices[number - 1].is_used ? number - 1 : NO_INDEX;
}

int orion_arbiter_set_memory(orion_arbiter* a, int gpu, const orion_gpu_memory* memory) {
  if (gpu < 0 || gpu >= a->gpu_count) return -EINVAL;
  int result = 0;
  pthread_mutex_lock(&a->lock);
  for (uint32_t i = 0; i < SLICES_MAX; i++) {
    if (a->slices[i].is_used && a->slices[i].gpu == gpu) result = -EBUSY;
  }
  if (!result) {
    a->gpus[gpu].capacity_bytes = a->gpus[gpu].memory.capacity_bytes = memory->capacity_bytes;
    a->gpus[gpu].backing_bytes = memory->backing_bytes;
  }
  pthread_mutex_unlock(&a->lock);
  return result;
}

int orion_arbiter_add_slice(orion_arbiter* a, int gpu, const orion_slice_limits* limits) {
  if (gpu < 0 || gpu >= a->gpu_count || !limits_ok(limits)) return -EINVAL;
  int result = -ENOSPC;
  pthread_mutex_lock(&a->lock);
  for (uint32_t i = 0; i < SLICES_MAX && result < 0; i++) {
    slice* s = &a->slices[i];
    if (s->is_used) continue;
    const uint64_t now_ns = arbiter_now_ns();
    int turns = NO_INDEX;
    if (limits->ratio_percent) {
      turns =
          policy_add_slice(&a->gpus[gpu].turns, limits->ratio_percent, limits->policy == ORION_POLICY_ELASTIC, now_ns);
      if (turns < 0) break;
    }
    *s = (slice){.is_used = true, .gpu = gpu, .policy_index = turns, .limits = *limits, .since_ns = now_ns};
    a->gpus[gpu].is_used = true;
    if (i >= a->slice_count) a->slice_count = i + 1;
    result = (int)i + 1;
  }
  pthread_mutex_unlock(&a->lock);
  return result;
}

/// The seat takes turns on the GPU from now on. False: there are too many.
static bool begin_turns(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  const seat* s = &a->seats[index];
  place* p = &a->seats[index].places[gpu];
  orion_seat_device* d = seat_at(s, gpu);
  const uint32_t slice = (uint32_t)a->slices[p->slice].policy_index;
  p->policy_index = policy_add_seat(&a->gpus[gpu].turns, slice, get(&d->spent_ns), now_ns);
  if (p->policy_index == NO_INDEX) return false;
  // A turn of the time before a ratio was taken away is none any more.
  put(&d->recalled, get(&d->grant));
  p->recalled = get(&d->grant);
  put(&d->is_limited, 1);
  return true;
}

/// The slice's seats begin or cease to take turns, as its ratio says.
static int change_turns(orion_arbiter* a, int index, const orion_slice_limits* limits, uint64_t now_ns) {
  slice* s = &a->slices[index];
  policy* turns = &a->gpus[s->gpu].turns;
  const bool elastic = limits->policy == ORION_POLICY_ELASTIC;
  if (limits->ratio_percent && s->policy_index != NO_INDEX) {
    tell_all(a, s->gpu, now_ns);
    policy_set_slice(turns, (uint32_t)s->policy_index, limits->ratio_percent, elastic, now_ns);
    return 0;
  }
  if (limits->ratio_percent == 0 && s->policy_index == NO_INDEX) return 0;
  if (limits->ratio_percent) {
    const int made = policy_add_slice(turns, limits->ratio_percent, elastic, now_ns);
    if (made < 0) return -ENOSPC;
    s->policy_index = made;
  }
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    seat* t = &a->seats[i];
    if (!t->is_used || t->places[s->gpu].slice != index) continue;
    if (!limits->ratio_percent) {
      t->places[s->gpu].policy_index = NO_INDEX;
      put(&seat_at(t, s->gpu)->is_limited, 0);
    } else if (!begin_turns(a, i, s->gpu, now_ns)) {
      return -ENOSPC;
    }
    t->has_changed = true;
  }
  if (!limits->ratio_percent) {
    policy_remove_slice(turns, (uint32_t)s->policy_index, now_ns);
    s->policy_index = NO_INDEX;
  }
  return 0;
}

int orion_arbiter_set_slice(orion_arbiter* a, int number, const orion_slice_limits* limits, int shrink) {
  if (!limits_ok(limits)) return -EINVAL;
  pthread_mutex_lock(&a->lock);
  const int index = slice_index(a, number);
  int result = index == NO_INDEX ? -ENOENT : 0;
  const uint64_t quota_before = result ? 0 : a->slices[index].limits.quota_bytes;
  if (!result && !grants_resize(a, index, limits->quota_bytes, shrink)) result = -EBUSY;
  if (!result) {
    result = change_turns(a, index, limits, arbiter_now_ns());
    if (result) (void)grants_resize(a, index, quota_before, ORION_SHRINK_BLOCK);
  }
  if (!result) {
    slice* s = &a->slices[index];
    s->limits = *limits;
    for (uint32_t i = 0; i < SEATS_MAX; i++) {
      if (!a->seats[i].is_used || a->seats[i].places[s->gpu].slice != index) continue;
      put(&a->seats[i].memory->pinned_granted_bytes, limits->pinned_bytes ? limits->pinned_bytes : ORION_SEAT_NO_LIMIT);
    }
  }
  settle(a);
  pthread_mutex_unlock(&a->lock);
  return result;
}

static void add_usage(const seat* s, int gpu, orion_slice_usage* usage) {
  const orion_seat_device* d = seat_at(s, gpu);
  usage->charged_bytes += get(&d->charged_bytes);
  for (uint32_t k = 0; k < ORION_MEMORY_KINDS; k++) usage->kind_bytes[k] += get(&d->kind_bytes[k]);
  usage->pinned_bytes += get(&s->memory->pinned_bytes);
  usage->spent_ns += get(&d->spent_ns);
  usage->throttled_ns += get(&d->throttled_ns);
  usage->works += get(&d->works);
  usage->out_bytes += get(&d->out_bytes);
  usage->moved_out_bytes += get(&d->moved_out_bytes);
  usage->moved_in_bytes += get(&d->moved_in_bytes);
  usage->moving_out_ns += get(&d->moving_out_ns);
  usage->moving_in_ns += get(&d->moving_in_ns);
  usage->seats++;
}

int orion_arbiter_get_slice(orion_arbiter* a, int number, orion_slice_limits* limits, orion_slice_usage* usage) {
  pthread_mutex_lock(&a->lock);
  const int index = slice_index(a, number);
  if (index != NO_INDEX) {
    settle(a);  // what has been used until now counts
    const slice* s = &a->slices[index];
    *limits = s->limits;
    *usage = (orion_slice_usage){
        .spent_ns = s->spent_ns, .throttled_ns = s->throttled_ns, .works = s->works, .since_ns = s->since_ns};
    for (uint32_t i = 0; i < SEATS_MAX; i++) {
      if (a->seats[i].is_used && a->seats[i].places[s->gpu].slice == index) add_usage(&a->seats[i], s->gpu, usage);
    }
    if (s->policy_index != NO_INDEX) {
      const policy* turns = &a->gpus[s->gpu].turns;
      const uint32_t turn = (uint32_t)s->policy_index;
      const uint64_t now_ns = arbiter_now_ns();
      usage->turns = turns->slices[turn].turns;
      usage->credit_ns = turns->slices[turn].credit_ns;
      usage->achieved_1s = policy_achieved(turns, turn, 1000000000ull, now_ns);
      usage->achieved_10s = policy_achieved(turns, turn, 10000000000ull, now_ns);
    }
  }
  pthread_mutex_unlock(&a->lock);
  return index == NO_INDEX ? -ENOENT : 0;
}

/// The seat has nothing of this GPU any more.
static void leave(orion_arbiter* a, uint32_t index, int gpu, uint64_t now_ns) {
  seat* s = &a->seats[index];
  place* p = &s->places[gpu];
  if (p->slice == NO_INDEX) return;
  slice* of = &a->slices[p->slice];
  orion_slice_usage last = {0};
  add_usage(s, gpu, &last);
  of->spent_ns += last.spent_ns;
  of->throttled_ns += last.throttled_ns;
  of->works += last.works;
  if (p->policy_index != NO_INDEX) policy_remove_seat(&a->gpus[gpu].turns, (uint32_t)p->policy_index, now_ns);
  orion_seat_device* d = seat_at(s, gpu);
  put(&d->is_limited, 0);
  put(&d->granted_bytes, 0);
  const int slice = p->slice;
  *p = (place){.slice = NO_INDEX, .policy_index = NO_INDEX};
  a->gpus[gpu].memory.seats[index] = (residency_seat){0};
  grants_tell_others(a, slice);
}

int orion_arbiter_remove_slice(orion_arbiter* a, int number) {
  pthread_mutex_lock(&a->lock);
  const int index = slice_index(a, number);
  if (index != NO_INDEX) {
    slice* s = &a->slices[index];
    const uint64_t now_ns = arbiter_now_ns();
    for (uint32_t i = 0; i < SEATS_MAX; i++) {
      if (a->seats[i].is_used && a->seats[i].places[s->gpu].slice == index) leave(a, i, s->gpu, now_ns);
    }
    if (s->policy_index != NO_INDEX) policy_remove_slice(&a->gpus[s->gpu].turns, (uint32_t)s->policy_index, now_ns);
    *s = (slice){0};
    settle(a);
  }
  pthread_mutex_unlock(&a->lock);
  return index == NO_INDEX ? -ENOENT : 0;
}

// ------------------------------------------------------------------------------------------------ seats
uint64_t orion_arbiter_seat_bytes(void) { return sizeof(orion_seat); }

/// Fills a seat whose memory is mapped; nothing is limited until it is assigned.
static void fill(seat* s) {
  memset(s->memory, 0, sizeof *s->memory);
  s->memory->magic = ORION_SEAT_MAGIC;
  s->memory->version = ORION_SEAT_VERSION;
  put(&s->memory->pinned_granted_bytes, ORION_SEAT_NO_LIMIT);
  for (uint32_t i = 0; i < GPUS_MAX; i++) {
    put(&seat_at(s, (int)i)->granted_bytes, ORION_SEAT_NO_LIMIT);
    s->places[i] = (place){.slice = NO_INDEX, .policy_index = NO_INDEX};
  }
}

int orion_arbiter_add_seat(orion_arbiter* a, int seat_fd, int doorbell_fd, int wake_fd) {
  struct stat status;
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (fstat(seat_fd, &status) || (uint64_t)status.st_size != sizeof(orion_seat)) return -EINVAL;
  if (fcntl(seat_fd, F_ADD_SEALS, seals) && (fcntl(seat_fd, F_GET_SEALS) & seals) != seals) return -EINVAL;
  seat made = {.is_used = true};
  made.memory = mmap(NULL, sizeof *made.memory, PROT_READ | PROT_WRITE, MAP_SHARED, seat_fd, 0);
  if (made.memory == MAP_FAILED) return -ENOMEM;
  made.doorbell_fd = fcntl(doorbell_fd, F_DUPFD_CLOEXEC, 3);
  made.wake_fd = fcntl(wake_fd, F_DUPFD_CLOEXEC, 3);
  if (made.doorbell_fd < 0 || made.wake_fd < 0) {
    const int error = errno;
    if (made.doorbell_fd >= 0) close(made.doorbell_fd);
    munmap(made.memory, sizeof *made.memory);
    return -error;
  }
  // The thread waits for no worker: neither for one that has emptied its doorbell, nor for one that has filled its
  // wake.
  (void)fcntl(made.doorbell_fd, F_SETFL, fcntl(made.doorbell_fd, F_GETFL) | O_NONBLOCK);
  (void)fcntl(made.wake_fd, F_SETFL, fcntl(made.wake_fd, F_GETFL) | O_NONBLOCK);
  fill(&made);
  int result = -ENOSPC;
  pthread_mutex_lock(&a->lock);
  for (uint32_t i = 0; i < SEATS_MAX && result < 0; i++) {
    if (a->seats[i].is_used) continue;
    if (!watch(a, made.doorbell_fd, i)) break;
    a->seats[i] = made;
    if (i >= a->seat_count) a->seat_count = i + 1;
    result = (int)i + 1;
  }
  pthread_mutex_unlock(&a->lock);
  if (result < 0) close_seat(&made);
  return result;
}

int orion_arbiter_assign(orion_arbiter* a, int number, int slice_number) {
  pthread_mutex_lock(&a->lock);
  const int index = slice_index(a, slice_number);
  const bool is_seat = number > 0 && number <= (int)SEATS_MAX && a->seats[number - 1].is_used;
  int result = index == NO_INDEX || !is_seat ? -ENOENT : 0;
  if (!result) {
    seat* s = &a->seats[number - 1];
    slice* of = &a->slices[index];
    place* p = &s->places[of->gpu];
    if (p->slice != NO_INDEX) {
      result = -EEXIST;
    } else {
      *p = (place){.slice = index, .policy_index = NO_INDEX};
      if (of->policy_index != NO_INDEX && !begin_turns(a, (uint32_t)number - 1, of->gpu, arbiter_now_ns())) {
        p->slice = NO_INDEX;
        result = -ENOSPC;
      } else {
        grants_begin(a, (uint32_t)number - 1, of->gpu);
        settle(a);
      }
    }
  }
  pthread_mutex_unlock(&a->lock);
  return result;
}

int orion_arbiter_remove_seat(orion_arbiter* a, int number) {
  pthread_mutex_lock(&a->lock);
  const bool is_seat = number > 0 && number <= (int)SEATS_MAX && a->seats[number - 1].is_used;
  if (is_seat) {
    seat* s = &a->seats[number - 1];
    const uint64_t now_ns = arbiter_now_ns();
    for (int gpu = 0; gpu < a->gpu_count; gpu++) leave(a, (uint32_t)number - 1, gpu, now_ns);
    (void)epoll_ctl(a->epoll_fd, EPOLL_CTL_DEL, s->doorbell_fd, NULL);
    close_seat(s);
    settle(a);
  }
  pthread_mutex_unlock(&a->lock);
  return is_seat ? 0 : -ENOENT;
}
