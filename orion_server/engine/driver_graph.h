// The driver's functions for graphs: a part of driver.h's table.
#ifndef ORION_ENGINE_DRIVER_GRAPH_H
#define ORION_ENGINE_DRIVER_GRAPH_H

#include "cuda_types.h"

#define ORION_DRIVER_GRAPH_FUNCTIONS(X)                                                                                \
  X(graph_create, "cuGraphCreate", 0, (CUgraph * graph, unsigned int flags))                                           \
  X(graph_destroy, "cuGraphDestroy", 0, (CUgraph graph))                                                               \
  X(graph_add_kernel, "cuGraphAddKernelNode_v2", 0,                                                                    \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, const CUDA_KERNEL_NODE_PARAMS* params)) \
  X(graph_add_memcpy, "cuGraphAddMemcpyNode", 0,                                                                       \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, const CUDA_MEMCPY3D* copy,              \
     CUcontext context))                                                                                               \
  X(graph_add_memset, "cuGraphAddMemsetNode", 0,                                                                       \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, const CUDA_MEMSET_NODE_PARAMS* params,  \
     CUcontext context))                                                                                               \
  X(graph_add_host, "cuGraphAddHostNode", 0,                                                                           \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, const CUDA_HOST_NODE_PARAMS* params))   \
  X(graph_add_empty, "cuGraphAddEmptyNode", 0,                                                                         \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count))                                        \
  X(graph_add_event_record, "cuGraphAddEventRecordNode", 0,                                                            \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, CUevent event))                         \
  X(graph_add_event_wait, "cuGraphAddEventWaitNode", 0,                                                                \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count, CUevent event))                         \
  X(graph_add_words, "cuGraphAddBatchMemOpNode", 0,                                                                    \
    (CUgraphNode * node, CUgraph graph, const CUgraphNode* from, size_t count,                                         \
     const CUDA_BATCH_MEM_OP_NODE_PARAMS* params))                                                                     \
  X(graph_kernel_attribute, "cuGraphKernelNodeSetAttribute", 0,                                                        \
    (CUgraphNode node, CUlaunchAttributeID id, const CUlaunchAttributeValue* value))                                   \
  X(graph_add_edges, "cuGraphAddDependencies", 0,                                                                      \
    (CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, size_t count))                                     \
  X(graph_add_edges_with_data, "cuGraphAddDependencies_v2", 0,                                                         \
    (CUgraph graph, const CUgraphNode* from, const CUgraphNode* to, const CUgraphEdgeData* data, size_t count))        \
  X(graph_instantiate, "cuGraphInstantiateWithParams", 0,                                                              \
    (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS * params))                                       \
  X(graph_launch, "cuGraphLaunch", 0, (CUgraphExec exec, CUstream stream))                                             \
  X(graph_upload, "cuGraphUpload", 0, (CUgraphExec exec, CUstream stream))                                             \
  X(graph_exec_destroy, "cuGraphExecDestroy", 0, (CUgraphExec exec))                                                   \
  X(graph_exec_update, "cuGraphExecUpdate_v2", 0,                                                                      \
    (CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo * info))                                             \
  X(graph_exec_kernel, "cuGraphExecKernelNodeSetParams_v2", 0,                                                         \
    (CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* params))                                       \
  X(graph_exec_memcpy, "cuGraphExecMemcpyNodeSetParams", 0,                                                            \
    (CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D* copy, CUcontext context))                                \
  X(graph_exec_memset, "cuGraphExecMemsetNodeSetParams", 0,                                                            \
    (CUgraphExec exec, CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context))                    \
  X(graph_exec_host, "cuGraphExecHostNodeSetParams", 0,                                                                \
    (CUgraphExec exec, CUgraphNode node, const CUDA_HOST_NODE_PARAMS* params))                                         \
  X(graph_exec_event_record, "cuGraphExecEventRecordNodeSetEvent", 0,                                                  \
    (CUgraphExec exec, CUgraphNode node, CUevent event))                                                               \
  X(graph_exec_event_wait, "cuGraphExecEventWaitNodeSetEvent", 0, (CUgraphExec exec, CUgraphNode node, CUevent event)) \
  X(graph_exec_words, "cuGraphExecBatchMemOpNodeSetParams", 0,                                                         \
    (CUgraphExec exec, CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params))                                 \
  X(graph_exec_enable, "cuGraphNodeSetEnabled", 0, (CUgraphExec exec, CUgraphNode node, unsigned int enabled))

#endif
