// Two processes for the programs that need a second one: this program again, started by fork and exec, which does what
// it is told over a socket. Included after area.h; the program defines `begin` and `serve`, what the second process
// does at first and for each request. All checks are made in the first.
#ifndef ORION_TESTS_PROCESSES_H
#define ORION_TESTS_PROCESSES_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "area.h"

enum { END = 0 };  // the second process ends; a program's own requests are numbered from 1

typedef struct request {
  int command;  // END, or one of the program's
  CUdeviceptr address;
  size_t bytes;
  unsigned value;
  char handle[64];
} request;

typedef struct answer {
  CUresult code;
  CUdeviceptr address;
  size_t bytes;
  unsigned value;
  char handle[64];
} answer;

static void send_packet(int to, const void* data, size_t bytes, int fd) {
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  memset(&control, 0, sizeof control);
  struct iovec part = {(void*)data, bytes};
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
  if (sendmsg(to, &message, MSG_NOSIGNAL) != (ssize_t)bytes) perror("sendmsg");
}

static ssize_t receive_packet(int from, void* data, size_t bytes, int* fd) {
  union {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {data, bytes};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *fd = -1;
  const ssize_t got = recvmsg(from, &message, 0);
  for (struct cmsghdr* c = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(c), sizeof *fd);
  }
  return got;
}

static CUresult begin(void);
static void serve(const request* r, int fd, answer* a);

static int child_main(int from) {
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) return 2;
  AREA_BASE(AREA_LOAD)
  CALLS(AREA_LOAD)
  if (failures || cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) ||
      cuCtxSetCurrent(context) || begin()) {
    return 2;
  }
  for (;;) {
    request r;
    int fd;
    if (receive_packet(from, &r, sizeof r, &fd) != (ssize_t)sizeof r) return 0;
    answer a;
    memset(&a, 0, sizeof a);
    serve(&r, fd, &a);
    if (fd >= 0) close(fd);
    send_packet(from, &a, sizeof a, -1);
    if (r.command == END) return 0;
  }
}

typedef struct process {
  pid_t pid;
  int socket;
} process;

static process start(void) {
  int ends[2];
  process p = {0};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) perror("socketpair");
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  p.socket = ends[0];
  p.pid = fork();
  if (p.pid == 0) {
    char number[16];
    snprintf(number, sizeof number, "%d", ends[1]);
    execl("/proc/self/exe", "program", "--child", number, (char*)NULL);
    _exit(3);
  }
  close(ends[1]);
  return p;
}

static answer hear(process p) {
  answer a;
  int none;
  memset(&a, 0, sizeof a);
  a.code = (CUresult)-1;
  if (receive_packet(p.socket, &a, sizeof a, &none) != (ssize_t)sizeof a) {
    printf("FAIL the other process has ended\n");
    failures++;
  }
  return a;
}

static answer tell_with(process p, request r, int fd) {
  send_packet(p.socket, &r, sizeof r, fd);
  return hear(p);
}

/// Without waiting for the answer, for what returns only when something else has happened: then hear.
#define ASK(p, ...) send_packet((p).socket, &(request){__VA_ARGS__}, sizeof(request), -1)
#define TELL(p, ...) tell_with(p, (request){__VA_ARGS__}, -1)

static int finish(process p) {
  int status = 0;
  (void)TELL(p, .command = END);
  close(p.socket);
  waitpid(p.pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void end_at_once(process p) {
  kill(p.pid, SIGKILL);
  waitpid(p.pid, NULL, 0);
  close(p.socket);
}

#endif
