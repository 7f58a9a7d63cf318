// `__managed__` variables: one address for the program and for kernels, content from the image, looked up in a library
// without a context or in a module.
//
// gcc -std=gnu11 -I wire/include tests/programs/variable_api.c -o variable_api -ldl -lpthread
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuCtxSynchronize, (void)) X(cuCtxGetCurrent, (CUcontext*)) X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) \
  X(cuCtxDestroy_v2, (CUcontext)) X(cuModuleLoadData, (CUmodule*, const void*)) X(cuModuleUnload, (CUmodule)) \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) \
  X(cuModuleGetGlobal_v2, (CUdeviceptr*, size_t*, CUmodule, const char*)) \
  X(cuLibraryLoadData, (CUlibrary*, const void*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)) \
  X(cuLibraryUnload, (CUlibrary)) X(cuLibraryGetModule, (CUmodule*, CUlibrary)) \
  X(cuLibraryGetManaged, (CUdeviceptr*, size_t*, CUlibrary, const char*)) \
  X(cuLibraryGetGlobal, (CUdeviceptr*, size_t*, CUlibrary, const char*)) \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*)) X(cuStreamCreate, (CUstream*, unsigned)) \
  X(cuStreamDestroy_v2, (CUstream)) X(cuStreamSynchronize, (CUstream)) X(cuStreamQuery, (CUstream)) \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) X(cuEventCreate, (CUevent*, unsigned)) \
  X(cuEventRecord, (CUevent, CUstream)) X(cuEventSynchronize, (CUevent)) X(cuEventDestroy_v2, (CUevent)) \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr)) \
  X(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr)) \
  X(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr)) \
  X(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t)) X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*)) \
  X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
  X(cuMemAdvise, (CUdeviceptr, size_t, CUmem_advise, CUdevice)) \
  X(cuMemPrefetchAsync, (CUdeviceptr, size_t, CUdevice, CUstream)) \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) X(cuStreamEndCapture, (CUstream, CUgraph*)) \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long)) \
  X(cuGraphLaunch, (CUgraphExec, CUstream)) X(cuGraphExecDestroy, (CUgraphExec)) X(cuGraphDestroy, (CUgraph))
// clang-format on

#include "area.h"

#define COUNT 256u
#define LARGE 300000u

// add: values[i] += v for all. store: values[index] = v. double_single: single *= 2. add_large: large[i] += i.
static const char ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .global .attribute(.managed) .align 4 .u32 values[256] = {11, 22, 33};\n"
    ".visible .global .attribute(.managed) .align 8 .u64 single = 77;\n"
    ".visible .global .attribute(.managed) .align 4 .b8 large[1200000];\n"
    ".visible .global .align 4 .u32 plain = 5;\n"
    ".visible .global .align 4 .u32 behind_plain = 6;\n"
    ".visible .entry add(.param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<4>;\n"
    "  ld.param.u32 %r1, [v]; mov.u32 %r2, %tid.x; mov.u64 %rd1, values;\n"
    "  mul.wide.u32 %rd2, %r2, 4; add.u64 %rd3, %rd1, %rd2;\n"
    "  ld.global.u32 %r3, [%rd3]; add.u32 %r3, %r3, %r1; st.global.u32 [%rd3], %r3; ret; }\n"
    ".visible .entry store(.param .u32 index, .param .u32 v)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<4>;\n"
    "  ld.param.u32 %r1, [index]; ld.param.u32 %r2, [v]; mov.u64 %rd1, values;\n"
    "  mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r2; ret; }\n"
    ".visible .entry double_single()\n"
    "{ .reg .u64 %rd<3>; ld.global.u64 %rd1, [single]; add.u64 %rd2, %rd1, %rd1; st.global.u64 [single], %rd2; ret; }\n"
    ".visible .entry add_large()\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<7>; .reg .pred %p;\n"
    "  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r4, %r1, %r2, %r3;\n"
    "  setp.ge.u32 %p, %r4, 300000; @%p bra end;\n"
    "  mov.u64 %rd1, large; mul.wide.u32 %rd2, %r4, 4; add.u64 %rd3, %rd1, %rd2;\n"
    "  ld.global.u32 %r5, [%rd3]; add.u32 %r6, %r5, %r4; st.global.u32 [%rd3], %r6;\n"
    "end: ret; }\n";

static CUlibrary lib;
static CUmodule module;
static CUfunction add_kernel, store_kernel, double_single, add_large;
static volatile unsigned* values;
static volatile unsigned long long* single;

static void* at(CUdeviceptr address) { return (void*)(uintptr_t)address; }
static CUdeviceptr address_of(volatile void* p) { return (CUdeviceptr)(uintptr_t)p; }

static void* lookup(const char* name, size_t wanted) {
  CUdeviceptr address = 0;
  size_t bytes = 0;
  OK(cuLibraryGetManaged(&address, &bytes, lib, name));
  IS(wanted, bytes);
  return at(address);
}

static void load(void) {
  OK(cuLibraryLoadData(&lib, ptx, NULL, NULL, 0, NULL, NULL, 0));
  values = lookup("values", COUNT * 4);
  single = lookup("single", 8);
}

static void load_kernels(void) {
  load();
  OK(cuLibraryGetModule(&module, lib));
  OK(cuModuleGetFunction(&add_kernel, module, "add"));
  OK(cuModuleGetFunction(&store_kernel, module, "store"));
  OK(cuModuleGetFunction(&double_single, module, "double_single"));
  OK(cuModuleGetFunction(&add_large, module, "add_large"));
}

static CUresult add(unsigned v, CUstream stream) {
  void* params[] = {&v};
  return cuLaunchKernel(add_kernel, 1, 1, 1, COUNT, 1, 1, 0, stream, params, NULL);
}

static CUresult store(unsigned index, unsigned v, CUstream stream) {
  void* params[] = {&index, &v};
  return cuLaunchKernel(store_kernel, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

static void fill(unsigned from) {
  for (unsigned i = 0; i < COUNT; i++) values[i] = from + i;
}

static int differs(unsigned from) {
  int wrong = 0;
  for (unsigned i = 0; i < COUNT; i++) wrong += values[i] != from + i;
  return wrong;
}

// ------------------------------------------------------------------------------------------------ looking it up

/// As NVIDIA's runtime does before the program's first call is done: no context is current.
static void test_lookup(void) {
  CUcontext current = (CUcontext)1;
  CUdeviceptr address = 0;
  size_t bytes = 0;
  OK(cuCtxGetCurrent(&current));
  IS(0, (uintptr_t)current);
  load();
  IS(11, values[0]);
  IS(22, values[1]);
  IS(33, values[2]);
  IS(0, values[3]);
  IS(0, values[255]);
  IS(77, *single);
  CODE(500, cuLibraryGetManaged(&address, &bytes, lib, "missing"));
  CODE(500, cuLibraryGetManaged(&address, &bytes, lib, "plain"));
  CODE(500, cuLibraryGetManaged(&address, &bytes, lib, "add"));
  CODE(1, cuLibraryGetManaged(&address, &bytes, lib, NULL));
  OK(cuLibraryGetManaged(&address, NULL, lib, "values"));
  IS(address_of(values), address);
  OK(cuLibraryGetManaged(NULL, &bytes, lib, "values"));
  IS(COUNT * 4, bytes);
  // Written before there is a context, used by the first kernel.
  fill(1000);
  OK(cuDevicePrimaryCtxRetain(&context, device));
  OK(cuCtxSetCurrent(context));
  OK(cuLibraryGetModule(&module, lib));
  OK(cuModuleGetFunction(&add_kernel, module, "add"));
  OK(add(5, NULL));
  OK(cuCtxSynchronize());
  IS(0, differs(1005));
  OK(cuLibraryUnload(lib));
  OK(cuCtxSetCurrent(NULL));
  OK(cuDevicePrimaryCtxRelease_v2(device));
}

static void test_attributes(void) {
  load_kernels();
  const CUdeviceptr p = address_of(values);
  unsigned is_managed = 9;
  unsigned type = 0;
  CUdeviceptr device_pointer = 0, start = 0;
  void* host_pointer = NULL;
  size_t bytes = 0;
  OK(cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, p + 8));
  IS(1, is_managed);
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p));
  IS(CU_MEMORYTYPE_DEVICE, type);
  OK(cuPointerGetAttribute(&device_pointer, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, p + 8));
  IS(p + 8, device_pointer);
  OK(cuPointerGetAttribute(&host_pointer, CU_POINTER_ATTRIBUTE_HOST_POINTER, p + 8));
  IS(p + 8, (uintptr_t)host_pointer);
  NOTE(cuMemGetAddressRange_v2(&start, &bytes, p));
  NOTE(p - start);
  NOTE(bytes);
  NOTE(address_of(single) - p);
  OK(cuLibraryUnload(lib));
}

/// The module's names lead to the same variables.
static void test_globals(void) {
  load_kernels();
  CUdeviceptr address = 0;
  size_t bytes = 0;
  OK(cuModuleGetGlobal_v2(&address, &bytes, module, "values"));
  IS(address_of(values), address);
  IS(COUNT * 4, bytes);
  OK(cuLibraryGetGlobal(&address, &bytes, lib, "single"));
  IS(address_of(single), address);
  IS(8, bytes);
  OK(cuModuleGetGlobal_v2(&address, &bytes, module, "plain"));
  unsigned plain = 0;
  OK(cuMemcpyDtoH_v2(&plain, address, 4));
  IS(5, plain);
  // It may begin where the other ends.
  OK(cuModuleGetGlobal_v2(&address, &bytes, module, "behind_plain"));
  plain = 8;
  OK(cuMemcpyHtoD_v2(address, &plain, 4));
  plain = 0;
  OK(cuMemcpyDtoH_v2(&plain, address, 4));
  IS(8, plain);
  OK(cuLibraryUnload(lib));
}

/// Without a library, as version 11 of the runtime loads its images.
static void test_module(void) {
  CUdeviceptr address = 0;
  size_t bytes = 0;
  for (unsigned round = 0; round < 3; round++) {
    OK(cuModuleLoadData(&module, ptx));
    OK(cuModuleGetGlobal_v2(&address, &bytes, module, "values"));
    IS(COUNT * 4, bytes);
    values = at(address);
    IS(33, values[2]);
    OK(cuModuleGetFunction(&add_kernel, module, "add"));
    fill(round);
    OK(add(1, NULL));
    OK(cuCtxSynchronize());
    IS(0, differs(round + 1));
    OK(cuModuleUnload(module));
  }
  unsigned is_managed = 0;
  CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
}

static void test_context_end(void) {
  CUcontext own = NULL;
  CUdeviceptr address = 0;
  for (int round = 0; round < 2; round++) {
    OK(cuCtxCreate_v2(&own, 0, device));
    OK(cuModuleLoadData(&module, ptx));
    OK(cuModuleGetGlobal_v2(&address, NULL, module, "values"));
    values = at(address);
    IS(22, values[1]);
    OK(cuModuleGetFunction(&add_kernel, module, "add"));
    fill(3);
    OK(add(1, NULL));
    OK(cuCtxDestroy_v2(own));
    OK(cuCtxSetCurrent(context));
    unsigned is_managed = 0;
    CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
  }
  OK(cuCtxSynchronize());
}

static void test_unload(void) {
  for (unsigned round = 0; round < 5; round++) {
    load_kernels();
    const CUdeviceptr address = address_of(values);
    IS(11, values[0]);
    fill(round);
    OK(add(round, NULL));
    if (round % 2) OK(cuCtxSynchronize());
    OK(cuLibraryUnload(lib));
    unsigned is_managed = 0;
    CODE(1, cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address));
  }
}

/// A handle of an unloaded library; natively its use is undefined.
static void test_unloaded(void) {
  load_kernels();
  OK(cuLibraryUnload(lib));
  CODE(400, cuLibraryGetManaged(&(CUdeviceptr){0}, NULL, lib, "values"));
}

/// Two libraries with variables of the same names.
static void test_two_libraries(void) {
  load_kernels();
  const CUlibrary first = lib;
  volatile unsigned* const first_values = values;
  const CUfunction first_add = add_kernel;
  load_kernels();
  TRUE(first_values != values);
  for (unsigned i = 0; i < COUNT; i++) first_values[i] = 7;
  fill(20);
  unsigned v = 3;
  void* params[] = {&v};
  OK(cuLaunchKernel(first_add, 1, 1, 1, COUNT, 1, 1, 0, NULL, params, NULL));
  OK(add(1, NULL));
  OK(cuCtxSynchronize());
  IS(10, first_values[9]);
  IS(0, differs(21));
  OK(cuLibraryUnload(first));
  fill(30);
  OK(add(1, NULL));
  OK(cuCtxSynchronize());
  IS(0, differs(31));
  OK(cuLibraryUnload(lib));
}

// ------------------------------------------------------------------------------------------------ waits

static void test_waits(void) {
  CUstream stream = NULL;
  CUevent event = NULL;
  CUdeviceptr other = 0;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuEventCreate(&event, 0));
  OK(cuMemAlloc_v2(&other, 64));
  fill(0);
  OK(add(1, stream));
  OK(cuStreamSynchronize(stream));
  IS(0, differs(1));
  fill(10);
  OK(add(1, stream));
  OK(cuEventRecord(event, stream));
  OK(cuEventSynchronize(event));
  IS(0, differs(11));
  fill(20);
  OK(add(1, stream));
  OK(cuCtxSynchronize());
  IS(0, differs(21));
  fill(30);
  OK(add(1, stream));
  while (cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) continue;
  IS(0, differs(31));
  fill(40);
  OK(add(1, NULL));
  unsigned word = 0;
  OK(cuMemcpyDtoH_v2(&word, other, 4));  // behind the kernel, and the program waits for it
  IS(0, differs(41));
  fill(50);
  OK(add(1, NULL));
  OK(cuStreamSynchronize(NULL));
  IS(0, differs(51));
  OK(cuMemFree_v2(other));
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(stream));
  OK(cuLibraryUnload(lib));
}

/// Many rounds of both sides' writes without anything else between them.
static void test_rounds(void) {
  load_kernels();
  int wrong = 0;
  for (unsigned round = 0; round < 200; round++) {
    fill(round);
    *single = round;
    wrong += add(round, NULL) != 0;
    wrong += cuLaunchKernel(double_single, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) != 0;
    wrong += add(1, NULL) != 0;
    wrong += cuStreamSynchronize(NULL) != 0;
    wrong += differs(2 * round + 1) + (*single != 2 * round);
  }
  IS(0, wrong);
  OK(cuLibraryUnload(lib));
}

/// Each side writes words of its own while the other does: none is lost.
static void test_both_sides(void) {
  CUstream stream = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  for (unsigned i = 0; i < COUNT; i++) values[i] = 0;
  int wrong = 0;
  for (unsigned round = 1; round <= 100; round++) {
    for (unsigned i = 0; i < 8; i++) {
      wrong += store(2 * i, round, stream) != 0;
      values[2 * i + 1] = round;
    }
    wrong += cuStreamSynchronize(stream) != 0;
    for (unsigned i = 0; i < 16; i++) wrong += values[i] != round;
  }
  IS(0, wrong);
  OK(add(0, stream));  // what the program has written last is there for kernels too
  CUdeviceptr copy = 0;
  unsigned seen[16];
  OK(cuMemAlloc_v2(&copy, sizeof seen));
  OK(cuMemcpyDtoDAsync_v2(copy, address_of(values), sizeof seen, stream));
  OK(cuMemcpyDtoHAsync_v2(seen, copy, sizeof seen, stream));
  OK(cuStreamSynchronize(stream));
  for (unsigned i = 0; i < 16; i++) wrong += seen[i] != 100;
  IS(0, wrong);
  OK(cuMemFree_v2(copy));
  OK(cuStreamDestroy_v2(stream));
  OK(cuLibraryUnload(lib));
}

static void test_streams(void) {
  CUstream streams[2] = {NULL, NULL};
  CUevent event = NULL;
  load_kernels();
  OK(cuStreamCreate(&streams[0], 1));
  OK(cuStreamCreate(&streams[1], 0));
  OK(cuEventCreate(&event, 0));
  int wrong = 0;
  for (unsigned round = 0; round < 50; round++) {
    fill(round);
    wrong += add(1, streams[0]) != 0;
    wrong += cuEventRecord(event, streams[0]) != 0;
    wrong += cuStreamWaitEvent(streams[1], event, 0) != 0;
    wrong += add(1, streams[1]) != 0;
    wrong += cuStreamSynchronize(streams[1]) != 0;
    wrong += differs(round + 2);
    // The NULL stream waits for the blocking one.
    wrong += add(1, streams[1]) != 0;
    wrong += add(1, NULL) != 0;
    wrong += cuStreamSynchronize(NULL) != 0;
    wrong += differs(round + 4);
  }
  IS(0, wrong);
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(streams[0]));
  OK(cuStreamDestroy_v2(streams[1]));
  OK(cuLibraryUnload(lib));
}

static void change_values(void* data) {
  unsigned* seen = data;
  *seen = values[7];
  fill(500);
}

/// A host function sees what the kernel before it has written, and the kernel behind it what the function has.
static void test_host_function(void) {
  CUstream stream = NULL;
  unsigned seen = 0;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  fill(100);
  OK(add(1, stream));
  OK(cuLaunchHostFunc(stream, change_values, &seen));
  OK(add(2, stream));
  OK(cuStreamSynchronize(stream));
  IS(108, seen);
  IS(0, differs(502));
  OK(cuStreamDestroy_v2(stream));
  OK(cuLibraryUnload(lib));
}

static void test_graph(void) {
  CUstream stream = NULL;
  CUgraph graph = NULL;
  CUgraphExec exec = NULL;
  load_kernels();
  OK(cuStreamCreate(&stream, 1));
  OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(add(1, stream));
  OK(cuMemcpyDtoDAsync_v2(address_of(values) + 4, address_of(values), 4, stream));
  OK(cuMemsetD32Async(address_of(values) + 8, 9, 1, stream));
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  int wrong = 0;
  for (unsigned round = 0; round < 20; round++) {
    fill(round);
    wrong += cuGraphLaunch(exec, stream) != 0;
    wrong += cuStreamSynchronize(stream) != 0;
    wrong += values[0] != round + 1 || values[1] != round + 1 || values[2] != 9 || values[3] != round + 4;
  }
  IS(0, wrong);
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuStreamDestroy_v2(stream));
  OK(cuLibraryUnload(lib));
}

// ------------------------------------------------------------------------------------------------ copies and fills

static void test_copies(void) {
  load_kernels();
  const CUdeviceptr p = address_of(values);
  CUdeviceptr d = 0;
  unsigned host[COUNT];
  OK(cuMemAlloc_v2(&d, sizeof host));
  for (unsigned i = 0; i < COUNT; i++) host[i] = 300 + i;
  OK(cuMemcpyHtoD_v2(p, host, sizeof host));
  OK(cuCtxSynchronize());
  IS(0, differs(300));
  fill(400);
  memset(host, 0, sizeof host);
  OK(cuMemcpyDtoH_v2(host, p, sizeof host));
  IS(400, host[0]);
  IS(655, host[255]);
  OK(cuMemcpyHtoD_v2(d, (const void*)values, sizeof host));
  fill(0);
  OK(cuMemcpyDtoH_v2((void*)values, d, sizeof host));
  IS(0, differs(400));
  fill(450);
  OK(cuMemcpy(d, p, sizeof host));
  fill(0);
  OK(cuMemcpy(p, d, sizeof host));
  OK(cuCtxSynchronize());
  IS(0, differs(450));
  // Part of it, and rows.
  OK(cuMemcpyHtoD_v2(p + 40, host, 4));
  OK(cuCtxSynchronize());
  IS(400, values[10]);
  IS(461, values[11]);
  fill(0);
  const CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = host,
                              .srcPitch = 64,
                              .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                              .dstDevice = p,
                              .dstPitch = 128,
                              .WidthInBytes = 8,
                              .Height = 3};
  OK(cuMemcpy2D_v2(&rows));
  OK(cuCtxSynchronize());
  IS(401, values[1]);
  IS(2, values[2]);
  IS(416, values[32]);
  IS(433, values[65]);
  CODE(1, cuMemcpyHtoD_v2(p, host, 1 << 30));
  OK(cuMemFree_v2(d));
  OK(cuLibraryUnload(lib));
}

static void test_fills(void) {
  CUstream stream = NULL;
  load_kernels();
  const CUdeviceptr p = address_of(values);
  OK(cuStreamCreate(&stream, 1));
  fill(0);
  OK(cuMemsetD32_v2(p + 16, 0x55, 4));
  OK(cuCtxSynchronize());
  IS(3, values[3]);
  IS(0x55, values[4]);
  IS(0x55, values[7]);
  IS(8, values[8]);
  OK(cuMemsetD32Async(p, 70, COUNT, stream));
  OK(add(1, stream));
  OK(cuStreamSynchronize(stream));
  IS(71, values[0]);
  IS(71, values[255]);
  OK(cuStreamDestroy_v2(stream));
  OK(cuLibraryUnload(lib));
}

static void test_advice(void) {
  load_kernels();
  NOTE(cuMemAdvise(address_of(values), COUNT * 4, CU_MEM_ADVISE_SET_READ_MOSTLY, device));
  OK(cuMemPrefetchAsync(address_of(values), COUNT * 4, device, NULL));
  OK(cuCtxSynchronize());
  fill(1);
  OK(add(1, NULL));
  OK(cuCtxSynchronize());
  IS(0, differs(2));
  OK(cuLibraryUnload(lib));
}

static void test_large(void) {
  load_kernels();
  volatile unsigned* large = lookup("large", LARGE * 4);
  int wrong = 0;
  for (unsigned i = 0; i < LARGE; i++) wrong += large[i] != 0;
  for (unsigned round = 0; round < 3; round++) {
    for (unsigned i = 0; i < LARGE; i++) large[i] = round;
    wrong += cuLaunchKernel(add_large, (LARGE + 255) / 256, 1, 1, 256, 1, 1, 0, NULL, NULL, NULL) != 0;
    wrong += cuCtxSynchronize() != 0;
    for (unsigned i = 0; i < LARGE; i++) wrong += large[i] != round + i;
  }
  IS(0, wrong);
  OK(cuLibraryUnload(lib));
}

SECTIONS({"lookup", test_lookup, OWN_CONTEXT}, {"attributes", test_attributes, 0}, {"globals", test_globals, 0},
         {"module", test_module, 0}, {"context_end", test_context_end, 0}, {"unload", test_unload, 0},
         {"unloaded", test_unloaded, NOT_NATIVE}, {"two_libraries", test_two_libraries, 0}, {"waits", test_waits, 0},
         {"rounds", test_rounds, 0}, {"both_sides", test_both_sides, 0}, {"streams", test_streams, 0},
         {"host_function", test_host_function, 0}, {"graph", test_graph, 0}, {"copies", test_copies, 0},
         {"fills", test_fills, 0}, {"advice", test_advice, 0}, {"large", test_large, 0})
