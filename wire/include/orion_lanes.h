// What both ends of plain TCP lanes share: how they greet, how bulk is spread over several connections without losing
// its order where order matters, and a link that behaves like a slower network.
//
// Lane 0 carries every kind of frame. Lanes 1.. (stripes) carry large BULK frames only, each received in place by a
// thread of its own. Numbered frames are numbered across all lanes in the order in which they were queued. A stripe's
// frame may be stored as soon as every frame up to `b` has been; all other numbered frames wait for all before them.
#ifndef ORION_LANES_H
#define ORION_LANES_H

#include "orion_wire.h"

#define ORION_STRIPES_MAX 8u
#define ORION_STRIPE_MIN_BYTES (256u << 10)  // smaller ranges travel on lane 0, with the operations
#define ORION_WINDOW 1024u                   // numbers that may be stored ahead of the first that is missing
// Main operations on their way, at most: the client sends more when ORION_WORD_TAKEN says so. Lane 0 can therefore
// always be read, and what travels behind operations (the word of a host function that they wait for) is never stuck.
#define ORION_OPS_CREDIT_BYTES (8u << 20)
#define ORION_LINK_MOST_NS 1000000000ull

// The first frame of a connection is CONTROL, with `a` = lane, `b` = count of stripes, and as body the token, then this
// where the client emulates a network. The worker answers CONTROL with an empty body.
typedef struct orion_link_wish {
  uint64_t round_trip_ns;
  uint64_t bytes_per_second;  // 0: unlimited
} orion_link_wish;

// Where lanes are encrypted, a connection begins with orion_sealed_preamble and everything behind it is records
// (orion_seal.h): the greeting has no token then, to have sealed it proves the same.
// Names in `attach`: "aes256gcm", "chacha20poly1305".
enum orion_cipher { ORION_CIPHER_NONE = 0, ORION_CIPHER_AES256GCM = 1, ORION_CIPHER_CHACHA20POLY1305 = 2 };

// ---------------------------------------------------------------------------------------------- order of stripes

/// Sender. Ranges that are sent side by side; they are disjoint, so the order in which they are stored is of no matter.
typedef struct orion_group {
  uint64_t after;  // every frame up to this one must have been stored before one of the group is
  uint32_t count;
  struct {
    uint64_t first, end;
  } ranges[16];
} orion_group;

/// The range [first, end), whose first piece has number `sequence`, goes to stripes: opens a new group if it must.
static inline void orion_group_join(orion_group* group, uint64_t sequence, uint64_t first, uint64_t end) {
  bool fits = group->count < sizeof group->ranges / sizeof *group->ranges;
  for (uint32_t i = 0; i < group->count && fits; i++)
    fits = end <= group->ranges[i].first || first >= group->ranges[i].end;
  if (!fits) {
    group->after = sequence - 1;
    group->count = 0;
  }
  group->ranges[group->count].first = first;
  group->ranges[group->count++].end = end;
}

/// Frame `sequence` has gone to lane 0: nothing behind it is stored before it is.
static inline void orion_group_close(orion_group* group, uint64_t sequence) {
  group->after = sequence;
  group->count = 0;
}

/// Whether a stripe's header may be believed. The token has been shown, and still nothing is.
static inline bool orion_stripe_frame_ok(const orion_frame* head, uint64_t arena_bytes) {
  return head->type == ORION_FRAME_BULK && head->bytes != 0 && head->bytes <= ORION_BULK_BYTES &&
         head->a <= arena_bytes && head->bytes <= arena_bytes - head->a && head->b < head->sequence;
}

// ---------------------------------------------------------------------------------------------- emulated network

/// One direction. All lanes of a session share it, so they share its bandwidth.
typedef struct orion_link {
  uint64_t delay_ns;  // one way
  uint64_t bytes_per_second;
  _Atomic uint64_t free_ns;  // when the wire has taken all that was given to it
} orion_link;

static inline bool orion_link_on(const orion_link* link) { return link->delay_ns != 0 || link->bytes_per_second != 0; }

static inline void orion_link_set(orion_link* link, const orion_link_wish* wish) {
  const uint64_t most = 2 * ORION_LINK_MOST_NS;
  link->delay_ns = (wish->round_trip_ns < most ? wish->round_trip_ns : most) / 2;
  link->bytes_per_second = wish->bytes_per_second;
}

/// When `bytes` that are given to the link now are at its other end.
static inline uint64_t orion_link_due(orion_link* link, uint64_t now_ns, uint64_t bytes) {
  if (link->bytes_per_second == 0) return now_ns + link->delay_ns;
  const uint64_t transfer_ns = (uint64_t)((double)bytes * 1e9 / (double)link->bytes_per_second);
  uint64_t free_ns = atomic_load_explicit(&link->free_ns, memory_order_relaxed);
  uint64_t end_ns;
  do {
    end_ns = (free_ns > now_ns ? free_ns : now_ns) + transfer_ns;
  } while (!atomic_compare_exchange_weak_explicit(&link->free_ns, &free_ns, end_ns, memory_order_relaxed,
                                                  memory_order_relaxed));
  return end_ns + link->delay_ns;
}

#endif
