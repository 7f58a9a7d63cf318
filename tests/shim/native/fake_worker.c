#define _GNU_SOURCE
#include "fake_worker.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "fake_raw.h"
#include "gen_ops.h"
#include "orion_ring.h"
#include "session/futex.h"
#include "session/msgpack.h"

uint8_t* fake_device_memory;

static bool over_tcp, over_raw;  // `over_raw`: over_tcp with plain sockets
static void *context, *control, *ops_lane, *bulk_lane;
static int listener = -1;
static char socket_path[64];
static uint8_t token[32];
static orion_segment* segment;  // the worker's view
static uint8_t* arena;          // the worker's view
static _Atomic(orion_segment*) client_view;
static int segment_fd = -1, arena_fd = -1;
static _Atomic uint64_t slot_base, executed;
static _Atomic bool killed, held, detached, garbage;
static _Atomic int pending_act;
static _Atomic uint64_t act_offset;
static _Atomic uint32_t pending_word;
static _Atomic uint64_t pending_value;
static uint64_t bulk_received, bulk_sent;
static uint64_t client_words_over_tcp[ORION_CLIENT_WORDS];

// ------------------------------------------------------------------------------------------------- answers

static void send_frame(void* lane, uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body,
                       uint32_t bytes) {
  const orion_frame header = {.type = type, .bytes = bytes, .sequence = sequence, .a = a, .b = b};
  uint8_t* frame = malloc(sizeof header + bytes);
  memcpy(frame, &header, sizeof header);
  if (bytes) memcpy(frame + sizeof header, body, bytes);
  CHECK(zmq_send(lane, frame, sizeof header + bytes, 0) >= 0);
  free(frame);
}

static void send_ops_frame(uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body, uint32_t bytes) {
  if (over_raw)
    fake_raw_send(type, sequence, a, b, body, bytes);
  else
    send_frame(ops_lane, type, sequence, a, b, body, bytes);
}

static void send_range(uint64_t offset, uint64_t bytes) {
  if (over_raw) {
    fake_raw_send_range(arena, offset, bytes);
    bulk_sent = fake_raw_sent();
    return;
  }
  for (uint64_t at = 0; at < bytes; at += ORION_BULK_BYTES) {
    const uint64_t left = bytes - at;
    send_frame(bulk_lane, ORION_FRAME_BULK, ++bulk_sent, offset + at, 0, arena + offset + at,
               (uint32_t)(left < ORION_BULK_BYTES ? left : ORION_BULK_BYTES));
  }
}

static void wake_client(void) {
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(&segment->client_waiters)) orion_futex_wake_all(&segment->client_wake);
}

static void set_word(uint32_t word, uint64_t value) {
  if (over_tcp) {
    const orion_word_update update = {word, value};
    send_ops_frame(ORION_FRAME_WORDS, bulk_sent, 0, 0, &update, sizeof update);
    return;
  }
  atomic_store_explicit(&segment->words[word], value, memory_order_release);
  wake_client();
}

static void answer(const orion_op* op, int32_t result, const void* payload, uint32_t bytes) {
  if (op->reply_slot == ORION_NO_REPLY) return;
  CHECK(op->reply_slot < ORION_REPLY_SLOTS);
  if (over_tcp) {
    send_ops_frame(ORION_FRAME_REPLY, op->reply_seq, op->reply_slot, (uint64_t)(uint32_t)result, payload, bytes);
    return;
  }
  orion_reply* reply = &segment->replies[op->reply_slot];
  reply->result = result;
  reply->bytes = bytes;
  if (bytes) memcpy(reply->payload, payload, bytes);
  atomic_store_explicit(&reply->done, op->reply_seq, memory_order_release);
  wake_client();
}

static bool take_client_words(const uint8_t* data, size_t bytes) {
  orion_frame header;
  orion_word_update update;
  CHECK(bytes >= sizeof header);
  memcpy(&header, data, sizeof header);
  if (header.type != ORION_FRAME_CLIENT_WORDS) return false;
  CHECK(header.bytes == bytes - sizeof header && header.bytes % sizeof update == 0);
  for (uint32_t at = 0; at < header.bytes; at += sizeof update) {
    memcpy(&update, data + sizeof header + at, sizeof update);
    CHECK(update.index < ORION_CLIENT_WORDS);
    client_words_over_tcp[update.index] = update.value;
  }
  return true;
}

static void receive_bulk(int flags) {
  if (over_raw) {
    fake_raw_read(arena, client_words_over_tcp, 5);
    bulk_received = fake_raw_received();
    return;
  }
  zmq_msg_t message;
  zmq_msg_init(&message);
  if (zmq_msg_recv(&message, bulk_lane, flags) >= 0) {
    orion_frame header;
    CHECK(zmq_msg_size(&message) >= sizeof header);
    memcpy(&header, zmq_msg_data(&message), sizeof header);
    if (header.type == ORION_FRAME_BULK) {
      CHECK(zmq_msg_size(&message) == sizeof header + header.bytes && header.sequence == bulk_received + 1);
      memcpy(arena + header.a, (uint8_t*)zmq_msg_data(&message) + sizeof header, header.bytes);
      bulk_received = header.sequence;
    } else if (!take_client_words(zmq_msg_data(&message), zmq_msg_size(&message))) {
      send_frame(bulk_lane, ORION_FRAME_CONTROL, 0, 0, 0, NULL, 0);
    }
  }
  zmq_msg_close(&message);
}

static uint64_t client_word(uint32_t index) {
  return over_tcp ? client_words_over_tcp[index] : atomic_load(&segment->client_words[index]);
}

// ------------------------------------------------------------------------------------------------- operations

static uint8_t* device_at(uint64_t address, uint64_t bytes) {
  const uint64_t offset = address - atomic_load(&slot_base);
  CHECK(offset <= FAKE_DEVICE_BYTES && bytes <= FAKE_DEVICE_BYTES - offset);
  return fake_device_memory + offset;
}

static void execute(const orion_op* op) {
  atomic_fetch_add(&executed, 0);  // with fake_worker_executed: an order that the sanitizer sees, in both directions
  CHECK(op->code < ORION_OP_CODE_END && op->bytes >= ORION_OP_INFO[op->code].fixed_bytes);
  while (over_tcp && bulk_received < op->bulk_seq && !atomic_load(&killed)) receive_bulk(0);
  switch (op->code) {
    case ORION_OP_PING: {
      const orion_reply_ping reply = {((const orion_op_ping*)op)->value};
      answer(op, 0, &reply, sizeof reply);
      break;
    }
    case ORION_OP_MODULE_GET_FUNCTION: {  // echoes its tail
      const uint32_t fixed = sizeof(orion_op_module_get_function);
      answer(op, 0, (const uint8_t*)op + fixed, op->bytes - fixed);
      break;
    }
    case ORION_OP_MARK: {
      const orion_op_mark* mark = (const orion_op_mark*)op;
      set_word(mark->word, mark->value);
      break;
    }
    case ORION_OP_COPY_H2D: {
      const orion_op_copy_h2d* copy = (const orion_op_copy_h2d*)op;
      memcpy(device_at(copy->device_dst, copy->size_bytes), arena + copy->src_off, copy->size_bytes);
      break;
    }
    case ORION_OP_COPY_D2H: {
      const orion_op_copy_d2h* copy = (const orion_op_copy_d2h*)op;
      memcpy(arena + copy->dst_off, device_at(copy->src, copy->size_bytes), copy->size_bytes);
      if (over_tcp) send_range(copy->dst_off, copy->size_bytes);
      break;
    }
    case ORION_OP_MEMSET: {
      const orion_op_memset* fill = (const orion_op_memset*)op;
      memset(device_at(fill->device_dst, fill->width), (int)fill->value, fill->width);
      break;
    }
    case ORION_OP_HOST_FUNCTION: {
      const orion_op_host_function* call = (const orion_op_host_function*)op;
      set_word(call->word, call->value);
      while (client_word(call->callback) < call->generation && !atomic_load(&killed)) {
        if (over_tcp) {
          receive_bulk(0);  // the word follows the bytes that the function wrote
        } else {
          usleep(100);
        }
      }
      break;
    }
    case ORION_OP_FUNCTION_SET_CACHE_CONFIG:  // refused late
      set_word(ORION_WORD_THREAD_ERROR + op->thread,
               ORION_LATE_ERROR(((const orion_op_function_set_cache_config*)op)->function, op->code, 400));
      break;
    case ORION_OP_DETACH:
      atomic_store(&detached, true);
      break;
    default:
      answer(op, 0, NULL, 0);
      break;
  }
  atomic_fetch_add(&executed, 1);
}

static void idle_duties(void) {
  const uint32_t word = atomic_exchange(&pending_word, 0);
  if (word) set_word(word, atomic_load(&pending_value));
  const bool is_garbage = atomic_exchange(&garbage, false);
  if (over_raw) {
    const int act = atomic_exchange(&pending_act, FAKE_RAW_NOTHING);
    fake_raw_act((enum fake_raw_act)(is_garbage ? FAKE_RAW_UNKNOWN : act), arena, atomic_load(&act_offset));
    bulk_sent = fake_raw_sent();
  } else if (over_tcp && is_garbage) {
    zmq_send(ops_lane, "not a frame", 11, 0);
  }
  while (atomic_load(&held) && !atomic_load(&killed)) usleep(500);
}

// ------------------------------------------------------------------------------------------------- shm

static void send_descriptors(int peer) {
  uint8_t byte = 0;
  struct iovec vector = {&byte, 1};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(2 * sizeof(int))];
  } room = {0};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = room.space, .msg_controllen = sizeof room.space};
  struct cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(2 * sizeof(int));
  const int fds[2] = {segment_fd, arena_fd};
  memcpy(CMSG_DATA(part), fds, sizeof fds);
  CHECK(sendmsg(peer, &message, 0) == 1);
}

static int sealed_memory(const char* name, uint64_t bytes) {
  const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
  CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
  return fd;
}

static void make_shared_memory(void) {
  segment_fd = sealed_memory("segment", sizeof *segment);
  arena_fd = sealed_memory("arena", ORION_HOST_ARENA_BYTES);
  const struct {
    uint64_t magic;
    uint32_t major, minor;
    uint64_t segment_bytes;
  } first = {ORION_SEGMENT_MAGIC, ORION_WIRE_MAJOR, ORION_WIRE_MINOR, sizeof *segment};
  CHECK(pwrite(segment_fd, &first, sizeof first, 0) == (ssize_t)sizeof first);
}

static void drain_rings(int peer) {
  static _Alignas(8) uint8_t buffer[ORION_OP_MAX_BYTES], express_buffer[ORION_OP_MAX_BYTES];
  orion_ring main_ring = orion_main_ring(segment);
  orion_ring express_ring = orion_express_ring(segment);
  uint64_t main_position = 0;
  uint64_t express_position = 0;
  while (!atomic_load(&killed)) {
    idle_duties();
    const enum orion_ring_state got = orion_ring_pop(main_ring, &main_position, (orion_op*)buffer);
    bool any = got == ORION_RING_OP;
    CHECK(got != ORION_RING_BROKEN);
    while (orion_ring_pop(express_ring, &express_position, (orion_op*)express_buffer) == ORION_RING_OP) {
      execute((orion_op*)express_buffer);
      any = true;
    }
    if (got == ORION_RING_OP) execute((orion_op*)buffer);
    if (any) {
      atomic_thread_fence(memory_order_seq_cst);
      if (atomic_load(&main_ring.control->producers_parked)) orion_futex_wake_all(&main_ring.control->space);
      if (atomic_load(&express_ring.control->producers_parked)) orion_futex_wake_all(&express_ring.control->space);
      continue;
    }
    const uint32_t wake = atomic_load(&main_ring.control->wake);
    atomic_store(&main_ring.control->consumer_parked, 1);
    atomic_thread_fence(memory_order_seq_cst);
    if (!orion_ring_ready(main_ring, main_position) && !orion_ring_ready(express_ring, express_position))
      orion_futex_wait(&main_ring.control->wake, wake, 5000);
    atomic_store(&main_ring.control->consumer_parked, 0);
  }
  close(peer);
}

static void serve_shm(void) {
  const int peer = accept(listener, NULL, NULL);
  uint8_t said[64];
  CHECK(peer >= 0 && recv(peer, said, sizeof said, 0) == 32 && memcmp(said, token, 32) == 0);
  send_descriptors(peer);
  orion_segment* shared = NULL;
  while (!(shared = atomic_load(&client_view))) usleep(200);
  segment = shared;
  drain_rings(peer);
}

// ------------------------------------------------------------------------------------------------- tcp

static uint64_t taken_bytes;  // of main operations, told as the credit for more

static void execute_frame(const uint8_t* data, size_t bytes) {
  orion_frame header;
  CHECK(bytes >= sizeof header);
  memcpy(&header, data, sizeof header);
  CHECK(header.bytes == bytes - sizeof header);
  if (header.type == ORION_FRAME_CONTROL) {
    CHECK(header.bytes == 32 && memcmp(data + sizeof header, token, 32) == 0);
    send_frame(ops_lane, ORION_FRAME_CONTROL, 0, 0, 0, NULL, 0);
    return;
  }
  CHECK(header.type == ORION_FRAME_OPS_MAIN || header.type == ORION_FRAME_OPS_EXPRESS);
  for (uint32_t at = 0; at < header.bytes;) {
    static _Alignas(8) uint8_t copy[ORION_OP_MAX_BYTES];
    const orion_op* op = (const orion_op*)copy;
    CHECK(header.bytes - at >= sizeof *op);
    memcpy(copy, data + sizeof header + at, sizeof *op);
    const uint32_t length = op->bytes;
    CHECK(length >= sizeof *op && length <= ORION_OP_MAX_BYTES && length <= header.bytes - at);
    memcpy(copy, data + sizeof header + at, length);
    execute(op);
    at += (length + 7) & ~7u;
  }
  if (over_raw && header.type == ORION_FRAME_OPS_MAIN && !atomic_load(&killed)) {
    taken_bytes += header.bytes;
    set_word(ORION_WORD_TAKEN, taken_bytes);
  }
}

static void serve_tcp(void) {
  while (!atomic_load(&killed)) {
    idle_duties();
    zmq_pollitem_t items[] = {{ops_lane, 0, ZMQ_POLLIN, 0}, {bulk_lane, 0, ZMQ_POLLIN, 0}};
    zmq_poll(items, 2, 5);
    if (items[1].revents) receive_bulk(ZMQ_DONTWAIT);
    if (!items[0].revents) continue;
    zmq_msg_t message;
    zmq_msg_init(&message);
    if (zmq_msg_recv(&message, ops_lane, ZMQ_DONTWAIT) >= 0)
      execute_frame(zmq_msg_data(&message), zmq_msg_size(&message));
    zmq_msg_close(&message);
  }
  zmq_close(ops_lane);
  zmq_close(bulk_lane);
}

static void serve_raw(void) {
  fake_raw_welcome(token);
  while (!atomic_load(&killed)) {
    idle_duties();
    receive_bulk(0);
    for (uint8_t* data; !atomic_load(&killed) && (data = fake_raw_take_ops()) != NULL; free(data)) {
      orion_frame header;
      memcpy(&header, data, sizeof header);
      execute_frame(data, sizeof header + header.bytes);
    }
  }
  fake_raw_close();
}

static void* worker_thread(void* argument) {
  (void)argument;
  if (over_raw)
    serve_raw();
  else if (over_tcp)
    serve_tcp();
  else
    serve_shm();
  return NULL;
}

// ------------------------------------------------------------------------------------------------- control

static char ops_endpoint[64], bulk_endpoint[64];

static void pack_text(orion_packer* p, const char* key, const char* value) {
  orion_pack_string(p, key);
  orion_pack_string(p, value);
}

static void pack_number(orion_packer* p, const char* key, uint64_t value) {
  orion_pack_string(p, key);
  orion_pack_unsigned(p, value);
}

static void pack_attached(orion_packer* p) {
  orion_pack_string(p, "devices");
  orion_pack_array(p, 1);
  orion_pack_map(p, 8);
  pack_number(p, "ordinal", 0);
  pack_text(p, "name", "fake device");
  orion_pack_string(p, "uuid");
  orion_pack_binary(p, token, 16);
  pack_text(p, "pci_bus_id", "0000:01:00.0");
  pack_number(p, "total_bytes", FAKE_DEVICE_BYTES);
  orion_pack_string(p, "attributes");
  orion_pack_map(p, 1);
  orion_pack_unsigned(p, 16);
  orion_pack_unsigned(p, 4);
  orion_pack_string(p, "priority_range");
  orion_pack_array(p, 2);
  orion_pack_unsigned(p, 0);
  orion_pack_unsigned(p, 0);
  pack_number(p, "slot_bytes", 1ull << 34);
  orion_pack_string(p, "session");
  orion_pack_string(p, "s-1");
  orion_pack_string(p, "token");
  orion_pack_binary(p, token, 32);
  orion_pack_string(p, "wire");
  orion_pack_array(p, 2);
  orion_pack_unsigned(p, ORION_WIRE_MAJOR);
  orion_pack_unsigned(p, ORION_WIRE_MINOR);
  pack_text(p, "server", "fake");
  pack_text(p, "device_name_kind", "softgpu");
  pack_number(p, "driver_version", 13000);
  pack_text(p, "shm_socket", over_tcp ? "" : socket_path);
  pack_text(p, "tcp_ops", over_tcp ? ops_endpoint : "");
  pack_text(p, "tcp_bulk", over_tcp ? bulk_endpoint : "");
}

typedef struct request {
  char type[16];
  uint64_t id, base;
} request;

static request read_request(const uint8_t* data, size_t bytes) {
  request out = {{0}, 0, 0};
  orion_unpacker u = {data, data + bytes, false};
  for (uint32_t pairs = orion_unpack_map(&u); pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint8_t* text = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "type")) {
      const uint32_t length = orion_unpack_bytes(&u, &text);
      snprintf(out.type, sizeof out.type, "%.*s", (int)length, (const char*)text);
    } else if (orion_unpack_equals(key, n, "id")) {
      out.id = (uint64_t)orion_unpack_integer(&u);
    } else if (orion_unpack_equals(key, n, "devices")) {
      CHECK(orion_unpack_array(&u) == 1);
      for (uint32_t fields = orion_unpack_map(&u); fields; fields--) {
        const uint32_t m = orion_unpack_bytes(&u, &key);
        const uint64_t value = (uint64_t)orion_unpack_integer(&u);
        if (orion_unpack_equals(key, m, "base")) out.base = value;
      }
    } else {
      orion_unpack_skip(&u);
    }
  }
  CHECK(!u.bad);
  return out;
}

static void* control_thread(void* argument) {
  (void)argument;
  int binds = 0;
  for (;;) {
    uint8_t identity[256];
    uint8_t data[65536];
    const int identity_bytes = zmq_recv(control, identity, sizeof identity, 0);
    if (identity_bytes < 0) return NULL;
    const int bytes = zmq_recv(control, data, sizeof data, 0);
    CHECK(bytes > 0 && bytes <= (int)sizeof data);
    const request asked = read_request(data, (size_t)bytes);
    uint8_t buffer[16384];
    orion_packer p = {buffer, 0, sizeof buffer, false};
    const bool is_attach = strcmp(asked.type, "attach") == 0;
    const bool is_bind = strcmp(asked.type, "bind") == 0;
    const bool conflict = is_bind && binds++ == 0;  // the first candidates never suit
    orion_pack_map(&p, is_attach ? 13 : conflict ? 5 : 3);
    pack_number(&p, "v", 1);
    pack_text(&p, "type", is_attach ? "attached" : conflict ? "conflict" : "bound");
    pack_number(&p, "id", asked.id);
    if (is_attach) pack_attached(&p);
    if (conflict) {
      pack_number(&p, "host", 1);
      orion_pack_string(&p, "devices");
      orion_pack_array(&p, 1);
      orion_pack_unsigned(&p, 0);
    } else if (is_bind) {
      atomic_store(&slot_base, asked.base);
    }
    CHECK(!p.overflow);
    zmq_send(control, identity, (size_t)identity_bytes, ZMQ_SNDMORE);
    zmq_send(control, buffer, p.bytes, 0);
  }
}

static void* bound_socket(int type, char* endpoint, size_t capacity) {
  void* socket = zmq_socket(context, type);
  CHECK(socket && zmq_bind(socket, "tcp://127.0.0.1:*") == 0);
  CHECK(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &capacity) == 0);
  return socket;
}

void fake_worker_start(const char* transport) {
  over_raw = strncmp(transport, "raw", 3) == 0;
  over_tcp = over_raw || strcmp(transport, "tcp") == 0;
  for (int i = 0; i < 32; i++) token[i] = (uint8_t)(i * 7 + 1);
  fake_device_memory = calloc(1, FAKE_DEVICE_BYTES);
  context = zmq_ctx_new();
  char endpoint[64];
  control = bound_socket(ZMQ_ROUTER, endpoint, sizeof endpoint);
  if (over_tcp) {
    if (over_raw) {
      fake_raw_open(ops_endpoint);
    } else {
      ops_lane = bound_socket(ZMQ_DEALER, ops_endpoint, sizeof ops_endpoint);
      bulk_lane = bound_socket(ZMQ_DEALER, bulk_endpoint, sizeof bulk_endpoint);
    }
    arena = mmap(NULL, 1ull << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(arena != MAP_FAILED);
  } else {
    make_shared_memory();
    snprintf(socket_path, sizeof socket_path, "/tmp/orion-test-%d.sock", (int)getpid());
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    unlink(socket_path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr*)&address, sizeof address) == 0 && listen(listener, 4) == 0);
  }
  setenv("ORION_SERVER", endpoint + strlen("tcp://"), 1);
  setenv("ORION_TRANSPORT", over_tcp ? "tcp" : "shm", 1);
  setenv("ORION_TCP_STRIPES", "2", 1);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, control_thread, NULL) == 0 && pthread_detach(thread) == 0);
  CHECK(pthread_create(&thread, NULL, worker_thread, NULL) == 0 && pthread_detach(thread) == 0);
}

void fake_worker_share(void* client_segment, uint8_t* client_arena) {
  if (over_tcp) return;
  arena = client_arena;
  atomic_store(&client_view, client_segment);
}

void fake_worker_kill(void) {
  atomic_store(&killed, true);
  unlink(socket_path);
}
void fake_worker_hold(bool hold) { atomic_store(&held, hold); }
bool fake_worker_saw_detach(void) { return atomic_load(&detached); }
uint64_t fake_worker_executed(void) { return atomic_fetch_add(&executed, 0); }
void fake_worker_garbage(void) { atomic_store(&garbage, true); }
void fake_worker_act(int act, uint64_t offset) {
  atomic_store(&act_offset, offset);
  atomic_store(&pending_act, act);
}
void fake_worker_word(uint32_t word, uint64_t value) {
  atomic_store(&pending_value, value);
  atomic_store(&pending_word, word);
}
