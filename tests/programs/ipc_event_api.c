// Two processes that share events: CUDA IPC. Each records, waits for and queries what the other one has made.
#include "cuda_types.h"

#define CALLS(X)                                                         \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice))          \
  X(cuIpcGetEventHandle, (CUipcEventHandle*, CUevent))                   \
  X(cuIpcOpenEventHandle, (CUevent*, CUipcEventHandle))                  \
  X(cuIpcGetMemHandle, (CUipcMemHandle*, CUdeviceptr))                   \
  X(cuIpcOpenMemHandle_v2, (CUdeviceptr*, CUipcMemHandle, unsigned))     \
  X(cuIpcCloseMemHandle, (CUdeviceptr))                                  \
  X(cuEventCreate, (CUevent*, unsigned))                                 \
  X(cuEventDestroy_v2, (CUevent))                                        \
  X(cuEventRecord, (CUevent, CUstream))                                  \
  X(cuEventQuery, (CUevent))                                             \
  X(cuEventSynchronize, (CUevent))                                       \
  X(cuEventElapsedTime, (float*, CUevent, CUevent))                      \
  X(cuStreamCreate, (CUstream*, unsigned))                               \
  X(cuStreamDestroy_v2, (CUstream))                                      \
  X(cuStreamQuery, (CUstream))                                           \
  X(cuStreamSynchronize, (CUstream))                                     \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                    \
  X(cuStreamWaitValue32_v2, (CUstream, CUdeviceptr, unsigned, unsigned)) \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*))                       \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                               \
  X(cuMemFree_v2, (CUdeviceptr))                                         \
  X(cuMemAllocHost_v2, (void**, size_t))                                 \
  X(cuMemFreeHost, (void*))                                              \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))         \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))

#include "area.h"
#include "processes.h"

#define MIB ((size_t)1 << 20)
#define NOT_READY 600
#define SHARED_EVENT (CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS)

// ------------------------------------------------------------------------------------------------ the other process
// Of a request the address is the event or the memory, the value the stream.
enum command {
  EVENT_MAKE = 1,
  EVENT_OPEN,
  EVENT_DESTROY,
  EVENT_RECORD,
  EVENT_QUERY,
  EVENT_SYNCHRONIZE,
  EVENT_WAIT,
  STREAM_QUERY,
  STREAM_SYNCHRONIZE,
  STREAM_HOLD,
  STREAM_GO,
  STREAM_CALL,
  STREAM_RETURN,
  STREAM_FILL,
  STREAM_READ,
  MEMORY_OPEN,
  MEMORY_CLOSE,
};

// ------------------------------------------------------------------------------------------------ streams to hold
// A held stream waits for a word of device memory, or inside a host function.
static struct {
  CUstream streams[2], free_stream;
  CUdeviceptr words;
  volatile int returned[2];
} gates;

static CUresult gates_open(void) {
  CUresult code = 0;
  for (int i = 0; i < 2 && code == 0; i++) code = cuStreamCreate(&gates.streams[i], CU_STREAM_NON_BLOCKING);
  if (code == 0) code = cuStreamCreate(&gates.free_stream, CU_STREAM_NON_BLOCKING);
  return code != 0 ? code : cuMemAlloc_v2(&gates.words, 8);
}

static void gates_close(void) {
  for (int i = 0; i < 2; i++) OK(cuStreamDestroy_v2(gates.streams[i]));
  OK(cuStreamDestroy_v2(gates.free_stream));
  OK(cuMemFree_v2(gates.words));
}

static CUresult set_word(unsigned stream, unsigned value) {
  const CUresult code = cuMemsetD32Async(gates.words + (CUdeviceptr)(4 * stream), value, 1, gates.free_stream);
  return code != 0 ? code : cuStreamSynchronize(gates.free_stream);
}

static CUresult hold(unsigned stream) {
  const CUresult code = set_word(stream, 0);
  if (code != 0) return code;
  return cuStreamWaitValue32_v2(gates.streams[stream], gates.words + (CUdeviceptr)(4 * stream), 1,
                                CU_STREAM_WAIT_VALUE_EQ);
}

static CUresult go(unsigned stream) { return set_word(stream, 1); }

static void wait_for_return(void* returned) {
  while (!*(volatile int*)returned) usleep(1000);
}

static CUresult begin(void) { return gates_open(); }

static void serve(const request* r, int fd, answer* a) {
  const CUevent event = (CUevent)(uintptr_t)r->address;
  const CUstream stream = r->value < 2 ? gates.streams[r->value] : NULL;
  CUipcEventHandle handle;
  CUipcMemHandle memory;
  CUevent made;
  (void)fd;
  a->address = r->address;
  switch (r->command) {
    case EVENT_MAKE:
      a->code = cuEventCreate(&made, SHARED_EVENT);
      if (a->code == 0) a->code = cuIpcGetEventHandle(&handle, made);
      memcpy(a->handle, &handle, sizeof handle);
      a->address = (CUdeviceptr)(uintptr_t)made;
      break;
    case EVENT_OPEN:
      memcpy(&handle, r->handle, sizeof handle);
      a->code = cuIpcOpenEventHandle(&made, handle);
      a->address = (CUdeviceptr)(uintptr_t)made;
      break;
    case EVENT_DESTROY:
      a->code = cuEventDestroy_v2(event);
      break;
    case EVENT_RECORD:
      a->code = cuEventRecord(event, stream);
      break;
    case EVENT_QUERY:
      a->code = cuEventQuery(event);
      break;
    case EVENT_SYNCHRONIZE:
      a->code = cuEventSynchronize(event);
      break;
    case EVENT_WAIT:
      a->code = cuStreamWaitEvent(stream, event, 0);
      break;
    case STREAM_QUERY:
      a->code = cuStreamQuery(stream);
      break;
    case STREAM_SYNCHRONIZE:
      a->code = cuStreamSynchronize(stream);
      break;
    case STREAM_HOLD:
      a->code = hold(r->value);
      break;
    case STREAM_GO:
      a->code = go(r->value);
      break;
    case STREAM_CALL:
      gates.returned[r->value] = 0;
      a->code = cuLaunchHostFunc(stream, wait_for_return, (void*)&gates.returned[r->value]);
      break;
    case STREAM_RETURN:
      gates.returned[r->value] = 1;
      break;
    case STREAM_FILL:
      a->code = cuMemsetD32Async(r->address, (unsigned)r->bytes, 1024, stream);
      break;
    case STREAM_READ:
      a->code = cuMemcpyDtoHAsync_v2(&a->value, r->address, sizeof a->value, stream);
      if (a->code == 0) a->code = cuStreamSynchronize(stream);
      break;
    case MEMORY_OPEN:
      memcpy(&memory, r->handle, sizeof memory);
      a->code = cuIpcOpenMemHandle_v2(&a->address, memory, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
      break;
    case MEMORY_CLOSE:
      a->code = cuIpcCloseMemHandle(r->address);
      break;
    default:
      break;
  }
}

// ------------------------------------------------------------------------------------------------ events
static CUdeviceptr open_event(process p, const CUipcEventHandle* handle, CUresult* code) {
  request r = {.command = EVENT_OPEN};
  memcpy(r.handle, handle, sizeof r.handle);
  const answer a = tell_with(p, r, -1);
  *code = a.code;
  return a.address;
}

/// An event of ours, opened in `p`.
static CUdeviceptr shared_event(process p, CUevent* event, CUipcEventHandle* handle) {
  CUresult code;
  OK(cuEventCreate(event, SHARED_EVENT));
  OK(cuIpcGetEventHandle(handle, *event));
  const CUdeviceptr opened = open_event(p, handle, &code);
  IS(0, code);
  return opened;
}

static void test_order(void) {
  int supported = 0;
  OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, device));
  IS(1, supported);
  CUevent event;
  CUipcEventHandle handle, again;
  OK(gates_open());
  const process p = start();
  const CUdeviceptr there = shared_event(p, &event, &handle);
  OK(cuIpcGetEventHandle(&again, event));
  NOTE(memcmp(&handle, &again, sizeof handle) == 0);
  // never recorded
  OK(cuEventQuery(event));
  OK(cuEventSynchronize(event));
  IS(0, TELL(p, EVENT_QUERY, there).code);
  IS(0, TELL(p, EVENT_SYNCHRONIZE, there).code);
  IS(0, TELL(p, EVENT_WAIT, there).code);
  IS(0, TELL(p, STREAM_SYNCHRONIZE).code);
  // recorded here, seen there at once; twice
  for (int i = 0; i < 2; i++) {
    OK(hold(0));
    OK(cuEventRecord(event, gates.streams[0]));
    IS(NOT_READY, TELL(p, EVENT_QUERY, there).code);
    CODE(NOT_READY, cuEventQuery(event));
    IS(0, TELL(p, EVENT_WAIT, there).code);
    IS(NOT_READY, TELL(p, STREAM_QUERY).code);
    ASK(p, EVENT_SYNCHRONIZE, there);
    usleep(20000);
    OK(go(0));
    IS(0, hear(p).code);
    IS(0, TELL(p, STREAM_SYNCHRONIZE).code);
    IS(0, TELL(p, EVENT_QUERY, there).code);
    OK(cuEventSynchronize(event));
    OK(cuEventQuery(event));
  }
  // recorded there, seen here; twice
  for (int i = 0; i < 2; i++) {
    IS(0, TELL(p, STREAM_HOLD).code);
    IS(0, TELL(p, EVENT_RECORD, there).code);
    CODE(NOT_READY, cuEventQuery(event));
    OK(cuStreamWaitEvent(gates.streams[0], event, 0));
    CODE(NOT_READY, cuStreamQuery(gates.streams[0]));
    CODE(NOT_READY, cuEventQuery(event));
    IS(0, TELL(p, STREAM_GO).code);
    OK(cuEventSynchronize(event));
    OK(cuEventQuery(event));
    OK(cuStreamSynchronize(gates.streams[0]));
  }
  IS(0, TELL(p, EVENT_DESTROY, there).code);
  // the other's end of it changes nothing here
  OK(cuEventRecord(event, gates.streams[0]));
  OK(cuEventSynchronize(event));
  OK(cuEventDestroy_v2(event));
  IS(0, finish(p));
  gates_close();
}

static void test_waits(void) {
  // a wait means the record before it, whoever records the event again
  CUevent event;
  CUipcEventHandle handle;
  OK(gates_open());
  const process p = start();
  const CUdeviceptr there = shared_event(p, &event, &handle);
  for (int in_function = 0; in_function < 2; in_function++) {
    if (in_function) IS(0, TELL(p, STREAM_CALL).code);
    OK(hold(0));
    OK(hold(1));
    OK(cuEventRecord(event, gates.streams[0]));
    IS(0, TELL(p, EVENT_WAIT, there).code);
    OK(cuEventRecord(event, gates.streams[1]));
    if (in_function) IS(0, TELL(p, STREAM_RETURN).code);
    usleep(20000);
    IS(NOT_READY, TELL(p, STREAM_QUERY).code);
    OK(go(0));
    IS(0, TELL(p, STREAM_SYNCHRONIZE).code);
    IS(NOT_READY, TELL(p, EVENT_QUERY, there).code);
    CODE(NOT_READY, cuEventQuery(event));
    OK(go(1));
    IS(0, TELL(p, EVENT_SYNCHRONIZE, there).code);
    OK(cuEventSynchronize(event));
  }
  // there and back: each side's record stands behind its wait for the other's
  CUevent back;
  const answer made = TELL(p, EVENT_MAKE);
  IS(0, made.code);
  memcpy(&handle, made.handle, sizeof handle);
  OK(cuIpcOpenEventHandle(&back, handle));
  for (int i = 0; i < 20; i++) {
    OK(cuEventRecord(event, gates.streams[0]));
    IS(0, TELL(p, EVENT_WAIT, there).code);
    IS(0, TELL(p, EVENT_RECORD, made.address).code);
    OK(cuStreamWaitEvent(gates.streams[0], back, 0));
  }
  OK(cuStreamSynchronize(gates.streams[0]));
  IS(0, TELL(p, STREAM_SYNCHRONIZE).code);
  OK(cuEventQuery(back));
  OK(cuEventDestroy_v2(back));
  OK(cuEventDestroy_v2(event));
  IS(0, finish(p));
  gates_close();
}

static void test_refusals(void) {
  CUevent event, plain, opened;
  CUipcEventHandle handle, broken;
  float milliseconds;
  CODE(1, cuEventCreate(&event, CU_EVENT_INTERPROCESS));
  OK(cuEventCreate(&event, SHARED_EVENT | CU_EVENT_BLOCKING_SYNC));
  OK(cuEventCreate(&plain, CU_EVENT_DISABLE_TIMING));
  CODE(1, cuIpcGetEventHandle(NULL, event));
  TRUE(cuIpcGetEventHandle(&handle, plain) != 0);
  NOTE(cuIpcGetEventHandle(&handle, plain));
  OK(cuIpcGetEventHandle(&handle, event));
  NOTE(cuIpcOpenEventHandle(&opened, handle));
  CODE(1, cuIpcOpenEventHandle(NULL, handle));
  CODE(400, cuEventElapsedTime(&milliseconds, event, event));
  const process p = start();
  CUresult code;
  memset(&broken, 0, sizeof broken);
  (void)open_event(p, &broken, &code);
  IS(205, code);
  memset(&broken, 0xa5, sizeof broken);
  (void)open_event(p, &broken, &code);
  TRUE(code != 0);
  for (size_t i = 0; i < sizeof handle.reserved; i += 7) {
    broken = handle;
    broken.reserved[i] ^= 0x40;
    (void)open_event(p, &broken, &code);
    NOTE(code);
  }
  // what its maker has destroyed cannot be opened any more
  OK(cuEventDestroy_v2(event));
  usleep(20000);
  (void)open_event(p, &handle, &code);
  NOTE(code);
  IS(0, finish(p));
  OK(cuEventDestroy_v2(plain));
}

/// The driver may read what a destroyed event has left behind; here its handle is known to be one.
static void test_destroyed(void) {
  CUevent event;
  CUipcEventHandle handle;
  CUresult code;
  OK(cuEventCreate(&event, SHARED_EVENT));
  OK(cuIpcGetEventHandle(&handle, event));
  OK(cuEventDestroy_v2(event));
  CODE(400, cuIpcGetEventHandle(&handle, event));
  usleep(20000);
  const process p = start();
  (void)open_event(p, &handle, &code);
  IS(205, code);
  IS(0, finish(p));
}

static void test_ends(void) {
  // the maker's end; the API leaves open what an opened event is worth then
  OK(gates_open());
  for (int killed = 0; killed < 2; killed++) {
    const process p = start();
    const answer made = TELL(p, EVENT_MAKE);
    CUipcEventHandle handle;
    CUevent opened;
    IS(0, made.code);
    memcpy(&handle, made.handle, sizeof handle);
    OK(cuIpcOpenEventHandle(&opened, handle));
    IS(0, TELL(p, EVENT_RECORD, made.address).code);
    IS(0, TELL(p, EVENT_SYNCHRONIZE, made.address).code);
    if (killed) {
      end_at_once(p);
    } else {
      IS(0, TELL(p, EVENT_DESTROY, made.address).code);
    }
    usleep(50000);
    OK(cuEventQuery(opened));
    OK(cuEventSynchronize(opened));
    OK(hold(0));
    OK(cuEventRecord(opened, gates.streams[0]));
    CODE(NOT_READY, cuEventQuery(opened));
    OK(cuStreamWaitEvent(gates.streams[1], opened, 0));
    OK(go(0));
    OK(cuEventSynchronize(opened));
    OK(cuStreamSynchronize(gates.streams[1]));
    OK(cuEventDestroy_v2(opened));
    if (!killed) IS(0, finish(p));
  }
  gates_close();
}

static void test_bytes(void) {
  // a copy of ours is behind the other's record, which stands behind ours
  CUevent event, back;
  CUipcEventHandle handle;
  CUdeviceptr memory;
  unsigned* host;
  OK(gates_open());
  OK(cuMemAlloc_v2(&memory, 8 * MIB));
  OK(cuMemAllocHost_v2((void**)&host, 8 * MIB));
  const process p = start();
  const CUdeviceptr there = shared_event(p, &event, &handle);
  const answer made = TELL(p, EVENT_MAKE);
  IS(0, made.code);
  memcpy(&handle, made.handle, sizeof handle);
  OK(cuIpcOpenEventHandle(&back, handle));
  for (unsigned i = 1; i <= 10; i++) {
    OK(hold(0));
    OK(cuMemsetD32Async(memory, i, 2 * MIB, gates.streams[0]));
    OK(cuMemcpyDtoHAsync_v2(host, memory, 8 * MIB, gates.streams[0]));
    OK(cuEventRecord(event, gates.streams[0]));
    IS(0, TELL(p, EVENT_WAIT, there).code);
    IS(0, TELL(p, EVENT_RECORD, made.address).code);
    CODE(NOT_READY, cuEventQuery(back));
    OK(go(0));
    if (i % 2) {
      OK(cuEventSynchronize(back));
    } else {
      while (cuEventQuery(back) == NOT_READY) usleep(100);
    }
    IS(i, host[0]);
    IS(i, host[2 * MIB - 1]);
  }
  OK(cuStreamSynchronize(gates.streams[0]));
  OK(cuEventDestroy_v2(back));
  OK(cuEventDestroy_v2(event));
  IS(0, finish(p));
  OK(cuMemFree_v2(memory));
  OK(cuMemFreeHost(host));
  gates_close();
}

static void test_memory(void) {
  // memory whose bytes are ordered by events alone
  CUdeviceptr memory;
  CUipcMemHandle handle;
  CUevent event;
  CUipcEventHandle event_handle;
  unsigned* value;  // page-locked: a copy into other memory would wait for the other process here
  OK(gates_open());
  OK(cuMemAllocHost_v2((void**)&value, sizeof *value));
  OK(cuMemAlloc_v2(&memory, 4 * MIB));
  OK(cuIpcGetMemHandle(&handle, memory));
  const process p = start();
  request open = {.command = MEMORY_OPEN};
  memcpy(open.handle, &handle, sizeof handle);
  const answer opened = tell_with(p, open, -1);
  IS(0, opened.code);
  const CUdeviceptr there = shared_event(p, &event, &event_handle);
  for (unsigned i = 1; i <= 10; i++) {
    OK(hold(0));
    OK(cuMemsetD32Async(memory, i, 1024, gates.streams[0]));
    OK(cuEventRecord(event, gates.streams[0]));
    IS(0, TELL(p, EVENT_WAIT, there).code);
    ASK(p, STREAM_READ, opened.address);
    usleep(2000);
    OK(go(0));
    const answer seen = hear(p);
    IS(0, seen.code);
    IS(i, seen.value);
    // and back
    *value = 0;
    IS(0, TELL(p, STREAM_HOLD).code);
    IS(0, TELL(p, STREAM_FILL, opened.address, 1000 + i).code);
    IS(0, TELL(p, EVENT_RECORD, there).code);
    OK(cuStreamWaitEvent(gates.streams[1], event, 0));
    OK(cuMemcpyDtoHAsync_v2(value, memory + 4092, sizeof *value, gates.streams[1]));
    IS(0, TELL(p, STREAM_GO).code);
    OK(cuStreamSynchronize(gates.streams[1]));
    IS(1000 + i, *value);
  }
  IS(0, TELL(p, MEMORY_CLOSE, opened.address).code);
  IS(0, TELL(p, EVENT_DESTROY, there).code);
  IS(0, finish(p));
  OK(cuEventDestroy_v2(event));
  OK(cuMemFree_v2(memory));
  OK(cuMemFreeHost(value));
  gates_close();
}

static const section all[] = {
    {"order", test_order, 0},
    {"waits", test_waits, 0},
    {"refusals", test_refusals, 0},
    {"destroyed", test_destroyed, NOT_NATIVE},
    {"ends", test_ends, NOT_NATIVE},
    {"bytes", test_bytes, 0},
    {"memory", test_memory, DRIVER_TABLES},
};

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "--child") == 0) return child_main(atoi(argv[2]));
  return area_main(all, (int)(sizeof all / sizeof all[0]), argc, argv);
}
