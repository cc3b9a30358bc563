#include "rmoe/routing/quantile.h"

namespace rmoe::routing {
namespace {

// The bit patterns of positive floats are ordered as the floats are: with all but 7 bits of the mantissa shifted out
// they count the bins, on every machine alike.
constexpr int kShift = 23 - 7;
constexpr int kFirst = (127 - 24) << 7;  // 2^-24, where the second bin begins

}  // namespace

Tensor quantile_edges() {
  const Tensor edges =
      (at::arange(kQuantileBins + 1, at::kInt) + (kFirst - 1)).bitwise_left_shift(kShift).view(at::kFloat);
  edges[0].zero_();
  return edges;
}

Tensor score_histogram(const Routing& routing) {
  at::NoGradGuard no_grad;
  const Tensor bits_TN = routing.scores_TN.to(at::kFloat).contiguous().view(at::kInt);
  const Tensor bins_TN = (bits_TN.bitwise_right_shift(kShift) - (kFirst - 1)).clamp(0, kQuantileBins - 1).to(at::kLong);
  const Tensor counts_TN = routing.valid_T.defined() ? routing.valid_T.to(at::kLong).unsqueeze(1).expand_as(bins_TN)
                                                     : at::ones_like(bins_TN);
  return at::zeros({routing.experts(), kQuantileBins}, bins_TN.options()).scatter_add_(1, bins_TN.t(), counts_TN.t());
}

Tensor histogram_quantile(const Tensor& histogram_NB, double level) {
  const Tensor below_NB = histogram_NB.cumsum(1).to(at::kDouble);  // scores in this bin and those before it
  const Tensor target_N1 = below_NB.narrow(1, kQuantileBins - 1, 1) * level;
  const Tensor bin_N1 = at::searchsorted(below_NB, target_N1);
  const Tensor inside_N1 = histogram_NB.gather(1, bin_N1).to(at::kDouble);
  const Tensor before_N1 = below_NB.gather(1, bin_N1) - inside_N1;
  const Tensor part_N1 = (target_N1 - before_N1) / inside_N1.clamp_min(1);
  const Tensor edges = quantile_edges().to(below_NB.options());
  const Tensor low_N1 = edges.take(bin_N1), high_N1 = edges.take(bin_N1 + 1);
  return (low_N1 + part_N1 * (high_N1 - low_N1)).squeeze(1).to(at::kFloat);
}

void RunningQuantile::update(const Tensor& histogram_NB) {
  at::NoGradGuard no_grad;
  const Tensor now_N = histogram_quantile(histogram_NB, level_);
  const Tensor mean_N = values_N_ * decay_ + now_N * (1 - decay_);
  values_N_.copy_(at::where(now_N == 0, values_N_, at::where(values_N_ == 0, now_N, mean_N)));
}

}  // namespace rmoe::routing
