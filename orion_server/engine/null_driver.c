// A driver that accepts everything and does nothing. Work counts as done when it is issued, so a marker is written at
// once. It keeps no state: what must be bounded is bounded by the engine, which is what the tests on it check.
#include <stdatomic.h>
#include <string.h>

#include "driver.h"

#define HANDLE(type) ((type)(uintptr_t)0x1000)

static CUresult init(unsigned int flags) { return (CUresult)(flags ? 1 : 0); }
static CUresult ok_device(CUdevice device) { return (CUresult)(device < 0); }
static CUresult primary_retain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)(uintptr_t)(0x1000 + (uint64_t)(uint32_t)device);
  return (CUresult)0;
}
static CUresult primary_state(CUdevice device, unsigned int* flags, int* active) {
  *flags = 0;
  *active = device >= 0;
  return (CUresult)0;
}
static CUresult context_create(CUcontext* context, unsigned int flags, CUdevice device) {
  *context = HANDLE(CUcontext);
  return (CUresult)(flags > 0xff || device < 0);
}
static CUresult ok_context(CUcontext context) {
  (void)context;
  return (CUresult)0;
}
static CUresult context_api_version(CUcontext context, unsigned int* version) {
  (void)context;
  *version = 3020;
  return (CUresult)0;
}
static CUresult context_id(CUcontext context, unsigned long long* id) {
  *id = (unsigned long long)(uintptr_t)context;
  return (CUresult)0;
}
static CUresult set_limit(unsigned int limit, size_t value) {
  (void)value;
  return (CUresult)(limit > 0xff);
}
static CUresult get_limit(size_t* value, unsigned int limit) {
  *value = 1024;
  return (CUresult)(limit > 0xff);
}
static CUresult ok_uint(unsigned int value) {
  (void)value;
  return (CUresult)0;
}
static CUresult enable_peer(CUcontext peer, unsigned int flags) {
  (void)peer;
  return (CUresult)(flags != 0);
}
static CUresult stream_create(CUstream* stream, unsigned int flags, int priority) {
  (void)flags, (void)priority;
  *stream = HANDLE(CUstream);
  return (CUresult)0;
}
static CUresult ok_stream(CUstream stream) {
  (void)stream;
  return (CUresult)0;
}
static CUresult wait_event(CUstream stream, CUevent event, unsigned int flags) {
  (void)stream, (void)event, (void)flags;
  return (CUresult)0;
}
static CUresult write_value64(CUstream stream, CUdeviceptr address, unsigned long long value, unsigned int flags) {
  (void)stream, (void)flags;
  // Only the engine's own pages are real memory here; a program's device addresses are not.
  (void)address, (void)value;
  return (CUresult)0;
}
static CUresult value32(CUstream stream, CUdeviceptr address, uint32_t value, unsigned int flags) {
  (void)stream, (void)address, (void)value, (void)flags;
  return (CUresult)0;
}
static CUresult event_create(CUevent* event, unsigned int flags) {
  (void)flags;
  *event = HANDLE(CUevent);
  return (CUresult)0;
}
static CUresult ok_event(CUevent event) {
  (void)event;
  return (CUresult)0;
}
static CUresult event_record(CUevent event, CUstream stream, unsigned int flags) {
  (void)event, (void)stream, (void)flags;
  return (CUresult)0;
}
static CUresult event_export(CUipcEventHandle* handle, CUevent event) {
  memset(handle, 0, sizeof *handle);
  memcpy(handle, &event, sizeof event);
  return (CUresult)0;
}
static CUresult event_import(CUevent* event, CUipcEventHandle handle) {
  (void)handle;
  *event = HANDLE(CUevent);
  return (CUresult)0;
}
static CUresult event_elapsed(float* milliseconds, CUevent start, CUevent end) {
  (void)start, (void)end;
  *milliseconds = 0.0f;
  return (CUresult)0;
}
static CUresult address_reserve(CUdeviceptr* address, size_t bytes, size_t alignment, CUdeviceptr hint,
                                unsigned long long flags) {
  (void)bytes, (void)alignment, (void)flags;
  *address = hint;
  return (CUresult)0;
}
static CUresult ok_range(CUdeviceptr address, size_t bytes) {
  (void)address, (void)bytes;
  return (CUresult)0;
}
static CUresult memory_create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                              unsigned long long flags) {
  (void)bytes, (void)properties, (void)flags;
  *handle = 0x1000;
  return (CUresult)0;
}
static CUresult memory_release(CUmemGenericAllocationHandle handle) {
  (void)handle;
  return (CUresult)0;
}
static CUresult memory_map(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                           unsigned long long flags) {
  (void)address, (void)bytes, (void)offset, (void)handle, (void)flags;
  return (CUresult)0;
}
static CUresult set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  (void)address, (void)bytes, (void)access, (void)count;
  return (CUresult)0;
}
static CUresult memory_info(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = *total_bytes = (size_t)1 << 36;
  return (CUresult)0;
}
static CUresult host_register(void* address, size_t bytes, unsigned int flags) {
  (void)address, (void)bytes, (void)flags;
  return (CUresult)0;
}
static CUresult host_unregister(void* address) {
  (void)address;
  return (CUresult)0;
}
static CUresult host_device_pointer(CUdeviceptr* device, void* host, unsigned int flags) {
  (void)flags;
  *device = (CUdeviceptr)(uintptr_t)host;
  return (CUresult)0;
}
static CUresult copy_h2d(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  (void)to, (void)from, (void)bytes, (void)stream;
  return (CUresult)0;
}
static CUresult copy_d2h(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)to, (void)from, (void)bytes, (void)stream;
  return (CUresult)0;
}
static CUresult copy_d2d(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)to, (void)from, (void)bytes, (void)stream;
  return (CUresult)0;
}
static CUresult copy_peer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,
                          CUstream stream) {
  (void)to, (void)to_context, (void)from, (void)from_context, (void)bytes, (void)stream;
  return (CUresult)0;
}
static CUresult copy_3d(const CUDA_MEMCPY3D* copy, CUstream stream) {
  (void)copy, (void)stream;
  return (CUresult)0;
}
static CUresult copy_3d_peer(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  (void)copy, (void)stream;
  return (CUresult)0;
}
static CUresult set_d8(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  (void)to, (void)value, (void)count, (void)stream;
  return (CUresult)0;
}
static CUresult set_d16(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
  (void)to, (void)value, (void)count, (void)stream;
  return (CUresult)0;
}
static CUresult set_d32(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
  (void)to, (void)value, (void)count, (void)stream;
  return (CUresult)0;
}
static CUresult set_2d_d8(CUdeviceptr to, size_t pitch, unsigned char value, size_t width, size_t height,
                          CUstream stream) {
  (void)to, (void)pitch, (void)value, (void)width, (void)height, (void)stream;
  return (CUresult)0;
}
static CUresult set_2d_d16(CUdeviceptr to, size_t pitch, unsigned short value, size_t width, size_t height,
                           CUstream stream) {
  (void)to, (void)pitch, (void)value, (void)width, (void)height, (void)stream;
  return (CUresult)0;
}
static CUresult set_2d_d32(CUdeviceptr to, size_t pitch, unsigned int value, size_t width, size_t height,
                           CUstream stream) {
  (void)to, (void)pitch, (void)value, (void)width, (void)height, (void)stream;
  return (CUresult)0;
}
static CUresult module_load(CUmodule* module, const void* image, unsigned int option_count, CUjit_option* options,
                            void** values) {
  (void)image, (void)option_count, (void)options, (void)values;
  *module = HANDLE(CUmodule);
  return (CUresult)0;
}
static CUresult module_unload(CUmodule module) {
  (void)module;
  return (CUresult)0;
}
static CUresult module_function_count(unsigned int* count, CUmodule module) {
  (void)module;
  *count = 1;
  return (CUresult)0;
}
static CUresult module_function(CUfunction* function, CUmodule module, const char* name) {
  (void)module;
  // "..._params_N": a kernel of N parameters of 8 bytes each, for measuring what they cost.
  const char* end = strstr(name, "_params_");
  uint64_t params = 0;
  for (const char* digit = end ? end + 8 : ""; *digit >= '0' && *digit <= '9' && params < 64; digit++) {
    params = params * 10 + (uint64_t)(*digit - '0');
  }
  *function = (CUfunction)(uintptr_t)(0x1000 + params);
  return (CUresult)(name[0] ? 0 : 500);
}
static CUresult module_global(CUdeviceptr* address, size_t* bytes, CUmodule module, const char* name) {
  (void)module;
  *address = 0x7f0000000000ull;
  *bytes = 64;
  return (CUresult)(name[0] ? 0 : 500);
}
static CUresult function_attribute(int* value, int attribute, CUfunction function) {
  (void)function;
  *value = attribute == 0 ? 1024 : 0;
  return (CUresult)0;
}
static CUresult function_set_attribute(CUfunction function, int attribute, int value) {
  (void)function, (void)attribute, (void)value;
  return (CUresult)0;
}
static CUresult function_set_cache_config(CUfunction function, unsigned int config) {
  (void)function, (void)config;
  return (CUresult)0;
}
// It knows no kernels, so it cannot tell the layouts of most; parameters of any size pass there.
static CUresult function_param(CUfunction function, size_t index, size_t* offset, size_t* bytes) {
  const uint64_t params = (uint64_t)(uintptr_t)function - 0x1000;
  if (params == 0) return CUDA_ERROR_NOT_SUPPORTED;
  if (index >= params) return CUDA_ERROR_INVALID_VALUE;
  *offset = index * 8;
  *bytes = 8;
  return (CUresult)0;
}
static CUresult library_load(CUlibrary* library, const void* code, CUjit_option* options, void** values,
                             unsigned int option_count, CUlibraryOption* library_options, void** library_values,
                             unsigned int library_option_count) {
  (void)code, (void)options, (void)values, (void)option_count, (void)library_options, (void)library_values;
  (void)library_option_count;
  *library = HANDLE(CUlibrary);
  return (CUresult)0;
}
static CUresult library_unload(CUlibrary library) {
  (void)library;
  return (CUresult)0;
}
static CUresult library_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  (void)library;
  return module_function((CUfunction*)kernel, NULL, name);
}
static CUresult library_module(CUmodule* module, CUlibrary library) {
  (void)library;
  *module = HANDLE(CUmodule);
  return (CUresult)0;
}
static CUresult kernel_function(CUfunction* function, CUkernel kernel) {
  *function = (CUfunction)kernel;
  return (CUresult)0;
}
static CUresult kernel_attribute(int* value, int attribute, CUkernel kernel, CUdevice device) {
  (void)device;
  return function_attribute(value, attribute, (CUfunction)kernel);
}
static CUresult kernel_set_attribute(int attribute, int value, CUkernel kernel, CUdevice device) {
  (void)attribute, (void)value, (void)kernel, (void)device;
  return (CUresult)0;
}
static CUresult occupancy_blocks(int* blocks, CUfunction function, int block_size, size_t shared_bytes,
                                 unsigned int flags) {
  (void)function, (void)block_size, (void)shared_bytes, (void)flags;
  *blocks = 1;
  return (CUresult)0;
}
static CUresult occupancy_shared(size_t* bytes, CUfunction function, int blocks, int block_size) {
  (void)function, (void)blocks, (void)block_size;
  *bytes = 0;
  return (CUresult)0;
}
static CUresult link_create(unsigned int option_count, CUjit_option* options, void** values, CUlinkState* state) {
  (void)option_count, (void)options, (void)values;
  *state = HANDLE(CUlinkState);
  return (CUresult)0;
}
static CUresult link_add(CUlinkState state, unsigned int type, void* data, size_t bytes, const char* name,
                         unsigned int option_count, CUjit_option* options, void** values) {
  (void)state, (void)type, (void)data, (void)bytes, (void)name, (void)option_count, (void)options, (void)values;
  return (CUresult)0;
}
static CUresult link_complete(CUlinkState state, void** image, size_t* bytes) {
  static char nothing[8];
  (void)state;
  *image = nothing;
  *bytes = sizeof nothing;
  return (CUresult)0;
}
static CUresult link_destroy(CUlinkState state) {
  (void)state;
  return (CUresult)0;
}
static CUresult launch(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                       CUstream stream, void** params, void** extra) {
  (void)function, (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y, (void)block_z;
  (void)shared_bytes, (void)stream, (void)params, (void)extra;
  return (CUresult)0;
}
static CUresult launch_ex(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
  (void)config, (void)function, (void)params, (void)extra;
  return (CUresult)0;
}

static CUresult not_supported(void) { return (CUresult)801; }

void orion_driver_null(orion_driver* driver) {
  *driver = (orion_driver){
      .init = init,
      .primary_retain = primary_retain,
      .primary_release = ok_device,
      .primary_state = primary_state,
      .context_create = context_create,
      .context_destroy = ok_context,
      .context_set_current = ok_context,
      .context_api_version = context_api_version,
      .context_id = context_id,
      .context_set_limit = set_limit,
      .context_get_limit = get_limit,
      .context_set_cache_config = ok_uint,
      .context_enable_peer = enable_peer,
      .context_disable_peer = ok_context,
      .stream_create = stream_create,
      .stream_destroy = ok_stream,
      .stream_query = ok_stream,
      .stream_wait_event = wait_event,
      .write_value32 = value32,
      .write_value64 = write_value64,
      .wait_value32 = value32,
      .wait_value64 = write_value64,
      .event_create = event_create,
      .event_destroy = ok_event,
      .event_record = event_record,
      .event_elapsed = event_elapsed,
      .event_query = ok_event,
      .event_export = event_export,
      .event_import = event_import,
      .address_reserve = address_reserve,
      .address_free = ok_range,
      .memory_create = memory_create,
      .memory_release = memory_release,
      .memory_map = memory_map,
      .memory_unmap = ok_range,
      .memory_set_access = set_access,
      .memory_info = memory_info,
      .host_register = host_register,
      .host_unregister = host_unregister,
      .host_device_pointer = host_device_pointer,
      .copy_h2d = copy_h2d,
      .copy_d2h = copy_d2h,
      .copy_d2d = copy_d2d,
      .copy_peer = copy_peer,
      .copy_3d = copy_3d,
      .copy_3d_peer = copy_3d_peer,
      .set_d8 = set_d8,
      .set_d16 = set_d16,
      .set_d32 = set_d32,
      .set_2d_d8 = set_2d_d8,
      .set_2d_d16 = set_2d_d16,
      .set_2d_d32 = set_2d_d32,
      .module_load = module_load,
      .module_unload = module_unload,
      .module_function_count = module_function_count,
      .module_function = module_function,
      .module_global = module_global,
      .function_attribute = function_attribute,
      .function_set_attribute = function_set_attribute,
      .function_set_cache_config = function_set_cache_config,
      .function_param = function_param,
      .library_load = library_load,
      .library_unload = library_unload,
      .library_kernel = library_kernel,
      .library_module = library_module,
      .kernel_function = kernel_function,
      .kernel_attribute = kernel_attribute,
      .kernel_set_attribute = kernel_set_attribute,
      .occupancy_blocks = occupancy_blocks,
      .occupancy_shared = occupancy_shared,
      .link_create = link_create,
      .link_add = link_add,
      .link_complete = link_complete,
      .link_destroy = link_destroy,
      .launch = launch,
      .launch_ex = launch_ex,
  };
  // What is not spelt out above answers as a library does that lacks it.
#define ORION_DRIVER_FILL(member, symbol, required, parameters) \
  if (!driver->member) driver->member = (CUresult(*) parameters)(void*)not_supported;
  ORION_DRIVER_FUNCTIONS(ORION_DRIVER_FILL)
#undef ORION_DRIVER_FILL
}
