// Trees into config structs: everything that may be written, and every mistake.
#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "tests/unit/base/example_config.h"

namespace rmoe {
namespace {

using example::Color;
using example::Config;

Config bound(const std::string& toml, const std::vector<std::string>& flags = {}) {
  Node tree = parse_toml(toml, "f.toml");
  merge(tree, parse_flags(flags));
  Config config;
  bind(config, tree);
  return config;
}

// "message | help" of the Error, which is one of bad input.
std::string error(const std::string& toml, const std::vector<std::string>& flags = {}) {
  try {
    bound(toml, flags);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kBadInput);
    return e.message() + (e.help().empty() ? "" : " | " + e.help());
  }
  return "nothing thrown";
}
std::string flag_error(const std::vector<std::string>& flags) { return error("", flags); }

TEST(Bind, EmptyTreeKeepsTheDefaults) { EXPECT_EQ(to_toml(bound("")), to_toml(Config{})); }

TEST(Bind, SetsEveryKindOfField) {
  const Config c = bound(R"(
flag = true
count = 7
rate = 0.25
title = "x"
color = "red"
sizes = [3]
rates = [0, 0.5, 1]
words = []
colors = ["red", "dark_blue"]
weighted = [{kind = "box", height = 3, weight = 2}, {}]
[part]
top_k = 4
limits = {low = 0.5}
[[ranges]]
low = -1
[part.shape]
kind = "circle"
radius = 5
)");
  EXPECT_TRUE(c.flag);
  EXPECT_EQ(c.count, 7);
  EXPECT_EQ(c.rate, 0.25);
  EXPECT_EQ(c.title, "x");
  EXPECT_EQ(c.color, Color::kRed);
  EXPECT_EQ(c.sizes, std::vector<int64_t>{3});
  EXPECT_EQ(c.rates, (std::vector<double>{0, 0.5, 1}));
  EXPECT_TRUE(c.words.empty());
  EXPECT_EQ(c.colors, (std::vector<Color>{Color::kRed, Color::kDarkBlue}));
  EXPECT_EQ(c.part.top_k, 4);
  EXPECT_EQ(c.part.limits.low, 0.5);
  EXPECT_EQ(c.part.limits.high, 1);
  EXPECT_EQ(str(c.part.shape), "circle{radius = 5.0}");
  ASSERT_EQ(c.weighted.size(), 2u);
  EXPECT_EQ(str(c.weighted[0].shape), "box{width = 1.0, height = 3.0, color = \"red\"}");
  EXPECT_EQ(c.weighted[0].weight, 2);
  EXPECT_EQ(str(c.weighted[1].shape), "circle{radius = 1.0}");
  ASSERT_EQ(c.ranges.size(), 1u);
  EXPECT_EQ(c.ranges[0].low, -1);
}

TEST(Bind, FailureLeavesTheConfigAsItWas) {
  Config config;
  EXPECT_THROW(bind(config, parse_toml("count = 9\nnope = 1", "f.toml")), Error);
  EXPECT_EQ(config.count, 3);
}

TEST(Bind, UnknownKeysSayWhereAndWhatIsNear) {
  EXPECT_EQ(error("\n\n[part]\n  topk = 3"), "f.toml:4:3: unknown key 'part.topk' | did you mean 'top_k'?");
  EXPECT_EQ(error("[prt]\nx = 1"), "f.toml:1:2: unknown key 'prt' | did you mean 'part'?");
  EXPECT_EQ(error("part.shape.kolor = 'red'"), "f.toml:1:12: unknown key 'part.shape.kolor' | did you mean 'color'?");
  EXPECT_EQ(error("[part.limits]\nzzzzz = 1"), "f.toml:2:1: unknown key 'part.limits.zzzzz' | known: low, high");
  EXPECT_EQ(error("[[ranges]]\n[[ranges]]\nlo = 1"), "f.toml:3:1: unknown key 'ranges[1].lo' | did you mean 'low'?");
  EXPECT_EQ(flag_error({"--part.topk=3"}), "--part.topk=3: unknown key 'part.topk' | did you mean 'top_k'?");
}

TEST(Bind, KeyOfAnotherSectionIsPointedTo) {
  EXPECT_EQ(error("[part.shape]\ntopk = 3"), "f.toml:2:1: unknown key 'part.shape.topk' | did you mean 'part.top_k'?");
  EXPECT_EQ(error("top_k = 3"), "f.toml:1:1: unknown key 'top_k' | did you mean 'part.top_k'?");
  EXPECT_EQ(error("[part]\nhigh = 3"), "f.toml:2:1: unknown key 'part.high' | did you mean 'part.limits.high'?");
  EXPECT_EQ(error("[part]\nradius = 3"), "f.toml:2:1: unknown key 'part.radius' | did you mean 'part.shape.radius'?");
}

TEST(Bind, TheFirstMistakeInTheFileIsReported) {
  EXPECT_EQ(error("zeta = 1\nalpha = 1").substr(0, 12), "f.toml:1:1: ");
}

TEST(Bind, WrongTypesAreRefused) {
  EXPECT_EQ(error("count = 'x'"), "f.toml:1:1: count is the string 'x', expected an integer");
  EXPECT_EQ(error("count = true"), "f.toml:1:1: count is true, expected an integer");
  EXPECT_EQ(error("count = 4.5"), "f.toml:1:1: count is 4.5, expected an integer");
  EXPECT_EQ(error("count = 1e2"), "f.toml:1:1: count is 100, expected an integer | write 100");
  EXPECT_EQ(error("count = [1]"), "f.toml:1:1: count is a list, expected an integer");
  EXPECT_EQ(error("[count]"), "f.toml:1:2: count is a section, expected an integer");
  EXPECT_EQ(error("rate = '0.5'"), "f.toml:1:1: rate is the string '0.5', expected a number");
  EXPECT_EQ(error("flag = 1"), "f.toml:1:1: flag is 1, expected true or false");
  EXPECT_EQ(error("flag = 'true'"), "f.toml:1:1: flag is the string 'true', expected true or false");
  EXPECT_EQ(error("title = 3"), "f.toml:1:1: title is 3, expected a string");
  EXPECT_EQ(error("sizes = 3"), "f.toml:1:1: sizes is 3, expected a list such as [1, 2]");
  EXPECT_EQ(error("sizes = [1,\n 'x']"), "f.toml:2:2: sizes[1] is the string 'x', expected an integer");
  EXPECT_EQ(error("part = 3"), "f.toml:1:1: part is 3, expected a section");
  EXPECT_EQ(error("part = []"), "f.toml:1:1: part is a list, expected a section");
  EXPECT_EQ(error("ranges = [3]"), "f.toml:1:11: ranges[0] is 3, expected a section");
  EXPECT_EQ(error("[ranges]\nlow = 1"), "f.toml:1:2: ranges is a section, expected a list such as [1, 2]");
  EXPECT_EQ(error("part.shape = 'box'"), "f.toml:1:6: part.shape is the string 'box', expected a section");
  EXPECT_EQ(error("part.shape.kind = 3"), "f.toml:1:12: part.shape.kind is 3, expected a name");
}

TEST(Bind, NumbersOutsideTheirRangeAreRefused) {
  EXPECT_EQ(error("count = -1"), "f.toml:1:1: count is -1, expected at least 0 and at most 1000");
  EXPECT_EQ(error("count = 1001"), "f.toml:1:1: count is 1001, expected at least 0 and at most 1000");
  EXPECT_EQ(error("rate = 1"), "f.toml:1:1: rate is 1, expected at least 0 and below 1");
  EXPECT_EQ(error("sizes = [2, 0]"), "f.toml:1:13: sizes[1] is 0, expected at least 1");
  EXPECT_EQ(error("weighted = [{kind = 'circle', radius = 0}]"),
            "f.toml:1:31: weighted[0].radius is 0, expected above 0");
  EXPECT_EQ(flag_error({"--part.top_k=-3"}), "--part.top_k=-3: part.top_k is '-3', expected at least 1");
  EXPECT_EQ(bound("count = 1000").count, 1000);
  EXPECT_EQ(bound("count = 0").count, 0);
}

TEST(Bind, NumbersThatAreNotFiniteAreRefused) {
  EXPECT_EQ(error("rate = nan"), "f.toml:1:1: rate is nan, expected a finite number");
  EXPECT_EQ(error("part.limits.high = inf"), "f.toml:1:13: part.limits.high is inf, expected a finite number");
  EXPECT_EQ(error("part.limits.low = -inf"), "f.toml:1:13: part.limits.low is -inf, expected a finite number");
  EXPECT_EQ(flag_error({"--part.limits.high=inf"}),
            "--part.limits.high=inf: part.limits.high is 'inf', expected a finite number");
  EXPECT_EQ(flag_error({"--part.limits.high=nan"}),
            "--part.limits.high=nan: part.limits.high is 'nan', expected a finite number");
  EXPECT_EQ(flag_error({"--part.limits.high=1e999"}),
            "--part.limits.high=1e999: part.limits.high is '1e999', expected a finite number");
}

TEST(Bind, UnknownEnumValuesListTheKnownOnes) {
  EXPECT_EQ(error("color = 'rd'"),
            "f.toml:1:1: color is the string 'rd', expected one of red, dark_blue | did you mean 'red'?");
  EXPECT_EQ(error("color = 'purple'"), "f.toml:1:1: color is the string 'purple', expected one of red, dark_blue");
  EXPECT_EQ(error("color = 1"), "f.toml:1:1: color is 1, expected one of red, dark_blue");
  EXPECT_EQ(error("colors = ['red', 'x']"), "f.toml:1:18: colors[1] is the string 'x', expected one of red, dark_blue");
}

TEST(Bind, UnknownKindsListTheKnownOnes) {
  EXPECT_EQ(error("part.shape.kind = 'bux'"),
            "f.toml:1:12: part.shape.kind is 'bux', expected one of box, circle, point | did you mean 'box'?");
  EXPECT_EQ(flag_error({"--part.shape.kind=hexagon"}),
            "--part.shape.kind=hexagon: part.shape.kind is 'hexagon', expected one of box, circle, point | "
            "known: box, circle, point");
}

TEST(Bind, OptionsAreThoseOfTheKind) {
  EXPECT_EQ(error("part.shape.kind = 'point'\npart.shape.radius = 3"),
            "f.toml:2:12: unknown key 'part.shape.radius' | it belongs to kind = \"circle\"");
  EXPECT_EQ(str(bound("[part.shape]\nheight = 9").part.shape), "box{width = 1.0, height = 9.0, color = \"red\"}");
}

TEST(Bind, RelationsAreCheckedAndSayWhereTheSectionIs) {
  EXPECT_EQ(error("[part.limits]\nlow = 2"),
            "f.toml:1:7: part.limits: low is 2, expected at most high = 1 | swap them");
  EXPECT_EQ(error("[[ranges]]\n[[ranges]]\nlow = 2"),
            "f.toml:2:1: ranges[1]: low is 2, expected at most high = 1 | swap them");
  EXPECT_EQ(error("part.shape.width = 1e7"), "f.toml:1:6: part.shape: the area is 2e+07, expected below 1e6");
}

TEST(Bind, RelationsThatAFlagBreaksAreBlamedOnTheFlag) {
  EXPECT_EQ(error("part.limits.low = 0.5", {"--part.limits.high=0.25"}),
            "--part.limits.high=0.25: part.limits: low is 0.5, expected at most high = 0.25 (low from f.toml:1:13) | "
            "swap them");
  EXPECT_EQ(flag_error({"--part.limits.low=2"}),
            "--part.limits.low=2: part.limits: low is 2, expected at most high = 1 | swap them");
  EXPECT_EQ(error("[part.limits]\nlow = 0", {"--part.limits.low=3", "--part.limits.high=2"}),
            "--part.limits.low=3 --part.limits.high=2: part.limits: low is 3, expected at most high = 2 | swap them");
  EXPECT_EQ(flag_error({"--part.limits={low=2}"}),
            "--part.limits={low=2}: part.limits: low is 2, expected at most high = 1 | swap them");
  EXPECT_EQ(error("[[ranges]]\nlow = -1", {"--ranges.0.low=2"}),
            "--ranges.0.low=2: ranges[0]: low is 2, expected at most high = 1 | swap them");
  // Another flag is not to blame.
  EXPECT_EQ(error("[part.limits]\nlow = 2", {"--count=4", "--part.top_k=3"}),
            "f.toml:1:7: part.limits: low is 2, expected at most high = 1 | swap them");
  // What the message does not name may still matter.
  EXPECT_EQ(error("[part.shape]\nwidth = 1e4", {"--part.shape.height=1e3"}),
            "f.toml:1:7: part.shape: the area is 1e+07, expected below 1e6 (with --part.shape.height=1e3)");
  EXPECT_EQ(flag_error({"--part.shape.width=1e4", "--part.shape.height=1e3"}),
            "--part.shape.width=1e4 --part.shape.height=1e3: part.shape: the area is 1e+07, expected below 1e6");
}

struct Inner {
  int64_t experts = 4;
  static constexpr auto fields() { return std::tuple{Field{"experts", &Inner::experts, "experts"}}; }
};
struct Whole {
  int64_t layers = 2, experts_total = 8;
  Inner moe;
  static constexpr auto fields() {
    return std::tuple{Field{"layers", &Whole::layers, "layers"},
                      Field{"experts_total", &Whole::experts_total, "all experts"}, Field{"moe", &Whole::moe, "inner"}};
  }
  void validate() const {
    RMOE_CHECK(layers * moe.experts <= experts_total, "layers * moe.experts must be at most ", experts_total);
  }
};
TEST(Bind, RelationsOverSectionsFindTheFlagByItsWholeKey) {
  Whole config;
  Node tree = parse_toml("layers = 1\n", "f.toml");
  merge(tree, parse_flags({"--experts_total=7", "--moe.experts=9"}));
  try {
    bind(config, tree);
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "--moe.experts=9: layers * moe.experts must be at most 7 (layers from f.toml:1:1)");
  }
}

struct Outer {
  example::Limits inner{.low = 5, .high = 1};
  static constexpr auto fields() { return std::tuple{Field{"inner", &Outer::inner, "inner"}}; }
};
TEST(Bind, RelationsOfASectionThatNobodyWroteAreChecked) {
  Outer config;
  try {
    bind(config, parse_toml("", "f.toml"));
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "f.toml: inner: low is 5, expected at most high = 1");
  }
}

struct NeedsKind {
  Choice<example::Shapes> shape;
  std::vector<Choice<example::Shapes>> more;
  static constexpr auto fields() {
    return std::tuple{Field{"shape", &NeedsKind::shape, "a shape"}, Field{"more", &NeedsKind::more, "more shapes"}};
  }
};
TEST(Bind, ChoiceWithoutDefaultMustBeGiven) {
  const auto error = [](const std::string& toml) -> std::string {
    NeedsKind config;
    try {
      bind(config, parse_toml(toml, "f.toml"));
    } catch (const Error& e) {
      return e.message() + " | " + e.help();
    }
    return str(config.shape, " ", config.more);
  };
  EXPECT_EQ(error(""), "f.toml: shape.kind is missing | known: box, circle, point");
  EXPECT_EQ(error("shape.radius = 1"), "f.toml:1:7: unknown key 'shape.radius' | it belongs to kind = \"circle\"");
  EXPECT_EQ(error("more = [{}]\nshape.kind = 'point'"),
            "f.toml:1:9: more[0].kind is missing | known: box, circle, point");
  EXPECT_EQ(error("more = [{kind = 'circle', radius = 2}]\nshape.kind = 'point'"), "point [circle{radius = 2.0}]");
}

// ---- flags
// -----------------------------------------------------------------------------------------------------------

TEST(Flags, SetEveryKindOfFieldWithoutQuotes) {
  const Config c = bound("", {"--flag=true", "--count=1_000", "--rate", "1e-3", "--title=a=b, [c]", "--color=red",
                              "--sizes=[4, 5]", "--rates=[ .5 ]", "--words=[it's, 'a, b', \"c\\td\", ]", "--colors=[]",
                              "--part.limits.low", "-1", "--part.shape.kind=circle", "--part.shape.radius=3",
                              "--weighted=[{kind = box, height=3, weight= 2}, {kind=point}]", "--ranges=[{low=-1}]"});
  EXPECT_TRUE(c.flag);
  EXPECT_EQ(c.count, 1000);
  EXPECT_EQ(c.rate, 1e-3);
  EXPECT_EQ(c.title, "a=b, [c]");
  EXPECT_EQ(c.color, Color::kRed);
  EXPECT_EQ(c.sizes, (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(c.rates, std::vector<double>{0.5});
  EXPECT_EQ(c.words, (std::vector<std::string>{"it's", "a, b", "c\td"}));
  EXPECT_TRUE(c.colors.empty());
  EXPECT_EQ(c.part.limits.low, -1);
  EXPECT_EQ(str(c.part.shape), "circle{radius = 3.0}");
  ASSERT_EQ(c.weighted.size(), 2u);
  EXPECT_EQ(str(c.weighted[0].shape), "box{width = 1.0, height = 3.0, color = \"red\"}");
  EXPECT_EQ(c.weighted[0].weight, 2);
  EXPECT_EQ(c.weighted[1].shape.kind(), "point");
  ASSERT_EQ(c.ranges.size(), 1u);
}

TEST(Flags, StringsMayLookLikeAnything) {
  for (const char* text : {"4", "true", "[1]", "{a}", "\"", "'", "", " x ", "it's", "\"a\" and \"b\"", "-1", "a.b=c"}) {
    EXPECT_EQ(bound("", {str("--title=", text)}).title, text);
  }
  EXPECT_EQ(bound("", {"--title=\"quoted \\u00e9\""}).title, "quoted \xc3\xa9");
  EXPECT_EQ(bound("", {"--title='quoted \\n'"}).title, "quoted \\n");
}

TEST(Flags, WrongValuesAreRefused) {
  EXPECT_EQ(flag_error({"--count=four"}), "--count=four: count is 'four', expected an integer");
  EXPECT_EQ(flag_error({"--count="}), "--count=: count is '', expected an integer");
  EXPECT_EQ(flag_error({"--count=4 "}), "--count=4 : count is '4 ', expected an integer");
  EXPECT_EQ(flag_error({"--count=1e3"}), "--count=1e3: count is '1e3', expected an integer | write 1000");
  EXPECT_EQ(flag_error({"--count=0x10"}), "--count=0x10: count is '0x10', expected an integer");
  EXPECT_EQ(flag_error({"--count=_1"}), "--count=_1: count is '_1', expected an integer");
  EXPECT_EQ(flag_error({"--count=9223372036854775808"}),
            "--count=9223372036854775808: count is '9223372036854775808', expected an integer of 64 bits");
  EXPECT_EQ(flag_error({"--rate=0.5x"}), "--rate=0.5x: rate is '0.5x', expected a number");
  EXPECT_EQ(flag_error({"--flag=yes"}), "--flag=yes: flag is 'yes', expected true or false");
  EXPECT_EQ(flag_error({"--color=purple"}), "--color=purple: color is 'purple', expected one of red, dark_blue");
  EXPECT_EQ(flag_error({"--sizes=1,2"}), "--sizes=1,2: sizes is '1,2', expected a list such as [1, 2]");
  EXPECT_EQ(flag_error({"--sizes=[1, [2]"}), "--sizes=[1, [2]: sizes is '[1, [2]', expected a list such as [1, 2]");
  EXPECT_EQ(flag_error({"--sizes=[1,,2]"}), "--sizes=[1,,2]: sizes[1] is '', expected an integer");
  EXPECT_EQ(flag_error({"--part=3"}),
            "--part=3: part is '3', expected a section | name a key in it, or write {key = value, ...}");
  EXPECT_EQ(flag_error({"--part={top_k=1, top_k=2}"}), "--part={top_k=1, top_k=2}: duplicate key 'top_k'");
  EXPECT_EQ(flag_error({"--part={top_k}"}),
            "--part={top_k}: part is '{top_k}', expected a section | name a key in it, or write {key = value, ...}");
}

TEST(Flags, MalformedFlagsAreRefused) {
  EXPECT_EQ(flag_error({"count=3"}), "'count=3': expected a flag such as --model.layers=4");
  EXPECT_EQ(flag_error({"--"}), "'--': expected a flag such as --model.layers=4");
  EXPECT_EQ(flag_error({"--count"}), "--count: no value given | write --count=VALUE");
  EXPECT_EQ(flag_error({"--count", "--rate=1"}), "--count: no value given | write --count=VALUE");
  EXPECT_EQ(flag_error({"--=3"}), "--=3: an empty key in ''");
  EXPECT_EQ(flag_error({"--part..top_k=3"}), "--part..top_k=3: an empty key in 'part..top_k'");
  EXPECT_EQ(flag_error({"--title=\xff"}), "flag 1 is not valid UTF-8");
  EXPECT_EQ(flag_error({"--part=3", "--part.top_k=1"}), "--part.top_k=1: 'part' was given a value by --part=3");
  EXPECT_EQ(flag_error({"--part.top_k=1", "--part={}"}),
            "--part={}: another flag, --part.top_k=1, sets a key inside it");
}

TEST(Flags, TheLastOneWins) { EXPECT_EQ(bound("count = 1", {"--count=2", "--count=3"}).count, 3); }

TEST(Flags, ChangeOneItemOfAList) {
  const std::string toml = "[[weighted]]\nweight = 1\n[[weighted]]\nweight = 2\n";
  const Config c = bound(toml, {"--weighted.1.weight=5"});
  EXPECT_EQ(c.weighted[0].weight, 1);
  EXPECT_EQ(c.weighted[1].weight, 5);
  EXPECT_EQ(bound("", {"--weighted.0.weight=7"}).weighted.at(0).weight, 7);  // of the default list
  EXPECT_EQ(bound("sizes = [5, 6]", {"--sizes.0=9"}).sizes, (std::vector<int64_t>{9, 6}));
  EXPECT_EQ(error(toml, {"--weighted.2.weight=5"}),
            "--weighted.2.weight=5: weighted is a list of 2 items, it has no '2'");
  EXPECT_EQ(error(toml, {"--weighted.x.weight=5"}),
            "--weighted.x.weight=5: weighted is a list of 2 items, it has no 'x'");
  EXPECT_EQ(flag_error({"--weighted.1.weight=5"}),
            "--weighted.1.weight=5: weighted is a list of 1 items, it has no '1'");
}

// ---- merging
// ---------------------------------------------------------------------------------------------------------

TEST(Merge, ANewKindDropsTheOldKindsOptionsAndKeepsSharedOnes) {
  const std::string toml = "[part.shape]\nkind = 'circle'\nradius = 5\n";
  EXPECT_EQ(str(bound(toml, {"--part.shape.kind=point"}).part.shape), "point");
  EXPECT_EQ(str(bound(toml, {"--part.shape.kind=circle"}).part.shape), "circle{radius = 5.0}");
  // Written beside the new kind, or a key of no kind at all: a mistake.
  EXPECT_EQ(error(toml, {"--part.shape.kind=point", "--part.shape.radius=4"}).substr(0, 54),
            "--part.shape.radius=4: unknown key 'part.shape.radius'");
  EXPECT_EQ(error("[part.shape]\nkind = 'circle'\nradios = 5\n", {"--part.shape.kind=point"}),
            "f.toml:3:1: unknown key 'part.shape.radios' | did you mean 'part.shape.radius'?");
}

TEST(Merge, ReplacesListsAndScalarsWhole) {
  EXPECT_EQ(bound("sizes = [1, 2, 3]", {"--sizes=[4]"}).sizes, std::vector<int64_t>{4});
  Node tree = parse_toml("x = 1", "a");
  merge(tree, parse_toml("x = {y = 2}", "b"));
  EXPECT_EQ(std::get<int64_t>(tree.find("x")->find("y")->value), 2);
}

TEST(LoadConfig, LaysFlagsOnDefaults) { EXPECT_EQ(load_config<Config>("", {"--count=8"}).count, 8); }

}  // namespace
}  // namespace rmoe
