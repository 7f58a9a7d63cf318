// Memory of the runtime: copies, pitched and 3D, managed, mapped, registered, pools, symbols.
#ifndef ORION_TESTS_RUNTIME_MEMORY_H
#define ORION_TESTS_RUNTIME_MEMORY_H

#include <unistd.h>

#include "harness.h"

__constant__ int constant_values[64];
__device__ int device_values[64];
__managed__ int managed_values[256];

__global__ void add_to_each(int* values, int count, int amount) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[i] += amount;
}

__global__ void read_constants(int* out) {
  out[threadIdx.x] = constant_values[threadIdx.x] + device_values[threadIdx.x];
}

__global__ void add_to_managed(int amount) { managed_values[threadIdx.x] += amount; }

__global__ void copy_ints(int* to, const int* from, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i];
}

static void test_memory() {
  enum { COUNT = 1 << 18 };
  static int host[COUNT], back[COUNT];
  fill(host, COUNT, 1);
  int *a = NULL, *b = NULL;
  OK(cudaMalloc(&a, sizeof host));
  OK(cudaMalloc(&b, sizeof host));
  OK(cudaMemcpy(a, host, sizeof host, cudaMemcpyHostToDevice));
  OK(cudaMemcpy(b, a, sizeof host, cudaMemcpyDeviceToDevice));
  add_to_each<<<COUNT / 256, 256>>>(b, COUNT, 5);
  OK(cudaMemcpy(back, b, sizeof host, cudaMemcpyDefault));
  IS("memory.sum", 5LL * COUNT, [&] {
    long long sum = 0;
    for (int i = 0; i < COUNT; i++) sum += (int)((unsigned)back[i] - (unsigned)host[i]);
    return sum;
  }());
  OK(cudaMemset(a, 0x5A, 1000));
  OK(cudaMemsetAsync((char*)a + 1000, 3, 77, 0));
  SAY("memory.memset", device_digest(a, 4096));
  cudaPointerAttributes attributes = {};
  OK(cudaPointerGetAttributes(&attributes, a));
  IS("memory.type_device", cudaMemoryTypeDevice, attributes.type);
  OK(cudaPointerGetAttributes(&attributes, host));
  IS("memory.type_host", cudaMemoryTypeUnregistered, attributes.type);
  size_t pitch = 0, free_bytes = 0, total_bytes = 0;
  void* pitched = NULL;
  OK(cudaMallocPitch(&pitched, &pitch, 1000, 37));
  SAY("memory.pitch", pitch);
  OK(cudaMemcpy2D(pitched, pitch, host, 1000, 1000, 37, cudaMemcpyHostToDevice));
  OK(cudaMemset2D((char*)pitched + 10, pitch, 7, 500, 20));
  memset(back, 0, sizeof back);
  OK(cudaMemcpy2D(back, 1024, pitched, pitch, 1000, 37, cudaMemcpyDeviceToHost));
  SAY("memory.2d", digest(back, 1024 * 37));
  cudaPitchedPtr cube = {};
  const cudaExtent extent = make_cudaExtent(60, 7, 5);
  OK(cudaMalloc3D(&cube, extent));
  cudaMemcpy3DParms copy = {};
  copy.srcPtr = make_cudaPitchedPtr(host, 60, 60, 7);
  copy.dstPtr = cube;
  copy.extent = extent;
  copy.kind = cudaMemcpyHostToDevice;
  OK(cudaMemcpy3D(&copy));
  memset(back, 0, sizeof back);
  copy.srcPtr = cube;
  copy.dstPtr = make_cudaPitchedPtr(back, 60, 60, 7);
  copy.kind = cudaMemcpyDeviceToHost;
  OK(cudaMemcpy3D(&copy));
  IS("memory.3d", 0, memcmp(back, host, 60 * 7 * 5));
  OK(cudaMemGetInfo(&free_bytes, &total_bytes));
  IS("memory.info", 1, free_bytes > 0 && free_bytes < total_bytes);
  OK(cudaFree(a));
  OK(cudaFree(b));
  OK(cudaFree(pitched));
  OK(cudaFree(cube.ptr));
  OK(cudaFree(NULL));
}

static void test_symbols() {
  int values[64], back[64], *out = NULL;
  fill(values, 64, 9);
  OK(cudaMemcpyToSymbol(constant_values, values, sizeof values));
  fill(values, 64, 10);
  OK(cudaMemcpyToSymbolAsync(device_values, values, sizeof values, 0, cudaMemcpyHostToDevice, 0));
  OK(cudaMalloc(&out, sizeof back));
  read_constants<<<1, 64>>>(out);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  SAY("symbols.read", digest(back, sizeof back));
  OK(cudaMemcpyFromSymbol(back, constant_values, 32, 16));
  SAY("symbols.part", digest(back, 32));
  size_t size = 0;
  void* address = NULL;
  OK(cudaGetSymbolSize(&size, device_values));
  IS("symbols.size", sizeof values, size);
  OK(cudaGetSymbolAddress(&address, device_values));
  OK(cudaMemset(address, 1, 8));
  OK(cudaMemcpyFromSymbol(back, device_values, 16));
  IS("symbols.address", 0x01010101, back[1]);
  OK(cudaFree(out));
}

static void test_managed() {
  enum { COUNT = 1 << 20 };
  int supported = 0, concurrent = 0;
  OK(cudaDeviceGetAttribute(&supported, cudaDevAttrManagedMemory, 0));
  OK(cudaDeviceGetAttribute(&concurrent, cudaDevAttrConcurrentManagedAccess, 0));
  IS("managed.supported", 1, supported);
  SAY("managed.concurrent", concurrent);
  int* values = NULL;
  OK(cudaMallocManaged(&values, COUNT * sizeof(int)));
  fill(values, COUNT, 3);
  add_to_each<<<COUNT / 256, 256>>>(values, COUNT, 7);
  OK(cudaDeviceSynchronize());
  SAY("managed.kernel", digest(values, COUNT * sizeof(int)));
  for (int i = 0; i < COUNT; i += 1000) values[i] = -i;
  add_to_each<<<COUNT / 256, 256>>>(values, COUNT, 1);
  OK(cudaDeviceSynchronize());
  IS("managed.host_then_kernel", -2999, values[3000]);
  SAY("managed.both", digest(values, COUNT * sizeof(int)));
  cudaPointerAttributes attributes = {};
  OK(cudaPointerGetAttributes(&attributes, values));
  IS("managed.type", cudaMemoryTypeManaged, attributes.type);
#if CUDART_VERSION >= 13000
  cudaMemLocation gpu = {}, cpu = {};
  gpu.type = cudaMemLocationTypeDevice;
  cpu.type = cudaMemLocationTypeHost;
  SAY_CODE("managed.prefetch_device", cudaMemPrefetchAsync(values, COUNT * sizeof(int), gpu, 0, 0));
  SAY_CODE("managed.prefetch_host", cudaMemPrefetchAsync(values, COUNT * sizeof(int), cpu, 0, 0));
  SAY_CODE("managed.advise", cudaMemAdvise(values, COUNT * sizeof(int), cudaMemAdviseSetReadMostly, gpu));
#endif
  OK(cudaDeviceSynchronize());
  SAY("managed.after_prefetch", digest(values, COUNT * sizeof(int)));
  // read(2) into managed memory that a kernel wrote last.
  int ends[2];
  if (pipe(ends) == 0) {
    const int sent[2] = {42, 43};
    IS("managed.pipe_write", sizeof sent, write(ends[1], sent, sizeof sent));
    IS("managed.pipe_read", sizeof sent, read(ends[0], values, sizeof sent));
    add_to_each<<<1, 2>>>(values, 2, 100);
    OK(cudaDeviceSynchronize());
    IS("managed.after_read", 142 + 143, values[0] + values[1]);
    close(ends[0]);
    close(ends[1]);
  }
  OK(cudaFree(values));
  for (int i = 0; i < 256; i++) managed_values[i] = i;
  add_to_managed<<<1, 256>>>(1000);
  OK(cudaDeviceSynchronize());
  IS("managed.variable", 1255, managed_values[255]);
}

static void test_mapped() {
  enum { COUNT = 1 << 16 };
  int *host = NULL, *device = NULL, *other = NULL;
  OK(cudaHostAlloc(&host, COUNT * sizeof(int), cudaHostAllocMapped));
  OK(cudaHostGetDevicePointer((void**)&device, host, 0));
  IS("mapped.same_address", 1, (void*)host == (void*)device);
  fill(host, COUNT, 4);
  add_to_each<<<COUNT / 256, 256>>>(device, COUNT, 11);
  OK(cudaDeviceSynchronize());
  SAY("mapped.kernel", digest(host, COUNT * sizeof(int)));
  host[5] = 1;
  add_to_each<<<1, 32>>>(device, 32, 1);
  OK(cudaStreamSynchronize(0));
  IS("mapped.again", 2, host[5]);
  OK(cudaMalloc(&other, COUNT * sizeof(int)));
  copy_ints<<<COUNT / 256, 256>>>(other, device, COUNT);
  IS("mapped.read_by_kernel", digest(host, COUNT * sizeof(int)), device_digest(other, COUNT * sizeof(int)));
  unsigned flags = 0;
  OK(cudaHostGetFlags(&flags, host));
  IS("mapped.flags", 1, (flags & cudaHostAllocMapped) != 0);
  cudaPointerAttributes attributes = {};
  OK(cudaPointerGetAttributes(&attributes, host + 100));
  IS("mapped.type", cudaMemoryTypeHost, attributes.type);
  OK(cudaFree(other));
  OK(cudaFreeHost(host));
  int* written = NULL;
  OK(cudaHostAlloc(&written, 4096, cudaHostAllocWriteCombined | cudaHostAllocPortable));
  OK(cudaFreeHost(written));
  CODE("mapped.twice", cudaErrorInvalidValue, cudaFreeHost((void*)&failures));
}

static void test_registered() {
  enum { COUNT = 1 << 16 };
  const size_t size = COUNT * sizeof(int);
  int *host = (int*)aligned_alloc(4096, size), *device = NULL, *seen = NULL;
  fill(host, COUNT, 6);
  OK(cudaMalloc(&device, size));
  OK(cudaHostRegister(host, size, cudaHostRegisterMapped | cudaHostRegisterPortable));
  CODE("registered.twice", cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(host, size, 0));
  OK(cudaMemcpyAsync(device, host, size, cudaMemcpyHostToDevice, 0));
  add_to_each<<<COUNT / 256, 256>>>(device, COUNT, 2);
  OK(cudaMemcpyAsync(host, device, size, cudaMemcpyDeviceToHost, 0));
  OK(cudaStreamSynchronize(0));
  SAY("registered.copied", digest(host, size));
  SAY_CODE("registered.device_pointer", cudaHostGetDevicePointer((void**)&seen, host, 0));
  if (seen != NULL) {
    add_to_each<<<COUNT / 256, 256>>>(seen, COUNT, 3);
    OK(cudaDeviceSynchronize());
    SAY("registered.kernel", digest(host, size));
  }
  cudaPointerAttributes attributes = {};
  OK(cudaPointerGetAttributes(&attributes, host));
  IS("registered.type", cudaMemoryTypeHost, attributes.type);
  OK(cudaHostUnregister(host));
  CODE("registered.gone", cudaErrorHostMemoryNotRegistered, cudaHostUnregister(host));
  host[0] = 77;
  OK(cudaMemcpy(device, host, size, cudaMemcpyHostToDevice));
  IS("registered.pageable_again", digest(host, size), device_digest(device, size));
  OK(cudaFree(device));
  free(host);
}

static void test_pools() {
  enum { COUNT = 1 << 18 };
  int supported = 0;
  OK(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, 0));
  IS("pools.supported", 1, supported);
  cudaStream_t stream;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int* values = NULL;
  OK(cudaMallocAsync(&values, COUNT * sizeof(int), stream));
  OK(cudaMemsetAsync(values, 0, COUNT * sizeof(int), stream));
  add_to_each<<<COUNT / 256, 256, 0, stream>>>(values, COUNT, 21);
  int last = 0;
  OK(cudaMemcpyAsync(&last, values + COUNT - 1, sizeof last, cudaMemcpyDeviceToHost, stream));
  OK(cudaFreeAsync(values, stream));
  OK(cudaStreamSynchronize(stream));
  IS("pools.value", 21, last);
  cudaMemPool_t pool = NULL, own = NULL;
  OK(cudaDeviceGetDefaultMemPool(&pool, 0));
  uint64_t threshold = 1 << 20, reserved = 0;
  OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  threshold = 0;
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  IS("pools.threshold", 1 << 20, threshold);
  OK(cudaMemPoolTrimTo(pool, 0));
  OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &reserved));
  IS("pools.used", 0, reserved);
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  OK(cudaMemPoolCreate(&own, &properties));
  int* chain[16];
  for (int i = 0; i < 16; i++) {
    OK(cudaMallocFromPoolAsync(&chain[i], 40000, own, stream));
    OK(cudaMemsetAsync(chain[i], i, 40000, stream));
  }
  unsigned all = 0;
  OK(cudaStreamSynchronize(stream));
  for (int i = 0; i < 16; i++) all = all * 31 + device_digest(chain[i], 40000);
  SAY("pools.chain", all);
  for (int i = 0; i < 16; i++) OK(cudaFreeAsync(chain[i], stream));
  OK(cudaStreamSynchronize(stream));
  OK(cudaMemPoolDestroy(own));
  SAY_CODE("pools.free_null", cudaFreeAsync(NULL, stream));
  OK(cudaStreamDestroy(stream));
}

static void test_out_of_memory() {
  void *huge = NULL, *small = NULL;
  CODE("oom.malloc", cudaErrorMemoryAllocation, cudaMalloc(&huge, 1ull << 46));
  IS("oom.pointer", 0, (intptr_t)huge);
  cudaMalloc(&huge, 1ull << 46);
  IS("oom.peek", cudaErrorMemoryAllocation, cudaPeekAtLastError());
  IS("oom.get", cudaErrorMemoryAllocation, cudaGetLastError());
  IS("oom.cleared", cudaSuccess, cudaGetLastError());
  // Fill the device to the last 256 MiB, ask for more, free, go on.
  size_t free_bytes = 0, total_bytes = 0;
  OK(cudaMemGetInfo(&free_bytes, &total_bytes));
  void* filled[4096];
  int count = 0;
  cudaError_t code = cudaSuccess;
  while (count < 4096 && (code = cudaMalloc(&filled[count], 256 << 20)) == cudaSuccess) count++;
  cudaGetLastError();
  IS("oom.filled", cudaErrorMemoryAllocation, code);
  IS("oom.filled_much", 1, count > 0 && (size_t)count * (256u << 20) <= total_bytes);
  for (int i = 0; i < count; i++) OK(cudaFree(filled[i]));
  OK(cudaMalloc(&small, 512 << 20));
  OK(cudaMemset(small, 1, 512 << 20));
  OK(cudaDeviceSynchronize());
  OK(cudaFree(small));
}

#endif  // ORION_TESTS_RUNTIME_MEMORY_H
