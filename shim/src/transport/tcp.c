// Another host: one I/O thread drains both rings in order, whatever is there at once and no timers, and stores what
// comes back where a shared-memory worker would have stored it. Memory stays bounded because the ring and staging are
// the credit: the thread takes from a ring only what the socket takes from it.
#define _GNU_SOURCE
#include "tcp.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"

enum { CLOSE_LIMIT_MS = 500, ROUND_FRAMES = 64 };

static tcp_state* state_of(orion_session* session) { return session->transport_state; }

void orion_tcp_kick(orion_session* session, bool express) {
  (void)express;  // one thread sleeps for both rings
  bool slept = atomic_exchange(&session->main_ring.control->consumer_parked, 0) != 0;
  slept |= atomic_exchange(&session->express_ring.control->consumer_parked, 0) != 0;
  const uint64_t one = 1;
  if (slept && write(state_of(session)->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

static bool tcp_alive(orion_session* session) { return atomic_load(&session->lost) == 0; }

static void tcp_client_word(orion_session* session, uint32_t callback, uint64_t generation) {
  if (orion_tcp_end_host_function(session, callback, generation)) return;
  tcp_state* state = state_of(session);
  atomic_fetch_or(&state->client_words_dirty[callback / 64], 1ull << (callback % 64));
  atomic_store(&state->has_client_words, true);
  if (orion_ring_must_wake(session->main_ring)) orion_tcp_kick(session, false);
}

static void tcp_drop_pages(orion_session* session, void* address, uint64_t bytes) {
  (void)session;
  madvise(address, bytes, MADV_DONTNEED);
}

// ------------------------------------------------------------------------------------------------- sending

static void gather(orion_ring ring, uint64_t* position, tcp_batch* batch) {
  const uint64_t before = *position;
  while (batch->bytes < TCP_BATCH_BYTES) {
    orion_op* op = (orion_op*)(void*)(batch->body + batch->bytes);
    if (orion_ring_pop(ring, position, op) != ORION_RING_OP) break;  // our own ring: never broken
    const uint32_t padded = (op->bytes + 7u) & ~7u;
    memset(batch->body + batch->bytes + op->bytes, 0, padded - op->bytes);
    batch->bytes += padded;
  }
  if (*position != before) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&ring.control->producers_parked)) orion_futex_wake_all(&ring.control->space);
  }
}

static bool send_batch(tcp_state* state, tcp_batch* batch, uint16_t type) {
  if (batch->bytes == 0) return true;
  batch->header = (orion_frame){.type = type, .bytes = batch->bytes};
  zmq_msg_t message;
  if (zmq_msg_init_size(&message, sizeof batch->header + batch->bytes) != 0) return false;
  memcpy(zmq_msg_data(&message), &batch->header, sizeof batch->header);
  memcpy((uint8_t*)zmq_msg_data(&message) + sizeof batch->header, batch->body, batch->bytes);
  if (zmq_msg_send(&message, state->ops, ZMQ_DONTWAIT) < 0) {
    zmq_msg_close(&message);
    return false;
  }
  batch->bytes = 0;
  return true;
}

// True when something was sent.
static bool send_operations(tcp_state* state) {
  orion_session* session = state->session;
  if (state->main_batch.bytes == 0 && state->express_batch.bytes == 0) {
    // Main first, express sent first: whatever was in the express ring before a main operation precedes it here too.
    gather(session->main_ring, &state->main_position, &state->main_batch);
    gather(session->express_ring, &state->express_position, &state->express_batch);
    if (state->main_batch.bytes == 0 && state->express_batch.bytes == 0) return false;
  }
  const bool had_express = state->express_batch.bytes != 0;
  if (!send_batch(state, &state->express_batch, ORION_FRAME_OPS_EXPRESS)) return false;
  return send_batch(state, &state->main_batch, ORION_FRAME_OPS_MAIN) || had_express;
}

static bool bulk_message(tcp_state* state, const tcp_range* piece, zmq_msg_t* message) {
  const orion_frame header = {.type = ORION_FRAME_BULK,
                              .bytes = (uint32_t)piece->bytes,
                              .sequence = state->sequence_sent + 1,
                              .a = piece->offset};
  if (zmq_msg_init_size(message, sizeof header + piece->bytes) != 0) return false;
  memcpy(zmq_msg_data(message), &header, sizeof header);
  orion_tcp_load(state, piece->offset, (uint8_t*)zmq_msg_data(message) + sizeof header, piece->bytes);
  return true;
}

static bool word_message(const tcp_state* state, uint32_t index, zmq_msg_t* message) {
  const orion_frame header = {.type = ORION_FRAME_CLIENT_WORDS, .bytes = sizeof(orion_word_update)};
  const orion_word_update update = {index, atomic_load(&state->session->segment->client_words[index])};
  if (zmq_msg_init_size(message, sizeof header + sizeof update) != 0) return false;
  memcpy(zmq_msg_data(message), &header, sizeof header);
  memcpy((uint8_t*)zmq_msg_data(message) + sizeof header, &update, sizeof update);
  return true;
}

static bool runs_message(const tcp_state* state, const tcp_runs* runs, zmq_msg_t* message) {
  const orion_frame header = {.type = ORION_FRAME_RUNS, .bytes = runs->bytes, .sequence = state->sequence_sent + 1};
  if (zmq_msg_init_size(message, sizeof header + runs->bytes) != 0) return false;
  memcpy(zmq_msg_data(message), &header, sizeof header);
  memcpy((uint8_t*)zmq_msg_data(message) + sizeof header, runs->data, runs->bytes);
  return true;
}

static bool piece_message(tcp_state* state, const tcp_range* piece, zmq_msg_t* message) {
  if (piece->runs) return runs_message(state, piece->runs, message);
  return piece->bytes ? bulk_message(state, piece, message) : word_message(state, (uint32_t)piece->offset, message);
}

static bool send_bulk(tcp_state* state) {
  tcp_range piece;
  bool any = false;
  for (int i = 0; i < TCP_BULK_HIGH_WATER && atomic_load(&state->has_bulk); i++) {
    if (!orion_tcp_next_piece(state, &piece)) break;
    int events = 0;
    size_t events_bytes = sizeof events;
    if (zmq_getsockopt(state->bulk, ZMQ_EVENTS, &events, &events_bytes) != 0 || !(events & ZMQ_POLLOUT)) break;
    zmq_msg_t message;
    if (!piece_message(state, &piece, &message)) break;
    if (zmq_msg_send(&message, state->bulk, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&message);
      break;
    }
    if (piece.bytes || piece.runs) state->sequence_sent++;
    orion_tcp_piece_sent(state, &piece);
    any = true;
  }
  return any;
}

static bool send_client_words(tcp_state* state) {
  if (!atomic_exchange(&state->has_client_words, false)) return false;
  orion_word_update updates[64];
  for (uint32_t group = 0; group < ORION_CLIENT_WORDS / 64; group++) {
    const uint64_t dirty = atomic_exchange(&state->client_words_dirty[group], 0);
    uint32_t count = 0;
    for (uint64_t left = dirty; left; left &= left - 1) {
      const uint32_t index = group * 64 + (uint32_t)__builtin_ctzll(left);
      updates[count++] = (orion_word_update){index, atomic_load(&state->session->segment->client_words[index])};
    }
    if (count == 0) continue;
    const orion_frame header = {.type = ORION_FRAME_CLIENT_WORDS, .bytes = count * (uint32_t)sizeof *updates};
    uint8_t frame[sizeof header + sizeof updates];
    memcpy(frame, &header, sizeof header);
    memcpy(frame + sizeof header, updates, header.bytes);
    // The worker stops reading operations while too many wait, perhaps for this word; it always reads the bulk lane.
    if (zmq_send(state->bulk, frame, sizeof header + header.bytes, ZMQ_DONTWAIT) < 0) {
      atomic_fetch_or(&state->client_words_dirty[group], dirty);
      atomic_store(&state->has_client_words, true);
      return false;
    }
  }
  return true;
}

// ------------------------------------------------------------------------------------------------- receiving

static void lose_malformed(tcp_state* state, const char* lane) {
  orion_session_lose(state->session, CUDA_ERROR_DEVICE_UNAVAILABLE, "the worker sent a malformed frame on the %s lane",
                     lane);
}

static bool receive_bulk(tcp_state* state) {
  bool any = false;
  for (int i = 0; i < TCP_BULK_HIGH_WATER; i++) {
    zmq_msg_t message;
    zmq_msg_init(&message);
    if (zmq_msg_recv(&message, state->bulk, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&message);
      break;
    }
    any = true;
    if (orion_tcp_take_bulk_frame(state, zmq_msg_data(&message), zmq_msg_size(&message)) == TCP_FRAME_BAD)
      lose_malformed(state, "bulk");
    zmq_msg_close(&message);
  }
  return any;
}

static bool receive_operations(tcp_state* state) {
  bool any = false;
  for (int i = 0; i < ROUND_FRAMES; i++) {
    if (!state->has_held) {
      zmq_msg_init(&state->held);
      if (zmq_msg_recv(&state->held, state->ops, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&state->held);
        break;
      }
      state->has_held = true;
    }
    const enum tcp_frame_result result =
        orion_tcp_take_ops_frame(state, zmq_msg_data(&state->held), zmq_msg_size(&state->held));
    if (result == TCP_FRAME_HOLD) break;
    if (result == TCP_FRAME_BAD) lose_malformed(state, "operations");
    zmq_msg_close(&state->held);
    state->has_held = false;
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
  // At exit the worker may leave as soon as it has read our detach, before the lanes are closed here.
  if (event && !atomic_load(&state->stop) && orion_ready() != CUDA_ERROR_DEINITIALIZED)
    orion_session_lose(state->session, CUDA_ERROR_DEVICE_UNAVAILABLE, "the connection to the worker is lost");
}

// ------------------------------------------------------------------------------------------------- the I/O thread

static bool has_operations(const tcp_state* state) {
  return orion_ring_ready(state->session->main_ring, state->main_position) ||
         orion_ring_ready(state->session->express_ring, state->express_position);
}

static bool has_bulk_lane_work(const tcp_state* state) {
  return atomic_load(&state->has_bulk) || atomic_load(&state->has_client_words);
}

static void sleep_until_work(tcp_state* state) {
  orion_session* session = state->session;
  const bool ops_wait = state->main_batch.bytes || state->express_batch.bytes;
  const bool bulk_waits = has_bulk_lane_work(state);
  atomic_store(&session->main_ring.control->consumer_parked, 1);
  atomic_store(&session->express_ring.control->consumer_parked, 1);
  atomic_thread_fence(memory_order_seq_cst);
  zmq_pollitem_t items[] = {
      {state->ops, 0, (short)((state->has_held ? 0 : ZMQ_POLLIN) | (ops_wait ? ZMQ_POLLOUT : 0)), 0},
      {state->bulk, 0, (short)(ZMQ_POLLIN | (bulk_waits ? ZMQ_POLLOUT : 0)), 0},
      {state->ops_monitor, 0, ZMQ_POLLIN, 0},
      {state->bulk_monitor, 0, ZMQ_POLLIN, 0},
      {NULL, state->wake_fd, ZMQ_POLLIN, 0},
  };
  // Work that came after the last look, except what waits for the socket, keeps this thread awake.
  const bool new_bulk = !bulk_waits && has_bulk_lane_work(state);
  const bool again = new_bulk || atomic_load(&state->stop) || (!ops_wait && has_operations(state));
  zmq_poll(items, 5, again ? 0 : 100);
  atomic_store(&session->main_ring.control->consumer_parked, 0);
  atomic_store(&session->express_ring.control->consumer_parked, 0);
  uint64_t count = 0;
  if ((items[4].revents & ZMQ_POLLIN) && read(state->wake_fd, &count, sizeof count) < 0) return;
  if (items[2].revents) check_monitor(state, state->ops_monitor);
  if (items[3].revents) check_monitor(state, state->bulk_monitor);
}

static void* io_thread(void* argument) {
  tcp_state* state = argument;
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
      if (stop_until_ns == 0) stop_until_ns = now_ns + CLOSE_LIMIT_MS * 1000000ull;
      if (lost || now_ns > stop_until_ns ||
          (!progress && !state->main_batch.bytes && !has_operations(state) && !atomic_load(&state->has_client_words)))
        break;
    } else if (lost) {
      break;
    }
    if (!progress) sleep_until_work(state);
  }
  if (state->has_held) zmq_msg_close(&state->held);
  state->has_held = false;
  zmq_socket_monitor(state->ops, NULL, 0);
  zmq_socket_monitor(state->bulk, NULL, 0);
  zmq_close(state->ops_monitor);
  zmq_close(state->bulk_monitor);
  zmq_close(state->ops);
  zmq_close(state->bulk);
  while (zmq_ctx_term(state->context) != 0 && zmq_errno() == EINTR) continue;
  orion_futex_wake_all(&state->stopped);
  return NULL;
}

static void tcp_close(orion_session* session) {
  tcp_state* state = state_of(session);
  if (!state->has_thread || atomic_exchange(&state->stop, true)) return;
  const uint64_t one = 1;
  if (write(state->wake_fd, &one, sizeof one) < 0) return;
  const uint64_t until_ns = orion_now_ns() + 2 * CLOSE_LIMIT_MS * 1000000ull;
  while (atomic_load(&state->stopped) == 0 && orion_now_ns() < until_ns)
    orion_futex_wait(&state->stopped, 0, CLOSE_LIMIT_MS * 1000);
  if (atomic_load(&state->stopped)) pthread_join(state->thread, NULL);
}

static void tcp_after_fork(orion_session* session) {
  // ZeroMQ's descriptors are close-on-exec; its threads do not exist here, so nothing of it may be called.
  close(state_of(session)->wake_fd);
}

static const orion_transport tcp_transport = {
    .name = "tcp",
    .posts_waiters = false,
    .kick = orion_tcp_kick,
    .alive = tcp_alive,
    .push_host = orion_tcp_push_host,
    .push_pinned = orion_tcp_push_pinned,
    .begin_host_function = orion_tcp_begin_host_function,
    .note_rows = orion_tcp_note_rows,
    .coherent_begin = orion_tcp_coherent_begin,
    .coherent_push = orion_tcp_coherent_push,
    .coherent_end = orion_tcp_coherent_end,
    .adoptable = orion_tcp_adoptable,
    .adopt = orion_tcp_adopt,
    .adopt_end = orion_tcp_adopt_end,
    .place = orion_tcp_place,
    .unplace = orion_tcp_unplace,
    .client_word = tcp_client_word,
    .drop_pages = tcp_drop_pages,
    .close = tcp_close,
    .after_fork = tcp_after_fork,
};

// ------------------------------------------------------------------------------------------------- opening

// An endpoint that names no host is on the host that we attached to.
static void resolve_endpoint(const orion_session* session, const char* endpoint, char out[320]) {
  static const char* const any[] = {"tcp://*:", "tcp://0.0.0.0:"};
  for (int i = 0; i < 2; i++) {
    const size_t n = strlen(any[i]);
    if (strncmp(endpoint, any[i], n) != 0) continue;
    const char* colon = strrchr(session->server_address, ':');
    snprintf(out, 320, "tcp://%.*s:%s", (int)(colon ? colon - session->server_address : 0), session->server_address,
             endpoint + n);
    return;
  }
  snprintf(out, 320, "%s", endpoint);
}

static void* open_lane(tcp_state* state, const char* endpoint, int high_water, const char* monitor_name,
                       void** monitor) {
  char address[320];
  resolve_endpoint(state->session, endpoint, address);
  void* socket = zmq_socket(state->context, ZMQ_DEALER);
  if (!socket) return NULL;
  const int linger_ms = CLOSE_LIMIT_MS;
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
      zmq_socket_monitor(socket, monitor_name, events) || !(*monitor = zmq_socket(state->context, ZMQ_PAIR)) ||
      zmq_connect(*monitor, monitor_name) || zmq_connect(socket, address)) {
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

static const char* make_memory(orion_session* session) {
  session->segment = orion_map_segment(-1);
  if (!session->segment) return "no memory for the segment";
  session->segment->magic = ORION_SEGMENT_MAGIC;
  session->segment->major = ORION_WIRE_MAJOR;
  session->segment->minor = ORION_WIRE_MINOR;
  session->segment->segment_bytes = sizeof *session->segment;
  session->main_ring = orion_main_ring(session->segment);
  session->express_ring = orion_express_ring(session->segment);
  void* arena = mmap(session->host_base, ORION_HOST_ARENA_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (arena == MAP_FAILED) return "no memory for the host arena (is RLIMIT_AS set?)";
  madvise(arena, ORION_HOST_ARENA_BYTES, MADV_DONTFORK);
  return NULL;
}

static const char* start_thread(tcp_state* state) {
  // The program's signals are its own: none is handled on this thread.
  sigset_t before;
  orion_block_signals(&before);
  state->has_thread = pthread_create(&state->thread, NULL, io_thread, state) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!state->has_thread) return "no thread for network I/O";
  pthread_setname_np(state->thread, "orion-io");
  return NULL;
}

static const char* open_all(tcp_state* state, const char* ops_endpoint, const char* bulk_endpoint,
                            const uint8_t token[32], uint32_t timeout_ms) {
  const char* why = make_memory(state->session);
  if (why) return why;
  state->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  state->context = zmq_ctx_new();
  if (state->wake_fd < 0 || !state->context) return "out of descriptors or memory";
  state->ops = open_lane(state, ops_endpoint, TCP_OPS_HIGH_WATER, "inproc://ops-monitor", &state->ops_monitor);
  state->bulk = open_lane(state, bulk_endpoint, TCP_BULK_HIGH_WATER, "inproc://bulk-monitor", &state->bulk_monitor);
  if (!state->ops || !state->bulk) return zmq_strerror(zmq_errno());
  if (!say_token(state->ops, token) || !say_token(state->bulk, token)) return zmq_strerror(zmq_errno());
  const uint64_t deadline_ns = orion_now_ns() + timeout_ms * 1000000ull;
  why = await_welcome(state->ops, state->ops_monitor, deadline_ns);
  if (!why) why = await_welcome(state->bulk, state->bulk_monitor, deadline_ns);
  return why ? why : start_thread(state);
}

bool orion_tcp_open(orion_session* session, const char* ops_endpoint, const char* bulk_endpoint,
                    const uint8_t token[32], uint32_t timeout_ms) {
  tcp_state* state = calloc(1, sizeof *state);
  if (!state) {
    orion_log(ORION_LOG_ERROR, "out of memory");
    return false;
  }
  state->session = session;
  state->wake_fd = -1;
  pthread_mutex_init(&state->lock, NULL);
  session->transport_state = state;
  session->transport = &tcp_transport;
  session->transport_name = tcp_transport.name;
  const char* why = open_all(state, ops_endpoint, bulk_endpoint, token, timeout_ms);
  if (!why) return true;
  session->transport = NULL;
  orion_log(ORION_LOG_ERROR, "the tcp connection to the worker of %s (%s) failed: %s", session->server_address,
            ops_endpoint, why);
  const int no_linger_ms = 0;
  void* const sockets[] = {state->ops, state->bulk};
  for (int i = 0; i < 2; i++) {
    if (!sockets[i]) continue;
    zmq_socket_monitor(sockets[i], NULL, 0);
    zmq_setsockopt(sockets[i], ZMQ_LINGER, &no_linger_ms, sizeof no_linger_ms);
    zmq_close(sockets[i]);
  }
  if (state->ops_monitor) zmq_close(state->ops_monitor);
  if (state->bulk_monitor) zmq_close(state->bulk_monitor);
  if (state->context) zmq_ctx_term(state->context);
  if (state->wake_fd >= 0) close(state->wake_fd);
  if (session->segment) munmap(session->segment, sizeof *session->segment);
  session->segment = NULL;
  pthread_mutex_destroy(&state->lock);
  free(state);
  session->transport_state = NULL;
  return false;
}
