// cuLink*: collects PTX; the image that cuLinkComplete returns is a container with all of it, linked at load.
#include <cstring>

#include "api.h"
#include "archive.h"
#include "fatbin.h"
#include "jit.h"

using namespace sg;

namespace {

CUresult add_input(Driver& driver, LinkState& link, int type, const void* data, size_t bytes) {
  const int capability = driver.cc_major * 10 + driver.cc_minor;
  std::string log;
  switch (type) {
    case CU_JIT_INPUT_PTX: {
      const size_t length = strnlen(static_cast<const char*>(data), bytes);
      const std::string_view text(static_cast<const char*>(data), length);
      if (!looks_like_ptx(text)) return CUDA_ERROR_INVALID_IMAGE;
      link.texts.emplace_back(text);
      return CUDA_SUCCESS;
    }
    case CU_JIT_INPUT_FATBINARY:
      return texts_of_container(static_cast<const uint8_t*>(data), bytes, capability, &link.texts, &log);
    case CU_JIT_INPUT_CUBIN:
      return CUDA_ERROR_NO_BINARY_FOR_GPU;  // machine code
    case CU_JIT_INPUT_OBJECT:
    case CU_JIT_INPUT_LIBRARY:
      return texts_of_objects(static_cast<const uint8_t*>(data), bytes, capability, &link.texts, &log);
    case CU_JIT_INPUT_NVVM:
      return CUDA_ERROR_NOT_SUPPORTED;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

template <class F>
CUresult with_link(CUlinkState handle, F f) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto link = driver.links.get(handle);
    return link ? f(driver, *link) : CUDA_ERROR_INVALID_HANDLE;
  });
}

}  // namespace

SG_API cuLinkCreate_v2(unsigned count, CUjit_option* options, void** values, CUlinkState* out) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    JitOptions jit;
    if (!out || !jit.read(count, options, values)) return CUDA_ERROR_INVALID_VALUE;
    auto link = std::make_shared<LinkState>();
    link->context = context.shared_from_this();
    if (count > 0) link->options.assign(options, options + count);
    link->option_values = values;
    *out = to_handle<CUlinkState>(driver.links.add(std::move(link)));
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuLinkCreate, cuLinkCreate_v2);

SG_API cuLinkAddData_v2(CUlinkState handle, int type, void* data, size_t bytes, const char*, unsigned count,
                        CUjit_option* options, void** values) {
  return with_link(handle, [&](Driver& driver, LinkState& link) -> CUresult {
    JitOptions jit;
    if (!data || bytes == 0 || !jit.read(count, options, values) || !link.image.empty()) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    return add_input(driver, link, type, data, bytes);
  });
}
SG_ALIAS(cuLinkAddData, cuLinkAddData_v2);

SG_API cuLinkAddFile_v2(CUlinkState handle, int type, const char* path, unsigned count, CUjit_option* options,
                        void** values) {
  return with_link(handle, [&](Driver& driver, LinkState& link) -> CUresult {
    JitOptions jit;
    if (!path || !jit.read(count, options, values) || !link.image.empty()) return CUDA_ERROR_INVALID_VALUE;
    std::vector<char> bytes;
    const CUresult read = read_image_file(path, &bytes);
    if (read != CUDA_SUCCESS) return read;
    return add_input(driver, link, type, bytes.data(), bytes.size() - 1);  // without the NUL
  });
}
SG_ALIAS(cuLinkAddFile, cuLinkAddFile_v2);

SG_API cuLinkComplete(CUlinkState handle, void** image, size_t* bytes) {
  return with_link(handle, [&](Driver& driver, LinkState& link) -> CUresult {
    if (!image || link.texts.empty()) return CUDA_ERROR_INVALID_VALUE;
    if (link.failed) return CUDA_ERROR_INVALID_SOURCE;
    JitOptions jit;
    jit.read(static_cast<unsigned>(link.options.size()), link.options.data(), link.option_values);
    // Linked here too, so that errors show now and in the log that the program gave to cuLinkCreate.
    std::shared_ptr<Module> trial;
    std::string log;
    CUresult linked = make_module(link.context, link.texts, &trial, &log);
    if (linked == CUDA_SUCCESS) {
      // Kernels are decoded at first use, and only then are missing functions seen.
      for (const std::string& name : trial->program->kernel_names()) {
        int code = CUDA_SUCCESS;
        if (trial->program->kernel(name, &log, &code)) continue;
        linked = code;
        break;
      }
      driver.modules.take(trial->handle);
    }
    jit.finish(linked == CUDA_SUCCESS ? log : "", linked == CUDA_SUCCESS ? "" : log);
    link.failed = linked != CUDA_SUCCESS;
    if (link.failed) return linked;
    link.image = make_container(link.texts, driver.cc_major * 10 + driver.cc_minor);
    *image = link.image.data();
    if (bytes) *bytes = link.image.size();
    return CUDA_SUCCESS;
  });
}

SG_API cuLinkDestroy(CUlinkState handle) {
  return with_driver(
      [&](Driver& driver) -> CUresult { return driver.links.take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}
