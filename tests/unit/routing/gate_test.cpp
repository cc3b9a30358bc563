#include "rmoe/routing/gate.h"

#include "rmoe/base/error.h"
#include "rmoe/models/model.h"
#include "rmoe/routing/balance.h"
#include "tests/support/gradcheck.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::randn;

TEST(SelectTopK, WeightsAreTheRenormalizedSoftmaxOverAll) {
  const Tensor logits = randn({50, 7}, 1);
  const Routing r = select_top_k(logits, 3);
  const Tensor chosen = logits.softmax(-1).gather(1, r.ids_TK);
  EXPECT_TRUE(at::allclose(r.weights_TK, chosen / chosen.sum(-1, true)));
  EXPECT_TRUE(at::allclose(r.weights_TK.sum(-1), at::ones({50}, at::kDouble)));
  EXPECT_EQ(r.counts_N.sum().item<int64_t>(), 150);
  EXPECT_EQ(r.counts_N.scalar_type(), at::kLong);
}

TEST(SelectTopK, TiesGoToTheLowerId) {
  const Routing r = select_top_k(at::zeros({4, 6}), 3);
  EXPECT_TRUE(r.ids_TK.equal(at::arange(3).expand({4, 3})));
}

TEST(SelectTopK, AllExpertsMayBeChosenAndNoneRefused) {
  EXPECT_EQ(select_top_k(randn({3, 4}, 1), 4).ids_TK.sizes(), at::IntArrayRef({3, 4}));
  EXPECT_EQ(select_top_k(randn({0, 4}, 1), 2).ids_TK.sizes(), at::IntArrayRef({0, 2}));
  EXPECT_THROW(select_top_k(randn({3, 4}, 1), 5), Error);
  EXPECT_THROW(select_top_k(randn({3, 4}, 1), 0), Error);
}

TEST(SelectTopK, GradientsMatchFiniteDifferences) {
  rmoe::testing::expect_gradients([](const auto& v) { return select_top_k(v[0], 2).weights_TK; }, {randn({4, 5}, 1)});
}

// A trace whose choices are exactly even and whose probabilities are uniform.
RoutingTrace uniform_trace(int64_t layers, int64_t N, int64_t K) {
  RoutingTrace trace;
  for (int64_t layer = 0; layer < layers; ++layer) {
    Routing r = select_top_k(at::zeros({N, N}, at::kDouble), K);
    r.ids_TK = (at::arange(N).unsqueeze(1) + at::arange(K)).remainder(N);
    r.counts_N = at::bincount(r.ids_TK.flatten(), {}, N);
    trace.push_back(r);
  }
  return trace;
}

double value(const char* kind, const RoutingTrace& trace) {
  return Choice<BalanceRegistry>(kind).create()->loss(trace).item<double>();
}

TEST(Balance, ValuesAtUniformRoutingAreAsStated) {
  const RoutingTrace trace = uniform_trace(3, 8, 2);
  EXPECT_NEAR(value("switch", trace), 1.0, 1e-6);
  EXPECT_NEAR(value("small_scale", trace), 3 * 0.5, 1e-6);  // 1/K per layer, summed over 3 layers
}

TEST(Balance, EqualsTheDefinitionSummedTokenByToken) {
  const int64_t T = 11, N = 5, K = 2;
  const RoutingTrace trace = {select_top_k(randn({T, N}, 1), K), select_top_k(randn({T, N}, 2), K)};
  double expected_switch = 0, expected_small = 0;
  for (const Routing& r : trace) {
    double layer = 0;
    for (int64_t n = 0; n < N; ++n) {
      double count = 0, probability = 0;
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t k = 0; k < K; ++k) count += r.ids_TK[t][k].item<int64_t>() == n;
        probability += r.logits_TN[t].softmax(0)[n].item<double>();
      }
      layer += count / static_cast<double>(T * K) * probability;
    }
    expected_switch += static_cast<double>(N) * layer / static_cast<double>(T) / 2;
    expected_small += static_cast<double>(N) * layer / static_cast<double>(T * K);
  }
  EXPECT_NEAR(value("switch", trace), expected_switch, 1e-6);
  EXPECT_NEAR(value("small_scale", trace), expected_small, 1e-6);
}

TEST(Balance, IsWorstWhenOneExpertGetsAllAndZeroWithoutLayers) {
  Tensor logits = at::zeros({16, 4}, at::kDouble);
  logits.select(1, 2).fill_(50);
  const RoutingTrace trace = {select_top_k(logits, 1)};
  EXPECT_NEAR(value("switch", trace), 4.0, 1e-6);
  EXPECT_EQ(value("switch", {}), 0.0);
}

TEST(Balance, GradientGoesThroughProbabilitiesOnly) {
  rmoe::testing::expect_gradients(
      [](const auto& v) {
        return Choice<BalanceRegistry>("switch").create()->loss({select_top_k(v[0], 2)}).to(at::kDouble).reshape({1});
      },
      {randn({6, 4}, 1)}, 1e-6);
}

}  // namespace
}  // namespace rmoe::routing
