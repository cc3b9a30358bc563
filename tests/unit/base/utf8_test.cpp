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

}  // namespace
}  // namespace rmoe
