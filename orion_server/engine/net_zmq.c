// Lanes that are ZeroMQ's: where plain sockets cannot be used, and for clients that know no others. Lane 0 carries
// operations, replies and words, lane 1 bulk in both directions.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "net.h"

#define IDENTITY_MAX 64u
#define RECEIVE_BATCH 64
#define CLOSE_LINGER_MS 200
#define OPS_HIGH_WATER 4096
#define BULK_HIGH_WATER 16

typedef struct lane {
  void *socket, *monitor;
  uint8_t identity[IDENTITY_MAX];
  size_t identity_bytes;  // 0: nobody has shown the token yet
  int peer_fd;
} lane;

typedef struct zmq_lanes {
  void* context;
  lane ops, bulk;
} zmq_lanes;

static zmq_lanes* lanes_of(const orion_engine* e) { return e->net->state; }

static bool open_lane(const zmq_lanes* z, lane* l, int high_water, const char* monitor, const char* address,
                      char* endpoint) {
  l->socket = zmq_socket(z->context, ZMQ_ROUTER);
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
  if (zmq_socket_monitor(l->socket, monitor, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED)) return false;
  l->monitor = zmq_socket(z->context, ZMQ_PAIR);
  if (!l->monitor || zmq_connect(l->monitor, monitor)) return false;
  char wanted[64];
  snprintf(wanted, sizeof wanted, "tcp://%s:*", address);
  if (zmq_bind(l->socket, wanted)) return false;
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

static void zmq_lanes_close(orion_engine* e) {
  zmq_lanes* z = lanes_of(e);
  close_lane(&z->ops);
  close_lane(&z->bulk);
  if (z->context) zmq_ctx_term(z->context);
  free(z);
  e->net->state = NULL;
}

bool net_zmq_open(orion_engine* e, char* ops_endpoint, char* bulk_endpoint) {
  zmq_lanes* z = calloc(1, sizeof *z);
  if (!z) return false;
  e->net->state = z;
  e->net->lanes = &net_zmq_lanes;
  z->context = zmq_ctx_new();
  if (z->context && open_lane(z, &z->ops, OPS_HIGH_WATER, "inproc://ops-monitor", e->net->address, ops_endpoint) &&
      open_lane(z, &z->bulk, BULK_HIGH_WATER, "inproc://bulk-monitor", e->net->address, bulk_endpoint)) {
    return true;
  }
  engine_log(e, ENGINE_LOG_ERROR, "cannot open the lanes: %s", zmq_strerror(zmq_errno()));
  return false;
}

// ------------------------------------------------------------------------------------------------ towards the client
static bool send_to(lane* l, const void* data, size_t bytes) {
  if (!l->identity_bytes) return false;
  if (zmq_send(l->socket, l->identity, l->identity_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return false;
  return zmq_send(l->socket, data, bytes, ZMQ_DONTWAIT) >= 0;
}

static void flush(orion_engine* e) {
  struct orion_net* n = e->net;
  lane* ops = &lanes_of(e)->ops;
  while (n->first_frame && send_to(ops, n->first_frame->data, n->first_frame->bytes)) net_frame_sent(n);
}

static bool has_room(orion_engine* e, const out_copy* copy) {
  (void)copy;
  const lane* bulk = &lanes_of(e)->bulk;
  int events = 0;
  size_t events_bytes = sizeof events;
  return bulk->identity_bytes && !zmq_getsockopt(bulk->socket, ZMQ_EVENTS, &events, &events_bytes) &&
         (events & ZMQ_POLLOUT);
}

// Sends a body on the bulk lane, numbered. False: the lane is full or the session has ended.
static bool send_numbered(orion_engine* e, const out_copy* copy, uint16_t type, uint64_t a, const uint8_t* body,
                          uint64_t bytes) {
  (void)copy;
  struct orion_net* n = e->net;
  const lane* bulk = &lanes_of(e)->bulk;
  // The identity goes first: where the peer's queue is full this is what is refused, before anything is copied.
  if (zmq_send(bulk->socket, bulk->identity, bulk->identity_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return false;
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
  if (zmq_msg_send(&message, bulk->socket, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&message);
    engine_end(e, ORION_END_CLIENT_LOST, "the bulk lane failed: %s", zmq_strerror(zmq_errno()));
    return false;
  }
  n->bulk_sent++;
  STAT_ADD(e, stat_out, bytes);
  return true;
}

// ------------------------------------------------------------------------------------------------ from the client
static void take_message(orion_engine* e, const lane* l, zmq_msg_t* message) {
  orion_frame head;
  const uint8_t* data = zmq_msg_data(message);
  if (!net_frame_ok(data, zmq_msg_size(message), &head)) {
    net_malformed(e, "its header and its size differ");
  } else {
    net_take_frame(e, &head, data + sizeof head, l == &lanes_of(e)->bulk);
  }
}

// The next thing that the monitor tells: what happened to which descriptor. False: there is none.
static bool next_event(lane* l, uint16_t* what, int32_t* fd) {
  zmq_msg_t event, address;
  zmq_msg_init(&event);
  if (zmq_msg_recv(&event, l->monitor, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&event);
    return false;
  }
  *what = 0;
  if (zmq_msg_size(&event) >= 6) {
    memcpy(what, zmq_msg_data(&event), sizeof *what);
    memcpy(fd, (const uint8_t*)zmq_msg_data(&event) + 2, sizeof *fd);
  }
  zmq_msg_init(&address);
  if (zmq_msg_more(&event)) (void)zmq_msg_recv(&address, l->monitor, ZMQ_DONTWAIT);
  zmq_msg_close(&address);
  zmq_msg_close(&event);
  return true;
}

/// Whether the peer's connection has ended. A descriptor is used again: an end that was told before its connection had
/// begun is somebody else's.
static bool has_ended(lane* l) {
  uint16_t what = 0;
  int32_t fd = -1;
  bool ended = false;
  while (next_event(l, &what, &fd)) {
    if (fd != l->peer_fd) continue;
    if (what == ZMQ_EVENT_DISCONNECTED) ended = true;
    if (what == ZMQ_EVENT_ACCEPTED) ended = false;
  }
  return ended;
}

// A stranger's first frame: the token makes it the session's peer on this lane, anything else is ignored.
static void greet(orion_engine* e, lane* l, zmq_msg_t* identity, zmq_msg_t* message) {
  struct orion_net* n = e->net;
  orion_frame head;
  const uint8_t* data = zmq_msg_data(message);
  if (zmq_msg_size(identity) > IDENTITY_MAX || !net_frame_ok(data, zmq_msg_size(message), &head) ||
      head.type != ORION_FRAME_CONTROL || !net_token_matches(n, data + sizeof head, head.bytes)) {
    engine_log(e, ENGINE_LOG_WARN, "a connection without this session's token was ignored");
    return;
  }
  l->identity_bytes = zmq_msg_size(identity);
  memcpy(l->identity, zmq_msg_data(identity), l->identity_bytes);
  l->peer_fd = zmq_msg_get(message, ZMQ_SRCFD);
  if (has_ended(l)) engine_end(e, ORION_END_CLIENT_LOST, "the client closed a lane");
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
    net_malformed(e, "a message of several parts");
  } else if (peer) {
    take_message(e, l, &message);
  } else if (!l->identity_bytes && parts == 1) {
    greet(e, l, &identity, &message);
  }
  zmq_msg_close(&message);
  zmq_msg_close(&identity);
  return true;
}

// The monitor tells every connection's end; the peer's is known by its descriptor.
static void check_monitor(orion_engine* e, lane* l) {
  if (has_ended(l) && l->identity_bytes) engine_end(e, ORION_END_CLIENT_LOST, "the client closed a lane");
}

static bool receive(orion_engine* e) {
  zmq_lanes* z = lanes_of(e);
  bool moved = false;
  for (int i = 0; i < RECEIVE_BATCH && !e->end && receive_one(e, &z->bulk); i++) moved = true;
  for (int i = 0; i < RECEIVE_BATCH && !e->end && net_takes_operations(e->net) && receive_one(e, &z->ops); i++)
    moved = true;
  return moved;
}

static void check(orion_engine* e) {
  check_monitor(e, &lanes_of(e)->ops);
  check_monitor(e, &lanes_of(e)->bulk);
}

static bool readable(void* socket) {
  int events = 0;
  size_t bytes = sizeof events;
  return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) == 0 && (events & ZMQ_POLLIN);
}

// zmq_poll counts in milliseconds; markers are polled in tens of microseconds. The descriptors are edge-triggered, so
// the sockets' own state is asked first.
static void wait_for_work(orion_engine* e, uint64_t timeout_ns) {
  struct orion_net* n = e->net;
  const zmq_lanes* z = lanes_of(e);
  void* const sockets[] = {z->bulk.socket, z->ops.monitor, z->bulk.monitor, z->ops.socket};
  const nfds_t count = net_takes_operations(n) ? 4 : 3;
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

const net_lanes net_zmq_lanes = {
    .receive = receive,
    .check = check,
    .flush = flush,
    .has_room = has_room,
    .send_numbered = send_numbered,
    .wait = wait_for_work,
    .close = zmq_lanes_close,
};
