// What tools and libraries ask on the side: the driver's log, core dumps, notifications, resources; and the order
// between a whole context and an event.
//
// gcc -std=gnu11 -I wire/include tests/programs/tools_api.c -o tools_api -ldl -lpthread
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuLogsRegisterCallback, (CUlogsCallback, void*, CUlogsCallbackHandle*)) \
  X(cuLogsUnregisterCallback, (CUlogsCallbackHandle)) X(cuLogsCurrent, (CUlogIterator*, unsigned)) \
  X(cuLogsDumpToFile, (CUlogIterator*, const char*, unsigned)) \
  X(cuLogsDumpToMemory, (CUlogIterator*, char*, size_t*, unsigned)) \
  X(cuCoredumpGetAttribute, (CUcoredumpSettings, void*, size_t*)) \
  X(cuCoredumpSetAttribute, (CUcoredumpSettings, void*, size_t*)) \
  X(cuCoredumpGetAttributeGlobal, (CUcoredumpSettings, void*, size_t*)) \
  X(cuCoredumpSetAttributeGlobal, (CUcoredumpSettings, void*, size_t*)) \
  X(cuDeviceRegisterAsyncNotification, (CUdevice, CUasyncCallback, void*, CUasyncCallbackHandle*)) \
  X(cuDeviceUnregisterAsyncNotification, (CUdevice, CUasyncCallbackHandle)) \
  X(cuProfilerInitialize, (const char*, const char*, CUoutput_mode)) X(cuProfilerStart, (void)) \
  X(cuProfilerStop, (void)) \
  X(cuFlushGPUDirectRDMAWrites, (CUflushGPUDirectRDMAWritesTarget, CUflushGPUDirectRDMAWritesScope)) \
  X(cuDeviceGetHostAtomicCapabilities, (unsigned*, const CUatomicOperation*, unsigned, CUdevice)) \
  X(cuDeviceGetP2PAtomicCapabilities, (unsigned*, const CUatomicOperation*, unsigned, CUdevice, CUdevice)) \
  X(cuDeviceGetDevResource, (CUdevice, CUdevResource*, CUdevResourceType)) \
  X(cuCtxGetDevResource, (CUcontext, CUdevResource*, CUdevResourceType)) \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice)) \
  X(cuCtxRecordEvent, (CUcontext, CUevent)) X(cuCtxWaitEvent, (CUcontext, CUevent)) \
  X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext)) X(cuCtxSynchronize, (void)) \
  X(cuEventCreate, (CUevent*, unsigned)) X(cuEventDestroy_v2, (CUevent)) X(cuEventQuery, (CUevent)) \
  X(cuEventSynchronize, (CUevent)) X(cuStreamCreate, (CUstream*, unsigned)) X(cuStreamDestroy_v2, (CUstream)) \
  X(cuStreamQuery, (CUstream)) X(cuStreamSynchronize, (CUstream)) X(cuEventRecord, (CUevent, CUstream)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*)) X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream)) \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr)) \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) X(cuStreamEndCapture, (CUstream, CUgraph*))
// clang-format on

#include "area.h"

static void ignore_log(void* data, int level, char* message, size_t length) {
  (void)data, (void)level, (void)message, (void)length;
}

static void ignore_notice(struct CUasyncNotificationInfo_st* info, void* data, CUasyncCallbackHandle handle) {
  (void)info, (void)data, (void)handle;
}

static void test_log(void) {
  CUlogsCallbackHandle first = NULL, second = NULL;
  CODE(CUDA_ERROR_INVALID_VALUE, cuLogsRegisterCallback(NULL, NULL, &first));
  OK(cuLogsRegisterCallback(ignore_log, NULL, &first));
  OK(cuLogsRegisterCallback(ignore_log, &first, &second));
  TRUE(first != NULL && second != NULL && first != second);
  OK(cuLogsUnregisterCallback(first));
  OK(cuLogsUnregisterCallback(second));
  CUlogIterator now = 77;
  OK(cuLogsCurrent(&now, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuLogsCurrent(NULL, 0));
  OK(cuLogsCurrent(&now, 1));  // its flags are not looked at
  // Nothing since then.
  char text[25600] = "untouched";
  size_t bytes = sizeof text;
  OK(cuLogsCurrent(&now, 0));
  OK(cuLogsDumpToMemory(&now, text, &bytes, 0));
  IS(0, bytes);
  CODE(CUDA_ERROR_INVALID_VALUE, cuLogsDumpToMemory(&now, text, NULL, 0));
  char path[] = "/tmp/orion-test-log-XXXXXX";
  const int file = mkstemp(path);
  TRUE(file >= 0);
  close(file);
  OK(cuLogsDumpToFile(NULL, path, 0));
  CODE(CUDA_ERROR_INVALID_VALUE, cuLogsDumpToFile(NULL, NULL, 0));
  unlink(path);
}

static void test_core_dumps(void) {
  size_t bytes = 0;
  unsigned char on = 7;
  char name[1024] = "";
  OK(cuCoredumpGetAttribute(CU_COREDUMP_ENABLE_ON_EXCEPTION, NULL, &bytes));
  IS(1, bytes);
  OK(cuCoredumpGetAttribute(CU_COREDUMP_GENERATION_FLAGS, NULL, &bytes));
  IS(sizeof(int), bytes);
  OK(cuCoredumpGetAttribute(CU_COREDUMP_FILE, NULL, &bytes));
  NOTE(bytes);
  bytes = 1;
  OK(cuCoredumpGetAttribute(CU_COREDUMP_ENABLE_ON_EXCEPTION, &on, &bytes));
  IS(0, on);
  OK(cuCoredumpGetAttribute(CU_COREDUMP_TRIGGER_HOST, &on, &bytes));
  IS(1, on);
  on = 0;
  OK(cuCoredumpSetAttribute(CU_COREDUMP_TRIGGER_HOST, &on, &bytes));
  on = 7;
  OK(cuCoredumpGetAttribute(CU_COREDUMP_TRIGGER_HOST, &on, &bytes));
  IS(0, on);
  OK(cuCoredumpGetAttributeGlobal(CU_COREDUMP_TRIGGER_HOST, &on, &bytes));
  IS(1, on);
  bytes = sizeof name;
  OK(cuCoredumpGetAttributeGlobal(CU_COREDUMP_FILE, name, &bytes));
  IS(0, strlen(name));  // cuda.h says core.cuda.HOSTNAME.PID
  char mine[] = "/tmp/mine";
  bytes = sizeof mine;
  OK(cuCoredumpSetAttributeGlobal(CU_COREDUMP_FILE, mine, &bytes));
  // The context was there before.
  strcpy(name, "untouched");
  bytes = sizeof name;
  OK(cuCoredumpGetAttribute(CU_COREDUMP_FILE, name, &bytes));
  IS(0, strlen(name));
  bytes = sizeof name;
  OK(cuCoredumpGetAttributeGlobal(CU_COREDUMP_FILE, name, &bytes));
  NOTE(strcmp(name, mine));
  TRUE(strlen(name) == 0 || strcmp(name, mine) == 0);
  int flags = 2;
  bytes = sizeof flags;
  OK(cuCoredumpSetAttribute(CU_COREDUMP_GENERATION_FLAGS, &flags, &bytes));
  flags = 0;
  OK(cuCoredumpGetAttribute(CU_COREDUMP_GENERATION_FLAGS, &flags, &bytes));
  IS(2, flags);
  CODE(CUDA_ERROR_INVALID_VALUE, cuCoredumpGetAttribute((CUcoredumpSettings)0, &on, &bytes));
  CODE(CUDA_ERROR_INVALID_VALUE, cuCoredumpGetAttribute(CU_COREDUMP_MAX, &on, &bytes));
  CODE(CUDA_ERROR_INVALID_VALUE, cuCoredumpGetAttribute(CU_COREDUMP_TRIGGER_HOST, NULL, NULL));
  bytes = 1;
  CODE(CUDA_ERROR_INVALID_VALUE, cuCoredumpSetAttribute(CU_COREDUMP_ENABLE_USER_TRIGGER, &on, &bytes));
}

static void test_notifications(void) {
  CUasyncCallbackHandle handle = NULL;
  const CUresult result = cuDeviceRegisterAsyncNotification(device, ignore_notice, NULL, &handle);
  NOTE(result);
  if (result == CUDA_SUCCESS) OK(cuDeviceUnregisterAsyncNotification(device, handle));
  CODE(CUDA_ERROR_INVALID_DEVICE, cuDeviceRegisterAsyncNotification(999, ignore_notice, NULL, &handle));
}

/// Natively a handle that was given back ends the process.
static void test_stale_handles(void) {
  CUlogsCallbackHandle log = NULL;
  OK(cuLogsRegisterCallback(ignore_log, NULL, &log));
  OK(cuLogsUnregisterCallback(log));
  CODE(CUDA_ERROR_INVALID_VALUE, cuLogsUnregisterCallback(log));
  CUasyncCallbackHandle notice = NULL;
  OK(cuDeviceRegisterAsyncNotification(device, ignore_notice, NULL, &notice));
  OK(cuDeviceUnregisterAsyncNotification(device, notice));
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceUnregisterAsyncNotification(device, notice));
}

static void test_switches(void) {
  CODE(CUDA_ERROR_NOT_SUPPORTED, cuProfilerInitialize("a", "b", CU_OUT_CSV));
  OK(cuProfilerStart());
  OK(cuProfilerStop());
  OK(cuFlushGPUDirectRDMAWrites(CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                                CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER));
  CODE(CUDA_ERROR_INVALID_VALUE,
       cuFlushGPUDirectRDMAWrites((CUflushGPUDirectRDMAWritesTarget)9, CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER));
  const CUatomicOperation operations[] = {CU_ATOMIC_OPERATION_INTEGER_ADD, CU_ATOMIC_OPERATION_CAS};
  const CUatomicOperation unknown[] = {CU_ATOMIC_OPERATION_MAX};
  unsigned capabilities[2] = {99, 99};
  OK(cuDeviceGetHostAtomicCapabilities(capabilities, operations, 2, device));
  NOTE(capabilities[0]);
  NOTE(capabilities[1]);
  TRUE(capabilities[0] < 128 && capabilities[1] < 128);
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetHostAtomicCapabilities(capabilities, operations, 0, device));
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetHostAtomicCapabilities(NULL, operations, 2, device));
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetHostAtomicCapabilities(capabilities, unknown, 1, device));
  CODE(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetHostAtomicCapabilities(capabilities, operations, 2, 999));
  CODE(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetP2PAtomicCapabilities(capabilities, operations, 2, device, 999));
}

static void test_resources(void) {
  CUdevResource whole, of_context;
  int multiprocessors = 0;
  memset(&whole, 0xff, sizeof whole);
  memset(&of_context, 0xff, sizeof of_context);
  OK(cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
  for (int i = 0; i < 2; i++) {
    OK(cuDeviceGetDevResource(device, &whole, CU_DEV_RESOURCE_TYPE_SM));
    OK(cuCtxGetDevResource(context, &of_context, CU_DEV_RESOURCE_TYPE_SM));
    IS(CU_DEV_RESOURCE_TYPE_SM, whole.type);
    IS(CU_DEV_RESOURCE_TYPE_SM, of_context.type);
    IS(multiprocessors, whole.sm.smCount);
    IS(multiprocessors, of_context.sm.smCount);
    NOTE(whole.sm.minSmPartitionSize);
    NOTE(whole.sm.smCoscheduledAlignment);
  }
  CODE(CUDA_ERROR_INVALID_CONTEXT, cuCtxGetDevResource(NULL, &of_context, CU_DEV_RESOURCE_TYPE_SM));
  CODE(CUDA_ERROR_INVALID_VALUE, cuDeviceGetDevResource(device, NULL, CU_DEV_RESOURCE_TYPE_SM));
  CODE(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetDevResource(999, &whole, CU_DEV_RESOURCE_TYPE_SM));
  CODE(CUDA_ERROR_INVALID_RESOURCE_TYPE, cuDeviceGetDevResource(device, &whole, CU_DEV_RESOURCE_TYPE_INVALID));
}

static volatile int open_gate;
static void hold(void* unused) {
  (void)unused;
  while (!open_gate) usleep(200);
}

static void test_context_order(void) {
  CUcontext own = NULL, other = NULL;
  CUevent event = NULL, foreign = NULL, late = NULL;
  CUstream blocking = NULL, free_stream = NULL, later = NULL;
  CUdeviceptr memory = 0;
  OK(cuCtxCreate_v2(&other, 0, device));
  OK(cuEventCreate(&foreign, 0));
  OK(cuCtxCreate_v2(&own, 0, device));
  OK(cuEventCreate(&event, 0));
  OK(cuEventCreate(&late, 0));
  OK(cuMemAlloc_v2(&memory, 4096));
  OK(cuStreamCreate(&blocking, 0));
  OK(cuStreamCreate(&free_stream, CU_STREAM_NON_BLOCKING));
  // An event of the whole context is reached when the last of its streams is.
  OK(cuCtxRecordEvent(own, event));
  OK(cuEventSynchronize(event));
  open_gate = 0;
  OK(cuLaunchHostFunc(free_stream, hold, NULL));
  OK(cuMemsetD32Async(memory, 1, 16, blocking));
  OK(cuCtxRecordEvent(own, event));
  OK(cuStreamSynchronize(blocking));
  CODE(CUDA_ERROR_NOT_READY, cuEventQuery(event));
  // Every stream of the context waits for it, one that is made later too; the CPU does not.
  OK(cuCtxWaitEvent(own, event));
  OK(cuStreamCreate(&later, CU_STREAM_NON_BLOCKING));
  OK(cuMemsetD32Async(memory, 2, 16, later));
  OK(cuEventRecord(late, later));
  OK(cuMemsetD32Async(memory, 3, 16, blocking));
  CODE(CUDA_ERROR_NOT_READY, cuEventQuery(late));
  CODE(CUDA_ERROR_NOT_READY, cuStreamQuery(blocking));
  open_gate = 1;
  OK(cuEventSynchronize(event));
  OK(cuEventSynchronize(late));
  OK(cuCtxSynchronize());
  OK(cuStreamQuery(blocking));
  // Events of other contexts can be waited for, not recorded.
  CODE(CUDA_ERROR_INVALID_HANDLE, cuCtxRecordEvent(own, foreign));
  OK(cuCtxWaitEvent(own, foreign));
  // A capture forbids both, and is over.
  CUgraph graph = NULL;
  OK(cuStreamBeginCapture_v2(free_stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  CODE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuCtxRecordEvent(own, event));
  CODE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(free_stream, &graph));
  OK(cuStreamDestroy_v2(later));
  OK(cuStreamDestroy_v2(free_stream));
  OK(cuStreamDestroy_v2(blocking));
  OK(cuMemFree_v2(memory));
  OK(cuEventDestroy_v2(event));
  OK(cuEventDestroy_v2(late));
  OK(cuCtxDestroy_v2(own));
  OK(cuCtxDestroy_v2(other));
}

SECTIONS({"log", test_log, DRIVER_TABLES}, {"core_dumps", test_core_dumps, DRIVER_TABLES},
         {"notifications", test_notifications, DRIVER_TABLES},
         {"stale_handles", test_stale_handles, DRIVER_TABLES | NOT_NATIVE}, {"switches", test_switches, DRIVER_TABLES},
         {"resources", test_resources, 0}, {"context_order", test_context_order, OWN_CONTEXT | DRIVER_TABLES})
