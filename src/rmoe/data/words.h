// White space, words, and the counts of a text (bytes, characters, words).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "rmoe/base/utf8.h"

namespace rmoe::data {

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
