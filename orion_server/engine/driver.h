// The driver functions that the engine calls, in one table: filled from the libcuda that the worker has loaded
// (NVIDIA's or softgpu's), or from null_driver.c.
#ifndef ORION_ENGINE_DRIVER_H
#define ORION_ENGINE_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_types.h"
#include "driver_graph.h"

// X(member, exported symbol, required, parameters). The table names the ABI revisions, not the plain names: the plain
// cuStreamWriteValue64 of NVIDIA's library, for one, is a revision that answers 801.
#define ORION_DRIVER_ARRAY_FUNCTIONS(X)                                                                            \
  X(tensor_map_tiled, "cuTensorMapEncodeTiled", 0,                                                                 \
    (CUtensorMap * map, unsigned int data_type, cuuint32_t rank, void* address, const cuuint64_t* dimensions,      \
     const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides, unsigned int interleave, \
     unsigned int swizzle, unsigned int l2_promotion, unsigned int oob_fill))                                      \
  X(tensor_map_im2col, "cuTensorMapEncodeIm2col", 0,                                                               \
    (CUtensorMap * map, unsigned int data_type, cuuint32_t rank, void* address, const cuuint64_t* dimensions,      \
     const cuuint64_t* strides, const int* lower, const int* upper, cuuint32_t channels, cuuint32_t pixels,        \
     const cuuint32_t* element_strides, unsigned int interleave, unsigned int swizzle, unsigned int l2_promotion,  \
     unsigned int oob_fill))                                                                                       \
  X(tensor_map_im2col_wide, "cuTensorMapEncodeIm2colWide", 0,                                                      \
    (CUtensorMap * map, unsigned int data_type, cuuint32_t rank, void* address, const cuuint64_t* dimensions,      \
     const cuuint64_t* strides, int lower_width, int upper_width, cuuint32_t channels, cuuint32_t pixels,          \
     const cuuint32_t* element_strides, unsigned int interleave, unsigned int mode, unsigned int swizzle,          \
     unsigned int l2_promotion, unsigned int oob_fill))                                                            \
  X(tensor_map_replace_address, "cuTensorMapReplaceAddress", 0, (CUtensorMap * map, void* address))                \
  X(array_create, "cuArray3DCreate_v2", 0, (CUarray * array, const CUDA_ARRAY3D_DESCRIPTOR* descriptor))           \
  X(array_destroy, "cuArrayDestroy", 0, (CUarray array))                                                           \
  X(array_descriptor, "cuArray3DGetDescriptor_v2", 0, (CUDA_ARRAY3D_DESCRIPTOR * descriptor, CUarray array))       \
  X(array_plane, "cuArrayGetPlane", 0, (CUarray * plane, CUarray array, unsigned int number))                      \
  X(mipmap_create, "cuMipmappedArrayCreate", 0,                                                                    \
    (CUmipmappedArray * mipmap, const CUDA_ARRAY3D_DESCRIPTOR* descriptor, unsigned int levels))                   \
  X(mipmap_destroy, "cuMipmappedArrayDestroy", 0, (CUmipmappedArray mipmap))                                       \
  X(mipmap_level, "cuMipmappedArrayGetLevel", 0, (CUarray * array, CUmipmappedArray mipmap, unsigned int level))   \
  X(texture_create, "cuTexObjectCreate", 0,                                                                        \
    (CUtexObject * object, const CUDA_RESOURCE_DESC* resource, const CUDA_TEXTURE_DESC* texture,                   \
     const CUDA_RESOURCE_VIEW_DESC* view))                                                                         \
  X(texture_destroy, "cuTexObjectDestroy", 0, (CUtexObject object))                                                \
  X(surface_create, "cuSurfObjectCreate", 0, (CUsurfObject * object, const CUDA_RESOURCE_DESC* resource))          \
  X(surface_destroy, "cuSurfObjectDestroy", 0, (CUsurfObject object))

#define ORION_DRIVER_FUNCTIONS(X)                                                                                      \
  X(init, "cuInit", 1, (unsigned int flags))                                                                           \
  X(primary_retain, "cuDevicePrimaryCtxRetain", 1, (CUcontext * context, CUdevice device))                             \
  X(primary_release, "cuDevicePrimaryCtxRelease_v2", 1, (CUdevice device))                                             \
  X(primary_state, "cuDevicePrimaryCtxGetState", 1, (CUdevice device, unsigned int* flags, int* active))               \
  X(context_create, "cuCtxCreate_v2", 1, (CUcontext * context, unsigned int flags, CUdevice device))                   \
  X(context_destroy, "cuCtxDestroy_v2", 1, (CUcontext context))                                                        \
  X(context_set_current, "cuCtxSetCurrent", 1, (CUcontext context))                                                    \
  X(context_api_version, "cuCtxGetApiVersion", 1, (CUcontext context, unsigned int* version))                          \
  X(context_id, "cuCtxGetId", 0, (CUcontext context, unsigned long long* id))                                          \
  X(context_set_limit, "cuCtxSetLimit", 1, (unsigned int limit, size_t value))                                         \
  X(context_get_limit, "cuCtxGetLimit", 1, (size_t* value, unsigned int limit))                                        \
  X(context_set_cache_config, "cuCtxSetCacheConfig", 1, (unsigned int config))                                         \
  X(context_resource, "cuCtxGetDevResource", 0, (CUcontext context, CUdevResource * resource, CUdevResourceType type)) \
  X(device_resource, "cuDeviceGetDevResource", 0, (CUdevice device, CUdevResource * resource, CUdevResourceType type)) \
  X(context_enable_peer, "cuCtxEnablePeerAccess", 0, (CUcontext peer, unsigned int flags))                             \
  X(context_disable_peer, "cuCtxDisablePeerAccess", 0, (CUcontext peer))                                               \
  X(stream_create, "cuStreamCreateWithPriority", 1, (CUstream * stream, unsigned int flags, int priority))             \
  X(stream_destroy, "cuStreamDestroy_v2", 1, (CUstream stream))                                                        \
  X(stream_synchronize, "cuStreamSynchronize", 0, (CUstream stream))                                                   \
  X(context_synchronize, "cuCtxSynchronize", 0, (void))                                                                \
  X(stream_query, "cuStreamQuery", 1, (CUstream stream))                                                               \
  X(stream_wait_event, "cuStreamWaitEvent", 1, (CUstream stream, CUevent event, unsigned int flags))                   \
  X(write_value32, "cuStreamWriteValue32_v2", 0,                                                                       \
    (CUstream stream, CUdeviceptr address, uint32_t value, unsigned int flags))                                        \
  X(write_value64, "cuStreamWriteValue64_v2", 1,                                                                       \
    (CUstream stream, CUdeviceptr address, unsigned long long value, unsigned int flags))                              \
  X(wait_value32, "cuStreamWaitValue32_v2", 0,                                                                         \
    (CUstream stream, CUdeviceptr address, uint32_t value, unsigned int flags))                                        \
  X(wait_value64, "cuStreamWaitValue64_v2", 0,                                                                         \
    (CUstream stream, CUdeviceptr address, unsigned long long value, unsigned int flags))                              \
  X(event_create, "cuEventCreate", 1, (CUevent * event, unsigned int flags))                                           \
  X(event_destroy, "cuEventDestroy_v2", 1, (CUevent event))                                                            \
  X(event_record, "cuEventRecordWithFlags", 1, (CUevent event, CUstream stream, unsigned int flags))                   \
  X(event_elapsed, "cuEventElapsedTime", 1, (float* milliseconds, CUevent start, CUevent end))                         \
  X(event_query, "cuEventQuery", 1, (CUevent event))                                                                   \
  X(event_export, "cuIpcGetEventHandle", 0, (CUipcEventHandle * handle, CUevent event))                                \
  X(event_import, "cuIpcOpenEventHandle", 0, (CUevent * event, CUipcEventHandle handle))                               \
  X(address_reserve, "cuMemAddressReserve", 1,                                                                         \
    (CUdeviceptr * address, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags))               \
  X(address_free, "cuMemAddressFree", 1, (CUdeviceptr address, size_t bytes))                                          \
  X(memory_create, "cuMemCreate", 1,                                                                                   \
    (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp* properties,                       \
     unsigned long long flags))                                                                                        \
  X(memory_release, "cuMemRelease", 1, (CUmemGenericAllocationHandle handle))                                          \
  X(memory_map, "cuMemMap", 1,                                                                                         \
    (CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)) \
  X(memory_unmap, "cuMemUnmap", 1, (CUdeviceptr address, size_t bytes))                                                \
  X(memory_set_access, "cuMemSetAccess", 1,                                                                            \
    (CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t count))                                  \
  X(memory_export, "cuMemExportToShareableHandle", 0,                                                                  \
    (void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type, unsigned long long flags))  \
  X(memory_import, "cuMemImportFromShareableHandle", 0,                                                                \
    (CUmemGenericAllocationHandle * handle, void* shareable, CUmemAllocationHandleType type))                          \
  X(memory_properties, "cuMemGetAllocationPropertiesFromHandle", 0,                                                    \
    (CUmemAllocationProp * properties, CUmemGenericAllocationHandle handle))                                           \
  X(memory_info, "cuMemGetInfo_v2", 1, (size_t* free_bytes, size_t* total_bytes))                                      \
  X(host_register, "cuMemHostRegister_v2", 1, (void* address, size_t bytes, unsigned int flags))                       \
  X(host_unregister, "cuMemHostUnregister", 1, (void* address))                                                        \
  X(host_device_pointer, "cuMemHostGetDevicePointer_v2", 1, (CUdeviceptr * device, void* host, unsigned int flags))    \
  X(copy_h2d, "cuMemcpyHtoDAsync_v2", 1, (CUdeviceptr to, const void* from, size_t bytes, CUstream stream))            \
  X(copy_d2h, "cuMemcpyDtoHAsync_v2", 1, (void* to, CUdeviceptr from, size_t bytes, CUstream stream))                  \
  X(copy_d2d, "cuMemcpyDtoDAsync_v2", 1, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))            \
  X(copy_peer, "cuMemcpyPeerAsync", 0,                                                                                 \
    (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes, CUstream stream))   \
  X(copy_3d, "cuMemcpy3DAsync_v2", 1, (const CUDA_MEMCPY3D* copy, CUstream stream))                                    \
  X(copy_3d_peer, "cuMemcpy3DPeerAsync", 0, (const CUDA_MEMCPY3D_PEER* copy, CUstream stream))                         \
  X(pointer_attribute, "cuPointerGetAttribute", 0, (void* data, int attribute, CUdeviceptr address))                   \
  X(flush_rdma_writes, "cuFlushGPUDirectRDMAWrites", 0, (int target, int scope))                                       \
  X(device_attribute, "cuDeviceGetAttribute", 0, (int* value, int attribute, CUdevice device))                         \
  X(launch_host_function, "cuLaunchHostFunc", 0, (CUstream stream, CUhostFn function, void* data))                     \
  X(set_d8, "cuMemsetD8Async", 1, (CUdeviceptr to, unsigned char value, size_t count, CUstream stream))                \
  X(set_d16, "cuMemsetD16Async", 1, (CUdeviceptr to, unsigned short value, size_t count, CUstream stream))             \
  X(set_d32, "cuMemsetD32Async", 1, (CUdeviceptr to, unsigned int value, size_t count, CUstream stream))               \
  X(set_2d_d8, "cuMemsetD2D8Async", 1,                                                                                 \
    (CUdeviceptr to, size_t pitch, unsigned char value, size_t width, size_t height, CUstream stream))                 \
  X(set_2d_d16, "cuMemsetD2D16Async", 1,                                                                               \
    (CUdeviceptr to, size_t pitch, unsigned short value, size_t width, size_t height, CUstream stream))                \
  X(set_2d_d32, "cuMemsetD2D32Async", 1,                                                                               \
    (CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height, CUstream stream))                  \
  X(module_load, "cuModuleLoadDataEx", 1,                                                                              \
    (CUmodule * module, const void* image, unsigned int option_count, CUjit_option* options, void** values))           \
  X(module_unload, "cuModuleUnload", 1, (CUmodule module))                                                             \
  X(module_function_count, "cuModuleGetFunctionCount", 0, (unsigned int* count, CUmodule module))                      \
  X(module_function, "cuModuleGetFunction", 1, (CUfunction * function, CUmodule module, const char* name))             \
  X(module_global, "cuModuleGetGlobal_v2", 1,                                                                          \
    (CUdeviceptr * address, size_t* bytes, CUmodule module, const char* name))                                         \
  X(function_attribute, "cuFuncGetAttribute", 1, (int* value, int attribute, CUfunction function))                     \
  X(function_set_attribute, "cuFuncSetAttribute", 1, (CUfunction function, int attribute, int value))                  \
  X(function_set_cache_config, "cuFuncSetCacheConfig", 1, (CUfunction function, unsigned int config))                  \
  X(function_param, "cuFuncGetParamInfo", 0, (CUfunction function, size_t index, size_t* offset, size_t* bytes))       \
  X(occupancy_blocks, "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", 1,                                       \
    (int* blocks, CUfunction function, int block_size, size_t shared_bytes, unsigned int flags))                       \
  X(occupancy_shared, "cuOccupancyAvailableDynamicSMemPerBlock", 0,                                                    \
    (size_t* bytes, CUfunction function, int blocks, int block_size))                                                  \
  X(link_create, "cuLinkCreate_v2", 0,                                                                                 \
    (unsigned int option_count, CUjit_option* options, void** values, CUlinkState* state))                             \
  X(link_add, "cuLinkAddData_v2", 0,                                                                                   \
    (CUlinkState state, unsigned int type, void* data, size_t bytes, const char* name, unsigned int option_count,      \
     CUjit_option* options, void** values))                                                                            \
  X(link_complete, "cuLinkComplete", 0, (CUlinkState state, void** image, size_t* bytes))                              \
  X(link_destroy, "cuLinkDestroy", 0, (CUlinkState state))                                                             \
  X(module_enumerate, "cuModuleEnumerateFunctions", 0, (CUfunction * functions, unsigned int count, CUmodule module))  \
  X(function_name, "cuFuncGetName", 0, (const char** name, CUfunction function))                                       \
  X(library_load, "cuLibraryLoadData", 0,                                                                              \
    (CUlibrary * library, const void* code, CUjit_option* options, void** values, unsigned int option_count,           \
     CUlibraryOption* library_options, void** library_values, unsigned int library_option_count))                      \
  X(library_unload, "cuLibraryUnload", 0, (CUlibrary library))                                                         \
  X(library_kernel, "cuLibraryGetKernel", 0, (CUkernel * kernel, CUlibrary library, const char* name))                 \
  X(library_module, "cuLibraryGetModule", 0, (CUmodule * module, CUlibrary library))                                   \
  X(library_kernel_count, "cuLibraryGetKernelCount", 0, (unsigned int* count, CUlibrary library))                      \
  X(library_enumerate, "cuLibraryEnumerateKernels", 0, (CUkernel * kernels, unsigned int count, CUlibrary library))    \
  X(library_managed, "cuLibraryGetManaged", 0,                                                                         \
    (CUdeviceptr * address, size_t* bytes, CUlibrary library, const char* name))                                       \
  X(library_unified, "cuLibraryGetUnifiedFunction", 0, (void** address, CUlibrary library, const char* name))          \
  X(kernel_name, "cuKernelGetName", 0, (const char** name, CUkernel kernel))                                           \
  X(kernel_function, "cuKernelGetFunction", 0, (CUfunction * function, CUkernel kernel))                               \
  X(kernel_attribute, "cuKernelGetAttribute", 0, (int* value, int attribute, CUkernel kernel, CUdevice device))        \
  X(kernel_set_attribute, "cuKernelSetAttribute", 0, (int attribute, int value, CUkernel kernel, CUdevice device))     \
  X(kernel_param, "cuKernelGetParamInfo", 0, (CUkernel kernel, size_t index, size_t* offset, size_t* bytes))           \
  X(kernel_set_cache_config, "cuKernelSetCacheConfig", 0, (CUkernel kernel, unsigned int config, CUdevice device))     \
  X(occupancy_clusters, "cuOccupancyMaxActiveClusters", 0,                                                             \
    (int* clusters, CUfunction function, const CUlaunchConfig* config))                                                \
  X(occupancy_cluster_size, "cuOccupancyMaxPotentialClusterSize", 0,                                                   \
    (int* size, CUfunction function, const CUlaunchConfig* config))                                                    \
  X(launch, "cuLaunchKernel", 1,                                                                                       \
    (CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,         \
     unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, CUstream stream, void** params,            \
     void** extra))                                                                                                    \
  X(launch_ex, "cuLaunchKernelEx", 0,                                                                                  \
    (const CUlaunchConfig* config, CUfunction function, void** params, void** extra))                                  \
  ORION_DRIVER_ARRAY_FUNCTIONS(X) ORION_DRIVER_GRAPH_FUNCTIONS(X)

typedef struct orion_driver {
#define ORION_DRIVER_MEMBER(member, symbol, required, parameters) CUresult(*member) parameters;
  ORION_DRIVER_FUNCTIONS(ORION_DRIVER_MEMBER)
#undef ORION_DRIVER_MEMBER
  void* library;  // dlopen handle; NULL for the null driver
} orion_driver;

/// Fills the table from `path`. False, with a sentence in `why`, when the library or a required function is missing.
/// A missing optional function becomes one that answers CUDA_ERROR_NOT_SUPPORTED.
bool orion_driver_load(orion_driver* driver, const char* path, char* why, size_t why_bytes);
/// A driver that accepts everything and does nothing: for benchmarks of the ring and for sanitizer tests.
void orion_driver_null(orion_driver* driver);

#endif
