// The promises of the scaled router.
#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/models/size.h"
#include "rmoe/routing/router.h"
#include "tests/support/gradcheck.h"
#include "tests/support/tiny.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::randn;

const RouterShape kShape{.experts = 5, .feature_width = 7, .recurrent = false, .init_deviation = 0};

// The router with its parameters in `table`, made as a model makes it: by name, with options from flags.
std::shared_ptr<Router> make(ParamTable& table, const std::vector<std::string>& flags = {}) {
  MoeConfig config;
  std::vector<std::string> all{"--router.kind=scaled"};
  all.insert(all.end(), flags.begin(), flags.end());
  bind(config, parse_flags(all));
  return config.router.create(kShape, ParamScope(table));
}

TEST(ScaledRouter, LogitsFollowTheFormula) {
  ParamTable table(1, at::kDouble);
  const auto router = make(table, {"--router.init_scale=3"});
  const Tensor f = randn({4, 7}, 1), w = table.all().at(0).value;
  const Tensor logits = router->score({.feature_TR = f});
  for (int64_t t = 0; t < 4; ++t) {
    const double rms = f[t].square().mean().item<double>();
    const Tensor expected = w.mv(f[t]) * (3 / std::sqrt(rms + 1e-6));
    EXPECT_TRUE(at::allclose(logits[t], expected, 1e-12)) << "token " << t;
  }
}

TEST(ScaledRouter, TheNormOfTheFeatureDoesNotMatter) {
  ParamTable table(1, at::kDouble);
  const auto router = make(table);
  const Tensor f = randn({4, 7}, 1);
  EXPECT_TRUE(at::allclose(router->score({.feature_TR = f}), router->score({.feature_TR = 100 * f}), 1e-5));
}

TEST(ScaledRouter, AZeroFeatureGivesEqualLogits) {
  ParamTable table(1, at::kDouble);
  const Tensor logits = make(table)->score({.feature_TR = at::zeros({2, 7}, at::kDouble)});
  EXPECT_TRUE(logits.equal(at::zeros({2, 5}, at::kDouble)));
}

TEST(ScaledRouter, GradientsMatchFiniteDifferences) {
  ParamTable table(1, at::kDouble);
  const auto router = make(table, {"--router.init_scale=2"});
  const Tensor f = randn({3, 7}, 1).requires_grad_(true), weights = randn({3, 5}, 2);
  const auto value = [&] { return (router->score({.feature_TR = f}) * weights).sum(); };
  value().backward();
  std::vector<Tensor> leaves{f};
  for (const Param& param : table.all()) leaves.push_back(param.value);
  ASSERT_EQ(leaves.size(), 3U);
  for (const Tensor& leaf : leaves) {
    ASSERT_TRUE(leaf.grad().defined());
    rmoe::testing::expect_central_differences([&] { return value().item<double>(); }, leaf, leaf.grad(), "leaf", 1e-7,
                                              0);
  }
}

TEST(ScaledRouter, AConstantScaleIsNoParameter) {
  ParamTable learned, constant;  // tables that only count
  make(learned);
  make(constant, {"--router.learned=false"});
  EXPECT_EQ(learned.count(), 5 * 7 + 1);
  EXPECT_EQ(constant.count(), 5 * 7);
}

TEST(ScaledRouter, AScaleThatIsNotPositiveIsRefused) {
  ParamTable table;
  EXPECT_THROW(make(table, {"--router.init_scale=0"}), Error);
}

// In a whole model, with and without the recurrent stage in front.
TEST(ScaledRouter, EveryParameterOfEveryModelGetsAGradient) {
  for (const Family family : {Family::kSpan, Family::kLlama}) {
    for (const bool recurrent : {false, true}) {
      RunConfig config = rmoe::testing::tiny_config(family, recurrent);
      bind(config, parse_flags({"--model.moe.router.kind=scaled"}));
      ParamTable table(1, at::kDouble);
      const auto model = make_model(config.model, table);
      const Tensor tokens = rmoe::testing::random_tokens(8, 8, 23, 8);
      model->forward(tokens, {}, {.dtype = at::kDouble}).logits_TV.logsumexp(-1).sum().backward();
      int64_t found = 0;
      for (const Param& param : table.all()) {
        if (param.name.find("gate.") == std::string::npos) continue;
        ++found;
        ASSERT_TRUE(param.value.grad().defined()) << param.name;
        EXPECT_GT(param.value.grad().abs().max().item<double>(), 0) << param.name;
      }
      EXPECT_EQ(found, 2 * config.model.moe_layers()) << rmoe::testing::tiny_name(family, recurrent);
      EXPECT_EQ(table.count(), model_size(config.model, 8).params);
    }
  }
}

}  // namespace
}  // namespace rmoe::routing
