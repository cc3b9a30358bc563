#include "rmoe/eval/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe {
namespace {

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  logits.reserve(probabilities.size());
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::vector<int64_t> ids_of(const std::vector<Candidate>& candidates) {
  std::vector<int64_t> ids;
  ids.reserve(candidates.size());
  for (const Candidate& c : candidates) ids.push_back(c.id);
  return ids;
}

std::vector<float> random_logits(int64_t size, uint64_t seed) {
  std::vector<float> logits;
  logits.reserve(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    logits.push_back(static_cast<float>(6 * uniform(mix(seed, kTestStream, static_cast<uint64_t>(i)))));
  }
  return logits;
}

TEST(Sampling, WithoutLimitsIsTheSoftmax) {
  const auto kept = sampling_candidates(logits_of({0.5, 0.2, 0.3}), {});
  ASSERT_EQ(ids_of(kept), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_NEAR(kept[0].probability, 0.5, 1e-6);
  EXPECT_NEAR(kept[1].probability, 0.2, 1e-6);
  EXPECT_NEAR(kept[2].probability, 0.3, 1e-6);
}

TEST(Sampling, TemperatureDividesTheLogits) {
  const auto kept = sampling_candidates(logits_of({0.8, 0.2}), {.temperature = 0.5});
  EXPECT_NEAR(kept[0].probability, 0.64 / 0.68, 1e-6);
}

TEST(Sampling, TemperatureZeroTakesTheLargestAndOfEqualsTheFirst) {
  const std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.temperature = 0})), (std::vector<int64_t>{1}));
  EXPECT_EQ(sample_token(logits, {.temperature = 0}, 0.999), 1);
}

TEST(Sampling, TopKKeepsTheLargestRenormalized) {
  const auto kept = sampling_candidates(logits_of({0.1, 0.4, 0.2, 0.3}), {.top_k = 2});
  ASSERT_EQ(ids_of(kept), (std::vector<int64_t>{1, 3}));
  EXPECT_NEAR(kept[0].probability, 4.0 / 7, 1e-6);
  EXPECT_NEAR(kept[1].probability, 3.0 / 7, 1e-6);
}

TEST(Sampling, TopKOfEqualLogitsKeepsTheLowerIds) {
  EXPECT_EQ(ids_of(sampling_candidates(std::vector<float>(6, 1.5f), {.top_k = 4})), (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(Sampling, TopPKeepsTheSmallestSetThatReachesIt) {
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_p = 0.39})), (std::vector<int64_t>{1}));
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_p = 0.41})), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_p = 0.69})), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_p = 0.71})), (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_p = 0.01})), (std::vector<int64_t>{1}));
}

TEST(Sampling, TopPSetIsSmallestForRandomLogits) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto logits = random_logits(40, seed);
    const double top_p = 0.05 + 0.9 * uniform(mix(seed, kTestStream, 1000));
    const auto all = sampling_candidates(logits, {});
    const auto kept = sampling_candidates(logits, {.top_p = top_p});
    std::set<int64_t> chosen;
    double inside = 0, least = 1, most_outside = 0;
    for (const Candidate& c : kept) {
      chosen.insert(c.id);
      inside += all[static_cast<size_t>(c.id)].probability;
      least = std::min(least, all[static_cast<size_t>(c.id)].probability);
    }
    for (const Candidate& c : all) {
      if (!chosen.contains(c.id)) most_outside = std::max(most_outside, c.probability);
    }
    EXPECT_GE(inside, top_p - 1e-12);
    EXPECT_LT(inside - least, top_p) << "one less would do";
    EXPECT_GE(least, most_outside) << "an unlikelier one was preferred";
    double sum = 0;
    for (const Candidate& c : kept) sum += c.probability;
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST(Sampling, TopPCountsWithinTopK) {
  // Of 0.4, 0.3, 0.2 renormalized, 0.4 and 0.3 make 7/9 = 0.78; of the whole distribution they make 0.7.
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_k = 3, .top_p = 0.75})), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(ids_of(sampling_candidates(logits, {.top_k = 0, .top_p = 0.75})), (std::vector<int64_t>{1, 2, 3}));
}

TEST(Sampling, DrawsFollowTheProbabilities) {
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  std::map<int64_t, int64_t> counts;
  constexpr int64_t kDraws = 40000;
  for (int64_t i = 0; i < kDraws; ++i) {
    ++counts[sample_token(logits, {}, uniform(mix(3, kSampleStream, static_cast<uint64_t>(i))))];
  }
  const double expected[] = {0.1, 0.4, 0.2, 0.3};
  for (int64_t id = 0; id < 4; ++id) {
    EXPECT_NEAR(static_cast<double>(counts[id]) / kDraws, expected[id], 0.01) << id;
  }
}

TEST(Sampling, TheLastDrawIsACandidate) {
  const double largest = std::nextafter(1.0, 0.0);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    auto logits = random_logits(30, seed);
    logits.back() = -std::numeric_limits<float>::infinity();  // cannot be drawn, though it is last
    const int64_t id = sample_token(logits, {}, largest);
    EXPECT_GE(id, 0);
    EXPECT_LT(id, 29);
  }
}

TEST(Sampling, LimitsThatKeepAllChangeNoDraw) {
  const auto logits = random_logits(50, 5);
  for (uint64_t i = 0; i < 100; ++i) {
    const double random = uniform(mix(1, kSampleStream, i));
    EXPECT_EQ(sample_token(logits, {}, random), sample_token(logits, {.top_k = 50}, random));
  }
}

TEST(Sampling, NonFiniteLogitsAreADivergedModel) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> broken = {{nan, 1, 2}, {1, 2, nan}, {1, inf, 2}, {-inf, -inf}};
  for (const auto& logits : broken) {
    for (const double temperature : {0.0, 1.0}) {
      try {
        sample_token(logits, {.temperature = temperature}, 0.5);
        FAIL() << "was accepted";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Exit::kDiverged);
      }
    }
  }
}

TEST(Sampling, RefusesImpossibleOptions) {
  EXPECT_NO_THROW(SamplingOptions{}.validate());
  EXPECT_THROW(SamplingOptions{.temperature = -1}.validate(), Error);
  EXPECT_THROW(SamplingOptions{.temperature = std::nan("")}.validate(), Error);
  EXPECT_THROW(SamplingOptions{.top_k = -1}.validate(), Error);
  EXPECT_THROW(SamplingOptions{.top_p = 0}.validate(), Error);
  EXPECT_THROW(SamplingOptions{.top_p = 1.5}.validate(), Error);
}

}  // namespace
}  // namespace rmoe
