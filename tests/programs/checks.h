// Checks with a line for each, and symbols of the driver that the program has loaded.
#ifndef ORION_TESTS_CHECKS_H
#define ORION_TESTS_CHECKS_H

#include <dlfcn.h>
#include <stdio.h>

#include "cuda_types.h"

static void* library;
static int failures, checks;

static void* find(const char* name) {
  void* address = dlsym(library, name);
  if (address == NULL) {
    printf("FAIL symbol %s is missing\n", name);
    failures++;
  }
  return address;
}

static void report(int ok, int line, const char* what, long long expected, long long got) {
  checks++;
  if (ok) {
    printf("ok %d %s\n", line, what);
  } else {
    printf("FAIL %d %s: expected %lld, got %lld\n", line, what, expected, got);
    failures++;
  }
}

#define CODE(expected, call)                                               \
  do {                                                                     \
    const CUresult got_ = (call);                                          \
    report(got_ == (CUresult)(expected), __LINE__, #call, expected, got_); \
  } while (0)
#define OK(call) CODE(0, call)
#define IS(expected, value)                                                    \
  do {                                                                         \
    const long long want_ = (long long)(expected), have_ = (long long)(value); \
    report(want_ == have_, __LINE__, #value, want_, have_);                    \
  } while (0)
#define TRUE(value) report(!!(value), __LINE__, #value, 1, 0)

#endif
