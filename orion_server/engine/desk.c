#include "desk.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM_TIMEOUT_MS 1000

bool desk_send(const orion_engine* e, const desk_packet* p, int fd) {
  if (e->config.image_fd <= 0) return false;
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
  } control = {0};
  struct iovec part = {(void*)p, sizeof *p};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (fd >= 0) {
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    struct cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  return sendmsg(e->config.image_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof *p;
}

bool desk_send_surely(const orion_engine* e, const desk_packet* p) {
  if (desk_send(e, p, -1)) return true;
  if (e->config.image_fd <= 0 || (errno != EAGAIN && errno != EINTR)) return false;
  struct pollfd room = {.fd = e->config.image_fd, .events = POLLOUT};
  return poll(&room, 1, ROOM_TIMEOUT_MS) == 1 && desk_send(e, p, -1);
}

/// Takes one answer if there is one; *fd is -1 or the caller's.
static bool receive_packet(const orion_engine* e, desk_packet* p, int* fd) {
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {p, sizeof *p};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *fd = -1;
  const ssize_t got = recvmsg(e->config.image_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return false;
  for (struct cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(c), sizeof *fd);
  }
  return got == (ssize_t)sizeof *p;
}

void desk_receive(orion_engine* e) {
  desk_packet p;
  int fd;
  while (receive_packet(e, &p, &fd)) {
    fd = p.kind < DESK_FIRST_SHARE_KIND ? image_answer(e, &p, fd) : share_answer(e, &p, fd);
    if (fd >= 0) close(fd);
  }
}
