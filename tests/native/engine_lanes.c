// The engine behind plain sockets, with two stripes: large and small ranges in both directions, overlapping, on real
// connections, as threads of one program. Built with a sanitizer by engine.sh. The null driver copies nothing: a copy
// out of the device brings what lies in the worker's arena, which is what was sent there last.
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"
#include "gen_ops.h"
#include "orion_lanes.h"
#include "orion_seal.h"

#define ARENA_BYTES (64ull << 20)
#define RANGE_BYTES (6u << 20)
#define SMALL_BYTES 3000u
#define ROUNDS 12u
#define STRIPES 2u
#define STREAM 1u

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                        \
    }                                                                 \
  } while (0)

typedef struct client {
  int lanes[1 + STRIPES];
  uint8_t* arena;
  uint64_t sent, received;
  uint64_t window[ORION_WINDOW];
  orion_group group;
  uint32_t turn;
  uint64_t words[ORION_WORDS];
  int32_t result;
  // Where the lanes are encrypted; `opened`: of each lane, what its records had beyond what was asked for.
  bool is_sealed;
  orion_seal in[1 + STRIPES], out[1 + STRIPES];
  struct {
    size_t first, end;
    uint8_t bytes[ORION_RECORD_BYTES];
  } opened[1 + STRIPES];
} client;

static void send_plain(int fd, const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t n = send(fd, (const uint8_t*)from + at, bytes - at, MSG_NOSIGNAL);
    CHECK(n > 0);
    at += (size_t)n;
  }
}

static void receive_plain(int fd, void* to, size_t bytes) { CHECK(recv(fd, to, bytes, MSG_WAITALL) == (ssize_t)bytes); }

static void send_all(client* c, uint32_t lane, const uint8_t* from, size_t bytes) {
  static uint8_t record[ORION_RECORD_MOST];
  if (!c->is_sealed) send_plain(c->lanes[lane], from, bytes);
  for (size_t at = 0; c->is_sealed && at < bytes; at += ORION_RECORD_BYTES) {
    const size_t piece = bytes - at < ORION_RECORD_BYTES ? bytes - at : ORION_RECORD_BYTES;
    send_plain(c->lanes[lane], record, orion_seal_put(&c->out[lane], record, from + at, piece));
  }
}

static void open_record(client* c, uint32_t lane) {
  static uint8_t record[ORION_RECORD_MOST];
  receive_plain(c->lanes[lane], record, ORION_RECORD_HEAD);
  const size_t bytes = orion_record_bytes(record);
  CHECK(bytes != 0);
  receive_plain(c->lanes[lane], record + ORION_RECORD_HEAD, bytes + ORION_RECORD_TAG);
  CHECK(orion_seal_open(&c->in[lane], record, bytes, c->opened[lane].bytes));
  c->opened[lane].first = 0;
  c->opened[lane].end = bytes;
}

static void receive_all(client* c, uint32_t lane, uint8_t* to, size_t bytes) {
  if (!c->is_sealed) receive_plain(c->lanes[lane], to, bytes);
  for (size_t at = 0; c->is_sealed && at < bytes;) {
    if (c->opened[lane].first == c->opened[lane].end) open_record(c, lane);
    const size_t have = c->opened[lane].end - c->opened[lane].first;
    const size_t piece = bytes - at < have ? bytes - at : have;
    memcpy(to + at, c->opened[lane].bytes + c->opened[lane].first, piece);
    c->opened[lane].first += piece;
    at += piece;
  }
}

static void send_frame(client* c, uint32_t lane, orion_frame head, const void* body) {
  send_all(c, lane, (const uint8_t*)&head, sizeof head);
  if (head.bytes) send_all(c, lane, body, head.bytes);
}

// The preamble, and the greeting in one record.
static void greet_sealed(client* c, uint32_t lane, const orion_frame* head, const orion_link_wish* wish) {
  const orion_sealed_preamble preamble = {ORION_SEALED_MAGIC, lane};
  uint8_t greeting[sizeof *head + sizeof *wish];
  memcpy(greeting, head, sizeof *head);
  memcpy(greeting + sizeof *head, wish, sizeof *wish);
  send_plain(c->lanes[lane], &preamble, sizeof preamble);
  send_all(c, lane, greeting, sizeof *head + head->bytes);
}

static void join(client* c, const char* endpoint, const uint8_t token[32], orion_link_wish wish, int cipher) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  address.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
  for (uint32_t i = 0; i <= STRIPES; i++) {
    struct {
      uint8_t token[32];
      orion_link_wish wish;
    } body = {.wish = wish};
    memcpy(body.token, token, 32);
    c->lanes[i] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(c->lanes[i], (struct sockaddr*)&address, sizeof address) == 0);
    const bool has_wish = i == 0 && wish.round_trip_ns;
    orion_frame head = {.type = ORION_FRAME_CONTROL, .bytes = has_wish ? sizeof wish : 0, .a = i, .b = STRIPES};
    if (cipher != ORION_CIPHER_NONE) {
      c->is_sealed = true;
      orion_seal_begin(&c->out[i], (enum orion_cipher)cipher, token, ORION_TO_WORKER, i);
      orion_seal_begin(&c->in[i], (enum orion_cipher)cipher, token, ORION_TO_CLIENT, i);
      greet_sealed(c, i, &head, &wish);
    } else {
      head.bytes += sizeof body.token;
      send_frame(c, i, head, &body);
    }
  }
  for (uint32_t i = 0; i <= STRIPES; i++) {
    orion_frame welcome;
    receive_all(c, i, (uint8_t*)&welcome, sizeof welcome);
    CHECK(welcome.type == ORION_FRAME_CONTROL && welcome.bytes == 0);
  }
}

static void push(client* c, orion_op* op, uint32_t bytes) {
  op->bytes = bytes;
  send_frame(c, 0, (orion_frame){.type = ORION_FRAME_OPS_MAIN, .bytes = bytes}, op);
}

static void push_range(client* c, uint64_t offset, uint64_t bytes) {
  if (bytes < ORION_STRIPE_MIN_BYTES) {
    const orion_frame head = {.type = ORION_FRAME_BULK, .bytes = (uint32_t)bytes, .sequence = ++c->sent, .a = offset};
    send_frame(c, 0, head, c->arena + offset);
    orion_group_close(&c->group, c->sent);
    return;
  }
  orion_group_join(&c->group, c->sent + 1, offset, offset + bytes);
  for (uint64_t at = 0; at < bytes; at += ORION_BULK_BYTES) {
    const uint64_t left = bytes - at;
    const orion_frame head = {.type = ORION_FRAME_BULK,
                              .bytes = (uint32_t)(left < ORION_BULK_BYTES ? left : ORION_BULK_BYTES),
                              .sequence = ++c->sent,
                              .a = offset + at,
                              .b = c->group.after};
    send_frame(c, 1 + c->turn++ % STRIPES, head, c->arena + offset + at);
  }
}

static void store(client* c, uint32_t lane, const orion_frame* head) {
  CHECK(head->a <= ARENA_BYTES && head->bytes <= ARENA_BYTES - head->a && head->sequence > c->received);
  receive_all(c, lane, c->arena + head->a, head->bytes);
  c->window[head->sequence % ORION_WINDOW] = head->sequence;
  while (c->window[(c->received + 1) % ORION_WINDOW] == c->received + 1) c->received++;
}

// One frame of whichever lane may be read: a stripe's whose turn it is, or lane 0's, which waits for what it names.
static void take_frame(client* c) {
  static bool has[1 + STRIPES];
  static orion_frame heads[1 + STRIPES];
  for (uint32_t i = 0; i <= STRIPES; i++) {
    struct pollfd fd = {c->lanes[i], POLLIN, 0};
    const bool opened = c->opened[i].first != c->opened[i].end;
    if (!has[i] && (opened || poll(&fd, 1, 1) == 1)) {
      receive_all(c, i, (uint8_t*)&heads[i], sizeof heads[i]);
      has[i] = true;
    }
    const orion_frame* head = &heads[i];
    const bool bulk = head->type == ORION_FRAME_BULK;
    if (!has[i] || (i > 0 && head->b > c->received)) continue;
    if (i == 0 && bulk && head->sequence != c->received + 1) continue;
    if (i == 0 && head->type == ORION_FRAME_WORDS && head->sequence > c->received) continue;
    has[i] = false;
    CHECK(i == 0 || orion_stripe_frame_ok(head, ARENA_BYTES));
    if (bulk) {
      store(c, i, head);
      continue;
    }
    static uint8_t body[1 << 20];
    CHECK(head->bytes <= sizeof body);
    if (head->bytes) receive_all(c, 0, body, head->bytes);
    if (head->type == ORION_FRAME_REPLY) c->result = (int32_t)head->b;
    for (uint32_t at = 0; head->type == ORION_FRAME_WORDS && at < head->bytes; at += sizeof(orion_word_update)) {
      orion_word_update update;
      memcpy(&update, body + at, sizeof update);
      CHECK(update.index < ORION_WORDS);
      if (update.value > c->words[update.index]) c->words[update.index] = update.value;
    }
  }
}

static void call(client* c, orion_op* op, uint32_t bytes) {
  static uint32_t sequence;
  op->reply_slot = 0;
  op->reply_seq = ++sequence;
  c->result = -1;
  push(c, op, bytes);
  while (c->result < 0) take_frame(c);
  CHECK(c->result == 0);
}

static orion_op head_of(uint16_t code) {
  return (orion_op){.code = code, .context = 1, .stream = STREAM, .reply_slot = ORION_NO_REPLY};
}

static void copy_in(client* c, uint64_t device, uint64_t offset, uint64_t bytes) {
  push_range(c, offset, bytes);
  orion_op_copy_h2d op = {
      .op = head_of(ORION_OP_COPY_H2D), .device_dst = device, .src_off = offset, .size_bytes = bytes};
  op.op.bulk_seq = c->sent;
  push(c, &op.op, sizeof op);
}

static void copy_out(client* c, uint64_t device, uint64_t offset, uint64_t bytes) {
  orion_op_copy_d2h op = {.op = head_of(ORION_OP_COPY_D2H), .src = device, .dst_off = offset, .size_bytes = bytes};
  push(c, &op.op, sizeof op);
}

static void one_round(client* c, uint64_t device, uint32_t round) {
  uint8_t* at = c->arena;
  // Twice the whole range, with a change, a small range in it between: the newest is what the worker has.
  memset(at, (int)round, RANGE_BYTES);
  copy_in(c, device, 0, RANGE_BYTES);
  memset(at + 5000, (int)round + 50, SMALL_BYTES);
  copy_in(c, device, 5000, SMALL_BYTES);
  memset(at + RANGE_BYTES / 2, (int)round + 100, RANGE_BYTES / 2);
  copy_in(c, device, RANGE_BYTES / 2, RANGE_BYTES / 2);
  memset(at, 0xee, RANGE_BYTES);
  copy_out(c, device, 0, RANGE_BYTES);
  copy_out(c, device, 5000, SMALL_BYTES);
  copy_out(c, device, RANGE_BYTES / 3, RANGE_BYTES / 3);
  orion_op_mark mark = {.op = head_of(ORION_OP_MARK), .word = ORION_WORD_STREAMS + STREAM, .value = round};
  push(c, &mark.op, sizeof mark);
  while (c->words[mark.word] < round) take_frame(c);
  for (uint32_t i = 0; i < RANGE_BYTES; i++) {
    const bool small = i >= 5000 && i < 5000 + SMALL_BYTES;
    CHECK(at[i] == (uint8_t)(round + (i >= RANGE_BYTES / 2 ? 100 : small ? 50 : 0)));
  }
}

static void* serve(void* engine) { return (void*)(uintptr_t)orion_engine_run(engine); }

static uint64_t free_place(void) {
  void* p = mmap(NULL, 16 * ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED && munmap(p, 16 * ARENA_BYTES) == 0);
  return (uint64_t)(uintptr_t)p;
}

// Who has not the token is not let in.
static void knock(const char* endpoint, const uint8_t token[32], uint32_t lane, int cipher) {
  client* c = calloc(1, sizeof *c);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  address.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
  CHECK(c && (c->lanes[lane] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
  CHECK(connect(c->lanes[lane], (struct sockaddr*)&address, sizeof address) == 0);
  c->is_sealed = true;
  orion_seal_begin(&c->out[lane], (enum orion_cipher)cipher, token, ORION_TO_WORKER, lane);
  const orion_frame head = {.type = ORION_FRAME_CONTROL, .a = lane, .b = STRIPES};
  greet_sealed(c, lane, &head, &(orion_link_wish){0});
  uint8_t byte;
  CHECK(recv(c->lanes[lane], &byte, 1, 0) <= 0);
  close(c->lanes[lane]);
  free(c);
}

static void run(orion_link_wish wish, int cipher) {
  const orion_engine_config config = {.null_engine = 1, .transport = ORION_ENGINE_TCP, .spin_us = 20};
  const uint8_t token[32] = {1, 2, 3};
  orion_engine* engine = NULL;
  char endpoint[64], none[64];
  CHECK(orion_engine_new(&config, &engine) == 0);
  CHECK(orion_engine_tcp_listen(engine, ORION_ENGINE_LANES_RAW, "127.0.0.1", cipher, token, sizeof token, endpoint,
                                none) == 0);
  const orion_engine_device device = {0, ORION_DEVICE_SLOT_CANDIDATE(0), 1ull << 30};
  const orion_engine_bind_request request = {.segment_fd = -1,
                                             .arena_fd = -1,
                                             .host_base = free_place(),
                                             .arena_bytes = ARENA_BYTES,
                                             .device_count = 1,
                                             .devices = &device};
  uint64_t conflicts = 0;
  CHECK(orion_engine_bind(engine, &request, &conflicts) == 0);
  pthread_t server;
  CHECK(pthread_create(&server, NULL, serve, engine) == 0);
  client* c = calloc(1, sizeof *c);
  CHECK(c && (c->arena = calloc(1, RANGE_BYTES)));
  if (cipher != ORION_CIPHER_NONE) {
    const uint8_t other[32] = {1, 2, 4};
    knock(endpoint, other, 0, cipher);
    knock(endpoint, other, 1, cipher);
  }
  join(c, endpoint, token, wish, cipher);
  orion_op_ctx_primary primary = {.op = head_of(ORION_OP_CTX_PRIMARY)};
  call(c, &primary.op, sizeof primary);
  orion_op_stream_create create = {.op = head_of(ORION_OP_STREAM_CREATE), .stream_flags = 1};
  push(c, &create.op, sizeof create);
  orion_op_mem_map map = {
      .op = head_of(ORION_OP_MEM_MAP), .device_address = device.base, .size_bytes = 4 * ORION_CHUNK_BYTES};
  map.op.stream = 0;
  call(c, &map.op, sizeof map);
  for (uint32_t round = 1; round <= ROUNDS; round++) one_round(c, device.base, round);
  orion_op_detach detach = {.op = head_of(ORION_OP_DETACH)};
  push(c, &detach.op, sizeof detach);
  for (uint32_t i = 0; i <= STRIPES; i++) CHECK(shutdown(c->lanes[i], SHUT_WR) == 0);
  void* end = NULL;
  CHECK(pthread_join(server, &end) == 0 && (uintptr_t)end == ORION_END_DETACHED);
  orion_engine_stats stats;
  orion_engine_get_stats(engine, &stats);
  CHECK(stats.late_errors == 0);
  orion_engine_free(engine);
  for (uint32_t i = 0; i <= STRIPES; i++) close(c->lanes[i]);
  free(c->arena);
  free(c);
}

int main(void) {
  run((orion_link_wish){0, 0}, ORION_CIPHER_NONE);
  run((orion_link_wish){300000, 2000000000}, ORION_CIPHER_NONE);
  run((orion_link_wish){0, 0}, ORION_CIPHER_CHACHA20POLY1305);
  if (orion_cipher_usable(ORION_CIPHER_AES256GCM)) {
    run((orion_link_wish){0, 0}, ORION_CIPHER_AES256GCM);
    run((orion_link_wish){300000, 2000000000}, ORION_CIPHER_AES256GCM);
  }
  puts("engine_lanes: ok");
  return 0;
}
