// libnvidia-ml.so.1: the part of NVIDIA's management library that programs ask before they use a GPU. Names, codes and
// layouts are those of the public interface; what a remote GPU cannot tell yet answers NVML_ERROR_NOT_SUPPORTED.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "inventory.h"

#define NVML_API __attribute__((visibility("default")))

enum nvml_result {
  NVML_SUCCESS = 0,
  NVML_ERROR_UNINITIALIZED = 1,
  NVML_ERROR_INVALID_ARGUMENT = 2,
  NVML_ERROR_NOT_SUPPORTED = 3,
  NVML_ERROR_NOT_FOUND = 6,
  NVML_ERROR_INSUFFICIENT_SIZE = 7,
  NVML_ERROR_DRIVER_NOT_LOADED = 9,
  NVML_ERROR_GPU_IS_LOST = 15,
};
typedef int nvmlReturn_t;
typedef struct orion_nvml_gpu* nvmlDevice_t;  // opaque to callers

typedef struct nvmlMemory_t {
  unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct nvmlMemory_v2_t {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct nvmlPciInfo_t {
  char busIdLegacy[16];
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;

enum { FRESH_MS = 200 };  // memory figures are asked again when older

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned init_count;
static orion_nvml_inventory inventory;  // positions stay: handles point into it
static struct timespec asked_at;

static nvmlReturn_t initialise(void) {
  nvmlReturn_t result = NVML_SUCCESS;
  pthread_mutex_lock(&lock);
  if (init_count == 0 && !orion_nvml_ask(&inventory, false))
    result = NVML_ERROR_DRIVER_NOT_LOADED;
  else
    init_count++;
  clock_gettime(CLOCK_MONOTONIC, &asked_at);
  pthread_mutex_unlock(&lock);
  return result;
}

NVML_API nvmlReturn_t nvmlInit(void) { return initialise(); }
NVML_API nvmlReturn_t nvmlInit_v2(void) { return initialise(); }
NVML_API nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
  const nvmlReturn_t result = initialise();
  const unsigned int no_gpus_is_fine = 1;
  if (result == NVML_SUCCESS || !(flags & no_gpus_is_fine)) return result;
  pthread_mutex_lock(&lock);
  inventory.count = 0;
  init_count++;
  pthread_mutex_unlock(&lock);
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlShutdown(void) {
  pthread_mutex_lock(&lock);
  const bool was = init_count > 0;
  if (was) init_count--;
  pthread_mutex_unlock(&lock);
  return was ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

// Handles outlive a shutdown, as natively, but nothing answers until the next init.
static nvmlReturn_t check(const void* output) {
  pthread_mutex_lock(&lock);
  const unsigned count = init_count;
  pthread_mutex_unlock(&lock);
  if (count == 0) return NVML_ERROR_UNINITIALIZED;
  return output ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static nvmlReturn_t check_device(const struct orion_nvml_gpu* device, const void* output) {
  const nvmlReturn_t result = check(output);
  if (result != NVML_SUCCESS) return result;
  const uintptr_t first = (uintptr_t)inventory.gpus;
  const uintptr_t at = (uintptr_t)device;
  if (at < first || at >= (uintptr_t)(inventory.gpus + inventory.count) || (at - first) % sizeof *device)
    return NVML_ERROR_INVALID_ARGUMENT;
  return NVML_SUCCESS;
}

static nvmlReturn_t give_text(const char* text, char* out, unsigned int capacity) {
  if (!text[0]) return NVML_ERROR_NOT_SUPPORTED;
  if (strlen(text) >= capacity) return NVML_ERROR_INSUFFICIENT_SIZE;
  memcpy(out, text, strlen(text) + 1);
  return NVML_SUCCESS;
}

NVML_API const char* nvmlErrorString(nvmlReturn_t result) {
  switch (result) {
    case NVML_SUCCESS:
      return "Success";
    case NVML_ERROR_UNINITIALIZED:
      return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
      return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
      return "Not Supported";
    case NVML_ERROR_NOT_FOUND:
      return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
      return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED:
      return "Driver Not Loaded";
    case NVML_ERROR_GPU_IS_LOST:
      return "GPU is lost";
    default:
      return "Unknown Error";
  }
}

NVML_API nvmlReturn_t nvmlSystemGetDriverVersion(char* version, unsigned int length) {
  const nvmlReturn_t result = check(version);
  return result != NVML_SUCCESS ? result : give_text(inventory.driver_version, version, length);
}

NVML_API nvmlReturn_t nvmlSystemGetNVMLVersion(char* version, unsigned int length) {
  if (!version) return NVML_ERROR_INVALID_ARGUMENT;
  return give_text("13.0", version, length);
}

static nvmlReturn_t get_count(unsigned int* count) {
  const nvmlReturn_t result = check(count);
  if (result == NVML_SUCCESS) *count = inventory.count;
  return result;
}
NVML_API nvmlReturn_t nvmlDeviceGetCount(unsigned int* count) { return get_count(count); }
NVML_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int* count) { return get_count(count); }

static nvmlReturn_t by_index(unsigned int index, nvmlDevice_t* device) {
  const nvmlReturn_t result = check(device);
  if (result != NVML_SUCCESS) return result;
  if (index >= inventory.count) return NVML_ERROR_INVALID_ARGUMENT;
  *device = &inventory.gpus[index];
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t* device) {
  return by_index(index, device);
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t* device) {
  return by_index(index, device);
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
  const nvmlReturn_t result = check(device);
  if (result != NVML_SUCCESS) return result;
  if (!uuid) return NVML_ERROR_INVALID_ARGUMENT;
  for (uint32_t i = 0; i < inventory.count; i++) {
    if (strcasecmp(uuid, inventory.gpus[i].uuid) != 0) continue;
    *device = &inventory.gpus[i];
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}

static bool parse_pci(const char* text, unsigned int parts[3]) {
  parts[0] = 0;
  if (sscanf(text, "%x:%x:%x", &parts[0], &parts[1], &parts[2]) == 3) return true;
  parts[0] = 0;
  return sscanf(text, "%x:%x", &parts[1], &parts[2]) == 2;
}

static nvmlReturn_t by_pci(const char* bus_id, nvmlDevice_t* device) {
  const nvmlReturn_t result = check(device);
  if (result != NVML_SUCCESS) return result;
  unsigned int wanted[3];
  if (!bus_id || !parse_pci(bus_id, wanted)) return NVML_ERROR_INVALID_ARGUMENT;
  for (uint32_t i = 0; i < inventory.count; i++) {
    unsigned int parts[3];
    if (!parse_pci(inventory.gpus[i].pci_bus_id, parts) || memcmp(parts, wanted, sizeof parts) != 0) continue;
    *device = &inventory.gpus[i];
    return NVML_SUCCESS;
  }
  return NVML_ERROR_NOT_FOUND;
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* bus_id, nvmlDevice_t* device) {
  return by_pci(bus_id, device);
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, nvmlDevice_t* device) {
  return by_pci(bus_id, device);
}

NVML_API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int* index) {
  const nvmlReturn_t result = check_device(device, index);
  if (result == NVML_SUCCESS) *index = (unsigned int)(device - inventory.gpus);
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned int length) {
  const nvmlReturn_t result = check_device(device, name);
  return result != NVML_SUCCESS ? result : give_text(device->name, name, length);
}

NVML_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned int length) {
  const nvmlReturn_t result = check_device(device, uuid);
  return result != NVML_SUCCESS ? result : give_text(device->uuid, uuid, length);
}

static nvmlReturn_t get_memory(nvmlDevice_t device, unsigned long long* total, unsigned long long* used) {
  nvmlReturn_t result = NVML_SUCCESS;
  pthread_mutex_lock(&lock);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const long age_ms = (now.tv_sec - asked_at.tv_sec) * 1000 + (now.tv_nsec - asked_at.tv_nsec) / 1000000;
  if (age_ms > FRESH_MS) {
    orion_nvml_inventory* fresh = malloc(sizeof *fresh);
    if (fresh && orion_nvml_ask(fresh, true) && fresh->count == inventory.count) {
      for (uint32_t i = 0; i < inventory.count; i++) {
        inventory.gpus[i].total_bytes = fresh->gpus[i].total_bytes;
        inventory.gpus[i].used_bytes = fresh->gpus[i].used_bytes;
      }
      asked_at = now;
    } else {
      result = NVML_ERROR_GPU_IS_LOST;
    }
    free(fresh);
  }
  *total = device->total_bytes;
  *used = device->used_bytes < device->total_bytes ? device->used_bytes : device->total_bytes;
  pthread_mutex_unlock(&lock);
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
  nvmlReturn_t result = check_device(device, memory);
  if (result == NVML_SUCCESS) result = get_memory(device, &memory->total, &memory->used);
  if (result == NVML_SUCCESS) memory->free = memory->total - memory->used;
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* memory) {
  nvmlReturn_t result = check_device(device, memory);
  if (result == NVML_SUCCESS) result = get_memory(device, &memory->total, &memory->used);
  if (result != NVML_SUCCESS) return result;
  memory->reserved = 0;
  memory->free = memory->total - memory->used;
  return NVML_SUCCESS;
}

static nvmlReturn_t get_pci(nvmlDevice_t device, nvmlPciInfo_t* pci) {
  const nvmlReturn_t result = check_device(device, pci);
  if (result != NVML_SUCCESS) return result;
  unsigned int parts[3];
  if (!parse_pci(device->pci_bus_id, parts)) return NVML_ERROR_NOT_SUPPORTED;
  memset(pci, 0, sizeof *pci);
  pci->domain = parts[0];
  pci->bus = parts[1];
  pci->device = parts[2];
  snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", parts[0] & 0xffff, parts[1] & 0xff,
           parts[2] & 0xff);
  snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", parts[0], parts[1] & 0xff, parts[2] & 0xff);
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t* pci) { return get_pci(device, pci); }
NVML_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* pci) { return get_pci(device, pci); }

NVML_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, void* rates) {
  const nvmlReturn_t result = check_device(device, rates);
  return result != NVML_SUCCESS ? result : NVML_ERROR_NOT_SUPPORTED;
}
NVML_API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int* celsius) {
  (void)sensor;
  const nvmlReturn_t result = check_device(device, celsius);
  return result != NVML_SUCCESS ? result : NVML_ERROR_NOT_SUPPORTED;
}
NVML_API nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int* milliwatts) {
  const nvmlReturn_t result = check_device(device, milliwatts);
  return result != NVML_SUCCESS ? result : NVML_ERROR_NOT_SUPPORTED;
}
