#include "rmoe/compare/stats.h"

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

}  // namespace
}  // namespace rmoe::compare
