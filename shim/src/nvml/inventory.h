// The GPUs that the configured servers tell about, without a session: what the management library answers from.
#ifndef ORION_NVML_INVENTORY_H
#define ORION_NVML_INVENTORY_H

#include <stdbool.h>
#include <stdint.h>

enum { ORION_NVML_GPUS = 256, ORION_NVML_PEERS = 64, ORION_NVML_PEER_VALUES = 6, ORION_NVML_PROCESSES = 256 };

// Values that a device tells about itself, by the name they have on the wire; what is not told is not supported.
// clang-format off
#define ORION_NVML_METRICS(X) \
  X(architecture) X(brand) X(clock_graphics_mhz) X(clock_max_graphics_mhz) X(clock_max_memory_mhz) \
  X(clock_max_sm_mhz) X(clock_max_video_mhz) X(clock_memory_mhz) X(clock_reasons) X(clock_sm_mhz) X(clock_video_mhz) \
  X(compute_major) X(compute_minor) X(compute_mode) X(cores) X(decoder_percent) X(decoder_period_us) X(ecc_current) \
  X(ecc_pending) X(encoder_percent) X(encoder_period_us) X(energy_mj) X(fan_percent) X(memory_bus_bits) \
  X(memory_reserved_bytes) X(memory_total_bytes) X(memory_used_bytes) X(mig_current) X(mig_pending) X(minor_number) \
  X(pci_device_id) X(pci_subsystem_id) X(pcie_generation) X(pcie_generation_max) X(pcie_width) X(pcie_width_max) \
  X(performance_state) X(persistence_mode) X(power_default_mw) X(power_enforced_mw) X(power_limit_mw) \
  X(power_max_mw) X(power_min_mw) X(power_mw) X(temperature_c) X(temperature_shutdown_c) X(temperature_slowdown_c) \
  X(utilization_gpu_percent) X(utilization_memory_percent)
// clang-format on

#define ORION_NVML_METRIC_ENUM(name) METRIC_##name,
enum orion_nvml_metric { ORION_NVML_METRICS(ORION_NVML_METRIC_ENUM) METRIC_COUNT };
_Static_assert(METRIC_COUNT <= 64, "one bit each");

typedef struct orion_nvml_gpu {
  uint32_t server;   // position of its server in ORION_SERVER, or in the allocation; UINT32_MAX: none yet
  uint32_t ordinal;  // on that server
  uint32_t position_on_server;
  char name[96];
  char uuid[48];  // "GPU-..."
  uint8_t uuid_bytes[16];
  char pci_bus_id[32];  // empty when the server does not tell
  uint64_t total_bytes, used_bytes;
  uint64_t metrics[METRIC_COUNT];
  uint64_t has_metric;  // one bit each
  // By position on the same server: topology level, then the P2P status of each capability.
  uint32_t peers[ORION_NVML_PEERS][ORION_NVML_PEER_VALUES];
  uint8_t peer_values[ORION_NVML_PEERS];  // how many of them were told
} orion_nvml_gpu;

/// A process of this user that uses a GPU: one entry for each of its devices.
typedef struct orion_nvml_process {
  uint32_t pid, server, ordinal;
  uint64_t used_bytes;
} orion_nvml_process;

typedef struct orion_nvml_inventory {
  orion_nvml_gpu gpus[ORION_NVML_GPUS];
  uint32_t count;
  orion_nvml_process processes[ORION_NVML_PROCESSES];
  uint32_t process_count;
  char driver[80];     // empty when no server tells
  int driver_version;  // CUDA's; 0 when no server tells
} orion_nvml_inventory;

/// Asks every configured server, or those that the controller names. False, after one line on stderr unless `quiet`,
/// when one does not answer.
bool orion_nvml_ask(orion_nvml_inventory* inventory, bool quiet);

#endif
