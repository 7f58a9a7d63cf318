// Images, modules, libraries, kernels and the linker: what loads, what is refused and with which code, and that a
// kernel stands for its function wherever CUDA says so. See area.h.
// clang-format off
#define CALLS(X) \
  X(cuModuleLoadData, (CUmodule*, const void*)) \
  X(cuModuleLoadDataEx, (CUmodule*, const void*, unsigned, CUjit_option*, void**)) \
  X(cuModuleLoadFatBinary, (CUmodule*, const void*)) X(cuModuleLoad, (CUmodule*, const char*)) \
  X(cuModuleUnload, (CUmodule)) X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) \
  X(cuModuleGetGlobal_v2, (CUdeviceptr*, size_t*, CUmodule, const char*)) \
  X(cuModuleGetFunctionCount, (unsigned*, CUmodule)) X(cuModuleGetLoadingMode, (CUmoduleLoadingMode*)) \
  X(cuModuleEnumerateFunctions, (CUfunction*, unsigned, CUmodule)) \
  X(cuLibraryLoadData, (CUlibrary*, const void*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)) \
  X(cuLibraryLoadFromFile, (CUlibrary*, const char*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)) \
  X(cuLibraryUnload, (CUlibrary)) X(cuLibraryGetKernel, (CUkernel*, CUlibrary, const char*)) \
  X(cuLibraryGetModule, (CUmodule*, CUlibrary)) \
  X(cuLibraryGetGlobal, (CUdeviceptr*, size_t*, CUlibrary, const char*)) \
  X(cuLibraryGetManaged, (CUdeviceptr*, size_t*, CUlibrary, const char*)) \
  X(cuLibraryGetUnifiedFunction, (void**, CUlibrary, const char*)) \
  X(cuLibraryGetKernelCount, (unsigned*, CUlibrary)) X(cuLibraryEnumerateKernels, (CUkernel*, unsigned, CUlibrary)) \
  X(cuKernelGetFunction, (CUfunction*, CUkernel)) X(cuKernelGetLibrary, (CUlibrary*, CUkernel)) \
  X(cuKernelGetName, (const char**, CUkernel)) X(cuKernelGetParamInfo, (CUkernel, size_t, size_t*, size_t*)) \
  X(cuKernelGetAttribute, (int*, CUfunction_attribute, CUkernel, CUdevice)) \
  X(cuKernelSetAttribute, (CUfunction_attribute, int, CUkernel, CUdevice)) \
  X(cuKernelSetCacheConfig, (CUkernel, CUfunc_cache, CUdevice)) \
  X(cuFuncGetAttribute, (int*, CUfunction_attribute, CUfunction)) X(cuFuncGetName, (const char**, CUfunction)) \
  X(cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int)) X(cuFuncGetModule, (CUmodule*, CUfunction)) \
  X(cuFuncGetParamInfo, (CUfunction, size_t, size_t*, size_t*)) \
  X(cuFuncIsLoaded, (CUfunctionLoadingState*, CUfunction)) X(cuFuncLoad, (CUfunction)) \
  X(cuFuncSetCacheConfig, (CUfunction, CUfunc_cache)) X(cuFuncSetSharedMemConfig, (CUfunction, CUsharedconfig)) \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuLaunchKernelEx, (const CUlaunchConfig*, CUfunction, void**, void**)) \
  X(cuLaunchCooperativeKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**)) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int*, CUfunction, int, size_t)) \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int*, CUfunction, int, size_t, unsigned)) \
  X(cuOccupancyAvailableDynamicSMemPerBlock, (size_t*, CUfunction, int, int)) \
  X(cuOccupancyMaxPotentialBlockSize, (int*, int*, CUfunction, CUoccupancyB2DSize, size_t, int)) \
  X(cuOccupancyMaxActiveClusters, (int*, CUfunction, const CUlaunchConfig*)) \
  X(cuOccupancyMaxPotentialClusterSize, (int*, CUfunction, const CUlaunchConfig*)) \
  X(cuLinkCreate_v2, (unsigned, CUjit_option*, void**, CUlinkState*)) \
  X(cuLinkAddData_v2, (CUlinkState, CUjitInputType, void*, size_t, const char*, unsigned, CUjit_option*, void**)) \
  X(cuLinkAddFile_v2, (CUlinkState, CUjitInputType, const char*, unsigned, CUjit_option*, void**)) \
  X(cuLinkComplete, (CUlinkState, void**, size_t*)) X(cuLinkDestroy, (CUlinkState)) \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr)) X(cuCtxSynchronize, (void)) \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t)) X(cuDevicePrimaryCtxReset_v2, (CUdevice)) \
  X(cuCtxGetCurrent, (CUcontext*)) X(cuDeviceGetAttribute, (int*, int, CUdevice))
// clang-format on

#include "area.h"

static const char text[] =
    ".version 8.0\n.target sm_80\n.address_size 64\n"
    ".visible .global .align 4 .u32 counter = 7;\n"
    ".visible .entry put(.param .u64 to, .param .u32 value)\n"
    "{ .reg .u64 %rd<2>; .reg .u32 %r<2>;\n"
    "  ld.param.u64 %rd1, [to]; ld.param.u32 %r1, [value]; st.global.u32 [%rd1], %r1; ret; }\n"
    ".visible .entry nothing()\n{ ret; }\n"
    ".visible .entry last(.param .align 4 .b8 all[4000], .param .u64 to)\n"
    "{ .reg .u64 %rd<2>; .reg .u32 %r<2>;\n"
    "  ld.param.u32 %r1, [all+3996]; ld.param.u64 %rd1, [to]; st.global.u32 [%rd1], %r1; ret; }\n";

static const char wide_text[] =
    ".version 8.1\n.target sm_80\n.address_size 64\n"
    ".visible .entry wide(.param .align 4 .b8 all[32748], .param .u64 to)\n"
    "{ .reg .u64 %rd<2>; .reg .u32 %r<2>;\n"
    "  ld.param.u32 %r1, [all+32744]; ld.param.u64 %rd1, [to]; st.global.u32 [%rd1], %r1; ret; }\n";

static int word_at(CUdeviceptr address) {
  int value = -1;
  OK(cuMemcpyDtoH_v2(&value, address, sizeof value));
  return value;
}

/// The program with a comment before it that makes it `bytes` long. `salt` makes it one of its own.
static char* padded(size_t bytes, unsigned salt) {
  char* image = malloc(bytes);
  const size_t own = sizeof text;
  int head = snprintf(image, bytes - own, "// %u\n//", salt);
  memset(image + head, 'x', bytes - own - (size_t)head);
  for (size_t i = (size_t)head + 100; i < bytes - own; i += 101) memcpy(image + i - 3, "\n//", 3);
  image[bytes - own - 1] = '\n';
  memcpy(image + bytes - own, text, own);
  return image;
}

/// A container with one PTX entry, as nvcc lays them out.
static uint8_t* container_of(const char* ptx, size_t* bytes) {
  const size_t payload = (strlen(ptx) + 1 + 7) / 8 * 8;
  // PTX comes with an options record {offset, length} behind the fixed part of its header: the driver reads it.
  enum { FIXED = 64, HEADER = 80 };
  uint8_t* image = calloc(1, 16 + HEADER + payload);
  const uint32_t magic = 0xba55ed50, entry_header = HEADER, sm = 80, options = FIXED, option_text = 72;
  const uint16_t version = 1, header = 16, kind = 1, entry_version = 0x0101, isa[2] = {0, 8};
  const uint64_t entries = HEADER + payload, flags = 0x11;
  memcpy(image, &magic, 4);
  memcpy(image + 4, &version, 2);
  memcpy(image + 6, &header, 2);
  memcpy(image + 8, &entries, 8);
  uint8_t* e = image + 16;
  memcpy(e, &kind, 2);
  memcpy(e + 2, &entry_version, 2);
  memcpy(e + 4, &entry_header, 4);
  memcpy(e + 8, &payload, 8);
  memcpy(e + 0x14, &options, 4);
  memcpy(e + 0x18, isa, 4);
  memcpy(e + 0x1c, &sm, 4);
  memcpy(e + 0x28, &flags, 8);
  memcpy(e + FIXED, &option_text, 4);
  memcpy(e + HEADER, ptx, strlen(ptx));
  *bytes = 16 + entries;
  return image;
}

typedef struct wrapper {
  uint32_t magic, version;
  const void* data;
  const void* more;
} wrapper;

static void put_through(CUfunction f, int value) {
  CUdeviceptr p = 0;
  OK(cuMemAlloc_v2(&p, 64));
  void* params[] = {&p, &value};
  OK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
  IS(value, word_at(p));
  OK(cuMemFree_v2(p));
}

static void load_and_run(const void* image, int value) {
  CUmodule m = NULL;
  CUfunction f = NULL;
  OK(cuModuleLoadData(&m, image));
  if (m == NULL) return;
  OK(cuModuleGetFunction(&f, m, "put"));
  put_through(f, value);
  OK(cuModuleUnload(m));
}

static void load_library_and_run(const void* image, int value) {
  CUlibrary library = NULL;
  CUkernel put = NULL;
  OK(cuLibraryLoadData(&library, image, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&put, library, "put"));
  put_through((CUfunction)put, value);
  OK(cuLibraryUnload(library));
}

// ------------------------------------------------------------------------------------------------ images
static void test_images(void) {
  size_t bytes;
  uint8_t* container = container_of(text, &bytes);
  const wrapper first = {0x466243b1, 1, container, NULL};
  const void* more[] = {container, NULL};
  const wrapper second = {0x466243b1, 2, container, more};
  CUmodule m = NULL;
  load_and_run(text, 1);
  load_and_run(container, 2);
  // Wrappers are for libraries: cuModuleLoadData of NVIDIA's driver answers 200.
  load_library_and_run(&first, 3);
  load_library_and_run(&second, 4);
  OK(cuModuleLoadFatBinary(&m, container));
  OK(cuModuleUnload(m));
  char path[] = "/tmp/orion-image-XXXXXX";
  const int fd = mkstemp(path);
  IS(bytes, write(fd, container, bytes));
  close(fd);
  OK(cuModuleLoad(&m, path));
  OK(cuModuleUnload(m));
  CODE(301, cuModuleLoad(&m, "/nowhere/at/all"));
  unlink(path);
  free(container);
}

static void test_broken_images(void) {
  static const char no_ptx[] = "this is no program\n";
  static const char bad_ptx[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k( { ret; }\n";
  static const char newer[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }\n";
  uint8_t elf[4096] = {0x7f, 'E', 'L', 'F', 2, 1, 1};
  CUmodule m = NULL;
  CUlibrary library = NULL;
  CUfunction f = NULL;
  CODE(1, cuModuleLoadData(&m, NULL));
  CODE(1, cuModuleLoadData(NULL, text));
  CODE(1, cuLibraryLoadData(NULL, text, NULL, NULL, 0, NULL, NULL, 0));
  CODE(1, cuLibraryLoadData(&library, NULL, NULL, NULL, 0, NULL, NULL, 0));
  TRUE(cuModuleLoadData(&m, elf) != 0);
  NOTE(cuModuleLoadData(&m, elf));
  NOTE(cuModuleLoadData(&m, no_ptx));
  TRUE(cuModuleLoadData(&m, no_ptx) != 0);
  CODE(218, cuModuleLoadData(&m, bad_ptx));
  NOTE(cuLibraryLoadData(&library, elf, NULL, NULL, 0, NULL, NULL, 0));
  NOTE(cuLibraryLoadData(&library, no_ptx, NULL, NULL, 0, NULL, NULL, 0));
  NOTE(cuLibraryLoadData(&library, bad_ptx, NULL, NULL, 0, NULL, NULL, 0));
  size_t bytes;
  uint8_t* container = container_of(newer, &bytes);
  const uint32_t sm = 999;  // PTX for a device of the far future
  memcpy(container + 16 + 0x1c, &sm, 4);
  NOTE(cuModuleLoadData(&m, container));
  TRUE(cuModuleLoadData(&m, container) != 0);
  free(container);
  // A context is none the worse for it.
  OK(cuModuleLoadData(&m, text));
  CODE(500, cuModuleGetFunction(&f, m, "absent"));
  CODE(1, cuModuleGetFunction(&f, m, NULL));
  OK(cuModuleUnload(m));
}

static void test_large_images(void) {
  const size_t sizes[] = {31 << 10, 33 << 10, 1 << 20, (4 << 20) + 1, 24 << 20};
  for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    char* image = padded(sizes[i], 1000 + i);
    load_and_run(image, (int)i + 10);
    load_and_run(image, (int)i + 20);
    free(image);
  }
}

static void* load_many(void* argument) {
  const unsigned salt = (unsigned)(uintptr_t)argument;
  cuCtxSetCurrent(context);
  for (unsigned i = 0; i < 4; i++) {
    char* image = padded(200000, salt % 2 * 100 + i);  // every other thread has the same ones
    CUmodule m = NULL;
    CUfunction f = NULL;
    CUdeviceptr p = 0;
    int value = (int)(salt * 10 + i), got = -1;
    void* params[] = {&p, &value};
    if (cuModuleLoadData(&m, image) || cuModuleGetFunction(&f, m, "put") || cuMemAlloc_v2(&p, 64) ||
        cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL) || cuMemcpyDtoH_v2(&got, p, 4) || got != value ||
        cuMemFree_v2(p) || cuModuleUnload(m)) {
      return (void*)1;
    }
    free(image);
  }
  return NULL;
}

static void test_threads(void) {
  pthread_t threads[6];
  for (unsigned i = 0; i < 6; i++) pthread_create(&threads[i], NULL, load_many, (void*)(uintptr_t)i);
  for (unsigned i = 0; i < 6; i++) {
    void* failed = (void*)1;
    pthread_join(threads[i], &failed);
    TRUE(failed == NULL);
  }
}

// ------------------------------------------------------------------------------------------------ libraries
static void test_library_without_context(void) {
  CUlibrary library = NULL, owner = NULL;
  CUkernel put = NULL, again = NULL, all[8] = {0};
  CUmodule m = NULL;
  CUfunction f = NULL;
  CUcontext current = NULL;
  CUdeviceptr p = 0;
  unsigned count = 0;
  const char* name = NULL;
  size_t offset = 9, bytes = 9;
  int value = -1;
  OK(cuCtxSetCurrent(NULL));
  OK(cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&put, library, "put"));
  OK(cuLibraryGetKernel(&again, library, "put"));
  TRUE(put == again);
  CODE(500, cuLibraryGetKernel(&again, library, "absent"));
  OK(cuKernelGetName(&name, put));
  IS(0, strcmp(name, "put"));
  OK(cuKernelGetLibrary(&owner, put));
  TRUE(owner == library);
  OK(cuLibraryGetKernelCount(&count, library));
  IS(3, count);
  OK(cuLibraryEnumerateKernels(all, 8, library));
  int seen = 0;
  for (unsigned i = 0; i < 3; i++) {
    OK(cuKernelGetName(&name, all[i]));
    seen |= strcmp(name, "put") == 0 ? 1 : strcmp(name, "nothing") == 0 ? 2 : strcmp(name, "last") == 0 ? 4 : 8;
    if (strcmp(name, "put") == 0) TRUE(all[i] == put);
  }
  IS(7, seen);
  TRUE(all[3] == NULL);
  CODE(201, cuKernelGetParamInfo(put, 0, &offset, &bytes));
  OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, put, device));
  TRUE(value >= 256);
  OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, put, device));
  NOTE(value);
  CODE(1, cuKernelGetAttribute(NULL, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, put, device));
  CODE(101, cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, put, 99));
  OK(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536, put, device));
  OK(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536, put, device));
  OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, put, device));
  IS(65536, value);
  CODE(1, cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 1 << 30, put, device));
  OK(cuKernelSetCacheConfig(put, CU_FUNC_CACHE_PREFER_L1, device));
  CODE(201, cuKernelGetFunction(&f, put));
  CODE(201, cuLibraryGetModule(&m, library));
  CODE(201, cuLibraryGetGlobal(&p, NULL, library, "counter"));
  OK(cuCtxGetCurrent(&current));
  TRUE(current == NULL);
  // What was set without a context holds in one.
  OK(cuDevicePrimaryCtxRetain(&context, device));
  OK(cuCtxSetCurrent(context));
  OK(cuKernelGetParamInfo(put, 0, &offset, &bytes));
  IS(0, offset);
  IS(8, bytes);
  OK(cuKernelGetParamInfo(put, 1, &offset, &bytes));
  IS(8, offset);
  IS(4, bytes);
  CODE(1, cuKernelGetParamInfo(put, 2, &offset, &bytes));
  OK(cuKernelGetParamInfo(put, 1, &offset, NULL));
  OK(cuMemAlloc_v2(&p, 64));
  int word = 5;
  void* params[] = {&p, &word};
  OK(cuLaunchKernel((CUfunction)put, 1, 1, 1, 32, 1, 1, 65536, NULL, params, NULL));
  IS(5, word_at(p));
  OK(cuMemFree_v2(p));
  OK(cuLibraryUnload(library));
  OK(cuCtxSetCurrent(NULL));
  OK(cuDevicePrimaryCtxRelease_v2(device));
}

static void test_library(void) {
  CUlibrary library = NULL;
  CUkernel put = NULL, last = NULL;
  CUmodule m = NULL, owner = NULL;
  CUfunction f = NULL, through = NULL;
  CUdeviceptr p = 0, again = 0;
  size_t bytes = 0;
  CUlibraryOption options[] = {CU_LIBRARY_BINARY_IS_PRESERVED};
  void* values[] = {(void*)1};
  char* image = padded(100000, 77);
  OK(cuLibraryLoadData(&library, image, NULL, NULL, 0, options, values, 1));
  OK(cuLibraryGetKernel(&put, library, "put"));
  OK(cuLibraryGetKernel(&last, library, "last"));
  put_through((CUfunction)put, 41);
  OK(cuKernelGetFunction(&f, put));
  TRUE((void*)f != (void*)put);
  put_through(f, 42);
  OK(cuLibraryGetModule(&m, library));
  OK(cuFuncGetModule(&owner, f));
  TRUE(m == owner);
  OK(cuModuleGetFunction(&through, m, "put"));
  put_through(through, 43);
  OK(cuLibraryGetGlobal(&p, &bytes, library, "counter"));
  IS(4, bytes);
  IS(7, word_at(p));
  OK(cuLibraryGetGlobal(&again, NULL, library, "counter"));
  IS(p, again);
  OK(cuModuleGetGlobal_v2(&again, NULL, m, "counter"));
  IS(p, again);
  CODE(500, cuLibraryGetGlobal(&p, &bytes, library, "absent"));
  CODE(500, cuLibraryGetManaged(&p, &bytes, library, "absent"));
  CODE(500, cuLibraryGetManaged(&p, &bytes, library, "counter"));
  void* unified = NULL;
  CODE(1, cuLibraryGetUnifiedFunction(&unified, library, "absent"));  // not 500
  OK(cuLibraryUnload(library));
  free(image);
}

/// Natively a handle is an address: one that names nothing ends the process, as options do that are counted and not
/// there. Here each is looked up.
static void test_stale_handles(void) {
  CUlibrary library = NULL;
  CODE(1, cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 1));
  CUkernel put = NULL;
  CUmodule m = NULL;
  CUfunction f = NULL;
  OK(cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&put, library, "put"));
  OK(cuKernelGetFunction(&f, put));
  OK(cuLibraryGetModule(&m, library));
  CODE(800, cuModuleUnload(m));
  put_through((CUfunction)put, 44);
  OK(cuLibraryUnload(library));
  CODE(400, cuLibraryUnload(library));
  CODE(400, cuLibraryGetKernel(&put, library, "put"));
  CODE(400, cuLaunchKernel((CUfunction)put, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
  CODE(400, cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
  CODE(400, cuModuleUnload((CUmodule)(uintptr_t)0x10));
}

/// A kernel where a function is asked for.
static void test_kernel_as_function(void) {
  CUlibrary library = NULL;
  CUkernel put = NULL, last = NULL;
  CUdeviceptr p = 0;
  int value = 0, blocks = 0, grid = 0, block = 0;
  size_t shared = 0;
  OK(cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&put, library, "put"));
  OK(cuLibraryGetKernel(&last, library, "last"));
  const CUfunction f = (CUfunction)put;
  OK(cuMemAlloc_v2(&p, 64));
  CODE(400, cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f));
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 128, 0));
  TRUE(blocks >= 1);
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&value, f, 128, 0));
  IS(blocks, value);
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&value, f, 128, 0, 1));
  OK(cuOccupancyMaxPotentialBlockSize(&grid, &block, f, NULL, 0, 0));
  TRUE(grid >= 1 && block >= 32);
  OK(cuOccupancyAvailableDynamicSMemPerBlock(&shared, f, 1, 128));
  TRUE(shared > 0);
  int word = 11;
  void* params[] = {&p, &word};
  OK(cuLaunchCooperativeKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, params));
  IS(11, word_at(p));
  CUlaunchAttribute attribute;
  memset(&attribute, 0, sizeof attribute);
  attribute.id = CU_LAUNCH_ATTRIBUTE_PRIORITY;
  CUlaunchConfig config = {1, 1, 1, 1, 1, 1, 0, NULL, &attribute, 1};
  word = 12;
  OK(cuLaunchKernelEx(&config, f, params, NULL));
  IS(12, word_at(p));
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  word = 13;
  NOTE(cuLaunchKernelEx(&config, f, params, NULL));
  OK(cuCtxSynchronize());
  config.numAttrs = 0;
  word = 14;
  struct {
    CUdeviceptr to;
    int value;
  } packed = {p, 15};
  size_t packed_bytes = 12;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &packed_bytes,
                   CU_LAUNCH_PARAM_END};
  OK(cuLaunchKernelEx(&config, f, NULL, extra));
  IS(15, word_at(p));
  CODE(1, cuLaunchKernelEx(NULL, f, params, NULL));
  static unsigned char all[4000];
  memcpy(all + 3996, "\x2a\0\0\0", 4);
  void* wide[] = {all, &p};
  OK(cuLaunchKernel((CUfunction)last, 1, 1, 1, 1, 1, 1, 0, NULL, wide, NULL));
  IS(42, word_at(p));
  OK(cuMemFree_v2(p));
  OK(cuLibraryUnload(library));
}

static void test_wide_parameters(void) {
  CUmodule m = NULL;
  CUfunction f = NULL;
  CUdeviceptr p = 0;
  size_t offset = 0, bytes = 0;
  static unsigned char all[32748];
  OK(cuModuleLoadData(&m, wide_text));
  OK(cuModuleGetFunction(&f, m, "wide"));
  OK(cuMemAlloc_v2(&p, 64));
  OK(cuFuncGetParamInfo(f, 0, &offset, &bytes));
  IS(32748, bytes);
  OK(cuFuncGetParamInfo(f, 1, &offset, &bytes));
  IS(32752, offset);
  memcpy(all + 32744, "\x2b\0\0\0", 4);
  void* params[] = {all, &p};
  OK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
  IS(43, word_at(p));
  OK(cuMemFree_v2(p));
  OK(cuModuleUnload(m));
}

// ------------------------------------------------------------------------------------------------ modules
static void test_module_functions(void) {
  CUmodule m = NULL, owner = NULL;
  CUfunction all[8] = {0}, put = NULL;
  CUfunctionLoadingState state = 9;
  CUmoduleLoadingMode mode = 0;
  unsigned count = 0;
  const char* name = NULL;
  int value = 0, seen = 0;
  size_t offset = 9, bytes = 9;
  OK(cuModuleLoadData(&m, text));
  OK(cuModuleGetFunctionCount(&count, m));
  IS(3, count);
  CODE(1, cuModuleGetFunctionCount(NULL, m));
  OK(cuModuleEnumerateFunctions(all, 3, m));
  for (unsigned i = 0; i < 3; i++) {
    OK(cuFuncGetName(&name, all[i]));
    seen |= strcmp(name, "put") == 0 ? 1 : strcmp(name, "nothing") == 0 ? 2 : strcmp(name, "last") == 0 ? 4 : 8;
    OK(cuFuncGetModule(&owner, all[i]));
    TRUE(owner == m);
  }
  IS(7, seen);
  OK(cuModuleEnumerateFunctions(all, 1, m));
  OK(cuModuleGetFunction(&put, m, "put"));
  OK(cuFuncGetParamInfo(put, 1, &offset, &bytes));
  IS(8, offset);
  IS(4, bytes);
  CODE(1, cuFuncGetParamInfo(put, 2, &offset, &bytes));
  OK(cuFuncLoad(put));
  OK(cuFuncIsLoaded(&state, put));
  IS(CU_FUNCTION_LOADING_STATE_LOADED, state);
  OK(cuFuncSetAttribute(put, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536));
  OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, put));
  IS(65536, value);
  CODE(1, cuFuncSetAttribute(put, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 1 << 30));
  OK(cuFuncSetCacheConfig(put, CU_FUNC_CACHE_PREFER_SHARED));
  OK(cuFuncSetSharedMemConfig(put, CU_SHARED_MEM_CONFIG_DEFAULT_BANK_SIZE));
  OK(cuModuleGetLoadingMode(&mode));
  const char* wish = getenv("CUDA_MODULE_LOADING");
  IS(wish != NULL && strcmp(wish, "EAGER") == 0 ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING, mode);
  OK(cuModuleUnload(m));
}

static void test_logs(void) {
  static const char bad[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k( { ret; }\n";
  char info[2048] = "before", error[2048] = "before";
  CUjit_option options[] = {CU_JIT_INFO_LOG_BUFFER,    CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
                            CU_JIT_ERROR_LOG_BUFFER,   CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
                            CU_JIT_OPTIMIZATION_LEVEL, CU_JIT_WALL_TIME};
  void* values[] = {info, (void*)sizeof info, error, (void*)sizeof error, (void*)3, NULL};
  CUmodule m = NULL;
  CUlibrary library = NULL;
  OK(cuModuleLoadDataEx(&m, text, 6, options, values));
  float wall_ms = -1;
  memcpy(&wall_ms, &values[5], sizeof wall_ms);
  TRUE(wall_ms >= 0);
  OK(cuModuleUnload(m));
  NOTE((uintptr_t)values[1]);
  NOTE((uintptr_t)values[3]);
  values[1] = values[3] = (void*)sizeof info;
  CODE(218, cuModuleLoadDataEx(&m, bad, 4, options, values));
  TRUE(strlen(error) > 0 && strcmp(error, "before") != 0);
  TRUE((uintptr_t)values[3] >= strlen(error) && (uintptr_t)values[3] <= sizeof error);
  NOTE((uintptr_t)values[3] - strlen(error));
  values[3] = (void*)8;
  CODE(218, cuModuleLoadDataEx(&m, bad, 4, options, values));
  TRUE(strnlen(error, 9) <= 8);
  strcpy(error, "before");
  values[1] = values[3] = (void*)sizeof info;
  NOTE(cuLibraryLoadData(&library, bad, options, values, 4, NULL, NULL, 0));
  NOTE(strcmp(error, "before") != 0);
  CUjit_option unknown = 9999;
  CODE(1, cuModuleLoadDataEx(&m, text, 1, &unknown, values));
  CODE(1, cuModuleLoadDataEx(&m, text, 1, NULL, NULL));
}

static void test_link(void) {
  static const char one[] =
      ".version 8.0\n.target sm_80\n.address_size 64\n"
      ".visible .func (.param .u32 out) seven()\n{ .reg .u32 %r<2>; mov.u32 %r1, 7; st.param.u32 [out], %r1; ret; }\n";
  static const char two[] =
      ".version 8.0\n.target sm_80\n.address_size 64\n.extern .func (.param .u32 out) seven();\n"
      ".visible .entry put(.param .u64 to, .param .u32 value)\n"
      "{ .reg .u64 %rd<2>; .reg .u32 %r<3>; ld.param.u64 %rd1, [to]; ld.param.u32 %r1, [value];\n"
      "  { .param .u32 got; call.uni (got), seven, (); ld.param.u32 %r2, [got]; }\n"
      "  add.u32 %r1, %r1, %r2; st.global.u32 [%rd1], %r1; ret; }\n";
  char error[1024] = "";
  float wall_ms = 0;
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_WALL_TIME,
                            CU_JIT_TARGET_FROM_CUCONTEXT};
  void* values[] = {error, (void*)sizeof error, NULL, NULL};
  CUlinkState state = NULL;
  void* image = NULL;
  size_t bytes = 0;
  CUmodule m = NULL;
  CUfunction f = NULL;
  CUdeviceptr p = 0;
  OK(cuLinkCreate_v2(4, options, values, &state));
  OK(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, (void*)one, sizeof one, "one.ptx", 0, NULL, NULL));
  OK(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, (void*)two, sizeof two, NULL, 0, NULL, NULL));
  CODE(1, cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, NULL, 10, NULL, 0, NULL, NULL));
  CODE(301, cuLinkAddFile_v2(state, CU_JIT_INPUT_PTX, "/nowhere/at/all", 0, NULL, NULL));
  OK(cuLinkComplete(state, &image, &bytes));
  TRUE(bytes > 0);
  memcpy(&wall_ms, &values[2], sizeof wall_ms);
  TRUE(wall_ms >= 0);
  OK(cuModuleLoadData(&m, image));
  OK(cuLinkDestroy(state));
  OK(cuModuleGetFunction(&f, m, "put"));
  OK(cuMemAlloc_v2(&p, 64));
  int value = 5;
  void* params[] = {&p, &value};
  OK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL));
  IS(12, word_at(p));
  OK(cuMemFree_v2(p));
  OK(cuModuleUnload(m));
  // A name that nobody defines.
  values[1] = (void*)sizeof error;
  OK(cuLinkCreate_v2(2, options, values, &state));
  OK(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, (void*)two, sizeof two, "two.ptx", 0, NULL, NULL));
  const CUresult linked = cuLinkComplete(state, &image, &bytes);
  NOTE(linked);
  TRUE(linked != 0);
  // The state is good for nothing more. Natively a second call says so by 300 or by 999 again: one process of its own
  // for this section saw the first, a process of all sections the second.
  const CUresult again = cuLinkComplete(state, &image, &bytes);
  NOTE(again);
  TRUE(again != 0);
  TRUE(strlen(error) > 0);
  OK(cuLinkDestroy(state));
}

/// Clusters need a device of compute capability 9.0.
static void test_clusters(void) {
  CUlibrary library = NULL;
  CUkernel put = NULL;
  int clusters = -1, size = -1;
  OK(cuLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&put, library, "put"));
  CUlaunchAttribute attribute;
  memset(&attribute, 0, sizeof attribute);
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim.x = 2;
  attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
  CUlaunchConfig config = {4, 1, 1, 128, 1, 1, 0, NULL, &attribute, 1};
  for (int i = 0; i < 2; i++) {
    OK(cuOccupancyMaxActiveClusters(&clusters, (CUfunction)put, &config));
    TRUE(clusters > 0);
    NOTE(clusters);
  }
  config.numAttrs = 0;
  OK(cuOccupancyMaxPotentialClusterSize(&size, (CUfunction)put, &config));
  TRUE(size >= 8);
  config.numAttrs = 1;
  CUdeviceptr p = 0;
  int word = 3;
  OK(cuMemAlloc_v2(&p, 64));
  void* params[] = {&p, &word};
  OK(cuLaunchKernelEx(&config, (CUfunction)put, params, NULL));
  IS(3, word_at(p));
  OK(cuMemFree_v2(p));
  OK(cuLibraryUnload(library));
}

static void test_refused_clusters(void) {
  CUmodule m = NULL;
  CUfunction put = NULL;
  CUdeviceptr p = 0;
  int word = 3;
  OK(cuModuleLoadData(&m, text));
  OK(cuModuleGetFunction(&put, m, "put"));
  OK(cuMemAlloc_v2(&p, 64));
  CUlaunchAttribute attribute;
  memset(&attribute, 0, sizeof attribute);
  attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attribute.value.clusterDim.x = 2;
  attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
  CUlaunchConfig config = {3, 1, 1, 128, 1, 1, 0, NULL, &attribute, 1};
  void* params[] = {&p, &word};
  CODE(912, cuLaunchKernelEx(&config, put, params, NULL));  // the grid is no multiple
  attribute.value.clusterDim.x = config.gridDimX = 64;
  CODE(912, cuLaunchKernelEx(&config, put, params, NULL));  // larger than the function allows
  OK(cuCtxSynchronize());
  OK(cuMemFree_v2(p));
  OK(cuModuleUnload(m));
}

SECTIONS({"images", test_images, 0}, {"broken_images", test_broken_images, 0}, {"large_images", test_large_images, 0},
         {"threads", test_threads, 0}, {"library_without_context", test_library_without_context, OWN_CONTEXT},
         {"library", test_library, 0}, {"kernel_as_function", test_kernel_as_function, 0},
         {"wide_parameters", test_wide_parameters, 0}, {"module_functions", test_module_functions, 0},
         {"logs", test_logs, 0}, {"link", test_link, 0}, {"clusters", test_clusters, HARDWARE},
         {"refused_clusters", test_refused_clusters, 0}, {"stale_handles", test_stale_handles, NOT_NATIVE})
