// From an operation to its handler, and contexts: which one is current, their creation, limits and end.
#include <string.h>

#include "internal.h"
#include "launcher.h"
#include "ledger.h"

#define CONTEXT_MOST_BYTES (2ull << 30)  // that one which the program adds may be charged

context_state* use_context(orion_engine* e, const orion_op* op) {
  context_state* c = &e->contexts[op->context];
  if (!c->alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_CONTEXT);
    return NULL;
  }
  if (c->sticky) {
    answer_result(e, op, c->sticky);
    return NULL;
  }
  if (e->current_context != op->context) {
    const int32_t result = answer_check(e, op->context, (int32_t)e->driver.context_set_current(c->handle));
    if (result) {
      answer_result(e, op, result);
      return NULL;
    }
    e->current_context = op->context;
  }
  return c;
}

stream_state* use_stream(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return NULL;
  stream_state* s = &e->streams[stream_index(op)];
  if (!s->alive || s->context != op->context) {
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return NULL;
  }
  return s;
}

// ------------------------------------------------------------------------------------------------ contexts
static device_state* device_of(orion_engine* e, uint32_t ordinal, uint32_t* index) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (e->devices[i].ordinal == ordinal && e->devices[i].reserved) {
      *index = i;
      return &e->devices[i];
    }
  }
  return NULL;
}

// Makes a driver context known under the operation's index and answers.
static void context_open(orion_engine* e, const orion_op* op, uint32_t device, CUcontext handle, bool primary,
                         uint32_t flags) {
  context_state* c = &e->contexts[op->context];
  stream_state* null_stream = &e->streams[STREAM_NULL_BASE + op->context];
  const uint32_t track_index = order_track_open(e, NULL, op->context);
  if (!track_index) {
    if (!primary) (void)e->driver.context_destroy(handle);
    answer_result(e, op, CUDA_ERROR_OUT_OF_MEMORY);
    return;
  }
  memset(c, 0, sizeof *c);
  c->handle = handle;
  c->device = device;
  c->alive = true;
  c->primary = primary;
  *null_stream = (stream_state){.track = track_index, .context = op->context, .alive = true};
  orion_reply_ctx_primary reply = {.ctx_flags = flags};
  unsigned int version = 0;
  unsigned long long id = 0;
  if (e->driver.context_api_version(handle, &version) == 0) reply.api_version = version;
  if (e->driver.context_id(handle, &id) == 0) reply.id = id;
  answer_reply(e, op, 0, &reply, sizeof reply);
}

void context_primary(orion_engine* e, const orion_op* op) {
  const orion_op_ctx_primary* o = (const orion_op_ctx_primary*)op;
  uint32_t index = 0;
  const device_state* d = device_of(e, o->device, &index);
  int32_t result = 0;
  if (!op->context || e->contexts[op->context].alive) result = CUDA_ERROR_INVALID_CONTEXT;
  if (!result && !d) result = CUDA_ERROR_INVALID_DEVICE;
  for (uint32_t i = 1; i < ORION_CONTEXTS && !result; i++) {
    const context_state* c = &e->contexts[i];
    // Two indices for one context would give its NULL stream two orders.
    if (c->alive && c->primary && c->device == index) result = CUDA_ERROR_CONTEXT_ALREADY_IN_USE;
  }
  unsigned int flags = 0;
  int active = 0;
  if (!result) result = (int32_t)e->driver.primary_state((CUdevice)d->ordinal, &flags, &active);
  if (result) {
    answer_result(e, op, result);
    return;
  }
  context_open(e, op, index, d->primary, true, flags);
}

void context_create(orion_engine* e, const orion_op* op) {
  const orion_op_ctx_create* o = (const orion_op_ctx_create*)op;
  uint32_t index = 0;
  const device_state* d = device_of(e, o->device, &index);
  int32_t result = 0;
  if (!op->context || e->contexts[op->context].alive) result = CUDA_ERROR_INVALID_CONTEXT;
  if (!result && !d) result = CUDA_ERROR_INVALID_DEVICE;
  CUcontext handle = NULL;
  ledger_mark mark = {0};
  uint64_t charged_bytes = 0;
  if (!result && !e->driver.context_set_current(d->primary)) mark = ledger_begin(e, index);
  if (!result) result = (int32_t)e->driver.context_create(&handle, o->ctx_flags, (CUdevice)d->ordinal);
  e->current_context = 0;  // creation made the new one current
  if (!result) {
    result = ledger_settle(e, index, ORION_MEMORY_CONTEXT, mark, CONTEXT_MOST_BYTES, &charged_bytes);
    if (result) (void)e->driver.context_destroy(handle);
  }
  if (result) {
    answer_result(e, op, result);
    return;
  }
  context_open(e, op, index, handle, false, o->ctx_flags);
  if (e->contexts[op->context].alive) {
    e->ledger.contexts[op->context].own_bytes = charged_bytes;
  } else {
    ledger_uncharge(e, index, ORION_MEMORY_CONTEXT, charged_bytes);
  }
}

// Frees what the context's ledger holds. The context is current and has no work left, or is corrupt.
static void release_ledger(orion_engine* e, uint32_t index) {
  graph_drop_context(e, index);
  for (uint32_t i = 0; i < e->event_high; i++) {
    const event_state* v = &e->events[i];
    if (v->alive && v->context == index) (void)event_close(e, i);
  }
  event_drop_spares(e, index);
  for (uint32_t i = 1; i < e->stream_high; i++) {
    if (e->streams[i].alive && e->streams[i].context == index) stream_close(e, i);
  }
  for (uint32_t i = 0; i < e->module_high; i++) {
    if (e->modules[i].alive && e->modules[i].context == index) module_close(e, i);
  }
  array_drop_context(e, index);
  memory_drop_context(e, index);
}

void context_close(orion_engine* e, uint32_t index) {
  context_state* c = &e->contexts[index];
  e->context_generation++;
  (void)e->driver.context_set_current(c->handle);
  e->current_context = index;
  release_ledger(e, index);
  stream_close(e, STREAM_PRIVATE_BASE + index);
  stream_state* null_stream = &e->streams[STREAM_NULL_BASE + index];
  order_abandon(e, index);
  order_track_close(e, null_stream->track);
  *null_stream = (stream_state){0};
  output_drop_context(e, index);
  if (c->primary) ledger_reset_limits(e, index);
  if (!c->primary) (void)e->driver.context_destroy(c->handle);
  ledger_context_end(e, index);
  (void)e->driver.context_set_current(NULL);
  e->current_context = 0;
  c->alive = false;
}

void context_destroy(orion_engine* e, const orion_op* op) {
  context_state* c = &e->contexts[op->context];
  if (!c->alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_CONTEXT);
    return;
  }
  context_close(e, op->context);
  answer_reply(e, op, 0, NULL, 0);
}

void context_reset(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return;  // a corrupted context is not mended: its worker is replaced
  release_ledger(e, op->context);
  ledger_reset_limits(e, op->context);
  answer_reply(e, op, 0, NULL, 0);
}

void context_simple(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return;
  if (op->code == ORION_OP_CTX_SET_LIMIT) {
    const orion_op_ctx_set_limit* o = (const orion_op_ctx_set_limit*)op;
    answer_result(e, op, answer_check(e, op->context, ledger_set_limit(e, op->context, o->limit, o->value)));
  } else if (op->code == ORION_OP_CTX_GET_LIMIT) {
    const orion_op_ctx_get_limit* o = (const orion_op_ctx_get_limit*)op;
    size_t value = 0;
    const int32_t result = answer_check(e, op->context, (int32_t)e->driver.context_get_limit(&value, o->limit));
    const orion_reply_ctx_get_limit reply = {value};
    answer_reply(e, op, result, &reply, sizeof reply);
  } else {
    const orion_op_ctx_set_cache_config* o = (const orion_op_ctx_set_cache_config*)op;
    answer_result(e, op, answer_check(e, op->context, (int32_t)e->driver.context_set_cache_config(o->config)));
  }
}

void context_get_resource(orion_engine* e, const orion_op* op) {
  const orion_op_ctx_get_resource* o = (const orion_op_ctx_get_resource*)op;
  CUdevResource resource = {0};
  int32_t result = o->resource_type == CU_DEV_RESOURCE_TYPE_SM ? 0 : CUDA_ERROR_INVALID_RESOURCE_TYPE;
  uint32_t index = 0;
  const device_state* d = device_of(e, o->device, &index);
  if (!result && op->context) {
    const context_state* c = use_context(e, op);
    if (!c) return;
    result = answer_check(e, op->context,
                          (int32_t)e->driver.context_resource(c->handle, &resource, CU_DEV_RESOURCE_TYPE_SM));
  } else if (!result) {
    result = d ? (int32_t)e->driver.device_resource((CUdevice)d->ordinal, &resource, CU_DEV_RESOURCE_TYPE_SM)
               : CUDA_ERROR_INVALID_DEVICE;
  }
  const orion_reply_ctx_get_resource reply = {resource.sm.smCount, resource.sm.minSmPartitionSize,
                                              resource.sm.smCoscheduledAlignment, 0};
  answer_reply(e, op, result, &reply, sizeof reply);
}

void context_peer(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return;
  const bool enable = op->code == ORION_OP_CTX_ENABLE_PEER;
  const uint32_t peer = ((const orion_op_ctx_enable_peer*)op)->peer_context;  // both operations begin alike
  if (peer >= ORION_CONTEXTS || !e->contexts[peer].alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_CONTEXT);
    return;
  }
  const CUcontext handle = e->contexts[peer].handle;
  const int32_t result = answer_check(
      e, op->context,
      (int32_t)(enable ? e->driver.context_enable_peer(handle, 0) : e->driver.context_disable_peer(handle)));
  // Memory that was mapped by us does not follow the driver's peer switch: its access lists are set one by one.
  if (!result) memory_allow_peer(e, e->contexts[peer].device, e->contexts[op->context].device, enable);
  answer_result(e, op, result);
}

// ------------------------------------------------------------------------------------------------ dispatch
enum step execute(orion_engine* e, const orion_op* op, parked_op* node) {
  if (ORION_OP_INFO[op->code].flags & ORION_OPF_WORK) STAT_ADD(e, stat_work, 1);
  if (e->launchers) launcher_before(e, op);
  switch ((enum orion_op_code)op->code) {
    case ORION_OP_NOP:
      answer_result(e, op, 0);
      break;
    case ORION_OP_PING: {
      const orion_reply_ping reply = {((const orion_op_ping*)op)->value};
      answer_reply(e, op, 0, &reply, sizeof reply);
      break;
    }
    case ORION_OP_DEVICE_OUTPUT:
      output_take(e, op);
      break;
    case ORION_OP_DETACH:
      answer_result(e, op, 0);
      engine_end(e, ORION_END_DETACHED, "the client detached");
      break;
    case ORION_OP_CTX_PRIMARY:
      context_primary(e, op);
      break;
    case ORION_OP_CTX_CREATE:
      context_create(e, op);
      break;
    case ORION_OP_CTX_DESTROY:
      context_destroy(e, op);
      break;
    case ORION_OP_CTX_RESET:
      context_reset(e, op);
      break;
    case ORION_OP_CTX_SET_LIMIT:
    case ORION_OP_CTX_GET_LIMIT:
    case ORION_OP_CTX_SET_CACHE_CONFIG:
      context_simple(e, op);
      break;
    case ORION_OP_CTX_GET_RESOURCE:
      context_get_resource(e, op);
      break;
    case ORION_OP_CTX_ENABLE_PEER:
    case ORION_OP_CTX_DISABLE_PEER:
      context_peer(e, op);
      break;
    case ORION_OP_STREAM_CREATE:
      stream_create(e, op);
      break;
    case ORION_OP_STREAM_DESTROY:
      stream_destroy(e, op);
      break;
    case ORION_OP_MARK:
      stream_mark(e, op);
      break;
    case ORION_OP_STREAM_WAIT_EVENT:
      stream_wait_event(e, op);
      break;
    case ORION_OP_STREAM_WRITE_VALUE:
    case ORION_OP_STREAM_WAIT_VALUE:
      stream_value(e, op);
      break;
    case ORION_OP_HOST_FUNCTION:
      return stream_host_function(e, op, node);
    case ORION_OP_STREAM_QUERY:
    case ORION_OP_EVENT_QUERY:
      query_start(e, op);
      break;
    case ORION_OP_EVENT_CREATE:
      event_create(e, op);
      break;
    case ORION_OP_EVENT_DESTROY:
      event_destroy(e, op);
      break;
    case ORION_OP_EVENT_RECORD:
      event_record(e, op);
      break;
    case ORION_OP_EVENT_ISSUED:
      event_issued(e, op);
      break;
    case ORION_OP_EVENT_ELAPSED:
      return event_elapsed(e, op, node);
    case ORION_OP_MEM_MAP:
    case ORION_OP_VMM_CREATE:
      memory_allocate(e, op);
      break;
    case ORION_OP_VMM_RELEASE:
    case ORION_OP_VMM_MAP:
    case ORION_OP_VMM_UNMAP:
    case ORION_OP_VMM_SET_ACCESS:
      vmm_simple(e, op);
      break;
    case ORION_OP_SHARE_EXPORT:
    case ORION_OP_SHARE_IMPORT:
    case ORION_OP_EVENT_EXPORT:
    case ORION_OP_EVENT_IMPORT:
      return share_execute(e, op, node);
    case ORION_OP_MEM_FREE:
      memory_free(e, op);
      break;
    case ORION_OP_MEM_INFO:
      memory_info(e, op);
      break;
    case ORION_OP_DEVICE_MEMORY:
      ledger_device_memory(e, op);
      break;
    case ORION_OP_HOST_REGISTER:
    case ORION_OP_HOST_REGISTER_AT:
      memory_host_register(e, op);
      break;
    case ORION_OP_HOST_UNREGISTER:
      return memory_host_unregister(e, op);
    case ORION_OP_HOST_COHERENT:
      coherent_add(e, op);
      break;
    case ORION_OP_HOST_PUBLISH:
      coherent_publish(e, op);
      break;
    case ORION_OP_HOST_VARIABLE:
      return variable_map(e, op);
    case ORION_OP_HOST_VARIABLE_END:
      return variable_end(e, op);
    case ORION_OP_HOST_PULL:
      variable_pull(e, op);
      break;
    case ORION_OP_COPY_H2D:
    case ORION_OP_COPY_D2H:
    case ORION_OP_COPY_D2D:
    case ORION_OP_COPY_PEER:
    case ORION_OP_COPY_H2D_INLINE:
      copy_linear(e, op);
      break;
    case ORION_OP_COPY_3D:
      copy_3d(e, op);
      break;
    case ORION_OP_MEMSET:
      copy_set(e, op);
      break;
    case ORION_OP_MODULE_LOAD:
      module_load(e, op);
      break;
    case ORION_OP_MODULE_UNLOAD:
      module_unload(e, op);
      break;
    case ORION_OP_MODULE_GET_FUNCTION:
      module_get_function(e, op);
      break;
    case ORION_OP_MODULE_GET_GLOBAL:
      module_get_global(e, op);
      break;
    case ORION_OP_LINK:
      module_link(e, op);
      break;
    case ORION_OP_FUNCTION_SET_ATTRIBUTE:
    case ORION_OP_FUNCTION_SET_CACHE_CONFIG:
    case ORION_OP_OCCUPANCY_BLOCKS:
    case ORION_OP_OCCUPANCY_SHARED:
    case ORION_OP_FUNCTION_GET_ATTRIBUTES:
      function_simple(e, op);
      break;
    case ORION_OP_LAUNCH:
    case ORION_OP_LAUNCH_EX:
      STAT_ADD(e, stat_launches, 1);
      launch_kernel(e, op);
      break;
    case ORION_OP_TENSOR_MAP_ENCODE:
      tensor_map_encode(e, op);
      break;
    case ORION_OP_TENSOR_MAP_REPLACE_ADDRESS:
      tensor_map_replace_address(e, op);
      break;
    case ORION_OP_GRAPH_DEFINE:
    case ORION_OP_GRAPH_NODE:
    case ORION_OP_GRAPH_EDGES:
    case ORION_OP_GRAPH_INSTANTIATE:
    case ORION_OP_GRAPH_LAUNCH:
    case ORION_OP_GRAPH_UPLOAD:
    case ORION_OP_GRAPH_DESTROY:
    case ORION_OP_GRAPH_UPDATE:
    case ORION_OP_GRAPH_SET_NODE:
    case ORION_OP_GRAPH_SET_ENABLED:
      graph_operation(e, op);
      break;
    case ORION_OP_IMAGE_OFFER:
    case ORION_OP_IMAGE_PROVE:
    case ORION_OP_IMAGE_DATA:
    case ORION_OP_IMAGE_DROP:
    case ORION_OP_IMAGE_MODULE_LOAD:
      return image_execute(e, op, node);
    case ORION_OP_LIBRARY_LOAD:
    case ORION_OP_LIBRARY_UNLOAD:
    case ORION_OP_LIBRARY_GET_KERNEL:
    case ORION_OP_LIBRARY_GET_MODULE:
    case ORION_OP_LIBRARY_NAMES:
    case ORION_OP_MODULE_NAMES:
    case ORION_OP_KERNEL_FUNCTION:
    case ORION_OP_KERNEL_GET_ATTRIBUTES:
    case ORION_OP_KERNEL_GET_PARAMS:
    case ORION_OP_KERNEL_SET_ATTRIBUTE:
    case ORION_OP_KERNEL_SET_CACHE_CONFIG:
    case ORION_OP_LIBRARY_LOOKUP:
    case ORION_OP_OCCUPANCY_CLUSTERS:
      library_execute(e, op);
      break;
    case ORION_OP_ARRAY_CREATE:
    case ORION_OP_MIPMAP_CREATE:
      return array_create(e, op);
    case ORION_OP_ARRAY_DESTROY:
    case ORION_OP_MIPMAP_DESTROY:
      array_destroy(e, op);
      break;
    case ORION_OP_ARRAY_VIEW:
      array_view(e, op);
      break;
    case ORION_OP_TEXTURE_CREATE:
      texture_create(e, op);
      break;
    case ORION_OP_TEXTURE_DESTROY:
      texture_destroy(e, op);
      break;
    case ORION_OP_CODE_END:
      break;
  }
  return STEP_DONE;
}
