// Disjoint address extents in a treap: lookup by address, and lowest fit by size. One structure serves free device
// addresses, free blocks of mapped chunks, and the map of all allocations. Callers hold a lock.
#ifndef ORION_SHIM_EXTENT_H
#define ORION_SHIM_EXTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct orion_extent {
  uint64_t start, bytes;
  uint64_t largest_bytes;  // in the subtree
  uint32_t priority;
  struct orion_extent *left, *right;
} orion_extent;

/// `extent` must not overlap another; start and bytes are set by the caller and stay unchanged while it is inside.
void orion_extent_insert(orion_extent** root, orion_extent* extent);
void orion_extent_remove(orion_extent** root, orion_extent* extent);
orion_extent* orion_extent_containing(orion_extent* root, uint64_t address);
orion_extent* orion_extent_starting_at(orion_extent* root, uint64_t start);
orion_extent* orion_extent_at_or_above(orion_extent* root, uint64_t address);  // lowest start >= address
orion_extent* orion_extent_fit(orion_extent* root, uint64_t bytes);            // lowest start that has `bytes`

/// Free lists made of plain extents, allocated here. `boundary_bytes` (a power of two, or 0): neighbours on two sides
/// of a multiple of it are never merged.
bool orion_free_list_give(orion_extent** root, uint64_t start, uint64_t bytes, uint64_t boundary_bytes);
/// Lowest fit, or 0 when nothing fits.
uint64_t orion_free_list_take(orion_extent** root, uint64_t bytes);
/// Takes exactly [start, +bytes) out, which must lie inside one free extent. False otherwise.
bool orion_free_list_take_at(orion_extent** root, uint64_t start, uint64_t bytes);

#endif
