// A program of the CUDA runtime, for what the driver-API programs beside it cannot show: what nvcc and cudart add.
//
//   nvcc -arch=sm_90 runtime_api.cu -o runtime_api                       static cudart
//   nvcc -arch=sm_90 -cudart shared runtime_api.cu                       cudart as a library
//   nvcc -arch=sm_90 --default-stream per-thread runtime_api.cu          another meaning of stream 0
//   nvcc -arch=sm_90 -rdc=true runtime_api.cu separate.cu -lcudadevrt    device code of several files, linked
//   nvcc -gencode arch=compute_80,code=compute_80 runtime_api.cu         PTX alone
//
//   ./runtime_api [--list | section...]      lines `name value`; FAIL lines and exit status 1 where a promise is broken
//
// benchmarks/runtime_session.py builds all of them, runs each section natively and remotely, and compares every line.
#include "harness.h"
#include "images.h"
#include "launches.h"
#include "layers.h"
#include "memory.h"
#include "overlap.h"
#include "streams.h"
#include "techniques.h"

#ifdef __CUDACC_RDC__
// In separate.cu.
extern __device__ int from_elsewhere(int value);
extern __device__ int shared_counter;
void launch_elsewhere(int* out);

__global__ void call_elsewhere(int* out) { out[threadIdx.x] = from_elsewhere((int)threadIdx.x); }

__global__ void child(int* out, int value) { atomicAdd(out, value); }

__global__ void parent(int* out) { child<<<2, 16>>>(out, (int)threadIdx.x + 1); }

static void test_linked() {
  int* out = NULL;
  OK(cudaMalloc(&out, 256));
  OK(cudaMemset(out, 0, 256));
  call_elsewhere<<<1, 32>>>(out);
  launch_elsewhere(out + 32);
  OK(cudaDeviceSynchronize());
  SAY("linked.digest", device_digest(out, 256));
  int counter = 0;
  OK(cudaMemcpyFromSymbol(&counter, shared_counter, sizeof counter));
  IS("linked.counter", 64, counter);
  OK(cudaMemset(out, 0, 256));
  parent<<<1, 4>>>(out);
  OK(cudaGetLastError());
  OK(cudaDeviceSynchronize());
  int got = 0;
  OK(cudaMemcpy(&got, out, sizeof got, cudaMemcpyDeviceToHost));
  IS("linked.children", 32 * (1 + 2 + 3 + 4), got);
  OK(cudaFree(out));
}
#endif

static void test_device() {
  int count = 0, version = 0, current = -1;
  OK(cudaGetDeviceCount(&count));
  SAY("device.count", count);
  OK(cudaRuntimeGetVersion(&version));
  SAY("device.runtime", version);
  OK(cudaDriverGetVersion(&version));
  SAY("device.driver", version);
  OK(cudaSetDevice(0));
  OK(cudaGetDevice(&current));
  IS("device.current", 0, current);
  cudaDeviceProp properties;
  OK(cudaGetDeviceProperties(&properties, 0));
  SAY("device.major", properties.major);
  SAY("device.minor", properties.minor);
  SAY("device.sms", properties.multiProcessorCount);
  SAY("device.shared_optin", properties.sharedMemPerBlockOptin);
  SAY("device.l2", properties.l2CacheSize);
  SAY("device.name", digest(properties.name, strlen(properties.name)));
  // Every attribute that this runtime knows, in one number, and the ones apart that programs branch on.
  unsigned all = 0;
  for (int attribute = 1; attribute < 150; attribute++) {
    int value = 0;
    const cudaError_t code = cudaDeviceGetAttribute(&value, (cudaDeviceAttr)attribute, 0);
    cudaGetLastError();
    char name[32];
    snprintf(name, sizeof name, "attribute.%d", attribute);
    if (code == cudaSuccess) SAY(name, value);
    all = all * 31 + (unsigned)code;
  }
  SAY("device.attribute_codes", all);
  char bus[32] = "";
  int found = -1;
  OK(cudaDeviceGetPCIBusId(bus, sizeof bus, 0));
  OK(cudaDeviceGetByPCIBusId(&found, bus));
  IS("device.by_bus", 0, found);
  unsigned flags = 77;
  OK(cudaGetDeviceFlags(&flags));
  SAY("device.flags", flags);
  cudaFuncCache cache;
  OK(cudaDeviceGetCacheConfig(&cache));
  SAY("device.cache", cache);
}

static const section SECTIONS[] = {
    {"limits", test_limits, 0},
    {"device", test_device, 0},
    {"memory", test_memory, 0},
    {"symbols", test_symbols, 0},
    {"managed", test_managed, 0},
    {"mapped", test_mapped, 0},
    {"registered", test_registered, 0},
    {"pools", test_pools, 0},
    {"parameters", test_parameters, 0},
    {"cooperative", test_cooperative, 0},
    {"shared", test_shared, 0},
    {"clusters", test_clusters, 0},
    {"host_functions", test_host_functions, 0},
    {"streams", test_streams, 0},
    {"events", test_events, 0},
    {"threads", test_threads, 0},
    {"overlap", test_overlap, 0},
    {"many_streams", test_many_streams, 0},
    {"graphs", test_graphs, 0},
    {"graph_nodes", test_graph_nodes, 0},
    {"textures", test_textures, 0},
    {"cubemaps", test_cubemaps, 0},
    {"levels", test_levels, 0},
    {"texels", test_texels, 0},
    {"tensor_cores", test_tensor_cores, 0},
    {"tiles", test_tiles, 0},
    {"warps", test_warps, 0},
    {"fence", test_fence, 0},
    {"async_copies", test_async_copies, 0},
    {"ptx", test_ptx, 0},
    {"pointers", test_pointers, 0},
    {"system_atomics", test_system_atomics, 0},
    {"run_time_code", test_run_time_code, 0},
    {"cache_hints", test_cache_hints, 0},
    {"printf", test_printf, 0},
    {"out_of_memory", test_out_of_memory, 0},
    {"invalid", test_invalid, 0},
    {"fork", test_fork, 0},
    {"reset", test_reset, 0},
#ifdef __CUDACC_RDC__
    // In a process of its own: on an H100 launches by the device failed (719) after all other sections with a heap of
    // 16 MiB, and a failed one would take the sections that follow with it.
    {"linked", test_linked, LAST},
#endif
    {"assert", test_assert, LAST},
    {"trap", test_trap, LAST},
    {"fault", test_fault, LAST},
};

int main(int argc, char** argv) { return run_sections(SECTIONS, sizeof SECTIONS / sizeof *SECTIONS, argc, argv); }
