// The profiler's switches, private tables, and everything that is exported only to be refused.
#include "api.h"

// There is no profiler: nothing to start, and programs that bracket their hot part must run.
SG_API cuProfilerStart(void) {
  return sg::with_context([](sg::Driver&, sg::Context&) -> CUresult { return CUDA_SUCCESS; });
}
SG_API cuProfilerStop(void) {
  return sg::with_context([](sg::Driver&, sg::Context&) -> CUresult { return CUDA_SUCCESS; });
}

namespace {

CUresult tell_multiprocessors(const sg::Driver& driver, CUdevResource* resource, int type) {
  if (!resource) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  *resource = CUdevResource{};
  resource->type = type;
  resource->sm = {static_cast<unsigned>(driver.multiprocessors), 1, 1};
  return CUDA_SUCCESS;
}

}  // namespace

SG_API cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, int type) {
  return sg::with_driver([&](sg::Driver& driver) -> CUresult {
    return driver.device(device) ? tell_multiprocessors(driver, resource, type) : CUDA_ERROR_INVALID_DEVICE;
  });
}

SG_API cuCtxGetDevResource(CUcontext context, CUdevResource* resource, int type) {
  return sg::with_driver([&](sg::Driver& driver) -> CUresult {
    if (!driver.contexts.get(context)) return CUDA_ERROR_INVALID_CONTEXT;  // NULL is not the current one
    return tell_multiprocessors(driver, resource, type);
  });
}

/// No private interfaces: they belong to NVIDIA's own runtime and driver.
SG_API cuGetExportTable(const void** table, const CUuuid*) {
  if (table) *table = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

// Callers push arguments that these do not look at, which the x86-64 calling convention allows.
#define SG_UNSUPPORTED(name) \
  SG_API name(void) { return CUDA_ERROR_NOT_SUPPORTED; }
#include "unsupported.def"
#undef SG_UNSUPPORTED
