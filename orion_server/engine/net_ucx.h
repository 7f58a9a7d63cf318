// State of UCX's lanes, and what net_ucx.c and net_ucx_direct.c ask of each other. All of it on the engine's own
// thread.
#ifndef ORION_ENGINE_NET_UCX_H
#define ORION_ENGINE_NET_UCX_H

#include "net_order.h"
#include "net_raw.h"
#include "orion_ucx_link.h"

#define DIRECT_HOLD_NS 1000000ull  // an offer waits for its operation, at most
#define UCX_STRANGERS 16u
#define UCX_SENDS 64u
#define UCX_RECEIVES (2u * ORION_UCX_IN_FLIGHT)

// A connection that has not shown the token yet.
typedef struct ucx_stranger {
  void* ep;
  uint64_t until_ns;
} ucx_stranger;

// A frame of lane 0 on its way into UCX.
typedef struct ucx_send {
  orion_engine* engine;
  out_frame* frame;  // NULL: free
  orion_ucx_head head;
} ucx_send;

// A piece of a large copy, sent from where it lies.
typedef struct ucx_piece {
  orion_engine* engine;
  bool busy;
  orion_ucx_head head;
  struct direct_copy* direct;  // it lies in device memory; NULL: in the arena
} ucx_piece;

// A piece that the client offers.
typedef struct ucx_receive {
  orion_engine* engine;
  enum { UCX_FREE, UCX_OFFERED, UCX_RUNNING } state;
  orion_frame frame;
  void* descriptor;
  uint64_t offered_ns;
  struct direct_copy* direct;  // it goes to device memory; NULL: to the arena
} ucx_receive;

// A frame of lane 0 that came before its turn, or that cannot be taken yet.
typedef struct ucx_held {
  struct ucx_held* next;
  uint64_t order;
  held_frame* frame;
} ucx_held;

typedef struct ucx_lanes {
  orion_ucx_link link;
  void* listener;
  uint8_t token[32];
  uint64_t cookie;
  void* raw;  // state of the plain lanes that are offered beside; NULL: no more
  int isolate, tells;
  ucx_stranger strangers[UCX_STRANGERS];
  uint32_t stranger_count, lanes_in, stripe_count;
  void* eps[1 + ORION_STRIPES_MAX];
  orion_ucx_head welcomes[1 + ORION_STRIPES_MAX];
  void* flushes[1 + ORION_STRIPES_MAX];
  bool prepared, all_in, flushing, complete, lost;
  orion_ucs_status fault;
  uint64_t events;
  uint64_t order_out, order_in;
  ucx_held* held;  // by `order`
  size_t held_bytes;
  ucx_send sends[UCX_SENDS];
  uint32_t sends_busy;
  ucx_piece pieces[ORION_UCX_IN_FLIGHT];
  uint32_t pieces_busy, next_lane;
  ucx_receive receives[UCX_RECEIVES];
  uint32_t receive_count;
  net_order order;
  orion_group group;
  bool holds_offers;  // some wait for their operation (net_ucx_direct.c)
} ucx_lanes;

// ---- net_ucx.c
/// Begins to receive the pieces that are offered and whose place is known.
void ucx_start_receives(orion_engine* e);
/// Sends one piece of a large copy as frame `head`; `direct`: from device memory.
void ucx_send_piece(orion_engine* e, const orion_frame* head, const void* body, struct direct_copy* direct);

// ---- net_ucx_direct.c: copies between the network and device memory
/// Decides once what copies do, when the client has come; says it in `words`.
void direct_open(orion_engine* e, const char* carriers, char words[160]);
/// At the end: how much went this way.
void direct_tell(orion_engine* e);
/// Before the context is closed. Nothing is on its way.
void direct_close(orion_engine* e);
/// Sends what may be sent from device memory. True when something was.
bool direct_send(orion_engine* e);
enum direct_place { DIRECT_LATER, DIRECT_ARENA, DIRECT_DEVICE };
/// Where a piece that is offered goes. DEVICE: *where, and receive->direct is set.
enum direct_place direct_place_of(orion_engine* e, ucx_receive* receive, void** where);
/// A piece has come, or has gone.
void direct_received(orion_engine* e, struct direct_copy* copy, const orion_frame* head);
void direct_sent(orion_engine* e, struct direct_copy* copy);
/// How UCX is told of memory that a piece lies in: its type, and its registration where UCX takes one.
int direct_memory_type(const struct direct_copy* copy);
void* direct_registration(const struct direct_copy* copy);

#endif
