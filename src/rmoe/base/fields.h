// How a config struct declares its fields, once:
//
//   enum class Decay { kConstant, kCosine };
//   template <> struct EnumNames<Decay> {
//     static constexpr std::array names{std::pair{Decay::kConstant, "constant"}, std::pair{Decay::kCosine, "cosine"}};
//   };
//   struct ScheduleConfig {
//     Decay decay = Decay::kCosine;
//     int64_t warmup = 4000;
//     static constexpr auto fields() {
//       using C = ScheduleConfig;
//       return std::tuple{Field{"decay", &C::decay, "how the learning rate falls"},
//                         Field{"warmup", &C::warmup, "steps until the full learning rate", {.min = 0}}};
//     }
//     void validate() const;  // optional: relations between fields, throws Error
//   };
//
// A field is a bool, int64_t, double, std::string, an enum with names, a config struct, a Choice (registry.h), or a
// std::vector of these (but bool). A struct or Choice under the empty name "" puts its keys into the section around it.
// Files, flags, JSON, help and docs walk these declarations (config.h).
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace rmoe {

// Bounds of a number, or of every number in a list: {.min = 1}, {.above = 0}, {.min = 0, .below = 1}.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  double above = -std::numeric_limits<double>::infinity();
  double below = std::numeric_limits<double>::infinity();

  constexpr bool contains(double x) const {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    return x >= min && x <= max && (above == -kInf || x > above) && (below == kInf || x < below);
  }
};

template <class C, class T>
struct Field {
  const char* name;
  T C::* member;
  const char* help;
  Range range = {};
};

template <class C>
concept ConfigStruct = requires { C::fields(); };

// Text names of an enum, declared beside it as `static constexpr std::array names{std::pair{E::kA, "a"}, ...}`.
template <class E>
struct EnumNames;

template <class E>
concept NamedEnum = std::is_enum_v<E> && requires { EnumNames<E>::names; };

template <NamedEnum E>
constexpr const char* enum_name(E value) {
  for (const auto& [known, name] : EnumNames<E>::names) {
    if (known == value) return name;
  }
  return "?";
}

}  // namespace rmoe
