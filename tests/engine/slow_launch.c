// A libcuda whose launches take 2 ms in the call and otherwise is the one that it is linked with.
#include <dlfcn.h>
#include <unistd.h>

#include "cuda_types.h"

typedef CUresult (*launch_function)(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
                                    unsigned int, unsigned int, CUstream, void**, void**);

CUresult cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                        unsigned int by, unsigned int bz, unsigned int shared_bytes, CUstream stream, void** params,
                        void** extra) {
  const launch_function next = (launch_function)dlsym(RTLD_NEXT, "cuLaunchKernel");
  usleep(2000);
  return next(f, gx, gy, gz, bx, by, bz, shared_bytes, stream, params, extra);
}
