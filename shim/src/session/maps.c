#define _GNU_SOURCE
#include "maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

typedef struct reader {
  int fd;
  size_t at, filled;
  bool failed;
  char buffer[4096];
} reader;

// -1 at the end.
static int next_byte(reader* r) {
  if (r->at == r->filled) {
    ssize_t got = 0;
    do got = read(r->fd, r->buffer, sizeof r->buffer);
    while (got < 0 && errno == EINTR);
    if (got < 0) r->failed = true;
    if (got <= 0) return -1;
    r->filled = (size_t)got;
    r->at = 0;
  }
  return (unsigned char)r->buffer[r->at++];
}

static int digit(int c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// A number and the byte that ends it.
static uint64_t number(reader* r, unsigned base, int* ended_by) {
  uint64_t value = 0;
  int c = next_byte(r);
  for (; digit(c) >= 0 && (unsigned)digit(c) < base; c = next_byte(r)) value = value * base + (unsigned)digit(c);
  *ended_by = c;
  return value;
}

// "first-end perms offset major:minor inode      name\n"
static bool next_line(reader* r, orion_mapping_line* line) {
  int c = 0;
  line->first = number(r, 16, &c);
  if (c != '-') return false;
  line->end = number(r, 16, &c);
  for (int i = 0; i < 4; i++) line->permissions[i] = (char)next_byte(r);
  line->permissions[4] = 0;
  if (c != ' ' || next_byte(r) != ' ') return false;
  line->file_offset = number(r, 16, &c);
  if (c != ' ') return false;
  line->device_major = (uint32_t)number(r, 16, &c);
  if (c != ':') return false;
  line->device_minor = (uint32_t)number(r, 16, &c);
  if (c != ' ') return false;
  line->inode = number(r, 10, &c);
  while (c == ' ') c = next_byte(r);
  size_t length = 0;
  for (; c >= 0 && c != '\n'; c = next_byte(r))
    if (length + 1 < sizeof line->name) line->name[length++] = (char)c;
  line->name[length] = 0;
  return c == '\n';
}

bool orion_maps_visit(uint64_t first, uint64_t end, bool (*visit)(const orion_mapping_line* line, void* argument),
                      void* argument) {
  reader r;
  r.at = r.filled = 0;
  r.failed = false;
  r.fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (r.fd < 0) return false;
  orion_mapping_line line;
  while (next_line(&r, &line) && line.first < end)
    if (line.end > first && !visit(&line, argument)) break;
  close(r.fd);
  return !r.failed;
}
