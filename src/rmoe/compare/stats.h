// The statistics of a comparison: mean and sample deviation over seeds, Student's t distribution, and what can be said
// of differences between runs that are paired by seed: interval, tests, size, and the seeds that a better answer takes.
#pragma once

#include <cstdint>
#include <span>

namespace rmoe::compare {

// Mean and sample deviation (divisor n - 1) of n finite numbers. n = 0: both NaN; n = 1: deviation NaN.
struct Summary {
  int64_t n = 0;
  double mean = 0;
  double deviation = 0;
};
Summary summarize(std::span<const double> values);

// P(T > t) for Student's t with `df` > 0 degrees of freedom, any t. Computed as a tail, so small values keep their
// relative accuracy.
double student_tail(double t, double df);

// The t with P(T <= t) = p, for 0 < p < 1 and df > 0.
double student_quantile(double p, double df);

// Mean of paired differences with its two-sided t interval. n < 2: low, high, deviation and p_value are NaN. Equal
// differences (deviation 0) give an interval of width 0.
struct PairedInterval {
  int64_t n = 0;
  double mean = 0;
  double deviation = 0;  // of the differences
  double low = 0;
  double high = 0;
  double p_value = 0;  // two-sided, of the hypothesis that the true mean difference is 0

  // Whether the interval excludes 0; false with fewer than two pairs.
  bool excludes_zero() const;
};
PairedInterval paired_interval(std::span<const double> differences, double confidence = 0.95);

// Wilcoxon's signed-rank test: the two-sided p-value of the hypothesis that differences are symmetric around 0, exact
// (over all 2^n signs, ties with their mean rank). Differences of 0 are left out, as Wilcoxon does; NaN where none is
// left. The smallest value that n differences can give is 2^(1 - n): 0.25 for 3, 0.0625 for 5.
double signed_rank_p_value(std::span<const double> differences);

// Two one-sided t-tests (TOST, Schuirmann 1987): the p-value of the hypothesis that the true mean difference is at
// least `margin` > 0 away from 0. Below 0.05, the 90 % interval lies within (-margin, margin). n < 2: NaN.
double equivalence_p_value(std::span<const double> differences, double margin);

// The mean over the deviation of the differences (Cohen's d for pairs). NaN for n < 2 and for a deviation of 0.
double effect_size(std::span<const double> differences);

// The probability that the two-sided paired t-test on n >= 2 pairs finds, at `level`, a true mean difference of
// `effect` deviations: by the noncentral t distribution.
double paired_power(int64_t n, double effect, double level = 0.05);

// The smallest number of pairs for which paired_power is at least `power`; 2 where the deviation is 0, and -1 where
// more than a million are needed. `difference` and `deviation` in the same unit, difference > 0.
int64_t pairs_needed(double difference, double deviation, double power = 0.8, double level = 0.05);

}  // namespace rmoe::compare
