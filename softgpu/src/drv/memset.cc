// cuMemset*.
#include <cstring>

#include "api.h"
#include "graph.h"

using namespace sg;

namespace {

struct FillPlan {
  uint64_t address = 0;
  size_t pitch_bytes = 0;
  size_t width_bytes = 0;
  size_t height = 1;
  uint32_t pattern = 0;
  unsigned element_bytes = 1;

  /// False on overflow.
  bool extent_bytes(size_t* bytes) const {
    const auto total = static_cast<unsigned __int128>(height - 1) * pitch_bytes + width_bytes;
    if (total > UINT64_MAX - address) return false;
    *bytes = static_cast<size_t>(total);
    return true;
  }
};

template <class T>
void fill_row(uint64_t address, size_t bytes, T value) {
  T* first = reinterpret_cast<T*>(address);
  std::fill(first, first + bytes / sizeof(T), value);
}

void perform(Driver& driver, Context& context, const FillPlan& plan) {
  ExecGate::Pass pass(driver.gate);
  size_t bytes = 0;
  if (!plan.extent_bytes(&bytes) || !driver.map.covers(plan.address, bytes, context.device)) {
    context.set_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "a memset names memory that was freed");
    return;
  }
  for (size_t y = 0; y < plan.height; ++y) {
    const uint64_t row = plan.address + y * plan.pitch_bytes;
    switch (plan.element_bytes) {
      case 1:
        std::memset(reinterpret_cast<void*>(row), static_cast<uint8_t>(plan.pattern), plan.width_bytes);
        break;
      case 2:
        fill_row(row, plan.width_bytes, static_cast<uint16_t>(plan.pattern));
        break;
      default:
        fill_row(row, plan.width_bytes, plan.pattern);
        break;
    }
  }
}

CUresult fill(CUstream handle, bool per_thread, bool async, CUdeviceptr address, size_t pitch_bytes, uint32_t pattern,
              unsigned element_bytes, size_t width, size_t height) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    if (address % element_bytes != 0 || (height > 1 && pitch_bytes % element_bytes != 0)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (width == 0 || height == 0) return CUDA_SUCCESS;
    if (width > SIZE_MAX / element_bytes) return CUDA_ERROR_INVALID_VALUE;
    FillPlan plan{address, pitch_bytes, width * element_bytes, height, pattern, element_bytes};
    if (height > 1 && pitch_bytes < plan.width_bytes) return CUDA_ERROR_INVALID_VALUE;
    size_t bytes = 0;
    if (!plan.extent_bytes(&bytes) || !driver.map.covers(address, bytes, context.device)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    StreamOp op;
    op.node_type = CU_GRAPH_NODE_TYPE_MEMSET;
    op.run = [&driver, &context, plan] { perform(driver, context, plan); };
    // The plain form waits only where the host could look at the memory at once.
    auto region = driver.map.find(address);
    const bool host_visible = region && (region->is_host() || region->kind == RegionKind::managed);
    if (!async && host_visible) return context.run_now(stream, std::move(op));
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

}  // namespace

// One family per element type: plain, asynchronous, two-dimensional, each with its per-thread-stream twin.
#define SG_MEMSET_FAMILY(NAME, NAME2D, TYPE, BYTES)                                                                   \
  SG_API cu##NAME##_v2(CUdeviceptr p, TYPE v, size_t n) { return fill(nullptr, false, false, p, 0, v, BYTES, n, 1); } \
  SG_API cu##NAME##_v2_ptds(CUdeviceptr p, TYPE v, size_t n) {                                                        \
    return fill(nullptr, true, false, p, 0, v, BYTES, n, 1);                                                          \
  }                                                                                                                   \
  SG_API cu##NAME##Async(CUdeviceptr p, TYPE v, size_t n, CUstream s) {                                               \
    return fill(s, false, true, p, 0, v, BYTES, n, 1);                                                                \
  }                                                                                                                   \
  SG_API cu##NAME##Async_ptsz(CUdeviceptr p, TYPE v, size_t n, CUstream s) {                                          \
    return fill(s, true, true, p, 0, v, BYTES, n, 1);                                                                 \
  }                                                                                                                   \
  SG_API cu##NAME2D##_v2(CUdeviceptr p, size_t pitch, TYPE v, size_t w, size_t h) {                                   \
    return fill(nullptr, false, false, p, pitch, v, BYTES, w, h);                                                     \
  }                                                                                                                   \
  SG_API cu##NAME2D##_v2_ptds(CUdeviceptr p, size_t pitch, TYPE v, size_t w, size_t h) {                              \
    return fill(nullptr, true, false, p, pitch, v, BYTES, w, h);                                                      \
  }                                                                                                                   \
  SG_API cu##NAME2D##Async(CUdeviceptr p, size_t pitch, TYPE v, size_t w, size_t h, CUstream s) {                     \
    return fill(s, false, true, p, pitch, v, BYTES, w, h);                                                            \
  }                                                                                                                   \
  SG_API cu##NAME2D##Async_ptsz(CUdeviceptr p, size_t pitch, TYPE v, size_t w, size_t h, CUstream s) {                \
    return fill(s, true, true, p, pitch, v, BYTES, w, h);                                                             \
  }

SG_MEMSET_FAMILY(MemsetD8, MemsetD2D8, unsigned char, 1)
SG_MEMSET_FAMILY(MemsetD16, MemsetD2D16, unsigned short, 2)
SG_MEMSET_FAMILY(MemsetD32, MemsetD2D32, unsigned, 4)
