// cuLibraryGetManaged, which needs no context; and cuLibraryGetUnifiedFunction: softgpu has no addresses of functions
// for the host, so every name is unknown, as it is natively for a name that is no such thing.
#include "api.h"

using namespace sg;

SG_API cuLibraryGetManaged(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!name || (!address && !bytes)) return CUDA_ERROR_INVALID_VALUE;
    auto library = driver.libraries.get(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    for (const Global& global : library->outline->globals()) {
      if (!global.is_managed || global.name != name) continue;
      if (address) *address = global.address;
      if (bytes) *bytes = global.size_bytes;
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
  });
}

SG_API cuLibraryGetUnifiedFunction(void** address, CUlibrary handle, const char* name) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!address || !name) return CUDA_ERROR_INVALID_VALUE;
    return driver.libraries.get(handle) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;  // not 500
  });
}
