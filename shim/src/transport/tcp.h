// The network transport: tcp.c (what all kinds of lanes share), tcp_mover.c (which thread moves the bytes), tcp_raw.c
// and tcp_stripes.c (plain TCP sockets), tcp_zmq.c (ZeroMQ's), tcp_ucx.c and tcp_ucx_frames.c (UCX's: RDMA),
// tcp_frames.c (what arrives), tcp_bulk.c (which arena bytes are sent), tcp_coherent.c and tcp_adopt.c (memory that
// kernels use, memory of the program).
#ifndef ORION_SHIM_TCP_H
#define ORION_SHIM_TCP_H

#include <netinet/in.h>
#include <pthread.h>

#include "../session/config.h"
#include "orion_lanes.h"
#include "orion_seal.h"
#include "tcp_mover.h"
#include "transport.h"

enum {
  TCP_BATCH_BYTES = 128 * 1024,  // operations gathered into one frame, at most
  TCP_BULK_QUEUE = 4096,         // ranges that wait to be sent
  TCP_CLOSE_LIMIT_MS = 500,
};

// One frame of runs that waits to be sent.
typedef struct tcp_runs {
  struct tcp_runs* next;
  uint32_t bytes;
  _Alignas(8) uint8_t data[];
} tcp_runs;

// Bytes of the arena; or frames of runs; or, when both are missing, the client word `offset`, told behind the bytes
// that were queued before it.
typedef struct tcp_range {
  uint64_t offset, bytes;
  tcp_runs* runs;
  bool striped;  // its pieces are taken by the stripes
  bool begun;    // some have been
} tcp_range;

// Memory that kernels use, and what the worker knows of it.
typedef struct tcp_coherent {
  uint64_t first, end;
  uint8_t *memory, *known;
  uint64_t sequence;  // of the last frame that carries a part of it
} tcp_coherent;

// Arena bytes [first, end), which are the program's own at `memory`.
typedef struct tcp_adopted {
  uint64_t first, end;
  uint8_t* memory;
} tcp_adopted;

// A host function that has not returned. `serial` counts them in the order of their submission.
typedef struct tcp_function {
  uint64_t serial, generation;
  uint32_t callback, word;  // `word`: of its stream
} tcp_function;

// Page-locked bytes that an operation submitted behind function `serial` reads. `callback` and `generation` name the
// function of the operation's own stream that it stands behind; callback 0: none.
typedef struct tcp_late_range {
  uint64_t first, end;
  uint64_t serial, generation;
  uint32_t callback;
} tcp_late_range;

// [first, end), of which the first `width` bytes of every `pitch` are written.
typedef struct tcp_pull {
  uint64_t first, end, value;
  uint64_t width, pitch;
  uint32_t word;
} tcp_pull;

// A frame under construction or waiting for the socket. An operation is popped straight into it.
typedef struct tcp_batch {
  orion_frame header;
  uint32_t bytes;  // of the body
  _Alignas(8) uint8_t body[TCP_BATCH_BYTES + ORION_OP_MAX_BYTES];
} tcp_batch;

// What carries the frames.
struct tcp_state;
typedef struct tcp_lanes {
  /// NULL, or why not; `close` is called in either case. Called with the memory there and no thread running.
  const char* (*open)(struct tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                      uint64_t deadline_ns);
  /// The I/O thread: runs until `stop`, then sends what is left for a bounded time.
  void (*run)(struct tcp_state* state);
  /// Ends all connections and threads but the I/O thread, which has ended or never ran.
  void (*close)(struct tcp_state* state);
  /// In the child after fork.
  void (*after_fork)(struct tcp_state* state);
  /// False when the network has given nothing back for some seconds. NULL: the lanes find that out themselves.
  bool (*is_reachable)(const struct tcp_state* state);
} tcp_lanes;

typedef struct tcp_state {
  orion_session* session;
  const tcp_lanes* lanes;
  void* lanes_state;
  orion_link_wish link_wish;
  enum orion_cipher cipher;  // of plain TCP lanes
  char ucx_devices[64];      // UCX alone: the devices that it may use, as it names them; empty: all
  bool ucx_registers;        // UCX alone: staging is registered with the RDMA device
  int wake_fd;
  pthread_t thread;
  bool has_thread;
  _Atomic bool asked_to_stop, stop;
  _Atomic uint32_t stopped;  // futex
  // Bulk to send and pulls to be expected, under `lock`.
  pthread_mutex_t lock;
  tcp_range queue[TCP_BULK_QUEUE];
  uint32_t queue_first, queue_count;
  _Atomic uint32_t queue_space;  // futex
  _Atomic bool has_bulk;         // the first range is the I/O thread's to send
  uint32_t stripe_count;         // connections that take the pieces of large ranges; 0: the I/O thread sends all
  bool mover_stripes;            // who moves lane 0 begins the pieces of the others too (UCX): has_bulk is any range
  pthread_cond_t has_range;      // the first range is the stripes'
  uint32_t stripes_sending;      // pieces that stripes have taken and not sent yet
  _Atomic bool stripes_stop;     // later than `stop`: what has been queued still goes
  orion_group group;
  // What stripes are receiving in place at this moment: no copy of it may be taken meanwhile.
  struct {
    uint64_t first, end;
  } in_place[ORION_STRIPES_MAX];
  pthread_cond_t in_place_ended;
  uint64_t sequence_queued;  // number of the last piece queued
  uint64_t sequence_sent;    // number of the last piece taken off the queue
  tcp_pull* pulls;
  uint32_t pull_count, pull_capacity;
  // Host functions and what they may still write, under `lock` too.
  tcp_function* functions;
  uint32_t function_count, function_capacity;
  uint64_t functions_begun;
  tcp_late_range* late;
  uint32_t late_count, late_capacity;
  // Coherent ranges, under `lock` too; the count alone is read without it.
  tcp_coherent* coherent;
  _Atomic uint32_t coherent_count;
  uint32_t coherent_capacity;
  // Registered memory of the program, under `lock` too; the count alone is read without it.
  tcp_adopted* adopted;
  _Atomic uint32_t adopted_count;
  uint32_t adopted_capacity;
  _Atomic bool wants_space;  // somebody waits for half of the queue
  // Client words to send.
  _Atomic uint64_t client_words_dirty[ORION_CLIENT_WORDS / 64];
  _Atomic bool has_client_words;
  tcp_mover mover;  // of lanes whose bytes any thread may move
  // Owned by the thread that moves the bytes.
  uint64_t main_position, express_position;
  tcp_batch main_batch, express_batch;
  uint64_t credit_bytes;               // of main operations on their way; 0: the lane itself bounds them
  uint64_t main_sent_bytes;            // of operations
  _Atomic uint64_t sequence_received;  // all numbered frames up to this one have been stored
} tcp_state;

extern const tcp_lanes orion_tcp_raw_lanes, orion_tcp_zmq_lanes, orion_tcp_ucx_lanes;

// tcp.c
/// Fills the batches, if both are empty, with what is in the rings. False: they are empty.
bool orion_tcp_gather(tcp_state* state);
/// Whether there are operations that may be sent.
bool orion_tcp_has_operations(const tcp_state* state);
/// Bulk or client words for the thread that moves the bytes.
bool orion_tcp_has_bulk_work(const tcp_state* state);
/// Takes the next dirty client words: at most 64, from *group on, which is moved on. 0: there are none.
uint32_t orion_tcp_take_client_words(tcp_state* state, uint32_t* group, orion_word_update updates[64]);
/// Puts them back: they could not be sent.
void orion_tcp_return_client_words(tcp_state* state, const orion_word_update* updates, uint32_t count);
void orion_tcp_connection_lost(tcp_state* state);
void orion_tcp_connection_lost_since(tcp_state* state, const char* why);
void orion_tcp_lose_malformed(tcp_state* state, const char* lane);
/// The lane brought bytes that the worker did not seal.
void orion_tcp_lose_forged(tcp_state* state, const char* lane);
/// The address that an endpoint of the worker names; one that names no host is on the host that we attached to.
void orion_tcp_resolve(const tcp_state* state, const char* scheme, const char* endpoint, char out[320]);
/// The same as an IPv4 address. NULL, or why there is none.
const char* orion_tcp_address(const tcp_state* state, const char* scheme, const char* endpoint,
                              struct sockaddr_in* address);

enum tcp_frame_result { TCP_FRAME_OK, TCP_FRAME_HOLD, TCP_FRAME_BAD };
/// One message of lane 0. HOLD: the bulk that must be stored before it has not come; nothing after it may be applied.
enum tcp_frame_result orion_tcp_take_ops_frame(tcp_state* state, const void* data, size_t bytes);
/// The same where header and body are apart, and header->bytes is the size of the body.
enum tcp_frame_result orion_tcp_take_ops(tcp_state* state, const orion_frame* header, const uint8_t* body);
/// One numbered frame whose turn it is. The caller counts it (sequence_received).
enum tcp_frame_result orion_tcp_take_bulk_frame(tcp_state* state, const void* data, size_t bytes);
enum tcp_frame_result orion_tcp_take_bulk(tcp_state* state, const orion_frame* header, const uint8_t* body);

uint64_t orion_tcp_push_host(orion_session* session, uint64_t offset, uint64_t bytes);
void orion_tcp_note_rows(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value);
void orion_tcp_drop_finished_pulls(tcp_state* state);
/// Cuts the part that is nobody's pull (pulls that end with `own_word` apart) off the front of [*first, end): returns
/// its end, with *first moved to its start. *first == end when nothing is left.
uint64_t orion_tcp_next_gap(const tcp_state* state, uint64_t* first, uint64_t end, uint32_t own_word);
/// Under the lock: queues what is nobody's pull of [first, end). The number of its last piece, 0 when there is none.
uint64_t orion_tcp_push_range(tcp_state* state, uint64_t first, uint64_t end, uint32_t own_word);
uint64_t orion_tcp_push_pinned(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                               uint64_t generation);
void orion_tcp_begin_host_function(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word);
/// A host function has returned: queues what it may have written and, behind that, its client word. False when there is
/// nothing, so that the word may go at once.
bool orion_tcp_end_host_function(orion_session* session, uint32_t callback, uint64_t generation);
// tcp_coherent.c
bool orion_tcp_coherent_begin(orion_session* session, uint64_t offset, uint64_t bytes, bool unsent);
void orion_tcp_coherent_end(orion_session* session, uint64_t offset, uint64_t bytes);
uint64_t orion_tcp_coherent_push(orion_session* session, uint64_t offset, uint64_t bytes);
/// Queues what the program has changed in all coherent ranges. False when there is nothing.
bool orion_tcp_coherent_push_all(tcp_state* state);
bool orion_tcp_coherent_covers(tcp_state* state, uint64_t offset, uint64_t bytes);
/// Stores what the worker has sent, while there are coherent or adopted ranges.
void orion_tcp_store(tcp_state* state, uint64_t offset, const uint8_t* from, uint64_t bytes);
// tcp_adopt.c
const char* orion_tcp_adoptable(orion_session* session, uint64_t address, uint64_t bytes);
const char* orion_tcp_adopt(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
bool orion_tcp_adopt_end(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
const char* orion_tcp_place(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
void orion_tcp_unplace(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
/// Under the lock: where the bytes of an arena range are which is adopted as a whole or not at all.
uint8_t* orion_tcp_memory(const tcp_state* state, uint64_t offset);
/// Under the lock: stores into the arena.
void orion_tcp_put(tcp_state* state, uint64_t offset, const uint8_t* from, uint64_t bytes);
/// Reads from the arena. Takes the lock where it must.
void orion_tcp_load(tcp_state* state, uint64_t offset, uint8_t* to, uint64_t bytes);
/// Under the lock: whether none of the arena bytes [first, end) is adopted or coherent.
bool orion_tcp_is_plain(const tcp_state* state, uint64_t first, uint64_t end);
/// Under the lock, which it may release: waits until nothing of [first, end) is being received in place.
void orion_tcp_await_in_place(tcp_state* state, uint64_t first, uint64_t end);
/// Under the lock, after a change of the queue's first entry.
void orion_tcp_queue_changed(tcp_state* state);
/// The next piece for lane 0, which will have number sequence_sent + 1; false when there is none. Called by the thread
/// that moves the bytes.
bool orion_tcp_next_piece(tcp_state* state, tcp_range* piece);
/// Takes the piece off the queue after it was sent.
void orion_tcp_piece_sent(tcp_state* state, const tcp_range* piece);
/// The header of a piece for lane 0.
orion_frame orion_tcp_piece_header(const tcp_state* state, const tcp_range* piece);
/// Its body: header.bytes to `to`.
void orion_tcp_piece_body(tcp_state* state, const tcp_range* piece, uint8_t* to);
/// Waits for a piece of a striped range, takes it off the queue and fills its header. False when the stripes end.
bool orion_tcp_take_stripe(tcp_state* state, orion_frame* header);
/// The same without waiting. False: the first range is not striped, or there is none.
bool orion_tcp_try_stripe(tcp_state* state, orion_frame* header);
/// That piece has been sent.
void orion_tcp_stripe_sent(tcp_state* state);
/// Whether all that was queued has been sent, by whichever lane.
bool orion_tcp_all_sent(tcp_state* state);
void orion_tcp_kick(orion_session* session, bool express);

#endif
