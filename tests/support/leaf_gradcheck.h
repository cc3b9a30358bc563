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
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const Tensor& leaf = leaves[i];
    const Tensor grad = leaf.grad().defined() ? leaf.grad().contiguous() : at::zeros_like(leaf);
    auto* data = leaf.data_ptr<double>();
    for (int64_t e = 0; e < leaf.numel(); ++e) {
      constexpr double kStep = 1e-6;
      const double kept = data[e];
      data[e] = kept + kStep;
      const double up = (f() * weights).sum().item<double>();
      data[e] = kept - kStep;
      const double down = (f() * weights).sum().item<double>();
      data[e] = kept;
      const double expected = (up - down) / (2 * kStep);
      EXPECT_NEAR(grad.const_data_ptr<double>()[e], expected, tolerance * std::max(1.0, std::abs(expected)))
          << "leaf " << i << " " << leaf.sizes() << ", element " << e;
    }
  }
}

}  // namespace rmoe::testing
