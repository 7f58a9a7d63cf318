// What the transports share of orion_adopt.
#ifndef ORION_SHIM_ADOPT_H
#define ORION_SHIM_ADOPT_H

#include "maps.h"

#define ORION_PAGE_BYTES 4096ull

typedef struct orion_page_range {
  uint64_t first, bytes;
} orion_page_range;

static inline orion_page_range orion_pages_of(uint64_t address, uint64_t bytes) {
  const uint64_t first = address & ~(ORION_PAGE_BYTES - 1);
  const uint64_t end = (address + bytes + ORION_PAGE_BYTES - 1) & ~(ORION_PAGE_BYTES - 1);
  return (orion_page_range){first, end - first};
}

/// Maps pages where nothing is. NULL, or why not.
const char* orion_map_free(uint64_t address, uint64_t bytes, int flags, int fd, uint64_t offset);

/// Looks at all mappings of the pages: the first fault, or NULL.
const char* orion_examine_pages(orion_page_range pages, const char* (*fault)(const orion_mapping_line* line));

#endif
