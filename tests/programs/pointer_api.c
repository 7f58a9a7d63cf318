// Pointer attributes of every kind of memory.
#include "cuda_types.h"

#define CALLS(X)                                                                                          \
  X(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr))                                     \
  X(cuPointerGetAttributes, (unsigned, CUpointer_attribute*, void**, CUdeviceptr))                        \
  X(cuPointerSetAttribute, (const void*, CUpointer_attribute, CUdeviceptr))                               \
  X(cuIpcGetMemHandle, (CUipcMemHandle*, CUdeviceptr))                                                    \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                \
  X(cuMemFree_v2, (CUdeviceptr))                                                                          \
  X(cuMemHostAlloc, (void**, size_t, unsigned))                                                           \
  X(cuMemFreeHost, (void*))                                                                               \
  X(cuMemAddressReserve, (CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long))                 \
  X(cuMemAddressFree, (CUdeviceptr, size_t))                                                              \
  X(cuMemCreate, (CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, unsigned long long)) \
  X(cuMemRelease, (CUmemGenericAllocationHandle))                                                         \
  X(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))            \
  X(cuMemUnmap, (CUdeviceptr, size_t))                                                                    \
  X(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc*, size_t))                                \
  X(cuDeviceGetDefaultMemPool, (CUmemoryPool*, CUdevice))                                                 \
  X(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                                                    \
  X(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                              \
  X(cuStreamSynchronize, (CUstream))

#include "area.h"

#define MIB ((size_t)1 << 20)
#define GET(name, at)                                                    \
  ({                                                                     \
    unsigned long long value_ = 0;                                       \
    OK(cuPointerGetAttribute(&value_, CU_POINTER_ATTRIBUTE_##name, at)); \
    value_;                                                              \
  })

static void test_device(void) {
  CUdeviceptr a = 0, b = 0;
  OK(cuMemAlloc_v2(&a, 3 * MIB));
  OK(cuMemAlloc_v2(&b, 1000));
  IS(CU_MEMORYTYPE_DEVICE, GET(MEMORY_TYPE, a + 5));
  IS((uintptr_t)context, GET(CONTEXT, a));
  IS(a + 77, GET(DEVICE_POINTER, a + 77));
  IS(device, GET(DEVICE_ORDINAL, a));
  IS(0, GET(IS_MANAGED, a));
  IS(1, GET(MAPPED, a));
  IS(a, GET(RANGE_START_ADDR, a + 3 * MIB - 1));
  IS(3 * MIB, GET(RANGE_SIZE, a));
  IS(1000, GET(RANGE_SIZE, b));
  IS(3, GET(ACCESS_FLAGS, a));
  IS(0, GET(MEMPOOL_HANDLE, a));
  TRUE(GET(BUFFER_ID, a) != GET(BUFFER_ID, b));
  IS(GET(BUFFER_ID, a), GET(BUFFER_ID, a + MIB));
  NOTE(GET(ALLOWED_HANDLE_TYPES, a));
  CUipcMemHandle handle;
  IS(cuIpcGetMemHandle(&handle, a) == CUDA_SUCCESS, GET(IS_LEGACY_CUDA_IPC_CAPABLE, a));
  // What backs it: whole 2 MiB.
  IS(4 * MIB, GET(MAPPING_SIZE, a));
  IS(0, a - GET(MAPPING_BASE_ADDR, a));
  IS(2 * MIB, GET(MAPPING_SIZE, b));
  TRUE(b - GET(MAPPING_BASE_ADDR, b) < 2 * MIB);
  NOTE(GET(MEMORY_BLOCK_ID, a) == GET(MEMORY_BLOCK_ID, b));
  unsigned long long value = 0;
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_HOST_POINTER, a));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(NULL, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, a));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&value, (CUpointer_attribute)99, a));
  // Synchronous memory operations: set for the whole allocation.
  unsigned on = 1;
  IS(0, GET(SYNC_MEMOPS, a));
  OK(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, a + 100));
  IS(1, GET(SYNC_MEMOPS, a));
  IS(0, GET(SYNC_MEMOPS, b));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, a));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerSetAttribute(NULL, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, a));
  OK(cuMemFree_v2(a));
  OK(cuMemFree_v2(b));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, a));
}

static void test_pinned(void) {
  char* h = NULL;
  OK(cuMemHostAlloc((void**)&h, 10000, CU_MEMHOSTALLOC_PORTABLE));
  const CUdeviceptr at = (CUdeviceptr)(uintptr_t)h;
  IS(CU_MEMORYTYPE_HOST, GET(MEMORY_TYPE, at + 9999));
  IS(at + 8, GET(HOST_POINTER, at + 8));
  IS(at + 8, GET(DEVICE_POINTER, at + 8));
  IS(0, GET(IS_MANAGED, at));
  IS(at, GET(RANGE_START_ADDR, at + 50));
  IS(10000, GET(RANGE_SIZE, at));
  IS(3, GET(ACCESS_FLAGS, at));
  IS(0, GET(MEMPOOL_HANDLE, at));
  OK(cuMemFreeHost(h));
}

static void test_mapped(void) {
  CUmemAllocationProp p;
  memset(&p, 0, sizeof p);
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  const CUmemAccessDesc access = {p.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CUdeviceptr a = 0;
  CUmemGenericAllocationHandle one = 0, two = 0;
  OK(cuMemAddressReserve(&a, 16 * MIB, 0, 0, 0));
  OK(cuMemCreate(&one, 4 * MIB, &p, 0));
  OK(cuMemCreate(&two, 2 * MIB, &p, 0));
  OK(cuMemMap(a, 4 * MIB, 0, one, 0));
  OK(cuMemMap(a + 4 * MIB, 2 * MIB, 0, two, 0));
  OK(cuMemMap(a + 6 * MIB, 4 * MIB, 0, one, 0));
  NOTE(GET(ACCESS_FLAGS, a));
  OK(cuMemSetAccess(a, 10 * MIB, &access, 1));
  IS(3, GET(ACCESS_FLAGS, a));
  IS(CU_MEMORYTYPE_DEVICE, GET(MEMORY_TYPE, a));
  IS(device, GET(DEVICE_ORDINAL, a));
  IS(a + 5 * MIB, GET(DEVICE_POINTER, a + 5 * MIB));
  IS(0, GET(IS_MANAGED, a));
  IS(1, GET(MAPPED, a + 9 * MIB));
  IS(0, GET(MEMPOOL_HANDLE, a));
  IS(0, GET(ALLOWED_HANDLE_TYPES, a));
  NOTE(GET(CONTEXT, a) == (uintptr_t)context);
  IS(a, GET(RANGE_START_ADDR, a + 5 * MIB));  // the reservation
  IS(16 * MIB, GET(RANGE_SIZE, a + 5 * MIB));
  IS(a + 4 * MIB, GET(MAPPING_BASE_ADDR, a + 5 * MIB));
  IS(2 * MIB, GET(MAPPING_SIZE, a + 5 * MIB));
  // One physical allocation at two addresses.
  TRUE(GET(MEMORY_BLOCK_ID, a) == GET(MEMORY_BLOCK_ID, a + 6 * MIB));
  TRUE(GET(MEMORY_BLOCK_ID, a) != GET(MEMORY_BLOCK_ID, a + 4 * MIB));
  unsigned long long value = 0;
  NOTE(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, a + 12 * MIB));
  OK(cuMemUnmap(a, 10 * MIB));
  OK(cuMemRelease(one));
  OK(cuMemRelease(two));
  OK(cuMemAddressFree(a, 16 * MIB));
}

static void test_pool(void) {
  CUmemoryPool pool = NULL;
  CUdeviceptr a = 0;
  OK(cuDeviceGetDefaultMemPool(&pool, device));
  OK(cuMemAllocAsync(&a, 3 * MIB, NULL));
  IS(CU_MEMORYTYPE_DEVICE, GET(MEMORY_TYPE, a));
  IS(device, GET(DEVICE_ORDINAL, a));
  IS((uintptr_t)pool, GET(MEMPOOL_HANDLE, a + MIB));
  IS(a, GET(RANGE_START_ADDR, a + MIB));
  NOTE(GET(RANGE_SIZE, a));
  IS(3, GET(ACCESS_FLAGS, a));
  IS(0, GET(IS_MANAGED, a));
  IS(0, GET(IS_LEGACY_CUDA_IPC_CAPABLE, a));
  NOTE(GET(CONTEXT, a) == (uintptr_t)context);
  NOTE(GET(MAPPING_SIZE, a));
  OK(cuMemFreeAsync(a, NULL));
  OK(cuStreamSynchronize(NULL));
}

// The call for many answers for memory that nobody knows, too: with nothing.
static void test_unknown(void) {
  int on_stack = 0;
  const CUdeviceptr at = (CUdeviceptr)(uintptr_t)&on_stack;
  unsigned long long value = 7;
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
  unsigned type = 9;
  int ordinal = 9;
  void* owner = &on_stack;
  void* device_pointer = &on_stack;
  unsigned managed = 9;
  void* data[] = {&type, &ordinal, &owner, &device_pointer, &managed};
  CUpointer_attribute which[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                 CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                                 CU_POINTER_ATTRIBUTE_IS_MANAGED};
  OK(cuPointerGetAttributes(5, which, data, at));
  IS(0, type);
  IS(-2, ordinal);
  TRUE(owner == NULL);
  TRUE(device_pointer == NULL);
  IS(0, managed);
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttributes(0, which, data, at));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttributes(5, NULL, data, at));
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttributes(5, which, NULL, at));
  which[2] = (CUpointer_attribute)99;
  CODE(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttributes(5, which, data, at));
}

SECTIONS({"device", test_device, 0}, {"pinned", test_pinned, 0}, {"mapped", test_mapped, 0}, {"pool", test_pool, 0},
         {"unknown", test_unknown, 0})
