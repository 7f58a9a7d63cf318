// What launches and function queries share.
#pragma once
#include "state.h"

namespace sg {

CUresult kernel_attribute(const Kernel& kernel, int attribute, int max_dynamic, int carveout, int* value);
CUresult param_info(const Kernel& kernel, size_t index, size_t* offset, size_t* size);
CUresult check_max_dynamic(const Kernel& kernel, int value);
int default_max_dynamic(const Kernel& kernel);
int blocks_per_multiprocessor(const Kernel& kernel, uint64_t block_threads, size_t dynamic_shared_bytes);

}  // namespace sg
