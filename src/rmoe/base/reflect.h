// A config struct seen without its type: the sections, members and slots that readers and writers walk. The templates
// here only collect pointers, so that parsing and printing are ordinary functions in .cpp files.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/base/fields.h"

namespace rmoe {

class AnyChoice;  // registry.h
struct Member;

// An enum value and its text names.
struct EnumSlot {
  void* target;
  std::vector<std::string> names;
  size_t (*get)(const void* target);  // index into names
  void (*set)(void* target, size_t index);
};

// The fields of one struct. Pointers go into the struct, which must stay where it is while the section is in use.
struct Section {
  struct Validation {
    const void* target;
    void (*run)(const void* target);  // throws Error
  };
  std::vector<Member> members;
  std::vector<Validation> validations;
};

struct ListSlot;

// One place that holds a value. A Choice is a slot of its own, always in a member without a name: its keys depend on
// what is chosen (see expanded()).
using Slot = std::variant<bool*, int64_t*, double*, std::string*, EnumSlot, ListSlot, Section, AnyChoice*>;

struct ListSlot {
  void* target;
  size_t (*size)(const void* target);
  void (*resize)(void* target, size_t size);
  Slot (*at)(void* target, size_t index);
  Slot (*sample)();  // an element of its own, to document the type
};

struct Member {
  std::string name;  // empty: a Choice, whose keys belong to this section
  std::string help;
  Range range;
  Slot slot;
};

template <ConfigStruct C>
Section section_of(C& config);

// The section with every Choice in it replaced by the key `kind`, whose slot is the AnyChoice, and by the options of
// what is chosen now. A key that would appear twice is a bug.
Section expanded(const Section& section);

// The names of its members, in the order of declaration.
std::vector<std::string> keys_of(const Section& expanded_section);

namespace detail {

template <class T>
Slot slot_of(T& value);

template <NamedEnum E>
EnumSlot enum_slot(E& value) {
  EnumSlot slot{&value, {}, nullptr, nullptr};
  for (const auto& entry : EnumNames<E>::names) slot.names.emplace_back(entry.second);
  slot.get = [](const void* target) {
    size_t index = 0;
    for (const auto& entry : EnumNames<E>::names) {
      if (entry.first == *static_cast<const E*>(target)) return index;
      ++index;
    }
    RMOE_ASSERT(false, "an enum holds a value without a name");
    return index;
  };
  slot.set = [](void* target, size_t index) { *static_cast<E*>(target) = EnumNames<E>::names[index].first; };
  return slot;
}

template <class T>
ListSlot list_slot(std::vector<T>& list) {
  using List = std::vector<T>;
  return {&list, [](const void* target) { return static_cast<const List*>(target)->size(); },
          [](void* target, size_t size) { static_cast<List*>(target)->resize(size); },
          [](void* target, size_t index) { return slot_of((*static_cast<List*>(target))[index]); },
          [] {
            static T element{};
            return slot_of(element);
          }};
}

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};

template <class T>
Slot slot_of(T& value) {
  if constexpr (ConfigStruct<T>) {
    return section_of(value);
  } else if constexpr (std::is_enum_v<T>) {
    return enum_slot(value);
  } else if constexpr (IsVector<T>::value) {
    return list_slot(value);
  } else if constexpr (std::is_base_of_v<AnyChoice, T>) {
    Section section;
    section.members.push_back({"", "", {}, static_cast<AnyChoice*>(&value)});
    return section;
  } else {
    return &value;
  }
}

}  // namespace detail

template <ConfigStruct C>
Section section_of(C& config) {
  Section section;
  auto add = [&](const auto& field) {
    Member member{field.name, field.help, field.range, detail::slot_of(config.*field.member)};
    Section* inner = std::get_if<Section>(&member.slot);
    if (inner) {
      for (Member& m : inner->members) {
        if (m.name.empty() && m.help.empty()) m.help = field.help;  // a Choice: the help describes its kind
      }
    }
    if (!inner || !member.name.empty()) {
      section.members.push_back(std::move(member));
      return;
    }
    for (Member& m : inner->members) section.members.push_back(std::move(m));
    for (const auto& v : inner->validations) section.validations.push_back(v);
  };
  std::apply([&](const auto&... field) { (add(field), ...); }, C::fields());
  if constexpr (requires(const C& c) { c.validate(); }) {
    section.validations.push_back({&config, [](const void* target) { static_cast<const C*>(target)->validate(); }});
  }
  return section;
}

}  // namespace rmoe
