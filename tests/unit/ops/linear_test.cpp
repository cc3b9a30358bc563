#include "rmoe/ops/reference/linear.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/kernels/cpu/linear.h"
#include "rmoe/ops/affine.h"
#include "tests/support/accuracy.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

struct Case {
  int64_t M, O, I;
  bool bias;
};

class LinearOp : public ::testing::TestWithParam<Case> {};

// Values and gradients through autograd: of x, w and b.
std::vector<Tensor> run(const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& grad) {
  std::vector<Tensor> leaves = {x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()};
  if (b.defined()) leaves.push_back(b.detach().clone().requires_grad_());
  const Tensor y = affine(leaves[0], leaves[1], b.defined() ? leaves[2] : Tensor());
  y.backward(grad);
  std::vector<Tensor> results = {y.detach()};
  for (const Tensor& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

std::vector<Tensor> formula(const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& grad) {
  const auto bias = b.defined() ? std::optional<Tensor>(b) : std::nullopt;
  auto [dx, dw, db] = reference::linear_backward(grad, x, w, bias, {true, true, b.defined()});
  std::vector<Tensor> results = {reference::linear(x, w, bias), dx, dw};
  if (b.defined()) results.push_back(db);
  return results;
}

TEST_P(LinearOp, IsAsAccurateAsThePlainFormula) {
  const Case c = GetParam();
  at::manual_seed(1);
  const Tensor w = at::randn({c.O, c.I}), b = c.bias ? at::randn({c.O}) : Tensor();
  const Tensor wide_b = c.bias ? b.to(at::kDouble) : Tensor();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensor x = at::randn({c.M, c.I}).to(dtype), grad = at::randn({c.M, c.O}).to(dtype);
    const auto exact = formula(x.to(at::kDouble), w.to(at::kDouble), wide_b, grad.to(at::kDouble));
    const auto plain = formula(x, w, b, grad);
    testing::for_each_isa([&] {
      const auto ours = run(x, w, b, grad);
      ASSERT_EQ(ours.size(), exact.size());
      const char* names[] = {"y", "dx", "dw", "db"};
      for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
      EXPECT_EQ(ours[2].scalar_type(), at::kFloat);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, LinearOp,
                         ::testing::Values(Case{1, 1, 1, true}, Case{0, 5, 3, true}, Case{1, 67, 33, false},
                                           Case{3, 31, 352, true}, Case{4, 130, 44, false}, Case{5, 16, 17, true},
                                           Case{37, 45, 51, false}, Case{129, 33, 31, true}, Case{600, 96, 64, true},
                                           Case{1100, 40, 352, false}));

// Of our own kernels: fp32 may go to the tensor library.
TEST(LinearOp, AnyNumberOfThreadsGivesTheSameBits) {
  at::manual_seed(2);
  const Tensor w = at::randn({200, 70}), b = at::randn({200});
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensor x = at::randn({1300, 70}).to(dtype), grad = at::randn({1300, 200}).to(dtype);
    testing::for_each_kernel_isa([&] {
      if (dtype == at::kFloat && kernels::library_multiplies_fp32()) return;
      const auto one = testing::with_threads(1, [&] { return run(x, w, b, grad); });
      const auto three = testing::with_threads(3, [&] { return run(x, w, b, grad); });
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
    });
  }
}

TEST(LinearOp, WhatIsNotFiniteStaysInItsRow) {
  at::manual_seed(4);
  const Tensor w = at::randn({45, 70}), b = at::randn({45});
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Tensor x = at::randn({9, 70}).to(dtype);
    x[1][3] = std::numeric_limits<float>::infinity();
    x[4][69] = std::numeric_limits<float>::quiet_NaN();
    testing::for_each_isa([&] {
      const Tensor finite = affine(x, w, b).isfinite();
      for (int64_t t = 0; t < 9; ++t) {
        EXPECT_TRUE((t == 1 || t == 4 ? finite[t].logical_not() : finite[t]).all().item<bool>()) << t;
      }
    });
  }
}

// More columns than are packed at once.
TEST(LinearOp, AnOutputLayerIsPackedInParts) {
  at::manual_seed(5);
  const Tensor w = at::randn({9000, 1200}), grad = at::randn({6, 9000}), x = at::randn({6, 1200});
  const auto exact = at::linear(x.to(at::kDouble), w.to(at::kDouble)),
             d_exact = grad.to(at::kDouble).mm(w.to(at::kDouble));
  testing::for_each_isa([&] {
    const auto ours = run(x, w, Tensor(), grad);
    testing::expect_as_accurate("y", ours[0], at::linear(x, w), exact);
    testing::expect_as_accurate("dx", ours[1], grad.mm(w), d_exact);
  });
}

TEST(LinearOp, ReadsNarrowWeightsAndViews) {
  at::manual_seed(3);
  const Tensor all = at::randn({40, 64}), w = all.narrow(1, 3, 33), x = at::randn({9, 2, 33}).transpose(0, 1);
  EXPECT_TRUE(at::allclose(affine(x, w), at::linear(x, w), 1e-5, 1e-5));
  const Tensor narrow = w.to(at::kBFloat16), x16 = x.to(at::kBFloat16);
  const Tensor exact = at::linear(x16.to(at::kDouble), narrow.to(at::kDouble));
  testing::expect_as_accurate("y", affine(x16, narrow), at::linear(x16, narrow), exact);
}

TEST(LinearOp, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(affine(at::zeros({2, 3}), at::zeros({4, 5})), Error);
  EXPECT_THROW(affine(at::zeros({2, 5}), at::zeros({4, 5}), at::zeros({3})), Error);
}

}  // namespace
}  // namespace rmoe
