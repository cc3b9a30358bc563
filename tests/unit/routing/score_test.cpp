#include <cmath>

#include "tests/unit/routing/helpers.h"

namespace rmoe::routing {
namespace {

struct Case {
  const char* kind;
  const char* options;
  double (*score)(double x);  // of one logit, up to a factor per token
  bool shares;                // the weights are the chosen scores' shares of their sum
  double scale;
};

double sqrt_softplus(double x) { return std::sqrt(x > 30 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double relu(double x) { return std::max(x, 0.0); }
double exponential(double x) { return std::exp(x); }

const Case kCases[] = {{"softmax_selected", "", exponential, true, 1},
                       {"softmax", "", exponential, false, 1},
                       {"sigmoid", "", sigmoid, true, 1},
                       {"sigmoid", "scale = 2.5", sigmoid, true, 2.5},
                       {"sigmoid", "normalize = false\nscale = 0.5", sigmoid, false, 0.5},
                       {"sqrt_softplus", "", sqrt_softplus, true, 1},
                       {"sqrt_softplus", "normalize = false", sqrt_softplus, false, 1},
                       {"relu", "", relu, false, 1}};

class Score : public ::testing::TestWithParam<Case> {
 protected:
  std::shared_ptr<ScoreFunction> function_ = make<ScoreRegistry>(GetParam().kind, GetParam().options);
};
INSTANTIATE_TEST_SUITE_P(All, Score, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.kind) + std::to_string(test.index); });

// Full rows, unused slots in every place, and a token without any.
Tensor some_ids() { return at::tensor({0, 1, 4, 2, -1, 3, -1, 0, 4, -1, -1, -1}, at::kLong).view({4, 3}); }

TEST_P(Score, EqualsItsDefinitionTokenByToken) {
  const Case& c = GetParam();
  const int64_t N = 5;
  const Tensor logits = randn({4, N}, 1) * 3, ids = some_ids();
  const Tensor scores = function_->scores(logits), probs = function_->probs(logits, scores);
  const Tensor weights = function_->weights(logits, scores, ids, /*full=*/false);
  for (int64_t t = 0; t < 4; ++t) {
    double sum = 0, chosen = 0;
    for (int64_t n = 0; n < N; ++n) sum += c.score(at_tn(logits, t, n));
    const double whole = function_->distribution() ? sum : 1;
    for (int64_t k = 0; k < 3; ++k) {
      if (const int64_t id = ids[t][k].item<int64_t>(); id >= 0) chosen += c.score(at_tn(logits, t, id));
    }
    for (int64_t n = 0; n < N; ++n) {
      EXPECT_NEAR(at_tn(scores, t, n), c.score(at_tn(logits, t, n)) / whole, 1e-12);
      EXPECT_NEAR(at_tn(probs, t, n), sum > 0 ? c.score(at_tn(logits, t, n)) / sum : 0, 1e-12);
    }
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t id = ids[t][k].item<int64_t>();
      const double score = id < 0 ? 0 : c.score(at_tn(logits, t, id));
      EXPECT_NEAR(at_tn(weights, t, k), score == 0 ? 0 : score * c.scale / (c.shares ? chosen : whole), 1e-12);
    }
  }
}

TEST_P(Score, GradientsMatchFiniteDifferences) {
  const Tensor logits = randn({4, 5}, 2), ids = some_ids(), full_ids = best_ids(logits, 3);
  expect_gradients([&](const auto& v) { return function_->scores(v[0]); }, {logits});
  expect_gradients([&](const auto& v) { return function_->probs(v[0], function_->scores(v[0])); }, {logits});
  expect_gradients([&](const auto& v) { return function_->weights(v[0], function_->scores(v[0]), ids, false); },
                   {logits});
  expect_gradients([&](const auto& v) { return function_->weights(v[0], function_->scores(v[0]), full_ids, true); },
                   {logits});
}

TEST_P(Score, IsFiniteForExtremeLogits) {
  const float big = 1e4F;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    Tensor logits = at::tensor({big,  -big, 0.F,  -big, big,   //
                                -big, -big, -big, -big, -big,  //
                                big,  big,  big,  big,  big,   //
                                0.F,  0.F,  0.F,  0.F,  0.F})
                        .view({4, 5})
                        .to(dtype)
                        .requires_grad_();
    const Tensor scores = function_->scores(logits), probs = function_->probs(logits, scores);
    const Tensor part = function_->weights(logits, scores, some_ids(), false);
    const Tensor full = function_->weights(logits, scores, best_ids(logits, 3), true);
    (scores.sum() + (probs * probs).sum() + (part * part).sum() + (full * full).sum()).backward();
    for (const Tensor& x : {scores, probs, part, full, logits.grad()}) EXPECT_TRUE(x.isfinite().all().item<bool>());
    EXPECT_EQ(part[3].abs().sum().item<double>(), 0);  // no used slot
    if (function_->normalized()) {
      EXPECT_TRUE(at::allclose(full.sum(-1), at::ones({4}, full.options())));
      EXPECT_TRUE(at::allclose(part.narrow(0, 0, 3).sum(-1), at::ones({3}, full.options())));
    }
  }
}

TEST_P(Score, FullSlotsGiveTheSameWeightsAsSlotsThatMayBeUnused) {
  const Tensor logits = randn({9, 5}, 3), ids = best_ids(logits, 5), scores = function_->scores(logits);
  EXPECT_TRUE(function_->weights(logits, scores, ids, true).equal(function_->weights(logits, scores, ids, false)));
}

TEST_P(Score, StatesWhatItIs) {
  const Tensor logits = randn({50, 6}, 4) * 4, scores = function_->scores(logits);
  const Tensor sums = scores.sum(-1), ones = at::ones({50}, at::kDouble);
  EXPECT_EQ(function_->distribution(), at::allclose(sums, ones));
  EXPECT_EQ(function_->sparse(), scores.eq(0).any().item<bool>());
  const Tensor weights = function_->weights(logits, scores, best_ids(logits, 2), true);
  EXPECT_EQ(function_->normalized(), at::allclose(weights.sum(-1), ones));
  // Monotone: the order of the logits is that of the scores.
  if (!function_->sparse()) {
    EXPECT_TRUE(best_ids(logits, 6).equal(best_ids(scores, 6)));
  }
}

TEST_P(Score, TakesZeroTokens) {
  const Tensor logits = randn({0, 5}, 5), scores = function_->scores(logits);
  EXPECT_EQ(function_->probs(logits, scores).sizes(), at::IntArrayRef({0, 5}));
  EXPECT_EQ(function_->weights(logits, scores, at::zeros({0, 2}, at::kLong), false).sizes(), at::IntArrayRef({0, 2}));
}

TEST(SoftmaxSelected, IsThePlainFormulaToTheLastBit) {
  const Tensor logits = randn({50, 7}, 1, at::kFloat), ids = best_ids(logits, 3);
  const auto function = make<ScoreRegistry>("softmax_selected", "");
  const Tensor scores = function->scores(logits);
  EXPECT_TRUE(function->weights(logits, scores, ids, true).equal(logits.gather(1, ids).softmax(-1)));
  // ... which is the softmax over all experts, renormalized.
  const Tensor chosen = scores.gather(1, ids);
  EXPECT_TRUE(at::allclose(logits.gather(1, ids).softmax(-1), chosen / chosen.sum(-1, true)));
}

TEST(SqrtSoftplus, IsSmoothWhereItsFormulasMeet) {
  const auto function = make<ScoreRegistry>("sqrt_softplus", "");
  const Tensor logits = at::linspace(-45, -30, 301, at::kDouble).unsqueeze(1);
  const Tensor expected = logits.exp().log1p().sqrt();
  EXPECT_TRUE(at::allclose(function->scores(logits), expected, 1e-13, 0));
  EXPECT_TRUE(at::allclose(function->scores(logits.to(at::kFloat)).to(at::kDouble), expected, 1e-5, 0));
}

TEST(Sigmoid, SharesStayExactWhereTheScoresVanish) {
  const auto function = make<ScoreRegistry>("sigmoid", "");
  const Tensor logits = at::tensor({-200.F, -201.F}).view({1, 2}), ids = at::tensor({0, 1}, at::kLong).view({1, 2});
  const Tensor weights = function->weights(logits, function->scores(logits), ids, true);
  EXPECT_NEAR(at_tn(weights, 0, 0), 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(Relu, ProbabilitiesAreZeroWhereAllScoresAre) {
  const auto function = make<ScoreRegistry>("relu", "");
  const Tensor logits = -at::ones({2, 3}, at::kDouble);
  EXPECT_EQ(function->probs(logits, function->scores(logits)).abs().sum().item<double>(), 0);
}

}  // namespace
}  // namespace rmoe::routing
