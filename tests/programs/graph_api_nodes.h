// graph_api.c, continued: graphs made node by node, changed, and what belongs to them.
/// A kernel node over all words, as run() would launch it.
static CUDA_KERNEL_NODE_PARAMS of_words(CUfunction function, void** params) {
  return (CUDA_KERNEL_NODE_PARAMS){.func = function,
                                   .gridDimX = COUNT / 128,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = 128,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .kernelParams = params};
}

// ---- graphs made by hand
static void test_explicit(void) {
  begin();
  fill(0);
  CUgraph graph, child;
  OK(cuGraphCreate(&graph, 0));
  OK(cuGraphCreate(&child, 0));
  unsigned value = 5;
  void* params[] = {&words, &value};
  CUDA_KERNEL_NODE_PARAMS kernel = of_words(add_kernel, params);
  CUDA_MEMSET_NODE_PARAMS set = {.dst = words, .value = 2, .elementSize = 4, .width = COUNT, .height = 1};
  CUgraphNode memset_node, first, second, empty, inner;
  OK(cuGraphAddMemsetNode(&memset_node, graph, NULL, 0, &set, context));
  OK(cuGraphAddKernelNode_v2(&inner, child, NULL, 0, &kernel));
  OK(cuGraphAddChildGraphNode(&first, graph, &memset_node, 1, child));
  CUgraph inside;
  OK(cuGraphChildGraphNodeGetGraph(first, &inside));
  TRUE(inside != child);
  IS(1, count_nodes(inside));
  value = 3;
  kernel.func = scale_kernel;
  OK(cuGraphAddKernelNode_v2(&second, graph, NULL, 0, &kernel));
  OK(cuGraphAddEmptyNode(&empty, graph, &first, 1));
  OK(cuGraphAddDependencies(graph, &empty, &second, 1));
  IS(4, count_nodes(graph));
  CUDA_KERNEL_NODE_PARAMS got = {0};
  OK(cuGraphKernelNodeGetParams_v2(second, &got));
  TRUE(got.func == scale_kernel);
  IS(128, got.blockDimX);
  IS(3, *(unsigned*)got.kernelParams[1]);
  CUDA_MEMSET_NODE_PARAMS got_set = {0};
  OK(cuGraphMemsetNodeGetParams(memset_node, &got_set));
  IS(2, got_set.value);
  IS(COUNT, got_set.width);
  size_t count = 0;
  OK(cuGraphNodeGetDependentNodes(first, NULL, &count));
  IS(1, count);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(21, read_words(words));
  // the next launch does something else
  value = 10;
  OK(cuGraphExecKernelNodeSetParams_v2(exec, second, &kernel));
  set.value = 1;
  OK(cuGraphExecMemsetNodeSetParams(exec, memset_node, &set, context));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(60, read_words(words));
  unsigned enabled = 9;
  OK(cuGraphNodeGetEnabled(exec, second, &enabled));
  IS(1, enabled);
  OK(cuGraphNodeSetEnabled(exec, second, 0));
  OK(cuGraphNodeGetEnabled(exec, second, &enabled));
  IS(0, enabled);
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(6, read_words(words));
  // a clone is apart
  CUgraph clone;
  CUgraphNode in_clone;
  OK(cuGraphClone(&clone, graph));
  OK(cuGraphNodeFindInClone(&in_clone, second, clone));
  TRUE(in_clone != second);
  OK(cuGraphDestroyNode(in_clone));
  IS(3, count_nodes(clone));
  IS(4, count_nodes(graph));
  OK(cuGraphRemoveDependencies(graph, &empty, &second, 1));
  CODE(1, cuGraphRemoveDependencies(graph, &empty, &second, 1));
  CODE(1, cuGraphAddDependencies(graph, &empty, &empty, 1));
  count = 0;
  OK(cuGraphGetRootNodes(graph, NULL, &count));
  IS(2, count);
  OK(cuGraphDestroy(clone));
  OK(cuGraphDestroy(child));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  finish();
}

static CUgraph three_kernels(unsigned value, int kind) {
  CUgraph graph = NULL;
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, value, stream));
  if (kind == 1) OK(run(add_kernel, words, value, stream));
  if (kind == 2) {
    OK(cuMemsetD32Async(words, 0, COUNT, stream));
  } else {
    OK(run(add_kernel, words, value, stream));
  }
  OK(cuStreamEndCapture(stream, &graph));
  return graph;
}

static void test_update(void) {
  begin();
  fill(0);
  CUgraph graph = three_kernels(1, 0);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  OK(cuGraphLaunch(exec, stream));
  CUgraphExecUpdateResultInfo info;
  graph = three_kernels(100, 0);
  OK(cuGraphExecUpdate_v2(exec, graph, &info));
  IS(0, info.result);
  OK(cuGraphDestroy(graph));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(202, read_words(words));
  graph = three_kernels(1, 1);
  CODE(910, cuGraphExecUpdate_v2(exec, graph, &info));
  IS(CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, info.result);
  OK(cuGraphDestroy(graph));
  graph = three_kernels(1, 2);
  CODE(910, cuGraphExecUpdate_v2(exec, graph, &info));
  IS(CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, info.result);
  OK(cuGraphDestroy(graph));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(402, read_words(words));
  OK(cuGraphExecDestroy(exec));
  finish();
}

// ---- events that a graph records
static void test_events(void) {
  begin();
  CUevent timed;
  OK(cuEventCreate(&timed, 0));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  OK(run(add_kernel, words, 1, stream));
  OK(cuEventRecordWithFlags(timed, stream, CU_EVENT_RECORD_EXTERNAL));
  OK(run(add_kernel, words, 1, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(3, count_nodes(graph));
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  fill(0);
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamWaitEvent(other, timed, 0));
  OK(cuStreamSynchronize(other));
  OK(cuEventSynchronize(timed));
  OK(cuEventQuery(timed));
  OK(cuStreamSynchronize(stream));
  IS(2, read_words(words));
  CUevent end;
  float milliseconds = -1;
  OK(cuEventCreate(&end, 0));
  OK(cuEventRecord(end, stream));
  OK(cuEventSynchronize(end));
  OK(cuEventElapsedTime(&milliseconds, timed, end));
  TRUE(milliseconds >= 0);
  OK(cuEventDestroy_v2(end));
  OK(cuEventDestroy_v2(timed));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  finish();
}

// ---- capture into a graph that exists
static void test_to_graph(void) {
  begin();
  fill(1);
  CUgraph graph, ended;
  CUgraphNode node;
  OK(cuGraphCreate(&graph, 0));
  CUDA_MEMSET_NODE_PARAMS set = {.dst = words, .value = 4, .elementSize = 4, .width = COUNT, .height = 1};
  OK(cuGraphAddMemsetNode(&node, graph, NULL, 0, &set, context));
  OK(cuStreamBeginCaptureToGraph(stream, graph, &node, NULL, 1, RELAXED));
  OK(run(add_kernel, words, 2, stream));
  OK(cuStreamEndCapture(stream, &ended));
  TRUE(ended == graph);
  IS(2, count_nodes(graph));
  CUgraphExec exec;
  CUDA_GRAPH_INSTANTIATE_PARAMS params = {0};
  OK(cuGraphInstantiateWithParams(&exec, graph, &params));
  IS(0, params.result_out);
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(6, read_words(words));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  finish();
}

// ---- objects whose life hangs on graphs
static void test_user_objects(void) {
  begin();
  static int destroyed;
  destroyed = 0;
  CUuserObject object;
  CUgraph graph;
  CUgraphExec exec;
  OK(cuUserObjectCreate(&object, &destroyed, call_count, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
  OK(cuGraphCreate(&graph, 0));
  OK(cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  IS(0, destroyed);
  OK(cuGraphExecDestroy(exec));
  for (int i = 0; i < 1000 && !*(volatile int*)&destroyed; i++) usleep(1000);
  IS(1, destroyed);
  OK(cuUserObjectCreate(&object, &destroyed, call_count, 2, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
  OK(cuUserObjectRelease(object, 1));
  OK(cuUserObjectRetain(object, 1));
  OK(cuUserObjectRelease(object, 2));
  for (int i = 0; i < 1000 && *(volatile int*)&destroyed < 2; i++) usleep(1000);
  IS(2, destroyed);
  finish();
}

// ---- a child's work can be changed; a launch cannot be captured
static void test_children(void) {
  begin();
  fill(0);
  CUgraph graph = three_kernels(1, 0), outer, changed;
  CUgraphExec exec, outer_exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuStreamBeginCapture_v2(stream, RELAXED));
  CODE(900, cuGraphLaunch(exec, stream));
  IS(2, status_of(stream));
  CODE(901, run(scale_kernel, words, 2, stream));
  CODE(901, cuStreamEndCapture(stream, &outer));
  OK(cuGraphExecDestroy(exec));
  CUgraphNode first, child, last;
  unsigned value = 10;
  void* params[] = {&words, &value};
  CUDA_KERNEL_NODE_PARAMS kernel = of_words(add_kernel, params);
  OK(cuGraphCreate(&outer, 0));
  OK(cuGraphAddKernelNode_v2(&first, outer, NULL, 0, &kernel));
  OK(cuGraphAddChildGraphNode(&child, outer, &first, 1, graph));
  value = 2;
  kernel.func = scale_kernel;
  OK(cuGraphAddKernelNode_v2(&last, outer, &child, 1, &kernel));
  IS(3, count_nodes(outer));
  IS(CU_GRAPH_NODE_TYPE_GRAPH, type_of(child));
  OK(cuGraphInstantiateWithFlags(&outer_exec, outer, 0));
  OK(cuGraphLaunch(outer_exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(24, read_words(words));
  changed = three_kernels(100, 0);
  OK(cuGraphExecChildGraphNodeSetParams(outer_exec, child, changed));
  fill(0);
  OK(cuGraphLaunch(outer_exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(420, read_words(words));
  OK(cuGraphDestroy(changed));
  OK(cuGraphExecDestroy(outer_exec));
  OK(cuGraphDestroy(outer));
  OK(cuGraphDestroy(graph));
  finish();
}

// ---- memory that belongs to a graph
static void test_memory_nodes(void) {
  begin();
  uint64_t used = 1;
  OK(cuDeviceGetGraphMemAttribute(device, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &used));
  // captured: allocated and freed by each launch
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  CUdeviceptr inner = 0;
  OK(cuMemAllocAsync(&inner, COUNT * 4, stream));
  TRUE(inner != 0);
  OK(cuMemsetD32Async(inner, 6, COUNT, stream));
  OK(run(add_kernel, inner, 1, stream));
  OK(cuMemcpyDtoDAsync_v2(words, inner, COUNT * 4, stream));
  OK(cuMemFreeAsync(inner, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(5, count_nodes(graph));
  CUgraphNode nodes[5];
  size_t count = 5;
  OK(cuGraphGetNodes(graph, nodes, &count));
  int allocations = 0, frees = 0;
  for (int i = 0; i < 5; i++) {
    if (type_of(nodes[i]) == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
      CUDA_MEM_ALLOC_NODE_PARAMS params;
      OK(cuGraphMemAllocNodeGetParams(nodes[i], &params));
      TRUE(params.dptr == inner);
      IS(COUNT * 4, params.bytesize);
      allocations++;
    }
    frees += type_of(nodes[i]) == CU_GRAPH_NODE_TYPE_MEM_FREE;
  }
  IS(1, allocations);
  IS(1, frees);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (int i = 0; i < 3; i++) OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(7, read_words(words));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  // by hand: what a launch leaves allocated is the program's to free before the next launch
  CUgraphNode allocate, set;
  CUDA_MEM_ALLOC_NODE_PARAMS params = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                     .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}},
                                       .bytesize = COUNT * 4};
  OK(cuGraphCreate(&graph, 0));
  OK(cuGraphAddMemAllocNode(&allocate, graph, NULL, 0, &params));
  TRUE(params.dptr != 0);
  CUDA_MEMSET_NODE_PARAMS fill_it = {.dst = params.dptr, .value = 11, .elementSize = 4, .width = COUNT, .height = 1};
  OK(cuGraphAddMemsetNode(&set, graph, &allocate, 1, &fill_it, context));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphLaunch(exec, stream));
  CODE(1, cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(11, read_words(params.dptr));
  OK(cuMemFreeAsync(params.dptr, stream));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  OK(cuMemFree_v2(params.dptr));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphInstantiateWithFlags(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
  OK(cuGraphLaunch(exec, stream));
  OK(cuGraphLaunch(exec, stream));
  OK(cuMemFreeAsync(params.dptr, stream));
  OK(cuStreamSynchronize(stream));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuDeviceGraphMemTrim(device));
  finish();
}

// ---- attributes of kernel nodes
static void test_attributes(void) {
  begin();
  fill(0);
  CUgraph graph;
  CUgraphNode first, second;
  unsigned value = 2;
  void* params[] = {&words, &value};
  CUDA_KERNEL_NODE_PARAMS kernel = of_words(add_kernel, params);
  OK(cuGraphCreate(&graph, 0));
  OK(cuGraphAddKernelNode_v2(&first, graph, NULL, 0, &kernel));
  OK(cuGraphAddKernelNode_v2(&second, graph, &first, 1, &kernel));
  CUkernelNodeAttrValue attribute = {.priority = -2}, got;
  OK(cuGraphKernelNodeSetAttribute(first, CU_LAUNCH_ATTRIBUTE_PRIORITY, &attribute));
  OK(cuGraphKernelNodeGetAttribute(first, CU_LAUNCH_ATTRIBUTE_PRIORITY, &got));
  IS(-2, got.priority);
  OK(cuGraphKernelNodeCopyAttributes(second, first));
  OK(cuGraphKernelNodeGetAttribute(second, CU_LAUNCH_ATTRIBUTE_PRIORITY, &got));
  IS(-2, got.priority);
  CUDA_KERNEL_NODE_PARAMS back;
  OK(cuGraphKernelNodeGetParams_v2(first, &back));
  IS(2, *(unsigned*)back.kernelParams[1]);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(4, read_words(words));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  finish();
}
