// What nodes do: adding them, asking for it, changing it. A node's operation is made by the very call that would do the
// work on a stream (cuLaunchKernel, cuMemcpy3DAsync...), caught by a recorder: the same checks, the same codes.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "memory.h"
#include "orion_launch.h"

#define LOCK() pthread_mutex_lock(&orion_graph_mutex)
#define UNLOCK() pthread_mutex_unlock(&orion_graph_mutex)

// ------------------------------------------------------------------------------------------------ making work

bool orion_work_host_copy(const orion_copy_shape* shape, const orion_context* context, orion_node_work* work) {
  *work = (orion_node_work){.host = {.first = shape->host,
                                     .width_bytes = shape->width_bytes,
                                     .rows = shape->height,
                                     .slices = shape->depth,
                                     .pitch_bytes = shape->host_pitch,
                                     .slice_bytes = shape->host_pitch * shape->host_rows,
                                     .is_written = !shape->to_device}};
  const uint64_t own = context->entry.index;
  if (shape->height == 1 && shape->depth == 1) {
    orion_op_copy_h2d in = {
        .op = {.code = ORION_OP_COPY_H2D}, .device_dst = shape->device_address, .size_bytes = shape->width_bytes};
    orion_op_copy_d2h out = {
        .op = {.code = ORION_OP_COPY_D2H}, .src = shape->device_address, .size_bytes = shape->width_bytes};
    work->op = shape->to_device ? orion_op_keep(&in.op, sizeof in, NULL, 0, context)
                                : orion_op_keep(&out.op, sizeof out, NULL, 0, context);
    return work->op != NULL;
  }
  orion_op_copy_3d op = {.op = {.code = ORION_OP_COPY_3D},
                         .width_bytes = shape->width_bytes,
                         .height = shape->height,
                         .depth = shape->depth,
                         .src_context = (uint32_t)own,
                         .dst_context = (uint32_t)own};
  if (shape->to_device) {
    op.src_kind = 1;
    op.src_pitch = shape->width_bytes;
    op.src_height = shape->height;
    op.dst_kind = 2;
    op.dst_address = shape->device_address;
    op.dst_pitch = shape->device_pitch;
    op.dst_height = shape->device_rows;
  } else {
    op.dst_kind = 1;
    op.dst_pitch = shape->width_bytes;
    op.dst_height = shape->height;
    op.src_kind = 2;
    op.src_address = shape->device_address;
    op.src_pitch = shape->device_pitch;
    op.src_height = shape->device_rows;
  }
  work->op = orion_op_keep(&op.op, sizeof op, NULL, 0, context);
  return work->op != NULL;
}

/// Calls what records, and takes the operation. A call that succeeds without one (nothing to copy) leaves no operation.
#define RECORDED(call)                                               \
  do {                                                               \
    orion_recorder* recorder_ = orion_recorder_begin(*context);      \
    if (recorder_ == NULL) return CUDA_ERROR_OUT_OF_MEMORY;          \
    const CUresult recorded_ = (call);                               \
    const bool filled_ = orion_recorder_end(recorder_, work);        \
    if (recorded_ != CUDA_SUCCESS && filled_) orion_work_drop(work); \
    return recorded_;                                                \
  } while (0)

static CUresult kernel_work(const CUDA_KERNEL_NODE_PARAMS* p, orion_context** context, orion_node_work* work) {
  const CUfunction handle = p->func != NULL ? p->func : (CUfunction)p->kern;
  orion_function* function;
  const CUresult result = orion_function_of(handle, &function);
  if (result != CUDA_SUCCESS) return result;
  *context = function->context;
  RECORDED(cuLaunchKernel(handle, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX, p->blockDimY, p->blockDimZ,
                          p->sharedMemBytes, NULL, p->kernelParams, p->extra));
}

static CUresult copy_work(const CUDA_MEMCPY_NODE_PARAMS* p, orion_context** context, orion_node_work* work) {
  const CUresult result = orion_context_of(p->copyCtx, context);
  if (result != CUDA_SUCCESS) return result;
  RECORDED(cuMemcpy3DAsync_v2(&p->copyParams, NULL));
}

static CUresult fill_work(const CUDA_MEMSET_NODE_PARAMS_v2* p, orion_context** context, orion_node_work* work) {
  const CUresult result = orion_context_of(p->ctx, context);
  if (result != CUDA_SUCCESS) return result;
  const size_t pitch = p->height > 1 ? p->pitch : p->width * p->elementSize;
  switch (p->elementSize) {
    case 1:
      RECORDED(cuMemsetD2D8Async(p->dst, pitch, (unsigned char)p->value, p->width, p->height, NULL));
    case 2:
      RECORDED(cuMemsetD2D16Async(p->dst, pitch, (unsigned short)p->value, p->width, p->height, NULL));
    case 4:
      RECORDED(cuMemsetD2D32Async(p->dst, pitch, p->value, p->width, p->height, NULL));
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

static CUresult words_work(const CUDA_BATCH_MEM_OP_NODE_PARAMS* p, orion_context** context, orion_node_work* work) {
  const CUresult result = orion_context_of(p->ctx, context);
  if (result != CUDA_SUCCESS) return result;
  RECORDED(cuStreamBatchMemOp_v2(NULL, p->count, p->paramArray, p->flags));
}

bool orion_work_event(const orion_event* event, bool records, orion_node_work* work) {
  orion_op_event_record record = {.op = {.code = ORION_OP_EVENT_RECORD}, .event = event->entry.index};
  orion_op_stream_wait_event wait = {.op = {.code = ORION_OP_STREAM_WAIT_EVENT}, .event = event->entry.index};
  *work = (orion_node_work){.event = event->handle};
  work->op = records ? orion_op_keep(&record.op, sizeof record, NULL, 0, event->context)
                     : orion_op_keep(&wait.op, sizeof wait, NULL, 0, event->context);
  return work->op != NULL;
}

static CUresult event_work(CUevent handle, bool records, orion_context** context, orion_node_work* work) {
  orion_event* event;
  const CUresult result = orion_event_of(handle, &event);
  if (result != CUDA_SUCCESS) return result;
  *context = event->context;
  return orion_work_event(event, records, work) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult orion_work_from_params(CUgraphNodeParams* params, orion_context** context, orion_node_work* work) {
  *work = (orion_node_work){0};
  *context = NULL;
  switch (params->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      return kernel_work(&params->kernel, context, work);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return copy_work(&params->memcpy, context, work);
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return fill_work(&params->memset, context, work);
    case CU_GRAPH_NODE_TYPE_HOST:
      work->function = params->host.fn;
      work->data = params->host.userData;
      return params->host.fn == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EMPTY:
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return event_work(params->eventRecord.event, true, context, work);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
      return event_work(params->eventWait.event, false, context, work);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
      return words_work(&params->memOp, context, work);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
      return orion_work_allocate(&params->alloc, context, work);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      return orion_work_free(params->free.dptr, work);
    default:
      return orion_not_implemented("a conditional, semaphore or other rare graph node");
  }
}

// ------------------------------------------------------------------------------------------------ adding

/// Under the mutex; takes `work` over.
static CUresult insert(orion_graph* graph, const CUgraphNode* from, const CUgraphEdgeData* data, size_t count,
                       const CUgraphNodeParams* params, orion_context* context, orion_node_work* work,
                       orion_node** out) {
  for (size_t i = 0; i < count; i++) {
    const orion_node* before = orion_node_of((uint64_t)(uintptr_t)from[i]);
    if (before == NULL || before->graph != graph) {
      orion_work_drop(work);
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  orion_node* node = orion_node_add(graph, params->type, context, work);
  if (node == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  CUresult result = CUDA_SUCCESS;
  if (params->type == CU_GRAPH_NODE_TYPE_GRAPH) {
    const orion_graph* child = orion_graph_of(params->graph.graph);
    if (child == NULL || child == graph) {
      result = CUDA_ERROR_INVALID_VALUE;
    } else {
      node->child = orion_graph_copy(child);
      if (node->child != NULL) node->child->is_owned = true;
      if (node->child == NULL) result = CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  if (params->type == CU_GRAPH_NODE_TYPE_MEMCPY && !orion_node_keep_copy(node, &params->memcpy.copyParams)) {
    result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    result = orion_node_link(orion_node_of((uint64_t)(uintptr_t)from[i]), node, data == NULL ? NULL : &data[i]);
  }
  if (result != CUDA_SUCCESS) {
    orion_node_drop(node);
    return result;
  }
  *out = node;
  return CUDA_SUCCESS;
}

static CUresult add(CUgraphNode* out, CUgraph handle, const CUgraphNode* from, const CUgraphEdgeData* data,
                    size_t count, CUgraphNodeParams* params) {
  CUresult result = orion_enter();
  if (result != CUDA_SUCCESS) return result;
  if (out == NULL || (count != 0 && from == NULL)) return CUDA_ERROR_INVALID_VALUE;
  orion_context* context;
  orion_node_work work;
  result = orion_work_from_params(params, &context, &work);
  if (result != CUDA_SUCCESS) return result;
  LOCK();
  orion_graph* graph = orion_graph_of(handle);
  orion_node* node = NULL;
  if (graph == NULL) {
    orion_work_drop(&work);
    result = CUDA_ERROR_INVALID_VALUE;
  } else {
    result = insert(graph, from, data, count, params, context, &work, &node);
  }
  if (result == CUDA_SUCCESS) {
    *out = (CUgraphNode)(uintptr_t)node->handle;
    if (node->child != NULL) params->graph.graph = (CUgraph)(uintptr_t)node->child->handle;
  }
  UNLOCK();
  return result;
}

ORION_API CUresult cuGraphAddNode_v2(CUgraphNode* node, CUgraph graph, const CUgraphNode* from,
                                     const CUgraphEdgeData* data, size_t count, CUgraphNodeParams* params) {
  ORION_COUNTED();
  return params == NULL ? CUDA_ERROR_INVALID_VALUE : add(node, graph, from, data, count, params);
}

ORION_API CUresult cuGraphAddNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                  CUgraphNodeParams* params) {
  ORION_COUNTED();
  return cuGraphAddNode_v2(node, graph, from, NULL, count, params);
}

static CUgraphNodeParams of_kernel(const void* given, size_t bytes) {
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_KERNEL};
  memcpy(&params.kernel, given, bytes);
  return params;
}

static CUgraphNodeParams of_copy(const CUDA_MEMCPY3D* given, CUcontext context) {
  return (CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy = {.copyCtx = context, .copyParams = *given}};
}

static CUgraphNodeParams of_fill(const CUDA_MEMSET_NODE_PARAMS* p, CUcontext context) {
  return (CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMSET,
                             .memset = {p->dst, p->pitch, p->value, p->elementSize, p->width, p->height, context}};
}

ORION_API CUresult cuGraphAddKernelNode_v2(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                           const CUDA_KERNEL_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_kernel(given, sizeof *given);
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddKernelNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                        const CUDA_KERNEL_NODE_PARAMS_v1* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_kernel(given, sizeof *given);
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddMemcpyNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                        const CUDA_MEMCPY3D* given, CUcontext context) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_copy(given, context);
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddMemsetNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                        const CUDA_MEMSET_NODE_PARAMS* given, CUcontext context) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_fill(given, context);
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddHostNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                      const CUDA_HOST_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = *given};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddEmptyNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddChildGraphNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                            CUgraph child) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .graph = {.graph = child}};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddEventRecordNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                             CUevent event) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .eventRecord = {event}};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddEventWaitNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                           CUevent event) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .eventWait = {event}};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddBatchMemOpNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                            const CUDA_BATCH_MEM_OP_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, .memOp = *given};
  return add(node, graph, from, NULL, count, &params);
}

ORION_API CUresult cuGraphAddMemAllocNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                          CUDA_MEM_ALLOC_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .alloc = *given};
  const CUresult result = add(node, graph, from, NULL, count, &params);
  if (result == CUDA_SUCCESS) given->dptr = params.alloc.dptr;
  return result;
}

ORION_API CUresult cuGraphAddMemFreeNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                         CUdeviceptr address) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .free = {address}};
  return add(node, graph, from, NULL, count, &params);
}

// ------------------------------------------------------------------------------------------------ changing

static CUresult change(CUgraphNode handle, CUgraphNodeParams* params) {
  CUresult result = orion_enter();
  if (result != CUDA_SUCCESS) return result;
  if (params->type == CU_GRAPH_NODE_TYPE_GRAPH) return CUDA_ERROR_NOT_SUPPORTED;
  if (params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || params->type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
    return CUDA_ERROR_INVALID_VALUE;  // they cannot be changed
  }
  orion_context* context;
  orion_node_work work;
  result = orion_work_from_params(params, &context, &work);
  if (result != CUDA_SUCCESS) return result;
  LOCK();
  orion_node* node = orion_node_of((uint64_t)(uintptr_t)handle);
  if (node == NULL || node->type != params->type) {
    orion_work_drop(&work);
    result = CUDA_ERROR_INVALID_VALUE;
  } else {
    orion_work_drop(&node->work);
    node->work = work;
    node->context = context;
    if (node->type == CU_GRAPH_NODE_TYPE_MEMCPY && !orion_node_keep_copy(node, &params->memcpy.copyParams)) {
      result = CUDA_ERROR_OUT_OF_MEMORY;
    }
  }
  UNLOCK();
  return result;
}

ORION_API CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams* params) {
  ORION_COUNTED();
  return params == NULL ? CUDA_ERROR_INVALID_VALUE : change(node, params);
}

ORION_API CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_kernel(given, sizeof *given);
  return change(node, &params);
}

ORION_API CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_kernel(given, sizeof *given);
  return change(node, &params);
}

ORION_API CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_copy(given, NULL);
  return change(node, &params);
}

ORION_API CUresult cuGraphMemsetNodeSetParams(CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = of_fill(given, NULL);
  return change(node, &params);
}

ORION_API CUresult cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = *given};
  return change(node, &params);
}

ORION_API CUresult cuGraphEventRecordNodeSetEvent(CUgraphNode node, CUevent event) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .eventRecord = {event}};
  return change(node, &params);
}

ORION_API CUresult cuGraphEventWaitNodeSetEvent(CUgraphNode node, CUevent event) {
  ORION_COUNTED();
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .eventWait = {event}};
  return change(node, &params);
}

ORION_API CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS* given) {
  ORION_COUNTED();
  ORION_REQUIRE(given != NULL, CUDA_ERROR_INVALID_VALUE);
  CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, .memOp = *given};
  return change(node, &params);
}

// ------------------------------------------------------------------------------------------------ asking

/// Under the mutex: from the operation back to what the program said.
static CUresult give_kernel(orion_node* node, CUDA_KERNEL_NODE_PARAMS* out) {
  const orion_op_launch* op = (const orion_op_launch*)node->work.op;
  if (op == NULL) return CUDA_ERROR_INVALID_VALUE;
  const bool extended = op->op.code == ORION_OP_LAUNCH_EX;
  const orion_function* function = orion_table_at(&orion_functions, op->function);
  uint8_t* values = (uint8_t*)(op + 1);
  if (extended) values += ((const orion_op_launch_ex*)op)->attribute_count * sizeof(orion_wire_attribute);
  void** list = realloc(node->parameter_list, (function->param_count + 1) * sizeof *list);
  if (list == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  node->parameter_list = list;
  for (uint32_t i = 0; i < function->param_count; i++) list[i] = values + function->param_offsets[i];
  *out = (CUDA_KERNEL_NODE_PARAMS){.func = (CUfunction)(uintptr_t)function->handle,
                                   .gridDimX = op->grid_x,
                                   .gridDimY = op->grid_y,
                                   .gridDimZ = op->grid_z,
                                   .blockDimX = op->block_x,
                                   .blockDimY = op->block_y,
                                   .blockDimZ = op->block_z,
                                   .sharedMemBytes = op->dynamic_shared_bytes,
                                   .kernelParams = list,
                                   .kern = (CUkernel)(uintptr_t)atomic_load(&function->kernel),
                                   .ctx = (CUcontext)(uintptr_t)node->context->handle};
  return CUDA_SUCCESS;
}

static void fill_copy(CUDA_MEMCPY3D* out, bool to, bool is_host, uint64_t address, uint64_t pitch, uint64_t rows) {
  if (to) {
    out->dstMemoryType = is_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    out->dstHost = is_host ? (void*)(uintptr_t)address : NULL;
    out->dstDevice = is_host ? 0 : address;
    out->dstPitch = pitch;
    out->dstHeight = rows;
  } else {
    out->srcMemoryType = is_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    out->srcHost = is_host ? (const void*)(uintptr_t)address : NULL;
    out->srcDevice = is_host ? 0 : address;
    out->srcPitch = pitch;
    out->srcHeight = rows;
  }
}

static uint64_t host_address(const orion_session* session, uint64_t arena_offset) {
  return orion_program_address(session, (uint64_t)(uintptr_t)session->host_base + arena_offset);
}

/// Of a captured copy, whose program never made a CUDA_MEMCPY3D.
static CUresult give_copy(const orion_node* node, CUDA_MEMCPY3D* out) {
  if (node->copy != NULL) {
    *out = *node->copy;
    return CUDA_SUCCESS;
  }
  const orion_op* op = node->work.op;
  if (op == NULL) return CUDA_ERROR_INVALID_VALUE;
  const orion_host_side* host = &node->work.host;
  const orion_session* session = node->context->session;
  *out = (CUDA_MEMCPY3D){.Height = 1, .Depth = 1};
  if (op->code == ORION_OP_COPY_3D) {
    const orion_op_copy_3d* o = (const orion_op_copy_3d*)op;
    if (o->src_kind > 2 || o->dst_kind > 2)
      return CUDA_ERROR_NOT_SUPPORTED;  // an array, known to the operation by index
    const bool from_own = host->rows != 0 && !host->is_written, to_own = host->rows != 0 && host->is_written;
    out->WidthInBytes = o->width_bytes;
    out->Height = o->height;
    out->Depth = o->depth;
    const uint64_t rows = host->pitch_bytes == 0 ? 0 : host->slice_bytes / host->pitch_bytes;
    if (from_own) {
      fill_copy(out, false, true, (uint64_t)(uintptr_t)host->first, host->pitch_bytes, rows);
    } else {
      fill_copy(out, false, o->src_kind == 1, o->src_kind == 1 ? host_address(session, o->src_address) : o->src_address,
                o->src_pitch, o->src_height);
    }
    if (to_own) {
      fill_copy(out, true, true, (uint64_t)(uintptr_t)host->first, host->pitch_bytes, rows);
    } else {
      fill_copy(out, true, o->dst_kind == 1, o->dst_kind == 1 ? host_address(session, o->dst_address) : o->dst_address,
                o->dst_pitch, o->dst_height);
    }
    return CUDA_SUCCESS;
  }
  const orion_op_copy_h2d* o = (const orion_op_copy_h2d*)op;  // the linear copies begin alike: to, from, size
  const uint64_t own = (uint64_t)(uintptr_t)host->first;
  uint64_t to = o->device_dst, from = o->src_off;
  bool to_host = false, from_host = false;
  if (op->code == ORION_OP_COPY_H2D) {
    from_host = true;
    from = host->rows != 0 ? own : host_address(session, from);
  } else if (op->code == ORION_OP_COPY_D2H) {
    const orion_op_copy_d2h* d = (const orion_op_copy_d2h*)op;
    to_host = true;
    to = host->rows != 0 ? own : host_address(session, d->dst_off);
    from = d->src;
  }
  out->WidthInBytes = o->size_bytes;
  fill_copy(out, false, from_host, from, o->size_bytes, 1);
  fill_copy(out, true, to_host, to, o->size_bytes, 1);
  return CUDA_SUCCESS;
}

static CUresult give_fill(const orion_node* node, CUDA_MEMSET_NODE_PARAMS* out) {
  const orion_op_memset* op = (const orion_op_memset*)node->work.op;
  if (op == NULL) return CUDA_ERROR_INVALID_VALUE;
  *out = (CUDA_MEMSET_NODE_PARAMS){.dst = op->device_dst,
                                   .pitch = op->pitch,
                                   .value = op->value,
                                   .elementSize = op->element_bytes,
                                   .width = op->width,
                                   .height = op->height};
  return CUDA_SUCCESS;
}

/// Finds a node of a type under the mutex, and answers with `expression`.
#define ASK(handle_, type_, out_, expression)                         \
  do {                                                                \
    ORION_ENTER();                                                    \
    ORION_REQUIRE((out_) != NULL, CUDA_ERROR_INVALID_VALUE);          \
    LOCK();                                                           \
    orion_node* node = orion_node_of((uint64_t)(uintptr_t)(handle_)); \
    CUresult asked_ = CUDA_ERROR_INVALID_VALUE;                       \
    if (node != NULL && node->type == (type_)) asked_ = (expression); \
    UNLOCK();                                                         \
    return asked_;                                                    \
  } while (0)

ORION_API CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_KERNEL, out, give_kernel(node, out));
}

ORION_API CUresult cuGraphKernelNodeGetParams(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS_v1* out) {
  ORION_COUNTED();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  CUDA_KERNEL_NODE_PARAMS params;
  const CUresult result = cuGraphKernelNodeGetParams_v2(handle, &params);
  if (result == CUDA_SUCCESS) memcpy(out, &params, sizeof *out);
  return result;
}

ORION_API CUresult cuGraphMemcpyNodeGetParams(CUgraphNode handle, CUDA_MEMCPY3D* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_MEMCPY, out, give_copy(node, out));
}

ORION_API CUresult cuGraphMemsetNodeGetParams(CUgraphNode handle, CUDA_MEMSET_NODE_PARAMS* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_MEMSET, out, give_fill(node, out));
}

static CUresult give_host(const orion_node* node, CUDA_HOST_NODE_PARAMS* out) {
  *out = (CUDA_HOST_NODE_PARAMS){node->work.function, node->work.data};
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphHostNodeGetParams(CUgraphNode handle, CUDA_HOST_NODE_PARAMS* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_HOST, out, give_host(node, out));
}

static CUresult give_event(const orion_node* node, CUevent* out) {
  *out = (CUevent)(uintptr_t)node->work.event;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode handle, CUevent* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_EVENT_RECORD, out, give_event(node, out));
}

ORION_API CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode handle, CUevent* out) {
  ASK(handle, CU_GRAPH_NODE_TYPE_WAIT_EVENT, out, give_event(node, out));
}
