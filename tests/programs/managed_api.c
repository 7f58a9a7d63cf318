// Managed memory: one address for the program and for kernels, advice and prefetching.
//
// gcc -std=gnu11 -I wire/include tests/programs/managed_api.c -o managed_api -ldl -lpthread
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuCtxSynchronize, (void)) X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext)) \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice)) X(cuModuleLoadData, (CUmodule*, const void*)) \
  X(cuModuleUnload, (CUmodule)) X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) \
  X( cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*)) X(cuStreamCreate, (CUstream*, unsigned)) \
  X(cuStreamDestroy_v2, (CUstream)) X(cuStreamSynchronize, (CUstream)) \
  X( cuStreamAttachMemAsync, (CUstream, CUdeviceptr, size_t, unsigned)) \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) \
  X(cuStreamWriteValue32_v2, (CUstream, CUdeviceptr, cuuint32_t, unsigned)) \
  X(cuStreamWaitValue32_v2, (CUstream, CUdeviceptr, cuuint32_t, unsigned)) X( cuEventCreate, (CUevent*, unsigned)) \
  X(cuEventRecord, (CUevent, CUstream)) X(cuEventSynchronize, (CUevent)) X(cuEventDestroy_v2, (CUevent)) \
  X( cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr)) \
  X(cuMemAllocManaged, (CUdeviceptr*, size_t, unsigned)) X(cuMemHostAlloc, (void**, size_t, unsigned)) \
  X(cuMemFreeHost, (void*)) X( cuMemHostGetDevicePointer_v2, (CUdeviceptr*, void*, unsigned)) \
  X(cuMemHostGetFlags, (unsigned*, void*)) X(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr)) \
  X( cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr)) \
  X(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t)) X(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
  X( cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream)) \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream)) \
  X( cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*)) \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t)) X( cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
  X(cuMemAdvise, (CUdeviceptr, size_t, CUmem_advise, CUdevice)) \
  X( cuMemAdvise_v2, (CUdeviceptr, size_t, CUmem_advise, CUmemLocation)) \
  X(cuMemPrefetchAsync, (CUdeviceptr, size_t, CUdevice, CUstream)) \
  X(cuMemPrefetchAsync_v2, (CUdeviceptr, size_t, CUmemLocation, unsigned, CUstream)) \
  X(cuMemPrefetchBatchAsync, (CUdeviceptr*, size_t*, size_t, CUmemLocation*, size_t*, size_t, unsigned long long, CUstream)) \
  X(cuMemDiscardBatchAsync, (CUdeviceptr*, size_t*, size_t, unsigned long long, CUstream)) \
  X(cuMemDiscardAndPrefetchBatchAsync, (CUdeviceptr*, size_t*, size_t, CUmemLocation*, size_t*, size_t, unsigned long long, CUstream)) \
  X(cuMemRangeGetAttribute, (void*, size_t, CUmem_range_attribute, CUdeviceptr, size_t)) \
  X(cuMemRangeGetAttributes, (void**, size_t*, CUmem_range_attribute*, size_t, CUdeviceptr, size_t)) \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) X(cuStreamEndCapture, (CUstream, CUgraph*)) \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long)) \
  X(cuGraphLaunch, (CUgraphExec, CUstream)) X(cuGraphExecDestroy, (CUgraphExec)) X(cuGraphDestroy, (CUgraph))
// clang-format on

#include "area.h"

// add_all: p[i] += v. add_through: *table[i] += v. store_at: p[index] = v.
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
    ".visible .entry add_through(.param .u64 table, .param .u32 v)\n"
    "{ .reg .u64 %rd<5>; .reg .u32 %r<5>;\n"
    "  ld.param.u64 %rd1, [table]; ld.param.u32 %r1, [v]; mov.u32 %r2, %tid.x;\n"
    "  mul.wide.u32 %rd2, %r2, 8; add.u64 %rd3, %rd1, %rd2; ld.global.u64 %rd4, [%rd3];\n"
    "  ld.global.u32 %r3, [%rd4]; add.u32 %r3, %r3, %r1; st.global.u32 [%rd4], %r3; ret; }\n"
    ".visible .entry store_at(.param .u64 p, .param .u32 index, .param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<4>;\n"
    "  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [index]; ld.param.u32 %r2, [v];\n"
    "  mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r2; ret; }\n";

static CUfunction add_all, add_through, store_at;

static void load_kernels(void) {
  CUmodule module = NULL;
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&add_all, module, "add_all"));
  OK(cuModuleGetFunction(&add_through, module, "add_through"));
  OK(cuModuleGetFunction(&store_at, module, "store_at"));
}

static CUresult add(const void* p, unsigned n, unsigned v, CUstream stream) {
  void* params[] = {&p, &n, &v};
  return cuLaunchKernel(add_all, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, params, NULL);
}

static CUresult store(const void* p, unsigned index, unsigned v, CUstream stream) {
  void* params[] = {&p, &index, &v};
  return cuLaunchKernel(store_at, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

static void* managed(size_t bytes) {
  CUdeviceptr p = 0;
  OK(cuMemAllocManaged(&p, bytes, CU_MEM_ATTACH_GLOBAL));
  return (void*)(uintptr_t)p;
}

#define ADDRESS(p) ((CUdeviceptr)(uintptr_t)(p))

// ------------------------------------------------------------------------------------------------ the basics

static void test_allocate(void) {
  CUdeviceptr p = 0, base = 0;
  size_t bytes = 0;
  int supported = 0, concurrent = -1;
  OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, device));
  IS(1, supported);
  OK(cuDeviceGetAttribute(&concurrent, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, device));
  NOTE(concurrent);
  CODE(1, cuMemAllocManaged(NULL, 16, CU_MEM_ATTACH_GLOBAL));
  CODE(1, cuMemAllocManaged(&p, 0, CU_MEM_ATTACH_GLOBAL));
  CODE(1, cuMemAllocManaged(&p, 16, 0));
  CODE(1, cuMemAllocManaged(&p, 16, CU_MEM_ATTACH_SINGLE));
  CODE(1, cuMemAllocManaged(&p, 16, CU_MEM_ATTACH_GLOBAL | CU_MEM_ATTACH_HOST));
  OK(cuMemAllocManaged(&p, 1000, CU_MEM_ATTACH_HOST));
  memset((void*)(uintptr_t)p, 0x11, 1000);
  OK(cuMemGetAddressRange_v2(&base, &bytes, p + 999));
  IS(p, base);
  IS(1000, bytes);
  unsigned flags = 0;
  CUdeviceptr mapped = 0;
  OK(cuMemHostGetFlags(&flags, (void*)(uintptr_t)p));
  NOTE(flags);
  CODE(1, cuMemHostGetDevicePointer_v2(&mapped, (void*)(uintptr_t)p, 0));
  CODE(1, cuMemFree_v2(p + 8));
  CODE(1, cuMemFreeHost((void*)(uintptr_t)p));
  OK(cuMemFree_v2(p));
  CODE(1, cuMemFree_v2(p));
}

static void test_attributes(void) {
  const CUdeviceptr p = ADDRESS(managed(10000));
  unsigned is_managed = 9;
  unsigned type = 0, is_host_mapped = 0;
  CUdeviceptr device_pointer = 0, start = 0;
  void* host_pointer = NULL;
  size_t size = 0;
  int ordinal = -1;
  CUcontext owner = NULL;
  for (int told = 0; told < 2; told++) {  // the second time the device has used it
    OK(cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, p + 100));
    IS(1, is_managed);
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + 100));
    IS(CU_MEMORYTYPE_DEVICE, type);
    OK(cuPointerGetAttribute(&device_pointer, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, p + 100));
    IS(p + 100, device_pointer);
    OK(cuPointerGetAttribute(&host_pointer, CU_POINTER_ATTRIBUTE_HOST_POINTER, p + 100));
    IS(p + 100, ADDRESS(host_pointer));
    OK(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, p + 100));
    IS(p, start);
    OK(cuPointerGetAttribute(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE, p + 100));
    IS(10000, size);
    OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, p));
    IS(0, ordinal);
    OK(cuPointerGetAttribute(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, p));
    TRUE(owner == context);
    OK(cuPointerGetAttribute(&is_host_mapped, CU_POINTER_ATTRIBUTE_MAPPED, p));
    IS(1, is_host_mapped & 1);
    OK(cuMemsetD8_v2(p, 3, 100));
    OK(cuCtxSynchronize());
  }
  OK(cuMemFree_v2(p));
  CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, p + 100));
}

static void test_kernels(void) {
  enum { COUNT = 100000 };
  load_kernels();
  unsigned* h = managed(COUNT * sizeof *h);
  for (unsigned i = 0; i < COUNT; i++) h[i] = i;  // before the device knows of it
  int wrong = 0;
  for (unsigned round = 0; round < 20; round++) {
    for (unsigned i = 0; i < COUNT; i += round % 3 + 1) h[i] = i * 3 + round;
    unsigned before[5] = {h[0], h[1], h[777], h[COUNT - 2], h[COUNT - 1]};
    wrong += add(h, COUNT, round + 1, NULL) != 0;
    wrong += cuCtxSynchronize() != 0;
    unsigned after[5] = {h[0], h[1], h[777], h[COUNT - 2], h[COUNT - 1]};
    for (int i = 0; i < 5; i++) wrong += after[i] != before[i] + round + 1;
  }
  IS(0, wrong);
  OK(cuMemFree_v2(ADDRESS(h)));
}

/// Pointers that only the device's memory holds: every kernel may use all managed memory.
static void test_hidden_pointers(void) {
  enum { PARTS = 8 };
  load_kernels();
  unsigned* parts[PARTS];
  CUdeviceptr table = 0;
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&table, sizeof parts));
  for (unsigned i = 0; i < PARTS; i++) parts[i] = managed(4096 * (i + 1));
  OK(cuMemcpyHtoD_v2(table, parts, sizeof parts));
  OK(cuCtxSynchronize());  // the stream does not wait for the NULL stream
  for (unsigned round = 1; round <= 3; round++) {
    for (unsigned i = 0; i < PARTS; i++) *parts[i] = 100 * i + round;
    unsigned v = 1000;
    void* params[] = {&table, &v};
    OK(cuLaunchKernel(add_through, 1, 1, 1, PARTS, 1, 1, 0, stream, params, NULL));
    OK(cuStreamSynchronize(stream));
    for (unsigned i = 0; i < PARTS; i++) IS(100 * i + round + 1000, *parts[i]);
  }
  // A list in managed memory itself.
  unsigned** list = managed(sizeof parts);
  memcpy(list, parts, sizeof parts);
  unsigned v = 7;
  void* params[] = {&list, &v};
  OK(cuLaunchKernel(add_through, 1, 1, 1, PARTS, 1, 1, 0, stream, params, NULL));
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < PARTS; i++) IS(100 * i + 3 + 1000 + 7, *parts[i]);
  for (unsigned i = 0; i < PARTS; i++) OK(cuMemFree_v2(ADDRESS(parts[i])));
  OK(cuMemFree_v2(ADDRESS(list)));
  OK(cuMemFree_v2(table));
  OK(cuStreamDestroy_v2(stream));
}

static void test_system_calls(void) {
  load_kernels();
  unsigned* h = managed(1 << 20);
  int ends[2];
  IS(0, pipe(ends));
  for (unsigned round = 0; round < 3; round++) {
    const unsigned sent[2] = {42 + round, 43};
    OK(add(h, 1 << 18, 1, NULL));
    OK(cuCtxSynchronize());
    IS(sizeof sent, write(ends[1], sent, sizeof sent));
    IS(sizeof sent, read(ends[0], h, sizeof sent));
    OK(add(h, 2, 100, NULL));
    OK(cuCtxSynchronize());
    IS(142 + round, h[0]);
    IS(143, h[1]);
    IS(round + 1, h[2]);
    unsigned back[2] = {0, 0};
    IS(sizeof back, write(ends[1], h, sizeof back));
    IS(sizeof back, read(ends[0], back, sizeof back));
    IS(143, back[1]);
  }
  close(ends[0]);
  close(ends[1]);
  OK(cuMemFree_v2(ADDRESS(h)));
}

// ------------------------------------------------------------------------------------------------ order

static void triple(void* data) { ((unsigned*)data)[1] = 3 * ((unsigned*)data)[0]; }

static void test_order(void) {
  CUstream first = NULL, second = NULL;
  CUevent event = NULL;
  load_kernels();
  OK(cuStreamCreate(&first, 1));
  OK(cuStreamCreate(&second, 1));
  OK(cuEventCreate(&event, 2));
  unsigned* h = managed(4096);
  memset(h, 0, 4096);
  int wrong = 0;
  for (unsigned round = 1; round <= 30; round++) {
    wrong += store(h, 0, round, first) != 0;
    wrong += cuEventRecord(event, first) != 0;
    wrong += cuStreamWaitEvent(second, event, 0) != 0;
    wrong += store(h, 1, round * 2, second) != 0;
    wrong += cuEventSynchronize(event) != 0;
    wrong += h[0] != round;
    wrong += cuStreamSynchronize(second) != 0;
    wrong += h[1] != round * 2;
    wrong += store(h, 0, round + 5, first) != 0;
    wrong += cuLaunchHostFunc(first, triple, h) != 0;
    wrong += add(h, 2, 1, first) != 0;
    wrong += cuStreamSynchronize(first) != 0;
    wrong += h[0] != round + 6;
    wrong += h[1] != 3 * (round + 5) + 1;
  }
  IS(0, wrong);
  OK(cuMemFree_v2(ADDRESS(h)));
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(first));
  OK(cuStreamDestroy_v2(second));
}

static void test_graph(void) {
  CUstream stream = NULL;
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  CUdeviceptr d = 0;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, 4096));
  unsigned* h = managed(4096);
  unsigned* copied = managed(4096);
  memset(h, 0, 4096);
  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(add(h, 1000, 7, stream));
  OK(add(h, 1000, 1, stream));
  OK(cuMemcpyHtoDAsync_v2(d, h, 4096, stream));
  OK(cuMemcpyDtoHAsync_v2(copied, d, 4096, stream));
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (unsigned round = 0; round < 5; round++) {
    h[3] = round * 100;
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    IS(round * 100 + 8, h[3]);
    IS(8 * (round + 1), h[500]);
    IS(round * 100 + 8, copied[3]);
    IS(8 * (round + 1), copied[500]);
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemFree_v2(ADDRESS(h)));
  OK(cuMemFree_v2(ADDRESS(copied)));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
}

// ------------------------------------------------------------------------------------------------ copies and fills

static int differs(const unsigned* p, size_t count, unsigned first) {
  int wrong = 0;
  for (size_t i = 0; i < count; i++) wrong += p[i] != first + i;
  return wrong;
}

static void number(unsigned* p, size_t count, unsigned first) {
  for (size_t i = 0; i < count; i++) p[i] = first + (unsigned)i;
}

static void test_copies(void) {
  enum { COUNT = 60000, BYTES = COUNT * 4 };
  load_kernels();
  unsigned *a = managed(BYTES), *b = managed(BYTES), *plain = malloc(BYTES), *pinned = NULL;
  CUdeviceptr d = 0;
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, BYTES));
  OK(cuMemHostAlloc((void**)&pinned, BYTES, 0));
  number(plain, COUNT, 10);
  OK(cuMemcpyHtoD_v2(ADDRESS(a), plain, BYTES));  // as a destination on the device
  OK(cuCtxSynchronize());
  IS(0, differs(a, COUNT, 10));
  OK(cuMemcpyHtoD_v2(d, a, BYTES));  // as a source on the host
  OK(cuMemcpyDtoH_v2(b, d, BYTES));
  IS(0, differs(b, COUNT, 10));
  number(a, COUNT, 20);
  OK(cuMemcpyDtoD_v2(d, ADDRESS(a), BYTES));
  OK(cuMemcpyDtoD_v2(ADDRESS(b), d, BYTES));
  OK(cuCtxSynchronize());
  IS(0, differs(b, COUNT, 20));
  number(a, COUNT, 30);
  OK(cuMemcpy(ADDRESS(b), ADDRESS(a), BYTES));
  OK(cuCtxSynchronize());
  IS(0, differs(b, COUNT, 30));
  OK(cuMemcpyDtoH_v2(pinned, ADDRESS(b), BYTES));
  IS(0, differs(pinned, COUNT, 30));
  // What a kernel has written before, without a wait between.
  OK(add(a, COUNT, 5, stream));
  OK(cuMemcpyAsync(d, ADDRESS(a), BYTES, stream));
  OK(cuMemcpyAsync(ADDRESS(b), d, BYTES, stream));
  OK(add(b, COUNT, 1, stream));
  OK(cuMemcpyDtoHAsync_v2(pinned, ADDRESS(b), BYTES, stream));
  OK(cuStreamSynchronize(stream));
  IS(0, differs(a, COUNT, 35));
  IS(0, differs(b, COUNT, 36));
  IS(0, differs(pinned, COUNT, 36));
  OK(add((void*)(uintptr_t)d, COUNT, 1, stream));
  OK(cuMemcpyDtoHAsync_v2(b, d, BYTES, stream));
  OK(cuStreamSynchronize(stream));
  IS(0, differs(b, COUNT, 36));
  // Rows: every second quarter of a row stays as it is.
  CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                        .srcDevice = d,
                        .srcPitch = 1000,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = ADDRESS(a),
                        .dstPitch = 1000,
                        .WidthInBytes = 500,
                        .Height = BYTES / 1000};
  OK(cuMemcpy2D_v2(&rows));
  OK(cuCtxSynchronize());
  int wrong = 0;
  for (unsigned i = 0; i < COUNT; i++) wrong += a[i] != (i % 250 < 125 ? 36 : 35) + i;
  IS(0, wrong);
  CODE(1, cuMemcpyDtoD_v2(ADDRESS(a), d, BYTES + 4096));
  OK(cuMemFree_v2(d));
  OK(cuMemFree_v2(ADDRESS(a)));
  OK(cuMemFree_v2(ADDRESS(b)));
  OK(cuMemFreeHost(pinned));
  OK(cuStreamDestroy_v2(stream));
  free(plain);
}

static void test_fills(void) {
  enum { COUNT = 3000 };
  load_kernels();
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  unsigned* h = managed(COUNT * 4);
  OK(cuMemsetD32_v2(ADDRESS(h), 5, COUNT));
  OK(cuCtxSynchronize());
  IS(5, h[COUNT - 1]);
  OK(add(h, COUNT, 2, stream));
  OK(cuMemsetD32Async(ADDRESS(h), 9, COUNT / 2, stream));
  OK(add(h, COUNT, 1, stream));
  OK(cuStreamSynchronize(stream));
  IS(10, h[0]);
  IS(8, h[COUNT - 1]);
  // A stream neither writes nor awaits a value there.
  CODE(1, cuStreamWriteValue32_v2(stream, ADDRESS(h), 77, 0));
  CODE(1, cuStreamWaitValue32_v2(stream, ADDRESS(h), 10, CU_STREAM_WAIT_VALUE_EQ));
  OK(cuStreamSynchronize(stream));
  IS(10, h[0]);
  OK(cuMemFree_v2(ADDRESS(h)));
  OK(cuStreamDestroy_v2(stream));
}

// ------------------------------------------------------------------------------------------------ advice

static int range_attribute(CUmem_range_attribute attribute, CUdeviceptr p, size_t bytes) {
  int value = 12345;
  OK(cuMemRangeGetAttribute(&value, sizeof value, attribute, p, bytes));
  return value;
}

#define RANGE(name, p, bytes) range_attribute(CU_MEM_RANGE_ATTRIBUTE_##name, p, bytes)

static void test_advice(void) {
  enum { PAGE = 4096, PAGES = 16 };
  const CUdeviceptr p = ADDRESS(managed(PAGES * PAGE)), end = p + (size_t)PAGES * PAGE;
  const CUmemLocation gpu = {CU_MEM_LOCATION_TYPE_DEVICE, 0}, host = {CU_MEM_LOCATION_TYPE_HOST, 0};
  CUdeviceptr d = 0;
  OK(cuMemAlloc_v2(&d, PAGE));
  IS(0, RANGE(READ_MOSTLY, p, PAGE));
  IS(-2, RANGE(PREFERRED_LOCATION, p, PAGE));
  IS(-2, RANGE(LAST_PREFETCH_LOCATION, p, PAGE));
  IS(0, RANGE(PREFERRED_LOCATION_TYPE, p, PAGE));
  OK(cuMemAdvise(p, PAGES * PAGE, CU_MEM_ADVISE_SET_READ_MOSTLY, 0));
  IS(1, RANGE(READ_MOSTLY, p, PAGES * PAGE));
  OK(cuMemAdvise_v2(p + 3 * PAGE, 2 * PAGE, CU_MEM_ADVISE_UNSET_READ_MOSTLY, gpu));
  IS(0, RANGE(READ_MOSTLY, p, PAGES * PAGE));
  IS(1, RANGE(READ_MOSTLY, p, 3 * PAGE));
  IS(0, RANGE(READ_MOSTLY, p + 4 * PAGE, PAGE));
  IS(1, RANGE(READ_MOSTLY, p + 5 * PAGE, 11 * PAGE));
  OK(cuMemAdvise(p, 4 * PAGE, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 0));
  OK(cuMemAdvise_v2(p + 4 * PAGE, PAGE, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, host));
  IS(0, RANGE(PREFERRED_LOCATION, p, 4 * PAGE));
  IS(-1, RANGE(PREFERRED_LOCATION, p + 4 * PAGE, PAGE));
  IS(-2, RANGE(PREFERRED_LOCATION, p, 5 * PAGE));
  IS(-2, RANGE(PREFERRED_LOCATION, p + 4 * PAGE, 2 * PAGE));
  IS(CU_MEM_LOCATION_TYPE_DEVICE, RANGE(PREFERRED_LOCATION_TYPE, p, PAGE));
  IS(CU_MEM_LOCATION_TYPE_HOST, RANGE(PREFERRED_LOCATION_TYPE, p + 4 * PAGE, PAGE));
  IS(0, RANGE(PREFERRED_LOCATION_ID, p, PAGE));
  OK(cuMemAdvise(p, PAGES * PAGE, CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION, 0));
  IS(-2, RANGE(PREFERRED_LOCATION, p, PAGE));
  int devices[3] = {7, 7, 7};
  OK(cuMemAdvise(p, PAGES * PAGE, CU_MEM_ADVISE_SET_ACCESSED_BY, 0));
  OK(cuMemRangeGetAttribute(devices, sizeof devices, CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY, p, PAGES * PAGE));
  IS(0, devices[0]);
  IS(-2, devices[1]);
  IS(-2, devices[2]);
  OK(cuMemAdvise(p + PAGE, PAGE, CU_MEM_ADVISE_UNSET_ACCESSED_BY, 0));
  OK(cuMemRangeGetAttribute(devices, sizeof devices, CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY, p, 2 * PAGE));
  IS(-2, devices[0]);
  // Several at once.
  int mostly = 9, preferred = 9;
  void* data[] = {&mostly, &preferred, devices};
  size_t sizes[] = {4, 4, 8};
  CUmem_range_attribute wanted[] = {CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION,
                                    CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY};
  OK(cuMemRangeGetAttributes(data, sizes, wanted, 3, p, PAGE));
  IS(1, mostly);
  IS(-2, preferred);
  IS(0, devices[0]);
  CODE(1, cuMemRangeGetAttribute(&mostly, 8, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, p, PAGE));
  CODE(1, cuMemRangeGetAttribute(&mostly, 4, (CUmem_range_attribute)99, p, PAGE));
  CODE(1, cuMemRangeGetAttribute(&mostly, 4, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, p, 0));
  CODE(1, cuMemRangeGetAttribute(devices, 6, CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY, p, PAGE));
  CODE(1, cuMemRangeGetAttribute(&mostly, 4, CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY, d, PAGE));
  CODE(1, cuMemRangeGetAttributes(data, sizes, wanted, 0, p, PAGE));
  CODE(1, cuMemAdvise(d, PAGE, CU_MEM_ADVISE_SET_READ_MOSTLY, 0));
  CODE(1, cuMemAdvise(p, 0, CU_MEM_ADVISE_SET_READ_MOSTLY, 0));
  CODE(1, cuMemAdvise(p, PAGE, (CUmem_advise)9, 0));
  CODE(1, cuMemAdvise(end - PAGE, 2 * PAGE, CU_MEM_ADVISE_SET_READ_MOSTLY, 0));
  CODE(101, cuMemAdvise(p, PAGE, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 999));
  OK(cuMemFree_v2(d));
  OK(cuMemFree_v2(p));
}

static void test_prefetch(void) {
  enum { PAGE = 4096, PAGES = 8 };
  unsigned char* h = managed(PAGES * PAGE);
  const CUdeviceptr p = ADDRESS(h);
  CUmemLocation to[] = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, {CU_MEM_LOCATION_TYPE_HOST, 0}};
  CUstream stream = NULL;
  CUdeviceptr d = 0;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, PAGE));
  memset(h, 0x21, (size_t)PAGES * PAGE);
  OK(cuMemPrefetchAsync(p, PAGES * PAGE, 0, stream));
  OK(cuMemPrefetchAsync(p, PAGES * PAGE, -1, stream));
  IS(-1, RANGE(LAST_PREFETCH_LOCATION, p, PAGES * PAGE));
  IS(CU_MEM_LOCATION_TYPE_HOST, RANGE(LAST_PREFETCH_LOCATION_TYPE, p, PAGE));
  OK(cuMemPrefetchAsync_v2(p, PAGE, to[0], 0, stream));
  IS(0, RANGE(LAST_PREFETCH_LOCATION, p, PAGE));
  IS(-2, RANGE(LAST_PREFETCH_LOCATION, p, 2 * PAGE));
  CODE(1, cuMemPrefetchAsync_v2(p, PAGE, to[0], 1, stream));
  CODE(1, cuMemPrefetchAsync(d, PAGE, 0, stream));
  CODE(101, cuMemPrefetchAsync(p, PAGE, 999, stream));
  OK(cuStreamSynchronize(stream));
  IS(0x21, h[PAGES * PAGE - 1]);
  OK(cuStreamAttachMemAsync(stream, p, 0, CU_MEM_ATTACH_SINGLE));
  OK(cuStreamAttachMemAsync(stream, p, PAGES * PAGE, CU_MEM_ATTACH_GLOBAL));
  OK(cuStreamAttachMemAsync(NULL, p, 0, CU_MEM_ATTACH_HOST));
  CODE(1, cuStreamAttachMemAsync(NULL, p, 0, CU_MEM_ATTACH_SINGLE));
  CODE(1, cuStreamAttachMemAsync(stream, p, PAGE, CU_MEM_ATTACH_SINGLE));
  OK(cuStreamAttachMemAsync(stream, p, 0, CU_MEM_ATTACH_GLOBAL));
  OK(cuStreamSynchronize(stream));
  OK(cuMemFree_v2(p));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
}

/// Natively an unknown way of attaching ends the process.
static void test_refused_attaching(void) {
  const CUdeviceptr p = ADDRESS(managed(4096));
  CUstream stream = NULL;
  CUdeviceptr d = 0;
  OK(cuStreamCreate(&stream, 1));
  OK(cuMemAlloc_v2(&d, 4096));
  CODE(1, cuStreamAttachMemAsync(stream, p, 0, 0));
  CODE(1, cuStreamAttachMemAsync(stream, d, 0, CU_MEM_ATTACH_GLOBAL));
  OK(cuMemFree_v2(p));
  OK(cuMemFree_v2(d));
  OK(cuStreamDestroy_v2(stream));
}

static void test_batches(void) {
  enum { BYTES = 65536 };
  CUdeviceptr p[3];
  size_t sizes[3] = {BYTES, BYTES, BYTES}, firsts[2] = {0, 2};
  CUmemLocation to[] = {{CU_MEM_LOCATION_TYPE_HOST, 0}, {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 1));
  for (int i = 0; i < 3; i++) p[i] = ADDRESS(managed(BYTES));
  memset((void*)(uintptr_t)p[1], 0x44, BYTES);
  OK(cuMemPrefetchBatchAsync(p, sizes, 3, to, firsts, 2, 0, stream));
  IS(-1, RANGE(LAST_PREFETCH_LOCATION, p[1], BYTES));
  IS(0, RANGE(LAST_PREFETCH_LOCATION, p[2], BYTES));
  OK(cuStreamSynchronize(stream));
  IS(0x44, ((unsigned char*)(uintptr_t)p[1])[BYTES - 1]);
  OK(cuMemDiscardBatchAsync(p, sizes, 1, 0, stream));
  OK(cuMemDiscardAndPrefetchBatchAsync(p, sizes, 3, to, firsts, 2, 0, stream));
  CODE(1, cuMemPrefetchBatchAsync(p, sizes, 0, to, firsts, 2, 0, stream));
  CODE(1, cuMemPrefetchBatchAsync(p, sizes, 3, to, firsts, 2, 1, stream));
  firsts[0] = 1;
  CODE(1, cuMemPrefetchBatchAsync(p, sizes, 3, to, firsts, 2, 0, stream));
  CODE(1, cuMemDiscardBatchAsync(p, sizes, 3, 7, stream));
  OK(cuStreamSynchronize(stream));
  for (int i = 0; i < 3; i++) OK(cuMemFree_v2(p[i]));
  OK(cuStreamDestroy_v2(stream));
}

// ------------------------------------------------------------------------------------------------ sizes and lifetimes

static long resident_kib(void) {
  long pages = 0, ignored = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = -1;
  if (file != NULL) fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/// Memory that nobody touches costs nothing.
static void test_large(void) {
  const size_t bytes = (size_t)16 << 30;
  const long before = resident_kib();
  unsigned char* h = managed(bytes);
  h[0] = 1;
  h[bytes - 1] = 2;
  IS(1, resident_kib() - before < 65536);
  OK(cuMemFree_v2(ADDRESS(h)));
}

/// Freed and allocated again, while work that used the first is hardly over.
static void test_reuse(void) {
  enum { COUNT = 10000 };
  load_kernels();
  int wrong = 0;
  for (unsigned round = 0; round < 20; round++) {
    unsigned* h = managed(COUNT * sizeof *h);
    unsigned* untouched = managed(4096);
    for (unsigned i = 0; i < COUNT; i++) h[i] = round;
    wrong += add(h, COUNT, 1, NULL) != 0;
    if (round % 2) {
      wrong += cuCtxSynchronize() != 0;
      for (unsigned i = 0; i < COUNT; i++) wrong += h[i] != round + 1;
    }
    wrong += cuMemFree_v2(ADDRESS(h)) != 0;
    wrong += cuMemFree_v2(ADDRESS(untouched)) != 0;
  }
  IS(0, wrong);
}

static void test_context_end(void) {
  CUcontext own = NULL;
  CUdeviceptr used = 0, unused = 0;
  OK(cuCtxCreate_v2(&own, 0, device));
  load_kernels();
  OK(cuMemAllocManaged(&used, 4096, CU_MEM_ATTACH_GLOBAL));
  OK(add((void*)(uintptr_t)used, 1000, 1, NULL));
  OK(cuMemAllocManaged(&unused, 4096, CU_MEM_ATTACH_GLOBAL));
  OK(cuCtxSynchronize());
  OK(cuCtxDestroy_v2(own));
  OK(cuCtxSetCurrent(context));
  unsigned is_managed = 0;
  CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, used));
  CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, unused));
}

SECTIONS({"allocate", test_allocate, 0}, {"attributes", test_attributes, 0}, {"kernels", test_kernels, 0},
         {"hidden_pointers", test_hidden_pointers, 0}, {"system_calls", test_system_calls, 0}, {"order", test_order, 0},
         {"graph", test_graph, 0}, {"copies", test_copies, 0}, {"fills", test_fills, 0}, {"advice", test_advice, 0},
         {"prefetch", test_prefetch, 0}, {"refused_attaching", test_refused_attaching, NOT_NATIVE},
         {"batches", test_batches, 0}, {"large", test_large, 0}, {"reuse", test_reuse, 0},
         {"context_end", test_context_end, 0})
