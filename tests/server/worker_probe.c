// Preloaded into real workers: once the process is confined, a thread tries what no worker may do and writes the codes
// of its attempts to what was stderr at the start, one line: `probe PID name=errno ...`.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int log_fd;

static int has(const char* path, const char* text, size_t stride) {
  static char data[8192];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t bytes = fd < 0 ? 0 : read(fd, data, sizeof data - 1);
  if (fd >= 0) close(fd);
  for (ssize_t i = 0; i < bytes; i++) {
    if (stride && !data[i]) data[i] = ' ';
  }
  data[bytes < 0 ? 0 : bytes] = 0;
  return strstr(data, text) != NULL;
}

static int opening(const char* format, int pid) {
  char path[64];
  snprintf(path, sizeof path, format, pid);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

static void* probe(void* unused) {
  (void)unused;
  for (int i = 0; i < 30000 && !has("/proc/self/status", "Seccomp:\t2", 0); i++) usleep(1000);
  const int server = getppid();
  const char* secret = getenv("SOFTGPU_TEST_SECRET");
  const char* other = getenv("SOFTGPU_TEST_OTHER");
  char word;
  struct iovec here = {&word, 1}, there = {(void*)&word, 1};
  char* const nothing[] = {NULL};
  char line[512];
  const int exec_code = execve("/bin/true", nothing, nothing) ? errno : 0;
  const int fork_code = fork() < 0 ? errno : 0;
  const int kill_code = kill(server, 0) ? errno : 0;
  const int read_code = process_vm_readv(server, &here, 1, &there, 1, 0) < 0 ? errno : 0;
  const int root_code = setuid(0) ? errno : 0;
  const int length =
      snprintf(line, sizeof line,
               "probe %d exec=%d fork=%d kill=%d vm=%d root=%d maps=%d mem=%d environ=%d secret=%d other=%d\n",
               getpid(), exec_code, fork_code, kill_code, read_code, root_code, opening("/proc/%d/maps", server),
               opening("/proc/%d/mem", server), opening("/proc/%d/environ", server), opening(secret ? secret : "", 0),
               opening("/proc/%d/maps", other ? atoi(other) : 0));
  if (write(log_fd, line, (size_t)length) < 0) _exit(3);
  return NULL;
}

__attribute__((constructor)) static void begin(void) {
  if (!has("/proc/self/cmdline", "-m orion_server.worker --channel-fd", 1)) return;
  log_fd = fcntl(2, F_DUPFD_CLOEXEC, 100);
  pthread_t thread;
  if (pthread_create(&thread, NULL, probe, NULL) == 0) pthread_detach(thread);
}
