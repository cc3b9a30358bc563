#include "rmoe/ops/reference/linear.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
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

// Of our own kernels: with all that this CPU has, fp32 may go to the tensor library.
TEST(LinearOp, AnyNumberOfThreadsGivesTheSameBits) {
  const kernels::Isa most = kernels::cpu_isa();
  at::manual_seed(2);
  const Tensor w = at::randn({200, 70}), b = at::randn({200});
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensor x = at::randn({1300, 70}).to(dtype), grad = at::randn({1300, 200}).to(dtype);
    const int threads = at::get_num_threads();
    if (dtype == at::kFloat) kernels::set_cpu_isa(std::min(most, kernels::Isa::kAvx2));
    at::set_num_threads(1);
    const auto one = run(x, w, b, grad);
    at::set_num_threads(3);
    const auto three = run(x, w, b, grad);
    at::set_num_threads(threads);
    kernels::set_cpu_isa(most);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
  }
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
