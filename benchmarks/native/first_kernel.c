// From the start of a process to the result of its first kernel, and where the time goes. Started once, it starts
// itself again for each measurement, so that neither an interpreter nor an isolating wrapper is in the time. Prints one
// JSON object for each.
//
//   first_kernel REPEATS PAUSE_MS
#define _GNU_SOURCE
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda_calls.h"

#define AMOUNT 41u

static int child(double started) {
  const double entered = seconds_of(CLOCK_MONOTONIC);
  open_driver();
  void *context, *module, *kernel;
  unsigned long long counter;
  unsigned amount = AMOUNT, counted = 0;
  check(need("cuInit")(0), "cuInit");
  const double initialised = seconds_of(CLOCK_MONOTONIC);
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  const double current = seconds_of(CLOCK_MONOTONIC);
  check(need("cuModuleLoadData")(&module, BUMP_PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "bump"), "cuModuleGetFunction");
  const double loaded = seconds_of(CLOCK_MONOTONIC);
  check(need("cuMemAlloc_v2")(&counter, (size_t)4), "cuMemAlloc");
  check(need("cuMemsetD8_v2")(counter, 1, (size_t)1), "cuMemsetD8");
  check(need("cuMemsetD8_v2")(counter + 1, 0, (size_t)3), "cuMemsetD8");
  void* params[] = {&counter, &amount};
  check(need("cuLaunchKernel")(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL), "cuLaunchKernel");
  check(need("cuMemcpyDtoH_v2")(&counted, counter, (size_t)4), "cuMemcpyDtoH");
  const double done = seconds_of(CLOCK_MONOTONIC);
  printf(
      "{\"total_ms\": %.3f, \"process_ms\": %.3f, \"init_ms\": %.3f, \"context_ms\": %.3f, \"module_ms\": %.3f, "
      "\"kernel_ms\": %.3f, \"digest\": %u}\n",
      (done - started) * 1e3, (entered - started) * 1e3, (initialised - entered) * 1e3, (current - initialised) * 1e3,
      (loaded - current) * 1e3, (done - loaded) * 1e3, counted);
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 3 && !strcmp(argv[1], "--started")) return child(atof(argv[2]));
  const int repeats = argc == 3 ? atoi(argv[1]) : 0, pause_ms = argc == 3 ? atoi(argv[2]) : -1;
  if (repeats < 1 || pause_ms < 0) {
    fprintf(stderr, "usage: first_kernel REPEATS PAUSE_MS\n");
    return 2;
  }
  for (int i = 0; i < repeats; i++) {
    if (i) usleep((useconds_t)pause_ms * 1000);
    char text[64];
    snprintf(text, sizeof text, "%.9f", seconds_of(CLOCK_MONOTONIC));
    const pid_t pid = fork();
    if (pid == 0) {
      execl("/proc/self/exe", argv[0], "--started", text, (char*)NULL);
      _exit(127);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
      fprintf(stderr, "a child ended with status %d\n", status);
      return 1;
    }
  }
  return 0;
}
