// Page-locked, mapped, registered and managed host memory.
//
// gcc -std=gnu11 -I wire/include tests/programs/host_memory_api.c -o host_memory_api -ldl -lpthread
#include <sys/mman.h>

#include "cuda_types.h"

#define CALLS(X)                                                                                                  \
  X(cuCtxSynchronize, (void))                                                                                     \
  X(cuModuleLoadData, (CUmodule*, const void*))                                                                   \
  X(cuModuleUnload, (CUmodule))                                                                                   \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                    \
  X(cuLaunchKernel,                                                                                               \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*))                                                                \
  X(cuStreamCreate, (CUstream*, unsigned))                                                                        \
  X(cuStreamDestroy_v2, (CUstream))                                                                               \
  X(cuStreamSynchronize, (CUstream))                                                                              \
  X(cuStreamQuery, (CUstream))                                                                                    \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                             \
  X(cuEventCreate, (CUevent*, unsigned))                                                                          \
  X(cuEventRecord, (CUevent, CUstream))                                                                           \
  X(cuEventSynchronize, (CUevent))                                                                                \
  X(cuEventDestroy_v2, (CUevent))                                                                                 \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                        \
  X(cuMemFree_v2, (CUdeviceptr))                                                                                  \
  X(cuMemHostAlloc, (void**, size_t, unsigned))                                                                   \
  X(cuMemFreeHost, (void*))                                                                                       \
  X(cuMemHostGetDevicePointer_v2, (CUdeviceptr*, void*, unsigned))                                                \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                                          \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                                                                \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                                           \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                                 \
  X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*))                                                                        \
  X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                                         \
  X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D*))                                                                        \
  X(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D*, CUstream))                                                         \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                                          \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode))                                                     \
  X(cuStreamEndCapture, (CUstream, CUgraph*))                                                                     \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                                     \
  X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                       \
  X(cuGraphExecDestroy, (CUgraphExec)) X(cuGraphDestroy, (CUgraph))

#include "area.h"

// add_all: p[i] += v. store_at: p[index] = v. add_through: **table += v for each entry of a table of pointers.
static const char ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry add_all(.param .u64 p, .param .u32 n, .param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<8>; .reg .pred %p;\n"
    "  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; ld.param.u32 %r2, [v];\n"
    "  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x; mad.lo.u32 %r6, %r3, %r4, %r5;\n"
    "  setp.ge.u32 %p, %r6, %r1; @%p bra end;\n"
    "  mul.wide.u32 %rd2, %r6, 4; add.u64 %rd3, %rd1, %rd2;\n"
    "  ld.global.u32 %r7, [%rd3]; add.u32 %r7, %r7, %r2; st.global.u32 [%rd3], %r7;\n"
    "end: ret; }\n"
    ".visible .entry store_at(.param .u64 p, .param .u32 index, .param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<4>;\n"
    "  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [index]; ld.param.u32 %r2, [v];\n"
    "  mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r2; ret; }\n";

static CUfunction add_all, store_at;

static void load_kernels(void) {
  CUmodule module = NULL;
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&add_all, module, "add_all"));
  OK(cuModuleGetFunction(&store_at, module, "store_at"));
}

static CUresult add(CUdeviceptr p, unsigned n, unsigned v, CUstream stream) {
  void* params[] = {&p, &n, &v};
  return cuLaunchKernel(add_all, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

static CUresult store(CUdeviceptr p, unsigned index, unsigned v, CUstream stream) {
  void* params[] = {&p, &index, &v};
  return cuLaunchKernel(store_at, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

static CUdeviceptr pointer_of(void* host) {
  CUdeviceptr d = 0;
  OK(cuMemHostGetDevicePointer_v2(&d, host, 0));
  return d;
}

/// A host function that holds its stream until it is let go.
typedef struct gate {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  int open;
} gate;

static void hold(void* data) {
  gate* g = data;
  pthread_mutex_lock(&g->mutex);
  while (!g->open) pthread_cond_wait(&g->changed, &g->mutex);
  pthread_mutex_unlock(&g->mutex);
}

static void let_go(gate* g) {
  pthread_mutex_lock(&g->mutex);
  g->open = 1;
  pthread_cond_broadcast(&g->changed);
  pthread_mutex_unlock(&g->mutex);
}

#define GATE {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0}

// ------------------------------------------------------------------------------------------------ 2D and 3D copies

enum { PITCH = 1000, WIDTH = 300, ROWS = 40, SLICES = 3, SLICE_ROWS = 50 };

/// Rows have `inside`, everything else 0xee; counts the bytes that are wrong.
static int wrong_rows(const uint8_t* host, unsigned slices, uint8_t inside) {
  int wrong = 0;
  for (size_t i = 0; i < (size_t)PITCH * SLICE_ROWS * slices; i++) {
    const int in_row = i % PITCH >= 8 && i % PITCH < 8 + WIDTH && i / PITCH % SLICE_ROWS < ROWS;
    wrong += host[i] != (in_row ? inside : 0xee);
  }
  return wrong;
}

static void rows_into(uint8_t* host, int asynchronous) {
  const size_t bytes = (size_t)PITCH * SLICE_ROWS * SLICES;
  CUdeviceptr d = 0;
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, (size_t)512 * ROWS * SLICES));
  OK(cuMemsetD8_v2(d, 0x5a, (size_t)512 * ROWS * SLICES));
  OK(cuCtxSynchronize());
  CUDA_MEMCPY2D two = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                       .srcDevice = d,
                       .srcPitch = 512,
                       .dstXInBytes = 8,
                       .dstMemoryType = CU_MEMORYTYPE_HOST,
                       .dstHost = host,
                       .dstPitch = PITCH,
                       .WidthInBytes = WIDTH,
                       .Height = ROWS};
  memset(host, 0xee, bytes);
  OK(asynchronous ? cuMemcpy2DAsync_v2(&two, stream) : cuMemcpy2D_v2(&two));
  OK(cuStreamSynchronize(stream));
  IS(0, wrong_rows(host, 1, 0x5a));
  CUDA_MEMCPY3D three = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                         .srcDevice = d,
                         .srcPitch = 512,
                         .srcHeight = ROWS,
                         .dstXInBytes = 8,
                         .dstMemoryType = CU_MEMORYTYPE_HOST,
                         .dstHost = host,
                         .dstPitch = PITCH,
                         .dstHeight = SLICE_ROWS,
                         .WidthInBytes = WIDTH,
                         .Height = ROWS,
                         .Depth = SLICES};
  memset(host, 0xee, bytes);
  OK(asynchronous ? cuMemcpy3DAsync_v2(&three, stream) : cuMemcpy3D_v2(&three));
  OK(cuStreamSynchronize(stream));
  IS(0, wrong_rows(host, SLICES, 0x5a));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
}

static void test_rows(void) {
  const size_t bytes = (size_t)PITCH * SLICE_ROWS * SLICES;
  uint8_t *pageable = malloc(bytes), *pinned = NULL;
  OK(cuMemHostAlloc((void**)&pinned, bytes, 0));
  for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
    rows_into(pageable, asynchronous);
    rows_into(pinned, asynchronous);
  }
  OK(cuMemFreeHost(pinned));
  free(pageable);
}

/// What a 2D copy brings into page-locked memory is what a copy behind it takes, without a wait between; and what the
/// program writes between the rows meanwhile stays.
static void test_rows_bounce(void) {
  const size_t bytes = (size_t)PITCH * SLICE_ROWS;
  uint8_t *pinned = NULL, *back = calloc(1, bytes);
  CUdeviceptr from = 0, to = 0;
  CUstream stream = NULL;
  gate g = GATE;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&from, bytes));
  OK(cuMemAlloc_v2(&to, bytes));
  OK(cuMemHostAlloc((void**)&pinned, bytes, 0));
  OK(cuMemsetD8_v2(from, 0x33, bytes));
  memset(pinned, 0xee, bytes);
  OK(cuCtxSynchronize());
  OK(cuLaunchHostFunc(stream, hold, &g));
  CUDA_MEMCPY2D two = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                       .srcDevice = from,
                       .srcPitch = PITCH,
                       .dstXInBytes = 8,
                       .dstMemoryType = CU_MEMORYTYPE_HOST,
                       .dstHost = pinned,
                       .dstPitch = PITCH,
                       .WidthInBytes = WIDTH,
                       .Height = ROWS};
  OK(cuMemcpy2DAsync_v2(&two, stream));
  OK(cuMemcpyHtoDAsync_v2(to, pinned, bytes, stream));
  CODE(600, cuStreamQuery(stream));
  let_go(&g);
  OK(cuStreamSynchronize(stream));
  IS(0, wrong_rows(pinned, 1, 0x33));
  OK(cuMemcpyDtoH_v2(back, to, bytes));
  IS(0, wrong_rows(back, 1, 0x33));
  OK(cuMemFreeHost(pinned));
  OK(cuMemFree_v2(from));
  OK(cuMemFree_v2(to));
  OK(cuStreamDestroy_v2(stream));
  free(back);
}

// ------------------------------------------------------------------------------------------------ mapped memory

static void test_mapped(void) {
  enum { COUNT = 100000 };
  unsigned* h = NULL;
  load_kernels();
  OK(cuMemHostAlloc((void**)&h, COUNT * sizeof *h, CU_MEMHOSTALLOC_DEVICEMAP));
  const CUdeviceptr d = pointer_of(h);
  int wrong = 0;
  for (unsigned round = 0; round < 20; round++) {
    for (unsigned i = 0; i < COUNT; i += round % 3 + 1) h[i] = i * 3 + round;
    unsigned before[5] = {h[0], h[1], h[777], h[COUNT - 2], h[COUNT - 1]};
    wrong += add(d, COUNT, round + 1, NULL) != 0;
    wrong += cuCtxSynchronize() != 0;
    unsigned after[5] = {h[0], h[1], h[777], h[COUNT - 2], h[COUNT - 1]};
    for (int i = 0; i < 5; i++) wrong += after[i] != before[i] + round + 1;
  }
  IS(0, wrong);
  OK(cuMemFreeHost(h));
}

/// Through events and other streams: what a kernel has written is there when anything that stands behind it is done.
static void test_mapped_order(void) {
  unsigned* h = NULL;
  CUstream first = NULL, second = NULL;
  CUevent event = NULL;
  load_kernels();
  OK(cuStreamCreate(&first, 1));
  OK(cuStreamCreate(&second, 1));
  OK(cuEventCreate(&event, 2));
  OK(cuMemHostAlloc((void**)&h, 4096, 0));
  memset(h, 0, 4096);
  int wrong = 0;
  for (unsigned round = 1; round <= 50; round++) {
    wrong += store(pointer_of(h), 0, round, first) != 0;
    wrong += cuEventRecord(event, first) != 0;
    wrong += cuStreamWaitEvent(second, event, 0) != 0;
    wrong += store(pointer_of(h), 1, round * 2, second) != 0;
    if (round % 2) {
      wrong += cuEventSynchronize(event) != 0;
      wrong += h[0] != round;
      wrong += cuStreamSynchronize(second) != 0;
    } else {
      wrong += cuStreamSynchronize(second) != 0;
      wrong += h[0] != round;
    }
    wrong += h[1] != round * 2;
  }
  IS(0, wrong);
  OK(cuMemFreeHost(h));
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(first));
  OK(cuStreamDestroy_v2(second));
}

static void triple(void* data) { ((unsigned*)data)[1] = 3 * ((unsigned*)data)[0]; }

/// A host function sees what the kernel before it has written, and the kernel behind it what the function has.
static void test_mapped_host_function(void) {
  unsigned* h = NULL;
  CUstream stream = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemHostAlloc((void**)&h, 4096, 0));
  memset(h, 0, 4096);
  for (unsigned round = 1; round <= 5; round++) {
    OK(store(pointer_of(h), 0, round, stream));
    OK(cuLaunchHostFunc(stream, triple, h));
    OK(add(pointer_of(h), 2, 1, stream));
    OK(cuStreamSynchronize(stream));
    IS(round + 1, h[0]);
    IS(3 * round + 1, h[1]);
  }
  OK(cuMemFreeHost(h));
  OK(cuStreamDestroy_v2(stream));
}

/// The program and a kernel write different words of the same memory at the same time.
static void test_mapped_both_write(void) {
  enum { COUNT = 4096 };
  unsigned* h = NULL;
  CUstream stream = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemHostAlloc((void**)&h, COUNT * sizeof *h, 0));
  memset(h, 0, COUNT * sizeof *h);
  int wrong = 0;
  for (unsigned i = 0; i < COUNT; i += 2) {
    wrong += store(pointer_of(h), i, i + 1, stream) != 0;
    h[i + 1] = i + 2;
  }
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < COUNT; i++) wrong += h[i] != i + 1;
  IS(0, wrong);
  OK(add(pointer_of(h), COUNT, 5, stream));
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < COUNT; i++) wrong += h[i] != i + 6;
  IS(0, wrong);
  OK(cuMemFreeHost(h));
  OK(cuStreamDestroy_v2(stream));
}

/// Each launch of a graph reads what the program has written before it.
static void test_mapped_graph(void) {
  unsigned* h = NULL;
  CUstream stream = NULL;
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemHostAlloc((void**)&h, 4096, 0));
  memset(h, 0, 4096);
  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(add(pointer_of(h), 1000, 7, stream));
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (unsigned round = 0; round < 5; round++) {
    h[3] = round * 100;
    h[999] = round;
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    IS(round * 100 + 7, h[3]);
    IS(round + 7, h[999]);
    IS(7 * (round + 1), h[500]);
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemFreeHost(h));
  OK(cuStreamDestroy_v2(stream));
}

/// Copies and kernels use the same page-locked memory in turn, without waits between.
static void test_copy_bounce(void) {
  enum { COUNT = 50000, BYTES = COUNT * 4 };
  unsigned *h = NULL, *back = malloc(BYTES);
  CUdeviceptr d = 0;
  CUstream stream = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, BYTES));
  OK(cuMemHostAlloc((void**)&h, BYTES, 0));
  for (unsigned i = 0; i < COUNT; i++) h[i] = i;
  int wrong = 0;
  OK(cuMemcpyHtoDAsync_v2(d, h, BYTES, stream));  // taken before the kernel below writes
  OK(add(pointer_of(h), COUNT, 10, stream));
  OK(add(d, COUNT, 1, stream));
  OK(cuMemcpyDtoHAsync_v2(h, d, BYTES / 2, stream));  // the first half: i + 1; the second: i + 10
  OK(add(pointer_of(h), COUNT, 100, stream));
  OK(cuMemcpyHtoDAsync_v2(d, h, BYTES, stream));
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < COUNT; i++) wrong += h[i] != (i < COUNT / 2 ? i + 101 : i + 110);
  OK(cuMemcpyDtoH_v2(back, d, BYTES));
  for (unsigned i = 0; i < COUNT; i++) wrong += back[i] != h[i];
  IS(0, wrong);
  // A source that an unfinished copy writes is taken when the stream reaches it.
  for (unsigned round = 0; round < 20; round++) {
    wrong += add(d, COUNT, 1, stream) != 0;
    wrong += cuMemcpyDtoHAsync_v2(h, d, BYTES, stream) != 0;
    wrong += cuMemcpyHtoDAsync_v2(d, h, BYTES, stream) != 0;
  }
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < COUNT; i++) wrong += h[i] != back[i] + 20;
  IS(0, wrong);
  OK(cuMemFreeHost(h));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
  free(back);
}

SECTIONS({"rows", test_rows, 0}, {"rows_bounce", test_rows_bounce, 0}, {"mapped", test_mapped, 0},
         {"mapped_order", test_mapped_order, 0}, {"mapped_host_function", test_mapped_host_function, 0},
         {"mapped_both_write", test_mapped_both_write, 0}, {"mapped_graph", test_mapped_graph, 0},
         {"copy_bounce", test_copy_bounce, 0})
