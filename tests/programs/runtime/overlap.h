// Work of many streams at a time, and graphs made node by node.
#ifndef ORION_TESTS_RUNTIME_OVERLAP_H
#define ORION_TESTS_RUNTIME_OVERLAP_H

#include "harness.h"
#include "memory.h"
#include "streams.h"

/// Copies in, kernels and copies out of four streams in turn over the same buffers, in both usual orders.
static void test_overlap() {
  enum { STREAMS = 4, COUNT = 1 << 16, ROUNDS = 12 };
  constexpr size_t BYTES = COUNT * sizeof(int);
  int *in[STREAMS], *out[STREAMS], *device[STREAMS];
  cudaStream_t streams[STREAMS];
  cudaEvent_t done[STREAMS];
  for (int s = 0; s < STREAMS; s++) {
    OK(cudaStreamCreate(&streams[s]));
    OK(cudaEventCreateWithFlags(&done[s], cudaEventDisableTiming));
    OK(cudaHostAlloc(&in[s], BYTES, cudaHostAllocDefault));
    OK(cudaHostAlloc(&out[s], BYTES, cudaHostAllocDefault));
    OK(cudaMalloc(&device[s], BYTES));
  }
  unsigned all = 0;
  for (int round = 0; round < ROUNDS; round++) {
    const int s = round % STREAMS;
    OK(cudaEventSynchronize(done[s]));
    if (round >= STREAMS) all = all * 31 + digest(out[s], BYTES);
    fill(in[s], COUNT, round);
    OK(cudaMemcpyAsync(device[s], in[s], BYTES, cudaMemcpyHostToDevice, streams[s]));
    add_to_each<<<COUNT / 256, 256, 0, streams[s]>>>(device[s], COUNT, round);
    OK(cudaMemcpyAsync(out[s], device[s], BYTES, cudaMemcpyDeviceToHost, streams[s]));
    OK(cudaEventRecord(done[s], streams[s]));
  }
  OK(cudaDeviceSynchronize());
  IS("overlap.last", in[3][77] + ROUNDS - 1, out[3][77]);
  SAY("overlap.depth_first", all);
  for (int s = 0; s < STREAMS; s++) OK(cudaMemcpyAsync(device[s], in[s], BYTES, cudaMemcpyHostToDevice, streams[s]));
  for (int s = 0; s < STREAMS; s++) add_to_each<<<COUNT / 256, 256, 0, streams[s]>>>(device[s], COUNT, 5);
  for (int s = 0; s < STREAMS; s++) OK(cudaMemcpyAsync(out[s], device[s], BYTES, cudaMemcpyDeviceToHost, streams[s]));
  for (int s = 0; s < STREAMS; s++) OK(cudaStreamSynchronize(streams[s]));
  for (int s = 0; s < STREAMS; s++) all = all * 31 + digest(out[s], BYTES);
  SAY("overlap.breadth_first", all);
  for (int s = 0; s < STREAMS; s++) {
    OK(cudaStreamDestroy(streams[s]));
    OK(cudaEventDestroy(done[s]));
    OK(cudaFreeHost(in[s]));
    OK(cudaFreeHost(out[s]));
    OK(cudaFree(device[s]));
  }
}

/// More streams than a device has queues, each with kernels that depend on each other; one waits for them all.
static void test_many_streams() {
  enum { STREAMS = 48 };
  cudaStream_t streams[STREAMS];
  cudaEvent_t done;
  int *values = NULL, got = 0, expected = 0;
  OK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  OK(cudaMalloc(&values, (STREAMS + 1) * sizeof(int)));
  OK(cudaMemset(values, 0, (STREAMS + 1) * sizeof(int)));
  OK(cudaDeviceSynchronize());
  for (int s = 0; s < STREAMS; s++) OK(cudaStreamCreateWithFlags(&streams[s], cudaStreamNonBlocking));
  for (int s = 0; s < STREAMS; s++) {
    spin_then_set<<<1, 1, 0, streams[s]>>>(values + s, 200000, s + 1);
    add_to_each<<<1, 1, 0, streams[s]>>>(values + s, 1, 1000);
    expected += s + 1 + 1000;
  }
  for (int s = 0; s < STREAMS; s++) {
    OK(cudaEventRecord(done, streams[s]));
    OK(cudaStreamWaitEvent(streams[0], done, 0));
    add_from<<<1, 1, 0, streams[0]>>>(values + STREAMS, values + s);
  }
  OK(cudaMemcpyAsync(&got, values + STREAMS, sizeof got, cudaMemcpyDeviceToHost, streams[0]));
  OK(cudaStreamSynchronize(streams[0]));
  IS("many_streams.sum", expected, got);
  for (int s = 0; s < STREAMS; s++) OK(cudaStreamDestroy(streams[s]));
  OK(cudaEventDestroy(done));
  OK(cudaFree(values));
}

static void CUDART_CB double_it(void* data) { *(int*)data *= 2; }

/// Copies, a host function, events and a child graph as nodes; then the same graph with other copies.
static void test_graph_nodes() {
  enum { COUNT = 2048 };
  constexpr size_t BYTES = COUNT * sizeof(int);
  int *in = NULL, *out = NULL, *device = NULL, *doubled = NULL, count = COUNT, amount = 4;
  cudaStream_t stream;
  cudaEvent_t passed;
  cudaGraph_t graph, child;
  cudaGraphExec_t exec;
  cudaGraphNode_t copy_in, kernel_node, child_node, event_node, copy_out, host_node, nodes[16];
  OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  OK(cudaEventCreateWithFlags(&passed, cudaEventDisableTiming));
  OK(cudaMallocHost(&in, BYTES));
  OK(cudaMallocHost(&out, BYTES));
  OK(cudaMallocHost(&doubled, BYTES));
  OK(cudaMalloc(&device, BYTES));
  void* arguments[] = {&device, &count, &amount};
  cudaKernelNodeParams kernel = {};
  kernel.func = (void*)add_to_each;
  kernel.gridDim = dim3(COUNT / 256);
  kernel.blockDim = dim3(256);
  kernel.kernelParams = arguments;
  OK(cudaGraphCreate(&child, 0));
  OK(cudaGraphAddKernelNode(&kernel_node, child, NULL, 0, &kernel));
  OK(cudaGraphCreate(&graph, 0));
  OK(cudaGraphAddMemcpyNode1D(&copy_in, graph, NULL, 0, device, in, BYTES, cudaMemcpyHostToDevice));
  OK(cudaGraphAddKernelNode(&kernel_node, graph, &copy_in, 1, &kernel));
  OK(cudaGraphAddChildGraphNode(&child_node, graph, &kernel_node, 1, child));
  OK(cudaGraphAddEventRecordNode(&event_node, graph, &child_node, 1, passed));
  OK(cudaGraphAddMemcpyNode1D(&copy_out, graph, &child_node, 1, out, device, BYTES, cudaMemcpyDeviceToHost));
  cudaHostNodeParams host = {};
  host.fn = double_it;
  host.userData = out + 7;
  OK(cudaGraphAddHostNode(&host_node, graph, &copy_out, 1, &host));
  size_t number = 16;
  OK(cudaGraphGetNodes(graph, nodes, &number));
  IS("graph_nodes.count", 6, number);
  cudaGraphNodeType type;
  OK(cudaGraphNodeGetType(child_node, &type));
  IS("graph_nodes.type", cudaGraphNodeTypeGraph, type);
  OK(cudaGraphGetRootNodes(graph, nodes, &number));
  IS("graph_nodes.roots", 1, number);
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphUpload(exec, stream));
  fill(in, COUNT, 1);
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  IS("graph_nodes.event", cudaSuccess, cudaEventQuery(passed));
  IS("graph_nodes.copied", (int)((unsigned)in[9] + 8u), out[9]);
  IS("graph_nodes.host", (int)(((unsigned)in[7] + 8u) * 2u), out[7]);
  // From elsewhere, and the host function on another number.
  fill(doubled, COUNT, 70);
  OK(cudaGraphExecMemcpyNodeSetParams1D(exec, copy_in, device, doubled, BYTES, cudaMemcpyHostToDevice));
  host.userData = out + 8;
  OK(cudaGraphExecHostNodeSetParams(exec, host_node, &host));
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  IS("graph_nodes.changed", (int)(((unsigned)doubled[8] + 8u) * 2u), out[8]);
  SAY("graph_nodes.digest", digest(out, BYTES));
  // Without its kernel node the rest still runs.
  OK(cudaGraphNodeSetEnabled(exec, kernel_node, 0));
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  IS("graph_nodes.disabled", (int)((unsigned)doubled[9] + 4u), out[9]);
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroyNode(host_node));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphLaunch(exec, stream));
  OK(cudaStreamSynchronize(stream));
  IS("graph_nodes.destroyed", (int)((unsigned)in[8] + 8u), out[8]);
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
  OK(cudaGraphDestroy(child));
  OK(cudaFreeHost(in));
  OK(cudaFreeHost(out));
  OK(cudaFreeHost(doubled));
  OK(cudaFree(device));
  OK(cudaEventDestroy(passed));
  OK(cudaStreamDestroy(stream));
}

#endif  // ORION_TESTS_RUNTIME_OVERLAP_H
