// Same host: the ring is shared memory. A unix socket hands over the descriptors and, by its end, tells each side of
// the other's death.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "shm_pages.h"
#include "transport.h"

#ifndef F_GET_SEALS
#define F_GET_SEALS 1034
#define F_SEAL_SHRINK 0x0002
#endif

typedef struct shm_state {
  _Atomic int socket_fd;
  orion_page_source arena;
} shm_state;

static shm_state* state_of(orion_session* session) { return session->transport_state; }

static void wake_consumer(orion_ring_control* control) {
  // One producer wakes; the others see that it is done. The consumer sets the flag again before it sleeps again.
  if (atomic_exchange(&control->consumer_parked, 0)) orion_futex_wake_all(&control->wake);
}

static void shm_kick(orion_session* session, bool express) {
  wake_consumer(session->main_ring.control);
  if (express) wake_consumer(session->express_ring.control);
}

static bool shm_alive(orion_session* session) {
  const int fd = atomic_load(&state_of(session)->socket_fd);
  if (fd < 0) return false;
  struct pollfd state = {fd, POLLIN | POLLRDHUP, 0};
  if (poll(&state, 1, 0) <= 0) return true;
  if (state.revents & (POLLHUP | POLLERR | POLLRDHUP | POLLNVAL)) return false;
  char byte = 0;
  const ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);  // the worker sends nothing after the descriptors
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

static uint64_t shm_push_host(orion_session* session, uint64_t offset, uint64_t bytes) {
  (void)session, (void)offset, (void)bytes;
  return 0;
}

static uint64_t shm_push_pinned(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                                uint64_t generation) {
  (void)session, (void)offset, (void)bytes, (void)callback, (void)generation;
  return 0;
}

static void shm_begin_host_function(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word) {
  (void)session, (void)callback, (void)generation, (void)word;
}

static void shm_note_rows(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value) {
  (void)session, (void)rows, (void)word, (void)value;
}

static void shm_client_word(orion_session* session, uint32_t callback, uint64_t generation) {
  (void)callback, (void)generation;
  if (orion_ring_must_wake(session->main_ring)) shm_kick(session, false);
}

static void shm_drop_pages(orion_session* session, void* address, uint64_t bytes) {
  (void)session;
  madvise(address, bytes, MADV_REMOVE);  // punches the hole in the memfd, for both sides
}

static const char* shm_adoptable(orion_session* session, uint64_t address, uint64_t bytes) {
  (void)session;
  return orion_pages_movable(address, bytes);
}

static const char* shm_adopt(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  return orion_pages_move(&state_of(session)->arena, address, bytes, offset);
}

static bool shm_adopt_end(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  return orion_pages_return(&state_of(session)->arena, address, bytes, offset);
}

static const char* shm_place(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  return orion_pages_place(&state_of(session)->arena, address, bytes, offset);
}

static void shm_unplace(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  (void)session, (void)offset;
  munmap((void*)(uintptr_t)address, bytes);  // NOLINT(performance-no-int-to-ptr): shm_place has mapped it
}

static void shm_close(orion_session* session) {
  const int fd = atomic_exchange(&state_of(session)->socket_fd, -1);
  if (fd >= 0) close(fd);
}

// The child's copy of the descriptor would keep the socket open after the parent's death.
static void shm_after_fork(orion_session* session) {
  shm_close(session);
  close(state_of(session)->arena.fd);
}

static const orion_transport shm_transport = {
    .name = "shm",
    .posts_waiters = true,
    .kick = shm_kick,
    .alive = shm_alive,
    .push_host = shm_push_host,
    .push_pinned = shm_push_pinned,
    .begin_host_function = shm_begin_host_function,
    .note_rows = shm_note_rows,
    .adoptable = shm_adoptable,
    .adopt = shm_adopt,
    .adopt_end = shm_adopt_end,
    .place = shm_place,
    .unplace = shm_unplace,
    .client_word = shm_client_word,
    .drop_pages = shm_drop_pages,
    .close = shm_close,
    .after_fork = shm_after_fork,
};

int orion_shm_connect(const char* path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  const size_t bytes = strlen(path);
  if (bytes == 0 || bytes >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  memcpy(address.sun_path, path, bytes);
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, (const struct sockaddr*)&address, sizeof address) != 0) {
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
  }
  return fd;
}

// Receives one byte and exactly two descriptors; any others are closed. False with a reason.
static bool receive_fds(int socket_fd, uint32_t timeout_ms, int fds[2], const char** why) {
  const uint64_t end_ns = orion_now_ns() + timeout_ms * 1000000ull;
  struct pollfd ready = {socket_fd, POLLIN, 0};
  for (;;) {
    const uint64_t now_ns = orion_now_ns();
    const int count = poll(&ready, 1, now_ns < end_ns ? (int)((end_ns - now_ns) / 1000000) + 1 : 0);
    if (count > 0) break;
    if (count == 0 || errno != EINTR) {
      *why = "it did not answer the token in time";
      return false;
    }
  }
  uint8_t byte = 1;
  struct iovec vector = {&byte, 1};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(8 * sizeof(int))];
  } control;
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
  const ssize_t got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
  int received = 0;
  if (got >= 0) {
    for (struct cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; i++) {
        int fd = -1;
        memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
        if (received < 2)
          fds[received] = fd;
        else
          close(fd);
        received++;
      }
    }
  }
  if (got == 1 && byte == 0 && received == 2) return true;
  for (int i = 0; i < received && i < 2; i++) {
    close(fds[i]);
    fds[i] = -1;
  }
  *why = got <= 0 ? "it closed the socket (was the token refused?)" : "its answer holds no segment and arena";
  return false;
}

static const char* check_fd(int fd, uint64_t least_bytes) {
  struct stat status;
  if (fstat(fd, &status) != 0 || (uint64_t)status.st_size < least_bytes) return "its memory is smaller than agreed";
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK)) return "its memory is not sealed against shrinking";
  return NULL;
}

static const char* map_memory(orion_session* session, int segment_fd, int arena_fd) {
  const char* why = check_fd(segment_fd, sizeof(orion_segment));
  if (!why) why = check_fd(arena_fd, ORION_HOST_ARENA_BYTES);
  if (why) return why;
  orion_segment* segment = orion_map_segment(segment_fd);
  if (!segment) return "its segment cannot be mapped";
  if (segment->magic != ORION_SEGMENT_MAGIC || segment->major != ORION_WIRE_MAJOR) {
    munmap(segment, sizeof *segment);
    return "its segment has another layout";
  }
  void* arena = mmap(session->host_base, ORION_HOST_ARENA_BYTES, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_NORESERVE | MAP_FIXED, arena_fd, 0);
  if (arena == MAP_FAILED) {
    munmap(segment, sizeof *segment);
    return "its host arena cannot be mapped (is RLIMIT_AS set?)";
  }
  madvise(arena, ORION_HOST_ARENA_BYTES, MADV_DONTFORK);
  session->segment = segment;
  session->main_ring = orion_main_ring(segment);
  session->express_ring = orion_express_ring(segment);
  return NULL;
}

bool orion_shm_open(orion_session* session, int socket_fd, const uint8_t token[32], uint32_t timeout_ms) {
  int fds[2] = {-1, -1};
  const char* why = NULL;
  if (send(socket_fd, token, 32, MSG_NOSIGNAL) != 32) {
    why = "the token could not be sent";
  } else if (receive_fds(socket_fd, timeout_ms, fds, &why)) {
    why = map_memory(session, fds[0], fds[1]);
    close(fds[0]);
  }
  shm_state* state = why ? NULL : calloc(1, sizeof *state);
  if (state && !orion_pages_source(fds[1], session->host_base, &state->arena)) {
    free(state);
    state = NULL;
  }
  if (!state) {
    if (fds[1] >= 0) close(fds[1]);
    close(socket_fd);
    orion_log(ORION_LOG_ERROR, "shared memory with the worker of %s failed: %s (ORION_TRANSPORT=tcp avoids it)",
              session->server_address, why ? why : "out of memory");
    return false;
  }
  state->socket_fd = socket_fd;
  session->transport_state = state;
  session->transport = &shm_transport;
  session->transport_name = shm_transport.name;
  session->image_offer_min_bytes = ORION_IMAGE_OFFER_MIN_SHM_BYTES;
  return true;
}
