// The formulas of linear in ATen: every device and dtype, and the oracle of the tests. Shapes as in ops/affine.h.
#pragma once

#include <array>

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);

// -> gradients of x, w and b; those not needed are undefined.
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                                   const std::optional<Tensor>& b, std::array<bool, 3> needed);

}  // namespace rmoe::reference
