#include "rmoe/base/registry.h"

#include <algorithm>
#include <map>
#include <ostream>

#include "rmoe/base/config.h"
#include "rmoe/base/nearest.h"

namespace rmoe {
namespace {

// Made on first use, since plug-ins of any file may register before this file's own statics exist.
std::map<std::string, std::unique_ptr<Catalogue>, std::less<>>& catalogues() {
  static std::map<std::string, std::unique_ptr<Catalogue>, std::less<>> all;
  return all;
}

bool by_name(const Plugin& plugin, std::string_view name) { return plugin.name < name; }

}  // namespace

Catalogue& Catalogue::of(std::string_view plural) {
  auto found = catalogues().find(plural);
  if (found == catalogues().end()) {
    std::string name(plural);
    found = catalogues().emplace(name, std::unique_ptr<Catalogue>(new Catalogue(name))).first;
  }
  return *found->second;
}

std::vector<const Catalogue*> Catalogue::all() {
  std::vector<const Catalogue*> all;
  for (const auto& entry : catalogues()) all.push_back(entry.second.get());
  return all;
}

std::vector<std::string> Catalogue::names() const {
  std::vector<std::string> names;
  for (const Plugin& plugin : entries_) names.push_back(plugin.name);
  return names;
}

const Plugin* Catalogue::find_or_null(std::string_view name) const {
  auto at = std::lower_bound(entries_.begin(), entries_.end(), name, by_name);
  return at != entries_.end() && at->name == name ? &*at : nullptr;
}

const Plugin& Catalogue::find(std::string_view name) const {
  if (const Plugin* plugin = find_or_null(name)) return *plugin;
  throw Error(Exit::kBadInput, str("'", name, "' is not one of the ", plural_), help_for_unknown(name, names()));
}

void Catalogue::add(Plugin plugin) {
  auto at = std::lower_bound(entries_.begin(), entries_.end(), plugin.name, by_name);
  RMOE_ASSERT(at == entries_.end() || at->name != plugin.name, plural_, ": '", plugin.name, "' is registered twice");
  entries_.insert(at, std::move(plugin));
}

void AnyChoice::set_kind(std::string kind) {
  if (kind == kind_) return;
  kind_ = std::move(kind);
  options_.reset();
}

const std::any& AnyChoice::options() const { return options_.has_value() ? options_ : plugin().options; }

Section AnyChoice::section() {
  const Plugin& chosen = plugin();
  if (!options_.has_value()) options_ = chosen.options;
  return chosen.section(options_);
}

bool operator==(const AnyChoice& a, const AnyChoice& b) {
  return std::string_view(a.plural_) == b.plural_ && str(a) == str(b);
}

std::ostream& operator<<(std::ostream& out, const AnyChoice& choice) {
  AnyChoice copy = choice;
  out << choice.kind();
  if (copy.kind().empty()) return out;
  const std::string options = section_to_inline_toml(copy.section());
  return options == "{}" ? out : out << options;
}

}  // namespace rmoe
