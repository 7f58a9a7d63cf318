// Kernels of the runtime: parameters, attributes, cooperative and cluster launches, host functions, device printf,
// errors.
#ifndef ORION_TESTS_RUNTIME_LAUNCHES_H
#define ORION_TESTS_RUNTIME_LAUNCHES_H

#include <cooperative_groups.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "memory.h"

// With the pointer before it: 4,096 bytes, the classic limit, and 32,764, the limit since CUDA 12.1.
struct large_block {
  int values[1022];
};
struct largest_block {
  int values[8189];
};

template <typename block>
__global__ void sum_parameters(int* out, const __grid_constant__ block parameters) {
  constexpr int COUNT = sizeof(block) / sizeof(int);
  unsigned sum = 0;
  for (int i = threadIdx.x; i < COUNT; i += blockDim.x) sum += (unsigned)parameters.values[i] * (unsigned)(i + 1);
  atomicAdd((unsigned*)out, sum);
}

template <typename block>
static void try_parameters(const char* name, const char* last) {
  constexpr int COUNT = sizeof(block) / sizeof(int);
  static block parameters;
  fill(parameters.values, COUNT, 12);
  int *out = NULL, got = 0;
  unsigned expected = 0;
  for (int i = 0; i < COUNT; i++) expected += (unsigned)parameters.values[i] * (unsigned)(i + 1);
  OK(cudaMalloc(&out, sizeof(int)));
  OK(cudaMemset(out, 0, sizeof(int)));
  sum_parameters<<<1, 128>>>(out, parameters);
  OK(cudaGetLastError());
  // The parameters belong to the caller again.
  memset(&parameters, 0, sizeof parameters);
  OK(cudaMemcpy(&got, out, sizeof got, cudaMemcpyDeviceToHost));
  IS(name, (int)expected, got);
  SAY(last, sizeof(int*) + sizeof(block));
  OK(cudaFree(out));
}

static void test_parameters() {
  try_parameters<large_block>("parameters.4096", "parameters.4096_bytes");
  try_parameters<largest_block>("parameters.32764", "parameters.32764_bytes");
}

/// Each block writes, all meet, each reads what another wrote: wrong unless the grid really runs together.
__global__ void meet(int* values, int* out) {
  cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  if (threadIdx.x == 0) values[blockIdx.x] = (int)blockIdx.x * 3 + 1;
  grid.sync();
  if (threadIdx.x == 0) out[blockIdx.x] = values[(blockIdx.x + 1) % gridDim.x];
}

static void test_cooperative() {
  int supported = 0, per_sm = 0, sms = 0, *values = NULL, *out = NULL;
  OK(cudaDeviceGetAttribute(&supported, cudaDevAttrCooperativeLaunch, 0));
  IS("cooperative.supported", 1, supported);
  OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, meet, 64, 0));
  OK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  SAY("cooperative.blocks_per_sm", per_sm);
  OK(cudaMalloc(&values, 1 << 20));
  OK(cudaMalloc(&out, 1 << 20));
  OK(cudaMemset(out, 0, 1 << 20));
  void* arguments[] = {&values, &out};
  OK(cudaLaunchCooperativeKernel((const void*)meet, dim3(sms), dim3(64), arguments, 0, 0));
  SAY("cooperative.met", device_digest(out, sms * sizeof(int)));
  const dim3 too_many(sms * per_sm + 1);
  CODE("cooperative.too_large", cudaErrorCooperativeLaunchTooLarge,
       cudaLaunchCooperativeKernel((const void*)meet, too_many, dim3(64), arguments, 0, 0));
  OK(cudaFree(values));
  OK(cudaFree(out));
}

__global__ void reverse_in_shared(int* values, int count) {
  extern __shared__ int shared[];
  for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = values[i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = shared[count - 1 - i];
}

static void test_shared() {
  enum { COUNT = 20000 };  // 80,000 bytes: more than a kernel gets without asking
  static int values[COUNT];
  fill(values, COUNT, 2);
  int* device = NULL;
  OK(cudaMalloc(&device, sizeof values));
  OK(cudaMemcpy(device, values, sizeof values, cudaMemcpyHostToDevice));
  reverse_in_shared<<<1, 256, sizeof values>>>(device, COUNT);
  IS("shared.not_asked", cudaErrorInvalidValue, cudaGetLastError());
  OK(cudaFuncSetAttribute(reverse_in_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof values));
  OK(cudaFuncSetAttribute(reverse_in_shared, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  reverse_in_shared<<<1, 256, sizeof values>>>(device, COUNT);
  OK(cudaGetLastError());
  OK(cudaDeviceSynchronize());
  SAY("shared.reversed", device_digest(device, sizeof values));
  CODE("shared.too_much", cudaErrorInvalidValue,
       cudaFuncSetAttribute(reverse_in_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20));
  cudaFuncAttributes attributes = {};
  OK(cudaFuncGetAttributes(&attributes, reverse_in_shared));
  SAY("shared.binary", attributes.binaryVersion);
  SAY("shared.ptx", attributes.ptxVersion);
  SAY("shared.registers", attributes.numRegs);
  SAY("shared.static_bytes", attributes.sharedSizeBytes);
  SAY("shared.local_bytes", attributes.localSizeBytes);
  SAY("shared.threads", attributes.maxThreadsPerBlock);
  IS("shared.dynamic", sizeof values, attributes.maxDynamicSharedSizeBytes);
  int blocks = 0, block_threads = 0;
  OK(cudaOccupancyMaxPotentialBlockSize(&blocks, &block_threads, reverse_in_shared, sizeof values, 0));
  SAY("shared.occupancy_blocks", blocks);
  SAY("shared.occupancy_threads", block_threads);
  OK(cudaFree(device));
}

__global__ void sum_of_cluster(int* out) {
#if __CUDA_ARCH__ >= 900
  __shared__ int mine;
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) mine = (int)blockIdx.x + 1;
  cluster.sync();
  if (threadIdx.x == 0 && cluster.block_rank() == 0) {
    int sum = 0;
    for (unsigned i = 0; i < cluster.num_blocks(); i++) sum += *cluster.map_shared_rank(&mine, i);
    out[blockIdx.x / cluster.num_blocks()] = sum;
  }
  cluster.sync();
#else
  if (threadIdx.x == 0) out[blockIdx.x] = -1;  // PTX of an older architecture knows no clusters
#endif
}

static void test_clusters() {
  int* out = NULL;
  OK(cudaMalloc(&out, 64 * sizeof(int)));
  OK(cudaMemset(out, 0, 64 * sizeof(int)));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(16);
  config.blockDim = dim3(32);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 4;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  SAY_CODE("clusters.launch", cudaLaunchKernelEx(&config, sum_of_cluster, out));
  OK(cudaDeviceSynchronize());
  SAY("clusters.sums", device_digest(out, 64 * sizeof(int)));
  int clusters = 0, most = 0;
  SAY_CODE("clusters.active", cudaOccupancyMaxActiveClusters(&clusters, sum_of_cluster, &config));
  SAY("clusters.active_count", clusters);
  SAY_CODE("clusters.potential", cudaOccupancyMaxPotentialClusterSize(&most, sum_of_cluster, &config));
  SAY("clusters.potential_size", most);
  attribute.val.clusterDim.x = 3;  // does not divide the grid
  SAY_CODE("clusters.odd", cudaLaunchKernelEx(&config, sum_of_cluster, out));
  attribute.val.clusterDim.x = 64;
  config.gridDim = dim3(64);
  SAY_CODE("clusters.too_large", cudaLaunchKernelEx(&config, sum_of_cluster, out));
  OK(cudaDeviceSynchronize());
  // Programmatic launch of the next kernel, and a priority, are attributes too.
  cudaLaunchAttribute others[2] = {};
  others[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  others[0].val.programmaticStreamSerializationAllowed = 1;
  others[1].id = cudaLaunchAttributePriority;
  others[1].val.priority = -1;
  config.gridDim = dim3(1);
  config.attrs = others;
  config.numAttrs = 2;
  SAY_CODE("clusters.attributes", cudaLaunchKernelEx(&config, add_to_each, out, 32, 1));
  OK(cudaDeviceSynchronize());
  OK(cudaFree(out));
}

struct call_record {
  int order[8];
  int count;
};

static void CUDART_CB append_one(void* data) {
  call_record* record = (call_record*)data;
  record->order[record->count] = record->count + 1;
  record->count++;
}

static void CUDART_CB append_ten(cudaStream_t, cudaError_t status, void* data) {
  call_record* record = (call_record*)data;
  record->order[record->count] = 10 * (record->count + 1) + (int)status;
  record->count++;
}

static void test_host_functions() {
  cudaStream_t stream;
  call_record record = {};
  int *device = NULL, *pinned = NULL;
  OK(cudaStreamCreate(&stream));
  OK(cudaMalloc(&device, sizeof(int)));
  OK(cudaMallocHost(&pinned, sizeof(int)));
  OK(cudaMemsetAsync(device, 0, sizeof(int), stream));
  add_to_each<<<1, 1, 0, stream>>>(device, 1, 5);
  OK(cudaLaunchHostFunc(stream, append_one, &record));
  OK(cudaStreamAddCallback(stream, append_ten, &record, 0));
  OK(cudaLaunchHostFunc(stream, append_one, &record));
  // What the host writes before the copy's turn is what is copied.
  *pinned = 1;
  struct writer {
    static void CUDART_CB write(void* data) { *(int*)data = 99; }
  };
  OK(cudaLaunchHostFunc(stream, writer::write, pinned));
  OK(cudaMemcpyAsync(device, pinned, sizeof(int), cudaMemcpyHostToDevice, stream));
  OK(cudaStreamSynchronize(stream));
  IS("host_functions.count", 3, record.count);
  IS("host_functions.order", 1 * 10000 + 20 * 100 + 3,
     record.order[0] * 10000 + record.order[1] * 100 + record.order[2]);
  int got = 0;
  OK(cudaMemcpy(&got, device, sizeof got, cudaMemcpyDeviceToHost));
  IS("host_functions.copied", 99, got);
  OK(cudaFree(device));
  OK(cudaFreeHost(pinned));
  OK(cudaStreamDestroy(stream));
}

/// By the runtime itself, or since it passes launches on unseen (13.0) by the driver.
static bool is_refused(const char* name, cudaError_t code) {
  SAY(name, code);
  return code == cudaErrorInvalidConfiguration || code == cudaErrorInvalidValue;
}

static void test_invalid() {
  int* device = NULL;
  OK(cudaMalloc(&device, 4096));
  add_to_each<<<1, 2048>>>(device, 1, 1);
  IS("invalid.threads_refused", 1, is_refused("invalid.threads", cudaGetLastError()));
  add_to_each<<<0, 32>>>(device, 1, 1);
  IS("invalid.no_blocks_refused", 1, is_refused("invalid.no_blocks", cudaGetLastError()));
  add_to_each<<<dim3(1, 70000), 32>>>(device, 1, 1);
  SAY("invalid.grid_y", cudaGetLastError());
  add_to_each<<<1, 32, 1 << 20>>>(device, 1, 1);
  IS("invalid.shared", cudaErrorInvalidValue, cudaGetLastError());
  cudaFuncAttributes attributes = {};
  // What is no function's name is taken for a handle by runtimes that have handles.
  const cudaError_t no_function = cudaFuncGetAttributes(&attributes, (const void*)&failures);
  cudaGetLastError();
  SAY("invalid.function", no_function);
  IS("invalid.function_refused", 1,
     no_function == cudaErrorInvalidDeviceFunction || no_function == cudaErrorInvalidResourceHandle);
  CODE("invalid.device", cudaErrorInvalidDevice, cudaSetDevice(1000));
  SAY_CODE("invalid.kind", cudaMemcpy(device, &failures, 4, (cudaMemcpyKind)77));
  CODE("invalid.free", cudaErrorInvalidValue, cudaFree((void*)0x10));
  SAY_CODE("invalid.symbol", cudaMemcpyToSymbol(&failures, &failures, 4));
  cudaEvent_t event, later;
  float ms = 0;
  OK(cudaEventCreate(&event));
  OK(cudaEventCreateWithFlags(&later, cudaEventDisableTiming));
  CODE("invalid.never_recorded", cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, event, event));
  OK(cudaEventRecord(later));
  OK(cudaEventRecord(event));
  OK(cudaDeviceSynchronize());
  CODE("invalid.untimed", cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, event, later));
  OK(cudaEventDestroy(event));
  OK(cudaEventDestroy(later));
  SAY_CODE("invalid.copy_out_of_bounds",
           cudaMemcpy(device, (char*)device + 2048, 1ull << 40, cudaMemcpyDeviceToDevice));
  SAY_CODE("invalid.null_copy", cudaMemcpy(NULL, device, 4, cudaMemcpyDeviceToHost));
  OK(cudaFree(device));
  SAY_CODE("invalid.double_free", cudaFree(device));
  SAY_CODE("invalid.peer", cudaDeviceEnablePeerAccess(0, 0));
  SAY_CODE("invalid.limit", cudaDeviceSetLimit((cudaLimit)99, 1));
  IS("invalid.name", 0, strcmp("cudaErrorInvalidValue", cudaGetErrorName(cudaErrorInvalidValue)));
}

__global__ void print_two(int a) {
  if (threadIdx.x == 0) printf("printf.kernel %d\n", a + 2);
}

static void test_printf() {
  print_two<<<1, 32>>>(40);
  OK(cudaDeviceSynchronize());
  fflush(stdout);
}

__global__ void allocate_on_heap(int* out) {
  int* mine = (int*)malloc(64 * sizeof(int));
  if (mine == NULL) return;
  for (int i = 0; i < 64; i++) mine[i] = i * (int)threadIdx.x;
  int sum = 0;
  for (int i = 0; i < 64; i++) sum += mine[i];
  out[threadIdx.x] = sum;
  free(mine);
}

__device__ __noinline__ int deep(int n, int* values) {
  int local[16];
  for (int i = 0; i < 16; i++) local[i] = values[i] + n;
  return n == 0 ? local[3] : local[n & 15] + deep(n - 1, local);
}

__global__ void recurse(int* values, int depth) { values[16] = deep(depth, values); }

/// The first section: the heap keeps its size once code that allocates from it is loaded.
static void test_limits() {
  int* out = NULL;
  size_t bytes = 0;
  OK(cudaDeviceSetLimit(cudaLimitMallocHeapSize, 16 << 20));
  OK(cudaDeviceGetLimit(&bytes, cudaLimitMallocHeapSize));
  IS("limits.heap", 16 << 20, bytes);
  OK(cudaDeviceSetLimit(cudaLimitStackSize, 16384));
  OK(cudaDeviceGetLimit(&bytes, cudaLimitStackSize));
  SAY("limits.stack", bytes);
  OK(cudaDeviceGetLimit(&bytes, cudaLimitPrintfFifoSize));
  SAY("limits.printf", bytes);
  OK(cudaMalloc(&out, 4096));
  OK(cudaMemset(out, 0, 4096));
  allocate_on_heap<<<1, 64>>>(out);
  OK(cudaDeviceSynchronize());
  SAY("limits.heap_sums", device_digest(out, 64 * sizeof(int)));
  OK(cudaMemset(out, 1, 4096));
  recurse<<<1, 1>>>(out, 40);
  OK(cudaDeviceSynchronize());
  SAY("limits.recursion", device_digest(out, 17 * sizeof(int)));
  OK(cudaFree(out));
  OK(cudaDeviceSetLimit(cudaLimitStackSize, 1024));
}

__global__ void write_anywhere(int* where) { *where = 1; }

static void test_fault() {
  int* device = NULL;
  OK(cudaMalloc(&device, 4096));
  write_anywhere<<<1, 1>>>((int*)0x7000);
  IS("fault.sync", cudaErrorIllegalAddress, cudaDeviceSynchronize());
  IS("fault.peek", cudaErrorIllegalAddress, cudaPeekAtLastError());
  IS("fault.malloc", cudaErrorIllegalAddress, cudaMalloc(&device, 64));
  IS("fault.copy", cudaErrorIllegalAddress, cudaMemcpy(device, &failures, 4, cudaMemcpyHostToDevice));
  add_to_each<<<1, 1>>>(device, 1, 1);
  IS("fault.launch", cudaErrorIllegalAddress, cudaGetLastError());
  SAY("fault.reset", cudaDeviceReset());
}

__global__ void trap_now() { asm("trap;"); }

static void test_trap() {
  trap_now<<<1, 1>>>();
  SAY("trap.sync", cudaDeviceSynchronize());
  SAY("trap.free", cudaFree(0));
}

static void test_fork() {
  OK(cudaFree(0));
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    void* memory = NULL;
    _exit((int)cudaMalloc(&memory, 64));
  }
  int status = 0;
  waitpid(child, &status, 0);
  IS("fork.child", cudaErrorInitializationError, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
  int* device = NULL;
  OK(cudaMalloc(&device, 64));
  OK(cudaFree(device));
}

static void test_reset() {
  int* device = NULL;
  for (int round = 0; round < 2; round++) {
    OK(cudaMalloc(&device, 4096));
    OK(cudaMemset(device, 0, 4096));
    add_to_each<<<1, 32>>>(device, 32, 4);
    SAY("reset.digest", device_digest(device, 4096));
    OK(cudaDeviceReset());
  }
}

#endif  // ORION_TESTS_RUNTIME_LAUNCHES_H
