// What a CUDA call costs the calling thread: launches that leave one-way, and a call that needs a reply. Uses only the
// driver API of whatever libcuda.so.1 is loaded: the shim in front of a null engine or of a GPU, or the GPU's own.
// Prints one JSON object. `counted` is what the kernels added up on the device, `launched` how many there were: equal
// but for the null engine, which runs none.
//
//   client_cost [launches a burst [bursts [replies [sustained launches]]]]
//
// The default burst fits Orion's ring, so that no launch waits for space. A driver's own queue is shorter: take bursts
// below 1000 where it is measured.
#define _GNU_SOURCE
#include "cuda_calls.h"

static long argument(int argc, char** argv, int position, long otherwise) {
  const long value = argc > position ? atol(argv[position]) : otherwise;
  if (value < 1 || value > 100000000) {
    fprintf(stderr, "usage: client_cost [burst [bursts [replies [sustained]]]]\n");
    exit(2);
  }
  return value;
}

int main(int argc, char** argv) {
  const long burst = argument(argc, argv, 1, 4096), bursts = argument(argc, argv, 2, 200);
  const long replies = argument(argc, argv, 3, 5000), sustained = argument(argc, argv, 4, 500000);
  const long warm_up = 3;
  open_driver();
  void *context, *module, *kernel;
  unsigned long long counter;
  check(need("cuInit")(0), "cuInit");
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  check(need("cuModuleLoadData")(&module, BUMP_PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "bump"), "cuModuleGetFunction");
  check(need("cuMemAlloc_v2")(&counter, (size_t)4), "cuMemAlloc");
  check(need("cuMemsetD8_v2")(counter, 0, (size_t)4), "cuMemsetD8");
  cuda_function launch = need("cuLaunchKernel"), synchronize = need("cuCtxSynchronize");
  cuda_function info = need("cuMemGetInfo_v2");
  unsigned amount = 1, counted = 0;
  void* params[] = {&counter, &amount};
  size_t free_bytes, total_bytes;

  double* wall = calloc((size_t)bursts, sizeof *wall);
  double* cpu = calloc((size_t)bursts, sizeof *cpu);
  double* reply = calloc((size_t)replies, sizeof *reply);
  if (!wall || !cpu || !reply) return 1;
  for (long b = -warm_up; b < bursts; b++) {
    check(synchronize(), "cuCtxSynchronize");
    const double w = seconds_of(CLOCK_MONOTONIC), c = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    for (long i = 0; i < burst; i++)
      if (launch(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL)) check(1, "cuLaunchKernel");
    if (b >= 0) {
      cpu[b] = (seconds_of(CLOCK_THREAD_CPUTIME_ID) - c) / (double)burst * 1e9;
      wall[b] = (seconds_of(CLOCK_MONOTONIC) - w) / (double)burst * 1e9;
    }
  }
  check(synchronize(), "cuCtxSynchronize");
  for (long i = 0; i < replies; i++) {
    const double w = seconds_of(CLOCK_MONOTONIC);
    check(info(&free_bytes, &total_bytes), "cuMemGetInfo");
    reply[i] = (seconds_of(CLOCK_MONOTONIC) - w) * 1e6;
  }
  const double start = seconds_of(CLOCK_MONOTONIC);
  for (long i = 0; i < sustained; i++)
    if (launch(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL)) check(1, "cuLaunchKernel");
  check(synchronize(), "cuCtxSynchronize");
  const double rate = (double)sustained / (seconds_of(CLOCK_MONOTONIC) - start);
  check(need("cuMemcpyDtoH_v2")(&counted, counter, (size_t)4), "cuMemcpyDtoH");
  qsort(wall, (size_t)bursts, sizeof *wall, compare_doubles);
  qsort(cpu, (size_t)bursts, sizeof *cpu, compare_doubles);
  qsort(reply, (size_t)replies, sizeof *reply, compare_doubles);
#define THREE(name, values, count)                                                                                    \
  printf("\"" name "\": %.3f, \"" name "_p10\": %.3f, \"" name "_p90\": %.3f, ", quantile(values, (size_t)count, .5), \
         quantile(values, (size_t)count, .1), quantile(values, (size_t)count, .9))
  printf("{");
  THREE("launch_wall_ns", wall, bursts);
  THREE("launch_cpu_ns", cpu, bursts);
  THREE("reply_us", reply, replies);
  printf("\"reply_p99_us\": %.2f, \"replay_per_second\": %.0f, \"counted\": %u, \"launched\": %ld}\n",
         quantile(reply, (size_t)replies, .99), rate, counted, (bursts + warm_up) * burst + sustained);
  free(wall);
  free(cpu);
  free(reply);
  return 0;
}
