// The network side: net.c (what is sent and in which order, what arrives), net_raw.c and net_stripes.c (lanes that are
// plain TCP sockets), net_ucx.c (UCX's), net_zmq.c (ZeroMQ's), net_order.c (what lanes that overtake each other share).
// The lanes only move frames.
#ifndef ORION_ENGINE_NET_H
#define ORION_ENGINE_NET_H

#include <netinet/in.h>

#include "internal.h"
#include "orion_seal.h"

#define TOKEN_MAX 64u
#define NET_FORGED ": changed, repeated, reordered or left out on the way"
#define RELAY_MAX 256u
#define QUEUE_MAX_BYTES (64u << 20)  // a client that does not read its replies
#define HELD_MAX_BYTES \
  (16u << 20)  // frames read ahead of a full ring or of missing bulk, so that what follows is not stuck

// Operations, or a numbered frame, that could not be taken whole when they came.
typedef struct held_frame {
  struct held_frame* next;
  size_t at, bytes;
  orion_frame head;
  _Alignas(8) uint8_t data[];
} held_frame;

// A frame for lane 0 that has not been sent.
typedef struct out_frame {
  struct out_frame* next;
  uint64_t due_ns;  // emulated networks: not before
  size_t bytes;
  uint8_t data[];
} out_frame;

enum out_kind {
  OUT_WHOLE,    // [offset, +bytes)
  OUT_ROWS,     // `rows`; `sent` counts bytes without the gaps
  OUT_CHANGED,  // what the client does not know of [offset, +bytes)
};

typedef struct out_copy {
  struct out_copy* next;
  enum out_kind kind;
  net_rows rows;
  uint64_t offset, bytes, sent;
  uint64_t value;
  uint32_t track;  // 0: the bytes are there already
} out_copy;

typedef struct copy_list {
  out_copy *first, **last;
} copy_list;

typedef struct marker {
  uint32_t word;
  uint32_t context;
  uint64_t value;
  uint64_t seen;  // the word, when take_relay looked
} marker;

/// What moves frames. Everything is called by the engine's thread.
typedef struct net_lanes {
  /// Receives what is there and hands it to net_take_frame. True when something was.
  bool (*receive)(orion_engine* e);
  /// Called when nothing moved: looks whether the client is gone.
  void (*check)(orion_engine* e);
  /// Sends frames of `first_frame` as far as the client takes them.
  void (*flush)(orion_engine* e);
  /// Whether a piece of a copy would be taken. `whole`: it is a part of OUT_WHOLE.
  bool (*has_room)(orion_engine* e, const out_copy* copy);
  /// Sends a numbered frame (bulk_sent + 1) and counts it. False: no room, or the session has ended.
  bool (*send_numbered)(orion_engine* e, const out_copy* copy, uint16_t type, uint64_t a, const uint8_t* body,
                        uint64_t bytes);
  void (*wait)(orion_engine* e, uint64_t timeout_ns);
  void (*close)(orion_engine* e);
} net_lanes;

struct orion_net {
  const net_lanes* lanes;
  void* state;  // of the lanes
  int wake_fd;
  uint8_t token[TOKEN_MAX];
  uint32_t token_bytes;
  enum orion_cipher cipher;  // of plain TCP lanes
  char address[INET_ADDRSTRLEN];
  // Main operations that the ring has no room for yet. Express operations and client words behind them are taken
  // meanwhile: they are what may make room.
  held_frame *held_first, **held_last;
  size_t held_bytes;
  uint64_t taken_bytes, told_bytes;  // of main operations: gone into the ring, and what the client knows of it
  held_frame* express;               // an express frame that did not fit; nothing is received behind it
  // towards the client
  out_frame *first_frame, **last_frame;
  size_t queued_bytes;
  copy_list urgent;  // written by the CPU, awaited by a reply: sent before all others, so that their number is known
  copy_list copies;
  bool is_urgent;  // what is sent at this moment must go to lane 0, whatever waits for it
  uint64_t bulk_sent;
  uint8_t* pending;  // a frame of runs that the lane has not taken yet
  uint64_t pending_bytes;
  marker* markers;
  uint32_t marker_count, marker_capacity;
  uint32_t changed[ORION_WORDS];  // words that the CPU wrote
  bool is_changed[ORION_WORDS];
  uint32_t changed_count;
  uint32_t changed_errors;             // of them, errors of threads and contexts
  orion_word_update relay[RELAY_MAX];  // snapshot that waits for the copies before it
  uint32_t relay_count;
  _Alignas(8) uint8_t op[ORION_OP_MAX_BYTES];
};

extern const net_lanes net_raw_lanes, net_zmq_lanes, net_ucx_lanes;
/// Open the lanes of n->state; false with errno or zmq_errno set.
bool net_raw_open(orion_engine* e, char* endpoint);
bool net_zmq_open(orion_engine* e, char* ops_endpoint, char* bulk_endpoint);

/// A frame of the peer that showed the token. `bulk_lane`: it came on ZeroMQ's lane 1.
void net_take_frame(orion_engine* e, const orion_frame* head, const uint8_t* body, bool bulk_lane);
/// A numbered frame whose turn it is.
void net_take_numbered(orion_engine* e, const orion_frame* head, const uint8_t* body);
/// Whether the lane that carries operations may be read.
static inline bool net_takes_operations(const struct orion_net* n) {
  return !n->express && n->held_bytes <= HELD_MAX_BYTES;
}
void net_malformed(orion_engine* e, const char* what);
/// Queues a frame for lane 0.
void net_queue_frame(orion_engine* e, uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body,
                     uint32_t bytes);
/// Frees the first frame.
void net_frame_sent(struct orion_net* n);
/// The first frame, which is the caller's to free from now on.
out_frame* net_frame_taken(struct orion_net* n);
/// A copy of a frame; NULL after the session has ended without memory.
held_frame* net_held_new(orion_engine* e, const orion_frame* head, const uint8_t* body);
bool net_token_matches(const struct orion_net* n, const uint8_t* body, uint32_t bytes);
void net_free_copies(out_copy* c);
#endif
