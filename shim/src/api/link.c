// The linker: inputs are collected here and travel together when the program asks for the result.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "upload.h"

#define OUTPUT_FACTOR 4u
#define OUTPUT_MIN_BYTES (1ull << 20)

typedef struct link_input {
  struct link_input* next;
  uint32_t type;
  char* name;
  uint8_t* data;
  uint64_t bytes;
} link_input;

typedef struct orion_link {
  orion_entry entry;
  orion_context* context;
  uint32_t epoch;
  pthread_mutex_t mutex;
  bool ready;       // the mutex is made
  bool completing;  // a thread awaits the result, without the mutex; the inputs are its own until then
  bool failed;      // linked in vain: the state is good for nothing more
  bool ended;       // destroyed meanwhile: that thread gives the link back
  orion_jit jit;
  link_input *first, *last;
  uint32_t input_count;
  uint64_t input_bytes;
  uint8_t* image;
  uint64_t image_bytes;
} orion_link;

static orion_table links = ORION_TABLE(ORION_TAG_LINK, orion_link, 4096, 0);

static void drop_contents(orion_link* link) {
  while (link->first != NULL) {
    link_input* input = link->first;
    link->first = input->next;
    free(input->name);
    free(input->data);
    free(input);
  }
  link->last = NULL;
  link->input_count = 0;
  link->input_bytes = 0;
  free(link->image);
  link->image = NULL;
}

static orion_link* find_link(CUlinkState handle, uint32_t* generation) {
  return orion_table_find(&links, (uint64_t)(uintptr_t)handle, generation);
}

ORION_API CUresult cuLinkCreate_v2(unsigned int option_count, CUjit_option* options, void** values,
                                   CUlinkState* handle) {
  ORION_ENTER_CONTEXT(context);
  ORION_REQUIRE(handle != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_jit jit;
  const CUresult result = orion_jit_parse(&jit, option_count, options, values);
  if (result != CUDA_SUCCESS) return result;
  orion_link* link = orion_table_take(&links);
  ORION_REQUIRE(link != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  if (!link->ready) pthread_mutex_init(&link->mutex, NULL);
  link->ready = true;
  link->context = context;
  link->epoch = atomic_load(&context->epoch);
  link->jit = jit;
  link->completing = link->failed = link->ended = false;
  *handle = (CUlinkState)(uintptr_t)orion_table_publish(&links, link);
  return CUDA_SUCCESS;
}

/// Takes `data` over in every case.
static CUresult add_input(orion_link* link, CUjitInputType type, uint8_t* data, size_t bytes, const char* name) {
  link_input* input = calloc(1, sizeof *input);
  char* label = strdup(name == NULL ? "" : name);
  CUresult result = input == NULL || label == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
  pthread_mutex_lock(&link->mutex);
  if (result == CUDA_SUCCESS && link->completing) result = CUDA_ERROR_INVALID_VALUE;
  if (result == CUDA_SUCCESS) {
    *input = (link_input){.type = (uint32_t)type, .name = label, .data = data, .bytes = bytes};
    if (link->last != NULL) {
      link->last->next = input;
    } else {
      link->first = input;
    }
    link->last = input;
    link->input_count++;
    link->input_bytes += 16 + ((strlen(label) + bytes + 7) & ~7ull);
  }
  pthread_mutex_unlock(&link->mutex);
  if (result == CUDA_SUCCESS) return result;
  free(input);
  free(label);
  free(data);
  return result;
}

ORION_API CUresult cuLinkAddData_v2(CUlinkState handle, CUjitInputType type, void* data, size_t bytes, const char* name,
                                    unsigned int option_count, CUjit_option* options, void** values) {
  ORION_ENTER();
  (void)options, (void)values, (void)option_count;  // the linker's own options hold for all inputs
  orion_link* link = find_link(handle, NULL);
  ORION_REQUIRE(link != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(data != NULL && bytes != 0 && (unsigned)type < CU_JIT_NUM_INPUT_TYPES, CUDA_ERROR_INVALID_VALUE);
  uint8_t* copy = malloc(bytes);
  ORION_REQUIRE(copy != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  memcpy(copy, data, bytes);
  return add_input(link, type, copy, bytes, name);
}

ORION_API CUresult cuLinkAddFile_v2(CUlinkState handle, CUjitInputType type, const char* path,
                                    unsigned int option_count, CUjit_option* options, void** values) {
  ORION_ENTER();
  (void)options, (void)values, (void)option_count;
  orion_link* link = find_link(handle, NULL);
  ORION_REQUIRE(link != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(path != NULL && (unsigned)type < CU_JIT_NUM_INPUT_TYPES, CUDA_ERROR_INVALID_VALUE);
  uint8_t* data;
  uint64_t bytes;
  const CUresult result = orion_read_file(path, &data, &bytes);
  if (result != CUDA_SUCCESS) return result;
  return add_input(link, type, data, bytes, path);
}

/// Lays the inputs out as the operation says: type, name length, size, name, data, padded to 8.
static void write_inputs(const orion_link* link, uint8_t* to) {
  for (const link_input* input = link->first; input != NULL; input = input->next) {
    const uint32_t head[2] = {input->type, (uint32_t)strlen(input->name)};
    memcpy(to, head, sizeof head);
    memcpy(to + 8, &input->bytes, sizeof input->bytes);
    memcpy(to + 16, input->name, head[1]);
    memcpy(to + 16 + head[1], input->data, input->bytes);
    to += 16 + ((head[1] + input->bytes + 7) & ~7ull);
  }
}

/// By the one thread that has set `completing`, without the mutex.
static CUresult complete(orion_link* link) {
  orion_session* session = link->context->session;
  const uint64_t out_at = (link->input_bytes + 63) & ~63ull;
  const uint64_t out_bytes = OUTPUT_MIN_BYTES + OUTPUT_FACTOR * link->input_bytes;
  const uint64_t log_at = out_at + out_bytes;
  orion_upload upload;
  CUresult result = orion_upload_take(&upload, session, log_at + link->jit.info_log_bytes + link->jit.error_log_bytes);
  if (result != CUDA_SUCCESS) return result;
  uint8_t* bytes = orion_upload_address(&upload);
  write_inputs(link, bytes);
  orion_op_link op = {.op = {.code = ORION_OP_LINK, .context = (uint16_t)link->context->entry.index},
                      .input_count = link->input_count,
                      .option_count = link->jit.pair_count,
                      .inputs_off = upload.offset,
                      .inputs_bytes = link->input_bytes,
                      .out_off = upload.offset + out_at,
                      .out_bytes = out_bytes,
                      .log_off = upload.offset + log_at,
                      .info_log_bytes = link->jit.info_log_bytes,
                      .error_log_bytes = link->jit.error_log_bytes};
  op.op.bulk_seq = orion_push_host(session, upload.offset, link->input_bytes);
  orion_reply_link reply = {0};
  result = orion_call(session, &op.op, sizeof op, link->jit.pairs,
                      link->jit.pair_count * (uint32_t)sizeof link->jit.pairs[0], &reply, sizeof reply, NULL);
  orion_jit_finish(&link->jit, bytes + log_at, reply.info_log_bytes, reply.error_log_bytes);
  if (result == CUDA_SUCCESS && (reply.image_bytes == 0 || reply.image_bytes > out_bytes)) result = CUDA_ERROR_UNKNOWN;
  if (result == CUDA_SUCCESS) {
    link->image = malloc(reply.image_bytes);
    link->image_bytes = reply.image_bytes;
    if (link->image == NULL) {
      result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
      memcpy(link->image, bytes + out_at, reply.image_bytes);
    }
  }
  orion_upload_give(&upload);
  return result;
}

ORION_API CUresult cuLinkComplete(CUlinkState handle, void** image, size_t* bytes) {
  ORION_ENTER();
  ORION_REQUIRE(image != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_link* link = find_link(handle, NULL);
  ORION_REQUIRE(link != NULL, CUDA_ERROR_INVALID_HANDLE);
  ORION_REQUIRE(orion_same_epoch(link->context, link->epoch), CUDA_ERROR_CONTEXT_IS_DESTROYED);
  pthread_mutex_lock(&link->mutex);
  CUresult result = link->first == NULL || link->completing ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  if (link->failed) result = CUDA_ERROR_INVALID_SOURCE;
  const bool mine = result == CUDA_SUCCESS && link->image == NULL;
  link->completing |= mine;
  pthread_mutex_unlock(&link->mutex);
  if (mine) result = complete(link);
  pthread_mutex_lock(&link->mutex);
  if (mine) link->completing = false;
  link->failed |= mine && result != CUDA_SUCCESS;
  const bool ended = mine && link->ended;
  if (ended) {
    result = CUDA_ERROR_INVALID_HANDLE;
    drop_contents(link);
  } else if (result == CUDA_SUCCESS) {
    *image = link->image;
    if (bytes != NULL) *bytes = link->image_bytes;
  }
  pthread_mutex_unlock(&link->mutex);
  if (ended) orion_table_give(&links, link);
  return result;
}

ORION_API CUresult cuLinkDestroy(CUlinkState handle) {
  ORION_ENTER();
  uint32_t generation;
  orion_link* link = find_link(handle, &generation);
  if (link == NULL || !orion_table_retire(&links, link, generation)) return CUDA_ERROR_INVALID_HANDLE;
  pthread_mutex_lock(&link->mutex);
  const bool completing = link->completing;
  link->ended = completing;
  if (!completing) drop_contents(link);
  pthread_mutex_unlock(&link->mutex);
  if (!completing) orion_table_give(&links, link);
  return CUDA_SUCCESS;
}

// The names before _v2 have the same arguments.

ORION_API CUresult cuLinkCreate(unsigned int option_count, CUjit_option* options, void** values, CUlinkState* handle) {
  ORION_COUNTED();

  return cuLinkCreate_v2(option_count, options, values, handle);
}

ORION_API CUresult cuLinkAddData(CUlinkState handle, CUjitInputType type, void* data, size_t bytes, const char* name,
                                 unsigned int option_count, CUjit_option* options, void** values) {
  ORION_COUNTED();

  return cuLinkAddData_v2(handle, type, data, bytes, name, option_count, options, values);
}

ORION_API CUresult cuLinkAddFile(CUlinkState handle, CUjitInputType type, const char* path, unsigned int option_count,
                                 CUjit_option* options, void** values) {
  ORION_COUNTED();

  return cuLinkAddFile_v2(handle, type, path, option_count, options, values);
}
