// The profiler's switches, private tables, and everything that is exported only to be refused.
#include "api.h"

// There is no profiler: nothing to start, and programs that bracket their hot part must run.
SG_API cuProfilerStart(void) {
  return sg::with_context([](sg::Driver&, sg::Context&) -> CUresult { return CUDA_SUCCESS; });
}
SG_API cuProfilerStop(void) {
  return sg::with_context([](sg::Driver&, sg::Context&) -> CUresult { return CUDA_SUCCESS; });
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
