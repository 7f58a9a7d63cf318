// Small things: profiler switches, value operations on streams.
#include "api.h"
#include "managed.h"
#include "memory.h"

/// The profiler here is ORION_STATS: between start and stop lies what is told.
ORION_API CUresult cuProfilerStart(void) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  orion_stats_restart();
  return CUDA_SUCCESS;
}

ORION_API CUresult cuProfilerStop(void) {
  ORION_ENTER_CONTEXT(context);
  (void)context;
  orion_stats_tell();
  return CUDA_SUCCESS;
}

static CUresult check_value_address(CUdeviceptr address, uint32_t width_bytes) {
  if (address % width_bytes != 0) return CUDA_ERROR_INVALID_VALUE;
  const orion_range range = orion_find_range(address, width_bytes);
  // Managed memory is none that a stream reads or writes values in (cuda.h).
  return range.whole && range.kind != ORION_MEMORY_REGISTERED && range.kind != ORION_MEMORY_MANAGED
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_VALUE;
}

static CUresult write_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned flags,
                            uint32_t width_bytes) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE((flags & ~(unsigned)CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER) == 0, CUDA_ERROR_INVALID_VALUE);
  const CUresult known = check_value_address(address, width_bytes);
  if (known != CUDA_SUCCESS) return known;
  orion_op_stream_write_value op = {.op = {.code = ORION_OP_STREAM_WRITE_VALUE},
                                    .device_address = address,
                                    .value = value,
                                    .write_flags = flags,
                                    .width_bytes = width_bytes};
  // Over a network the program sees the value in its own memory like that of a kernel.
  const uint64_t seen = orion_coherent_before(stream, &op.op, &address, sizeof address);
  const CUresult result = orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  orion_coherent_after(stream, seen);
  return result;
}

static CUresult wait_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned flags, uint32_t width_bytes) {
  ORION_ENTER_STREAM(stream, handle);
  const unsigned known = CU_STREAM_WAIT_VALUE_NOR | CU_STREAM_WAIT_VALUE_FLUSH;
  ORION_REQUIRE((flags & ~known) == 0, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = check_value_address(address, width_bytes);
  if (result != CUDA_SUCCESS) return result;
  orion_op_stream_wait_value op = {.op = {.code = ORION_OP_STREAM_WAIT_VALUE},
                                   .device_address = address,
                                   .value = value,
                                   .wait_flags = flags,
                                   .width_bytes = width_bytes};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
}

ORION_API CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags) {
  ORION_COUNTED();

  return write_value(stream, address, value, flags, 4);
}

ORION_API CUresult cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  ORION_COUNTED();

  return write_value(stream, address, value, flags, 8);
}

ORION_API CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags) {
  ORION_COUNTED();

  return wait_value(stream, address, value, flags, 4);
}

ORION_API CUresult cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  ORION_COUNTED();

  return wait_value(stream, address, value, flags, 8);
}

// ------------------------------------------------------------------------------------------------ batches of them

static bool is_known(const CUstreamBatchMemOpParams* op) {
  switch (op->operation) {
    case CU_STREAM_MEM_OP_WAIT_VALUE_32:
    case CU_STREAM_MEM_OP_WAIT_VALUE_64:
    case CU_STREAM_MEM_OP_WRITE_VALUE_32:
    case CU_STREAM_MEM_OP_WRITE_VALUE_64:
      return check_value_address(op->waitValue.address, op->operation >= CU_STREAM_MEM_OP_WAIT_VALUE_64 ? 8 : 4) ==
             CUDA_SUCCESS;
    case CU_STREAM_MEM_OP_BARRIER:
      return op->memoryBarrier.flags <= 1;
    default:
      return false;  // remote writes to flush there are none
  }
}

static CUresult run_one(CUstream stream, const CUstreamBatchMemOpParams* op) {
  switch (op->operation) {
    case CU_STREAM_MEM_OP_WAIT_VALUE_32:
      return wait_value(stream, op->waitValue.address, op->waitValue.value, op->waitValue.flags, 4);
    case CU_STREAM_MEM_OP_WAIT_VALUE_64:
      return wait_value(stream, op->waitValue.address, op->waitValue.value64, op->waitValue.flags, 8);
    case CU_STREAM_MEM_OP_WRITE_VALUE_32:
      return write_value(stream, op->writeValue.address, op->writeValue.value, op->writeValue.flags, 4);
    case CU_STREAM_MEM_OP_WRITE_VALUE_64:
      return write_value(stream, op->writeValue.address, op->writeValue.value64, op->writeValue.flags, 8);
    default:
      return CUDA_SUCCESS;  // a barrier: operations of one stream are in order already
  }
}

/// All are checked before the first is queued.
static CUresult run_batch(CUstream handle, unsigned count, const CUstreamBatchMemOpParams* ops, unsigned flags) {
  ORION_ENTER_STREAM(stream, handle);
  (void)stream;
  const unsigned most = 256;
  ORION_REQUIRE(ops != NULL && count > 0 && count <= most && flags == 0, CUDA_ERROR_INVALID_VALUE);
  for (unsigned i = 0; i < count; i++) ORION_REQUIRE(is_known(&ops[i]), CUDA_ERROR_INVALID_VALUE);
  CUresult result = CUDA_SUCCESS;
  for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++) result = run_one(handle, &ops[i]);
  return result;
}

ORION_API CUresult cuStreamBatchMemOp_v2(CUstream stream, unsigned int count, CUstreamBatchMemOpParams* ops,
                                         unsigned int flags) {
  ORION_COUNTED();
  return run_batch(stream, count, ops, flags);
}

ORION_API CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count, CUstreamBatchMemOpParams* ops,
                                      unsigned int flags) {
  ORION_COUNTED();
  return run_batch(stream, count, ops, flags);
}
