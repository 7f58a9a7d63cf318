// /proc/self/maps: what lies in a range of this process's addresses. Nothing here allocates or locks, so a forked child
// may use it too.
#ifndef ORION_SHIM_MAPS_H
#define ORION_SHIM_MAPS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct orion_mapping_line {
  uint64_t first, end;
  uint64_t file_offset, inode;  // inode 0: no file
  uint32_t device_major, device_minor;
  char permissions[5];  // "rw-p"
  char name[32];        // cut; "[heap]", a path, or empty
} orion_mapping_line;

/// Calls `visit` for each mapping that touches [first, end), by address, until it returns false. False when the file
/// cannot be read. A visit may replace the mapping that it is told of.
bool orion_maps_visit(uint64_t first, uint64_t end, bool (*visit)(const orion_mapping_line* line, void* argument),
                      void* argument);

#endif
