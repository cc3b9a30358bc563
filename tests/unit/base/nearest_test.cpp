#include "rmoe/base/nearest.h"

#include <gtest/gtest.h>

namespace rmoe {
namespace {

const std::vector<std::string> kKeys = {"top_k", "experts", "expert_width", "kind", "x"};

TEST(Nearest, FindsTypingErrors) {
  EXPECT_EQ(nearest("topk", kKeys), "top_k");
  EXPECT_EQ(nearest("top-k", kKeys), "top_k");
  EXPECT_EQ(nearest("Top_K", kKeys), "top_k");
  EXPECT_EQ(nearest("tpo_k", kKeys), "top_k");  // two letters swapped are one error
  EXPECT_EQ(nearest("expert", kKeys), "experts");
  EXPECT_EQ(nearest("expertwidth", kKeys), "expert_width");
  EXPECT_EQ(nearest("knid", kKeys), "kind");
}

TEST(Nearest, PrefersFewerErrors) {
  EXPECT_EQ(nearest("abd", {"xyd", "abx", "abdx", "abd"}), "abd");
  EXPECT_EQ(nearest("layer", {"players", "layers"}), "layers");
}

TEST(Nearest, FindsNothingForWhatIsFarAway) {
  EXPECT_EQ(nearest("learning_rate", kKeys), "");
  EXPECT_EQ(nearest("", kKeys), "");
  EXPECT_EQ(nearest("q", kKeys), "");  // every one-letter name would be "near"
  EXPECT_EQ(nearest("topk", {}), "");
  EXPECT_EQ(nearest(std::string(100000, 'x'), kKeys), "");
}

TEST(HelpForUnknown, NamesTheNearestOrAll) {
  EXPECT_EQ(help_for_unknown("topk", kKeys), "did you mean 'top_k'?");
  EXPECT_EQ(help_for_unknown("zebra", {"a", "b"}), "known: a, b");
  EXPECT_EQ(help_for_unknown("zebra", {}), "");
}

}  // namespace
}  // namespace rmoe
