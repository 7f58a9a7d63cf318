// Offered images: bytes that came once, or that the node already had, in sealed memory.
#ifndef ORION_ENGINE_IMAGE_H
#define ORION_ENGINE_IMAGE_H

#include "jit.h"

#define IMAGE_IN_ARENA 0xffffffffu  // an operation's `image` when its bytes stand in the host arena

/// Takes a complete image's mapping (read only, sealed, checked; munmap is the caller's) and frees the index. 0 or a
/// CUresult.
int32_t image_take(orion_engine* e, uint32_t index, void** map, uint64_t* bytes);
void image_drop(orion_engine* e, uint32_t index);
/// module.c: loads `image`, which nobody else can write and which is terminated if it is text, and answers.
void module_open(orion_engine* e, const orion_op* op, uint32_t index, const void* image, uint64_t image_bytes, jit* j,
                 uint64_t log_off);

#endif
