// Reads cubins (ELF64, sections .symtab and .nv.info.*) and PTX declarations.
#include "outline.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <vector>

namespace sg {

namespace {

constexpr const char* kHead = ".version 7.8\n.target sm_80\n.address_size 64\n";
constexpr size_t kElfHeaderBytes = 64;
constexpr size_t kSectionHeaderBytes = 64;
constexpr size_t kSymbolBytes = 24;
constexpr uint32_t kSymbolTable = 2;
constexpr uint32_t kNoBits = 8;
constexpr uint8_t kObject = 1;
constexpr uint8_t kFunction = 2;
constexpr uint8_t kEntryPoint = 0x10;  // in st_other: a kernel rather than a device function
constexpr uint8_t kFormatSized = 4;
constexpr uint8_t kParamInfo = 0x17;
constexpr uint8_t kParamInfo2 = 0x45;
constexpr uint32_t kMaxParamBytes = 32764;
constexpr uint64_t kMaxVariableBytes = uint64_t{64} << 20;

struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;

  bool has(uint64_t at, uint64_t bytes) const { return at <= size && bytes <= size - at; }
  template <class T>
  T read(uint64_t at) const {
    T value{};
    if (has(at, sizeof value)) std::memcpy(&value, data + at, sizeof value);
    return value;
  }
  Bytes part(uint64_t at, uint64_t bytes) const { return has(at, bytes) ? Bytes{data + at, bytes} : Bytes{}; }
  std::string_view text(uint64_t at) const {
    if (at >= size) return {};
    const void* end = std::memchr(data + at, 0, size - at);
    if (!end) return {};
    return {reinterpret_cast<const char*>(data + at),
            static_cast<size_t>(static_cast<const uint8_t*>(end) - data - at)};
  }
};

struct Param {
  uint32_t offset = 0;
  uint32_t bytes = 0;
};

struct Section {
  std::string_view name;
  uint32_t type = 0;
  uint32_t link = 0;
  Bytes bytes;
};

bool is_identifier(std::string_view name) {
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '$' || c == '%'; });
}

std::vector<Section> sections_of(const Bytes& file) {
  std::vector<Section> sections;
  const auto table = file.read<uint64_t>(40);
  const size_t count = file.read<uint16_t>(60);
  const size_t names_index = file.read<uint16_t>(62);
  if (file.read<uint16_t>(58) != kSectionHeaderBytes || !file.has(table, count * kSectionHeaderBytes)) return sections;
  Bytes names;
  for (size_t pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < count; ++i) {
      const uint64_t at = table + i * kSectionHeaderBytes;
      Section section;
      section.type = file.read<uint32_t>(at + 4);
      section.link = file.read<uint32_t>(at + 40);
      if (section.type != kNoBits)
        section.bytes = file.part(file.read<uint64_t>(at + 24), file.read<uint64_t>(at + 32));
      if (pass == 0) {
        if (i == names_index) names = section.bytes;
        continue;
      }
      section.name = names.text(file.read<uint32_t>(at));
      sections.push_back(section);
    }
  }
  return sections;
}

/// Parameters by ordinal out of a .nv.info.KERNEL section: records {u8 format, u8 attribute, u16 value, payload}.
std::map<uint16_t, Param> params_of(const Bytes& info) {
  std::map<uint16_t, Param> params;
  for (size_t at = 0; at + 4 <= info.size;) {
    const auto format = info.read<uint8_t>(at);
    const auto attribute = info.read<uint8_t>(at + 1);
    const size_t payload = format == kFormatSized ? info.read<uint16_t>(at + 2) : 0;
    if (payload >= 12 && (attribute == kParamInfo || attribute == kParamInfo2)) {
      Param param;
      param.offset = info.read<uint16_t>(at + 10);
      param.bytes = attribute == kParamInfo ? info.read<uint32_t>(at + 12) >> 18 : info.read<uint16_t>(at + 12);
      params[info.read<uint16_t>(at + 8)] = param;
    }
    at += 4 + payload;
  }
  return params;
}

/// A parameter list that puts each parameter where the cubin has it: the gaps are what alignment makes, because the
/// alignment written here is the largest power of two that divides the offset.
std::string parameter_list(const std::map<uint16_t, Param>& params) {
  std::string list;
  uint32_t end = 0;
  int index = 0;
  for (const auto& entry : params) {
    const Param& param = entry.second;
    if (param.bytes == 0 || param.offset < end || param.offset + param.bytes > kMaxParamBytes) break;
    uint32_t align = 1;
    while (align < 16 && param.offset % (align * 2) == 0) align *= 2;
    if ((end + align - 1) / align * align != param.offset) break;
    if (index) list += ", ";
    list += ".param .align " + std::to_string(align) + " .b8 p" + std::to_string(index++) + "[" +
            std::to_string(param.bytes) + "]";
    end = param.offset + param.bytes;
  }
  return list;
}

bool starts_with(std::string_view text, std::string_view head) { return text.substr(0, head.size()) == head; }

}  // namespace

std::string outline_of_cubin(const uint8_t* image, size_t bytes) {
  const Bytes file{image, bytes};
  if (bytes < kElfHeaderBytes || file.read<uint32_t>(0) != 0x464c457f || file.read<uint8_t>(4) != 2) return {};
  const std::vector<Section> sections = sections_of(file);
  std::map<std::string_view, Bytes> infos;
  constexpr std::string_view kInfo = ".nv.info.";
  for (const Section& section : sections) {
    if (starts_with(section.name, kInfo)) infos[section.name.substr(kInfo.size())] = section.bytes;
  }
  std::string out = kHead;
  for (const Section& section : sections) {
    if (section.type != kSymbolTable || section.link >= sections.size()) continue;
    const Bytes& names = sections[section.link].bytes;
    for (uint64_t at = 0; section.bytes.has(at, kSymbolBytes); at += kSymbolBytes) {
      const std::string_view name = names.text(section.bytes.read<uint32_t>(at));
      const uint8_t type = section.bytes.read<uint8_t>(at + 4) & 15;
      const auto other = section.bytes.read<uint8_t>(at + 5);
      const size_t home = section.bytes.read<uint16_t>(at + 6);
      const auto size = section.bytes.read<uint64_t>(at + 16);
      if (!is_identifier(name) || home == 0 || home >= sections.size()) continue;
      if (type == kFunction && (other & kEntryPoint)) {
        const auto info = infos.find(name);
        out += ".visible .entry " + std::string(name) + "(" +
               (info == infos.end() ? "" : parameter_list(params_of(info->second))) + ") { ret; }\n";
      } else if (type == kObject && size > 0 && size <= kMaxVariableBytes) {
        const std::string_view where = sections[home].name;
        const bool constant = starts_with(where, ".nv.constant3");
        if (!constant && !starts_with(where, ".nv.global")) continue;
        out += std::string(constant ? ".visible .const" : ".visible .global") + " .align 16 .b8 " + std::string(name) +
               "[" + std::to_string(size) + "];\n";
      }
    }
  }
  return out;
}

std::string outline_of_ptx(std::string_view text) {
  std::string out = kHead;
  const auto after = [&](size_t at, char c) {
    const size_t found = text.find(c, at);
    return found == std::string_view::npos ? text.size() : found;
  };
  for (size_t at = text.find(".entry"); at != std::string_view::npos; at = text.find(".entry", at + 1)) {
    const size_t open = after(at, '(');
    const size_t body = after(at, '{');
    const size_t close = open < body ? after(open, ')') : open;
    size_t name_begin = at + 6;
    while (name_begin < text.size() && std::isspace(static_cast<unsigned char>(text[name_begin]))) ++name_begin;
    size_t name_end = name_begin;
    while (name_end < text.size() && is_identifier(text.substr(name_begin, name_end + 1 - name_begin))) ++name_end;
    if (name_end == name_begin) continue;
    out += ".visible .entry " + std::string(text.substr(name_begin, name_end - name_begin)) + "(" +
           (open < body && close < text.size() ? std::string(text.substr(open + 1, close - open - 1)) : "") +
           ") { ret; }\n";
  }
  // Variables of the module stand outside braces; initial values do not matter to anyone who only looks.
  int depth = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '{') ++depth;
    if (text[at] == '}') --depth;
    if (depth != 0 || text[at] != '.') continue;
    const std::string_view rest = text.substr(at);
    if (!starts_with(rest, ".global ") && !starts_with(rest, ".const ")) continue;
    const size_t end = std::min(rest.find(';'), rest.find('='));
    if (end == std::string_view::npos) break;
    const std::string_view declaration = rest.substr(0, end);
    if (declaration.find("ref") == std::string_view::npos) out += ".visible " + std::string(declaration) + ";\n";
    at += end - 1;
  }
  return out;
}

}  // namespace sg
