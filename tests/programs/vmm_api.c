// Virtual memory management: reservations, physical memory, mappings, access, and what other calls say about it.
#include "cuda_types.h"

#define CALLS(X)                                                                                                  \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice))                                                   \
  X(cuMemAddressReserve, (CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long))                         \
  X(cuMemAddressFree, (CUdeviceptr, size_t))                                                                      \
  X(cuMemCreate, (CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, unsigned long long))         \
  X(cuMemRelease, (CUmemGenericAllocationHandle))                                                                 \
  X(cuMemRetainAllocationHandle, (CUmemGenericAllocationHandle*, void*))                                          \
  X(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))                    \
  X(cuMemUnmap, (CUdeviceptr, size_t))                                                                            \
  X(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc*, size_t))                                        \
  X(cuMemGetAccess, (unsigned long long*, const CUmemLocation*, CUdeviceptr))                                     \
  X(cuMemGetAllocationGranularity, (size_t*, const CUmemAllocationProp*, CUmemAllocationGranularity_flags))       \
  X(cuMemGetAllocationPropertiesFromHandle, (CUmemAllocationProp*, CUmemGenericAllocationHandle))                 \
  X(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr))                                                \
  X(cuMemGetInfo_v2, (size_t*, size_t*))                                                                          \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                        \
  X(cuMemFree_v2, (CUdeviceptr))                                                                                  \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                                          \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                                                                \
  X(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t))                                                          \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                                          \
  X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t))                                                              \
  X(cuModuleLoadData, (CUmodule*, const void*))                                                                   \
  X(cuModuleUnload, (CUmodule))                                                                                   \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                    \
  X(cuLaunchKernel,                                                                                               \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuCtxSynchronize, (void))

#include "area.h"

#define MIB ((size_t)1 << 20)

static CUmemAllocationProp properties(void) {
  CUmemAllocationProp p;
  memset(&p, 0, sizeof p);
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  return p;
}

static size_t granularity(void) {
  const CUmemAllocationProp p = properties();
  size_t bytes = 0;
  OK(cuMemGetAllocationGranularity(&bytes, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  return bytes;
}

static CUmemAccessDesc full_access(void) {
  CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  return access;
}

static void test_granularity(void) {
  CUmemAllocationProp p = properties();
  size_t least = 0, best = 0;
  int supported = 0;
  OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device));
  IS(1, supported);
  OK(cuMemGetAllocationGranularity(&least, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  OK(cuMemGetAllocationGranularity(&best, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
  IS(2 * MIB, least);
  IS(2 * MIB, best);
  p.allocFlags.gpuDirectRDMACapable = 1;
  OK(cuMemGetAllocationGranularity(&least, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  IS(2 * MIB, least);
  p = properties();
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemGetAllocationGranularity(NULL, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemGetAllocationGranularity(&least, NULL, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
  NOTE(cuMemGetAllocationGranularity(&least, &p, (CUmemAllocationGranularity_flags)7));
  p.type = CU_MEM_ALLOCATION_TYPE_INVALID;
  OK(cuMemGetAllocationGranularity(&least, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));  // nobody looks
  p = properties();
  p.location.id = 999;
  OK(cuMemGetAllocationGranularity(&least, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
}

static void test_reserve(void) {
  const size_t g = granularity();
  CUdeviceptr a = 0, b = 0, c = 0;
  OK(cuMemAddressReserve(&a, 16 * g, 0, 0, 0));
  TRUE(a != 0 && a % g == 0);
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(NULL, g, 0, 0, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, 0, 0, 0, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, 1000, 0, 0, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, g, 3 * g, 0, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, g, 0, 0, 1));
  NOTE(cuMemAddressReserve(&c, 65536, 0, 0, 0));
  if (c != 0) NOTE(cuMemAddressFree(c, 65536));
  // An alignment above the granularity holds.
  OK(cuMemAddressReserve(&b, 2 * g, 64 * MIB, 0, 0));
  IS(0, b % (64 * MIB));
  OK(cuMemAddressFree(b, 2 * g));
  // What is given back and named as a hint comes again; a hint that is taken gives another address.
  OK(cuMemAddressReserve(&c, 4 * g, 0, 0, 0));
  CUdeviceptr again = 0;
  OK(cuMemAddressReserve(&again, 4 * g, 0, c, 0));
  TRUE(again != 0 && again != c);
  OK(cuMemAddressFree(again, 4 * g));
  OK(cuMemAddressFree(c, 4 * g));
  // Only a whole reservation can be given back, and only once.
  NOTE(cuMemAddressFree(a + g, g));
  NOTE(cuMemAddressFree(a, g));
  OK(cuMemAddressFree(a, 16 * g));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(a, 16 * g));
  // Far more addresses than memory.
  OK(cuMemAddressReserve(&a, (size_t)8 << 30, 0, 0, 0));
  OK(cuMemAddressFree(a, (size_t)8 << 30));
}

static void test_create(void) {
  const size_t g = granularity();
  const CUmemAllocationProp p = properties();
  CUmemGenericAllocationHandle h = 0;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(NULL, g, &p, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, 0, &p, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, g / 2, &p, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, g, NULL, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, g, &p, 1));
  CUmemAllocationProp bad = p;
  bad.type = CU_MEM_ALLOCATION_TYPE_INVALID;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, g, &bad, 0));
  bad = p;
  bad.location.id = 999;
  CODE(CUDA_ERROR_INVALID_DEVICE, cuMemCreate(&h, g, &bad, 0));
  bad = p;
  bad.location.type = CU_MEM_LOCATION_TYPE_INVALID;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&h, g, &bad, 0));
  OK(cuMemCreate(&h, 4 * g, &p, 0));
  CUmemAllocationProp told;
  memset(&told, 0xff, sizeof told);
  OK(cuMemGetAllocationPropertiesFromHandle(&told, h));
  IS(CU_MEM_ALLOCATION_TYPE_PINNED, told.type);
  IS(CU_MEM_LOCATION_TYPE_DEVICE, told.location.type);
  IS(device, told.location.id);
  IS(0, told.requestedHandleTypes);
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemGetAllocationPropertiesFromHandle(NULL, h));
  OK(cuMemRelease(h));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemRelease(h));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemRelease(0));
}

/// Needs a GPU that no other program uses meanwhile: it compares what is free before and after.
static void test_out_of_memory(void) {
  const size_t g = granularity();
  const CUmemAllocationProp p = properties();
  size_t free_bytes = 0, total_bytes = 0, after = 0;
  OK(cuMemGetInfo_v2(&free_bytes, &total_bytes));
  CUmemGenericAllocationHandle h = 0, half = 0;
  CODE(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&h, (total_bytes / g + 1) * g, &p, 0));
  const size_t part = free_bytes / 2 / g * g;
  OK(cuMemCreate(&half, part, &p, 0));
  OK(cuMemGetInfo_v2(&after, &total_bytes));
  TRUE(free_bytes - after >= part);
  CODE(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&h, part + 64 * MIB, &p, 0));
  // What is released is there again for the next call, whatever travels between.
  OK(cuMemRelease(half));
  OK(cuMemCreate(&h, part + 64 * MIB < free_bytes ? part + 64 * MIB : part, &p, 0));
  OK(cuMemRelease(h));
  OK(cuMemGetInfo_v2(&after, &total_bytes));
  TRUE(after + 64 * MIB >= free_bytes);
  // Other allocations see memory that a mapping has kept, too.
  CUdeviceptr a = 0, d = 0;
  OK(cuMemAddressReserve(&a, part, 0, 0, 0));
  OK(cuMemCreate(&half, part, &p, 0));
  OK(cuMemMap(a, part, 0, half, 0));
  OK(cuMemRelease(half));
  CODE(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&d, part + 64 * MIB));
  OK(cuMemUnmap(a, part));
  OK(cuMemAlloc_v2(&d, part));
  OK(cuMemFree_v2(d));
  OK(cuMemAddressFree(a, part));
}

static void test_map(void) {
  const size_t g = granularity();
  const CUmemAllocationProp p = properties();
  const CUmemAccessDesc access = full_access();
  CUdeviceptr a = 0;
  CUmemGenericAllocationHandle h = 0, h2 = 0;
  OK(cuMemAddressReserve(&a, 8 * g, 0, 0, 0));
  OK(cuMemCreate(&h, 2 * g, &p, 0));
  OK(cuMemCreate(&h2, 2 * g, &p, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemMap(a + 4096, 2 * g, 0, h, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemMap(a, 2 * g, 0, h, 1));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemMap(a, 2 * g, 0, 0, 0));
  CODE(CUDA_ERROR_NOT_SUPPORTED, cuMemMap(a, 4 * g, 0, h, 0));  // more than there is
  OK(cuMemUnmap(a, 2 * g));                                     // nothing is mapped: nothing to do
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(a, 2 * g, &access, 1));
  OK(cuMemMap(a, 2 * g, 0, h, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemMap(a, 2 * g, 0, h2, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemMap(a + g, 2 * g, 0, h2, 0));
  NOTE(cuMemAddressFree(a, 8 * g));
  OK(cuMemMap(a + 2 * g, 2 * g, 0, h2, 0));
  CUmemLocation here = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  unsigned long long flags = 99;
  OK(cuMemGetAccess(&flags, &here, a));
  IS(CU_MEM_ACCESS_FLAGS_PROT_NONE, flags);
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(a, 2 * g, NULL, 1));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(a, 0, &access, 1));
  CUmemAccessDesc bad = access;
  bad.location.id = 999;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(a, 2 * g, &bad, 1));
  OK(cuMemSetAccess(a, 4 * g, &access, 1));  // two mappings in one call
  OK(cuMemGetAccess(&flags, &here, a + 3 * g));
  IS(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, flags);
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemGetAccess(&flags, &here, a + 4 * g));
  // One range over both mappings.
  OK(cuMemsetD8_v2(a, 0x5a, 4 * g));
  OK(cuMemsetD32_v2(a + 2 * g - 64, 0x11223344, 32));
  unsigned words[64];
  OK(cuMemcpyDtoH_v2(words, a + 2 * g - 128, sizeof words));
  IS(0x5a5a5a5a, words[0]);
  IS(0x11223344, words[16]);
  IS(0x11223344, words[47]);
  IS(0x5a5a5a5a, words[48]);
  // The same memory twice: both addresses show the same bytes.
  OK(cuMemMap(a + 4 * g, 2 * g, 0, h, 0));
  OK(cuMemSetAccess(a + 4 * g, 2 * g, &access, 1));
  OK(cuMemcpyHtoD_v2(a + 4 * g, "alias", 6));
  char text[8] = {0};
  OK(cuMemcpyDtoH_v2(text, a, 6));
  IS(0, strcmp(text, "alias"));
  // A handle that is released lives on in its mappings, and comes back with its old value.
  OK(cuMemRelease(h));
  OK(cuMemMap(a + 6 * g, 2 * g, 0, h, 0));
  OK(cuMemSetAccess(a + 6 * g, 2 * g, &access, 1));
  OK(cuMemcpyDtoH_v2(text, a + 6 * g, 6));
  IS(0, strcmp(text, "alias"));
  OK(cuMemUnmap(a + 6 * g, 2 * g));
  CUmemGenericAllocationHandle same = 0;
  OK(cuMemRetainAllocationHandle(&same, (void*)(uintptr_t)(a + g)));
  IS(h, same);
  OK(cuMemRelease(same));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(a));
  CUdeviceptr base = 0;
  size_t bytes = 0;
  OK(cuMemGetAddressRange_v2(&base, &bytes, a + 2 * g + 100));
  NOTE(base - a);
  NOTE(bytes);
  NOTE(cuMemUnmap(a, g));
  OK(cuMemUnmap(a, 2 * g));
  OK(cuMemUnmap(a, 2 * g));
  OK(cuMemcpyDtoH_v2(text, a + 4 * g, 6));
  IS(0, strcmp(text, "alias"));
  // Other memory in the place: nothing of the old access is left.
  OK(cuMemMap(a, 2 * g, 0, h2, 0));
  OK(cuMemGetAccess(&flags, &here, a));
  IS(CU_MEM_ACCESS_FLAGS_PROT_NONE, flags);
  OK(cuMemSetAccess(a, 2 * g, &access, 1));
  OK(cuMemcpyDtoH_v2(words, a, 256));
  IS(0x11223344, words[0]);
  OK(cuMemUnmap(a, 2 * g));
  OK(cuMemUnmap(a + 2 * g, 4 * g));  // two mappings in one call
  OK(cuMemRelease(h2));
  OK(cuMemAddressFree(a, 8 * g));
}

static void test_parts(void) {
  // What the header says is not there yet: offsets, and less than the whole memory.
  const size_t g = granularity();
  const CUmemAllocationProp p = properties();
  CUdeviceptr a = 0;
  CUmemGenericAllocationHandle h = 0;
  OK(cuMemAddressReserve(&a, 4 * g, 0, 0, 0));
  OK(cuMemCreate(&h, 2 * g, &p, 0));
  const CUresult half = cuMemMap(a, g, 0, h, 0);
  NOTE(half);
  if (half == CUDA_SUCCESS) OK(cuMemUnmap(a, g));
  const CUresult behind = cuMemMap(a, g, g, h, 0);
  NOTE(behind);
  if (behind == CUDA_SUCCESS) OK(cuMemUnmap(a, g));
  OK(cuMemMap(a, 2 * g, 0, h, 0));
  // Without access nothing may be copied.
  char byte = 0;
  NOTE(cuMemcpyDtoH_v2(&byte, a, 1));
  const CUmemAccessDesc read = {{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READ};
  NOTE(cuMemSetAccess(a, 2 * g, &read, 1));
  const CUmemAccessDesc host = {{CU_MEM_LOCATION_TYPE_HOST, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  NOTE(cuMemSetAccess(a, 2 * g, &host, 1));
  OK(cuMemUnmap(a, 2 * g));
  OK(cuMemRelease(h));
  OK(cuMemAddressFree(a, 4 * g));
}

static const char fill_ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry fill(.param .u64 to, .param .u32 value)\n"
    "{ .reg .u64 %rd<4>; .reg .u32 %r<5>;\n"
    "  ld.param.u64 %rd1, [to]; ld.param.u32 %r1, [value];\n"
    "  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;\n"
    "  mad.lo.u32 %r2, %r2, %r3, %r4; mul.wide.u32 %rd2, %r2, 4; add.u64 %rd3, %rd1, %rd2;\n"
    "  add.u32 %r1, %r1, %r2; st.global.u32 [%rd3], %r1; ret; }\n";

// What PyTorch's expandable segments do: one large reservation, grown at its end, its middle given back and filled
// again.
static void test_growing(void) {
  enum { PIECES = 6 };
  const size_t g = granularity(), piece = 2 * g;
  const CUmemAllocationProp p = properties();
  const CUmemAccessDesc access = full_access();
  CUmodule module;
  CUfunction fill;
  OK(cuModuleLoadData(&module, fill_ptx));
  OK(cuModuleGetFunction(&fill, module, "fill"));
  CUdeviceptr a = 0;
  OK(cuMemAddressReserve(&a, (size_t)4 << 30, 0, 0, 0));
  CUmemGenericAllocationHandle handles[PIECES];
  for (unsigned i = 0; i < PIECES; i++) {
    OK(cuMemCreate(&handles[i], piece, &p, 0));
    OK(cuMemMap(a + i * piece, piece, 0, handles[i], 0));
    OK(cuMemSetAccess(a + i * piece, piece, &access, 1));
    // The kernel writes over everything that there is up to now, across the pieces.
    unsigned value = 100 * i;
    const unsigned blocks = (unsigned)((i + 1) * piece / 4 / 256);
    void* params[] = {&a, &value};
    OK(cuLaunchKernel(fill, blocks, 1, 1, 256, 1, 1, 0, NULL, params, NULL));
  }
  OK(cuCtxSynchronize());
  unsigned words[4];
  OK(cuMemcpyDtoH_v2(words, a + 3 * piece - 8, sizeof words));
  IS(100 * (PIECES - 1) + 3 * piece / 4 - 2, words[0]);
  IS(100 * (PIECES - 1) + 3 * piece / 4 + 1, words[3]);
  OK(cuMemUnmap(a + 2 * piece, piece));
  OK(cuMemRelease(handles[2]));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(words, a + 3 * piece - 8, sizeof words));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(words, a + 2 * piece - 8, sizeof words));
  OK(cuMemCreate(&handles[2], piece, &p, 0));
  OK(cuMemMap(a + 2 * piece, piece, 0, handles[2], 0));
  OK(cuMemSetAccess(a + 2 * piece, piece, &access, 1));
  OK(cuMemcpyDtoD_v2(a + 2 * piece - 16, a + 4 * piece, 32));
  OK(cuMemcpyDtoH_v2(words, a + 2 * piece, sizeof words));
  IS(100 * (PIECES - 1) + 4 * piece / 4 + 4, words[0]);
  for (unsigned i = 0; i < PIECES; i++) {
    OK(cuMemUnmap(a + i * piece, piece));
    OK(cuMemRelease(handles[i]));
  }
  OK(cuMemAddressFree(a, (size_t)4 << 30));
  OK(cuModuleUnload(module));
}

// Handles, addresses and memory come back however often they are taken.
static void test_many(void) {
  enum { ROUNDS = 400, LIVE = 8 };
  const size_t g = granularity();
  const CUmemAllocationProp p = properties();
  const CUmemAccessDesc access = full_access();
  CUdeviceptr at[LIVE] = {0};
  CUmemGenericAllocationHandle handles[LIVE];
  int bad = 0;
  for (unsigned round = 0; round < ROUNDS; round++) {
    const unsigned i = round % LIVE;
    if (at[i] != 0) {
      unsigned word = 0;
      bad += cuMemcpyDtoH_v2(&word, at[i] + g - 4, 4) != CUDA_SUCCESS || word != round - LIVE;
      bad += cuMemUnmap(at[i], g) != CUDA_SUCCESS;
      bad += cuMemRelease(handles[i]) != CUDA_SUCCESS;
      bad += cuMemAddressFree(at[i], g) != CUDA_SUCCESS;
    }
    bad += cuMemAddressReserve(&at[i], g, 0, 0, 0) != CUDA_SUCCESS;
    bad += cuMemCreate(&handles[i], g, &p, 0) != CUDA_SUCCESS;
    bad += cuMemMap(at[i], g, 0, handles[i], 0) != CUDA_SUCCESS;
    bad += cuMemSetAccess(at[i], g, &access, 1) != CUDA_SUCCESS;
    bad += cuMemsetD32_v2(at[i] + g - 4, round, 1) != CUDA_SUCCESS;
    CUdeviceptr other = 0;
    bad += cuMemAlloc_v2(&other, 4 * MIB) != CUDA_SUCCESS;
    bad += cuMemFree_v2(other) != CUDA_SUCCESS;
  }
  IS(0, bad);
  for (unsigned i = 0; i < LIVE; i++) {
    OK(cuMemUnmap(at[i], g));
    OK(cuMemRelease(handles[i]));
    OK(cuMemAddressFree(at[i], g));
  }
}

SECTIONS({"granularity", test_granularity, 0}, {"reserve", test_reserve, 0}, {"create", test_create, 0},
         {"out_of_memory", test_out_of_memory, 0}, {"map", test_map, 0}, {"parts", test_parts, 0},
         {"growing", test_growing, 0}, {"many", test_many, 0})
