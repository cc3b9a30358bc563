// CompeteSMoE: when a competition takes place, what it decides, what the linear head learns from it.
#include <algorithm>
#include <cmath>

#include "tests/unit/routers/head.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::expect_leaf_gradients;
using rmoe::testing::Flags;
using rmoe::testing::Head;
using rmoe::testing::randn;

constexpr int64_t kT = 4, kN = 5, kR = 3, kK = 2;
const RouterShape kShape{.experts = kN, .feature_width = kR, .top_k = kK, .vocab_size = 7};

struct Arena {
  explicit Arena(const Flags& flags) : head("compete", flags, kShape) {
    context.training = true;
    context.responses_TN = [this] {
      ++asked;
      return responses;
    };
  }
  RouterOutput route() const { return head.router->route({.feature_TR = f, .context = context}); }
  // The share of competitions among many passes.
  double share() {
    asked = 0;
    for (uint64_t i = 0; i < 1000; ++i) {
      context.key = DropoutKey{i};
      route();
    }
    return static_cast<double>(asked) / 1000;
  }

  Head head;
  Tensor f = randn({kT, kR}, 1).requires_grad_(true), responses = randn({kT, kN}, 2).abs();
  RouteContext context;
  int asked = 0;
};

TEST(CompeteRouter, TheStrongestAnswersDecideACompetition) {
  const Arena arena({"rate=1"});
  const RouterOutput out = arena.route();
  EXPECT_TRUE(out.logits_TN.equal(arena.responses));
  EXPECT_FALSE(out.logits_TN.requires_grad());
  EXPECT_FALSE(out.ranking_TN.defined());
}

// mean over tokens and experts of (softmax(logits) - softmax over the two winners)^2, times the weight.
TEST(CompeteRouter, TheLinearHeadIsTaughtTheOutcome) {
  const Arena arena({"rate=1", "router_weight=0.5"});
  const Tensor logits = arena.head.logits(arena.f);
  double expected = 0;
  for (int64_t t = 0; t < kT; ++t) {
    std::vector<double> s(kN), p(kN);
    double sum = 0;
    for (size_t n = 0; n < kN; ++n) {
      s[n] = arena.responses[t][static_cast<int64_t>(n)].item<double>();
      sum += p[n] = std::exp(logits[t][static_cast<int64_t>(n)].item<double>());
    }
    std::vector<double> sorted = s;
    std::sort(sorted.rbegin(), sorted.rend());
    const double winners = std::exp(sorted[0]) + std::exp(sorted[1]);
    for (size_t n = 0; n < kN; ++n) {
      const double target = s[n] >= sorted[1] ? std::exp(s[n]) / winners : 0;
      expected += (p[n] / sum - target) * (p[n] / sum - target) / (kT * kN);
    }
  }
  EXPECT_NEAR(arena.route().loss.item<double>(), 0.5 * expected, 1e-12);
  expect_leaf_gradients([&] { return arena.route().loss; }, {arena.f, arena.head.param("gate.weight")});
}

TEST(CompeteRouter, PaddingDoesNotCount) {
  Arena arena({"rate=1"});
  arena.context.valid_T = at::tensor({1, 0, 1, 1}, at::kLong).to(at::kBool);
  const double with_padding = arena.route().loss.item<double>();
  const Tensor kept = at::tensor({0, 2, 3}, at::kLong);
  arena.f = arena.f.detach().index_select(0, kept);
  arena.responses = arena.responses.index_select(0, kept);
  arena.context.valid_T = Tensor();
  EXPECT_DOUBLE_EQ(with_padding, arena.route().loss.item<double>());
}

TEST(CompeteRouter, OtherwiseTheLinearHeadRoutes) {
  Arena never({"rate=0"}), evaluation({"rate=1"});
  evaluation.context.training = false;
  for (const Arena* arena : {&never, &evaluation}) {
    const RouterOutput out = arena->route();
    EXPECT_TRUE(out.logits_TN.equal(arena->head.logits(arena->f)));
    EXPECT_FALSE(out.loss.defined());
    EXPECT_EQ(arena->asked, 0);  // answers of all experts cost much
  }
}

TEST(CompeteRouter, CompetitionsAreAsFrequentAsAsked) {
  EXPECT_NEAR(Arena({"rate=0.3"}).share(), 0.3, 0.05);
  EXPECT_NEAR(Arena({}).share(), 0.03, 0.02);
}

TEST(CompeteRouter, TheSameKeyDrawsTheSame) {
  const Flags half{"rate=0.5"};
  Arena a(half), b(half);
  for (uint64_t i = 0; i < 100; ++i) {
    a.context.key = b.context.key = DropoutKey{i};
    EXPECT_EQ(a.route().loss.defined(), b.route().loss.defined());
  }
}

TEST(CompeteRouter, TheFallingScheduleFollowsTheSteps) {
  Arena arena({"rate=1", "schedule=falling"});
  EXPECT_NEAR(arena.share(), 2.0 / 3, 0.05);
  arena.head.router->update(0, {}, {.step = 63000, .steps = 80000});
  EXPECT_NEAR(arena.share(), 2.0 / 10, 0.05);
  EXPECT_EQ(arena.head.param("compete.step").item<int64_t>(), 63000);  // saved with the model
}

TEST(CompeteRouter, NoTokensCostNothing) {
  Arena arena({"rate=1"});
  arena.f = at::zeros({0, kR}, at::kDouble);
  arena.responses = at::zeros({0, kN}, at::kDouble);
  EXPECT_EQ(arena.route().loss.item<double>(), 0);
}

TEST(CompeteRouter, ResponsesMustBeThereAndFit) {
  Arena arena({"rate=1"});
  arena.responses = arena.responses.narrow(1, 0, kN - 1);
  EXPECT_THROW(arena.route(), Error);
  arena.context.responses_TN = nullptr;
  EXPECT_THROW(arena.route(), Error);
}

}  // namespace
}  // namespace rmoe::routing
