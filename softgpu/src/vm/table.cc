// Finding the row of ops.def that an instruction matches.
#include <algorithm>
#include <cstdlib>
#include <unordered_map>

#include "decode.h"

namespace sg::vm {

#ifdef SG_HAVE_AVX2
namespace avx2 {
OpRows int_rows();
OpRows logic_rows();
OpRows float_rows();
OpRows half_rows();
OpRows cvt_rows();
OpRows mem_rows();
}  // namespace avx2
#endif

namespace {

#ifdef SG_HAVE_AVX2
/// SOFTGPU_ISA=baseline asks for the build for any processor.
bool use_avx2() {
  static const bool use = [] {
    const char* wanted = std::getenv("SOFTGPU_ISA");
    if (wanted && std::string_view(wanted) == "baseline") return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
  }();
  return use;
}
#endif

// A pattern is a list of groups, separated by spaces; a group is a list of words, separated by '|', one of which must
// stand at that place. "?" at the end makes a group optional, "~" in front marks words that have no effect here
// (cache hints and the like).
struct PatternGroup {
  std::vector<std::string_view> words;
  bool optional = false;
  bool without_effect = false;
};

struct Row {
  const OpRow* op = nullptr;
  std::vector<PatternGroup> groups;
};

using Table = std::unordered_map<std::string_view, std::vector<Row>>;

std::vector<PatternGroup> split(std::string_view pattern) {
  std::vector<PatternGroup> out;
  while (!pattern.empty()) {
    size_t end = std::min(pattern.find(' '), pattern.size());
    std::string_view g = pattern.substr(0, end);
    pattern.remove_prefix(std::min(end + 1, pattern.size()));
    if (g.empty()) continue;
    PatternGroup group;
    if (g.front() == '~') {
      group.without_effect = true;
      g.remove_prefix(1);
    }
    if (g.back() == '?') {
      group.optional = true;
      g.remove_suffix(1);
    }
    while (!g.empty()) {
      size_t bar = std::min(g.find('|'), g.size());
      group.words.push_back(g.substr(0, bar));
      g.remove_prefix(std::min(bar + 1, g.size()));
    }
    out.push_back(std::move(group));
  }
  return out;
}

Table make_table() {
  Table table;
  std::vector<OpRows> all = {tex_rows(),  atom_rows(),     warp_rows(),  mma_rows(),
                             wmma_rows(), mbarrier_rows(), stack_rows(), control_rows()};
  auto add = [&](std::initializer_list<OpRows> more) { all.insert(all.end(), more); };
#ifdef SG_HAVE_AVX2
  if (use_avx2()) {
    add({avx2::int_rows(), avx2::logic_rows(), avx2::float_rows(), avx2::half_rows(), avx2::cvt_rows(),
         avx2::mem_rows()});
  } else
#endif
  {
    add({int_rows(), logic_rows(), float_rows(), half_rows(), cvt_rows(), mem_rows()});
  }
  for (OpRows rows : all) {
    for (size_t i = 0; i < rows.count; ++i) {
      table[rows.rows[i].opcode].push_back(Row{&rows.rows[i], split(rows.rows[i].pattern)});
    }
  }
  return table;
}

const Table& table() {
  static const Table* const t = new Table(make_table());  // never destroyed: launches may outlive main
  return *t;
}

bool match(const Row& row, size_t group, const std::vector<std::string_view>& words, size_t word,
           std::vector<bool>* effect) {
  if (group == row.groups.size()) return word == words.size();
  const PatternGroup& g = row.groups[group];
  if (word < words.size() && std::find(g.words.begin(), g.words.end(), words[word]) != g.words.end()) {
    (*effect)[word] = !g.without_effect;
    if (match(row, group + 1, words, word + 1, effect)) return true;
  }
  return g.optional && match(row, group + 1, words, word, effect);
}

}  // namespace

bool Modifiers::has(std::string_view word) {
  bool found = false;
  for (Word& w : words_) {
    if (w.text == word) w.used = found = true;
  }
  return found;
}

std::string_view Modifiers::one_of(std::initializer_list<std::string_view> words) {
  for (std::string_view w : words) {
    if (has(w)) return w;
  }
  return {};
}

Type Modifiers::type(size_t n) {
  for (Word& w : words_) {
    Type t = ptx::type_from(w.text);
    if (t == Type::none) continue;
    if (n-- == 0) {
      w.used = true;
      return t;
    }
  }
  return Type::none;
}

void Modifiers::add(std::string_view word, bool without_effect) { words_.push_back({word, without_effect}); }
void Modifiers::clear() { words_.clear(); }

const std::string_view* Modifiers::unused() const {
  for (const Word& w : words_) {
    if (!w.used) return &w.text;
  }
  return nullptr;
}

const OpRow& match_row(const ptx::Instruction& i, Modifiers* mods) {
  mods->clear();
  std::string full(i.opcode);
  for (std::string_view m : i.modifiers) full.append(".").append(m);
  auto found = table().find(i.opcode);
  if (found == table().end()) throw ptx::Error(i.line, "unsupported instruction " + full);
  std::vector<bool> effect(i.modifiers.size());
  for (const Row& row : found->second) {
    if (!match(row, 0, i.modifiers, 0, &effect)) continue;
    for (size_t k = 0; k < i.modifiers.size(); ++k) mods->add(i.modifiers[k], !effect[k]);
    return *row.op;
  }
  for (std::string_view m : i.modifiers) {
    bool known = false;
    for (const Row& row : found->second) {
      for (const PatternGroup& g : row.groups) known |= std::find(g.words.begin(), g.words.end(), m) != g.words.end();
    }
    if (!known) throw ptx::Error(i.line, "unsupported modifier ." + std::string(m) + " in " + full);
  }
  throw ptx::Error(i.line, "unsupported combination of modifiers in " + full);
}

}  // namespace sg::vm

namespace sg {

const char* instruction_set() {
#ifdef SG_HAVE_AVX2
  if (vm::use_avx2()) return "avx2";
#endif
  return "baseline";
}

}  // namespace sg
