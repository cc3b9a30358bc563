// White space, words and the counts of a text.
#include "rmoe/data/words.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace rmoe::data {
namespace {

TEST(IsSpace, IsWhatPythonSplitsAt) {
  std::vector<char32_t> spaces;
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (is_space(value)) spaces.push_back(value);
  }
  // [chr(i) for i in range(0x110000) if chr(i).isspace()] in CPython 3.11.
  const std::vector<char32_t> expected{9,      10,     11,     12,     13,     28,     29,     30,     31,     32,
                                       0x85,   0xA0,   0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006,
                                       0x2007, 0x2008, 0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  EXPECT_TRUE(spaces == expected);
}

TEST(TextCounter, CountsWordsPlusOnePerLine) {
  TextCounter counter;
  counter.feed(" = Title = \n\n one two\tthree \n");
  counter.end_document();
  EXPECT_EQ(counter.words(), 3 + 3 + 3);
  EXPECT_EQ(counter.bytes(), 29);
  EXPECT_EQ(counter.characters(), 29);
}

TEST(TextCounter, CountsAnUnfinishedLastLineOncePerDocument) {
  TextCounter counter;
  counter.feed("one two");
  counter.end_document();
  EXPECT_EQ(counter.words(), 3);
  counter.feed("three\n");
  counter.end_document();
  EXPECT_EQ(counter.words(), 5);
  counter.end_document();
  EXPECT_EQ(counter.words(), 5);
}

TEST(TextCounter, DoesNotDependOnWhereTheTextIsCut) {
  const std::string text =
      "na\xC3\xAFve \xE4\xB8\xAD\xE3\x80\x80\xE6\x96\x87 \xFF\xF0\x9F\x98\x80\n\xC3\xC3\xC3\xA9 z\xE4\xB8";
  TextCounter whole;
  whole.feed(text);
  whole.end_document();
  EXPECT_EQ(whole.bytes(), static_cast<int64_t>(text.size()));
  // naïve, space, 中, wide space, 文, space, bad byte, emoji, line feed, 2 bad bytes, é, space, z, 2 bad bytes
  EXPECT_EQ(whole.characters(), 5 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 2 + 1 + 1 + 1 + 2);
  EXPECT_EQ(whole.words(), 6 + 2);
  for (size_t step = 1; step < text.size(); ++step) {
    TextCounter parts;
    for (size_t i = 0; i < text.size(); i += step) parts.feed(std::string_view(text).substr(i, step));
    parts.end_document();
    EXPECT_EQ(parts.characters(), whole.characters()) << step;
    EXPECT_EQ(parts.words(), whole.words()) << step;
  }
}

}  // namespace
}  // namespace rmoe::data
