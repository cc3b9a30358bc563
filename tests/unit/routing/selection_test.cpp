#include <algorithm>
#include <cmath>
#include <numeric>

#include "rmoe/base/error.h"
#include "rmoe/routing/quantile.h"
#include "tests/unit/routing/helpers.h"

namespace rmoe::routing {
namespace {

// One selection of N experts, K per token, with the table that holds its buffers.
struct Selected {
  Selected(const std::string& kind, const std::string& options, int64_t N, int64_t K)
      : selection(make<SelectionRegistry>(kind, options, RouterShape{.experts = N, .top_k = K}, ParamScope(table))) {}

  Selection::Choice operator()(const Tensor& scores_TN, const Tensor& valid_T = {}) const {
    RouteContext context;
    context.valid_T = valid_T;
    return selection->select({.ranking_TN = scores_TN, .scores_TN = scores_TN, .context = context});
  }
  std::vector<int64_t> ids(const Tensor& scores_TN) const { return numbers((*this)(scores_TN).ids_TK); }

  ParamTable table{1, at::kDouble};
  std::shared_ptr<Selection> selection;
};

using Rows = std::vector<std::vector<int64_t>>;

// The used ids of each token, ascending.
Rows sets(const Tensor& ids_TK) {
  Rows rows;
  for (int64_t t = 0; t < ids_TK.size(0); ++t) {
    std::vector<int64_t> row = numbers(ids_TK[t]);
    std::erase(row, -1);
    std::sort(row.begin(), row.end());
    rows.push_back(row);
  }
  return rows;
}

// 0 .. N-1 by falling value, the lower id first among equals.
std::vector<int64_t> order_of(const std::function<double(int64_t)>& value, int64_t N) {
  std::vector<int64_t> order(static_cast<size_t>(N));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return value(a) > value(b); });
  return order;
}

std::vector<int64_t> order_of(const Tensor& scores_TN, int64_t t) {
  return order_of([&](int64_t n) { return at_tn(scores_TN, t, n); }, scores_TN.size(1));
}

// Probabilities of few different values, so that ties are common.
Tensor with_ties(int64_t T, int64_t N, uint64_t seed) { return (randn({T, N}, seed) * 2).round().softmax(-1); }

// Every selection, with options that fit N = 8, K = 2.
class EverySelection : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};
INSTANTIATE_TEST_SUITE_P(All, EverySelection,
                         ::testing::Values(std::pair{"top_k", ""}, std::pair{"top_k", "grow_to = 5"},
                                           std::pair{"group_limited", "groups = 4\nkeep_groups = 2"},
                                           std::pair{"top_p", "p = 0.6"}, std::pair{"threshold", ""},
                                           std::pair{"positive", ""}, std::pair{"expert_choice", ""},
                                           std::pair{"forced_even", ""}, std::pair{"forced_skewed", "share = 0.3"}),
                         [](const auto& test) { return std::string(test.param.first) + std::to_string(test.index); });

TEST_P(EverySelection, ChoosesDistinctExpertsTheSameWayEveryTime) {
  const Selected select(GetParam().first, GetParam().second, 8, 2);
  const Tensor scores = with_ties(20, 8, 1);
  const auto choice = select(scores);
  EXPECT_EQ(choice.ids_TK.scalar_type(), at::kLong);
  EXPECT_EQ(choice.ids_TK.size(0), 20);
  EXPECT_TRUE(choice.ids_TK.ge(choice.full ? 0 : -1).logical_and(choice.ids_TK < 8).all().item<bool>());
  for (const auto& row : sets(choice.ids_TK)) EXPECT_EQ(std::adjacent_find(row.begin(), row.end()), row.end());
  EXPECT_TRUE(choice.ids_TK.equal(select(scores).ids_TK));
}

TEST_P(EverySelection, TakesZeroTokensAndOneExpert) {
  const Selected select(GetParam().first, GetParam().second, 8, 2);
  EXPECT_EQ(select(randn({0, 8}, 1)).ids_TK.size(0), 0);
  const std::string kind = GetParam().first;
  const Selected one(kind, "", 1, 1);
  EXPECT_TRUE(one(at::ones({3, 1}, at::kDouble)).ids_TK.equal(at::zeros({3, 1}, at::kLong)));
}

TEST_P(EverySelection, ChoosesAllExpertsWhenKIsN) {
  const std::string kind = GetParam().first;
  if (kind == "top_p") return;  // knows no K
  const Selected select(kind, "", 4, 4);
  EXPECT_EQ(sets(select(with_ties(6, 4, 2)).ids_TK), Rows(6, {0, 1, 2, 3}));
}

TEST_P(EverySelection, ReadsItsBuffersButNeverWritesThem) {
  const Selected select(GetParam().first, GetParam().second, 8, 2);
  const Tensor logits = randn({9, 8}, 3);
  const auto before = values(select.table);
  select(logits.softmax(-1));
  select.selection->statistic(0, route(logits, 2));
  EXPECT_TRUE(same(before, values(select.table)));
}

TEST_P(EverySelection, CountsWithoutAllocating) {
  ParamTable table;
  make<SelectionRegistry>(GetParam().first, GetParam().second, RouterShape{.experts = 8, .top_k = 2},
                          ParamScope(table));
  EXPECT_EQ(table.count(), 0);
}

TEST(TopK, TakesTheBestByFallingScoreAndTiesGoToTheLowerId) {
  const Selected select("top_k", "", 7, 3);
  const Tensor scores = with_ties(50, 7, 1);
  const auto choice = select(scores);
  EXPECT_TRUE(choice.full);
  for (int64_t t = 0; t < 50; ++t) {
    auto best = order_of(scores, t);
    best.resize(3);
    EXPECT_EQ(numbers(choice.ids_TK[t]), best);
  }
  EXPECT_EQ(select.ids(at::zeros({2, 7})), (std::vector<int64_t>{0, 1, 2, 0, 1, 2}));
}

TEST(TopK, GoesByTheRankingNotByTheScores) {
  const Selected select("top_k", "", 5, 2);
  const Tensor ranking = randn({9, 5}, 1), scores = randn({9, 5}, 2);
  const RouteContext context;
  const auto choice = select.selection->select({.ranking_TN = ranking, .scores_TN = scores, .context = context});
  EXPECT_TRUE(choice.ids_TK.equal(best_ids(ranking, 2)));
}

TEST(TopK, RefusesMoreThanThereAre) {
  EXPECT_THROW(Selected("top_k", "", 4, 5), Error);
  EXPECT_THROW(Selected("top_k", "grow_to = 5", 4, 2), Error);
  EXPECT_THROW(Selected("top_k", "grow_to = 1", 4, 2), Error);
}

TEST(TopK, GrowsOverTrainingAndRemembersHowFarItWas) {
  Selected select("top_k", "grow_to = 6\ngrow_until = 0.5", 8, 2);
  const Tensor scores = randn({5, 8}, 1).softmax(-1);
  const auto experts_per_token = [&](const Selected& s) { return sets(s(scores).ids_TK)[0].size(); };
  EXPECT_EQ(experts_per_token(select), 2U);
  const std::pair<int64_t, size_t> steps[] = {{1, 2}, {12, 2}, {13, 3}, {25, 4}, {37, 4}, {49, 5}, {50, 6}, {100, 6}};
  for (const auto& [step, expected] : steps) {
    select.selection->update(0, {}, {.step = step, .steps = 100});
    EXPECT_EQ(experts_per_token(select), expected) << step;
    // The best so many, the others unused.
    EXPECT_TRUE(select(scores)
                    .ids_TK.narrow(1, 0, static_cast<int64_t>(expected))
                    .equal(best_ids(scores, static_cast<int64_t>(expected))));
  }
  const Selected loaded("top_k", "grow_to = 6\ngrow_until = 0.5", 8, 2);
  loaded.table.all()[0].value.copy_(select.table.all()[0].value);
  EXPECT_EQ(experts_per_token(loaded), 6U);
  EXPECT_EQ(select.table.all()[0].value.scalar_type(), at::kLong);
}

TEST(GroupLimited, EqualsItsDefinitionTokenByToken) {
  const int64_t N = 12, K = 3, G = 4, keep = 2, size = N / G;
  for (const bool top2 : {true, false}) {
    const Selected select("group_limited",
                          std::string("groups = 4\nkeep_groups = 2\ngroup_score = ") + (top2 ? "'top2'" : "'max'"), N,
                          K);
    for (const Tensor& scores : {randn({40, N}, 1).sigmoid(), with_ties(40, N, 2)}) {
      const auto choice = select(scores);
      for (int64_t t = 0; t < 40; ++t) {
        const auto group_score = [&](int64_t g) {
          std::vector<double> s;
          for (int64_t i = 0; i < size; ++i) s.push_back(at_tn(scores, t, g * size + i));
          std::sort(s.rbegin(), s.rend());
          return top2 ? s[0] + s[1] : s[0];
        };
        auto groups = order_of(group_score, G);
        groups.resize(keep);
        std::vector<int64_t> expected;
        for (const int64_t n : order_of(scores, t)) {
          if (std::count(groups.begin(), groups.end(), n / size) > 0) expected.push_back(n);
        }
        expected.resize(K);
        EXPECT_EQ(numbers(choice.ids_TK[t]), expected) << "token " << t;
      }
    }
  }
}

TEST(GroupLimited, OneGroupIsTopKAndImpossibleGroupsAreRefused) {
  const Tensor scores = with_ties(30, 6, 1);
  EXPECT_TRUE(Selected("group_limited", "", 6, 2)(scores).ids_TK.equal(best_ids(scores, 2)));
  EXPECT_TRUE(Selected("group_limited", "groups = 6\nkeep_groups = 6", 6, 2)(scores).ids_TK.equal(best_ids(scores, 2)));
  EXPECT_THROW(Selected("group_limited", "groups = 4", 6, 1), Error);
  EXPECT_THROW(Selected("group_limited", "groups = 2\nkeep_groups = 3", 6, 1), Error);
  EXPECT_THROW(Selected("group_limited", "groups = 3\nkeep_groups = 1", 6, 3), Error);
}

TEST(TopP, EqualsItsDefinitionTokenByToken) {
  const int64_t N = 7;
  for (const double p : {0.1, 0.5, 0.9}) {
    const Selected select("top_p", "p = " + std::to_string(p), N, 2);
    const Selected capped("top_p", "max_experts = 2\np = " + std::to_string(p), N, 2);
    const Tensor scores = (randn({40, N}, 1) * 2).softmax(-1);
    const Tensor ids = select(scores).ids_TK, few = capped(scores).ids_TK;
    EXPECT_EQ(few.size(1), 2);
    for (int64_t t = 0; t < 40; ++t) {
      std::vector<int64_t> expected;
      double mass = 0;
      for (const int64_t n : order_of(scores, t)) {
        expected.push_back(mass < p ? n : -1);
        mass += at_tn(scores, t, n);
      }
      EXPECT_EQ(numbers(ids[t]), expected);
      expected.resize(2);
      EXPECT_EQ(numbers(few[t]), expected);
    }
  }
}

TEST(TopP, TakesAtLeastOneAndAsFewAsReachP) {
  const Selected select("top_p", "p = 0.5", 4, 2);
  EXPECT_EQ(select.ids(at::tensor({0.25, 0.25, 0.25, 0.25}).view({1, 4})), (std::vector<int64_t>{0, 1, -1, -1}));
  EXPECT_EQ(select.ids(at::tensor({0.0, 0.0, 1.0, 0.0}).view({1, 4})), (std::vector<int64_t>{2, -1, -1, -1}));
  EXPECT_THROW(Selected("top_p", "max_experts = 5", 4, 2), Error);
}

TEST(Positive, TakesEveryPositiveScore) {
  const Selected select("positive", "", 5, 2);
  EXPECT_EQ(select.ids(at::tensor({0.0, 2.0, 0.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0}).view({2, 5})),
            (std::vector<int64_t>{3, 1, 4, -1, -1, -1, -1, -1, -1, -1}));
}

TEST(Threshold, IsTopKUntilThereIsAnEstimate) {
  const Selected select("threshold", "", 6, 2);
  const Tensor scores = with_ties(30, 6, 1);
  EXPECT_EQ(sets(select(scores).ids_TK), sets(best_ids(scores, 2)));
}

TEST(Threshold, TakesWhatExceedsEachExpertsQuantileAndAtLeastTheBest) {
  const int64_t T = 400, N = 6, K = 2;
  Selected select("threshold", "", N, K);
  // Experts of different level and spread.
  const Tensor logits = randn({T, N}, 1) * at::linspace(0.5, 2, N, at::kDouble) + at::linspace(-2, 1, N, at::kDouble);
  const Routing r = route(logits, K, {}, 1, "sigmoid");
  select.selection->update(0, select.selection->statistic(0, r), {});
  const Tensor threshold = select.table.all()[0].value;
  const Tensor ids = select(r.scores_TN).ids_TK;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<int64_t> expected;
    for (const int64_t n : order_of(r.scores_TN, t)) {
      expected.push_back(expected.empty() || at_tn(r.scores_TN, t, n) > threshold[n].item<double>() ? n : -1);
    }
    EXPECT_EQ(numbers(ids[t]), expected);
  }
  // Each expert has its share T K / N, give or take the width of a bin and the tokens that exceeded nothing.
  const Tensor above = (r.scores_TN > threshold).sum(0);
  EXPECT_TRUE((above - T * K / N).abs().le(3).all().item<bool>()) << above;
}

TEST(Threshold, MeetsItsTargetAmongHundredsOfExperts) {
  const int64_t T = 4096, N = 512, K = 8;
  Selected select("threshold", "at_least = 0", N, K);
  const Tensor logits = randn({T, N}, 1) * 2 + at::linspace(-2, 2, N, at::kDouble);
  const Routing r = route(logits, K, {}, 1, "softmax");
  select.selection->update(0, select.selection->statistic(0, r), {});
  const Tensor ids = select(r.scores_TN).ids_TK, counts = count_ids(ids, N);
  EXPECT_TRUE((counts - T * K / N).abs().le(3).all().item<bool>()) << counts - T * K / N;
  EXPECT_NEAR(counts.sum().item<double>(), static_cast<double>(T * K), 0.01 * static_cast<double>(T * K));
}

TEST(Threshold, EachTokenIsDecidedAlone) {
  Selected select("threshold", "at_least = 0", 6, 2);
  const Routing r = route(randn({50, 6}, 1), 2);
  select.selection->update(0, select.selection->statistic(0, r), {});
  const Tensor together = select(r.scores_TN).ids_TK;
  for (int64_t t = 0; t < 50; ++t)
    EXPECT_TRUE(select(r.scores_TN.narrow(0, t, 1)).ids_TK.equal(together.narrow(0, t, 1)));
}

TEST(Threshold, TheEstimateIsARunningMean) {
  Selected select("threshold", "decay = 0.75", 5, 2);
  const auto update = [&](uint64_t seed) {
    const Tensor histogram = select.selection->statistic(0, route(randn({60, 5}, seed), 2));
    select.selection->update(0, histogram, {});
    return histogram_quantile(histogram, 1 - 2.0 / 5);
  };
  const Tensor& estimate = select.table.all()[0].value;
  const Tensor first = update(1);
  EXPECT_TRUE(estimate.equal(first));
  const Tensor second = update(2);
  EXPECT_TRUE(at::allclose(estimate, first * 0.75 + second * 0.25));
  // A batch without tokens says nothing.
  const Tensor before = estimate.clone();
  select.selection->update(0, select.selection->statistic(0, route(randn({0, 5}, 3), 2)), {});
  EXPECT_TRUE(estimate.equal(before));
}

// 0, then each power of two from 2^-24 to 2^8 in 128 parts, and 2^8.
std::vector<double> edges_of_bins() {
  std::vector<double> edges = {0};
  for (int power = -24; power < 8; ++power) {
    for (int part = 0; part < 128; ++part) edges.push_back(std::ldexp(1 + part / 128.0, power));
  }
  edges.push_back(256);
  return edges;
}

TEST(ScoreHistogram, HasLogarithmicBins) {
  const Tensor edges = quantile_edges().to(at::kDouble);
  EXPECT_TRUE(edges.equal(at::tensor(edges_of_bins(), at::kDouble)));
  const Tensor low = edges.narrow(0, 1, kQuantileBins - 1), high = edges.narrow(0, 2, kQuantileBins - 1);
  EXPECT_LT((high / low).max().item<double>(), 1.01);
}

TEST(ScoreHistogram, CountsEveryTokenThatCountsAndAddsUp) {
  const int64_t T = 40, N = 3;
  Routing r = route(randn({T, N}, 1), 1);
  // Zero, what is smaller than the second bin, edges, and what is larger than the last.
  r.scores_TN[0] = at::tensor({0.0, 1.0, 0.5}, at::kDouble);
  r.scores_TN[1] = at::tensor({-0.0, 1e-30, 1e30}, at::kDouble);
  r.scores_TN[2] = at::tensor({std::ldexp(1, -24), 256.0, 3.0}, at::kDouble);
  const Tensor whole = score_histogram(r);
  EXPECT_EQ(whole.scalar_type(), at::kLong);
  Tensor expected = at::zeros({N, kQuantileBins}, at::kLong);
  const std::vector<double> edges = edges_of_bins();
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      const auto score = static_cast<double>(static_cast<float>(at_tn(r.scores_TN, t, n)));
      int64_t bin = 0;
      while (bin + 1 < kQuantileBins && score >= edges[static_cast<size_t>(bin + 1)]) ++bin;
      expected[n][bin] += 1;
    }
  }
  EXPECT_TRUE(whole.equal(expected));

  Routing parts[2] = {r, r};
  parts[0].scores_TN = r.scores_TN.narrow(0, 0, 15);
  parts[1].scores_TN = r.scores_TN.narrow(0, 15, 25);
  EXPECT_TRUE((score_histogram(parts[0]) + score_histogram(parts[1])).equal(whole));

  r.valid_T = at::arange(T) < 15;
  r.scores_TN = r.scores_TN.masked_fill(r.valid_T.logical_not().unsqueeze(1), NAN);
  EXPECT_TRUE(score_histogram(r).equal(score_histogram(parts[0])));
}

TEST(HistogramQuantile, LiesWithinABinOfTheSortedScores) {
  const int64_t T = 500;
  Routing r = route(randn({T, 4}, 1) * 2, 1, {}, 1, "sigmoid");
  r.scores_TN.select(1, 1).mul_(1e-5);
  r.scores_TN.select(1, 2).mul_(100);
  const Tensor histogram = score_histogram(r), sorted = std::get<0>(r.scores_TN.sort(0));
  constexpr double kBin = 1 + 1.0 / 128;
  for (const double level : {0.1, 0.5, 0.875}) {
    const Tensor quantile = histogram_quantile(histogram, level);
    const auto place = static_cast<int64_t>(level * static_cast<double>(T));
    for (int64_t n = 0; n < 4; ++n) {
      EXPECT_GE(quantile[n].item<double>(), at_tn(sorted, place - 1, n) / kBin);
      EXPECT_LE(quantile[n].item<double>(), at_tn(sorted, place, n) * kBin);
    }
  }
}

TEST(HistogramQuantile, InterpolatesInsideABin) {
  Tensor histogram = at::zeros({4, kQuantileBins}, at::kLong);
  const int64_t half = 1 + 23 * 128;  // the bin [2^-1, 2^-1 (1 + 1/128))
  histogram[0][half] = 8;
  histogram[1][0] = 1, histogram[1][half] = 3;
  histogram[2][0] = 8;  // zeros; row 3 is empty
  const Tensor q = histogram_quantile(histogram, 0.25);
  EXPECT_EQ(q[0].item<float>(), 0.5F + 0.25F / 256);
  EXPECT_EQ(q[1].item<float>(), std::ldexp(1.F, -24));
  EXPECT_EQ(q[2].item<float>(), std::ldexp(1.F, -26));
  EXPECT_EQ(q[3].item<float>(), 0);
  EXPECT_TRUE(histogram_quantile(histogram, 0).equal(at::zeros({4})));
}

TEST(ExpertChoice, EachExpertTakesItsBestTokens) {
  const int64_t T = 13, N = 4, K = 2;
  for (const double capacity : {0.5, 1.0, 1.3, 5.0}) {
    const Selected select("expert_choice", "capacity = " + std::to_string(capacity), N, K);
    const Tensor scores = with_ties(T, N, 1);
    const auto take = std::min<int64_t>(T, static_cast<int64_t>(std::ceil(capacity * T * K / N)));
    Rows expected(static_cast<size_t>(T));
    for (int64_t n = 0; n < N; ++n) {
      auto order = order_of([&](int64_t t) { return at_tn(scores, t, n); }, T);
      for (int64_t i = 0; i < take; ++i) expected[static_cast<size_t>(order[static_cast<size_t>(i)])].push_back(n);
    }
    const Tensor ids = select(scores).ids_TK;
    EXPECT_EQ(ids.size(1), N);
    EXPECT_EQ(sets(ids), expected);
    EXPECT_TRUE(count_ids(ids, N).eq(take).all().item<bool>());
  }
}

TEST(ExpertChoice, PaddingIsNeverChosenAndChangesNothing) {
  const Selected select("expert_choice", "", 4, 1);
  const Tensor scores = with_ties(9, 4, 1), padding = at::ones({6, 4}, at::kDouble);
  const Tensor padded = select(at::cat({scores, padding}), at::arange(15) < 9).ids_TK;
  EXPECT_TRUE(padded.narrow(0, 0, 9).equal(select(scores).ids_TK));
  EXPECT_TRUE(padded.narrow(0, 9, 6).eq(-1).all().item<bool>());
  EXPECT_TRUE(select(padding, at::zeros({6}, at::kBool)).ids_TK.eq(-1).all().item<bool>());
}

TEST(ExpertChoice, RefusesToGenerate) {
  const Selected select("expert_choice", "", 4, 1);
  const Tensor scores = randn({3, 4}, 1);
  RouteContext context;
  context.generating = true;
  try {
    select.selection->select({.ranking_TN = scores, .scores_TN = scores, .context = context});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_EQ(error.message(), "expert_choice: a token's experts depend on the tokens after it, so it cannot generate");
  }
}

TEST(Forced, EvenIsEven) {
  const Selected select("forced_even", "", 5, 2);
  EXPECT_EQ(select.ids(randn({5, 5}, 1)), (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
}

TEST(Forced, SkewedSendsItsShareToExpertZero) {
  const int64_t T = 700, N = 8, K = 3;
  for (const double share : {0.0, 0.3, 1.0}) {
    const Selected select("forced_skewed", "share = " + std::to_string(share), N, K);
    const Tensor ids = select(randn({T, N}, 1)).ids_TK;
    const auto skewed = static_cast<double>(T) * share, even = (static_cast<double>(T) - skewed);
    const auto first = count_ids(ids.select(1, 0), N), all = count_ids(ids, N);
    EXPECT_NEAR(first[0].item<double>(), skewed + even / N, K);
    EXPECT_NEAR(all[0].item<double>(), skewed + even * K / N, K);
    for (int64_t n = 1; n < N; ++n) {
      EXPECT_NEAR(all[n].item<double>(), even * K / N + skewed * (K - 1) / (N - 1), K);
    }
  }
}

TEST(Checks, RefuseWhatCannotWork) {
  const auto check = [](const char* kind, bool Combination::* has) {
    Combination combination;
    if (has) combination.*has = true;
    Selected(kind, "", 4, 2).selection->check(combination);
  };
  const std::pair<const char*, bool Combination::*> needs[] = {{"top_p", &Combination::distribution},
                                                               {"positive", &Combination::sparse}};
  for (const auto& [kind, need] : needs) {
    EXPECT_NO_THROW(check(kind, need));
    EXPECT_THROW(check(kind, nullptr), Error);
  }
}

}  // namespace
}  // namespace rmoe::routing
