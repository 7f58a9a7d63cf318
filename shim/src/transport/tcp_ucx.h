// Lanes that are UCX endpoints: what tcp_ucx.c (life) and tcp_ucx_frames.c (frames) share.
#ifndef ORION_SHIM_TCP_UCX_H
#define ORION_SHIM_TCP_UCX_H

#include "orion_ucx_link.h"
#include "tcp.h"

enum {
  UCX_SLOTS = 4,  // frames of lane 0 that UCX has taken and not sent yet
  UCX_RECEIVES = 2 * ORION_UCX_IN_FLIGHT,
  UCX_FDS = 64,
};
_Static_assert(TCP_BATCH_BYTES + ORION_OP_MAX_BYTES <= ORION_BULK_BYTES, "a slot holds every frame");

struct ucx_lanes;

// A frame of lane 0 on its way into UCX.
typedef struct ucx_slot {
  struct ucx_lanes* ucx;
  bool busy;
  orion_ucx_head head;
  uint8_t body[ORION_BULK_BYTES];
} ucx_slot;

// A piece of a large range that the worker fetches, or is being sent.
typedef struct ucx_piece {
  struct ucx_lanes* ucx;
  bool busy;
  orion_ucx_head head;
  uint8_t* bounce;  // a copy, where the bytes are not plain arena memory
} ucx_piece;

// A piece that the worker offers.
typedef struct ucx_receive {
  struct ucx_lanes* ucx;
  enum { UCX_FREE, UCX_OFFERED, UCX_RUNNING } state;
  orion_frame frame;
  void* descriptor;
  int in_place;  // index into tcp_state.in_place; -1: into `bounce`
  uint8_t* bounce;
} ucx_receive;

// A frame of lane 0 that came before its turn.
typedef struct ucx_held {
  struct ucx_held* next;
  uint64_t order;
  orion_frame frame;
  uint8_t body[];
} ucx_held;

typedef struct ucx_lanes {
  tcp_state* state;
  tcp_mover* mover;  // of `state`
  orion_ucx_link link;
  uint64_t cookie;
  uint8_t token[32];
  orion_ucx_head greetings[1 + ORION_STRIPES_MAX];
  void* eps[1 + ORION_STRIPES_MAX];
  char carriers[160];  // what UCX has chosen for lane 0
  // Of whoever moves the bytes. `events`: calls of UCX into here that changed something.
  uint64_t events;
  bool has_looked;   // nothing came right behind the last thing sent
  uint32_t greeted;  // bits: lanes that the worker has welcomed
  orion_ucs_status fault;
  uint64_t order_out, order_in;
  ucx_slot* slots[UCX_SLOTS];
  uint32_t slots_busy;
  ucx_piece pieces[ORION_UCX_IN_FLIGHT];
  uint32_t pieces_busy, next_lane;
  ucx_receive receives[UCX_RECEIVES];
  uint32_t receive_count, in_place_count;
  uint64_t window[ORION_WINDOW];
  ucx_held* held;  // by `order`
  size_t held_bytes;
  // Descriptors that a forked child must not keep: its copy would keep the connection open.
  int fds[UCX_FDS];
  uint32_t fd_count;
} ucx_lanes;

static inline ucx_lanes* orion_ucx_of(const tcp_state* state) { return state->lanes_state; }

/// UCX calls this for every message.
orion_ucs_status orion_ucx_take(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const orion_ucp_am_recv_param* param);
/// The first frame: the worker now knows that this process has all welcomes, and closes its other lanes.
void orion_ucx_confirm(ucx_lanes* ucx);
/// Sends what there is, as far as UCX takes it. True when something was.
bool orion_ucx_send_out(ucx_lanes* ucx);
/// Takes what waits inside here: frames whose turn has come, pieces that may be received now.
void orion_ucx_take_due(ucx_lanes* ucx);
/// Whether there is something that orion_ucx_send_out would send.
bool orion_ucx_can_send(const ucx_lanes* ucx);
void orion_ucx_free_frames(ucx_lanes* ucx);

#endif
