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
  X(cuModuleLoadData, (CUmodule*, const void*)) X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) \
  X(cuLaunchKernelEx, (const CUlaunchConfig*, CUfunction, void**, void**)) X(cuModuleUnload, (CUmodule)) \
  X(cuCtxSynchronize, (void)) X(cuCtxResetPersistingL2Cache, (void))
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

/// What does not travel is refused at the call, and nothing is left to tell later; natively some of these are taken.
static void test_launch_attributes(void) {
  CUmodule module = NULL;
  CUfunction count = NULL;
  CUdeviceptr counter = 0;
  unsigned launched = 0, counted = 0;
  OK(cuModuleLoadData(&module,
                      ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry count(.param .u64 p)\n"
                      "{ .reg .u64 %rd<2>; .reg .u32 %r<2>; ld.param.u64 %rd1, [p];\n"
                      "  ld.global.u32 %r1, [%rd1]; add.u32 %r1, %r1, 1; st.global.u32 [%rd1], %r1; ret; }\n"));
  OK(cuModuleGetFunction(&count, module, "count"));
  OK(cuMemAlloc_v2(&counter, 4));
  OK(cuMemsetD32_v2(counter, 0, 1));
  void* params[] = {&counter};
  CUlaunchAttribute attributes[20];
  memset(attributes, 0, sizeof attributes);
  CUlaunchConfig config = {1, 1, 1, 1, 1, 1, 0, NULL, attributes, 1};
  const unsigned refused[] = {CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT,
                              CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT,
                              CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE, 15};
  for (int round = 0; round < 2; round++) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
      attributes[0].id = (CUlaunchAttributeID)refused[i];
      CODE(801, cuLaunchKernelEx(&config, count, params, NULL));
    }
  }
  attributes[0].id = CU_LAUNCH_ATTRIBUTE_MAX;
  CODE(1, cuLaunchKernelEx(&config, count, params, NULL));
  config.attrs = NULL;
  CODE(1, cuLaunchKernelEx(&config, count, params, NULL));
  config.attrs = attributes;
  OK(cuCtxSynchronize());
  // Many that mean nothing are nothing; a window over memory that is none of CUDA's is no reason to refuse a launch.
  memset(attributes, 0, sizeof attributes);
  attributes[19].id = CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW;
  attributes[19].value.accessPolicyWindow =
      (CUaccessPolicyWindow){&config, 64, 1, CU_ACCESS_PROPERTY_NORMAL, CU_ACCESS_PROPERTY_STREAMING};
  config.numAttrs = 20;
  OK(cuLaunchKernelEx(&config, count, params, NULL));
  launched++;
  attributes[19].value.accessPolicyWindow.base_ptr = (void*)(uintptr_t)counter;
  attributes[19].value.accessPolicyWindow.num_bytes = 4;
  OK(cuLaunchKernelEx(&config, count, params, NULL));
  launched++;
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(&counted, counter, 4));
  IS(launched, counted);
  OK(cuMemFree_v2(counter));
  OK(cuModuleUnload(module));
}

SECTIONS({"attributes", test_attributes, 0}, {"launch_attributes", test_launch_attributes, NOT_NATIVE},
         {"batch", test_batch, 0}, {"device", test_device, 0})
