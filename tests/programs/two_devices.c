// Two devices, whatever serves them: addresses of both in one process, copies between them, events across.
//
//   gcc -std=gnu11 -I ../../wire/include two_devices.c -o two_devices -ldl && ./two_devices
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuInit, (unsigned)) X(cuDeviceGetCount, (int *)) X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
  X(cuCtxSetCurrent, (CUcontext)) X(cuCtxSynchronize, (void)) X(cuMemAlloc_v2, (CUdeviceptr *, size_t)) \
  X(cuMemFree_v2, (CUdeviceptr)) X(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t)) \
  X(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t)) X(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) \
  X(cuMemcpyPeer, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t)) \
  X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) X(cuPointerGetAttribute, (void *, int, CUdeviceptr)) \
  X(cuStreamCreate, (CUstream *, unsigned)) X(cuStreamSynchronize, (CUstream)) X(cuEventCreate, (CUevent *, unsigned)) \
  X(cuEventRecord, (CUevent, CUstream)) X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
  X(cuDeviceCanAccessPeer, (int *, CUdevice, CUdevice)) \
  X(cuDeviceGetP2PAttribute, (int *, CUdevice_P2PAttribute, CUdevice, CUdevice)) \
  X(cuCtxEnablePeerAccess, (CUcontext, unsigned)) X(cuCtxDisablePeerAccess, (CUcontext)) \
  X(cuModuleLoadData, (CUmodule *, const void *)) X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
                     void **, void **))
// clang-format on
#define DECLARE(name, arguments) static CUresult(*name) arguments;
CALLS(DECLARE)
#define LOAD(name, arguments) \
  if ((name = (CUresult(*) arguments)dlsym(library, #name)) == NULL) return 2;
#define OK(call)                                                  \
  do {                                                            \
    const CUresult got_ = (call);                                 \
    if (got_ != CUDA_SUCCESS) {                                   \
      printf("FAIL %d %s: got %d\n", __LINE__, #call, (int)got_); \
      exit(1);                                                    \
    }                                                             \
  } while (0)
#define TRUE(value)                             \
  do {                                          \
    if (!(value)) {                             \
      printf("FAIL %d %s\n", __LINE__, #value); \
      exit(1);                                  \
    }                                           \
  } while (0)

enum { BLOCKS = 10000 };
typedef struct block {
  uint64_t start, end;
} block;

static int by_start(const void* a, const void* b) {
  const block *x = a, *y = b;
  return x->start < y->start ? -1 : x->start > y->start;
}

/// No two blocks overlap. `remote`: and none lies in readable or writable memory of this process.
static void check_disjoint(block* blocks, int count, int remote) {
  qsort(blocks, (size_t)count, sizeof *blocks, by_start);
  for (int i = 1; i < count; i++) TRUE(blocks[i - 1].end <= blocks[i].start);
  if (!remote) return;
  FILE* maps = fopen("/proc/self/maps", "r");
  TRUE(maps != NULL);
  char line[512];
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long long from, to;
    char access[8];
    TRUE(sscanf(line, "%llx-%llx %7s", &from, &to, access) == 3);
    if (access[0] == '-') continue;
    for (int i = 0; i < count; i++) TRUE(blocks[i].end <= from || blocks[i].start >= to);
  }
  fclose(maps);
}

#define CODE(code, call)                                                        \
  do {                                                                          \
    const CUresult got_ = (call);                                               \
    if ((int)got_ != (code)) {                                                  \
      printf("FAIL %d %s: expected %d, got %d\n", __LINE__, #call, code, got_); \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)

static const char copy_ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry copy(.param .u64 to, .param .u64 from) {\n"
    "  .reg .u32 %r<2>; .reg .u64 %d<6>;\n"
    "  ld.param.u64 %d0, [to]; ld.param.u64 %d1, [from];\n"
    "  cvta.to.global.u64 %d2, %d0; cvta.to.global.u64 %d3, %d1;\n"
    "  mov.u32 %r0, %tid.x; mul.wide.u32 %d4, %r0, 4;\n"
    "  add.s64 %d2, %d2, %d4; add.s64 %d3, %d3, %d4;\n"
    "  ld.global.u32 %r1, [%d3]; st.global.u32 [%d2], %r1;\n"
    "  ret;\n}\n";

/// A kernel on device 1 reads device 0's memory, both what was there before access was enabled and what came after.
static void check_peer_kernels(CUcontext* contexts) {
  enum { THREADS = 64 };
  int can = 0, supported = -1;
  OK(cuDeviceCanAccessPeer(&can, 1, 0));
  OK(cuDeviceGetP2PAttribute(&supported, CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED, 1, 0));
  TRUE(can == supported);
  CODE(101, cuDeviceGetP2PAttribute(&supported, CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED, 1, 1));
  OK(cuDeviceCanAccessPeer(&supported, 1, 1));
  TRUE(supported == 0);
  OK(cuCtxSetCurrent(contexts[1]));
  if (!can) {
    CODE(217, cuCtxEnablePeerAccess(contexts[0], 0));
    printf("two devices: no peer access here\n");
    return;
  }
  CUdeviceptr before, after, target;
  CUmodule module;
  CUfunction copy;
  unsigned words[THREADS];
  OK(cuMemAlloc_v2(&target, sizeof words));
  OK(cuModuleLoadData(&module, copy_ptx));
  OK(cuModuleGetFunction(&copy, module, "copy"));
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuMemAlloc_v2(&before, sizeof words));
  OK(cuMemsetD32_v2(before, 11, THREADS));
  OK(cuCtxSynchronize());
  OK(cuCtxSetCurrent(contexts[1]));
  CODE(705, cuCtxDisablePeerAccess(contexts[0]));
  OK(cuCtxEnablePeerAccess(contexts[0], 0));
  CODE(704, cuCtxEnablePeerAccess(contexts[0], 0));
  CODE(217, cuCtxEnablePeerAccess(contexts[1], 0));
  CODE(1, cuCtxEnablePeerAccess(contexts[0], 1));
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuMemAlloc_v2(&after, 64u << 20));  // memory that is mapped after access was enabled
  OK(cuMemsetD32_v2(after, 22, THREADS));
  OK(cuCtxSynchronize());
  OK(cuCtxSetCurrent(contexts[1]));
  const CUdeviceptr sources[2] = {before, after};
  for (int i = 0; i < 2; i++) {
    CUdeviceptr from = sources[i];
    void* parameters[] = {&target, &from};
    OK(cuLaunchKernel(copy, 1, 1, 1, THREADS, 1, 1, 0, NULL, parameters, NULL));
    OK(cuMemcpyDtoH_v2(words, target, sizeof words));
    TRUE(words[0] == (i ? 22u : 11u) && words[THREADS - 1] == words[0]);
  }
  OK(cuCtxDisablePeerAccess(contexts[0]));
  CODE(705, cuCtxDisablePeerAccess(contexts[0]));
  OK(cuMemFree_v2(target));
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuMemFree_v2(before));
  OK(cuMemFree_v2(after));
}

int main(int argc, char** argv) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) return 2;
  CALLS(LOAD)
  int count = 0;
  CUcontext contexts[2];
  OK(cuInit(0));
  OK(cuDeviceGetCount(&count));
  TRUE(count >= 2);
  for (int d = 0; d < 2; d++) OK(cuDevicePrimaryCtxRetain(&contexts[d], d));
  static block blocks[BLOCKS];
  static CUdeviceptr live[BLOCKS];
  for (int i = 0; i < BLOCKS; i++) {
    OK(cuCtxSetCurrent(contexts[i & 1]));
    const size_t bytes = 1 + (size_t)(i * 7919) % 20000;
    OK(cuMemAlloc_v2(&live[i], bytes));
    blocks[i] = (block){live[i], live[i] + bytes};
    int ordinal = -1;
    OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, live[i]));
    TRUE(ordinal == (i & 1));
  }
  check_disjoint(blocks, BLOCKS, argc > 1 && strcmp(argv[1], "remote") == 0);
  for (int i = 0; i < BLOCKS; i++) OK(cuMemFree_v2(live[i]));
  // Copies between the devices, and back to the host with the other context current.
  enum { WORDS = 100000 };
  static unsigned in[WORDS], out[WORDS];
  CUdeviceptr p[2];
  for (int i = 0; i < WORDS; i++) in[i] = (unsigned)i * 2654435761u;
  for (int d = 0; d < 2; d++) {
    OK(cuCtxSetCurrent(contexts[d]));
    OK(cuMemAlloc_v2(&p[d], sizeof in));
  }
  OK(cuMemcpyHtoD_v2(p[0], in, sizeof in));
  OK(cuMemcpyPeer(p[1], contexts[1], p[0], contexts[0], sizeof in));
  OK(cuMemcpyDtoH_v2(out, p[1], sizeof out));
  TRUE(memcmp(in, out, sizeof in) == 0);
  OK(cuMemsetD32_v2(p[0], 7, WORDS));
  OK(cuMemcpyDtoD_v2(p[1], p[0], sizeof in));
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuMemcpyDtoH_v2(out, p[1], sizeof out));
  TRUE(out[0] == 7 && out[WORDS - 1] == 7);
  // A stream of one device waits for an event of the other.
  CUstream streams[2];
  CUevent event;
  for (int d = 0; d < 2; d++) {
    OK(cuCtxSetCurrent(contexts[d]));
    OK(cuStreamCreate(&streams[d], 1));
  }
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuEventCreate(&event, 2));
  OK(cuMemsetD32Async(p[0], 9, WORDS, streams[0]));
  OK(cuEventRecord(event, streams[0]));
  OK(cuCtxSetCurrent(contexts[1]));
  OK(cuStreamWaitEvent(streams[1], event, 0));
  OK(cuMemsetD32Async(p[1], 10, 1, streams[1]));
  OK(cuStreamSynchronize(streams[1]));
  OK(cuMemcpyDtoH_v2(out, p[0], sizeof out));
  TRUE(out[0] == 9 && out[WORDS - 1] == 9);
  check_peer_kernels(contexts);
  printf("two devices: %d blocks disjoint, copies and events across\n", BLOCKS);
  return 0;
}
