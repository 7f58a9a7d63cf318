// Over shm, memory that the program registers becomes memory of the arena: its pages move there and are mapped at the
// program's address in their place, so that program, worker and kernels use the same ones.
#ifndef ORION_SHIM_SHM_PAGES_H
#define ORION_SHIM_SHM_PAGES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct orion_page_source {
  int fd;
  uint8_t* base;  // where the file is mapped, from its start
  uint64_t device, inode;
} orion_page_source;

/// Once for each arena, before its pages go anywhere. False when it cannot be looked at or there are too many.
bool orion_pages_source(int fd, uint8_t* base, orion_page_source* source);
/// Why the pages of [address, +bytes) cannot move now; NULL: they can.
const char* orion_pages_movable(uint64_t address, uint64_t bytes);
/// Moves them to `offset` of the source. NULL, or why not; then some may have moved, and orion_pages_return undoes it.
const char* orion_pages_move(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset);
/// Maps pages of the source where nothing is. NULL, or why not. A forked child gets copies of them too.
const char* orion_pages_place(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset);
/// Gives the program private pages with the same content, where it still has ours. False when some stay.
bool orion_pages_return(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset);

#endif
