// What every AREA_api.c program shares: loading the driver, checks, sections. A program defines CALLS(X) with the
// functions it uses, includes this file, writes `static void test_NAME(void)` for each section and ends with
//
//   SECTIONS({"name", test_name, flags}, ...)
//
// Like driver_api.c it knows nothing of Orion: it runs against NVIDIA's driver, softgpu, and either through the shim.
//
//   gcc -std=gnu11 -I wire/include tests/programs/AREA_api.c -o AREA_api -ldl -lpthread && ./AREA_api [--list |
//   section...]
#ifndef ORION_TESTS_AREA_H
#define ORION_TESTS_AREA_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checks.h"
#include "cuda_types.h"

enum {
  OWN_CONTEXT = 1,     // makes its own contexts: runs without a current one
  HARDWARE = 2,        // what softgpu cannot do: `--list` shows it with a trailing " hardware"
  NOT_NATIVE = 4,      // what NVIDIA's driver makes no promise about: a crash or a hang there: " ours"
  LAST = 8,            // leaves the context unusable: run alone or last
  DRIVER_TABLES = 16,  // what softgpu alone does not have, the driver's private tables among it: " tables"
};

typedef struct section {
  const char* name;
  void (*run)(void);
  int flags;
} section;

// clang-format off
#define AREA_BASE(X) \
  X(cuInit, (unsigned)) X(cuDeviceGet, (CUdevice*, int)) X(cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice)) \
  X(cuDevicePrimaryCtxRelease_v2, (CUdevice)) X(cuCtxSetCurrent, (CUcontext))
// clang-format on

#define AREA_DECLARE(name, arguments) __attribute__((unused)) static CUresult(*name) arguments;
#define AREA_LOAD(name, arguments) name = (CUresult(*) arguments)find(#name);
AREA_BASE(AREA_DECLARE)
CALLS(AREA_DECLARE)

static CUdevice device;
static CUcontext context;

/// A value worth knowing that nothing promises: printed, never judged. Compare the lines of two runs.
#define NOTE(value) printf("note %d %s = %lld\n", __LINE__, #value, (long long)(value))

static int area_main(const section* sections, int count, int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (int i = 0; i < count; i++) {
      printf("%s%s%s%s%s\n", sections[i].name, sections[i].flags & HARDWARE ? " hardware" : "",
             sections[i].flags & NOT_NATIVE ? " ours" : "", sections[i].flags & LAST ? " last" : "",
             sections[i].flags & DRIVER_TABLES ? " tables" : "");
    }
    return 0;
  }
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) {
    printf("FAIL %s\n", dlerror());
    return 2;
  }
  AREA_BASE(AREA_LOAD)
  CALLS(AREA_LOAD)
  if (failures) return 2;
  OK(cuInit(0));
  OK(cuDeviceGet(&device, 0));
  for (int i = 0; i < count; i++) {
    int wanted = argc == 1;
    for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], sections[i].name) == 0;
    if (!wanted) continue;
    printf("-- %s\n", sections[i].name);
    const int own = sections[i].flags & OWN_CONTEXT;
    if (!own) {
      OK(cuDevicePrimaryCtxRetain(&context, device));
      OK(cuCtxSetCurrent(context));
    }
    sections[i].run();
    if (!own && !(sections[i].flags & LAST)) {
      OK(cuCtxSetCurrent(NULL));
      OK(cuDevicePrimaryCtxRelease_v2(device));
    }
  }
  printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}

#define SECTIONS(...)                                                     \
  int main(int argc, char** argv) {                                       \
    static const section all[] = {__VA_ARGS__};                           \
    return area_main(all, (int)(sizeof all / sizeof all[0]), argc, argv); \
  }

#endif
