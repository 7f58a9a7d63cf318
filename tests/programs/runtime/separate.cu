// The second file of the -rdc=true build of runtime_api.cu.
#include <cuda_runtime.h>

__device__ int shared_counter;

__device__ int from_elsewhere(int value) {
  atomicAdd(&shared_counter, 1);
  return value * value + 1;
}

static __global__ void here(int* out) { out[threadIdx.x] = from_elsewhere((int)threadIdx.x + 100); }

void launch_elsewhere(int* out) { here<<<1, 32>>>(out); }
