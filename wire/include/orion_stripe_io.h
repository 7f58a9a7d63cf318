// How a thread of a stripe reads, writes and waits, at either end: blocking calls on a socket that has one reader and
// one writer. A shutdown of the socket ends them.
#ifndef ORION_STRIPE_IO_H
#define ORION_STRIPE_IO_H

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "orion_lanes.h"

/// 1: all bytes; 0: the connection ended before the first; -1: it ended or failed.
static inline int orion_read_all(int fd, void* to, size_t bytes) {
  size_t at = 0;
  while (at < bytes) {
    const ssize_t got = recv(fd, (uint8_t*)to + at, bytes - at, MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got == 0 && at == 0 ? 0 : -1;
    at += (size_t)got;
  }
  return 1;
}

/// Sends a frame with head->bytes of body. False: the connection is gone.
static inline bool orion_send_frame(int fd, const orion_frame* head, const uint8_t* body) {
  size_t at = 0;
  while (at < sizeof *head + head->bytes) {
    const size_t of_head = at < sizeof *head ? at : sizeof *head;
    struct iovec parts[2] = {{(uint8_t*)head + of_head, sizeof *head - of_head},
                             {(uint8_t*)body + (at - of_head), head->bytes - (at - of_head)}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    const ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += (size_t)sent;
  }
  return true;
}

/// Sleeps until `due_ns` (CLOCK_MONOTONIC), which a very slow link puts far ahead, or until `stop`.
static inline void orion_sleep_until(uint64_t due_ns, const _Atomic bool* stop) {
  const uint64_t slice_ns = 50000000;
  struct timespec now;
  while (!atomic_load(stop) && clock_gettime(CLOCK_MONOTONIC, &now) == 0) {
    const uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
    if (now_ns >= due_ns) return;
    const uint64_t until_ns = due_ns - now_ns < slice_ns ? due_ns : now_ns + slice_ns;
    const struct timespec until = {(time_t)(until_ns / 1000000000ull), (long)(until_ns % 1000000000ull)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
  }
}

#endif
