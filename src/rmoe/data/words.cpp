#include "rmoe/data/words.h"

namespace rmoe::data {

bool is_wide_space(char32_t value) {
  return value == 0x85 || value == 0xA0 || value == 0x1680 || (value >= 0x2000 && value <= 0x200A) || value == 0x2028 ||
         value == 0x2029 || value == 0x202F || value == 0x205F || value == 0x3000;
}

void TextCounter::count(std::string_view text) {
  if (text.empty()) return;
  int64_t characters = 0, words = 0;
  bool in_word = in_word_;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    size_t length = 1;
    bool space = false;
    if (byte < 0x80) [[likely]] {
      space = kAsciiSpace[byte];
    } else {
      const Utf8Char c = first_char(text.substr(i));
      // An unfinished character here is one that will not be finished: each of its bytes counts.
      length = c.kind == Utf8Char::kIncomplete ? 1 : static_cast<size_t>(c.length);
      space = c.kind == Utf8Char::kValid && is_space(c.value);
    }
    ++characters;
    words += (!space & !in_word) + (byte == '\n');
    in_word = !space;
    i += length;
  }
  characters_ += characters;
  words_ += words;
  in_word_ = in_word;
  in_line_ = text.back() != '\n';
}

void TextCounter::feed(std::string_view text) {
  bytes_ += static_cast<int64_t>(text.size());
  if (!held_.empty()) {
    // Finish the held character byte by byte; it is at most four bytes long.
    while (!text.empty()) {
      held_.push_back(text.front());
      text.remove_prefix(1);
      const auto tail = static_cast<size_t>(unfinished_tail(held_));
      if (tail < held_.size()) {
        count(std::string_view(held_).substr(0, held_.size() - tail));
        held_.erase(0, held_.size() - tail);
      }
      if (held_.empty()) break;
    }
    if (!held_.empty()) return;
  }
  const auto tail = static_cast<size_t>(unfinished_tail(text));
  count(text.substr(0, text.size() - tail));
  held_.assign(text.substr(text.size() - tail));
}

void TextCounter::end_document() {
  count(held_);
  held_.clear();
  words_ += in_line_;
  in_word_ = in_line_ = false;
}

}  // namespace rmoe::data
