#define _GNU_SOURCE
#include "fake_raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_worker.h"
#include "orion_lanes.h"

enum { LANES_MAX = 1 + ORION_STRIPES_MAX, READ_BYTES = 256 << 10 };

typedef struct lane {
  int fd;
  uint8_t* data;
  size_t bytes, capacity;
} lane;

typedef struct frame {
  struct frame* next;
  bool on_stripe;
  orion_frame head;
  uint8_t body[];
} frame;

static int listener = -1;
static lane lanes[LANES_MAX];
static uint32_t lane_count;
static frame *early, *operations, **operations_end = &operations;
static uint64_t received, sent;
static uint64_t window[ORION_WINDOW];
static orion_group group;
static uint32_t turn;
static _Atomic uint64_t striped;

// ------------------------------------------------------------------------------------------------- greeting

void fake_raw_open(char endpoint[64]) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(listener >= 0 && bind(listener, (struct sockaddr*)&address, sizeof address) == 0);
  CHECK(listen(listener, LANES_MAX) == 0 && getsockname(listener, (struct sockaddr*)&address, &length) == 0);
  snprintf(endpoint, 64, "raw://127.0.0.1:%u", (unsigned)ntohs(address.sin_port));
  for (uint32_t i = 0; i < LANES_MAX; i++) lanes[i].fd = -1;
}

void fake_raw_welcome(const uint8_t token[32]) {
  for (uint32_t i = 0; i == 0 || i < lane_count; i++) {
    const int fd = accept(listener, NULL, NULL);
    struct {
      orion_frame head;
      uint8_t token[32];
    } greeting;
    CHECK(fd >= 0 && recv(fd, &greeting, sizeof greeting, MSG_WAITALL) == (ssize_t)sizeof greeting);
    CHECK(greeting.head.type == ORION_FRAME_CONTROL && greeting.head.bytes == 32);
    CHECK(memcmp(greeting.token, token, 32) == 0 && greeting.head.b <= ORION_STRIPES_MAX);
    CHECK(greeting.head.a <= greeting.head.b && lanes[greeting.head.a].fd < 0);
    CHECK(lane_count == 0 || lane_count == 1 + greeting.head.b);
    lane_count = 1 + (uint32_t)greeting.head.b;
    lanes[greeting.head.a].fd = fd;
    const orion_frame welcome = {.type = ORION_FRAME_CONTROL};
    CHECK(send(fd, &welcome, sizeof welcome, MSG_NOSIGNAL) == (ssize_t)sizeof welcome);
  }
}

void fake_raw_close(void) {
  for (uint32_t i = 0; i < lane_count; i++)
    if (lanes[i].fd >= 0) close(lanes[i].fd);
  close(listener);
}

// ------------------------------------------------------------------------------------------------- from the client

static void count_stored(uint64_t sequence) {
  window[sequence % ORION_WINDOW] = sequence;
  while (window[(received + 1) % ORION_WINDOW] == received + 1) received++;
}

static bool is_due(const frame* f) {
  if (f->on_stripe) return f->head.b <= received && f->head.sequence <= received + ORION_WINDOW;
  return f->head.sequence <= received + (f->head.type != ORION_FRAME_CLIENT_WORDS);
}

static void apply(const frame* f, uint8_t* arena, uint64_t* words) {
  if (f->head.type == ORION_FRAME_CLIENT_WORDS) {
    CHECK(f->head.bytes % sizeof(orion_word_update) == 0);
    for (uint32_t at = 0; at < f->head.bytes; at += sizeof(orion_word_update)) {
      orion_word_update update;
      memcpy(&update, f->body + at, sizeof update);
      CHECK(update.index < ORION_CLIENT_WORDS);
      words[update.index] = update.value;
    }
    return;
  }
  CHECK(f->head.type == ORION_FRAME_BULK && f->head.bytes > 0 && f->head.bytes <= ORION_BULK_BYTES);
  memcpy(arena + f->head.a, f->body, f->head.bytes);
  count_stored(f->head.sequence);
}

// Newest first: what the headers leave open, this does the other way round than it was sent.
static void apply_due(uint8_t* arena, uint64_t* words) {
  for (frame** link = &early; *link;) {
    frame* f = *link;
    if (!is_due(f)) {
      link = &f->next;
      continue;
    }
    *link = f->next;
    apply(f, arena, words);
    free(f);
    link = &early;
  }
}

static void take(frame* f) {
  const bool numbered = f->head.type == ORION_FRAME_BULK || f->head.type == ORION_FRAME_CLIENT_WORDS;
  f->next = NULL;
  if (!numbered) {
    CHECK(!f->on_stripe);
    CHECK(f->head.type == ORION_FRAME_OPS_MAIN || f->head.type == ORION_FRAME_OPS_EXPRESS);
    *operations_end = f;
    operations_end = &f->next;
    return;
  }
  if (f->on_stripe) {
    CHECK(orion_stripe_frame_ok(&f->head, ORION_HOST_ARENA_BYTES) && f->head.sequence > received);
    atomic_fetch_add(&striped, 1);
  }
  f->next = early;
  early = f;
}

static void cut_frames(lane* from) {
  size_t at = 0;
  orion_frame head;
  while (from->bytes - at >= sizeof head) {
    memcpy(&head, from->data + at, sizeof head);
    CHECK(head.bytes <= ORION_FRAME_MAX_BYTES);
    if (from->bytes - at - sizeof head < head.bytes) break;
    frame* f = malloc(sizeof *f + head.bytes);
    CHECK(f);
    f->head = head;
    f->on_stripe = from != &lanes[0];
    memcpy(f->body, from->data + at + sizeof head, head.bytes);
    at += sizeof head + head.bytes;
    take(f);
  }
  if (at) memmove(from->data, from->data + at, from->bytes - at);
  from->bytes -= at;
}

static void read_lane(lane* from) {
  if (from->capacity - from->bytes < READ_BYTES) {
    from->capacity = from->bytes + 2 * READ_BYTES;
    CHECK((from->data = realloc(from->data, from->capacity)));
  }
  const ssize_t got = recv(from->fd, from->data + from->bytes, from->capacity - from->bytes, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    close(from->fd);
    from->fd = -1;
    return;
  }
  from->bytes += (size_t)got;
  cut_frames(from);
}

void fake_raw_read(uint8_t* arena, uint64_t* words, int timeout_ms) {
  struct pollfd fds[LANES_MAX];
  for (uint32_t i = 0; i < lane_count; i++) fds[i] = (struct pollfd){lanes[i].fd, POLLIN, 0};
  if (poll(fds, lane_count, timeout_ms) <= 0) return;
  for (uint32_t i = 0; i < lane_count; i++)
    if (fds[i].revents) read_lane(&lanes[i]);
  apply_due(arena, words);
}

uint8_t* fake_raw_take_ops(void) {
  frame* f = operations;
  if (!f) return NULL;
  operations = f->next;
  if (!operations) operations_end = &operations;
  uint8_t* out = malloc(sizeof f->head + f->head.bytes);
  CHECK(out);
  memcpy(out, &f->head, sizeof f->head);
  memcpy(out + sizeof f->head, f->body, f->head.bytes);
  free(f);
  return out;
}

uint64_t fake_raw_received(void) { return received; }
uint64_t fake_raw_striped(void) { return atomic_load(&striped); }
uint64_t fake_raw_sent(void) { return sent; }

// ------------------------------------------------------------------------------------------------- to the client

// A client that is gone is noticed when its lanes are read.
static void send_bytes(uint32_t to, const void* from, size_t bytes) {
  for (size_t at = 0; at < bytes && lanes[to].fd >= 0;) {
    const ssize_t n = send(lanes[to].fd, (const uint8_t*)from + at, bytes - at, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    at += (size_t)n;
  }
}

static void send_on(uint32_t to, const orion_frame* head, const void* body) {
  send_bytes(to, head, sizeof *head);
  if (head->bytes) send_bytes(to, body, head->bytes);
}

void fake_raw_send(uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body, uint32_t bytes) {
  const orion_frame head = {.type = type, .bytes = bytes, .sequence = sequence, .a = a, .b = b};
  send_on(0, &head, body);
}

static void send_piece(const uint8_t* arena, uint64_t offset, uint32_t bytes) {
  const orion_frame head = {
      .type = ORION_FRAME_BULK, .bytes = bytes, .sequence = ++sent, .a = offset, .b = group.after};
  send_on(1 + turn++ % (lane_count - 1), &head, arena + offset);
  atomic_fetch_add(&striped, 1);
}

void fake_raw_send_range(const uint8_t* arena, uint64_t offset, uint64_t bytes) {
  const bool stripes = lane_count > 1 && bytes >= ORION_STRIPE_MIN_BYTES;
  if (stripes) orion_group_join(&group, sent + 1, offset, offset + bytes);
  for (uint64_t at = 0; at < bytes; at += ORION_BULK_BYTES) {
    const uint32_t piece = (uint32_t)(bytes - at < ORION_BULK_BYTES ? bytes - at : ORION_BULK_BYTES);
    if (stripes) {
      send_piece(arena, offset + at, piece);
      continue;
    }
    sent++;
    fake_raw_send(ORION_FRAME_BULK, sent, offset + at, 0, arena + offset + at, piece);
    orion_group_close(&group, sent);
  }
}

// ------------------------------------------------------------------------------------------------- misbehaviour

static void reset(lane* victim) {
  const struct linger at_once = {1, 0};
  CHECK(setsockopt(victim->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
  close(victim->fd);
  victim->fd = -1;
}

static void send_word(uint64_t sequence) {
  const orion_word_update update = {FAKE_RAW_WORD, 1};
  fake_raw_send(ORION_FRAME_WORDS, sequence, 0, 0, &update, sizeof update);
}

void fake_raw_act(enum fake_raw_act act, uint8_t* arena, uint64_t offset) {
  orion_frame bulk = {.type = ORION_FRAME_BULK, .bytes = 4096, .sequence = sent + 1, .b = sent, .a = offset};
  switch (act) {
    case FAKE_RAW_NOTHING:
      break;
    case FAKE_RAW_CLOSE_LANE_0:
      shutdown(lanes[0].fd, SHUT_RDWR);
      break;
    case FAKE_RAW_RESET_LANE_0:
      reset(&lanes[0]);
      break;
    case FAKE_RAW_RESET_STRIPE:
      bulk.bytes = ORION_BULK_BYTES;
      send_bytes(1, &bulk, sizeof bulk);
      send_bytes(1, arena + offset, ORION_BULK_BYTES / 2);
      usleep(20000);
      reset(&lanes[1]);
      break;
    case FAKE_RAW_BAD_STRIPE:
      bulk.a = ORION_HOST_ARENA_BYTES - 4095;
      send_on(1, &bulk, arena);
      break;
    case FAKE_RAW_LONG_STRIPE:
      bulk.bytes = ORION_BULK_BYTES + 1;
      send_bytes(1, &bulk, sizeof bulk);
      break;
    case FAKE_RAW_OLD_STRIPE:
      fake_raw_send_range(arena, offset, 4096);
      usleep(20000);
      bulk.b = 0;
      send_on(1, &bulk, arena);
      break;
    case FAKE_RAW_UNKNOWN:
      fake_raw_send(99, 0, 0, 0, "frame", 5);
      break;
    case FAKE_RAW_LONG:
      bulk.bytes = ORION_FRAME_MAX_BYTES + 1;
      send_bytes(0, &bulk, sizeof bulk);
      break;
    case FAKE_RAW_OLD_BULK:
      fake_raw_send_range(arena, offset, 4096);
      send_on(0, &bulk, arena);
      break;
    case FAKE_RAW_WORDS_FIRST:
      memset(arena + offset, 0x5a, FAKE_RAW_FIRST_BYTES);
      send_word(sent + 1);
      usleep(50000);
      fake_raw_send_range(arena, offset, FAKE_RAW_FIRST_BYTES);
      break;
    case FAKE_RAW_HELD_END:
      send_word(sent + 1);
      usleep(50000);
      for (uint32_t i = 0; i < lane_count; i++) shutdown(lanes[i].fd, SHUT_RDWR);
      break;
  }
}
