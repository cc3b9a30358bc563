// Vocabularies come from the training split only, the most frequent symbols first.
#include "rmoe/data/vocabulary.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/unit/data/expect_error.h"

namespace rmoe::data {
namespace {

using Ids = std::vector<int64_t>;

TEST(CharCensus, TakesTheCharactersOfTheTrainingSplit) {
  CharCensus census(/*bytes=*/false);
  census.text(kTrain, "b a\xC3");
  census.text(kValid, "ab");
  census.text(kTrain, "\xA9");
  const auto tokenizer = census.make({}, false);
  EXPECT_EQ(tokenizer->vocab_size(), 4);
  EXPECT_EQ(tokenizer->unknown(), std::nullopt);
  EXPECT_EQ(tokenizer->encode(" ab\xC3\xA9"), (Ids{0, 1, 2, 3}));  // ascending, whatever the counts
}

TEST(CharCensus, HasAnUnknownIdWhenAnotherSplitNeedsIt) {
  CharCensus census(false);
  census.text(kTrain, "ab");
  census.text(kTest, "c");
  const auto tokenizer = census.make({}, true);
  EXPECT_EQ(tokenizer->vocab_size(), 4);
  EXPECT_EQ(tokenizer->unknown(), 2);
  EXPECT_EQ(tokenizer->separator(), 3);
  EXPECT_EQ(tokenizer->encode("c"), Ids{2});
}

TEST(CharCensus, KeepsToItsLimits) {
  CharCensus census(false);
  census.text(kTrain, "aaaabbbccd");
  EXPECT_EQ(census.make({.min_count = 2}, false)->encode("abcd"), (Ids{0, 1, 2, 3}));
  const auto limited = census.make({.vocab_size = 3}, false);
  EXPECT_EQ(limited->vocab_size(), 3);
  EXPECT_EQ(limited->encode("abcd"), (Ids{0, 1, 2, 2}));
  EXPECT_EQ(census.make({.vocab_size = 4}, false)->unknown(), std::nullopt);  // room for all
  EXPECT_EQ(census.make({.vocab_size = 4}, true)->encode("abcd"), (Ids{0, 1, 2, 2}));
  EXPECT_ERROR(census.make({.vocab_size = 1}, true), Exit::kBadInput, "a vocabulary of 1");
  EXPECT_ERROR(census.make({.min_count = 5}, false), Exit::kBadInput, "no symbol occurs 5 times");
}

TEST(CharCensus, CountsBytesWhenBytesAreTheUnit) {
  CharCensus census(/*bytes=*/true);
  census.text(kTrain, "a\xC3\xA9\xFF\n");
  const auto tokenizer = census.make({}, false);
  EXPECT_EQ(tokenizer->vocab_size(), 5);
  EXPECT_TRUE(tokenizer->characters_are_bytes());
}

TEST(WordCensus, PutsFrequentWordsFirst) {
  WordCensus census;
  census.text(kTrain, "the cat\nthe d");
  census.text(kTest, "other other other");
  census.text(kTrain, "og\nthe end");
  census.end_document(kTrain);
  const auto tokenizer = census.make({}, false);
  // <eos> and "the" 3, then cat, dog, end, then <unk> which does not occur.
  EXPECT_EQ(tokenizer->vocab_size(), 6);
  EXPECT_EQ(tokenizer->encode("\nthe cat dog end other"), (Ids{0, 1, 2, 3, 4, 5}));
}

TEST(WordCensus, TakesUnkFromTheTextAsWikiTextDoes) {
  WordCensus census;
  census.text(kTrain, "<unk> <unk> a\n");
  census.end_document(kTrain);
  const auto tokenizer = census.make({}, false);
  EXPECT_EQ(tokenizer->vocab_size(), 3);
  EXPECT_EQ(tokenizer->unknown(), 0);
}

TEST(WordCensus, KeepsToItsLimits) {
  WordCensus census;
  census.text(kTrain, "a a a b b c\n");
  census.end_document(kTrain);
  EXPECT_EQ(census.make({.min_count = 2}, false)->vocab_size(), 4);
  EXPECT_EQ(census.make({.vocab_size = 3}, false)->encode("a b"), (Ids{0, 2}));
  EXPECT_EQ(census.make({.vocab_size = 4}, true)->vocab_size(), 4);
  EXPECT_ERROR(census.make({.vocab_size = 2}, false), Exit::kBadInput, "a vocabulary of 2");
}

TEST(LineSample, TakesAllOrAKeyedPartOfTheTrainingLines) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "line number " + std::to_string(i) + "\n";
  const auto sampled = [&](int64_t bytes, uint64_t seed, size_t step) {
    LineSample sample(static_cast<int64_t>(text.size()), bytes, seed);
    for (size_t i = 0; i < text.size(); i += step) sample.text(kTrain, std::string_view(text).substr(i, step));
    sample.text(kValid, text);
    sample.end_document(kTrain);
    sample.end_document(kValid);
    return sample.bytes();
  };
  const auto without_line_feeds = static_cast<int64_t>(text.size()) - 2000;
  EXPECT_EQ(sampled(1 << 30, 0, 100), without_line_feeds);
  const int64_t part = sampled(10'000, 0, 100);
  EXPECT_NEAR(static_cast<double>(part), 10'000, 1500);
  EXPECT_EQ(sampled(10'000, 0, 7777), part);
  EXPECT_NE(sampled(10'000, 1, 100), part);
}

}  // namespace
}  // namespace rmoe::data
