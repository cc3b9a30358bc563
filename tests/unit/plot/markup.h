// A small check of HTML and SVG text for tests.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace rmoe::plot {

inline int count(std::string_view text, std::string_view part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

// Whether tags are balanced, attributes quoted, and every & opens an entity. Returns what is wrong first, or "".
inline std::string check_markup(std::string_view text) {
  const std::set<std::string, std::less<>> kVoid = {"meta", "br", "!DOCTYPE"};
  std::vector<std::string> open;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '&') {
      size_t end = text.find_first_not_of("#abcdefghijklmnopqrstuvwxyz0123456789", i + 1);
      if (end == std::string_view::npos || text[end] != ';' || end == i + 1)
        return "bare & at " + std::string(text.substr(i, 20));
    }
    if (text[i] == '>') return "bare > after " + std::string(text.substr(i < 40 ? 0 : i - 40, 40));
    if (text[i] != '<') continue;
    std::string_view where = text.substr(i, 60);
    size_t name_begin = i + 1 + (text[i + 1] == '/' ? 1 : 0);
    size_t name_end = text.find_first_of(" \n>/", name_begin);
    if (name_end == std::string_view::npos) return "unfinished tag: " + std::string(where);
    std::string name(text.substr(name_begin, name_end - name_begin));
    char quote = 0;
    std::set<std::string> attributes;
    std::string word;
    for (i = name_end; i < text.size() && (quote || text[i] != '>'); ++i) {
      if (quote) {
        if (text[i] == quote) quote = 0;
        continue;
      }
      if (text[i] == '"' || text[i] == '\'') {
        quote = text[i];
      } else if (text[i] == '=') {
        if (!attributes.insert(word).second) return "attribute " + word + " twice: " + std::string(where);
        word.clear();
      } else if (text[i] == '<') {
        return "< in a tag: " + std::string(where);
      } else if (!std::isspace(static_cast<unsigned char>(text[i]))) {
        word += text[i];
      } else if (i + 1 < text.size() && text[i + 1] != '=') {
        word.clear();
      }
    }
    if (i == text.size()) return "unfinished tag: " + std::string(where);
    if (where[1] == '/') {
      if (open.empty() || open.back() != name) return "closes nothing: " + std::string(where);
      open.pop_back();
    } else if (text[i - 1] != '/' && kVoid.count(name) == 0) {
      open.push_back(name);
    }
    if (name == "style" && where[1] != '/') i = text.find("</style>", i) - 1;  // CSS is no markup
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

}  // namespace rmoe::plot
