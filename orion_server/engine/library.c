// Libraries and kernels: the driver's own, which belong to no context. The client mints their indices; a library's
// module in a context and its functions there are ordinary modules and functions of the tables, owned by the library.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "image.h"
#include "ledger.h"

#define LIBRARIES 65536u
#define KERNELS 1048576u
#define LIBRARY_MOST_BYTES (2ull << 30)  // that a library's code may be charged in one context

typedef struct library_state {
  CUlibrary handle;
  void* image;  // mapped and sealed: stays while the library lives, so that the driver needs no copy
  uint64_t image_bytes;
  uint32_t first_kernel;  // list through kernel_state.next; an entry is index + 1, 0 ends it
  uint64_t charged_bytes[ORION_DEVICES];
  bool alive;
} library_state;

typedef struct kernel_state {
  CUkernel handle;
  uint32_t library;
  uint32_t next;
  bool alive;
} kernel_state;

struct library_table {
  library_state libraries[LIBRARIES];
  kernel_state kernels[KERNELS];
  uint32_t library_high;
};

/// Made at first use: mostly untouched zero pages.
static struct library_table* table_of(orion_engine* e) {
  if (!e->libraries) {
    void* p =
        mmap(NULL, sizeof *e->libraries, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) e->libraries = p;
  }
  return e->libraries;
}

static library_state* library_of(orion_engine* e, const orion_op* op, uint32_t index) {
  if (e->libraries && index < LIBRARIES && e->libraries->libraries[index].alive) return &e->libraries->libraries[index];
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

static kernel_state* kernel_of(orion_engine* e, const orion_op* op, uint32_t index) {
  if (e->libraries && index < KERNELS && e->libraries->kernels[index].alive) return &e->libraries->kernels[index];
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

/// The operation's tail as a terminated name in `name` (ORION_OP_MAX_BYTES + 1); false when it holds a zero or nothing.
static bool read_name(const orion_op* op, char* name) {
  const uint32_t bytes = op_tail_bytes(op);
  memcpy(name, op_tail(op), bytes);
  name[bytes] = 0;
  return bytes && strlen(name) == bytes;
}

/// A library may be loaded into every context at once: CUDA_MODULE_LOADING=EAGER.
static void begin_all(orion_engine* e, ledger_mark* marks) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (!e->seat || !e->devices[i].reserved || e->driver.context_set_current(e->devices[i].primary)) continue;
    e->current_context = 0;
    marks[i] = ledger_begin(e, i);
  }
}

static int32_t settle_all(orion_engine* e, const ledger_mark* marks, uint64_t image_bytes, library_state* l) {
  int32_t result = 0;
  for (uint32_t i = 0; i < e->device_count && !result; i++) {
    if (!marks[i].taken || e->driver.context_set_current(e->devices[i].primary)) continue;
    result = ledger_settle(e, i, ORION_MEMORY_MODULE, marks[i], ledger_image_most(image_bytes), &l->charged_bytes[i]);
  }
  return result;
}

static void uncharge_all(orion_engine* e, const library_state* l) {
  for (uint32_t i = 0; i < e->device_count; i++) ledger_uncharge(e, i, ORION_MEMORY_MODULE, l->charged_bytes[i]);
}

void library_module_end(orion_engine* e, const module_state* m) {
  const context_state* c = &e->contexts[m->context];
  if (c->primary) {
    e->libraries->libraries[m->library - 1].charged_bytes[c->device] += m->charged_bytes;
  } else {
    ledger_uncharge(e, c->device, ORION_MEMORY_MODULE, m->charged_bytes);
  }
}

static void load(orion_engine* e, const orion_op* op) {
  const orion_op_library_load* o = (const orion_op_library_load*)op;
  struct library_table* t = table_of(e);
  jit j;
  int32_t result = t ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
  if (!result && (o->library >= LIBRARIES || t->libraries[o->library].alive)) result = CUDA_ERROR_INVALID_VALUE;
  if (!result) result = jit_begin(e, &j, op, o->option_count, o->log_off, o->info_log_bytes, o->error_log_bytes);
  if (result) {
    if (o->image != IMAGE_IN_ARENA) image_drop(e, o->image);
    answer_result(e, op, result);
    return;
  }
  library_state made = {.alive = true};
  uint8_t* copy = NULL;
  bool text;
  if (o->image != IMAGE_IN_ARENA) {
    result = image_take(e, o->image, &made.image, &made.image_bytes);
  } else if (!o->image_bytes || o->image_bytes > IMAGE_MAX_BYTES ||
             !part_inside(o->image_off, o->image_bytes, e->arena_bytes)) {
    result = CUDA_ERROR_INVALID_VALUE;
  } else if (!(copy = malloc(o->image_bytes + 1))) {
    result = CUDA_ERROR_OUT_OF_MEMORY;
  } else {
    memcpy(copy, e->arena + o->image_off, o->image_bytes);
    copy[o->image_bytes] = 0;
    if (!image_check(copy, o->image_bytes, &text)) result = CUDA_ERROR_INVALID_IMAGE;
  }
  if (!result) {
    CUlibraryOption options[] = {CU_LIBRARY_BINARY_IS_PRESERVED};
    void* values[] = {(void*)(uintptr_t)1};
    ledger_mark marks[ORION_DEVICES] = {0};
    begin_all(e, marks);
    result = (int32_t)e->driver.library_load(&made.handle, copy ? (void*)copy : made.image, j.options, j.values,
                                             j.count, options, values, made.image ? 1 : 0);
    result = answer_check(e, op->context, result);
    if (!result) {
      result = settle_all(e, marks, copy ? o->image_bytes : made.image_bytes, &made);
      if (result) {
        (void)e->driver.library_unload(made.handle);
        uncharge_all(e, &made);
      }
    }
  }
  if (!result) output_scan(e, copy ? copy : made.image, copy ? o->image_bytes : made.image_bytes);
  free(copy);
  orion_reply_library_load reply = {0};
  jit_deliver(e, &j, o->log_off, &reply.info_log_bytes, &reply.error_log_bytes);
  jit_end(&j);
  if (!result) {
    t->libraries[o->library] = made;
    if (o->library >= t->library_high) t->library_high = o->library + 1;
  } else if (made.image) {
    munmap(made.image, made.image_bytes);
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

static void close_library(orion_engine* e, uint32_t index) {
  struct library_table* t = e->libraries;
  library_state* l = &t->libraries[index];
  variable_forget(e, variable_owner_library(index));
  for (uint32_t i = 0; i < e->module_high; i++) {
    if (e->modules[i].alive && e->modules[i].library == index + 1) module_close(e, i);
  }
  for (uint32_t k = l->first_kernel; k;) {
    const uint32_t next = t->kernels[k - 1].next;
    t->kernels[k - 1] = (kernel_state){0};
    k = next;
  }
  (void)e->driver.library_unload(l->handle);
  uncharge_all(e, l);
  if (l->image) munmap(l->image, l->image_bytes);
  *l = (library_state){0};
}

void library_free_all(orion_engine* e) {
  if (!e->libraries) return;
  for (uint32_t i = 0; i < e->libraries->library_high; i++) {
    if (e->libraries->libraries[i].alive) close_library(e, i);
  }
  munmap(e->libraries, sizeof *e->libraries);
  e->libraries = NULL;
}

static void get_kernel(orion_engine* e, const orion_op* op) {
  const orion_op_library_get_kernel* o = (const orion_op_library_get_kernel*)op;
  library_state* l = library_of(e, op, o->library);
  if (!l) return;
  char name[ORION_OP_MAX_BYTES + 1];
  kernel_state made = {.library = o->library, .next = l->first_kernel, .alive = true};
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (o->kernel < KERNELS && !e->libraries->kernels[o->kernel].alive && read_name(op, name)) {
    result = answer_check(e, op->context, (int32_t)e->driver.library_kernel(&made.handle, l->handle, name));
  }
  if (!result) {
    e->libraries->kernels[o->kernel] = made;
    l->first_kernel = o->kernel + 1;
  }
  answer_result(e, op, result);
}

static void get_module(orion_engine* e, const orion_op* op) {
  const orion_op_library_get_module* o = (const orion_op_library_get_module*)op;
  library_state* l = use_context(e, op) ? library_of(e, op, o->library) : NULL;
  if (!l) return;
  const uint32_t device = e->contexts[op->context].device;
  module_state made = {.library = o->library + 1, .context = op->context, .alive = true};
  orion_reply_library_get_module reply = {0};
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  const ledger_mark mark = ledger_begin(e, device);
  if (o->module < ORION_MODULES && !e->modules[o->module].alive) {
    result = answer_check(e, op->context, (int32_t)e->driver.library_module(&made.handle, l->handle));
  }
  if (!result) {
    // It stays in the context until the library goes, whatever is answered.
    result = ledger_settle_anyway(e, device, ORION_MEMORY_MODULE, mark, LIBRARY_MOST_BYTES, &made.charged_bytes);
    if (result) l->charged_bytes[device] += made.charged_bytes;
  }
  if (!result) {
    e->modules[o->module] = made;
    if (o->module >= e->module_high) e->module_high = o->module + 1;
    unsigned int count = 0;
    if (e->driver.module_function_count(&count, made.handle) == 0) reply.function_count = count;
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

// ------------------------------------------------------------------------------------------------ names
typedef struct name_list {
  uint32_t total, count;
  uint8_t bytes[ORION_REPLY_BYTES - 8];
} name_list;

/// Puts a name behind the others; false when it does not fit. One that can never fit is put as an empty one.
static bool put_name(name_list* list, uint32_t* used, const char* name) {
  size_t length = strlen(name);
  if (length + 2 > sizeof list->bytes) length = 0;
  if (*used + 2 + length > sizeof list->bytes) return false;
  const uint16_t head = (uint16_t)length;
  memcpy(list->bytes + *used, &head, sizeof head);
  memcpy(list->bytes + *used + 2, name, length);
  *used += 2 + (uint32_t)length;
  list->count++;
  return true;
}

#define NAMES_MAX (1u << 20)

/// Both kinds of list: the driver gives handles, each of which has a name.
static void list_names(orion_engine* e, const orion_op* op, CUlibrary library, CUmodule module, uint32_t skip) {
  unsigned int total = 0;
  int32_t result = (int32_t)(library ? e->driver.library_kernel_count(&total, library)
                                     : e->driver.module_function_count(&total, module));
  if (!result && total > NAMES_MAX) result = CUDA_ERROR_NOT_SUPPORTED;
  name_list list = {.total = total};
  uint32_t used = 0;
  void** handles = result ? NULL : calloc(total ? total : 1, sizeof *handles);
  if (!result && !handles) result = CUDA_ERROR_OUT_OF_MEMORY;
  if (!result && total) {
    result = (int32_t)(library ? e->driver.library_enumerate((CUkernel*)handles, total, library)
                               : e->driver.module_enumerate((CUfunction*)handles, total, module));
  }
  for (uint32_t i = skip; !result && i < total; i++) {
    const char* name = NULL;
    result = (int32_t)(library ? e->driver.kernel_name(&name, (CUkernel)handles[i])
                               : e->driver.function_name(&name, (CUfunction)handles[i]));
    if (!result && !put_name(&list, &used, name ? name : "")) break;
  }
  free(handles);
  answer_reply(e, op, answer_check(e, op->context, result), &list, result ? 0 : 8 + used);
}

// ------------------------------------------------------------------------------------------------ kernels
static void kernel_function(orion_engine* e, const orion_op* op) {
  const orion_op_kernel_function* o = (const orion_op_kernel_function*)op;
  const kernel_state* k = use_context(e, op) ? kernel_of(e, op, o->kernel) : NULL;
  if (!k) return;
  const module_state* m = o->module < ORION_MODULES ? &e->modules[o->module] : NULL;
  if (!m || !m->alive || m->context != op->context || m->library != k->library + 1) {
    answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
    return;
  }
  CUfunction handle = NULL;
  const uint32_t device = e->contexts[op->context].device;
  const ledger_mark mark = ledger_begin(e, device);
  int32_t result = answer_check(e, op->context, (int32_t)e->driver.kernel_function(&handle, k->handle));
  if (!result) result = ledger_function(e, o->module, mark);
  if (result) {
    answer_result(e, op, result);
  } else {
    function_open(e, op, o->module, o->function, handle);
  }
}

/// The driver's number of the client's device; false: answered.
static bool device_at(orion_engine* e, const orion_op* op, uint32_t ordinal, CUdevice* device) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    if (e->devices[i].ordinal == ordinal && e->devices[i].reserved) {
      *device = (CUdevice)ordinal;
      return true;
    }
  }
  answer_result(e, op, CUDA_ERROR_INVALID_DEVICE);
  return false;
}

static void kernel_attributes(orion_engine* e, const orion_op* op) {
  const orion_op_kernel_get_attributes* o = (const orion_op_kernel_get_attributes*)op;
  const kernel_state* k = kernel_of(e, op, o->kernel);
  CUdevice device;
  if (!k || !device_at(e, op, o->device, &device)) return;
  struct {
    orion_reply_kernel_get_attributes head;
    int32_t pairs[2 * CU_FUNC_ATTRIBUTE_MAX];
  } reply = {0};
  int32_t first = 0;
  for (int attribute = 0; attribute < CU_FUNC_ATTRIBUTE_MAX; attribute++) {
    int value = 0;
    const int32_t result = (int32_t)e->driver.kernel_attribute(&value, attribute, k->handle, device);
    if (!attribute) first = result;
    if (result) continue;
    reply.pairs[2 * reply.head.attribute_count] = attribute;
    reply.pairs[2 * reply.head.attribute_count++ + 1] = value;
  }
  // Every driver knows attribute 0: its code is the kernel's.
  answer_reply(e, op, answer_check(e, op->context, first), &reply,
               (uint32_t)(sizeof reply.head + reply.head.attribute_count * 8));
}

static void kernel_params(orion_engine* e, const orion_op* op) {
  const kernel_state* k = kernel_of(e, op, ((const orion_op_kernel_get_params*)op)->kernel);
  if (!k || !use_context(e, op)) return;
  struct {
    orion_reply_kernel_get_params head;
    uint32_t pairs[(ORION_REPLY_BYTES - sizeof(orion_reply_kernel_get_params)) / 4];
  } reply = {0};
  const uint32_t room = sizeof reply.pairs / sizeof reply.pairs[0] / 2;
  int32_t end = 0;
  uint32_t count = 0;
  for (; count < room; count++) {
    size_t offset = 0, bytes = 0;
    end = (int32_t)e->driver.kernel_param(k->handle, count, &offset, &bytes);
    if (end) break;
    reply.pairs[2 * count] = (uint32_t)offset;
    reply.pairs[2 * count + 1] = (uint32_t)bytes;
  }
  reply.head.param_count = count;
  const int32_t result = end == CUDA_ERROR_INVALID_VALUE ? 0 : end ? end : CUDA_ERROR_NOT_SUPPORTED;
  answer_reply(e, op, answer_check(e, op->context, result), &reply, (uint32_t)(sizeof reply.head + count * 8));
}

static void kernel_set(orion_engine* e, const orion_op* op) {
  const bool is_config = op->code == ORION_OP_KERNEL_SET_CACHE_CONFIG;
  const orion_op_kernel_set_attribute* a = (const orion_op_kernel_set_attribute*)op;
  const orion_op_kernel_set_cache_config* c = (const orion_op_kernel_set_cache_config*)op;
  const kernel_state* k = kernel_of(e, op, is_config ? c->kernel : a->kernel);
  CUdevice device;
  if (!k || !device_at(e, op, is_config ? c->device : a->device, &device)) return;
  const CUresult result = is_config ? e->driver.kernel_set_cache_config(k->handle, c->config, device)
                                    : e->driver.kernel_set_attribute(a->attribute, a->value, k->handle, device);
  answer_result(e, op, answer_check(e, op->context, (int32_t)result));
}

static void lookup(orion_engine* e, const orion_op* op) {
  const orion_op_library_lookup* o = (const orion_op_library_lookup*)op;
  // A managed variable has one address for all contexts, and its library is asked without any.
  const bool bound = o->kind != 0 || op->context != 0;
  const library_state* l = !bound || use_context(e, op) ? library_of(e, op, o->library) : NULL;
  if (!l) return;
  char name[ORION_OP_MAX_BYTES + 1];
  orion_reply_library_lookup reply = {0};
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (o->kind == 0 && read_name(op, name)) {
    CUdeviceptr address = 0;
    size_t bytes = 0;
    result = (int32_t)e->driver.library_managed(&address, &bytes, l->handle, name);
    reply = (orion_reply_library_lookup){address, bytes};
    if (!result) result = variable_told(e, variable_owner_library(o->library), address, bytes);
  } else if (o->kind == 1 && read_name(op, name)) {
    void* address = NULL;
    result = (int32_t)e->driver.library_unified(&address, l->handle, name);
    reply.address = (uint64_t)(uintptr_t)address;
  }
  answer_reply(e, op, answer_check(e, op->context, result), &reply, sizeof reply);
}

static void occupancy_clusters(orion_engine* e, const orion_op* op) {
  const orion_op_occupancy_clusters* o = (const orion_op_occupancy_clusters*)op;
  const function_state* f = use_context(e, op) ? function_of(e, op, o->function) : NULL;
  if (!f) return;
  CUlaunchAttribute attributes[ORION_LAUNCH_ATTRIBUTES_MAX] = {0};
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  orion_reply_occupancy_clusters reply = {0};
  if (o->attribute_count <= ORION_LAUNCH_ATTRIBUTES_MAX && o->kind <= 1 &&
      op_tail_bytes(op) == o->attribute_count * sizeof(orion_wire_attribute)) {
    result = launch_attributes(e, op_tail(op), o->attribute_count, attributes);
  }
  if (!result) {
    const CUlaunchConfig config = {.gridDimX = o->grid_x,
                                   .gridDimY = o->grid_y,
                                   .gridDimZ = o->grid_z,
                                   .blockDimX = o->block_x,
                                   .blockDimY = o->block_y,
                                   .blockDimZ = o->block_z,
                                   .sharedMemBytes = o->dynamic_shared_bytes,
                                   .attrs = o->attribute_count ? attributes : NULL,
                                   .numAttrs = o->attribute_count};
    result = (int32_t)(o->kind ? e->driver.occupancy_cluster_size(&reply.value, f->handle, &config)
                               : e->driver.occupancy_clusters(&reply.value, f->handle, &config));
  }
  answer_reply(e, op, answer_check(e, op->context, result), &reply, sizeof reply);
}

void library_execute(orion_engine* e, const orion_op* op) {
  switch ((enum orion_op_code)op->code) {
    case ORION_OP_LIBRARY_LOAD:
      load(e, op);
      break;
    case ORION_OP_LIBRARY_UNLOAD: {
      const uint32_t index = ((const orion_op_library_unload*)op)->library;
      if (!library_of(e, op, index)) break;
      close_library(e, index);
      answer_result(e, op, 0);
      break;
    }
    case ORION_OP_LIBRARY_GET_KERNEL:
      get_kernel(e, op);
      break;
    case ORION_OP_LIBRARY_GET_MODULE:
      get_module(e, op);
      break;
    case ORION_OP_LIBRARY_NAMES: {
      const orion_op_library_names* o = (const orion_op_library_names*)op;
      const library_state* l = library_of(e, op, o->library);
      if (l) list_names(e, op, l->handle, NULL, o->skip);
      break;
    }
    case ORION_OP_MODULE_NAMES: {
      const orion_op_module_names* o = (const orion_op_module_names*)op;
      if (!use_context(e, op)) break;
      if (o->module >= ORION_MODULES || !e->modules[o->module].alive || e->modules[o->module].context != op->context) {
        answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
      } else {
        list_names(e, op, NULL, e->modules[o->module].handle, o->skip);
      }
      break;
    }
    case ORION_OP_KERNEL_FUNCTION:
      kernel_function(e, op);
      break;
    case ORION_OP_KERNEL_GET_ATTRIBUTES:
      kernel_attributes(e, op);
      break;
    case ORION_OP_KERNEL_GET_PARAMS:
      kernel_params(e, op);
      break;
    case ORION_OP_KERNEL_SET_ATTRIBUTE:
    case ORION_OP_KERNEL_SET_CACHE_CONFIG:
      kernel_set(e, op);
      break;
    case ORION_OP_LIBRARY_LOOKUP:
      lookup(e, op);
      break;
    default:
      occupancy_clusters(e, op);
      break;
  }
}
