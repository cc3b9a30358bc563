#include "rmoe/ops/reference/linear.h"

namespace rmoe::reference {

Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  const auto dtype = x.scalar_type();
  return at::linear(x, w.to(dtype), b ? std::optional<Tensor>(b->to(dtype)) : std::nullopt).contiguous();
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                                   const std::optional<Tensor>& b, std::array<bool, 3> needed) {
  const Tensor grad_MO = grad.to(x.scalar_type()).reshape({-1, w.size(0)}), x_MI = x.reshape({-1, w.size(1)});
  Tensor dx, dw, db;
  if (needed[0]) dx = at::mm(grad_MO, w.to(x.scalar_type())).view(x.sizes());
  if (needed[1]) dw = at::mm(grad_MO.t(), x_MI).to(w.scalar_type());
  if (needed[2]) db = grad_MO.sum(0).to(b->scalar_type());
  return {dx, dw, db};
}

}  // namespace rmoe::reference
