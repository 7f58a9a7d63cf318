// Whose memory is on a GPU that has promised more than it has. No clock, no threads, no memory of its own: the arbiter
// tells what is (who wants, who holds a turn, how far a move is), and does what it is told.
//
// Promises are counted, not use: what a seat may charge without asking counts as taken while its memory is on the GPU.
#ifndef ORION_RESIDENCY_H
#define ORION_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

#define RESIDENCY_SEATS_MAX 256
// Memory that has come in stays at least this long, and at least this many times as long as it took to come, before it
// has to go although it is in use: else two tenants that both compute would only move.
#define RESIDENCY_LEAST_NS 1000000000ull
#define RESIDENCY_MOVES_WORTH 4u

enum residency_place { PLACE_NONE, PLACE_HERE, PLACE_LEAVING, PLACE_GONE, PLACE_RETURNING };

typedef struct residency_seat {
  enum residency_place place;  // PLACE_NONE: no such seat
  uint64_t granted_bytes;      // what it may charge; its memory, where it is not here
  uint64_t fixed_bytes;        // of it, what cannot leave, as far as is known
  uint64_t asked_bytes;        // more than granted_bytes, that an allocation waits for; 0: none
  bool wants;                  // work waits for a turn or for memory that is not here
  bool holds;                  // it has a turn
  bool stays;                  // it could not leave: not tried again before `since_ns` is older than the least time
  uint64_t since_ns;           // of the place
  uint64_t move_ns;            // what its last move in took
  uint64_t used_ns;            // when it last held a turn
  uint64_t waits_ns;           // since when it has wanted memory; 0: it does not
} residency_seat;

typedef struct residency_gpu {
  uint64_t capacity_bytes;  // for memory of workers; 0: there is enough, nothing ever moves
  uint32_t count;           // of `seats`, those that may be in use
  residency_seat seats[RESIDENCY_SEATS_MAX];
} residency_gpu;

enum residency_action {
  RESIDENCY_NOTHING,
  RESIDENCY_RETURN,  // the seat's memory comes back: set PLACE_RETURNING
  RESIDENCY_ALLOW,   // the seat is granted what it asks for
  RESIDENCY_LEAVE,   // the seat's memory goes: set PLACE_LEAVING
  RESIDENCY_REFUSE,  // the seat's allocation cannot be granted: it does not fit beside what cannot leave
};
typedef struct residency_step {
  enum residency_action action;
  uint32_t seat;
  uint64_t again_ns;  // with RESIDENCY_NOTHING: when to look again without an event; UINT64_MAX: never
} residency_step;

/// The next thing to do; the caller does it, changes the seat accordingly, and asks again until there is nothing.
residency_step residency_next(residency_gpu* gpu, uint64_t now_ns);
/// Whether the seat may be given a turn: its memory is here, and nobody has waited too long for it to go.
bool residency_may_run(const residency_gpu* gpu, uint32_t seat, uint64_t now_ns);
/// Bytes of the GPU that are promised now.
uint64_t residency_promised(const residency_gpu* gpu);

#endif
