// Also holds the plug-ins of example_config.h, registered as real ones are.
#include "rmoe/base/registry.h"

#include <algorithm>
#include <functional>

#include <gtest/gtest.h>

#include "tests/unit/base/example_config.h"

namespace rmoe::example {
namespace {

class Circle : public Shape {
 public:
  using Options = CircleOptions;
  Circle(const Options& options, double unit) : radius_(options.radius * unit) {}
  double area() const override { return 3 * radius_ * radius_; }

 private:
  double radius_;
};

class Box : public Shape {
 public:
  using Options = BoxOptions;
  Box(const Options& options, double unit) : area_(options.width * options.height * unit * unit) {}
  double area() const override { return area_; }

 private:
  double area_;
};

class Point : public Shape {  // no options
 public:
  explicit Point(double) {}
  double area() const override { return 0; }
};

RMOE_REGISTER(Shapes, "point", Point, "nothing at all (Euclid)");
RMOE_REGISTER(Shapes, "circle", Circle, "round");
RMOE_REGISTER(Shapes, "box", Box, "with corners");

}  // namespace
}  // namespace rmoe::example

namespace rmoe {
namespace {

using example::BoxOptions;
using example::CircleOptions;
using example::Shapes;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.message() + (error.help().empty() ? "" : " | " + error.help());
  }
  return "nothing thrown";
}

TEST(Registry, ListsPluginsByNameWithSummaries) {
  ASSERT_EQ(Shapes::entries().size(), 3u);
  EXPECT_EQ(Shapes::entries()[0].name, "box");
  EXPECT_EQ(Shapes::entries()[1].name, "circle");
  EXPECT_EQ(Shapes::entries()[2].summary, "nothing at all (Euclid)");
}

TEST(Registry, EntersTheTableOfAllRegistries) {
  std::vector<std::string> plurals;
  for (const Catalogue* catalogue : Catalogue::all()) plurals.push_back(catalogue->plural());
  EXPECT_NE(std::find(plurals.begin(), plurals.end(), "shapes"), plurals.end());
  EXPECT_EQ(Catalogue::of("shapes").names(), (std::vector<std::string>{"box", "circle", "point"}));
}

TEST(Registry, UnknownNameGivesTheNearestOrTheList) {
  EXPECT_EQ(message_of([] { Shapes::find("circel"); }), "'circel' is not one of the shapes | did you mean 'circle'?");
  EXPECT_EQ(message_of([] { Shapes::find("dodecahedron"); }),
            "'dodecahedron' is not one of the shapes | known: box, circle, point");
}

TEST(Registry, NameTakenTwiceIsABug) {
  struct Other : example::Shape {
    explicit Other(double) {}
    double area() const override { return 0; }
  };
  try {
    Shapes::add<Other>("box", "again");
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBug);
  }
  EXPECT_EQ(Shapes::entries().size(), 3u);
}

TEST(Choice, CreatesWithDefaultAndGivenOptions) {
  EXPECT_EQ(Choice<Shapes>{"box"}.create(1.0)->area(), 2);
  EXPECT_EQ(Choice<Shapes>("box", BoxOptions{.width = 3}).create(2)->area(), 24);
  EXPECT_EQ(Choice<Shapes>{"point"}.create(1.0)->area(), 0);
}

TEST(Choice, OfAnUnknownOrMissingKindFailsWhenItIsUsed) {
  EXPECT_EQ(message_of([] { Choice<Shapes>{"bx"}.create(1.0); }),
            "'bx' is not one of the shapes | did you mean 'box'?");
  EXPECT_EQ(message_of([] { Choice<Shapes>{}.create(1.0); }),
            "'' is not one of the shapes | known: box, circle, point");
}

TEST(Choice, CopiesAreIndependentAndComparable) {
  const Choice<Shapes> a{"circle"};
  Choice<Shapes> b = a;
  EXPECT_EQ(a, b);
  std::get<double*>(b.section().members.at(0).slot)[0] = 4;
  EXPECT_FALSE(a == b);
  EXPECT_EQ(a.options_as<CircleOptions>().radius, 1);
  EXPECT_EQ(b.options_as<CircleOptions>().radius, 4);
  EXPECT_FALSE(a == Choice<Shapes>{"point"});
  EXPECT_EQ(a, (Choice<Shapes>{"circle", CircleOptions{}}));  // resolved or not
}

TEST(Choice, PrintsKindAndOptions) {
  EXPECT_EQ(str(Choice<Shapes>{"circle"}), "circle{radius = 1.0}");
  EXPECT_EQ(str(Choice<Shapes>{"point"}), "point");
}

TEST(Choice, ChangingTheKindTakesItsDefaultsAndTheSameKindKeepsTheOptions) {
  Choice<Shapes> choice("circle", CircleOptions{.radius = 3});
  choice.set_kind("circle");
  EXPECT_EQ(choice.options_as<CircleOptions>().radius, 3);
  choice.set_kind("box");
  EXPECT_EQ(str(choice), "box{width = 1.0, height = 2.0, color = \"red\"}");
}

TEST(Choice, OptionsOfAnotherTypeAreABug) { EXPECT_THROW(Choice<Shapes>{"box"}.options_as<CircleOptions>(), Error); }

}  // namespace
}  // namespace rmoe
