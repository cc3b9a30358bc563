// The gate with something added to its logits, against gate and against the reference in fp64.
#include "rmoe/ops/added_gate.h"

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/reference/added_gate.h"
#include "tests/support/gradcheck.h"

namespace rmoe {
namespace {

using testing::randn;

TEST(AddedGate, ZerosLeaveTheGateAsItIsBitForBit) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const int64_t T : {0, 1, 5, 8, 9, 130}) {
      for (const int64_t N : {1, 4, 16, 19}) {
        for (const bool renormalize : {false, true}) {
          const Tensor feature = randn({T, 37}, 1).to(dtype), weight = randn({N, 37}, 2).to(at::kFloat);
          const Tensor bias = randn({N}, 3).to(at::kFloat);
          const int64_t K = std::min<int64_t>(N, 3);
          const Gated plain = gate(feature, weight, bias, K, renormalize);
          const Gated added = added_gate(feature, weight, bias, at::zeros({T, N}), K, renormalize);
          EXPECT_TRUE(plain.ids_TK.equal(added.ids_TK));
          EXPECT_TRUE(plain.weights_TK.equal(added.weights_TK)) << dtype << " " << T << " " << N;
          EXPECT_TRUE(plain.probs_TN.equal(added.probs_TN));
          EXPECT_TRUE(plain.logits_TN.equal(added.logits_TN));
          EXPECT_TRUE(plain.counts_N.equal(added.counts_N));
        }
      }
    }
  }
}

TEST(AddedGate, EqualsTheReference) {
  for (const int64_t T : {3, 130}) {
    const Tensor feature = randn({T, 20}, 1), weight = randn({7, 20}, 2), added = randn({T, 7}, 4);
    const auto [ids, weights, probs, logits, counts] = reference::added_gate(feature, weight, {}, added, 2, true);
    const Gated g = added_gate(feature.to(at::kFloat), weight.to(at::kFloat), {}, added.to(at::kFloat), 2, true);
    EXPECT_TRUE(g.ids_TK.equal(ids));
    EXPECT_TRUE(at::allclose(g.weights_TK.to(at::kDouble), weights, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(g.logits_TN.to(at::kDouble), logits, 1e-5, 1e-4));
    EXPECT_TRUE(g.counts_N.equal(counts));
  }
}

// Everything that is differentiable in everything, against central differences.
TEST(AddedGate, MatchesFiniteDifferences) {
  for (const bool renormalize : {false, true}) {
    const auto loss = [&](const std::vector<Tensor>& v) {
      const Gated g = added_gate(v[0], v[1], v[2], v[3], 2, renormalize);
      const auto weigh = [](const Tensor& t) { return (t * randn(t.sizes(), 9)).sum(); };
      return weigh(g.weights_TK) + weigh(g.probs_TN) + weigh(g.logits_TN);
    };
    std::vector<Tensor> inputs{randn({3, 4}, 1), randn({5, 4}, 2), randn({5}, 3), randn({3, 5}, 4)};
    for (Tensor& t : inputs) t.requires_grad_(true);
    loss(inputs).backward();
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < inputs.size(); ++i) {
      for (int64_t j = 0; j < inputs[i].numel(); ++j) {
        const auto at = [&](double offset) {
          std::vector<Tensor> moved;
          for (const Tensor& t : inputs) moved.push_back(t.detach().clone());
          moved[i].view(-1)[j] += offset;
          return loss(moved).item<double>();
        };
        EXPECT_NEAR(inputs[i].grad().view(-1)[j].item<double>(), (at(1e-6) - at(-1e-6)) / 2e-6, 1e-6) << i << " " << j;
      }
    }
  }
}

TEST(AddedGate, GradientsInFp32AreTheReferences) {
  const auto run = [](at::ScalarType dtype) {
    std::vector<Tensor> v{randn({50, 20}, 1).to(dtype), randn({6, 20}, 2).to(dtype), randn({50, 6}, 4).to(dtype)};
    for (Tensor& t : v) t.requires_grad_(true);
    const Gated g = added_gate(v[0], v[1], {}, v[2], 2, true);
    ((g.weights_TK * randn({50, 2}, 5).to(dtype)).sum() + (g.probs_TN * randn({50, 6}, 6).to(dtype)).sum()).backward();
    return std::vector<Tensor>{v[0].grad(), v[1].grad(), v[2].grad()};
  };
  const auto exact = run(at::kDouble), got = run(at::kFloat);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::allclose(got[i].to(at::kDouble), exact[i], 1e-4, 1e-4)) << i;
}

TEST(AddedGate, MetaTensorsHaveTheShapesAndTypesOfTheResults) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const Tensor feature = randn({3, 4}, 1).to(dtype), weight = randn({5, 4}, 2).to(at::kFloat);
    const auto on = [&](at::DeviceType device) {
      return added_gate(feature.to(device), weight.to(device), {}, at::zeros({3, 5}).to(device), 2, true);
    };
    const Gated here = on(at::kCPU), meta = on(at::kMeta);
    for (const auto member :
         {&Gated::ids_TK, &Gated::weights_TK, &Gated::probs_TN, &Gated::logits_TN, &Gated::counts_N}) {
      EXPECT_EQ((meta.*member).sizes(), (here.*member).sizes());
      EXPECT_EQ((meta.*member).scalar_type(), (here.*member).scalar_type());
    }
  }
}

TEST(AddedGate, SaysWhichShapeIsWrong) {
  try {
    added_gate(at::ones({2, 3}), at::ones({4, 3}), {}, at::ones({2, 5}), 1, true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "added_gate: added must be [2, 4], got [2, 5]");
  }
}

}  // namespace
}  // namespace rmoe
