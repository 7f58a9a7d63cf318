// cuModule*, and modules as such.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api.h"
#include "fatbin.h"
#include "jit.h"
#include "launch.h"

namespace sg {

namespace {

/// A program that softgpu cannot run is told on stderr which instruction it is about: the code alone says too little.
void report(const char* what, const std::string& log) {
  std::fprintf(stderr, "softgpu: %s: %.*s\n", what, static_cast<int>(std::min<size_t>(log.size(), 2000)), log.c_str());
}

}  // namespace

bool loads_eagerly() {
  const char* asked = std::getenv("CUDA_MODULE_LOADING");
  return asked && std::strcmp(asked, "EAGER") == 0;
}

CUresult Module::function(const char* name, std::shared_ptr<Function>* out) {
  std::lock_guard lock(mutex);
  auto it = functions.find(std::string_view(name));
  if (it != functions.end()) {
    *out = it->second;
    return CUDA_SUCCESS;
  }
  std::string error;
  int code = CUDA_ERROR_NOT_FOUND;
  const Kernel* kernel = program->kernel(name, &error, &code);
  if (!kernel) {
    if (code != CUDA_ERROR_NOT_FOUND) report(name, error);
    return code;
  }
  auto made = std::make_shared<Function>();
  if (!made->code.resize(*Driver::get().devices[context->device]->arena, kDriverUnitBytes)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  made->module = weak_from_this();
  made->module_handle = handle;
  made->kernel = kernel;
  made->max_dynamic_shared_bytes = default_max_dynamic(*kernel);
  Driver::get().functions.add(made);
  functions.emplace(name, made);
  *out = std::move(made);
  return CUDA_SUCCESS;
}

CUresult make_module(const std::shared_ptr<Context>& context, const std::vector<std::string>& texts,
                     std::shared_ptr<Module>* out, std::string* log, void* managed) {
  auto module = std::make_shared<Module>();
  module->context = context;
  module->space = context->space;
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  size_t code_bytes = 0;
  for (const std::string& text : texts) code_bytes += text.size();
  DeviceArena& arena = *Driver::get().devices[context->device]->arena;
  if (!module->code.resize(arena, round_up(code_bytes, kDriverUnitBytes))) return CUDA_ERROR_OUT_OF_MEMORY;
  int code = CUDA_ERROR_INVALID_PTX;
  module->program = link_ptx(views, *module->space, log, &code, managed);
  if (!module->program) return code;
  Driver::get().modules.add(module);
  *out = std::move(module);
  return CUDA_SUCCESS;
}

}  // namespace sg

using namespace sg;

namespace {

CUresult load(CUmodule* out, const void* image, unsigned option_count, const CUjit_option* options, void** values) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    JitOptions jit;
    if (!out || !image || !jit.read(option_count, options, values)) return CUDA_ERROR_INVALID_VALUE;
    std::vector<std::string> texts;
    std::string log;
    CUresult result = texts_of_image(image, driver.cc_major * 10 + driver.cc_minor, &texts, &log);
    std::shared_ptr<Module> module;
    if (result == CUDA_SUCCESS) result = make_module(context.shared_from_this(), texts, &module, &log);
    jit.finish(result == CUDA_SUCCESS ? log : "", result == CUDA_SUCCESS ? "" : log);
    if (result == CUDA_SUCCESS) {
      *out = to_handle<CUmodule>(module->handle);
    } else if (!log.empty() && option_count == 0) {  // with options the log is the program's to show
      report("module", log);
    }
    return result;
  });
}

}  // namespace

SG_API cuModuleLoadData(CUmodule* out, const void* image) { return load(out, image, 0, nullptr, nullptr); }
SG_API cuModuleLoadFatBinary(CUmodule* out, const void* image) { return load(out, image, 0, nullptr, nullptr); }
SG_API cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned count, CUjit_option* options, void** values) {
  return load(out, image, count, options, values);
}

SG_API cuModuleLoad(CUmodule* out, const char* path) {
  return guarded([&]() -> CUresult {
    if (!out || !path) return CUDA_ERROR_INVALID_VALUE;
    std::vector<char> bytes;
    const CUresult read = with_context([&](Driver&, Context&) { return read_image_file(path, &bytes); });
    return read == CUDA_SUCCESS ? load(out, bytes.data(), 0, nullptr, nullptr) : read;
  });
}

SG_API cuModuleUnload(CUmodule handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto module = driver.modules.get(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (module->owned_by_library) return CUDA_ERROR_NOT_PERMITTED;
    module->context->synchronize();
    if (!driver.modules.take(handle)) return CUDA_ERROR_INVALID_HANDLE;
    driver.functions.take_if([&](const Function& function) { return function.module_handle == module->handle; });
    return CUDA_SUCCESS;
  });
}

SG_API cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!out || !name) return CUDA_ERROR_INVALID_VALUE;
    auto module = driver.modules.get(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    std::shared_ptr<Function> function;
    const CUresult result = module->function(name, &function);
    if (result == CUDA_SUCCESS) *out = to_handle<CUfunction>(function->handle);
    return result;
  });
}

SG_API cuModuleGetGlobal_v2(CUdeviceptr* address, size_t* bytes, CUmodule handle, const char* name) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    if (!name || (!address && !bytes)) return CUDA_ERROR_INVALID_VALUE;
    auto module = driver.modules.get(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    for (const Global& global : module->program->globals()) {
      if (global.name != name) continue;
      if (address) *address = global.address;
      if (bytes) *bytes = global.size_bytes;
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
  });
}

SG_API cuModuleGetLoadingMode(int* mode) {
  return with_driver([&](Driver&) -> CUresult {
    if (!mode) return CUDA_ERROR_INVALID_VALUE;
    constexpr int kEager = 1, kLazy = 2;
    *mode = loads_eagerly() ? kEager : kLazy;
    return CUDA_SUCCESS;
  });
}

SG_API cuModuleGetFunctionCount(unsigned* count, CUmodule handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto module = driver.modules.get(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    *count = static_cast<unsigned>(module->program->kernel_names().size());
    return CUDA_SUCCESS;
  });
}

SG_API cuModuleEnumerateFunctions(CUfunction* out, unsigned count, CUmodule handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto module = driver.modules.get(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!out && count > 0) return CUDA_ERROR_INVALID_VALUE;
    const auto& names = module->program->kernel_names();
    for (unsigned i = 0; i < count && i < names.size(); ++i) {
      std::shared_ptr<Function> function;
      const CUresult result = module->function(names[i].c_str(), &function);
      if (result != CUDA_SUCCESS) return result;
      out[i] = to_handle<CUfunction>(function->handle);
    }
    return CUDA_SUCCESS;
  });
}
