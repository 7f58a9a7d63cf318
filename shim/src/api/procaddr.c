#include "api.h"

enum { LOOKUP_FOUND = 0 };

/// Versions above the server's driver are refused; without a server any version may be asked for.
static bool version_known(int version) {
  const orion_device* device = orion_attached() ? orion_device_at(0) : NULL;
  return device == NULL || version <= device->session->driver_version;
}

/// A name of length 0 with version 0 is how CUDA's runtime probes for this function; the driver answers success.
static CUresult look_up(const char* name, void** function, int version, cuuint64_t flags, int* status) {
  if (name == NULL || function == NULL || (flags & ~(cuuint64_t)3) != 0 || !version_known(version)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *status = LOOKUP_FOUND;
  if (name[0] == '\0') {
    *function = NULL;
    return CUDA_SUCCESS;
  }
  *function = (void*)(uintptr_t)orion_lookup_symbol(name, version, flags, status);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGetProcAddress_v2(const char* name, void** function, int version, cuuint64_t flags,
                                       CUdriverProcAddressQueryResult* status) {
  int found = LOOKUP_FOUND;
  const CUresult result = look_up(name, function, version, flags, &found);
  // A name that is not found is told by the status and the NULL pointer, never by the code (measured on driver 580).
  if (result == CUDA_SUCCESS && status != NULL) *status = (CUdriverProcAddressQueryResult)found;
  return result;
}

ORION_API CUresult cuGetProcAddress(const char* name, void** function, int version, cuuint64_t flags) {
  int found = LOOKUP_FOUND;
  const CUresult result = look_up(name, function, version, flags, &found);
  if (result != CUDA_SUCCESS) return result;
  return found == LOOKUP_FOUND ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
