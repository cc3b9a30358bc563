#include "rmoe/analysis/gates.h"

#include <map>

#include <gtest/gtest.h>

#include "tests/unit/analysis/random_chunk.h"

namespace rmoe::analysis {
namespace {

// The definition, step by step: digitize both vectors, count pairs, sum p(a, b) ln(p(a, b) / (p(a) p(b))).
double plain_information(const float* a, const float* b, int64_t n) {
  std::map<int, double> pa, pb;
  std::map<std::pair<int, int>, double> pab;
  const auto bin = [](float x) { return std::min(static_cast<int>(x * 100.0F), 99); };
  for (int64_t e = 0; e < n; ++e) {
    pa[bin(a[e])] += 1.0 / static_cast<double>(n);
    pb[bin(b[e])] += 1.0 / static_cast<double>(n);
    pab[{bin(a[e]), bin(b[e])}] += 1.0 / static_cast<double>(n);
  }
  double sum = 0;
  for (const auto& [key, p] : pab) sum += p * std::log(p / pa[key.first] / pb[key.second]);
  return sum;
}

TEST(MutualInformation, EqualsTheDefinition) {
  const Shape s{.layers = 4, .experts = 11, .slots = 3, .top_k = 3};
  const MadeChunk made(s, 60, 5, 4);
  MutualInformation information(s);
  information.add(made.chunk);
  const Matrix got = information.matrix();
  double off_diagonal = 0;
  for (int64_t a = 0; a < s.layers; ++a) {
    for (int64_t b = 0; b < s.layers; ++b) {
      double sum = 0;
      for (int64_t t = 0; t < 60; ++t) sum += plain_information(made.chunk.probs(t, a), made.chunk.probs(t, b), 11);
      EXPECT_NEAR(got[a][b], sum / 60, 1e-9) << a << " " << b;
      if (a < b) off_diagonal += sum / 60;
    }
  }
  EXPECT_NEAR(information.mean(), off_diagonal / 6, 1e-9);
}

TEST(MutualInformation, OfIdenticalLayersIsTheEntropyOfTheBins) {
  const Shape s{.layers = 3, .experts = 16, .slots = 2, .top_k = 2};
  const MadeChunk made(s, 40, 1, 5, {0, 0, 2});
  MutualInformation information(s);
  information.add(made.chunk);
  const Matrix got = information.matrix();
  double entropy = 0;
  for (int64_t t = 0; t < 40; ++t) {
    std::vector<int64_t> bins(100, 0);
    for (int64_t e = 0; e < 16; ++e)
      ++bins[std::min<size_t>(static_cast<size_t>(made.chunk.probs(t, 0)[e] * 100.0F), 99)];
    entropy += entropy_of_counts(bins) / 40;
  }
  EXPECT_GT(entropy, 0.5);
  EXPECT_NEAR(got[0][1], entropy, 1e-9);
  EXPECT_NEAR(got[0][0], entropy, 1e-9);
  EXPECT_LT(got[0][2], 0.8 * entropy);
}

// A token's N scores are only N points of the joint distribution, so independence shows as exactly 0 where one layer
// has all scores in one bin, and as near 0 where many experts fall into few bins.
TEST(MutualInformation, OfIndependentLayersIsNearZero) {
  const Shape s{.layers = 2, .experts = 4096, .slots = 1, .top_k = 1};
  std::vector<float> probs(static_cast<size_t>(2 * 4096));
  std::vector<int32_t> ids(2, 0);
  std::vector<int64_t> positions{0};
  for (size_t i = 0; i < probs.size(); ++i) {
    probs[i] = static_cast<float>(0.1 + 0.2 * static_cast<double>(uniform_below(mix(3, kTestStream, i), 4)));
  }
  MutualInformation information(s);
  information.add({.shape = s,
                   .tokens = 1,
                   .ids_TLK = ids.data(),
                   .probs_TLN = probs.data(),
                   .tokens_T = nullptr,
                   .positions_T = positions.data()});
  EXPECT_NEAR(information.matrix()[0][0], std::log(4.0), 0.01);
  EXPECT_LT(information.mean(), 0.01);

  const Shape small{.layers = 2, .experts = 8, .slots = 2, .top_k = 2};
  MadeChunk made(small, 5, 9, 3);
  for (int64_t t = 0; t < 5; ++t) std::fill_n(made.probs.begin() + (t * 2 + 1) * 8, 8, 0.125F);  // a uniform layer
  MutualInformation with_uniform(small);
  with_uniform.add(made.chunk);
  EXPECT_NEAR(with_uniform.mean(), 0, 1e-12);
}

TEST(MutualInformation, DoesNotDependOnThePieces) {
  const Shape s{.layers = 3, .experts = 7, .slots = 2, .top_k = 2};
  const MadeChunk made(s, 50, 2);
  MutualInformation whole(s), pieces(s);
  whole.add(made.chunk);
  for (int64_t begin = 0; begin < 50; begin += 13) {
    Chunk piece = made.chunk;
    piece.tokens = std::min<int64_t>(13, 50 - begin);
    piece.probs_TLN = made.chunk.probs(begin, 0);
    pieces.add(piece);
  }
  EXPECT_EQ(whole.matrix(), pieces.matrix());
}

TEST(GateEntropy, EqualsTheDefinitionPerLayer) {
  const Shape s{.layers = 3, .experts = 9, .slots = 2, .top_k = 2};
  const MadeChunk made(s, 80, 4, 6);
  GateEntropy entropy(s);
  entropy.add(made.chunk);
  std::vector<double> all;
  for (int64_t l = 0; l < 3; ++l) {
    double sum = 0;
    for (int64_t t = 0; t < 80; ++t) {
      double h = 0;
      for (int64_t e = 0; e < 9; ++e) h -= made.chunk.probs(t, l)[e] * std::log(double{made.chunk.probs(t, l)[e]});
      sum += h;
      all.push_back(h);
    }
    EXPECT_NEAR(entropy.layers()[static_cast<size_t>(l)].mean(), sum / 80, 1e-5);
  }
  std::sort(all.begin(), all.end());
  EXPECT_NEAR(entropy.all().quantile(0.5), all[all.size() / 2], 0.02);
}

TEST(GateEntropy, IsLnNForUniformAndZeroForOneHot) {
  const Shape s{.layers = 2, .experts = 4, .slots = 1, .top_k = 1};
  const std::vector<float> probs{0.25F, 0.25F, 0.25F, 0.25F, 0, 1, 0, 0};
  GateEntropy entropy(s);
  entropy.add({.shape = s, .tokens = 1, .probs_TLN = probs.data()});
  EXPECT_NEAR(entropy.layers()[0].mean(), std::log(4.0), 1e-6);
  EXPECT_EQ(entropy.layers()[1].mean(), 0);
}

TEST(InnerOuterBalance, MediansAreThoseOfSortedValues) {
  const Shape s{.layers = 2, .experts = 10, .slots = 3, .top_k = 3};
  const MadeChunk made(s, 201, 8, 8);
  InnerOuterBalance balance(s);
  balance.add(made.chunk);
  std::vector<double> inner, outer;
  for (int64_t t = 0; t < 201; ++t) {
    std::vector<float> g(made.chunk.probs(t, 1), made.chunk.probs(t, 1) + 10);
    std::sort(g.rbegin(), g.rend());
    inner.push_back(double{g[0]} / double{g[1]});
    outer.push_back(double{g[0]} + double{g[1]} + double{g[2]});
  }
  std::sort(inner.begin(), inner.end());
  std::sort(outer.begin(), outer.end());
  EXPECT_NEAR(std::exp(balance.log_inner()[1].quantile(0.5)) / inner[100], 1, 0.003);
  EXPECT_NEAR(balance.outer()[1].quantile(0.5), outer[100], 3e-4);
}

TEST(InnerOuterBalance, KnownAnswers) {
  const Shape s{.layers = 1, .experts = 4, .slots = 2, .top_k = 2};
  const std::vector<float> probs{0.1F, 0.6F, 0.3F, 0.0F};
  InnerOuterBalance balance(s);
  balance.add({.shape = s, .tokens = 1, .probs_TLN = probs.data()});
  EXPECT_NEAR(std::exp(balance.all_log_inner().quantile(0.5)), 2, 0.003);
  EXPECT_NEAR(balance.all_outer().quantile(0.5), 0.9, 2e-4);
}

TEST(Histogram, SharesAndQuantiles) {
  Histogram h(0, 10, 100);
  for (int i = 0; i < 1000; ++i) h.add(i / 100.0);
  EXPECT_NEAR(h.mean(), 4.995, 1e-9);
  EXPECT_NEAR(h.quantile(0.25), 2.5, 0.06);
  EXPECT_NEAR(h.shares(10)[3], 0.1, 1e-9);
  h.add(1e9);  // counts in the last bin
  EXPECT_EQ(h.count(), 1001);
  EXPECT_NEAR(entropy_of_counts({1, 1, 1, 1}), std::log(4.0), 1e-12);
  EXPECT_EQ(entropy_of_counts({0, 7}), 0);
}

}  // namespace
}  // namespace rmoe::analysis
