// cuMemHostRegister: the program's own memory, used by kernels at its own address.
//
// gcc -std=gnu11 -I wire/include tests/programs/registered_api.c -o registered_api -ldl -lpthread
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "cuda_types.h"

// clang-format off
#define CALLS(X)                                                                                                  \
  X(cuCtxSynchronize, (void))                                                                                     \
  X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext))                             \
  X(cuModuleLoadData, (CUmodule*, const void*)) X(cuModuleUnload, (CUmodule))                                     \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                    \
  X(cuLaunchKernel,                                                                                               \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*))                                                                \
  X(cuStreamCreate, (CUstream*, unsigned)) X(cuStreamDestroy_v2, (CUstream))                                      \
  X(cuStreamSynchronize, (CUstream)) X(cuStreamQuery, (CUstream))                                                 \
  X(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, cuuint32_t, unsigned))                                       \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr))                                         \
  X(cuMemHostRegister_v2, (void*, size_t, unsigned)) X(cuMemHostUnregister, (void*))                              \
  X(cuMemHostGetDevicePointer_v2, (CUdeviceptr*, void*, unsigned)) X(cuMemHostGetFlags, (unsigned*, void*))       \
  X(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr))                                             \
  X(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr))                                                \
  X(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t))                                                                 \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))         \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                                           \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                                 \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                           \
  X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                                         \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                                          \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))                                                  \
  X(cuMemsetD2D32Async, (CUdeviceptr, size_t, unsigned, size_t, size_t, CUstream))                                \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) X(cuStreamEndCapture, (CUstream, CUgraph*))         \
  X(cuGraphGetNodes, (CUgraph, CUgraphNode*, size_t*)) X(cuGraphMemcpyNodeGetParams, (CUgraphNode, CUDA_MEMCPY3D*)) \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                                     \
  X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                       \
  X(cuGraphExecDestroy, (CUgraphExec)) X(cuGraphDestroy, (CUgraph))
// clang-format on

#include "area.h"

// add_all: p[i] += v.
static const char ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry add_all(.param .u64 p, .param .u32 n, .param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<8>; .reg .pred %p;\n"
    "  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; ld.param.u32 %r2, [v];\n"
    "  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x; mad.lo.u32 %r6, %r3, %r4, %r5;\n"
    "  setp.ge.u32 %p, %r6, %r1; @%p bra end;\n"
    "  mul.wide.u32 %rd2, %r6, 4; add.u64 %rd3, %rd1, %rd2;\n"
    "  ld.global.u32 %r7, [%rd3]; add.u32 %r7, %r7, %r2; st.global.u32 [%rd3], %r7;\n"
    "end: ret; }\n";

static CUfunction add_all;

static void load_kernels(void) {
  CUmodule module = NULL;
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&add_all, module, "add_all"));
}

static CUresult add(const void* p, unsigned n, unsigned v, CUstream stream) {
  CUdeviceptr d = (CUdeviceptr)(uintptr_t)p;
  void* params[] = {&d, &n, &v};
  return cuLaunchKernel(add_all, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

static void count_up(uint32_t* words, unsigned n, uint32_t from) {
  for (unsigned i = 0; i < n; i++) words[i] = from + i;
}

static int wrong(const uint32_t* words, unsigned n, uint32_t from) {
  int bad = 0;
  for (unsigned i = 0; i < n; i++) bad += words[i] != from + i;
  return bad;
}

static void* pages(size_t bytes) {
  void* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static long long attribute(CUpointer_attribute which, const void* p, CUresult* result) {
  long long value = 0;
  *result = cuPointerGetAttribute(&value, which, (CUdeviceptr)(uintptr_t)p);
  return value;
}

// ------------------------------------------------------------------------------------------------ kernels

static void use(uint32_t* words, unsigned n, unsigned flags) {
  count_up(words, n, 100);
  OK(cuMemHostRegister_v2(words, (size_t)n * 4, flags));
  IS(0, wrong(words, n, 100));
  CUdeviceptr d = 0;
  OK(cuMemHostGetDevicePointer_v2(&d, words, 0));
  IS((uintptr_t)words, d);
  OK(cuMemHostGetDevicePointer_v2(&d, words + n / 2, 0));
  IS((uintptr_t)(words + n / 2), d);
  count_up(words, n, 1000);  // written after the registration
  OK(add(words, n, 7, NULL));
  OK(cuCtxSynchronize());
  IS(0, wrong(words, n, 1007));
  count_up(words, n, 5);
  OK(add(words + 1, n - 1, 1, NULL));
  OK(add(words, n, 1, NULL));
  OK(cuCtxSynchronize());
  IS(6, words[0]);
  IS(0, wrong(words + 1, n - 1, 8));
  OK(cuMemHostUnregister(words));
  IS(6, words[0]);
  IS(0, wrong(words + 1, n - 1, 8));
  CODE(713, cuMemHostUnregister(words));
  count_up(words, n, 1);  // the program's alone again
  IS(0, wrong(words, n, 1));
}

static void test_kernels(void) {
  load_kernels();
  const unsigned n = 1 << 20;
  uint32_t* mapped = pages((size_t)n * 4);
  use(mapped, n, CU_MEMHOSTREGISTER_DEVICEMAP);
  use(mapped, n, 0);
  use(mapped, n, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  use(mapped + 3, 1000, CU_MEMHOSTREGISTER_DEVICEMAP);
  munmap(mapped, (size_t)n * 4);
  static const size_t sizes[] = {40, 4000, 100000, 1000000, 9000000};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    uint32_t* words = malloc(sizes[i] + 4);
    use(words + 1, (unsigned)(sizes[i] / 4), CU_MEMHOSTREGISTER_DEVICEMAP);
    free(words);
  }
}

static void test_attributes(void) {
  uint32_t* words = pages(1 << 20);
  OK(cuMemHostRegister_v2(words, 1 << 20, CU_MEMHOSTREGISTER_DEVICEMAP));
  CODE(712, cuMemHostRegister_v2(words, 1 << 20, CU_MEMHOSTREGISTER_DEVICEMAP));
  CODE(712, cuMemHostRegister_v2(words, 4096, 0));
  unsigned flags = 99;
  OK(cuMemHostGetFlags(&flags, words));
  IS(CU_MEMHOSTREGISTER_DEVICEMAP, flags);
  CUresult result = 0;
  const void* inside = (const char*)words + 5000;
  IS(CU_MEMORYTYPE_HOST, attribute(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, inside, &result));
  IS(0, result);
  IS((uintptr_t)inside, attribute(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, inside, &result));
  IS(0, result);
  IS((uintptr_t)inside, attribute(CU_POINTER_ATTRIBUTE_HOST_POINTER, inside, &result));
  IS(0, result);
  IS(0, attribute(CU_POINTER_ATTRIBUTE_IS_MANAGED, inside, &result) & 0xff);
  IS((uintptr_t)words, attribute(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, inside, &result));
  IS(1 << 20, attribute(CU_POINTER_ATTRIBUTE_RANGE_SIZE, inside, &result));
  NOTE(attribute(CU_POINTER_ATTRIBUTE_MAPPED, inside, &result) & 0xff);
  CUdeviceptr base = 0;
  size_t bytes = 0;
  OK(cuMemGetAddressRange_v2(&base, &bytes, (CUdeviceptr)(uintptr_t)inside));
  IS((uintptr_t)words, base);
  IS(1 << 20, bytes);
  OK(cuMemHostUnregister(words));
  CODE(1, cuPointerGetAttribute(&flags, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)words));
  CODE(713, cuMemHostUnregister(words));
  CODE(1, cuMemHostRegister_v2(NULL, 4096, 0));
  CODE(1, cuMemHostRegister_v2(words, 0, 0));
  CODE(1, cuMemHostRegister_v2(words, 4096, 0x100));
  // Unaligned: what the driver says of the range, and whether the rest of its pages can be registered.
  char* odd = (char*)words + 100;
  OK(cuMemHostRegister_v2(odd, 5000, 0));
  IS((uintptr_t)odd, attribute(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, odd, &result));
  IS(5000, attribute(CU_POINTER_ATTRIBUTE_RANGE_SIZE, odd, &result));
  CODE(1, cuPointerGetAttribute(&flags, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)words));
  OK(cuMemHostRegister_v2(odd + 5000, 5000, 0));
  OK(cuMemHostUnregister(odd + 5000));
  CODE(1, cuMemHostUnregister(odd + 8));
  OK(cuMemHostUnregister(odd));
  munmap(words, 1 << 20);
}

// ------------------------------------------------------------------------------------------------ copies

static void test_copies(void) {
  load_kernels();
  const unsigned n = 600000;
  uint32_t* words = malloc((size_t)n * 4);
  uint32_t* out = malloc((size_t)n * 4);
  CUdeviceptr d = 0;
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, (size_t)n * 4));
  OK(cuMemHostRegister_v2(words, (size_t)n * 4, CU_MEMHOSTREGISTER_DEVICEMAP));
  for (uint32_t round = 0; round < 10; round++) {
    count_up(words, n, round);
    OK(cuMemcpyHtoDAsync_v2(d, words, (size_t)n * 4, stream));
    OK(add((const void*)(uintptr_t)d, n, 1, stream));
    OK(cuMemcpyDtoHAsync_v2(words, d, (size_t)n * 4, stream));
    OK(add(words, n, 1, stream));  // a kernel behind the copy, on the memory that it fills
    OK(cuStreamSynchronize(stream));
    IS(0, wrong(words, n, round + 2));
  }
  OK(cuMemcpyHtoD_v2(d, words, (size_t)n * 4));
  memset(words, 0, (size_t)n * 4);
  OK(cuMemcpyDtoH_v2(words, d, (size_t)n * 4));
  IS(0, wrong(words, n, 11));
  // As a device pointer: unified copies, fills, values.
  const CUdeviceptr own = (CUdeviceptr)(uintptr_t)words;
  OK(cuMemcpyDtoH_v2(out, own, (size_t)n * 4));
  IS(0, wrong(out, n, 11));
  count_up(out, n, 77);
  OK(cuMemcpyHtoD_v2(own, out, (size_t)n * 4));
  IS(0, wrong(words, n, 77));
  OK(cuMemcpy(d, own, (size_t)n * 4));
  OK(cuMemcpyDtoH_v2(out, d, (size_t)n * 4));
  IS(0, wrong(out, n, 77));
  OK(cuMemsetD32Async(own + 400, 9, 10, stream));
  OK(cuMemsetD2D32Async(own + 1000, 64, 8, 3, 2, stream));
  OK(cuStreamWriteValue32_v2(stream, own + 2000, 4321, 0));
  OK(cuStreamSynchronize(stream));
  IS(9, words[100]);
  IS(9, words[109]);
  IS(77 + 110, words[110]);
  IS(8, words[250]);
  IS(8, words[252]);
  IS(77 + 253, words[253]);
  IS(8, words[268]);
  IS(4321, words[500]);
  OK(cuMemsetD8_v2(own, 3, 8));
  OK(cuCtxSynchronize());
  IS(0x03030303, words[1]);
  count_up(words, n, 1);
  const CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = words + 10,
                              .srcPitch = 4000,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = d,
                              .dstPitch = 512,
                              .WidthInBytes = 400,
                              .Height = 50};
  const CUDA_MEMCPY2D back = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                              .srcDevice = d,
                              .srcPitch = 512,
                              .dstMemoryType = CU_MEMORYTYPE_HOST,
                              .dstHost = words + 100010,
                              .dstPitch = 4000,
                              .WidthInBytes = 400,
                              .Height = 50};
  OK(cuMemcpy2DAsync_v2(&rows, stream));
  OK(cuMemcpy2DAsync_v2(&back, stream));
  OK(cuStreamSynchronize(stream));
  int bad = 0;
  for (int row = 0; row < 50; row++) bad += wrong(words + 100010 + row * 1000, 100, 11 + (uint32_t)row * 1000) != 0;
  IS(0, bad);
  IS(100111, words[100110]);  // the gap between rows
  OK(cuMemHostUnregister(words));
  IS(0, wrong(words + 200000, n - 200000, 200001));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
  free(words);
  free(out);
}

/// Work that nobody has waited for when the registration ends: its results are there.
static void test_unregister_waits(void) {
  load_kernels();
  const unsigned n = 300000;
  uint32_t* words = malloc((size_t)n * 4);
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  for (uint32_t round = 0; round < 5; round++) {
    count_up(words, n, round);
    OK(cuMemHostRegister_v2(words, (size_t)n * 4, CU_MEMHOSTREGISTER_DEVICEMAP));
    for (int i = 0; i < 10; i++) OK(add(words, n, 1, stream));
    OK(cuMemHostUnregister(words));
    IS(0, wrong(words, n, round + 10));
    OK(cuStreamSynchronize(stream));
    IS(0, wrong(words, n, round + 10));
  }
  OK(cuStreamDestroy_v2(stream));
  free(words);
}

typedef struct gate {
  _Atomic int open, by_itself;
} gate;

static void hold(void* data) {
  gate* g = data;
  for (int i = 0; i < 5000 && !atomic_load(&g->open); i++) usleep(1000);
  atomic_store(&g->by_itself, !atomic_load(&g->open));
}

/// Copies behind a function that holds the stream are made later, and read what the memory has then.
static void test_asynchronous(void) {
  load_kernels();
  const unsigned n = 100000;
  uint32_t *from = pages((size_t)n * 4), *to = pages((size_t)n * 4);  // no page in common
  CUstream stream = NULL;
  CUdeviceptr d = 0;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, (size_t)n * 4));
  OK(cuMemHostRegister_v2(from, (size_t)n * 4, 0));
  OK(cuMemHostRegister_v2(to, (size_t)n * 4, 0));
  count_up(from, n, 1);
  count_up(to, n, 0);
  gate g = {0, 0};
  OK(cuLaunchHostFunc(stream, hold, &g));
  OK(cuMemcpyHtoDAsync_v2(d, from, (size_t)n * 4, stream));
  OK(cuMemcpyDtoHAsync_v2(to, d, (size_t)n * 4, stream));
  CODE(600, cuStreamQuery(stream));
  IS(0, wrong(to, n, 0));
  atomic_store(&g.open, 1);
  OK(cuStreamSynchronize(stream));
  IS(0, g.by_itself);
  IS(0, wrong(to, n, 1));
  OK(cuMemHostUnregister(from));
  OK(cuMemHostUnregister(to));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
  munmap(from, (size_t)n * 4);
  munmap(to, (size_t)n * 4);
}

static void bump(void* data) { ((uint32_t*)data)[5] += 1000; }

static void test_host_functions_and_graphs(void) {
  load_kernels();
  const unsigned n = 50000;
  uint32_t* words = malloc((size_t)n * 4);
  CUstream stream = NULL;
  CUdeviceptr d = 0;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, (size_t)n * 4));
  OK(cuMemHostRegister_v2(words, (size_t)n * 4, CU_MEMHOSTREGISTER_DEVICEMAP));
  count_up(words, n, 1);
  OK(add(words, n, 1, stream));
  OK(cuLaunchHostFunc(stream, bump, words));  // between two kernels that use what it changes
  OK(add(words, n, 1, stream));
  OK(cuStreamSynchronize(stream));
  IS(1 + 5 + 2 + 1000, words[5]);
  IS(0, wrong(words + 6, n - 6, 9));
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuMemcpyHtoDAsync_v2(d, words, (size_t)n * 4, stream));
  OK(add((const void*)(uintptr_t)d, n, 10, stream));
  OK(cuMemcpyDtoHAsync_v2(words, d, (size_t)n * 4, stream));
  OK(add(words, n, 1, stream));
  OK(cuStreamEndCapture(stream, &graph));
  CUgraphNode nodes[4];
  size_t count = 4;
  OK(cuGraphGetNodes(graph, nodes, &count));
  int strange = 0;
  for (size_t i = 0; i < count; i++) {
    CUDA_MEMCPY3D copy = {0};
    if (cuGraphMemcpyNodeGetParams(nodes[i], &copy) != 0) continue;
    strange += (copy.srcHost != NULL && copy.srcHost != words) || (copy.dstHost != NULL && copy.dstHost != words);
  }
  IS(0, strange);
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (uint32_t round = 0; round < 3; round++) {
    count_up(words, n, round * 7);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    IS(0, wrong(words, n, round * 7 + 11));
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemHostUnregister(words));
  IS(0, wrong(words, n, 25));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
  free(words);
}

// ------------------------------------------------------------------------------------------------ what else uses it

static void test_read_into(void) {
  load_kernels();
  uint32_t* words = pages(1 << 16);
  OK(cuMemHostRegister_v2(words, 1 << 16, CU_MEMHOSTREGISTER_DEVICEMAP));
  int ends[2];
  TRUE(pipe(ends) == 0);
  for (uint32_t round = 0; round < 20; round++) {
    uint32_t sent[1000];
    count_up(sent, 1000, round);
    TRUE(write(ends[1], sent, sizeof sent) == sizeof sent);
    TRUE(read(ends[0], words, sizeof sent) == sizeof sent);  // the kernel's write, not the program's
    OK(add(words, 1000, 1, NULL));
    OK(cuCtxSynchronize());
    TRUE(write(ends[1], words, sizeof sent) == sizeof sent);
    TRUE(read(ends[0], sent, sizeof sent) == sizeof sent);
    IS(0, wrong(sent, 1000, round + 1));
  }
  close(ends[0]);
  close(ends[1]);
  OK(cuMemHostUnregister(words));
  munmap(words, 1 << 16);
}

enum { BLOCKS = 40, BLOCK_BYTES = 30000 };

/// Blocks of the heap, next to each other: each shares its first and last page with its neighbours, which are written,
/// freed and allocated meanwhile.
static void test_neighbours(void) {
  load_kernels();
  uint32_t* blocks[BLOCKS];
  int bad = 0;
  for (int i = 0; i < BLOCKS; i++) count_up(blocks[i] = malloc(BLOCK_BYTES), BLOCK_BYTES / 4, (uint32_t)i);
  for (int i = 0; i < BLOCKS; i += 4) bad += cuMemHostRegister_v2(blocks[i], BLOCK_BYTES, 0) != 0;
  IS(0, bad);
  for (int i = 0; i < BLOCKS; i += 4) bad += add(blocks[i], BLOCK_BYTES / 4, 1, NULL) != 0;
  for (int i = 1; i < BLOCKS; i += 2) {
    free(blocks[i]);
    count_up(blocks[i] = malloc(BLOCK_BYTES), BLOCK_BYTES / 4, (uint32_t)i);
  }
  IS(0, bad);
  OK(cuCtxSynchronize());
  for (int i = 0; i < BLOCKS; i++) bad += wrong(blocks[i], BLOCK_BYTES / 4, (uint32_t)i + (i % 4 == 0));
  IS(0, bad);
  for (int i = 0; i < BLOCKS; i += 4) bad += cuMemHostUnregister(blocks[i]) != 0;
  for (int i = 0; i < BLOCKS; i++) bad += wrong(blocks[i], BLOCK_BYTES / 4, (uint32_t)i + (i % 4 == 0));
  IS(0, bad);
  for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
}

/// Two registrations with a page in common: whatever the second one is, its copies are right.
static void test_shared_page(void) {
  uint8_t* p = pages(16384);
  CUdeviceptr d = 0;
  OK(cuMemAlloc_v2(&d, 8192));
  OK(cuMemHostRegister_v2(p, 6000, 0));
  const CUresult second = cuMemHostRegister_v2(p + 6000, 6000, 0);
  NOTE(second);
  memset(p, 5, 12000);
  OK(cuMemcpyHtoD_v2(d, p + 6000, 6000));
  memset(p, 0, 12000);
  OK(cuMemcpyDtoH_v2(p + 6000, d, 6000));
  IS(0, p[5999]);
  IS(5, p[6000]);
  IS(5, p[11999]);
  if (second == 0) OK(cuMemHostUnregister(p + 6000));
  OK(cuMemHostUnregister(p));
  IS(5, p[8191]);
  OK(cuMemFree_v2(d));
  munmap(p, 16384);
}

/// Memory that may stay pageable: the codes are noted, what is copied is right.
static void test_other_memory(void) {
  CUdeviceptr d = 0;
  OK(cuMemAlloc_v2(&d, 65536));
  char path[] = "/tmp/registered_XXXXXX";
  const int file = mkstemp(path);
  TRUE(file >= 0 && ftruncate(file, 65536) == 0);
  static const int kinds[] = {MAP_SHARED, MAP_PRIVATE};
  for (int i = 0; i < 2; i++) {
    uint8_t* p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, kinds[i], file, 0);
    memset(p, 20 + i, 65536);
    const CUresult with_map = cuMemHostRegister_v2(p, 65536, CU_MEMHOSTREGISTER_DEVICEMAP);
    NOTE(with_map);
    if (with_map == 0) OK(cuMemHostUnregister(p));
    const CUresult plain = cuMemHostRegister_v2(p, 65536, 0);
    NOTE(plain);
    OK(cuMemcpyHtoD_v2(d, p, 65536));
    memset(p, 0, 65536);
    OK(cuMemcpyDtoH_v2(p, d, 65536));
    IS(20 + i, p[0]);
    IS(20 + i, p[65535]);
    if (plain == 0) OK(cuMemHostUnregister(p));
    munmap(p, 65536);
  }
  uint8_t first = 0;
  TRUE(pread(file, &first, 1, 0) == 1);
  IS(20, first);  // a shared mapping stays one
  close(file);
  unlink(path);
  uint8_t* p = pages(65536);
  memset(p, 9, 65536);
  mprotect(p, 65536, PROT_READ);
  CODE(1, cuMemHostRegister_v2(p, 65536, 0));
  const CUresult for_reading = cuMemHostRegister_v2(p, 65536, CU_MEMHOSTREGISTER_READ_ONLY);
  NOTE(for_reading);
  IS(9, p[40000]);
  if (for_reading == 0) OK(cuMemHostUnregister(p));
  munmap(p, 65536);
  CODE(1, cuMemHostRegister_v2(p, 65536, 0));  // nothing is there
  uint8_t on_stack[20000];
  memset(on_stack, 4, sizeof on_stack);
  const CUresult stack = cuMemHostRegister_v2(on_stack, sizeof on_stack, 0);
  NOTE(stack);
  IS(4, on_stack[10000]);
  OK(cuMemcpyHtoD_v2(d, on_stack, sizeof on_stack));
  if (stack == 0) OK(cuMemHostUnregister(on_stack));
  IS(4, on_stack[19999]);
  OK(cuMemFree_v2(d));
}

/// Memory that the program gives back before it is unregistered, and what is put there then.
static void test_unmapped_before(void) {
  uint8_t* p = pages(1 << 20);
  memset(p, 1, 1 << 20);
  OK(cuMemHostRegister_v2(p, 1 << 20, 0));
  munmap(p, 1 << 20);
  uint8_t* q = mmap(p, 1 << 19, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  memset(q, 2, 1 << 19);
  OK(cuMemHostUnregister(p));
  int bad = 0;
  for (size_t i = 0; i < 1 << 19; i++) bad += q[i] != 2;
  IS(0, bad);
  OK(cuMemHostRegister_v2(q, 1 << 19, 0));
  OK(cuMemHostUnregister(q));
  IS(2, q[5]);
  munmap(q, 1 << 19);
}

static void test_context_ends(void) {
  CUcontext own = NULL;
  uint32_t* words = pages(1 << 20);
  for (uint32_t round = 0; round < 3; round++) {
    OK(cuCtxCreate_v2(&own, 0, device));
    load_kernels();
    count_up(words, 1 << 18, round);
    OK(cuMemHostRegister_v2(words, 1 << 20, CU_MEMHOSTREGISTER_DEVICEMAP));
    OK(add(words, 1 << 18, 1, NULL));
    OK(cuCtxSynchronize());
    OK(cuCtxDestroy_v2(own));  // and with it the registration
    IS(0, wrong(words, 1 << 18, round + 1));
  }
  munmap(words, 1 << 20);
}

// ------------------------------------------------------------------------------------------------ other threads

enum { WRITERS = 4, WORDS = 3 << 20, ROUNDS = 8 };
static uint64_t* shared_words;
static _Atomic int stop_writers;

/// Each writer owns every fourth word. What it wrote last must still be there.
static void* write_on(void* argument) {
  const size_t first = (size_t)(uintptr_t)argument;
  uint64_t value = 0;
  long lost = 0;
  while (!atomic_load(&stop_writers)) {
    value++;
    for (size_t i = first; i < WORDS; i += WRITERS * 509) {
      volatile uint64_t* word = &shared_words[i];
      lost += *word != value - 1;
      *word = value;
    }
  }
  for (size_t i = first; i < WORDS; i += WRITERS * 509) lost += shared_words[i] != value;
  return (void*)(uintptr_t)lost;
}

static void test_writers(void) {
  load_kernels();
  shared_words = pages((size_t)WORDS * 8);
  atomic_store(&stop_writers, 0);
  pthread_t writers[WRITERS];
  for (size_t i = 0; i < WRITERS; i++) pthread_create(&writers[i], NULL, write_on, (void*)(uintptr_t)i);
  int bad = 0;
  for (int round = 0; round < ROUNDS; round++) {
    bad += cuMemHostRegister_v2(shared_words, (size_t)WORDS * 8, CU_MEMHOSTREGISTER_DEVICEMAP) != 0;
    usleep(2000);
    bad += cuMemHostUnregister(shared_words) != 0;
    usleep(2000);
  }
  IS(0, bad);
  OK(cuMemHostRegister_v2(shared_words, (size_t)WORDS * 8, CU_MEMHOSTREGISTER_DEVICEMAP));
  atomic_store(&stop_writers, 1);
  long lost = 0;
  for (size_t i = 0; i < WRITERS; i++) {
    void* own = NULL;
    pthread_join(writers[i], &own);
    lost += (long)(uintptr_t)own;
  }
  IS(0, lost);
  memset(shared_words, 0, 4096);
  shared_words[0] = 5;
  OK(add(shared_words, 1000, 3, NULL));  // and it is the memory that kernels use
  OK(cuCtxSynchronize());
  IS((3ull << 32) + 8, shared_words[0]);
  OK(cuMemHostUnregister(shared_words));
  munmap(shared_words, (size_t)WORDS * 8);
}

enum { REGISTRANTS = 3 };

static void* register_on(void* argument) {
  long bad = cuCtxSetCurrent(context) != 0;
  for (int round = 0; round < 15; round++) {
    const size_t bytes = 5000 + 70000 * (size_t)(uintptr_t)argument + 1000 * (size_t)round;
    uint32_t* words = malloc(bytes);
    const unsigned n = (unsigned)(bytes / 4);
    CUstream stream = NULL;
    bad += cuStreamCreate(&stream, 1) != 0;
    count_up(words, n, 3);
    const CUresult registered = cuMemHostRegister_v2(words, bytes, 0);
    CUdeviceptr d = 0;
    // Small blocks of two threads may share a page: then one of them is not for kernels.
    if (registered == 0 && cuMemHostGetDevicePointer_v2(&d, words, 0) == 0) {
      bad += add(words, n, 1, stream) != 0;
      bad += cuStreamSynchronize(stream) != 0;
      bad += wrong(words, n, 4) != 0;
    }
    if (registered == 0) bad += cuMemHostUnregister(words) != 0;
    bad += wrong(words, n, d != 0 ? 4 : 3) != 0;
    bad += cuStreamDestroy_v2(stream) != 0;
    free(words);
  }
  return (void*)(uintptr_t)bad;
}

static void test_registrants(void) {
  load_kernels();
  pthread_t threads[REGISTRANTS];
  for (size_t i = 0; i < REGISTRANTS; i++) pthread_create(&threads[i], NULL, register_on, (void*)(uintptr_t)i);
  for (size_t i = 0; i < REGISTRANTS; i++) {
    void* bad = NULL;
    pthread_join(threads[i], &bad);
    IS(0, (uintptr_t)bad);
  }
}

// ------------------------------------------------------------------------------------------------ faults

static sigjmp_buf back_here;
static _Atomic int caught;
static void on_segv(int number) {
  (void)number;
  caught++;
  siglongjmp(back_here, 1);
}

static void fault(void) {
  if (sigsetjmp(back_here, 1) == 0) *(volatile int*)16 = 1;
}

/// The program's own handler gets the program's own faults, before and after.
static void test_own_handler(void) {
  struct sigaction before;
  const struct sigaction mine = {.sa_handler = on_segv};
  atomic_store(&caught, 0);
  sigaction(SIGSEGV, &mine, &before);
  fault();
  uint8_t* p = pages(1 << 20);
  OK(cuMemHostRegister_v2(p, 1 << 20, 0));
  fault();
  uint8_t* guarded = pages(4096);
  mprotect(guarded, 4096, PROT_READ);
  if (sigsetjmp(back_here, 1) == 0) *(volatile uint8_t*)guarded = 1;
  OK(cuMemHostUnregister(p));
  fault();
  IS(4, caught);
  sigaction(SIGSEGV, &before, NULL);
  munmap(guarded, 4096);
  // A handler that comes after: memory can still be registered, whatever becomes of it.
  sigaction(SIGSEGV, &mine, NULL);
  p[1] = 1;
  OK(cuMemHostRegister_v2(p, 1 << 20, 0));
  p[2] = 2;
  fault();
  IS(5, caught);
  OK(cuMemHostUnregister(p));
  IS(1, p[1]);
  IS(2, p[2]);
  sigaction(SIGSEGV, &before, NULL);
  munmap(p, 1 << 20);
}

// ------------------------------------------------------------------------------------------------ fork

/// What a child of `words` finds and does: 0 when all is as it should be.
static int child_of(uint32_t* words, unsigned n, uint32_t from) {
  const pid_t child = fork();
  if (child == 0) {
    usleep(20000);  // its parent writes meanwhile
    if (wrong(words, n, from) != 0) _exit(1);
    for (unsigned i = 0; i < n; i++) words[i] = 0xdead;
    if (words[n / 2] != 0xdead) _exit(2);
    _exit(cuCtxSynchronize() == 0 ? 3 : 0);
  }
  count_up(words, n, from + 1);
  int status = -1;
  waitpid(child, &status, 0);
  return status != 0 || wrong(words, n, from + 1) != 0 ? (status == 0 ? -1 : status) : 0;
}

static void test_fork(void) {
  load_kernels();
  const unsigned n = 700000;
  uint32_t* words = malloc((size_t)n * 4);
  OK(cuMemHostRegister_v2(words + 1, (size_t)(n - 1) * 4, CU_MEMHOSTREGISTER_DEVICEMAP));
  count_up(words, n, 10);
  IS(0, child_of(words, n, 10));
  OK(add(words + 1, n - 1, 1, NULL));  // the parent's registration goes on
  OK(cuCtxSynchronize());
  IS(11, words[0]);
  IS(0, wrong(words + 1, n - 1, 13));
  words[0] = 12;
  IS(0, child_of(words, n, 12));
  OK(cuMemHostUnregister(words + 1));
  count_up(words, n, 20);
  IS(0, child_of(words, n, 20));
  free(words);
}

static void* keep_registering(void* argument) {
  long bad = cuCtxSetCurrent(context) != 0;
  while (!atomic_load(&stop_writers)) {
    bad += cuMemHostRegister_v2(argument, 6 << 20, 0) != 0;
    bad += cuMemHostUnregister(argument) != 0;
  }
  return (void*)(uintptr_t)bad;
}

static void test_fork_while_registering(void) {
  const unsigned n = (6 << 20) / 4;
  uint32_t* words = pages(6 << 20);
  count_up(words, n, 3);
  atomic_store(&stop_writers, 0);
  pthread_t thread;
  pthread_create(&thread, NULL, keep_registering, words);
  int bad = 0;
  for (int i = 0; i < 12; i++) bad += child_of(words, n, 3 + (uint32_t)i) != 0;
  IS(0, bad);
  atomic_store(&stop_writers, 1);
  void* failed = NULL;
  pthread_join(thread, &failed);
  IS(0, (uintptr_t)failed);
  munmap(words, 6 << 20);
}

SECTIONS({"kernels", test_kernels, 0}, {"attributes", test_attributes, 0}, {"copies", test_copies, 0},
         {"asynchronous", test_asynchronous, 0}, {"unregister_waits", test_unregister_waits, 0},
         {"host_functions_and_graphs", test_host_functions_and_graphs, 0}, {"read_into", test_read_into, 0},
         {"neighbours", test_neighbours, 0}, {"shared_page", test_shared_page, 0},
         {"other_memory", test_other_memory, 0}, {"unmapped_before", test_unmapped_before, NOT_NATIVE},
         {"context_ends", test_context_ends, OWN_CONTEXT}, {"writers", test_writers, 0},
         {"registrants", test_registrants, 0}, {"own_handler", test_own_handler, 0}, {"fork", test_fork, NOT_NATIVE},
         {"fork_while_registering", test_fork_while_registering, NOT_NATIVE})
