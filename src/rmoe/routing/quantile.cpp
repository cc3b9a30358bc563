#include "rmoe/routing/quantile.h"

namespace rmoe::routing {

Tensor score_histogram(const Routing& routing) {
  at::NoGradGuard no_grad;
  const Tensor bins_TN =
      (routing.scores_TN * static_cast<double>(kQuantileBins)).to(at::kLong).clamp(0, kQuantileBins - 1);
  const Tensor counts_TN = routing.valid_T.defined() ? routing.valid_T.to(at::kLong).unsqueeze(1).expand_as(bins_TN)
                                                     : at::ones_like(bins_TN);
  return at::zeros({routing.experts(), kQuantileBins}, bins_TN.options()).scatter_add_(1, bins_TN.t(), counts_TN.t());
}

Tensor histogram_quantile(const Tensor& histogram_NB, double level) {
  const Tensor below_NB = histogram_NB.cumsum(1).to(at::kDouble);  // scores in this bin and those before it
  const Tensor target_N1 = below_NB.narrow(1, histogram_NB.size(1) - 1, 1) * level;
  const Tensor bin_N1 = at::searchsorted(below_NB, target_N1);
  const Tensor inside_N1 = histogram_NB.gather(1, bin_N1).to(at::kDouble);
  const Tensor before_N1 = below_NB.gather(1, bin_N1) - inside_N1;
  const Tensor part_N1 = (target_N1 - before_N1) / inside_N1.clamp_min(1);
  return ((bin_N1 + part_N1) / static_cast<double>(histogram_NB.size(1))).squeeze(1).to(at::kFloat);
}

void RunningQuantile::update(const Tensor& histogram_NB) {
  at::NoGradGuard no_grad;
  const Tensor now_N = histogram_quantile(histogram_NB, level_);
  const Tensor mean_N = values_N_ * decay_ + now_N * (1 - decay_);
  values_N_.copy_(at::where(now_N == 0, values_N_, at::where(values_N_ == 0, now_N, mean_N)));
}

}  // namespace rmoe::routing
