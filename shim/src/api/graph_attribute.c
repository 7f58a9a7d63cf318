// Attributes of kernel nodes: they live in the node's operation, which then is the one that carries attributes.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "graph.h"
#include "orion_launch.h"

/// The operation of a kernel node in parts.
typedef struct launch_parts {
  const orion_op_launch* op;
  orion_wire_attribute attributes[ORION_LAUNCH_ATTRIBUTES_MAX + 1];
  uint32_t count;
  const uint8_t* params;
} launch_parts;

static bool take_apart(const orion_node* node, launch_parts* parts) {
  parts->op = (const orion_op_launch*)node->work.op;
  if (node->type != CU_GRAPH_NODE_TYPE_KERNEL || parts->op == NULL) return false;
  const bool extended = parts->op->op.code == ORION_OP_LAUNCH_EX;
  parts->count = extended ? ((const orion_op_launch_ex*)parts->op)->attribute_count : 0;
  if (parts->count > ORION_LAUNCH_ATTRIBUTES_MAX) return false;
  const uint8_t* tail = (const uint8_t*)(parts->op + 1);
  memcpy(parts->attributes, tail, parts->count * sizeof *parts->attributes);
  parts->params = tail + parts->count * sizeof *parts->attributes;
  if (!extended && (parts->op->launch_flags & 1) != 0) {
    const int32_t one = 1;
    parts->attributes[0] = (orion_wire_attribute){.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE};
    memcpy(parts->attributes[0].value, &one, sizeof one);
    parts->count = 1;
  }
  return true;
}

static orion_op* put_together(const launch_parts* parts) {
  const uint32_t attribute_bytes = parts->count * (uint32_t)sizeof(orion_wire_attribute);
  const uint32_t bytes = (uint32_t)sizeof(orion_op_launch_ex) + attribute_bytes + parts->op->param_bytes;
  if (bytes > ORION_OP_MAX_BYTES - sizeof(orion_op_graph_node)) return NULL;
  orion_op_launch_ex* op = malloc(bytes);
  if (op == NULL) return NULL;
  memcpy(op, parts->op, sizeof *op);
  op->op.code = ORION_OP_LAUNCH_EX;
  op->op.bytes = bytes;
  op->attribute_count = parts->count;
  memcpy(op + 1, parts->attributes, attribute_bytes);
  memcpy((uint8_t*)(op + 1) + attribute_bytes, parts->params, parts->op->param_bytes);
  return &op->op;
}

static orion_wire_attribute* find(launch_parts* parts, CUkernelNodeAttrID id) {
  for (uint32_t i = 0; i < parts->count; i++) {
    if (parts->attributes[i].id == (uint32_t)id) return &parts->attributes[i];
  }
  return NULL;
}

static CUresult set_attribute(orion_node* node, CUkernelNodeAttrID id, const CUkernelNodeAttrValue* value) {
  launch_parts parts;
  if (!take_apart(node, &parts)) return CUDA_ERROR_INVALID_VALUE;
  orion_wire_attribute* attribute = find(&parts, id);
  if (attribute == NULL) {
    if (parts.count == ORION_LAUNCH_ATTRIBUTES_MAX) return CUDA_ERROR_INVALID_VALUE;
    attribute = &parts.attributes[parts.count++];
    *attribute = (orion_wire_attribute){.id = (uint32_t)id};
  }
  memcpy(attribute->value, value, sizeof attribute->value);
  orion_op* made = put_together(&parts);
  if (made == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  free(node->work.op);
  node->work.op = made;
  return CUDA_SUCCESS;
}

static CUresult get_attribute(const orion_node* node, CUkernelNodeAttrID id, CUkernelNodeAttrValue* value) {
  launch_parts parts;
  if (!take_apart(node, &parts)) return CUDA_ERROR_INVALID_VALUE;
  const orion_wire_attribute* attribute = find(&parts, id);
  memset(value, 0, sizeof *value);
  if (attribute != NULL) memcpy(value, attribute->value, sizeof attribute->value);
  return CUDA_SUCCESS;
}

static bool is_settable(CUkernelNodeAttrID id) {
  switch (id) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
    case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
      return true;
    default:
      return false;
  }
}

static orion_node* node_of(CUgraphNode handle) { return orion_node_of((uint64_t)(uintptr_t)handle); }

ORION_API CUresult cuGraphKernelNodeSetAttribute(CUgraphNode handle, CUkernelNodeAttrID id,
                                                 const CUkernelNodeAttrValue* value) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && is_settable(id), CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_graph_mutex);
  orion_node* node = node_of(handle);
  const CUresult result = node == NULL ? CUDA_ERROR_INVALID_VALUE : set_attribute(node, id, value);
  pthread_mutex_unlock(&orion_graph_mutex);
  return result;
}

ORION_API CUresult cuGraphKernelNodeGetAttribute(CUgraphNode handle, CUkernelNodeAttrID id,
                                                 CUkernelNodeAttrValue* value) {
  ORION_ENTER();
  ORION_REQUIRE(value != NULL && is_settable(id), CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_graph_mutex);
  const orion_node* node = node_of(handle);
  const CUresult result = node == NULL ? CUDA_ERROR_INVALID_VALUE : get_attribute(node, id, value);
  pthread_mutex_unlock(&orion_graph_mutex);
  return result;
}

static CUresult copy_attributes(orion_node* to, const orion_node* from) {
  launch_parts parts;
  if (to == NULL || from == NULL || !take_apart(from, &parts)) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = CUDA_SUCCESS;
  for (uint32_t i = 0; i < parts.count && result == CUDA_SUCCESS; i++) {
    CUkernelNodeAttrValue value;
    memcpy(&value, parts.attributes[i].value, sizeof value);
    result = set_attribute(to, (CUkernelNodeAttrID)parts.attributes[i].id, &value);
  }
  return result;
}

ORION_API CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode to, CUgraphNode from) {
  ORION_ENTER();
  pthread_mutex_lock(&orion_graph_mutex);
  const CUresult result = copy_attributes(node_of(to), node_of(from));
  pthread_mutex_unlock(&orion_graph_mutex);
  return result;
}
