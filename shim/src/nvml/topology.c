// How devices reach each other and which CPUs are near. Devices of one server: as its NVML tells. Devices of different
// servers: no peer access. NVLinks between a device and what is not in the list are not shown.
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>

#include "nvml.h"

enum { LEVEL_INTERNAL = 0, LEVEL_SYSTEM = 50 };
enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5, P2P_UNKNOWN = 6, P2P_CAPABILITIES = 5 };

static nvmlReturn_t read_two(nvmlDevice_t one, nvmlDevice_t other, const void* output, orion_nvml_gpu* a,
                             orion_nvml_gpu* b) {
  const nvmlReturn_t result = orion_nvml_device(one, output, false, a);
  return result != NVML_SUCCESS ? result : orion_nvml_device(other, output, false, b);
}

// NULL when the server did not tell; `values` is how many the caller needs.
static const uint32_t* peer_row(const orion_nvml_gpu* a, const orion_nvml_gpu* b, uint32_t values) {
  if (b->position_on_server >= ORION_NVML_PEERS || a->peer_values[b->position_on_server] < values) return NULL;
  return a->peers[b->position_on_server];
}

NVML_API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned int* level) {
  orion_nvml_gpu a;
  orion_nvml_gpu b;
  const nvmlReturn_t result = read_two(one, other, level, &a, &b);
  if (result != NVML_SUCCESS) return result;
  const uint32_t* row = a.server == b.server ? peer_row(&a, &b, 1) : NULL;
  *level = one == other ? LEVEL_INTERNAL : row ? row[0] : LEVEL_SYSTEM;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, unsigned int capability,
                                             unsigned int* status) {
  orion_nvml_gpu a;
  orion_nvml_gpu b;
  const nvmlReturn_t result = read_two(one, other, status, &a, &b);
  if (result != NVML_SUCCESS) return result;
  if (capability >= P2P_CAPABILITIES) return NVML_ERROR_INVALID_ARGUMENT;
  if (a.server != b.server) {
    *status = P2P_NOT_SUPPORTED;
    return NVML_SUCCESS;
  }
  const uint32_t* row = peer_row(&a, &b, 2 + capability);
  *status = one == other ? P2P_OK : row ? row[1 + capability] : P2P_UNKNOWN;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t other, int* same) {
  orion_nvml_gpu a;
  orion_nvml_gpu b;
  const nvmlReturn_t result = read_two(one, other, same, &a, &b);
  if (result == NVML_SUCCESS) *same = one == other;
  return result;
}

// Every CPU that this process may use is equally near to a remote GPU.
static nvmlReturn_t give_cpus(nvmlDevice_t device, unsigned int words, unsigned long* set) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, set, false, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (words == 0) return NVML_ERROR_INVALID_ARGUMENT;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return NVML_ERROR_NOT_SUPPORTED;
  memset(set, 0, words * sizeof *set);
  const size_t bits = 8 * sizeof *set;
  for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &cpus)) continue;
    if (cpu / bits >= words) return NVML_ERROR_INSUFFICIENT_SIZE;
    set[cpu / bits] |= 1ul << cpu % bits;
  }
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int words, unsigned long* set) {
  return give_cpus(device, words, set);
}
NVML_API nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int words, unsigned long* set,
                                                          unsigned int scope) {
  (void)scope;
  return give_cpus(device, words, set);
}
// Binding a thread to all CPUs that its process may use changes nothing.
NVML_API nvmlReturn_t nvmlDeviceSetCpuAffinity(nvmlDevice_t device) {
  orion_nvml_gpu gpu;
  return orion_nvml_device(device, device, false, &gpu);
}
NVML_API nvmlReturn_t nvmlDeviceClearCpuAffinity(nvmlDevice_t device) {
  orion_nvml_gpu gpu;
  return orion_nvml_device(device, device, false, &gpu);
}
