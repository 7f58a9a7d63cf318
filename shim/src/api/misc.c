// Small things: profiler switches, value operations on streams.
#include "api.h"
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
  return range.whole && range.kind != ORION_MEMORY_REGISTERED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult write_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned flags,
                            uint32_t width_bytes) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE((flags & ~(unsigned)CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER) == 0, CUDA_ERROR_INVALID_VALUE);
  const CUresult result = check_value_address(address, width_bytes);
  if (result != CUDA_SUCCESS) return result;
  orion_op_stream_write_value op = {.op = {.code = ORION_OP_STREAM_WRITE_VALUE},
                                    .device_address = address,
                                    .value = value,
                                    .write_flags = flags,
                                    .width_bytes = width_bytes};
  return orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
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
