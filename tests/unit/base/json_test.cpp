#include "rmoe/base/json.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"

namespace rmoe {
namespace {

std::string error(std::string_view text, JsonLimits limits = {}) {
  try {
    parse_json(text, "x.json", limits);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kBadInput);
    return e.message();
  }
  return "nothing thrown";
}

TEST(ParseJson, KeepsValuesAndOrder) {
  const char* text = R"({"z":[1,-2,18446744073709551615,0.5,true,null,"é\n",{}],"a":{"b":[[],[[3]]]}})";
  EXPECT_EQ(json_text(parse_json(text, "x.json")), text);
  EXPECT_EQ(parse_json("3", "x.json"), 3);
  EXPECT_EQ(parse_json(" [ ] ", "x.json"), Json::array());
}

TEST(ParseJson, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_EQ(error(R"({"a":1,"b":2,"a":3})"), "x.json: duplicate key 'a'");
  EXPECT_EQ(error(R"([{"a":{"b":1,"b":1}}])"), "x.json: duplicate key 'b'");
  EXPECT_EQ(error(R"({"a":1,"\u0061":3})"), "x.json: duplicate key 'a'");
  EXPECT_EQ(error(R"([{"a":1},{"a":1}, {"b":{"a":1},"a":1}])"), "nothing thrown");
}

TEST(ParseJson, RefusesDepthAndSizeOverTheLimit) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(error(nested(64)), "nothing thrown");
  EXPECT_EQ(error(nested(65)), "x.json: nested deeper than 64");
  EXPECT_EQ(error(std::string(10'000'000, '[')), "x.json: nested deeper than 64");
  EXPECT_EQ(error(nested(3), {.bytes = 100, .depth = 2}), "x.json: nested deeper than 2");
  EXPECT_EQ(error("[1, 2, 3]", {.bytes = 8}), "x.json: 9 B of JSON, expected at most 8 B");
}

TEST(ParseJson, RefusesInvalidUtf8AndSyntaxWithAPosition) {
  EXPECT_TRUE(error("[\n \"\xff\"]").starts_with("x.json:2:3: syntax error")) << error("[\n \"\xff\"]");
  EXPECT_TRUE(error("{\"a\": \"\xed\xa0\x80\"}").starts_with("x.json:1:")) << "a surrogate";
  EXPECT_TRUE(error("[1,").starts_with("x.json:1:4: syntax error")) << error("[1,");
  EXPECT_TRUE(error("").starts_with("x.json:1:1: syntax error")) << error("");
  EXPECT_TRUE(error("[1] 2").starts_with("x.json:1:5: syntax error")) << error("[1] 2");
  EXPECT_TRUE(error("{\"a\":1,}").starts_with("x.json:1:8: syntax error")) << error("{\"a\":1,}");
  EXPECT_TRUE(error("[1e999]").starts_with("x.json:1:")) << error("[1e999]");
  EXPECT_TRUE(error("[NaN]").starts_with("x.json:1:")) << error("[NaN]");
  for (const char* text : {"[1,", "[\n \"\xff\"]", "[1e999]", "nul"}) {
    EXPECT_EQ(error(text).find("json.exception"), std::string::npos) << error(text);
    EXPECT_EQ(error(text).find('\n'), std::string::npos) << "more than one line";
  }
}

TEST(ParseJson, ReadsAnyTextOrRefusesIt) {
  EXPECT_TRUE(rc::check([] {
    const auto pieces = *rc::gen::container<std::vector<std::string>>(
        rc::gen::element<std::string>("[", "]", "{", "}", ",", ":", "\"a\"", "\"", "1", "-", ".5", "e9", "null", "true",
                                      " ", "\n", "\\u12", "\xff", "\xc3\xa9"));
    std::string text;
    for (const std::string& piece : pieces) text += piece;
    try {
      const Json value = parse_json(text, "x.json");
      RC_ASSERT(parse_json(json_text(value), "again") == value);
    } catch (const Error& e) {
      RC_ASSERT(e.code() == Exit::kBadInput);
      RC_ASSERT(e.message().starts_with("x.json:"));
    }
  }));
}

TEST(ReadJsonFile, NamesTheFile) {
  TempDir dir;
  write_file_atomic(dir / "a.json", "{\"x\": 1, \"x\": 2}");
  try {
    read_json_file(dir / "a.json");
    FAIL() << "nothing thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.message(), (dir / "a.json").string() + ": duplicate key 'x'");
  }
  try {
    read_json_file(dir / "none.json");
    FAIL() << "nothing thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::kIo);
  }
}

TEST(JsonMembers, AreReadByTypeOrRefused) {
  const Json j = parse_json(R"({"i":-5,"u":9223372036854775807,"big":9223372036854775808,"huge":1e30,"f":0.5,
                               "b":true,"s":"text","long":")" +
                                std::string(100, 'x') + "\"}",
                            "x.json");
  const auto message = [&](auto read, const char* key) -> std::string {
    try {
      read(j, key, "x.json");
    } catch (const Error& e) {
      return e.message();
    }
    return "nothing thrown";
  };
  EXPECT_EQ(json_int(j, "i", "x.json"), -5);
  EXPECT_EQ(json_int(j, "u", "x.json"), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(json_double(j, "f", "x.json"), 0.5);
  EXPECT_EQ(json_double(j, "i", "x.json"), -5);
  EXPECT_TRUE(json_bool(j, "b", "x.json"));
  EXPECT_EQ(json_string(j, "s", "x.json"), "text");
  EXPECT_EQ(message(json_int, "big"), "x.json: 'big' is 9223372036854775808, expected an integer of 64 bits");
  EXPECT_EQ(message(json_int, "huge"), "x.json: 'huge' is 1e+30, expected an integer of 64 bits");
  EXPECT_EQ(message(json_int, "f"), "x.json: 'f' is 0.5, expected an integer of 64 bits");
  EXPECT_EQ(message(json_int, "none"), "x.json: 'none' is missing");
  EXPECT_EQ(message(json_double, "s"), "x.json: 's' is \"text\", expected a number");
  EXPECT_EQ(message(json_bool, "i"), "x.json: 'i' is -5, expected true or false");
  EXPECT_EQ(message(json_string, "b"), "x.json: 'b' is true, expected a string");
  EXPECT_EQ(message(json_bool, "long"), "x.json: 'long' is \"" + std::string(36, 'x') + "..., expected true or false");
  EXPECT_THROW(json_member(Json::array(), "a", "x.json"), Error);
}

TEST(JsonText, WritesWhatJsonCannotHoldAsNullAndReplacementCharacters) {
  EXPECT_EQ(json_text(Json{{"a", std::nan("")}, {"b", "\xff"}}), "{\"a\":null,\"b\":\"\xef\xbf\xbd\"}");
  EXPECT_EQ(json_text(Json::array({1, 2}), 1), "[\n 1,\n 2\n]");
}

}  // namespace
}  // namespace rmoe
