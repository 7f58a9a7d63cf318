// Exercises the CUDA driver API with exact expected codes, one line for each check. It knows nothing of Orion: the same
// program runs against NVIDIA's driver, softgpu, and either of them through the shim.
//
//   gcc -std=gnu11 -I ../../wire/include driver_api.c -o driver_api -ldl -lpthread && ./driver_api [section...]
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checks.h"
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuInit, (unsigned)) X(cuDriverGetVersion, (int *)) X(cuDeviceGetCount, (int *)) X(cuDeviceGet, (CUdevice *, int)) \
  X(cuDeviceGetName, (char *, int, CUdevice)) X(cuDeviceGetUuid_v2, (CUuuid *, CUdevice)) \
  X(cuDeviceTotalMem_v2, (size_t *, CUdevice)) X(cuDeviceGetAttribute, (int *, int, CUdevice)) \
  X(cuDeviceGetPCIBusId, (char *, int, CUdevice)) X(cuDeviceGetByPCIBusId, (CUdevice *, const char *)) \
  X(cuDeviceComputeCapability, (int *, int *, CUdevice)) X(cuDeviceCanAccessPeer, (int *, CUdevice, CUdevice)) \
  X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) X(cuDevicePrimaryCtxRelease_v2, (CUdevice)) \
  X(cuDevicePrimaryCtxReset_v2, (CUdevice)) X(cuDevicePrimaryCtxGetState, (CUdevice, unsigned *, int *)) \
  X(cuDevicePrimaryCtxSetFlags_v2, (CUdevice, unsigned)) X(cuCtxCreate_v2, (CUcontext *, unsigned, CUdevice)) \
  X(cuCtxDestroy_v2, (CUcontext)) X(cuCtxPushCurrent_v2, (CUcontext)) X(cuCtxPopCurrent_v2, (CUcontext *)) \
  X(cuCtxSetCurrent, (CUcontext)) X(cuCtxGetCurrent, (CUcontext *)) X(cuCtxGetDevice, (CUdevice *)) \
  X(cuCtxGetFlags, (unsigned *)) X(cuCtxGetApiVersion, (CUcontext, unsigned *)) X(cuCtxSynchronize, (void)) \
  X(cuCtxGetLimit, (size_t *, int)) X(cuCtxSetLimit, (int, size_t)) X(cuCtxGetCacheConfig, (int *)) \
  X(cuCtxSetCacheConfig, (int)) X(cuCtxGetStreamPriorityRange, (int *, int *)) X(cuCtxGetId, (CUcontext, unsigned long long *)) \
  X(cuMemAlloc_v2, (CUdeviceptr *, size_t)) X(cuMemFree_v2, (CUdeviceptr)) X(cuMemGetInfo_v2, (size_t *, size_t *)) \
  X(cuMemAllocPitch_v2, (CUdeviceptr *, size_t *, size_t, size_t, unsigned)) \
  X(cuMemGetAddressRange_v2, (CUdeviceptr *, size_t *, CUdeviceptr)) X(cuMemHostAlloc, (void **, size_t, unsigned)) \
  X(cuMemAllocHost_v2, (void **, size_t)) X(cuMemFreeHost, (void *)) \
  X(cuMemHostGetDevicePointer_v2, (CUdeviceptr *, void *, unsigned)) X(cuMemHostGetFlags, (unsigned *, void *)) \
  X(cuMemHostRegister_v2, (void *, size_t, unsigned)) X(cuMemHostUnregister, (void *)) \
  X(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t)) X(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t)) X(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t)) \
  X(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) \
  X(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyPeer, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t)) \
  X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D *)) X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *, CUstream)) \
  X(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D *)) X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D *)) \
  X(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *, CUstream)) \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t)) X(cuMemsetD16_v2, (CUdeviceptr, unsigned short, size_t)) \
  X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) X(cuMemsetD2D8_v2, (CUdeviceptr, size_t, unsigned char, size_t, size_t)) \
  X(cuMemsetD2D32_v2, (CUdeviceptr, size_t, unsigned, size_t, size_t)) X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
  X(cuModuleLoadData, (CUmodule *, const void *)) X(cuModuleLoadDataEx, (CUmodule *, const void *, unsigned, CUjit_option *, void **)) \
  X(cuModuleLoad, (CUmodule *, const char *)) X(cuModuleUnload, (CUmodule)) X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
  X(cuModuleGetGlobal_v2, (CUdeviceptr *, size_t *, CUmodule, const char *)) X(cuModuleGetLoadingMode, (int *)) \
  X(cuFuncGetAttribute, (int *, int, CUfunction)) X(cuFuncSetAttribute, (CUfunction, int, int)) \
  X(cuFuncSetCacheConfig, (CUfunction, int)) X(cuFuncGetModule, (CUmodule *, CUfunction)) X(cuFuncGetName, (const char **, CUfunction)) \
  X(cuFuncGetParamInfo, (CUfunction, size_t, size_t *, size_t *)) \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **)) \
  X(cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **)) \
  X(cuLaunchCooperativeKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **)) \
  X(cuLibraryLoadData, (CUlibrary *, const void *, CUjit_option *, void **, unsigned, int *, void **, unsigned)) \
  X(cuLibraryUnload, (CUlibrary)) X(cuLibraryGetKernel, (CUkernel *, CUlibrary, const char *)) \
  X(cuLibraryGetModule, (CUmodule *, CUlibrary)) X(cuLibraryGetGlobal, (CUdeviceptr *, size_t *, CUlibrary, const char *)) \
  X(cuKernelGetFunction, (CUfunction *, CUkernel)) X(cuKernelGetAttribute, (int *, int, CUkernel, CUdevice)) \
  X(cuLinkCreate_v2, (unsigned, CUjit_option *, void **, CUlinkState *)) \
  X(cuLinkAddData_v2, (CUlinkState, int, void *, size_t, const char *, unsigned, CUjit_option *, void **)) \
  X(cuLinkComplete, (CUlinkState, void **, size_t *)) X(cuLinkDestroy, (CUlinkState)) \
  X(cuStreamCreate, (CUstream *, unsigned)) X(cuStreamCreateWithPriority, (CUstream *, unsigned, int)) X(cuStreamDestroy_v2, (CUstream)) \
  X(cuStreamSynchronize, (CUstream)) X(cuStreamQuery, (CUstream)) X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) \
  X(cuStreamGetPriority, (CUstream, int *)) X(cuStreamGetFlags, (CUstream, unsigned *)) X(cuStreamGetCtx, (CUstream, CUcontext *)) \
  X(cuStreamGetId, (CUstream, unsigned long long *)) X(cuStreamIsCapturing, (CUstream, int *)) \
  X(cuStreamAddCallback, (CUstream, CUstreamCallback, void *, unsigned)) X(cuLaunchHostFunc, (CUstream, CUhostFn, void *)) \
  X(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, unsigned, unsigned)) X(cuStreamWaitValue32_v2, (CUstream, CUdeviceptr, unsigned, unsigned)) \
  X(cuThreadExchangeStreamCaptureMode, (int *)) \
  X(cuEventCreate, (CUevent *, unsigned)) X(cuEventDestroy_v2, (CUevent)) X(cuEventRecord, (CUevent, CUstream)) \
  X(cuEventRecordWithFlags, (CUevent, CUstream, unsigned)) X(cuEventQuery, (CUevent)) X(cuEventSynchronize, (CUevent)) \
  X(cuEventElapsedTime, (float *, CUevent, CUevent)) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *, CUfunction, int, size_t)) \
  X(cuOccupancyMaxPotentialBlockSize, (int *, int *, CUfunction, CUoccupancyB2DSize, size_t, int)) \
  X(cuOccupancyAvailableDynamicSMemPerBlock, (size_t *, CUfunction, int, int)) \
  X(cuPointerGetAttribute, (void *, int, CUdeviceptr)) X(cuPointerGetAttributes, (unsigned, int *, void **, CUdeviceptr)) \
  X(cuGetErrorName, (CUresult, const char **)) X(cuGetErrorString, (CUresult, const char **)) \
  X(cuGetProcAddress_v2, (const char *, void **, int, uint64_t, int *)) X(cuGetExportTable, (const void **, const CUuuid *)) \
  X(cuProfilerStart, (void)) X(cuProfilerStop, (void))
// clang-format on

#define DECLARE(name, arguments) static CUresult(*name) arguments;
CALLS(DECLARE)
#define LOAD(name, arguments) name = (CUresult(*) arguments)find(#name);

static const char ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .global .align 4 .u32 counter = 7;\n"
    // add(p, n, value): p[i] += value
    ".visible .entry add(.param .u64 p, .param .u32 n, .param .u32 value)\n"
    "{ .reg .pred %q; .reg .u64 %a<3>; .reg .u32 %r<8>;\n"
    "  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r4, %r1, %r2, %r3;\n"
    "  ld.param.u32 %r5, [n]; setp.ge.u32 %q, %r4, %r5; @%q bra done;\n"
    "  ld.param.u64 %a1, [p]; mul.wide.u32 %a2, %r4, 4; add.u64 %a1, %a1, %a2;\n"
    "  ld.param.u32 %r6, [value]; ld.global.u32 %r7, [%a1]; add.u32 %r7, %r7, %r6; st.global.u32 [%a1], %r7;\n"
    "done: ret; }\n"
    // mix: parameters of several sizes and alignments, each written as a 64-bit word
    ".visible .entry mix(.param .u64 p, .param .u8 a, .param .u16 b, .param .u64 c, .param .u8 d, .param .u32 e)\n"
    "{ .reg .u64 %a<7>; .reg .u32 %r<6>; .reg .u16 %h<4>;\n"
    "  ld.param.u64 %a1, [p];\n"
    "  ld.param.u8 %h1, [a]; cvt.u32.u16 %r2, %h1; cvt.u64.u32 %a2, %r2; st.global.u64 [%a1], %a2;\n"
    "  ld.param.u16 %h2, [b]; cvt.u32.u16 %r3, %h2; cvt.u64.u32 %a2, %r3; st.global.u64 [%a1+8], %a2;\n"
    "  ld.param.u64 %a3, [c]; st.global.u64 [%a1+16], %a3;\n"
    "  ld.param.u8 %h3, [d]; cvt.u32.u16 %r4, %h3; cvt.u64.u32 %a2, %r4; st.global.u64 [%a1+24], %a2;\n"
    "  ld.param.u32 %r1, [e]; cvt.u64.u32 %a2, %r1; st.global.u64 [%a1+32], %a2; ret; }\n"
    // nothing: no parameters
    ".visible .entry nothing() { ret; }\n"
    // bump: counter += 1
    ".visible .entry bump() { .reg .u32 %r<2>; .reg .u64 %a<2>;\n"
    "  mov.u64 %a1, counter; atom.global.add.u32 %r1, [%a1], 1; ret; }\n"
    // small: at most 64 threads
    ".visible .entry small() .maxntid 64, 1, 1 { ret; }\n"
    // fault: writes to address 16
    ".visible .entry fault() { .reg .u64 %a<2>; .reg .u32 %r<2>; mov.u64 %a1, 16; mov.u32 %r1, 1; st.global.u32 [%a1], "
    "%r1; ret; }\n";

static CUcontext context;
static CUdevice device;
static CUmodule module;
static CUfunction add, mix, nothing, bump, small_block;

static void load_kernels(void) {
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&add, module, "add"));
  OK(cuModuleGetFunction(&mix, module, "mix"));
  OK(cuModuleGetFunction(&nothing, module, "nothing"));
  OK(cuModuleGetFunction(&bump, module, "bump"));
  OK(cuModuleGetFunction(&small_block, module, "small"));
}

static CUresult launch_add(CUdeviceptr p, unsigned n, unsigned value, CUstream stream) {
  void* params[] = {&p, &n, &value};
  return cuLaunchKernel(add, (n + 127) / 128, 1, 1, 128, 1, 1, 0, stream, params, NULL);
}

// A host function that holds its stream until `open` is set.
typedef struct gate {
  volatile int entered, open;
} gate;
static void hold(void* data) {
  gate* g = data;
  g->entered = 1;
  while (!g->open) usleep(200);
}

#include "driver_api_memory.h"
#include "driver_api_objects.h"
#include "driver_api_streams.h"

static const struct {
  const char* name;
  void (*run)(void);
  int own_context;  // makes its own contexts: runs without a current one
} sections[] = {
    {"devices", test_devices, 1},     {"contexts", test_contexts, 1},
    {"memory", test_memory, 0},       {"pinned", test_pinned, 0},
    {"copies", test_copies, 0},       {"copies2d", test_copies_2d, 0},
    {"memset", test_memset, 0},       {"pointers", test_pointers, 0},
    {"modules", test_modules, 0},     {"launches", test_launches, 0},
    {"library", test_library, 0},     {"link", test_link, 0},
    {"occupancy", test_occupancy, 0}, {"streams", test_streams, 0},
    {"events", test_events, 0},       {"callbacks", test_callbacks, 0},
    {"threads", test_threads, 0},     {"misc", test_misc, 0},
    {"mapped", test_mapped, 0},       {"callback_writes", test_callback_writes, 0},
    {"fault", test_fault, 0},
};

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) {
    printf("FAIL %s\n", dlerror());
    return 2;
  }
  CALLS(LOAD)
  int current_count = 0;
  CODE(3, cuDeviceGetCount(&current_count));
  CODE(1, cuInit(1));
  OK(cuInit(0));
  OK(cuInit(0));
  OK(cuDeviceGet(&device, 0));
  for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
    int wanted = argc == 1;
    for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], sections[i].name) == 0;
    if (!wanted) continue;
    printf("-- %s\n", sections[i].name);
    if (!sections[i].own_context) {
      OK(cuDevicePrimaryCtxRetain(&context, device));
      OK(cuCtxSetCurrent(context));
      load_kernels();
    }
    sections[i].run();
    if (!sections[i].own_context && strcmp(sections[i].name, "fault") != 0) {
      OK(cuModuleUnload(module));
      OK(cuCtxSetCurrent(NULL));
      OK(cuDevicePrimaryCtxRelease_v2(device));
    }
  }
  printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
