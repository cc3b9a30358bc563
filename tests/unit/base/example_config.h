// Config structs that use every kind of field, for the tests of base/config.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rmoe/base/config.h"
#include "rmoe/base/registry.h"

namespace rmoe {

namespace example {
class Shape;
}
template <>
inline constexpr const char* plural_name<example::Shape> = "shapes";

namespace example {

class Shape {
 public:
  virtual ~Shape() = default;
  virtual double area() const = 0;
};
using Shapes = Registry<Shape, double>;  // unit of length

enum class Color { kRed, kDarkBlue };

}  // namespace example

template <>
struct EnumNames<example::Color> {
  static constexpr std::array names{std::pair{example::Color::kRed, "red"},
                                    std::pair{example::Color::kDarkBlue, "dark_blue"}};
};

namespace example {

struct CircleOptions {
  double radius = 1;
  static constexpr auto fields() { return std::tuple{Field{"radius", &CircleOptions::radius, "radius", {.above = 0}}}; }
};
struct BoxOptions {
  double width = 1;
  double height = 2;
  Color color = Color::kRed;
  static constexpr auto fields() {
    using C = BoxOptions;
    return std::tuple{Field{"width", &C::width, "width"}, Field{"height", &C::height, "height"},
                      Field{"color", &C::color, "color of the box"}};
  }
  void validate() const { RMOE_CHECK(width * height < 1e6, "the area is ", width * height, ", expected below 1e6"); }
};

struct Weighted {
  Choice<Shapes> shape{"circle"};
  double weight = 1;
  static constexpr auto fields() {
    using C = Weighted;
    return std::tuple{Field{"", &C::shape, "which shape"}, Field{"weight", &C::weight, "its share", {.min = 0}}};
  }
};

struct Limits {
  double low = 0;
  double high = 1;
  static constexpr auto fields() {
    using C = Limits;
    return std::tuple{Field{"low", &C::low, "lower end"}, Field{"high", &C::high, "upper end"}};
  }
  void validate() const {
    if (low > high) throw Error(Exit::kBadInput, str("low is ", low, ", expected at most high = ", high), "swap them");
  }
};

struct Part {
  int64_t top_k = 2;
  Limits limits;
  Choice<Shapes> shape{"box"};
  static constexpr auto fields() {
    using C = Part;
    return std::tuple{Field{"top_k", &C::top_k, "experts per token", {.min = 1}}, Field{"limits", &C::limits, "ends"},
                      Field{"shape", &C::shape, "outline"}};
  }
};

struct Config {
  bool flag = false;
  int64_t count = 3;
  double rate = 0.5;
  std::string title = "a \"b\"\n\tc \\ \x01 \xc3\xa9";
  Color color = Color::kDarkBlue;
  std::vector<int64_t> sizes = {1, 2};
  std::vector<double> rates;
  std::vector<std::string> words = {"one", "two, three"};
  std::vector<Color> colors;
  Part part;
  std::vector<Weighted> weighted = {Weighted{}};
  std::vector<Limits> ranges;
  static constexpr auto fields() {
    using C = Config;
    return std::tuple{Field{"flag", &C::flag, "a switch"},
                      Field{"count", &C::count, "how many", {.min = 0, .max = 1000}},
                      Field{"rate", &C::rate, "share", {.min = 0, .below = 1}},
                      Field{"title", &C::title, "a text"},
                      Field{"color", &C::color, "a | color"},
                      Field{"sizes", &C::sizes, "sizes", {.min = 1}},
                      Field{"rates", &C::rates, "rates", {.min = 0, .max = 1}},
                      Field{"words", &C::words, "words"},
                      Field{"colors", &C::colors, "colors"},
                      Field{"part", &C::part, "a part"},
                      Field{"weighted", &C::weighted, "shapes with weights"},
                      Field{"ranges", &C::ranges, "ranges"}};
  }
};

}  // namespace example
}  // namespace rmoe
