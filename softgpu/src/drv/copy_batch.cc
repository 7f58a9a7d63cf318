// Batches of copies: one copy after the other, which is an order like any other.
#include "api.h"

using namespace sg;

extern "C" {
CUresult cuMemcpyAsync(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyAsync_ptsz(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D*, CUstream);
CUresult cuMemcpy3DAsync_v2_ptsz(const CUDA_MEMCPY3D*, CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamSynchronize_ptsz(CUstream);
}

namespace {

struct Attributes {
  int order;
  CUmemLocation from_hint, to_hint;
  unsigned flags;
};
static_assert(sizeof(Attributes) == 24);

struct Operand {
  int type;
  union {
    struct {
      CUdeviceptr ptr;
      size_t row_length, layer_height;
      CUmemLocation hint;
    } pointer;
    struct {
      CUarray array;
      size_t x, y, z;
    } array;
  };
};

struct Copy3d {
  Operand src, dst;
  size_t width, height, depth;
  int order;
  unsigned flags;
};
static_assert(sizeof(Copy3d) == 112);

constexpr int kDuringCall = 2;
constexpr int kPointer = 1, kArray = 2;

bool order_known(int order) { return order >= 1 && order <= 3; }
bool is_legacy(CUstream stream, bool per_thread) {
  return from_handle(stream) == 1 || (stream == nullptr && !per_thread);
}

CUresult batch(const CUdeviceptr* to, const CUdeviceptr* from, const size_t* sizes, size_t count, const Attributes* a,
               const size_t* firsts, size_t attribute_count, size_t* failed, CUstream stream, bool per_thread) {
  if (failed) *failed = SIZE_MAX;
  if (!to || !from || !sizes || count == 0 || !a || !firsts || attribute_count == 0 || attribute_count > count ||
      firsts[0] != 0 || is_legacy(stream, per_thread)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (size_t i = 0; i < attribute_count; ++i) {
    if (!order_known(a[i].order) || firsts[i] >= count || (i > 0 && firsts[i] <= firsts[i - 1])) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  bool wait = false;
  for (size_t i = 0; i < attribute_count; ++i) wait |= a[i].order == kDuringCall;
  for (size_t i = 0; i < count; ++i) {
    const CUresult done = per_thread ? cuMemcpyAsync_ptsz(to[i], from[i], sizes[i], stream)
                                     : cuMemcpyAsync(to[i], from[i], sizes[i], stream);
    if (done == CUDA_SUCCESS) continue;
    if (failed) *failed = i;
    return done;
  }
  if (!wait) return CUDA_SUCCESS;
  return per_thread ? cuStreamSynchronize_ptsz(stream) : cuStreamSynchronize(stream);
}

CUresult element_bytes(const Copy3d& op, size_t* bytes) {
  *bytes = 0;
  for (const Operand* end : {&op.src, &op.dst}) {
    if (end->type == kPointer) continue;
    if (end->type != kArray) return CUDA_ERROR_INVALID_VALUE;
    auto array = Driver::get().arrays.get(end->array.array);
    if (!array) return CUDA_ERROR_INVALID_HANDLE;
    if (*bytes && *bytes != array->element_bytes) return CUDA_ERROR_INVALID_VALUE;
    *bytes = array->element_bytes;
  }
  if (*bytes == 0) *bytes = 1;
  return CUDA_SUCCESS;
}

CUresult to_copy(const Copy3d& op, CUDA_MEMCPY3D* c) {
  size_t bytes = 1;
  const CUresult known = element_bytes(op, &bytes);
  if (known != CUDA_SUCCESS) return known;
  if (!order_known(op.order) || op.width == 0 || op.height == 0 || op.depth == 0 || op.width > SIZE_MAX / 64) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *c = CUDA_MEMCPY3D{};
  c->WidthInBytes = op.width * bytes;
  c->Height = op.height;
  c->Depth = op.depth;
  const bool from_array = op.src.type == kArray, to_array = op.dst.type == kArray;
  c->srcMemoryType = from_array ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_UNIFIED;
  c->dstMemoryType = to_array ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_UNIFIED;
  if (from_array) {
    c->srcArray = op.src.array.array;
    c->srcXInBytes = op.src.array.x * bytes;
    c->srcY = op.src.array.y;
    c->srcZ = op.src.array.z;
  } else {
    c->srcDevice = op.src.pointer.ptr;
    c->srcPitch = op.src.pointer.row_length * bytes;
    c->srcHeight = op.src.pointer.layer_height;
  }
  if (to_array) {
    c->dstArray = op.dst.array.array;
    c->dstXInBytes = op.dst.array.x * bytes;
    c->dstY = op.dst.array.y;
    c->dstZ = op.dst.array.z;
  } else {
    c->dstDevice = op.dst.pointer.ptr;
    c->dstPitch = op.dst.pointer.row_length * bytes;
    c->dstHeight = op.dst.pointer.layer_height;
  }
  return CUDA_SUCCESS;
}

CUresult batch_3d(size_t count, const Copy3d* ops, size_t* failed, unsigned long long flags, CUstream stream,
                  bool per_thread) {
  if (failed) *failed = SIZE_MAX;
  if (!ops || count == 0 || flags != 0 || is_legacy(stream, per_thread)) return CUDA_ERROR_INVALID_VALUE;
  bool wait = false;
  for (size_t i = 0; i < count; ++i) {
    CUDA_MEMCPY3D c;
    CUresult done = to_copy(ops[i], &c);
    if (done == CUDA_SUCCESS) done = per_thread ? cuMemcpy3DAsync_v2_ptsz(&c, stream) : cuMemcpy3DAsync_v2(&c, stream);
    wait |= ops[i].order == kDuringCall;
    if (done == CUDA_SUCCESS) continue;
    if (failed) *failed = i;
    return done;
  }
  if (!wait) return CUDA_SUCCESS;
  return per_thread ? cuStreamSynchronize_ptsz(stream) : cuStreamSynchronize(stream);
}

}  // namespace

SG_API cuMemcpyBatchAsync_v2(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, Attributes* a,
                             size_t* firsts, size_t attribute_count, CUstream stream) {
  return batch(to, from, sizes, count, a, firsts, attribute_count, nullptr, stream, false);
}
SG_API cuMemcpyBatchAsync_v2_ptsz(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, Attributes* a,
                                  size_t* firsts, size_t attribute_count, CUstream stream) {
  return batch(to, from, sizes, count, a, firsts, attribute_count, nullptr, stream, true);
}
SG_API cuMemcpyBatchAsync(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, Attributes* a,
                          size_t* firsts, size_t attribute_count, size_t* failed, CUstream stream) {
  return batch(to, from, sizes, count, a, firsts, attribute_count, failed, stream, false);
}
SG_API cuMemcpyBatchAsync_ptsz(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count, Attributes* a,
                               size_t* firsts, size_t attribute_count, size_t* failed, CUstream stream) {
  return batch(to, from, sizes, count, a, firsts, attribute_count, failed, stream, true);
}
SG_API cuMemcpy3DBatchAsync_v2(size_t count, Copy3d* ops, unsigned long long flags, CUstream stream) {
  return batch_3d(count, ops, nullptr, flags, stream, false);
}
SG_API cuMemcpy3DBatchAsync_v2_ptsz(size_t count, Copy3d* ops, unsigned long long flags, CUstream stream) {
  return batch_3d(count, ops, nullptr, flags, stream, true);
}
SG_API cuMemcpy3DBatchAsync(size_t count, Copy3d* ops, size_t* failed, unsigned long long flags, CUstream stream) {
  return batch_3d(count, ops, failed, flags, stream, false);
}
SG_API cuMemcpy3DBatchAsync_ptsz(size_t count, Copy3d* ops, size_t* failed, unsigned long long flags, CUstream stream) {
  return batch_3d(count, ops, failed, flags, stream, true);
}
