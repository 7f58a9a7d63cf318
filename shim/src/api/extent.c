#include "extent.h"

#include <stdlib.h>

static void update(orion_extent* node) {
  node->largest_bytes = node->bytes;
  if (node->left != NULL && node->left->largest_bytes > node->largest_bytes)
    node->largest_bytes = node->left->largest_bytes;
  if (node->right != NULL && node->right->largest_bytes > node->largest_bytes) {
    node->largest_bytes = node->right->largest_bytes;
  }
}

/// Splits by start: *low gets starts below `start`, *high the rest.
static void split(orion_extent* node, uint64_t start, orion_extent** low, orion_extent** high) {
  if (node == NULL) {
    *low = *high = NULL;
  } else if (node->start < start) {
    split(node->right, start, &node->right, high);
    *low = node;
    update(node);
  } else {
    split(node->left, start, low, &node->left);
    *high = node;
    update(node);
  }
}

static orion_extent* merge(orion_extent* low, orion_extent* high) {
  if (low == NULL) return high;
  if (high == NULL) return low;
  if (low->priority > high->priority) {
    low->right = merge(low->right, high);
    update(low);
    return low;
  }
  high->left = merge(low, high->left);
  update(high);
  return high;
}

void orion_extent_insert(orion_extent** root, orion_extent* extent) {
  // A mixed address is random enough to balance a treap, and needs no state.
  uint64_t mixed = (extent->start >> 9) * 0x9e3779b97f4a7c15ull;
  mixed ^= mixed >> 29;
  extent->priority = (uint32_t)((mixed * 0xbf58476d1ce4e5b9ull) >> 32);
  extent->left = extent->right = NULL;
  update(extent);
  orion_extent *low, *high;
  split(*root, extent->start, &low, &high);
  *root = merge(merge(low, extent), high);
}

void orion_extent_remove(orion_extent** root, orion_extent* extent) {
  orion_extent *low, *rest, *same, *high;
  split(*root, extent->start, &low, &rest);
  split(rest, extent->start + 1, &same, &high);
  *root = merge(low, high);
}

orion_extent* orion_extent_containing(orion_extent* node, uint64_t address) {
  while (node != NULL) {
    if (address < node->start) {
      node = node->left;
    } else if (address - node->start < node->bytes) {
      return node;
    } else {
      node = node->right;
    }
  }
  return NULL;
}

orion_extent* orion_extent_starting_at(orion_extent* node, uint64_t start) {
  while (node != NULL && node->start != start) node = start < node->start ? node->left : node->right;
  return node;
}

orion_extent* orion_extent_at_or_above(orion_extent* node, uint64_t address) {
  orion_extent* best = NULL;
  while (node != NULL) {
    if (node->start >= address) {
      best = node;
      node = node->left;
    } else {
      node = node->right;
    }
  }
  return best;
}

orion_extent* orion_extent_fit(orion_extent* node, uint64_t bytes) {
  if (node == NULL || node->largest_bytes < bytes) return NULL;
  for (;;) {
    if (node->left != NULL && node->left->largest_bytes >= bytes) {
      node = node->left;
    } else if (node->bytes >= bytes) {
      return node;
    } else {
      node = node->right;
    }
  }
}

static bool mergeable(uint64_t boundary, uint64_t boundary_bytes) {
  return boundary_bytes == 0 || (boundary & (boundary_bytes - 1)) != 0;
}

bool orion_free_list_give(orion_extent** root, uint64_t start, uint64_t bytes, uint64_t boundary_bytes) {
  orion_extent* node = NULL;
  orion_extent* before = start == 0 ? NULL : orion_extent_containing(*root, start - 1);
  if (before != NULL && mergeable(start, boundary_bytes)) {
    orion_extent_remove(root, before);
    start = before->start;
    bytes += before->bytes;
    node = before;
  }
  orion_extent* after = orion_extent_starting_at(*root, start + bytes);
  if (after != NULL && mergeable(after->start, boundary_bytes)) {
    orion_extent_remove(root, after);
    bytes += after->bytes;
    if (node == NULL) {
      node = after;
    } else {
      free(after);
    }
  }
  if (node == NULL) node = malloc(sizeof *node);
  if (node == NULL) return false;
  node->start = start;
  node->bytes = bytes;
  orion_extent_insert(root, node);
  return true;
}

static void take_from(orion_extent** root, orion_extent* node, uint64_t start, uint64_t bytes) {
  const uint64_t end = node->start + node->bytes;
  orion_extent_remove(root, node);
  const uint64_t before_bytes = start - node->start;
  const uint64_t after_bytes = end - (start + bytes);
  if (after_bytes != 0) {
    orion_extent* after = before_bytes == 0 ? node : malloc(sizeof *after);
    if (after != NULL) {  // without memory for the record the rest is lost, never given out twice
      after->start = start + bytes;
      after->bytes = after_bytes;
      orion_extent_insert(root, after);
    }
  }
  if (before_bytes != 0) {
    node->bytes = before_bytes;
    orion_extent_insert(root, node);
  } else if (after_bytes == 0) {
    free(node);
  }
}

uint64_t orion_free_list_take(orion_extent** root, uint64_t bytes) {
  orion_extent* node = orion_extent_fit(*root, bytes);
  if (node == NULL) return 0;
  const uint64_t start = node->start;
  take_from(root, node, start, bytes);
  return start;
}

bool orion_free_list_take_at(orion_extent** root, uint64_t start, uint64_t bytes) {
  orion_extent* node = orion_extent_containing(*root, start);
  if (node == NULL || start - node->start + bytes > node->bytes) return false;
  take_from(root, node, start, bytes);
  return true;
}
