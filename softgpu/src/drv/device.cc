// Devices: what they are, and their attributes.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "api.h"

using namespace sg;

namespace {

constexpr const char* kDeviceName = "softgpu (CPU)";

/// Attributes that are the same for every device, by the number cuda.h gives them. A number of the API that is not
/// listed here is answered with 0: "not supported".
const std::unordered_map<int, int>& fixed_attributes() {
  static const auto* table = new std::unordered_map<int, int>{
      {1, kMaxThreadsPerBlock},
      {2, 1024},        // block x
      {3, 1024},        // block y
      {4, 64},          // block z
      {5, 2147483647},  // grid x
      {6, 65535},       // grid y
      {7, 65535},       // grid z
      {8, kSharedPerBlockBytes},
      {9, 65536},        // constant memory
      {10, 32},          // warp size
      {11, 2147483647},  // copy pitch
      {12, kRegistersPerMultiprocessor},
      {13, 1000000},  // clock kHz: invented
      {14, 512},      // texture alignment
      {15, 1},        // copies overlap kernels
      {16, Driver::get().multiprocessors},
      {18, 0},        // not integrated: memory is accounted apart from the host's
      {19, 1},        // maps host memory
      {30, 512},      // surface alignment
      {31, 1},        // concurrent kernels
      {36, 1000000},  // memory clock kHz: invented
      {37, 256},      // bus width: invented
      {38, 4 << 20},  // L2 bytes: invented
      {39, kMaxThreadsPerMultiprocessor},
      {40, 2},   // copy engines
      {41, 1},   // unified addressing
      {51, 32},  // texture pitch alignment
      {78, 1},   // stream priorities
      {79, 1},
      {80, 1},
      {81, Driver::get().shared_per_multiprocessor_bytes},
      {82, kRegistersPerMultiprocessor},
      {83, 1},  // managed memory
      {86, 1},  // host atomics are device atomics
      {87, 2},  // single to double ratio
      {89, 1},  // concurrent managed access
      {90, 1},  // compute preemption
      {91, 1},  // registered memory keeps its host pointer
      {92, 1},
      {93, 1},
      {94, 1},
      {95, 1},  // cooperative launch
      {97, Driver::get().shared_per_block_optin_bytes},
      {99, 1},   // host register
      {101, 1},  // host reaches managed memory directly
      {102, 1},  // virtual memory management
      {103, 1},  // POSIX file descriptors
      {106, kMaxBlocksPerMultiprocessor},
      {111, kReservedSharedPerBlockBytes},
      {115, 1},  // memory pools
      {122, 1},
      {123, 1},
      {125, 1},   // events of several processes
      {134, -1},  // host NUMA id
      {131, -1},  // NUMA id
  };
  return *table;
}

constexpr int kLastAttribute = 147;

bool parse_pci_id(const char* text, unsigned* domain, unsigned* bus, unsigned* device) {
  unsigned function = 0;
  if (std::sscanf(text, "%x:%x:%x.%x", domain, bus, device, &function) >= 3) return function == 0;
  *domain = 0;
  return std::sscanf(text, "%x:%x.%x", bus, device, &function) >= 2 && function == 0;
}

}  // namespace

SG_API cuInit(unsigned flags) {
  return guarded([&]() -> CUresult {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (is_forked_child()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!Faults::get().error().empty()) {
      std::fprintf(stderr, "softgpu: %s\n", Faults::get().error().c_str());
      return CUDA_ERROR_INVALID_VALUE;
    }
    return Driver::get().init();
  });
}

SG_API cuDriverGetVersion(int* version) {
  if (!version) return CUDA_ERROR_INVALID_VALUE;
  *version = kDriverVersion;
  return CUDA_SUCCESS;
}

SG_API cuDeviceGetCount(int* count) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    *count = static_cast<int>(driver.devices.size());
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGet(CUdevice* device, int ordinal) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetName(char* name, int size, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!name || size <= 0) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, size, "%s", kDeviceName);
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetUuid(CUuuid* uuid, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!uuid) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    *uuid = device->uuid;
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuDeviceGetUuid_v2, cuDeviceGetUuid);

SG_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = device->arena->capacity_bytes();
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceComputeCapability(int* major, int* minor, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!major || !minor) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    *major = driver.cc_major;
    *minor = driver.cc_minor;
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetAttribute(int* value, int attribute, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!value || attribute < 1 || attribute > kLastAttribute) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
      case 33:
        *value = device->pci_bus;
        return CUDA_SUCCESS;
      case 75:
        *value = driver.cc_major;
        return CUDA_SUCCESS;
      case 76:
        *value = driver.cc_minor;
        return CUDA_SUCCESS;
      case 85:
        *value = device->ordinal;
        return CUDA_SUCCESS;  // board group: each device its own
      default:
        break;
    }
    auto it = fixed_attributes().find(attribute);
    *value = it == fixed_attributes().end() ? 0 : it->second;
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetProperties(CUdevprop* prop, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!prop) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    *prop = CUdevprop{kMaxThreadsPerBlock,
                      {1024, 1024, 64},
                      {2147483647, 65535, 65535},
                      kSharedPerBlockBytes,
                      65536,
                      32,
                      2147483647,
                      kRegistersPerMultiprocessor,
                      1000000,
                      512};
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetPCIBusId(char* text, int size, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!text || size <= 0) return CUDA_ERROR_INVALID_VALUE;
    Device* device = driver.device(dev);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(text, size, "0000:%02X:00.0", device->pci_bus);
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetByPCIBusId(CUdevice* dev, const char* text) {
  return with_driver([&](Driver& driver) -> CUresult {
    unsigned domain = 0, bus = 0, number = 0;
    if (!dev || !text || !parse_pci_id(text, &domain, &bus, &number)) return CUDA_ERROR_INVALID_VALUE;
    for (const auto& device : driver.devices) {
      if (domain == 0 && number == 0 && bus == static_cast<unsigned>(device->pci_bus)) {
        *dev = device->ordinal;
        return CUDA_SUCCESS;
      }
    }
    return CUDA_ERROR_INVALID_DEVICE;
  });
}

SG_API cuDeviceCanAccessPeer(int* can, CUdevice dev, CUdevice peer) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!can) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev) || !driver.device(peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = dev != peer;
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetP2PAttribute(int* value, int attribute, CUdevice source, CUdevice destination) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!value || attribute < 1 || attribute > 5) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(source) || !driver.device(destination) || source == destination) {
      return CUDA_ERROR_INVALID_DEVICE;
    }
    constexpr int kAccess = 2, kNativeAtomics = 3;
    *value = attribute == kAccess || attribute == kNativeAtomics;
    return CUDA_SUCCESS;
  });
}

SG_API cuDeviceGetExecAffinitySupport(int* supported, int type, CUdevice dev) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!supported || type != 0) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    *supported = 0;
    return CUDA_SUCCESS;
  });
}
