// Arrays as the client knows them: what they are made of. Their memory is the worker's.
#ifndef ORION_SHIM_ARRAY_H
#define ORION_SHIM_ARRAY_H

#include "state.h"

#define ORION_ARRAY_VIEWS 32u

typedef struct orion_array {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  uint64_t handle;
  CUDA_ARRAY3D_DESCRIPTOR descriptor;
  bool is_view;                       // a level or a plane: ends with its source, not by itself
  uint32_t level_count;               // of a mipmapped array
  uint64_t views[ORION_ARRAY_VIEWS];  // handles of levels or planes that were asked for
  pthread_mutex_t views_mutex;        // made with the entry's first use
  bool mutex_made;
} orion_array;

CUresult orion_array_of(CUarray handle, orion_array** array);
CUresult orion_mipmap_of(CUmipmappedArray handle, orion_array** mipmap);

/// Bytes of one block of `*side` by `*side` elements (side 1 but for compressed formats); 0 for a format unknown here.
uint32_t orion_format_bytes(CUarray_format format, unsigned int channels, uint32_t* side);

/// copy_array.c: a copy with an array at one end or both. The two reserved pointers of `copy` are not looked at.
CUresult orion_copy_with_array(const CUDA_MEMCPY3D* copy, CUstream stream, bool wait);

#endif
