// Module images: what a pointer given to cuModuleLoadData can mean, reduced to PTX texts.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_types.h"

namespace sg {

/// PTX texts of an image whose size is not known: PTX up to a NUL, a fatbin container or a wrapper around one.
/// 209 if it only holds machine code, 200 if it is nothing that can be loaded.
CUresult texts_of_image(const void* image, int compute_capability, std::vector<std::string>* texts, std::string* log);

/// PTX texts of a container of `bytes` bytes; nothing outside them is read. Several entries of the best architecture
/// are several texts, which belong together.
CUresult texts_of_container(const uint8_t* data, size_t bytes, int compute_capability, std::vector<std::string>* texts,
                            std::string* log);

/// A file's bytes with a NUL behind them, checked so that texts_of_image stays inside them.
CUresult read_image_file(const char* path, std::vector<char>* bytes);

/// A container that holds the texts, stored; what cuLinkComplete hands out.
std::vector<uint8_t> make_container(const std::vector<std::string>& texts, int compute_capability);

/// False for text that is no PTX at all, which is a damaged image rather than wrong PTX.
bool looks_like_ptx(std::string_view text);

/// Decodes one LZ4 block. False unless it decodes to exactly `out_bytes` bytes.
bool decode_lz4(const uint8_t* in, size_t in_bytes, uint8_t* out, size_t out_bytes);

}  // namespace sg
