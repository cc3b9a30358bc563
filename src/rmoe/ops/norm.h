// RMSNorm and LayerNorm, alone and behind a residual addition.
#pragma once

#include "rmoe/ops/dropout.h"

namespace rmoe {

// x [..., D] in fp32, bf16 or fp64; weight_D, bias_D in any of these, usually fp32 master copies. The results have x's
// dtype and are computed in fp32 at least. Differentiable in all; gradients have the dtype of what they belong to, and
// those of fp32 weights are summed in fp32 whatever x is. Backward needs what was normed and a number or two per row.

// x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019).
Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps);
// (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, the variance that of all D elements (Ba et al. 2016).
Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps);

struct SumAndNorm {
  Tensor sum;     // x + dropout(branch)
  Tensor normed;  // of the sum as it is rounded to its dtype
};
// branch like x, dropped as by dropout(branch, dropout_p, key); dropout_p 0: not at all.
SumAndNorm add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight_D, double eps, double dropout_p = 0,
                        DropoutKey key = {});
SumAndNorm add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight_D, const Tensor& bias_D,
                          double eps, double dropout_p = 0, DropoutKey key = {});

}  // namespace rmoe
