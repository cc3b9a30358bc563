#include "rmoe/base/utf8.h"

#include <algorithm>

namespace rmoe {

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

std::string printable_utf8(std::string_view bytes) {
  constexpr char32_t kReplacement = 0xFFFD;
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Char c = first_char(bytes);
    const bool valid = c.kind == Utf8Char::kValid;
    const bool control = (c.value < 0x20 && c.value != '\n' && c.value != '\t') || (c.value >= 0x7F && c.value < 0xA0);
    append_utf8(valid && !control ? c.value : kReplacement, out);
    bytes.remove_prefix(valid ? static_cast<size_t>(c.length) : 1);
  }
  return out;
}

}  // namespace rmoe
