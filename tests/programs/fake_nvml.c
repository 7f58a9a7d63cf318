// A stand-in for NVIDIA's libnvidia-ml.so.1 on the server's side: known values for every device, by handle 1, 2, ...
// The server's telemetry is tested against it; softgpu has no NVML of its own.
#include <stdio.h>
#include <string.h>

typedef struct memory_v2 {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} memory_v2;
typedef struct pci_info {
  char legacy[16];
  unsigned int domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
} pci_info;

static unsigned long found;  // handles count up in the order of the lookups
static unsigned int reads;

int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char* text, unsigned int capacity) {
  return snprintf(text, capacity, "999.88.07") > 0 ? 0 : 7;
}
int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  if (strncmp(uuid, "GPU-", 4) != 0) return 2;
  *device = (void*)++found;
  return 0;
}

// Every GPU of the machine, served or not: two that no server has.
int nvmlDeviceGetCount_v2(unsigned int* count) {
  *count = 2;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void** device) {
  *device = (void*)(long)(index + 1);
  return index < 2 ? 0 : 2;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned int capacity) {
  return snprintf(text, capacity, "GPU-00000000-0000-0000-0000-%012lx", (long)device) > 0 ? 0 : 7;
}

#define VALUE(name, value)                       \
  int name(void* device, unsigned int* out) {    \
    *out = (value) + (unsigned int)(long)device; \
    return 0;                                    \
  }
VALUE(nvmlDeviceGetMinorNumber, 4)
VALUE(nvmlDeviceGetBrand, 13)
VALUE(nvmlDeviceGetArchitecture, 8)
VALUE(nvmlDeviceGetNumGpuCores, 16895)
VALUE(nvmlDeviceGetMaxPcieLinkGeneration, 4)
VALUE(nvmlDeviceGetMaxPcieLinkWidth, 15)
VALUE(nvmlDeviceGetPowerManagementDefaultLimit, 699999)
VALUE(nvmlDeviceGetPowerManagementLimit, 649999)
VALUE(nvmlDeviceGetEnforcedPowerLimit, 639999)
VALUE(nvmlDeviceGetPersistenceMode, 0)
VALUE(nvmlDeviceGetCurrPcieLinkGeneration, 2)
VALUE(nvmlDeviceGetCurrPcieLinkWidth, 7)
VALUE(nvmlDeviceGetPerformanceState, 1)

// Grows with each read, so that a test sees whether the server asked again.
int nvmlDeviceGetPowerUsage(void* device, unsigned int* milliwatts) {
  *milliwatts = 100000 + ++reads + 0 * (unsigned int)(long)device;
  return 0;
}
int nvmlDeviceGetTemperature(void* device, unsigned int sensor, unsigned int* celsius) {
  *celsius = 40 + (unsigned int)(long)device;
  return sensor == 0 ? 0 : 2;
}
int nvmlDeviceGetTemperatureThreshold(void* device, unsigned int threshold, unsigned int* celsius) {
  (void)device;
  *celsius = threshold == 0 ? 95 : 90;
  return 0;
}
int nvmlDeviceGetClockInfo(void* device, unsigned int type, unsigned int* mhz) {
  *mhz = 1000 * (type + 1) + (unsigned int)(long)device;
  return 0;
}
int nvmlDeviceGetMaxClockInfo(void* device, unsigned int type, unsigned int* mhz) {
  *mhz = 5000 * (type + 1) + (unsigned int)(long)device;
  return 0;
}
int nvmlDeviceGetUtilizationRates(void* device, unsigned int rates[2]) {
  rates[0] = 70 + (unsigned int)(long)device;
  rates[1] = 20 + (unsigned int)(long)device;
  return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void* device, memory_v2* memory) {
  if (memory->version != (sizeof *memory | 2 << 24)) return 25;
  memory->total = 80ull << 30;
  memory->reserved = 1ull << 30;
  memory->used = (unsigned long long)(long)device << 30;
  memory->free = memory->total - memory->reserved - memory->used;
  return 0;
}
int nvmlDeviceGetPciInfo_v3(void* device, pci_info* pci) {
  memset(pci, 0, sizeof *pci);
  pci->device_id = 0x233010de + (unsigned int)(long)device - 1;
  pci->subsystem_id = 0x16c110de;
  return 0;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void* device, unsigned int* least, unsigned int* most) {
  *least = 200000 + 0 * (unsigned int)(long)device;
  *most = 700000;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
  *millijoules = 5000000000ull + (unsigned long long)(long)device;
  return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* reasons) {
  *reasons = (unsigned long long)(long)device;
  return 0;
}
int nvmlDeviceGetEccMode(void* device, unsigned int* current, unsigned int* pending) {
  *current = 1;
  *pending = (unsigned int)(long)device & 1;
  return 0;
}
int nvmlDeviceGetMigMode(void* device, unsigned int* current, unsigned int* pending) {
  (void)device;
  *current = *pending = 0;
  return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(void* one, void* other, unsigned int* level) {
  *level = one == other ? 0 : 30;
  return 0;
}
int nvmlDeviceGetP2PStatus(void* one, void* other, unsigned int capability, unsigned int* status) {
  *status = one == other || capability < 2 ? 0 : 2;
  return 0;
}
