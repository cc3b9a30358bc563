// ZAYA1's stage, against its definition token by token.
#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "tests/support/leaf_gradcheck.h"
#include "tests/unit/recurrence/stages.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::randn;

// r -> GELU(W ... GELU(W norm(r) + b) ... + b) of one token.
Tensor feature_of(const TestStage& s, int64_t layer, const Tensor& r, int64_t mlp_layers) {
  const double rms = std::sqrt(r.square().mean().item<double>() + 1e-5);
  Tensor f = r / rms * s.layer(layer, "router.rmsnorm_eda.weight");
  for (int64_t j = 0; j < mlp_layers; ++j) {
    const std::string name = "router.router_mlp." + std::to_string(2 * j);
    f = s.layer(layer, name + ".weight").mv(f) + s.layer(layer, name + ".bias");
    f = f * (1 + at::erf(f / std::sqrt(2.0))) / 2;
  }
  return f;
}

TEST(AdditiveStage, FollowsTheDefinitionTokenByToken) {
  for (const int64_t mlp_layers : {0, 1, 2, 3}) {
    for (const bool pass : {true, false}) {
      const TestStage s("additive", str("width = 3, init_scale = 0.7, pass = ", pass, ", mlp_layers = ", mlp_layers));
      // Different in each element, so that a scale or a norm at the wrong place shows.
      uint64_t seed = 50;
      for (const Tensor& leaf : s.leaves()) leaf.detach().add_(0.3 * randn(leaf.sizes(), seed++));
      const auto xs = inputs(), got = s.features(xs);
      for (int64_t t = 0; t < kT; ++t) {
        Tensor r;
        for (int64_t i = 0; i < 3; ++i) {
          const Tensor down = s.layer(i, "router.down_proj.weight").mv(xs[i][t]) + s.layer(i, "router.down_proj.bias");
          r = i > 0 && pass ? down + s.layer(i, "router.router_states_scale") * r : down;
          EXPECT_LT(distance(got[i][t], feature_of(s, i, r, mlp_layers)), 1e-14) << "layer " << i << ", token " << t;
        }
      }
    }
  }
}

TEST(AdditiveStage, CarriesTheStateBeforeTheNorm) {
  const TestStage s("additive", "width = 3, mlp_layers = 0");
  const std::vector<Tensor> scores{randn({kT, 7}, 1)};
  const StageStep step = s.stage->step(0, inputs(1)[0], carry_of({}, {}, scores));
  const Tensor down = inputs(1)[0].mm(s.layer(0, "router.down_proj.weight").t()) + s.layer(0, "router.down_proj.bias");
  EXPECT_LT(distance(step.carry.state_TP.detach(), down), 1e-14);
  EXPECT_FALSE(step.carry.cell_TP.defined());
  ASSERT_EQ(step.carry.scores_TN.size(), 1U);
  EXPECT_TRUE(step.carry.scores_TN[0].is_same(scores[0]));
}

TEST(AdditiveStage, GradientsThroughThreeLayersMatchFiniteDifferences) {
  const TestStage s("additive");
  auto xs = inputs();
  auto leaves = s.leaves();
  for (Tensor& x : xs) leaves.push_back(x.requires_grad_(true));
  expect_leaf_gradients([&] { return at::cat(s.features(xs), 1); }, leaves);
}

TEST(AdditiveStage, WithoutPassingEveryLayerIsAFreshCallWithTheSameParameters) {
  const TestStage passing("additive"), np("additive", "width = 3, pass = false");
  const auto xs = inputs(), features = np.features(xs);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(features[i].equal(passing.stage->step(i, xs[i], {}).feature_TR));
  EXPECT_FALSE(np.stage->step(0, xs[0], {}).carry.state_TP.defined());
  EXPECT_EQ(np.table.count(), passing.table.count());
}

TEST(AdditiveStage, GradientLayersCutTheGradientAndKeepTheValues) {
  const TestStage plain("additive"), cut("additive", "width = 3, gradient_layers = 1");
  auto xs = inputs();
  for (Tensor& x : xs) x.requires_grad_(true);
  const auto features = cut.features(xs);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(features[i].equal(plain.features(xs)[i])) << "layer " << i;
  features[2].square().sum().backward();
  EXPECT_FALSE(xs[0].grad().defined());
  EXPECT_FALSE(xs[1].grad().defined());
  EXPECT_TRUE(xs[2].grad().defined());
}

TEST(AdditiveStage, TheFirstLayerHasNoScaleAndTheOthersStartAtTheOption) {
  const TestStage s("additive", "width = 3, init_scale = 0.25");
  EXPECT_FALSE(s.layer(0, "router.router_states_scale").defined());
  for (const int64_t i : {1, 2}) {
    EXPECT_TRUE(s.layer(i, "router.router_states_scale").equal(at::full({kP}, 0.25, at::kDouble)));
  }
  EXPECT_TRUE(TestStage("additive").layer(1, "router.router_states_scale").equal(at::ones({kP}, at::kDouble)));
}

TEST(AdditiveStage, ParametersCountAsDefined) {
  const auto count = [](const std::string& options, int64_t layers) {
    ParamTable table;
    make_stage(table, "additive", options, layers, 352);
    return table.count();
  };
  const int64_t P = 128, norm = P, scale = P, down = 352 * P + P, linear = P * P + P;
  EXPECT_EQ(count("", 8), 8 * (down + norm + 2 * linear) + 7 * scale);
  EXPECT_EQ(count("mlp_layers = 0", 8), 8 * (down + norm) + 7 * scale);
  EXPECT_EQ(count("", 1), down + norm + 2 * linear);
}

TEST(AdditiveStage, ACarryAtTheFirstLayerIsAMistake) {
  const TestStage s("additive");
  EXPECT_THROW(s.stage->step(0, inputs(1)[0], carry_of(randn({kT, kP}, 1))), Error);
}

}  // namespace
}  // namespace rmoe::routing
