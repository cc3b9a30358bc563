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

// toml++ limits the depth of values but not of dotted keys, and frees its tables by recursion: a.a.a. ... would
// overflow the stack.
void refuse_endless_keys(std::string_view text, const std::string& name) {
  int64_t line = 1, dots = 0;
  for (const char c : text) {
    if (c == '\n') {
      ++line;
      dots = 0;
    }
    dots += c == '.';
    RMOE_CHECK(dots <= kMaxDots, name, ":", line, ":1: more than ", kMaxDots, " dots in one line");
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
  refuse_endless_keys(text, name);
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
