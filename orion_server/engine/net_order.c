// The order of numbered frames where several lanes carry them (orion_lanes.h).
#include "net_order.h"

#include <stdlib.h>

bool net_order_count(orion_engine* e, net_order* order) {
  bool any = false;
  for (;;) {
    const uint64_t next = e->bulk_arrived + 1;
    net_stored* slot = &order->window[next % ORION_WINDOW];
    if (atomic_load_explicit(&slot->sequence, memory_order_acquire) != next) break;
    if (e->coherent_count) coherent_arrived(e, slot->offset, e->arena + slot->offset, slot->bytes);
    STAT_ADD(e, stat_in, slot->bytes);
    atomic_store_explicit(&slot->sequence, 0, memory_order_relaxed);
    e->bulk_arrived = next;
    any = true;
  }
  if (any && order->counted) order->counted(e);
  return any;
}

// Client words that name a number follow what has it.
static bool is_due(const orion_engine* e, const orion_frame* head) {
  return head->sequence <= e->bulk_arrived + (head->type != ORION_FRAME_CLIENT_WORDS);
}

static void take(orion_engine* e, const net_order* order, const orion_frame* head, const uint8_t* body) {
  if (head->type == ORION_FRAME_CLIENT_WORDS) {
    net_take_frame(e, head, body, false);
  } else {
    net_take_numbered(e, head, body);
    if (order->counted) order->counted(e);
  }
}

// One whose turn has not come is kept, and what follows it on the lane is taken meanwhile: only operations that name
// its number wait.
void net_order_take(orion_engine* e, net_order* order, const orion_frame* head, const uint8_t* body) {
  if (!order->early_first && is_due(e, head)) {
    take(e, order, head, body);
    return;
  }
  if (head->sequence < order->early_last) {
    net_malformed(e, "bulk out of sequence");
    return;
  }
  held_frame* f = net_held_new(e, head, body);
  if (!f) return;
  order->early_last = head->sequence;
  *(order->early_first ? order->early_end : &order->early_first) = f;
  order->early_end = &f->next;
  e->net->held_bytes += f->bytes;
}

bool net_order_take_due(orion_engine* e, net_order* order) {
  bool moved = net_order_count(e, order);
  while (order->early_first && is_due(e, &order->early_first->head) && !e->end) {
    held_frame* f = order->early_first;
    order->early_first = f->next;
    e->net->held_bytes -= f->bytes;
    take(e, order, &f->head, f->data);
    free(f);
    (void)net_order_count(e, order);
    moved = true;
  }
  return moved;
}

void net_order_free(net_order* order) {
  while (order->early_first) {
    held_frame* next = order->early_first->next;
    free(order->early_first);
    order->early_first = next;
  }
}
