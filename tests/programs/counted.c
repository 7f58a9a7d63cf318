// Calls of known number and size, for the test of ORION_STATS. The forked child exits through its handlers.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda_types.h"

enum { BYTES = 1500000 };

static void* library;

static CUresult (*find(const char* name))() {
  CUresult (*function)() = (CUresult (*)())dlsym(library, name);
  if (function == NULL) exit(3);
  return function;
}

#define CALL(name, ...)                      \
  do {                                       \
    if (find(#name)(__VA_ARGS__) != 0) {     \
      fprintf(stderr, "%s failed\n", #name); \
      return 1;                              \
    }                                        \
  } while (0)

int main(void) {
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == NULL) return 2;
  int device = 0;
  int value;
  void* context;
  unsigned long long memory;
  CALL(cuInit, 0);
  CALL(cuDeviceGet, &device, 0);
  CALL(cuDevicePrimaryCtxRetain, &context, device);
  CALL(cuCtxSetCurrent, context);
  for (int i = 0; i < 7; i++) CALL(cuDeviceGetAttribute, &value, 1, device);
  CALL(cuMemAlloc_v2, &memory, (size_t)BYTES);
  for (int i = 0; i < 100; i++) CALL(cuMemsetD8Async, memory, (unsigned char)i, (size_t)64, NULL);
  char* host = malloc(BYTES);
  if (host == NULL) return 3;
  for (int i = 0; i < 2; i++) CALL(cuMemcpyHtoD_v2, memory, host, (size_t)BYTES);
  for (int i = 0; i < 2; i++) CALL(cuMemcpyDtoH_v2, host, memory, (size_t)BYTES);
  free(host);
  const pid_t child = fork();
  if (child == 0) exit(0);
  int status = 1;
  return waitpid(child, &status, 0) == child && status == 0 ? 0 : 4;
}
