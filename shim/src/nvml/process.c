// Processes on a device: those of the caller's own user and group on the caller's host, by their own ids. Nobody
// learns of another tenant's.
#include <stddef.h>

#include "nvml.h"

enum { ALL_INSTANCES = -1 };

static nvmlReturn_t read_processes(nvmlDevice_t device, unsigned int* count, bool has_output, orion_nvml_process* found,
                                   uint32_t* found_count) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, count, true, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (*count && !has_output) return NVML_ERROR_INVALID_ARGUMENT;
  *found_count = orion_nvml_processes(&gpu, found, ORION_NVML_PROCESSES);
  const bool fits = *found_count <= *count;
  *count = *found_count;
  return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t compute_v2(nvmlDevice_t device, unsigned int* count, nvmlProcessInfo_v2_t* out) {
  orion_nvml_process found[ORION_NVML_PROCESSES];
  uint32_t found_count = 0;
  const nvmlReturn_t result = read_processes(device, count, out != NULL, found, &found_count);
  for (uint32_t i = 0; result == NVML_SUCCESS && i < found_count; i++)
    out[i] = (nvmlProcessInfo_v2_t){.pid = found[i].pid,
                                    .usedGpuMemory = found[i].used_bytes,
                                    .gpuInstanceId = (unsigned int)ALL_INSTANCES,
                                    .computeInstanceId = (unsigned int)ALL_INSTANCES};
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int* count,
                                                           nvmlProcessInfo_v1_t* out) {
  orion_nvml_process found[ORION_NVML_PROCESSES];
  uint32_t found_count = 0;
  const nvmlReturn_t result = read_processes(device, count, out != NULL, found, &found_count);
  for (uint32_t i = 0; result == NVML_SUCCESS && i < found_count; i++)
    out[i] = (nvmlProcessInfo_v1_t){.pid = found[i].pid, .usedGpuMemory = found[i].used_bytes};
  return result;
}
NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int* count,
                                                              nvmlProcessInfo_v2_t* out) {
  return compute_v2(device, count, out);
}
NVML_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int* count,
                                                              nvmlProcessInfo_v2_t* out) {
  return compute_v2(device, count, out);
}

// Programs here only compute: no list of graphics or MPS processes has an entry.
// clang-format off
#define EMPTY_LISTS(X) \
  X(nvmlDeviceGetGraphicsRunningProcesses) X(nvmlDeviceGetGraphicsRunningProcesses_v2) \
  X(nvmlDeviceGetGraphicsRunningProcesses_v3) X(nvmlDeviceGetMPSComputeRunningProcesses) \
  X(nvmlDeviceGetMPSComputeRunningProcesses_v2) X(nvmlDeviceGetMPSComputeRunningProcesses_v3)
// clang-format on
#define EMPTY_LIST(name)                                                                    \
  NVML_API nvmlReturn_t name(nvmlDevice_t device, unsigned int* count, const void* infos) { \
    (void)infos;                                                                            \
    orion_nvml_gpu gpu;                                                                     \
    const nvmlReturn_t result = orion_nvml_device(device, count, false, &gpu);              \
    if (result == NVML_SUCCESS) *count = 0;                                                 \
    return result;                                                                          \
  }
EMPTY_LISTS(EMPTY_LIST)
