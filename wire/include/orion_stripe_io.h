// How a thread of a stripe reads, writes and waits, at either end: blocking calls on a socket that has one reader and
// one writer. A shutdown of the socket ends them.
#ifndef ORION_STRIPE_IO_H
#define ORION_STRIPE_IO_H

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "orion_lanes.h"
#include "orion_seal.h"

// One direction of a stripe that is encrypted. `records`: ORION_STRIPE_RECORDS bytes.
typedef struct orion_stripe_seal {
  orion_seal seal;
  uint8_t* records;
} orion_stripe_seal;
#define ORION_STRIPE_RECORDS (ORION_RECORD_MOST + sizeof(orion_frame) + ORION_RECORD_EXTRA)

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

enum { ORION_READ_FORGED = -2 };

/// The same of a lane that is encrypted (`seal` not NULL): also ORION_READ_FORGED. The destination never holds anything
/// that was not opened.
static inline int orion_read_lane(int fd, orion_stripe_seal* seal, void* to, size_t bytes) {
  if (!seal) return orion_read_all(fd, to, bytes);
  for (size_t at = 0; at < bytes;) {
    const size_t piece = bytes - at < ORION_RECORD_BYTES ? bytes - at : ORION_RECORD_BYTES;
    const int got = orion_read_all(fd, seal->records, piece + ORION_RECORD_EXTRA);
    if (got <= 0) return got == 0 && at == 0 ? 0 : -1;
    if (orion_record_bytes(seal->records) != piece ||
        !orion_seal_open(&seal->seal, seal->records, piece, (uint8_t*)to + at))
      return ORION_READ_FORGED;
    at += piece;
  }
  return 1;
}

static inline bool orion_send_all(int fd, const uint8_t* from, size_t bytes) {
  size_t at = 0;
  while (at < bytes) {
    const ssize_t sent = send(fd, from + at, bytes - at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += (size_t)sent;
  }
  return true;
}

/// Sends a frame, sealed where `seal` is not NULL. False: the connection is gone.
static inline bool orion_send_lane_frame(int fd, orion_stripe_seal* seal, const orion_frame* head,
                                         const uint8_t* body) {
  if (!seal) return orion_send_frame(fd, head, body);
  size_t used = orion_seal_put(&seal->seal, seal->records, (const uint8_t*)head, sizeof *head);
  for (size_t at = 0; at < head->bytes;) {
    const size_t piece = head->bytes - at < ORION_RECORD_BYTES ? head->bytes - at : ORION_RECORD_BYTES;
    used += orion_seal_put(&seal->seal, seal->records + used, body + at, piece);
    if (!orion_send_all(fd, seal->records, used)) return false;
    used = 0;
    at += piece;
  }
  return used == 0 || orion_send_all(fd, seal->records, used);
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
