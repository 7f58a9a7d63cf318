// What the parts of launch_facts share: the driver's functions, one device, and how a row is measured and printed.
#ifndef ORION_BENCH_LAUNCH_FACTS_H
#define ORION_BENCH_LAUNCH_FACTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_types.h"

// X(member, exported symbol, parameters). Revisions are named as the engine names them (orion_server/engine/driver.h).
#define FACTS_FUNCTIONS(X)                                                                                             \
  X(init, "cuInit", (unsigned int flags))                                                                              \
  X(device_name, "cuDeviceGetName", (char* name, int bytes, CUdevice device))                                          \
  X(device_attribute, "cuDeviceGetAttribute", (int* value, int attribute, CUdevice device))                            \
  X(driver_version, "cuDriverGetVersion", (int* version))                                                              \
  X(primary_retain, "cuDevicePrimaryCtxRetain", (CUcontext * context, CUdevice device))                                \
  X(context_create, "cuCtxCreate_v2", (CUcontext * context, unsigned int flags, CUdevice device))                      \
  X(context_destroy, "cuCtxDestroy_v2", (CUcontext context))                                                           \
  X(context_set_current, "cuCtxSetCurrent", (CUcontext context))                                                       \
  X(context_synchronize, "cuCtxSynchronize", (void))                                                                   \
  X(module_load, "cuModuleLoadData", (CUmodule * module, const void* image))                                           \
  X(module_function, "cuModuleGetFunction", (CUfunction * function, CUmodule module, const char* name))                \
  X(memory_allocate, "cuMemAlloc_v2", (CUdeviceptr * address, size_t bytes))                                           \
  X(memory_set, "cuMemsetD8_v2", (CUdeviceptr address, unsigned char value, size_t count))                             \
  X(memory_read, "cuMemcpyDtoH_v2", (void* to, CUdeviceptr from, size_t bytes))                                        \
  X(host_register, "cuMemHostRegister_v2", (void* address, size_t bytes, unsigned int flags))                          \
  X(host_device_pointer, "cuMemHostGetDevicePointer_v2", (CUdeviceptr * device, void* host, unsigned int flags))       \
  X(stream_create, "cuStreamCreate", (CUstream * stream, unsigned int flags))                                          \
  X(stream_destroy, "cuStreamDestroy_v2", (CUstream stream))                                                           \
  X(stream_synchronize, "cuStreamSynchronize", (CUstream stream))                                                      \
  X(write_value64, "cuStreamWriteValue64_v2",                                                                          \
    (CUstream stream, CUdeviceptr address, unsigned long long value, unsigned int flags))                              \
  X(batch_values, "cuStreamBatchMemOp_v2",                                                                             \
    (CUstream stream, unsigned int count, CUstreamBatchMemOpParams* params, unsigned int flags))                       \
  X(event_create, "cuEventCreate", (CUevent * event, unsigned int flags))                                              \
  X(event_record, "cuEventRecord", (CUevent event, CUstream stream))                                                   \
  X(launch, "cuLaunchKernel",                                                                                          \
    (CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,         \
     unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, CUstream stream, void** params,            \
     void** extra))                                                                                                    \
  X(launch_ex, "cuLaunchKernelEx", (const CUlaunchConfig* config, CUfunction function, void** params, void** extra))   \
  X(graph_create, "cuGraphCreate", (CUgraph * graph, unsigned int flags))                                              \
  X(graph_destroy, "cuGraphDestroy", (CUgraph graph))                                                                  \
  X(graph_add_kernel, "cuGraphAddKernelNode_v2",                                                                       \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, const CUDA_KERNEL_NODE_PARAMS* params)) \
  X(graph_instantiate, "cuGraphInstantiateWithFlags", (CUgraphExec * exec, CUgraph graph, unsigned long long flags))   \
  X(graph_exec_destroy, "cuGraphExecDestroy", (CUgraphExec exec))                                                      \
  X(graph_exec_kernel, "cuGraphExecKernelNodeSetParams_v2",                                                            \
    (CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* params))                                       \
  X(graph_exec_update, "cuGraphExecUpdate_v2", (CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo * info))  \
  X(graph_launch, "cuGraphLaunch", (CUgraphExec exec, CUstream stream))

typedef struct facts_driver {
#define FACTS_MEMBER(member, symbol, parameters) CUresult(*member) parameters;
  FACTS_FUNCTIONS(FACTS_MEMBER)
#undef FACTS_MEMBER
} facts_driver;
extern facts_driver cu;

/// Ends the program, saying which call failed.
void facts_check(CUresult result, const char* what, int line);
#define CHECK(call) facts_check((call), #call, __LINE__)

#define PARAMS_MAX 16

/// A kernel that adds `amount` to its counter, with parameters that it does not read behind the first two.
typedef struct kernel {
  CUfunction function;
  uint32_t params;
  uint32_t packed_bytes;
} kernel;

/// The parameters of one launch, as pointers and packed.
typedef struct arguments {
  uint64_t counter;
  uint32_t amount;
  uint64_t others[PARAMS_MAX];
  void* pointers[PARAMS_MAX];
  uint8_t packed[8 * PARAMS_MAX];
  size_t packed_bytes;
  void* extra[5];
} arguments;

kernel facts_kernel(uint32_t params, bool spins);
void facts_arguments(arguments* to, const kernel* k, CUdeviceptr counter, uint32_t amount);

/// Nanoseconds of one sample. `issue`: until the last call had returned; `total`: until the device had finished.
typedef struct sample {
  double issue, total, more;
} sample;

typedef struct plan plan;
typedef sample (*sample_function)(plan* p);

/// What a row does. `expected` is what the counters must have gained by all samples together.
struct plan {
  kernel* kernel;
  uint32_t count;  // launches (or nodes) of a sample, over all threads
  enum { BY_POINTERS, BY_BUFFER, BY_CONFIG } how;
  uint32_t streams;
  enum { NOTHING, WORD, WORDS, EVENT } behind;
  uint32_t every, batch;
  uint32_t nodes, updated_percent;
  uint32_t threads;
  enum { OWN_STREAM, OWN_CONTEXT, ONE_STREAM, HANDED_OVER } sharing;
  uint64_t expected;
  const char* more;  // name of sample.more; NULL: none
};

extern bool facts_small;  // a software device: few launches, for the path alone
extern CUstream facts_streams[8];
extern CUdeviceptr facts_counter;
double facts_now_ns(void);
void facts_row(const char* name, plan p, sample_function take);
/// Adds to what the counters of a row have shown, where they are not facts_counter.
void facts_counted(uint64_t amount);
/// A context of its own for one thread; it is current afterwards.
CUcontext facts_context(void);

// launch_facts_threads.c
void threads_open(plan* p);
void threads_close(plan* p);
sample threads_sample(plan* p);

#endif
