// Kernels of libraries: known by name here, and to a worker once something is asked of them there.
#ifndef ORION_SHIM_KERNEL_H
#define ORION_SHIM_KERNEL_H

#include "api.h"
#include "library.h"
#include "upload.h"

#define ORION_NAME_LIMIT_BYTES 32768u

/// What one device's driver says of a kernel. Filled at the first question, then read without a lock.
typedef struct orion_kernel_device {
  uint32_t mask;
  uint32_t set_mask;  // what the program has set: holds for functions that are made later, too
  _Atomic int32_t attributes[ORION_FUNCTION_ATTRIBUTES];
} orion_kernel_device;

typedef struct orion_kernel_layout {
  uint32_t count;
  uint32_t pairs[][2];  // offset, size
} orion_kernel_layout;

typedef struct orion_kernel {
  orion_entry entry;
  uint64_t library;  // handle
  uint64_t handle;
  char* name;
  uint64_t bound;  // one bit for each session that knows the index; under the library's mutex
  struct orion_kernel* next;
  _Atomic uint64_t functions[ORION_CONTEXTS];  // handles, by context index
  _Atomic(orion_kernel_device*)* devices;      // ORION_DEVICES of them; made with the entry's first kernel
  _Atomic(orion_kernel_layout*) layout;
} orion_kernel;

typedef struct orion_library {
  orion_entry entry;
  uint64_t handle;
  pthread_mutex_t mutex;
  orion_image image;  // dropped once every session has it
  void* copy;
  orion_jit jit;
  uint64_t loaded;  // one bit for each session
  CUmodule modules[ORION_CONTEXTS];
  orion_kernel* kernels;
  bool counted;
  uint32_t kernel_count;
} orion_library;

// library.c
orion_library* orion_library_find(CUlibrary handle, uint32_t* generation);
uint32_t orion_session_number(const orion_session* session);
CUresult orion_library_load_on(orion_library* library, orion_session* session);
orion_session* orion_library_session(void);
CUresult orion_library_module(orion_library* library, orion_context* context, orion_module** module);

// kernel.c
void orion_kernels_end(orion_library* library);  // under the library's mutex

#endif
