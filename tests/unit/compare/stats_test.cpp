#include "rmoe/compare/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"

namespace rmoe::compare {
namespace {

// Tables of Student's t; one degree of freedom is Cauchy's distribution, infinitely many are the normal one.
TEST(StudentQuantile, EqualsTheTables) {
  EXPECT_NEAR(student_quantile(0.975, 1), 12.7062047362, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 2), 4.3026527297, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 3), 3.1824463053, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 4), 2.7764451052, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 9), 2.2621571628, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 30), 2.0422724563, 1e-9);
  EXPECT_NEAR(student_quantile(0.95, 5), 2.0150483733, 1e-9);
  EXPECT_NEAR(student_quantile(0.995, 10), 3.1692726726, 1e-9);
  EXPECT_NEAR(student_quantile(0.975, 1e9), 1.9599639845, 1e-6);
}

TEST(StudentQuantile, InvertsTheTailOverManyMagnitudes) {
  for (double df : {0.5, 1.0, 2.0, 7.0, 100.0}) {
    for (double tail : {0.4, 0.1, 0.01, 1e-4, 1e-8}) {
      double t = student_quantile(1 - tail, df);
      EXPECT_NEAR(student_tail(t, df) / tail, 1, 1e-6) << "df " << df << ", tail " << tail;
      EXPECT_NEAR(student_quantile(tail, df) / student_quantile(1 - tail, df), -1, 1e-6);
    }
  }
  EXPECT_EQ(student_quantile(0.5, 3), 0);
}

TEST(StudentTail, EqualsTheClosedForms) {
  for (double t : {-30.0, -1.5, -1e-3, 0.0, 1e-3, 0.3, 1.0, 2.5, 40.0, 1e6}) {
    // One degree of freedom; atan2 keeps the accuracy of small tails.
    EXPECT_NEAR(student_tail(t, 1), std::atan2(1, t) / std::numbers::pi, 1e-14) << t;
    double root = std::sqrt(2 + t * t);
    double two = t > 0 ? 1 / (root * (root + t)) : 0.5 * (1 - t / root);
    EXPECT_NEAR(student_tail(t, 2), two, 1e-14) << t;
  }
  EXPECT_NEAR(student_tail(1e6, 1) / (std::atan2(1, 1e6) / std::numbers::pi), 1, 1e-12);
  EXPECT_EQ(student_tail(std::numeric_limits<double>::infinity(), 4), 0);
}

TEST(StudentTail, RefusesWhatIsNoDistribution) {
  EXPECT_THROW(student_tail(1, 0), Error);
  EXPECT_THROW(student_quantile(0, 3), Error);
  EXPECT_THROW(student_quantile(1, 3), Error);
}

TEST(Summarize, GivesMeanAndSampleDeviation) {
  Summary s = summarize(std::vector<double>{2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_EQ(s.n, 8);
  EXPECT_DOUBLE_EQ(s.mean, 5);
  EXPECT_DOUBLE_EQ(s.deviation, std::sqrt(32.0 / 7));
}

TEST(Summarize, KeepsTheDeviationOfNumbersThatAreNearlyEqual) {
  Summary s = summarize(std::vector<double>{1e9 + 1, 1e9 + 2, 1e9 + 3});
  EXPECT_DOUBLE_EQ(s.deviation, 1);
}

TEST(Summarize, HasNoDeviationForOneNumberAndNoMeanForNone) {
  Summary one = summarize(std::vector<double>{3});
  EXPECT_EQ(one.mean, 3);
  EXPECT_TRUE(std::isnan(one.deviation));
  Summary none = summarize({});
  EXPECT_EQ(none.n, 0);
  EXPECT_TRUE(std::isnan(none.mean));
}

// Student's own data (1908): additional hours of sleep by two drugs for ten patients; t = 4.062, p = 0.0028.
TEST(PairedInterval, EqualsStudentsSleepExample) {
  PairedInterval interval = paired_interval(std::vector<double>{1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4});
  EXPECT_EQ(interval.n, 10);
  EXPECT_NEAR(interval.mean, 1.58, 1e-12);
  EXPECT_NEAR(interval.low, 0.7001142, 1e-6);
  EXPECT_NEAR(interval.high, 2.4598858, 1e-6);
  EXPECT_NEAR(interval.p_value, 0.002833, 1e-6);
  EXPECT_TRUE(interval.excludes_zero());
}

TEST(PairedInterval, IncludesZeroExactlyWhenThePValueIsAboveItsLevel) {
  for (double shift : {0.0, 0.5, 0.9, 1.0, 1.2, 2.0, -1.0, -2.0}) {
    std::vector<double> values = {-0.4 + shift, 0.1 + shift, 0.3 + shift};
    PairedInterval interval = paired_interval(values);
    EXPECT_EQ(interval.excludes_zero(), interval.p_value < 0.05) << shift;
  }
}

TEST(PairedInterval, IsUndefinedForOnePair) {
  PairedInterval interval = paired_interval(std::vector<double>{-0.5});
  EXPECT_EQ(interval.mean, -0.5);
  EXPECT_TRUE(std::isnan(interval.low));
  EXPECT_TRUE(std::isnan(interval.p_value));
  EXPECT_FALSE(interval.excludes_zero());
}

TEST(PairedInterval, HasNoWidthForEqualDifferences) {
  PairedInterval interval = paired_interval(std::vector<double>{0.5, 0.5});
  EXPECT_EQ(interval.low, 0.5);
  EXPECT_EQ(interval.high, 0.5);
  EXPECT_FALSE(paired_interval(std::vector<double>{0, 0, 0}).excludes_zero());
}

// Over all signs, the oracle: how often the smaller rank sum is at most the given one.
double signed_rank_by_enumeration(const std::vector<double>& values) {
  const size_t n = values.size();
  std::vector<double> ranks(n);
  for (size_t i = 0; i < n; ++i) {
    double below = 0, equal = 0;
    for (double other : values) {
      below += std::abs(other) < std::abs(values[i]);
      equal += std::abs(other) == std::abs(values[i]);
    }
    ranks[i] = below + (equal + 1) / 2;
  }
  const auto smaller_sum = [&](auto positive) {
    double plus = 0, minus = 0;
    for (size_t i = 0; i < n; ++i) (positive(i) ? plus : minus) += ranks[i];
    return std::min(plus, minus);
  };
  const double seen = smaller_sum([&](size_t i) { return values[i] > 0; });
  double as_small = 0;
  for (size_t signs = 0; signs < size_t{1} << n; ++signs) {
    as_small += smaller_sum([&](size_t i) { return (signs >> i & 1) != 0; }) <= seen;
  }
  return as_small / static_cast<double>(size_t{1} << n);
}

TEST(SignedRank, EqualsTheEnumerationOfAllSigns) {
  for (const std::vector<double>& values : {std::vector<double>{1, 2, 3},
                                            {-1, -2, -3},
                                            {1, -2, 3, 4},
                                            {0.5, 0.5, -0.5, 2, 2, -3},
                                            {5, 4, -3, 2, 1, 1, -1, 8, 9, -10, 11},
                                            {-7}}) {
    EXPECT_NEAR(signed_rank_p_value(values), signed_rank_by_enumeration(values), 1e-12) << values.size();
  }
  EXPECT_DOUBLE_EQ(signed_rank_p_value(std::vector<double>{1, 2, 3}), 0.25);
  EXPECT_DOUBLE_EQ(signed_rank_p_value(std::vector<double>{-1, -2, -3, -4, -5, -6}), 0.03125);
}

TEST(SignedRank, LeavesOutZeros) {
  EXPECT_DOUBLE_EQ(signed_rank_p_value(std::vector<double>{1, 0, 2, 3, 0}), 0.25);
  EXPECT_TRUE(std::isnan(signed_rank_p_value(std::vector<double>{0, 0})));
}

TEST(Equivalence, IsShownExactlyWhenThe90PercentIntervalLiesWithinTheMargin) {
  for (double shift : {-1.0, -0.3, 0.0, 0.2, 0.5, 0.9}) {
    const std::vector<double> values{-0.4 + shift, 0.1 + shift, 0.3 + shift, 0.05 + shift};
    const PairedInterval interval = paired_interval(values, 0.9);
    for (double margin : {0.1, 0.4, 0.6, 1.0, 2.0}) {
      EXPECT_EQ(equivalence_p_value(values, margin) < 0.05, interval.low > -margin && interval.high < margin)
          << shift << " " << margin;
    }
  }
}

TEST(Equivalence, EqualsTheTailInClosedForm) {
  // Mean 1, deviation sqrt(2), error 1; one degree of freedom: P(T > (3 - 1) / 1).
  EXPECT_NEAR(equivalence_p_value(std::vector<double>{0, 2}, 3), std::atan2(1, 2) / std::numbers::pi, 1e-14);
  EXPECT_EQ(equivalence_p_value(std::vector<double>{1, 1}, 2), 0);
  EXPECT_EQ(equivalence_p_value(std::vector<double>{1, 1}, 0.5), 1);
  EXPECT_TRUE(std::isnan(equivalence_p_value(std::vector<double>{1}, 2)));
  EXPECT_THROW(equivalence_p_value(std::vector<double>{1, 2}, 0), Error);
}

TEST(EffectSize, IsTheMeanInDeviations) {
  EXPECT_DOUBLE_EQ(effect_size(std::vector<double>{0, 2}), 1 / std::numbers::sqrt2);
  EXPECT_TRUE(std::isnan(effect_size(std::vector<double>{1})));
  EXPECT_TRUE(std::isnan(effect_size(std::vector<double>{1, 1})));
}

TEST(PairedPower, IsTheLevelWithoutAnEffect) {
  for (int64_t n : {2, 3, 5, 30, 1000}) {
    EXPECT_NEAR(paired_power(n, 0, 0.05), 0.05, 1e-6) << n;
    EXPECT_NEAR(paired_power(n, 0, 0.01), 0.01, 1e-6) << n;
  }
}

// The usual tables for the paired t-test at 5 %, two-sided (Cohen 1988; G*Power).
TEST(PairedPower, EqualsTheTables) {
  EXPECT_NEAR(paired_power(34, 0.5), 0.8078, 5e-4);
  EXPECT_EQ(pairs_needed(0.2, 1), 199);
  EXPECT_EQ(pairs_needed(0.5, 1), 34);
  EXPECT_EQ(pairs_needed(0.8, 1), 15);
  EXPECT_EQ(pairs_needed(2, 2), 10);
  EXPECT_EQ(pairs_needed(0.5, 1, 0.9), 44);
}

TEST(PairsNeeded, HasItsBounds) {
  EXPECT_EQ(pairs_needed(1, 0), 2);
  EXPECT_EQ(pairs_needed(1e-6, 1), -1);
  EXPECT_EQ(pairs_needed(1000, 1), 2);
  EXPECT_THROW(pairs_needed(0, 1), Error);
}

}  // namespace
}  // namespace rmoe::compare
