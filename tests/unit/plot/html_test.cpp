#include "rmoe/plot/html.h"

#include <string>

#include <gtest/gtest.h>

#include "unit/plot/markup.h"

namespace rmoe::plot {
namespace {

const std::string kBad = "\xEF\xBF\xBD";  // U+FFFD

// The tests of plots and reports rely on it.
TEST(CheckMarkup, FindsWhatIsWrong) {
  EXPECT_EQ(check_markup("<!DOCTYPE html><a b=\"1\" c='>'>x &amp; <i/>y</a>"), "");
  for (const char* wrong :
       {"<a>", "</a>", "<a></b>", "a & b", "a > b", "<a b=\"1\" b=\"2\"></a>", "<a b=\"<\"", "<a <b></a>"}) {
    EXPECT_NE(check_markup(wrong), "") << wrong;
  }
}

TEST(EscapeHtml, LeavesNoMarkup) {
  EXPECT_EQ(escape_html("</pre><script>alert('x & \"y\"')</script>"),
            "&lt;/pre&gt;&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;");
}

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

TEST(Shorten, CutsBetweenCharacters) {
  EXPECT_EQ(shorten("Größe", 5), "Größe");
  EXPECT_EQ(shorten("Größen", 5), "Größ…");
  EXPECT_EQ(utf8_length("Größ…"), 5u);
  EXPECT_EQ(shorten("abc", 1), "…");
}

}  // namespace
}  // namespace rmoe::plot
