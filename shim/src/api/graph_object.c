// User objects: a reference count of the program's, with a destructor that runs when graphs and program have let go.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "graph.h"

typedef struct user_object {
  orion_entry entry;
  uint64_t handle;
  _Atomic uint32_t references;
  CUhostFn destroy;
  void* data;
} user_object;

static orion_table objects = ORION_TABLE(ORION_TAG_USER_OBJECT, user_object, 1048576u, 64);

static user_object* object_of(uint64_t handle) { return orion_table_find(&objects, handle, NULL); }

/// Lets go of `count` references; the last one runs the destructor, which may make no CUDA call.
static CUresult release(uint64_t handle, uint32_t count) {
  user_object* object = object_of(handle);
  if (object == NULL || count == 0) return CUDA_ERROR_INVALID_VALUE;
  uint32_t have = atomic_load(&object->references);
  do {
    if (count > have) return CUDA_ERROR_INVALID_VALUE;
  } while (!atomic_compare_exchange_weak(&object->references, &have, have - count));
  if (have != count) return CUDA_SUCCESS;
  const CUhostFn destroy = object->destroy;
  void* data = object->data;
  const uint32_t generation = atomic_load(&object->entry.generation);
  if (orion_table_retire(&objects, object, generation)) orion_table_give(&objects, object);
  const bool before = orion_in_host_function;
  orion_in_host_function = true;
  destroy(data);
  orion_in_host_function = before;
  return CUDA_SUCCESS;
}

static CUresult retain(uint64_t handle, uint32_t count) {
  user_object* object = object_of(handle);
  if (object == NULL || count == 0) return CUDA_ERROR_INVALID_VALUE;
  atomic_fetch_add(&object->references, count);
  return CUDA_SUCCESS;
}

ORION_API CUresult cuUserObjectCreate(CUuserObject* out, void* data, CUhostFn destroy, unsigned int references,
                                      unsigned int flags) {
  ORION_ENTER();
  ORION_REQUIRE(out != NULL && destroy != NULL && references != 0 && references <= INT32_MAX, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(flags == CU_USER_OBJECT_NO_DESTRUCTOR_SYNC, CUDA_ERROR_INVALID_VALUE);
  user_object* object = orion_table_take(&objects);
  ORION_REQUIRE(object != NULL, CUDA_ERROR_OUT_OF_MEMORY);
  object->destroy = destroy;
  object->data = data;
  atomic_store(&object->references, references);
  object->handle = orion_table_publish(&objects, object);
  *out = (CUuserObject)(uintptr_t)object->handle;
  return CUDA_SUCCESS;
}

ORION_API CUresult cuUserObjectRetain(CUuserObject object, unsigned int count) {
  ORION_ENTER();
  return retain((uint64_t)(uintptr_t)object, count);
}

ORION_API CUresult cuUserObjectRelease(CUuserObject object, unsigned int count) {
  ORION_ENTER();
  return release((uint64_t)(uintptr_t)object, count);
}

static CUresult hold(orion_held_object** list, uint32_t* used, uint64_t handle, uint32_t count) {
  for (uint32_t i = 0; i < *used; i++) {
    if ((*list)[i].object != handle) continue;
    (*list)[i].count += count;
    return CUDA_SUCCESS;
  }
  orion_held_object* larger = realloc(*list, (*used + 1) * sizeof *larger);
  if (larger == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *list = larger;
  larger[(*used)++] = (orion_held_object){handle, count};
  return CUDA_SUCCESS;
}

ORION_API CUresult cuGraphRetainUserObject(CUgraph handle, CUuserObject object, unsigned int count,
                                           unsigned int flags) {
  ORION_ENTER();
  ORION_REQUIRE((flags & ~(unsigned)CU_GRAPH_USER_OBJECT_MOVE) == 0, CUDA_ERROR_INVALID_VALUE);
  pthread_mutex_lock(&orion_graph_mutex);
  orion_graph* graph = orion_graph_of(handle);
  const uint64_t named = (uint64_t)(uintptr_t)object;
  CUresult result = graph == NULL || object_of(named) == NULL || count == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  // Moved: the references are those that the caller had.
  if (result == CUDA_SUCCESS && (flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) result = retain(named, count);
  if (result == CUDA_SUCCESS) result = hold(&graph->objects, &graph->object_count, named, count);
  pthread_mutex_unlock(&orion_graph_mutex);
  return result;
}

ORION_API CUresult cuGraphReleaseUserObject(CUgraph handle, CUuserObject object, unsigned int count) {
  ORION_ENTER();
  const uint64_t named = (uint64_t)(uintptr_t)object;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  pthread_mutex_lock(&orion_graph_mutex);
  orion_graph* graph = orion_graph_of(handle);
  for (uint32_t i = 0; graph != NULL && i < graph->object_count; i++) {
    if (graph->objects[i].object != named || graph->objects[i].count < count) continue;
    graph->objects[i].count -= count;
    result = CUDA_SUCCESS;
  }
  pthread_mutex_unlock(&orion_graph_mutex);
  return result == CUDA_SUCCESS && count != 0 ? release(named, count) : result;
}

CUresult orion_held_copy(const orion_graph* graph, orion_held_object** list, uint32_t* used) {
  CUresult result = CUDA_SUCCESS;
  for (uint32_t i = 0; i < graph->object_count && result == CUDA_SUCCESS; i++) {
    const orion_held_object* held = &graph->objects[i];
    if (held->count == 0 || retain(held->object, held->count) != CUDA_SUCCESS) continue;
    result = hold(list, used, held->object, held->count);
  }
  return result;
}

void orion_held_release(orion_held_object* list, uint32_t used) {
  for (uint32_t i = 0; i < used; i++) {
    if (list[i].count != 0) (void)release(list[i].object, list[i].count);
  }
  free(list);
}
