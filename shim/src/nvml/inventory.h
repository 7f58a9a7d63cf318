// The GPUs that the configured servers tell about, without a session: what the management library answers from.
#ifndef ORION_NVML_INVENTORY_H
#define ORION_NVML_INVENTORY_H

#include <stdbool.h>
#include <stdint.h>

enum { ORION_NVML_GPUS = 256 };

typedef struct orion_nvml_gpu {
  char name[96];
  char uuid[48];        // "GPU-..."
  char pci_bus_id[32];  // empty when the server does not tell
  uint64_t total_bytes, used_bytes;
} orion_nvml_gpu;

typedef struct orion_nvml_inventory {
  orion_nvml_gpu gpus[ORION_NVML_GPUS];
  uint32_t count;
  char driver_version[80];  // empty when no server tells
} orion_nvml_inventory;

/// Asks every configured server. False, after one line on stderr unless `quiet`, when one does not answer.
bool orion_nvml_ask(orion_nvml_inventory* inventory, bool quiet);

#endif
