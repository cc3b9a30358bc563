// The formulas of ops/norm.h in ATen. `branch` may be absent; with `bias` it is LayerNorm, without RMSNorm.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// The sum (empty without a branch), the normed sum or x, and per row the mean (empty for RMSNorm) and 1 / deviation, in
// fp32 at least.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm(const Tensor& x, const std::optional<Tensor>& branch,
                                                const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                                                double dropout_p, int64_t dropout_key);
// Gradients of x, the branch (empty where it is that of x), weight and bias (empty for RMSNorm). grad_sum: that of the
// sum as a result of its own.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum,
                                                         const Tensor& sum, const Tensor& weight,
                                                         const std::optional<Tensor>& bias, const Tensor& mean,
                                                         const Tensor& rstd, double dropout_p, int64_t dropout_key);

}  // namespace rmoe::reference
