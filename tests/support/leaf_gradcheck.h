// Gradients of the parameters of a made object against central differences, in fp64.
#pragma once

#include "tests/support/gradcheck.h"

namespace rmoe::testing {

// f() depends on the leaves, which require gradients and are changed in place and put back. Its output is weighted by
// fixed random numbers. A leaf without a gradient counts as one of zeros.
inline void expect_leaf_gradients(const std::function<Tensor()>& f, const std::vector<Tensor>& leaves,
                                  double tolerance = 1e-7) {
  for (const Tensor& leaf : leaves) leaf.mutable_grad() = Tensor();
  const Tensor out = f(), weights = randn(out.sizes(), 99);
  (out * weights).sum().backward();
  const auto value = [&] { return (f() * weights).sum().item<double>(); };
  for (size_t i = 0; i < leaves.size(); ++i) {
    const Tensor& leaf = leaves[i];
    expect_central_differences(value, leaf, leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf),
                               "leaf " + std::to_string(i), tolerance, tolerance);
  }
}

}  // namespace rmoe::testing
