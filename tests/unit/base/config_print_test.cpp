// Config structs as TOML, JSON and documentation; what is written reads back the same.
#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <rapidcheck.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "tests/unit/base/example_config.h"

namespace rmoe {
namespace {

using example::Color;
using example::Config;

TEST(ToToml, WritesEveryKindOfField) {
  EXPECT_EQ(to_toml(Config{}), R"(flag = false
count = 3
rate = 0.5
title = "a \"b\"\n\tc \\ \u0001 é"
color = "dark_blue"
sizes = [1, 2]
rates = []
words = ["one", "two, three"]
colors = []
ranges = []

[part]
top_k = 2

[part.limits]
low = 0.0
high = 1.0

[part.shape]
kind = "box"
width = 1.0
height = 2.0
color = "red"

[[weighted]]
kind = "circle"
radius = 1.0
weight = 1.0
)");
}

TEST(ToToml, RefusesWhatCouldNotBeReadBack) {
  Config config;
  config.rate = std::nan("");
  EXPECT_THROW(to_toml(config), Error);
  config = {};
  config.title = "\xff";
  EXPECT_THROW(to_toml(config), Error);
}

TEST(ToJson, WritesEveryKindOfField) {
  EXPECT_EQ(
      to_json(Config{}).dump(),
      R"({"flag":false,"count":3,"rate":0.5,"title":"a \"b\"\n\tc \\ \u0001 é","color":"dark_blue","sizes":[1,2],)"
      R"("rates":[],"words":["one","two, three"],"colors":[],"part":{"top_k":2,"limits":{"low":0.0,"high":1.0},)"
      R"("shape":{"kind":"box","width":1.0,"height":2.0,"color":"red"}},)"
      R"("weighted":[{"kind":"circle","radius":1.0,"weight":1.0}],"ranges":[]})");
}

const DocEntry* entry(const std::vector<DocEntry>& entries, const std::string& key, const std::string& kind = "") {
  for (const DocEntry& e : entries) {
    if (e.key == key && e.kind == kind) return &e;
  }
  return nullptr;
}

TEST(Doc, NamesTypeDefaultAndHelpOfEveryKey) {
  const std::vector<DocEntry> entries = doc<Config>();
  const auto line = [&](const char* key, const char* kind = "") -> std::string {
    const DocEntry* e = entry(entries, key, kind);
    return e ? str(e->type, " | ", e->fallback, " | ", e->help) : "missing";
  };
  EXPECT_EQ(line("count"), "integer, at least 0 and at most 1000 | 3 | how many");
  EXPECT_EQ(line("rate"), "number, at least 0 and below 1 | 0.5 | share");
  EXPECT_EQ(line("color"), "one of red, dark_blue | \"dark_blue\" | a | color");
  EXPECT_EQ(line("sizes"), "list: integer, at least 1 | [1, 2] | sizes");
  EXPECT_EQ(line("colors"), "list: one of red, dark_blue | [] | colors");
  EXPECT_EQ(line("part.limits.low"), "number | 0.0 | lower end");
  EXPECT_EQ(line("part.shape.kind"), "one of box, circle, point | \"box\" | outline");
  EXPECT_EQ(line("part.shape.radius", "circle"), "number, above 0 | 1.0 | radius");
  EXPECT_EQ(line("part.shape.color", "box"), "one of red, dark_blue | \"red\" | color of the box");
  EXPECT_EQ(line("weighted"),
            "list: section | [{kind = \"circle\", radius = 1.0, weight = 1.0}] | shapes with weights");
  EXPECT_EQ(line("weighted[].kind"), "one of box, circle, point | \"circle\" | which shape");
  EXPECT_EQ(line("weighted[].weight"), "number, at least 0 | 1.0 | its share");
  EXPECT_EQ(line("ranges[].high"), "number | 1.0 | upper end");
}

TEST(Doc, TextAndMarkdownHaveALineForEveryKey) {
  const std::vector<DocEntry> entries = doc<Config>();
  const std::string text = doc_text(entries), markdown = doc_markdown(entries);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), static_cast<int64_t>(entries.size()));
  EXPECT_EQ(std::count(markdown.begin(), markdown.end(), '\n'), static_cast<int64_t>(entries.size()) + 2);
  EXPECT_NE(text.find("(circle) radius [number, above 0]\n"), std::string::npos) << text;
  EXPECT_NE(markdown.find("| `color` |  | one of red, dark_blue | `\"dark_blue\"` | a \\| color |\n"),
            std::string::npos);
}

TEST(RangeText, NamesTheBounds) {
  EXPECT_EQ(range_text({}), "");
  EXPECT_EQ(range_text({.min = 1}), "at least 1");
  EXPECT_EQ(range_text({.above = 0}), "above 0");
  EXPECT_EQ(range_text({.min = 0, .max = 1}), "at least 0 and at most 1");
  EXPECT_EQ(range_text({.below = 1}), "below 1");
  EXPECT_EQ(range_text({.min = -1e6, .max = 1e9}), "at least -1000000 and at most 1000000000");
  EXPECT_EQ(range_text({.max = 1e30, .above = 0.25}), "above 0.25 and at most 1e+30");
}

double finite_double() {
  // Any bits that are a finite number: subnormals, huge ones, negative zero.
  double value = 0;
  do {
    const auto bits = *rc::gen::arbitrary<uint64_t>();
    std::memcpy(&value, &bits, sizeof value);
  } while (!std::isfinite(value));
  return value;
}

std::string utf8_text() {
  std::string text;
  for (const auto c : *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 0x250))) {
    if (c < 0x80) {
      text += static_cast<char>(c);
    } else {
      text += static_cast<char>(0xc0 | c >> 6);
      text += static_cast<char>(0x80 | (c & 0x3f));
    }
  }
  return text;
}

Config any_config() {
  Config c;
  c.flag = *rc::gen::arbitrary<bool>();
  c.count = *rc::gen::inRange<int64_t>(0, 1001);
  c.rate = std::ldexp(static_cast<double>(*rc::gen::inRange<int64_t>(0, int64_t{1} << 53)), -53);
  c.title = utf8_text();
  c.color = *rc::gen::element(Color::kRed, Color::kDarkBlue);
  c.sizes = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(1, INT64_MAX));
  c.words.clear();
  for (int64_t i = *rc::gen::inRange<int64_t>(0, 4); i > 0; --i) c.words.push_back(utf8_text());
  c.part.limits = {finite_double(), std::numeric_limits<double>::max()};
  c.part.shape =
      Choice<example::Shapes>("circle", example::CircleOptions{.radius = std::abs(finite_double()) + 1e-300});
  c.weighted.clear();
  for (int64_t i = *rc::gen::inRange<int64_t>(0, 4); i > 0; --i) {
    const std::string kind = *rc::gen::element<std::string>("box", "circle", "point");
    c.weighted.push_back({Choice<example::Shapes>(kind), std::abs(finite_double())});
  }
  c.ranges.resize(*rc::gen::inRange<size_t>(0, 3));
  return c;
}

TEST(RoundTrip, TomlBindsToExactlyTheSameConfig) {
  EXPECT_TRUE(rc::check([] {
    const Config config = any_config();
    Config read;
    bind(read, parse_toml(to_toml(config), "written"));
    RC_ASSERT(to_toml(read) == to_toml(config));
    RC_ASSERT(std::memcmp(&read.part.limits.low, &config.part.limits.low, sizeof(double)) == 0);
    RC_ASSERT(std::memcmp(&read.rate, &config.rate, sizeof(double)) == 0);
    RC_ASSERT(read.title == config.title);
    RC_ASSERT(read.sizes == config.sizes);
    RC_ASSERT(read.words == config.words);
    RC_ASSERT(read.part.shape == config.part.shape);
    RC_ASSERT(read.weighted.size() == config.weighted.size());
  }));
}

TEST(RoundTrip, AFlagGivesTheSameValueAsTheFile) {
  EXPECT_TRUE(rc::check([] {
    const std::string text = utf8_text();
    Config read;
    bind(read, parse_flags({"--part.limits.low=" + str(static_cast<float>(-std::abs(finite_double() / 1e300)))}));
    RC_ASSERT(std::isfinite(read.part.limits.low));
    RC_PRE(text.find('\0') == std::string::npos && !text.starts_with('"') && !text.starts_with('\''));
    bind(read, parse_flags({"--title=" + text}));
    RC_ASSERT(read.title == text);
  }));
}

TEST(RoundTrip, AnyTextIsReadOrRefusedWithAPosition) {
  EXPECT_TRUE(rc::check([] {
    // Pieces of TOML in any order.
    const auto pieces = *rc::gen::container<std::vector<std::string>>(rc::gen::element<std::string>(
        "[", "]", "part", ".", "=", "\n", "\"", "'", "count", " ", "1", "-", "e5", "{", "}", ",", "shape", "kind",
        "box", "#", "[[weighted]]\n", "weight = 2\n", "sizes = [1]\n", "\xc3\xa9", "\xff", "nan", "true", "\\", "\r",
        "\v", "title = ", "\"\"\"", "'''", "\xc2\x85", "\xe2\x80\xa8", "\xe3\x80\x80", "\xc4\x80", "\xef\xbb\xbf",
        "\\u00e9", "2024-01-01"));
    std::string text;
    for (const std::string& piece : pieces) text += piece;
    try {
      Config config;
      bind(config, parse_toml(text, "f.toml"));
    } catch (const Error& error) {
      RC_ASSERT(error.code() == Exit::kBadInput);
      RC_ASSERT(error.message().starts_with("f.toml:"));
    }
  }));
}

}  // namespace
}  // namespace rmoe
