// The statistics of a comparison: mean and sample deviation over seeds, Student's t distribution, and the interval of
// a mean difference between runs that are paired by seed.
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

}  // namespace rmoe::compare
