// The heads that turn a feature into logits: linear, random, mlp, cosine, xmoe, hyper. Formulas token by token.
#include <algorithm>
#include <cmath>

#include "tests/unit/routers/head.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::Flags;
using rmoe::testing::Head;
using rmoe::testing::randn;

constexpr int64_t kN = 5, kR = 7;
const RouterShape kShape{.experts = kN, .feature_width = kR, .top_k = 2, .vocab_size = 11};

using Vector = std::vector<double>;

Vector to_vector(const Tensor& x) {
  const Tensor flat = x.detach().contiguous().view(-1);
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// With what keeps the direction of a zero vector finite.
double cosine(const Vector& a, const Vector& b) {
  return dot(a, b) / std::sqrt((dot(a, a) + 1e-8) * (dot(b, b) + 1e-8));
}

Vector linear(const Tensor& w, const Tensor& b, const Vector& x) {
  Vector y;
  for (int64_t o = 0; o < w.size(0); ++o)
    y.push_back(dot(to_vector(w[o]), x) + (b.defined() ? b[o].item<double>() : 0));
  return y;
}

Vector mlp_logits(const Head& head, const Vector& f) {
  Vector hidden = linear(head.param("gate.0.weight"), head.param("gate.0.bias"), f);
  for (double& x : hidden) x = x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
  return linear(head.param("gate.2.weight"), head.param("gate.2.bias"), hidden);
}

Vector cosine_logits(const Head& head, const Vector& f) {
  Vector logits;
  for (int64_t n = 0; n < kN; ++n) {
    logits.push_back(head.param("gate.scale").item<double>() * cosine(f, to_vector(head.param("gate.weight")[n])));
  }
  return logits;
}

Vector xmoe_logits(const Head& head, const Vector& f) {
  const Vector low = linear(head.param("gate.projection"), {}, f);
  const double temperature = std::exp(head.param("gate.log_temperature").item<double>());
  Vector logits;
  for (int64_t n = 0; n < kN; ++n) {
    logits.push_back(cosine(low, to_vector(head.param("gate.embedding")[n])) / temperature);
  }
  return logits;
}

Vector hyper_logits(const Head& head, const Vector& f) {
  Vector hidden =
      linear(head.param("hypernet.0.weight"), head.param("hypernet.0.bias"), to_vector(head.param("gate.embedding")));
  for (double& x : hidden) x = std::max(x, 0.0);
  const Vector made = linear(head.param("hypernet.2.weight"), head.param("hypernet.2.bias"), hidden);
  Vector logits;
  for (size_t n = 0; n < kN; ++n) {
    const auto row = made.begin() + static_cast<int64_t>(n) * (kR + 1);
    logits.push_back(dot(Vector(row, row + kR), f) + row[kR]);
  }
  return logits;
}

struct Case {
  std::string name, kind;
  Flags flags;
  std::function<Vector(const Head&, const Vector&)> logits;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

std::vector<Case> cases() {
  const auto plain = [](const Head& head, const Vector& f) { return linear(head.param("gate.weight"), {}, f); };
  const auto biased = [](const Head& head, const Vector& f) {
    return linear(head.param("gate.weight"), head.param("gate.bias"), f);
  };
  return {{"linear", "linear", {}, plain},
          {"linear_bias", "linear", {"bias=true"}, biased},
          {"random", "random", {}, plain},
          {"random_bias", "random", {"bias=true"}, biased},
          {"mlp", "mlp", {"width=6"}, mlp_logits},
          {"cosine", "cosine", {"init_scale=3"}, cosine_logits},
          {"xmoe", "xmoe", {"width=4", "temperature=0.5"}, xmoe_logits},
          {"xmoe_unused_gate", "xmoe", {"width=4", "unused_gate=true"}, xmoe_logits},
          {"hyper", "hyper", {"width=6"}, hyper_logits},
          {"hyper_unused_gate", "hyper", {"width=6", "unused_gate=true"}, hyper_logits}};
}

class Gates : public ::testing::TestWithParam<Case> {
 protected:
  Head head{GetParam().kind, GetParam().flags, kShape};
};

TEST_P(Gates, LogitsFollowTheFormula) {
  const Tensor f = randn({4, kR}, 1);
  const Tensor logits = head.logits(f);
  ASSERT_EQ(logits.sizes(), at::IntArrayRef({4, kN}));
  for (int64_t t = 0; t < 4; ++t) {
    const Vector expected = GetParam().logits(head, to_vector(f[t]));
    for (int64_t n = 0; n < kN; ++n) {
      EXPECT_NEAR(logits[t][n].item<double>(), expected[static_cast<size_t>(n)], 1e-12) << t << ", " << n;
    }
  }
}

TEST_P(Gates, GradientsMatchFiniteDifferences) {
  const Tensor f = randn({3, kR}, 1).requires_grad_(true), weights = randn({3, kN}, 2);
  std::vector<Tensor> leaves{f};
  for (const Param& p : head.table.all()) {
    if (p.traits.trainable) leaves.push_back(p.value);
  }
  expect_leaf_gradients([&] { return (head.logits(f) * weights).sum(); }, leaves);
}

TEST_P(Gates, FrozenParametersGetNoGradient) {
  (head.logits(randn({3, kR}, 1).requires_grad_(true))).square().sum().backward();
  for (const Param& p : head.table.all()) EXPECT_EQ(p.value.grad().defined(), p.traits.trainable) << p.name;
}

TEST_P(Gates, AZeroFeatureGivesFiniteValuesAndGradients) {
  const Tensor f = at::zeros({2, kR}, at::kFloat).requires_grad_(true);
  const Tensor logits = head.logits(f);
  EXPECT_TRUE(logits.isfinite().all().item<bool>());
  logits.sum().backward();
  EXPECT_TRUE(f.grad().isfinite().all().item<bool>());
  for (const Param& p : head.table.all()) {
    if (p.traits.trainable) {
      EXPECT_TRUE(p.value.grad().isfinite().all().item<bool>()) << p.name;
    }
  }
}

TEST_P(Gates, ComputesInTheDtypeOfTheFeature) {
  EXPECT_EQ(head.logits(randn({2, kR}, 1, at::kFloat)).scalar_type(), at::kFloat);
}

TEST_P(Gates, NoTokensGiveNoLogits) { EXPECT_EQ(head.logits(at::zeros({0, kR}, at::kDouble)).size(0), 0); }

INSTANTIATE_TEST_SUITE_P(Heads, Gates, ::testing::ValuesIn(cases()), [](const auto& c) { return c.param.name; });

// As the public layout has it.
TEST(LinearRouter, IsCalledWeight2BehindAStage) {
  RouterShape behind = kShape;
  behind.recurrent = true;
  for (const char* kind : {"linear", "random"}) {
    const Head head(kind, {"bias=true"}, behind);
    EXPECT_EQ(head.param("weight2").sizes(), at::IntArrayRef({kN, kR}));
    EXPECT_EQ(head.param("bias2").sizes(), at::IntArrayRef({kN}));
  }
  EXPECT_TRUE(Head("cosine", {}, behind).param("weight2").defined());
}

TEST(LinearRouter, ABiasStartsFromZeroWhereMatricesStartNormal) {
  RouterShape normal = kShape;
  normal.init_deviation = 0.02;
  EXPECT_TRUE(Head("linear", {"bias=true"}, normal).param("gate.bias").eq(0).all().item<bool>());
  const Tensor uniform = Head("linear", {"bias=true"}, kShape).param("gate.bias");
  EXPECT_GT(uniform.abs().min().item<double>(), 0);
  EXPECT_LE(uniform.abs().max().item<double>(), 1 / std::sqrt(static_cast<double>(kR)));
}

TEST(CosineRouter, OnlyDirectionsMatter) {
  const Head head("cosine", {}, kShape);
  const Tensor f = randn({4, kR}, 1), logits = head.logits(f);
  EXPECT_TRUE(at::allclose(head.logits(100 * f), logits, 1e-6));
  {
    const at::NoGradGuard no_grad;
    head.param("gate.weight").mul_(at::arange(1, kN + 1).unsqueeze(1));
  }
  EXPECT_TRUE(at::allclose(head.logits(f), logits, 1e-6));
}

TEST(XmoeRouter, TheTemperatureStartsAsAsked) {
  const Tensor f = randn({4, kR}, 1);
  const Tensor warm = Head("xmoe", {"temperature=1"}, kShape).logits(f);
  const Tensor cold = Head("xmoe", {"temperature=0.25"}, kShape).logits(f);
  EXPECT_LE(warm.abs().max().item<double>(), 1);
  EXPECT_TRUE(at::allclose(cold, 4 * warm, 1e-6));
}

// The network is frozen, but the gate it makes is not.
TEST(HyperRouter, TheGateFollowsItsEmbedding) {
  const Head head("hyper", {"width=32"}, kShape);
  const Tensor f = randn({4, kR}, 1), before = head.logits(f).detach();
  {
    const at::NoGradGuard no_grad;
    head.param("gate.embedding").add_(1);
  }
  EXPECT_GT((head.logits(f) - before).abs().max().item<double>(), 1e-3);
}

TEST(Heads, OptionsOutOfRangeAreRefused) {
  EXPECT_THROW(Head("mlp", {"width=0"}, kShape), Error);
  EXPECT_THROW(Head("cosine", {"init_scale=0"}, kShape), Error);
  EXPECT_THROW(Head("xmoe", {"temperature=0"}, kShape), Error);
  EXPECT_THROW(Head("stable", {"first_phase=0"}, kShape), Error);
  EXPECT_THROW(Head("stable", {"first_phase=1"}, kShape), Error);
  EXPECT_THROW(Head("compete", {"rate=1.5"}, kShape), Error);
}

}  // namespace
}  // namespace rmoe::routing
