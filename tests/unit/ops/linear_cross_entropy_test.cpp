#include "rmoe/ops/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/linear_cross_entropy.h"
#include "tests/support/accuracy.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isas.h"

namespace rmoe {
namespace {

using testing::randn;

struct Case {
  int64_t T, D, V;
  bool bias;
};

struct Inputs {
  Tensor x, w, b, targets;
  Inputs(const Case& c, at::ScalarType dtype = at::kDouble)
      : x(randn({c.T, c.D}, 1, dtype)),
        w(randn({c.V, c.D}, 2, dtype == at::kDouble ? at::kDouble : at::kFloat) / std::sqrt(c.D)),
        b(c.bias ? randn({c.V}, 3, w.scalar_type()) : Tensor()),
        targets(at::randint(c.V, {c.T}, at::kLong)) {
    if (c.T > 3) targets[3] = -100;
  }
  std::optional<Tensor> bias() const { return b.defined() ? std::optional<Tensor>(b) : std::nullopt; }
  // In fp64, w as it is read.
  Inputs wide() const {
    Inputs in = *this;
    in.x = x.to(at::kDouble), in.w = w.to(x.scalar_type()).to(at::kDouble);
    if (b.defined()) in.b = b.to(at::kDouble);
    return in;
  }
};

constexpr LinearCrossEntropyOptions kOptions{.z_loss = 1e-2, .scale = 0.5};

// loss, losses, dx, dw and with a bias db, through autograd.
std::vector<Tensor> run(const Inputs& in) {
  std::vector<Tensor> leaves = {in.x.detach().clone().requires_grad_(), in.w.detach().clone().requires_grad_()};
  if (in.b.defined()) leaves.push_back(in.b.detach().clone().requires_grad_());
  auto [loss, losses] =
      linear_cross_entropy(leaves[0], leaves[1], in.b.defined() ? leaves[2] : Tensor(), in.targets, kOptions);
  loss.backward();
  std::vector<Tensor> results = {loss.detach(), losses};
  for (const Tensor& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

std::vector<Tensor> formula(const Inputs& in) {
  auto [loss, losses, dx, dw, db] = reference::linear_cross_entropy_gradients(in.x, in.w, in.bias(), in.targets, -100,
                                                                              kOptions.z_loss, kOptions.scale);
  std::vector<Tensor> results = {loss, losses, dx, dw};
  if (in.b.defined()) results.push_back(db);
  return results;
}

class LinearCrossEntropyOp : public ::testing::TestWithParam<Case> {};

TEST_P(LinearCrossEntropyOp, IsAsAccurateAsThePlainFormula) {
  at::manual_seed(1);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in(GetParam(), dtype);
    const auto exact = formula(in.wide()), plain = formula(in);
    testing::for_each_isa([&] {
      const auto ours = run(in);
      ASSERT_EQ(ours.size(), exact.size());
      const char* names[] = {"loss", "losses", "dx", "dw", "db"};
      for (size_t i = 0; i < ours.size(); ++i) testing::expect_as_accurate(names[i], ours[i], plain[i], exact[i]);
      EXPECT_EQ(ours[3].scalar_type(), at::kFloat);
      const at::NoGradGuard no_grad;
      const auto without = linear_cross_entropy(in.x, in.w, in.b, in.targets, kOptions);
      testing::expect_as_accurate("loss without gradients", without.loss, plain[0], exact[0]);
      testing::expect_as_accurate("losses without gradients", without.losses_T, plain[1], exact[1]);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, LinearCrossEntropyOp,
                         ::testing::Values(Case{0, 3, 4, true}, Case{5, 3, 2, false}, Case{37, 44, 205, true},
                                           Case{130, 15, 33, true}, Case{65, 17, 1100, false}, Case{33, 352, 31, true},
                                           Case{4200, 8, 67, true}));

// Of so few numbers each is rounded once or twice, more or less than by the plain formula as chance has it.
TEST(LinearCrossEntropy, OneTokenIsRoundedToItsDtype) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t V : {1, 2, 31}) {
      const Inputs in({1, 1, V, true}, dtype);
      const auto exact = formula(in.wide());
      const double tolerance = dtype == at::kFloat ? 1e-6 : 0x1p-7;
      testing::for_each_isa([&] {
        const auto ours = run(in);
        for (size_t i = 0; i < ours.size(); ++i) {
          EXPECT_TRUE(at::allclose(ours[i].to(at::kDouble), exact[i], tolerance, tolerance / 8)) << i << ", V " << V;
        }
      });
    }
  }
}

TEST(LinearCrossEntropy, EqualsLogitsAndTorchsCrossEntropy) {
  const Inputs in({9, 5, 7, true});
  const Tensor logits = at::linear(in.x, in.w, in.b), counted = in.targets.ne(-100);
  const auto got = linear_cross_entropy(in.x, in.w, in.b, in.targets);
  EXPECT_NEAR(got.loss.item<double>(), at::cross_entropy_loss(logits, in.targets).item<double>(), 1e-14);
  EXPECT_TRUE(at::allclose(got.losses_T, at::cross_entropy_loss(logits, in.targets, {}, at::Reduction::None)));
  const Tensor z = logits.logsumexp(-1).square().masked_select(counted).mean();
  const auto with_z = linear_cross_entropy(in.x, in.w, in.b, in.targets, {.z_loss = 0.1, .scale = 3});
  EXPECT_NEAR(with_z.loss.item<double>(), 3 * (got.loss + 0.1 * z).item<double>(), 1e-13);
}

TEST(LinearCrossEntropy, GradientsMatchFiniteDifferences) {
  const Inputs in({6, 3, 5, true});
  const auto loss = [&](const std::vector<Tensor>& v) {
    return linear_cross_entropy(v[0], v[1], v[2], in.targets, kOptions).loss;
  };
  testing::expect_gradients(loss, {in.x, in.w, in.b});
}

TEST(LinearCrossEntropy, AnyNumberOfThreadsGivesTheSameBits) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Inputs in({700, 72, 1300, true}, dtype);
    testing::for_each_kernel_isa([&] {
      const auto one = testing::with_threads(1, [&] { return run(in); });
      const auto two = testing::with_threads(2, [&] { return run(in); });
      for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], two[i])) << i;
    });
  }
}

// Far below the largest logit, a target cannot serve as what is taken off the exponents.
TEST(LinearCrossEntropy, TargetsOfTinyProbabilityStayFinite) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Inputs in({40, 16, 50, true}, dtype);
    in.x = in.x * 64;
    const auto exact = formula(in.wide()), plain = formula(in);
    ASSERT_GT(exact[1].max().item<double>(), 100);
    testing::for_each_isa([&] {
      const auto ours = run(in);
      for (size_t i = 0; i < ours.size(); ++i) {
        testing::expect_as_accurate(std::to_string(i), ours[i], plain[i], exact[i]);
      }
    });
  }
}

TEST(LinearCrossEntropy, NothingToCountIsZero) {
  testing::for_each_isa([&] {
    Inputs in({5, 3, 4, true}, at::kFloat);
    in.targets.fill_(-100);
    for (const Tensor& result : run(in)) EXPECT_TRUE(result.eq(0).all().item<bool>());
  });
}

TEST(LinearCrossEntropy, NotANumberStaysOne) {
  testing::for_each_isa([&] {
    Inputs in({5, 3, 40, true}, at::kFloat);
    in.x[2][1] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(linear_cross_entropy(in.x, in.w, in.b, in.targets).loss.isnan().item<bool>());
  });
}

// A graph that is retained keeps its gradients; otherwise they are handed out, not copied.
TEST(LinearCrossEntropy, ScalesByTheGradientAndIsHandedOutOnceUnlessRetained) {
  const Inputs in({8, 3, 5, false}, at::kFloat);
  const Tensor w = in.w.clone().requires_grad_();
  const Tensor loss = linear_cross_entropy(in.x, w, {}, in.targets).loss;
  (loss * 2).backward({}, /*retain_graph=*/true);
  const Tensor twice = w.grad().clone();
  w.mutable_grad() = Tensor();
  loss.backward();
  EXPECT_TRUE(at::allclose(w.grad() * 2, twice, 1e-6));
  EXPECT_ANY_THROW(loss.backward());
  w.mutable_grad() = Tensor();
  linear_cross_entropy(in.x, w, {}, in.targets, {.scale = 2}).loss.backward();
  EXPECT_TRUE(at::allclose(w.grad(), twice, 1e-6));
}

TEST(LinearCrossEntropy, ReadsNarrowWeights) {
  const Inputs in({9, 16, 21, false}, at::kBFloat16);
  const Tensor narrow = in.w.to(at::kBFloat16), targets = in.targets;
  const auto exact = linear_cross_entropy(in.x.to(at::kDouble), narrow.to(at::kDouble), {}, targets);
  EXPECT_NEAR(linear_cross_entropy(in.x, narrow, {}, targets).loss.item<double>(), exact.loss.item<double>(), 1e-5);
}

TEST(LinearCrossEntropy, RefusesWhatDoesNotFitAndNamesTheTarget) {
  Inputs in({4, 3, 5, false}, at::kFloat);
  EXPECT_THROW(linear_cross_entropy(in.x, at::zeros({5, 4}), {}, in.targets), Error);
  EXPECT_THROW(linear_cross_entropy(in.x, in.w, at::zeros({4}), in.targets), Error);
  EXPECT_THROW(linear_cross_entropy(in.x, in.w, {}, in.targets.to(at::kInt)), Error);
  in.targets[1] = 17;
  try {
    linear_cross_entropy(in.x, in.w, {}, in.targets);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("target 17 is outside [0, 5)"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace rmoe
