// Calls on devices and streams that the client answers itself: run natively, or through the shim (tests/api/
// test_device_calls.py). softgpu alone has none of them.
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuStreamCreate, (CUstream*, unsigned)) X(cuStreamDestroy_v2, (CUstream)) X(cuStreamSynchronize, (CUstream)) \
  X(cuStreamGetAttribute, (CUstream, CUstreamAttrID, CUstreamAttrValue*)) \
  X(cuStreamSetAttribute, (CUstream, CUstreamAttrID, const CUstreamAttrValue*)) \
  X(cuStreamCopyAttributes, (CUstream, CUstream)) \
  X(cuStreamBatchMemOp_v2, (CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned)) \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr)) \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t)) \
  X(cuDeviceGetTexture1DLinearMaxWidth, (size_t*, CUarray_format, unsigned, CUdevice)) \
  X(cuCtxResetPersistingL2Cache, (void))
// clang-format on

#include "area.h"

static void test_attributes(void) {
  CUstream stream, other;
  CUstreamAttrValue value;
  OK(cuStreamCreate(&stream, 0));
  OK(cuStreamCreate(&other, 1));
  OK(cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
  IS(CU_SYNC_POLICY_AUTO, value.syncPolicy);
  OK(cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW, &value));
  IS(0, value.accessPolicyWindow.num_bytes);
  memset(&value, 0, sizeof value);
  value.syncPolicy = CU_SYNC_POLICY_SPIN;
  OK(cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
  memset(&value, 0, sizeof value);
  value.memSyncDomain = 1;
  OK(cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN, &value));
  OK(cuStreamCopyAttributes(other, stream));
  memset(&value, 0, sizeof value);
  OK(cuStreamGetAttribute(other, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
  IS(CU_SYNC_POLICY_SPIN, value.syncPolicy);
  CODE(1, cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &value));
  memset(&value, 0, sizeof value);
  value.syncPolicy = (CUsynchronizationPolicy)9;
  CODE(1, cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
  memset(&value, 0, sizeof value);
  value.priority = -1;
  NOTE(cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_PRIORITY, &value));
  memset(&value, 0, sizeof value);
  NOTE(cuStreamGetAttribute(NULL, CU_LAUNCH_ATTRIBUTE_PRIORITY, &value));
  NOTE(cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP, &value));
  NOTE(value.memSyncDomainMap.remote);
  OK(cuStreamDestroy_v2(stream));
  OK(cuStreamCreate(&stream, 0));  // a new stream has the defaults again
  OK(cuStreamGetAttribute(stream, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
  IS(CU_SYNC_POLICY_AUTO, value.syncPolicy);
  OK(cuStreamDestroy_v2(stream));
  OK(cuStreamDestroy_v2(other));
}

static void test_batch(void) {
  CUdeviceptr memory;
  CUstream stream;
  uint32_t words[6];
  OK(cuMemAlloc_v2(&memory, sizeof words));
  OK(cuMemsetD32_v2(memory, 0, 6));
  OK(cuStreamCreate(&stream, 0));
  CUstreamBatchMemOpParams ops[5];
  memset(ops, 0, sizeof ops);
  ops[0].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
  ops[0].writeValue.address = memory;
  ops[0].writeValue.value = 7;
  ops[1].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;  // met by the write before it
  ops[1].waitValue.address = memory;
  ops[1].waitValue.value = 7;
  ops[1].waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
  ops[2].memoryBarrier.operation = CU_STREAM_MEM_OP_BARRIER;
  ops[3].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
  ops[3].writeValue.address = memory + 8;
  ops[3].writeValue.value64 = 0x1122334455667788ull;
  ops[4].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_64;
  ops[4].waitValue.address = memory + 8;
  ops[4].waitValue.value64 = 0x1122334455667788ull;
  ops[4].waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
  OK(cuStreamBatchMemOp_v2(stream, 5, ops, 0));
  OK(cuStreamSynchronize(stream));
  OK(cuMemcpyDtoH_v2(words, memory, sizeof words));
  IS(7, words[0]);
  IS(0x55667788, words[2]);
  IS(0x11223344, words[3]);
  // One that cannot be: nothing of the batch runs.
  ops[0].writeValue.value = 9;
  ops[4].waitValue.operation = (CUstreamBatchMemOpType)77;
  CODE(1, cuStreamBatchMemOp_v2(stream, 5, ops, 0));
  OK(cuStreamSynchronize(stream));
  OK(cuMemcpyDtoH_v2(words, memory, sizeof words));
  IS(7, words[0]);
  CODE(1, cuStreamBatchMemOp_v2(stream, 5, NULL, 0));
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemFree_v2(memory));
}

static void test_device(void) {
  size_t elements = 0;
  OK(cuDeviceGetTexture1DLinearMaxWidth(&elements, CU_AD_FORMAT_FLOAT, 4, device));
  NOTE(elements);
  OK(cuDeviceGetTexture1DLinearMaxWidth(&elements, CU_AD_FORMAT_UNSIGNED_INT8, 1, device));
  NOTE(elements);
  OK(cuCtxResetPersistingL2Cache());
}

SECTIONS({"attributes", test_attributes, 0}, {"batch", test_batch, 0}, {"device", test_device, 0})
