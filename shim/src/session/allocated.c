#include "allocated.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

// Text without control bytes; text that does not fit is an error.
static void read_text(orion_unpacker* u, char* out, size_t capacity) {
  const uint8_t* text = NULL;
  const uint32_t bytes = orion_unpack_bytes(u, &text);
  out[0] = 0;
  if (bytes >= capacity)
    u->bad = true;
  else if (!u->bad)
    orion_printable(out, capacity, (const char*)text, bytes);
}

// A name that is sent back as it came.
static bool is_plain(const char* text) {
  if (!*text) return false;
  for (; *text; text++)
    if (!isgraph((unsigned char)*text)) return false;
  return true;
}

bool orion_is_address(const char* text) {
  const char* colon = strrchr(text, ':');
  if (!is_plain(text) || strchr(text, '/') || !colon || colon == text || !isdigit((unsigned char)colon[1]))
    return false;
  char* end = NULL;
  const unsigned long port = strtoul(colon + 1, &end, 10);
  return !*end && port >= 1 && port <= 65535;
}

static void read_granted(orion_unpacker* u, orion_granted* granted) {
  memset(granted, 0, sizeof *granted);
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "server")) {
      read_text(u, granted->server, sizeof granted->server);
    } else if (orion_unpack_equals(key, n, "address")) {
      read_text(u, granted->address, sizeof granted->address);
    } else if (orion_unpack_equals(key, n, "public_key")) {
      read_text(u, granted->public_key, sizeof granted->public_key);
    } else if (orion_unpack_equals(key, n, "ticket")) {
      const uint8_t* ticket = NULL;
      granted->ticket_bytes = orion_unpack_bytes(u, &ticket);
      if (granted->ticket_bytes > sizeof granted->ticket)
        u->bad = true;
      else if (!u->bad)
        memcpy(granted->ticket, ticket, granted->ticket_bytes);
    } else {
      orion_unpack_skip(u);
    }
  }
  const size_t key_bytes = strlen(granted->public_key);
  if (granted->ticket_bytes == 0 || !orion_is_address(granted->address) || (key_bytes != 0 && key_bytes != 40))
    u->bad = true;
}

bool orion_allocated_read(const orion_control* control, orion_grant* grant) {
  memset(grant, 0, sizeof *grant);
  uint32_t pairs = 0;
  orion_unpacker unpacker = orion_control_answer(control, &pairs);
  orion_unpacker* u = &unpacker;
  bool has_time = false;
  for (; pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "allocation")) {
      read_text(u, grant->allocation, sizeof grant->allocation);
      if (u->bad || !is_plain(grant->allocation)) {
        grant->allocation[0] = 0;
        u->bad = true;
      }
    } else if (orion_unpack_equals(key, n, "servers")) {
      const uint32_t count = orion_unpack_array(u);
      if (count == 0 || count > ORION_SERVERS_MAX || grant->count) u->bad = true;
      for (uint32_t i = 0; i < count && !u->bad; i++) read_granted(u, &grant->servers[grant->count++]);
    } else if (orion_unpack_equals(key, n, "attach_within_s")) {
      grant->attach_within_s = orion_unpack_number(u);
      has_time = !u->bad && grant->attach_within_s > 0;  // not a number is not above 0 either
    } else {
      orion_unpack_skip(u);
    }
  }
  return !u->bad && has_time && grant->count != 0 && grant->allocation[0];
}

bool orion_queued_read(const orion_control* control, orion_queued* queued) {
  memset(queued, 0, sizeof *queued);
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "position")) {
      queued->position = orion_unpack_integer(&u);
    } else if (orion_unpack_equals(key, n, "ticket")) {
      queued->ticket = orion_unpack_integer(&u);
    } else if (orion_unpack_equals(key, n, "reason")) {
      const uint8_t* text = NULL;
      const uint32_t bytes = orion_unpack_bytes(&u, &text);
      if (!u.bad) orion_printable(queued->reason, sizeof queued->reason, (const char*)text, bytes);
    } else {
      orion_unpack_skip(&u);
    }
  }
  return !u.bad && queued->position > 0 && queued->ticket >= 0 && queued->ticket <= INT32_MAX;
}

void orion_not_leader_read(const orion_control* control, char leader[ORION_SERVER_NAME_BYTES]) {
  leader[0] = 0;
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "leader"))
      read_text(&u, leader, ORION_SERVER_NAME_BYTES);
    else
      orion_unpack_skip(&u);
  }
  if (u.bad || !orion_is_address(leader)) leader[0] = 0;
}
