// Memory that graphs allocate: there from the making of its node until the last holder of the node is gone. What the
// program still has then is its own, to be freed as any other memory.
#include <algorithm>
#include <cstring>

#include "api.h"
#include "capture.h"

using namespace sg;

SG_API cuMemAlloc_v2(CUdeviceptr*, size_t);
SG_API cuMemFree_v2(CUdeviceptr);

namespace {

std::vector<std::weak_ptr<GraphMemory>> all;  // under Graphs::mutex

/// Allocating a node's memory is no call of the program's.
struct RelaxedScope {
  RelaxedScope() : before(thread_state().capture_mode) { thread_state().capture_mode = CU_STREAM_CAPTURE_MODE_RELAXED; }
  ~RelaxedScope() { thread_state().capture_mode = before; }
  const int before;
};

}  // namespace

namespace sg {

GraphMemory::~GraphMemory() {
  RelaxedScope scope;
  if (!is_out) cuMemFree_v2(address);
}

std::shared_ptr<GraphMemory> find_graph_memory(uint64_t address) {
  std::lock_guard lock(Graphs::get().mutex);
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& memory) { return memory.expired(); }), all.end());
  for (const auto& weak : all) {
    auto memory = weak.lock();
    if (memory && memory->address == address) return memory;
  }
  return nullptr;
}

uint64_t graph_memory_bytes(bool used) {
  std::lock_guard lock(Graphs::get().mutex);
  uint64_t bytes = 0;
  for (const auto& weak : all) {
    auto memory = weak.lock();
    if (memory && (memory->is_out || !used)) bytes += memory->bytes;
  }
  return bytes;
}

CUresult new_graph_memory(size_t bytes, std::shared_ptr<GraphMemory>* out) {
  RelaxedScope scope;
  CUdeviceptr address = 0;
  const CUresult result = cuMemAlloc_v2(&address, bytes);
  if (result != CUDA_SUCCESS) return result;
  *out = std::make_shared<GraphMemory>();
  (*out)->address = address;
  (*out)->bytes = bytes;
  std::lock_guard lock(Graphs::get().mutex);
  all.push_back(*out);
  return CUDA_SUCCESS;
}

bool free_graph_memory(uint64_t address, CUresult* result) {
  auto memory = find_graph_memory(address);
  if (!memory) return false;
  *result = memory->is_out.exchange(false) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  return true;
}

CUresult capture_allocation(const std::shared_ptr<Stream>& stream, size_t bytes, CUdeviceptr* out) {
  std::shared_ptr<GraphMemory> memory;
  const CUresult result = new_graph_memory(bytes, &memory);
  if (result != CUDA_SUCCESS) return result;
  capture_typed_node(stream, CU_GRAPH_NODE_TYPE_MEM_ALLOC)->params.memory = memory;
  *out = memory->address;
  return CUDA_SUCCESS;
}

CUresult capture_free(const std::shared_ptr<Stream>& stream, CUdeviceptr address) {
  auto memory = find_graph_memory(address);
  if (!memory) return CUDA_ERROR_INVALID_VALUE;
  capture_typed_node(stream, CU_GRAPH_NODE_TYPE_MEM_FREE)->params.freed = address;
  return CUDA_SUCCESS;
}

}  // namespace sg

SG_API cuGraphMemAllocNodeGetParams(CUgraphNode handle, CUDA_MEM_ALLOC_NODE_PARAMS* out) {
  return with_driver([&](Driver&) -> CUresult {
    auto node = Graphs::get().nodes.get(handle);
    if (!node || !node->params.memory || !out) return CUDA_ERROR_INVALID_VALUE;
    *out = CUDA_MEM_ALLOC_NODE_PARAMS{};
    out->bytesize = node->params.memory->bytes;
    out->dptr = node->params.memory->address;
    return CUDA_SUCCESS;
  });
}

SG_API cuGraphMemFreeNodeGetParams(CUgraphNode handle, CUdeviceptr* out) {
  return with_driver([&](Driver&) -> CUresult {
    auto node = Graphs::get().nodes.get(handle);
    if (!node || node->type != CU_GRAPH_NODE_TYPE_MEM_FREE || !out) return CUDA_ERROR_INVALID_VALUE;
    *out = node->params.freed;
    return CUDA_SUCCESS;
  });
}
