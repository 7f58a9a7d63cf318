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
  X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                              \
  X(cuMemsetD16Async, (CUdeviceptr, unsigned short, size_t, CUstream))                                            \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))                                                  \
  X(cuMemsetD2D32Async, (CUdeviceptr, size_t, unsigned, size_t, size_t, CUstream))                                \
  X(cuMemsetD2D32_v2, (CUdeviceptr, size_t, unsigned, size_t, size_t))                                            \
  X(cuMemAllocManaged, (CUdeviceptr*, size_t, unsigned))                                                          \
  X(cuStreamWaitValue32_v2, (CUstream, CUdeviceptr, cuuint32_t, unsigned))                                        \
  X(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, cuuint32_t, unsigned))                                       \
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

// ------------------------------------------------------------------------------------------------ fills

enum { FILLED = 100000 };  // words

static int wrong_words(const unsigned* words, unsigned first, unsigned end, unsigned value) {
  int wrong = 0;
  for (unsigned i = first; i < end; i++) wrong += words[i] != value;
  return wrong;
}

/// A fill of page-locked memory returns at once behind a held host function, takes its turn in the stream, and leaves
/// everything beside it alone.
static void test_fill(void) {
  unsigned *h = NULL, *back = malloc(FILLED * sizeof *h);
  CUdeviceptr d = 0;
  CUstream stream = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, FILLED * sizeof *h));
  OK(cuMemHostAlloc((void**)&h, FILLED * sizeof *h, 0));
  memset(h, 0x11, FILLED * sizeof *h);
  gate g = GATE;
  OK(cuLaunchHostFunc(stream, hold, &g));
  OK(cuMemsetD8Async(pointer_of(h + 100), 0x22, 400, stream));
  OK(cuMemsetD16Async(pointer_of(h + 300), 0x3344, 200, stream));
  OK(cuMemsetD32Async(pointer_of(h + 500), 0x55667788, FILLED - 600, stream));
  CODE(600, cuStreamQuery(stream));
  IS(0, wrong_words(h, 0, FILLED, 0x11111111));
  h[99] = 1;  // beside the fills
  h[FILLED - 1] = 2;
  let_go(&g);
  OK(cuStreamSynchronize(stream));
  IS(1, h[99]);
  IS(2, h[FILLED - 1]);
  IS(0, wrong_words(h, 100, 200, 0x22222222));
  IS(0, wrong_words(h, 200, 300, 0x11111111));
  IS(0, wrong_words(h, 300, 400, 0x33443344));
  IS(0, wrong_words(h, 400, 500, 0x11111111));
  IS(0, wrong_words(h, 500, FILLED - 100, 0x55667788));
  IS(0, wrong_words(h, FILLED - 100, FILLED - 1, 0x11111111));
  // Without waits between: a kernel, a copy and a fill, each of what the one before it has left.
  OK(cuMemsetD32Async(pointer_of(h), 5, FILLED, stream));
  OK(add(pointer_of(h), FILLED, 1, stream));
  OK(cuMemcpyHtoDAsync_v2(d, h, FILLED * sizeof *h, stream));
  OK(cuMemsetD32Async(pointer_of(h + 1000), 9, 1000, stream));
  OK(cuStreamSynchronize(stream));
  IS(0, wrong_words(h, 0, 1000, 6));
  IS(0, wrong_words(h, 1000, 2000, 9));
  IS(0, wrong_words(h, 2000, FILLED, 6));
  OK(cuMemcpyDtoH_v2(back, d, FILLED * sizeof *h));
  IS(0, wrong_words(back, 0, FILLED, 6));
  // The memory is the program's again: what it writes is what work takes.
  h[1500] = 77;
  OK(cuMemcpyHtoDAsync_v2(d, h, FILLED * sizeof *h, stream));
  OK(cuStreamSynchronize(stream));
  OK(cuMemcpyDtoH_v2(back, d, FILLED * sizeof *h));
  IS(77, back[1500]);
  IS(9, back[1501]);
  OK(cuMemFreeHost(h));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
  free(back);
}

/// Rows, and the program's own bytes between them; the calls without a stream return when the memory is filled.
static void test_fill_rows(void) {
  unsigned* h = NULL;
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemHostAlloc((void**)&h, 64 * 100 * sizeof *h, 0));
  memset(h, 0, 64 * 100 * sizeof *h);
  gate g = GATE;
  OK(cuLaunchHostFunc(stream, hold, &g));
  OK(cuMemsetD2D32Async(pointer_of(h + 3), 64 * sizeof *h, 7, 50, 100, stream));
  for (int y = 0; y < 100; y++) h[64 * y + 60] = (unsigned)y + 1;
  let_go(&g);
  OK(cuStreamSynchronize(stream));
  int wrong = 0;
  for (unsigned y = 0; y < 100; y++) {
    for (unsigned x = 0; x < 64; x++) {
      const unsigned expected = x >= 3 && x < 53 ? 7 : x == 60 ? y + 1 : 0;
      wrong += h[64 * y + x] != expected;
    }
  }
  IS(0, wrong);
  OK(cuMemsetD8_v2(pointer_of(h), 0x12, 64 * 100 * sizeof *h));
  IS(0, wrong_words(h, 0, 64 * 100, 0x12121212));
  OK(cuMemsetD2D32_v2(pointer_of(h), 64 * sizeof *h, 8, 64, 100));
  IS(0, wrong_words(h, 0, 64 * 100, 8));
  CODE(1, cuMemsetD32Async(pointer_of(h) + 2, 1, 1, stream));
  CODE(1, cuMemsetD8Async(pointer_of(h), 1, 64 * 100 * sizeof *h + 4096, stream));
  OK(cuMemFreeHost(h));
  OK(cuStreamDestroy_v2(stream));
}

/// The caller alone can let the stream go on, by a value or through an event. What it writes before that is filled
/// over, though the fill's bytes are those that were there when it was submitted.
static void test_fill_held(void) {
  unsigned* h = NULL;
  CUdeviceptr flag = 0;
  CUstream first = NULL, second = NULL;
  CUevent event = NULL;
  OK(cuStreamCreate(&first, 1));
  OK(cuStreamCreate(&second, 1));
  OK(cuEventCreate(&event, 2));
  OK(cuMemAlloc_v2(&flag, 4));
  OK(cuMemsetD8_v2(flag, 0, 4));
  OK(cuMemHostAlloc((void**)&h, 4096, 0));
  memset(h, 0, 4096);
  OK(cuCtxSynchronize());
  OK(cuStreamWaitValue32_v2(first, flag, 1, CU_STREAM_WAIT_VALUE_GEQ));
  OK(cuMemsetD8Async(pointer_of(h), 0, 4096, first));
  CODE(600, cuStreamQuery(first));
  memset(h, 0xaa, 4096);
  OK(cuStreamWriteValue32_v2(second, flag, 1, 0));
  OK(cuStreamSynchronize(first));
  IS(0, wrong_words(h, 0, 1024, 0));

  gate g = GATE;
  OK(cuLaunchHostFunc(second, hold, &g));
  OK(cuEventRecord(event, second));
  OK(cuStreamWaitEvent(first, event, 0));
  OK(cuMemsetD32Async(pointer_of(h), 3, 1024, first));
  CODE(600, cuStreamQuery(first));
  IS(0, wrong_words(h, 0, 1024, 0));
  let_go(&g);
  OK(cuStreamSynchronize(first));
  IS(0, wrong_words(h, 0, 1024, 3));
  OK(cuMemFreeHost(h));
  OK(cuMemFree_v2(flag));
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(first));
  OK(cuStreamDestroy_v2(second));
}

static void double_first(void* data) { *(unsigned*)data *= 2; }

/// Managed memory, fills in graphs, host functions on both sides of a fill.
static void test_fill_elsewhere(void) {
  unsigned* h = NULL;
  CUdeviceptr managed = 0;
  CUstream stream = NULL;
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAllocManaged(&managed, 8192, CU_MEM_ATTACH_GLOBAL));
  unsigned* m = (unsigned*)(uintptr_t)managed;
  m[0] = 1;
  m[2047] = 2;
  gate g = GATE;
  OK(cuLaunchHostFunc(stream, hold, &g));
  OK(cuMemsetD32Async(managed, 4, 1024, stream));
  CODE(600, cuStreamQuery(stream));
  let_go(&g);
  OK(cuStreamSynchronize(stream));
  IS(0, wrong_words(m, 0, 1024, 4));
  IS(2, m[2047]);
  OK(cuMemFree_v2(managed));

  OK(cuMemHostAlloc((void**)&h, 4096, 0));
  memset(h, 0, 4096);
  h[0] = 1;
  OK(cuLaunchHostFunc(stream, double_first, h));
  OK(cuMemsetD32Async(pointer_of(h), 21, 8, stream));
  OK(cuLaunchHostFunc(stream, double_first, h));
  OK(cuStreamSynchronize(stream));
  IS(42, h[0]);
  IS(21, h[1]);

  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuMemsetD32Async(pointer_of(h), 6, 512, stream));
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (unsigned round = 0; round < 3; round++) {
    memset(h, (int)round + 1, 4096);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    IS(0, wrong_words(h, 0, 512, 6));
    IS(0, wrong_words(h, 512, 1024, 0x01010101 * (round + 1)));
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemFreeHost(h));
  OK(cuStreamDestroy_v2(stream));
}

SECTIONS({"fill", test_fill, 0}, {"fill_rows", test_fill_rows, 0}, {"fill_held", test_fill_held, 0},
         {"fill_elsewhere", test_fill_elsewhere, 0}, {"rows", test_rows, 0}, {"rows_bounce", test_rows_bounce, 0},
         {"mapped", test_mapped, 0}, {"mapped_order", test_mapped_order, 0},
         {"mapped_host_function", test_mapped_host_function, 0}, {"mapped_both_write", test_mapped_both_write, 0},
         {"mapped_graph", test_mapped_graph, 0}, {"copy_bounce", test_copy_bounce, 0})
