// libnvidia-ml.so.1: the management library that programs ask before they use a GPU. It answers from what the servers
// tell (`stats`, without a session); what a remote GPU cannot tell answers NVML_ERROR_NOT_SUPPORTED. Here: its life,
// the inventory that all files answer from, handles, and what concerns the system as a whole.
#define _GNU_SOURCE
#include "nvml.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { FRESH_MS = 200 };  // live values are asked again when older

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;
static unsigned init_count;
static orion_nvml_inventory inventory;  // positions stay: handles point into it
static struct timespec asked_at;
static bool answered_last;

// Another thread may have held the lock at the fork.
static void after_fork_in_child(void) { pthread_mutex_init(&lock, NULL); }

static void register_handlers(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static nvmlReturn_t initialise(bool no_gpus_is_fine) {
  pthread_once(&handlers_once, register_handlers);
  nvmlReturn_t result = NVML_SUCCESS;
  pthread_mutex_lock(&lock);
  if (init_count == 0) {
    answered_last = orion_nvml_ask(&inventory, no_gpus_is_fine);
    if (!answered_last) inventory.count = 0;
    if (!answered_last && !no_gpus_is_fine) result = NVML_ERROR_DRIVER_NOT_LOADED;
    clock_gettime(CLOCK_MONOTONIC, &asked_at);
  }
  if (result == NVML_SUCCESS) init_count++;
  pthread_mutex_unlock(&lock);
  return result;
}

NVML_API nvmlReturn_t nvmlInit(void) { return initialise(false); }
NVML_API nvmlReturn_t nvmlInit_v2(void) { return initialise(false); }
NVML_API nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return initialise((flags & 1) != 0); }

NVML_API nvmlReturn_t nvmlShutdown(void) {
  pthread_mutex_lock(&lock);
  const bool was = init_count > 0;
  if (was) init_count--;
  pthread_mutex_unlock(&lock);
  return was ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

// ------------------------------------------------------------------------------------------------- the inventory

nvmlReturn_t orion_nvml_check(const void* output) {
  pthread_mutex_lock(&lock);
  const unsigned count = init_count;
  pthread_mutex_unlock(&lock);
  if (count == 0) return NVML_ERROR_UNINITIALIZED;
  return output ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

// Under the lock. A process that attaches after this library's start may have been given other devices than the ones
// it would have had before: then the same positions show those from now on.
static void refresh(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const long age_ms = (now.tv_sec - asked_at.tv_sec) * 1000 + (now.tv_nsec - asked_at.tv_nsec) / 1000000;
  if (age_ms <= FRESH_MS) return;
  orion_nvml_inventory* fresh = malloc(sizeof *fresh);
  answered_last = fresh && orion_nvml_ask(fresh, true) && fresh->count == inventory.count;
  if (answered_last) memcpy(&inventory, fresh, sizeof *fresh);
  free(fresh);
  clock_gettime(CLOCK_MONOTONIC, &asked_at);
}

// Under the lock. Handles outlive a shutdown, as natively, but nothing answers until the next init.
static nvmlReturn_t check_handle(const struct orion_nvml_gpu* device) {
  if (init_count == 0) return NVML_ERROR_UNINITIALIZED;
  const uintptr_t first = (uintptr_t)inventory.gpus;
  const uintptr_t at = (uintptr_t)device;
  if (at < first || at >= (uintptr_t)(inventory.gpus + inventory.count) || (at - first) % sizeof *device)
    return NVML_ERROR_INVALID_ARGUMENT;
  return NVML_SUCCESS;
}

nvmlReturn_t orion_nvml_device(nvmlDevice_t device, const void* output, bool live, orion_nvml_gpu* copy) {
  pthread_mutex_lock(&lock);
  nvmlReturn_t result = check_handle(device);
  if (result == NVML_SUCCESS && !output) result = NVML_ERROR_INVALID_ARGUMENT;
  if (result == NVML_SUCCESS && live) {
    refresh();
    if (!answered_last) result = NVML_ERROR_GPU_IS_LOST;
  }
  if (result == NVML_SUCCESS) memcpy(copy, device, sizeof *copy);
  pthread_mutex_unlock(&lock);
  return result;
}

uint32_t orion_nvml_processes(const orion_nvml_gpu* gpu, orion_nvml_process* out, uint32_t capacity) {
  uint32_t count = 0;
  pthread_mutex_lock(&lock);
  for (uint32_t i = 0; i < inventory.process_count; i++) {
    const orion_nvml_process* process = &inventory.processes[i];
    if (process->server != gpu->server || process->ordinal != gpu->ordinal) continue;
    if (count < capacity) out[count] = *process;
    count++;
  }
  pthread_mutex_unlock(&lock);
  return count;
}

nvmlReturn_t orion_nvml_text(const char* text, char* out, unsigned int capacity) {
  if (!text[0]) return NVML_ERROR_NOT_SUPPORTED;
  if (strlen(text) >= capacity) return NVML_ERROR_INSUFFICIENT_SIZE;
  memcpy(out, text, strlen(text) + 1);
  return NVML_SUCCESS;
}

// ------------------------------------------------------------------------------------------------- handles

static nvmlReturn_t get_count(unsigned int* count) {
  const nvmlReturn_t result = orion_nvml_check(count);
  if (result == NVML_SUCCESS) *count = inventory.count;
  return result;
}
NVML_API nvmlReturn_t nvmlDeviceGetCount(unsigned int* count) { return get_count(count); }
NVML_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int* count) { return get_count(count); }

static nvmlReturn_t by_index(unsigned int index, nvmlDevice_t* device) {
  const nvmlReturn_t result = orion_nvml_check(device);
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

typedef bool (*gpu_match)(const orion_nvml_gpu* gpu, const void* wanted);

static nvmlReturn_t by_match(gpu_match match, const void* wanted, nvmlDevice_t* device) {
  nvmlReturn_t result = NVML_ERROR_NOT_FOUND;
  pthread_mutex_lock(&lock);
  refresh();
  for (uint32_t i = 0; i < inventory.count && result != NVML_SUCCESS; i++) {
    if (!match(&inventory.gpus[i], wanted)) continue;
    *device = &inventory.gpus[i];
    result = NVML_SUCCESS;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static bool has_uuid(const orion_nvml_gpu* gpu, const void* wanted) { return strcasecmp(gpu->uuid, wanted) == 0; }

static bool has_uuid_bytes(const orion_nvml_gpu* gpu, const void* wanted) {
  return memcmp(gpu->uuid_bytes, wanted, sizeof gpu->uuid_bytes) == 0;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
  const nvmlReturn_t result = orion_nvml_check(device);
  if (result != NVML_SUCCESS) return result;
  return uuid ? by_match(has_uuid, uuid, device) : NVML_ERROR_INVALID_ARGUMENT;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_v1_t* uuid, nvmlDevice_t* device) {
  const nvmlReturn_t result = orion_nvml_check(device);
  if (result != NVML_SUCCESS) return result;
  if (!uuid) return NVML_ERROR_INVALID_ARGUMENT;
  if (uuid->version != NVML_VERSION_OF(nvmlUUID_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  if (uuid->type == 2) return by_match(has_uuid_bytes, uuid->value.bytes, device);
  if (uuid->type != 1 || !memchr(uuid->value.text, 0, sizeof uuid->value.text)) return NVML_ERROR_INVALID_ARGUMENT;
  return by_match(has_uuid, uuid->value.text, device);
}

static bool parse_pci(const char* text, unsigned int parts[3]) {
  parts[0] = 0;
  if (sscanf(text, "%x:%x:%x", &parts[0], &parts[1], &parts[2]) == 3) return true;
  parts[0] = 0;
  return sscanf(text, "%x:%x", &parts[1], &parts[2]) == 2;
}

static bool has_pci(const orion_nvml_gpu* gpu, const void* wanted) {
  unsigned int parts[3];
  return parse_pci(gpu->pci_bus_id, parts) && memcmp(parts, wanted, sizeof parts) == 0;
}

static nvmlReturn_t by_pci(const char* bus_id, nvmlDevice_t* device) {
  const nvmlReturn_t result = orion_nvml_check(device);
  if (result != NVML_SUCCESS) return result;
  unsigned int wanted[3];
  if (!bus_id || !parse_pci(bus_id, wanted)) return NVML_ERROR_INVALID_ARGUMENT;
  return by_match(has_pci, wanted, device);
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char* bus_id, nvmlDevice_t* device) {
  return by_pci(bus_id, device);
}
NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, nvmlDevice_t* device) {
  return by_pci(bus_id, device);
}

NVML_API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int* index) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, index, false, &gpu);
  if (result == NVML_SUCCESS) *index = (unsigned int)(device - inventory.gpus);
  return result;
}

// ------------------------------------------------------------------------------------------------- the system

NVML_API const char* nvmlErrorString(nvmlReturn_t result) {
  static const char* const names[] = {"Success",
                                      "Uninitialized",
                                      "Invalid Argument",
                                      "Not Supported",
                                      "Insufficient Permissions",
                                      "Already Initialized",
                                      "Not Found",
                                      "Insufficient Size",
                                      "Insufficient External Power",
                                      "Driver Not Loaded",
                                      "Timeout",
                                      "Interrupt Request Issue",
                                      "NVML Shared Library Not Found",
                                      "Function Not Found",
                                      "Corrupted infoROM",
                                      "GPU is lost",
                                      "GPU requires restart",
                                      "The operating system has blocked the request.",
                                      "RM has detected an NVML/RM version mismatch.",
                                      "In use by another client",
                                      "Insufficient Memory",
                                      "No data",
                                      "ECC is not enabled for the vGPU",
                                      "Insufficient Resources",
                                      "Frequency not supported",
                                      "Argument version mismatch",
                                      "Deprecated",
                                      "Not ready",
                                      "GPU not found",
                                      "Invalid state",
                                      "Reset type not supported"};
  return result >= 0 && result < (int)(sizeof names / sizeof *names) ? names[result] : "Unknown Error";
}

NVML_API nvmlReturn_t nvmlSystemGetDriverVersion(char* version, unsigned int length) {
  const nvmlReturn_t result = orion_nvml_check(version);
  return result != NVML_SUCCESS ? result : orion_nvml_text(inventory.driver, version, length);
}

// "13." and the driver's version, as NVIDIA's library numbers itself.
NVML_API nvmlReturn_t nvmlSystemGetNVMLVersion(char* version, unsigned int length) {
  const nvmlReturn_t result = orion_nvml_check(version);
  if (result != NVML_SUCCESS) return result;
  char text[sizeof inventory.driver + 16];
  snprintf(text, sizeof text, "%d.%s", inventory.driver_version / 1000, inventory.driver[0] ? inventory.driver : "0");
  return orion_nvml_text(text, version, length);
}

static nvmlReturn_t get_cuda_version(int* version) {
  const nvmlReturn_t result = orion_nvml_check(version);
  if (result != NVML_SUCCESS) return result;
  if (!inventory.driver_version) return NVML_ERROR_NOT_SUPPORTED;
  *version = inventory.driver_version;
  return NVML_SUCCESS;
}
NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int* version) { return get_cuda_version(version); }
NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int* version) { return get_cuda_version(version); }

// Processes here are the tenant's own: they run on this machine.
NVML_API nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char* name, unsigned int length) {
  const nvmlReturn_t result = orion_nvml_check(name);
  if (result != NVML_SUCCESS) return result;
  if (length == 0) return NVML_ERROR_INVALID_ARGUMENT;
  char path[64];
  snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
  FILE* file = fopen(path, "re");
  if (!file) return NVML_ERROR_NOT_FOUND;
  const size_t bytes = fread(name, 1, length - 1, file);
  fclose(file);
  name[bytes] = 0;  // the first argument ends in a zero of its own
  return bytes ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
