// x W^T + b with the weights read in x's dtype: parameters stay in fp32 (the master copy) whatever the model computes
// in.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// x [..., I], w [O, I], b [O] or undefined -> [..., O] in x's dtype. Differentiable in all; gradients have the dtype of
// what they belong to, and those of fp32 weights are summed in fp32 whatever x is.
Tensor affine(const Tensor& x, const Tensor& w, const Tensor& b = {});

// What must not be computed in bf16 (routers, norms, sums) is in fp32, and in fp64 for an fp64 model.
inline at::ScalarType at_least_fp32(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }
inline Tensor at_least_fp32(const Tensor& x) { return x.to(at_least_fp32(x.scalar_type())); }

}  // namespace rmoe
