#include "rmoe/plot/html.h"

#include <string>

#include <gtest/gtest.h>

#include "unit/plot/markup.h"

namespace rmoe::plot {
namespace {

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

TEST(Shorten, CutsBetweenCharacters) {
  EXPECT_EQ(shorten("Größe", 5), "Größe");
  EXPECT_EQ(shorten("Größen", 5), "Größ…");
  EXPECT_EQ(utf8_length("Größ…"), 5u);
  EXPECT_EQ(shorten("abc", 1), "…");
}

}  // namespace
}  // namespace rmoe::plot
