#include "rmoe/routing/routing.h"

namespace rmoe::routing {

Tensor sum_over_tokens(const Tensor& x_T, const Routing& routing) {
  if (!routing.valid_T.defined()) return x_T.sum(0);
  std::vector<int64_t> shape(static_cast<size_t>(x_T.dim()), 1);
  shape[0] = -1;
  // Selected, not multiplied: padding may hold anything, infinities included.
  return x_T.masked_fill(routing.valid_T.logical_not().view(shape), 0).sum(0);
}

Tensor token_count(const Routing& routing, at::ScalarType dtype) {
  if (!routing.valid_T.defined()) {
    const auto options = routing.ids_TK.options().dtype(dtype);
    return at::full({}, static_cast<double>(std::max<int64_t>(routing.tokens(), 1)), options);
  }
  return routing.valid_T.sum().clamp_min(1).to(dtype);
}

Tensor mean_over_tokens(const Tensor& x_T, const Routing& routing) {
  return sum_over_tokens(x_T, routing) / token_count(routing, x_T.scalar_type());
}

}  // namespace rmoe::routing
