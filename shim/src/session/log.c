#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "session.h"

static _Atomic int log_level = ORION_LOG_WARN;
static _Atomic int log_file = -1;

void orion_log_configure(int level, const char* file) {
  atomic_store(&log_level, level);
  if (!file || !*file || atomic_load(&log_file) >= 0) return;
  int opened = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (opened < 0) {
    orion_log(ORION_LOG_WARN, "cannot write ORION_LOG_FILE %s: %s; the log goes to stderr only", file, strerror(errno));
    return;
  }
  atomic_store(&log_file, opened);
}

void orion_printable(char* out, size_t capacity, const char* text, size_t bytes) {
  size_t n = 0;
  for (size_t i = 0; i < bytes && n + 1 < capacity; i++) {
    unsigned char c = (unsigned char)text[i];
    out[n++] = (c < 0x20 || c == 0x7f) ? ' ' : (char)c;
  }
  if (capacity) out[n] = 0;
}

// One write per line: lines of several threads and processes on one stderr must not mix.
static void write_line(int fd, const char* line, size_t bytes) {
  while (bytes) {
    ssize_t wrote = write(fd, line, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;
    line += wrote;
    bytes -= (size_t)wrote;
  }
}

void orion_log(enum orion_log_level level, const char* format, ...) {
  if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed)) return;
  const int saved_errno = errno;
  static const char* const names[] = {"", "warning: ", "info: ", "debug: "};
  char line[ORION_LINE_BYTES];
  int prefix = snprintf(line, sizeof line, "orion: %s", names[level]);
  va_list arguments;
  va_start(arguments, format);
  int body = vsnprintf(line + prefix, sizeof line - (size_t)prefix - 1, format, arguments);
  va_end(arguments);
  size_t bytes = (size_t)prefix + (body < 0 ? 0 : (size_t)body);
  if (bytes > sizeof line - 2) bytes = sizeof line - 2;
  line[bytes++] = '\n';
  write_line(STDERR_FILENO, line, bytes);
  int file = atomic_load(&log_file);
  if (file >= 0) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    char stamped[ORION_LINE_BYTES + 64];
    size_t at = 0;
    if (gmtime_r(&now.tv_sec, &utc)) at = strftime(stamped, 32, "%Y-%m-%dT%H:%M:%S", &utc);
    at += (size_t)snprintf(stamped + at, 32, ".%03ldZ [%d] ", now.tv_nsec / 1000000, (int)getpid());
    memcpy(stamped + at, line, bytes);
    write_line(file, stamped, at + bytes);
  }
  errno = saved_errno;
}

CUresult orion_not_implemented(const char* function) {
  // A small open-addressed set of the name pointers (string literals), so that each name is told once.
  static _Atomic(const char*) told[1024];
  size_t hash = ((size_t)(uintptr_t)function >> 3) * 0x9e3779b97f4a7c15ull >> 54;
  for (size_t i = 0; i < 1024; i++) {
    _Atomic(const char*)* place = &told[(hash + i) & 1023];
    const char* seen = NULL;
    if (atomic_compare_exchange_strong(place, &seen, function)) {
      orion_log(ORION_LOG_WARN, "%s is not implemented: it returns CUDA_ERROR_NOT_SUPPORTED (see docs/api-coverage.md)",
                function);
      break;
    }
    if (seen == function) break;
  }
  return CUDA_ERROR_NOT_SUPPORTED;
}
