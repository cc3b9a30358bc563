// Config structs as TOML, JSON and documentation.
#include <array>
#include <charconv>
#include <cmath>

#include <nlohmann/json.hpp>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/registry.h"
#include "rmoe/base/utf8.h"

namespace rmoe {
namespace {

using Json = nlohmann::ordered_json;

std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

// The shortest text that reads back as the same double, and as a float to TOML.
std::string toml_number(double value) {
  RMOE_CHECK(std::isfinite(value), "a config holds the number ", value, ", which cannot be written");
  std::array<char, 32> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  RMOE_ASSERT(error == std::errc(), "a double longer than ", buffer.size(), " characters");
  std::string text(buffer.data(), end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string toml_string(const std::string& text) {
  RMOE_CHECK(is_utf8(text), "a config holds a string that is not valid UTF-8 and cannot be written");
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          constexpr const char* kHex = "0123456789ABCDEF";
          out += str("\\u00", kHex[c >> 4], kHex[c & 15]);
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

std::string enum_text(const EnumSlot& slot) { return slot.names[slot.get(slot.target)]; }

std::string inline_toml(const Slot& slot);

std::string inline_toml(const ListSlot& list) {
  std::string out = "[";
  for (size_t i = 0; i < list.size(list.target); ++i) {
    out += (i > 0 ? ", " : "") + inline_toml(list.at(list.target, i));
  }
  return out + "]";
}

std::string inline_toml(const Section& section) {
  std::string out = "{";
  for (const Member& member : expanded(section).members) {
    out += (out.size() > 1 ? ", " : "") + member.name + " = " + inline_toml(member.slot);
  }
  return out + "}";
}

std::string inline_toml(const Slot& slot) {
  struct Visitor {
    std::string operator()(const bool* value) { return *value ? "true" : "false"; }
    std::string operator()(const int64_t* value) { return std::to_string(*value); }
    std::string operator()(const double* value) { return toml_number(*value); }
    std::string operator()(const std::string* value) { return toml_string(*value); }
    std::string operator()(const EnumSlot& value) { return toml_string(enum_text(value)); }
    std::string operator()(const ListSlot& value) { return inline_toml(value); }
    std::string operator()(const Section& value) { return inline_toml(value); }
    std::string operator()(const AnyChoice* value) { return toml_string(value->kind()); }
  };
  return std::visit(Visitor{}, slot);
}

// A list of sections is written as [[name]] tables, unless it is empty.
bool is_table_list(const ListSlot& list) {
  return list.size(list.target) > 0 && std::holds_alternative<Section>(list.at(list.target, 0));
}

// TOML wants the plain keys of a section before its subsections.
void write_toml(std::string& out, const Section& section, const std::string& path, const std::string& header) {
  const Section known = expanded(section);
  std::string keys;
  for (const Member& member : known.members) {
    const auto* list = std::get_if<ListSlot>(&member.slot);
    if (std::holds_alternative<Section>(member.slot) || (list && is_table_list(*list))) continue;
    keys += member.name + " = " + inline_toml(member.slot) + "\n";
  }
  const bool list_item = header.starts_with("[[");
  if (!header.empty() && (!keys.empty() || list_item)) out += (out.empty() ? "" : "\n") + header + "\n";
  out += keys;
  for (const Member& member : known.members) {
    const std::string inner = joined(path, member.name);
    if (const auto* subsection = std::get_if<Section>(&member.slot)) {
      write_toml(out, *subsection, inner, "[" + inner + "]");
    } else if (const auto* list = std::get_if<ListSlot>(&member.slot); list && is_table_list(*list)) {
      for (size_t i = 0; i < list->size(list->target); ++i) {
        write_toml(out, std::get<Section>(list->at(list->target, i)), inner, "[[" + inner + "]]");
      }
    }
  }
}

Json json_of(const Slot& slot) {
  struct Visitor {
    Json operator()(const bool* value) { return *value; }
    Json operator()(const int64_t* value) { return *value; }
    Json operator()(const double* value) { return *value; }
    Json operator()(const std::string* value) { return *value; }
    Json operator()(const EnumSlot& value) { return enum_text(value); }
    Json operator()(const ListSlot& list) {
      Json out = Json::array();
      for (size_t i = 0; i < list.size(list.target); ++i) out.push_back(json_of(list.at(list.target, i)));
      return out;
    }
    Json operator()(const Section& section) { return section_to_json(section); }
    Json operator()(const AnyChoice* value) { return value->kind(); }
  };
  return std::visit(Visitor{}, slot);
}

std::string one_of(const std::vector<std::string>& names) {
  std::string text = "one of ";
  for (size_t i = 0; i < names.size(); ++i) text += (i > 0 ? ", " : "") + names[i];
  return text;
}

std::string type_of(const Slot& slot) {
  struct Visitor {
    std::string operator()(const bool*) { return "true or false"; }
    std::string operator()(const int64_t*) { return "integer"; }
    std::string operator()(const double*) { return "number"; }
    std::string operator()(const std::string*) { return "string"; }
    std::string operator()(const EnumSlot& value) { return one_of(value.names); }
    std::string operator()(const ListSlot& value) { return "list: " + type_of(value.sample()); }
    std::string operator()(const Section&) { return "section"; }
    std::string operator()(const AnyChoice* value) { return one_of(value->catalogue().names()); }
  };
  return std::visit(Visitor{}, slot);
}

class Documenter {
 public:
  std::vector<DocEntry> take() { return std::move(entries_); }

  void section(const Section& section, const std::string& path, const std::string& kind) {
    for (const Member& member : section.members) {
      if (member.name.empty()) {
        choice(*std::get<AnyChoice*>(member.slot), member.help, path, kind);
      } else {
        this->member(member, path, kind);
      }
    }
  }

 private:
  void member(const Member& member, const std::string& path, const std::string& kind) {
    const std::string key = joined(path, member.name);
    if (const auto* inner = std::get_if<Section>(&member.slot)) {
      section(*inner, key, kind);
      return;
    }
    std::string type = type_of(member.slot);
    if (const std::string bounds = range_text(member.range); !bounds.empty()) type += ", " + bounds;
    entries_.push_back({key, kind, type, inline_toml(member.slot), member.help});
    if (const auto* list = std::get_if<ListSlot>(&member.slot)) {
      const Slot item = list->sample();
      if (const auto* inner = std::get_if<Section>(&item)) section(*inner, key + "[]", kind);
    }
  }

  void choice(AnyChoice& choice, const std::string& help, const std::string& path, const std::string& kind) {
    const std::string fallback = choice.kind().empty() ? "" : inline_toml(Slot(&choice));
    entries_.push_back({joined(path, "kind"), kind, type_of(Slot(&choice)), fallback, help});
    for (const Plugin& plugin : choice.catalogue().entries()) {
      std::any options = plugin.name == choice.kind() ? choice.options() : plugin.options;
      section(plugin.section(options), path, plugin.name);
    }
  }

  std::vector<DocEntry> entries_;
};

std::string padded(const std::string& text, size_t width) {
  return text.size() < width ? text + std::string(width - text.size(), ' ') : text;
}

}  // namespace

std::string range_text(const Range& range) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  // A bound of an integer is one too: 1000000, not 1e+06.
  const auto bound = [](double value) {
    constexpr double kExact = int64_t{1} << 53;
    return std::abs(value) <= kExact && std::trunc(value) == value ? str(static_cast<int64_t>(value)) : str(value);
  };
  std::string low, high;
  if (range.min != -kInf) low = "at least " + bound(range.min);
  if (range.above != -kInf) low = "above " + bound(range.above);
  if (range.max != kInf) high = "at most " + bound(range.max);
  if (range.below != kInf) high = "below " + bound(range.below);
  return low.empty() || high.empty() ? low + high : low + " and " + high;
}

std::string section_to_toml(Section section) {
  std::string out;
  write_toml(out, section, "", "");
  return out;
}

std::string section_to_inline_toml(Section section) { return inline_toml(section); }

Json section_to_json(Section section) {
  Json out = Json::object();
  for (const Member& member : expanded(section).members) out[member.name] = json_of(member.slot);
  return out;
}

std::vector<DocEntry> section_doc(Section section) {
  Documenter documenter;
  documenter.section(section, "", "");
  return documenter.take();
}

std::string doc_text(const std::vector<DocEntry>& entries) {
  constexpr size_t kWidest = 48;
  size_t key_width = 0;
  for (const DocEntry& entry : entries) {
    const size_t width = entry.key.size() + entry.fallback.size() + 3;
    if (width <= kWidest) key_width = std::max(key_width, width);
  }
  std::string out;
  for (const DocEntry& entry : entries) {
    const std::string assignment = entry.key + (entry.fallback.empty() ? "" : " = " + entry.fallback);
    out += padded(assignment, key_width) + "  ";
    if (!entry.kind.empty()) out += "(" + entry.kind + ") ";
    out += entry.help + " [" + entry.type + "]\n";
  }
  return out;
}

std::string doc_markdown(const std::vector<DocEntry>& entries) {
  const auto cell = [](const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '|' ? "\\|" : std::string(1, c);
    return out;
  };
  std::string out = "| Key | For | Type | Default | Meaning |\n|---|---|---|---|---|\n";
  for (const DocEntry& e : entries) {
    const std::string fallback = e.fallback.empty() ? "" : str("`", cell(e.fallback), "`");
    out += str("| `", e.key, "` | ", e.kind, " | ", cell(e.type), " | ", fallback, " | ", cell(e.help), " |\n");
  }
  return out;
}

}  // namespace rmoe
