// Inputs of a link that hold more than PTX: object files and archives of them, and NVIDIA's device runtime.
#pragma once
#include <string>
#include <vector>

#include "state.h"

namespace sg {

/// PTX texts inside an object file (ELF) or an archive of such files (`ar`). The member of libcudadevrt.a is answered
/// with device_runtime_text(). 209 if an object has device code, but none that runs here; 200 for damaged files.
CUresult texts_of_objects(const uint8_t* data, size_t bytes, int compute_capability, std::vector<std::string>* texts,
                          std::string* log);

/// What kernels call of the device runtime: the functions behind cooperative groups' grids.
const char* device_runtime_text();

}  // namespace sg
