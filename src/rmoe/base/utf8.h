// UTF-8 as Unicode defines it (table 3-7 of the standard): shortest forms only, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace rmoe {

// What stands at the front of some text.
struct Utf8Char {
  char32_t value = 0;  // the code point; meaningless unless kind is kValid
  int64_t length = 1;  // bytes it takes; 1 for an invalid byte
  enum Kind {
    kValid,
    kInvalid,
    kIncomplete
  } kind = kValid;  // kIncomplete: the text ends inside a character that may be valid
};

Utf8Char first_wide_char(std::string_view text);  // of text whose first byte is not ASCII

// Reads the first character of non-empty `text`.
inline Utf8Char first_char(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  return lead < 0x80 ? Utf8Char{lead, 1, Utf8Char::kValid} : first_wide_char(text);
}

// Offset of the first byte that is not part of a well-formed character; none when all of `text` is well-formed. With
// `may_continue`, an unfinished character at the end is not an error.
std::optional<int64_t> first_invalid(std::string_view text, bool may_continue = false);

inline bool is_utf8(std::string_view text) { return !first_invalid(text); }

// Bytes at the end of `text` (0 to 3) that begin a character without finishing it.
int64_t unfinished_tail(std::string_view text);

void append_utf8(char32_t value, std::string& out);

// Invalid bytes and control characters other than newline and tab become U+FFFD.
std::string printable_utf8(std::string_view bytes);

}  // namespace rmoe
