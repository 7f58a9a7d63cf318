// Modules: images are copied out of the arena before anybody looks at them, and checked against their own headers
// before the driver does.
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "jit.h"
#include "ledger.h"

#define FATBIN_MAGIC 0xba55ed50u
#define ELF_MAGIC 0x464c457fu
#define SECTION_NOBITS 8u
#define LINK_INPUTS_MAX 1024u

// ------------------------------------------------------------------------------------------------ images
static uint64_t read_le(const uint8_t* at, uint32_t bytes) {
  uint64_t value = 0;
  memcpy(&value, at, bytes);
  return value;
}

static bool elf_inside(const uint8_t* image, uint64_t bytes) {
  if (bytes < 64 || image[4] != 2) return false;  // 64-bit
  const uint64_t segments = read_le(image + 32, 8), sections = read_le(image + 40, 8);
  const uint64_t segment_bytes = read_le(image + 54, 2), segment_count = read_le(image + 56, 2);
  const uint64_t section_bytes = read_le(image + 58, 2);
  uint64_t section_count = read_le(image + 60, 2);
  if (segment_count) {
    if (segment_bytes < 56 || !part_inside(segments, segment_bytes * segment_count, bytes)) return false;
    for (uint64_t i = 0; i < segment_count; i++) {
      const uint8_t* p = image + segments + i * segment_bytes;
      if (!part_inside(read_le(p + 8, 8), read_le(p + 32, 8), bytes)) return false;
    }
  }
  if (!sections) return true;
  if (section_bytes < 64 || !part_inside(sections, section_bytes, bytes)) return false;
  if (!section_count) section_count = read_le(image + sections + 32, 8);  // more than 65,279: kept in section 0
  if (section_count > bytes / section_bytes || !part_inside(sections, section_bytes * section_count, bytes)) {
    return false;
  }
  for (uint64_t i = 0; i < section_count; i++) {
    const uint8_t* p = image + sections + i * section_bytes;
    if (read_le(p + 4, 4) == SECTION_NOBITS || (i == 0 && read_le(p + 4, 4) == 0)) continue;
    if (!part_inside(read_le(p + 24, 8), read_le(p + 32, 8), bytes)) return false;
  }
  return true;
}

static bool fatbin_inside(const uint8_t* image, uint64_t bytes) {
  if (bytes < 16) return false;
  const uint64_t header = read_le(image + 6, 2), entries = read_le(image + 8, 8);
  if (header < 16 || header > bytes || entries > bytes - header) return false;
  const uint64_t end = header + entries;
  for (uint64_t at = header; at < end;) {
    if (end - at < 64) return false;
    const uint64_t entry_header = read_le(image + at + 4, 4), payload = read_le(image + at + 8, 8);
    if (entry_header < 64 || entry_header > end - at || payload > end - at - entry_header) return false;
    at += entry_header + payload;
  }
  return true;
}

bool image_check(const uint8_t* image, uint64_t bytes, bool* text) {
  *text = false;
  if (bytes < 4) return false;
  const uint32_t magic = (uint32_t)read_le(image, 4);
  if (magic == ELF_MAGIC) return elf_inside(image, bytes);
  if (magic == FATBIN_MAGIC) return fatbin_inside(image, bytes);
  // Everything else is given to the driver as text only if it is text: a wrapper, for one, holds a pointer.
  *text = true;
  const uint8_t* terminator = memchr(image, 0, bytes);
  const uint64_t length = terminator ? (uint64_t)(terminator - image) : bytes;
  for (uint64_t i = 0; i < length && i < 16; i++) {
    if (image[i] >= 0x7f || (image[i] < 0x20 && !(image[i] >= 9 && image[i] <= 13))) return false;
  }
  return length > 0;
}

// ------------------------------------------------------------------------------------------------ modules
void module_open(orion_engine* e, const orion_op* op, uint32_t index, const void* image, uint64_t image_bytes, jit* j,
                 uint64_t log_off) {
  bool text = false;
  CUmodule handle = NULL;
  int32_t result = image_check(image, image_bytes, &text) ? 0 : CUDA_ERROR_INVALID_IMAGE;
  const uint32_t device = e->contexts[op->context].device;
  const ledger_mark mark = ledger_begin(e, device);
  uint64_t charged_bytes = 0;
  if (!result) {
    result =
        answer_check(e, op->context, (int32_t)e->driver.module_load(&handle, image, j->count, j->options, j->values));
  }
  if (!result) {
    result = ledger_settle(e, device, ORION_MEMORY_MODULE, mark, ledger_image_most(image_bytes), &charged_bytes);
    if (result) (void)e->driver.module_unload(handle);
  }
  orion_reply_module_load reply = {0};
  jit_deliver(e, j, log_off, &reply.info_log_bytes, &reply.error_log_bytes);
  if (!result) {
    output_scan(e, image, image_bytes);
    e->modules[index] =
        (module_state){.handle = handle, .context = op->context, .alive = true, .charged_bytes = charged_bytes};
    if (index >= e->module_high) e->module_high = index + 1;
    unsigned int count = 0;
    if (e->driver.module_function_count(&count, handle) == 0) reply.function_count = count;
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

void module_load(orion_engine* e, const orion_op* op) {
  const orion_op_module_load* o = (const orion_op_module_load*)op;
  if (!use_context(e, op)) return;
  if (o->module >= ORION_MODULES || e->modules[o->module].alive || !o->image_bytes ||
      o->image_bytes > IMAGE_MAX_BYTES || !part_inside(o->image_off, o->image_bytes, e->arena_bytes)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  jit j;
  const int32_t result = jit_begin(e, &j, op, o->option_count, o->log_off, o->info_log_bytes, o->error_log_bytes);
  uint8_t* image = result ? NULL : malloc(o->image_bytes + 1);
  if (!image) {
    answer_result(e, op, result ? result : CUDA_ERROR_OUT_OF_MEMORY);
  } else {
    memcpy(image, e->arena + o->image_off, o->image_bytes);
    image[o->image_bytes] = 0;
    module_open(e, op, o->module, image, o->image_bytes, &j, o->log_off);
  }
  free(image);
  if (!result) jit_end(&j);
}

void module_close(orion_engine* e, uint32_t index) {
  module_state* m = &e->modules[index];
  for (uint32_t f = m->first_function; f;) {
    const uint32_t next = e->functions[f - 1].next;
    e->functions[f - 1] = (function_state){0};
    f = next;
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < e->global_count; i++) {
    if (e->globals[i].module != index) e->globals[kept++] = e->globals[i];
  }
  e->global_count = kept;
  if (!m->library) variable_forget(e, variable_owner_module(index));
  // A library's module goes with its library.
  if (m->library) {
    library_module_end(e, m);
  } else {
    (void)answer_check(e, m->context, (int32_t)e->driver.module_unload(m->handle));
    ledger_uncharge(e, e->contexts[m->context].device, ORION_MEMORY_MODULE, m->charged_bytes);
  }
  *m = (module_state){0};
}

static module_state* module_of(orion_engine* e, const orion_op* op, uint32_t index) {
  if (index < ORION_MODULES && e->modules[index].alive && e->modules[index].context == op->context) {
    return &e->modules[index];
  }
  answer_result(e, op, CUDA_ERROR_INVALID_HANDLE);
  return NULL;
}

void module_unload(orion_engine* e, const orion_op* op) {
  const orion_op_module_unload* o = (const orion_op_module_unload*)op;
  if (!use_context(e, op) || !module_of(e, op, o->module)) return;
  module_close(e, o->module);
  answer_result(e, op, 0);
}

static bool remember_global(orion_engine* e, uint32_t module, uint64_t address, uint64_t bytes) {
  for (uint32_t i = 0; i < e->global_count; i++) {
    if (e->globals[i].address == address && e->globals[i].module == module) return true;
  }
  if (e->global_count == e->global_capacity) {
    const uint32_t capacity = e->global_capacity ? e->global_capacity * 2 : 64;
    global_state* grown = realloc(e->globals, capacity * sizeof *grown);
    if (!grown) return false;
    e->globals = grown;
    e->global_capacity = capacity;
  }
  e->globals[e->global_count++] = (global_state){address, bytes, module};
  return true;
}

void module_get_global(orion_engine* e, const orion_op* op) {
  const orion_op_module_get_global* o = (const orion_op_module_get_global*)op;
  const module_state* m = use_context(e, op) ? module_of(e, op, o->module) : NULL;
  if (!m) return;
  const uint32_t name_bytes = op_tail_bytes(op);
  char name[ORION_OP_MAX_BYTES + 1];
  memcpy(name, op_tail(op), name_bytes);
  name[name_bytes] = 0;
  CUdeviceptr address = 0;
  size_t bytes = 0;
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (name_bytes && strlen(name) == name_bytes) {
    result = answer_check(e, op->context, (int32_t)e->driver.module_global(&address, &bytes, m->handle, name));
  }
  if (!result && !remember_global(e, o->module, address, bytes)) result = CUDA_ERROR_OUT_OF_MEMORY;
  // The driver answers "not managed" by an error too, and then nothing is.
  orion_reply_module_get_global reply = {.device_address = address, .size_bytes = bytes};
  unsigned int managed = 0;
  if (!result && e->driver.pointer_attribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address) == 0 && managed) {
    const uint32_t owner = m->library ? variable_owner_library(m->library - 1) : variable_owner_module(o->module);
    result = variable_told(e, owner, address, bytes);
    reply.managed = 1;
  }
  answer_reply(e, op, result, &reply, sizeof reply);
}

// ------------------------------------------------------------------------------------------------ linking
typedef struct link_input {
  uint32_t type, name_bytes;
  uint64_t bytes;
} link_input;

// Adds all inputs of a private copy to the linker. 0 or a CUresult.
static int32_t add_inputs(orion_engine* e, CUlinkState state, uint8_t* inputs, uint64_t total, uint32_t count) {
  uint64_t at = 0;
  for (uint32_t i = 0; i < count; i++) {
    link_input head;
    if (total - at < sizeof head) return CUDA_ERROR_INVALID_VALUE;
    memcpy(&head, inputs + at, sizeof head);
    at += sizeof head;
    if (head.type > CU_JIT_INPUT_LIBRARY || head.name_bytes > 4096 || head.name_bytes > total - at ||
        head.bytes > total - at - head.name_bytes || !head.bytes) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    char name[4097];
    memcpy(name, inputs + at, head.name_bytes);
    name[head.name_bytes] = 0;
    at += head.name_bytes;
    // Its own terminated copy: the byte behind an input is the next one's.
    uint8_t* data = malloc(head.bytes + 1);
    if (!data) return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(data, inputs + at, head.bytes);
    data[head.bytes] = 0;
    bool text = false;
    int32_t result = CUDA_ERROR_INVALID_IMAGE;
    const bool archive = head.type == CU_JIT_INPUT_LIBRARY && head.bytes >= 8 && !memcmp(data, "!<arch>\n", 8);
    if (archive || image_check(data, head.bytes, &text)) {
      // For PTX the size includes the terminator.
      const uint64_t bytes = text && data[head.bytes - 1] ? head.bytes + 1 : head.bytes;
      result = (int32_t)e->driver.link_add(state, head.type, data, bytes, name, 0, NULL, NULL);
    }
    free(data);
    if (result) return result;
    at += head.bytes;
    const uint64_t padded = (at + 7) & ~7ull;
    at = padded < total ? padded : total;
  }
  return 0;
}

void module_link(orion_engine* e, const orion_op* op) {
  const orion_op_link* o = (const orion_op_link*)op;
  if (!use_context(e, op)) return;
  if (!o->input_count || o->input_count > LINK_INPUTS_MAX || o->inputs_bytes > IMAGE_MAX_BYTES ||
      !part_inside(o->inputs_off, o->inputs_bytes, e->arena_bytes) ||
      !part_inside(o->out_off, o->out_bytes, e->arena_bytes)) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return;
  }
  jit j;
  int32_t result = jit_begin(e, &j, op, o->option_count, o->log_off, o->info_log_bytes, o->error_log_bytes);
  if (result) {
    answer_result(e, op, result);
    return;
  }
  orion_reply_link reply = {0};
  uint8_t* inputs = malloc(o->inputs_bytes + 1);
  CUlinkState state = NULL;
  if (!inputs) {
    result = CUDA_ERROR_OUT_OF_MEMORY;
  } else {
    memcpy(inputs, e->arena + o->inputs_off, o->inputs_bytes);
    result = answer_check(e, op->context, (int32_t)e->driver.link_create(j.count, j.options, j.values, &state));
  }
  if (!result) {
    void* image = NULL;
    size_t bytes = 0;
    result = add_inputs(e, state, inputs, o->inputs_bytes, o->input_count);
    if (!result) result = (int32_t)e->driver.link_complete(state, &image, &bytes);
    if (!result && bytes > o->out_bytes) result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!result) {
      memcpy(e->arena + o->out_off, image, bytes);
      if (e->net) net_bytes_out(e, o->out_off, bytes);
      reply.image_bytes = bytes;
    }
    (void)e->driver.link_destroy(state);
  }
  free(inputs);
  jit_deliver(e, &j, o->log_off, &reply.info_log_bytes, &reply.error_log_bytes);
  jit_end(&j);
  answer_reply(e, op, answer_check(e, op->context, result), &reply, sizeof reply);
}
