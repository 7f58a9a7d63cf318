// Batches of copies: checked as a whole, then submitted one after the other. CUDA promises no order within a batch, and
// no copy depends on another.
#include "api.h"
#include "array.h"
#include "copy.h"

static bool order_known(CUmemcpySrcAccessOrder order) {
  return order >= CU_MEMCPY_SRC_ACCESS_ORDER_STREAM && order <= CU_MEMCPY_SRC_ACCESS_ORDER_ANY;
}

static bool attributes_ok(size_t count, const CUmemcpyAttributes* attributes, const size_t* firsts,
                          size_t attribute_count) {
  if (attributes == NULL || firsts == NULL || attribute_count == 0 || attribute_count > count || firsts[0] != 0) {
    return false;
  }
  for (size_t i = 0; i < attribute_count; i++) {
    if (!order_known(attributes[i].srcAccessOrder)) return false;
    if (firsts[i] >= count || (i > 0 && firsts[i] <= firsts[i - 1])) return false;
  }
  return true;
}

static CUresult place_copy(CUdeviceptr to, CUdeviceptr from, size_t bytes, orion_place* to_place,
                           orion_place* from_place) {
  const CUresult result = orion_place_device(to, bytes, true, to_place);
  return result == CUDA_SUCCESS ? orion_place_device(from, bytes, true, from_place) : result;
}

/// *failed: the copy that an error speaks of, or SIZE_MAX.
static CUresult batch(const CUdeviceptr* to, const CUdeviceptr* from, const size_t* sizes, size_t count,
                      const CUmemcpyAttributes* attributes, const size_t* firsts, size_t attribute_count,
                      CUstream handle, size_t* failed) {
  *failed = SIZE_MAX;
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(to != NULL && from != NULL && sizes != NULL && count > 0, CUDA_ERROR_INVALID_VALUE);
  ORION_REQUIRE(!orion_is_legacy(handle) && attributes_ok(count, attributes, firsts, attribute_count),
                CUDA_ERROR_INVALID_VALUE);
  orion_place to_place, from_place;
  for (size_t i = 0; i < count; i++) {
    const CUresult result = place_copy(to[i], from[i], sizes[i], &to_place, &from_place);
    if (result == CUDA_SUCCESS) continue;
    *failed = i;
    return result;
  }
  size_t group = 0;
  for (size_t i = 0; i < count; i++) {
    if (group + 1 < attribute_count && firsts[group + 1] == i) group++;
    // A source that is to be read during the call: from pageable memory it always is.
    const bool wait = attributes[group].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    CUresult result = place_copy(to[i], from[i], sizes[i], &to_place, &from_place);
    if (result == CUDA_SUCCESS) result = orion_copy(stream, to_place, from_place, sizes[i], wait);
    if (result == CUDA_SUCCESS) continue;
    *failed = i;
    return result;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count,
                                         CUmemcpyAttributes* attributes, size_t* firsts, size_t attribute_count,
                                         CUstream stream) {
  ORION_COUNTED();
  size_t failed;
  return batch(to, from, sizes, count, attributes, firsts, attribute_count, stream, &failed);
}

ORION_API CUresult cuMemcpyBatchAsync(CUdeviceptr* to, CUdeviceptr* from, size_t* sizes, size_t count,
                                      CUmemcpyAttributes* attributes, size_t* firsts, size_t attribute_count,
                                      size_t* failed_index, CUstream stream) {
  ORION_COUNTED();
  size_t failed;
  const CUresult result = batch(to, from, sizes, count, attributes, firsts, attribute_count, stream, &failed);
  if (result != CUDA_SUCCESS && failed_index != NULL) *failed_index = failed;
  return result;
}

// ------------------------------------------------------------------------------------------------ with arrays

/// Bytes of an element: the array's, or 1 between pointers. CUDA_SUCCESS, or why not.
static CUresult element_bytes(const CUDA_MEMCPY3D_BATCH_OP* op, size_t* bytes) {
  const CUmemcpy3DOperand* ends[] = {&op->src, &op->dst};
  *bytes = 0;
  for (int i = 0; i < 2; i++) {
    if (ends[i]->type == CU_MEMCPY_OPERAND_TYPE_POINTER) continue;
    if (ends[i]->type != CU_MEMCPY_OPERAND_TYPE_ARRAY) return CUDA_ERROR_INVALID_VALUE;
    orion_array* array;
    const CUresult result = orion_array_of(ends[i]->op.array.array, &array);
    if (result != CUDA_SUCCESS) return result;
    uint32_t side;
    const size_t own = orion_format_bytes(array->descriptor.Format, array->descriptor.NumChannels, &side);
    if (own == 0 || side != 1) return CUDA_ERROR_NOT_SUPPORTED;
    if (*bytes != 0 && *bytes != own) return CUDA_ERROR_INVALID_VALUE;
    *bytes = own;
  }
  if (*bytes == 0) *bytes = 1;
  return CUDA_SUCCESS;
}

static CUresult to_copy(const CUDA_MEMCPY3D_BATCH_OP* op, CUDA_MEMCPY3D* c) {
  size_t bytes;
  const CUresult result = element_bytes(op, &bytes);
  if (result != CUDA_SUCCESS) return result;
  const CUextent3D* extent = &op->extent;
  const size_t limit = SIZE_MAX / 64;  // elements have at most 16 bytes
  if (!order_known(op->srcAccessOrder) || extent->width == 0 || extent->height == 0 || extent->depth == 0 ||
      extent->width > limit) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *c = (CUDA_MEMCPY3D){.WidthInBytes = extent->width * bytes, .Height = extent->height, .Depth = extent->depth};
  if (op->src.type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
    c->srcMemoryType = CU_MEMORYTYPE_ARRAY;
    c->srcArray = op->src.op.array.array;
    c->srcXInBytes = op->src.op.array.offset.x * bytes;
    c->srcY = op->src.op.array.offset.y;
    c->srcZ = op->src.op.array.offset.z;
  } else {
    c->srcMemoryType = CU_MEMORYTYPE_UNIFIED;
    c->srcDevice = op->src.op.ptr.ptr;
    c->srcPitch = op->src.op.ptr.rowLength * bytes;
    c->srcHeight = op->src.op.ptr.layerHeight;
  }
  if (op->dst.type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
    c->dstMemoryType = CU_MEMORYTYPE_ARRAY;
    c->dstArray = op->dst.op.array.array;
    c->dstXInBytes = op->dst.op.array.offset.x * bytes;
    c->dstY = op->dst.op.array.offset.y;
    c->dstZ = op->dst.op.array.offset.z;
  } else {
    c->dstMemoryType = CU_MEMORYTYPE_UNIFIED;
    c->dstDevice = op->dst.op.ptr.ptr;
    c->dstPitch = op->dst.op.ptr.rowLength * bytes;
    c->dstHeight = op->dst.op.ptr.layerHeight;
  }
  return CUDA_SUCCESS;
}

static CUresult batch_3d(size_t count, const CUDA_MEMCPY3D_BATCH_OP* ops, unsigned long long flags, CUstream handle,
                         size_t* failed) {
  *failed = SIZE_MAX;
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(ops != NULL && count > 0 && flags == 0 && !orion_is_legacy(handle), CUDA_ERROR_INVALID_VALUE);
  CUDA_MEMCPY3D copy;
  for (size_t i = 0; i < count; i++) {
    const CUresult result = to_copy(&ops[i], &copy);
    if (result == CUDA_SUCCESS) continue;
    *failed = i;
    return result;
  }
  for (size_t i = 0; i < count; i++) {
    CUresult result = to_copy(&ops[i], &copy);
    if (result == CUDA_SUCCESS) result = cuMemcpy3DAsync_v2(&copy, handle);
    if (result == CUDA_SUCCESS && ops[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL) {
      result = orion_copy_wait(stream);
    }
    if (result == CUDA_SUCCESS) continue;
    *failed = i;
    return result;
  }
  return CUDA_SUCCESS;
}

ORION_API CUresult cuMemcpy3DBatchAsync_v2(size_t count, CUDA_MEMCPY3D_BATCH_OP* ops, unsigned long long flags,
                                           CUstream stream) {
  ORION_COUNTED();
  size_t failed;
  return batch_3d(count, ops, flags, stream, &failed);
}

ORION_API CUresult cuMemcpy3DBatchAsync(size_t count, CUDA_MEMCPY3D_BATCH_OP* ops, size_t* failed_index,
                                        unsigned long long flags, CUstream stream) {
  ORION_COUNTED();
  size_t failed;
  const CUresult result = batch_3d(count, ops, flags, stream, &failed);
  if (result != CUDA_SUCCESS && failed_index != NULL) *failed_index = failed;
  return result;
}
