// The transforms of the logits, against their formulas.
#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/config/registries.h"
#include "rmoe/routing/noise.h"
#include "rmoe/routing/router.h"
#include "tests/support/leaf_gradcheck.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::randn;

constexpr int64_t kT = 4, kN = 5, kR = 3;

struct Config {
  Choice<TransformRegistry> transform{"residual"};
  static constexpr auto fields() { return std::tuple{Field{"transform", &Config::transform, "the transform"}}; }
};

// The transform of each of three layers, as a pipeline has them.
struct Transforms {
  explicit Transforms(const std::string& kind, const std::string& options = "") {
    Config config;
    bind(config, parse_flags({"--transform={kind = " + kind + (options.empty() ? "" : ", ") + options + "}"}));
    for (int64_t i = 0; i < 3; ++i) {
      layers.push_back(config.transform.create(RouterShape{.experts = kN, .feature_width = kR, .layer = i},
                                               ParamScope(table, std::to_string(i))));
    }
  }
  Transforms(const Transforms&) = delete;

  std::vector<Tensor> leaves() const {
    std::vector<Tensor> values;
    for (const Param& param : table.all()) values.push_back(param.value);
    return values;
  }

  // The logits that each layer ends with.
  std::vector<Tensor> run(const std::vector<Tensor>& logits, const std::vector<Tensor>& features = {},
                          const RouteContext& context = {}) const {
    std::vector<Tensor> result;
    Tensor carried;
    for (size_t i = 0; i < logits.size(); ++i) {
      const Tensor feature = features.empty() ? Tensor() : features[i];
      auto step = layers[i]->logits(logits[i], feature, carried, context);
      result.push_back(step.logits_TN);
      carried = step.carried_TN;
    }
    return result;
  }

  ParamTable table{1, at::kDouble};
  std::vector<std::shared_ptr<Transform>> layers;
};

std::vector<Tensor> three(at::IntArrayRef shape, uint64_t seed) {
  return {randn(shape, seed), randn(shape, seed + 1), randn(shape, seed + 2)};
}

RouteContext training(uint64_t key) {
  RouteContext context;
  context.training = true;
  context.key = {key};
  return context;
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Residual, AddsThePreviousLayersOwnLogits) {
  const auto g = three({kT, kN}, 1);
  for (const double alpha : {0.0, 0.5, 1.0, 3.0}) {
    for (const bool detach : {false, true}) {
      const auto got = Transforms("residual", str("alpha = ", alpha, ", detach = ", detach)).run(g);
      EXPECT_TRUE(got[0].equal(g[0]));
      for (int64_t i = 1; i < 3; ++i) {
        for (int64_t t = 0; t < kT; ++t) {
          for (int64_t n = 0; n < kN; ++n) {
            EXPECT_DOUBLE_EQ(got[i][t][n].item<double>(),
                             g[i][t][n].item<double>() + alpha * g[i - 1][t][n].item<double>());
          }
        }
      }
    }
  }
  EXPECT_TRUE(Transforms("residual").run(g)[1].equal(g[1] + 0.5 * g[0])) << "alpha is 0.5";
}

TEST(Residual, GradientsMatchFiniteDifferencesAndDetachBlocksThem) {
  auto g = three({kT, kN}, 1);
  for (Tensor& x : g) x.requires_grad_(true);
  const Transforms plain("residual", "alpha = 0.7"), detached("residual", "alpha = 0.7, detach = true");
  expect_leaf_gradients([&] { return at::cat(plain.run(g), 1); }, g);
  for (Tensor& x : g) x.mutable_grad() = Tensor();
  detached.run(g)[2].sum().backward();
  EXPECT_FALSE(g[0].grad().defined());
  EXPECT_FALSE(g[1].grad().defined());
  EXPECT_TRUE(g[2].grad().equal(at::ones({kT, kN}, at::kDouble)));
}

TEST(LearnedResidual, StartsAsNoneAndThenMapsThePreviousLayersFinalLogits) {
  const Transforms transforms("learned_residual");
  const auto g = three({kT, kN}, 1);
  const auto leaves = transforms.leaves();
  ASSERT_EQ(leaves.size(), 2U);  // none in the first layer
  EXPECT_EQ(transforms.table.all()[0].name, "1.gate_map.weight");
  EXPECT_EQ(transforms.table.count(), 2 * kN * kN);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(transforms.run(g)[i].equal(g[i]));

  for (size_t j = 0; j < 2; ++j) leaves[j].detach().copy_(randn({kN, kN}, 7 + j));
  const auto got = transforms.run(g);
  for (int64_t t = 0; t < kT; ++t) {
    const Tensor first = g[0][t];
    const Tensor second = g[1][t] + leaves[0].detach().mv(first);
    const Tensor third = g[2][t] + leaves[1].detach().mv(second);
    EXPECT_TRUE(got[0][t].equal(first));
    EXPECT_LT(distance(got[1][t].detach(), second), 1e-14);
    EXPECT_LT(distance(got[2][t].detach(), third), 1e-14);
  }
}

TEST(LearnedResidual, GradientsThroughThreeLayersMatchFiniteDifferences) {
  const Transforms transforms("learned_residual");
  auto g = three({kT, kN}, 1);
  auto leaves = transforms.leaves();
  for (size_t j = 0; j < 2; ++j) leaves[j].detach().copy_(randn({kN, kN}, 7 + j));
  for (Tensor& x : g) leaves.push_back(x.requires_grad_(true));
  expect_leaf_gradients([&] { return at::cat(transforms.run(g), 1); }, leaves);
}

TEST(LearnedResidual, ACarryAtTheFirstLayerIsAMistake) {
  const Tensor g = randn({kT, kN}, 1);
  EXPECT_THROW(Transforms("learned_residual").layers[0]->logits(g, {}, g, {}), Error);
}

TEST(Noisy, AddsNormalNoiseOfALearnedDeviationInTraining) {
  const Transforms transforms("noisy", "epsilon = 0.1");
  const auto g = three({kT, kN}, 1), f = three({kT, kR}, 4);
  const auto leaves = transforms.leaves();
  ASSERT_EQ(leaves.size(), 3U);
  EXPECT_EQ(leaves[0].sizes(), at::IntArrayRef({kN, kR}));
  EXPECT_EQ(leaves[0].abs().max().item<double>(), 0);

  // With W = 0 the deviation is softplus(0) + epsilon everywhere, which tells the normal numbers.
  const Tensor start = transforms.run(g, f, training(9))[1].detach();
  const Tensor normal = (start - g[1]) / (std::log(2.0) + 0.1);
  EXPECT_GT(normal.abs().min().item<double>(), 0);
  leaves[1].detach().copy_(randn({kN, kR}, 7));
  const Tensor got = transforms.run(g, f, training(9))[1].detach();
  for (int64_t t = 0; t < kT; ++t) {
    const Tensor deviation = at::log1p(at::exp(leaves[1].detach().mv(f[1][t]))) + 0.1;
    EXPECT_LT(distance(got[t], g[1][t] + normal[t] * deviation), 1e-13);
  }
}

TEST(Noisy, LeavesEvaluationAloneAndCarriesNothing) {
  const Transforms transforms("noisy");
  const auto g = three({kT, kN}, 1), f = three({kT, kR}, 4);
  EXPECT_TRUE(transforms.run(g, f)[1].is_same(g[1]));
  EXPECT_FALSE(transforms.layers[0]->logits(g[0], f[0], {}, training(1)).carried_TN.defined());
}

TEST(Noisy, GradientsMatchFiniteDifferences) {
  const Transforms transforms("noisy");
  auto g = three({kT, kN}, 1), f = three({kT, kR}, 4);
  auto leaves = transforms.leaves();
  for (size_t j = 0; j < 3; ++j) leaves[j].detach().copy_(randn({kN, kR}, 7 + j));
  for (Tensor& x : g) leaves.push_back(x.requires_grad_(true));
  for (Tensor& x : f) leaves.push_back(x.requires_grad_(true));
  expect_leaf_gradients([&] { return at::cat(transforms.run(g, f, training(9)), 1); }, leaves);
}

TEST(Jitter, MultipliesEveryElementOfTheFeatureByItsOwnFactorInTraining) {
  const Transforms transforms("jitter", "eps = 0.2");
  const Tensor ones = at::ones({100, 30}, at::kDouble), f = randn({100, 30}, 1), g = randn({kT, kN}, 2);
  const Tensor factor = transforms.layers[0]->feature(ones, training(9));
  EXPECT_GE(factor.min().item<double>(), 0.8);
  EXPECT_LT(factor.min().item<double>(), 0.801);
  EXPECT_LE(factor.max().item<double>(), 1.2);
  EXPECT_GT(factor.max().item<double>(), 1.199);
  EXPECT_NEAR(factor.mean().item<double>(), 1, 0.01);
  EXPECT_TRUE(transforms.layers[0]->feature(f, training(9)).equal(f * factor));
  EXPECT_TRUE(transforms.layers[0]->feature(f, {}).is_same(f));
  EXPECT_TRUE(transforms.run({g}, {f}, training(9))[0].is_same(g));
  EXPECT_EQ(transforms.table.count(), 0);
}

TEST(Jitter, GradientIsTheFactor) {
  const Transforms transforms("jitter");
  const Tensor f = randn({kT, kR}, 1).requires_grad_(true);
  expect_leaf_gradients([&] { return transforms.layers[0]->feature(f, training(9)); }, {f});
}

TEST(Noise, IsAFunctionOfKeyAndPositionAlone) {
  const Tensor long_one = at::empty({50, 7}, at::kDouble), short_one = at::empty({20, 7}, at::kDouble);
  for (const auto& draw : {std::function<Tensor(const Tensor&, uint64_t)>(
                               [](const Tensor& like, uint64_t key) { return normal_noise(like, {key}); }),
                           std::function<Tensor(const Tensor&, uint64_t)>(
                               [](const Tensor& like, uint64_t key) { return uniform_noise(like, -1, 1, {key}); })}) {
    const Tensor noise = draw(long_one, 3);
    EXPECT_TRUE(noise.equal(draw(long_one, 3)));
    EXPECT_TRUE(noise.narrow(0, 0, 20).equal(draw(short_one, 3)));
    EXPECT_TRUE(draw(long_one.to(at::kFloat), 3).equal(noise.to(at::kFloat)));
    EXPECT_FALSE(noise.equal(draw(long_one, 4)));
    EXPECT_EQ(draw(at::empty({0, 7}), 3).numel(), 0);
    EXPECT_THROW(draw(long_one.to(at::kBFloat16), 3), Error);
  }
}

TEST(Noise, HasTheMomentsOfItsDistribution) {
  const Tensor like = at::empty({200000}, at::kDouble);
  const Tensor normal = normal_noise(like, {3}), uniform = uniform_noise(like, -1, 3, {3});
  EXPECT_NEAR(normal.mean().item<double>(), 0, 0.01);
  EXPECT_NEAR(normal.square().mean().item<double>(), 1, 0.015);
  EXPECT_NEAR(normal.pow(4).mean().item<double>(), 3, 0.15);
  EXPECT_NEAR((normal.abs() < 1).to(at::kDouble).mean().item<double>(), std::erf(1 / std::sqrt(2.0)), 0.005);
  EXPECT_NEAR(uniform.mean().item<double>(), 1, 0.02);
  EXPECT_NEAR(uniform.var().item<double>(), 16.0 / 12, 0.02);
  // Neighbours, and the normal and uniform numbers of one place, know nothing of each other beyond the shared key.
  EXPECT_NEAR((normal.slice(0, 1) * normal.slice(0, 0, -1)).mean().item<double>(), 0, 0.01);
}

TEST(Transforms, ThoseThatNeedAFeatureRefuseAHeadThatReadsNone) {
  for (const char* kind : {"residual", "learned_residual", "noisy", "jitter"}) {
    const Transforms transforms(kind);
    Combination c;
    transforms.layers[0]->check(c);
    c.router = "hash";
    c.reads_feature = false;
    try {
      transforms.layers[0]->check(c);
      ADD_FAILURE() << kind << ": no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::kBadInput);
      EXPECT_NE(e.message().find(str("transform '", kind, "'")), std::string::npos) << e.message();
      EXPECT_NE(e.message().find("router 'hash' reads none"), std::string::npos) << e.message();
    }
  }
}

TEST(Transforms, OptionsOutOfRangeAreRefused) {
  EXPECT_THROW(Transforms("residual", "alpha = -0.1"), Error);
  EXPECT_THROW(Transforms("noisy", "epsilon = -1"), Error);
  EXPECT_THROW(Transforms("jitter", "eps = 1"), Error);
}

}  // namespace
}  // namespace rmoe::routing
