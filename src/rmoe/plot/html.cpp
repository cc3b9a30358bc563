#include "rmoe/plot/html.h"

#include <cstdint>

namespace rmoe::plot {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the valid character at the front of `bytes`, 0 where there is none (overlong forms, surrogates and numbers
// beyond U+10FFFF are invalid).
size_t character_length(std::string_view bytes) {
  auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  uint8_t first = at(0);
  if (first < 0x80) return 1;
  size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                  : (first & 0xF0) == 0xE0         ? 3
                  : first >= 0xF0 && first <= 0xF4 ? 4
                                                   : 0;
  if (length == 0 || bytes.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((at(i) & 0xC0) != 0x80) return 0;
  }
  uint8_t second = at(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
  if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
  return length;
}

// Controls: C0 but newline and tab, DEL, and C1 (U+0080 to U+009F).
bool is_control(std::string_view character) {
  auto first = static_cast<uint8_t>(character[0]);
  if (character.size() == 1) return (first < 0x20 && first != '\n' && first != '\t') || first == 0x7F;
  return first == 0xC2 && static_cast<uint8_t>(character[1]) < 0xA0;
}

}  // namespace

std::string printable_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t length = character_length(bytes);
    if (length == 0 || is_control(bytes.substr(0, length))) {
      out += kReplacement;
    } else {
      out += bytes.substr(0, length);
    }
    bytes.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

std::string escape_html(std::string_view bytes) {
  std::string text = printable_utf8(bytes);
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

size_t utf8_length(std::string_view text) {
  size_t n = 0;
  for (char c : text) n += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
  return n;
}

std::string shorten(std::string_view text, size_t most) {
  if (utf8_length(text) <= most) return std::string(text);
  size_t kept = 0;
  size_t end = 0;
  while (end < text.size()) {
    bool starts_character = (static_cast<uint8_t>(text[end]) & 0xC0) != 0x80;
    if (starts_character && kept++ == most - 1) break;
    ++end;
  }
  return std::string(text.substr(0, end)) + "…";
}

}  // namespace rmoe::plot
