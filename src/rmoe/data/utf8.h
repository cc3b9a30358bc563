// UTF-8: reading, checking, writing characters, and the counts of a text (bytes, characters, words).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace rmoe::data {

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

// Reads the first character of non-empty `text` (Unicode's table of well-formed sequences: no surrogates, no overlong
// forms, nothing above U+10FFFF).
inline Utf8Char first_char(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  return lead < 0x80 ? Utf8Char{lead, 1, Utf8Char::kValid} : first_wide_char(text);
}

// Offset of the first byte that is not part of a well-formed character; none when all of `text` is well-formed. With
// `may_continue`, an unfinished character at the end is not an error.
std::optional<int64_t> first_invalid(std::string_view text, bool may_continue = false);

// Bytes at the end of `text` (0 to 3) that begin a character without finishing it.
int64_t unfinished_tail(std::string_view text);

void append_utf8(char32_t value, std::string& out);

// White space by the definition of Python's str.split(), which made the published token counts of WikiText-103.
inline constexpr auto kAsciiSpace = [] {
  std::array<bool, 128> table{};
  for (const char c : {' ', '\t', '\n', '\v', '\f', '\r', '\x1C', '\x1D', '\x1E', '\x1F'})
    table[static_cast<size_t>(c)] = true;
  return table;
}();
bool is_wide_space(char32_t value);  // of a value from 0x80 on
inline bool is_space(char32_t value) { return value < 0x80 ? kAsciiSpace[value] : is_wide_space(value); }

// Calls `take(first, length)` for every run of text and leaves out white space; `take_line()` at every line feed.
// Invalid bytes are ordinary text.
template <class TakeRun, class TakeLine>
void split_words(std::string_view text, TakeRun take, TakeLine take_line);

// Counts of a text given in pieces; an unfinished last line counts as a line.
class TextCounter {
 public:
  void feed(std::string_view text);
  // Ends a document: what is unfinished is counted.
  void end_document();

  int64_t bytes() const { return bytes_; }
  int64_t characters() const { return characters_; }  // an invalid byte counts as one
  int64_t words() const { return words_; }            // words between white space plus one per line

 private:
  std::string held_;  // an unfinished character
  bool in_word_ = false, in_line_ = false;
  int64_t bytes_ = 0, characters_ = 0, words_ = 0;

  void count(std::string_view text);
};

template <class TakeRun, class TakeLine>
void split_words(std::string_view text, TakeRun take, TakeLine take_line) {
  size_t begin = 0, i = 0;
  while (i < text.size()) {
    const auto byte = static_cast<unsigned char>(text[i]);
    size_t length = 1;
    bool space = false;
    if (byte < 0x80) {
      space = is_space(byte);
    } else {
      const Utf8Char c = first_char(text.substr(i));
      length = static_cast<size_t>(c.length);
      space = c.kind == Utf8Char::kValid && is_space(c.value);
    }
    if (space) {
      if (i > begin) take(begin, i - begin);
      begin = i + length;
      if (byte == '\n') take_line();
    }
    i += length;
  }
  if (i > begin) take(begin, i - begin);
}

}  // namespace rmoe::data
