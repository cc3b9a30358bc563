// A Node tree into a config struct: unknown keys, types, ranges, relations.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/nearest.h"
#include "rmoe/base/registry.h"

namespace rmoe {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};

std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

std::string shortened(const std::string& text) { return text.size() <= 60 ? text : str(text.substr(0, 57), "..."); }

std::string describe(const Node& node) {
  return std::visit(Overloaded{[](const Node::Table&) -> std::string { return "a section"; },
                               [](const Node::List&) -> std::string { return "a list"; },
                               [](const Node::Text& text) { return "'" + shortened(text.text) + "'"; },
                               [](const std::string& text) { return "the string '" + shortened(text) + "'"; },
                               [](const auto& value) { return str(value); }},
                    node.value);
}

[[noreturn]] void wrong(const Node& node, const std::string& path, const std::string& expected, std::string help = "") {
  throw Error(Exit::kBadInput, str(node.source.prefix(), path, " is ", describe(node), ", expected ", expected),
              std::move(help));
}

// ---- what a flag's text means
// -----------------------------------------------------------------------------------------

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// The parts of "a, [b, c], 'd, e'" between commas outside brackets and quotes; none for an empty text. Nothing when
// brackets or quotes do not match.
std::optional<std::vector<std::string>> split_items(std::string_view text) {
  std::vector<std::string> items;
  std::string closers;
  char quote = 0;
  size_t start = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote) {
      if (c == '\\' && quote == '"')
        ++i;
      else if (c == quote)
        quote = 0;
    } else if (c == '"' || c == '\'') {
      // An apostrophe inside a word quotes nothing.
      if (trimmed(text.substr(start, i - start)).empty() || closers.size()) quote = c;
    } else if (c == '[' || c == '{') {
      closers += c == '[' ? ']' : '}';
    } else if (c == ']' || c == '}') {
      if (closers.empty() || closers.back() != c) return std::nullopt;
      closers.pop_back();
    } else if (c == ',' && closers.empty()) {
      items.emplace_back(trimmed(text.substr(start, i - start)));
      start = i + 1;
    }
  }
  if (quote || !closers.empty()) return std::nullopt;
  if (const std::string_view last = trimmed(text.substr(start)); !last.empty()) items.emplace_back(last);
  return items;
}

// The inside of "[...]" or "{...}", split.
std::optional<std::vector<std::string>> bracketed(std::string_view text, char open, char close) {
  text = trimmed(text);
  if (text.size() < 2 || text.front() != open || text.back() != close) return std::nullopt;
  return split_items(text.substr(1, text.size() - 2));
}

std::optional<Node> list_from_text(const std::string& text, const Source& source) {
  const auto items = bracketed(text, '[', ']');
  if (!items) return std::nullopt;
  Node::List list;
  for (const std::string& item : *items) list.push_back({Node::Text{item}, source});
  return Node{std::move(list), source};
}

std::optional<Node> table_from_text(const std::string& text, const Source& source) {
  const auto items = bracketed(text, '{', '}');
  if (!items) return std::nullopt;
  Node::Table table;
  for (const std::string& item : *items) {
    const size_t equals = item.find('=');
    if (equals == std::string::npos) return std::nullopt;
    const std::string key(trimmed(std::string_view(item).substr(0, equals)));
    const std::string value(trimmed(std::string_view(item).substr(equals + 1)));
    for (const auto& entry : table) RMOE_CHECK(entry.key != key, source.prefix(), "duplicate key '", key, "'");
    table.push_back({key, Node{Node::Text{value}, source}});
  }
  return Node{std::move(table), source};
}

// Quotes are not needed; a whole value in matching quotes is read as TOML reads it.
std::string string_from_text(const std::string& text, const Source& source) {
  if (text.size() < 2 || text.front() != text.back() || (text.front() != '"' && text.front() != '\'')) return text;
  try {
    const Node parsed = parse_toml("x = " + text, source.name);
    if (const auto* value = std::get_if<std::string>(&parsed.find("x")->value)) return *value;
  } catch (const Error&) {
    // Quotes that only look like a pair, as in "a" and "b": taken as they are.
  }
  return text;
}

// A number in C notation, with '_' between digits. Nothing when the text is no number; `too_large` when it does not
// fit.
template <class T>
std::optional<T> number_from_text(const std::string& text, bool& too_large) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool digits = i > 0 && i + 1 < text.size() && std::isdigit(static_cast<unsigned char>(text[i - 1])) &&
                        std::isdigit(static_cast<unsigned char>(text[i + 1]));
    if (text[i] == '_' && digits) continue;
    if (i == 0 && text[i] == '+' && text.size() > 1 && text[1] != '-') continue;
    plain += text[i];
  }
  T value{};
  const auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), value);
  if (end != plain.data() + plain.size() || plain.empty()) return std::nullopt;
  too_large = error == std::errc::result_out_of_range;
  if (error != std::errc()) return std::nullopt;
  return value;
}

// ---- where a broken relation comes from

// A value in the tree below a section, under its key there: "layers", "moe.experts", "balance[0].weight".
struct Leaf {
  std::string key;
  Source source;
};

void collect(const Node& node, const std::string& key, std::vector<Leaf>& leaves) {
  if (node.outdated) return;
  if (const auto* table = std::get_if<Node::Table>(&node.value)) {
    for (const auto& [name, child] : *table) collect(child, joined(key, name), leaves);
    return;
  }
  leaves.push_back({key, node.source});
  if (const auto* list = std::get_if<Node::List>(&node.value)) {
    for (size_t i = 0; i < list->size(); ++i) collect((*list)[i], str(key, "[", i, "]"), leaves);
  }
}

bool has_word(std::string_view text, std::string_view word) {
  const auto inside = [&](size_t at) {
    return at < text.size() &&
           (std::isalnum(static_cast<unsigned char>(text[at])) || text[at] == '_' || text[at] == '.');
  };
  for (size_t at = 0; !word.empty() && (at = text.find(word, at)) != text.npos; ++at) {
    if ((at == 0 || !inside(at - 1)) && !inside(at + word.size())) return true;
  }
  return false;
}

std::string places(const std::vector<Leaf>& leaves) {
  std::string text;
  for (const Leaf& leaf : leaves) text += str(text.empty() ? "" : " ", leaf.source.place());
  return text;
}

// `message` with where it comes from. A message names the keys that do not fit each other; the flags among them are to
// blame, else the section, written at `source`. `node` is the section's, null when nobody wrote it.
std::string with_source(const Node* node, const Source& source, const std::vector<std::string>& keys,
                        const std::string& path, const std::string& message) {
  std::vector<Leaf> leaves, flags, named_flags, named_others;
  if (node) collect(*node, "", leaves);
  for (const Leaf& leaf : leaves) {
    const std::string last = leaf.key.substr(leaf.key.rfind('.') + 1);
    const bool own = std::find(keys.begin(), keys.end(), last) != keys.end();
    const bool named = has_word(message, leaf.key) || (!own && has_word(message, last));
    if (leaf.source.is_flag()) flags.push_back(leaf);
    if (named) (leaf.source.is_flag() ? named_flags : named_others).push_back(leaf);
  }
  const std::string text = path.empty() ? message : str(path, ": ", message);
  if (!named_flags.empty()) {
    std::string others;
    for (const Leaf& leaf : named_others) {
      others += str(others.empty() ? " (" : ", ", leaf.key, " from ", leaf.source.place());
    }
    return str(places(named_flags), ": ", text, others, others.empty() ? "" : ")");
  }
  if (flags.empty()) return source.prefix() + text;
  if (source.is_flag()) return str(places(flags), ": ", text);
  return str(source.prefix(), text, " (with ", places(flags), ")");
}

// ---- assigning
// --------------------------------------------------------------------------------------------------------

class Binder {
 public:
  explicit Binder(const Section& root) : root_(root) {}

  void assign(const Section& section, const Node& tree, const std::string& path) {
    std::optional<Node> from_text;
    const Node& node = as_table(tree, path, from_text);
    for (const Member& member : section.members) {
      if (auto* choice = std::get_if<AnyChoice*>(&member.slot)) choose(**choice, node, path);
    }
    const Section known = expanded(section);
    for (const auto& [key, child] : std::get<Node::Table>(node.value)) {
      const Member* member = nullptr;
      for (const Member& candidate : known.members) {
        if (candidate.name == key) member = &candidate;
      }
      if (!member) {
        const std::string other_kinds = kinds_with_option(section, key);
        if (child.outdated && !other_kinds.empty()) continue;
        unknown_key(known, child, path, key, other_kinds);
      }
      assign(member->slot, member->range, child, joined(path, key));
    }
  }

  // Runs every validate(), innermost first. `node` is null, and `source` that of the section around, for a section that
  // nobody wrote.
  void validate(const Section& section, const Node* node, Source source, const std::string& path) {
    if (node) source = node->source;
    const Section known = expanded(section);
    for (const Member& member : known.members) {
      validate(member.slot, node ? node->find(member.name) : nullptr, source, joined(path, member.name));
    }
    for (const auto& validation : known.validations) {
      try {
        validation.run(validation.target);
      } catch (const Error& error) {
        throw Error(error.code(), with_source(node, source, keys_of(known), path, error.message()), error.help());
      }
    }
  }

 private:
  void validate(const Slot& slot, const Node* node, const Source& source, const std::string& path) {
    if (const auto* section = std::get_if<Section>(&slot)) {
      validate(*section, node, source, path);
    } else if (const auto* list = std::get_if<ListSlot>(&slot)) {
      const auto* items = node ? std::get_if<Node::List>(&node->value) : nullptr;
      for (size_t i = 0; i < list->size(list->target); ++i) {
        const Node* item = items && i < items->size() ? &(*items)[i] : nullptr;
        validate(list->at(list->target, i), item, node ? node->source : source, str(path, "[", i, "]"));
      }
    } else if (const auto* choice = std::get_if<AnyChoice*>(&slot); choice && (*choice)->kind().empty()) {
      throw Error(Exit::kBadInput, str(source.prefix(), path, " is missing"),
                  help_for_unknown("", (*choice)->catalogue().names()));
    }
  }

  static const Node& as_table(const Node& node, const std::string& path, std::optional<Node>& from_text) {
    if (std::holds_alternative<Node::Table>(node.value)) return node;
    if (const auto* text = std::get_if<Node::Text>(&node.value)) {
      from_text = table_from_text(text->text, node.source);
      if (from_text) return *from_text;
    }
    wrong(node, path, "a section", node.source.is_flag() ? "name a key in it, or write {key = value, ...}" : "");
  }

  static void choose(AnyChoice& choice, const Node& table, const std::string& path) {
    const Node* node = table.find("kind");
    if (!node) return;
    const std::string where = joined(path, "kind");
    std::string kind;
    assign_string(kind, *node, where, "a name");
    if (choice.catalogue().find_or_null(kind)) {
      choice.set_kind(kind);
      return;
    }
    const auto names = choice.catalogue().names();
    const std::string help = help_for_unknown(kind, names);
    input_error_with_help(
        str(node->source.prefix(), where, " is '", shortened(kind), "', expected one of ", list(names)), help);
  }

  // The kinds that a Choice of this section could have and that know the key: kind = "a" or "b". Empty: there is none.
  static std::string kinds_with_option(const Section& section, const std::string& key) {
    std::string kinds;
    for (const Member& member : section.members) {
      const auto* choice = std::get_if<AnyChoice*>(&member.slot);
      if (!choice) continue;
      for (const Plugin& plugin : (*choice)->catalogue().entries()) {
        std::any options = plugin.options;
        for (const Member& option : expanded(plugin.section(options)).members) {
          if (option.name == key) kinds += str(kinds.empty() ? "kind = \"" : " or \"", plugin.name, "\"");
        }
      }
    }
    return kinds;
  }

  [[noreturn]] void unknown_key(const Section& known, const Node& node, const std::string& path, const std::string& key,
                                const std::string& other_kinds) {
    const std::vector<std::string> names = keys_of(known);
    std::string help;
    if (!other_kinds.empty()) {
      help = str("it belongs to ", other_kinds);
    } else if (!nearest(key, names).empty()) {
      help = help_for_unknown(key, names);
    } else if (const std::string elsewhere = nearest_elsewhere(key); !elsewhere.empty()) {
      help = str("did you mean '", elsewhere, "'?");
    } else {
      help = help_for_unknown(key, names);
    }
    input_error_with_help(str(node.source.prefix(), "unknown key '", joined(path, key), "'"), help);
  }

  // The full name of the nearest key in any other section; empty when none is near.
  std::string nearest_elsewhere(const std::string& key) {
    const auto last_part = [](const DocEntry& entry) { return entry.key.substr(entry.key.rfind('.') + 1); };
    const std::vector<DocEntry> entries = section_doc(root_);
    std::vector<std::string> names;
    for (const DocEntry& entry : entries) names.push_back(last_part(entry));
    const std::string name = nearest(key, names);
    for (const DocEntry& entry : entries) {
      if (!name.empty() && name != "kind" && last_part(entry) == name) return entry.key;
    }
    return "";
  }

  void assign(const Slot& slot, const Range& range, const Node& node, const std::string& path) {
    std::visit(Overloaded{[&](bool* target) { assign_bool(*target, node, path); },
                          [&](int64_t* target) { assign_int(*target, range, node, path); },
                          [&](double* target) { assign_double(*target, range, node, path); },
                          [&](std::string* target) { assign_string(*target, node, path, "a string"); },
                          [&](const EnumSlot& target) { assign_enum(target, node, path); },
                          [&](const ListSlot& target) { assign_list(target, range, node, path); },
                          [&](const Section& target) { assign(target, node, path); },
                          [&](AnyChoice*) {}},  // `kind` itself, chosen before the keys were known
               slot);
  }

  static void assign_bool(bool& target, const Node& node, const std::string& path) {
    if (const auto* value = std::get_if<bool>(&node.value)) {
      target = *value;
      return;
    }
    if (const auto* text = std::get_if<Node::Text>(&node.value);
        text && (text->text == "true" || text->text == "false")) {
      target = text->text == "true";
      return;
    }
    wrong(node, path, "true or false");
  }

  static void assign_int(int64_t& target, const Range& range, const Node& node, const std::string& path) {
    std::optional<int64_t> value;
    if (const auto* integer = std::get_if<int64_t>(&node.value)) value = *integer;
    bool too_large = false;
    if (const auto* text = std::get_if<Node::Text>(&node.value))
      value = number_from_text<int64_t>(text->text, too_large);
    if (too_large) wrong(node, path, "an integer of 64 bits");
    if (!value) wrong(node, path, "an integer", integer_help(node));
    check_range(static_cast<double>(*value), range, node, path);
    target = *value;
  }

  // For 1e9 and 4.0, which are integers to everyone but TOML.
  static std::string integer_help(const Node& node) {
    std::optional<double> number;
    bool too_large = false;
    if (const auto* value = std::get_if<double>(&node.value)) number = *value;
    if (const auto* text = std::get_if<Node::Text>(&node.value))
      number = number_from_text<double>(text->text, too_large);
    if (!number || std::abs(*number) > 1e15 || std::trunc(*number) != *number) return "";
    return str("write ", static_cast<int64_t>(*number));
  }

  static void assign_double(double& target, const Range& range, const Node& node, const std::string& path) {
    std::optional<double> value;
    if (const auto* number = std::get_if<double>(&node.value)) value = *number;
    if (const auto* integer = std::get_if<int64_t>(&node.value)) value = static_cast<double>(*integer);
    bool too_large = false;
    if (const auto* text = std::get_if<Node::Text>(&node.value))
      value = number_from_text<double>(text->text, too_large);
    if (too_large || (value && !std::isfinite(*value))) wrong(node, path, "a finite number");
    if (!value) wrong(node, path, "a number");
    check_range(*value, range, node, path);
    target = *value;
  }

  static void check_range(double value, const Range& range, const Node& node, const std::string& path) {
    if (!range.contains(value)) wrong(node, path, range_text(range));
  }

  static void assign_string(std::string& target, const Node& node, const std::string& path, const char* expected) {
    if (const auto* value = std::get_if<std::string>(&node.value)) {
      target = *value;
    } else if (const auto* text = std::get_if<Node::Text>(&node.value)) {
      target = string_from_text(text->text, node.source);
    } else {
      wrong(node, path, expected);
    }
  }

  static void assign_enum(const EnumSlot& target, const Node& node, const std::string& path) {
    const std::string expected = "one of " + list(target.names);
    std::string name;
    assign_string(name, node, path, expected.c_str());
    for (size_t i = 0; i < target.names.size(); ++i) {
      if (target.names[i] == name) {
        target.set(target.target, i);
        return;
      }
    }
    const bool near = !nearest(name, target.names).empty();
    wrong(node, path, expected, near ? help_for_unknown(name, target.names) : "");
  }

  void assign_list(const ListSlot& target, const Range& range, const Node& node, const std::string& path) {
    std::optional<Node> from_text;
    if (const auto* text = std::get_if<Node::Text>(&node.value)) from_text = list_from_text(text->text, node.source);
    const Node& list = from_text ? *from_text : node;
    if (const auto* items = std::get_if<Node::List>(&list.value)) {
      target.resize(target.target, 0);  // a list replaces a list; nothing of the old items stays
      target.resize(target.target, items->size());
      for (size_t i = 0; i < items->size(); ++i) {
        assign(target.at(target.target, i), range, (*items)[i], str(path, "[", i, "]"));
      }
    } else if (const auto* table = std::get_if<Node::Table>(&list.value); table && node.source.is_flag()) {
      assign_items(target, range, *table, path);
    } else {
      wrong(node, path, "a list such as [1, 2]");
    }
  }

  // --balance.0.weight=0.1 on a list that only the defaults give.
  void assign_items(const ListSlot& target, const Range& range, const Node::Table& items, const std::string& path) {
    for (const auto& [key, item] : items) {
      const size_t size = target.size(target.target);
      size_t index = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
      const bool valid = error == std::errc() && end == key.data() + key.size() && index < size;
      RMOE_CHECK(valid, item.source.prefix(), path, " is a list of ", size, " items, it has no '", key, "'");
      assign(target.at(target.target, index), range, item, str(path, "[", index, "]"));
    }
  }

  static std::string list(const std::vector<std::string>& names) {
    std::string text;
    for (size_t i = 0; i < names.size(); ++i) text += (i > 0 ? ", " : "") + names[i];
    return text;
  }

  [[noreturn]] static void input_error_with_help(const std::string& message, const std::string& help) {
    throw Error(Exit::kBadInput, message, help);
  }

  const Section& root_;
};

}  // namespace

void bind_section(Section section, const Node& tree) {
  Binder binder(section);
  binder.assign(section, tree, "");
  binder.validate(section, &tree, {}, "");
}

}  // namespace rmoe
