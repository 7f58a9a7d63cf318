// Reading fatbin containers. Every offset and length is checked against the container before it is used.
#include "fatbin.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "outline.h"
#include "state.h"

namespace sg {

namespace {

constexpr uint32_t kWrapperMagic = 0x466243b1;
constexpr uint32_t kContainerMagic = 0xba55ed50;
constexpr uint32_t kElfMagic = 0x464c457f;
constexpr size_t kContainerHeaderBytes = 16;
constexpr size_t kEntryHeaderBytes = 64;
constexpr size_t kPtxHeaderBytes = 80;  // with an options record {offset, length}, which is empty here
constexpr uint16_t kKindPtx = 1;
constexpr uint16_t kKindElf = 2;
constexpr uint64_t kFlag64Bit = 0x1;
constexpr uint64_t kFlagLinux = 0x10;
constexpr uint64_t kFlagOldCompression = 0x1000;
constexpr uint64_t kFlagLz4 = 0x2000;
constexpr uint64_t kFlagZstd = 0x8000;
constexpr size_t kMaxImageBytes = size_t{1} << 30;
constexpr size_t kMaxTextBytes = size_t{256} << 20;

template <class T>
T read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Entry {
  uint16_t kind = 0;
  uint32_t sm = 0;
  uint64_t flags = 0;
  const uint8_t* payload = nullptr;
  size_t payload_bytes = 0;
  size_t compressed_bytes = 0;
  size_t text_bytes = 0;  // after decompression
};

/// libzstd is looked for at the first compressed image; without it such an image is refused with a reason.
struct Zstd {
  size_t (*decompress)(void*, size_t, const void*, size_t) = nullptr;
  unsigned (*is_error)(size_t) = nullptr;

  static const Zstd& get() {
    static const Zstd loaded = [] {
      Zstd zstd;
      if (void* library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL)) {
        zstd.decompress = reinterpret_cast<decltype(zstd.decompress)>(dlsym(library, "ZSTD_decompress"));
        zstd.is_error = reinterpret_cast<decltype(zstd.is_error)>(dlsym(library, "ZSTD_isError"));
      }
      return zstd;
    }();
    return loaded;
  }
};

CUresult bytes_of_entry(const Entry& entry, std::string* text, std::string* log) {
  const size_t packed_bytes = entry.compressed_bytes ? entry.compressed_bytes : entry.payload_bytes;
  if (packed_bytes > entry.payload_bytes) return CUDA_ERROR_INVALID_IMAGE;
  if (entry.flags & (kFlagLz4 | kFlagZstd)) {
    if (entry.text_bytes == 0 || entry.text_bytes > kMaxTextBytes) return CUDA_ERROR_INVALID_IMAGE;
    // A byte of LZ4 stands for 255 at most: a lie about the text's length shall not cost its memory.
    if ((entry.flags & kFlagLz4) && entry.text_bytes / 255 > packed_bytes) {
      *log = "fatbin: the LZ4 data of a PTX entry is damaged";
      return CUDA_ERROR_INVALID_IMAGE;
    }
    text->resize(entry.text_bytes);
    if (entry.flags & kFlagLz4) {
      if (!decode_lz4(entry.payload, packed_bytes, reinterpret_cast<uint8_t*>(text->data()), text->size())) {
        *log = "fatbin: the LZ4 data of a PTX entry is damaged";
        return CUDA_ERROR_INVALID_IMAGE;
      }
    } else {
      const Zstd& zstd = Zstd::get();
      if (!zstd.decompress || !zstd.is_error) {
        *log =
            "fatbin: a PTX entry is compressed with zstd and libzstd.so.1 was not found; install it, or build with "
            "nvcc --compress-mode=speed or none";
        return CUDA_ERROR_INVALID_IMAGE;
      }
      const size_t got = zstd.decompress(text->data(), text->size(), entry.payload, packed_bytes);
      if (zstd.is_error(got) || got != text->size()) {
        *log = "fatbin: the zstd data of a PTX entry is damaged";
        return CUDA_ERROR_INVALID_IMAGE;
      }
    }
  } else if (entry.flags & kFlagOldCompression) {
    *log = "fatbin: a PTX entry uses a compression of before CUDA 12";
    return CUDA_ERROR_INVALID_IMAGE;
  } else {
    text->assign(reinterpret_cast<const char*>(entry.payload), packed_bytes);
  }
  return CUDA_SUCCESS;
}

CUresult text_of_entry(const Entry& entry, std::string* text, std::string* log) {
  const CUresult result = bytes_of_entry(entry, text, log);
  if (result != CUDA_SUCCESS) return result;
  const size_t end = text->find('\0');
  if (end != std::string::npos) text->resize(end);
  return text->empty() ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

/// Outlines of the machine code in a container that runs on the device: that of the newest architecture of its
/// generation, code for exactly this one ("sm_90a") before others. False when there is none.
bool outline_machine_code(const std::vector<Entry>& entries, uint32_t compute_capability,
                          std::vector<std::string>* texts) {
  constexpr uint64_t kFlagExactArchitecture = 0x100000;
  const auto rank = [&](const Entry& entry) -> uint32_t {
    if (entry.sm > compute_capability || entry.sm / 10 != compute_capability / 10) return 0;
    return entry.sm * 2 + ((entry.flags & kFlagExactArchitecture) != 0);
  };
  uint32_t best = 1;
  for (const Entry& entry : entries) best = std::max(best, rank(entry));
  bool any = false;
  for (const Entry& entry : entries) {
    std::string bytes, log;
    if (rank(entry) != best || bytes_of_entry(entry, &bytes, &log) != CUDA_SUCCESS) continue;
    texts->push_back(outline_of_cubin(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
    any = true;
  }
  return any;
}

/// Bytes of an ELF file whose size nobody tells: the end of its last part.
size_t elf_bytes(const uint8_t* image) {
  const uint64_t sections = read<uint64_t>(image + 40);
  const size_t section_bytes = read<uint16_t>(image + 58), section_count = read<uint16_t>(image + 60);
  const uint64_t segments = read<uint64_t>(image + 32);
  const size_t segment_bytes = read<uint16_t>(image + 54), segment_count = read<uint16_t>(image + 56);
  uint64_t end = std::max(sections + section_bytes * section_count, segments + segment_bytes * segment_count);
  for (size_t i = 0; sections < kMaxImageBytes && section_bytes >= 64 && i < section_count; ++i) {
    const uint8_t* at = image + sections + i * section_bytes;
    constexpr uint32_t kNoBits = 8;
    if (read<uint32_t>(at + 4) != kNoBits) end = std::max(end, read<uint64_t>(at + 24) + read<uint64_t>(at + 32));
  }
  return end < kMaxImageBytes ? end : 0;
}

/// Whether all that elf_bytes and an outline read of the file lies within its `size` bytes.
bool elf_fits(const uint8_t* image, size_t size) {
  constexpr size_t kElfHeaderBytes = 64;
  if (size < kElfHeaderBytes) return false;
  const uint64_t sections = read<uint64_t>(image + 40);
  const size_t table_bytes = size_t{read<uint16_t>(image + 58)} * read<uint16_t>(image + 60);
  return sections <= size && table_bytes <= size - sections && elf_bytes(image) <= size;
}

}  // namespace

bool looks_like_ptx(std::string_view text) { return text.find(".version") != std::string_view::npos; }

bool decode_lz4(const uint8_t* in, size_t in_bytes, uint8_t* out, size_t out_bytes) {
  size_t from = 0;
  size_t to = 0;
  // A length of 15 goes on in further bytes, each adding up to 255.
  const auto extend = [&](size_t length) -> size_t {
    if (length != 15) return length;
    uint8_t more = 255;
    while (more == 255) {
      if (from >= in_bytes || length > out_bytes) return SIZE_MAX;
      more = in[from++];
      length += more;
    }
    return length;
  };
  while (from < in_bytes) {
    const uint8_t token = in[from++];
    const size_t literals = extend(token >> 4);
    if (literals > in_bytes - from || literals > out_bytes - to) return false;
    std::memcpy(out + to, in + from, literals);
    from += literals;
    to += literals;
    if (from == in_bytes) return to == out_bytes;  // the last sequence has literals only
    if (in_bytes - from < 2) return false;
    const size_t distance = in[from] | size_t{in[from + 1]} << 8;
    from += 2;
    const size_t match = extend(token & 15);
    if (match > out_bytes || distance == 0 || distance > to) return false;
    const size_t length = match + 4;
    if (length > out_bytes - to) return false;
    for (size_t i = 0; i < length; ++i, ++to) out[to] = out[to - distance];  // may overlap: byte by byte
  }
  return false;
}

CUresult texts_of_container(const uint8_t* data, size_t bytes, int compute_capability, std::vector<std::string>* texts,
                            std::string* log) {
  if (bytes < kContainerHeaderBytes || read<uint32_t>(data) != kContainerMagic) return CUDA_ERROR_INVALID_IMAGE;
  const size_t header_bytes = read<uint16_t>(data + 6);
  const uint64_t body_bytes = read<uint64_t>(data + 8);
  if (header_bytes < kContainerHeaderBytes || header_bytes > bytes || body_bytes > bytes - header_bytes) {
    *log = "fatbin: the container is longer than its image";
    return CUDA_ERROR_INVALID_IMAGE;
  }
  std::vector<Entry> ptx, machine_code;
  bool has_machine_code = false;
  bool has_newer_ptx = false;
  const uint8_t* at = data + header_bytes;
  size_t left = body_bytes;
  while (left > 0) {
    if (left < kEntryHeaderBytes) return CUDA_ERROR_INVALID_IMAGE;
    Entry entry;
    entry.kind = read<uint16_t>(at);
    const size_t entry_header_bytes = read<uint32_t>(at + 4);
    const uint64_t payload_bytes = read<uint64_t>(at + 8);
    entry.compressed_bytes = read<uint32_t>(at + 0x10);
    entry.sm = read<uint32_t>(at + 0x1c);
    entry.flags = read<uint64_t>(at + 0x28);
    entry.text_bytes = read<uint64_t>(at + 0x38);
    if (entry_header_bytes < kEntryHeaderBytes || entry_header_bytes > left ||
        payload_bytes > left - entry_header_bytes) {
      *log = "fatbin: an entry is longer than its container";
      return CUDA_ERROR_INVALID_IMAGE;
    }
    entry.payload = at + entry_header_bytes;
    entry.payload_bytes = payload_bytes;
    has_machine_code |= entry.kind == kKindElf;
    if (entry.kind == kKindElf) machine_code.push_back(entry);
    if (entry.kind == kKindPtx) {
      if (entry.sm <= static_cast<uint32_t>(compute_capability)) {
        ptx.push_back(entry);
      } else {
        has_newer_ptx = true;
      }
    }
    at += entry_header_bytes + payload_bytes;
    left -= entry_header_bytes + payload_bytes;
  }
  const bool record = Driver::get().record;
  if (record && outline_machine_code(machine_code, compute_capability, texts)) return CUDA_SUCCESS;
  if (ptx.empty()) {
    if (!has_machine_code && !has_newer_ptx) return CUDA_ERROR_INVALID_IMAGE;
    *log = has_newer_ptx ? "the image has PTX for newer devices only"
                         : "the image has machine code only; softgpu runs PTX: build with -gencode "
                           "arch=compute_80,code=compute_80";
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  uint32_t best = 0;
  for (const Entry& entry : ptx) best = std::max(best, entry.sm);
  for (const Entry& entry : ptx) {
    if (entry.sm != best) continue;
    std::string text;
    const CUresult result = text_of_entry(entry, &text, log);
    if (result != CUDA_SUCCESS) return result;
    texts->push_back(record ? outline_of_ptx(text) : std::move(text));
  }
  return CUDA_SUCCESS;
}

CUresult texts_of_image(const void* image, int compute_capability, std::vector<std::string>* texts, std::string* log) {
  if (!image) return CUDA_ERROR_INVALID_VALUE;
  const auto* data = static_cast<const uint8_t*>(image);
  // Text may be shorter than a magic number: look at one byte after the other.
  uint8_t head[4] = {};
  for (int i = 0; i < 4; ++i) {
    head[i] = data[i];
    if (head[i] == 0) break;
  }
  uint32_t magic = read<uint32_t>(head);
  if (magic == kWrapperMagic) {
    const uint32_t version = read<uint32_t>(data + 4);
    const auto* inner = reinterpret_cast<const uint8_t*>(read<uint64_t>(data + 8));
    if ((version != 1 && version != 2) || !inner) return CUDA_ERROR_INVALID_IMAGE;
    data = inner;
    magic = read<uint32_t>(data);
    if (magic != kContainerMagic) return CUDA_ERROR_INVALID_IMAGE;
  }
  if (magic == kContainerMagic) {
    const uint64_t header_bytes = read<uint16_t>(data + 6);
    const uint64_t body_bytes = read<uint64_t>(data + 8);
    if (body_bytes > kMaxImageBytes) return CUDA_ERROR_INVALID_IMAGE;
    return texts_of_container(data, header_bytes + body_bytes, compute_capability, texts, log);
  }
  if (magic == kElfMagic && Driver::get().record) {
    texts->push_back(outline_of_cubin(data, elf_bytes(data)));
    return CUDA_SUCCESS;
  }
  if (magic == kElfMagic) {
    *log = "the image is machine code; softgpu runs PTX";
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  const size_t length = strnlen(static_cast<const char*>(image), kMaxTextBytes);
  if (length == 0 || length == kMaxTextBytes) return CUDA_ERROR_INVALID_IMAGE;
  std::string_view text(static_cast<const char*>(image), length);
  if (!looks_like_ptx(text)) return CUDA_ERROR_INVALID_IMAGE;
  texts->push_back(Driver::get().record ? outline_of_ptx(text) : std::string(text));
  return CUDA_SUCCESS;
}

CUresult read_image_file(const char* path, std::vector<char>* bytes) {
  FILE* file = std::fopen(path, "rbe");
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  char block[65536];
  size_t got = 0;
  while ((got = std::fread(block, 1, sizeof block, file)) > 0) bytes->insert(bytes->end(), block, block + got);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return CUDA_ERROR_FILE_NOT_FOUND;
  const size_t size = bytes->size();
  const auto* data = reinterpret_cast<const uint8_t*>(bytes->data());
  const uint32_t magic = size >= 4 ? read<uint32_t>(data) : 0;
  if (magic == kWrapperMagic) return CUDA_ERROR_INVALID_IMAGE;  // it holds addresses: none can come from a file
  if (magic == kContainerMagic) {
    if (size < kContainerHeaderBytes) return CUDA_ERROR_INVALID_IMAGE;
    const size_t header_bytes = read<uint16_t>(data + 6);
    if (header_bytes > size || read<uint64_t>(data + 8) > size - header_bytes) return CUDA_ERROR_INVALID_IMAGE;
  }
  if (magic == kElfMagic && Driver::get().record && !elf_fits(data, size)) return CUDA_ERROR_INVALID_IMAGE;
  bytes->push_back('\0');
  return CUDA_SUCCESS;
}

std::vector<uint8_t> make_container(const std::vector<std::string>& texts, int compute_capability) {
  std::vector<uint8_t> image(kContainerHeaderBytes);
  const auto put = [&image](size_t at, auto value) { std::memcpy(image.data() + at, &value, sizeof value); };
  for (const std::string& text : texts) {
    const size_t start = image.size();
    const size_t payload_bytes = (text.size() + 1 + 7) / 8 * 8;
    image.resize(start + kPtxHeaderBytes + payload_bytes);
    put(start, kKindPtx);
    put(start + 2, uint16_t{0x0101});
    put(start + 4, static_cast<uint32_t>(kPtxHeaderBytes));
    put(start + 8, static_cast<uint64_t>(payload_bytes));
    put(start + 0x14, static_cast<uint32_t>(kEntryHeaderBytes));
    put(start + 0x1c, static_cast<uint32_t>(compute_capability));
    put(start + 0x28, kFlag64Bit | kFlagLinux);
    put(start + kEntryHeaderBytes, static_cast<uint32_t>(kEntryHeaderBytes + 8));
    std::memcpy(image.data() + start + kPtxHeaderBytes, text.data(), text.size());
  }
  put(0, kContainerMagic);
  put(4, uint16_t{1});
  put(6, static_cast<uint16_t>(kContainerHeaderBytes));
  put(8, static_cast<uint64_t>(image.size() - kContainerHeaderBytes));
  return image;
}

}  // namespace sg
