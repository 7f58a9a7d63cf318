// cuLibrary* and cuKernel*: code that belongs to no context and is loaded into each at first use.
#include <cstdio>
#include <cstdlib>

#include "api.h"
#include "fatbin.h"
#include "jit.h"
#include "launch.h"

namespace sg {

CUresult Library::module_in(const std::shared_ptr<Context>& context, std::shared_ptr<Module>* out, std::string* log) {
  std::lock_guard lock(mutex);
  auto& slot = modules[{context->id, context->generation.load()}];
  if (!slot) {
    const CUresult made = make_module(context, texts, &slot, log, outline->managed_memory());
    if (made != CUDA_SUCCESS) return made;
    slot->owned_by_library = true;
  }
  *out = slot;
  return CUDA_SUCCESS;
}

}  // namespace sg

using namespace sg;

namespace {

/// Memory for a program that is only looked at, never run. Its managed variables are those of the library's modules.
class OutlineSpace : public AddressSpace {
 public:
  bool find(uint64_t, Range*) const override { return false; }
  uint64_t epoch() const override { return 0; }
  void* allocate_module_memory(size_t bytes) override {
    constexpr size_t kAlignBytes = 256;
    if (bytes > SIZE_MAX - kAlignBytes) return nullptr;
    const size_t size = round_up(bytes, kAlignBytes);
    void* memory = std::aligned_alloc(kAlignBytes, size);
    if (memory) std::memset(memory, 0, size);
    return memory;
  }
  void free_module_memory(void* address) override { std::free(address); }
  void* allocate_managed_memory(size_t bytes) override {
    return allocate_managed(Driver::get(), bytes, {0, 0, CU_MEM_ATTACH_GLOBAL});
  }
  void free_managed_memory(void* address) override {
    Driver& driver = Driver::get();
    const auto region = driver.map.remove(reinterpret_cast<uint64_t>(address));
    if (region) driver.release_regions({*region});
  }
};

CUresult load_library(CUlibrary* out, const void* code, unsigned count, const CUjit_option* options, void** values) {
  return with_driver([&](Driver& driver) -> CUresult {
    JitOptions jit;
    if (!out || !code || !jit.read(count, options, values)) return CUDA_ERROR_INVALID_VALUE;
    auto library = std::make_shared<Library>();
    std::string log;
    CUresult result = texts_of_image(code, driver.cc_major * 10 + driver.cc_minor, &library->texts, &log);
    if (result == CUDA_SUCCESS) {
      library->outline_space = std::make_unique<OutlineSpace>();
      const std::vector<std::string_view> views(library->texts.begin(), library->texts.end());
      library->outline = link_ptx(views, *library->outline_space, &log, &result);
      if (library->outline) result = CUDA_SUCCESS;
    }
    jit.finish(result == CUDA_SUCCESS ? log : "", result == CUDA_SUCCESS ? "" : log);
    if (result != CUDA_SUCCESS) {
      if (!log.empty()) std::fprintf(stderr, "softgpu: library: %.2000s\n", log.c_str());
      return result;
    }
    for (auto& context : loads_eagerly() ? driver.contexts.all() : decltype(driver.contexts.all())()) {
      std::shared_ptr<Module> module;
      if (!context->active) continue;
      result = library->module_in(context, &module, &log);
      if (result != CUDA_SUCCESS) return result;
    }
    driver.libraries.add(library);
    for (const std::string& name : library->outline->kernel_names()) {
      auto kernel = std::make_shared<LibraryKernel>();
      kernel->library_handle = library->handle;
      kernel->name = name;
      driver.kernels.add(kernel);
      library->kernels.emplace(name, std::move(kernel));
    }
    *out = to_handle<CUlibrary>(library->handle);
    return CUDA_SUCCESS;
  });
}

/// f(library, module in the current context)
template <class F>
CUresult with_library_module(CUlibrary handle, F f) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    auto library = driver.libraries.get(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    std::shared_ptr<Module> module;
    std::string log;
    const CUresult loaded = library->module_in(context.shared_from_this(), &module, &log);
    return loaded == CUDA_SUCCESS ? f(*module) : loaded;
  });
}

/// f(LibraryKernel&, const Kernel&)
template <class F>
CUresult with_kernel(CUkernel handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto kernel = driver.kernels.get(handle);
    if (!kernel) return CUDA_ERROR_INVALID_HANDLE;
    auto library = driver.libraries.get(kernel->library_handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    std::string error;
    int code = CUDA_ERROR_NOT_FOUND;
    const Kernel* description = library->outline->kernel(kernel->name, &error, &code);
    return description ? f(*kernel, *description) : code;
  });
}

}  // namespace

SG_API cuLibraryLoadData(CUlibrary* out, const void* code, CUjit_option* options, void** values, unsigned count,
                         int* library_options, void**, unsigned library_count) {
  if (library_count > 0 && !library_options) return CUDA_ERROR_INVALID_VALUE;
  return load_library(out, code, count, options, values);
}

SG_API cuLibraryLoadFromFile(CUlibrary* out, const char* path, CUjit_option* options, void** values, unsigned count,
                             int*, void**, unsigned) {
  return guarded([&]() -> CUresult {
    if (!out || !path) return CUDA_ERROR_INVALID_VALUE;
    std::vector<char> bytes;
    const CUresult read = read_image_file(path, &bytes);
    return read == CUDA_SUCCESS ? load_library(out, bytes.data(), count, options, values) : read;
  });
}

SG_API cuLibraryUnload(CUlibrary handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto library = driver.libraries.take(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    driver.kernels.take_if([&](const LibraryKernel& kernel) { return kernel.library_handle == library->handle; });
    std::lock_guard lock(library->mutex);
    for (auto& entry : library->modules) {
      auto& module = entry.second;
      if (!module) continue;
      module->context->synchronize();
      driver.modules.take(module->handle);
      driver.functions.take_if([&](const Function& function) { return function.module_handle == module->handle; });
    }
    library->modules.clear();
    return CUDA_SUCCESS;
  });
}

SG_API cuLibraryGetKernel(CUkernel* out, CUlibrary handle, const char* name) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out || !name) return CUDA_ERROR_INVALID_VALUE;
    auto library = driver.libraries.get(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    auto it = library->kernels.find(std::string_view(name));
    if (it == library->kernels.end()) return CUDA_ERROR_NOT_FOUND;
    *out = to_handle<CUkernel>(it->second->handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuLibraryGetKernelCount(unsigned* count, CUlibrary handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto library = driver.libraries.get(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    *count = static_cast<unsigned>(library->kernels.size());
    return CUDA_SUCCESS;
  });
}

SG_API cuLibraryEnumerateKernels(CUkernel* out, unsigned count, CUlibrary handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto library = driver.libraries.get(handle);
    if (!library) return CUDA_ERROR_INVALID_HANDLE;
    if (!out && count > 0) return CUDA_ERROR_INVALID_VALUE;
    unsigned i = 0;
    for (const auto& entry : library->kernels) {
      if (i == count) break;
      out[i++] = to_handle<CUkernel>(entry.second->handle);
    }
    return CUDA_SUCCESS;
  });
}

SG_API cuLibraryGetModule(CUmodule* out, CUlibrary handle) {
  return with_library_module(handle, [&](Module& module) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUmodule>(module.handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuLibraryGetGlobal(CUdeviceptr* address, size_t* bytes, CUlibrary handle, const char* name) {
  return with_library_module(handle, [&](Module& module) -> CUresult {
    if (!name || (!address && !bytes)) return CUDA_ERROR_INVALID_VALUE;
    for (const Global& global : module.program->globals()) {
      if (global.name != name) continue;
      if (address) *address = global.address;
      if (bytes) *bytes = global.size_bytes;
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
  });
}

SG_API cuKernelGetFunction(CUfunction* out, CUkernel handle) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    if (!driver.kernels.get(handle)) return CUDA_ERROR_INVALID_HANDLE;
    std::shared_ptr<Function> function;
    const CUresult found =
        resolve_function(driver, context.shared_from_this(), reinterpret_cast<CUfunction>(handle), &function);
    if (found == CUDA_SUCCESS) *out = to_handle<CUfunction>(function->handle);
    return found;
  });
}

SG_API cuKernelGetLibrary(CUlibrary* out, CUkernel handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    auto kernel = driver.kernels.get(handle);
    if (!kernel) return CUDA_ERROR_INVALID_HANDLE;
    *out = to_handle<CUlibrary>(kernel->library_handle);
    return CUDA_SUCCESS;
  });
}

SG_API cuKernelGetName(const char** name, CUkernel handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!name) return CUDA_ERROR_INVALID_VALUE;
    auto kernel = driver.kernels.get(handle);
    if (!kernel) return CUDA_ERROR_INVALID_HANDLE;
    *name = kernel->name.c_str();
    return CUDA_SUCCESS;
  });
}

SG_API cuKernelGetAttribute(int* value, int attribute, CUkernel handle, CUdevice dev) {
  return with_kernel(handle, [&](LibraryKernel& kernel, const Kernel& description) -> CUresult {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (!Driver::get().device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    const int set = kernel.max_dynamic_shared_bytes;
    return kernel_attribute(description, attribute, set >= 0 ? set : default_max_dynamic(description), -1, value);
  });
}

SG_API cuKernelSetAttribute(int attribute, int value, CUkernel handle, CUdevice dev) {
  return with_kernel(handle, [&](LibraryKernel& kernel, const Kernel& description) -> CUresult {
    if (!Driver::get().device(dev)) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
      return value < -1 || value > 100 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
    const bool cluster = attribute > CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET &&
                         attribute <= CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE;
    if (cluster && Driver::get().record) return CUDA_SUCCESS;  // about how blocks are placed
    if (cluster) return CUDA_ERROR_NOT_SUPPORTED;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    const CUresult checked = check_max_dynamic(description, value);
    if (checked == CUDA_SUCCESS) kernel.max_dynamic_shared_bytes = value;
    return checked;
  });
}

SG_API cuKernelSetCacheConfig(CUkernel handle, int config, CUdevice dev) {
  return with_kernel(handle, [&](LibraryKernel&, const Kernel&) -> CUresult {
    if (config < 0 || config > 3) return CUDA_ERROR_INVALID_VALUE;
    return Driver::get().device(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
  });
}

SG_API cuKernelGetParamInfo(CUkernel handle, size_t index, size_t* offset, size_t* size) {
  return with_context([&](Driver&, Context&) {
    return with_kernel(handle, [&](LibraryKernel&, const Kernel& description) {
      return param_info(description, index, offset, size);
    });
  });
}
