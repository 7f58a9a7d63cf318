#define _GNU_SOURCE
#include "inventory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../session/config.h"
#include "../session/control.h"
#include "../session/identity.h"
#include "../session/log.h"
#include "pool.h"

#define METRIC_NAME(name) #name,
static const char* const metric_names[METRIC_COUNT] = {ORION_NVML_METRICS(METRIC_NAME)};

static void read_text(orion_unpacker* u, char* out, size_t capacity) {
  const uint8_t* text = NULL;
  const uint32_t bytes = orion_unpack_bytes(u, &text);
  orion_printable(out, capacity, (const char*)text, bytes);
}

static void read_uuid(orion_unpacker* u, orion_nvml_gpu* gpu) {
  const uint8_t* b = NULL;
  if (orion_unpack_bytes(u, &b) != 16 || u->bad) {
    u->bad = true;
    return;
  }
  memcpy(gpu->uuid_bytes, b, 16);
  snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
           b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static void read_metrics(orion_unpacker* u, orion_nvml_gpu* gpu) {
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    const int64_t value = orion_unpack_integer(u);
    if (u->bad || value < 0) continue;
    for (int m = 0; m < METRIC_COUNT; m++) {
      if (!orion_unpack_equals(key, n, metric_names[m])) continue;
      gpu->metrics[m] = (uint64_t)value;
      gpu->has_metric |= 1ull << m;
    }
  }
}

static void read_peers(orion_unpacker* u, orion_nvml_gpu* gpu) {
  const uint32_t peers = orion_unpack_array(u);
  for (uint32_t p = 0; p < peers && !u->bad; p++) {
    const uint32_t values = orion_unpack_array(u);
    for (uint32_t v = 0; v < values && !u->bad; v++) {
      const int64_t value = orion_unpack_integer(u);
      if (p >= ORION_NVML_PEERS || v >= ORION_NVML_PEER_VALUES || value < 0 || value > UINT32_MAX) continue;
      gpu->peers[p][v] = (uint32_t)value;
      gpu->peer_values[p] = (uint8_t)(v + 1);
    }
  }
}

static void read_gpu(orion_unpacker* u, orion_nvml_gpu* gpu) {
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "ordinal"))
      gpu->ordinal = (uint32_t)orion_unpack_integer(u);
    else if (orion_unpack_equals(key, n, "name"))
      read_text(u, gpu->name, sizeof gpu->name);
    else if (orion_unpack_equals(key, n, "uuid"))
      read_uuid(u, gpu);
    else if (orion_unpack_equals(key, n, "pci_bus_id"))
      read_text(u, gpu->pci_bus_id, sizeof gpu->pci_bus_id);
    else if (orion_unpack_equals(key, n, "total_bytes"))
      gpu->total_bytes = (uint64_t)orion_unpack_integer(u);
    else if (orion_unpack_equals(key, n, "used_bytes"))
      gpu->used_bytes = (uint64_t)orion_unpack_integer(u);
    else if (orion_unpack_equals(key, n, "metrics"))
      read_metrics(u, gpu);
    else if (orion_unpack_equals(key, n, "peers"))
      read_peers(u, gpu);
    else
      orion_unpack_skip(u);
  }
}

static void read_gpus(orion_unpacker* u, orion_nvml_inventory* inventory, uint32_t server) {
  uint32_t position = 0;
  for (uint32_t left = orion_unpack_array(u); left && !u->bad; left--) {
    if (inventory->count == ORION_NVML_GPUS) {
      orion_unpack_skip(u);
      continue;
    }
    orion_nvml_gpu* gpu = &inventory->gpus[inventory->count++];
    memset(gpu, 0, sizeof *gpu);
    gpu->server = server;
    gpu->position_on_server = position++;
    read_gpu(u, gpu);
  }
}

static void read_session(orion_unpacker* u, orion_nvml_inventory* inventory, uint32_t server) {
  const uint32_t first = inventory->process_count;
  uint32_t pid = 0;
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "pid")) {
      pid = (uint32_t)orion_unpack_integer(u);
    } else if (orion_unpack_equals(key, n, "used_by_device")) {
      for (uint32_t devices = orion_unpack_map(u); devices && !u->bad; devices--) {
        const int64_t ordinal = orion_unpack_integer(u);
        const int64_t used = orion_unpack_integer(u);
        if (u->bad || inventory->process_count == ORION_NVML_PROCESSES) continue;
        inventory->processes[inventory->process_count++] = (orion_nvml_process){
            .server = server, .ordinal = (uint32_t)ordinal, .used_bytes = used > 0 ? (uint64_t)used : 0};
      }
    } else {
      orion_unpack_skip(u);
    }
  }
  for (uint32_t i = first; i < inventory->process_count; i++) inventory->processes[i].pid = pid;
}

static bool read_stats(const orion_control* control, orion_nvml_inventory* inventory, uint32_t server) {
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "gpus")) {
      read_gpus(&u, inventory, server);
    } else if (orion_unpack_equals(key, n, "sessions")) {
      for (uint32_t left = orion_unpack_array(&u); left && !u.bad; left--) read_session(&u, inventory, server);
    } else if (orion_unpack_equals(key, n, "driver")) {
      char driver[sizeof inventory->driver];
      read_text(&u, driver, sizeof driver);
      if (!inventory->driver[0]) memcpy(inventory->driver, driver, sizeof driver);
    } else if (orion_unpack_equals(key, n, "driver_version")) {
      const int64_t version = orion_unpack_integer(&u);
      // With several servers the program must suit the oldest.
      if (version > 0 && version <= INT32_MAX && (!inventory->driver_version || version < inventory->driver_version))
        inventory->driver_version = (int)version;
    } else {
      orion_unpack_skip(&u);
    }
  }
  return !u.bad;
}

static bool ask_server(const orion_config* config, const char* address, const char* server_key, const char* own_key,
                       uint32_t server, orion_nvml_inventory* inventory, bool quiet) {
  orion_control control;
  if (orion_control_open(&control, address, server_key, config->server_is_default, config->attach_timeout_ms, quiet) !=
      CUDA_SUCCESS)
    return false;
  if (config->controller_count) control.peer = ORION_PEER_OF_POOL;
  uint8_t buffer[1024];
  char host[64];
  orion_boot_id(host, sizeof host);
  orion_packer p = {buffer, 0, sizeof buffer, false};
  orion_control_begin(&control, &p, "stats", 9);
  orion_pack_string(&p, "key");
  orion_pack_string(&p, control.is_encrypted ? own_key : "");
  orion_pack_string(&p, "telemetry");
  orion_pack_bool(&p, true);
  orion_pack_string(&p, "pid");
  orion_pack_unsigned(&p, (uint64_t)getpid());
  orion_pack_string(&p, "uid");
  orion_pack_unsigned(&p, getuid());
  orion_pack_string(&p, "host");
  orion_pack_string(&p, host);
  orion_pack_string(&p, "vgpu");
  orion_pack_unsigned(&p, config->vgpu_count);
  orion_pack_string(&p, "group");
  orion_pack_string(&p, config->group);
  orion_pack_string(&p, "gmem_mib");
  orion_pack_unsigned(&p, config->gmem_mib);
  orion_pack_string(&p, "res_group");
  orion_pack_string(&p, config->shares_vgpu ? "BOX" : "");
  char type[32];
  const bool answered = orion_control_request(&control, &p, type, quiet) == CUDA_SUCCESS &&
                        strcmp(type, "stats") == 0 && read_stats(&control, inventory, server);
  orion_control_close(&control);
  return answered;
}

// With a controller a process has as many devices as it asks for, from the start: before its first use of CUDA nothing
// is allocated, and nothing is known of them but that.
static bool ask_pool(const orion_config* config, orion_nvml_inventory* inventory, bool quiet) {
  orion_nvml_servers* servers = calloc(1, sizeof *servers);
  bool answered = servers && orion_nvml_lookup(config, servers, quiet);
  for (uint32_t i = 0; answered && i < servers->count; i++)
    answered =
        ask_server(config, servers->addresses[i], servers->public_keys[i], servers->stats_keys[i], i, inventory, quiet);
  if (inventory->count > config->vgpu_count) inventory->count = config->vgpu_count;  // the rest is its group's
  while (answered && inventory->count < config->vgpu_count) {
    orion_nvml_gpu* gpu = &inventory->gpus[inventory->count++];
    memset(gpu, 0, sizeof *gpu);
    gpu->server = UINT32_MAX;
    gpu->total_bytes = config->gmem_mib << 20;
    snprintf(gpu->name, sizeof gpu->name, "Orion vGPU");
  }
  free(servers);
  return answered;
}

bool orion_nvml_ask(orion_nvml_inventory* inventory, bool quiet) {
  inventory->count = inventory->process_count = 0;
  inventory->driver[0] = 0;
  inventory->driver_version = 0;
  orion_config* config = calloc(1, sizeof *config);
  bool answered = config && orion_config_read(config);
  for (uint32_t i = 0; answered && i < config->server_count; i++)
    answered = ask_server(config, config->servers[i], config->server_keys[i], config->client_key, i, inventory, quiet);
  if (answered && config->controller_count) answered = ask_pool(config, inventory, quiet);
  free(config);
  return answered;
}
