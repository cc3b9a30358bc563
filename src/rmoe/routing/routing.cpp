#include "rmoe/routing/routing.h"

namespace rmoe::routing {

Tensor sum_over_tokens(const Tensor& x_T, const Tensor& valid_T) {
  if (!valid_T.defined()) return x_T.sum(0);
  std::vector<int64_t> shape(static_cast<size_t>(x_T.dim()), 1);
  shape[0] = -1;
  // Selected, not multiplied: padding may hold anything, infinities included.
  return x_T.masked_fill(valid_T.logical_not().view(shape), 0).sum(0);
}

Tensor token_count(const Tensor& x_T, const Tensor& valid_T) {
  if (valid_T.defined()) return valid_T.sum().clamp_min(1).to(x_T.scalar_type());
  return at::full({}, static_cast<double>(std::max<int64_t>(x_T.size(0), 1)), x_T.options());
}

Tensor mean_over_tokens(const Tensor& x_T, const Tensor& valid_T) {
  return sum_over_tokens(x_T, valid_T) / token_count(x_T, valid_T);
}

}  // namespace rmoe::routing
