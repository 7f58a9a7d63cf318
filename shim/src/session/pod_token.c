#define _GNU_SOURCE
#include "pod_token.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

// Whether an address leads to this machine whatever a resolver says. A name does not, but for the one.
static bool is_loopback(const char* address) {
  char host[ORION_SERVER_NAME_BYTES];
  snprintf(host, sizeof host, "%s", address);
  char* colon = strrchr(host, ':');
  if (colon) *colon = 0;
  struct in_addr number;
  return strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0 ||
         (inet_pton(AF_INET, host, &number) == 1 && ntohl(number.s_addr) >> 24 == 127);
}

static ssize_t read_all(int fd, char* out, size_t capacity) {
  size_t at = 0;
  while (at < capacity) {
    const ssize_t got = read(fd, out + at, capacity - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    at += (size_t)got;
  }
  return (ssize_t)at;
}

static bool is_token(const char* text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if (text[i] < 0x21 || text[i] > 0x7e) return false;
  return bytes > 0 && bytes <= ORION_TOKEN_BYTES;
}

bool orion_pod_token_read(const orion_config* config, const orion_control* control, char token[ORION_TOKEN_BYTES + 1]) {
  token[0] = 0;
  if (!config->token_file[0]) return true;
  if (!control->is_encrypted && !is_loopback(control->address)) {
    orion_log(ORION_LOG_INFO,
              "%s does not see the pod's token, which would travel in clear: ORION_CONTROLLER_KEY is not set",
              control->address);
    return true;
  }
  // A FIFO must not hold a program up.
  const int fd = open(config->token_file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && errno == ENOENT) {
    orion_log(ORION_LOG_INFO, "there is no ORION_TOKEN_FILE=%s", config->token_file);
    return true;
  }
  const ssize_t got = fd < 0 ? -1 : read_all(fd, token, ORION_TOKEN_BYTES + 1);
  const int error = errno;
  if (fd >= 0) close(fd);
  size_t bytes = got > 0 ? (size_t)got : 0;
  while (bytes && (token[bytes - 1] == '\n' || token[bytes - 1] == '\r')) bytes--;
  if (got >= 0 && is_token(token, bytes)) {
    token[bytes] = 0;
    return true;
  }
  token[0] = 0;
  if (got < 0)
    orion_log(ORION_LOG_ERROR, "cannot read ORION_TOKEN_FILE=%s: %s", config->token_file, strerror(error));
  else
    orion_log(ORION_LOG_ERROR, "ORION_TOKEN_FILE=%s holds no token of at most %d bytes", config->token_file,
              ORION_TOKEN_BYTES);
  return false;
}
