// Streams, events, threads, graphs.
#ifndef ORION_TESTS_RUNTIME_STREAMS_H
#define ORION_TESTS_RUNTIME_STREAMS_H

#include <pthread.h>

#include "harness.h"
#include "memory.h"

__global__ void spin_then_set(int* value, long long cycles, int to) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
  *value = to;
}

__global__ void add_from(int* to, const int* from) { *to += *from; }

static void test_streams() {
  cudaStream_t first, second, urgent;
  cudaEvent_t event;
  int *values = NULL, got[4] = {};
  int least = 0, greatest = 0, priority = 0;
  OK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  SAY("streams.least", least);
  SAY("streams.greatest", greatest);
  OK(cudaStreamCreate(&first));
  OK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithPriority(&urgent, cudaStreamNonBlocking, greatest));
  OK(cudaStreamGetPriority(urgent, &priority));
  IS("streams.priority", greatest, priority);
  OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  OK(cudaMalloc(&values, sizeof got));
  OK(cudaMemset(values, 0, sizeof got));
  OK(cudaDeviceSynchronize());
  spin_then_set<<<1, 1, 0, first>>>(values, 20000000, 7);
  OK(cudaEventRecord(event, first));
  OK(cudaStreamWaitEvent(second, event, 0));
  add_from<<<1, 1, 0, second>>>(values + 1, values);
  spin_then_set<<<1, 1, 0, urgent>>>(values + 2, 1000, 9);
  OK(cudaStreamSynchronize(second));
  OK(cudaStreamSynchronize(urgent));
  OK(cudaMemcpy(got, values, sizeof got, cudaMemcpyDeviceToHost));
  IS("streams.waited", 7, got[1]);
  IS("streams.urgent", 9, got[2]);
  // The legacy NULL stream waits for blocking streams; the per-thread one (its own build) does not have to.
  spin_then_set<<<1, 1, 0, first>>>(values, 20000000, 70);
  add_from<<<1, 1, 0, cudaStreamLegacy>>>(values + 3, values);
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpy(got, values, sizeof got, cudaMemcpyDeviceToHost));
  IS("streams.legacy", 70, got[3]);
  IS("streams.query", cudaSuccess, cudaStreamQuery(first));
  spin_then_set<<<1, 1, 0, first>>>(values, 200000000, 1);
  IS("streams.busy", cudaErrorNotReady, cudaStreamQuery(first));
  cudaGetLastError();
  unsigned flags = 9;
  OK(cudaStreamGetFlags(second, &flags));
  IS("streams.flags", cudaStreamNonBlocking, flags);
  OK(cudaStreamDestroy(first));
  OK(cudaStreamDestroy(second));
  OK(cudaStreamDestroy(urgent));
  OK(cudaEventDestroy(event));
  OK(cudaFree(values));
}

static void test_events() {
  cudaEvent_t start, stop;
  int* value = NULL;
  float ms = -1;
  OK(cudaEventCreate(&start));
  OK(cudaEventCreateWithFlags(&stop, cudaEventBlockingSync));
  OK(cudaMalloc(&value, sizeof(int)));
  OK(cudaEventRecord(start));
  spin_then_set<<<1, 1>>>(value, 10000000, 3);
  OK(cudaEventRecord(stop));
  OK(cudaEventSynchronize(stop));
  OK(cudaEventElapsedTime(&ms, start, stop));
  // Ten million cycles are between 4 and 100 ms on any clock that a GPU runs at.
  IS("events.elapsed_plausible", 1, ms > 3.0f && ms < 1000.0f);
  IS("events.query", cudaSuccess, cudaEventQuery(stop));
  OK(cudaEventDestroy(start));
  OK(cudaEventDestroy(stop));
  OK(cudaFree(value));
}

struct thread_work {
  int seed;
  unsigned result;
};

static void* work_in_thread(void* data) {
  thread_work* work = (thread_work*)data;
  enum { COUNT = 4096, ROUNDS = 200 };
  int values[COUNT], *device = NULL;
  fill(values, COUNT, work->seed);
  OK(cudaMalloc(&device, sizeof values));
  OK(cudaMemcpyAsync(device, values, sizeof values, cudaMemcpyHostToDevice, cudaStreamPerThread));
  for (int i = 0; i < ROUNDS; i++) add_to_each<<<16, 256, 0, cudaStreamPerThread>>>(device, COUNT, i * work->seed);
  OK(cudaMemcpyAsync(values, device, sizeof values, cudaMemcpyDeviceToHost, cudaStreamPerThread));
  OK(cudaStreamSynchronize(cudaStreamPerThread));
  work->result = digest(values, sizeof values);
  OK(cudaFree(device));
  return NULL;
}

static void test_threads() {
  pthread_t threads[4];
  thread_work work[4];
  unsigned all = 0;
  for (int i = 0; i < 4; i++) {
    work[i] = {i + 1, 0};
    pthread_create(&threads[i], NULL, work_in_thread, &work[i]);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    all = all * 31 + work[i].result;
  }
  SAY("threads.digest", all);
}

static void CUDART_CB add_hundred(void* data) { *(int*)data += 100; }

static void test_graphs() {
  enum { COUNT = 4096 };
  constexpr size_t BYTES = COUNT * sizeof(int);
  static int host_out[COUNT];
  int *device = NULL, *pinned = NULL, calls = 0;
  cudaStream_t stream, side;
  cudaEvent_t fork_event, join_event;
  cudaGraph_t graph, other;
  cudaGraphExec_t exec;
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  OK(cudaEventCreateWithFlags(&fork_event, cudaEventDisableTiming));
  OK(cudaEventCreateWithFlags(&join_event, cudaEventDisableTiming));
  OK(cudaMalloc(&device, 2 * BYTES));
  OK(cudaMallocHost(&pinned, BYTES));
  const auto capture = [&](int amount) {
    cudaGraph_t captured = NULL;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemcpyAsync(device, pinned, BYTES, cudaMemcpyHostToDevice, stream));
    OK(cudaEventRecord(fork_event, stream));
    OK(cudaStreamWaitEvent(side, fork_event, 0));
    OK(cudaMemsetAsync(device + COUNT, 0, BYTES, side));
    add_to_each<<<16, 256, 0, side>>>(device + COUNT, COUNT, amount);
    OK(cudaEventRecord(join_event, side));
    add_to_each<<<16, 256, 0, stream>>>(device, COUNT, amount);
    OK(cudaStreamWaitEvent(stream, join_event, 0));
    OK(cudaLaunchHostFunc(stream, add_hundred, &calls));
    OK(cudaMemcpyAsync(host_out, device, BYTES, cudaMemcpyDeviceToHost, stream));
    OK(cudaStreamEndCapture(stream, &captured));
    return captured;
  };
  graph = capture(3);
  size_t nodes = 0, edges = 0;
  OK(cudaGraphGetNodes(graph, NULL, &nodes));
  IS("graphs.nodes", 6, nodes);
#if CUDART_VERSION >= 13000
  OK(cudaGraphGetEdges(graph, NULL, NULL, NULL, &edges));
#else
  OK(cudaGraphGetEdges(graph, NULL, NULL, &edges));
#endif
  SAY("graphs.edges", edges);
  OK(cudaGraphInstantiate(&exec, graph, 0));
  for (int round = 0; round < 3; round++) {
    // A graph's copies read the host at each launch.
    fill(pinned, COUNT, round);
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaStreamSynchronize(stream));
    IS("graphs.first", pinned[9] + 3, host_out[9]);
    SAY("graphs.out", digest(host_out, BYTES));
  }
  IS("graphs.host_calls", 300, calls);
  SAY("graphs.side", device_digest(device + COUNT, BYTES));
  other = capture(50);
  cudaGraphExecUpdateResultInfo info = {};
  OK(cudaGraphExecUpdate(exec, other, &info));
  IS("graphs.update", cudaGraphExecUpdateSuccess, info.result);
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  IS("graphs.updated", pinned[9] + 50, host_out[9]);
  // An explicit graph: a kernel whose parameters change, in the graph and in the exec; another shape is refused.
  cudaGraph_t made, clone;
  cudaGraphNode_t kernel_node, memset_node, empty_node;
  cudaGraphExec_t made_exec;
  int count = COUNT, amount = 9;
  void* arguments[] = {&device, &count, &amount};
  cudaKernelNodeParams kernel = {};
  kernel.func = (void*)add_to_each;
  kernel.gridDim = dim3(16);
  kernel.blockDim = dim3(256);
  kernel.kernelParams = arguments;
  cudaMemsetParams clear = {};
  clear.dst = device;
  clear.elementSize = 4;
  clear.width = COUNT;
  clear.height = 1;
  clear.value = 1;
  OK(cudaGraphCreate(&made, 0));
  OK(cudaGraphAddMemsetNode(&memset_node, made, NULL, 0, &clear));
  OK(cudaGraphAddKernelNode(&kernel_node, made, &memset_node, 1, &kernel));
  OK(cudaGraphAddEmptyNode(&empty_node, made, &kernel_node, 1));
  cudaKernelNodeParams seen = {};
  OK(cudaGraphKernelNodeGetParams(kernel_node, &seen));
  IS("graphs.get_params", 9, *(int*)seen.kernelParams[2]);
  OK(cudaGraphInstantiate(&made_exec, made, 0));
  OK(cudaGraphLaunch(made_exec, stream));
  OK(cudaStreamSynchronize(stream));
  SAY("graphs.made", device_digest(device, BYTES));
  amount = 90;
  OK(cudaGraphExecKernelNodeSetParams(made_exec, kernel_node, &kernel));
  OK(cudaGraphLaunch(made_exec, stream));
  OK(cudaStreamSynchronize(stream));
  SAY("graphs.set", device_digest(device, BYTES));
  OK(cudaGraphClone(&clone, made));
  SAY_CODE("graphs.update_other_shape", cudaGraphExecUpdate(made_exec, other, &info));
  SAY("graphs.update_other_result", info.result);
  OK(cudaGraphDestroy(clone));
  OK(cudaGraphDestroy(made));
  OK(cudaGraphExecDestroy(made_exec));
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaGraphDestroy(other));
  // A stream-ordered allocation inside a capture is a node.
  int* inside = NULL;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  OK(cudaMallocAsync(&inside, BYTES, stream));
  OK(cudaMemsetAsync(inside, 0, BYTES, stream));
  add_to_each<<<16, 256, 0, stream>>>(inside, COUNT, 6);
  OK(cudaMemcpyAsync(device, inside, BYTES, cudaMemcpyDeviceToDevice, stream));
  OK(cudaFreeAsync(inside, stream));
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < 2; i++) OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  SAY("graphs.memory_node", device_digest(device, BYTES));
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaDeviceGraphMemTrim(0));
  // What ends a capture.
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  OK(cudaStreamIsCapturing(stream, &status));
  IS("graphs.capturing", cudaStreamCaptureStatusActive, status);
  void* unused = NULL;
  SAY_CODE("graphs.malloc_in_capture", cudaMalloc(&unused, 64));
  SAY_CODE("graphs.sync_in_capture", cudaStreamSynchronize(stream));
  SAY_CODE("graphs.end", cudaStreamEndCapture(stream, &graph));
  CODE("graphs.end_again", cudaErrorIllegalState, cudaStreamEndCapture(stream, &graph));
  OK(cudaMemset(device, 0, 64));
  OK(cudaFree(device));
  OK(cudaFreeHost(pinned));
  OK(cudaEventDestroy(fork_event));
  OK(cudaEventDestroy(join_event));
  OK(cudaStreamDestroy(side));
  OK(cudaStreamDestroy(stream));
}

#endif  // ORION_TESTS_RUNTIME_STREAMS_H
