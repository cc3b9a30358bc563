// Distributions of numbers that arrive one by one, in memory that does not grow.
#pragma once

#include <cstdint>
#include <vector>

namespace rmoe::analysis {

// Counts in bins of equal width between `low` and `high`; what lies outside counts in the outermost bins. The mean is
// exact, quantiles are within half a bin.
class Histogram {
 public:
  Histogram(double low, double high, int64_t bins);
  void add(double x);
  int64_t count() const { return count_; }
  double mean() const;              // NaN when empty
  double quantile(double p) const;  // linear within the bin; NaN when empty
  // Share of the numbers in each of `groups` equal parts of the range (`groups` divides the bins), summing to 1.
  std::vector<double> shares(int64_t groups) const;
  double low() const { return low_; }
  double high() const { return high_; }
  void merge(const Histogram& other);  // of the same range and bins

 private:
  double low_, high_, sum_ = 0;
  int64_t count_ = 0;
  std::vector<int64_t> bins_;
};

// -sum p ln p of counts, in nats; 0 for none.
double entropy_of_counts(const std::vector<int64_t>& counts);

}  // namespace rmoe::analysis
