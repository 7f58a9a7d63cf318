// Registered host memory where it cannot be had, as Orion answers: run by tests/api/test_registered.py.
//
//   registered_edges threads | handler | exhausted | mappings
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuInit, (unsigned)) X(cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice)) X(cuCtxSetCurrent, (CUcontext)) \
  X(cuMemHostRegister_v2, (void*, size_t, unsigned)) X(cuMemHostUnregister, (void*)) \
  X(cuMemHostGetDevicePointer_v2, (CUdeviceptr*, void*, unsigned)) \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))
// clang-format on
#include "checks.h"
#define DECLARE(name, arguments) static CUresult(*name) arguments;
#define LOAD(name, arguments) name = (CUresult(*) arguments)find(#name);
CALLS(DECLARE)

enum { MAPPED = CU_MEMHOSTREGISTER_DEVICEMAP, BYTES = 8 << 20 };

static uint8_t* pages(size_t bytes) {
  uint8_t* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static long wrong(const uint8_t* p, size_t bytes, uint8_t value) {
  long bad = 0;
  for (size_t i = 0; i < bytes; i++) bad += p[i] != value;
  return bad;
}

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static void* wait_for_it(void* unused) {
  pthread_mutex_lock(&held);
  pthread_mutex_unlock(&held);
  return unused;
}

/// A thread that blocks SIGSEGV might write to the pages of a small block, which others share; hardly to a large one's.
static void threads(int over_tcp) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_t thread;
  pthread_mutex_lock(&held);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_create(&thread, NULL, wait_for_it, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  uint8_t* p = pages(BYTES);
  CODE(over_tcp ? 0 : 801, cuMemHostRegister_v2(p + 1000, 1000, MAPPED));
  if (over_tcp) OK(cuMemHostUnregister(p + 1000));
  OK(cuMemHostRegister_v2(p + 1000, 1000, 0));
  CUdeviceptr d = 0;
  CODE(over_tcp ? 0 : 801, cuMemHostGetDevicePointer_v2(&d, p + 1000, 0));
  OK(cuMemHostUnregister(p + 1000));
  OK(cuMemHostRegister_v2(p + 16, BYTES - 16, MAPPED));
  OK(cuMemHostUnregister(p + 16));
  pthread_mutex_unlock(&held);
  pthread_join(thread, NULL);
  OK(cuMemHostRegister_v2(p + 1000, 1000, MAPPED));
  OK(cuMemHostUnregister(p + 1000));
}

static void ignore(int number) { (void)number; }

static void handler(int over_tcp) {
  uint8_t* p = pages(BYTES);
  memset(p, 1, BYTES);
  OK(cuMemHostRegister_v2(p, BYTES / 2, MAPPED));
  const struct sigaction mine = {.sa_handler = ignore};
  struct sigaction before;
  sigaction(SIGSEGV, &mine, &before);
  CODE(over_tcp ? 0 : 801, cuMemHostRegister_v2(p + BYTES / 2, BYTES / 2, MAPPED));
  OK(cuMemHostUnregister(p));
  IS(0, wrong(p, BYTES, 1));
  memset(p, 2, BYTES);
  // Its pages could not come back, so that they are not the program's private memory now.
  CODE(over_tcp ? 0 : 801, cuMemHostRegister_v2(p, BYTES / 2, MAPPED));
  IS(0, wrong(p, BYTES, 2));
  sigaction(SIGSEGV, &before, NULL);
  uint8_t* q = pages(BYTES);
  OK(cuMemHostRegister_v2(q, BYTES, MAPPED));
  OK(cuMemHostUnregister(q));
}

/// Takes all mappings that the system still allows; munmap of the result gives them back.
static uint8_t* exhaust(void) {
  const size_t bytes = (size_t)1 << 30;
  uint8_t* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  size_t taken = 0;
  while (taken < bytes && mprotect(p + taken, 4096, PROT_READ) == 0) taken += 8192;
  TRUE(taken < bytes);
  return p;
}

static void exhausted(int over_tcp) {
  // Aside of their neighbours, so that nothing merges: each change in the middle needs mappings.
  uint8_t* p = pages(3 * BYTES) + BYTES;
  memset(p - BYTES, 5, 3 * BYTES);
  CUdeviceptr d = 0;
  OK(cuMemAlloc_v2(&d, BYTES));
  uint8_t* all = exhaust();
  const CUresult mapped = cuMemHostRegister_v2(p, BYTES, MAPPED);
  const int refused = over_tcp ? mapped != 0 : mapped != 801;
  IS(0, refused);
  if (mapped == 0) OK(cuMemHostUnregister(p));
  IS(0, wrong(p - BYTES, 3 * BYTES, 5));
  OK(cuMemHostRegister_v2(p, BYTES, 0));
  p[0] = 6;
  p[BYTES - 1] = 6;
  OK(cuMemcpyHtoD_v2(d, p, BYTES));
  OK(cuMemHostUnregister(p));
  munmap(all, (size_t)1 << 30);
  IS(6, p[0]);
  IS(6, p[BYTES - 1]);
  memset(p, 5, BYTES);
  OK(cuMemHostRegister_v2(p, BYTES, MAPPED));
  all = exhaust();
  memset(p, 7, BYTES);
  OK(cuMemHostUnregister(p));
  IS(0, wrong(p, BYTES, 7));
  memset(p, 8, BYTES);
  IS(0, wrong(p, BYTES, 8));
  munmap(all, (size_t)1 << 30);
  IS(0, wrong(p - BYTES, BYTES, 5));
  IS(0, wrong(p + BYTES, BYTES, 5));
}

static int mapping_count(void) {
  FILE* file = fopen("/proc/self/maps", "re");
  int lines = 0;
  for (int c = getc(file); c != EOF; c = getc(file)) lines += c == '\n';
  fclose(file);
  return lines;
}

/// Memory that went to and fro is one mapping again.
static void mappings(int over_tcp) {
  (void)over_tcp;
  uint8_t* p = pages(64 << 20);
  OK(cuMemHostRegister_v2(p, 64 << 20, MAPPED));
  const int registered = mapping_count();
  OK(cuMemHostUnregister(p));
  const int before = mapping_count();
  for (int i = 0; i < 10; i++) {
    memset(p, i, 64 << 20);
    OK(cuMemHostRegister_v2(p, 64 << 20, MAPPED));
    TRUE(mapping_count() <= registered + 4);
    OK(cuMemHostUnregister(p));
    IS(0, wrong(p, 64 << 20, (uint8_t)i));
  }
  printf("mappings: %d registered, %d before, %d after\n", registered, before, mapping_count());
  TRUE(mapping_count() <= before + 4);
}

int main(int argc, char** argv) {
  static const struct {
    const char* name;
    void (*run)(int over_tcp);
  } cases[] = {{"threads", threads}, {"handler", handler}, {"exhausted", exhausted}, {"mappings", mappings}};
  const char* transport = getenv("ORION_TRANSPORT");
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (argc != 2 || transport == NULL || library == NULL) return 2;
  CALLS(LOAD)
  CUcontext context = NULL;
  OK(cuInit(0));
  OK(cuDevicePrimaryCtxRetain(&context, 0));
  OK(cuCtxSetCurrent(context));
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    if (strcmp(argv[1], cases[i].name) == 0) cases[i].run(strcmp(transport, "tcp") == 0);
  }
  printf("%d checks, %d failures\n", checks, failures);
  return failures != 0 || checks < 6;
}
