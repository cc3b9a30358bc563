#include "rmoe/base/reflect.h"

#include <set>

#include "rmoe/base/registry.h"

namespace rmoe {

Section expanded(const Section& section) {
  Section result;
  result.validations = section.validations;
  for (const Member& member : section.members) {
    auto* choice = std::get_if<AnyChoice*>(&member.slot);
    if (!choice || !member.name.empty()) {
      result.members.push_back(member);
      continue;
    }
    result.members.push_back({"kind", member.help, {}, *choice});
    if ((*choice)->kind().empty()) continue;  // nothing chosen yet
    Section options = expanded((*choice)->section());
    for (Member& option : options.members) result.members.push_back(std::move(option));
    for (const auto& v : options.validations) result.validations.push_back(v);
  }
  std::set<std::string> names;
  for (const Member& member : result.members) {
    RMOE_ASSERT(names.insert(member.name).second, "two config fields of one section are called '", member.name, "'");
  }
  return result;
}

std::vector<std::string> keys_of(const Section& expanded_section) {
  std::vector<std::string> keys;
  for (const Member& member : expanded_section.members) keys.push_back(member.name);
  return keys;
}

}  // namespace rmoe
