// State of the lanes that are plain TCP sockets, and the seam between lane 0 (net_raw.c) and the stripes
// (net_stripes.c).
#ifndef ORION_ENGINE_NET_RAW_H
#define ORION_ENGINE_NET_RAW_H

#include <sys/socket.h>

#include "net_order.h"
#include "orion_stripe_io.h"

#define RAW_STRANGERS 16u
#define RAW_IN_BYTES ((size_t)2 * (ORION_FRAME_MAX_BYTES + sizeof(orion_frame)))
#define RAW_PIECES 32u  // of copies that wait for a stripe

// A connection that has not shown the token yet.
typedef struct stranger {
  int fd;
  uint64_t until_ns;
  uint32_t bytes;
  uint8_t data[sizeof(orion_sealed_preamble) + ORION_RECORD_EXTRA + sizeof(orion_frame) + TOKEN_MAX +
               sizeof(orion_link_wish)];
} stranger;

// A part of a copy out of the device, sent from where it lies.
typedef struct raw_piece {
  const uint8_t* from;
  uint64_t offset, bytes, sequence, after, due_ns;
} raw_piece;

struct raw_lanes;

// `lanes`: what its threads use. While UCX is offered beside (net_ucx.c) the engine's own pointer is UCX's.
typedef struct raw_stripe {
  orion_engine* engine;
  struct raw_lanes* lanes;
  int fd;
  bool is_open;
  pthread_t receiver, sender;
  orion_stripe_seal *in, *out;  // NULL: not encrypted
} raw_stripe;

enum raw_fault { RAW_LOST = 1, RAW_MALFORMED = 2, RAW_FORGED = 3 };

// Lane 0 where it is encrypted: records as they come, and records for the socket.
#define RAW_RECORDS 4u
typedef struct raw_sealed {
  orion_seal in_seal, out_seal;
  size_t in_first, in_end, out_first, out_end;
  uint8_t in[RAW_RECORDS * ORION_RECORD_MOST], out[RAW_RECORDS * ORION_RECORD_MOST];
} raw_sealed;

typedef struct raw_lanes {
  int listener, ops;
  stranger strangers[RAW_STRANGERS];
  uint32_t stranger_count, lanes_in;
  bool complete;           // all lanes have come
  uint32_t lanes_greeted;  // bits: a welcome has been sent, so the lane's key has been used
  raw_sealed* sealed;      // NULL: not encrypted
  // lane 0
  uint8_t* in;
  size_t in_first, in_end;
  size_t first_sent;  // bytes of the first frame that have gone
  bool at_end;        // the client has closed it
  bool blocked;       // the socket takes no more at present
  orion_link link;
  orion_group group;
  _Atomic bool sleeping;
  // stripes
  uint32_t stripe_count;
  raw_stripe stripes[ORION_STRIPES_MAX];
  _Atomic int fault;  // enum raw_fault, by a stripe
  _Atomic bool stop;
  _Atomic uint64_t arrived;  // bulk_arrived, for the stripes
  _Atomic uint32_t arrived_tick, arrived_waiters;
  net_order order;
  pthread_mutex_t lock;
  pthread_cond_t has_piece;
  raw_piece pieces[RAW_PIECES];
  uint32_t piece_first, piece_count;
  bool wants_room;
} raw_lanes;

raw_lanes* net_raw_of(const orion_engine* e);

// ---- net_stripes.c; but for the stripes' own threads all is called by the engine's
bool net_stripes_init(raw_lanes* r);
/// Starts the two threads of stripe `index`; the seals are NULL or as the greeting has left them. False: there are no
/// threads to be had; the descriptor stays the caller's.
bool net_stripe_start(orion_engine* e, uint32_t index, int fd, const orion_seal* in, const orion_seal* out);
/// bulk_arrived has grown.
void net_stripes_publish(orion_engine* e);
/// Whether there is something that net_order_count would count, or a fault.
bool net_stripes_news(orion_engine* e);
bool net_stripes_room(raw_lanes* r);
void net_stripes_send(raw_lanes* r, raw_piece piece);
void net_stripes_close(raw_lanes* r);

#endif
