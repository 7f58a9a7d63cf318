// What a device does now: memory, utilisation, temperature, power, clocks, modes. Asked again when older than a moment.
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "nvml.h"

static nvmlReturn_t give(nvmlDevice_t device, enum orion_nvml_metric metric, bool live, unsigned int* out) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, out, live, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (!out) return NVML_ERROR_INVALID_ARGUMENT;
  if (!orion_nvml_has(&gpu, metric)) return NVML_ERROR_NOT_SUPPORTED;
  *out = (unsigned int)gpu.metrics[metric];
  return NVML_SUCCESS;
}

static nvmlReturn_t give_wide(nvmlDevice_t device, enum orion_nvml_metric metric, unsigned long long* out) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, out, true, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (!out) return NVML_ERROR_INVALID_ARGUMENT;
  if (!orion_nvml_has(&gpu, metric)) return NVML_ERROR_NOT_SUPPORTED;
  *out = gpu.metrics[metric];
  return NVML_SUCCESS;
}

static nvmlReturn_t give_pair(nvmlDevice_t device, enum orion_nvml_metric first_metric,
                              enum orion_nvml_metric second_metric, bool live, unsigned int* first,
                              unsigned int* second) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, first, live, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (!second) return NVML_ERROR_INVALID_ARGUMENT;
  if (!orion_nvml_has(&gpu, first_metric) || !orion_nvml_has(&gpu, second_metric)) return NVML_ERROR_NOT_SUPPORTED;
  *first = (unsigned int)gpu.metrics[first_metric];
  *second = (unsigned int)gpu.metrics[second_metric];
  return NVML_SUCCESS;
}

// Functions `name(device, unsigned int*)` that give one value.
#define STATIC_VALUES(X)                                        \
  X(nvmlDeviceGetMinorNumber, minor_number)                     \
  X(nvmlDeviceGetBrand, brand)                                  \
  X(nvmlDeviceGetArchitecture, architecture)                    \
  X(nvmlDeviceGetNumGpuCores, cores)                            \
  X(nvmlDeviceGetMemoryBusWidth, memory_bus_bits)               \
  X(nvmlDeviceGetMaxPcieLinkGeneration, pcie_generation_max)    \
  X(nvmlDeviceGetGpuMaxPcieLinkGeneration, pcie_generation_max) \
  X(nvmlDeviceGetMaxPcieLinkWidth, pcie_width_max)              \
  X(nvmlDeviceGetPowerManagementDefaultLimit, power_default_mw)
#define LIVE_VALUES(X)                                    \
  X(nvmlDeviceGetPowerUsage, power_mw)                    \
  X(nvmlDeviceGetPowerManagementLimit, power_limit_mw)    \
  X(nvmlDeviceGetEnforcedPowerLimit, power_enforced_mw)   \
  X(nvmlDeviceGetPerformanceState, performance_state)     \
  X(nvmlDeviceGetPowerState, performance_state)           \
  X(nvmlDeviceGetFanSpeed, fan_percent)                   \
  X(nvmlDeviceGetCurrPcieLinkGeneration, pcie_generation) \
  X(nvmlDeviceGetCurrPcieLinkWidth, pcie_width)           \
  X(nvmlDeviceGetPersistenceMode, persistence_mode)       \
  X(nvmlDeviceGetComputeMode, compute_mode)

#define STATIC_FUNCTION(name, metric)                                    \
  NVML_API nvmlReturn_t name(nvmlDevice_t device, unsigned int* value) { \
    return give(device, METRIC_##metric, false, value);                  \
  }
#define LIVE_FUNCTION(name, metric)                                      \
  NVML_API nvmlReturn_t name(nvmlDevice_t device, unsigned int* value) { \
    return give(device, METRIC_##metric, true, value);                   \
  }
STATIC_VALUES(STATIC_FUNCTION)
LIVE_VALUES(LIVE_FUNCTION)

NVML_API nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int* least_mw,
                                                                   unsigned int* most_mw) {
  return give_pair(device, METRIC_power_min_mw, METRIC_power_max_mw, false, least_mw, most_mw);
}

NVML_API nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int* current, unsigned int* pending) {
  return give_pair(device, METRIC_ecc_current, METRIC_ecc_pending, true, current, pending);
}

NVML_API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int* current, unsigned int* pending) {
  return give_pair(device, METRIC_mig_current, METRIC_mig_pending, true, current, pending);
}

NVML_API nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int* percent,
                                                      unsigned int* period_us) {
  return give_pair(device, METRIC_encoder_percent, METRIC_encoder_period_us, true, percent, period_us);
}

NVML_API nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int* percent,
                                                      unsigned int* period_us) {
  return give_pair(device, METRIC_decoder_percent, METRIC_decoder_period_us, true, percent, period_us);
}

NVML_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* rates) {
  return give_pair(device, METRIC_utilization_gpu_percent, METRIC_utilization_memory_percent, true,
                   rates ? &rates->gpu : NULL, rates ? &rates->memory : NULL);
}

NVML_API nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long* millijoules) {
  return give_wide(device, METRIC_energy_mj, millijoules);
}

NVML_API nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long* reasons) {
  return give_wide(device, METRIC_clock_reasons, reasons);
}
NVML_API nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long* reasons) {
  return give_wide(device, METRIC_clock_reasons, reasons);
}

// ------------------------------------------------------------------------------------------------- temperature, clocks

NVML_API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int* celsius) {
  unsigned int value = 0;
  const nvmlReturn_t result = give(device, METRIC_temperature_c, true, celsius ? &value : NULL);
  if (result == NVML_ERROR_UNINITIALIZED) return result;
  if (sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
  if (result == NVML_SUCCESS) *celsius = value;
  return result;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t* temperature) {
  unsigned int value = 0;
  const nvmlReturn_t result = give(device, METRIC_temperature_c, true, temperature ? &value : NULL);
  if (result != NVML_SUCCESS) return result;
  if (temperature->version != NVML_VERSION_OF(nvmlTemperature_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  if (temperature->sensorType != 0) return NVML_ERROR_INVALID_ARGUMENT;
  temperature->temperature = (int)value;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned int threshold,
                                                        unsigned int* celsius) {
  enum { SHUTDOWN, SLOWDOWN, THRESHOLDS = 8 };
  if (threshold == SHUTDOWN) return give(device, METRIC_temperature_shutdown_c, false, celsius);
  if (threshold == SLOWDOWN) return give(device, METRIC_temperature_slowdown_c, false, celsius);
  const nvmlReturn_t result = orion_nvml_check(celsius);
  if (result != NVML_SUCCESS) return result;
  return threshold < THRESHOLDS ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
}

enum { CLOCKS = 4 };

NVML_API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int* mhz) {
  static const enum orion_nvml_metric metrics[CLOCKS] = {METRIC_clock_graphics_mhz, METRIC_clock_sm_mhz,
                                                         METRIC_clock_memory_mhz, METRIC_clock_video_mhz};
  return give(device, metrics[type % CLOCKS], true, type < CLOCKS ? mhz : NULL);
}

NVML_API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int* mhz) {
  static const enum orion_nvml_metric metrics[CLOCKS] = {METRIC_clock_max_graphics_mhz, METRIC_clock_max_sm_mhz,
                                                         METRIC_clock_max_memory_mhz, METRIC_clock_max_video_mhz};
  return give(device, metrics[type % CLOCKS], false, type < CLOCKS ? mhz : NULL);
}

NVML_API nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, unsigned int type, unsigned int id, unsigned int* mhz) {
  enum { CURRENT, BOOST_MAX = 3, IDS };
  if (id == CURRENT) return nvmlDeviceGetClockInfo(device, type, mhz);
  const nvmlReturn_t result = orion_nvml_check(mhz);
  if (result != NVML_SUCCESS) return result;
  return id < IDS && type < CLOCKS ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
}

// ------------------------------------------------------------------------------------------------- memory

// The whole device's, as natively: other tenants' memory is used memory too. Without NVML on the server, what its
// sessions hold.
static nvmlReturn_t read_memory(nvmlDevice_t device, const void* output, nvmlMemory_v2_t* memory) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, output, true, &gpu);
  if (result != NVML_SUCCESS) return result;
  const bool has = orion_nvml_has(&gpu, METRIC_memory_used_bytes) && orion_nvml_has(&gpu, METRIC_memory_total_bytes);
  memory->total = has ? gpu.metrics[METRIC_memory_total_bytes] : gpu.total_bytes;
  memory->used = has ? gpu.metrics[METRIC_memory_used_bytes] : gpu.used_bytes;
  memory->reserved = has ? gpu.metrics[METRIC_memory_reserved_bytes] : 0;
  if (memory->reserved > memory->total) memory->reserved = memory->total;
  if (memory->used > memory->total - memory->reserved) memory->used = memory->total - memory->reserved;
  memory->free = memory->total - memory->reserved - memory->used;
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* out) {
  nvmlMemory_v2_t memory;
  const nvmlReturn_t result = read_memory(device, out, &memory);
  if (result != NVML_SUCCESS) return result;
  // The first version has no reserved memory: it is used there.
  *out = (nvmlMemory_t){.total = memory.total, .free = memory.free, .used = memory.used + memory.reserved};
  return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t* out) {
  nvmlMemory_v2_t memory;
  const nvmlReturn_t result = read_memory(device, out, &memory);
  if (result != NVML_SUCCESS) return result;
  memory.version = NVML_VERSION_OF(nvmlMemory_v2_t, 2);
  if (out->version != memory.version) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  *out = memory;
  return NVML_SUCCESS;
}

// ------------------------------------------------------------------------------------------------- fields

static void read_field(const orion_nvml_gpu* gpu, nvmlFieldValue_t* field) {
  enum { VALUE_UNSIGNED = 1, VALUE_UNSIGNED_LONG_LONG = 3 };
  enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  field->timestamp = now.tv_sec * 1000000ll + now.tv_nsec / 1000;
  field->latencyUsec = 0;
  field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
  if (field->fieldId == FIELD_ENERGY && orion_nvml_has(gpu, METRIC_energy_mj)) {
    field->valueType = VALUE_UNSIGNED_LONG_LONG;
    field->value.ull = gpu->metrics[METRIC_energy_mj];
    field->nvmlReturn = NVML_SUCCESS;
  } else if ((field->fieldId == FIELD_POWER_AVERAGE || field->fieldId == FIELD_POWER_INSTANT) &&
             orion_nvml_has(gpu, METRIC_power_mw)) {
    field->valueType = VALUE_UNSIGNED;
    field->value.ui = (unsigned int)gpu->metrics[METRIC_power_mw];
    field->nvmlReturn = NVML_SUCCESS;
  }
}

/// Succeeds as a whole; each field has its own code.
NVML_API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t* fields) {
  orion_nvml_gpu gpu;
  const nvmlReturn_t result = orion_nvml_device(device, fields, true, &gpu);
  if (result != NVML_SUCCESS) return result;
  if (count <= 0) return NVML_ERROR_INVALID_ARGUMENT;
  for (int i = 0; i < count; i++) read_field(&gpu, &fields[i]);
  return NVML_SUCCESS;
}
