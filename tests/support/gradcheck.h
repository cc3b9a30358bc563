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

// `grad`, said to be the gradient in `leaf` of value(), against central differences element by element. The error may
// be max(absolute, relative * |difference|). The leaf is changed in place and put back.
inline void expect_central_differences(const std::function<double()>& value, const Tensor& leaf, const Tensor& grad,
                                       const std::string& what, double absolute, double relative) {
  constexpr double kStep = 1e-6;
  const at::NoGradGuard no_grad;
  const Tensor got = grad.contiguous();
  auto* x = leaf.data_ptr<double>();
  for (int64_t e = 0; e < leaf.numel(); ++e) {
    const double kept = x[e];
    x[e] = kept + kStep;
    const double up = value();
    x[e] = kept - kStep;
    const double down = value();
    x[e] = kept;
    const double difference = (up - down) / (2 * kStep);
    EXPECT_NEAR(got.const_data_ptr<double>()[e], difference, std::max(absolute, relative * std::abs(difference)))
        << what << " " << leaf.sizes() << ", element " << e;
  }
}

// f maps the inputs to one tensor; every input is differentiated. The output is weighted by fixed random numbers, so
// that errors in single elements cannot cancel.
inline void expect_gradients(const std::function<Tensor(const std::vector<Tensor>&)>& f, std::vector<Tensor> inputs,
                             double tolerance = 1e-7) {
  for (Tensor& input : inputs) input = input.detach().clone().requires_grad_(true);
  const Tensor out = f(inputs), weights = randn(out.sizes(), 99);
  (out * weights).sum().backward();
  const auto value = [&] { return (f(inputs) * weights).sum().item<double>(); };
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_TRUE(inputs[i].grad().defined()) << "input " << i << " has no gradient";
    expect_central_differences(value, inputs[i], inputs[i].grad(), "input " + std::to_string(i), 10 * tolerance,
                               10 * tolerance);
  }
}

}  // namespace rmoe::testing
