// What the sections of runtime_api.cu share: lines `name value` whose values are compared between a native run and one
// through the shim, and sections chosen by argument.
//
// Nothing here knows of Orion. A value that the CUDA documentation promises is checked as well: a line starting with
// FAIL, and exit status 1.
#ifndef ORION_TESTS_RUNTIME_HARNESS_H
#define ORION_TESTS_RUNTIME_HARNESS_H

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAST = 1 };  // leaves the process without a usable device

struct section {
  const char* name;
  void (*run)();
  int flags;
};

static int failures;

inline void say(const char* name, long long value) { printf("%s %lld\n", name, value); }

inline void check(int line, const char* name, long long expected, long long got) {
  say(name, got);
  if (expected == got) return;
  printf("FAIL line %d %s: expected %lld, got %lld\n", line, name, expected, got);
  failures++;
}

/// A value that CUDA promises.
#define IS(name, expected, value) check(__LINE__, name, (long long)(expected), (long long)(value))
/// A value that is only compared with the native one.
#define SAY(name, value) say(name, (long long)(value))
/// A call that succeeds.
#define OK(call) okay(__LINE__, #call, (call))
/// A call with a promised error, which does not stay.
#define CODE(name, expected, call)    \
  do {                                \
    const cudaError_t code_ = (call); \
    cudaGetLastError();               \
    IS(name, expected, code_);        \
  } while (0)
/// A call whose error is only compared with the native one.
#define SAY_CODE(name, call)          \
  do {                                \
    const cudaError_t code_ = (call); \
    cudaGetLastError();               \
    SAY(name, code_);                 \
  } while (0)

inline bool okay(int line, const char* what, cudaError_t code) {
  if (code == cudaSuccess) return true;
  printf("FAIL line %d %s: %s (%d)\n", line, what, cudaGetErrorName(code), (int)code);
  failures++;
  return false;
}

/// FNV-1a over bytes, short enough to read in a line.
inline unsigned digest(const void* data, size_t size) {
  const unsigned char* bytes = (const unsigned char*)data;
  unsigned hash = 2166136261u;
  for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

/// Digest of device memory, read by a synchronous copy.
inline unsigned device_digest(const void* device, size_t size) {
  void* host = malloc(size);
  if (!okay(__LINE__, "device_digest", cudaMemcpy(host, device, size, cudaMemcpyDeviceToHost))) memset(host, 0, size);
  const unsigned value = digest(host, size);
  free(host);
  return value;
}

inline void fill(int* values, int count, int seed) {
  for (int i = 0; i < count; i++) values[i] = i * 2654435761u + seed;
}

inline int run_sections(const section* sections, int count, int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (int i = 0; i < count; i++) printf("%s%s\n", sections[i].name, sections[i].flags & LAST ? " last" : "");
    return 0;
  }
  for (int i = 0; i < count; i++) {
    bool wanted = argc == 1;
    for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], sections[i].name) == 0;
    if (!wanted) continue;
    printf("-- %s\n", sections[i].name);
    sections[i].run();
  }
  printf("failures %d\n", failures);
  return failures != 0;
}

#endif  // ORION_TESTS_RUNTIME_HARNESS_H
