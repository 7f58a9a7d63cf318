// What programs do with kernels beyond a launch: warps and tiles, asynchronous copies into shared memory, last-block
// reductions, inline PTX, function pointers and objects in device memory, atomics seen by the host, code loaded at run
// time, assertions.
#ifndef ORION_TESTS_RUNTIME_TECHNIQUES_H
#define ORION_TESTS_RUNTIME_TECHNIQUES_H

#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <mma.h>

#include <cuda/barrier>

#include "harness.h"
#include "memory.h"

/// One atomic for all threads of a warp that pass, each with a place of its own: places are dense in any order.
__global__ void keep_if_divisible(int* kept, int* count, const int* values, int total, int divisor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total || values[i] % divisor != 0) return;
  const cooperative_groups::coalesced_group active = cooperative_groups::coalesced_threads();
  int first = 0;
  if (active.thread_rank() == 0) first = atomicAdd(count, (int)active.size());
  kept[active.shfl(first, 0) + active.thread_rank()] = values[i];
}

__global__ void in_a_warp(unsigned* out) {
  const int lane = threadIdx.x;
  const unsigned value = (unsigned)(lane * lane + 3);
  unsigned* mine = out + lane * 10;
  mine[0] = __ballot_sync(0xFFFFFFFFu, value % 3 == 0);
  mine[1] = (unsigned)__any_sync(0xFFFFFFFFu, lane == 31) * 2 + (unsigned)__all_sync(0xFFFFFFFFu, lane < 31);
  mine[2] = __shfl_up_sync(0xFFFFFFFFu, value, 5);
  mine[3] = __shfl_down_sync(0xFFFFFFFFu, value, 3, 8);
  mine[4] = __shfl_xor_sync(0xFFFFFFFFu, value, 21);
  mine[5] = __match_any_sync(0xFFFFFFFFu, lane % 5);
  mine[6] = __reduce_add_sync(0xFFFFFFFFu, value) + __reduce_max_sync(0xFFFFFFFFu, value);
  const auto tile = cooperative_groups::tiled_partition<8>(cooperative_groups::this_thread_block());
  mine[7] = cooperative_groups::reduce(tile, value, cooperative_groups::plus<unsigned>());
  mine[8] = tile.meta_group_rank() * 100 + tile.thread_rank();
  const cooperative_groups::coalesced_group part = cooperative_groups::labeled_partition(tile, lane % 2);
  mine[9] = (unsigned)part.size() * 100 + part.thread_rank();
}

static void test_warps() {
  enum { COUNT = 10000 };
  static int values[COUNT], back[COUNT];
  int *device = NULL, *kept = NULL, *count = NULL, got = 0, expected = 0;
  long long expected_sum = 0, sum = 0;
  for (int i = 0; i < COUNT; i++) {
    values[i] = (i * 7919) % 10007;
    if (values[i] % 3 == 0) expected++, expected_sum += values[i];
  }
  OK(cudaMalloc(&device, sizeof values));
  OK(cudaMalloc(&kept, sizeof values));
  OK(cudaMalloc(&count, sizeof(int)));
  OK(cudaMemset(count, 0, sizeof(int)));
  OK(cudaMemcpy(device, values, sizeof values, cudaMemcpyHostToDevice));
  keep_if_divisible<<<(COUNT + 255) / 256, 256>>>(kept, count, device, COUNT, 3);
  OK(cudaMemcpy(&got, count, sizeof got, cudaMemcpyDeviceToHost));
  IS("warps.kept", expected, got);
  OK(cudaMemcpy(back, kept, sizeof(int) * (size_t)expected, cudaMemcpyDeviceToHost));
  for (int i = 0; i < expected; i++) sum += back[i];
  IS("warps.kept_sum", expected_sum, sum);
  in_a_warp<<<1, 32>>>((unsigned*)device);
  OK(cudaGetLastError());
  SAY("warps.digest", device_digest(device, 32 * 10 * sizeof(unsigned)));
  OK(cudaFree(device));
  OK(cudaFree(kept));
  OK(cudaFree(count));
}

__device__ unsigned blocks_done;

/// Every block leaves its sum; the one that finds itself last adds them up, in one launch.
__global__ void sum_by_last_block(int* partial, int* out, const int* values, int count) {
  __shared__ int sums[256];
  __shared__ bool last;
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += values[i];
  sums[threadIdx.x] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sums[0];
    __threadfence();
    last = atomicInc(&blocks_done, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int all = 0;
    for (int i = 0; i < gridDim.x; i++) all += ((volatile int*)partial)[i];
    *out = all;
  }
}

static void test_fence() {
  enum { COUNT = 1 << 20, BLOCKS = 64 };
  static int values[COUNT];
  unsigned expected = 0;
  fill(values, COUNT, 31);
  for (int i = 0; i < COUNT; i++) expected += (unsigned)values[i];
  int *device = NULL, *partial = NULL, *out = NULL, got = 0;
  OK(cudaMalloc(&device, sizeof values));
  OK(cudaMalloc(&partial, BLOCKS * sizeof(int)));
  OK(cudaMalloc(&out, sizeof(int)));
  OK(cudaMemcpy(device, values, sizeof values, cudaMemcpyHostToDevice));
  for (int round = 0; round < 3; round++) {
    OK(cudaMemset(out, 0, sizeof(int)));
    sum_by_last_block<<<BLOCKS, 256>>>(partial, out, device, COUNT);
    OK(cudaMemcpy(&got, out, sizeof got, cudaMemcpyDeviceToHost));
    IS("fence.sum", (int)expected, got);
  }
  OK(cudaFree(device));
  OK(cudaFree(partial));
  OK(cudaFree(out));
}

// A barrier in shared memory has a constructor that does nothing: init() below makes it.
#pragma nv_diag_suppress static_var_with_dynamic_init

/// Rows come into shared memory beside the arithmetic: by a barrier that counts bytes, and by a group's own copy.
__global__ void through_shared(int* out, const int* values, int rows) {
  __shared__ alignas(16) int row[256];
  __shared__ cuda::barrier<cuda::thread_scope_block> arrived;
  const auto block = cooperative_groups::this_thread_block();
  if (block.thread_rank() == 0) init(&arrived, blockDim.x);
  block.sync();
  int sum = 0;
  for (int i = 0; i < rows; i++) {
    const int* from = values + (size_t)(blockIdx.x * rows + i) * 256;
    if (i % 2 == 0) {
      cuda::memcpy_async(block, row, from, cuda::aligned_size_t<16>(sizeof row), arrived);
      arrived.arrive_and_wait();
    } else {
      cooperative_groups::memcpy_async(block, row, from, sizeof row);
      cooperative_groups::wait(block);
    }
    sum = sum * 3 + row[255 - threadIdx.x];
    block.sync();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

static void test_async_copies() {
  enum { BLOCKS = 8, ROWS = 6, COUNT = BLOCKS * ROWS * 256 };
  static int values[COUNT], back[BLOCKS * 256];
  fill(values, COUNT, 14);
  int *device = NULL, *out = NULL;
  OK(cudaMalloc(&device, sizeof values));
  OK(cudaMalloc(&out, sizeof back));
  OK(cudaMemcpy(device, values, sizeof values, cudaMemcpyHostToDevice));
  through_shared<<<BLOCKS, 256>>>(out, device, ROWS);
  OK(cudaGetLastError());
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  unsigned expected = 0;
  for (int i = 0; i < ROWS; i++) expected = expected * 3 + (unsigned)values[(3 * ROWS + i) * 256 + 255 - 17];
  IS("async_copies.value", (int)expected, back[3 * 256 + 17]);
  SAY("async_copies.digest", digest(back, sizeof back));
  OK(cudaFree(device));
  OK(cudaFree(out));
}

__global__ void by_ptx(unsigned* out) {
  unsigned lane, bits, bytes, wide[2], sum, carry;
  const unsigned value = threadIdx.x * 0x01234567u + 89;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  asm("bfe.u32 %0, %1, 5, 11;" : "=r"(bits) : "r"(value));
  asm("prmt.b32 %0, %1, %2, 0x5410;" : "=r"(bytes) : "r"(value), "r"(~value));
  asm("{ .reg .u64 product; mul.wide.u32 product, %2, %2; mov.b64 {%0, %1}, product; }"
      : "=r"(wide[0]), "=r"(wide[1])
      : "r"(value));
  asm("add.cc.u32 %0, %2, %2;\n\taddc.u32 %1, 0, 0;" : "=r"(sum), "=r"(carry) : "r"(value));
  unsigned* mine = out + threadIdx.x * 8;
  mine[0] = lane;
  mine[1] = bits;
  mine[2] = bytes;
  mine[3] = wide[0];
  mine[4] = wide[1];
  mine[5] = sum;
  mine[6] = carry;
  mine[7] = __funnelshift_l(value, bits, 9) ^ (unsigned)__dp4a((int)value, (int)bytes, 1) ^ __brev(value);
}

/// Clocks only have to go on.
__global__ void clocks_go_on(int* out) {
  const clock_t start = clock();
  const long long start64 = clock64();
  unsigned long long nanoseconds, later;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  while (clock64() - start64 < 100000) {
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(later));
  out[0] = clock() != start;
  out[1] = later >= nanoseconds;
}

static void test_ptx() {
  unsigned back[64 * 8] = {};
  void* out = NULL;
  OK(cudaMalloc(&out, sizeof back));
  by_ptx<<<1, 64>>>((unsigned*)out);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  const unsigned value = 40u * 0x01234567u + 89;
  IS("ptx.lane", 8, back[40 * 8]);
  IS("ptx.bits", (value >> 5) & 0x7FF, back[40 * 8 + 1]);
  IS("ptx.wide", (unsigned)(((unsigned long long)value * value) >> 32), back[40 * 8 + 4]);
  IS("ptx.carry", value >> 31, back[40 * 8 + 6]);
  SAY("ptx.digest", digest(back, sizeof back));
  clocks_go_on<<<1, 1>>>((int*)out);
  OK(cudaMemcpy(back, out, 8, cudaMemcpyDeviceToHost));
  IS("ptx.clock", 1, back[0]);
  IS("ptx.globaltimer", 1, back[1]);
  OK(cudaFree(out));
}

typedef int (*operation)(int, int);
__device__ int sum_of(int a, int b) { return a + b; }
__device__ int product_of(int a, int b) { return a * b; }
__device__ operation chosen_sum = sum_of;
__device__ operation chosen_product = product_of;

__global__ void apply(int* out, operation chosen) { out[threadIdx.x] = chosen((int)threadIdx.x, (int)threadIdx.x + 5); }

struct shape {
  __device__ virtual int area() const = 0;
  __device__ virtual ~shape() {}
};
struct square : shape {
  int side;
  __device__ explicit square(int length) : side(length) {}
  __device__ int area() const override { return side * side; }
};
struct oblong : shape {
  int width, height;
  __device__ oblong(int w, int h) : width(w), height(h) {}
  __device__ int area() const override { return width * height; }
};

__global__ void make_shapes(shape** shapes) {
  const int i = threadIdx.x;
  shapes[i] = i % 2 ? (shape*)new square(i) : (shape*)new oblong(i, 3);
}

/// Another launch than the one that made them: objects and their tables stay in the device's heap.
__global__ void use_shapes(int* out, shape** shapes) {
  out[threadIdx.x] = shapes[threadIdx.x]->area();
  delete shapes[threadIdx.x];
}

static void test_pointers() {
  int back[64], *out = NULL;
  shape** shapes = NULL;
  operation sum = NULL, product = NULL;
  OK(cudaMalloc(&out, sizeof back));
  OK(cudaMalloc(&shapes, 64 * sizeof(shape*)));
  OK(cudaMemcpyFromSymbol(&sum, chosen_sum, sizeof sum));
  OK(cudaMemcpyFromSymbol(&product, chosen_product, sizeof product));
  IS("pointers.differ", 1, sum != product);
  apply<<<1, 64>>>(out, sum);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("pointers.sum", 9 + 14, back[9]);
  apply<<<1, 64>>>(out, product);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("pointers.product", 9 * 14, back[9]);
  make_shapes<<<1, 64>>>(shapes);
  use_shapes<<<1, 64>>>(out, shapes);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("pointers.square", 81, back[9]);
  IS("pointers.oblong", 30, back[10]);
  OK(cudaFree(out));
  OK(cudaFree(shapes));
}

__global__ void count_everywhere(int* values, int rounds) {
  for (int i = 0; i < rounds; i++) {
    atomicAdd_system(values, 1);
    atomicMax_system(values + 1, (int)(blockIdx.x * blockDim.x + threadIdx.x));
    atomicOr_system(values + 2, 1 << (threadIdx.x % 31));
    atomicXor_system(values + 3, (int)threadIdx.x);
  }
  atomicCAS_system(values + 4, 0, 77);
}

static void test_system_atomics() {
  int* values = NULL;
  OK(cudaHostAlloc(&values, 64, cudaHostAllocMapped));
  memset(values, 0, 64);
  values[0] = 1000;
  count_everywhere<<<4, 64>>>(values, 3);
  OK(cudaDeviceSynchronize());
  IS("system_atomics.add", 1000 + 4 * 64 * 3, values[0]);
  IS("system_atomics.max", 255, values[1]);
  IS("system_atomics.or", 0x7FFFFFFF, values[2]);
  IS("system_atomics.xor", 0, values[3]);
  IS("system_atomics.cas", 77, values[4]);
  OK(cudaFreeHost(values));
}

__global__ void multiply_bytes(int* out, const signed char* a, const signed char* b) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, int> sum;
  wmma::fill_fragment(sum, 0);
  wmma::load_matrix_sync(left, a, 16);
  wmma::load_matrix_sync(right, b, 16);
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

__global__ void multiply_bf16(float* out, const __nv_bfloat16* a, const __nv_bfloat16* b) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  wmma::load_matrix_sync(left, a, 16);
  wmma::load_matrix_sync(right, b, 16);
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

__global__ void multiply_doubles(double* out, const double* a, const double* b) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 8, 8, 4, double, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 8, 8, 4, double, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 8, 8, 4, double> sum;
  wmma::fill_fragment(sum, 0.0);
  wmma::load_matrix_sync(left, a, 4);
  wmma::load_matrix_sync(right, b, 4);
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(out, sum, 8, wmma::mem_row_major);
}

/// Element [2][3] of a product of rows of `a` with rows of `b`, small whole numbers in every type.
template <typename in_type, typename out_type>
static void try_tiles(const char* name, void (*multiply)(out_type*, const in_type*, const in_type*), int size,
                      int depth) {
  in_type a[256], b[256];
  out_type back[256];
  in_type *da = NULL, *db = NULL;
  out_type* out = NULL;
  for (int i = 0; i < 256; i++) {
    a[i] = (in_type)(float)(i % 7);
    b[i] = (in_type)(float)(i % 5 - 2);
  }
  OK(cudaMalloc(&da, sizeof a));
  OK(cudaMalloc(&db, sizeof b));
  OK(cudaMalloc(&out, sizeof back));
  OK(cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice));
  OK(cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice));
  multiply<<<1, 32>>>(out, da, db);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  int expected = 0;
  for (int k = 0; k < depth; k++) expected += ((2 * depth + k) % 7) * ((3 * depth + k) % 5 - 2);
  IS(name, expected, back[2 * size + 3]);
  OK(cudaFree(da));
  OK(cudaFree(db));
  OK(cudaFree(out));
}

static void test_tiles() {
  try_tiles("tiles.bytes", multiply_bytes, 16, 16);
  try_tiles("tiles.bf16", multiply_bf16, 16, 16);
  try_tiles("tiles.doubles", multiply_doubles, 8, 4);
}

static const char RUN_TIME_PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .global .align 4 .u32 factor = 3;\n"
    ".visible .entry scale(.param .u64 to, .param .u32 amount) {\n"
    "  .reg .u64 %rd<4>;\n  .reg .u32 %r<5>;\n"
    "  ld.param.u64 %rd1, [to];\n  ld.param.u32 %r1, [amount];\n"
    "  mov.u32 %r2, %tid.x;\n  ld.global.u32 %r3, [factor];\n"
    "  mad.lo.u32 %r4, %r2, %r3, %r1;\n"
    "  mul.wide.u32 %rd2, %r2, 4;\n  add.u64 %rd3, %rd1, %rd2;\n"
    "  st.global.u32 [%rd3], %r4;\n  ret;\n}\n";

static void test_run_time_code() {
#if CUDART_VERSION >= 13000
  cudaLibrary_t library = NULL;
  cudaKernel_t kernel = NULL;
  int back[32], *out = NULL, amount = 100;
  unsigned count = 0;
  OK(cudaMalloc(&out, sizeof back));
  OK(cudaLibraryLoadData(&library, RUN_TIME_PTX, NULL, NULL, 0, NULL, NULL, 0));
  OK(cudaLibraryGetKernelCount(&count, library));
  IS("run_time_code.kernels", 1, count);
  OK(cudaLibraryGetKernel(&kernel, library, "scale"));
  void* arguments[] = {&out, &amount};
  OK(cudaLaunchKernel((const void*)kernel, dim3(1), dim3(32), arguments, 0, 0));
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("run_time_code.value", 7 * 3 + 100, back[7]);
  void* factor = NULL;
  size_t bytes = 0;
  OK(cudaLibraryGetGlobal(&factor, &bytes, library, "factor"));
  IS("run_time_code.global", sizeof(int), bytes);
  const int ten = 10;
  OK(cudaMemcpy(factor, &ten, sizeof ten, cudaMemcpyHostToDevice));
  OK(cudaLaunchKernel((const void*)kernel, dim3(1), dim3(32), arguments, 0, 0));
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("run_time_code.changed", 7 * 10 + 100, back[7]);
  SAY_CODE("run_time_code.no_kernel", cudaLibraryGetKernel(&kernel, library, "no_such_kernel"));
  OK(cudaLibraryUnload(library));
  SAY_CODE("run_time_code.no_code", cudaLibraryLoadData(&library, "no code", NULL, NULL, 0, NULL, NULL, 0));
  OK(cudaFree(out));
  // The driver's own functions, asked of the runtime: memory and contexts are the same ones.
  typedef int (*address_range_function)(unsigned long long*, size_t*, unsigned long long);
  address_range_function address_range = NULL;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  OK(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", (void**)&address_range, 12000, cudaEnableDefault,
                                      &found));
  IS("run_time_code.entry_point", cudaDriverEntryPointSuccess, found);
  OK(cudaMalloc(&out, 4096));
  unsigned long long base = 0;
  IS("run_time_code.range", 0, address_range(&base, &bytes, (unsigned long long)(out + 100)));
  IS("run_time_code.range_base", 1, base == (unsigned long long)out);
  IS("run_time_code.range_size", 4096, bytes);
  SAY_CODE("run_time_code.no_entry_point", cudaGetDriverEntryPointByVersion("cuNoSuchFunction", (void**)&address_range,
                                                                            12000, cudaEnableDefault, &found));
  SAY("run_time_code.not_found", found);
  OK(cudaFree(out));
#endif
}

/// Hints about caches: programs set them where the device says that it has them.
static void test_cache_hints() {
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  SAY("cache_hints.window", properties.accessPolicyMaxWindowSize);
  SAY("cache_hints.persisting", properties.persistingL2CacheMaxSize);
  int* device = NULL;
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  OK(cudaMalloc(&device, 1 << 20));
  OK(cudaMemset(device, 0, 1 << 20));
  SAY_CODE("cache_hints.limit",
           cudaDeviceSetLimit(cudaLimitPersistingL2CacheSize, properties.persistingL2CacheMaxSize));
  cudaStreamAttrValue hint = {}, seen = {};
  hint.accessPolicyWindow.base_ptr = device;
  hint.accessPolicyWindow.num_bytes = 1 << 16;
  hint.accessPolicyWindow.hitRatio = 0.5f;
  hint.accessPolicyWindow.hitProp = cudaAccessPropertyPersisting;
  hint.accessPolicyWindow.missProp = cudaAccessPropertyStreaming;
  SAY_CODE("cache_hints.set", cudaStreamSetAttribute(stream, cudaStreamAttributeAccessPolicyWindow, &hint));
  SAY_CODE("cache_hints.get", cudaStreamGetAttribute(stream, cudaStreamAttributeAccessPolicyWindow, &seen));
  SAY("cache_hints.bytes", seen.accessPolicyWindow.num_bytes);
  add_to_each<<<64, 256, 0, stream>>>(device, 64 * 256, 8);
  OK(cudaStreamSynchronize(stream));
  SAY("cache_hints.digest", device_digest(device, 1 << 20));
  SAY_CODE("cache_hints.reset", cudaCtxResetPersistingL2Cache());
  OK(cudaStreamDestroy(stream));
  OK(cudaFree(device));
}

__global__ void assert_below(int limit) { assert((int)threadIdx.x < limit); }

/// The message goes to standard error, which is not compared; its code is.
static void test_assert() {
  assert_below<<<1, 64>>>(64);
  IS("assert.holds", cudaSuccess, cudaDeviceSynchronize());
  assert_below<<<1, 64>>>(60);
  IS("assert.fails", cudaErrorAssert, cudaDeviceSynchronize());
  void* memory = NULL;
  IS("assert.stays", cudaErrorAssert, cudaMalloc(&memory, 64));
}

#endif  // ORION_TESTS_RUNTIME_TECHNIQUES_H
