// The socket of packets to orion-server: questions about images and about shared memory, and their answers.
#ifndef ORION_ENGINE_DESK_H
#define ORION_ENGINE_DESK_H

#include "internal.h"

#define DESK_FIRST_SHARE_KIND 16u

/// One packet, either way (orion_server/image_cache.py and shares.py), with at most one descriptor.
typedef struct desk_packet {
  uint32_t kind, tag;
  uint64_t bytes;
  uint8_t hash[32], extra[32];
} desk_packet;
_Static_assert(sizeof(desk_packet) == 80, "desk_packet");

/// `fd` (-1: none) stays the caller's. False: not sent.
bool desk_send(const orion_engine* e, const desk_packet* p, int fd);
/// The same, for what must not be lost: waits a moment for room in the socket.
bool desk_send_surely(const orion_engine* e, const desk_packet* p);
/// Hands out the answers that have come. One that nobody awaits any more is dropped.
void desk_receive(orion_engine* e);

/// Who awaits the answer takes it. Returns the descriptor that nobody has taken, or -1.
int image_answer(orion_engine* e, const desk_packet* p, int fd);
int share_answer(orion_engine* e, const desk_packet* p, int fd);

#endif
