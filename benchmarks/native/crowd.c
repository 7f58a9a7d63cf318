// One of several clients that use one GPU at the same time. It prepares, prints `ready`, waits for a line on standard
// input, works for the time it was given and prints one JSON object; all phases in the order given.
//
//   crowd SECONDS PHASE...      launch: pipelined launches; copy_h2d, copy_d2h: page-locked copies of 16 MiB;
//                               sync: a launch and a wait, again and again
//
// `digest` is 0 when every kernel counted and every byte came back, in any phase.
#define _GNU_SOURCE
#include <string.h>

#include "cuda_calls.h"

#define COPY_BYTES ((size_t)16 << 20)
#define BURST 256
#define MAX_SAMPLES 2000000

static void *context, *module, *kernel, *stream;
static unsigned long long counter, device_memory;
static unsigned amount = 1;
static unsigned char* host_memory;
static cuda_function launch, synchronize, to_device, to_host;

static void prepare(void) {
  open_driver();
  check(need("cuInit")(0), "cuInit");
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  check(need("cuModuleLoadData")(&module, BUMP_PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "bump"), "cuModuleGetFunction");
  check(need("cuStreamCreate")(&stream, 1u), "cuStreamCreate");
  check(need("cuMemAlloc_v2")(&counter, (size_t)4), "cuMemAlloc");
  check(need("cuMemAlloc_v2")(&device_memory, COPY_BYTES), "cuMemAlloc");
  check(need("cuMemHostAlloc")(&host_memory, COPY_BYTES, 0u), "cuMemHostAlloc");
  launch = need("cuLaunchKernel");
  synchronize = need("cuStreamSynchronize");
  to_device = need("cuMemcpyHtoD_v2");
  to_host = need("cuMemcpyDtoH_v2");
}

static void one_launch(void) {
  void* params[] = {&counter, &amount};
  check(launch(kernel, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL), "cuLaunchKernel");
}

static unsigned char pattern(size_t at) { return (unsigned char)(at * 131 + (at >> 12) * 29 + 7); }

/// Copies the pattern up and down, with `host_memory` cleared between: the number of bytes that are wrong.
static unsigned long wrong_bytes(void) {
  for (size_t i = 0; i < COPY_BYTES; i++) host_memory[i] = pattern(i);
  check(to_device(device_memory, host_memory, COPY_BYTES), "cuMemcpyHtoD");
  memset(host_memory, 0, COPY_BYTES);
  check(to_host(host_memory, device_memory, COPY_BYTES), "cuMemcpyDtoH");
  unsigned long wrong = 0;
  for (size_t i = 0; i < COPY_BYTES; i++) wrong += host_memory[i] != pattern(i);
  return wrong;
}

static void wait_for_go(void) {
  char line[16];
  printf("ready\n");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) exit(1);
}

static void run_phase(const char* phase, double seconds) {
  const int copies = !strncmp(phase, "copy_", 5), syncs = !strcmp(phase, "sync");
  static double samples[MAX_SAMPLES];
  size_t steps = 0, sampled = 0;
  unsigned counted = 0;
  unsigned long wrong = 0;
  check(need("cuMemsetD8_v2")(counter, 0, (size_t)4), "cuMemsetD8");
  check(need("cuCtxSynchronize")(), "cuCtxSynchronize");  // the stream does not wait for the default stream
  if (copies) wrong = wrong_bytes();
  for (int i = 0; !copies && i < BURST; i++, steps++) one_launch();  // warm-up
  check(synchronize(stream), "cuStreamSynchronize");
  const size_t warm_up = steps;
  wait_for_go();
  const double began = seconds_of(CLOCK_MONOTONIC), end = began + seconds;
  double last = began;
  while (last < end) {
    if (copies) {
      check(strcmp(phase, "copy_h2d") ? to_host(host_memory, device_memory, COPY_BYTES)
                                      : to_device(device_memory, host_memory, COPY_BYTES),
            phase);
      steps++;
    } else if (syncs) {
      one_launch();
      check(synchronize(stream), "cuStreamSynchronize");
      steps++;
    } else {
      for (int i = 0; i < BURST; i++, steps++) one_launch();
      // Bounds what is on its way, as a training step does, so that every client ends when its time is over.
      check(synchronize(stream), "cuStreamSynchronize");
    }
    const double at = seconds_of(CLOCK_MONOTONIC);
    if (syncs && sampled < MAX_SAMPLES) samples[sampled++] = (at - last) * 1e6;
    last = at;
  }
  check(need("cuCtxSynchronize")(), "cuCtxSynchronize");
  last = seconds_of(CLOCK_MONOTONIC);
  check(to_host(&counted, counter, (size_t)4), "cuMemcpyDtoH");
  if (copies)
    wrong += wrong_bytes();
  else
    wrong = (unsigned long)(counted > steps ? counted - steps : steps - counted);
  const double rate = (double)(steps - warm_up) / (last - began);
  printf(
      "{\"phase\": \"%s\", \"began\": %.6f, \"ended\": %.6f, \"per_second\": %.3f, \"gb_per_second\": %.6f, "
      "\"digest\": %lu",
      phase, began, last, rate, copies ? rate * (double)COPY_BYTES / 1e9 : 0.0, wrong);
  if (sampled) {
    qsort(samples, sampled, sizeof *samples, compare_doubles);
    printf(", \"median_us\": %.3f, \"p10_us\": %.3f, \"p90_us\": %.3f, \"p99_us\": %.3f",
           quantile(samples, sampled, .5), quantile(samples, sampled, .1), quantile(samples, sampled, .9),
           quantile(samples, sampled, .99));
  }
  printf("}\n");
  fflush(stdout);
}

int main(int argc, char** argv) {
  const double seconds = argc > 2 ? atof(argv[1]) : 0;
  if (!(seconds > 0 && seconds <= 600)) {
    fprintf(stderr, "usage: crowd SECONDS PHASE...\n");
    return 2;
  }
  prepare();
  for (int i = 2; i < argc; i++) run_phase(argv[i], seconds);
  return 0;
}
