// TOML files into a Node tree; the only file that knows toml++.
#include <algorithm>
#include <set>
#include <system_error>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"

// toml++ asserts some of what it then checks and reports: "[=" would end the program in a debug build, and be undefined
// behaviour with clang in a release build. Its assertions are left out for good, and its checks are what counts.
#undef NDEBUG
#define TOML_ASSERT(expression) static_assert(true)
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

namespace rmoe {
namespace {

// Deeper than any config, and shallow enough to recurse.
constexpr int kMaxDepth = 32;
constexpr int64_t kMaxBytes = int64_t{1} << 20;
constexpr int64_t kMaxDots = 200;

// Refuses, before toml++ sees them, two things that it does not survive: it frees tables by recursion but does not
// limit the depth of dotted keys (a.a.a. ...), and its test for odd white space is undefined for letters such as e with
// an accent. Neither has a place outside strings and comments.
void refuse_what_toml_does_not_survive(std::string_view text, const std::string& name) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
  int64_t line = 1, column = 0, dots = 0;
  std::string_view closer;  // what ends the string or comment that `at` is in
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    column += (static_cast<unsigned char>(c) & 0xc0) != 0x80;  // in characters
    if (closer.empty()) {
      RMOE_CHECK(static_cast<unsigned char>(c) < 0x80, Source{name, line, column}.prefix(),
                 "a character that is not ASCII outside quotes");
      RMOE_CHECK(c != '.' || ++dots <= kMaxDots, Source{name, line, column}.prefix(), "more than ", kMaxDots,
                 " dots in one line");
      for (std::string_view quote : {"\"\"\"", "'''", "\"", "'"}) {
        if (!text.substr(at).starts_with(quote)) continue;
        closer = quote;
        break;
      }
      if (c == '#') closer = "\n";
      if (closer.size() == 3) at += 2, column += 2;
    } else if (c == '\\' && closer.front() == '"') {
      const size_t next = text.find_first_not_of(" \t\r\n\v\f", at + 1);  // \ at the end of a line joins it to the next
      RMOE_CHECK(next == std::string_view::npos || static_cast<unsigned char>(text[next]) < 0x80,
                 Source{name, line, column}.prefix(), "a character that is not ASCII after a backslash");
      if (at + 1 < text.size() && text[at + 1] != '\n') ++at, ++column;
    } else if (text.substr(at).starts_with(closer)) {
      at += closer.size() - 1;
      column += static_cast<int64_t>(closer.size()) - 1;
      // Up to two quotes may stand before the three that end a string.
      for (; closer.size() == 3 && at + 1 < text.size() && text[at + 1] == closer.front(); ++at) ++column;
      closer = "";
    } else if (c == '\n' && closer.size() == 1) {
      return;  // a string without an end, which toml++ reports
    }
    if (text[at] == '\n') {
      ++line;
      column = dots = 0;
    }
  }
}

Source source_at(const std::string& name, const toml::source_region& region) {
  return {name, static_cast<int64_t>(region.begin.line), static_cast<int64_t>(region.begin.column)};
}

Node to_node(const toml::node& from, const Source& source, int depth) {
  if (depth > kMaxDepth) input_error(source.prefix(), "nested deeper than ", kMaxDepth);
  Node node{Node::Table{}, source};
  if (const auto* table = from.as_table()) {
    Node::Table children;
    for (const auto& [key, child] : *table) {
      const Source at = source_at(source.name, key.source());
      children.push_back({std::string(key.str()), to_node(child, at, depth + 1)});
    }
    // toml++ sorts by name; the first mistake to report is the first in the file.
    std::sort(children.begin(), children.end(), [](const auto& a, const auto& b) {
      const Source &x = a.node.source, &y = b.node.source;
      return std::pair(x.line, x.column) < std::pair(y.line, y.column);
    });
    node.value = std::move(children);
  } else if (const auto* array = from.as_array()) {
    Node::List items;
    for (const auto& item : *array) items.push_back(to_node(item, source_at(source.name, item.source()), depth + 1));
    node.value = std::move(items);
  } else if (const auto* boolean = from.as_boolean()) {
    node.value = boolean->get();
  } else if (const auto* integer = from.as_integer()) {
    node.value = integer->get();
  } else if (const auto* number = from.as_floating_point()) {
    node.value = number->get();
  } else if (const auto* text = from.as_string()) {
    node.value = text->get();
  } else {
    input_error(source.prefix(), "a date or time, which no key takes");
  }
  return node;
}

// The files that `base` names, taken out of the tree.
std::vector<std::pair<std::string, Source>> take_bases(Node& root) {
  auto& table = std::get<Node::Table>(root.value);
  const auto at = std::find_if(table.begin(), table.end(), [](const auto& entry) { return entry.key == "base"; });
  if (at == table.end()) return {};
  const Node base = std::move(at->node);
  table.erase(at);

  std::vector<std::pair<std::string, Source>> names;
  const auto add = [&](const Node& node) {
    const auto* name = std::get_if<std::string>(&node.value);
    RMOE_CHECK(name && !name->empty(), node.source.prefix(), "base: expected a file name or a list of file names");
    names.emplace_back(*name, node.source);
  };
  if (const auto* list = std::get_if<Node::List>(&base.value)) {
    for (const Node& item : *list) add(item);
  } else {
    add(base);
  }
  return names;
}

// `chain`: the files being read, outermost first, to find cycles.
Node parse_with_bases(const std::filesystem::path& path, std::vector<std::filesystem::path>& chain) {
  std::error_code ignored;
  chain.push_back(std::filesystem::weakly_canonical(path, ignored));
  Node root = parse_toml(read_file(path, kMaxBytes), path.string());
  Node merged{Node::Table{}, root.source};
  for (const auto& [name, source] : take_bases(root)) {
    const std::filesystem::path base = path.parent_path() / name;
    const auto canonical = std::filesystem::weakly_canonical(base, ignored);
    if (std::find(chain.begin(), chain.end(), canonical) != chain.end()) {
      std::string cycle;
      for (const auto& file : chain) cycle += file.filename().string() + " -> ";
      input_error(source.prefix(), "base files form a cycle: ", cycle, canonical.filename().string());
    }
    RMOE_CHECK(std::filesystem::exists(base, ignored), source.prefix(), "base file ", base.string(), " does not exist");
    merge(merged, parse_with_bases(base, chain));
  }
  merge(merged, root);
  chain.pop_back();
  return merged;
}

}  // namespace

Node parse_toml(std::string_view text, const std::string& name) {
  refuse_what_toml_does_not_survive(text, name);
  try {
    return to_node(toml::parse(text, name), Source{name}, 0);
  } catch (const toml::parse_error& error) {
    input_error(source_at(name, error.source()).prefix(), error.description());
  }
}

Node parse_toml_file(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> chain;
  return parse_with_bases(path, chain);
}

}  // namespace rmoe
