#define _GNU_SOURCE
#include "inventory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../session/config.h"
#include "../session/control.h"
#include "../session/log.h"

static void read_text(orion_unpacker* u, char* out, size_t capacity) {
  const uint8_t* text = NULL;
  const uint32_t bytes = orion_unpack_bytes(u, &text);
  orion_printable(out, capacity, (const char*)text, bytes);
}

static void read_uuid(orion_unpacker* u, char out[48]) {
  const uint8_t* b = NULL;
  if (orion_unpack_bytes(u, &b) != 16 || u->bad) {
    u->bad = true;
    return;
  }
  snprintf(out, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
           b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static void read_gpu(orion_unpacker* u, orion_nvml_gpu* gpu) {
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "name"))
      read_text(u, gpu->name, sizeof gpu->name);
    else if (orion_unpack_equals(key, n, "uuid"))
      read_uuid(u, gpu->uuid);
    else if (orion_unpack_equals(key, n, "pci_bus_id"))
      read_text(u, gpu->pci_bus_id, sizeof gpu->pci_bus_id);
    else if (orion_unpack_equals(key, n, "total_bytes"))
      gpu->total_bytes = (uint64_t)orion_unpack_integer(u);
    else if (orion_unpack_equals(key, n, "used_bytes"))
      gpu->used_bytes = (uint64_t)orion_unpack_integer(u);
    else
      orion_unpack_skip(u);
  }
}

static bool read_stats(const orion_control* control, orion_nvml_inventory* inventory) {
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, n, "gpus")) {
      for (uint32_t left = orion_unpack_array(&u); left && !u.bad; left--) {
        if (inventory->count == ORION_NVML_GPUS) {
          orion_unpack_skip(&u);
          continue;
        }
        orion_nvml_gpu* gpu = &inventory->gpus[inventory->count++];
        memset(gpu, 0, sizeof *gpu);
        read_gpu(&u, gpu);
      }
    } else if (orion_unpack_equals(key, n, "driver")) {
      read_text(&u, inventory->driver_version, sizeof inventory->driver_version);
    } else {
      orion_unpack_skip(&u);
    }
  }
  return !u.bad;
}

static bool ask_server(const char* address, const orion_config* config, orion_nvml_inventory* inventory, bool quiet) {
  orion_control control;
  if (orion_control_open(&control, address, config->server_is_default, config->attach_timeout_ms, quiet) !=
      CUDA_SUCCESS)
    return false;
  uint8_t buffer[64];
  orion_packer packer = {buffer, 0, sizeof buffer, false};
  orion_control_begin(&control, &packer, "stats", 0);
  char type[32];
  const bool answered = orion_control_request(&control, &packer, type, quiet) == CUDA_SUCCESS &&
                        strcmp(type, "stats") == 0 && read_stats(&control, inventory);
  orion_control_close(&control);
  return answered;
}

bool orion_nvml_ask(orion_nvml_inventory* inventory, bool quiet) {
  inventory->count = 0;
  inventory->driver_version[0] = 0;
  orion_config* config = calloc(1, sizeof *config);
  bool answered = config && orion_config_read(config);
  for (uint32_t i = 0; answered && i < config->server_count; i++)
    answered = ask_server(config->servers[i], config, inventory, quiet);
  free(config);
  return answered;
}
