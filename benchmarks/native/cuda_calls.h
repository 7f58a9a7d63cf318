// What the C programs of the benchmarks share: the driver API by dlopen, two kernels' worth of set-up, clocks.
#pragma once
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef int (*cuda_function)();

static void* cuda_library;

static inline double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline cuda_function need(const char* name) {
  cuda_function f = (cuda_function)dlsym(cuda_library, name);
  if (!f) {
    fprintf(stderr, "libcuda.so.1 has no %s\n", name);
    exit(1);
  }
  return f;
}

static inline void check(int result, const char* what) {
  if (result) {
    fprintf(stderr, "%s -> %d\n", what, result);
    exit(1);
  }
}

static inline void open_driver(void) {
  cuda_library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!cuda_library) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
}

static inline int compare_doubles(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/// The value below which `share` (0..1) of `count` sorted values lie.
static inline double quantile(const double* sorted, size_t count, double share) {
  return sorted[(size_t)(share * (double)(count - 1))];
}

// Adds `amount` to a counter, one thread.
static const char BUMP_PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry bump(.param .u64 counter, .param .u32 amount)\n"
    "{ .reg .u64 %rd<2>; .reg .u32 %r<3>; ld.param.u64 %rd1, [counter]; ld.param.u32 %r1, [amount];\n"
    "  atom.global.add.u32 %r2, [%rd1], %r1; ret; }\n";
