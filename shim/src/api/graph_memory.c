// Memory that graphs allocate. It is there from the moment when its node is made until the last graph and executable
// graph with that node is gone and the program has freed it: an allocating node costs nothing at a launch, and its
// address never changes. Nodes are only places in the order of the graph.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "capture.h"
#include "memory.h"

struct orion_graph_memory {
  orion_graph_memory* next;
  orion_context* context;
  uint64_t address, bytes;
  uint32_t epoch;
  uint32_t references;
  bool is_out;  // allocated by a launch and not freed by one, nor by the program
};

_Atomic bool orion_graph_memory_used;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // the last of all locks but the memory's
static orion_graph_memory* all;
static uint64_t used_bytes[ORION_DEVICES], used_high_bytes[ORION_DEVICES];
static uint64_t held_bytes[ORION_DEVICES], held_high_bytes[ORION_DEVICES];

static void account(uint64_t* now, uint64_t* high, const orion_graph_memory* memory, bool more) {
  const uint32_t device = memory->context->device->ordinal;
  now[device] = more ? now[device] + memory->bytes : now[device] - memory->bytes;
  if (now[device] > high[device]) high[device] = now[device];
}

static void set_out(orion_graph_memory* memory, bool is_out) {
  if (memory->is_out == is_out) return;
  memory->is_out = is_out;
  account(used_bytes, used_high_bytes, memory, is_out);
}

/// Under the mutex. Nobody names it any more and the program has none of it.
static void end_if_unused(orion_graph_memory* memory) {
  if (memory->references != 0 || memory->is_out) return;
  orion_graph_memory** link = &all;
  while (*link != memory) link = &(*link)->next;
  *link = memory->next;
  account(held_bytes, held_high_bytes, memory, false);
  if (orion_same_epoch(memory->context, memory->epoch)) (void)orion_device_free(memory->address);
  free(memory);
}

static orion_graph_memory* find(uint64_t address) {
  orion_graph_memory* memory = all;
  while (memory != NULL && memory->address != address) memory = memory->next;
  return memory;
}

static CUresult make(orion_context* context, uint64_t bytes, orion_node_work* work) {
  orion_graph_memory* memory = calloc(1, sizeof *memory);
  if (memory == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  const CUresult result = orion_device_allocate(context, bytes, &memory->address);
  if (result != CUDA_SUCCESS) {
    free(memory);
    return result;
  }
  memory->context = context;
  memory->epoch = atomic_load(&context->epoch);
  memory->bytes = bytes;
  memory->references = 1;
  pthread_mutex_lock(&mutex);
  memory->next = all;
  all = memory;
  account(held_bytes, held_high_bytes, memory, true);
  atomic_store(&orion_graph_memory_used, true);
  pthread_mutex_unlock(&mutex);
  *work = (orion_node_work){.memory = memory, .address = memory->address, .bytes = bytes};
  return CUDA_SUCCESS;
}

void orion_graph_memory_hold(orion_graph_memory* memory) {
  pthread_mutex_lock(&mutex);
  memory->references++;
  pthread_mutex_unlock(&mutex);
}

void orion_graph_memory_release(orion_graph_memory* memory) {
  pthread_mutex_lock(&mutex);
  memory->references--;
  end_if_unused(memory);
  pthread_mutex_unlock(&mutex);
}

bool orion_graph_memory_free_slow(uint64_t address, CUresult* result) {
  pthread_mutex_lock(&mutex);
  orion_graph_memory* memory = find(address);
  if (memory != NULL) {
    *result = memory->is_out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    set_out(memory, false);
    end_if_unused(memory);
  }
  pthread_mutex_unlock(&mutex);
  return memory != NULL;
}

CUresult orion_graph_memory_launch(const orion_step* steps, uint32_t count, bool frees_itself) {
  CUresult result = CUDA_SUCCESS;
  pthread_mutex_lock(&mutex);
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    const orion_graph_memory* memory = steps[i].work.memory;
    if (memory != NULL && memory->is_out && !frees_itself) result = CUDA_ERROR_INVALID_VALUE;
  }
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    if (steps[i].work.memory != NULL) set_out(steps[i].work.memory, true);
  }
  for (uint32_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
    orion_graph_memory* memory = steps[i].type == CU_GRAPH_NODE_TYPE_MEM_FREE ? find(steps[i].work.address) : NULL;
    if (memory != NULL) set_out(memory, false);
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

// ------------------------------------------------------------------------------------------------ nodes

CUresult orion_work_allocate(CUDA_MEM_ALLOC_NODE_PARAMS* params, orion_context** context, orion_node_work* work) {
  const CUmemPoolProps* properties = &params->poolProps;
  if (params->bytesize == 0 || properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
      properties->handleTypes != CU_MEM_HANDLE_TYPE_NONE || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  orion_device_state* device = orion_device_state_at(properties->location.id);
  if (device == NULL) return CUDA_ERROR_INVALID_DEVICE;
  const CUresult result = orion_current(context);
  if (result != CUDA_SUCCESS) return result;
  if ((*context)->device != device) return CUDA_ERROR_NOT_SUPPORTED;
  const CUresult made = make(*context, params->bytesize, work);
  if (made == CUDA_SUCCESS) params->dptr = work->address;
  return made;
}

static bool is_graph_memory(uint64_t address) {
  pthread_mutex_lock(&mutex);
  const bool found = find(address) != NULL;
  pthread_mutex_unlock(&mutex);
  return found;
}

CUresult orion_work_free(uint64_t address, orion_node_work* work) {
  if (!is_graph_memory(address)) return CUDA_ERROR_INVALID_VALUE;
  *work = (orion_node_work){.address = address};
  return CUDA_SUCCESS;
}

CUresult orion_capture_allocate(orion_stream* stream, uint64_t bytes, uint64_t* address) {
  orion_node_work work;
  CUresult result = make(stream->context, bytes, &work);
  if (result != CUDA_SUCCESS) return result;
  const uint64_t made = work.address;
  result = orion_capture_node(stream, CU_GRAPH_NODE_TYPE_MEM_ALLOC, &work);
  if (result == CUDA_SUCCESS) *address = made;
  return result;
}

CUresult orion_capture_free(orion_stream* stream, uint64_t address) {
  orion_node_work work;
  const CUresult result = orion_work_free(address, &work);
  return result == CUDA_SUCCESS ? orion_capture_node(stream, CU_GRAPH_NODE_TYPE_MEM_FREE, &work) : result;
}

static CUresult get(CUgraphNode handle, CUgraphNodeType type, orion_node_work* work) {
  CUresult result = orion_enter();
  if (result != CUDA_SUCCESS) return result;
  pthread_mutex_lock(&orion_graph_mutex);
  const orion_node* node = orion_node_of((uint64_t)(uintptr_t)handle);
  result = node != NULL && node->type == type ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  if (result == CUDA_SUCCESS) *work = node->work;
  pthread_mutex_unlock(&orion_graph_mutex);
  return result;
}

ORION_API CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS* out) {
  ORION_COUNTED();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_node_work work;
  const CUresult result = get(node, CU_GRAPH_NODE_TYPE_MEM_ALLOC, &work);
  if (result != CUDA_SUCCESS) return result;
  *out = (CUDA_MEM_ALLOC_NODE_PARAMS){.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                    .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE,
                                                                 .id = (int)work.memory->context->device->ordinal}},
                                      .bytesize = work.bytes,
                                      .dptr = work.address};
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr* out) {
  ORION_COUNTED();
  ORION_REQUIRE(out != NULL, CUDA_ERROR_INVALID_VALUE);
  orion_node_work work;
  const CUresult result = get(node, CU_GRAPH_NODE_TYPE_MEM_FREE, &work);
  if (result == CUDA_SUCCESS) *out = work.address;
  return result;
}

// ------------------------------------------------------------------------------------------------ accounts

ORION_API CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void* value) {
  ORION_ENTER();
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  const uint64_t* const accounts[] = {used_bytes, used_high_bytes, held_bytes, held_high_bytes};
  ORION_REQUIRE(value != NULL && (unsigned)attribute < 4, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&mutex);
  memcpy(value, &accounts[attribute][device], sizeof(uint64_t));
  pthread_mutex_unlock(&mutex);
  return CUDA_SUCCESS;
}

/// Only high marks can be set, and only to 0: from then on they count again.
ORION_API CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void* value) {
  ORION_ENTER();
  ORION_REQUIRE(orion_device_state_at(device) != NULL, CUDA_ERROR_INVALID_DEVICE);
  const bool is_used = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH,
             is_held = attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
  uint64_t wish = 1;
  if (value != NULL) memcpy(&wish, value, sizeof wish);
  ORION_REQUIRE(wish == 0 && (is_used || is_held), CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&mutex);
  if (is_used) {
    used_high_bytes[device] = used_bytes[device];
  } else {
    held_high_bytes[device] = held_bytes[device];
  }
  pthread_mutex_unlock(&mutex);
  return CUDA_SUCCESS;
}

/// Nothing is kept for graphs that are gone.
ORION_API CUresult cuDeviceGraphMemTrim(CUdevice device) {
  ORION_ENTER();
  return orion_device_state_at(device) == NULL ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
