// What of the program's memory may become memory of the arena; the transports do it.
#define _GNU_SOURCE
#include "adopt.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../transport/transport.h"
#include "internal.h"
#include "maps.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

const char orion_adopt_unmapped[] = "part of it is not mapped";
const char orion_adopt_unwritable[] = "part of it is not writable";

const char* orion_adoptable(orion_session* session, uint64_t address, uint64_t bytes) {
  return session->transport->adoptable(session, address, bytes);
}

const char* orion_adopt(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset) {
  return session->transport->adopt(session, address, bytes, arena_offset);
}

bool orion_adopt_end(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset) {
  return session->transport->adopt_end(session, address, bytes, arena_offset);
}

const char* orion_place_pages(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset) {
  return session->transport->place(session, address, bytes, arena_offset);
}

void orion_unplace_pages(orion_session* session, uint64_t address, uint64_t bytes, uint64_t arena_offset) {
  session->transport->unplace(session, address, bytes, arena_offset);
}

const char* orion_map_free(uint64_t address, uint64_t bytes, int flags, int fd, uint64_t offset) {
  void* wanted = (void*)(uintptr_t)address;  // NOLINT(performance-no-int-to-ptr): the variable's address
  void* got =
      mmap(wanted, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, (off_t)offset);
  if (got == wanted) return NULL;
  if (got != MAP_FAILED) munmap(got, bytes);  // a kernel that does not know the flag
  return got != MAP_FAILED || errno == EEXIST ? "this process uses its address for something else"
                                              : "the system refused a mapping";
}

typedef struct examination {
  uint64_t next, end;
  const char* (*fault)(const orion_mapping_line* line);
  const char* why;
} examination;

static bool examine(const orion_mapping_line* line, void* argument) {
  examination* e = argument;
  e->why = line->first > e->next ? orion_adopt_unmapped : e->fault(line);
  e->next = line->end;
  return e->why == NULL && e->next < e->end;
}

const char* orion_examine_pages(orion_page_range pages, const char* (*fault)(const orion_mapping_line* line)) {
  examination e = {.next = pages.first, .end = pages.first + pages.bytes, .fault = fault};
  if (!orion_maps_visit(pages.first, e.end, examine, &e)) return "/proc/self/maps cannot be read";
  if (e.why == NULL && e.next < e.end) e.why = orion_adopt_unmapped;
  return e.why;
}
