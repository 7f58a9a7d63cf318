// CUDA's runtime library tests itself and the driver when it starts. It does so on the server, where the driver is: a
// worker runs NVIDIA's own runtime there and attach tells the outcome. Only on that ground is the test answered here
// (docs/nvidia-runtime.md).
#include <string.h>
#include <unistd.h>

#include "export.h"
#include "self_test.h"

enum { SLOTS = 3 };

static orion_export_slot slots[SLOTS];
static const void* runtime_table;

#ifdef ORION_TEST_RUNTIME_VALIDATED
/// The build for tests of the call path where there is no GPU. Never installed.
static bool may_answer(void) {
  static _Atomic bool told;
  if (!atomic_exchange(&told, true)) {
    orion_log(ORION_LOG_WARN, "ORION_TEST_RUNTIME_VALIDATED: this is a test build, which no one may ship");
  }
  return true;
}
#else
static void refuse_once(const char* reason, const char* server) {
  static _Atomic bool told;
  if (atomic_exchange(&told, true)) return;
  orion_log(ORION_LOG_WARN,
            "CUDA's runtime library asked for its self-test and is answered with CUDA_ERROR_NOT_SUPPORTED: %s%s; "
            "programs that use the driver API alone are not affected (docs/nvidia-runtime.md)",
            server, reason);
}

static bool may_answer(void) {
  for (uint32_t i = 0; i < orion_device_states(); i++) {
    const orion_session* session = orion_device_state_at((CUdevice)i)->info->session;
    if (!session->runtime_selftest) {
      refuse_once("ORION_RUNTIME_SELFTEST=0", "");
      return false;
    }
    if (session->runtime_validated && !session->is_softgpu) continue;
    refuse_once(session->is_softgpu
                    ? " serves softgpu, a software device, with which NVIDIA's runtime was not validated"
                    : " has not validated NVIDIA's runtime with its driver (its log says why)",
                session->server_address);
    return false;
  }
  return true;
}
#endif

static CUresult describe(orion_self_test_device* devices, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    CUuuid uuid;
    CUresult result = cuDeviceGetUuid(&uuid, (CUdevice)i);
    if (result != CUDA_SUCCESS) return result;
    memcpy(devices[i].uuid, uuid.bytes, sizeof devices[i].uuid);
    result = cuDeviceGetAttribute(&devices[i].pci_domain, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, (CUdevice)i);
    if (result != CUDA_SUCCESS) return result;
    result = cuDeviceGetAttribute(&devices[i].pci_bus, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, (CUdevice)i);
    if (result != CUDA_SUCCESS) return result;
    result = cuDeviceGetAttribute(&devices[i].pci_device, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, (CUdevice)i);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

static CUresult self_test(uint32_t version, uint64_t unix_seconds, uint8_t* answer) {
  ORION_ENTER();
  ORION_REQUIRE(answer != NULL, CUDA_ERROR_INVALID_VALUE);
  if (!may_answer()) return CUDA_ERROR_NOT_SUPPORTED;
  orion_self_test_device devices[ORION_DEVICES];
  const uint32_t count = orion_device_states();
  CUresult result = describe(devices, count);
  int driver_version = 0;
  if (result == CUDA_SUCCESS) result = cuDriverGetVersion(&driver_version);
  if (result != CUDA_SUCCESS) return result;
  orion_self_test_answer(&(orion_self_test){.driver_version = (uint32_t)driver_version,
                                            .version = version,
                                            .process = (uint32_t)getpid(),
                                            .thread = (uint32_t)(uintptr_t)pthread_self(),
                                            .runtime_table = (uintptr_t)runtime_table,
                                            .self_test_table = (uintptr_t)slots,
                                            .self_test_function = (uintptr_t)slots[1].function,
                                            .unix_seconds = unix_seconds,
                                            .devices = devices,
                                            .device_count = count},
                         answer);
  return CUDA_SUCCESS;
}

const void* orion_self_test_table(void) {
  if (slots[0].bytes != 0) return slots;
  runtime_table = orion_runtime_table();
  orion_table_begin(slots, ORION_TABLE_SELF_TEST, SLOTS);
  slots[1] = ORION_EXPORT_SLOT(self_test);
  return slots;
}
