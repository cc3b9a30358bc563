#include "rmoe/base/utf8.h"

#include <string>

#include <gtest/gtest.h>

namespace rmoe {
namespace {

TEST(Utf8, AcceptsEveryCodePointAndNothingElseOfFourBytesOrLess) {
  for (uint32_t c = 0; c <= 0x10ffff; ++c) {
    std::string text;
    const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (c >> shift & 0x3f)); };
    if (c < 0x80) {
      text = static_cast<char>(c);
    } else if (c < 0x800) {
      text = static_cast<char>(0xc0 | c >> 6);
      tail(0);
    } else if (c < 0x10000) {
      text = static_cast<char>(0xe0 | c >> 12);
      tail(6), tail(0);
    } else {
      text = static_cast<char>(0xf0 | c >> 18);
      tail(12), tail(6), tail(0);
    }
    const bool surrogate = c >= 0xd800 && c <= 0xdfff;
    ASSERT_EQ(is_utf8(text), !surrogate) << std::hex << c;
    ASSERT_EQ(is_utf8("a" + text + "b"), !surrogate) << std::hex << c;
    ASSERT_TRUE(c < 0x80 || !is_utf8(text.substr(0, text.size() - 1))) << std::hex << c;
  }
}

TEST(Utf8, RefusesOverlongAndStrayBytes) {
  for (const char* text :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xfe", "\xc3(", "\xe2\x82("}) {
    EXPECT_FALSE(is_utf8(text)) << text;
  }
  EXPECT_TRUE(is_utf8(""));
}

using Kind = Utf8Char::Kind;

TEST(FirstChar, ReadsEveryCodePointThatAppendWrites) {
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (value >= 0xD800 && value <= 0xDFFF) continue;
    std::string text;
    append_utf8(value, text);
    const Utf8Char c = first_char(text + "x");
    ASSERT_EQ(c.kind, Kind::kValid) << static_cast<uint32_t>(value);
    ASSERT_TRUE(c.value == value);
    ASSERT_EQ(c.length, static_cast<int64_t>(text.size()));
  }
}

TEST(FirstChar, RefusesSurrogatesOverlongFormsAndValuesBeyondUnicode) {
  for (const char* text : {"\xED\xA0\x80", "\xC0\xAF", "\xE0\x80\xAF", "\xF0\x80\x80\xAF", "\xF4\x90\x80\x80",
                           "\xF5\x80\x80\x80", "\x80", "\xFF", "\xC3(", "\xE2\x28\xA1"}) {
    EXPECT_EQ(first_char(text).kind, Kind::kInvalid) << text;
    EXPECT_EQ(first_char(text).length, 1);
  }
}

TEST(FirstChar, TellsAnUnfinishedCharacterFromAnInvalidOne) {
  EXPECT_EQ(first_char("\xE4\xB8").kind, Kind::kIncomplete);
  EXPECT_EQ(first_char("\xE4\xB8").length, 2);
  EXPECT_EQ(first_char("\xF0").kind, Kind::kIncomplete);
  EXPECT_EQ(first_char("\xED\xA0").kind, Kind::kInvalid);  // can only become a surrogate
}

TEST(FirstInvalid, GivesTheOffsetOfTheFirstBadByte) {
  EXPECT_EQ(first_invalid("plain \xC3\xA9"), std::nullopt);
  EXPECT_EQ(first_invalid("ab\xFFz"), 2);
  EXPECT_EQ(first_invalid("ab\xC3"), 2);
  EXPECT_EQ(first_invalid("ab\xC3", /*may_continue=*/true), std::nullopt);
}

TEST(UnfinishedTail, CountsOnlyBytesThatMayStillBecomeACharacter) {
  EXPECT_EQ(unfinished_tail(""), 0);
  EXPECT_EQ(unfinished_tail("abc"), 0);
  EXPECT_EQ(unfinished_tail("a\xC3"), 1);
  EXPECT_EQ(unfinished_tail("a\xE4\xB8"), 2);
  EXPECT_EQ(unfinished_tail("a\xF0\x9F\x98"), 3);
  EXPECT_EQ(unfinished_tail("a\xF0\x9F\x98\x80"), 0);
  EXPECT_EQ(unfinished_tail("\x80\x80\x80\x80"), 0);
}

const std::string kBad = "\xEF\xBF\xBD";

TEST(PrintableUtf8, KeepsValidTextNewlinesAndTabs) {
  std::string text = "a\tb\nÄ€𝄞 \xED\x9F\xBF \xEE\x80\x80 \xF4\x8F\xBF\xBF";
  EXPECT_EQ(printable_utf8(text), text);
}

TEST(PrintableUtf8, ReplacesEveryInvalidByte) {
  EXPECT_EQ(printable_utf8("a\xFF"), "a" + kBad);
  EXPECT_EQ(printable_utf8("\xC0\xAF"), kBad + kBad);                        // overlong
  EXPECT_EQ(printable_utf8("\xE0\x80\x80"), kBad + kBad + kBad);             // overlong
  EXPECT_EQ(printable_utf8("\xED\xA0\x80"), kBad + kBad + kBad);             // surrogate
  EXPECT_EQ(printable_utf8("\xF4\x90\x80\x80"), kBad + kBad + kBad + kBad);  // beyond U+10FFFF
  EXPECT_EQ(printable_utf8("\xE2\x82"), kBad + kBad);                        // cut off
  EXPECT_EQ(printable_utf8("\xC3("), kBad + "(");
}

TEST(PrintableUtf8, ReplacesControlCharacters) {
  EXPECT_EQ(printable_utf8(std::string("\0\x1B[2J\r\x7F", 7)), kBad + kBad + "[2J" + kBad + kBad);
  EXPECT_EQ(printable_utf8("\xC2\x9B"), kBad);  // a one-character terminal command
}

}  // namespace
}  // namespace rmoe
