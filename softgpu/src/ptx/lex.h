// PTX text to tokens.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace sg::ptx {

enum class Tok : uint8_t {
  end,
  name,     // identifier, with a leading % $ or _
  dot,      // .word, with :: parts: text is without the dot
  integer,  // value
  f32,      // value = bits
  f64,      // value = bits
  string,   // without quotes, escapes kept
  symbol,   // one punctuation character; "<<" and ">>" are two
};

struct Token {
  Tok kind = Tok::end;
  bool spaced = false;  // white space stands in front of it
  uint32_t line = 1;
  std::string_view text;
  uint64_t value = 0;
};

/// Ends with a Tok::end token. Throws Error.
std::vector<Token> lex(std::string_view text);

}  // namespace sg::ptx
