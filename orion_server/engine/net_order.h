// Numbered frames of lanes that overtake each other: what has been stored ahead of its turn, and what waits for its
// own.
#ifndef ORION_ENGINE_NET_ORDER_H
#define ORION_ENGINE_NET_ORDER_H

#include "net.h"
#include "orion_lanes.h"

// What a lane of large frames has stored, until the engine has counted it.
typedef struct net_stored {
  _Atomic uint64_t sequence;  // 0: nothing
  uint64_t offset, bytes;
} net_stored;

typedef struct net_order {
  net_stored window[ORION_WINDOW];       // by number; stored by whoever receives, counted by the engine's thread
  held_frame *early_first, **early_end;  // of lane 0
  uint64_t early_last;
  void (*counted)(orion_engine* e);  // bulk_arrived has grown; NULL: nobody is to know
} net_order;

/// Counts what has been stored, in order. True when there was something.
bool net_order_count(orion_engine* e, net_order* order);
/// A numbered frame of lane 0, or client words that follow one.
void net_order_take(orion_engine* e, net_order* order, const orion_frame* head, const uint8_t* body);
/// What has waited and whose turn it is. True when there was something.
bool net_order_take_due(orion_engine* e, net_order* order);
void net_order_free(net_order* order);
/// Whether a frame of lane 0 has a place in this order.
static inline bool net_order_is_numbered(const orion_frame* head) {
  return head->type == ORION_FRAME_BULK || head->type == ORION_FRAME_RUNS ||
         (head->type == ORION_FRAME_CLIENT_WORDS && head->sequence != 0);
}

#endif
