// Lanes that are plain TCP sockets: what tcp_raw.c (lane 0) and tcp_stripes.c (large ranges) share.
#ifndef ORION_SHIM_TCP_RAW_H
#define ORION_SHIM_TCP_RAW_H

#include "orion_stripe_io.h"
#include "tcp.h"

enum {
  RAW_FRAME_BYTES = ORION_FRAME_MAX_BYTES + (int)sizeof(orion_frame),
  RAW_IN_BYTES = 2 * RAW_FRAME_BYTES,
  RAW_FILL_BYTES = 1 << 20,  // bulk that is put before the operations of one round, at most
  RAW_OUT_BYTES = RAW_FILL_BYTES + ORION_BULK_BYTES + 2 * (TCP_BATCH_BYTES + (int)ORION_OP_MAX_BYTES) +
      (int)(ORION_CLIENT_WORDS * sizeof(orion_word_update)) + 128 * (int)sizeof(orion_frame),
};

// What lane 0 sends later, on an emulated network.
typedef struct raw_delayed {
  struct raw_delayed* next;
  uint64_t due_ns;
  size_t bytes, sent;
  uint8_t data[];
} raw_delayed;

typedef struct raw_stripe {
  tcp_state* state;
  uint32_t index;
  int fd;
  bool has_receiver, has_sender;
  pthread_t receiver, sender;
  orion_stripe_seal *in, *out;  // NULL: not encrypted
} raw_stripe;

// Lane 0 where it is encrypted: records as they come, and records for the socket. Of whoever moves the bytes.
enum { RAW_RECORDS = 4 };
typedef struct raw_sealed {
  orion_seal in_seal, out_seal;
  size_t in_first, in_end, out_first, out_end;
  uint8_t in[RAW_RECORDS * ORION_RECORD_MOST], out[RAW_RECORDS * ORION_RECORD_MOST];
} raw_sealed;

typedef struct raw_lanes {
  tcp_state* state;
  tcp_mover* mover;  // of `state`
  int ops;
  // Of whoever moves the bytes.
  uint8_t *out, *in;
  size_t out_first, out_end, in_first, in_end;
  raw_sealed* sealed;  // NULL: not encrypted
  raw_delayed *delayed_first, **delayed_last;
  size_t delayed_bytes;
  orion_link link;
  // Numbers: `held_for` is what the first frame of lane 0 waits for, 0: nothing.
  _Atomic uint64_t held_for;
  pthread_mutex_t arrival_lock;
  uint64_t window[ORION_WINDOW];  // under arrival_lock: numbers that stripes have stored
  _Atomic uint32_t arrived_tick, arrived_waiters;
  _Atomic uint32_t stripes_ended;  // closed by the worker in good order
  raw_stripe stripes[ORION_STRIPES_MAX];
} raw_lanes;

static inline raw_lanes* orion_raw_of(const tcp_state* state) { return state->lanes_state; }

/// Frame `sequence` has been stored: counts it, and what was stored ahead of it. Any thread.
void orion_raw_stored(raw_lanes* raw, uint64_t sequence);
/// Starts the threads of all stripes, whose descriptors are connected. NULL, or why not.
const char* orion_stripes_start(raw_lanes* raw);
void orion_stripes_close(raw_lanes* raw);
/// The seal of one direction of a stripe, for its threads. NULL without memory.
orion_stripe_seal* orion_stripe_seal_new(const orion_seal* seal);

#endif
