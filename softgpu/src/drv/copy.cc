// cuMemcpy*: every form becomes one CopyPlan, checked at the call and again when it runs.
#include <cstring>

#include "api.h"
#include "graph.h"

using namespace sg;

namespace {

constexpr size_t kSnapshotBytes = 1 << 20;  // larger pageable sources are read in place while the call waits

enum class Side : uint8_t { host, device, any };

struct Endpoint {
  uint64_t address = 0;
  size_t pitch_bytes = 0;
  size_t slice_bytes = 0;
  Side side = Side::any;
  int device = 0;  // whose access counts
  bool pageable = false;
  bool device_memory = false;
};

struct CopyPlan {
  Endpoint dst;
  Endpoint src;
  size_t width_bytes = 0;
  size_t height = 1;
  size_t depth = 1;
};

/// From the first to one past the last byte that an endpoint touches; false on overflow.
bool extent_bytes(const CopyPlan& plan, const Endpoint& end, size_t* bytes) {
  unsigned __int128 total = static_cast<unsigned __int128>(plan.depth - 1) * end.slice_bytes;
  total += static_cast<unsigned __int128>(plan.height - 1) * end.pitch_bytes;
  total += plan.width_bytes;
  if (total > UINT64_MAX - end.address) return false;
  *bytes = static_cast<size_t>(total);
  return true;
}

CUresult check_endpoint(Driver& driver, const CopyPlan& plan, Endpoint* end) {
  size_t bytes = 0;
  if (end->address == 0 || !extent_bytes(plan, *end, &bytes)) return CUDA_ERROR_INVALID_VALUE;
  auto region = driver.map.find(end->address);
  if (region) {
    if (!driver.map.covers(end->address, bytes, end->device)) return CUDA_ERROR_INVALID_VALUE;
    end->device_memory = !region->is_host() && region->kind != RegionKind::managed;
    return CUDA_SUCCESS;
  }
  if (end->side == Side::device) return CUDA_ERROR_INVALID_VALUE;
  end->pageable = true;
  return CUDA_SUCCESS;
}

void copy_bytes(const CopyPlan& plan) {
  for (size_t z = 0; z < plan.depth; ++z) {
    uint64_t dst = plan.dst.address + z * plan.dst.slice_bytes;
    uint64_t src = plan.src.address + z * plan.src.slice_bytes;
    if (plan.width_bytes == plan.dst.pitch_bytes && plan.width_bytes == plan.src.pitch_bytes) {
      std::memmove(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), plan.width_bytes * plan.height);
      continue;
    }
    for (size_t y = 0; y < plan.height; ++y, dst += plan.dst.pitch_bytes, src += plan.src.pitch_bytes) {
      std::memmove(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), plan.width_bytes);
    }
  }
}

/// In stream order: memory may have been freed since the call.
void perform(Driver& driver, Context& context, const CopyPlan& plan) {
  if (Faults::get().armed()) {
    const CUresult injected = Faults::get().at_copy(plan.width_bytes * plan.height * plan.depth);
    if (injected != CUDA_SUCCESS) return context.set_fault(injected, "a copy: SOFTGPU_FAULT");
  }
  ExecGate::Pass pass(driver.gate);
  for (const Endpoint* end : {&plan.dst, &plan.src}) {
    size_t bytes = 0;
    if (end->pageable) continue;
    if (!extent_bytes(plan, *end, &bytes) || !driver.map.covers(end->address, bytes, end->device)) {
      context.set_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "a copy names memory that was freed");
      return;
    }
  }
  copy_bytes(plan);
}

/// Takes the source bytes now; the plan then reads from the returned buffer.
std::shared_ptr<std::vector<uint8_t>> snapshot(CopyPlan* plan) {
  auto buffer = std::make_shared<std::vector<uint8_t>>(plan->width_bytes * plan->height * plan->depth);
  CopyPlan take = *plan;
  take.dst.address = reinterpret_cast<uint64_t>(buffer->data());
  take.dst.pitch_bytes = plan->width_bytes;
  take.dst.slice_bytes = plan->width_bytes * plan->height;
  copy_bytes(take);
  plan->src.address = take.dst.address;
  plan->src.pitch_bytes = take.dst.pitch_bytes;
  plan->src.slice_bytes = take.dst.slice_bytes;
  return buffer;
}

CUresult run_copy(CUstream handle, bool per_thread, bool async, CopyPlan plan) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    if (plan.width_bytes == 0 || plan.height == 0 || plan.depth == 0) return CUDA_SUCCESS;
    for (Endpoint* end : {&plan.dst, &plan.src}) {
      const CUresult checked = check_endpoint(driver, plan, end);
      if (checked != CUDA_SUCCESS) return checked;
    }
    StreamOp op;
    const bool on_device = plan.dst.device_memory && plan.src.device_memory;
    const size_t total_bytes = plan.width_bytes * plan.height * plan.depth;
    const bool waits = plan.dst.pageable || (plan.src.pageable && total_bytes > kSnapshotBytes);
    op.node_type = CU_GRAPH_NODE_TYPE_MEMCPY;
    if (is_recorded(stream)) {  // a graph's copy reads and writes ordinary memory at each launch
      op.run = [&driver, &context, plan] { perform(driver, context, plan); };
      context.submit(stream, std::move(op));
      return CUDA_SUCCESS;
    }
    if ((async || on_device) && !waits) {
      std::shared_ptr<std::vector<uint8_t>> kept;
      if (plan.src.pageable) kept = snapshot(&plan);
      op.run = [&driver, &context, plan, kept] { perform(driver, context, plan); };
      context.submit(stream, std::move(op));
      return CUDA_SUCCESS;
    }
    op.run = [&driver, &context, plan] { perform(driver, context, plan); };
    return context.run_now(stream, std::move(op));
  });
}

CUresult linear(CUstream stream, bool per_thread, bool async, Side dst_side, uint64_t dst, Side src_side, uint64_t src,
                size_t bytes) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    CopyPlan plan;
    plan.width_bytes = bytes;
    plan.dst = Endpoint{dst, bytes, bytes, dst_side, context.device, false, false};
    plan.src = Endpoint{src, bytes, bytes, src_side, context.device, false, false};
    return run_copy(stream, per_thread, async, plan);
  });
}

CUresult peer(CUstream stream, bool per_thread, bool async, CUdeviceptr dst, CUcontext dst_context, CUdeviceptr src,
              CUcontext src_context, size_t bytes) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto to = driver.contexts.get(dst_context);
    auto from = driver.contexts.get(src_context);
    if (!to || !from) return CUDA_ERROR_INVALID_CONTEXT;
    CopyPlan plan;
    plan.width_bytes = bytes;
    plan.dst = Endpoint{dst, bytes, bytes, Side::device, to->device, false, false};
    plan.src = Endpoint{src, bytes, bytes, Side::device, from->device, false, false};
    return run_copy(stream, per_thread, async, plan);
  });
}

struct BoxSide {
  CUmemorytype type;
  uint64_t host;
  CUdeviceptr device;
  size_t x_bytes, y, z;
  size_t pitch_bytes, height;
  CUarray array;
};

bool inside(size_t start, size_t length, size_t end) { return start <= end && length <= end - start; }

CUresult array_endpoint(const BoxSide& side, size_t width_bytes, size_t height, size_t depth, Endpoint* out) {
  auto array = Driver::get().arrays.get(side.array);
  if (!array) return CUDA_ERROR_INVALID_HANDLE;
  const TextureLevel& level = array->level;
  const size_t row_bytes = level.width * array->element_bytes;
  if (side.x_bytes % array->element_bytes || width_bytes % array->element_bytes ||
      !inside(side.x_bytes, width_bytes, row_bytes) || !inside(side.y, height, level.height) ||
      !inside(side.z, depth, level.depth)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *out = Endpoint{level.address + side.z * level.slice_bytes + side.y * level.pitch_bytes + side.x_bytes,
                  level.pitch_bytes,
                  level.slice_bytes,
                  Side::device,
                  array->context->device,
                  false,
                  false};
  return CUDA_SUCCESS;
}

CUresult box_endpoint(const BoxSide& side, size_t width_bytes, size_t height, size_t depth, int device, Endpoint* out) {
  switch (side.type) {
    case CU_MEMORYTYPE_HOST:
      *out = Endpoint{side.host, 0, 0, Side::host, device, false, false};
      break;
    case CU_MEMORYTYPE_DEVICE:
      *out = Endpoint{side.device, 0, 0, Side::device, device, false, false};
      break;
    case CU_MEMORYTYPE_UNIFIED:
      *out = Endpoint{side.device, 0, 0, Side::any, device, false, false};
      break;
    case CU_MEMORYTYPE_ARRAY:
      return array_endpoint(side, width_bytes, height, depth, out);
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  // A pitch of 0 means densely packed.
  const size_t pitch = side.pitch_bytes ? side.pitch_bytes : side.x_bytes + width_bytes;
  const size_t rows = side.height ? side.height : side.y + height;
  if (side.x_bytes > pitch || width_bytes > pitch - side.x_bytes) return CUDA_ERROR_INVALID_VALUE;
  if (depth > 1 && (side.y > rows || height > rows - side.y)) return CUDA_ERROR_INVALID_VALUE;
  unsigned __int128 offset = static_cast<unsigned __int128>(pitch) * rows;
  if (offset > UINT64_MAX) return CUDA_ERROR_INVALID_VALUE;
  out->pitch_bytes = pitch;
  out->slice_bytes = pitch * rows;
  offset = offset * side.z + static_cast<unsigned __int128>(pitch) * side.y + side.x_bytes;
  if (offset > UINT64_MAX - out->address) return CUDA_ERROR_INVALID_VALUE;
  out->address += static_cast<uint64_t>(offset);
  return CUDA_SUCCESS;
}

CUresult box(CUstream stream, bool per_thread, bool async, const BoxSide& dst, int dst_device, const BoxSide& src,
             int src_device, size_t width_bytes, size_t height, size_t depth) {
  CopyPlan plan;
  plan.width_bytes = width_bytes;
  plan.height = height;
  plan.depth = depth;
  CUresult checked = box_endpoint(dst, width_bytes, height, depth, dst_device, &plan.dst);
  if (checked == CUDA_SUCCESS) checked = box_endpoint(src, width_bytes, height, depth, src_device, &plan.src);
  return checked == CUDA_SUCCESS ? run_copy(stream, per_thread, async, plan) : checked;
}

CUresult copy_2d(CUstream stream, bool per_thread, bool async, const CUDA_MEMCPY2D* given) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    if (!given) return CUDA_ERROR_INVALID_VALUE;
    const CUDA_MEMCPY2D c = *given;
    const BoxSide dst{c.dstMemoryType, from_handle(c.dstHost), c.dstDevice, c.dstXInBytes, c.dstY, 0, c.dstPitch, 0,
                      c.dstArray};
    const BoxSide src{c.srcMemoryType, from_handle(c.srcHost), c.srcDevice, c.srcXInBytes, c.srcY, 0, c.srcPitch, 0,
                      c.srcArray};
    return box(stream, per_thread, async, dst, context.device, src, context.device, c.WidthInBytes, c.Height, 1);
  });
}

CUresult copy_3d(CUstream stream, bool per_thread, bool async, bool is_peer, const CUDA_MEMCPY3D* given) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!given) return CUDA_ERROR_INVALID_VALUE;
    const CUDA_MEMCPY3D c = *given;
    int dst_device = context.device;
    int src_device = context.device;
    if (is_peer) {
      auto to = driver.contexts.get(from_handle(c.dstContext));
      auto from = driver.contexts.get(from_handle(c.srcContext));
      if (!to || !from) return CUDA_ERROR_INVALID_CONTEXT;
      dst_device = to->device;
      src_device = from->device;
    } else if (c.srcContext || c.dstContext || c.srcLOD || c.dstLOD) {
      return CUDA_ERROR_INVALID_VALUE;  // reserved
    }
    const BoxSide dst{
        c.dstMemoryType, from_handle(c.dstHost), c.dstDevice, c.dstXInBytes, c.dstY, c.dstZ, c.dstPitch, c.dstHeight,
        c.dstArray};
    const BoxSide src{
        c.srcMemoryType, from_handle(c.srcHost), c.srcDevice, c.srcXInBytes, c.srcY, c.srcZ, c.srcPitch, c.srcHeight,
        c.srcArray};
    return box(stream, per_thread, async, dst, dst_device, src, src_device, c.WidthInBytes, c.Height, c.Depth);
  });
}

/// One row of `bytes`; the array sides are named by a corner in bytes.
CUresult row(CUstream stream, bool per_thread, bool async, const BoxSide& dst, const BoxSide& src, size_t bytes) {
  return with_context([&](Driver&, Context& context) -> CUresult {
    return box(stream, per_thread, async, dst, context.device, src, context.device, bytes, 1, 1);
  });
}

BoxSide in_array(CUarray array, size_t offset) { return {CU_MEMORYTYPE_ARRAY, 0, 0, offset, 0, 0, 0, 0, array}; }
BoxSide in_host(const void* host) { return {CU_MEMORYTYPE_HOST, from_handle(host), 0, 0, 0, 0, 0, 0, nullptr}; }
BoxSide in_device(CUdeviceptr address) { return {CU_MEMORYTYPE_DEVICE, 0, address, 0, 0, 0, 0, 0, nullptr}; }

CUresult h2d(CUstream s, bool per_thread, bool async, CUdeviceptr dst, const void* src, size_t bytes) {
  return linear(s, per_thread, async, Side::device, dst, Side::host, from_handle(src), bytes);
}
CUresult d2h(CUstream s, bool per_thread, bool async, void* dst, CUdeviceptr src, size_t bytes) {
  return linear(s, per_thread, async, Side::host, from_handle(dst), Side::device, src, bytes);
}
CUresult d2d(CUstream s, bool per_thread, bool async, CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
  return linear(s, per_thread, async, Side::device, dst, Side::device, src, bytes);
}
CUresult any(CUstream s, bool per_thread, bool async, CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
  return linear(s, per_thread, async, Side::any, dst, Side::any, src, bytes);
}

}  // namespace

SG_API cuMemcpyHtoD_v2(CUdeviceptr d, const void* s, size_t n) { return h2d(nullptr, false, false, d, s, n); }
SG_API cuMemcpyHtoD_v2_ptds(CUdeviceptr d, const void* s, size_t n) { return h2d(nullptr, true, false, d, s, n); }
SG_API cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void* s, size_t n, CUstream st) {
  return h2d(st, false, true, d, s, n);
}
SG_API cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr d, const void* s, size_t n, CUstream st) {
  return h2d(st, true, true, d, s, n);
}
SG_API cuMemcpyDtoH_v2(void* d, CUdeviceptr s, size_t n) { return d2h(nullptr, false, false, d, s, n); }
SG_API cuMemcpyDtoH_v2_ptds(void* d, CUdeviceptr s, size_t n) { return d2h(nullptr, true, false, d, s, n); }
SG_API cuMemcpyDtoHAsync_v2(void* d, CUdeviceptr s, size_t n, CUstream st) { return d2h(st, false, true, d, s, n); }
SG_API cuMemcpyDtoHAsync_v2_ptsz(void* d, CUdeviceptr s, size_t n, CUstream st) { return d2h(st, true, true, d, s, n); }
SG_API cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) { return d2d(nullptr, false, false, d, s, n); }
SG_API cuMemcpyDtoD_v2_ptds(CUdeviceptr d, CUdeviceptr s, size_t n) { return d2d(nullptr, true, false, d, s, n); }
SG_API cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) {
  return d2d(st, false, true, d, s, n);
}
SG_API cuMemcpyDtoDAsync_v2_ptsz(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) {
  return d2d(st, true, true, d, s, n);
}
SG_API cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) { return any(nullptr, false, false, d, s, n); }
SG_API cuMemcpy_ptds(CUdeviceptr d, CUdeviceptr s, size_t n) { return any(nullptr, true, false, d, s, n); }
SG_API cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) { return any(st, false, true, d, s, n); }
SG_API cuMemcpyAsync_ptsz(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) { return any(st, true, true, d, s, n); }

SG_API cuMemcpyPeer(CUdeviceptr d, CUcontext dc, CUdeviceptr s, CUcontext sc, size_t n) {
  return peer(nullptr, false, false, d, dc, s, sc, n);
}
SG_API cuMemcpyPeer_ptds(CUdeviceptr d, CUcontext dc, CUdeviceptr s, CUcontext sc, size_t n) {
  return peer(nullptr, true, false, d, dc, s, sc, n);
}
SG_API cuMemcpyPeerAsync(CUdeviceptr d, CUcontext dc, CUdeviceptr s, CUcontext sc, size_t n, CUstream st) {
  return peer(st, false, true, d, dc, s, sc, n);
}
SG_API cuMemcpyPeerAsync_ptsz(CUdeviceptr d, CUcontext dc, CUdeviceptr s, CUcontext sc, size_t n, CUstream st) {
  return peer(st, true, true, d, dc, s, sc, n);
}

SG_API cuMemcpy2D_v2(const CUDA_MEMCPY2D* c) { return copy_2d(nullptr, false, false, c); }
SG_API cuMemcpy2D_v2_ptds(const CUDA_MEMCPY2D* c) { return copy_2d(nullptr, true, false, c); }
SG_ALIAS(cuMemcpy2DUnaligned_v2, cuMemcpy2D_v2);
SG_ALIAS(cuMemcpy2DUnaligned_v2_ptds, cuMemcpy2D_v2_ptds);
SG_API cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* c, CUstream st) { return copy_2d(st, false, true, c); }
SG_API cuMemcpy2DAsync_v2_ptsz(const CUDA_MEMCPY2D* c, CUstream st) { return copy_2d(st, true, true, c); }
SG_API cuMemcpy3D_v2(const CUDA_MEMCPY3D* c) { return copy_3d(nullptr, false, false, false, c); }
SG_API cuMemcpy3D_v2_ptds(const CUDA_MEMCPY3D* c) { return copy_3d(nullptr, true, false, false, c); }
SG_API cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D* c, CUstream st) { return copy_3d(st, false, true, false, c); }
SG_API cuMemcpy3DAsync_v2_ptsz(const CUDA_MEMCPY3D* c, CUstream st) { return copy_3d(st, true, true, false, c); }
SG_API cuMemcpy3DPeer(const CUDA_MEMCPY3D* c) { return copy_3d(nullptr, false, false, true, c); }
SG_API cuMemcpy3DPeer_ptds(const CUDA_MEMCPY3D* c) { return copy_3d(nullptr, true, false, true, c); }
SG_API cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D* c, CUstream st) { return copy_3d(st, false, true, true, c); }
SG_API cuMemcpy3DPeerAsync_ptsz(const CUDA_MEMCPY3D* c, CUstream st) { return copy_3d(st, true, true, true, c); }

SG_API cuMemcpyHtoA_v2(CUarray a, size_t o, const void* h, size_t n) {
  return row(nullptr, false, false, in_array(a, o), in_host(h), n);
}
SG_API cuMemcpyHtoA_v2_ptds(CUarray a, size_t o, const void* h, size_t n) {
  return row(nullptr, true, false, in_array(a, o), in_host(h), n);
}
SG_API cuMemcpyHtoAAsync_v2(CUarray a, size_t o, const void* h, size_t n, CUstream st) {
  return row(st, false, true, in_array(a, o), in_host(h), n);
}
SG_API cuMemcpyHtoAAsync_v2_ptsz(CUarray a, size_t o, const void* h, size_t n, CUstream st) {
  return row(st, true, true, in_array(a, o), in_host(h), n);
}
SG_API cuMemcpyAtoH_v2(void* h, CUarray a, size_t o, size_t n) {
  return row(nullptr, false, false, in_host(h), in_array(a, o), n);
}
SG_API cuMemcpyAtoH_v2_ptds(void* h, CUarray a, size_t o, size_t n) {
  return row(nullptr, true, false, in_host(h), in_array(a, o), n);
}
SG_API cuMemcpyAtoHAsync_v2(void* h, CUarray a, size_t o, size_t n, CUstream st) {
  return row(st, false, true, in_host(h), in_array(a, o), n);
}
SG_API cuMemcpyAtoHAsync_v2_ptsz(void* h, CUarray a, size_t o, size_t n, CUstream st) {
  return row(st, true, true, in_host(h), in_array(a, o), n);
}
SG_API cuMemcpyDtoA_v2(CUarray a, size_t o, CUdeviceptr d, size_t n) {
  return row(nullptr, false, false, in_array(a, o), in_device(d), n);
}
SG_API cuMemcpyDtoA_v2_ptds(CUarray a, size_t o, CUdeviceptr d, size_t n) {
  return row(nullptr, true, false, in_array(a, o), in_device(d), n);
}
SG_API cuMemcpyAtoD_v2(CUdeviceptr d, CUarray a, size_t o, size_t n) {
  return row(nullptr, false, false, in_device(d), in_array(a, o), n);
}
SG_API cuMemcpyAtoD_v2_ptds(CUdeviceptr d, CUarray a, size_t o, size_t n) {
  return row(nullptr, true, false, in_device(d), in_array(a, o), n);
}
SG_API cuMemcpyAtoA_v2(CUarray d, size_t to, CUarray s, size_t from, size_t n) {
  return row(nullptr, false, false, in_array(d, to), in_array(s, from), n);
}
SG_API cuMemcpyAtoA_v2_ptds(CUarray d, size_t to, CUarray s, size_t from, size_t n) {
  return row(nullptr, true, false, in_array(d, to), in_array(s, from), n);
}
