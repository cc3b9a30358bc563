// Configuration: a tree of keys that knows where every value was written, and its way into and out of config structs
// (fields.h). Order of a run: defaults < file (its `base` first) < flags:
//
//   RunConfig config = load_config<RunConfig>("configs/a.toml", {"--model.layers=4"});
//
// Every mistake is an Error(kBadInput) that begins with where it was made, "configs/my.toml:14:3: " or
// "--model.layers=x: ". Of values that do not fit each other, it is the flag's mistake rather than the file's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "rmoe/base/reflect.h"

namespace rmoe {

// Where a value was written: a file with line and column (of the key), or a flag.
struct Source {
  std::string name;  // path as given, or the flag's text
  int64_t line = 0;  // 0: no position
  int64_t column = 0;

  bool is_flag() const { return name.starts_with("--"); }
  std::string place() const;   // "configs/my.toml:14:3", "--layers=4" or ""
  std::string prefix() const;  // the same before a message: "--layers=4: " or ""
};

struct Node {
  struct Entry;
  using Table = std::vector<Entry>;  // in the order of writing
  using List = std::vector<Node>;
  // What a flag said. The field that it is for decides what it means: `4` may be a number or a name.
  struct Text {
    std::string text;
  };

  std::variant<Table, List, bool, int64_t, double, std::string, Text> value;
  Source source;
  // Written for a `kind` that a later file or flag replaced: no mistake if the new kind does not know the key.
  bool outdated = false;

  const Node* find(std::string_view key) const;  // null when this is no table or has no such key
  Node* find(std::string_view key) { return const_cast<Node*>(std::as_const(*this).find(key)); }
};

struct Node::Entry {
  std::string key;
  Node node;
};

// Reads TOML. `base = "other.toml"` (or a list of them, later ones win) at the top names files to start from, relative
// to this file. A file that cannot be read is an Error(kIo); of a missing base, it begins with where it was named.
Node parse_toml_file(const std::filesystem::path& path);
Node parse_toml(std::string_view text, const std::string& name);  // no `base`

// Reads {"--model.layers=4", "--data.path", "bible", "--model.balance.0.weight=0.1"}. Strings need no quotes, lists are
// [1, 2], tables {kind = switch, weight = 0.1}; a number between dots is an item of a list. The last flag wins.
Node parse_flags(const std::vector<std::string>& flags);

// Lays `over` on `into`: tables key by key, everything else replaced. A table of numbered keys changes items of a list.
void merge(Node& into, const Node& over);

// One key of a config struct, for help and docs.
struct DocEntry {
  std::string key;       // "model.moe.router.top_k"; "balance[].weight" inside a list
  std::string kind;      // the plug-in that the key belongs to, for options of a Choice
  std::string type;      // "integer, at least 1"
  std::string fallback;  // the default, as TOML; empty when the key must be given
  std::string help;
};

// The functions below on a section_of(config).
void bind_section(Section section, const Node& tree);
std::string section_to_toml(Section section);
std::string section_to_inline_toml(Section section);  // {a = 1, b = "x"}
std::string range_text(const Range& range);           // "at least 1", empty for no bounds
nlohmann::ordered_json section_to_json(Section section);
std::vector<DocEntry> section_doc(Section section);

// Sets the fields that `tree` names and checks them: unknown keys, types, ranges, then every validate(), innermost
// first. Integers serve for doubles. `config` stays as it was when anything is wrong.
template <ConfigStruct C>
void bind(C& config, const Node& tree) {
  C next = config;
  bind_section(section_of(next), tree);
  config = std::move(next);
}

// The usual way: defaults < file (none when the path is empty) < flags.
template <ConfigStruct C>
C load_config(const std::filesystem::path& file, const std::vector<std::string>& flags) {
  Node tree = file.empty() ? Node{} : parse_toml_file(file);
  merge(tree, parse_flags(flags));
  C config;
  bind(config, tree);
  return config;
}

// The whole config as TOML that binds to exactly the same values, doubles included.
template <ConfigStruct C>
std::string to_toml(const C& config) {
  C copy = config;
  return section_to_toml(section_of(copy));
}

// The same as JSON. The caller includes nlohmann/json.hpp.
template <ConfigStruct C>
auto to_json(const C& config) {
  C copy = config;
  return section_to_json(section_of(copy));
}

// Every key with type, default and help; the options of all kinds of a Choice.
template <ConfigStruct C>
std::vector<DocEntry> doc(const C& defaults = {}) {
  C copy = defaults;
  return section_doc(section_of(copy));
}
std::string doc_text(const std::vector<DocEntry>& entries);
std::string doc_markdown(const std::vector<DocEntry>& entries);

}  // namespace rmoe
