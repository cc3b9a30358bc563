#include "rmoe/eval/stop_filter.h"

#include <gtest/gtest.h>

#include "rmoe/base/rng.h"

namespace rmoe {
namespace {

std::string all_of(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopFilter filter(stops);
  std::string text;
  for (const std::string& piece : pieces) text += filter.feed(piece);
  return text + filter.finish();
}

TEST(StopFilter, PassesTextWithoutStopStringsAtOnce) {
  StopFilter filter({});
  EXPECT_EQ(filter.feed("abc"), "abc");
  EXPECT_EQ(filter.feed(""), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, CutsBeforeTheStopString) {
  StopFilter filter({"END"});
  EXPECT_EQ(filter.feed("one END two"), "one ");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.feed("more"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, HoldsBackOnlyWhatMayBeginAStopString) {
  StopFilter filter({"END"});
  EXPECT_EQ(filter.feed("some E"), "some ");
  EXPECT_EQ(filter.feed("N"), "");
  EXPECT_EQ(filter.feed("EN"), "EN");  // the first two were none; the next two may be
  EXPECT_EQ(filter.feed("D"), "");
  EXPECT_TRUE(filter.stopped());
}

TEST(StopFilter, FinishReleasesWhatWasHeldBack) {
  StopFilter filter({"END"});
  EXPECT_EQ(filter.feed("the EN"), "the ");
  EXPECT_FALSE(filter.stopped());
  EXPECT_EQ(filter.finish(), "EN");
}

TEST(StopFilter, StopStringsThatOverlapThemselves) {
  EXPECT_EQ(all_of({"aab"}, {"a", "a", "a", "b", "x"}), "a");
  EXPECT_EQ(all_of({"abab"}, {"ab", "aab", "ab"}), "aba");
}

TEST(StopFilter, TheStringCompletedFirstCounts) {
  EXPECT_EQ(all_of({"abcd", "bc"}, {"abcd"}), "a");
  EXPECT_EQ(all_of({"bc", "abc"}, {"xabc"}), "x");  // both end together: the longer
}

TEST(StopFilter, EmptyStopStringsNeverMatch) { EXPECT_EQ(all_of({""}, {"abc"}), "abc"); }

TEST(StopFilter, TheResultDoesNotDependOnThePieces) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    uint64_t counter = 0;
    const auto random = [&](int64_t n) { return uniform_below(mix(seed, kTestStream, counter++), n); };
    const auto random_text = [&](int64_t length) {
      std::string text;
      for (int64_t i = 0; i < length; ++i) text += static_cast<char>('a' + random(2));
      return text;
    };
    const std::vector<std::string> stops = {random_text(2 + random(4)), random_text(2 + random(4))};
    const std::string text = random_text(random(30));
    std::vector<std::string> pieces, letters;
    for (size_t at = 0; at < text.size();) {
      pieces.push_back(text.substr(at, static_cast<size_t>(1 + random(5))));
      at += pieces.back().size();
    }
    for (const char c : text) letters.emplace_back(1, c);
    const std::string whole = all_of(stops, {text});
    EXPECT_EQ(all_of(stops, pieces), whole) << text;
    EXPECT_EQ(all_of(stops, letters), whole) << text;
    EXPECT_TRUE(text.starts_with(whole));
    for (const std::string& stop : stops) EXPECT_EQ(whole.find(stop), std::string::npos);
  }
}

}  // namespace
}  // namespace rmoe
