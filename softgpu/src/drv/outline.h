// Outlines: PTX that has an image's kernels, with their parameters, and its variables, but no code. With
// SOFTGPU_RECORD=1 every image becomes one, so that machine code can be loaded and looked at, and launched without
// effect.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sg {

/// Outline of a cubin. Nothing outside [image, +bytes) is read; what is damaged is left out. Empty if it is no ELF
/// file.
std::string outline_of_cubin(const uint8_t* image, size_t bytes);

/// Outline of a PTX text.
std::string outline_of_ptx(std::string_view text);

}  // namespace sg
