// Quantiles of scores, per expert, from integer histograms: these add up exactly over micro-batches and processes,
// where the quantiles themselves would not.
//
// Bins are logarithmic, so that a quantile is as exact among hundreds of experts, whose softmax scores are small, as
// among few: each power of two from 2^-24 to 2^8 is cut into 128 equal parts, at most 0.8 % wide. The first bin takes
// what is smaller, zeros among it, and the last what is larger.
#pragma once

#include <string_view>

#include "rmoe/ops/param.h"
#include "rmoe/routing/routing.h"

namespace rmoe::routing {

inline constexpr int64_t kQuantileBins = 1 + 32 * 128;

// Lower edges of the bins and, last, the upper edge of the last one; fp32 [bins + 1].
Tensor quantile_edges();

// int64 [N, bins]: in which bins the scores of the tokens that count lie. Scores are not negative.
Tensor score_histogram(const Routing& routing);

// The value that a share `level` of each row's scores lies below, interpolated inside its bin; fp32 [N]. 0 for a row
// without scores, and for level 0; positive for all others.
Tensor histogram_quantile(const Tensor& histogram_NB, double level);

// A running mean over training of each expert's quantile, in a buffer.
class RunningQuantile {
 public:
  // decay: how much of the old estimate each update keeps.
  RunningQuantile(const ParamScope& scope, std::string_view name, int64_t experts, double level, double decay)
      : level_(level), decay_(decay), values_N_(scope.add_buffer(name, {experts}, at::kFloat)) {}

  // fp32 [N]; 0: no estimate yet.
  const Tensor& values_N() const { return values_N_; }
  // Experts without scores keep their estimate; the first estimate is the quantile itself.
  void update(const Tensor& histogram_NB);

 private:
  double level_, decay_;
  Tensor values_N_;
};

}  // namespace rmoe::routing
