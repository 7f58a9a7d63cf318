// The network side of a session: two lanes on 127.0.0.1, pumped by the engine's own thread. Operations are fed to the
// session's private rings, bulk bytes to the arena; replies, words and copied bytes go back.
//
// Order towards the client: words are looked at first, then the copies that are complete are sent on the bulk lane,
// then the words, with the bulk number that must have arrived before they are shown.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "internal.h"

#define IDENTITY_MAX 64u
#define TOKEN_MAX 64u
#define RECEIVE_BATCH 64
#define QUEUE_MAX_BYTES (64u << 20)  // a client that does not read its replies
#define RELAY_MAX 256u
#define HELD_MAX_BYTES (16u << 20)  // main operations read ahead of a full ring, so that what follows is not stuck
#define CLOSE_LINGER_MS 200
#define OPS_HIGH_WATER 4096
#define BULK_HIGH_WATER 16

typedef struct lane {
  void *socket, *monitor;
  uint8_t identity[IDENTITY_MAX];
  size_t identity_bytes;  // 0: nobody has shown the token yet
  int peer_fd;
} lane;

// A frame of operations that has not gone into its ring whole.
typedef struct held_frame {
  struct held_frame* next;
  zmq_msg_t message;
  size_t at;
} held_frame;

typedef struct out_frame {
  struct out_frame* next;
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

struct orion_net {
  void* context;
  lane ops, bulk;
  int wake_fd;
  uint8_t token[TOKEN_MAX];
  uint32_t token_bytes;
  // Main operations that the ring has no room for yet. Express operations and client words behind them are taken
  // meanwhile: they are what may make room.
  held_frame *held_first, **held_last;
  size_t held_bytes;
  held_frame* express;  // an express frame that did not fit; nothing is received behind it
  // towards the client
  out_frame *first_frame, **last_frame;
  size_t queued_bytes;
  copy_list urgent;  // written by the CPU, awaited by a reply: sent before all others, so that their number is known
  copy_list copies;
  uint64_t bulk_sent;
  uint8_t* pending;  // a frame of runs that the lane has not taken yet
  uint64_t pending_bytes;
  marker* markers;
  uint32_t marker_count, marker_capacity;
  uint32_t changed[ORION_WORDS];  // words that the CPU wrote
  bool is_changed[ORION_WORDS];
  uint32_t changed_count;
  orion_word_update relay[RELAY_MAX];  // snapshot that waits for the copies before it
  uint32_t relay_count;
  _Alignas(8) uint8_t op[ORION_OP_MAX_BYTES];
};

// ------------------------------------------------------------------------------------------------ opening
static bool open_lane(const struct orion_net* n, lane* l, int high_water, const char* monitor, char* endpoint) {
  l->socket = zmq_socket(n->context, ZMQ_ROUTER);
  if (!l->socket) return false;
  const int one = 1, linger = CLOSE_LINGER_MS, idle_s = 10, interval_s = 5, count = 3;
  const int64_t largest = ORION_FRAME_MAX_BYTES + (int64_t)sizeof(orion_frame);
  zmq_setsockopt(l->socket, ZMQ_LINGER, &linger, sizeof linger);
  zmq_setsockopt(l->socket, ZMQ_ROUTER_MANDATORY, &one, sizeof one);
  zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
  zmq_setsockopt(l->socket, ZMQ_SNDHWM, &high_water, sizeof high_water);
  zmq_setsockopt(l->socket, ZMQ_RCVHWM, &high_water, sizeof high_water);
  zmq_setsockopt(l->socket, ZMQ_TCP_KEEPALIVE, &one, sizeof one);
  zmq_setsockopt(l->socket, ZMQ_TCP_KEEPALIVE_IDLE, &idle_s, sizeof idle_s);
  zmq_setsockopt(l->socket, ZMQ_TCP_KEEPALIVE_INTVL, &interval_s, sizeof interval_s);
  zmq_setsockopt(l->socket, ZMQ_TCP_KEEPALIVE_CNT, &count, sizeof count);
  if (zmq_socket_monitor(l->socket, monitor, ZMQ_EVENT_DISCONNECTED)) return false;
  l->monitor = zmq_socket(n->context, ZMQ_PAIR);
  if (!l->monitor || zmq_connect(l->monitor, monitor)) return false;
  if (zmq_bind(l->socket, "tcp://127.0.0.1:*")) return false;
  size_t bytes = 64;
  return zmq_getsockopt(l->socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes) == 0;
}

static void close_lane(lane* l) {
  const int zero = 0;
  if (l->monitor) {
    zmq_socket_monitor(l->socket, NULL, 0);
    zmq_setsockopt(l->monitor, ZMQ_LINGER, &zero, sizeof zero);
    zmq_close(l->monitor);
  }
  if (l->socket) zmq_close(l->socket);
  l->socket = l->monitor = NULL;
}

int orion_engine_tcp_listen(orion_engine* e, const uint8_t* token, uint32_t token_bytes, char* ops_endpoint,
                            char* bulk_endpoint) {
  if (e->net || e->config.transport != ORION_ENGINE_TCP || token_bytes < 16 || token_bytes > TOKEN_MAX) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  struct orion_net* n = calloc(1, sizeof *n);
  if (!n) return CUDA_ERROR_OUT_OF_MEMORY;
  e->net = n;
  memcpy(n->token, token, token_bytes);
  n->token_bytes = token_bytes;
  n->last_frame = &n->first_frame;
  n->held_last = &n->held_first;
  n->urgent.last = &n->urgent.first;
  n->copies.last = &n->copies.first;
  n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  n->context = zmq_ctx_new();
  if (n->wake_fd >= 0 && n->context && open_lane(n, &n->ops, OPS_HIGH_WATER, "inproc://ops-monitor", ops_endpoint) &&
      open_lane(n, &n->bulk, BULK_HIGH_WATER, "inproc://bulk-monitor", bulk_endpoint)) {
    return 0;
  }
  engine_log(e, ENGINE_LOG_ERROR, "cannot open the lanes: %s", zmq_strerror(zmq_errno()));
  net_free(e);
  return CUDA_ERROR_OPERATING_SYSTEM;
}

// ------------------------------------------------------------------------------------------------ towards the client
static void queue_frame(orion_engine* e, uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body,
                        uint32_t bytes) {
  struct orion_net* n = e->net;
  if (n->queued_bytes > QUEUE_MAX_BYTES) {
    engine_end(e, ORION_END_BROKEN, "the client does not read its replies");
    return;
  }
  out_frame* f = malloc(sizeof *f + sizeof(orion_frame) + bytes);
  if (!f) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  const orion_frame head = {.type = type, .bytes = bytes, .sequence = sequence, .a = a, .b = b};
  f->next = NULL;
  f->bytes = sizeof head + bytes;
  memcpy(f->data, &head, sizeof head);
  if (bytes) memcpy(f->data + sizeof head, body, bytes);
  *n->last_frame = f;
  n->last_frame = &f->next;
  n->queued_bytes += f->bytes;
}

static bool send_to(lane* l, const void* data, size_t bytes) {
  if (!l->identity_bytes) return false;
  if (zmq_send(l->socket, l->identity, l->identity_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return false;
  return zmq_send(l->socket, data, bytes, ZMQ_DONTWAIT) >= 0;
}

static void send_frames(orion_engine* e) {
  struct orion_net* n = e->net;
  while (n->first_frame && send_to(&n->ops, n->first_frame->data, n->first_frame->bytes)) {
    out_frame* sent = n->first_frame;
    n->first_frame = sent->next;
    if (!n->first_frame) n->last_frame = &n->first_frame;
    n->queued_bytes -= sent->bytes;
    free(sent);
  }
}

static bool copy_complete(const orion_engine* e, const out_copy* c) {
  if (!c->track) return true;
  const track* t = &e->tracks[c->track];
  return !t->dirty || t->issued < c->value || order_track_done(e, c->track) >= c->value;
}

// The next piece of at most `most` bytes, at or behind c->sent, which is moved to its start. False: none is left.
static bool next_piece(const orion_engine* e, out_copy* c, uint64_t most, uint64_t* offset, uint64_t* bytes) {
  if (c->sent >= c->bytes) return false;
  uint64_t length = c->bytes - c->sent;
  *offset = c->offset + c->sent;
  if (c->kind == OUT_ROWS) {
    const uint64_t row = c->sent / c->rows.width, column = c->sent % c->rows.width;
    *offset = c->offset + row / c->rows.rows * c->rows.slice_pitch + row % c->rows.rows * c->rows.pitch + column;
    length = c->rows.width - column;
  } else if (c->kind == OUT_CHANGED) {
    const uint8_t* known = coherent_copy(e, c->offset, c->bytes);
    const uint8_t* written = coherent_source(e, c->offset);
    if (!known || !orion_next_difference(written, known, c->bytes, &c->sent, &length)) return false;
    *offset = c->offset + c->sent;
  }
  *bytes = length < most ? length : most;
  return true;
}

// Fills a body of runs. Returns its bytes.
static uint64_t fill_frame(orion_engine* e, out_copy* c, uint8_t* to) {
  uint64_t used = 0, offset, bytes;
  while (ORION_BULK_BYTES - used > sizeof(orion_run) + 64 &&
         next_piece(e, c, (ORION_BULK_BYTES - used - sizeof(orion_run)) & ~7ull, &offset, &bytes)) {
    used += orion_run_put(to + used, offset, coherent_source(e, offset), (uint32_t)bytes);
    // What was read, not what is there by now: a kernel may go on writing.
    coherent_known(e, offset, to + used - orion_run_room(bytes) + sizeof(orion_run), bytes);
    c->sent += bytes;
  }
  return used;
}

static bool lane_has_room(const struct orion_net* n) {
  int events = 0;
  size_t events_bytes = sizeof events;
  return n->bulk.identity_bytes && !zmq_getsockopt(n->bulk.socket, ZMQ_EVENTS, &events, &events_bytes) &&
         (events & ZMQ_POLLOUT);
}

// Sends a body on the bulk lane, numbered. False: the lane is full or the session has ended.
static bool send_numbered(orion_engine* e, uint16_t type, uint64_t a, const uint8_t* body, uint64_t bytes) {
  struct orion_net* n = e->net;
  // The identity goes first: where the peer's queue is full this is what is refused, before anything is copied.
  if (zmq_send(n->bulk.socket, n->bulk.identity, n->bulk.identity_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return false;
  zmq_msg_t message;
  if (zmq_msg_init_size(&message, sizeof(orion_frame) + bytes)) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return false;
  }
  const orion_frame head = {.type = type, .bytes = (uint32_t)bytes, .sequence = n->bulk_sent + 1, .a = a};
  uint8_t* to = zmq_msg_data(&message);
  memcpy(to, &head, sizeof head);
  memcpy(to + sizeof head, body, bytes);
  // What is sent, not what lies there by now: a kernel may go on writing.
  if (type == ORION_FRAME_BULK && e->coherent_count) coherent_known(e, a, to + sizeof head, bytes);
  if (zmq_msg_send(&message, n->bulk.socket, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&message);
    engine_end(e, ORION_END_CLIENT_LOST, "the bulk lane failed: %s", zmq_strerror(zmq_errno()));
    return false;
  }
  n->bulk_sent++;
  STAT_ADD(e, stat_out, bytes);
  return true;
}

// A filled frame counts as known to the client: it is kept until the lane takes it, and nothing passes it.
static bool send_pending(orion_engine* e) {
  struct orion_net* n = e->net;
  if (!n->pending_bytes) return true;
  if (!lane_has_room(n) || !send_numbered(e, ORION_FRAME_RUNS, 0, n->pending, n->pending_bytes)) return false;
  n->pending_bytes = 0;
  return true;
}

// Sends one complete copy as far as the lane takes it. False: some of it is left.
static bool send_copy(orion_engine* e, out_copy* c) {
  struct orion_net* n = e->net;
  if (!send_pending(e)) return false;
  if (c->kind == OUT_WHOLE) {
    while (c->sent < c->bytes) {
      const uint64_t left = c->bytes - c->sent, piece = left < ORION_BULK_BYTES ? left : ORION_BULK_BYTES;
      const uint64_t offset = c->offset + c->sent;
      if (!lane_has_room(n) || !send_numbered(e, ORION_FRAME_BULK, offset, e->arena + offset, piece)) return false;
      c->sent += piece;
    }
    return true;
  }
  for (;;) {
    uint64_t offset, bytes;
    if (!next_piece(e, c, ORION_BULK_BYTES, &offset, &bytes)) return true;
    if (!lane_has_room(n)) return false;
    if (!n->pending) n->pending = malloc(ORION_BULK_BYTES);
    if (!n->pending) {
      engine_end(e, ORION_END_FAILED, "out of memory");
      return false;
    }
    n->pending_bytes = fill_frame(e, c, n->pending);
    if (!send_pending(e)) return false;
  }
}

// Sends the complete copies of a list. False: the lane is full and a complete copy is left.
static bool send_list(orion_engine* e, copy_list* list) {
  out_copy** link = &list->first;
  while (*link) {
    out_copy* c = *link;
    if (!copy_complete(e, c)) {
      link = &c->next;
      continue;
    }
    if (!send_copy(e, c)) return false;
    *link = c->next;
    if (!*link) list->last = link;
    free(c);
  }
  return true;
}

static bool send_copies(orion_engine* e) { return send_list(e, &e->net->urgent) && send_list(e, &e->net->copies); }

void net_reply(orion_engine* e, uint32_t slot, int32_t result, uint64_t sequence, const void* payload, uint32_t bytes) {
  queue_frame(e, ORION_FRAME_REPLY, sequence, slot, (uint64_t)(uint32_t)result, payload, bytes);
}

static void queue_copy(orion_engine* e, copy_list* list, out_copy copy) {
  if (!copy.bytes) return;
  out_copy* c = malloc(sizeof *c);
  if (!c) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  *c = copy;
  *list->last = c;
  list->last = &c->next;
  // A private marker right behind the copy: whatever word the client is shown later, on this stream or on one that
  // waited for it, is written by the GPU after this marker.
  if (c->track) order_mark_track(e, c->track);
}

void net_copy_out(orion_engine* e, uint64_t offset, uint64_t bytes, uint32_t track_index, uint64_t value) {
  queue_copy(e, &e->net->copies, (out_copy){.offset = offset, .bytes = bytes, .track = track_index, .value = value});
}

void net_rows_out(orion_engine* e, const net_rows* rows, uint32_t track_index, uint64_t value) {
  // Bounded by the caller: the rows lie in the arena.
  queue_copy(e, &e->net->copies,
             (out_copy){.kind = OUT_ROWS,
                        .rows = *rows,
                        .offset = rows->offset,
                        .bytes = rows->width * rows->rows * rows->slices,
                        .track = track_index,
                        .value = value});
}

void net_publish(orion_engine* e, uint64_t offset, uint64_t bytes, uint32_t track_index, uint64_t value) {
  queue_copy(e, &e->net->copies,
             (out_copy){.kind = OUT_CHANGED, .offset = offset, .bytes = bytes, .track = track_index, .value = value});
}

bool net_copies_sent(orion_engine* e) { return send_copies(e); }

bool net_copies_wait(const orion_engine* e) { return e->net->copies.first != NULL; }

void net_after_copies(orion_engine* e) { queue_frame(e, ORION_FRAME_WORDS, e->net->bulk_sent, 0, 0, NULL, 0); }

// The client holds everything behind a frame of words until the bulk that it names has arrived; a reply that speaks of
// bytes is sent behind an empty one.
void net_bytes_out(orion_engine* e, uint64_t offset, uint64_t bytes) {
  struct orion_net* n = e->net;
  queue_copy(e, &n->urgent, (out_copy){.offset = offset, .bytes = bytes});
  uint64_t pieces = n->pending_bytes != 0;
  for (const out_copy* c = n->urgent.first; c; c = c->next) {
    pieces += (c->bytes - c->sent + ORION_BULK_BYTES - 1) / ORION_BULK_BYTES;
  }
  queue_frame(e, ORION_FRAME_WORDS, n->bulk_sent + pieces, 0, 0, NULL, 0);
}

void net_word(orion_engine* e, uint32_t word) {
  struct orion_net* n = e->net;
  if (n->is_changed[word]) return;
  n->is_changed[word] = true;
  n->changed[n->changed_count++] = word;
}

void net_marker(orion_engine* e, uint32_t context, uint32_t word, uint64_t value) {
  struct orion_net* n = e->net;
  if (n->marker_count == n->marker_capacity) {
    const uint32_t capacity = n->marker_capacity ? n->marker_capacity * 2 : 256;
    marker* grown = realloc(n->markers, capacity * sizeof *grown);
    if (!grown) {
      engine_end(e, ORION_END_FAILED, "out of memory");
      return;
    }
    n->markers = grown;
    n->marker_capacity = capacity;
  }
  n->markers[n->marker_count++] = (marker){word, context, value, 0};
}

bool net_busy(const orion_engine* e) {
  const struct orion_net* n = e->net;
  return n->marker_count || n->copies.first || n->urgent.first || n->first_frame || n->relay_count || n->held_first ||
         n->express;
}

// Takes a snapshot of words that are due. Copies that are complete now stand before it.
static void take_relay(orion_engine* e) {
  struct orion_net* n = e->net;
  while (n->changed_count && n->relay_count < RELAY_MAX) {
    const uint32_t word = n->changed[--n->changed_count];
    n->is_changed[word] = false;
    n->relay[n->relay_count++] =
        (orion_word_update){word, atomic_load_explicit(&e->segment->words[word], memory_order_acquire)};
  }
  // The newest is looked at first: a marker that a later one waits for is then seen reached whenever that one is.
  // Otherwise a client could learn of a stream's end and not yet of the copy that another stream made for it.
  for (uint32_t i = n->marker_count; i-- > 0;) {
    n->markers[i].seen = atomic_load_explicit(&e->segment->words[n->markers[i].word], memory_order_acquire);
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < n->marker_count; i++) {
    const marker m = n->markers[i];
    const context_state* c = &e->contexts[m.context];
    if (!c->alive || c->sticky) continue;  // it will never be written; the client has the context's error word
    const uint64_t value = m.seen;
    if (value < m.value || n->relay_count == RELAY_MAX) {
      n->markers[kept++] = m;
    } else if (!n->relay_count || n->relay[n->relay_count - 1].index != m.word) {
      n->relay[n->relay_count++] = (orion_word_update){m.word, value};
    }
  }
  n->marker_count = kept;
}

static bool send_all(orion_engine* e) {
  struct orion_net* n = e->net;
  bool moved = false;
  if (!n->relay_count) take_relay(e);
  const uint64_t sent = n->bulk_sent;
  const bool clear = send_copies(e);
  if (clear && n->relay_count) {
    queue_frame(e, ORION_FRAME_WORDS, n->bulk_sent, 0, 0, n->relay,
                n->relay_count * (uint32_t)sizeof(orion_word_update));
    n->relay_count = 0;
    moved = true;
  }
  const size_t queued = n->queued_bytes;
  send_frames(e);
  return moved || n->bulk_sent != sent || n->queued_bytes != queued;
}

// ------------------------------------------------------------------------------------------------ from the client
static void malformed(orion_engine* e, const char* what) {
  engine_end(e, ORION_END_BROKEN, "malformed frame: %s", what);
}

// Feeds the operations of a held frame into a ring. True when the whole frame has been taken.
static bool feed(orion_engine* e, held_frame* f, orion_ring ring) {
  struct orion_net* n = e->net;
  const uint8_t* data = zmq_msg_data(&f->message);
  const size_t total = zmq_msg_size(&f->message);
  while (f->at < total) {
    orion_op op;
    if (total - f->at < sizeof op) {
      malformed(e, "an operation is cut off");
      return true;
    }
    memcpy(&op, data + f->at, sizeof op);
    const size_t padded = ((size_t)op.bytes + 7) & ~(size_t)7;
    if (op.bytes < sizeof op || op.bytes > ORION_OP_MAX_BYTES || padded > total - f->at) {
      malformed(e, "an operation's size is out of bounds");
      return true;
    }
    memcpy(n->op, data + f->at, op.bytes);
    if (!orion_ring_push(ring, (const orion_op*)n->op, op.bytes, NULL)) return false;
    f->at += padded;
  }
  return true;
}

static void drop_held(held_frame* f) {
  zmq_msg_close(&f->message);
  free(f);
}

static bool feed_main(orion_engine* e) {
  struct orion_net* n = e->net;
  bool moved = false;
  while (n->held_first && !e->end) {
    held_frame* f = n->held_first;
    const size_t before = f->at;
    const bool whole = feed(e, f, e->main_ring);
    moved |= f->at != before;
    if (!whole) break;
    n->held_bytes -= zmq_msg_size(&f->message);
    n->held_first = f->next;
    if (!n->held_first) n->held_last = &n->held_first;
    drop_held(f);
  }
  return moved;
}

static void hold(orion_engine* e, uint16_t type, zmq_msg_t* message) {
  struct orion_net* n = e->net;
  held_frame* f = malloc(sizeof *f);
  if (!f) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  f->next = NULL;
  f->at = sizeof(orion_frame);
  zmq_msg_init(&f->message);
  zmq_msg_move(&f->message, message);
  if (type == ORION_FRAME_OPS_EXPRESS) {
    n->express = f;
    return;
  }
  n->held_bytes += zmq_msg_size(&f->message);
  *n->held_last = f;
  n->held_last = &f->next;
}

static void take_client_words(orion_engine* e, const uint8_t* body, uint32_t bytes) {
  if (bytes % sizeof(orion_word_update)) {
    malformed(e, "client words");
    return;
  }
  for (uint32_t at = 0; at < bytes; at += sizeof(orion_word_update)) {
    orion_word_update update;
    memcpy(&update, body + at, sizeof update);
    if (update.index >= ORION_CLIENT_WORDS) {
      malformed(e, "client word out of range");
      return;
    }
    atomic_store_explicit(&e->segment->client_words[update.index], update.value, memory_order_release);
  }
}

static void take_runs(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  uint64_t at = 0;
  orion_run run;
  const uint8_t* from = NULL;
  int more = head->sequence > e->bulk_arrived ? 1 : -1;
  while (more > 0 && (more = orion_run_get(body, head->bytes, e->arena_bytes, &at, &run, &from)) > 0) {
    memcpy(e->arena + run.offset, from, run.bytes);
    coherent_arrived(e, run.offset, from, run.bytes);
  }
  if (more < 0) {
    malformed(e, "runs outside the arena or out of sequence");
    return;
  }
  e->bulk_arrived = head->sequence;
  STAT_ADD(e, stat_in, head->bytes);
}

static void take_bulk(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  if (head->type == ORION_FRAME_CONTROL) return;
  if (head->type == ORION_FRAME_RUNS) {
    take_runs(e, head, body);
    return;
  }
  if (head->type != ORION_FRAME_BULK || head->a > e->arena_bytes || head->bytes > e->arena_bytes - head->a ||
      head->sequence <= e->bulk_arrived) {
    malformed(e, "bulk outside the arena or out of sequence");
    return;
  }
  if (head->bytes) memcpy(e->arena + head->a, body, head->bytes);
  if (e->coherent_count) coherent_arrived(e, head->a, body, head->bytes);
  e->bulk_arrived = head->sequence;
  STAT_ADD(e, stat_in, head->bytes);
}

static bool token_matches(const struct orion_net* n, const uint8_t* body, uint32_t bytes) {
  if (bytes != n->token_bytes) return false;
  uint8_t difference = 0;
  for (uint32_t i = 0; i < bytes; i++) difference |= (uint8_t)(body[i] ^ n->token[i]);
  return difference == 0;
}

bool net_frame_ok(const uint8_t* data, size_t bytes, orion_frame* head) {
  if (bytes < sizeof *head) return false;
  memcpy(head, data, sizeof *head);
  return head->bytes <= ORION_FRAME_MAX_BYTES && head->bytes == bytes - sizeof *head;
}

// One frame of the peer that showed the token.
static void take_frame(orion_engine* e, lane* l, zmq_msg_t* message) {
  struct orion_net* n = e->net;
  orion_frame head;
  const uint8_t* data = zmq_msg_data(message);
  if (!net_frame_ok(data, zmq_msg_size(message), &head)) {
    malformed(e, "its header and its size differ");
  } else if (head.type == ORION_FRAME_CLIENT_WORDS) {
    // On either lane. The bulk lane is read whatever the rings hold, so there a word can never be stuck.
    take_client_words(e, data + sizeof head, head.bytes);
  } else if (l == &n->bulk) {
    take_bulk(e, &head, data + sizeof head);
  } else if (head.type == ORION_FRAME_OPS_MAIN || head.type == ORION_FRAME_OPS_EXPRESS) {
    hold(e, head.type, message);
  } else if (head.type != ORION_FRAME_CONTROL) {
    malformed(e, "unknown type");
  }
}

// A stranger's first frame: the token makes it the session's peer on this lane, anything else is ignored.
static void greet(orion_engine* e, lane* l, zmq_msg_t* identity, zmq_msg_t* message) {
  struct orion_net* n = e->net;
  orion_frame head;
  const uint8_t* data = zmq_msg_data(message);
  if (zmq_msg_size(identity) > IDENTITY_MAX || !net_frame_ok(data, zmq_msg_size(message), &head) ||
      head.type != ORION_FRAME_CONTROL || !token_matches(n, data + sizeof head, head.bytes)) {
    engine_log(e, ENGINE_LOG_WARN, "a connection without this session's token was ignored");
    return;
  }
  l->identity_bytes = zmq_msg_size(identity);
  memcpy(l->identity, zmq_msg_data(identity), l->identity_bytes);
  l->peer_fd = zmq_msg_get(message, ZMQ_SRCFD);
  STAT_ADD(e, stat_lanes, 1);
  const orion_frame welcome = {.type = ORION_FRAME_CONTROL};
  if (!send_to(l, &welcome, sizeof welcome)) {
    engine_end(e, ORION_END_CLIENT_LOST, "a lane failed: %s", zmq_strerror(zmq_errno()));
  }
}

// Receives one message of a lane. False: there is none.
static bool receive_one(orion_engine* e, lane* l) {
  zmq_msg_t identity, message;
  zmq_msg_init(&identity);
  if (zmq_msg_recv(&identity, l->socket, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&identity);
    return false;
  }
  zmq_msg_init(&message);
  uint32_t parts = 0;
  for (bool more = zmq_msg_more(&identity); more; parts++) {
    if (zmq_msg_recv(&message, l->socket, ZMQ_DONTWAIT) < 0) break;
    more = zmq_msg_more(&message);
  }
  const bool peer = l->identity_bytes && l->identity_bytes == zmq_msg_size(&identity) &&
                    !memcmp(l->identity, zmq_msg_data(&identity), l->identity_bytes);
  if (peer && parts != 1) {
    malformed(e, "a message of several parts");
  } else if (peer) {
    take_frame(e, l, &message);
  } else if (!l->identity_bytes && parts == 1) {
    greet(e, l, &identity, &message);
  }
  zmq_msg_close(&message);
  zmq_msg_close(&identity);
  return true;
}

// The monitor tells every connection's end; the peer's is known by its descriptor.
static void check_monitor(orion_engine* e, lane* l) {
  for (;;) {
    zmq_msg_t event, address;
    zmq_msg_init(&event);
    if (zmq_msg_recv(&event, l->monitor, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&event);
      return;
    }
    int32_t fd = -1;
    if (zmq_msg_size(&event) >= 6) memcpy(&fd, (const uint8_t*)zmq_msg_data(&event) + 2, sizeof fd);
    zmq_msg_init(&address);
    if (zmq_msg_more(&event)) (void)zmq_msg_recv(&address, l->monitor, ZMQ_DONTWAIT);
    zmq_msg_close(&address);
    zmq_msg_close(&event);
    if (l->identity_bytes && fd == l->peer_fd) engine_end(e, ORION_END_CLIENT_LOST, "the client closed a lane");
  }
}

bool net_pump(orion_engine* e) {
  struct orion_net* n = e->net;
  bool moved = false;
  for (int i = 0; i < RECEIVE_BATCH && !e->end; i++) {
    if (!receive_one(e, &n->bulk)) break;
    moved = true;
  }
  moved |= feed_main(e);
  for (int i = 0; i < RECEIVE_BATCH && !e->end; i++) {
    if (n->express) {
      const size_t before = n->express->at;
      const bool whole = feed(e, n->express, e->express_ring);
      moved |= n->express->at != before;
      if (!whole) break;
      drop_held(n->express);
      n->express = NULL;
    }
    if (e->end || n->held_bytes > HELD_MAX_BYTES || !receive_one(e, &n->ops)) break;
    moved = true;
  }
  moved |= feed_main(e);
  // The end of a connection is told by another socket and may overtake what came over it: first all that is there.
  if (!moved) {
    check_monitor(e, &n->ops);
    check_monitor(e, &n->bulk);
  }
  moved |= send_all(e);
  return moved;
}

static bool readable(void* socket) {
  int events = 0;
  size_t bytes = sizeof events;
  return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) == 0 && (events & ZMQ_POLLIN);
}

// zmq_poll counts in milliseconds; markers are polled in tens of microseconds. The descriptors are edge-triggered, so
// the sockets' own state is asked first.
void net_wait(orion_engine* e, uint64_t timeout_ns) {
  struct orion_net* n = e->net;
  void* const sockets[] = {n->bulk.socket, n->ops.monitor, n->bulk.monitor, n->ops.socket};
  const nfds_t count = n->express || n->held_bytes > HELD_MAX_BYTES ? 3 : 4;
  struct pollfd fds[5];
  for (nfds_t i = 0; i < count; i++) {
    if (readable(sockets[i])) return;
    size_t bytes = sizeof fds[i].fd;
    fds[i] = (struct pollfd){.events = POLLIN};
    if (zmq_getsockopt(sockets[i], ZMQ_FD, &fds[i].fd, &bytes)) return;
  }
  fds[count] = (struct pollfd){.fd = n->wake_fd, .events = POLLIN};
  const struct timespec timeout = {(time_t)(timeout_ns / 1000000000ull), (long)(timeout_ns % 1000000000ull)};
  if (ppoll(fds, count + 1, &timeout, NULL) > 0 && fds[count].revents) {
    uint64_t ignored = 0;
    if (read(n->wake_fd, &ignored, sizeof ignored) < 0) return;
  }
}

void net_wake(orion_engine* e) {
  const uint64_t one = 1;
  if (write(e->net->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

void net_close(orion_engine* e) {
  struct orion_net* n = e->net;
  if (!n->context) return;
  if (e->segment && n->ops.socket) (void)send_all(e);  // the last words: why the session ended
  close_lane(&n->ops);
  close_lane(&n->bulk);
  if (n->express) drop_held(n->express);
  n->express = NULL;
  while (n->held_first) {
    held_frame* next = n->held_first->next;
    drop_held(n->held_first);
    n->held_first = next;
  }
  n->held_last = &n->held_first;
  zmq_ctx_term(n->context);
  n->context = NULL;
}

static void free_copies(out_copy* c) {
  while (c) {
    out_copy* next = c->next;
    free(c);
    c = next;
  }
}

void net_free(orion_engine* e) {
  struct orion_net* n = e->net;
  net_close(e);
  while (n->first_frame) {
    out_frame* next = n->first_frame->next;
    free(n->first_frame);
    n->first_frame = next;
  }
  free_copies(n->urgent.first);
  free_copies(n->copies.first);
  free(n->markers);
  free(n->pending);
  if (n->wake_fd >= 0) close(n->wake_fd);
  free(n);
  e->net = NULL;
}
