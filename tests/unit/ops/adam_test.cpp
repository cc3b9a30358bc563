#include "rmoe/ops/adam.h"

#include <cmath>
#include <limits>

#include <ATen/Parallel.h>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/accuracy.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

// Nothing, single elements, vector widths and their neighbours, primes, and more than one piece of the kernel.
std::vector<AdamParam> some_params(at::ScalarType dtype = at::kFloat) {
  std::vector<AdamParam> params;
  const at::Generator generator = at::detail::createCPUGenerator(3);
  const auto normal = [&](int64_t n) { return at::randn({n}, generator, at::kFloat).to(dtype); };
  for (const int64_t n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 44, 101, 352, 65521, 65536, 70001, 200003, 3}) {
    params.push_back({normal(n), normal(n), normal(n) * 0.1, normal(n).square() * 0.1, n % 3 != 0});
  }
  return params;
}

std::vector<AdamParam> copy_of(const std::vector<AdamParam>& params, at::ScalarType dtype) {
  std::vector<AdamParam> copies;
  const auto copy = [&](const Tensor& t) { return t.to(dtype, /*non_blocking=*/false, /*copy=*/true); };
  for (const AdamParam& p : params) {
    copies.push_back({copy(p.value), copy(p.grad), copy(p.exp_avg), copy(p.exp_avg_sq), p.decays});
  }
  return copies;
}

std::vector<Tensor> grads_of(const std::vector<AdamParam>& params) {
  std::vector<Tensor> grads;
  for (const AdamParam& p : params) grads.push_back(p.grad);
  return grads;
}

// torch.optim.Adam's and AdamW's formula, in the tensors' dtype.
void reference_step(std::vector<AdamParam>& params, const AdamOptions& o, int64_t step) {
  for (AdamParam& p : params) {
    const double decay = p.decays ? o.weight_decay : 0;
    Tensor g = p.grad * o.grad_scale;
    if (!o.decoupled) g = g + decay * p.value;
    const Tensor kept = o.decoupled ? p.value * (1 - o.lr * decay) : p.value;
    p.exp_avg = o.beta1 * p.exp_avg + (1 - o.beta1) * g;
    p.exp_avg_sq = o.beta2 * p.exp_avg_sq + (1 - o.beta2) * g * g;
    const Tensor m = p.exp_avg / (1 - std::pow(o.beta1, step)), v = p.exp_avg_sq / (1 - std::pow(o.beta2, step));
    p.value = kept - o.lr * m / (v.sqrt() + o.eps);
  }
}

TEST(Adam, IsAsAccurateAsTheFormula) {
  for (const bool decoupled : {true, false}) {
    const AdamOptions options{.decoupled = decoupled, .lr = 0.01, .weight_decay = 0.1, .grad_scale = 0.3};
    for (const int64_t step : {1, 2, 1000}) {
      auto plain = some_params(), exact = copy_of(plain, at::kDouble);
      reference_step(plain, options, step);
      reference_step(exact, options, step);
      testing::for_each_isa([&] {
        const auto ours = some_params();
        adam_step(ours, options, step);
        for (size_t i = 0; i < ours.size(); ++i) {
          testing::expect_as_accurate("value", ours[i].value, plain[i].value, exact[i].value);
          testing::expect_as_accurate("exp_avg", ours[i].exp_avg, plain[i].exp_avg, exact[i].exp_avg);
          testing::expect_as_accurate("exp_avg_sq", ours[i].exp_avg_sq, plain[i].exp_avg_sq, exact[i].exp_avg_sq);
        }
      });
    }
  }
}

TEST(Adam, NormIsThatOfAllGradientsTogether) {
  const auto grads = grads_of(some_params());
  double squares = 0;
  for (const Tensor& grad : grads) squares += grad.to(at::kDouble).square().sum().item<double>();
  testing::for_each_isa(
      [&] { EXPECT_NEAR(gradient_norm(grads).item<double>(), std::sqrt(squares), 1e-6 * std::sqrt(squares)); });
  EXPECT_EQ(gradient_norm({}).item<double>(), 0);
}

TEST(Adam, NormSeesWhatIsNotFinite) {
  for (const float value : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    auto grads = grads_of(some_params());
    grads[14][70000] = value;
    testing::for_each_isa([&] { EXPECT_FALSE(std::isfinite(gradient_norm(grads).item<double>())); });
  }
}

TEST(Adam, OneAndTwoThreadsGiveTheSameBits) {
  const int threads = at::get_num_threads();
  testing::for_each_isa([&] {
    if (kernels::cpu_isa() == kernels::Isa::kPlain) return;  // torch's own
    const auto one = some_params(), two = some_params();
    at::set_num_threads(1);
    const double norm_of_one = gradient_norm(grads_of(one)).item<double>();
    adam_step(one, {.weight_decay = 0.1}, 3);
    at::set_num_threads(2);
    EXPECT_EQ(gradient_norm(grads_of(two)).item<double>(), norm_of_one);
    adam_step(two, {.weight_decay = 0.1}, 3);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].value.equal(two[i].value)) << i;
  });
  at::set_num_threads(threads);
}

TEST(Adam, TakesDoublesAndGradientsOfAnyLayout) {
  auto exact = some_params(at::kDouble);
  const auto doubles = copy_of(exact, at::kDouble);
  const AdamOptions options{.weight_decay = 0.1, .grad_scale = 0.5};
  adam_step(doubles, options, 2);
  reference_step(exact, options, 2);
  for (size_t i = 0; i < doubles.size(); ++i) EXPECT_TRUE(at::allclose(doubles[i].value, exact[i].value, 1e-12, 1e-12));

  const Tensor value = at::randn({5, 7}), grad = at::randn({7, 5}).t(), zero = at::zeros({5, 7});
  const std::vector<AdamParam> turned{{value.clone(), grad, zero.clone(), zero.clone(), true}};
  const std::vector<AdamParam> straight{{value.clone(), grad.contiguous(), zero.clone(), zero.clone(), true}};
  adam_step(turned, options, 1);
  adam_step(straight, options, 1);
  EXPECT_TRUE(at::allclose(turned[0].value, straight[0].value, 1e-6, 1e-7));
  EXPECT_NEAR(gradient_norm({grad}).item<double>(), grad.norm().item<double>(), 1e-5);
}

TEST(Adam, RefusesWhatDoesNotFitTogether) {
  const Tensor four = at::ones({4}), five = at::ones({5});
  EXPECT_THROW(adam_step({{four, five, four, four, true}}, {}, 1), Error);
  EXPECT_THROW(adam_step({{four, four.to(at::kDouble), four, four, true}}, {}, 1), Error);
  EXPECT_THROW(adam_step({{four, four, four, four, true}}, {}, 0), Error);
}

}  // namespace
}  // namespace rmoe
