// StableMoE's two phases.
#include "tests/unit/routers/head.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::combination;
using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::Head;
using rmoe::testing::randn;

constexpr int64_t kT = 4, kN = 3, kR = 5, kV = 7;
const RouterShape kShape{.experts = kN, .feature_width = kR, .top_k = 1, .vocab_size = kV};

struct StableRouterTest : ::testing::Test {
  RouterOutput route() const { return head.router->route({.feature_TR = f, .context = context}); }
  void pass(int64_t steps) { head.router->update(0, {}, {.step = steps, .steps = 100}); }
  Tensor embedding() const { return head.param("distilled.embedding"); }
  Tensor centroids() const { return head.param("distilled.centroids"); }
  bool distilled_has_gradients() const { return embedding().grad().defined() || centroids().grad().defined(); }

  Head head{"stable", {"first_phase=0.3", "width=2", "distill_weight=0.5"}, kShape};
  Tensor f = randn({kT, kR}, 1).requires_grad_(true);
  RouteContext context = [] {
    RouteContext c;
    c.training = true;
    c.tokens_T = at::tensor({1, 6, 1, 3}, at::kLong);
    return c;
  }();
};

TEST_F(StableRouterTest, DistillsTheFirstChoiceInPhaseOne) {
  const RouterOutput out = route();
  EXPECT_FALSE(out.ranking_TN.defined());
  double expected = 0;
  for (int64_t t = 0; t < kT; ++t) {
    int64_t first = 0;
    for (int64_t n = 1; n < kN; ++n) {
      if (out.logits_TN[t][n].item<double>() > out.logits_TN[t][first].item<double>()) first = n;
    }
    const Tensor scores = centroids().mv(embedding()[context.tokens_T[t].item<int64_t>()]);
    expected += std::log(scores.exp().sum().item<double>()) - scores[first].item<double>();
  }
  EXPECT_NEAR(out.loss.item<double>(), 0.5 * expected / kT, 1e-12);
}

TEST_F(StableRouterTest, TheLossTeachesTheDistilledRouterOnly) {
  expect_leaf_gradients([&] { return route().loss; }, {embedding(), centroids()});
  route().loss.backward();
  EXPECT_FALSE(head.param("gate.weight").grad().defined());
  EXPECT_FALSE(f.grad().defined());
}

TEST_F(StableRouterTest, PaddingDoesNotCount) {
  context.valid_T = at::tensor({1, 1, 0, 1}, at::kLong).to(at::kBool);
  const double with_padding = route().loss.item<double>();
  const Tensor kept = at::tensor({0, 1, 3}, at::kLong);
  f = f.detach().index_select(0, kept);
  context = RouteContext{.training = true, .tokens_T = context.tokens_T.index_select(0, kept)};
  EXPECT_DOUBLE_EQ(with_padding, route().loss.item<double>());
}

TEST_F(StableRouterTest, NoTokensCostNothing) {
  f = at::zeros({0, kR}, at::kDouble);
  context.tokens_T = at::zeros({0}, at::kLong);
  EXPECT_EQ(route().loss.item<double>(), 0);
}

TEST_F(StableRouterTest, ThePhaseFollowsTheProgressOfTraining) {
  pass(29);
  EXPECT_FALSE(route().ranking_TN.defined());
  EXPECT_EQ(head.param("distilled.frozen").item<int64_t>(), 0);
  pass(30);
  EXPECT_TRUE(route().ranking_TN.defined());
  EXPECT_EQ(head.param("distilled.frozen").item<int64_t>(), 1);
}

TEST_F(StableRouterTest, TheDistilledRouterChoosesInPhaseTwoAndNoLongerLearns) {
  pass(30);
  const RouterOutput out = route();
  EXPECT_FALSE(out.loss.defined());
  for (int64_t t = 0; t < kT; ++t) {
    const Tensor scores = centroids().mv(embedding()[context.tokens_T[t].item<int64_t>()]);
    EXPECT_TRUE(at::allclose(out.ranking_TN[t], scores)) << "token " << t;
  }
  EXPECT_TRUE(out.ranking_TN[0].equal(out.ranking_TN[2]));  // the same token
  EXPECT_FALSE(out.ranking_TN.requires_grad());
  EXPECT_TRUE(out.logits_TN.equal(head.logits(f)));  // the weights are the linear head's
  out.logits_TN.square().sum().backward();
  EXPECT_TRUE(head.param("gate.weight").grad().defined());
  EXPECT_FALSE(distilled_has_gradients());
}

TEST_F(StableRouterTest, EvaluationFollowsThePhaseOfTheCheckpoint) {
  context.training = false;
  EXPECT_FALSE(route().loss.defined());
  EXPECT_FALSE(route().ranking_TN.defined());
  head.param("distilled.frozen").fill_(1);  // as loading does
  EXPECT_TRUE(route().ranking_TN.defined());
  EXPECT_FALSE(route().loss.defined());
}

TEST_F(StableRouterTest, TokenIdsAreAskedForWhereTheyAreNeeded) {
  context.tokens_T = Tensor();
  EXPECT_THROW(route(), Error);
  context.training = false;
  EXPECT_EQ(route().logits_TN.size(0), kT);  // phase 1 routes by the feature
  pass(30);
  EXPECT_THROW(route(), Error);
}

TEST_F(StableRouterTest, RefusesSelectionsThatDoNotRank) {
  head.router->check(combination("gru", "top_k"));
  EXPECT_THROW(head.router->check(combination("none", "top_p")), Error);
}

}  // namespace
}  // namespace rmoe::routing
