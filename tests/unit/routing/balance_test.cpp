#include <cmath>

#include "rmoe/base/error.h"
#include "tests/unit/routing/helpers.h"

namespace rmoe::routing {
namespace {

// One balance for some layers of N experts, K per token, with the table that holds its buffers.
struct Balanced {
  Balanced(const std::string& kind, const std::string& options, int64_t N, int64_t K, int64_t layers = 2) {
    std::vector<ParamScope> scopes;
    for (int64_t i = 0; i < layers; ++i) scopes.push_back(ParamScope(table) / std::to_string(i));
    balance = make<BalanceRegistry>(kind, options, BalanceShape{.experts = N, .top_k = K}, scopes);
  }
  Balance* operator->() const { return balance.get(); }
  double loss(const RoutingTrace& trace, const BatchCounts* batch = nullptr) const {
    return balance->loss(trace, batch).item<double>();
  }
  // As after an optimizer step of these micro-batches.
  void update(const std::vector<RoutingTrace>& batches, const StepInfo& info = {}) {
    for (size_t layer = 0; layer < batches[0].size(); ++layer) {
      const auto i = static_cast<int64_t>(layer);
      Tensor sum = balance->statistic(i, batches[0][layer]);
      for (size_t b = 1; b < batches.size(); ++b) sum = sum + balance->statistic(i, batches[b][layer]);
      balance->update(i, sum, info);
    }
  }
  Tensor buffer(size_t i = 0) const { return table.all()[i].value; }

  ParamTable table{1, at::kDouble};
  std::shared_ptr<Balance> balance;
};

RoutingTrace route_all(const std::vector<Tensor>& logits, int64_t K, const Tensor& valid_T = {}, int64_t sequences = 1,
                       const std::string& score = "softmax_selected") {
  RoutingTrace trace;
  for (const Tensor& logits_TN : logits) trace.push_back(route(logits_TN, K, valid_T, sequences, score));
  return trace;
}

// A trace whose choices are exactly even, in every sequence, and whose logits are 0.
RoutingTrace uniform_trace(int64_t layers, int64_t N, int64_t K) {
  Routing r = route(at::zeros({2 * N, N}, at::kDouble), K);
  r.ids_TK = (at::arange(2 * N).unsqueeze(1) + at::arange(K)).remainder(N);
  r.chosen_TK = r.ids_TK;
  r.counts_N = r.chosen_N = count_ids(r.ids_TK, N);
  r.sequences = 2;
  return RoutingTrace(static_cast<size_t>(layers), r);
}

// N sum_n f_n P_n of the tokens [from, to) of a full routing, summed token by token; the f of counts when given.
double product(const Routing& r, int64_t from, int64_t to, const Tensor& counts_N = {}) {
  double sum = 0;
  const int64_t N = r.experts(), K = r.ids_TK.size(1);
  for (int64_t n = 0; n < N; ++n) {
    double rows = 0, probability = 0;
    for (int64_t t = from; t < to; ++t) {
      for (int64_t k = 0; k < K; ++k) rows += r.ids_TK[t][k].item<int64_t>() == n;
      probability += r.logits_TN[t].softmax(0)[n].item<double>();
    }
    const double share = counts_N.defined() ? counts_N[n].item<double>() / counts_N.sum().item<double>()
                                            : rows / static_cast<double>((to - from) * K);
    sum += share * probability / static_cast<double>(to - from);
  }
  return static_cast<double>(N) * sum;
}

const char* const kLosses[] = {"switch", "small_scale", "global_batch", "concatenated", "sequence", "z"};
const char* const kSteering[] = {"bias", "quantile", "sinkhorn"};

class Loss : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Loss, ::testing::ValuesIn(kLosses), [](const auto& test) { return test.param; });

class Steering : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Steering, ::testing::ValuesIn(kSteering), [](const auto& test) { return test.param; });

TEST_P(Loss, GradientsMatchFiniteDifferences) {
  const Balanced balance(GetParam(), "", 5, 2);
  const Tensor valid = at::tensor({1, 1, 0, 1, 1, 1, 1, 0}, at::kLong).to(at::kBool);
  for (const Tensor& mask : {Tensor(), valid}) {
    expect_gradients(
        [&](const auto& v) { return balance->loss(route_all({v[0], v[1]}, 2, mask, 2), nullptr).reshape({1}); },
        {randn({8, 5}, 1), randn({8, 5}, 2)});
  }
}

TEST_P(Loss, IsZeroWithFiniteGradientsWithoutLayersTokensOrTokensThatCount) {
  const Balanced balance(GetParam(), "", 5, 2);
  EXPECT_EQ(balance.loss({}), 0);
  for (const int64_t T : {0, 6}) {
    const Tensor logits = randn({T, 5}, 1).requires_grad_();
    const Tensor loss = balance->loss(route_all({logits, logits}, 2, at::zeros({T}, at::kBool), 2), nullptr);
    EXPECT_EQ(loss.item<double>(), 0);
    EXPECT_EQ(loss.scalar_type(), at::kDouble);
    loss.backward();
    EXPECT_EQ(logits.grad().abs().sum().item<double>(), 0);
  }
  const Tensor nothing = randn({0, 5}, 1).requires_grad_();
  const Tensor loss = balance->loss(route_all({nothing, nothing}, 2), nullptr);
  EXPECT_EQ(loss.item<double>(), 0);
  loss.backward();
}

TEST_P(Loss, PaddingChangesNeitherValueNorGradient) {
  const Balanced balance(GetParam(), "", 5, 2);
  // Two sequences of 4 tokens, padded to 7, and a third that is only padding.
  const Tensor logits = randn({8, 5}, 1).requires_grad_(), plain = logits.detach().clone().requires_grad_();
  const Tensor padding = randn({2, 3, 5}, 2) * 1000, third = randn({7, 5}, 3) * 1000;
  const Tensor padded = at::cat({at::cat({logits.view({2, 4, 5}), padding}, 1).view({14, 5}), third});
  const Tensor valid = at::cat(
      {at::cat({at::ones({2, 4}, at::kBool), at::zeros({2, 3}, at::kBool)}, 1).flatten(), at::zeros({7}, at::kBool)});
  const Tensor with = balance->loss(route_all({padded, padded}, 2, valid, 3), nullptr);
  const Tensor without = balance->loss(route_all({plain, plain}, 2, {}, 2), nullptr);
  EXPECT_NEAR(with.item<double>(), without.item<double>(), 1e-12);
  with.backward();
  without.backward();
  EXPECT_TRUE(at::allclose(logits.grad(), plain.grad(), 1e-10, 1e-12));
}

TEST_P(Loss, TakesOneExpertAndAllExperts) {
  for (const int64_t K : {1, 3}) {
    const RoutingTrace trace = route_all({randn({6, K}, 1), randn({6, K}, 2)}, K);
    EXPECT_TRUE(std::isfinite(Balanced(GetParam(), "", K, K).loss(trace)));
  }
}

TEST_P(Loss, OnlyGlobalBatchAsksForTheBatchsCounts) {
  EXPECT_EQ(Balanced(GetParam(), "", 4, 2)->wants_batch_counts(), GetParam() == std::string("global_batch"));
}

TEST(BalanceLosses, ValuesAtUniformRoutingAreAsStated) {
  const int64_t N = 8, layers = 3;
  for (const int64_t K : {1, 2, 8}) {
    const RoutingTrace trace = uniform_trace(layers, N, K);
    const auto value = [&](const char* kind) { return Balanced(kind, "", N, K, layers).loss(trace); };
    const auto k = static_cast<double>(K);
    EXPECT_NEAR(value("switch"), 1, 1e-12);
    EXPECT_NEAR(value("global_batch"), 1, 1e-12);
    EXPECT_NEAR(value("sequence"), 1, 1e-12);
    EXPECT_NEAR(value("small_scale"), layers / k, 1e-12);
    EXPECT_NEAR(value("concatenated"), k, 1e-12);
    EXPECT_NEAR(value("z"), std::pow(std::log(N), 2), 1e-12);
  }
}

TEST(BalanceLosses, EqualTheirDefinitionsSummedTokenByToken) {
  const int64_t T = 12, N = 5, K = 2, layers = 2, sequences = 3, length = T / sequences;
  const RoutingTrace trace = route_all({randn({T, N}, 1), randn({T, N}, 2)}, K, {}, sequences);
  double of_switch = 0, of_sequence = 0, of_z = 0;
  for (const Routing& r : trace) {
    of_switch += product(r, 0, T) / layers;
    for (int64_t s = 0; s < sequences; ++s) {
      of_sequence += product(r, s * length, (s + 1) * length) / (layers * sequences);
    }
    for (int64_t t = 0; t < T; ++t) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += std::exp(at_tn(r.logits_TN, t, n));
      of_z += std::pow(std::log(sum), 2) / (layers * T);
    }
  }
  const auto value = [&](const char* kind) { return Balanced(kind, "", N, K).loss(trace); };
  EXPECT_NEAR(value("switch"), of_switch, 1e-12);
  EXPECT_NEAR(value("small_scale"), of_switch * layers / K, 1e-12);
  EXPECT_NEAR(value("global_batch"), of_switch, 1e-12);  // one batch is the whole step
  EXPECT_NEAR(value("sequence"), of_sequence, 1e-12);
  EXPECT_NEAR(value("z"), of_z, 1e-12);
}

// As transformers computes it: one mask per slot, means over all layers' tokens, summed over slots and experts.
TEST(BalanceLosses, ConcatenatedEqualsTransformersFormula) {
  const int64_t T = 9, N = 6, K = 3;
  const RoutingTrace trace = route_all({randn({T, N}, 1), randn({T, N}, 2), randn({T, N}, 3)}, K);
  double mask[K][N] = {}, probability[N] = {};
  for (const Routing& r : trace) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t k = 0; k < K; ++k) mask[k][r.ids_TK[t][k].item<int64_t>()] += 1.0 / (3 * T);
      for (int64_t n = 0; n < N; ++n) probability[n] += at_tn(r.probs_TN, t, n) / (3 * T);
    }
  }
  double expected = 0;
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t n = 0; n < N; ++n) expected += N * mask[k][n] * probability[n];
  }
  EXPECT_NEAR(Balanced("concatenated", "", N, K, 3).loss(trace), expected, 1e-12);
}

TEST(BalanceLosses, AreLargestWhenOneExpertGetsAll) {
  Tensor logits = at::zeros({16, 4}, at::kDouble);
  logits.select(1, 2).fill_(500);
  for (const char* kind : {"switch", "small_scale", "global_batch", "concatenated", "sequence"}) {
    EXPECT_NEAR(Balanced(kind, "", 4, 1, 1).loss({route(logits, 1, {}, 2)}), 4, 1e-12) << kind;
  }
}

TEST(BalanceLosses, AreThoseOfTheStepWhateverTheMicroBatches) {
  const int64_t N = 5, K = 2;
  const std::vector<Tensor> logits = {randn({16, N}, 1), randn({16, N}, 2)};
  const RoutingTrace whole = route_all(logits, K, {}, 8);
  BatchCounts counts;
  for (const Routing& r : whole) counts.push_back(r.chosen_N);
  for (const char* kind : {"global_batch", "sequence", "z"}) {
    const Balanced balance(kind, "", N, K);
    for (const int64_t parts : {2, 4}) {
      double sum = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const auto part = [&](const Tensor& x) { return x.narrow(0, i * 16 / parts, 16 / parts); };
        sum += balance.loss(route_all({part(logits[0]), part(logits[1])}, K, {}, 8 / parts), &counts);
      }
      EXPECT_NEAR(sum / static_cast<double>(parts), balance.loss(whole), 1e-12) << kind;
    }
  }
}

TEST(GlobalBatch, TakesTheSharesOfTheBatchNotOfTheTrace) {
  const Routing r = route(randn({9, 4}, 1), 2);
  const Tensor counts = at::tensor({10, 0, 3, 7}, at::kLong);
  const BatchCounts batch = {counts};
  EXPECT_NEAR(Balanced("global_batch", "", 4, 2, 1).loss({r}, &batch), product(r, 0, 9, counts), 1e-12);
}

TEST(ExpertShare, SumsToOneOrIsZeroAndTakesHugeCounts) {
  const Tensor counts = at::tensor({int64_t{3} << 40, int64_t{1} << 40}, at::kLong);
  EXPECT_TRUE(expert_share(counts, at::kFloat).equal(at::tensor({0.75F, 0.25F})));
  EXPECT_TRUE(expert_share(at::zeros({3}, at::kLong), at::kDouble).equal(at::zeros({3}, at::kDouble)));
}

TEST_P(Steering, AddsNoLoss) {
  EXPECT_EQ(Balanced(GetParam(), "", 5, 2).loss(route_all({randn({8, 5}, 1), randn({8, 5}, 2)}, 2)), 0);
  EXPECT_EQ(Balanced(GetParam(), "", 5, 2).loss({}), 0);
}

TEST_P(Steering, StartsWithThePlainRankingOutsideTraining) {
  const Balanced balance(GetParam(), "", 5, 2);
  const Tensor logits = randn({8, 5}, 1), scores = logits.softmax(-1);
  EXPECT_TRUE(balance->rank(1, scores, logits, {}).equal(scores));
}

TEST_P(Steering, NeedsASelectionThatRanks) {
  const Balanced balance(GetParam(), "", 5, 2);
  Combination combination;
  EXPECT_THROW(balance->check(combination), Error);
  combination.ranks = true;
  EXPECT_NO_THROW(balance->check(combination));
}

TEST(Steering, EvaluationChangesNoBuffer) {
  for (const char* kind : {"bias", "quantile", "sinkhorn", "relu_l1"}) {
    Balanced balance(kind, "", 5, 2);
    const RoutingTrace trace = route_all({randn({8, 5}, 1), randn({8, 5}, 2)}, 2);
    balance.update({trace});
    const auto before = values(balance.table);
    for (const bool training : {false, true}) {
      RouteContext context;
      context.training = training;
      balance->rank(0, trace[0].scores_TN, trace[0].logits_TN, context);
    }
    balance->statistic(0, trace[0]);
    balance->loss(trace, nullptr);
    EXPECT_TRUE(same(before, values(balance.table))) << kind;
  }
}

TEST(Steering, StatisticsAddUpOverMicroBatchesAndSkipPadding) {
  const std::vector<Tensor> logits = {randn({12, 5}, 1), randn({12, 5}, 2)};
  for (const auto& [kind, score] :
       {std::pair{"bias", "sigmoid"}, std::pair{"quantile", "sigmoid"}, std::pair{"relu_l1", "relu"}}) {
    const auto part = [&](int64_t from, int64_t size) {
      return route_all({logits[0].narrow(0, from, size), logits[1].narrow(0, from, size)}, 2, {}, 1, score);
    };
    const Balanced balance(kind, "", 5, 2);
    const Tensor whole = balance->statistic(1, part(0, 12)[1]);
    EXPECT_EQ(whole.scalar_type(), at::kLong) << kind;
    EXPECT_TRUE((balance->statistic(1, part(0, 5)[1]) + balance->statistic(1, part(5, 7)[1])).equal(whole)) << kind;
    const auto padded = route_all(logits, 2, at::arange(12) < 5, 1, score);
    EXPECT_TRUE(balance->statistic(1, padded[1]).equal(balance->statistic(1, part(0, 5)[1]))) << kind;
  }
}

TEST(Bias, MovesByItsRateTowardsTheExpertsThatGotLess) {
  Balanced balance("bias", "rate = 0.5", 4, 2, 1);
  balance->update(0, at::tensor({10, 2, 6, 6}, at::kLong), {});  // the mean is 6
  EXPECT_TRUE(balance.buffer().equal(at::tensor({-0.5F, 0.5F, 0.F, 0.F})));
  balance->update(0, at::tensor({5, 3, 9, 7}, at::kLong), {});
  EXPECT_TRUE(balance.buffer().equal(at::tensor({0.F, 1.F, -0.5F, -0.5F})));
  // Differences that fp32 could not hold.
  const int64_t huge = int64_t{1} << 40;
  balance->update(0, at::tensor({huge + 1, huge - 1, huge, huge}, at::kLong), {});
  EXPECT_TRUE(balance.buffer().equal(at::tensor({-0.5F, 1.5F, -0.5F, -0.5F})));
  const Tensor scores = randn({6, 4}, 1).sigmoid();
  EXPECT_TRUE(at::allclose(balance->rank(0, scores, {}, {}), scores + balance.buffer().to(at::kDouble)));
}

TEST(Bias, IsASavedFp32BufferPerLayerAndNoParameter) {
  const Balanced balance("bias", "", 4, 2, 3);
  ASSERT_EQ(balance.table.all().size(), 3U);
  EXPECT_EQ(balance.table.all()[1].name, "1.gate.e_score_correction_bias");
  for (const Param& param : balance.table.all()) EXPECT_EQ(param.value.scalar_type(), at::kFloat);
  EXPECT_EQ(balance.table.count(), 0);
}

// The largest load over the mean when the K best of the balance's ranking are taken.
double imbalance(const Balanced& balance, const Tensor& logits, const Tensor& scores, int64_t K, bool training) {
  RouteContext context;
  context.training = training;
  const Tensor counts =
      count_ids(best_ids(balance->rank(0, scores, logits, context), K), logits.size(1)).to(at::kDouble);
  return (counts.max() / counts.mean()).item<double>();
}

Tensor skewed_logits(int64_t T, int64_t N) { return randn({T, N}, 1) + at::linspace(2, -1, N, at::kDouble); }

TEST(Bias, EvensOutASkewedLoad) {
  Balanced balance("bias", "rate = 0.01", 8, 2, 1);
  const Tensor logits = skewed_logits(500, 8), scores = logits.sigmoid();
  EXPECT_GT(imbalance(balance, logits, scores, 2, true), 1.7);
  for (int step = 0; step < 100; ++step) {
    balance->update(0, count_ids(best_ids(balance->rank(0, scores, logits, {}), 2), 8), {});
  }
  EXPECT_LT(imbalance(balance, logits, scores, 2, false), 1.1);
}

TEST(Quantile, EvensOutASkewedLoadAfterOneStep) {
  Balanced balance("quantile", "", 8, 2, 1);
  const Tensor logits = skewed_logits(500, 8);
  const RoutingTrace trace = route_all({logits}, 2, {}, 1, "sigmoid");
  balance.update({trace});
  EXPECT_LT(imbalance(balance, logits, trace[0].scores_TN, 2, false), 1.35);
  EXPECT_EQ(balance.buffer().scalar_type(), at::kFloat);
}

TEST(Quantile, EvensOutHundredsOfExpertsAndUnboundedScores) {
  const int64_t T = 4096, N = 512, K = 8;
  const Tensor logits = skewed_logits(T, N);
  for (const std::string score : {"softmax", "sqrt_softplus"}) {
    Balanced balance("quantile", "", N, K, 1);
    const RoutingTrace trace = route_all({logits}, K, {}, 1, score);
    EXPECT_GT(imbalance(balance, logits, trace[0].scores_TN, K, false), 3) << score;
    balance.update({trace});
    // Each expert's share T K / N lies above its quantile, give or take the tokens of one bin.
    const Tensor above_N = (trace[0].scores_TN > balance.buffer()).sum(0);
    EXPECT_TRUE((above_N - T * K / N).abs().le(4).all().item<bool>()) << score << (above_N - T * K / N);
    EXPECT_LT(imbalance(balance, logits, trace[0].scores_TN, K, false), 3) << score;
  }
}

TEST(Sinkhorn, BalancesTrainingAndLeavesEvaluationAlone) {
  const Balanced balance("sinkhorn", "iterations = 50", 8, 1, 1);
  const Tensor logits = skewed_logits(500, 8) * 3, scores = logits.softmax(-1);
  EXPECT_GT(imbalance(balance, logits, scores, 1, false), 2.5);
  EXPECT_LT(imbalance(balance, logits, scores, 1, true), 1.15);
}

// The plain algorithm on exp(logits): rows, then columns, over and over.
TEST(Sinkhorn, IsTheBalancedTransport) {
  const int64_t T = 7, N = 3;
  const Tensor logits = randn({T, N}, 1);
  RouteContext context;
  context.training = true;
  const Tensor got = Balanced("sinkhorn", "iterations = 200", N, 1)->rank(0, logits, logits, context);
  std::vector<std::vector<double>> plan(T, std::vector<double>(N));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) plan[t][n] = std::exp(at_tn(logits, t, n));
  }
  for (int round = 0; round < 300; ++round) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t t = 0; t < T; ++t) sum += plan[t][n];
      for (int64_t t = 0; t < T; ++t) plan[t][n] *= static_cast<double>(T) / N / sum;
    }
    for (int64_t t = 0; t < T; ++t) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += plan[t][n];
      for (int64_t n = 0; n < N; ++n) plan[t][n] /= sum;
    }
  }
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) EXPECT_NEAR(at_tn(got, t, n), plan[t][n], 1e-9);
  }
}

TEST(Sinkhorn, PaddingChangesNothingAndExtremeLogitsStayFinite) {
  const Balanced balance("sinkhorn", "", 4, 1);
  const Tensor logits = randn({9, 4}, 1), padded = at::cat({logits, randn({5, 4}, 2) * 100});
  RouteContext context;
  context.training = true;
  const Tensor plain = balance->rank(0, logits, logits, context);
  context.valid_T = at::arange(14) < 9;
  EXPECT_TRUE(at::allclose(balance->rank(0, padded, padded, context).narrow(0, 0, 9), plain));
  context.valid_T = at::zeros({14}, at::kBool);
  EXPECT_TRUE(balance->rank(0, padded, padded, context).isfinite().all().item<bool>());
  context.valid_T = Tensor();
  const Tensor extreme = (randn({9, 4}, 3, at::kFloat) * 1e4).clamp(-1e4, 1e4);
  EXPECT_TRUE(balance->rank(0, extreme, extreme, context).isfinite().all().item<bool>());
  EXPECT_EQ(balance->rank(0, randn({0, 4}, 1), randn({0, 4}, 1), context).size(0), 0);
}

TEST(ReluL1, EqualsItsDefinitionSummedTokenByToken) {
  const int64_t T = 9, N = 5, K = 2, layers = 2;
  const Tensor valid = at::arange(T) != 4;
  RoutingTrace trace;
  double plain = 0, balanced = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    Routing r = route(randn({T, N}, static_cast<uint64_t>(layer + 1)), N, valid, 1, "relu");
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, positive = 0;
      for (int64_t t = 0; t < T; ++t) {
        const double s = t == 4 ? 0 : std::max(at_tn(r.logits_TN, t, n), 0.0);
        sum += s;
        positive += s > 0;
      }
      plain += 0.5 * sum / (layers * (T - 1));
      balanced += 0.5 * static_cast<double>(N) / (K * (T - 1)) * positive * sum / (layers * (T - 1));
    }
    trace.push_back(std::move(r));
  }
  EXPECT_NEAR(Balanced("relu_l1", "start = 0.5\nbalanced = false", N, K).loss(trace), plain, 1e-7);
  EXPECT_NEAR(Balanced("relu_l1", "start = 0.5", N, K).loss(trace), balanced, 1e-7);
  EXPECT_EQ(Balanced("relu_l1", "", N, K).loss({}), 0);
  EXPECT_EQ(Balanced("relu_l1", "", N, K, 0).loss({}), 0);
}

TEST(ReluL1, GradientsMatchFiniteDifferences) {
  for (const char* options : {"start = 1.0", "start = 1.0\nbalanced = false"}) {
    const Balanced balance("relu_l1", options, 5, 2);
    expect_gradients(
        [&](const auto& v) { return balance->loss(route_all({v[0], v[1]}, 5, {}, 1, "relu"), nullptr).reshape({1}); },
        {randn({8, 5}, 1), randn({8, 5}, 2)});
  }
  for (const Tensor& logits : {randn({0, 5}, 1), -at::ones({3, 5}, at::kDouble)}) {
    const Tensor x = logits.clone().requires_grad_();
    const Tensor loss = Balanced("relu_l1", "", 5, 2)->loss(route_all({x, x}, 5, {}, 1, "relu"), nullptr);
    EXPECT_EQ(loss.item<double>(), 0);
    loss.backward();
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  }
}

TEST(ReluL1, LambdaMovesOncePerStepByTheSparsityOfAllLayers) {
  Balanced balance("relu_l1", "start = 0.5\nfactor = 2.0", 4, 1, 2);
  const auto scores_with = [](int64_t positive) {  // of 16 scores; wanted: 4
    return route(at::where(at::arange(16) < positive, 1.0, -1.0).view({4, 4}), 4, {}, 1, "relu");
  };
  const auto lambda = [&] { return balance.buffer().item<double>(); };
  balance.update({{scores_with(2), scores_with(8)}});  // 10 of 32, more than 8
  EXPECT_EQ(lambda(), 1.0);
  balance.update({{scores_with(5), scores_with(3)}});  // as wanted
  EXPECT_EQ(lambda(), 1.0);
  balance.update({{scores_with(2), scores_with(5)}});
  EXPECT_EQ(lambda(), 0.5);
  balance.update({{scores_with(8), scores_with(8)}, {scores_with(0), scores_with(0)}});  // two micro-batches: as wanted
  EXPECT_EQ(lambda(), 0.5);
  for (int step = 0; step < 200; ++step) balance.update({{scores_with(0), scores_with(0)}});
  EXPECT_GT(lambda(), 0);
  EXPECT_THROW(balance->check({}), Error);
}

// A small training whose other loss wants all scores large.
TEST(ReluL1, ReachesTheWantedSparsity) {
  const int64_t T = 256, N = 8, K = 2;
  Balanced balance("relu_l1", "start = 1e-4", N, K, 1);
  const Tensor base = skewed_logits(T, N);
  Tensor shift = at::zeros({N}, at::kDouble).requires_grad_();
  double positive = 0;
  for (int step = 0; step < 600; ++step) {
    const Routing r = route(base + shift, N, {}, 1, "relu");
    (balance->loss({r}, nullptr) - 0.1 * r.scores_TN.sum() / T).backward();
    {
      at::NoGradGuard no_grad;
      shift.sub_(shift.grad(), 0.3);
      shift.grad().zero_();
    }
    balance.update({{r}});
    if (step >= 400) positive += r.scores_TN.gt(0).sum().item<double>() / (200 * T);
  }
  EXPECT_NEAR(positive, K, 0.3);
}

}  // namespace
}  // namespace rmoe::routing
