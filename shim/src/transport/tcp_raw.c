// Lane 0 over a plain TCP socket: operations, replies, words and small bulk. All but its life is of whoever moves the
// bytes (tcp_mover.h).
#define _GNU_SOURCE
#include "tcp_raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"

enum { DELAYED_MOST_BYTES = 64 << 20, SILENT_MS = 10000 };

// ------------------------------------------------------------------------------------------------- sending

static void put(raw_lanes* raw, const orion_frame* header, const void* body) {
  memcpy(raw->out + raw->out_end, header, sizeof *header);
  raw->out_end += sizeof *header;
  if (!body) return;
  memcpy(raw->out + raw->out_end, body, header->bytes);
  raw->out_end += header->bytes;
}

static void put_bulk(raw_lanes* raw) {
  tcp_state* state = raw->state;
  tcp_range piece;
  while (raw->out_end < RAW_FILL_BYTES && atomic_load(&state->has_bulk) && orion_tcp_next_piece(state, &piece)) {
    const orion_frame header = orion_tcp_piece_header(state, &piece);
    put(raw, &header, NULL);
    orion_tcp_piece_body(state, &piece, raw->out + raw->out_end);
    raw->out_end += header.bytes;
    orion_tcp_piece_sent(state, &piece);
  }
}

static void put_batch(raw_lanes* raw, tcp_batch* batch, uint16_t type) {
  if (batch->bytes == 0) return;
  batch->header = (orion_frame){.type = type, .bytes = batch->bytes};
  put(raw, &batch->header, batch->body);
  batch->bytes = 0;
}

static void put_client_words(raw_lanes* raw) {
  orion_word_update updates[64];
  uint32_t count = 0, group = 0;
  while ((count = orion_tcp_take_client_words(raw->state, &group, updates)) != 0) {
    const orion_frame header = {.type = ORION_FRAME_CLIENT_WORDS, .bytes = count * (uint32_t)sizeof *updates};
    put(raw, &header, updates);
  }
}

// Fills `out` with what there is: the socket has taken all that was in it.
static void fill(raw_lanes* raw) {
  tcp_state* state = raw->state;
  put_bulk(raw);
  if (orion_tcp_gather(state)) {
    put_batch(raw, &state->express_batch, ORION_FRAME_OPS_EXPRESS);
    put_batch(raw, &state->main_batch, ORION_FRAME_OPS_MAIN);
  }
  put_client_words(raw);
}

// Bytes that the socket took; sets what keeps it from taking more.
static size_t send_some(raw_lanes* raw, const uint8_t* from, size_t bytes) {
  raw->mover->blocked = false;
  const ssize_t sent = send(raw->ops, from, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent >= 0) return (size_t)sent;
  raw->mover->blocked = errno == EAGAIN || errno == EINTR;
  // The worker's last words may still lie in the socket: the end is told by whoever has read all of them.
  if (!raw->mover->blocked) raw->mover->broken = true;
  return 0;
}

static bool delay(raw_lanes* raw) {
  if (raw->out_end == 0) return false;
  const size_t bytes = raw->sealed ? orion_sealed_bytes(raw->out_end) : raw->out_end;
  raw_delayed* later = malloc(sizeof *later + bytes);
  if (!later) return false;
  *later = (raw_delayed){.due_ns = orion_link_due(&raw->link, orion_now_ns(), bytes), .bytes = bytes};
  if (raw->sealed)
    orion_seal_stream(&raw->sealed->out_seal, later->data, raw->out, raw->out_end);
  else
    memcpy(later->data, raw->out, bytes);
  *raw->delayed_last = later;
  raw->delayed_last = &later->next;
  raw->delayed_bytes += bytes;
  raw->out_end = 0;
  return true;
}

static bool send_delayed(raw_lanes* raw) {
  bool any = false;
  while (raw->delayed_first && !raw->mover->at_end && !raw->mover->broken &&
         raw->delayed_first->due_ns <= orion_now_ns()) {
    raw_delayed* first = raw->delayed_first;
    const size_t sent = send_some(raw, first->data + first->sent, first->bytes - first->sent);
    any |= sent != 0;
    first->sent += sent;
    if (first->sent < first->bytes) break;
    raw->delayed_bytes -= first->bytes;
    raw->delayed_first = first->next;
    if (!raw->delayed_first) raw->delayed_last = &raw->delayed_first;
    free(first);
  }
  return any;
}

static bool send_sealed(raw_lanes* raw) {
  raw_sealed* s = raw->sealed;
  if (s->out_first == s->out_end) {
    if (raw->out_first == raw->out_end) {
      raw->out_first = raw->out_end = 0;
      fill(raw);
      if (raw->out_end == 0) return false;
    }
    const size_t left = raw->out_end - raw->out_first, most = (size_t)RAW_RECORDS * ORION_RECORD_BYTES;
    const size_t bytes = left < most ? left : most;
    s->out_first = 0;
    s->out_end = orion_seal_stream(&s->out_seal, s->out, raw->out + raw->out_first, bytes);
    raw->out_first += bytes;
  }
  const size_t sent = send_some(raw, s->out + s->out_first, s->out_end - s->out_first);
  s->out_first += sent;
  return sent != 0;
}

static bool send_out(raw_lanes* raw) {
  if (raw->mover->at_end || raw->mover->broken) return false;
  if (orion_link_on(&raw->link)) {
    bool any = false;
    if (raw->delayed_bytes < DELAYED_MOST_BYTES) {
      if (raw->out_end == 0) fill(raw);  // else there was no memory for what is in it
      any = delay(raw);
    }
    return send_delayed(raw) || any;
  }
  if (raw->sealed) return send_sealed(raw);
  if (raw->out_first == raw->out_end) {
    raw->out_first = raw->out_end = 0;
    fill(raw);
    if (raw->out_end == 0) return false;
  }
  const size_t sent = send_some(raw, raw->out + raw->out_first, raw->out_end - raw->out_first);
  raw->out_first += sent;
  return sent != 0;
}

static bool has_unsent(const raw_lanes* raw) {
  return raw->out_first != raw->out_end || (raw->sealed && raw->sealed->out_first != raw->sealed->out_end);
}

// ------------------------------------------------------------------------------------------------- receiving

// A numbered frame. HOLD: others before it have not come.
static enum tcp_frame_result take_numbered(raw_lanes* raw, const uint8_t* frame, const orion_frame* header) {
  tcp_state* state = raw->state;
  const uint64_t next = atomic_load(&state->sequence_received) + 1;
  if (header->sequence < next) return TCP_FRAME_BAD;
  if (header->sequence > next) return TCP_FRAME_HOLD;
  const enum tcp_frame_result result = orion_tcp_take_bulk_frame(state, frame, sizeof *header + header->bytes);
  if (result == TCP_FRAME_OK) orion_raw_stored(raw, header->sequence);
  return result;
}

static enum tcp_frame_result take_frame(raw_lanes* raw, const uint8_t* frame, const orion_frame* header) {
  if (header->type == ORION_FRAME_BULK || header->type == ORION_FRAME_RUNS) return take_numbered(raw, frame, header);
  return orion_tcp_take_ops_frame(raw->state, frame, sizeof *header + header->bytes);
}

// What a held frame waits for.
static uint64_t wanted(const orion_frame* header) {
  return header->type == ORION_FRAME_WORDS ? header->sequence : header->sequence - 1;
}

// No stripe brings anything any more: all were closed in good order.
static bool stripes_ended(const raw_lanes* raw) { return atomic_load(&raw->stripes_ended) == raw->state->stripe_count; }

static bool parse(raw_lanes* raw) {
  tcp_state* state = raw->state;
  bool any = false;
  while (raw->in_end - raw->in_first >= sizeof(orion_frame)) {
    orion_frame header;
    const uint8_t* frame = raw->in + raw->in_first;
    memcpy(&header, frame, sizeof header);
    enum tcp_frame_result result = TCP_FRAME_BAD;
    if (header.bytes <= ORION_FRAME_MAX_BYTES) {
      if (raw->in_end - raw->in_first - sizeof header < header.bytes) break;
      result = take_frame(raw, frame, &header);
    }
    if (result == TCP_FRAME_HOLD) {
      atomic_store(&raw->held_for, wanted(&header));
      const bool ended = stripes_ended(raw);
      // A stripe that has stored the missing bytes before it could see this store does not wake anybody.
      if (atomic_load(&state->sequence_received) >= wanted(&header)) continue;
      if (ended) {  // the worker's end lies behind a frame that nothing will release
        atomic_store(&raw->held_for, 0);
        raw->mover->at_end = true;
        orion_tcp_connection_lost(state);
      }
      break;
    }
    if (result == TCP_FRAME_BAD) {
      orion_tcp_lose_malformed(state, "operations");
      raw->mover->at_end = true;
      break;
    }
    atomic_store_explicit(&raw->held_for, 0, memory_order_relaxed);
    raw->in_first += sizeof header + header.bytes;
    any = true;
  }
  if (raw->in_first == raw->in_end) {
    raw->in_first = raw->in_end = 0;
  } else if (RAW_IN_BYTES - raw->in_end < RAW_FRAME_BYTES) {
    memmove(raw->in, raw->in + raw->in_first, raw->in_end - raw->in_first);
    raw->in_end -= raw->in_first;
    raw->in_first = 0;
  }
  return any;
}

static bool is_held(const raw_lanes* raw) {
  const uint64_t held_for = atomic_load(&raw->held_for);
  return held_for != 0 && atomic_load(&raw->state->sequence_received) < held_for && !stripes_ended(raw);
}

// Opens the records that are there whole. Room for one is always there: `parse` leaves a frame that is cut off, at
// most.
static bool open_records(raw_lanes* raw) {
  raw_sealed* s = raw->sealed;
  bool any = false;
  while (!raw->mover->at_end && !is_held(raw) && s->in_end - s->in_first >= ORION_RECORD_HEAD) {
    const uint8_t* record = s->in + s->in_first;
    const size_t bytes = orion_record_bytes(record);
    if (bytes && s->in_end - s->in_first < bytes + ORION_RECORD_EXTRA) break;
    if (!bytes || bytes > RAW_IN_BYTES - raw->in_end ||
        !orion_seal_open(&s->in_seal, record, bytes, raw->in + raw->in_end)) {
      orion_tcp_lose_forged(raw->state, "operations");
      raw->mover->at_end = true;
      break;
    }
    s->in_first += bytes + ORION_RECORD_EXTRA;
    raw->in_end += bytes;
    any |= parse(raw);
  }
  return any;
}

static bool receive_sealed(raw_lanes* raw) {
  raw_sealed* s = raw->sealed;
  bool any = open_records(raw);
  while (!raw->mover->at_end && !is_held(raw)) {
    if (s->in_first) {
      memmove(s->in, s->in + s->in_first, s->in_end - s->in_first);
      s->in_end -= s->in_first;
      s->in_first = 0;
    }
    const size_t room = sizeof s->in - s->in_end;
    const ssize_t got = recv(raw->ops, s->in + s->in_end, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (got <= 0) {
      raw->mover->at_end = true;
      orion_tcp_connection_lost(raw->state);
      break;
    }
    s->in_end += (size_t)got;
    any |= open_records(raw);
    if ((size_t)got < room) break;
  }
  return any;
}

static bool receive(raw_lanes* raw) {
  if (is_held(raw)) return false;
  bool any = atomic_load_explicit(&raw->held_for, memory_order_relaxed) != 0 && parse(raw);
  if (raw->sealed) any |= receive_sealed(raw);
  while (!raw->sealed && !raw->mover->at_end && !is_held(raw)) {
    const size_t room = RAW_IN_BYTES - raw->in_end;
    const ssize_t got = recv(raw->ops, raw->in + raw->in_end, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (got <= 0) {
      raw->mover->at_end = true;
      orion_tcp_connection_lost(raw->state);
      break;
    }
    raw->in_end += (size_t)got;
    any |= parse(raw);
    if ((size_t)got < room) break;
  }
  if (any) orion_wake_clients(raw->state->session);
  return any;
}

// ------------------------------------------------------------------------------------------------- one round

static bool move_once(tcp_state* state) {
  raw_lanes* raw = orion_raw_of(state);
  tcp_mover* m = raw->mover;
  bool any = send_out(raw);
  any |= receive(raw);
  const raw_delayed* first = raw->delayed_first;
  m->due_ns = first && !m->blocked && !m->broken ? first->due_ns : UINT64_MAX;
  return any;
}

static bool has_work(const tcp_state* state) {
  const raw_lanes* raw = orion_raw_of(state);
  const tcp_mover* m = raw->mover;
  const bool out_waits = m->blocked || m->at_end || m->broken || raw->delayed_bytes >= DELAYED_MOST_BYTES;
  if (!out_waits && (has_unsent(raw) || orion_tcp_has_bulk_work(state) || orion_tcp_has_operations(state))) return true;
  return atomic_load_explicit(&raw->held_for, memory_order_relaxed) != 0 && !is_held(raw);
}

static bool lane_is_held(const tcp_state* state) { return is_held(orion_raw_of(state)); }

// Whether they may be sent or not.
static bool has_ring_work(const tcp_state* state) {
  return orion_ring_ready(state->session->main_ring, state->main_position) ||
         orion_ring_ready(state->session->express_ring, state->express_position);
}

static bool is_acknowledged(int fd) {
  int unacknowledged_bytes = 0;
  return fd < 0 || ioctl(fd, SIOCOUTQ, &unacknowledged_bytes) != 0 || unacknowledged_bytes == 0;
}

// A socket that is closed while something lies unread in it is reset, and what it had still to send is gone. Something
// always may: the worker tells words at any time. So all must have arrived before that.
static bool is_drained(tcp_state* state) {
  const raw_lanes* raw = orion_raw_of(state);
  if (has_unsent(raw) || raw->delayed_first || has_ring_work(state) || atomic_load(&state->has_client_words) ||
      !orion_tcp_all_sent(state))
    return false;
  for (uint32_t i = 0; i < state->stripe_count; i++)
    if (!is_acknowledged(raw->stripes[i].fd)) return false;
  return is_acknowledged(raw->ops);
}

static const tcp_moves moves = {
    .once = move_once,
    .has_work = has_work,
    .is_held = lane_is_held,
    .is_drained = is_drained,
};

static void run(tcp_state* state) { (void)orion_mover_run(state); }

// ------------------------------------------------------------------------------------------------- life

static void close_lanes(tcp_state* state) {
  raw_lanes* raw = orion_raw_of(state);
  if (!raw) return;
  if (raw->ops >= 0) shutdown(raw->ops, SHUT_RDWR);
  orion_stripes_close(raw);
  // Threads that wait may still look at the memory of a session that was open: only its descriptors go.
  if (raw->ops >= 0) close(raw->ops);
  orion_mover_close(state);
  if (state->has_thread) return;
  if (raw->sealed) sodium_memzero(raw->sealed, sizeof *raw->sealed);
  free(raw->sealed);
  free(raw->in);
  free(raw->out);
  free(raw);
  state->lanes_state = NULL;
}

static void after_fork(tcp_state* state) {
  raw_lanes* raw = orion_raw_of(state);
  close(raw->ops);
  orion_mover_close(state);
  for (uint32_t i = 0; i < state->stripe_count; i++) close(raw->stripes[i].fd);
}

// False when what was sent last is sent again and again and nothing has come back for a while. Keepalive sees the other
// case, a silent lane. An end that takes nothing acknowledges, so it is not taken for gone.
static bool is_reachable(const tcp_state* state) {
  struct tcp_info info;
  socklen_t length = sizeof info;
  if (getsockopt(orion_raw_of(state)->ops, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return true;
  return info.tcpi_unacked == 0 || info.tcpi_retransmits == 0 || info.tcpi_last_ack_recv < SILENT_MS;
}

static int start_connection(const struct sockaddr_in* address) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  if (connect(fd, (const struct sockaddr*)address, sizeof *address) == 0 || errno == EINPROGRESS) return fd;
  close(fd);
  return -1;
}

static const char* await(int fd, short events, uint64_t deadline_ns) {
  struct pollfd item = {fd, events, 0};
  for (;;) {
    const struct timespec timeout = orion_time_left(deadline_ns);
    const int count = ppoll(&item, 1, &timeout, NULL);
    if (count > 0) return NULL;
    if (count == 0) return "it did not answer in time";
    if (errno != EINTR) return strerror(errno);
  }
}

// No TCP_USER_TIMEOUT: it also ends a connection whose other end lives and takes nothing for a while.
static void set_options(int fd) {
  const int one = 1, idle_s = 2, interval_s = 2, count = 4;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

// Sends bytes on a connection that has just been made: there is room for so few.
static const char* send_greeting(int fd, const void* bytes, size_t count) {
  return send(fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count ? NULL : "it closed the connection";
}

static const char* greet(const tcp_state* state, int fd, uint32_t lane, const uint8_t token[32], orion_seal* seal,
                         uint64_t deadline_ns) {
  const char* why = await(fd, POLLOUT, deadline_ns);
  if (why) return why;
  int error = 0;
  socklen_t length = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error) return strerror(error);
  set_options(fd);
  const bool has_wish = lane == 0 && (state->link_wish.round_trip_ns || state->link_wish.bytes_per_second);
  if (seal) {
    struct {
      orion_frame head;
      orion_link_wish wish;
    } sealed = {.wish = state->link_wish};
    const size_t bytes = sizeof sealed.head + (has_wish ? sizeof sealed.wish : 0);
    sealed.head = (orion_frame){.type = ORION_FRAME_CONTROL,
                                .bytes = (uint32_t)(bytes - sizeof sealed.head),
                                .a = lane,
                                .b = state->stripe_count};
    uint8_t sent[sizeof(orion_sealed_preamble) + sizeof sealed + ORION_RECORD_EXTRA];
    const orion_sealed_preamble preamble = {ORION_SEALED_MAGIC, lane};
    memcpy(sent, &preamble, sizeof preamble);
    const size_t record = orion_seal_put(seal, sent + sizeof preamble, (const uint8_t*)&sealed, bytes);
    return send_greeting(fd, sent, sizeof preamble + record);
  }
  struct {
    orion_frame head;
    uint8_t token[32];
    orion_link_wish wish;
  } greeting = {.wish = state->link_wish};
  const uint32_t body = 32 + (has_wish ? sizeof greeting.wish : 0);
  greeting.head = (orion_frame){.type = ORION_FRAME_CONTROL, .bytes = body, .a = lane, .b = state->stripe_count};
  memcpy(greeting.token, token, 32);
  return send_greeting(fd, &greeting, sizeof greeting.head + body);
}

static const char* await_welcome(int fd, orion_seal* seal, uint64_t deadline_ns) {
  orion_frame header;
  uint8_t bytes[sizeof header + ORION_RECORD_EXTRA];
  const size_t whole = seal ? sizeof bytes : sizeof header;
  size_t at = 0;
  while (at < whole) {
    const char* why = await(fd, POLLIN, deadline_ns);
    if (why) return why;
    const ssize_t got = recv(fd, bytes + at, whole - at, 0);
    if (got <= 0) return "it closed the connection (was the token refused?)";
    at += (size_t)got;
  }
  if (!seal)
    memcpy(&header, bytes, sizeof header);
  else if (orion_record_bytes(bytes) != sizeof header ||
           !orion_seal_open(seal, bytes, sizeof header, (uint8_t*)&header))
    return "its answer was not sealed by this session's worker";
  return header.type == ORION_FRAME_CONTROL && header.bytes == 0 ? NULL : "its answer to the token is malformed";
}

// Room for the seals of all lanes; they are in use from the greeting on.
static bool make_seals(raw_lanes* raw, const uint8_t token[32]) {
  const enum orion_cipher cipher = raw->state->cipher;
  raw->sealed = calloc(1, sizeof *raw->sealed);
  if (!raw->sealed) return false;
  orion_seal_begin(&raw->sealed->out_seal, cipher, token, ORION_TO_WORKER, 0);
  orion_seal_begin(&raw->sealed->in_seal, cipher, token, ORION_TO_CLIENT, 0);
  bool made = true;
  for (uint32_t i = 0; i < raw->state->stripe_count && made; i++) {
    orion_seal seal;
    orion_seal_begin(&seal, cipher, token, ORION_TO_WORKER, i + 1);
    raw->stripes[i].out = orion_stripe_seal_new(&seal);
    orion_seal_begin(&seal, cipher, token, ORION_TO_CLIENT, i + 1);
    raw->stripes[i].in = orion_stripe_seal_new(&seal);
    sodium_memzero(&seal, sizeof seal);
    made = raw->stripes[i].out && raw->stripes[i].in;
  }
  return made;
}

static orion_seal* seal_of(raw_lanes* raw, uint32_t lane, bool out) {
  if (!raw->sealed) return NULL;
  if (lane == 0) return out ? &raw->sealed->out_seal : &raw->sealed->in_seal;
  return out ? &raw->stripes[lane - 1].out->seal : &raw->stripes[lane - 1].in->seal;
}

// All connections are made at once, then all greetings sent, then all answers awaited: one round trip each.
static const char* open_lanes(tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                              uint64_t deadline_ns) {
  raw_lanes* raw = calloc(1, sizeof *raw);
  if (!raw) return "out of memory";
  state->lanes_state = raw;
  state->credit_bytes = ORION_OPS_CREDIT_BYTES;
  raw->state = state;
  raw->mover = &state->mover;
  raw->ops = -1;
  raw->delayed_last = &raw->delayed_first;
  pthread_mutex_init(&raw->arrival_lock, NULL);
  orion_link_set(&raw->link, &state->link_wish);
  for (uint32_t i = 0; i < ORION_STRIPES_MAX; i++) raw->stripes[i] = (raw_stripe){.state = state, .index = i, .fd = -1};
  raw->in = malloc(RAW_IN_BYTES);
  raw->out = malloc(RAW_OUT_BYTES);
  if (!raw->in || !raw->out) return "out of memory";
  if (state->cipher != ORION_CIPHER_NONE && !make_seals(raw, token)) return "out of memory";
  struct sockaddr_in address;
  const char* why = orion_tcp_address(state, "raw", endpoints[0], &address);
  if (why) return why;
  int* fds[1 + ORION_STRIPES_MAX] = {&raw->ops};
  const uint32_t count = 1 + state->stripe_count;
  for (uint32_t i = 1; i < count; i++) fds[i] = &raw->stripes[i - 1].fd;
  for (uint32_t i = 0; i < count; i++)
    if ((*fds[i] = start_connection(&address)) < 0) return strerror(errno);
  for (uint32_t i = 0; i < count && !why; i++)
    why = greet(state, *fds[i], i, token, seal_of(raw, i, true), deadline_ns);
  for (uint32_t i = 0; i < count && !why; i++) why = await_welcome(*fds[i], seal_of(raw, i, false), deadline_ns);
  if (why) return why;
  for (uint32_t i = 0; i < state->stripe_count; i++) {
    const int flags = fcntl(raw->stripes[i].fd, F_GETFL);
    if (flags < 0 || fcntl(raw->stripes[i].fd, F_SETFL, flags & ~O_NONBLOCK) < 0) return strerror(errno);
  }
  if (!orion_mover_open(state, &moves, raw->ops)) return strerror(errno);
  return orion_stripes_start(raw);
}

const tcp_lanes orion_tcp_raw_lanes = {
    .open = open_lanes,
    .run = run,
    .close = close_lanes,
    .after_fork = after_fork,
    .is_reachable = is_reachable,
};
