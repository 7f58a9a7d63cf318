// Answers of servers and controllers, well-formed and then not: what is read of them stays within its bounds.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session/allocated.h"
#include "session/attached.h"
#include "session_test.h"

enum { ROUNDS = 200000, ANSWER_BYTES = 4096 };

static uint64_t state = 0x9e3779b97f4a7c15ull;

static uint64_t draw(uint64_t below) {  // xorshift: the same at each run
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % below;
}

static void pack_text(orion_packer* p, const char* key, const char* value) {
  orion_pack_string(p, key);
  orion_pack_string(p, value);
}

static void pack_number(orion_packer* p, const char* key, uint64_t value) {
  orion_pack_string(p, key);
  orion_pack_unsigned(p, value);
}

static void pack_allocated(orion_packer* p) {
  const uint8_t ticket[48] = {1, 2, 3};
  orion_pack_map(p, 4);
  pack_text(p, "type", "allocated");
  pack_text(p, "allocation", "a-1");
  orion_pack_string(p, "attach_within_s");
  const uint8_t half[] = {0xcb, 0x3f, 0xe0, 0, 0, 0, 0, 0, 0};
  orion_pack_raw(p, half, sizeof half);
  orion_pack_string(p, "servers");
  orion_pack_array(p, 3);
  for (int i = 0; i < 3; i++) {
    orion_pack_map(p, 4);
    pack_text(p, "server", "node");
    pack_text(p, "address", "10.0.0.1:9960");
    pack_text(p, "public_key", i ? "" : "0123456789012345678901234567890123456789");
    orion_pack_string(p, "ticket");
    orion_pack_binary(p, ticket, sizeof ticket);
  }
}

static void pack_queued(orion_packer* p) {
  orion_pack_map(p, 4);
  pack_number(p, "position", 3);
  pack_number(p, "ticket", 7);
  pack_text(p, "reason", "no GPU has so much");
  pack_text(p, "leader", "10.0.0.2:9123");
}

static void pack_attached(orion_packer* p) {
  const uint8_t token[32] = {9};
  orion_pack_map(p, 7);
  pack_text(p, "session", "s");
  orion_pack_string(p, "token");
  orion_pack_binary(p, token, sizeof token);
  pack_text(p, "server", "1");
  pack_text(p, "shm_socket", "/tmp/s");
  pack_text(p, "tcp_ops", "raw://10.0.0.1:1");
  orion_pack_string(p, "stages");
  orion_pack_map(p, 1);
  pack_number(p, "warm", 100000);
  orion_pack_string(p, "devices");
  orion_pack_array(p, 1);
  orion_pack_map(p, 6);
  pack_number(p, "ordinal", 1);
  pack_text(p, "name", "device");
  orion_pack_string(p, "uuid");
  orion_pack_binary(p, token, 16);
  pack_number(p, "slot_bytes", 1ull << 30);
  orion_pack_string(p, "attributes");
  orion_pack_map(p, 1);
  orion_pack_unsigned(p, 16);
  orion_pack_unsigned(p, 8);
  orion_pack_string(p, "peers");
  orion_pack_array(p, 1);
  orion_pack_array(p, 2);
  orion_pack_unsigned(p, 1);
  orion_pack_unsigned(p, 1);
}

static bool ends_within(const char* text, size_t capacity) { return memchr(text, 0, capacity) != NULL; }

/// What may be said of an answer whatever was in it. Returns how many readers took it.
static int read_all(const uint8_t* data, size_t bytes) {
  static orion_grant grant;
  orion_control control = {.answer_bytes = bytes};
  control.answer = malloc(bytes ? bytes : 1);  // exactly, so that a sanitizer sees the end
  memcpy(control.answer, data, bytes);
  int taken = 0;
  const bool granted = orion_allocated_read(&control, &grant);
  CHECK(ends_within(grant.allocation, sizeof grant.allocation) && grant.count <= ORION_SERVERS_MAX);
  CHECK(!granted || (grant.count != 0 && grant.allocation[0] && grant.attach_within_s > 0));
  for (uint32_t i = 0; granted && i < grant.count; i++) {
    const orion_granted* one = &grant.servers[i];
    CHECK(one->ticket_bytes > 0 && one->ticket_bytes <= ORION_TICKET_MAX_BYTES);
    CHECK(ends_within(one->address, sizeof one->address) && strchr(one->address, ':'));
  }
  orion_queued queued;
  const bool waits = orion_queued_read(&control, &queued);
  CHECK(ends_within(queued.reason, sizeof queued.reason));
  char leader[ORION_SERVER_NAME_BYTES];
  orion_not_leader_read(&control, leader);
  CHECK(ends_within(leader, sizeof leader));
  orion_attach_answer attached;
  const bool is_attached = orion_attached_read(&control, &attached);
  CHECK(attached.device_count <= ORION_DEVICES && ends_within(attached.shm_socket, sizeof attached.shm_socket));
  free(attached.devices);
  free(control.answer);
  taken += granted + waits + is_attached + (leader[0] != 0);
  return taken;
}

void test_answers(void) {
  void (*const pack[])(orion_packer*) = {pack_allocated, pack_queued, pack_attached};
  uint64_t taken = 0;
  uint64_t refused = 0;
  for (uint32_t round = 0; round < ROUNDS; round++) {
    uint8_t data[ANSWER_BYTES];
    orion_packer p = {data, 0, sizeof data, false};
    pack[round % 3](&p);
    CHECK(!p.overflow);
    if (round < 3) CHECK(read_all(data, p.bytes) >= 1);
    for (uint64_t changes = draw(4); changes; changes--) {
      static const uint8_t codes[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc4, 0xc6,
                                      0xca, 0xcb, 0xcf, 0xd3, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xff};
      data[draw(p.bytes)] = draw(2) ? codes[draw(sizeof codes)] : (uint8_t)draw(256);
    }
    const size_t bytes = draw(8) ? p.bytes : draw(p.bytes + 1);
    if (read_all(data, bytes))
      taken++;
    else
      refused++;
  }
  CHECK(taken > ROUNDS / 10 && refused > ROUNDS / 10);
}
