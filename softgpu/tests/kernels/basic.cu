// Kernels of the software GPU's tests. Compiled once to ../ptx/basic.ptx, see README.md.
#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <stdio.h>

#define KERNEL extern "C" __global__ void

KERNEL vecadd(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

KERNEL saxpy_stride(float a, const float* x, float* y, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + y[i];
}

KERNEL block_reduce(const float* in, float* out) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = in[blockIdx.x * 256 + t];
  __syncthreads();
  for (int k = 128; k; k >>= 1) {
    if (t < k) s[t] += s[t + k];
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = s[0];
}

KERNEL warp_reduce(const int* in, int* down, int* butterfly) {
  int v = in[blockIdx.x * blockDim.x + threadIdx.x], w = v;
  for (int k = 16; k; k >>= 1) v += __shfl_down_sync(~0u, v, k);
  for (int k = 16; k; k >>= 1) w += __shfl_xor_sync(~0u, w, k);
  int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) down[warp] = v;
  butterfly[blockIdx.x * blockDim.x + threadIdx.x] = w;
}

KERNEL histogram(const uint32_t* in, int n, uint32_t* counts, float* sums, uint32_t* top, uint32_t* by_cas) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint32_t v = in[i];
  atomicAdd(&counts[v % 16], 1);
  atomicAdd(&sums[v % 16], 1.0f);
  atomicMax(top, v);
  uint32_t old = *by_cas, seen;
  do {
    seen = old;
    old = atomicCAS(by_cas, seen, seen + (v & 3));
  } while (old != seen);
}

KERNEL matmul(const float* a, const float* b, float* c, int n) {
  __shared__ float sa[16][16], sb[16][16];
  int x = threadIdx.x, y = threadIdx.y, col = blockIdx.x * 16 + x, row = blockIdx.y * 16 + y;
  float sum = 0;
  for (int k = 0; k < n; k += 16) {
    sa[y][x] = a[row * n + k + x];
    sb[y][x] = b[(k + y) * n + col];
    __syncthreads();
    for (int i = 0; i < 16; ++i) sum += sa[y][i] * sb[i][x];
    __syncthreads();
  }
  c[row * n + col] = sum;
}

KERNEL math_f32(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = sinf(x[i]);
  out[n + i] = expf(x[i] * 0.001f);
  out[2 * n + i] = logf(fabsf(x[i]) + 1);
  out[3 * n + i] = powf(fabsf(x[i]) + 0.5f, 0.7f);
  out[4 * n + i] = tanhf(x[i]);
  out[5 * n + i] = sqrtf(fabsf(x[i]));
  out[6 * n + i] = 1.0f / (fabsf(x[i]) + 1);
}

KERNEL math_f64(const double* x, double* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = sin(x[i]);
  out[n + i] = exp(x[i] * 1e-6);
  out[2 * n + i] = log(fabs(x[i]) + 1);
  out[3 * n + i] = pow(fabs(x[i]) + 0.5, 0.7);
  out[4 * n + i] = erf(x[i] * 1e-6);
  out[5 * n + i] = 1 / (fabs(x[i]) + 1);
  out[6 * n + i] = fmod(x[i], 3.7);
}

KERNEL int64_ops(const int64_t* a, const int64_t* b, int64_t* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = a[i] * b[i];
  out[n + i] = __mul64hi(a[i], b[i]);
  out[2 * n + i] = a[i] / b[i];
  out[3 * n + i] = a[i] % b[i];
  out[4 * n + i] = __popcll(a[i]);
  out[5 * n + i] = __clzll(a[i]);
}

KERNEL half_ops(const __half* a, const __half* b, __half* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = __hadd(a[i], b[i]);
  out[n + i] = __hmul(a[i], b[i]);
  out[2 * n + i] = __hfma(a[i], b[i], a[i]);
  out[3 * n + i] = __float2half(__half2float(a[i]) * 3.0f);
}

KERNEL local_array(const int* in, int* out, int n) {
  int t = threadIdx.x, a[32];
  for (int i = 0; i < 32; ++i) a[i] = in[(t + i) % n];
  int s = 0;
  for (int i = 0; i < 32; ++i) s = s * 3 + a[(in[t] + i) & 31];
  out[t] = s;
}

__device__ __noinline__ int fib(int n, int* calls) {
  atomicAdd(calls, 1);
  return n < 2 ? n : fib(n - 1, calls) + fib(n - 2, calls);
}
KERNEL recursion(int* out, int* calls) { out[threadIdx.x] = fib(threadIdx.x, calls); }

typedef int (*Op)(int, int);
__device__ __noinline__ int op_add(int a, int b) { return a + b; }
__device__ __noinline__ int op_mul(int a, int b) { return a * b; }
__device__ __noinline__ int op_sub(int a, int b) { return a - b; }
__device__ Op ops[3] = {op_add, op_mul, op_sub};
KERNEL function_pointers(const int* which, int* out) {
  int t = threadIdx.x;
  out[t] = ops[which[t]](t, 7);
}

KERNEL switch_case(const int* in, int* out) {
  int v = in[threadIdx.x], r;
  switch (v) {
    case 0: r = v + 10; break;
    case 1: r = v * 20 + 1; break;
    case 2: r = 7 - v; break;
    case 3: r = v << 4; break;
    case 4: r = ~v; break;
    case 5: r = v * v * v; break;
    default: r = -1;
  }
  out[threadIdx.x] = r;
}

KERNEL dynamic_shared(const int* in, int* out) {
  extern __shared__ int s[];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}

__constant__ float table[4] = {1.5f, 2.5f, -3.5f, 4.5f};
__device__ int counter = 5;
KERNEL constant_and_global(float* out) {
  out[threadIdx.x] = table[threadIdx.x & 3];
  if (threadIdx.x == 0) counter += 10;
}

KERNEL votes(const int* in, uint32_t* out) {
  int t = threadIdx.x;
  out[t] = __ballot_sync(~0u, in[t] > 0);
  out[32 + t] = __any_sync(~0u, in[t] > 90);
  out[64 + t] = __all_sync(~0u, in[t] > -1);
  out[96 + t] = __match_any_sync(~0u, in[t] & 3);
  out[128 + t] = __reduce_add_sync(~0u, in[t]);
  if (t & 1) out[160 + t] = __activemask();
}

// Every thread of a block, also those of one warp, takes the lock in turn.
KERNEL spinlock(int* lock, int* value) {
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *(volatile int*)value = *(volatile int*)value + 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}

KERNEL sync_counts(const int* in, int* out) {
  int t = threadIdx.x, v = in[t];
  out[t] = __syncthreads_count(v > 2);
  out[blockDim.x + t] = __syncthreads_and(v >= 0) != 0;
  out[2 * blockDim.x + t] = __syncthreads_or(v == 5) != 0;
}

KERNEL print_some(int x) {
  if (threadIdx.x < 2) {
    printf("thread %d of %u: %s %5.2f|%-6lld|%x|%c%%\n", threadIdx.x, blockDim.x, "text", 1.25 * x, -12345678901ll + x, x,
           'A' + threadIdx.x);
  }
}

KERNEL check_positive(const int* in) { assert(in[threadIdx.x] > 0); }

KERNEL trap_if(const int* in) {
  if (in[threadIdx.x] == 3) __trap();
}

KERNEL spin_forever(volatile int* flag) {
  while (*flag == 0) {
  }
}

struct Pair {
  int a;
  double b;
  float c[3];
};
KERNEL struct_param(Pair p, double* out) {
  out[threadIdx.x] = p.a + p.b + p.c[threadIdx.x % 3];
}

// Producer and consumer in one warp, apart in their control flow.
KERNEL warp_barrier(int* out) {
  __shared__ volatile int s[32];
  int t = threadIdx.x;
  if (t < 16) {
    s[t] = t * 2;
    __syncwarp();
  } else {
    s[t] = t * 3;
    __syncwarp();
  }
  out[t] = s[31 - t];
}

KERNEL heap(int** slots, int* out) {
  int* p = (int*)malloc(8 * sizeof(int));
  for (int i = 0; i < 8; ++i) p[i] = threadIdx.x + i;
  int sum = 0;
  for (int i = 0; i < 8; ++i) sum += p[i];
  out[threadIdx.x] = sum;
  slots[threadIdx.x] = p;
  free(p);
}
