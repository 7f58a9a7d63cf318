// Stream-ordered allocation and memory pools: codes, what is reused when, and what a pool tells about itself.
#include "cuda_types.h"

#define CALLS(X)                                                             \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice))              \
  X(cuDeviceGetDefaultMemPool, (CUmemoryPool*, CUdevice))                    \
  X(cuDeviceGetMemPool, (CUmemoryPool*, CUdevice))                           \
  X(cuDeviceSetMemPool, (CUdevice, CUmemoryPool))                            \
  X(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                       \
  X(cuMemAllocFromPoolAsync, (CUdeviceptr*, size_t, CUmemoryPool, CUstream)) \
  X(cuMemFreeAsync, (CUdeviceptr, CUstream))                                 \
  X(cuMemPoolCreate, (CUmemoryPool*, const CUmemPoolProps*))                 \
  X(cuMemPoolDestroy, (CUmemoryPool))                                        \
  X(cuMemPoolTrimTo, (CUmemoryPool, size_t))                                 \
  X(cuMemPoolGetAttribute, (CUmemoryPool, CUmemPool_attribute, void*))       \
  X(cuMemPoolSetAttribute, (CUmemoryPool, CUmemPool_attribute, void*))       \
  X(cuMemPoolSetAccess, (CUmemoryPool, const CUmemAccessDesc*, size_t))      \
  X(cuMemPoolGetAccess, (CUmemAccess_flags*, CUmemoryPool, CUmemLocation*))  \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                   \
  X(cuMemFree_v2, (CUdeviceptr))                                             \
  X(cuMemGetInfo_v2, (size_t*, size_t*))                                     \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                           \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                     \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))             \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))      \
  X(cuStreamCreate, (CUstream*, unsigned))                                   \
  X(cuStreamDestroy_v2, (CUstream))                                          \
  X(cuStreamSynchronize, (CUstream))                                         \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                        \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*))                           \
  X(cuEventCreate, (CUevent*, unsigned))                                     \
  X(cuEventRecord, (CUevent, CUstream))                                      \
  X(cuEventSynchronize, (CUevent))                                           \
  X(cuEventDestroy_v2, (CUevent))                                            \
  X(cuCtxSynchronize, (void))

#include "area.h"

#define MIB ((size_t)1 << 20)

static CUmemPoolProps properties(void) {
  CUmemPoolProps p;
  memset(&p, 0, sizeof p);
  p.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  return p;
}

static CUmemoryPool new_pool(unsigned long long threshold) {
  const CUmemPoolProps p = properties();
  CUmemoryPool pool = NULL;
  OK(cuMemPoolCreate(&pool, &p));
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
  return pool;
}

static unsigned long long number(CUmemoryPool pool, CUmemPool_attribute attribute) {
  unsigned long long value = ~0ull;
  OK(cuMemPoolGetAttribute(pool, attribute, &value));
  return value;
}

// A stream that stands still until it is let go.
static void hold(void* flag) {
  while (!__atomic_load_n((int*)flag, __ATOMIC_ACQUIRE)) usleep(200);
}
static void let_go(int* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }

static void test_pools_of_devices(void) {
  int supported = 0;
  OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, device));
  IS(1, supported);
  CUmemoryPool first = NULL, current = NULL;
  OK(cuDeviceGetDefaultMemPool(&first, device));
  OK(cuDeviceGetMemPool(&current, device));
  TRUE(first != NULL && first == current);
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetDefaultMemPool(NULL, device));
  CODE(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetDefaultMemPool(&current, 999));
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetMemPool(&current, 999));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolDestroy(first));
  CUmemoryPool own = new_pool(0);
  OK(cuDeviceSetMemPool(device, own));
  OK(cuDeviceGetMemPool(&current, device));
  TRUE(current == own);
  OK(cuDeviceGetDefaultMemPool(&current, device));
  TRUE(current == first);
  CUdeviceptr a = 0;
  OK(cuMemAllocAsync(&a, MIB, NULL));
  TRUE(number(own, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) >= MIB);
  OK(cuMemFreeAsync(a, NULL));
  OK(cuMemPoolDestroy(own));
  OK(cuDeviceGetMemPool(&current, device));
  TRUE(current == first);
}

static void test_attributes(void) {
  CUmemPoolProps p = properties();
  CUmemoryPool pool = NULL;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolCreate(NULL, &p));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolCreate(&pool, NULL));
  p.allocType = CU_MEM_ALLOCATION_TYPE_INVALID;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolCreate(&pool, &p));
  p = properties();
  p.location.id = 999;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolCreate(&pool, &p));
  pool = new_pool(12345678);
  IS(12345678, number(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD));
  for (int i = CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES; i <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
       i++) {
    int on = -1, off = 0;
    OK(cuMemPoolGetAttribute(pool, (CUmemPool_attribute)i, &on));
    IS(1, on);
    OK(cuMemPoolSetAttribute(pool, (CUmemPool_attribute)i, &off));
    OK(cuMemPoolGetAttribute(pool, (CUmemPool_attribute)i, &on));
    IS(0, on);
  }
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH));
  IS(0, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  IS(0, number(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH));
  unsigned long long value = 1;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &value));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, &value));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &value));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolSetAttribute(pool, (CUmemPool_attribute)77, &value));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolGetAttribute(pool, (CUmemPool_attribute)77, &value));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, NULL));
  CUmemLocation here = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  CUmemAccess_flags flags = (CUmemAccess_flags)0;
  OK(cuMemPoolGetAccess(&flags, pool, &here));
  IS(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, flags);
  CUmemAccessDesc access = {here, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  OK(cuMemPoolSetAccess(pool, &access, 1));
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
  CODE(CUDA_ERROR_INVALID_DEVICE, cuMemPoolSetAccess(pool, &access, 1));
  OK(cuMemPoolDestroy(pool));
}

static void test_accounting(void) {
  CUmemoryPool pool = new_pool(~0ull);
  CUdeviceptr a = 0, b = 0;
  OK(cuMemAllocFromPoolAsync(&a, 4 * MIB, pool, NULL));
  IS(4 * MIB, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  TRUE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= 4 * MIB);
  NOTE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  OK(cuMemAllocFromPoolAsync(&b, 100, pool, NULL));
  IS(4 * MIB + 100, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  IS(0, a % 512);
  IS(0, b % 256);
  OK(cuMemFreeAsync(b, NULL));
  OK(cuStreamSynchronize(NULL));
  IS(4 * MIB, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  TRUE(number(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH) > 4 * MIB);
  unsigned long long zero = 0;
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &zero));
  IS(4 * MIB, number(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH));
  OK(cuMemFreeAsync(a, NULL));
  OK(cuStreamSynchronize(NULL));
  IS(0, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  IS(4 * MIB, number(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH));
  // The threshold keeps it; then it does not any more.
  TRUE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= 4 * MIB);
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &zero));
  OK(cuStreamSynchronize(NULL));
  NOTE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  OK(cuMemAllocFromPoolAsync(&a, 4 * MIB, pool, NULL));
  OK(cuMemFreeAsync(a, NULL));
  OK(cuStreamSynchronize(NULL));
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  TRUE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) >= 4 * MIB);
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, &zero));
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH));
  // By hand.
  unsigned long long all = ~0ull;
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all));
  OK(cuMemAllocFromPoolAsync(&a, 4 * MIB, pool, NULL));
  OK(cuMemPoolTrimTo(pool, 0));
  TRUE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= 4 * MIB);
  OK(cuMemFreeAsync(a, NULL));
  OK(cuStreamSynchronize(NULL));
  OK(cuMemPoolTrimTo(pool, 1024 * MIB));
  TRUE(number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= 4 * MIB);
  OK(cuMemPoolTrimTo(pool, 0));
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  OK(cuMemPoolDestroy(pool));
}

static void test_codes(void) {
  CUdeviceptr a = 0, b = 0;
  CUstream stream;
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAllocAsync(NULL, 100, stream));
  NOTE(cuMemAllocAsync(&a, 0, stream));
  NOTE(cuMemFreeAsync(0, stream));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAllocFromPoolAsync(&a, 100, NULL, stream));
  CODE(CUDA_ERROR_OUT_OF_MEMORY, cuMemAllocAsync(&a, (size_t)1 << 46, stream));
  OK(cuMemAllocAsync(&a, 3 * MIB, stream));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(a + 512, stream));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(a + 512));
  OK(cuMemFreeAsync(a, stream));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(a, stream));
  // Each kind of free takes each kind of memory.
  OK(cuMemAllocAsync(&a, 3 * MIB, stream));
  OK(cuMemFree_v2(a));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(a));
  OK(cuMemAlloc_v2(&b, 3 * MIB));
  OK(cuMemFreeAsync(b, stream));
  OK(cuStreamSynchronize(stream));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(b, stream));
  // Host memory and nothing at all.
  int word = 0;
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync((CUdeviceptr)(uintptr_t)&word, stream));
  OK(cuStreamDestroy_v2(stream));
}

static void test_order(void) {
  CUmemoryPool pool = new_pool(~0ull);
  CUstream one, two;
  CUevent event;
  CUdeviceptr a = 0, b = 0, c = 0, d = 0;
  OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
  OK(cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
  OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  OK(cuMemAllocFromPoolAsync(&a, 32 * MIB, pool, one));
  int flag = 0;
  OK(cuLaunchHostFunc(one, hold, &flag));
  OK(cuMemsetD32Async(a, 1, 8 * MIB, one));
  OK(cuMemFreeAsync(a, one));
  // The same stream may have it at once. Another may not: the stream stands still before the free.
  OK(cuMemAllocFromPoolAsync(&b, 32 * MIB, pool, one));
  NOTE(a == b);
  OK(cuMemsetD32Async(b, 2, 8 * MIB, one));
  OK(cuMemFreeAsync(b, one));
  OK(cuEventRecord(event, one));
  // Natively the allocator may wait for the free inside the second stream, so only what is written is judged.
  int no = 0;
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, &no));
  OK(cuMemAllocFromPoolAsync(&c, 32 * MIB, pool, two));
  TRUE(c != b);
  OK(cuMemsetD32Async(c, 3, 8 * MIB, two));
  OK(cuStreamSynchronize(two));
  // A stream that waits for an event behind the free may have it before the free is done.
  OK(cuStreamWaitEvent(two, event, 0));
  OK(cuMemAllocFromPoolAsync(&d, 32 * MIB, pool, two));
  NOTE(b == d);
  OK(cuMemsetD32Async(d, 4, 8 * MIB, two));
  let_go(&flag);
  OK(cuStreamSynchronize(two));
  unsigned words[2];
  OK(cuMemcpyDtoH_v2(&words[0], c + 30 * MIB, 4));
  OK(cuMemcpyDtoH_v2(&words[1], d + 30 * MIB, 4));
  IS(3, words[0]);
  IS(4, words[1]);
  OK(cuMemFreeAsync(c, two));
  OK(cuMemFreeAsync(d, two));
  OK(cuStreamSynchronize(two));
  // What is done is anybody's.
  const unsigned long long held = number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
  OK(cuMemAllocFromPoolAsync(&a, 32 * MIB, pool, one));
  IS(held, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  OK(cuMemFreeAsync(a, one));
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(one));
  OK(cuStreamDestroy_v2(two));
  OK(cuMemPoolDestroy(pool));
}

// A free on the NULL stream comes after what blocking streams were given before it.
static void test_null_stream(void) {
  CUmemoryPool pool = new_pool(~0ull);
  CUstream blocking, apart;
  OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
  OK(cuStreamCreate(&apart, CU_STREAM_NON_BLOCKING));
  CUdeviceptr a = 0, b = 0, copy = 0;
  OK(cuMemAlloc_v2(&copy, 64));
  OK(cuMemAllocFromPoolAsync(&a, 8 * MIB, pool, NULL));
  OK(cuMemsetD32Async(a, 7, 2 * MIB, NULL));
  OK(cuStreamSynchronize(NULL));
  int flag = 0;
  OK(cuLaunchHostFunc(blocking, hold, &flag));
  OK(cuMemcpyDtoDAsync_v2(copy, a, 64, blocking));
  OK(cuMemFreeAsync(a, NULL));
  int no = 0;
  OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, &no));
  OK(cuMemAllocFromPoolAsync(&b, 8 * MIB, pool, apart));
  OK(cuMemsetD32Async(b, 9, 2 * MIB, apart));
  OK(cuStreamSynchronize(apart));
  let_go(&flag);
  OK(cuStreamSynchronize(blocking));
  unsigned word = 0;
  OK(cuMemcpyDtoH_v2(&word, copy, 4));
  IS(7, word);
  OK(cuMemFreeAsync(b, apart));
  OK(cuMemFree_v2(copy));
  OK(cuStreamDestroy_v2(blocking));
  OK(cuStreamDestroy_v2(apart));
  OK(cuMemPoolDestroy(pool));
}

static void test_destroyed(void) {
  CUmemoryPool pool = new_pool(~0ull);
  CUdeviceptr a = 0, b = 0;
  size_t before = 0, during = 0, after = 0, total = 0;
  OK(cuMemGetInfo_v2(&before, &total));
  OK(cuMemAllocFromPoolAsync(&a, 48 * MIB, pool, NULL));
  OK(cuMemPoolDestroy(pool));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemPoolDestroy(pool));
  CODE(CUDA_ERROR_INVALID_VALUE, cuMemAllocFromPoolAsync(&b, MIB, pool, NULL));
  // What it gave out lives on.
  OK(cuMemsetD32Async(a, 5, 12 * MIB, NULL));
  unsigned word = 0;
  OK(cuMemcpyDtoH_v2(&word, a + 48 * MIB - 4, 4));
  IS(5, word);
  OK(cuMemGetInfo_v2(&during, &total));
  TRUE(before - during >= 48 * MIB);
  OK(cuMemFreeAsync(a, NULL));
  OK(cuStreamSynchronize(NULL));
  OK(cuMemGetInfo_v2(&after, &total));
  TRUE(after >= during + 48 * MIB);
}

static void test_out_of_memory(void) {
  CUmemoryPool pool = new_pool(~0ull);
  CUstream stream;
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  size_t free_bytes = 0, total_bytes = 0;
  OK(cuMemGetInfo_v2(&free_bytes, &total_bytes));
  const size_t part = free_bytes / 8 / MIB * MIB;
  CUdeviceptr a[10] = {0}, b = 0;
  int count = 0;
  while (count < 10 && cuMemAllocFromPoolAsync(&a[count], part, pool, stream) == CUDA_SUCCESS) count++;
  TRUE(count >= 6 && count <= 8);
  CODE(CUDA_ERROR_OUT_OF_MEMORY, cuMemAllocFromPoolAsync(&b, part * 2, pool, stream));
  // Frees that are still on their way count before an allocation fails, and what they leave serves larger blocks and
  // other kinds of memory.
  for (int i = 0; i < count; i++) {
    OK(cuMemsetD32Async(a[i], 1, part / 4, stream));
    OK(cuMemFreeAsync(a[i], stream));
  }
  OK(cuMemAllocFromPoolAsync(&b, part * 5, pool, stream));
  OK(cuMemFreeAsync(b, stream));
  OK(cuStreamSynchronize(stream));
  // Whether the pool's unused memory goes to others who ask is not documented.
  const CUresult plain = cuMemAlloc_v2(&b, part * 5);
  NOTE(plain);
  if (plain == CUDA_SUCCESS) OK(cuMemFree_v2(b));
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemPoolDestroy(pool));
}

// Many sizes over several streams: no two live blocks overlap, and each keeps what was written.
static void test_mixed(void) {
  enum { STREAMS = 3, LIVE = 48, ROUNDS = 3000 };
  CUmemoryPool pool = new_pool(~0ull);
  CUstream streams[STREAMS];
  for (int i = 0; i < STREAMS; i++)
    OK(cuStreamCreate(&streams[i], i == 0 ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING));
  struct {
    CUdeviceptr at;
    size_t bytes;
    unsigned value;
    int stream;
  } live[LIVE];
  memset(live, 0, sizeof live);
  unsigned random = 12345;
  int bad = 0;
  for (unsigned round = 0; round < ROUNDS; round++) {
    random = random * 1103515245 + 12345;
    const int i = (int)(random >> 16) % LIVE;
    if (live[i].at != 0) {
      unsigned word = 0;
      if (round % 5 == 0) {
        bad += cuStreamSynchronize(streams[live[i].stream]) != CUDA_SUCCESS;
        bad += cuMemcpyDtoH_v2(&word, live[i].at + live[i].bytes - 4, 4) != CUDA_SUCCESS || word != live[i].value;
        bad += cuMemcpyDtoH_v2(&word, live[i].at, 4) != CUDA_SUCCESS || word != live[i].value;
      }
      bad += cuMemFreeAsync(live[i].at, streams[live[i].stream]) != CUDA_SUCCESS;
    }
    random = random * 1103515245 + 12345;
    live[i].stream = (int)(random >> 20) % STREAMS;
    live[i].bytes = 4 * (1 + (random >> 8) % (round % 10 == 0 ? 300000 : 3000));
    live[i].value = round;
    bad += cuMemAllocFromPoolAsync(&live[i].at, live[i].bytes, pool, streams[live[i].stream]) != CUDA_SUCCESS;
    bad += cuMemsetD32Async(live[i].at, round, live[i].bytes / 4, streams[live[i].stream]) != CUDA_SUCCESS;
  }
  IS(0, bad);
  OK(cuCtxSynchronize());
  for (int i = 0; i < LIVE; i++) {
    unsigned first = 0, last = 0;
    if (live[i].at == 0) continue;
    OK(cuMemcpyDtoH_v2(&first, live[i].at, 4));
    OK(cuMemcpyDtoH_v2(&last, live[i].at + live[i].bytes - 4, 4));
    IS(live[i].value, first);
    IS(live[i].value, last);
    OK(cuMemFreeAsync(live[i].at, streams[live[i].stream]));
  }
  OK(cuCtxSynchronize());
  IS(0, number(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
  OK(cuMemPoolTrimTo(pool, 0));
  IS(0, number(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
  for (int i = 0; i < STREAMS; i++) OK(cuStreamDestroy_v2(streams[i]));
  OK(cuMemPoolDestroy(pool));
}

SECTIONS({"pools_of_devices", test_pools_of_devices, 0}, {"attributes", test_attributes, 0},
         {"accounting", test_accounting, 0}, {"codes", test_codes, 0}, {"order", test_order, 0},
         {"null_stream", test_null_stream, 0}, {"destroyed", test_destroyed, 0},
         {"out_of_memory", test_out_of_memory, 0}, {"mixed", test_mixed, 0})
