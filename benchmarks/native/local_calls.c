// What the calls that programs make most cost the calling thread: launches and other one-way work, and what is answered
// without the worker. Uses only the driver API of whatever libcuda.so.1 is loaded; meant for the shim in front of a
// null engine.
//
//   local_calls time    nanoseconds per call, medians, as one JSON object
//   local_calls count   under callgrind: for each call a dump "NAME COUNT" after COUNT of them. Before the dumps it
//                       prints "ready" and waits for a line: whoever counts stops the worker there, so that no push
//                       finds it asleep.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif
#endif
#ifndef CALLGRIND_ZERO_STATS
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(name) (void)(name)
#endif

#define FEW 16  // of each call, and twice as many: the difference is what one costs
#define BATCH 2000
#define BATCHES 41

typedef int (*function)();

// Each name loaded once, before anything is measured.
#define FUNCTIONS(_)                                      \
  _(cuInit)                                               \
  _(cuDevicePrimaryCtxRetain)                             \
  _(cuDevicePrimaryCtxGetState)                           \
  _(cuCtxSetCurrent)                                      \
  _(cuCtxGetCurrent)                                      \
  _(cuCtxGetDevice)                                       \
  _(cuCtxGetDevice_v2)                                    \
  _(cuCtxGetLimit)                                        \
  _(cuCtxSynchronize)                                     \
  _(cuModuleLoadData)                                     \
  _(cuModuleGetFunction)                                  \
  _(cuLibraryLoadData)                                    \
  _(cuLibraryGetKernel)                                   \
  _(cuKernelGetFunction)                                  \
  _(cuKernelGetAttribute)                                 \
  _(cuKernelSetAttribute)                                 \
  _(cuFuncGetAttribute)                                   \
  _(cuFuncSetAttribute)                                   \
  _(cuMemAlloc_v2)                                        \
  _(cuMemHostAlloc)                                       \
  _(cuMemGetAddressRange_v2)                              \
  _(cuMemGetAllocationGranularity)                        \
  _(cuMemsetD8Async)                                      \
  _(cuMemcpyDtoDAsync_v2)                                 \
  _(cuMemcpyHtoDAsync_v2)                                 \
  _(cuLaunchKernel)                                       \
  _(cuLaunchKernelEx)                                     \
  _(cuStreamCreate)                                       \
  _(cuStreamIsCapturing)                                  \
  _(cuStreamQuery)                                        \
  _(cuStreamSynchronize)                                  \
  _(cuStreamWaitEvent)                                    \
  _(cuThreadExchangeStreamCaptureMode)                    \
  _(cuEventCreate)                                        \
  _(cuEventRecord)                                        \
  _(cuEventQuery)                                         \
  _(cuEventSynchronize)                                   \
  _(cuPointerGetAttribute)                                \
  _(cuPointerGetAttributes)                               \
  _(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags) \
  _(cuDeviceGet)                                          \
  _(cuDeviceGetCount)                                     \
  _(cuDeviceGetName)                                      \
  _(cuDeviceGetAttribute)                                 \
  _(cuDriverGetVersion)                                   \
  _(cuGetErrorString)                                     \
  _(cuGetExportTable)

#define DECLARE(name) static function name;
FUNCTIONS(DECLARE)
#undef DECLARE

// The first fields of CUlaunchConfig and its end.
typedef struct launch_config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
} launch_config;

static void *context, *stream, *module, *library, *kernel, *plain, *two, *ten, *event;
static unsigned long long device_memory;
static void* pinned;
static function storage_get;
static uint8_t values[10][16];
static void* params[10];
static uint8_t buffer[64];
static size_t buffer_bytes = sizeof buffer;
static void* extra[] = {(void*)1, buffer, (void*)2, &buffer_bytes, NULL};
static launch_config config = {{1, 1, 1}, {32, 1, 1}, 0, NULL, NULL, 0};

static void check(int result, const char* what) {
  if (!result) return;
  fprintf(stderr, "%s -> %d\n", what, result);
  exit(1);
}

static int nothing(void) { return 0; }

#define LAUNCH(f, where, p, e) cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, where, p, e)
// name, whether it puts work into the ring, the call
#define CALLS(_)                                                                                          \
  _(loop, 0, nothing())                                                                                   \
  _(launch_0, 1, LAUNCH(plain, NULL, NULL, NULL))                                                         \
  _(launch_2, 1, LAUNCH(two, NULL, params, NULL))                                                         \
  _(launch_10, 1, LAUNCH(ten, NULL, params, NULL))                                                        \
  _(launch_10_stream, 1, LAUNCH(ten, stream, params, NULL))                                               \
  _(launch_extra_64, 1, LAUNCH(plain, NULL, NULL, extra))                                                 \
  _(launch_ex_10, 1, cuLaunchKernelEx(&config, ten, params, NULL))                                        \
  _(cuMemsetD8Async, 1, cuMemsetD8Async(device_memory, 0, (size_t)256, stream))                           \
  _(cuMemcpyDtoDAsync, 1, cuMemcpyDtoDAsync_v2(device_memory, device_memory + 4096, (size_t)256, stream)) \
  _(cuMemcpyHtoDAsync_pinned, 1, cuMemcpyHtoDAsync_v2(device_memory, pinned, (size_t)256, stream))        \
  _(cuEventRecord, 1, cuEventRecord(event, stream))                                                       \
  _(cuCtxGetDevice, 0, cuCtxGetDevice(&number))                                                           \
  _(cuCtxGetDevice_v2, 0, cuCtxGetDevice_v2(&number, context))                                            \
  _(cuCtxGetCurrent, 0, cuCtxGetCurrent(&pointer))                                                        \
  _(cuCtxSetCurrent, 0, cuCtxSetCurrent(context))                                                         \
  _(cuCtxGetLimit, 0, cuCtxGetLimit(&size, 0))                                                            \
  _(cuDevicePrimaryCtxGetState, 0, cuDevicePrimaryCtxGetState(0, &flags, &number))                        \
  _(cuDeviceGet, 0, cuDeviceGet(&number, 0))                                                              \
  _(cuDeviceGetCount, 0, cuDeviceGetCount(&number))                                                       \
  _(cuDeviceGetName, 0, cuDeviceGetName(text, (int)sizeof text, 0))                                       \
  _(cuDeviceGetAttribute, 0, cuDeviceGetAttribute(&number, 16, 0))                                        \
  _(cuDriverGetVersion, 0, cuDriverGetVersion(&number))                                                   \
  _(cuGetErrorString, 0, cuGetErrorString(0, &pointer))                                                   \
  _(cuKernelGetAttribute, 0, cuKernelGetAttribute(&number, 0, kernel, 0))                                 \
  _(cuKernelSetAttribute_same, 0, cuKernelSetAttribute(8, 1024, kernel, 0))                               \
  _(cuKernelGetFunction, 0, cuKernelGetFunction(&pointer, kernel))                                        \
  _(cuFuncGetAttribute, 0, cuFuncGetAttribute(&number, 0, ten))                                           \
  _(cuFuncSetAttribute_same, 0, cuFuncSetAttribute(ten, 8, 1024))                                         \
  _(cuModuleGetFunction, 0, cuModuleGetFunction(&pointer, module, "ten_params_10"))                       \
  _(cuLibraryGetKernel, 0, cuLibraryGetKernel(&pointer, library, "ten_params_10"))                        \
  _(cuOccupancyMaxActiveBlocks, 0,                                                                        \
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&number, ten, 128, (size_t)0, 0))                \
  _(cuStreamIsCapturing, 0, cuStreamIsCapturing(stream, &number))                                         \
  _(cuThreadExchangeStreamCaptureMode, 0, cuThreadExchangeStreamCaptureMode(&mode))                       \
  _(cuEventQuery_done, 0, cuEventQuery(event))                                                            \
  _(cuEventSynchronize_done, 0, cuEventSynchronize(event))                                                \
  _(cuStreamWaitEvent_done, 0, cuStreamWaitEvent(stream, event, 0))                                       \
  _(cuStreamQuery_idle, 0, cuStreamQuery(stream))                                                         \
  _(cuStreamSynchronize_idle, 0, cuStreamSynchronize(stream))                                             \
  _(cuCtxSynchronize_idle, 0, cuCtxSynchronize())                                                         \
  _(cuPointerGetAttribute, 0, cuPointerGetAttribute(&number, 2, device_memory))                           \
  _(cuPointerGetAttribute_host, 0, cuPointerGetAttribute(&number, 2, pinned) * 0)                         \
  _(cuPointerGetAttribute_unknown, 0, cuPointerGetAttribute(&number, 2, text) * 0)                        \
  _(cuMemGetAddressRange, 0, cuMemGetAddressRange_v2(&address, &size, device_memory))                     \
  _(cuMemGetAllocationGranularity, 0, cuMemGetAllocationGranularity(&size, granularity, 0))               \
  _(storage_get, 0, storage_get(&pointer, NULL, text) * 0)

static int number, mode = 1;
static unsigned flags;
static size_t size;
static void* pointer;
static unsigned long long address;
static char text[256];
// A CUmemAllocationProp: pinned device memory of device 0.
static int granularity[8] = {1, 0, 1, 0};

#define DEFINE(name, works, call)                        \
  static int run_##name(unsigned count) {                \
    int failed = 0;                                      \
    for (unsigned i = 0; i < count; i++) failed |= call; \
    return failed;                                       \
  }
CALLS(DEFINE)
#undef DEFINE

static const struct measured {
  const char* name;
  int works;
  int (*run)(unsigned count);
} measured[] = {
#define ENTRY(name, works, call) {#name, works, run_##name},
    CALLS(ENTRY)
#undef ENTRY
};
#define MEASURED (sizeof measured / sizeof measured[0])

static void prepare(void) {
  void* cuda = dlopen("libcuda.so.1", RTLD_NOW);
  if (!cuda) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
#define LOAD(name)                     \
  name = (function)dlsym(cuda, #name); \
  if (!name) {                         \
    fprintf(stderr, "no %s\n", #name); \
    exit(1);                           \
  }
  FUNCTIONS(LOAD)
#undef LOAD
  static const char ptx[] = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry plain() { ret; }\n";
  check(cuInit(0), "cuInit");
  check(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
  check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  check(cuModuleLoadData(&module, ptx), "cuModuleLoadData");
  check(cuModuleGetFunction(&plain, module, "plain"), "cuModuleGetFunction");
  // The null engine gives a kernel whose name ends so as many 8-byte parameters.
  check(cuModuleGetFunction(&two, module, "two_params_2"), "cuModuleGetFunction");
  check(cuModuleGetFunction(&ten, module, "ten_params_10"), "cuModuleGetFunction");
  check(cuLibraryLoadData(&library, ptx, NULL, NULL, 0, NULL, NULL, 0), "cuLibraryLoadData");
  check(cuLibraryGetKernel(&kernel, library, "ten_params_10"), "cuLibraryGetKernel");
  check(cuMemAlloc_v2(&device_memory, (size_t)1 << 20), "cuMemAlloc");
  check(cuMemHostAlloc(&pinned, (size_t)1 << 16, 0), "cuMemHostAlloc");
  check(cuStreamCreate(&stream, 1), "cuStreamCreate");
  check(cuEventCreate(&event, 2), "cuEventCreate");
  static const uint8_t storage_id[16] = {0xc6, 0x93, 0x33, 0x6e, 0x11, 0x21, 0xdf, 0x11,
                                         0xa8, 0xc3, 0x68, 0xf3, 0x55, 0xd8, 0x95, 0x93};
  const void* const* table;
  check(cuGetExportTable(&table, storage_id), "cuGetExportTable");
  storage_get = (function)table[2];
  for (int i = 0; i < 10; i++) {
    memcpy(values[i], &device_memory, sizeof device_memory);
    params[i] = values[i];
  }
}

/// Everything that is asked for once is asked for here. No work is left outstanding.
static void settle(void) { check(cuCtxSynchronize(), "cuCtxSynchronize"); }

static void count_instructions(void) {
  for (unsigned i = 0; i < MEASURED; i++) {
    check(measured[i].run(2), measured[i].name);
    settle();
  }
  settle();
  printf("ready\n");
  fflush(stdout);
  char line[16];
  if (!fgets(line, sizeof line, stdin)) exit(1);
  alarm(60);  // a call that asks the stopped worker would wait for ever
  // The stopped worker finishes nothing: what must find everything done comes before what puts work into the ring.
  for (int works = 0; works <= 1; works++) {
    for (unsigned i = 0; i < MEASURED; i++) {
      if (measured[i].works != works) continue;
      measured[i].run(2);  // the worker may sleep: wake it here
      for (unsigned count = FEW; count <= 2 * FEW; count += FEW) {
        char name[128];
        snprintf(name, sizeof name, "%s %u", measured[i].name, count);
        CALLGRIND_ZERO_STATS;
        measured[i].run(count);
        CALLGRIND_DUMP_STATS_AT(name);
      }
    }
  }
  printf("counted\n");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) exit(1);
  settle();
}

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void measure_times(void) {
  static double times[MEASURED][BATCHES];
  for (int b = -2; b < BATCHES; b++) {
    for (unsigned i = 0; i < MEASURED; i++) {
      settle();
      const double begin = now_ns();
      check(measured[i].run(BATCH), measured[i].name);
      if (b >= 0) times[i][b] = (now_ns() - begin) / BATCH;
    }
  }
  printf("{");
  for (unsigned i = 0; i < MEASURED; i++) {
    qsort(times[i], BATCHES, sizeof times[i][0], compare);
    printf("%s\"%s\": %.1f", i ? ", " : "", measured[i].name, times[i][BATCHES / 2]);
  }
  printf("}\n");
}

int main(int argc, char** argv) {
  if (argc != 2 || (strcmp(argv[1], "time") && strcmp(argv[1], "count"))) {
    fprintf(stderr, "usage: local_calls time|count\n");
    return 2;
  }
  prepare();
  settle();
  if (!strcmp(argv[1], "time")) {
    measure_times();
  } else {
    count_instructions();
  }
  return 0;
}
