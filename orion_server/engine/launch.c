// Launches: packed parameters go to the driver as one buffer, never as pointers.
#include <string.h>

#include "internal.h"
#include "launcher.h"
#include "ledger.h"

#define PARAM_MAX_BYTES 32764u

bool launch_attribute_ok(const orion_engine* e, uint32_t id, const void* value) {
  if (!orion_launch_attribute_travels(id)) return false;
  if (id != CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW) return true;
  CUaccessPolicyWindow window;
  memcpy(&window, value, sizeof window);
  return !window.num_bytes || memory_device_ok(e, (uint64_t)(uintptr_t)window.base_ptr, window.num_bytes);
}

function_state* function_of(orion_engine* e, const orion_op* op, uint32_t index) {
  if (index < ORION_FUNCTIONS) {
    function_state* f = &e->functions[index];
    if (f->alive && e->modules[f->module].context == op->context) return f;
  }
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

static bool attributes_ok(const orion_engine* e, const uint8_t* tail, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    orion_wire_attribute a;
    memcpy(&a, tail + i * sizeof a, sizeof a);
    if (!launch_attribute_ok(e, a.id, a.value)) return false;
  }
  return true;
}

static void translate_attributes(const uint8_t* tail, uint32_t count, CUlaunchAttribute* to) {
  for (uint32_t i = 0; i < count; i++) {
    orion_wire_attribute a;
    memcpy(&a, tail + i * sizeof a, sizeof a);
    to[i].id = (CUlaunchAttributeID)a.id;
    memcpy(&to[i].value, a.value, sizeof a.value);
  }
}

int32_t launch_attributes(const orion_engine* e, const uint8_t* tail, uint32_t count, CUlaunchAttribute* to) {
  if (!attributes_ok(e, tail, count)) return CUDA_ERROR_NOT_SUPPORTED;
  translate_attributes(tail, count, to);
  return 0;
}

bool launch_tail_ok(const orion_op* op, const function_state* f, uint32_t attribute_count) {
  const orion_op_launch* o = (const orion_op_launch*)op;
  return attribute_count <= ORION_LAUNCH_ATTRIBUTES_MAX && o->param_bytes <= PARAM_MAX_BYTES &&
         op_tail_bytes(op) == attribute_count * sizeof(orion_wire_attribute) + o->param_bytes &&
         (!f->layout_known || o->param_bytes >= f->param_bytes);
}

// LAUNCH and LAUNCH_EX are laid out alike and differ in the meaning of one field.
static uint32_t attribute_count_of(const orion_op* op) {
  return op->code == ORION_OP_LAUNCH_EX ? ((const orion_op_launch_ex*)op)->attribute_count : 0;
}

int32_t launch_call(const orion_driver* driver, const orion_op* op, CUfunction function, CUstream stream) {
  const orion_op_launch* o = (const orion_op_launch*)op;
  const uint32_t attribute_count = attribute_count_of(op);
  const uint8_t* tail = op_tail(op);
  size_t param_bytes = o->param_bytes;
  void* params = (void*)(tail + attribute_count * sizeof(orion_wire_attribute));
  void* buffers[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, params, CU_LAUNCH_PARAM_BUFFER_SIZE, &param_bytes,
                     CU_LAUNCH_PARAM_END};
  void** extra = param_bytes ? buffers : NULL;
  const bool extended = op->code == ORION_OP_LAUNCH_EX, cooperative = !extended && (o->launch_flags & 1);
  if (!extended && !cooperative) {
    return (int32_t)driver->launch(function, o->grid_x, o->grid_y, o->grid_z, o->block_x, o->block_y, o->block_z,
                                   o->dynamic_shared_bytes, stream, NULL, extra);
  }
  CUlaunchAttribute attributes[ORION_LAUNCH_ATTRIBUTES_MAX + 1] = {0};
  uint32_t count = 0;
  if (cooperative) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    attributes[count++].value.cooperative = 1;
  }
  translate_attributes(tail, attribute_count, attributes + count);
  count += attribute_count;
  const CUlaunchConfig config = {.gridDimX = o->grid_x,
                                 .gridDimY = o->grid_y,
                                 .gridDimZ = o->grid_z,
                                 .blockDimX = o->block_x,
                                 .blockDimY = o->block_y,
                                 .blockDimZ = o->block_z,
                                 .sharedMemBytes = o->dynamic_shared_bytes,
                                 .hStream = stream,
                                 .attrs = count ? attributes : NULL,
                                 .numAttrs = count};
  return (int32_t)driver->launch_ex(&config, function, NULL, extra);
}

void launch_kernel(orion_engine* e, const orion_op* op) {
  const orion_op_launch* o = (const orion_op_launch*)op;
  const uint32_t attribute_count = attribute_count_of(op);
  stream_state* s = use_stream(e, op);
  function_state* f = s ? function_of(e, op, o->function) : NULL;
  if (!f) return;
  if (!launch_tail_ok(op, f, attribute_count)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  if (!attributes_ok(e, op_tail(op), attribute_count)) {
    answer_result(e, op, CUDA_ERROR_NOT_SUPPORTED);
    return;
  }
  const int32_t refused = ledger_local(e, op->context, f->local_bytes);
  if (refused) {
    answer_result(e, op, refused);
    return;
  }
  if (e->launchers && launcher_take(e, s, f, op)) return;
  const bool timed = atomic_load_explicit(&e->stat_launches, memory_order_relaxed) % LAUNCH_TIMED_EVERY == 0;
  const uint64_t started_ns = timed ? engine_now_ns() : 0;
  const int32_t code = (int32_t)launch_call(&e->driver, op, f->handle, s->handle);
  if (timed) {
    STAT_ADD(e, stat_launches_timed, 1);
    STAT_ADD(e, stat_launches_timed_ns, engine_now_ns() - started_ns);
  }
  if (code) {
    answer_result(e, op, answer_check(e, op->context, code));
    return;
  }
  order_issued(e, s);
  if (op->reply_slot != ORION_NO_REPLY) answer_result(e, op, 0);
}

// ------------------------------------------------------------------------------------------------ functions
static uint32_t put_attributes(orion_engine* e, const function_state* f, int32_t* pairs) {
  uint32_t count = 0;
  // Asked one by one; those that this driver does not know are left out.
  for (int attribute = 0; attribute < CU_FUNC_ATTRIBUTE_MAX; attribute++) {
    int value = 0;
    if (e->driver.function_attribute(&value, attribute, f->handle)) continue;
    pairs[2 * count] = attribute;
    pairs[2 * count + 1] = value;
    count++;
  }
  return count;
}

void module_get_function(orion_engine* e, const orion_op* op) {
  const orion_op_module_get_function* o = (const orion_op_module_get_function*)op;
  if (!use_context(e, op)) return;
  if (o->module >= ORION_MODULES || !e->modules[o->module].alive || e->modules[o->module].context != op->context) {
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return;
  }
  const uint32_t name_bytes = op_tail_bytes(op);
  char name[ORION_OP_MAX_BYTES + 1];
  memcpy(name, op_tail(op), name_bytes);
  name[name_bytes] = 0;
  CUfunction handle = NULL;
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  const ledger_mark mark = ledger_begin(e, e->contexts[op->context].device);
  if (name_bytes && strlen(name) == name_bytes) {
    result =
        answer_check(e, op->context, (int32_t)e->driver.module_function(&handle, e->modules[o->module].handle, name));
  }
  if (!result) result = ledger_function(e, o->module, mark);
  if (result) {
    answer_result(e, op, result);
  } else {
    function_open(e, op, o->module, o->function, handle);
  }
}

void function_open(orion_engine* e, const orion_op* op, uint32_t module, uint32_t index, CUfunction handle) {
  if (index >= ORION_FUNCTIONS || e->functions[index].alive) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  module_state* m = &e->modules[module];
  function_state f = {.handle = handle, .module = module, .alive = true};
  struct {
    orion_reply_module_get_function head;
    int32_t pairs[(ORION_REPLY_BYTES - sizeof(orion_reply_module_get_function)) / 4];
  } reply;
  reply.head.attribute_count = put_attributes(e, &f, reply.pairs);
  uint32_t used = 2 * reply.head.attribute_count, params = 0;
  const uint32_t room = sizeof reply.pairs / sizeof reply.pairs[0];
  CUresult end = 0;
  while (used + 2 <= room) {
    size_t offset = 0, bytes = 0;
    end = e->driver.function_param(f.handle, params, &offset, &bytes);
    if (end || offset > PARAM_MAX_BYTES || bytes > PARAM_MAX_BYTES) break;
    reply.pairs[used++] = (int32_t)offset;
    reply.pairs[used++] = (int32_t)bytes;
    if (offset + bytes > f.param_bytes) f.param_bytes = (uint32_t)(offset + bytes);
    params++;
  }
  // The list ends with INVALID_VALUE; anything else means that this driver cannot tell.
  f.layout_known = end == CUDA_ERROR_INVALID_VALUE;
  // Unknown layouts are told: parameters would be lost otherwise. The null engine looks at none.
  reply.head.param_count = f.layout_known ? params : e->config.null_engine ? 0 : UINT32_MAX;
  if (!f.layout_known) used = 2 * reply.head.attribute_count;
  int local_bytes = 0;
  if (!e->driver.function_attribute(&local_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle) && local_bytes > 0) {
    f.local_bytes = (uint32_t)local_bytes;
  }
  f.next = m->first_function;
  m->first_function = index + 1;
  e->functions[index] = f;
  answer_reply(e, op, 0, &reply, (uint32_t)(sizeof reply.head + used * 4));
}

void function_simple(orion_engine* e, const orion_op* op) {
  if (!use_context(e, op)) return;
  const uint32_t index = ((const orion_op_function_get_attributes*)op)->function;  // the first field of all of them
  function_state* f = function_of(e, op, index);
  if (!f) return;
  switch (op->code) {
    case ORION_OP_FUNCTION_SET_ATTRIBUTE: {
      const orion_op_function_set_attribute* o = (const orion_op_function_set_attribute*)op;
      answer_result(
          e, op,
          answer_check(e, op->context, (int32_t)e->driver.function_set_attribute(f->handle, o->attribute, o->value)));
      break;
    }
    case ORION_OP_FUNCTION_SET_CACHE_CONFIG: {
      const orion_op_function_set_cache_config* o = (const orion_op_function_set_cache_config*)op;
      answer_result(e, op,
                    answer_check(e, op->context, (int32_t)e->driver.function_set_cache_config(f->handle, o->config)));
      break;
    }
    case ORION_OP_OCCUPANCY_BLOCKS: {
      const orion_op_occupancy_blocks* o = (const orion_op_occupancy_blocks*)op;
      orion_reply_occupancy_blocks reply = {0};
      const int32_t result =
          answer_check(e, op->context,
                       (int32_t)e->driver.occupancy_blocks(&reply.blocks, f->handle, o->block_size,
                                                           o->dynamic_shared_bytes, o->occupancy_flags));
      answer_reply(e, op, result, &reply, sizeof reply);
      break;
    }
    case ORION_OP_OCCUPANCY_SHARED: {
      const orion_op_occupancy_shared* o = (const orion_op_occupancy_shared*)op;
      size_t bytes = 0;
      const int32_t result = answer_check(
          e, op->context, (int32_t)e->driver.occupancy_shared(&bytes, f->handle, o->blocks, o->block_size));
      const orion_reply_occupancy_shared reply = {bytes};
      answer_reply(e, op, result, &reply, sizeof reply);
      break;
    }
    default: {
      struct {
        orion_reply_function_get_attributes head;
        int32_t pairs[2 * CU_FUNC_ATTRIBUTE_MAX];
      } reply = {0};
      reply.head.attribute_count = put_attributes(e, f, reply.pairs);
      answer_reply(e, op, 0, &reply, (uint32_t)(sizeof reply.head + reply.head.attribute_count * 8));
      break;
    }
  }
}
