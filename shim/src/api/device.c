// Devices: answered from the snapshot that attach brought, but for what a slice has of the memory, which changes.
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "api.h"
#include "managed.h"

#define DRIVER_VERSION_WITHOUT_SERVER 13000

/// Facilities that the shim does not carry yet: what natively may be there is reported as absent, so that programs
/// choose another way instead of running into CUDA_ERROR_NOT_SUPPORTED.
static const uint16_t absent_attributes[] = {
    CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS,
    CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES,
    CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST,
    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_HANDLE_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_TIMELINE_SEMAPHORE_INTEROP_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES,
    CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
    CU_DEVICE_ATTRIBUTE_HOST_ALLOC_DMA_BUF_SUPPORTED,
};

ORION_API CUresult cuInit(unsigned int flags) {
  ORION_REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = orion_attach();
  if (result != CUDA_SUCCESS) return result;
  const CUresult ready = orion_ready();
  return ready == CUDA_SUCCESS ? orion_start() : ready;
}

ORION_API CUresult cuDriverGetVersion(int* version) {
  ORION_REQUIRE(version != NULL, CUDA_ERROR_INVALID_VALUE);
  // Allowed before cuInit. CUDA's runtime asks first and decides by the answer, so it must be the server's; without a
  // server it gets a current version and then learns from cuInit what is wrong.
  *version = DRIVER_VERSION_WITHOUT_SERVER;
  if (orion_attach() != CUDA_SUCCESS) return CUDA_SUCCESS;
  const orion_device* device = orion_device_at(0);
  if (device != NULL) *version = device->session->driver_version;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetCount(int* count) {
  ORION_ENTER();
  ORION_REQUIRE(count != NULL, CUDA_ERROR_INVALID_VALUE);
  *count = (int)orion_device_states();
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ORION_ENTER();
  ORION_REQUIRE(device != NULL, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(ordinal) != NULL, CUDA_ERROR_INVALID_DEVICE);
  *device = ordinal;
  return CUDA_SUCCESS;
}

#define ORION_ENTER_DEVICE(state, device)                    \
  ORION_ENTER();                                             \
  orion_device_state* state = orion_device_state_at(device); \
  ORION_REQUIRE(state != NULL, CUDA_ERROR_INVALID_DEVICE)

ORION_API CUresult cuDeviceGetName(char* name, int capacity, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(name != NULL && capacity > 0, CUDA_ERROR_INVALID_VALUE);
  snprintf(name, (size_t)capacity, "%s", state->info->name);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(uuid != NULL, CUDA_ERROR_INVALID_VALUE);
  *uuid = state->info->uuid;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }

ORION_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(bytes != NULL, CUDA_ERROR_INVALID_VALUE);
  // A quota may have changed since attach.
  orion_op_device_memory op = {.op = {.code = ORION_OP_DEVICE_MEMORY}, .device = state->info->remote_ordinal};
  orion_reply_device_memory reply = {0};
  const CUresult result = orion_call(state->info->session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  *bytes = result == CUDA_SUCCESS && reply.quota_bytes != 0 ? reply.quota_bytes : state->info->total_bytes;
  return CUDA_SUCCESS;
}

static bool is_absent(int attribute) {
  for (size_t i = 0; i < sizeof absent_attributes / sizeof absent_attributes[0]; i++) {
    if (absent_attributes[i] == attribute) return true;
  }
  return false;
}

ORION_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && (unsigned)attribute < 256, CUDA_ERROR_INVALID_VALUE);
  orion_device_state* state = orion_device_state_at(device);
  ORION_REQUIRE(state != NULL, CUDA_ERROR_INVALID_DEVICE);
  ORION_REQUIRE(state->info->has_attribute[attribute], CUDA_ERROR_INVALID_VALUE);
  if (attribute == CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY && !orion_managed_offered(state->info->session)) {
    *value = 0;
    return CUDA_SUCCESS;
  }
  // Over a network nothing travels while a kernel runs.
  if (attribute == CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS && orion_over_network(state->info->session)) {
    *value = 0;
    return CUDA_SUCCESS;
  }
  *value = is_absent((int)attribute) ? 0 : state->info->attributes[attribute];
  return CUDA_SUCCESS;
}

static int attribute_of(const orion_device_state* state, int attribute) { return state->info->attributes[attribute]; }

ORION_API CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(major != NULL && minor != NULL, CUDA_ERROR_INVALID_VALUE);
  *major = attribute_of(state, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  *minor = attribute_of(state, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetProperties(CUdevprop* properties, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(properties != NULL, CUDA_ERROR_INVALID_VALUE);
  *properties = (CUdevprop){
      .maxThreadsPerBlock = attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
      .maxThreadsDim = {attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X),
                        attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y),
                        attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)},
      .maxGridSize = {attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X),
                      attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y),
                      attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)},
      .sharedMemPerBlock = attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK),
      .totalConstantMemory = attribute_of(state, CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY),
      .SIMDWidth = attribute_of(state, CU_DEVICE_ATTRIBUTE_WARP_SIZE),
      .memPitch = attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_PITCH),
      .regsPerBlock = attribute_of(state, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK),
      .clockRate = attribute_of(state, CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
      .textureAlign = attribute_of(state, CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT),
  };
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetPCIBusId(char* bus_id, int capacity, CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  ORION_REQUIRE(bus_id != NULL && capacity > 0, CUDA_ERROR_INVALID_VALUE);
  snprintf(bus_id, (size_t)capacity, "%s", state->info->pci_bus_id);
  return CUDA_SUCCESS;
}

static bool parse_bus_id(const char* text, unsigned parts[4]) {
  parts[3] = 0;
  if (sscanf(text, "%x:%x:%x.%x", &parts[0], &parts[1], &parts[2], &parts[3]) >= 3) return true;
  parts[0] = 0;
  return sscanf(text, "%x:%x.%x", &parts[1], &parts[2], &parts[3]) >= 2;
}

ORION_API CUresult cuDeviceGetByPCIBusId(CUdevice* device, const char* bus_id) {
  ORION_ENTER();
  unsigned wanted[4], have[4];
  ORION_REQUIRE(device != NULL && bus_id != NULL && parse_bus_id(bus_id, wanted), CUDA_ERROR_INVALID_VALUE);
  for (uint32_t i = 0; i < orion_device_states(); i++) {
    if (!parse_bus_id(orion_device_state_at((CUdevice)i)->info->pci_bus_id, have)) continue;
    if (memcmp(wanted, have, sizeof have) != 0) continue;
    *device = (CUdevice)i;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_DEVICE;
}

ORION_API CUresult cuDeviceGetExecAffinitySupport(int* supported, CUexecAffinityType type, CUdevice device) {
  ORION_ENTER();
  ORION_REQUIRE(supported != NULL && (unsigned)type < CU_EXEC_AFFINITY_TYPE_MAX, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  *supported = 0;
  return CUDA_SUCCESS;
}

/// What the worker's driver says of two devices; all zero between servers.
static int peer_value(const orion_device_state* from, const orion_device_state* to, uint32_t which) {
  if (from->info->session != to->info->session) return 0;
  return from->info->peers[to->info->remote_ordinal][which];
}

ORION_API CUresult cuDeviceCanAccessPeer(int* can_access, CUdevice device, CUdevice peer_device) {
  ORION_ENTER();
  ORION_REQUIRE(can_access != NULL, CUDA_ERROR_INVALID_VALUE);
  const orion_device_state *from = orion_device_state_at(device), *to = orion_device_state_at(peer_device);
  ORION_REQUIRE(from != NULL && to != NULL, CUDA_ERROR_INVALID_DEVICE);
  *can_access = peer_value(from, to, 0);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute attribute, CUdevice source,
                                           CUdevice destination) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && attribute >= CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK &&
                    attribute <= CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED,
                CUDA_ERROR_INVALID_VALUE);
  const orion_device_state *from = orion_device_state_at(source), *to = orion_device_state_at(destination);
  ORION_REQUIRE(source != destination && from != NULL && to != NULL, CUDA_ERROR_INVALID_DEVICE);
  *value = peer_value(from, to, (uint32_t)attribute);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuDeviceGetTexture1DLinearMaxWidth(size_t* elements, CUarray_format format, unsigned int channels,
                                                      CUdevice device) {
  ORION_ENTER_DEVICE(state, device);
  (void)format;
  ORION_REQUIRE(elements != NULL && (channels == 1 || channels == 2 || channels == 4), CUDA_ERROR_INVALID_VALUE);
  *elements = (size_t)attribute_of(state, CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_LINEAR_WIDTH);
  return CUDA_SUCCESS;
}

/// Which lines of the L2 cache persist never changes a result; other tenants share it: nothing is sent.
ORION_API CUresult cuCtxResetPersistingL2Cache(void) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  return CUDA_SUCCESS;
}
