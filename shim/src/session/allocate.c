#define _GNU_SOURCE
#include "allocate.h"

#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "futex.h"
#include "identity.h"
#include "interrupt.h"
#include "pod_token.h"

enum {
  ASK_AGAIN_MS = 1000,  // in the queue; a controller forgets who is silent for 5 s
  SILENCE_MS = 6000,    // longer than a controller keeps an answer
  LISTEN_MS = 200,      // between two looks at signals
  PAUSE_MS = 250,       // between two rounds through the replicas
  REDIRECTS_MAX = 3,    // in a row: replicas may name each other
  REPLICA_MS = 500,     // at least, for one of several
  ATTACH_MAX_S = 3600,  // what a controller may grant; longer is cut
  NS_PER_MS = 1000000,
};

// OUTCOME_ELSEWHERE: this controller does not decide; another may.
enum outcome { OUTCOME_GRANTED, OUTCOME_FINAL, OUTCOME_ELSEWHERE };

typedef struct search {
  const orion_config* config;
  orion_allocation* allocation;
  uint64_t wait_until_ns;
  bool was_queued;
  bool any_not_leader;  // in this round a controller answered that another one decides
  int64_t told_position;
  char leader[ORION_SERVER_NAME_BYTES];  // named by the last controller; empty: none
  CUresult result;
  char why[ORION_LINE_BYTES];  // why the last controller was of no use
} search;

static CUresult send_allocate(search* s, const char* token, char type[32]) {
  const orion_config* config = s->config;
  orion_control* control = &s->allocation->controller;
  uint8_t buffer[8192 + ORION_TOKEN_BYTES];
  orion_packer p = {buffer, 0, sizeof buffer, false};
  char node[65] = "";  // HOST_NAME_MAX and its end
  gethostname(node, sizeof node - 1);
  const uint64_t now_ns = orion_now_ns();
  const uint64_t left_ns = s->wait_until_ns > now_ns ? s->wait_until_ns - now_ns : 0;
  const char* const pod[][2] = {
      {"name", config->pod_name}, {"uid", config->pod_uid}, {"namespace", config->pod_namespace}};
  enum { POD = sizeof pod / sizeof *pod };
  orion_control_begin(control, &p, "allocate", ORION_IDENTITY_PAIRS + 14);
  orion_pack_identity(&p);
  orion_pack_string(&p, "node");
  orion_pack_string(&p, node);
  orion_pack_string(&p, "vgpu");
  orion_pack_unsigned(&p, config->vgpu_count);
  orion_pack_string(&p, "gmem_mib");
  orion_pack_unsigned(&p, config->gmem_mib);
  orion_pack_string(&p, "ratio");
  orion_pack_unsigned(&p, config->ratio_percent);
  orion_pack_string(&p, "ratio_policy");
  orion_pack_string(&p, config->ratio_policy);
  orion_pack_string(&p, "group");
  orion_pack_string(&p, config->group);
  orion_pack_string(&p, "res_group");
  orion_pack_string(&p, config->shares_vgpu ? "BOX" : "");
  orion_pack_string(&p, "cross_node");
  orion_pack_bool(&p, config->cross_node);
  orion_pack_string(&p, "reserved");
  orion_pack_bool(&p, config->reserved);
  orion_pack_string(&p, "rule");
  orion_pack_string(&p, config->schedule_rule);
  orion_pack_string(&p, "wait_s");
  orion_pack_unsigned(&p, (left_ns + 999999999u) / 1000000000u);
  orion_pack_string(&p, "key");
  orion_pack_string(&p, config->client_key);
  orion_pack_string(&p, "token");
  orion_pack_string(&p, token);
  orion_pack_string(&p, "pod");
  uint32_t set = 0;
  for (int i = 0; i < POD; i++) set += pod[i][1][0] != 0;
  orion_pack_map(&p, set);
  for (int i = 0; i < POD; i++) {
    if (!pod[i][1][0]) continue;
    orion_pack_string(&p, pod[i][0]);
    orion_pack_string(&p, pod[i][1]);
  }
  const CUresult result = orion_control_request(control, &p, type, true);
  sodium_memzero(buffer, sizeof buffer);
  control->also_answer = control->next_id;  // `allocated` may come with this id at any time
  return result;
}

static void tell_still_waiting(orion_control* control, int64_t ticket) {
  uint8_t buffer[128];
  orion_packer p = {buffer, 0, sizeof buffer, false};
  orion_control_begin(control, &p, "still_waiting", 1);
  orion_pack_string(&p, "ticket");
  orion_pack_unsigned(&p, (uint64_t)ticket);
  orion_control_tell(control, &p);
}

static void tell_give_up(const orion_config* config, orion_control* control, int64_t ticket, const char* allocation) {
  uint8_t buffer[1024];
  orion_packer p = {buffer, 0, sizeof buffer, false};
  orion_control_begin(control, &p, "give_up", 3);
  orion_pack_string(&p, "ticket");
  orion_pack_unsigned(&p, (uint64_t)ticket);
  orion_pack_string(&p, "allocation");
  orion_pack_string(&p, allocation);
  orion_pack_string(&p, "key");
  orion_pack_string(&p, config->client_key);
  orion_control_tell(control, &p);
}

__attribute__((format(printf, 3, 4))) static enum outcome fail(search* s, CUresult result, const char* format, ...) {
  char line[ORION_LINE_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  orion_log(ORION_LOG_ERROR, "%s", line);
  s->result = result;
  return OUTCOME_FINAL;
}

static enum outcome take_failure(search* s, CUresult result) {
  const orion_control* control = &s->allocation->controller;
  switch (control->failure) {
    case ORION_CONTROL_REFUSED: {
      const bool is_for_room = result == CUDA_ERROR_OUT_OF_MEMORY || result == CUDA_ERROR_DEVICE_UNAVAILABLE;
      const bool may_wait = is_for_room && s->config->wait_s == 0 && !strstr(control->why, "ORION_WAIT_S");
      return fail(s, result, "%.900s%s", control->why,
                  may_wait ? "; ORION_WAIT_S=seconds waits in the queue until there is room" : "");
    }
    case ORION_CONTROL_OTHER_VERSION:
    case ORION_CONTROL_UNSENT:
      return fail(s, result, "%s", control->why);
    default:
      memcpy(s->why, control->why, sizeof s->why);
      return OUTCOME_ELSEWHERE;
  }
}

static enum outcome leave_queue(search* s, const orion_queued* queued) {
  orion_control* control = &s->allocation->controller;
  tell_give_up(s->config, control, queued->ticket, "");
  if (orion_interrupted())
    return fail(s, CUDA_ERROR_DEVICE_UNAVAILABLE, "interrupted in the queue for vGPUs of %s", control->address);
  if (s->config->wait_s == 0)
    return fail(s, CUDA_ERROR_DEVICE_UNAVAILABLE,
                "%s has no vGPUs now: %s; ORION_WAIT_S=seconds waits in the queue (position %lld)", control->address,
                queued->reason, (long long)queued->position);
  return fail(s, CUDA_ERROR_DEVICE_UNAVAILABLE,
              "%s has had no vGPUs for %u s: %s; still at position %lld of the queue, a greater ORION_WAIT_S waits "
              "longer",
              control->address, s->config->wait_s, queued->reason, (long long)queued->position);
}

static void tell_position(search* s, const orion_queued* queued) {
  const char* address = s->allocation->controller.address;
  if (!s->was_queued)
    orion_log(ORION_LOG_WARN, "waiting up to %u s for vGPUs of %s, at position %lld of the queue: %s",
              s->config->wait_s, address, (long long)queued->position, queued->reason);
  else if (s->told_position != queued->position)
    orion_log(ORION_LOG_INFO, "at position %lld of the queue: %s", (long long)queued->position, queued->reason);
  s->was_queued = true;
  s->told_position = queued->position;
}

// Stands in the queue until an answer other than "queued" has come, whose type is left in `type`. A controller may keep
// its answer to "still waiting" until it has something to say, for less than SILENCE_MS.
static enum outcome stand_in_queue(search* s, char type[32]) {
  orion_control* control = &s->allocation->controller;
  const uint64_t silence_ms = control->timeout_ms > SILENCE_MS ? control->timeout_ms : SILENCE_MS;
  uint64_t asked_ns = orion_now_ns();
  while (strcmp(type, "queued") == 0) {
    orion_queued queued;
    if (!orion_queued_read(control, &queued))
      return fail(s, CUDA_ERROR_NO_DEVICE,
                  "%s answered with a place in a queue that cannot be read: check ORION_CONTROLLER", control->address);
    CUresult result = CUDA_ERROR_NO_DEVICE;
    bool is_asked = false;
    do {
      const uint64_t now_ns = orion_now_ns();
      const uint64_t since_ms = (now_ns - asked_ns) / NS_PER_MS;
      if (orion_interrupted() || now_ns >= s->wait_until_ns) return leave_queue(s, &queued);
      tell_position(s, &queued);
      if (!is_asked && since_ms >= ASK_AGAIN_MS) {
        tell_still_waiting(control, queued.ticket);
        asked_ns = now_ns;
        is_asked = true;
      } else if (is_asked && since_ms >= silence_ms) {
        break;
      }
      const uint64_t left_ms = (s->wait_until_ns - now_ns) / NS_PER_MS + 1;
      result = orion_control_await(control, left_ms < LISTEN_MS ? (uint32_t)left_ms : LISTEN_MS, type, true);
    } while (result != CUDA_SUCCESS && control->failure == ORION_CONTROL_SILENT);
    if (result != CUDA_SUCCESS && control->failure == ORION_CONTROL_SILENT)
      snprintf(control->why, sizeof control->why,
               "%s has not answered for %llu ms, while this program was in its queue", control->address,
               (unsigned long long)silence_ms);
    if (result == CUDA_ERROR_DEVICE_UNAVAILABLE && control->failure == ORION_CONTROL_REFUSED) {
      // A place belongs to the connection on which it was told, and to who asks in time: a new one is asked for.
      snprintf(s->why, sizeof s->why, "this program lost its place in the queue: %.900s", control->why);
      return OUTCOME_ELSEWHERE;
    }
    if (result != CUDA_SUCCESS) return take_failure(s, result);
  }
  return OUTCOME_GRANTED;  // an answer, at least
}

static enum outcome take_answer(search* s, const char* type) {
  orion_allocation* allocation = s->allocation;
  orion_control* control = &allocation->controller;
  if (strcmp(type, "not_leader") == 0) {
    orion_not_leader_read(control, s->leader);
    s->any_not_leader = true;
    orion_log(ORION_LOG_INFO, "%s does not decide at present, %s does", control->address,
              s->leader[0] ? s->leader : "another replica");
    snprintf(s->why, sizeof s->why,
             "no controller of ORION_CONTROLLER is the pool's leader at present (%s was asked "
             "last): try again, and see the controllers' logs if it stays so",
             control->address);
    return OUTCOME_ELSEWHERE;
  }
  if (strcmp(type, "allocated") != 0)
    return fail(s, CUDA_ERROR_NO_DEVICE, "%s answered the request for vGPUs with \"%s\": check ORION_CONTROLLER",
                control->address, type);
  const uint64_t now_ns = orion_now_ns();
  if (!orion_allocated_read(control, &allocation->grant)) {
    if (allocation->grant.allocation[0]) tell_give_up(s->config, control, 0, allocation->grant.allocation);
    return fail(s, CUDA_ERROR_NO_DEVICE,
                "%s answered with an allocation that cannot be read (at most %d servers): check ORION_CONTROLLER, and "
                "install the same release on both sides",
                control->address, ORION_SERVERS_MAX);
  }
  const double within_s = allocation->grant.attach_within_s;
  allocation->attach_until_ns = now_ns + (uint64_t)((within_s < ATTACH_MAX_S ? within_s : ATTACH_MAX_S) * 1e9);
  return OUTCOME_GRANTED;
}

// One controller, from the connection to its last word.
static enum outcome ask(search* s, const char* address, uint32_t timeout_ms) {
  orion_control* control = &s->allocation->controller;
  s->leader[0] = 0;
  if (orion_control_open(control, address, s->config->controller_key, false, timeout_ms, true) != CUDA_SUCCESS) {
    snprintf(s->why, sizeof s->why,
             "no controller at %s (%.200s): start orion-controller there, or correct "
             "ORION_CONTROLLER (ORION_SERVER=host:port goes without a controller)",
             address, control->why);
    return OUTCOME_ELSEWHERE;
  }
  control->peer = ORION_PEER_CONTROLLER;
  char token[ORION_TOKEN_BYTES + 1];
  if (!orion_pod_token_read(s->config, control, token)) {
    s->result = CUDA_ERROR_NOT_PERMITTED;
    orion_control_close(control);
    return OUTCOME_FINAL;
  }
  char type[32] = "";
  const CUresult result = send_allocate(s, token, type);
  sodium_memzero(token, sizeof token);
  enum outcome outcome = result == CUDA_SUCCESS ? stand_in_queue(s, type) : take_failure(s, result);
  if (outcome == OUTCOME_GRANTED) outcome = take_answer(s, type);
  if (outcome != OUTCOME_GRANTED) orion_control_close(control);
  return outcome;
}

static void pause_ms(uint32_t ms) {
  const struct timespec length = {ms / 1000, (long)(ms % 1000) * NS_PER_MS};
  nanosleep(&length, NULL);
}

// Every replica once, and the leaders that they name.
static enum outcome ask_round(search* s) {
  const orion_config* config = s->config;
  uint32_t timeout_ms = config->attach_timeout_ms / config->controller_count;
  if (timeout_ms < REPLICA_MS) timeout_ms = REPLICA_MS;
  if (timeout_ms > config->attach_timeout_ms) timeout_ms = config->attach_timeout_ms;
  s->any_not_leader = false;
  for (uint32_t i = 0; i < config->controller_count && !orion_interrupted(); i++) {
    enum outcome outcome = ask(s, config->controllers[i], timeout_ms);
    for (int n = 0; outcome == OUTCOME_ELSEWHERE && s->leader[0] && n < REDIRECTS_MAX; n++) {
      char leader[ORION_SERVER_NAME_BYTES];
      memcpy(leader, s->leader, sizeof leader);
      outcome = ask(s, leader, timeout_ms);
    }
    if (outcome != OUTCOME_ELSEWHERE) return outcome;
  }
  return OUTCOME_ELSEWHERE;
}

CUresult orion_allocate(const orion_config* config, orion_allocation* allocation) {
  const uint64_t began_ns = orion_now_ns();
  const uint64_t search_until_ns = began_ns + (uint64_t)config->attach_timeout_ms * NS_PER_MS;
  search s = {.config = config,
              .allocation = allocation,
              .result = CUDA_ERROR_NO_DEVICE,
              .why = "interrupted while asking for vGPUs"};
  s.wait_until_ns = began_ns + config->wait_s * 1000000000ull;
  orion_interrupt_begin();
  enum outcome outcome = OUTCOME_ELSEWHERE;
  for (;;) {
    outcome = ask_round(&s);
    if (outcome != OUTCOME_ELSEWHERE || orion_interrupted()) break;
    // A new leader is being chosen, or the controller restarts while this process is in its queue.
    const uint64_t until_ns = s.was_queued ? s.wait_until_ns : s.any_not_leader ? search_until_ns : 0;
    if (orion_now_ns() + (uint64_t)PAUSE_MS * NS_PER_MS >= until_ns) break;
    pause_ms(PAUSE_MS);
  }
  orion_interrupt_end();
  if (outcome == OUTCOME_GRANTED)
    orion_log(ORION_LOG_INFO, "%s gave allocation %s in %.2f ms", allocation->controller.address,
              allocation->grant.allocation, (double)(orion_now_ns() - began_ns) / 1e6);
  if (outcome == OUTCOME_ELSEWHERE) fail(&s, CUDA_ERROR_NO_DEVICE, "%s", s.why);
  return outcome == OUTCOME_GRANTED ? CUDA_SUCCESS : s.result;
}

void orion_allocation_give_up(const orion_config* config, orion_allocation* allocation) {
  tell_give_up(config, &allocation->controller, 0, allocation->grant.allocation);
}

void orion_allocation_close(orion_allocation* allocation) { orion_control_close(&allocation->controller); }

uint64_t orion_allocation_left_ms(const orion_allocation* allocation) {
  const uint64_t now_ns = orion_now_ns();
  return allocation->attach_until_ns > now_ns ? (allocation->attach_until_ns - now_ns) / NS_PER_MS : 0;
}
