#include "rmoe/plot/html.h"

#include <cstdint>

#include "rmoe/base/utf8.h"

namespace rmoe::plot {
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
