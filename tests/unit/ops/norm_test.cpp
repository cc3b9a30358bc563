#include "rmoe/ops/norm.h"

#include <torch/csrc/autograd/autograd.h>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/norm.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

constexpr double kEps = 1e-5;
constexpr DropoutKey kKey{77};

struct Case {
  int64_t rows, width;
  bool centered, branch;
  double dropout;
};

struct Inputs {
  Tensor x, branch, weight, bias, grad_normed, grad_sum;
  Inputs(const Case& c, at::ScalarType dtype)
      : x(randn({c.rows, c.width}, 1, dtype) + 0.5),
        branch(c.branch ? randn({c.rows, c.width}, 2, dtype) : Tensor()),
        weight(randn({c.width}, 3, dtype == at::kDouble ? at::kDouble : at::kFloat)),
        bias(c.centered ? randn({c.width}, 4, weight.scalar_type()) : Tensor()),
        grad_normed(randn({c.rows, c.width}, 5, dtype)),
        grad_sum(c.branch ? randn({c.rows, c.width}, 6, dtype) : Tensor()) {}
  Inputs wide() const {
    Inputs in = *this;
    for (Tensor* t : {&in.x, &in.branch, &in.weight, &in.bias, &in.grad_normed, &in.grad_sum}) {
      if (t->defined()) *t = t->to(at::kDouble);
    }
    return in;
  }
};

std::optional<Tensor> optional(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

using Results = std::vector<std::pair<const char*, Tensor>>;

Results run(const Inputs& in, double p) {
  const auto leaf = [](const Tensor& t) { return t.defined() ? t.detach().clone().requires_grad_() : Tensor(); };
  const Tensor x = leaf(in.x), branch = leaf(in.branch), weight = leaf(in.weight), bias = leaf(in.bias);
  SumAndNorm out;
  if (branch.defined()) {
    out = bias.defined() ? add_layer_norm(x, branch, weight, bias, kEps, p, kKey)
                         : add_rms_norm(x, branch, weight, kEps, p, kKey);
    torch::autograd::backward({out.normed, out.sum}, {in.grad_normed, in.grad_sum});
  } else {
    out.normed = bias.defined() ? layer_norm(x, weight, bias, kEps) : rms_norm(x, weight, kEps);
    out.normed.backward(in.grad_normed);
  }
  Results results = {{"normed", out.normed.detach()}, {"dx", x.grad()}, {"dw", weight.grad()}};
  if (bias.defined()) results.emplace_back("db", bias.grad());
  if (branch.defined()) results.emplace_back("sum", out.sum.detach());
  if (branch.defined()) results.emplace_back("dbranch", branch.grad());
  return results;
}

Results formula(const Inputs& in, double p) {
  const auto key = static_cast<int64_t>(kKey.value);
  auto [sum, normed, mean, rstd] =
      reference::norm(in.x, optional(in.branch), in.weight, optional(in.bias), kEps, p, key);
  auto [dx, dbranch, dw, db] =
      reference::norm_backward(in.grad_normed, optional(in.grad_sum), in.branch.defined() ? sum : in.x, in.weight,
                               optional(in.bias), mean, rstd, p, key);
  Results results = {{"normed", normed}, {"dx", dx}, {"dw", dw}};
  if (in.bias.defined()) results.emplace_back("db", db);
  if (in.branch.defined()) results.emplace_back("sum", sum);
  if (in.branch.defined()) results.emplace_back("dbranch", p > 0 ? dbranch : dx);
  return results;
}

class NormOp : public ::testing::TestWithParam<Case> {};

TEST_P(NormOp, IsAsAccurateAsThePlainFormula) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in(GetParam(), dtype);
    const double p = GetParam().dropout;
    const auto exact = formula(in.wide(), p), plain = formula(in, p);
    testing::for_each_isa([&] {
      const auto ours = run(in, p);
      ASSERT_EQ(ours.size(), exact.size());
      for (size_t i = 0; i < ours.size(); ++i) {
        testing::expect_as_accurate(ours[i].first, ours[i].second, plain[i].second, exact[i].second);
      }
      EXPECT_EQ(ours[2].second.scalar_type(), at::kFloat);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, NormOp,
                         ::testing::Values(Case{0, 8, false, false, 0}, Case{1, 1, false, true, 0},
                                           Case{3, 7, false, true, 0.3}, Case{5, 8, true, false, 0},
                                           Case{9, 15, true, true, 0.5}, Case{67, 16, false, false, 0},
                                           Case{131, 17, true, true, 0.1}, Case{129, 44, false, true, 0},
                                           Case{64, 352, true, true, 0.1}, Case{200, 352, false, true, 0.1}));

TEST(Norm, EqualsTorchsNorms) {
  const Inputs in({6, 5, true, true, 0}, at::kDouble);
  const auto close = [](const Tensor& a, const Tensor& b) { return at::allclose(a, b, 0, 1e-13); };
  EXPECT_TRUE(close(rms_norm(in.x, in.weight, kEps), at::rms_norm(in.x, {5}, in.weight, kEps)));
  EXPECT_TRUE(close(layer_norm(in.x, in.weight, in.bias, kEps), at::layer_norm(in.x, {5}, in.weight, in.bias, kEps)));
  const Tensor sum = in.x + dropout(in.branch, 0.4, kKey);
  const auto added = add_rms_norm(in.x, in.branch, in.weight, kEps, 0.4, kKey);
  EXPECT_TRUE(added.sum.equal(sum));
  EXPECT_TRUE(close(added.normed, at::rms_norm(sum, {5}, in.weight, kEps)));
}

TEST(Norm, GradientsMatchFiniteDifferences) {
  const Inputs in({4, 6, true, true, 0}, at::kDouble);
  for (const double p : {0.0, 0.4}) {
    const auto rms = [&](const std::vector<Tensor>& v) {
      const auto out = add_rms_norm(v[0], v[1], v[2], kEps, p, kKey);
      return at::cat({out.sum, out.normed});
    };
    testing::expect_gradients(rms, {in.x, in.branch, in.weight});
    const auto layer = [&](const std::vector<Tensor>& v) {
      const auto out = add_layer_norm(v[0], v[1], v[2], v[3], kEps, p, kKey);
      return at::cat({out.sum, out.normed});
    };
    testing::expect_gradients(layer, {in.x, in.branch, in.weight, in.bias});
  }
  testing::expect_gradients([](const auto& v) { return layer_norm(v[0], v[1], v[2], kEps); },
                            {in.x, in.weight, in.bias});
}

TEST(Norm, ADroppedBranchIsThatOfDropout) {
  testing::for_each_isa([&] {
    const Inputs in({300, 44, false, true, 0}, at::kBFloat16);
    const auto out = add_rms_norm(in.x, in.branch, in.weight, kEps, 0.3, kKey);
    EXPECT_TRUE(out.sum.equal(in.x + dropout(in.branch, 0.3, kKey)));
  });
}

TEST(Norm, ResultsThatNobodyUsesHaveNoGradient) {
  const Inputs in({5, 6, false, true, 0}, at::kFloat);
  const Tensor x = in.x.clone().requires_grad_();
  add_rms_norm(x, in.branch, in.weight, kEps).sum.sum().backward();
  EXPECT_TRUE(x.grad().eq(1).all().item<bool>());
}

TEST(Norm, AnyNumberOfThreadsGivesTheSameBits) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in({1000, 70, true, true, 0.1}, dtype);
    testing::for_each_kernel_isa([&] {
      const auto one = testing::with_threads(1, [&] { return run(in, 0.1); });
      const auto two = testing::with_threads(2, [&] { return run(in, 0.1); });
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i].second, two[i].second)) << one[i].first;
    });
  }
}

TEST(Norm, RefusesWhatDoesNotFit) {
  const Tensor x = at::zeros({2, 3}), w = at::ones({3});
  EXPECT_THROW(rms_norm(x, at::ones({4}), kEps), Error);
  EXPECT_THROW(layer_norm(x, w, at::ones({2}), kEps), Error);
  EXPECT_THROW(add_rms_norm(x, at::zeros({3, 3}), w, kEps), Error);
  EXPECT_THROW(add_rms_norm(x, x, w, kEps, 1.0, kKey), Error);
}

}  // namespace
}  // namespace rmoe
