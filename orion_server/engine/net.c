// The network side of a session, whatever lanes carry it: operations are fed to the session's private rings, bulk bytes
// to the arena; replies, words and copied bytes go back. All of it on the engine's own thread.
//
// Order towards the client: words are looked at first, then the copies that are complete are sent, then the words, with
// the number of the bulk that must have arrived before they are shown.
#include "net.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------ opening
int orion_engine_cipher_usable(int cipher) { return orion_cipher_usable((enum orion_cipher)cipher); }

int orion_engine_tcp_listen(orion_engine* e, int lanes, const char* address, int cipher, const uint8_t* token,
                            uint32_t token_bytes, char* ops_endpoint, char* bulk_endpoint) {
  struct in_addr parsed;
  if (e->net || e->config.transport != ORION_ENGINE_TCP || token_bytes < 16 || token_bytes > TOKEN_MAX ||
      inet_pton(AF_INET, address, &parsed) != 1) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (cipher != ORION_CIPHER_NONE && (lanes != ORION_ENGINE_LANES_RAW || token_bytes != ORION_SESSION_KEY_BYTES ||
                                      !orion_cipher_usable((enum orion_cipher)cipher))) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  struct orion_net* n = calloc(1, sizeof *n);
  if (!n) return CUDA_ERROR_OUT_OF_MEMORY;
  e->net = n;
  memcpy(n->token, token, token_bytes);
  n->token_bytes = token_bytes;
  n->cipher = (enum orion_cipher)cipher;
  memcpy(n->address, address, strlen(address) + 1);  // inet_pton has bounded it
  n->last_frame = &n->first_frame;
  n->held_last = &n->held_first;
  n->urgent.last = &n->urgent.first;
  n->copies.last = &n->copies.first;
  // orion-server's wakes come the same way as the engine's own.
  n->wake_fd = e->seat ? fcntl(e->config.wake_fd, F_DUPFD_CLOEXEC, 3) : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (e->seat) atomic_store(&e->seat->polls, 1);
  bulk_endpoint[0] = 0;
  if (n->wake_fd >= 0 && (lanes == ORION_ENGINE_LANES_RAW ? net_raw_open(e, ops_endpoint)
                                                          : net_zmq_open(e, ops_endpoint, bulk_endpoint))) {
    return 0;
  }
  net_free(e);
  return CUDA_ERROR_OPERATING_SYSTEM;
}

// ------------------------------------------------------------------------------------------------ towards the client
void net_queue_frame(orion_engine* e, uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body,
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
  f->due_ns = 0;
  f->bytes = sizeof head + bytes;
  memcpy(f->data, &head, sizeof head);
  if (bytes) memcpy(f->data + sizeof head, body, bytes);
  *n->last_frame = f;
  n->last_frame = &f->next;
  n->queued_bytes += f->bytes;
}

out_frame* net_frame_taken(struct orion_net* n) {
  out_frame* taken = n->first_frame;
  n->first_frame = taken->next;
  if (!n->first_frame) n->last_frame = &n->first_frame;
  n->queued_bytes -= taken->bytes;
  return taken;
}

void net_frame_sent(struct orion_net* n) { free(net_frame_taken(n)); }

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

// A filled frame counts as known to the client: it is kept until the lane takes it, and nothing passes it.
static bool send_pending(orion_engine* e) {
  struct orion_net* n = e->net;
  if (!n->pending_bytes) return true;
  if (!n->lanes->has_room(e, NULL) ||
      !n->lanes->send_numbered(e, NULL, ORION_FRAME_RUNS, 0, n->pending, n->pending_bytes)) {
    return false;
  }
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
      if (!n->lanes->has_room(e, c) ||
          !n->lanes->send_numbered(e, c, ORION_FRAME_BULK, offset, e->arena + offset, piece)) {
        return false;
      }
      c->sent += piece;
    }
    return true;
  }
  for (;;) {
    uint64_t offset, bytes;
    if (!next_piece(e, c, ORION_BULK_BYTES, &offset, &bytes)) return true;
    if (!n->lanes->has_room(e, NULL)) return false;
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

static bool is_error_word(uint32_t word) {
  return (word >= ORION_WORD_CONTEXT_ERROR && word < ORION_WORD_NULL_STREAM) ||
         (word >= ORION_WORD_THREAD_ERROR && word < ORION_WORD_STREAMS);
}

/// Tells errors before whatever ends a client's wait: who has waited for a copy that failed shall not believe that it
/// has its bytes.
static void queue_errors(orion_engine* e) {
  struct orion_net* n = e->net;
  while (n->changed_errors) {
    orion_word_update told[RELAY_MAX];
    uint32_t count = 0, kept = 0;
    for (uint32_t i = 0; i < n->changed_count; i++) {
      const uint32_t word = n->changed[i];
      if (!is_error_word(word) || count == RELAY_MAX) {
        n->changed[kept++] = word;
        continue;
      }
      n->is_changed[word] = false;
      told[count++] = (orion_word_update){word, atomic_load_explicit(&e->segment->words[word], memory_order_acquire)};
    }
    n->changed_count = kept;
    n->changed_errors -= count;
    net_queue_frame(e, ORION_FRAME_WORDS, 0, 0, 0, told, count * (uint32_t)sizeof *told);
  }
}

void net_reply(orion_engine* e, uint32_t slot, int32_t result, uint64_t sequence, const void* payload, uint32_t bytes) {
  queue_errors(e);
  net_queue_frame(e, ORION_FRAME_REPLY, sequence, slot, (uint64_t)(uint32_t)result, payload, bytes);
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

void net_after_copies(orion_engine* e) { net_queue_frame(e, ORION_FRAME_WORDS, e->net->bulk_sent, 0, 0, NULL, 0); }

// The client holds everything behind a frame of words until the bulk that it names has arrived; a reply that speaks of
// bytes is sent behind an empty one.
void net_bytes_out(orion_engine* e, uint64_t offset, uint64_t bytes) {
  struct orion_net* n = e->net;
  queue_copy(e, &n->urgent, (out_copy){.offset = offset, .bytes = bytes});
  // Where bulk shares a lane with the frame below it must not stand behind it.
  n->is_urgent = true;
  (void)send_list(e, &n->urgent);
  n->is_urgent = false;
  uint64_t pieces = n->pending_bytes != 0;
  for (const out_copy* c = n->urgent.first; c; c = c->next) {
    pieces += (c->bytes - c->sent + ORION_BULK_BYTES - 1) / ORION_BULK_BYTES;
  }
  net_queue_frame(e, ORION_FRAME_WORDS, n->bulk_sent + pieces, 0, 0, NULL, 0);
}

void net_word(orion_engine* e, uint32_t word) {
  struct orion_net* n = e->net;
  if (n->is_changed[word]) return;
  n->is_changed[word] = true;
  n->changed[n->changed_count++] = word;
  n->changed_errors += is_error_word(word);
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
  queue_errors(e);
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
    } else if (n->relay[n->relay_count - 1].value < value) {
      // Told already as the engine itself has set it, before the GPU wrote this one.
      n->relay[n->relay_count - 1].value = value;
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
    net_queue_frame(e, ORION_FRAME_WORDS, n->bulk_sent, 0, 0, n->relay,
                    n->relay_count * (uint32_t)sizeof(orion_word_update));
    n->relay_count = 0;
    moved = true;
  }
  const size_t queued = n->queued_bytes;
  n->lanes->flush(e);
  return moved || n->bulk_sent != sent || n->queued_bytes != queued;
}

// ------------------------------------------------------------------------------------------------ from the client
void net_malformed(orion_engine* e, const char* what) { engine_end(e, ORION_END_BROKEN, "malformed frame: %s", what); }

held_frame* net_held_new(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  held_frame* f = malloc(sizeof *f + head->bytes);
  if (!f) {
    engine_end(e, ORION_END_FAILED, "out of memory");
    return NULL;
  }
  f->next = NULL;
  f->at = 0;
  f->bytes = head->bytes;
  f->head = *head;
  if (head->bytes) memcpy(f->data, body, head->bytes);
  return f;
}

#define TELL_TAKEN_BYTES (1u << 20)  // well below ORION_OPS_CREDIT_BYTES, so that the client never waits for the last

static void count_taken(orion_engine* e, size_t bytes) {
  struct orion_net* n = e->net;
  n->taken_bytes += bytes;
  if (n->taken_bytes - n->told_bytes < TELL_TAKEN_BYTES) return;
  n->told_bytes = n->taken_bytes;
  atomic_store_explicit(&e->segment->words[ORION_WORD_TAKEN], n->taken_bytes, memory_order_release);
  net_word(e, ORION_WORD_TAKEN);
}

// Feeds operations into a ring from *at on. True when all have been taken, or the session has ended over them.
static bool feed(orion_engine* e, orion_ring ring, const uint8_t* data, size_t total, size_t* at) {
  struct orion_net* n = e->net;
  while (*at < total) {
    orion_op op;
    if (total - *at < sizeof op) {
      net_malformed(e, "an operation is cut off");
      return true;
    }
    memcpy(&op, data + *at, sizeof op);
    const size_t padded = ((size_t)op.bytes + 7) & ~(size_t)7;
    if (op.bytes < sizeof op || op.bytes > ORION_OP_MAX_BYTES || padded > total - *at) {
      net_malformed(e, "an operation's size is out of bounds");
      return true;
    }
    memcpy(n->op, data + *at, op.bytes);
    if (!orion_ring_push(ring, (const orion_op*)n->op, op.bytes, n->op + op.bytes)) return false;  // no tail
    *at += padded;
  }
  return true;
}

static bool feed_main(orion_engine* e) {
  struct orion_net* n = e->net;
  bool moved = false;
  while (n->held_first && !e->end) {
    held_frame* f = n->held_first;
    const size_t before = f->at;
    const bool whole = feed(e, e->main_ring, f->data, f->bytes, &f->at);
    moved |= f->at != before;
    count_taken(e, f->at - before);
    if (!whole) break;
    n->held_bytes -= f->bytes;
    n->held_first = f->next;
    if (!n->held_first) n->held_last = &n->held_first;
    free(f);
  }
  return moved;
}

static bool feed_express(orion_engine* e) {
  struct orion_net* n = e->net;
  if (!n->express) return false;
  held_frame* f = n->express;
  const size_t before = f->at;
  const bool whole = feed(e, e->express_ring, f->data, f->bytes, &f->at);
  const bool moved = whole || f->at != before;
  if (whole) {
    n->express = NULL;
    free(f);
  }
  return moved;
}

// What the ring takes at once is not copied.
static void take_operations(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  struct orion_net* n = e->net;
  const bool express = head->type == ORION_FRAME_OPS_EXPRESS;
  size_t at = 0;
  const bool whole =
      (express || !n->held_first) && feed(e, express ? e->express_ring : e->main_ring, body, head->bytes, &at);
  if (!express) count_taken(e, at);
  if (whole) return;
  held_frame* f = net_held_new(e, head, body);
  if (!f) return;
  f->at = at;
  if (express) {
    n->express = f;
    return;
  }
  n->held_bytes += f->bytes;
  *n->held_last = f;
  n->held_last = &f->next;
}

static void take_client_words(orion_engine* e, const uint8_t* body, uint32_t bytes) {
  if (bytes % sizeof(orion_word_update)) {
    net_malformed(e, "client words");
    return;
  }
  for (uint32_t at = 0; at < bytes; at += sizeof(orion_word_update)) {
    orion_word_update update;
    memcpy(&update, body + at, sizeof update);
    if (update.index >= ORION_CLIENT_WORDS) {
      net_malformed(e, "client word out of range");
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
    net_malformed(e, "runs outside the arena or out of sequence");
    return;
  }
  e->bulk_arrived = head->sequence;
  STAT_ADD(e, stat_in, head->bytes);
}

void net_take_numbered(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  if (head->type == ORION_FRAME_RUNS) {
    take_runs(e, head, body);
    return;
  }
  if (head->type != ORION_FRAME_BULK || head->a > e->arena_bytes || head->bytes > e->arena_bytes - head->a ||
      head->sequence <= e->bulk_arrived) {
    net_malformed(e, "bulk outside the arena or out of sequence");
    return;
  }
  if (head->bytes) memcpy(e->arena + head->a, body, head->bytes);
  if (e->coherent_count) coherent_arrived(e, head->a, body, head->bytes);
  e->bulk_arrived = head->sequence;
  STAT_ADD(e, stat_in, head->bytes);
}

bool net_token_matches(const struct orion_net* n, const uint8_t* body, uint32_t bytes) {
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

void net_take_frame(orion_engine* e, const orion_frame* head, const uint8_t* body, bool bulk_lane) {
  if (head->type == ORION_FRAME_CLIENT_WORDS) {
    // On either lane. The bulk lane is read whatever the rings hold, so there a word can never be stuck.
    take_client_words(e, body, head->bytes);
  } else if (bulk_lane) {
    if (head->type != ORION_FRAME_CONTROL) net_take_numbered(e, head, body);
  } else if (head->type == ORION_FRAME_OPS_MAIN || head->type == ORION_FRAME_OPS_EXPRESS) {
    take_operations(e, head, body);
  } else if (head->type != ORION_FRAME_CONTROL) {
    net_malformed(e, "unknown type");
  }
}

// ------------------------------------------------------------------------------------------------ the loop's calls
bool net_pump(orion_engine* e) {
  struct orion_net* n = e->net;
  bool moved = feed_main(e);
  moved |= feed_express(e);
  if (!e->end) moved |= n->lanes->receive(e);
  // The end of a connection may be told before all that came over it has been taken: that goes first.
  if (!moved && !e->end) n->lanes->check(e);
  moved |= send_all(e);
  return moved;
}

void net_wait(orion_engine* e, uint64_t timeout_ns) { e->net->lanes->wait(e, timeout_ns); }

void net_wake(orion_engine* e) {
  const uint64_t one = 1;
  if (write(e->net->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

void net_close(orion_engine* e) {
  struct orion_net* n = e->net;
  if (!n->lanes) return;
  if (e->segment) (void)send_all(e);  // the last words: why the session ended
  n->lanes->close(e);
  n->lanes = NULL;
  free(n->express);
  n->express = NULL;
  while (n->held_first) {
    held_frame* next = n->held_first->next;
    free(n->held_first);
    n->held_first = next;
  }
  n->held_last = &n->held_first;
}

void net_free_copies(out_copy* c) {
  while (c) {
    out_copy* next = c->next;
    free(c);
    c = next;
  }
}

void net_free(orion_engine* e) {
  struct orion_net* n = e->net;
  net_close(e);
  while (n->first_frame) net_frame_sent(n);
  sodium_memzero(n->token, sizeof n->token);
  net_free_copies(n->urgent.first);
  net_free_copies(n->copies.first);
  free(n->markers);
  free(n->pending);
  if (n->wake_fd >= 0) close(n->wake_fd);
  if (e->seat) atomic_store(&e->seat->polls, 0);
  free(n);
  e->net = NULL;
}
