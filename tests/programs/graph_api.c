// Stream capture and graphs: modes and codes, forks and joins, launches, host nodes, copies of host memory, updates,
// and graphs that are made node by node.
#define CALLS(X)                                                                                                      \
  X(cuCtxSynchronize, (void))                                                                                         \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                            \
  X(cuMemFree_v2, (CUdeviceptr))                                                                                      \
  X(cuMemAllocHost_v2, (void**, size_t))                                                                              \
  X(cuMemFreeHost, (void*))                                                                                           \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                                              \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                                                                    \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                                               \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                                     \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                               \
  X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                                             \
  X(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))                                                      \
  X(cuModuleLoadData, (CUmodule*, const void*))                                                                       \
  X(cuModuleUnload, (CUmodule))                                                                                       \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                        \
  X(cuLaunchKernel,                                                                                                   \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**))     \
  X(cuLaunchHostFunc, (CUstream, CUhostFn, void*))                                                                    \
  X(cuStreamAddCallback, (CUstream, CUstreamCallback, void*, unsigned))                                               \
  X(cuStreamCreate, (CUstream*, unsigned))                                                                            \
  X(cuStreamDestroy_v2, (CUstream))                                                                                   \
  X(cuStreamSynchronize, (CUstream))                                                                                  \
  X(cuStreamQuery, (CUstream))                                                                                        \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                                 \
  X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode))                                                         \
  X(cuStreamBeginCaptureToGraph,                                                                                      \
    (CUstream, CUgraph, const CUgraphNode*, const CUgraphEdgeData*, size_t, CUstreamCaptureMode))                     \
  X(cuStreamEndCapture, (CUstream, CUgraph*))                                                                         \
  X(cuStreamIsCapturing, (CUstream, CUstreamCaptureStatus*))                                                          \
  X(cuStreamGetCaptureInfo_v2,                                                                                        \
    (CUstream, CUstreamCaptureStatus*, cuuint64_t*, CUgraph*, const CUgraphNode**, size_t*))                          \
  X(cuStreamGetCaptureInfo_v3,                                                                                        \
    (CUstream, CUstreamCaptureStatus*, cuuint64_t*, CUgraph*, const CUgraphNode**, const CUgraphEdgeData**, size_t*)) \
  X(cuStreamUpdateCaptureDependencies, (CUstream, CUgraphNode*, size_t, unsigned))                                    \
  X(cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode*))                                                        \
  X(cuEventCreate, (CUevent*, unsigned))                                                                              \
  X(cuEventDestroy_v2, (CUevent))                                                                                     \
  X(cuEventRecord, (CUevent, CUstream))                                                                               \
  X(cuEventRecordWithFlags, (CUevent, CUstream, unsigned))                                                            \
  X(cuEventQuery, (CUevent))                                                                                          \
  X(cuEventSynchronize, (CUevent))                                                                                    \
  X(cuEventElapsedTime, (float*, CUevent, CUevent))                                                                   \
  X(cuGraphCreate, (CUgraph*, unsigned))                                                                              \
  X(cuGraphDestroy, (CUgraph))                                                                                        \
  X(cuGraphClone, (CUgraph*, CUgraph))                                                                                \
  X(cuGraphNodeFindInClone, (CUgraphNode*, CUgraphNode, CUgraph))                                                     \
  X(cuGraphDestroyNode, (CUgraphNode))                                                                                \
  X(cuGraphGetNodes, (CUgraph, CUgraphNode*, size_t*))                                                                \
  X(cuGraphGetRootNodes, (CUgraph, CUgraphNode*, size_t*))                                                            \
  X(cuGraphGetEdges, (CUgraph, CUgraphNode*, CUgraphNode*, size_t*))                                                  \
  X(cuGraphNodeGetType, (CUgraphNode, CUgraphNodeType*))                                                              \
  X(cuGraphNodeGetDependencies, (CUgraphNode, CUgraphNode*, size_t*))                                                 \
  X(cuGraphNodeGetDependentNodes, (CUgraphNode, CUgraphNode*, size_t*))                                               \
  X(cuGraphAddDependencies, (CUgraph, const CUgraphNode*, const CUgraphNode*, size_t))                                \
  X(cuGraphRemoveDependencies, (CUgraph, const CUgraphNode*, const CUgraphNode*, size_t))                             \
  X(cuGraphAddKernelNode_v2, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, const CUDA_KERNEL_NODE_PARAMS*))     \
  X(cuGraphAddMemcpyNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, const CUDA_MEMCPY3D*, CUcontext))       \
  X(cuGraphAddMemsetNode,                                                                                             \
    (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, const CUDA_MEMSET_NODE_PARAMS*, CUcontext))                   \
  X(cuGraphAddHostNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, const CUDA_HOST_NODE_PARAMS*))            \
  X(cuGraphAddEmptyNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t))                                         \
  X(cuGraphAddChildGraphNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, CUgraph))                           \
  X(cuGraphAddEventRecordNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, CUevent))                          \
  X(cuGraphChildGraphNodeGetGraph, (CUgraphNode, CUgraph*))                                                           \
  X(cuGraphKernelNodeGetParams_v2, (CUgraphNode, CUDA_KERNEL_NODE_PARAMS*))                                           \
  X(cuGraphKernelNodeSetParams_v2, (CUgraphNode, const CUDA_KERNEL_NODE_PARAMS*))                                     \
  X(cuGraphMemsetNodeGetParams, (CUgraphNode, CUDA_MEMSET_NODE_PARAMS*))                                              \
  X(cuGraphMemcpyNodeGetParams, (CUgraphNode, CUDA_MEMCPY3D*))                                                        \
  X(cuGraphHostNodeGetParams, (CUgraphNode, CUDA_HOST_NODE_PARAMS*))                                                  \
  X(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                                         \
  X(cuGraphInstantiateWithParams, (CUgraphExec*, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS*))                            \
  X(cuGraphExecDestroy, (CUgraphExec))                                                                                \
  X(cuGraphExecGetFlags, (CUgraphExec, cuuint64_t*))                                                                  \
  X(cuGraphExecUpdate_v2, (CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo*))                                       \
  X(cuGraphExecKernelNodeSetParams_v2, (CUgraphExec, CUgraphNode, const CUDA_KERNEL_NODE_PARAMS*))                    \
  X(cuGraphExecMemsetNodeSetParams, (CUgraphExec, CUgraphNode, const CUDA_MEMSET_NODE_PARAMS*, CUcontext))            \
  X(cuGraphExecMemcpyNodeSetParams, (CUgraphExec, CUgraphNode, const CUDA_MEMCPY3D*, CUcontext))                      \
  X(cuGraphExecHostNodeSetParams, (CUgraphExec, CUgraphNode, const CUDA_HOST_NODE_PARAMS*))                           \
  X(cuGraphExecChildGraphNodeSetParams, (CUgraphExec, CUgraphNode, CUgraph))                                          \
  X(cuGraphNodeSetEnabled, (CUgraphExec, CUgraphNode, unsigned))                                                      \
  X(cuGraphNodeGetEnabled, (CUgraphExec, CUgraphNode, unsigned*))                                                     \
  X(cuGraphUpload, (CUgraphExec, CUstream))                                                                           \
  X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                           \
  X(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                                                                \
  X(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                                          \
  X(cuGraphAddMemAllocNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, CUDA_MEM_ALLOC_NODE_PARAMS*))         \
  X(cuGraphMemAllocNodeGetParams, (CUgraphNode, CUDA_MEM_ALLOC_NODE_PARAMS*))                                         \
  X(cuDeviceGetGraphMemAttribute, (CUdevice, CUgraphMem_attribute, void*))                                            \
  X(cuDeviceGraphMemTrim, (CUdevice))                                                                                 \
  X(cuGraphKernelNodeSetAttribute, (CUgraphNode, CUkernelNodeAttrID, const CUkernelNodeAttrValue*))                   \
  X(cuGraphKernelNodeGetAttribute, (CUgraphNode, CUkernelNodeAttrID, CUkernelNodeAttrValue*))                         \
  X(cuGraphKernelNodeCopyAttributes, (CUgraphNode, CUgraphNode))                                                      \
  X(cuUserObjectCreate, (CUuserObject*, void*, CUhostFn, unsigned, unsigned))                                         \
  X(cuUserObjectRetain, (CUuserObject, unsigned))                                                                     \
  X(cuUserObjectRelease, (CUuserObject, unsigned))                                                                    \
  X(cuGraphRetainUserObject, (CUgraph, CUuserObject, unsigned, unsigned))                                             \
  X(cuGraphReleaseUserObject, (CUgraph, CUuserObject, unsigned))

#include "area.h"

enum { COUNT = 1024, GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

// add: words[i] += value. scale: words[i] *= value.
static const char* const ptx =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry add(.param .u64 words, .param .u32 value) {\n"
    "  .reg .b32 %r<6>; .reg .b64 %d<4>;\n"
    "  ld.param.u64 %d1, [words]; ld.param.u32 %r1, [value];\n"
    "  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r2, %r2, %r3, %r4;\n"
    "  mul.wide.u32 %d2, %r2, 4; add.u64 %d1, %d1, %d2;\n"
    "  ld.global.u32 %r5, [%d1]; add.u32 %r5, %r5, %r1; st.global.u32 [%d1], %r5; ret;\n}\n"
    ".visible .entry scale(.param .u64 words, .param .u32 value) {\n"
    "  .reg .b32 %r<6>; .reg .b64 %d<4>;\n"
    "  ld.param.u64 %d1, [words]; ld.param.u32 %r1, [value];\n"
    "  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r2, %r2, %r3, %r4;\n"
    "  mul.wide.u32 %d2, %r2, 4; add.u64 %d1, %d1, %d2;\n"
    "  ld.global.u32 %r5, [%d1]; mul.lo.u32 %r5, %r5, %r1; st.global.u32 [%d1], %r5; ret;\n}\n";

static CUmodule module;
static CUfunction add_kernel, scale_kernel;
static CUdeviceptr words;
static CUstream stream, other;
static CUevent event, second_event;

static void begin(void) {
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&add_kernel, module, "add"));
  OK(cuModuleGetFunction(&scale_kernel, module, "scale"));
  OK(cuMemAlloc_v2(&words, COUNT * 4));
  OK(cuStreamCreate(&stream, 1));
  OK(cuStreamCreate(&other, 1));
  OK(cuEventCreate(&event, 2));
  OK(cuEventCreate(&second_event, 2));
}

static void finish(void) {
  OK(cuStreamDestroy_v2(stream));
  OK(cuStreamDestroy_v2(other));
  OK(cuEventDestroy_v2(event));
  OK(cuEventDestroy_v2(second_event));
  OK(cuMemFree_v2(words));
  OK(cuModuleUnload(module));
}

static CUresult run(CUfunction function, CUdeviceptr at, unsigned value, CUstream on) {
  void* params[] = {&at, &value};
  return cuLaunchKernel(function, COUNT / 128, 1, 1, 128, 1, 1, 0, on, params, NULL);
}

/// All words of the device buffer; -1 when they differ.
static long long read_words(CUdeviceptr from) {
  static uint32_t host[COUNT];
  if (cuMemcpyDtoH_v2(host, from, sizeof host) != 0) return -2;
  for (int i = 1; i < COUNT; i++) {
    if (host[i] != host[0]) return -1;
  }
  return host[0];
}

static void fill(unsigned value) {
  OK(cuMemsetD32Async(words, value, COUNT, stream));
  OK(cuStreamSynchronize(stream));
}

static CUstreamCaptureStatus status_of(CUstream on) {
  CUstreamCaptureStatus status = 77;
  if (cuStreamIsCapturing(on, &status) != 0) return 78;
  return status;
}

static size_t count_nodes(CUgraph graph) {
  size_t count = 9999;
  return cuGraphGetNodes(graph, NULL, &count) == 0 ? count : 8888;
}

static CUgraphNodeType type_of(CUgraphNode node) {
  CUgraphNodeType type = 99;
  return cuGraphNodeGetType(node, &type) == 0 ? type : 98;
}

// ---- one stream: nothing runs while it captures, everything at each launch
static void test_launch(void) {
  begin();
  fill(1);
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  IS(1, status_of(stream));
  IS(0, status_of(other));
  OK(run(add_kernel, words, 2, stream));
  OK(run(scale_kernel, words, 3, stream));
  OK(cuMemsetD32Async(words + COUNT * 2, 7, COUNT / 4, stream));
  CUgraph graph = NULL;
  OK(cuStreamEndCapture(stream, &graph));
  TRUE(graph != NULL);
  IS(0, status_of(stream));
  IS(1, read_words(words));
  IS(3, count_nodes(graph));
  CUgraphNode nodes[4] = {0};
  size_t count = 4;
  OK(cuGraphGetNodes(graph, nodes, &count));
  IS(3, count);
  TRUE(nodes[3] == NULL);
  int kernels = 0, memsets = 0;
  for (int i = 0; i < 3; i++) {
    kernels += type_of(nodes[i]) == CU_GRAPH_NODE_TYPE_KERNEL;
    memsets += type_of(nodes[i]) == CU_GRAPH_NODE_TYPE_MEMSET;
  }
  IS(2, kernels);
  IS(1, memsets);
  count = 0;
  OK(cuGraphGetEdges(graph, NULL, NULL, &count));
  IS(2, count);
  count = 0;
  OK(cuGraphGetRootNodes(graph, NULL, &count));
  IS(1, count);
  CUgraphExec exec = NULL;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  cuuint64_t flags = 9;
  OK(cuGraphExecGetFlags(exec, &flags));
  IS(0, flags);
  OK(cuGraphDestroy(graph));
  OK(cuGraphUpload(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(1, read_words(words));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  uint32_t host[COUNT];
  OK(cuMemcpyDtoH_v2(host, words, sizeof host));
  IS(9, host[0]);
  IS(7, host[COUNT / 2]);
  IS(9, host[COUNT - 1]);
  for (int i = 0; i < 20; i++) OK(cuGraphLaunch(exec, i % 2 ? stream : other));
  OK(cuStreamSynchronize(stream));
  OK(cuStreamSynchronize(other));
  OK(cuGraphExecDestroy(exec));
  CODE(1, cuGraphExecDestroy(exec) == 0 ? 0 : 1);
  finish();
}

// ---- what the stream tells about itself
static void test_capture_info(void) {
  begin();
  CUstreamCaptureStatus status = 9;
  cuuint64_t id = 0, second_id = 0;
  OK(cuStreamGetCaptureInfo_v2(stream, &status, &id, NULL, NULL, NULL));
  IS(0, status);
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  CUgraph graph = NULL;
  const CUgraphNode* last = NULL;
  const CUgraphEdgeData* edges = NULL;
  size_t count = 0;
  OK(cuStreamGetCaptureInfo_v2(stream, &status, &id, &graph, &last, &count));
  IS(1, status);
  IS(1, count);
  TRUE(graph != NULL && id != 0);
  IS(1, count_nodes(graph));
  IS(CU_GRAPH_NODE_TYPE_KERNEL, type_of(last[0]));
  OK(cuStreamGetCaptureInfo_v3(stream, &status, &id, &graph, &last, &edges, &count));
  IS(1, count);
  // A node by hand, which the stream then goes on from.
  CUgraphNode node, from = last[0];
  OK(cuGraphAddEmptyNode(&node, graph, &from, 1));
  OK(cuStreamUpdateCaptureDependencies(stream, &node, 1, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
  OK(run(add_kernel, words, 1, stream));
  OK(cuStreamGetCaptureInfo_v2(stream, &status, &second_id, &graph, &last, &count));
  IS(id, second_id);
  CUgraphNode before = NULL;
  size_t before_count = 1;
  OK(cuGraphNodeGetDependencies(last[0], &before, &before_count));
  IS(1, before_count);
  TRUE(before == node);
  OK(cuStreamEndCapture(stream, &graph));
  IS(3, count_nodes(graph));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(cuStreamGetCaptureInfo_v2(stream, &status, &second_id, NULL, NULL, NULL));
  TRUE(second_id != id);
  CUgraph empty;
  OK(cuStreamEndCapture(stream, &empty));
  IS(0, count_nodes(empty));
  OK(cuGraphDestroy(empty));
  OK(cuGraphDestroy(graph));
  finish();
}

// ---- two streams, joined by events
static void test_fork_join(void) {
  begin();
  CUdeviceptr right;
  OK(cuMemAlloc_v2(&right, COUNT * 4));
  OK(cuMemsetD32Async(right, 0, COUNT, stream));
  fill(0);
  OK(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  OK(cuStreamWaitEvent(other, event, 0));
  IS(1, status_of(other));
  OK(run(add_kernel, right, 10, other));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(second_event, other));
  OK(cuStreamWaitEvent(stream, second_event, 0));
  OK(cuMemcpyDtoDAsync_v2(words, right, COUNT * 2, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(0, status_of(other));
  IS(4, count_nodes(graph));
  size_t edges = 0;
  OK(cuGraphGetEdges(graph, NULL, NULL, &edges));
  IS(4, edges);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (int i = 0; i < 3; i++) OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  uint32_t host[COUNT];
  OK(cuMemcpyDtoH_v2(host, words, sizeof host));
  IS(30, host[0]);
  IS(6, host[COUNT - 1]);
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemFree_v2(right));
  finish();
}

// ---- what ends a capture, and with which code
static void test_errors(void) {
  begin();
  CUgraph graph = (CUgraph)8;
  CODE(401, cuStreamEndCapture(stream, &graph));
  CODE(900, cuStreamBeginCapture_v2(NULL, GLOBAL));
  // waiting for a stream that captures
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  CODE(401, cuStreamBeginCapture_v2(stream, GLOBAL));
  CODE(900, cuStreamSynchronize(stream));
  IS(2, status_of(stream));
  CODE(900, cuStreamSynchronize(stream));
  CODE(901, run(add_kernel, words, 1, stream));
  CODE(901, cuStreamEndCapture(stream, &graph));
  TRUE(graph == NULL);
  IS(0, status_of(stream));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  CODE(900, cuStreamQuery(stream));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // a callback of the old kind
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  NOTE(cuStreamAddCallback(stream, (CUstreamCallback)(void*)status_of, NULL, 0));
  NOTE(cuStreamEndCapture(stream, &graph));
  // events of a capture
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  CODE(907, cuEventQuery(event));
  IS(2, status_of(stream));
  CODE(1, cuEventSynchronize(event));
  IS(2, status_of(stream));
  CODE(901, cuStreamEndCapture(stream, &graph));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  CODE(907, cuEventSynchronize(event));
  IS(2, status_of(stream));
  CODE(901, cuStreamEndCapture(stream, &graph));
  CODE(1, cuEventSynchronize(event));
  OK(cuEventRecord(event, other));
  OK(cuEventSynchronize(event));
  // work outside the capture that it would depend on
  OK(cuEventRecord(event, other));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  CODE(905, cuStreamWaitEvent(stream, event, 0));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // a fork that does not come back
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  OK(cuStreamWaitEvent(other, event, 0));
  OK(run(add_kernel, words, 1, other));
  CODE(904, cuStreamEndCapture(stream, &graph));
  TRUE(graph == NULL);
  IS(0, status_of(other));
  // ended where it was not begun
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  OK(cuStreamWaitEvent(other, event, 0));
  CODE(903, cuStreamEndCapture(other, &graph));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // two captures meet
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(cuStreamBeginCapture_v2(other, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecord(event, stream));
  CODE(902, cuStreamWaitEvent(other, event, 0));
  CODE(901, cuStreamEndCapture(other, &graph));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // the streams work again
  fill(5);
  OK(run(add_kernel, words, 1, stream));
  OK(cuStreamSynchronize(stream));
  IS(6, read_words(words));
  finish();
}

// ---- the NULL stream and blocking streams
static void test_null_stream(void) {
  begin();
  CUstream blocking;
  OK(cuStreamCreate(&blocking, 0));
  CUgraph graph;
  OK(cuStreamBeginCapture_v2(blocking, RELAXED));
  OK(run(add_kernel, words, 1, blocking));
  CUstreamCaptureStatus status;
  CODE(906, cuStreamIsCapturing(NULL, &status));
  IS(1, status_of(blocking));
  CODE(906, run(add_kernel, words, 1, NULL));
  IS(2, status_of(blocking));
  CODE(901, cuStreamEndCapture(blocking, &graph));
  OK(cuStreamBeginCapture_v2(blocking, RELAXED));
  CODE(906, cuEventRecord(event, NULL));
  CODE(901, cuStreamEndCapture(blocking, &graph));
  // a non-blocking stream does not mind
  fill(0);
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, NULL));
  OK(run(add_kernel, words, 1, stream));
  OK(cuStreamEndCapture(stream, &graph));
  IS(1, read_words(words));
  OK(cuGraphDestroy(graph));
  OK(cuStreamDestroy_v2(blocking));
  finish();
}

// ---- modes, with several threads
typedef struct probe {
  int mode;         // that the thread changes to; -1: none
  CUstream to_end;  // a capture of another thread
  CUresult query, allocation, end;
} probe;

static void* probing(void* argument) {
  probe* p = argument;
  cuCtxSetCurrent(context);
  if (p->mode >= 0) {
    CUstreamCaptureMode mode = p->mode;
    cuThreadExchangeStreamCaptureMode(&mode);
  }
  CUgraph graph;
  p->end = p->to_end == NULL ? 0 : cuStreamEndCapture(p->to_end, &graph);
  p->query = cuStreamQuery(other);
  CUdeviceptr address = 0;
  p->allocation = cuMemAlloc_v2(&address, 4096);
  if (p->allocation == 0) cuMemFree_v2(address);
  return NULL;
}

static probe in_thread(int mode, CUstream to_end) {
  probe p = {.mode = mode, .to_end = to_end};
  pthread_t thread;
  pthread_create(&thread, NULL, probing, &p);
  pthread_join(thread, NULL);
  return p;
}

static void test_capture_modes(void) {
  begin();
  CUgraph graph;
  CUstreamCaptureMode mode = RELAXED;
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  IS(GLOBAL, mode);
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  IS(RELAXED, mode);
  CUdeviceptr address = 0;
  // GLOBAL: no thread may make potentially unsafe calls, unless it says that it knows
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  mode = RELAXED;
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  OK(cuMemAlloc_v2(&address, 4096));
  OK(cuStreamQuery(other));
  OK(cuThreadExchangeStreamCaptureMode(&mode));
  probe p = in_thread(RELAXED, NULL);
  IS(0, p.query);
  IS(0, p.allocation);
  p = in_thread(THREAD_LOCAL, NULL);
  IS(0, p.allocation);
  IS(1, status_of(stream));
  p = in_thread(-1, NULL);
  IS(900, p.query);
  IS(900, p.allocation);
  IS(2, status_of(stream));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // ended by a thread that may not: refused, and over all the same
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  p = in_thread(-1, stream);
  IS(908, p.end);
  IS(0, p.query);
  IS(0, p.allocation);
  IS(0, status_of(stream));
  CODE(401, cuStreamEndCapture(stream, &graph));
  OK(cuMemFree_v2(address));
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  CODE(900, cuMemAlloc_v2(&address, 4096));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // THREAD_LOCAL: this thread may not, others may
  OK(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
  p = in_thread(-1, NULL);
  IS(0, p.query);
  IS(0, p.allocation);
  IS(1, status_of(stream));
  CODE(900, cuStreamQuery(other));
  CODE(901, cuStreamEndCapture(stream, &graph));
  // RELAXED: all may; another thread may end it
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(cuStreamQuery(other));
  OK(cuMemAlloc_v2(&address, 4096));
  OK(cuMemFree_v2(address));
  p = in_thread(-1, stream);
  IS(0, p.end);
  IS(0, p.query);
  IS(0, status_of(stream));
  // a wait for all of the context never goes with a capture
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  CODE(900, cuCtxSynchronize());
  CODE(901, cuStreamEndCapture(stream, &graph));
  OK(cuCtxSynchronize());
  finish();
}

// ---- two threads capture at once
typedef struct capturing {
  CUstream stream;
  CUdeviceptr at;
  int value, failed;
} capturing;

static void* capture_and_launch(void* argument) {
  capturing* c = argument;
  cuCtxSetCurrent(context);
  for (int round = 0; round < 5; round++) {
    CUgraph graph;
    CUgraphExec exec;
    c->failed += cuStreamBeginCapture_v2(c->stream, THREAD_LOCAL) != 0;
    for (int i = 0; i < 10; i++) c->failed += run(add_kernel, c->at, (unsigned)c->value, c->stream) != 0;
    c->failed += cuStreamEndCapture(c->stream, &graph) != 0;
    c->failed += count_nodes(graph) != 10;
    c->failed += cuGraphInstantiateWithFlags(&exec, graph, 0) != 0;
    c->failed += cuGraphLaunch(exec, c->stream) != 0;
    c->failed += cuGraphLaunch(exec, c->stream) != 0;
    c->failed += cuGraphExecDestroy(exec) != 0;
    c->failed += cuGraphDestroy(graph) != 0;
    c->failed += cuStreamSynchronize(c->stream) != 0;
  }
  return NULL;
}

static void test_two_threads(void) {
  begin();
  CUdeviceptr right;
  OK(cuMemAlloc_v2(&right, COUNT * 4));
  OK(cuMemsetD32Async(right, 0, COUNT, stream));
  fill(0);
  capturing c[2] = {{stream, words, 1, 0}, {other, right, 3, 0}};
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, capture_and_launch, &c[i]);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  IS(0, c[0].failed);
  IS(0, c[1].failed);
  IS(100, read_words(words));
  IS(300, read_words(right));
  OK(cuMemFree_v2(right));
  finish();
}

// ---- many nodes
static void test_large(void) {
  begin();
  fill(0);
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  int failed = 0;
  for (int i = 0; i < 3000; i++) failed += run(add_kernel, words, 1, stream) != 0;
  IS(0, failed);
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(3000, count_nodes(graph));
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(3000, read_words(words));
  OK(cuGraphExecDestroy(exec));
  finish();
}

#include "graph_api_host.h"
#include "graph_api_nodes.h"

SECTIONS({"launch", test_launch, 0}, {"capture_info", test_capture_info, 0}, {"fork_join", test_fork_join, 0},
         {"errors", test_errors, 0}, {"null_stream", test_null_stream, 0}, {"capture_modes", test_capture_modes, 0},
         {"two_threads", test_two_threads, 0}, {"host_nodes", test_host_nodes, 0}, {"host_copies", test_host_copies, 0},
         {"pageable", test_pageable, 0}, {"through_host", test_through_host, 0}, {"rows", test_rows, 0},
         {"changed_copy", test_changed_copy, 0}, {"explicit", test_explicit, 0}, {"update", test_update, 0},
         {"events", test_events, 0}, {"to_graph", test_to_graph, 0}, {"user_objects", test_user_objects, 0},
         {"memory_nodes", test_memory_nodes, 0}, {"children", test_children, 0}, {"attributes", test_attributes, 0},
         {"large", test_large, 0})
