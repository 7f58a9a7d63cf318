// Types of the public management interface that the answers here need, in our own declarations, and what its functions
// share. Names, codes and layouts are facts of that interface.
#ifndef ORION_NVML_NVML_H
#define ORION_NVML_NVML_H

#include "inventory.h"

#define NVML_API __attribute__((visibility("default")))

typedef int nvmlReturn_t;
enum nvml_result {
  NVML_SUCCESS = 0,
  NVML_ERROR_UNINITIALIZED = 1,
  NVML_ERROR_INVALID_ARGUMENT = 2,
  NVML_ERROR_NOT_SUPPORTED = 3,
  NVML_ERROR_NOT_FOUND = 6,
  NVML_ERROR_INSUFFICIENT_SIZE = 7,
  NVML_ERROR_DRIVER_NOT_LOADED = 9,
  NVML_ERROR_GPU_IS_LOST = 15,
  NVML_ERROR_MEMORY = 20,
  NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
};

typedef struct orion_nvml_gpu* nvmlDevice_t;  // opaque to callers

typedef struct nvmlMemory_t {
  unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct nvmlMemory_v2_t {
  unsigned int version;
  unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct nvmlUtilization_t {
  unsigned int gpu, memory;  // percent
} nvmlUtilization_t;

typedef struct nvmlPciInfo_v1_t {
  char busId[16];
  unsigned int domain, bus, device, pciDeviceId;
} nvmlPciInfo_v1_t;

typedef struct nvmlPciInfo_v2_t {
  char busId[16];
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
  unsigned int reserved[4];
} nvmlPciInfo_v2_t;

typedef struct nvmlPciInfo_t {
  char busIdLegacy[16];
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;

typedef struct nvmlPciInfoExt_v1_t {
  unsigned int version;
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId, baseClass, subClass;
  char busId[32];
} nvmlPciInfoExt_v1_t;

typedef struct nvmlUUID_v1_t {
  unsigned int version, type;  // type 1: text, 2: sixteen bytes
  union {
    char text[41];
    unsigned char bytes[16];
  } value;
} nvmlUUID_v1_t;

typedef struct nvmlProcessInfo_v1_t {
  unsigned int pid;
  unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct nvmlProcessInfo_v2_t {  // v3 is the same
  unsigned int pid;
  unsigned long long usedGpuMemory;
  unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t;

typedef struct nvmlTemperature_v1_t {
  unsigned int version, sensorType;
  int temperature;
} nvmlTemperature_v1_t;

typedef struct nvmlFieldValue_t {
  unsigned int fieldId, scopeId;
  long long timestamp, latencyUsec;
  unsigned int valueType;
  nvmlReturn_t nvmlReturn;
  union {
    double d;
    unsigned int ui;
    unsigned long long ull;
  } value;
} nvmlFieldValue_t;

#define NVML_VERSION_OF(type, version) ((unsigned int)(sizeof(type) | (version) << 24))
_Static_assert(sizeof(nvmlPciInfo_t) == 68 && sizeof(nvmlPciInfo_v2_t) == 52, "as the interface lays them out");
_Static_assert(sizeof(nvmlProcessInfo_v2_t) == 24 && sizeof(nvmlProcessInfo_v1_t) == 16, "as the interface has them");
_Static_assert(sizeof(nvmlFieldValue_t) == 40 && sizeof(nvmlMemory_v2_t) == 40, "as the interface lays them out");

/// Whether the library is initialised and `output` is there.
nvmlReturn_t orion_nvml_check(const void* output);
/// The same for a function of one device; then a copy of what is known of it, asked again first when `live` and old.
nvmlReturn_t orion_nvml_device(nvmlDevice_t device, const void* output, bool live, orion_nvml_gpu* copy);
/// The processes of this user on one device, asked again when old. At most `capacity`; returns how many there are.
uint32_t orion_nvml_processes(const orion_nvml_gpu* gpu, orion_nvml_process* out, uint32_t capacity);
/// Copies text with its end, INSUFFICIENT_SIZE when it does not fit, NOT_SUPPORTED when there is none.
nvmlReturn_t orion_nvml_text(const char* text, char* out, unsigned int capacity);

static inline bool orion_nvml_has(const orion_nvml_gpu* gpu, enum orion_nvml_metric metric) {
  return (gpu->has_metric >> metric & 1) != 0;
}

#endif
