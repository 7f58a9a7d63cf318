// Two tenants on one GPU: one that computes without a pause, one that asks for a short kernel now and then and waits.
//
//   spatial calibrate                                         iterations of the kernel for a millisecond, alone
//   spatial latency|batch ITERATIONS_PER_MS SECONDS           one tenant in a process of its own
//   spatial both|streams|green ITERATIONS_PER_MS SECONDS [SMS]  two threads of one process: the batch tenant alone
//                                                             beside it, on a stream of lower priority, or in two green
//                                                             contexts, SMS multiprocessors for the latency tenant
//
// Prints `ready`, waits for a line on standard input, works, and prints one JSON object: latencies in microseconds, and
// the batch tenant's kernels a second. The kernel's work is fixed, so that both can be compared between ways.
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "cuda_calls.h"
#include "cuda_types.h"

#define SHORT_MS 0.2
#define LONG_MS 2.0
#define LOAD 0.25  // of the time, the short kernels' share when alone
#define SAMPLES 200000
#define SM_RESOURCE 1

static const char BURN_PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry burn(.param .u64 out, .param .u32 n)\n"
    "{ .reg .f32 %f<5>; .reg .u32 %r<3>; .reg .u64 %rd<2>; .reg .pred %p;\n"
    "  ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n]; mov.u32 %r2, 0;\n"
    "  mov.f32 %f1, 0f3F800001; mov.f32 %f2, 0f3F7FFFFF; mov.f32 %f3, 0f00000000;\n"
    "again: fma.rn.f32 %f3, %f3, %f2, %f1; fma.rn.f32 %f3, %f3, %f2, %f1;\n"
    "  add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, %r1; @%p bra again;\n"
    "  setp.eq.f32 %p, %f3, 0f7F800000; @%p st.global.f32 [%rd1], %f3; ret; }\n";

static void *context, *module, *kernel;
static unsigned long long out;
static int multiprocessors;
static cuda_function launch, synchronize;
static volatile int finished;

typedef struct tenant {
  void *context, *stream;
  int blocks;
  unsigned iterations;
  double seconds, kernels, p50_us, p99_us, longest_us;
} tenant;

static void prepare(void) {
  open_driver();
  check(need("cuInit")(0), "cuInit");
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  check(need("cuDeviceGetAttribute")(&multiprocessors, 16, 0), "cuDeviceGetAttribute");
  check(need("cuModuleLoadData")(&module, BURN_PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "burn"), "cuModuleGetFunction");
  check(need("cuMemAlloc_v2")(&out, (size_t)4096), "cuMemAlloc");
  launch = need("cuLaunchKernel");
  synchronize = need("cuStreamSynchronize");
}

static void* new_stream(int priority) {
  void* stream;
  check(need("cuStreamCreateWithPriority")(&stream, 1u, priority), "cuStreamCreateWithPriority");
  return stream;
}

static void run_one(const tenant* t) {
  void* params[] = {&out, (void*)&t->iterations};
  check(launch(kernel, t->blocks, 1, 1, 256, 1, 1, 0, t->stream, params, NULL), "cuLaunchKernel");
}

static void* batch(void* argument) {
  tenant* t = argument;
  check(need("cuCtxSetCurrent")(t->context), "cuCtxSetCurrent");
  const double began = seconds_of(CLOCK_MONOTONIC), end = began + t->seconds;
  while (seconds_of(CLOCK_MONOTONIC) < end) {
    for (int i = 0; i < 4; i++) run_one(t);
    check(synchronize(t->stream), "cuStreamSynchronize");
    t->kernels += 4;
  }
  t->kernels /= seconds_of(CLOCK_MONOTONIC) - began;
  finished = 1;
  return NULL;
}

static void* latency(void* argument) {
  static double samples[SAMPLES];
  tenant* t = argument;
  size_t count = 0;
  unsigned long long state = 88172645463325252ull;
  check(need("cuCtxSetCurrent")(t->context), "cuCtxSetCurrent");
  const double began = seconds_of(CLOCK_MONOTONIC), end = began + t->seconds;
  double at = began;
  while (at < end && count < SAMPLES) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    at += -log((double)(state >> 11) * 0x1p-53 + 1e-12) * SHORT_MS * 1e-3 / LOAD;  // a Poisson arrival
    while (seconds_of(CLOCK_MONOTONIC) < at) {
    }
    run_one(t);
    check(synchronize(t->stream), "cuStreamSynchronize");
    samples[count++] = (seconds_of(CLOCK_MONOTONIC) - at) * 1e6;
  }
  qsort(samples, count, sizeof *samples, compare_doubles);
  t->kernels = (double)count / (seconds_of(CLOCK_MONOTONIC) - began);
  t->p50_us = quantile(samples, count, 0.5);
  t->p99_us = quantile(samples, count, 0.99);
  t->longest_us = samples[count - 1];
  return NULL;
}

/// Two green contexts: `sms` multiprocessors (rounded as the driver wants it) for the first, the rest for the second.
static void split(int sms, tenant* first, tenant* second) {
  CUdevResource all, parts[1], rest;
  unsigned groups = 1;
  CUdevResourceDesc descriptions[2];
  void* green[2];
  check(need("cuDeviceGetDevResource")(0, &all, SM_RESOURCE), "cuDeviceGetDevResource");
  check(need("cuDevSmResourceSplitByCount")(parts, &groups, &all, &rest, 0u, (unsigned)sms), "cuDevSmResourceSplit");
  check(need("cuDevResourceGenerateDesc")(&descriptions[0], &parts[0], 1u), "cuDevResourceGenerateDesc");
  check(need("cuDevResourceGenerateDesc")(&descriptions[1], &rest, 1u), "cuDevResourceGenerateDesc");
  tenant* tenants[] = {first, second};
  for (int i = 0; i < 2; i++) {
    check(need("cuGreenCtxCreate")(&green[i], descriptions[i], 0, 1u), "cuGreenCtxCreate");
    check(need("cuCtxFromGreenCtx")(&tenants[i]->context, green[i]), "cuCtxFromGreenCtx");
    check(need("cuGreenCtxStreamCreate")(&tenants[i]->stream, green[i], 1u, 0), "cuGreenCtxStreamCreate");
  }
  first->blocks = (int)parts[0].sm.smCount;
  second->blocks = (int)rest.sm.smCount;
}

static unsigned calibrate(void) {
  tenant t = {.context = context, .stream = new_stream(0), .blocks = multiprocessors, .iterations = 20000};
  for (int round = 0; round < 4; round++) {
    run_one(&t);
    check(synchronize(t.stream), "cuStreamSynchronize");
    const double began = seconds_of(CLOCK_MONOTONIC);
    for (int i = 0; i < 10; i++) run_one(&t);
    check(synchronize(t.stream), "cuStreamSynchronize");
    const double each_ms = (seconds_of(CLOCK_MONOTONIC) - began) * 100;
    t.iterations = (unsigned)((double)t.iterations / each_ms) + 1;  // of one millisecond
  }
  return t.iterations;
}

static void wait_for_go(void) {
  char line[16];
  printf("ready\n");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) exit(1);
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const char* way = argv[1];
  prepare();
  if (!strcmp(way, "calibrate")) {
    printf("{\"iterations_per_ms\": %u, \"multiprocessors\": %d}\n", calibrate(), multiprocessors);
    return 0;
  }
  if (argc < 4) return 2;
  const double per_ms = atof(argv[2]), seconds = atof(argv[3]);
  tenant quick = {.context = context, .blocks = multiprocessors, .iterations = (unsigned)(per_ms * SHORT_MS)};
  tenant heavy = {.context = context, .blocks = multiprocessors, .iterations = (unsigned)(per_ms * LONG_MS)};
  quick.seconds = heavy.seconds = seconds;
  const int two = strcmp(way, "latency") && strcmp(way, "batch");
  if (!strcmp(way, "green")) {
    split(argc > 4 ? atoi(argv[4]) : multiprocessors / 2, &quick, &heavy);
  } else {
    int least = 0, greatest = 0;
    if (!strcmp(way, "streams")) check(need("cuCtxGetStreamPriorityRange")(&least, &greatest), "priorities");
    quick.stream = new_stream(greatest);
    heavy.stream = new_stream(least);
  }
  tenant* tenants[] = {&quick, &heavy};
  for (int i = 0; i < 2; i++) {
    check(need("cuCtxSetCurrent")(tenants[i]->context), "cuCtxSetCurrent");
    run_one(tenants[i]);
    check(synchronize(tenants[i]->stream), "cuStreamSynchronize");
  }
  wait_for_go();
  pthread_t thread;
  if (two) pthread_create(&thread, NULL, batch, &heavy);
  if (!strcmp(way, "batch")) {
    batch(&heavy);
  } else {
    latency(&quick);
  }
  if (two) pthread_join(thread, NULL);
  printf(
      "{\"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"longest\": %.1f, \"a_second\": %.1f, \"sms\": %d},"
      " \"batch_a_second\": %.2f}\n",
      quick.p50_us, quick.p99_us, quick.longest_us, quick.kernels, quick.blocks, heavy.kernels);
  return 0;
}
