#include "lex.h"

#include <cstring>
#include <string>

#include "ast.h"

namespace sg::ptx {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    std::vector<Token> out;
    out.reserve(text_.size() / 4 + 16);
    for (;;) {
      size_t before = at_;
      skip_blank();
      Token t;
      t.line = line_;
      t.spaced = at_ != before;
      if (at_ >= text_.size() || text_[at_] == '\0') {
        out.push_back(t);
        return out;
      }
      next(&t);
      out.push_back(t);
    }
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void skip_blank() {
    for (;;) {
      char c = peek();
      if (c == '\n') {
        ++line_;
        ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
        ++at_;
      } else if (c == '/' && peek(1) == '/') {
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      } else if (c == '/' && peek(1) == '*') {
        uint32_t start = line_;
        at_ += 2;
        while (!(peek() == '*' && peek(1) == '/')) {
          if (at_ >= text_.size()) throw Error(start, "comment without end");
          if (text_[at_++] == '\n') ++line_;
        }
        at_ += 2;
      } else {
        return;
      }
    }
  }

  void word() {
    while (is_word(peek())) ++at_;
  }

  void next(Token* t) {
    size_t start = at_;
    char c = peek();
    if (is_digit(c)) return number(t);
    if (c == '%' || is_word(c)) {
      ++at_;
      word();
      t->kind = Tok::name;
    } else if (c == '.' && is_word(peek(1))) {
      ++at_;
      ++start;
      word();
      while (peek() == ':' && peek(1) == ':' && is_word(peek(2))) {
        at_ += 2;
        word();
      }
      t->kind = Tok::dot;
    } else if (c == '"') {
      ++at_;
      ++start;
      while (peek() != '"') {
        if (at_ >= text_.size() || peek() == '\n') throw Error(line_, "string without end");
        at_ += peek() == '\\' && peek(1) == '"' ? 2 : 1;
      }
      t->kind = Tok::string;
      t->text = text_.substr(start, at_ - start);
      ++at_;
      return;
    } else if (std::strchr("{}[](),;:@!|+-*/&^~?=<>.", c)) {
      ++at_;
      t->kind = Tok::symbol;
    } else {
      throw Error(line_, "unexpected character");
    }
    t->text = text_.substr(start, at_ - start);
  }

  uint64_t hex_bits(size_t digits) {
    uint64_t v = 0;
    for (size_t i = 0; i < digits; ++i) {
      int h = hex_digit(peek());
      if (h < 0) throw Error(line_, "floating point constant needs " + std::to_string(digits) + " hexadecimal digits");
      v = v << 4 | static_cast<uint64_t>(h);
      ++at_;
    }
    return v;
  }

  void number(Token* t) {
    size_t start = at_;
    char second = peek() == '0' ? peek(1) : '\0';
    if (second == 'f' || second == 'F' || second == 'd' || second == 'D') {
      at_ += 2;
      bool single = second == 'f' || second == 'F';
      t->kind = single ? Tok::f32 : Tok::f64;
      t->value = hex_bits(single ? 8 : 16);
    } else if (second == 'x' || second == 'X' || second == 'b' || second == 'B') {
      bool hex = second == 'x' || second == 'X';
      at_ += 2;
      size_t first = at_;
      unsigned __int128 v = 0;
      for (int h; (h = hex_digit(peek())) >= 0 && (hex || h < 2); ++at_) {
        v = v * (hex ? 16 : 2) + static_cast<unsigned>(h);
        if (v >> 64) throw Error(line_, "integer constant too large");
      }
      if (at_ == first) throw Error(line_, "malformed integer constant");
      t->kind = Tok::integer;
      t->value = static_cast<uint64_t>(v);
      if (peek() == 'U' || peek() == 'u') ++at_;
    } else {
      while (is_digit(peek())) ++at_;
      bool real = false;
      if (peek() == '.' && is_digit(peek(1))) {
        real = true;
        ++at_;
        while (is_digit(peek())) ++at_;
      }
      if ((peek() == 'e' || peek() == 'E') &&
          (is_digit(peek(1)) || ((peek(1) == '-' || peek(1) == '+') && is_digit(peek(2))))) {
        real = true;
        at_ += 2;
        while (is_digit(peek())) ++at_;
      }
      std::string s(text_.substr(start, at_ - start));
      if (real) {
        double d = std::strtod(s.c_str(), nullptr);
        t->kind = Tok::f64;
        std::memcpy(&t->value, &d, 8);
      } else {
        unsigned base = s.size() > 1 && s[0] == '0' ? 8 : 10;
        unsigned __int128 v = 0;
        for (char ch : s) {
          unsigned digit = static_cast<unsigned>(ch - '0');
          if (digit >= base) throw Error(line_, "malformed octal constant " + s);
          v = v * base + digit;
          if (v >> 64) throw Error(line_, "integer constant too large");
        }
        t->kind = Tok::integer;
        t->value = static_cast<uint64_t>(v);
        if (peek() == 'U' || peek() == 'u') ++at_;
      }
    }
    t->text = text_.substr(start, at_ - start);
  }

  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_ = 1;
};

}  // namespace

std::vector<Token> lex(std::string_view text) { return Lexer(text).run(); }

Type type_from(std::string_view text) {
#define X(name, bytes) \
  if (text == #name) return Type::name;
  SG_TYPES(X)
#undef X
  return Type::none;
}

std::string_view name_of(Type type) {
  switch (type) {
#define X(name, bytes) \
  case Type::name:     \
    return #name;
    SG_TYPES(X)
#undef X
    default:
      return "none";
  }
}

uint32_t bytes_of(Type type) {
  switch (type) {
#define X(name, bytes) \
  case Type::name:     \
    return bytes;
    SG_TYPES(X)
#undef X
    default:
      return 0;
  }
}

}  // namespace sg::ptx
