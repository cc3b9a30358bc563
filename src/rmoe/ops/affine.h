// x W^T + b with the weights read in x's dtype: parameters stay in fp32 (the master copy) whatever the model computes
// in.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// x [..., I], w [O, I], b [O] or undefined -> [..., O] in x's dtype. Differentiable in all; gradients have w's dtype.
inline Tensor affine(const Tensor& x, const Tensor& w, const Tensor& b = {}) {
  const auto dtype = x.scalar_type();
  return at::linear(x, w.to(dtype), b.defined() ? std::optional<Tensor>(b.to(dtype)) : std::nullopt);
}

// The dtype in which routers compute: fp32, or fp64 for an fp64 model.
inline Tensor router_precision(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

}  // namespace rmoe
