#include <cstring>
#include <string>

#include "ast.h"
#include "lex.h"

namespace sg::ptx {
namespace {

// Later 9.x only add instructions, each of which is refused by name where it stands.
constexpr int kNewestVersion = 99;
constexpr uint64_t kMaxElements = uint64_t{1} << 40;
constexpr int kMaxNesting = 64;

std::string quoted(std::string_view s) { return "'" + std::string(s.substr(0, 80)) + "'"; }

class Parser {
 public:
  explicit Parser(std::string_view text) : tokens_(lex(text)) {}

  Module run() {
    while (cur().kind != Tok::end) top_level();
    if (!m_.version) throw Error(1, "no .version directive: not PTX");
    if (!m_.target_sm) throw Error(1, "no .target directive");
    return std::move(m_);
  }

 private:
  const Token& cur() const { return tokens_[at_]; }
  const Token& ahead(size_t n) const { return tokens_[at_ + n < tokens_.size() ? at_ + n : tokens_.size() - 1]; }
  bool is(char c) const { return cur().kind == Tok::symbol && cur().text[0] == c; }
  bool is_dot(std::string_view s) const { return cur().kind == Tok::dot && cur().text == s; }
  void advance() {
    if (cur().kind != Tok::end) ++at_;
  }
  bool eat(char c) {
    if (!is(c)) return false;
    advance();
    return true;
  }
  bool eat_dot(std::string_view s) {
    if (!is_dot(s)) return false;
    advance();
    return true;
  }
  [[noreturn]] void fail(const std::string& what) const { throw Error(cur().line, what); }
  [[noreturn]] void unexpected(const std::string& wanted) const {
    fail("expected " + wanted + ", found " + (cur().kind == Tok::end ? "the end of the text" : quoted(cur().text)));
  }
  void expect(char c) {
    if (!eat(c)) unexpected(std::string("'") + c + "'");
  }
  std::string_view name() {
    if (cur().kind != Tok::name) unexpected("a name");
    std::string_view s = cur().text;
    advance();
    return s;
  }
  uint64_t integer() {
    if (cur().kind != Tok::integer) unexpected("an integer");
    uint64_t v = cur().value;
    advance();
    return v;
  }
  uint32_t small_integer(uint64_t most) {
    uint64_t v = integer();
    if (v > most) fail("number " + std::to_string(v) + " is out of range");
    return static_cast<uint32_t>(v);
  }
  void skip_line() {
    uint32_t line = cur().line;
    while (cur().kind != Tok::end && cur().line == line) advance();
  }
  void skip_braces() {
    expect('{');
    for (int depth = 1; depth > 0; advance()) {
      if (cur().kind == Tok::end) fail("missing '}'");
      if (is('{')) ++depth;
      if (is('}')) --depth;
    }
  }

  void version() {
    uint32_t line = cur().line;
    // "9.0" is lexed as a real number or, in "9.10", as one too: read its text.
    std::string s(cur().text);
    advance();
    size_t dot = s.find('.');
    if (dot == std::string::npos || s.size() > 8) throw Error(line, "malformed .version");
    m_.version = std::atoi(s.c_str()) * 10 + std::atoi(s.c_str() + dot + 1);
    if (m_.version > kNewestVersion) {
      throw Error(line, "PTX version " + s + " is newer than 9.x, which is what this device understands", 222);
    }
  }

  void target() {
    do {
      std::string_view t = name();
      if (t.substr(0, 3) == "sm_") m_.target_sm = std::atoi(std::string(t.substr(3)).c_str());
    } while (eat(','));
  }

  void top_level() {
    if (eat(';')) return;
    if (cur().kind != Tok::dot) {
      if (is('@') && ahead(1).kind == Tok::symbol) return skip_line();  // @@DWARF
      unexpected("a directive");
    }
    if (eat_dot("version")) return version();
    if (eat_dot("target")) return target();
    if (eat_dot("address_size")) {
      m_.address_bytes = small_integer(64) / 8;
      if (m_.address_bytes != 8) fail("only .address_size 64 is supported");
      return;
    }
    if (is_dot("file") || is_dot("loc")) return skip_line();
    if (eat_dot("section")) {
      while (!is('{') && cur().kind != Tok::end) advance();
      return skip_braces();
    }
    if (eat_dot("pragma")) {
      while (!eat(';')) {
        if (cur().kind == Tok::end) unexpected("';'");
        advance();
      }
      return;
    }
    if (eat_dot("alias")) {
      std::string_view a = name();
      expect(',');
      std::string_view b = name();
      expect(';');
      m_.aliases.emplace_back(a, b);
      return;
    }
    bool external = false, weak = false, visible = false;
    for (;;) {
      if (eat_dot("extern"))
        external = true;
      else if (eat_dot("weak") || eat_dot("common"))
        weak = visible = true;
      else if (eat_dot("visible"))
        visible = true;
      else
        break;
    }
    if (is_dot("entry") || is_dot("func")) return function(external, weak, visible);
    std::vector<Variable> vars;
    variable(&vars, true);
    for (Variable& v : vars) {
      v.external = external;
      v.weak = weak;
      v.visible = visible || external;
      m_.variables.push_back(std::move(v));
    }
  }

  Space space() {
    if (eat_dot("reg")) return Space::reg;
    if (eat_dot("global")) return Space::global;
    if (eat_dot("const")) return Space::constant;
    if (eat_dot("shared") || eat_dot("shared::cta")) return Space::shared;
    if (eat_dot("local")) return Space::local;
    if (eat_dot("param")) return Space::param;
    if (is_dot("tex") || is_dot("sreg")) fail("state space ." + std::string(cur().text) + " is not supported");
    fail("unknown directive " + quoted(cur().text));
  }

  /// Everything between the space and the name.
  void qualifiers(Variable* v) {
    for (;;) {
      if (cur().kind != Tok::dot) break;
      std::string_view t = cur().text;
      if (t == "align") {
        advance();
        v->align_bytes = small_integer(1 << 16);
        if (v->align_bytes == 0 || (v->align_bytes & (v->align_bytes - 1))) fail("alignment is not a power of two");
      } else if (t == "v2" || t == "v4" || t == "v8") {
        advance();
        v->vector_width = static_cast<uint32_t>(t[1] - '0');
      } else if (t == "attribute") {
        advance();
        expect('(');
        while (!eat(')')) {
          if (cur().kind == Tok::end) unexpected("')'");
          if (is_dot("managed")) v->managed = true;
          advance();
        }
      } else if (t == "ptr") {
        advance();
        if (is_dot("global") || is_dot("const") || is_dot("shared") || is_dot("local") || is_dot("generic")) advance();
        if (eat_dot("align")) small_integer(1 << 16);
      } else if (Type ty = type_from(t); ty != Type::none) {
        advance();
        v->type = ty;
      } else if (t == "texref" || t == "samplerref" || t == "surfref") {
        fail("." + std::string(t) + " is not supported: no textures, samplers or surfaces");
      } else {
        fail("unknown qualifier " + quoted(t));
      }
    }
    if (v->type == Type::none) fail("declaration without a type");
  }

  void dimensions(Variable* v) {
    while (eat('[')) {
      v->is_array = true;
      if (eat(']')) {
        v->unsized = true;
        continue;
      }
      uint64_t n = integer();
      expect(']');
      if (n > kMaxElements || v->elements > kMaxElements / (n ? n : 1)) fail("array is too large");
      v->elements *= n;
    }
  }

  Initializer init_element() {
    Initializer e;
    e.line = cur().line;
    bool minus = eat('-');
    if (!minus) eat('+');
    if (cur().kind == Tok::name && cur().text == "generic" && ahead(1).text == "(") {
      advance();
      advance();
      e.generic = e.is_symbol = true;
      e.symbol = name();
      symbol_offset(&e);
      expect(')');
      symbol_offset(&e);
    } else if (cur().kind == Tok::name) {
      e.is_symbol = true;
      e.symbol = name();
      symbol_offset(&e);
    } else if (cur().kind == Tok::integer) {
      uint64_t v = integer();
      if (eat('(')) {  // 0xFF00(symbol): the bytes of an address that the mask picks
        e = init_element();
        expect(')');
        if (!e.is_symbol) fail("a byte mask needs an address");
        e.mask = v;
        return e;
      }
      e.value = static_cast<int64_t>(minus ? 0 - v : v);
    } else if (cur().kind == Tok::f32 || cur().kind == Tok::f64) {
      double d;
      if (cur().kind == Tok::f32) {
        float f;
        uint32_t bits = static_cast<uint32_t>(cur().value);
        std::memcpy(&f, &bits, 4);
        d = f;
      } else {
        std::memcpy(&d, &cur().value, 8);
      }
      advance();
      if (minus) d = -d;
      e.is_float = true;
      std::memcpy(&e.value, &d, 8);
    } else {
      unexpected("an initial value");
    }
    return e;
  }

  void symbol_offset(Initializer* e) {
    while (is('+') || is('-')) {
      bool minus = is('-');
      advance();
      uint64_t v = integer();
      e->value = static_cast<int64_t>(static_cast<uint64_t>(e->value) + (minus ? 0 - v : v));
    }
  }

  void init_list(std::vector<Initializer>* out, int depth) {
    if (depth > kMaxNesting) fail("initialiser is nested too deeply");
    if (eat('{')) {
      if (eat('}')) return;
      do init_list(out, depth + 1);
      while (eat(','));
      expect('}');
    } else {
      out->push_back(init_element());
    }
  }

  void variable(std::vector<Variable>* out, bool top) {
    Variable base;
    base.line = cur().line;
    base.space = space();
    if (top && (base.space == Space::reg || base.space == Space::local)) {
      fail("registers and local variables at module scope are not supported");
    }
    qualifiers(&base);
    do {
      Variable v = base;
      v.line = cur().line;
      v.name = name();
      if (eat('<')) {
        v.register_count = small_integer(1 << 24);
        expect('>');
      }
      dimensions(&v);
      if (eat('=')) {
        init_list(&v.init, 0);
        if (v.unsized) {
          v.elements = v.init.size();
          v.unsized = false;
        }
        if (v.init.size() > v.elements * v.vector_width) fail("more initial values than elements");
      }
      out->push_back(std::move(v));
    } while (eat(','));
    expect(';');
  }

  void params(std::vector<Variable>* out) {
    expect('(');
    if (eat(')')) return;
    do {
      Variable v;
      v.line = cur().line;
      v.space = space();
      if (v.space != Space::param && v.space != Space::reg) fail("parameter must be .param or .reg");
      qualifiers(&v);
      v.name = name();
      dimensions(&v);
      if (v.unsized) fail("parameter array without a size");
      if (v.size_bytes() > 32768) fail("parameter is larger than 32764 bytes");
      out->push_back(std::move(v));
    } while (eat(','));
    expect(')');
  }

  void triple(uint32_t* out) {
    out[0] = small_integer(UINT32_MAX);
    out[1] = out[2] = 1;
    for (int i = 1; i < 3 && eat(','); ++i) out[i] = small_integer(UINT32_MAX);
  }

  void function(bool external, bool weak, bool visible) {
    Function f;
    f.line = cur().line;
    f.is_entry = is_dot("entry");
    f.external = external;
    f.weak = weak;
    f.visible = visible || external;
    advance();
    while (cur().kind == Tok::dot && cur().text == "attribute") {
      advance();
      while (!eat(')')) {
        if (cur().kind == Tok::end) unexpected("')'");
        advance();
      }
    }
    if (!f.is_entry && is('(')) params(&f.signature.returns);
    f.name = name();
    if (is('(')) params(&f.signature.params);
    for (;;) {
      if (eat_dot("maxntid"))
        triple(f.max_threads);
      else if (eat_dot("reqntid"))
        triple(f.required_threads);
      else if (eat_dot("minnctapersm") || eat_dot("maxnctapersm") || eat_dot("maxnreg"))
        small_integer(UINT32_MAX);
      else if (eat_dot("noreturn") || eat_dot("unified"))
        continue;
      else if (is_dot("pragma")) {
        while (!eat(';')) {
          if (cur().kind == Tok::end) unexpected("';'");
          advance();
        }
      } else if (is_dot("maxclusterrank")) {
        advance();
        small_integer(UINT32_MAX);
      } else if (is_dot("reqnctapercluster") || is_dot("explicitcluster") || is_dot("blocksareclusters")) {
        fail("." + std::string(cur().text) + ": thread block clusters are not supported");
      } else if (is_dot("abi_preserve") || is_dot("abi_preserve_control")) {
        advance();
        small_integer(UINT32_MAX);
      } else {
        break;
      }
    }
    if (eat(';')) {
      m_.functions.push_back(std::move(f));
      return;
    }
    f.has_body = true;
    expect('{');
    for (int depth = 1; depth > 0;) {
      if (cur().kind == Tok::end) fail("function " + quoted(f.name) + " has no end");
      statement(&f, &depth);
    }
    m_.functions.push_back(std::move(f));
  }

  void add(Function* f, Statement::Kind kind, uint32_t line, size_t index, std::string_view label = {}) {
    Statement s;
    s.kind = kind;
    s.line = line;
    s.index = static_cast<uint32_t>(index);
    s.name = label;
    f->body.push_back(std::move(s));
  }

  void statement(Function* f, int* depth) {
    uint32_t line = cur().line;
    if (eat(';')) return;
    if (eat('{')) {
      if (++*depth > kMaxNesting) fail("blocks are nested too deeply");
      return add(f, Statement::Kind::open, line, 0);
    }
    if (eat('}')) {
      if (--*depth > 0) add(f, Statement::Kind::close, line, 0);
      return;
    }
    if (cur().kind == Tok::dot) {
      if (is_dot("loc") || is_dot("file")) return skip_line();
      if (is_dot("pragma")) {
        while (!eat(';')) {
          if (cur().kind == Tok::end) unexpected("';'");
          advance();
        }
        return;
      }
      std::vector<Variable> vars;
      variable(&vars, false);
      for (Variable& v : vars) {
        f->variables.push_back(std::move(v));
        add(f, Statement::Kind::variable, line, f->variables.size() - 1);
      }
      return;
    }
    if (cur().kind == Tok::name && ahead(1).kind == Tok::symbol && ahead(1).text[0] == ':') {
      std::string_view label = name();
      expect(':');
      if (eat_dot("branchtargets")) {
        Statement s;
        s.kind = Statement::Kind::branch_targets;
        s.line = line;
        s.name = label;
        do s.labels.push_back(name());
        while (eat(','));
        expect(';');
        f->body.push_back(std::move(s));
        return;
      }
      if (eat_dot("calltargets")) {
        do name();
        while (eat(','));
        expect(';');
        return add(f, Statement::Kind::call_targets, line, 0, label);
      }
      if (eat_dot("callprototype")) {
        Signature sig;
        if (is('(')) params(&sig.returns);
        name();  // "_"
        if (is('(')) params(&sig.params);
        while (eat_dot("noreturn")) continue;
        if (eat_dot("abi_preserve") || eat_dot("abi_preserve_control")) small_integer(UINT32_MAX);
        expect(';');
        f->prototypes.push_back(std::move(sig));
        return add(f, Statement::Kind::prototype, line, f->prototypes.size() - 1, label);
      }
      return add(f, Statement::Kind::label, line, 0, label);
    }
    instruction(f);
  }

  void instruction(Function* f) {
    Instruction i;
    i.line = cur().line;
    if (eat('@')) {
      i.guard_negated = eat('!');
      i.guard = name();
    }
    i.line = cur().line;
    i.opcode = name();
    while (cur().kind == Tok::dot) {
      i.modifiers.push_back(cur().text);
      advance();
    }
    if (!is(';')) {
      do i.operands.push_back(operand(0));
      while (eat(','));
    }
    expect(';');
    f->instructions.push_back(std::move(i));
    add(f, Statement::Kind::instruction, f->instructions.back().line, f->instructions.size() - 1);
  }

  void offset(Operand* o) {
    while (is('+') || is('-')) {
      bool minus = is('-');
      advance();
      if (!minus && eat('-')) minus = true;  // [%rd1+-8]
      uint64_t v = integer();
      o->value = static_cast<int64_t>(static_cast<uint64_t>(o->value) + (minus ? 0 - v : v));
    }
  }

  void operand_list(Operand* o, char close, int depth) {
    if (eat(close)) return;
    do o->sub.push_back(operand(depth + 1));
    while (eat(','));
    expect(close);
  }

  Operand operand(int depth) {
    if (depth > 8) fail("operand is nested too deeply");
    Operand o;
    o.line = cur().line;
    if (eat('{')) {
      o.kind = Operand::Kind::vector;
      operand_list(&o, '}', depth);
      return o;
    }
    if (eat('(')) {
      o.kind = Operand::Kind::list;
      operand_list(&o, ')', depth);
      return o;
    }
    if (eat('[')) {
      o.kind = Operand::Kind::address;
      if (cur().kind == Tok::name) {
        o.name = name();
        if (cur().kind == Tok::dot && cur().text.size() == 1) {
          o.component = cur().text[0];
          advance();
        }
        offset(&o);
      } else {
        bool minus = eat('-');
        uint64_t v = integer();
        o.value = static_cast<int64_t>(minus ? 0 - v : v);
      }
      while (eat(',')) o.sub.push_back(operand(depth + 1));
      expect(']');
      return o;
    }
    if (eat('!')) o.negated = true;
    bool minus = !o.negated && eat('-');
    bool inverted = !o.negated && !minus && eat('~');
    switch (cur().kind) {
      case Tok::name:
        o.name = name();
        o.minus = minus;
        if (inverted) fail("unexpected '~'");
        if (cur().kind == Tok::dot) {
          if (cur().text.size() != 1) unexpected("a component");
          o.component = cur().text[0];
          advance();
        }
        if (eat('|')) o.second = name();
        offset(&o);
        break;
      case Tok::integer:
        o.kind = Operand::Kind::integer;
        o.value = static_cast<int64_t>(minus ? 0 - integer() : integer());
        if (inverted) o.value = ~o.value;
        break;
      case Tok::f32:
        o.kind = Operand::Kind::f32;
        o.value = static_cast<int64_t>(cur().value ^ (minus ? 0x80000000u : 0));
        advance();
        break;
      case Tok::f64:
        o.kind = Operand::Kind::f64;
        o.value = static_cast<int64_t>(cur().value ^ (minus ? uint64_t{1} << 63 : 0));
        advance();
        break;
      default:
        unexpected("an operand");
    }
    return o;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  Module m_;
};

}  // namespace

Module parse(std::string_view text) { return Parser(text).run(); }

}  // namespace sg::ptx
