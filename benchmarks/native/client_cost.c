// What a CUDA call costs the calling thread: launches that leave one-way, and a call that needs a reply. Uses only the
// driver API of whatever libcuda.so.1 is loaded; meant for the shim in front of a null engine. Prints one JSON object.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BURST 4096  // fits the ring, so no launch waits for space
#define BURSTS 200
#define REPLIES 5000
#define SUSTAINED 500000

typedef int (*function)();

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void* library;
static function need(const char* name) {
  function f = (function)dlsym(library, name);
  if (!f) {
    fprintf(stderr, "libcuda.so.1 has no %s\n", name);
    exit(1);
  }
  return f;
}

static void check(int result, const char* what) {
  if (result) {
    fprintf(stderr, "%s -> %d\n", what, result);
    exit(1);
  }
}

static const char PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry bump(.param .u64 counter, .param .u32 amount)\n"
    "{ .reg .u64 %rd<2>; .reg .u32 %r<3>; ld.param.u64 %rd1, [counter]; ld.param.u32 %r1, [amount];\n"
    "  atom.global.add.u32 %r2, [%rd1], %r1; ret; }\n";

int main(void) {
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  void *context, *module, *kernel;
  unsigned long long counter;
  check(need("cuInit")(0), "cuInit");
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  check(need("cuModuleLoadData")(&module, PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "bump"), "cuModuleGetFunction");
  check(need("cuMemAlloc_v2")(&counter, (size_t)4), "cuMemAlloc");
  function launch = need("cuLaunchKernel"), synchronize = need("cuCtxSynchronize"), info = need("cuMemGetInfo_v2");
  unsigned amount = 1;
  void* params[] = {&counter, &amount};
  size_t free_bytes, total_bytes;

  static double wall[BURSTS], cpu[BURSTS], reply[REPLIES];
  for (int b = -3; b < BURSTS; b++) {
    check(synchronize(), "cuCtxSynchronize");
    const double w = now(CLOCK_MONOTONIC), c = now(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < BURST; i++)
      if (launch(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL)) check(1, "cuLaunchKernel");
    if (b >= 0) {
      cpu[b] = (now(CLOCK_THREAD_CPUTIME_ID) - c) / BURST * 1e9;
      wall[b] = (now(CLOCK_MONOTONIC) - w) / BURST * 1e9;
    }
  }
  check(synchronize(), "cuCtxSynchronize");
  for (int i = 0; i < REPLIES; i++) {
    const double w = now(CLOCK_MONOTONIC);
    check(info(&free_bytes, &total_bytes), "cuMemGetInfo");
    reply[i] = (now(CLOCK_MONOTONIC) - w) * 1e6;
  }
  const double start = now(CLOCK_MONOTONIC);
  for (int i = 0; i < SUSTAINED; i++) launch(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL);
  check(synchronize(), "cuCtxSynchronize");
  const double rate = SUSTAINED / (now(CLOCK_MONOTONIC) - start);
  qsort(wall, BURSTS, sizeof *wall, compare);
  qsort(cpu, BURSTS, sizeof *cpu, compare);
  qsort(reply, REPLIES, sizeof *reply, compare);
  printf(
      "{\"launch_wall_ns\": %.1f, \"launch_cpu_ns\": %.1f, \"reply_us\": %.2f, \"reply_p99_us\": %.2f, "
      "\"replay_per_second\": %.0f}\n",
      wall[BURSTS / 2], cpu[BURSTS / 2], reply[REPLIES / 2], reply[REPLIES * 99 / 100], rate);
  return 0;
}
