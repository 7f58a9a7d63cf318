// Lanes that are plain TCP sockets. Lane 0 is read and written by the engine's own thread, without anybody between it
// and the kernel: a round trip wakes two threads, this one and the client's. Large copies travel on the stripes
// (net_stripes.c).
#include "net_raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define GREETING_LIMIT_NS 5000000000ull
#define RECEIVE_BATCH 16
#define SEND_BATCH 64
#define INLINE_QUEUE_BYTES (4u << 20)  // copies wait while more than this waits for lane 0
#define CLOSE_LIMIT_MS 200

raw_lanes* net_raw_of(const orion_engine* e) { return e->net->state; }

// ------------------------------------------------------------------------------------------------ opening
bool net_raw_open(orion_engine* e, char* endpoint) {
  raw_lanes* r = calloc(1, sizeof *r);
  if (!r) return false;
  e->net->state = r;
  e->net->lanes = &net_raw_lanes;
  r->ops = -1;
  r->order.counted = net_stripes_publish;
  r->in = malloc(RAW_IN_BYTES);
  r->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t length = sizeof address;
  if (e->net->cipher != ORION_CIPHER_NONE) r->sealed = calloc(1, sizeof *r->sealed);
  if (!r->in || (e->net->cipher != ORION_CIPHER_NONE && !r->sealed) ||
      inet_pton(AF_INET, e->net->address, &address.sin_addr) != 1 || r->listener < 0 ||
      bind(r->listener, (struct sockaddr*)&address, sizeof address) || listen(r->listener, RAW_STRANGERS) ||
      getsockname(r->listener, (struct sockaddr*)&address, &length) || !net_stripes_init(r)) {
    engine_log(e, ENGINE_LOG_ERROR, "cannot open the lanes: %s", strerror(errno));
    return false;
  }
  snprintf(endpoint, 64, "raw://%s:%u", e->net->address, (unsigned)ntohs(address.sin_port));
  return true;
}

// ------------------------------------------------------------------------------------------------ greeting
static void drop_stranger(raw_lanes* r, uint32_t i) {
  close(r->strangers[i].fd);
  r->strangers[i] = r->strangers[--r->stranger_count];
}

static void accept_strangers(raw_lanes* r) {
  for (int fd; (fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
    if (r->stranger_count == RAW_STRANGERS) drop_stranger(r, 0);
    r->strangers[r->stranger_count++] = (stranger){.fd = fd, .until_ns = engine_now_ns() + GREETING_LIMIT_NS};
  }
}

static void set_options(int fd) {
  const int one = 1, idle_s = 10, interval_s = 5, count = 3;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

// The seals of a lane that is encrypted, as its greeting has left them.
typedef struct lane_seals {
  orion_seal in, out;
} lane_seals;

// With `seals` at most once for a lane: a second welcome would use its first nonce again.
static bool send_welcome(raw_lanes* r, int fd, uint64_t lane, lane_seals* seals) {
  const orion_frame welcome = {.type = ORION_FRAME_CONTROL};
  if (!seals) return send(fd, &welcome, sizeof welcome, MSG_NOSIGNAL) == sizeof welcome;
  uint8_t record[sizeof welcome + ORION_RECORD_EXTRA];
  r->lanes_greeted |= 1u << lane;
  const size_t bytes = orion_seal_put(&seals->out, record, (const uint8_t*)&welcome, sizeof welcome);
  return send(fd, record, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

// The connection has shown the token. False: it names no lane that is still open.
static bool admit(orion_engine* e, int fd, const orion_frame* head, const uint8_t* wish, lane_seals* seals) {
  raw_lanes* r = net_raw_of(e);
  if (head->b > ORION_STRIPES_MAX || head->a > head->b || (r->lanes_in && head->b != r->stripe_count)) return false;
  if (head->a == 0 ? r->ops >= 0 : r->stripes[head->a - 1].is_open) return false;
  set_options(fd);
  r->stripe_count = (uint32_t)head->b;
  if (wish) {
    orion_link_wish link;
    memcpy(&link, wish, sizeof link);
    orion_link_set(&r->link, &link);
  }
  if (!send_welcome(r, fd, head->a, seals)) return false;
  if (head->a == 0) {
    r->ops = fd;
    if (seals) {
      r->sealed->in_seal = seals->in;
      r->sealed->out_seal = seals->out;
    }
  } else if (!net_stripe_start(e, (uint32_t)head->a - 1, fd, seals ? &seals->in : NULL, seals ? &seals->out : NULL)) {
    return false;
  }
  r->lanes_in++;
  return true;
}

enum greeting { GREETING_MORE, GREETING_ADMITTED, GREETING_REFUSED };

// Who can seal the first record of a lane knows the token.
static enum greeting greet_sealed(orion_engine* e, const stranger* s) {
  const struct orion_net* n = e->net;
  raw_lanes* r = n->state;
  orion_sealed_preamble preamble;
  orion_frame head;
  uint8_t greeting[sizeof head + sizeof(orion_link_wish)];
  if (s->bytes < sizeof preamble + ORION_RECORD_HEAD) return GREETING_MORE;
  memcpy(&preamble, s->data, sizeof preamble);
  const uint8_t* record = s->data + sizeof preamble;
  const size_t bytes = orion_record_bytes(record);
  if (preamble.magic != ORION_SEALED_MAGIC || preamble.lane > ORION_STRIPES_MAX ||
      (bytes != sizeof head && bytes != sizeof greeting)) {
    return GREETING_REFUSED;
  }
  if (s->bytes < sizeof preamble + bytes + ORION_RECORD_EXTRA) return GREETING_MORE;
  lane_seals seals;
  orion_seal_begin(&seals.in, n->cipher, n->token, ORION_TO_WORKER, (uint32_t)preamble.lane);
  if (s->bytes > sizeof preamble + bytes + ORION_RECORD_EXTRA || (r->lanes_greeted >> preamble.lane & 1) ||
      !orion_seal_open(&seals.in, record, bytes, greeting)) {
    return GREETING_REFUSED;
  }
  memcpy(&head, greeting, sizeof head);
  orion_seal_begin(&seals.out, n->cipher, n->token, ORION_TO_CLIENT, (uint32_t)preamble.lane);
  const bool admitted = head.type == ORION_FRAME_CONTROL && head.a == preamble.lane &&
                        head.bytes == bytes - sizeof head &&
                        admit(e, s->fd, &head, head.bytes ? greeting + sizeof head : NULL, &seals);
  sodium_memzero(&seals, sizeof seals);
  return admitted ? GREETING_ADMITTED : GREETING_REFUSED;
}

static enum greeting greet(orion_engine* e, stranger* s) {
  const struct orion_net* n = e->net;
  const ssize_t got = recv(s->fd, s->data + s->bytes, sizeof s->data - s->bytes, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    return engine_now_ns() < s->until_ns ? GREETING_MORE : GREETING_REFUSED;
  }
  if (got <= 0) return GREETING_REFUSED;
  s->bytes += (uint32_t)got;
  if (n->cipher != ORION_CIPHER_NONE) return greet_sealed(e, s);
  if (s->bytes < sizeof(orion_frame)) return GREETING_MORE;
  orion_frame head;
  memcpy(&head, s->data, sizeof head);
  const bool has_wish = head.bytes == n->token_bytes + sizeof(orion_link_wish);
  if (head.type != ORION_FRAME_CONTROL || (head.bytes != n->token_bytes && !has_wish)) return GREETING_REFUSED;
  if (s->bytes < sizeof head + head.bytes) return GREETING_MORE;
  const uint8_t* body = s->data + sizeof head;
  if (s->bytes > sizeof head + head.bytes || !net_token_matches(n, body, n->token_bytes) ||
      !admit(e, s->fd, &head, has_wish ? body + n->token_bytes : NULL, NULL)) {
    return GREETING_REFUSED;
  }
  return GREETING_ADMITTED;
}

static bool greet_all(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  const uint32_t before = r->lanes_in;
  accept_strangers(r);
  for (uint32_t i = 0; i < r->stranger_count;) {
    const enum greeting state = greet(e, &r->strangers[i]);
    if (state == GREETING_ADMITTED) {
      r->strangers[i] = r->strangers[--r->stranger_count];
    } else if (state == GREETING_REFUSED) {
      engine_log(e, ENGINE_LOG_WARN, "a connection without this session's token was ignored");
      drop_stranger(r, i);
    } else {
      i++;
    }
  }
  if (r->ops >= 0 && r->lanes_in == 1 + r->stripe_count) {
    r->complete = true;
    STAT_ADD(e, stat_lanes, 2);
    while (r->stranger_count) drop_stranger(r, 0);
    close(r->listener);
    r->listener = -1;
  }
  return r->lanes_in != before;
}

// ------------------------------------------------------------------------------------------------ from the client
// Takes whole frames off the buffer while they may be taken.
static void parse(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  while (!e->end && net_takes_operations(e->net) && r->in_end - r->in_first >= sizeof(orion_frame)) {
    orion_frame head;
    memcpy(&head, r->in + r->in_first, sizeof head);
    if (head.bytes > ORION_FRAME_MAX_BYTES) {
      net_malformed(e, "its size is out of bounds");
      return;
    }
    if (r->in_end - r->in_first - sizeof head < head.bytes) break;
    const uint8_t* body = r->in + r->in_first + sizeof head;
    r->in_first += sizeof head + head.bytes;
    if (net_order_is_numbered(&head)) {
      net_order_take(e, &r->order, &head, body);
    } else {
      net_take_frame(e, &head, body, false);
    }
  }
  if (r->in_first == r->in_end) {
    r->in_first = r->in_end = 0;
  } else if (r->in_first && RAW_IN_BYTES - r->in_end < RAW_IN_BYTES / 2) {
    memmove(r->in, r->in + r->in_first, r->in_end - r->in_first);
    r->in_end -= r->in_first;
    r->in_first = 0;
  }
}

// Opens the records that are there whole. Room for one is always there: `parse` leaves at most one frame that is cut
// off.
static bool open_records(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  raw_sealed* s = r->sealed;
  bool moved = false;
  while (!e->end && net_takes_operations(e->net) && s->in_end - s->in_first >= ORION_RECORD_HEAD) {
    const uint8_t* record = s->in + s->in_first;
    const size_t bytes = orion_record_bytes(record);
    if (bytes && s->in_end - s->in_first < bytes + ORION_RECORD_EXTRA) break;
    if (!bytes || bytes > RAW_IN_BYTES - r->in_end || !orion_seal_open(&s->in_seal, record, bytes, r->in + r->in_end)) {
      engine_end(e, ORION_END_BROKEN, "lane 0 brought bytes that the client did not seal" NET_FORGED);
      break;
    }
    s->in_first += bytes + ORION_RECORD_EXTRA;
    r->in_end += bytes;
    moved = true;
    parse(e);
  }
  return moved;
}

static bool receive_sealed(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  raw_sealed* s = r->sealed;
  bool moved = open_records(e);
  for (int i = 0; i < RECEIVE_BATCH && !e->end && !r->at_end && net_takes_operations(e->net); i++) {
    if (s->in_first) {
      memmove(s->in, s->in + s->in_first, s->in_end - s->in_first);
      s->in_end -= s->in_first;
      s->in_first = 0;
    }
    const size_t room = sizeof s->in - s->in_end;
    const ssize_t got = recv(r->ops, s->in + s->in_end, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (got <= 0) {
      r->at_end = true;
      break;
    }
    s->in_end += (size_t)got;
    moved = true;
    (void)open_records(e);
    if ((size_t)got < room) break;
  }
  return moved;
}

static bool receive(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  if (!r->complete) return greet_all(e);
  bool moved = net_order_take_due(e, &r->order);
  const size_t before = r->in_end - r->in_first;
  if (before) parse(e);
  moved |= r->in_end - r->in_first != before;
  if (r->sealed) return receive_sealed(e) || moved;
  for (int i = 0; i < RECEIVE_BATCH && !e->end && !r->at_end && net_takes_operations(e->net); i++) {
    const size_t room = RAW_IN_BYTES - r->in_end;
    const ssize_t got = recv(r->ops, r->in + r->in_end, room, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) break;
    if (got <= 0) {
      r->at_end = true;
      break;
    }
    r->in_end += (size_t)got;
    moved = true;
    parse(e);
    if ((size_t)got < room) break;
  }
  return moved;
}

// While lane 0 is not read, its end cannot be: what is held may wait for a client that is gone.
static bool has_hung_up(const orion_engine* e) {
  const raw_lanes* r = net_raw_of(e);
  struct pollfd fd = {.fd = r->ops, .events = POLLRDHUP};
  return r->complete && !net_takes_operations(e->net) && poll(&fd, 1, 0) > 0 && fd.revents;
}

static void check(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  const int fault = atomic_load(&r->fault);
  if (fault == RAW_MALFORMED) {
    net_malformed(e, "bulk on a stripe");
  } else if (fault == RAW_FORGED) {
    engine_end(e, ORION_END_BROKEN, "a stripe brought bytes that the client did not seal" NET_FORGED);
  } else if (r->at_end || fault || has_hung_up(e)) {
    engine_end(e, ORION_END_CLIENT_LOST, "the client closed a lane");
  }
}

// ------------------------------------------------------------------------------------------------ towards the client
// How many of the first frames may go: on an emulated network those that are due. All are stamped when they are seen
// first, in the order in which they were queued.
static uint32_t due_frames(orion_engine* e, uint32_t most) {
  raw_lanes* r = net_raw_of(e);
  const bool slow = orion_link_on(&r->link);
  const uint64_t now_ns = slow ? engine_now_ns() : 0;
  uint32_t count = 0;
  for (out_frame* f = e->net->first_frame; f && (slow || count < most); f = f->next) {
    if (slow && !f->due_ns) f->due_ns = orion_link_due(&r->link, now_ns, f->bytes);
    if (f->due_ns <= now_ns && count < most) count++;  // due times only grow
  }
  return count;
}

// Seals bytes of the first `count` frames, as many as one record takes, into `record`. Returns how many frames have
// ended in it.
static uint32_t seal_frames(struct orion_net* n, uint32_t count, uint8_t* record, size_t* record_bytes) {
  raw_lanes* r = n->state;
  const out_frame* f = n->first_frame;
  const uint8_t* from = f->data + r->first_sent;
  size_t bytes = 0;
  uint32_t ended = 0;
  if (f->bytes - r->first_sent >= ORION_RECORD_BYTES) {
    bytes = ORION_RECORD_BYTES;
  } else {  // gathered, and sealed where they are
    uint8_t* to = record + ORION_RECORD_HEAD;
    for (; ended < count && bytes < ORION_RECORD_BYTES; f = f->next) {
      const size_t left = f->bytes - r->first_sent, room = ORION_RECORD_BYTES - bytes;
      const size_t piece = left < room ? left : room;
      memcpy(to + bytes, f->data + r->first_sent, piece);
      bytes += piece;
      r->first_sent = piece < left ? r->first_sent + piece : 0;
      if (piece == left) ended++;
    }
    from = to;
  }
  *record_bytes = orion_seal_put(&r->sealed->out_seal, record, from, bytes);
  if (from != record + ORION_RECORD_HEAD) {
    r->first_sent += bytes;
    if (r->first_sent == n->first_frame->bytes) {
      r->first_sent = 0;
      ended = 1;
    }
  }
  return ended;
}

static bool fill_sealed(orion_engine* e) {
  struct orion_net* n = e->net;
  raw_sealed* s = net_raw_of(e)->sealed;
  s->out_first = s->out_end = 0;
  while (n->first_frame && sizeof s->out - s->out_end >= ORION_RECORD_MOST) {
    const uint32_t count = due_frames(e, SEND_BATCH);
    if (!count) break;
    size_t bytes = 0;
    const uint32_t ended = seal_frames(n, count, s->out + s->out_end, &bytes);
    for (uint32_t i = 0; i < ended; i++) net_frame_sent(n);
    s->out_end += bytes;
  }
  return s->out_end != 0;
}

static bool has_unsent(const orion_engine* e) {
  const raw_sealed* s = net_raw_of(e)->sealed;
  return e->net->first_frame || (s && s->out_first != s->out_end);
}

static void flush_sealed(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  raw_sealed* s = r->sealed;
  while (s->out_first != s->out_end || fill_sealed(e)) {
    const ssize_t sent = send(r->ops, s->out + s->out_first, s->out_end - s->out_first, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      r->blocked = errno == EAGAIN || errno == EINTR;
      if (!r->blocked) r->at_end = true;
      return;
    }
    s->out_first += (size_t)sent;
  }
}

static void flush(orion_engine* e) {
  struct orion_net* n = e->net;
  raw_lanes* r = n->state;
  r->blocked = false;
  if (r->sealed) {
    if (r->ops >= 0 && !r->at_end) flush_sealed(e);
    return;
  }
  while (r->ops >= 0 && !r->at_end && n->first_frame) {
    struct iovec pieces[SEND_BATCH];
    const uint32_t count = due_frames(e, SEND_BATCH);
    if (!count) return;
    const out_frame* f = n->first_frame;
    for (uint32_t i = 0; i < count; i++, f = f->next) pieces[i] = (struct iovec){(void*)f->data, f->bytes};
    pieces[0].iov_base = (uint8_t*)pieces[0].iov_base + r->first_sent;
    pieces[0].iov_len -= r->first_sent;
    const struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    const ssize_t sent = sendmsg(r->ops, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      r->blocked = errno == EAGAIN || errno == EINTR;
      if (!r->blocked) r->at_end = true;
      return;
    }
    r->first_sent += (size_t)sent;
    while (n->first_frame && r->first_sent >= n->first_frame->bytes) {
      r->first_sent -= n->first_frame->bytes;
      net_frame_sent(n);
    }
  }
}

// Large copies of memory that no kernel goes on writing are sent from where they are.
static bool is_striped(const orion_engine* e, const out_copy* c) {
  return c && !e->net->is_urgent && c->kind == OUT_WHOLE && c->bytes >= ORION_STRIPE_MIN_BYTES &&
         net_raw_of(e)->stripe_count && !coherent_touches(e, c->offset, c->bytes);
}

static bool has_room(orion_engine* e, const out_copy* copy) {
  if (is_striped(e, copy)) return net_stripes_room(net_raw_of(e));
  return e->net->is_urgent || e->net->queued_bytes < INLINE_QUEUE_BYTES;
}

static bool send_numbered(orion_engine* e, const out_copy* copy, uint16_t type, uint64_t a, const uint8_t* body,
                          uint64_t bytes) {
  struct orion_net* n = e->net;
  raw_lanes* r = n->state;
  const uint64_t sequence = n->bulk_sent + 1;
  if (is_striped(e, copy)) {
    if (copy->sent == 0 || r->group.count == 0) {
      orion_group_join(&r->group, sequence, a, copy->offset + copy->bytes);
    }
    net_stripes_send(r, (raw_piece){body, a, bytes, sequence, r->group.after, 0});
  } else {
    orion_group_close(&r->group, sequence);
    net_queue_frame(e, type, sequence, a, 0, body, (uint32_t)bytes);
    // What is sent, not what lies there by now: a kernel may go on writing.
    if (!e->end && type == ORION_FRAME_BULK && e->coherent_count) {
      const out_frame* last = (const out_frame*)((const uint8_t*)n->last_frame - offsetof(out_frame, next));
      coherent_known(e, a, last->data + sizeof(orion_frame), bytes);
    }
  }
  n->bulk_sent = sequence;
  STAT_ADD(e, stat_out, bytes);
  return !e->end;
}

// ------------------------------------------------------------------------------------------------ sleeping
static void wait_for_work(orion_engine* e, uint64_t timeout_ns) {
  struct orion_net* n = e->net;
  raw_lanes* r = n->state;
  struct pollfd fds[RAW_STRANGERS + 2];
  nfds_t count = 0;
  fds[count++] = (struct pollfd){.fd = n->wake_fd, .events = POLLIN};
  if (!r->complete) {
    fds[count++] = (struct pollfd){.fd = r->listener, .events = POLLIN};
    for (uint32_t i = 0; i < r->stranger_count; i++) {
      fds[count++] = (struct pollfd){.fd = r->strangers[i].fd, .events = POLLIN};
    }
  } else if (!r->at_end) {
    const short events = (short)((net_takes_operations(n) ? POLLIN : 0) | (r->blocked ? POLLOUT : 0));
    fds[count++] = (struct pollfd){.fd = r->ops, .events = events};
  }
  if (n->first_frame && n->first_frame->due_ns) {
    const uint64_t now_ns = engine_now_ns(), due_ns = n->first_frame->due_ns;
    if (!r->blocked && due_ns < now_ns + timeout_ns) timeout_ns = due_ns > now_ns ? due_ns - now_ns : 0;
  }
  // Pairs with wake_engine of the stripes: either it sees that this thread sleeps, or this one sees what it has stored.
  atomic_store(&r->sleeping, true);
  if (!net_stripes_news(e)) {
    const struct timespec timeout = {(time_t)(timeout_ns / 1000000000ull), (long)(timeout_ns % 1000000000ull)};
    if (ppoll(fds, count, &timeout, NULL) > 0 && fds[0].revents) {
      uint64_t ignored = 0;
      if (read(n->wake_fd, &ignored, sizeof ignored) < 0) {
        atomic_store(&r->sleeping, false);
        return;
      }
    }
  }
  atomic_store(&r->sleeping, false);
}

// ------------------------------------------------------------------------------------------------ closing
// What has been queued goes out, for a bounded time; then the client's end is waited for, since closing over unread
// bytes would make the kernel drop what the client has not read yet.
static void close_ops(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  const uint64_t until_ns = engine_now_ns() + CLOSE_LIMIT_MS * 1000000ull;
  while (has_unsent(e) && !r->at_end && engine_now_ns() < until_ns) {
    flush(e);
    struct pollfd fd = {.fd = r->ops, .events = POLLOUT};
    if (has_unsent(e)) (void)poll(&fd, 1, 1);
  }
  shutdown(r->ops, SHUT_WR);
  while (!r->at_end && engine_now_ns() < until_ns) {
    struct pollfd fd = {.fd = r->ops, .events = POLLIN};
    (void)poll(&fd, 1, 10);
    const ssize_t got = recv(r->ops, r->in, RAW_IN_BYTES, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) break;
  }
  close(r->ops);
}

static void raw_close(orion_engine* e) {
  raw_lanes* r = net_raw_of(e);
  if (r->ops >= 0) close_ops(e);
  while (r->stranger_count) drop_stranger(r, 0);
  if (r->listener >= 0) close(r->listener);
  net_stripes_close(r);
  net_order_free(&r->order);
  if (r->sealed) sodium_memzero(r->sealed, sizeof *r->sealed);
  free(r->sealed);
  free(r->in);
  free(r);
  e->net->state = NULL;
}

const net_lanes net_raw_lanes = {
    .receive = receive,
    .check = check,
    .flush = flush,
    .has_room = has_room,
    .send_numbered = send_numbered,
    .wait = wait_for_work,
    .close = raw_close,
};
