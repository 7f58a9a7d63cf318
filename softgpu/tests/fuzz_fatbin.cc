// libFuzzer target: arbitrary bytes as a module's image: a fatbin container, a file, an object file or archive, an LZ4
// block. The first byte says which, and whether machine code is outlined (SOFTGPU_RECORD). tests/native/fuzz.sh builds
// and runs it; with ORION_FUZZ_SEEDS=FOLDER it writes there the images that libFuzzer starts from.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>

#include "../src/drv/archive.h"
#include "../src/drv/fatbin.h"

namespace {

constexpr int kComputeCapability = 80;
// The readers look at `record` alone, which is plain data: a whole driver would bring its threads along.
alignas(sg::Driver) unsigned char driver_bytes[sizeof(sg::Driver)];

enum What : uint8_t { kContainer, kFile, kObjects, kLz4, kWhats };

void read_as_file(const uint8_t* data, size_t size) {
  static const int file = memfd_create("image", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (file < 0 || ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  std::vector<char> bytes;
  if (sg::read_image_file(path.c_str(), &bytes) != CUDA_SUCCESS) return;
  std::vector<std::string> texts;
  std::string log;
  // Exactly as long as the file and its NUL, so that reading on is seen.
  std::vector<char> image(bytes.begin(), bytes.end());
  sg::texts_of_image(image.data(), kComputeCapability, &texts, &log);
}

}  // namespace

sg::Driver& sg::Driver::get() { return *reinterpret_cast<Driver*>(driver_bytes); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  sg::Driver::get().record = (data[0] & 0x80) != 0;
  const std::unique_ptr<uint8_t[]> image(new uint8_t[size - 1]);
  std::memcpy(image.get(), data + 1, size - 1);
  std::vector<std::string> texts;
  std::string log;
  switch (data[0] % kWhats) {
    case kContainer:
      sg::texts_of_container(image.get(), size - 1, kComputeCapability, &texts, &log);
      break;
    case kFile:
      read_as_file(image.get(), size - 1);
      break;
    case kObjects:
      sg::texts_of_objects(image.get(), size - 1, kComputeCapability, &texts, &log);
      break;
    default: {
      if (size < 3) break;
      const std::unique_ptr<uint8_t[]> out(new uint8_t[image[0]]);
      sg::decode_lz4(image.get() + 1, size - 2, out.get(), image[0]);
    }
  }
  return 0;
}

namespace {

using Bytes = std::vector<uint8_t>;

template <class T>
void put(Bytes* to, size_t at, T value) {
  if (to->size() < at + sizeof value) to->resize(at + sizeof value);
  std::memcpy(to->data() + at, &value, sizeof value);
}

void append(Bytes* to, const Bytes& more) { to->insert(to->end(), more.begin(), more.end()); }
Bytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

constexpr size_t kContainerHeader = 16, kEntryHeader = 64;
constexpr uint64_t kLz4Flag = 0x2000, kZstdFlag = 0x8000;

/// One entry of a container; text_bytes: what it is when unpacked, 0 if it is stored as it is.
Bytes entry(uint16_t kind, uint32_t sm, uint64_t flags, const Bytes& payload, uint64_t text_bytes) {
  Bytes e(kEntryHeader);
  put(&e, 0, kind);
  put(&e, 4, static_cast<uint32_t>(kEntryHeader));
  put(&e, 8, static_cast<uint64_t>(payload.size()));
  if (text_bytes) put(&e, 0x10, static_cast<uint32_t>(payload.size()));
  put(&e, 0x1c, sm);
  put(&e, 0x28, flags);
  put(&e, 0x38, text_bytes);
  append(&e, payload);
  return e;
}

Bytes container(const std::vector<Bytes>& entries) {
  Bytes c(kContainerHeader);
  for (const Bytes& e : entries) append(&c, e);
  put(&c, 0, 0xba55ed50u);
  put(&c, 4, uint16_t{1});
  put(&c, 6, static_cast<uint16_t>(kContainerHeader));
  put(&c, 8, static_cast<uint64_t>(c.size() - kContainerHeader));
  return c;
}

/// An LZ4 block: `text` in one run of literals, then the text's last 8 bytes over and over, then 5 literals.
Bytes lz4(const Bytes& text) {
  Bytes out{0xff};
  size_t left = text.size() - 15;
  for (; left >= 255; left -= 255) out.push_back(255);
  out.push_back(static_cast<uint8_t>(left));
  append(&out, text);
  append(&out, {8, 0, 4});  // distance 8, 15 + 4 + 4 bytes
  out.push_back(0x50);
  append(&out, bytes_of("\n\n\n\n\n"));
  return out;
}
constexpr size_t kLz4Extra = 15 + 4 + 4 + 5;

/// A zstd frame of one stored block of at most 255 bytes.
Bytes zstd(const Bytes& text) {
  Bytes out{0x28, 0xb5, 0x2f, 0xfd, 0x20, static_cast<uint8_t>(text.size())};
  const uint32_t head = 1 | static_cast<uint32_t>(text.size()) << 3;
  append(&out, {static_cast<uint8_t>(head), static_cast<uint8_t>(head >> 8), static_cast<uint8_t>(head >> 16)});
  append(&out, text);
  return out;
}

struct Part {
  std::string name;
  uint32_t type, link;
  Bytes content;
};

/// An ELF64 file of these sections; the names of sections and symbols are the last one.
Bytes elf(std::vector<Part> parts) {
  parts.insert(parts.begin(), Part{"", 0, 0, {}});
  parts.push_back({".strtab", 3, 0, {}});
  Bytes names;
  std::vector<uint32_t> name_at;
  for (const Part& part : parts) {
    name_at.push_back(static_cast<uint32_t>(names.size()));
    append(&names, bytes_of(part.name));
    names.push_back(0);
  }
  append(&parts.back().content, names);
  Bytes file(64);
  std::vector<uint64_t> at;
  for (const Part& part : parts) {
    at.push_back(file.size());
    append(&file, part.content);
    file.resize((file.size() + 7) / 8 * 8);
  }
  const uint64_t table = file.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    Bytes header(64);
    put(&header, 0, name_at[i]);
    put(&header, 4, parts[i].type);
    put(&header, 24, at[i]);
    put(&header, 32, static_cast<uint64_t>(parts[i].content.size()));
    put(&header, 40, parts[i].link);
    append(&file, header);
  }
  put(&file, 0, 0x464c457fu);
  put(&file, 4, uint8_t{2});
  put(&file, 40, table);
  put(&file, 58, uint16_t{64});
  put(&file, 60, static_cast<uint16_t>(parts.size()));
  put(&file, 62, static_cast<uint16_t>(parts.size() - 1));
  return file;
}

/// Machine code with one kernel of two parameters and one variable, but without code.
Bytes cubin() {
  Bytes symbols(24 * 3), info;
  const auto symbol = [&](size_t i, uint32_t name, uint8_t type, uint8_t other, uint16_t home, uint64_t size) {
    put(&symbols, 24 * i, name);
    put(&symbols, 24 * i + 4, type);
    put(&symbols, 24 * i + 5, other);
    put(&symbols, 24 * i + 6, home);
    put(&symbols, 24 * i + 16, size);
  };
  // The names of sections serve as names of symbols: "k" out of ".text.k", "v" out of ".nv.global.v".
  const std::string text = ".text.k", info_name = ".nv.info.k", variable = ".nv.global.v";
  const size_t first = 1, second = first + text.size() + 1, third = second + info_name.size() + 1;
  symbol(1, static_cast<uint32_t>(first + text.size() - 1), 2, 0x10, 1, 64);
  symbol(2, static_cast<uint32_t>(third + variable.size() - 1), 1, 0, 3, 256);
  for (uint16_t i = 0; i < 2; ++i) {
    append(&info, {4, 0x17, 12, 0, 0, 0, 0, 0, static_cast<uint8_t>(i), 0, static_cast<uint8_t>(8 * i), 0, 0, 0,
                   8 << 2 & 0xff, 0});
  }
  return elf(
      {{text, 1, 0, Bytes(64)}, {info_name, 1, 0, info}, {variable, 1, 0, Bytes(8)}, {".symtab", 2, 5, symbols}});
}

Bytes archive(const std::vector<std::pair<std::string, Bytes>>& members) {
  Bytes out = bytes_of("!<arch>\n");
  for (const auto& [name, content] : members) {
    char header[61];
    std::snprintf(header, sizeof header, "%-16s%-12d%-6d%-6d%-8d%-10zu`\n", name.c_str(), 0, 0, 0, 644, content.size());
    append(&out, bytes_of(header));
    append(&out, content);
    if (content.size() % 2) out.push_back('\n');
  }
  return out;
}

std::vector<Bytes> seeds() {
  const Bytes text = bytes_of(
      ".version 7.8\n.target sm_80\n.address_size 64\n.global .align 4 .b32 v;\n.visible .entry k(.param .u64 a) { "
      "ret; }\n");
  const Bytes packed = lz4(text), framed = zstd(text);
  const Bytes stored =
      container({entry(1, 75, 0x11, text, 0), entry(1, 80, 0x11, text, 0), entry(2, 80, 0x11, cubin(), 0)});
  const Bytes squeezed = container({entry(1, 80, 0x11 | kLz4Flag, packed, text.size() + kLz4Extra)});
  const Bytes zipped = container({entry(1, 80, 0x11 | kZstdFlag, framed, text.size())});
  Bytes padded = stored;
  padded.resize(padded.size() + 16);
  append(&padded, squeezed);
  const Bytes object =
      elf({{".text", 1, 0, Bytes(16)}, {".nv_fatbin", 1, 0, padded}, {"__nv_relfatbin", 1, 0, zipped}});
  const std::string text_string(text.begin(), text.end());
  const std::vector<std::pair<What, Bytes>> all = {
      {kContainer, stored},
      {kContainer, squeezed},
      {kContainer, zipped},
      {kFile, stored},
      {kFile, cubin()},
      {kFile, text},
      {kContainer, sg::make_container({text_string, text_string}, kComputeCapability)},
      {kObjects, object},
      {kObjects, archive({{"/", Bytes(4)},
                          {"//", bytes_of("a_long_name_of_a_member.o/\ncuda_device_runtime.o/\n")},
                          {"/0", object},
                          {"/27", Bytes(6)},
                          {"short.o/", object}})},
  };
  std::vector<Bytes> out;
  for (const auto& [what, image] : all) {
    for (const uint8_t record : {0, 0x80}) {
      out.push_back({static_cast<uint8_t>(what | record)});
      append(&out.back(), image);
    }
  }
  out.push_back({kLz4, static_cast<uint8_t>(text.size() + kLz4Extra)});
  append(&out.back(), packed);
  return out;
}

/// What the seeds mean, so that rounds are not spent on images that the first check refuses.
bool seeds_are_read(const std::vector<Bytes>& all) {
  for (const Bytes& seed : all) {
    const uint8_t* image = seed.data() + 1;
    const size_t size = seed.size() - 1;
    std::vector<std::string> texts;
    std::string log;
    sg::Driver::get().record = (seed[0] & 0x80) != 0;
    const uint8_t what = seed[0] % kWhats;
    CUresult result = CUDA_SUCCESS;
    if (what == kContainer) result = sg::texts_of_container(image, size, kComputeCapability, &texts, &log);
    if (what == kObjects) result = sg::texts_of_objects(image, size, kComputeCapability, &texts, &log);
    if (what == kContainer || what == kObjects) {
      for (const std::string& text : texts) {
        if (text.find(".entry k(") != std::string::npos) log = "k";
      }
      if (result == CUDA_SUCCESS && log == "k") continue;
      std::printf("fuzz_fatbin: seed %zu is not read: %d %s\n", static_cast<size_t>(&seed - all.data()), result,
                  log.c_str());
      return false;
    }
    if (what == kLz4) {
      Bytes out(image[0]);
      if (!sg::decode_lz4(image + 1, size - 1, out.data(), out.size())) return false;
    }
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* folder = std::getenv("ORION_FUZZ_SEEDS");
  if (!folder) return 0;
  const std::vector<Bytes> all = seeds();
  if (!seeds_are_read(all)) std::exit(1);
  for (size_t i = 0; i < all.size(); ++i) {
    std::ofstream file(std::string(folder) + "/" + std::to_string(i), std::ios::binary);
    file.write(reinterpret_cast<const char*>(all[i].data()), static_cast<std::streamsize>(all[i].size()));
    if (!file.flush()) std::abort();
  }
  return 0;
}
