// cuLibraryGetManaged and cuLibraryGetUnifiedFunction: softgpu has neither managed variables nor function addresses, so
// every name is unknown, as it is natively for a name that is no such thing.
#include "api.h"

using namespace sg;

SG_API cuLibraryGetManaged(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!name || (!address && !bytes)) return CUDA_ERROR_INVALID_VALUE;
    return driver.libraries.get(handle) ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE;
  });
}

SG_API cuLibraryGetUnifiedFunction(void** address, CUlibrary handle, const char* name) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!address || !name) return CUDA_ERROR_INVALID_VALUE;
    return driver.libraries.get(handle) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;  // not 500
  });
}
