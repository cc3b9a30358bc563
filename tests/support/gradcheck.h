// Gradients against central differences, in fp64.
#pragma once

#include <functional>

#include <gtest/gtest.h>

#include "rmoe/ops/torch.h"

namespace rmoe::testing {

inline Tensor randn(at::IntArrayRef shape, uint64_t seed, at::ScalarType dtype = at::kDouble) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kDouble)).to(dtype);
}

// f maps the inputs to one tensor; every input is differentiated. The output is weighted by fixed random numbers, so
// that errors in single elements cannot cancel.
inline void expect_gradients(const std::function<Tensor(const std::vector<Tensor>&)>& f, std::vector<Tensor> inputs,
                             double tolerance = 1e-7) {
  for (Tensor& input : inputs) input = input.detach().clone().requires_grad_(true);
  const Tensor out = f(inputs);
  const Tensor weights = randn(out.sizes(), 99);
  (out * weights).sum().backward();
  const auto value = [&] {
    at::NoGradGuard no_grad;
    return (f(inputs) * weights).sum().item<double>();
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_TRUE(inputs[i].grad().defined()) << "input " << i << " has no gradient";
    const Tensor grad = inputs[i].grad().contiguous();
    auto* data = inputs[i].data_ptr<double>();
    for (int64_t e = 0; e < inputs[i].numel(); ++e) {
      constexpr double kStep = 1e-6;
      const double kept = data[e];
      data[e] = kept + kStep;
      const double up = value();
      data[e] = kept - kStep;
      const double down = value();
      data[e] = kept;
      const double expected = (up - down) / (2 * kStep);
      EXPECT_NEAR(grad.const_data_ptr<double>()[e], expected, tolerance * std::max(1.0, std::abs(expected)) * 10)
          << "input " << i << ", element " << e;
    }
  }
}

// The error of `got` against an fp64 oracle may be at most twice that of the plain formula in the same dtype (with a
// floor of a few roundings, since the plain formula may be exact by luck).
inline void expect_as_accurate(const Tensor& got, const Tensor& plain, const Tensor& oracle, const std::string& what) {
  ASSERT_EQ(got.sizes(), oracle.sizes()) << what;
  if (got.numel() == 0) return;
  const double scale = std::max(oracle.abs().max().item<double>(), 1e-6);
  const double epsilon = got.scalar_type() == at::kBFloat16 ? 0x1p-8
                         : got.scalar_type() == at::kFloat  ? 0x1p-23
                                                            : 0x1p-52;
  const double error = (got.to(at::kDouble) - oracle).abs().max().item<double>();
  const double allowed = (plain.to(at::kDouble) - oracle).abs().max().item<double>();
  EXPECT_LE(error, 2 * allowed + 4 * epsilon * scale) << what;
}

}  // namespace rmoe::testing
