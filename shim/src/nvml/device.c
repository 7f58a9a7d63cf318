// What a device is: name, identity, PCI, architecture. None of it changes while a server runs.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "nvml.h"

NVML_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned int length) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, name, false, &gpu);
  return result != NVML_SUCCESS ? result : orion_nvml_text(gpu.name, name, length);
}

NVML_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned int length) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, uuid, false, &gpu);
  return result != NVML_SUCCESS ? result : orion_nvml_text(gpu.uuid, uuid, length);
}

NVML_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int* major, int* minor) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, major, false, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (!minor) return NVML_ERROR_INVALID_ARGUMENT;
  if (!orion_nvml_has(&gpu, METRIC_compute_major) || !orion_nvml_has(&gpu, METRIC_compute_minor))
    return NVML_ERROR_NOT_SUPPORTED;
  *major = (int)gpu.metrics[METRIC_compute_major];
  *minor = (int)gpu.metrics[METRIC_compute_minor];
  return NVML_SUCCESS;
}

// ------------------------------------------------------------------------------------------------- PCI

static nvmlReturn_t read_pci(nvmlDevice_t device, const void* output, nvmlPciInfo_t* pci) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, output, false, &gpu);
  if (result != NVML_SUCCESS) return result;
  memset(pci, 0, sizeof *pci);
  if (sscanf(gpu.pci_bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3) return NVML_ERROR_NOT_SUPPORTED;
  pci->pciDeviceId = (unsigned int)gpu.metrics[METRIC_pci_device_id];
  pci->pciSubSystemId = (unsigned int)gpu.metrics[METRIC_pci_subsystem_id];
  snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
           pci->device & 0xff);
  snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus & 0xff, pci->device & 0xff);
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* out) {
  nvmlPciInfo_t pci;
  const nvmlReturn_t result = read_pci(device, out, &pci);
  if (result == NVML_SUCCESS) *out = pci;
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t* out) {
  nvmlPciInfo_t pci;
  const nvmlReturn_t result = read_pci(device, out, &pci);
  if (result != NVML_SUCCESS) return result;
  memset(out, 0, sizeof *out);
  memcpy(out, &pci, offsetof(nvmlPciInfo_v2_t, reserved));  // equal up to there
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v1_t* out) {
  nvmlPciInfo_t pci;
  const nvmlReturn_t result = read_pci(device, out, &pci);
  if (result == NVML_SUCCESS) memcpy(out, &pci, sizeof *out);
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t* out) {
  enum { DISPLAY_CONTROLLER = 3, CONTROLLER_3D = 2 };
  nvmlPciInfo_t pci;
  const nvmlReturn_t result = read_pci(device, out, &pci);
  if (result != NVML_SUCCESS) return result;
  if (out->version != NVML_VERSION_OF(nvmlPciInfoExt_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  out->domain = pci.domain;
  out->bus = pci.bus;
  out->device = pci.device;
  out->pciDeviceId = pci.pciDeviceId;
  out->pciSubSystemId = pci.pciSubSystemId;
  out->baseClass = DISPLAY_CONTROLLER;
  out->subClass = CONTROLLER_3D;
  memcpy(out->busId, pci.busId, sizeof out->busId);
  return NVML_SUCCESS;
}

// ------------------------------------------------------------------------------------------------- MIG

// A server's MIG instance is a device like any other here: no handle is one of a larger device.
NVML_API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int* is_mig) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, is_mig, false, &gpu);
  if (result == NVML_SUCCESS) *is_mig = 0;
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int* count) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, count, false, &gpu);
  if (result == NVML_SUCCESS) *count = 0;
  return result;
}
