// Lanes that are ZeroMQ's, for workers that offer no others: lane 0 carries operations, replies and words, lane 1 bulk.
// Only the I/O thread touches the sockets once it runs.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "tcp.h"

enum {
  OPS_HIGH_WATER = 32,  // frames
  BULK_HIGH_WATER = 4,
  ROUND_FRAMES = 64,
};

typedef struct zmq_lanes {
  void *context, *ops, *bulk, *ops_monitor, *bulk_monitor;
  zmq_msg_t held;  // a words frame that came before the bulk it speaks of
  bool has_held;
} zmq_lanes;

static zmq_lanes* lanes_of(const tcp_state* state) { return state->lanes_state; }

// ------------------------------------------------------------------------------------------------- sending

static bool send_batch(const tcp_state* state, tcp_batch* batch, uint16_t type) {
  if (batch->bytes == 0) return true;
  batch->header = (orion_frame){.type = type, .bytes = batch->bytes};
  zmq_msg_t message;
  if (zmq_msg_init_size(&message, sizeof batch->header + batch->bytes) != 0) return false;
  memcpy(zmq_msg_data(&message), &batch->header, sizeof batch->header);
  memcpy((uint8_t*)zmq_msg_data(&message) + sizeof batch->header, batch->body, batch->bytes);
  if (zmq_msg_send(&message, lanes_of(state)->ops, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&message);
    return false;
  }
  batch->bytes = 0;
  return true;
}

// True when something was sent.
static bool send_operations(tcp_state* state) {
  if (!orion_tcp_gather(state)) return false;
  const bool had_express = state->express_batch.bytes != 0;
  if (!send_batch(state, &state->express_batch, ORION_FRAME_OPS_EXPRESS)) return false;
  return send_batch(state, &state->main_batch, ORION_FRAME_OPS_MAIN) || had_express;
}

static bool piece_message(tcp_state* state, const tcp_range* piece, zmq_msg_t* message) {
  const orion_frame header = orion_tcp_piece_header(state, piece);
  if (zmq_msg_init_size(message, sizeof header + header.bytes) != 0) return false;
  memcpy(zmq_msg_data(message), &header, sizeof header);
  orion_tcp_piece_body(state, piece, (uint8_t*)zmq_msg_data(message) + sizeof header);
  return true;
}

static bool send_bulk(tcp_state* state) {
  tcp_range piece;
  bool any = false;
  for (int i = 0; i < BULK_HIGH_WATER && atomic_load(&state->has_bulk); i++) {
    if (!orion_tcp_next_piece(state, &piece)) break;
    int events = 0;
    size_t events_bytes = sizeof events;
    if (zmq_getsockopt(lanes_of(state)->bulk, ZMQ_EVENTS, &events, &events_bytes) != 0 || !(events & ZMQ_POLLOUT))
      break;
    zmq_msg_t message;
    if (!piece_message(state, &piece, &message)) break;
    if (zmq_msg_send(&message, lanes_of(state)->bulk, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&message);
      break;
    }
    orion_tcp_piece_sent(state, &piece);
    any = true;
  }
  return any;
}

static bool send_client_words(tcp_state* state) {
  orion_word_update updates[64];
  uint32_t count = 0, group = 0;
  while ((count = orion_tcp_take_client_words(state, &group, updates)) != 0) {
    const orion_frame header = {.type = ORION_FRAME_CLIENT_WORDS, .bytes = count * (uint32_t)sizeof *updates};
    uint8_t frame[sizeof header + sizeof updates];
    memcpy(frame, &header, sizeof header);
    memcpy(frame + sizeof header, updates, header.bytes);
    // The worker stops reading operations while too many wait, perhaps for this word; it always reads the bulk lane.
    if (zmq_send(lanes_of(state)->bulk, frame, sizeof header + header.bytes, ZMQ_DONTWAIT) < 0) {
      orion_tcp_return_client_words(state, updates, count);
      return false;
    }
  }
  return group != 0;
}

// ------------------------------------------------------------------------------------------------- receiving

static bool receive_bulk(tcp_state* state) {
  bool any = false;
  for (int i = 0; i < BULK_HIGH_WATER; i++) {
    zmq_msg_t message;
    zmq_msg_init(&message);
    if (zmq_msg_recv(&message, lanes_of(state)->bulk, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&message);
      break;
    }
    any = true;
    orion_frame header = {.type = ORION_FRAME_CONTROL};
    if (zmq_msg_size(&message) >= sizeof header) memcpy(&header, zmq_msg_data(&message), sizeof header);
    if (header.type != ORION_FRAME_CONTROL) {
      if (orion_tcp_take_bulk_frame(state, zmq_msg_data(&message), zmq_msg_size(&message)) == TCP_FRAME_BAD)
        orion_tcp_lose_malformed(state, "bulk");
      else
        atomic_store(&state->sequence_received, header.sequence);
    }
    zmq_msg_close(&message);
  }
  return any;
}

static bool receive_operations(tcp_state* state) {
  zmq_lanes* z = lanes_of(state);
  bool any = false;
  for (int i = 0; i < ROUND_FRAMES; i++) {
    if (!z->has_held) {
      zmq_msg_init(&z->held);
      if (zmq_msg_recv(&z->held, z->ops, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&z->held);
        break;
      }
      z->has_held = true;
    }
    const enum tcp_frame_result result =
        orion_tcp_take_ops_frame(state, zmq_msg_data(&z->held), zmq_msg_size(&z->held));
    if (result == TCP_FRAME_HOLD) break;
    if (result == TCP_FRAME_BAD) orion_tcp_lose_malformed(state, "operations");
    zmq_msg_close(&z->held);
    z->has_held = false;
    any = true;
  }
  if (any) orion_wake_clients(state->session);
  return any;
}

// A monitor speaks only when a lane is lost: all other events are filtered out.
static void check_monitor(tcp_state* state, void* monitor) {
  bool event = false;
  zmq_msg_t message;
  zmq_msg_init(&message);
  while (zmq_msg_recv(&message, monitor, ZMQ_DONTWAIT) >= 0) event = true;
  zmq_msg_close(&message);
  if (event) orion_tcp_connection_lost(state);
}

// ------------------------------------------------------------------------------------------------- the I/O thread

static void sleep_until_work(tcp_state* state) {
  orion_session* session = state->session;
  zmq_lanes* z = lanes_of(state);
  const bool ops_wait = state->main_batch.bytes || state->express_batch.bytes;
  const bool bulk_waits = orion_tcp_has_bulk_work(state);
  atomic_store(&session->main_ring.control->consumer_parked, 1);
  atomic_store(&session->express_ring.control->consumer_parked, 1);
  atomic_thread_fence(memory_order_seq_cst);
  zmq_pollitem_t items[] = {
      {z->ops, 0, (short)((z->has_held ? 0 : ZMQ_POLLIN) | (ops_wait ? ZMQ_POLLOUT : 0)), 0},
      {z->bulk, 0, (short)(ZMQ_POLLIN | (bulk_waits ? ZMQ_POLLOUT : 0)), 0},
      {z->ops_monitor, 0, ZMQ_POLLIN, 0},
      {z->bulk_monitor, 0, ZMQ_POLLIN, 0},
      {NULL, state->wake_fd, ZMQ_POLLIN, 0},
  };
  // Work that came after the last look, except what waits for the socket, keeps this thread awake.
  const bool new_bulk = !bulk_waits && orion_tcp_has_bulk_work(state);
  const bool again = new_bulk || atomic_load(&state->stop) || (!ops_wait && orion_tcp_has_operations(state));
  zmq_poll(items, 5, again ? 0 : 100);
  atomic_store(&session->main_ring.control->consumer_parked, 0);
  atomic_store(&session->express_ring.control->consumer_parked, 0);
  uint64_t count = 0;
  if ((items[4].revents & ZMQ_POLLIN) && read(state->wake_fd, &count, sizeof count) < 0) return;
  if (items[2].revents) check_monitor(state, z->ops_monitor);
  if (items[3].revents) check_monitor(state, z->bulk_monitor);
}

static void run(tcp_state* state) {
  orion_session* session = state->session;
  uint64_t stop_until_ns = 0;
  for (;;) {
    bool progress = send_bulk(state);
    progress |= send_operations(state);
    progress |= send_client_words(state);
    progress |= receive_bulk(state);
    progress |= receive_operations(state);
    const int32_t lost = atomic_load(&session->lost);
    if (atomic_load(&state->stop)) {
      const uint64_t now_ns = orion_now_ns();
      if (stop_until_ns == 0) stop_until_ns = now_ns + TCP_CLOSE_LIMIT_MS * 1000000ull;
      if (lost || now_ns > stop_until_ns ||
          (!progress && !state->main_batch.bytes && !orion_tcp_has_operations(state) &&
           !atomic_load(&state->has_client_words)))
        break;
    } else if (lost) {
      break;
    }
    if (!progress) sleep_until_work(state);
  }
}

static void close_lanes(tcp_state* state) {
  zmq_lanes* z = lanes_of(state);
  if (!z) return;
  if (z->has_held) zmq_msg_close(&z->held);
  // Lanes that never carried anything have nothing to deliver.
  const int linger_ms = state->has_thread ? TCP_CLOSE_LIMIT_MS : 0;
  void* const sockets[] = {z->ops, z->bulk};
  for (int i = 0; i < 2; i++) {
    if (!sockets[i]) continue;
    zmq_socket_monitor(sockets[i], NULL, 0);
    zmq_setsockopt(sockets[i], ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(sockets[i]);
  }
  if (z->ops_monitor) zmq_close(z->ops_monitor);
  if (z->bulk_monitor) zmq_close(z->bulk_monitor);
  while (z->context && zmq_ctx_term(z->context) != 0 && zmq_errno() == EINTR) continue;
  free(z);
  state->lanes_state = NULL;
}

// ZeroMQ's descriptors are close-on-exec; its threads do not exist here, so nothing of it may be called.
static void after_fork(tcp_state* state) { (void)state; }

// ------------------------------------------------------------------------------------------------- opening

static void* open_lane(tcp_state* state, const char* endpoint, int high_water, const char* monitor_name,
                       void** monitor) {
  char address[320];
  orion_tcp_resolve(state, "tcp", endpoint, address);
  void* socket = zmq_socket(lanes_of(state)->context, ZMQ_DEALER);
  if (!socket) return NULL;
  const int linger_ms = TCP_CLOSE_LIMIT_MS;
  const int no_reconnect = -1;  // a worker that we lost does not come back
  const int heartbeat_ms = 2000;
  const int heartbeat_limit_ms = 10000;
  const int64_t most_bytes = ORION_FRAME_MAX_BYTES + (int64_t)sizeof(orion_frame);
  const int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
  if (zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms) ||
      zmq_setsockopt(socket, ZMQ_SNDHWM, &high_water, sizeof high_water) ||
      zmq_setsockopt(socket, ZMQ_RCVHWM, &high_water, sizeof high_water) ||
      zmq_setsockopt(socket, ZMQ_RECONNECT_IVL, &no_reconnect, sizeof no_reconnect) ||
      zmq_setsockopt(socket, ZMQ_HEARTBEAT_IVL, &heartbeat_ms, sizeof heartbeat_ms) ||
      zmq_setsockopt(socket, ZMQ_HEARTBEAT_TIMEOUT, &heartbeat_limit_ms, sizeof heartbeat_limit_ms) ||
      zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &most_bytes, sizeof most_bytes) ||
      zmq_socket_monitor(socket, monitor_name, events) ||
      !(*monitor = zmq_socket(lanes_of(state)->context, ZMQ_PAIR)) || zmq_connect(*monitor, monitor_name) ||
      zmq_connect(socket, address)) {
    zmq_socket_monitor(socket, NULL, 0);
    zmq_close(socket);
    return NULL;
  }
  return socket;
}

static bool say_token(void* socket, const uint8_t token[32]) {
  const orion_frame header = {.type = ORION_FRAME_CONTROL, .bytes = 32};
  uint8_t frame[sizeof header + 32];
  memcpy(frame, &header, sizeof header);
  memcpy(frame + sizeof header, token, 32);
  return zmq_send(socket, frame, sizeof frame, 0) >= 0;
}

static const char* await_welcome(void* socket, void* monitor, uint64_t deadline_ns) {
  for (;;) {
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= deadline_ns) return "it did not answer the token in time";
    zmq_pollitem_t items[] = {{socket, 0, ZMQ_POLLIN, 0}, {monitor, 0, ZMQ_POLLIN, 0}};
    if (zmq_poll(items, 2, (long)((deadline_ns - now_ns) / 1000000) + 1) < 0 && zmq_errno() != EINTR)
      return zmq_strerror(zmq_errno());
    if (items[0].revents) {
      orion_frame header = {0};
      const int bytes = zmq_recv(socket, &header, sizeof header, 0);
      if (bytes == (int)sizeof header && header.type == ORION_FRAME_CONTROL && header.bytes == 0) return NULL;
      return "its answer to the token is malformed";
    }
    if (items[1].revents) return "it closed the connection (was the token refused?)";
  }
}

static const char* open_lanes(tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                              uint64_t deadline_ns) {
  zmq_lanes* z = calloc(1, sizeof *z);
  if (!z) return "out of memory";
  state->lanes_state = z;
  z->context = zmq_ctx_new();
  if (!z->context) return "out of descriptors or memory";
  z->ops = open_lane(state, endpoints[0], OPS_HIGH_WATER, "inproc://ops-monitor", &z->ops_monitor);
  z->bulk = open_lane(state, endpoints[1], BULK_HIGH_WATER, "inproc://bulk-monitor", &z->bulk_monitor);
  if (!z->ops || !z->bulk) return zmq_strerror(zmq_errno());
  if (!say_token(z->ops, token) || !say_token(z->bulk, token)) return zmq_strerror(zmq_errno());
  const char* why = await_welcome(z->ops, z->ops_monitor, deadline_ns);
  return why ? why : await_welcome(z->bulk, z->bulk_monitor, deadline_ns);
}

const tcp_lanes orion_tcp_zmq_lanes = {
    .open = open_lanes,
    .run = run,
    .close = close_lanes,
    .after_fork = after_fork,
};
