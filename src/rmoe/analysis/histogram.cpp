#include "rmoe/analysis/histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rmoe/base/error.h"

namespace rmoe::analysis {

Histogram::Histogram(double low, double high, int64_t bins)
    : low_(low), high_(high), bins_(static_cast<size_t>(bins), 0) {}

void Histogram::add(double x) {
  const auto last = static_cast<double>(bins_.size() - 1);
  const double at = (x - low_) / (high_ - low_) * static_cast<double>(bins_.size());
  ++bins_[static_cast<size_t>(std::clamp(at, 0.0, last))];
  sum_ += x;
  ++count_;
}

double Histogram::mean() const {
  return count_ > 0 ? sum_ / static_cast<double>(count_) : std::numeric_limits<double>::quiet_NaN();
}

double Histogram::quantile(double p) const {
  if (count_ == 0) return std::numeric_limits<double>::quiet_NaN();
  const double wanted = p * static_cast<double>(count_), width = (high_ - low_) / static_cast<double>(bins_.size());
  double before = 0;
  for (size_t i = 0; i < bins_.size(); ++i) {
    const auto here = static_cast<double>(bins_[i]);
    if (here > 0 && before + here >= wanted) {
      return low_ + width * (static_cast<double>(i) + std::clamp((wanted - before) / here, 0.0, 1.0));
    }
    before += here;
  }
  return high_;
}

std::vector<double> Histogram::shares(int64_t groups) const {
  const size_t each = bins_.size() / static_cast<size_t>(groups);
  RMOE_ASSERT(each * static_cast<size_t>(groups) == bins_.size());
  std::vector<double> shares(static_cast<size_t>(groups), 0);
  if (count_ == 0) return shares;
  for (size_t i = 0; i < bins_.size(); ++i)
    shares[i / each] += static_cast<double>(bins_[i]) / static_cast<double>(count_);
  return shares;
}

void Histogram::merge(const Histogram& other) {
  RMOE_ASSERT(bins_.size() == other.bins_.size());
  for (size_t i = 0; i < bins_.size(); ++i) bins_[i] += other.bins_[i];
  sum_ += other.sum_;
  count_ += other.count_;
}

double entropy_of_counts(const std::vector<int64_t>& counts) {
  double total = 0, sum = 0;
  for (const int64_t n : counts) {
    const auto c = static_cast<double>(n);
    total += c;
    if (c > 0) sum += c * std::log(c);
  }
  return total > 0 ? std::max(std::log(total) - sum / total, 0.0) : 0;
}

}  // namespace rmoe::analysis
