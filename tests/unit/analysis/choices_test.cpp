#include "rmoe/analysis/choices.h"

#include <map>
#include <set>

#include <gtest/gtest.h>

#include "rmoe/analysis/histogram.h"
#include "tests/unit/analysis/random_chunk.h"

namespace rmoe::analysis {
namespace {

constexpr int64_t kTokens = 400;

TEST(Selections, FrequencyDeadExpertsAndImbalance) {
  const Shape s{.layers = 2, .experts = 4, .slots = 2, .top_k = 2};
  const std::vector<int32_t> ids{0, 1, 2, 3, 0, 1, 3, -1};  // two tokens
  Selections selections(s);
  selections.add({.shape = s, .tokens = 2, .ids_TLK = ids.data()});
  EXPECT_EQ(selections.counts()[0], (std::vector<int64_t>{2, 2, 0, 0}));
  EXPECT_EQ(selections.counts()[1], (std::vector<int64_t>{0, 0, 1, 2}));
  EXPECT_EQ(selections.dead(), (std::vector<int64_t>{2, 2}));
  EXPECT_NEAR(selections.imbalance()[0], 2, 1e-12);
  EXPECT_NEAR(selections.imbalance()[1], 2.0 / 3 * 4, 1e-12);
  EXPECT_NEAR(selections.fractions()[1][3], 2.0 / 3, 1e-12);
}

TEST(Paths, EqualAPlainComputation) {
  const Shape s{.layers = 3, .experts = 3, .slots = 2, .top_k = 2};
  const MadeChunk made(s, kTokens, 3);
  Paths paths(s);
  paths.add(made.chunk);
  std::map<std::vector<int32_t>, int64_t> counts;
  std::map<std::pair<int32_t, int32_t>, int64_t> pairs;
  std::map<int32_t, std::map<int32_t, int64_t>> after;
  std::vector<int64_t> first(3, 0), second(3, 0);
  double overlap = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto id = [&](int64_t l, int64_t k) { return made.chunk.ids(t, l)[k]; };
    ++counts[{id(0, 0), id(1, 0), id(2, 0)}];
    ++pairs[{id(0, 0), id(1, 0)}];
    ++after[id(0, 0)][id(1, 0)];
    ++first[static_cast<size_t>(id(0, 0))];
    ++second[static_cast<size_t>(id(1, 0))];
    for (int64_t k = 0; k < 2; ++k) overlap += id(0, k) == id(1, 0) || id(0, k) == id(1, 1);
  }
  const auto entropy = [](const auto& map) {
    std::vector<int64_t> values;
    for (const auto& [key, value] : map) values.push_back(value);
    return entropy_of_counts(values);
  };
  double right = 0;
  for (const auto& [from, next] : after) {
    int64_t best = 0;
    for (const auto& [to, count] : next) best = std::max(best, count);
    right += static_cast<double>(best) / kTokens;
  }
  EXPECT_EQ(paths.distinct(), std::ssize(counts));
  EXPECT_NEAR(paths.entropy(), entropy(counts), 1e-9);
  const Paths::Link link = paths.links()[0];
  EXPECT_NEAR(link.information, entropy_of_counts(first) + entropy_of_counts(second) - entropy(pairs), 1e-9);
  EXPECT_NEAR(link.accuracy, right, 1e-9);
  EXPECT_NEAR(link.guess, static_cast<double>(*std::max_element(second.begin(), second.end())) / kTokens, 1e-9);
  EXPECT_NEAR(link.overlap, overlap / (2 * kTokens), 1e-9);
}

TEST(Paths, KnownAnswers) {
  const Shape s{.layers = 3, .experts = 4, .slots = 1, .top_k = 1};
  // Layer 2 copies layer 1; layer 3 is independent.
  const MadeChunk made(s, 20000, 11, 2, {0, 0, 2});
  Paths paths(s);
  paths.add(made.chunk);
  const auto links = paths.links();
  EXPECT_NEAR(links[0].information, links[0].entropy, 1e-9);
  EXPECT_EQ(links[0].accuracy, 1);
  EXPECT_EQ(links[0].overlap, 1);
  EXPECT_LT(links[1].information, 0.002);
  EXPECT_NEAR(links[1].accuracy, links[1].guess, 0.01);
  EXPECT_NEAR(links[1].overlap, links[1].chance, 0.015);
  EXPECT_NEAR(paths.entropy(), 2 * std::log(4.0), 0.01);
  EXPECT_NEAR(paths.independent_entropy(), 3 * std::log(4.0), 0.01);
  EXPECT_TRUE(paths.complete());
}

TEST(Paths, TokensWithoutAnExpertHaveNone) {
  const Shape s{.layers = 2, .experts = 2, .slots = 1, .top_k = 1};
  const std::vector<int32_t> ids{0, 1, -1, 1};
  Paths paths(s);
  paths.add({.shape = s, .tokens = 2, .ids_TLK = ids.data()});
  EXPECT_EQ(paths.tokens(), 1);
}

TEST(TokenKinds, ByTextAndWhatStandsBefore) {
  const TokenKinds kinds({" ", "a", ".", " the", "\n", "", "\x01"}, {10, 10, 1, 1, 1, 1, 1}, 5);
  EXPECT_EQ(kinds.kind(0, 1), kWhitespace);
  EXPECT_EQ(kinds.kind(4, -1), kWhitespace);
  EXPECT_EQ(kinds.kind(2, 1), kPunctuation);
  EXPECT_EQ(kinds.kind(1, 0), kWordStart);
  EXPECT_EQ(kinds.kind(1, -1), kWordStart);
  EXPECT_EQ(kinds.kind(1, 2), kWordStart);
  EXPECT_EQ(kinds.kind(1, 1), kWordInside);
  EXPECT_EQ(kinds.kind(1, 3), kWordInside);
  EXPECT_EQ(kinds.kind(3, 1), kWordStart);  // it opens with a space
  EXPECT_EQ(kinds.kind(5, 1), kOther);      // the separator
  EXPECT_EQ(kinds.kind(6, 1), kOther);
}

TEST(TokenKinds, BandsCoverHalfAndNineTenthsOfTheText) {
  const TokenKinds kinds({"a", "b", "c", "d"}, {50, 38, 8, 4});
  EXPECT_EQ(kinds.band(0), kFrequent);
  EXPECT_EQ(kinds.band(1), kMiddle);
  EXPECT_EQ(kinds.band(2), kMiddle);
  EXPECT_EQ(kinds.band(3), kRare);
}

TEST(KindRouting, EqualsAPlainComputation) {
  const Shape s{.layers = 2, .experts = 4, .slots = 2, .top_k = 2};
  const MadeChunk made(s, kTokens, 6);
  const std::vector<std::string> texts{" ", "a", ".", " b", "\x01"};
  const TokenKinds kinds(texts, {100, 80, 60, 40, 20});
  KindRouting routing(s, kinds);
  for (int64_t begin = 0; begin < kTokens; begin += 100) {  // the token before is known across pieces
    Chunk piece = made.chunk;
    piece.tokens = 100;
    piece.ids_TLK = made.chunk.ids(begin, 0);
    piece.tokens_T += begin;
    piece.positions_T += begin;
    routing.add(piece);
  }
  for (int64_t kind = 0; kind < kTextKinds; ++kind) {
    std::vector<double> counts(4, 0);
    double total = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      const int64_t before = t > 0 ? made.words[static_cast<size_t>(t - 1)] : -1;
      if (kinds.kind(made.words[static_cast<size_t>(t)], before) != kind) continue;
      for (int64_t k = 0; k < 2; ++k) ++counts[static_cast<size_t>(made.chunk.ids(t, 1)[k])], ++total;
    }
    EXPECT_EQ(static_cast<double>(routing.tokens(kind)) * 2, total);
    ASSERT_GT(total, 0);
    for (size_t n = 0; n < 4; ++n) EXPECT_NEAR(routing.fractions(kind)[1][n], counts[n] / total, 1e-12);
  }
}

TEST(KindRouting, InformationIsNearZeroForRandomAndTheKindsEntropyForSeparateExperts) {
  const Shape s{.layers = 2, .experts = 4, .slots = 1, .top_k = 1};
  MadeChunk made(s, 20000, 2);
  const TokenKinds kinds({" ", ".", "\x01", "\n", ","}, {1, 1, 1, 1, 1});
  std::vector<int64_t> counts(3, 0);
  for (size_t t = 0; t < 20000; ++t) {  // layer 2 sends each kind to an expert of its own
    const TokenKind kind = kinds.kind(made.words[t], -1);
    const int32_t expert = kind == kWhitespace ? 0 : kind == kPunctuation ? 1 : 2;
    made.ids[2 * t + 1] = expert;
    ++counts[static_cast<size_t>(expert)];
  }
  KindRouting routing(s, kinds);
  routing.add(made.chunk);
  EXPECT_LT(routing.information(false)[0], 0.002);
  EXPECT_NEAR(routing.information(false)[1], entropy_of_counts(counts), 1e-9);
}

}  // namespace
}  // namespace rmoe::analysis
