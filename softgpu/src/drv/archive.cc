// Every offset and length is checked against the file before it is used.
#include "archive.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "fatbin.h"

namespace sg {

namespace {

constexpr std::string_view kArchiveMagic = "!<arch>\n";
constexpr std::string_view kElfMagic = "\177ELF";
constexpr size_t kMemberHeaderBytes = 60;
constexpr size_t kElfHeaderBytes = 64;
constexpr size_t kSectionHeaderBytes = 64;
constexpr std::string_view kDeviceRuntimeMember = "cuda_device_runtime.o/";

template <class T>
bool read_at(std::string_view file, uint64_t offset, T* out) {
  if (offset > file.size() || file.size() - offset < sizeof *out) return false;
  std::memcpy(out, file.data() + offset, sizeof *out);
  return true;
}

bool slice(std::string_view file, uint64_t offset, uint64_t bytes, std::string_view* out) {
  if (offset > file.size() || bytes > file.size() - offset) return false;
  *out = file.substr(offset, bytes);
  return true;
}

struct Section {
  uint32_t name = 0, type = 0;
  uint64_t offset = 0, bytes = 0;
};

bool section_at(std::string_view elf, uint64_t table, uint64_t index, Section* out) {
  const uint64_t at = table + index * kSectionHeaderBytes;
  return read_at(elf, at, &out->name) && read_at(elf, at + 4, &out->type) && read_at(elf, at + 24, &out->offset) &&
         read_at(elf, at + 32, &out->bytes);
}

/// All containers of a section, which lie one behind the other, padded with zeros.
CUresult texts_of_section(std::string_view section, int compute_capability, std::vector<std::string>* texts,
                          std::string* log) {
  constexpr uint64_t kPadding = 8;
  while (!section.empty()) {
    uint32_t magic = 0;
    uint16_t header_bytes = 0;
    uint64_t body_bytes = 0;
    if (!read_at(section, 0, &magic)) return CUDA_SUCCESS;
    if (magic == 0) {
      section.remove_prefix(std::min<size_t>(kPadding, section.size()));
      continue;
    }
    std::string_view container;
    if (!read_at(section, 6, &header_bytes) || !read_at(section, 8, &body_bytes) || body_bytes > section.size() ||
        !slice(section, 0, header_bytes + body_bytes, &container)) {
      return CUDA_ERROR_INVALID_IMAGE;
    }
    const CUresult result = texts_of_container(reinterpret_cast<const uint8_t*>(container.data()), container.size(),
                                               compute_capability, texts, log);
    if (result != CUDA_SUCCESS) return result;
    section.remove_prefix(container.size());
  }
  return CUDA_SUCCESS;
}

CUresult texts_of_elf(std::string_view elf, int compute_capability, std::vector<std::string>* texts, std::string* log) {
  constexpr uint32_t kNoBits = 8;
  uint64_t table = 0;
  uint16_t header_bytes = 0, count = 0, names_index = 0;
  Section names;
  if (elf.size() < kElfHeaderBytes || !read_at(elf, 40, &table) || !read_at(elf, 58, &header_bytes) ||
      !read_at(elf, 60, &count) || !read_at(elf, 62, &names_index) || header_bytes != kSectionHeaderBytes ||
      table > elf.size() || !section_at(elf, table, names_index, &names)) {
    return CUDA_ERROR_INVALID_IMAGE;
  }
  std::string_view all_names;
  if (!slice(elf, names.offset, names.bytes, &all_names)) return CUDA_ERROR_INVALID_IMAGE;
  for (uint64_t i = 0; i < count; ++i) {
    Section section;
    if (!section_at(elf, table, i, &section)) return CUDA_ERROR_INVALID_IMAGE;
    if (section.name >= all_names.size()) continue;
    const std::string_view rest = all_names.substr(section.name);
    const std::string_view name = rest.substr(0, rest.find('\0'));
    if (name != ".nv_fatbin" && name != "__nv_relfatbin") continue;
    std::string_view content;
    if (section.type == kNoBits || !slice(elf, section.offset, section.bytes, &content)) {
      return CUDA_ERROR_INVALID_IMAGE;
    }
    const CUresult result = texts_of_section(content, compute_capability, texts, log);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

CUresult texts_of_archive(std::string_view archive, int compute_capability, std::vector<std::string>* texts,
                          std::string* log) {
  const auto number = [](std::string_view digits) {
    uint64_t value = 0;
    for (const char digit : digits) {
      if (digit < '0' || digit > '9') break;
      value = value * 10 + static_cast<uint64_t>(digit - '0');
    }
    return value;
  };
  std::string_view long_names;
  for (uint64_t at = kArchiveMagic.size(); at < archive.size();) {
    std::string_view header, content;
    if (!slice(archive, at, kMemberHeaderBytes, &header)) return CUDA_ERROR_INVALID_IMAGE;
    const uint64_t bytes = number(header.substr(48, 10));
    if (!slice(archive, at + kMemberHeaderBytes, bytes, &content)) return CUDA_ERROR_INVALID_IMAGE;
    at += kMemberHeaderBytes + bytes + bytes % 2;
    std::string_view name = header.substr(0, 16);
    if (name.substr(0, 3) == "// ") {
      long_names = content;
      continue;
    }
    if (name[0] == '/') {  // in the table of names: "/" and where
      const uint64_t offset = number(name.substr(1));
      name = offset < long_names.size() ? long_names.substr(offset) : std::string_view();
    }
    if (name.substr(0, kDeviceRuntimeMember.size()) == kDeviceRuntimeMember) {
      texts->emplace_back(device_runtime_text());
      continue;
    }
    if (content.substr(0, kElfMagic.size()) != kElfMagic) continue;  // a table of symbols
    const CUresult result = texts_of_elf(content, compute_capability, texts, log);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUresult texts_of_objects(const uint8_t* data, size_t bytes, int compute_capability, std::vector<std::string>* texts,
                          std::string* log) {
  const std::string_view file(reinterpret_cast<const char*>(data), bytes);
  if (file.substr(0, kArchiveMagic.size()) == kArchiveMagic) {
    return texts_of_archive(file, compute_capability, texts, log);
  }
  if (file.substr(0, kElfMagic.size()) == kElfMagic) return texts_of_elf(file, compute_capability, texts, log);
  return CUDA_ERROR_INVALID_IMAGE;
}

// The grid's barrier is the second word of the workspace that a cooperative launch gives in %envreg1 and 2. Each block
// adds 1, the first one what makes the sum 2^31, so bit 31 turns when the last one has come. Code that nvcc compiles
// inline counts in the same way in the same word, so both kinds meet.
const char* device_runtime_text() {
  return R"ptx(.version 7.0
.target sm_70
.address_size 64
.weak .func (.param .b64 result) cudaCGGetIntrinsicHandle(.param .b32 scope)
{
  .reg .b32 %r<4>; .reg .b64 %rd<3>; .reg .pred %p;
  ld.param.b32 %r1, [scope];
  mov.b32 %r2, %envreg1;
  mov.b32 %r3, %envreg2;
  mov.b64 %rd1, {%r3, %r2};
  setp.eq.u32 %p, %r1, 1;
  selp.b64 %rd2, %rd1, 0, %p;
  st.param.b64 [result], %rd2;
  ret;
}
.weak .func (.param .b32 result) cudaCGSynchronizeGrid(.param .b64 handle, .param .b32 flags)
{
  .reg .b32 %r<16>; .reg .b64 %rd<2>; .reg .pred %p;
  ld.param.b64 %rd1, [handle];
  setp.eq.b64 %p, %rd1, 0;
  @%p bra NO_GRID;
  bar.sync 0;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %tid.y;
  mov.u32 %r3, %tid.z;
  or.b32 %r1, %r1, %r2;
  or.b32 %r1, %r1, %r3;
  setp.ne.u32 %p, %r1, 0;
  @%p bra ARRIVED;
  mov.u32 %r4, %nctaid.x;
  mov.u32 %r5, %nctaid.y;
  mov.u32 %r6, %nctaid.z;
  mul.lo.u32 %r4, %r4, %r5;
  mul.lo.u32 %r4, %r4, %r6;
  sub.u32 %r4, 0x80000001, %r4;
  mov.u32 %r7, %ctaid.x;
  mov.u32 %r8, %ctaid.y;
  mov.u32 %r9, %ctaid.z;
  or.b32 %r7, %r7, %r8;
  or.b32 %r7, %r7, %r9;
  setp.eq.u32 %p, %r7, 0;
  selp.b32 %r10, %r4, 1, %p;
  membar.gl;
  atom.global.add.u32 %r11, [%rd1+4], %r10;
WAIT:
  ld.volatile.global.u32 %r12, [%rd1+4];
  xor.b32 %r12, %r12, %r11;
  setp.ge.s32 %p, %r12, 0;
  @%p bra WAIT;
  membar.gl;
ARRIVED:
  bar.sync 0;
  st.param.b32 [result], 0;
  ret;
NO_GRID:
  st.param.b32 [result], 1;
  ret;
}
.weak .func (.param .b32 result) cudaCGSynchronize(.param .b64 handle, .param .b32 flags)
{
  .reg .b32 %r<3>; .reg .b64 %rd<2>;
  ld.param.b64 %rd1, [handle];
  ld.param.b32 %r1, [flags];
  {
    .param .b64 p0; .param .b32 p1; .param .b32 got;
    st.param.b64 [p0], %rd1;
    st.param.b32 [p1], %r1;
    call.uni (got), cudaCGSynchronizeGrid, (p0, p1);
    ld.param.b32 %r2, [got];
  }
  st.param.b32 [result], %r2;
  ret;
}
.weak .func (.param .b32 result) cudaCGGetSize(.param .b64 threads, .param .b64 grids, .param .b64 handle)
{
  .reg .b32 %r<8>; .reg .b64 %rd<3>; .reg .pred %p;
  mov.u32 %r1, %nctaid.x;
  mov.u32 %r2, %nctaid.y;
  mov.u32 %r3, %nctaid.z;
  mov.u32 %r4, %ntid.x;
  mov.u32 %r5, %ntid.y;
  mov.u32 %r6, %ntid.z;
  mul.lo.u32 %r1, %r1, %r2;
  mul.lo.u32 %r1, %r1, %r3;
  mul.lo.u32 %r1, %r1, %r4;
  mul.lo.u32 %r1, %r1, %r5;
  mul.lo.u32 %r1, %r1, %r6;
  ld.param.b64 %rd1, [threads];
  setp.ne.b64 %p, %rd1, 0;
  @%p st.u32 [%rd1], %r1;
  ld.param.b64 %rd2, [grids];
  setp.ne.b64 %p, %rd2, 0;
  mov.u32 %r7, 1;
  @%p st.u32 [%rd2], %r7;
  st.param.b32 [result], 0;
  ret;
}
.weak .func (.param .b32 result) cudaCGGetRank(.param .b64 thread, .param .b64 grid, .param .b64 handle)
{
  .reg .b32 %r<16>; .reg .b64 %rd<3>; .reg .pred %p;
  mov.u32 %r1, %ctaid.z;
  mov.u32 %r2, %nctaid.y;
  mov.u32 %r3, %ctaid.y;
  mad.lo.u32 %r1, %r1, %r2, %r3;
  mov.u32 %r2, %nctaid.x;
  mov.u32 %r3, %ctaid.x;
  mad.lo.u32 %r1, %r1, %r2, %r3;
  mov.u32 %r4, %ntid.z;
  mov.u32 %r5, %tid.z;
  mad.lo.u32 %r1, %r1, %r4, %r5;
  mov.u32 %r4, %ntid.y;
  mov.u32 %r5, %tid.y;
  mad.lo.u32 %r1, %r1, %r4, %r5;
  mov.u32 %r4, %ntid.x;
  mov.u32 %r5, %tid.x;
  mad.lo.u32 %r1, %r1, %r4, %r5;
  ld.param.b64 %rd1, [thread];
  setp.ne.b64 %p, %rd1, 0;
  @%p st.u32 [%rd1], %r1;
  ld.param.b64 %rd2, [grid];
  setp.ne.b64 %p, %rd2, 0;
  mov.u32 %r7, 0;
  @%p st.u32 [%rd2], %r7;
  st.param.b32 [result], 0;
  ret;
}
)ptx";
}

}  // namespace sg
