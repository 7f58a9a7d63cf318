// graph_api.c, continued: host functions and host memory in graphs.
// ---- host functions
static int called[8];
static volatile int order_seen;

static void call_count(void* data) { __sync_fetch_and_add((int*)data, 1); }

static void call_order(void* data) {
  order_seen = order_seen * 10 + (int)(intptr_t)data;
  CUdeviceptr address = 0;
  called[6] = (int)cuMemAlloc_v2(&address, 16);  // no CUDA call is permitted here, nor need it be refused
  if (called[6] == 0) cuMemFree_v2(address);
  called[7] = (int)cuStreamQuery(other);
}

static void test_host_nodes(void) {
  begin();
  memset(called, 0, sizeof called);
  order_seen = 0;
  fill(0);
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  OK(cuLaunchHostFunc(stream, call_count, &called[0]));
  OK(run(add_kernel, words, 1, stream));
  OK(cuLaunchHostFunc(stream, call_order, (void*)1));
  OK(cuLaunchHostFunc(stream, call_order, (void*)2));
  OK(cuLaunchHostFunc(stream, call_count, &called[1]));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(5, count_nodes(graph));
  IS(0, called[0]);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(1, called[0]);
  IS(1, called[1]);
  IS(12, order_seen);
  NOTE(called[6]);
  NOTE(called[7]);
  for (int i = 0; i < 10; i++) OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(11, called[0]);
  IS(11, called[1]);
  IS(11, read_words(words));
  // destroyed while it runs: the functions are called all the same
  OK(cuGraphLaunch(exec, stream));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuStreamSynchronize(stream));
  IS(12, called[1]);
  // two graphs at once
  CUgraphExec pair[2];
  for (int i = 0; i < 2; i++) {
    CUgraphNode node;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddHostNode(&node, graph, NULL, 0, &(CUDA_HOST_NODE_PARAMS){call_count, &called[2 + i]}));
    CUDA_HOST_NODE_PARAMS params;
    OK(cuGraphHostNodeGetParams(node, &params));
    TRUE(params.fn == call_count && params.userData == &called[2 + i]);
    OK(cuGraphInstantiateWithFlags(&pair[i], graph, 0));
    if (i == 1) {
      OK(cuGraphExecHostNodeSetParams(pair[1], node, &(CUDA_HOST_NODE_PARAMS){call_count, &called[4]}));
    }
    OK(cuGraphDestroy(graph));
  }
  for (int i = 0; i < 20; i++) OK(cuGraphLaunch(pair[i % 2], i % 2 ? stream : other));
  OK(cuStreamSynchronize(stream));
  OK(cuStreamSynchronize(other));
  IS(10, called[2]);
  IS(0, called[3]);
  IS(10, called[4]);
  for (int i = 0; i < 2; i++) OK(cuGraphExecDestroy(pair[i]));
  finish();
}

// ---- host memory of captured copies: read and written at each launch
static void copies(uint32_t* in, uint32_t* out) {
  for (int i = 0; i < COUNT; i++) in[i] = 1;
  memset(out, 0, COUNT * 4);
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  OK(cuMemcpyHtoDAsync_v2(words, in, COUNT * 4, stream));
  OK(run(add_kernel, words, 10, stream));
  OK(cuMemcpyDtoHAsync_v2(out, words, COUNT * 4, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  IS(3, count_nodes(graph));
  CUgraphNode nodes[3];
  size_t count = 3;
  OK(cuGraphGetNodes(graph, nodes, &count));
  IS(CU_GRAPH_NODE_TYPE_MEMCPY, type_of(nodes[0]));
  IS(0, out[0]);
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  for (unsigned round = 1; round <= 5; round++) {
    for (int i = 0; i < COUNT; i++) in[i] = round;
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    IS(round + 10, out[0]);
    IS(round + 10, out[COUNT - 1]);
  }
  OK(cuGraphLaunch(exec, stream));
  OK(cuEventRecord(event, stream));
  OK(cuEventSynchronize(event));
  IS(15, out[7]);
  OK(cuGraphExecDestroy(exec));
}

static void test_host_copies(void) {
  begin();
  uint32_t *in, *out;
  OK(cuMemAllocHost_v2((void**)&in, COUNT * 4));
  OK(cuMemAllocHost_v2((void**)&out, COUNT * 4));
  copies(in, out);
  OK(cuMemFreeHost(in));
  OK(cuMemFreeHost(out));
  finish();
}

static void test_pageable(void) {
  begin();
  uint32_t *in = malloc(COUNT * 4), *out = malloc(COUNT * 4);
  copies(in, out);
  free(in);
  free(out);
  finish();
}

static void fill_buffer(void* data) {
  uint32_t* buffer = data;
  for (int i = 0; i < COUNT; i++) buffer[i] = buffer[i] * 2;
}

// A host function changes, in its place, what a copy before it brought and a copy behind it takes. Natively a copy of
// pageable memory may be taken before the function runs.
static void through_host(uint32_t* buffer, int is_pinned) {
  fill(3);
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  OK(cuMemcpyDtoHAsync_v2(buffer, words, COUNT * 4, stream));
  OK(cuLaunchHostFunc(stream, fill_buffer, buffer));
  OK(cuMemcpyHtoDAsync_v2(words, buffer, COUNT * 4, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphLaunch(exec, stream));
  OK(cuGraphLaunch(exec, stream));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  if (is_pinned) {
    IS(24, buffer[COUNT - 1]);
    IS(24, read_words(words));
  } else {
    NOTE(buffer[COUNT - 1]);
    NOTE(read_words(words));
  }
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
}

static void test_through_host(void) {
  begin();
  uint32_t* pinned;
  OK(cuMemAllocHost_v2((void**)&pinned, COUNT * 4));
  through_host(pinned, 1);
  OK(cuMemFreeHost(pinned));
  uint32_t* pageable = malloc(COUNT * 4);
  through_host(pageable, 0);
  free(pageable);
  finish();
}

// ---- rows of ordinary memory
static void test_rows(void) {
  begin();
  enum { WIDTH = 48, ROWS = 20, PITCH = 64 };
  uint8_t in[ROWS * PITCH], out[ROWS * PITCH];
  memset(in, 5, sizeof in);
  memset(out, 1, sizeof out);
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  CUDA_MEMCPY2D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                     .srcHost = in,
                     .srcPitch = PITCH,
                     .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                     .dstDevice = words,
                     .dstPitch = 128,
                     .WidthInBytes = WIDTH,
                     .Height = ROWS};
  OK(cuMemcpy2DAsync_v2(&c, stream));
  CUDA_MEMCPY2D d = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                     .srcDevice = words,
                     .srcPitch = 128,
                     .dstMemoryType = CU_MEMORYTYPE_HOST,
                     .dstHost = out,
                     .dstPitch = PITCH,
                     .WidthInBytes = WIDTH,
                     .Height = ROWS};
  OK(cuMemcpy2DAsync_v2(&d, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  memset(in, 9, sizeof in);
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(9, out[0]);
  IS(9, out[(ROWS - 1) * PITCH + WIDTH - 1]);
  IS(1, out[WIDTH]);
  IS(1, out[PITCH - 1]);
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  finish();
}

// ---- a copy that read what an earlier one had brought reads the program's bytes instead
static void test_changed_copy(void) {
  begin();
  fill(3);
  uint32_t *brought, *own;
  OK(cuMemAllocHost_v2((void**)&brought, COUNT * 4));
  OK(cuMemAllocHost_v2((void**)&own, COUNT * 4));
  OK(cuStreamBeginCapture_v2(stream, GLOBAL));
  OK(cuMemcpyDtoHAsync_v2(brought, words, COUNT * 4, stream));
  OK(cuMemcpyHtoDAsync_v2(words, brought, COUNT * 4, stream));
  CUgraph graph;
  OK(cuStreamEndCapture(stream, &graph));
  CUgraphNode first, second;
  size_t count = 1;
  OK(cuGraphGetRootNodes(graph, &first, &count));
  count = 1;
  OK(cuGraphNodeGetDependentNodes(first, &second, &count));
  CUgraphExec exec;
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(3, read_words(words));
  CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = own,
                        .srcPitch = COUNT * 4,
                        .srcHeight = 1,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = words,
                        .dstPitch = COUNT * 4,
                        .dstHeight = 1,
                        .WidthInBytes = COUNT * 4,
                        .Height = 1,
                        .Depth = 1};
  OK(cuGraphExecMemcpyNodeSetParams(exec, second, &copy, context));
  for (int i = 0; i < COUNT; i++) own[i] = 9;
  OK(cuGraphLaunch(exec, stream));
  OK(cuStreamSynchronize(stream));
  IS(9, read_words(words));
  OK(cuGraphExecDestroy(exec));
  OK(cuGraphDestroy(graph));
  OK(cuMemFreeHost(brought));
  OK(cuMemFreeHost(own));
  finish();
}
