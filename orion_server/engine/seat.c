// The seat's memory and its doorbell.
#include "seat.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool seat_open(orion_engine* e) {
  if (e->config.seat_fd <= 0) return true;
  struct stat status;
  if (fstat(e->config.seat_fd, &status) || (uint64_t)status.st_size < sizeof(orion_seat)) return false;
  void* p = mmap(NULL, sizeof(orion_seat), PROT_READ | PROT_WRITE, MAP_SHARED, e->config.seat_fd, 0);
  if (p == MAP_FAILED) return false;
  e->seat = p;
  return e->seat->magic == ORION_SEAT_MAGIC && e->seat->version == ORION_SEAT_VERSION;
}

void seat_close(orion_engine* e) {
  if (e->seat) munmap(e->seat, sizeof *e->seat);
  e->seat = NULL;
}

void seat_ring(orion_engine* e) {
  const uint64_t one = 1;
  if (write(e->config.doorbell_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}
