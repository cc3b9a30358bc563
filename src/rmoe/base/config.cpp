// The tree itself: sources, merging, flags.
#include "rmoe/base/config.h"

#include <algorithm>
#include <charconv>

#include "rmoe/base/error.h"
#include "rmoe/base/utf8.h"

namespace rmoe {
namespace {

// What a `kind` key says; empty when the table has none.
std::string kind_in(const Node& table) {
  const Node* kind = table.find("kind");
  if (!kind) return "";
  if (const auto* text = std::get_if<Node::Text>(&kind->value)) return text->text;
  if (const auto* text = std::get_if<std::string>(&kind->value)) return *text;
  return "";
}

// The position that a key of digits means, or -1.
int64_t item_number(std::string_view key) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), number);
  return error == std::errc() && end == key.data() + key.size() && number >= 0 ? number : -1;
}

void merge_at(Node& into, const Node& over, const std::string& path);

void merge_items(Node::List& list, const Node::Table& items, const std::string& path) {
  for (const auto& [key, item] : items) {
    const int64_t number = item_number(key);
    const auto size = static_cast<int64_t>(list.size());
    RMOE_CHECK(number >= 0 && number < size, item.source.prefix(), path, " is a list of ", size, " items, it has no '",
               key, "'");
    merge_at(list[static_cast<size_t>(number)], item, str(path, "[", number, "]"));
  }
}

void merge_at(Node& into, const Node& over, const std::string& path) {
  auto* table = std::get_if<Node::Table>(&into.value);
  const auto* over_table = std::get_if<Node::Table>(&over.value);
  if (auto* list = std::get_if<Node::List>(&into.value); list && over_table) {
    merge_items(*list, *over_table, path);
    return;
  }
  if (!table || !over_table) {
    into = over;
    return;
  }
  const std::string old_kind = kind_in(into), new_kind = kind_in(over);
  // An unwritten old kind is the default's, which this file does not know: it may be another one.
  if (!new_kind.empty() && old_kind != new_kind) {
    for (auto& entry : *table) entry.node.outdated = true;
  }
  for (const auto& [key, child] : *over_table) {
    if (Node* existing = into.find(key)) {
      merge_at(*existing, child, path.empty() ? key : path + "." + key);
      existing->outdated = false;
    } else {
      table->push_back({key, child});
    }
  }
  // A section is where a file has it; a flag changes one value in it.
  if (!over.source.name.empty() && !over.source.is_flag()) into.source = over.source;
}

// Makes the tables on the way to `path` ("model.layers") and returns the place of the value.
Node& place_of(Node& root, std::string_view path, const Source& source) {
  Node* node = &root;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('.', start), path.size());
    const std::string key(path.substr(start, end - start));
    RMOE_CHECK(!key.empty(), source.prefix(), "an empty key in '", path, "'");
    auto* table = std::get_if<Node::Table>(&node->value);
    RMOE_CHECK(table, source.prefix(), "'", path.substr(0, start > 0 ? start - 1 : 0), "' was given a value by ",
               node->source.name);
    if (Node* existing = node->find(key)) {
      node = existing;
    } else {
      table->push_back({key, Node{Node::Table{}, source}});
      node = &table->back().node;
    }
    start = end + 1;
  }
  return *node;
}

}  // namespace

std::string Source::place() const { return line > 0 ? str(name, ":", line, ":", column) : name; }

std::string Source::prefix() const { return name.empty() ? "" : place() + ": "; }

const Node* Node::find(std::string_view key) const {
  const auto* table = std::get_if<Table>(&value);
  if (!table) return nullptr;
  for (const auto& entry : *table) {
    if (entry.key == key) return &entry.node;
  }
  return nullptr;
}

void merge(Node& into, const Node& over) { merge_at(into, over, ""); }

Node parse_flags(const std::vector<std::string>& flags) {
  Node root{Node::Table{}, {}};
  for (size_t i = 0; i < flags.size(); ++i) {
    std::string flag = flags[i];
    RMOE_CHECK(is_utf8(flag), "flag ", i + 1, " is not valid UTF-8");
    RMOE_CHECK(flag.starts_with("--") && flag.size() > 2, "'", flag, "': expected a flag such as --model.layers=4");
    size_t equals = flag.find('=');
    if (equals == std::string::npos) {
      if (i + 1 == flags.size() || flags[i + 1].starts_with("--")) {
        throw Error(Exit::kBadInput, flag + ": no value given", str("write ", flag, "=VALUE"));
      }
      RMOE_CHECK(is_utf8(flags[i + 1]), flag, ": the value is not valid UTF-8");
      equals = flag.size();
      flag += "=" + flags[++i];
    }
    const Source source{flag};
    Node& place = place_of(root, std::string_view(flag).substr(2, equals - 2), source);
    const auto* table = std::get_if<Node::Table>(&place.value);
    RMOE_CHECK(!table || table->empty(), source.prefix(), "another flag, ", table->front().node.source.name,
               ", sets a key inside it");
    place = {Node::Text{flag.substr(equals + 1)}, source};
  }
  return root;
}

}  // namespace rmoe
