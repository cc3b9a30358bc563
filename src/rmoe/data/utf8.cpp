// UTF-8: see utf8.h. Well-formedness follows table 3-7 of the Unicode Standard.
#include "rmoe/data/utf8.h"

#include <algorithm>

namespace rmoe::data {

Utf8Char first_wide_char(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  // The second byte's range is what excludes overlong forms, surrogates and values above U+10FFFF.
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0, 1, Utf8Char::kInvalid};
  }
  char32_t value = lead & (0xFFU >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) return {0, static_cast<int64_t>(i), Utf8Char::kIncomplete};
    if (byte(i) < low || byte(i) > high) return {0, 1, Utf8Char::kInvalid};
    value = (value << 6) | (byte(i) & 0x3FU);
    low = 0x80;
    high = 0xBF;
  }
  return {value, static_cast<int64_t>(length), Utf8Char::kValid};
}

std::optional<int64_t> first_invalid(std::string_view text, bool may_continue) {
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Char c = first_char(text.substr(i));
    if (c.kind == Utf8Char::kInvalid || (c.kind == Utf8Char::kIncomplete && !may_continue)) {
      return static_cast<int64_t>(i);
    }
    i += static_cast<size_t>(c.length);
  }
  return std::nullopt;
}

int64_t unfinished_tail(std::string_view text) {
  const size_t most = std::min<size_t>(3, text.size());
  for (size_t back = 1; back <= most; ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;  // a continuation byte: its lead stands before it
    if (byte < 0x80) return 0;
    return first_char(text.substr(text.size() - back)).kind == Utf8Char::kIncomplete ? static_cast<int64_t>(back) : 0;
  }
  return 0;
}

void append_utf8(char32_t value, std::string& out) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xC0 | (value >> 6));
    put(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    put(0xE0 | (value >> 12));
    put(0x80 | ((value >> 6) & 0x3F));
    put(0x80 | (value & 0x3F));
  } else {
    put(0xF0 | (value >> 18));
    put(0x80 | ((value >> 12) & 0x3F));
    put(0x80 | ((value >> 6) & 0x3F));
    put(0x80 | (value & 0x3F));
  }
}

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
