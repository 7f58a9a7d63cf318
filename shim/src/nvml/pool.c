#define _GNU_SOURCE
#include "pool.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../session/allocated.h"
#include "../session/identity.h"
#include "../session/pod_token.h"

enum { REDIRECTS_MAX = 3 };

// A list of texts, each of fewer than `capacity` bytes, into as many rows of that many.
static uint32_t read_texts(orion_unpacker* u, char* rows, size_t capacity) {
  const uint32_t count = orion_unpack_array(u);
  if (count > ORION_SERVERS_MAX) u->bad = true;
  for (uint32_t i = 0; i < count && !u->bad; i++) {
    const uint8_t* text = NULL;
    const uint32_t bytes = orion_unpack_bytes(u, &text);
    if (bytes >= capacity) u->bad = true;
    if (!u->bad) orion_printable(rows + i * capacity, capacity, (const char*)text, bytes);
  }
  return u->bad ? 0 : count;
}

static bool read_servers(const orion_control* control, orion_nvml_servers* servers) {
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  memset(servers, 0, sizeof *servers);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "servers"))
      servers->count = read_texts(&u, servers->addresses[0], sizeof servers->addresses[0]);
    else if (orion_unpack_equals(key, n, "public_keys"))
      read_texts(&u, servers->public_keys[0], sizeof servers->public_keys[0]);
    else if (orion_unpack_equals(key, n, "stats_keys"))
      read_texts(&u, servers->stats_keys[0], sizeof servers->stats_keys[0]);
    else
      orion_unpack_skip(&u);
  }
  for (uint32_t i = 0; i < servers->count && !u.bad; i++) {
    const size_t key_bytes = strlen(servers->public_keys[i]);
    if (!orion_is_address(servers->addresses[i]) || (key_bytes && key_bytes != ORION_SERVER_KEY_BYTES - 1))
      u.bad = true;
  }
  return !u.bad;
}

// True when this controller has answered. `leader`: whom it names instead; empty: nobody.
static bool ask(const orion_config* config, const char* address, orion_nvml_servers* servers,
                char leader[ORION_SERVER_NAME_BYTES], char why[ORION_LINE_BYTES]) {
  orion_control control;
  leader[0] = 0;
  if (orion_control_open(&control, address, config->controller_key, false, config->attach_timeout_ms, true) !=
      CUDA_SUCCESS) {
    snprintf(why, ORION_LINE_BYTES,
             "no controller at %s (%.200s): start orion-controller there, or correct "
             "ORION_CONTROLLER",
             address, control.why);
    return false;
  }
  control.peer = ORION_PEER_CONTROLLER;
  char token[ORION_TOKEN_BYTES + 1];
  if (!orion_pod_token_read(config, &control, token)) {
    snprintf(why, ORION_LINE_BYTES, "ORION_TOKEN_FILE cannot be used");
    orion_control_close(&control);
    return false;
  }
  uint8_t buffer[1024 + ORION_TOKEN_BYTES];
  char host[64];
  char type[32];
  orion_boot_id(host, sizeof host);
  orion_packer p = {buffer, 0, sizeof buffer, false};
  orion_control_begin(&control, &p, "lookup", 6);
  orion_pack_string(&p, "group");
  orion_pack_string(&p, config->group);
  orion_pack_string(&p, "host");
  orion_pack_string(&p, host);
  orion_pack_string(&p, "uid");
  orion_pack_unsigned(&p, getuid());
  orion_pack_string(&p, "pid");
  orion_pack_unsigned(&p, (uint64_t)getpid());
  orion_pack_string(&p, "key");
  orion_pack_string(&p, config->client_key);
  orion_pack_string(&p, "token");
  orion_pack_string(&p, token);
  sodium_memzero(token, sizeof token);
  bool answered = false;
  if (orion_control_request(&control, &p, type, true) != CUDA_SUCCESS) {
    memcpy(why, control.why, ORION_LINE_BYTES);
  } else if (strcmp(type, "not_leader") == 0) {
    orion_not_leader_read(&control, leader);
    snprintf(why, ORION_LINE_BYTES, "%s is not the pool's leader at present: try again", address);
  } else {
    answered = strcmp(type, "looked_up") == 0 && read_servers(&control, servers);
    snprintf(why, ORION_LINE_BYTES, "%s answered with something else than servers: check ORION_CONTROLLER", address);
  }
  orion_control_close(&control);
  return answered;
}

bool orion_nvml_lookup(const orion_config* config, orion_nvml_servers* servers, bool quiet) {
  char leader[ORION_SERVER_NAME_BYTES];
  char why[ORION_LINE_BYTES] = "";
  for (uint32_t i = 0; i < config->controller_count; i++) {
    if (ask(config, config->controllers[i], servers, leader, why)) return true;
    for (int n = 0; leader[0] && n < REDIRECTS_MAX; n++) {
      char address[ORION_SERVER_NAME_BYTES];
      memcpy(address, leader, sizeof address);
      if (ask(config, address, servers, leader, why)) return true;
    }
  }
  if (!quiet) orion_log(ORION_LOG_ERROR, "%s", why);
  return false;
}
