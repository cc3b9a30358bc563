// The tables of the hash router: valid, deterministic, balanced.
#include <algorithm>
#include <set>

#include "tests/unit/routers/head.h"

namespace rmoe::routing {
namespace {

using rmoe::testing::combination;
using rmoe::testing::Flags;
using rmoe::testing::Head;
using rmoe::testing::randn;

constexpr int64_t kV = 211, kN = 6, kK = 3;

RouterShape shape(int64_t layer = 0) {
  return {.experts = kN, .feature_width = 4, .top_k = kK, .vocab_size = kV, .layer = layer};
}

Tensor table(const Head& head) { return head.param("hash.table"); }

// Rows per expert when token v occurs counts_V[v] times.
std::vector<int64_t> loads(const Tensor& table_VK, const Tensor& counts_V) {
  std::vector<int64_t> rows(kN);
  for (int64_t v = 0; v < kV; ++v) {
    for (int64_t k = 0; k < kK; ++k) {
      rows.at(static_cast<size_t>(table_VK[v][k].item<int64_t>())) += counts_V[v].item<int64_t>();
    }
  }
  return rows;
}

int64_t spread(const std::vector<int64_t>& rows) {
  const auto [least, most] = std::minmax_element(rows.begin(), rows.end());
  return *most - *least;
}

void expect_distinct_experts(const Tensor& table_VK) {
  for (int64_t v = 0; v < kV; ++v) {
    std::set<int64_t> experts;
    for (int64_t k = 0; k < kK; ++k) experts.insert(table_VK[v][k].item<int64_t>());
    EXPECT_EQ(experts.size(), static_cast<size_t>(kK)) << "token " << v;
    EXPECT_GE(*experts.begin(), 0);
    EXPECT_LT(*experts.rbegin(), kN);
  }
}

// Zipf, in an order that is not that of the ids.
Tensor zipf() {
  Tensor counts_V = at::zeros({kV}, at::kLong);
  for (int64_t v = 0; v < kV - 20; ++v) counts_V[v * 50 % kV] = 100000 / (v + 1);
  return counts_V;
}

TEST(HashRouter, ATokenGoesToTheExpertsOfItsIdInOrder) {
  const Head head("hash", {}, shape());
  const Tensor tokens = at::randint(0, kV, {50}, at::kLong), feature = randn({50, 4}, 1, at::kFloat);
  RouteContext context;
  context.tokens_T = tokens;
  const RouterOutput out = head.router->route({.feature_TR = feature, .context = context});
  EXPECT_TRUE(out.logits_TN.equal(at::zeros({50, kN})));
  const Tensor chosen = std::get<1>(out.ranking_TN.sort(true, -1, true)).narrow(1, 0, kK);
  for (int64_t t = 0; t < 50; ++t) {
    EXPECT_TRUE(chosen[t].equal(table(head)[tokens[t].item<int64_t>()])) << "token " << t;
  }
  EXPECT_FALSE(out.loss.defined());
  EXPECT_FALSE(head.router->reads_feature());
}

TEST(HashRouter, RandomTablesAreDistinctPerTokenAndNearlyEven) {
  const Head head("hash", {}, shape());
  expect_distinct_experts(table(head));
  // 211 * 3 / 6 = 105 tokens per expert, deviation about 8.
  EXPECT_LT(spread(loads(table(head), at::ones({kV}, at::kLong))), 50);
}

TEST(HashRouter, RandomTablesFollowSeedAndLayerOnly) {
  const auto made = [](const Flags& flags, int64_t layer) { return table(Head("hash", flags, shape(layer))); };
  EXPECT_TRUE(made({}, 1).equal(made({}, 1)));
  EXPECT_FALSE(made({}, 1).equal(made({}, 2)));
  EXPECT_FALSE(made({"seed=1"}, 1).equal(made({"seed=2"}, 1)));
  const Head head("hash", {}, shape());
  const Tensor before = table(head).clone();
  EXPECT_FALSE(head.router->wants_token_counts());
  head.router->fit(zipf());
  EXPECT_TRUE(table(head).equal(before));
}

TEST(HashRouter, BalancedLoadsAreWithinTheHeaviestToken) {
  const Head head("hash", {"assign=balanced"}, shape());
  const Tensor counts = zipf();
  EXPECT_TRUE(head.router->wants_token_counts());
  head.router->fit(counts);
  expect_distinct_experts(table(head));
  EXPECT_LE(spread(loads(table(head), counts)), counts.max().item<int64_t>());
  // Tokens that the data never showed spread as well.
  EXPECT_LE(spread(loads(table(head), counts.eq(0).to(at::kLong))), 1 + kV / 4);
  const Tensor once = table(head).clone();
  head.router->fit(counts);
  EXPECT_TRUE(table(head).equal(once));
}

TEST(HashRouter, ABalancedTableIsEvenBeforeItHasSeenData) {
  const Head head("hash", {"assign=balanced"}, shape());
  expect_distinct_experts(table(head));
  EXPECT_LE(spread(loads(table(head), at::ones({kV}, at::kLong))), 1);
}

TEST(HashRouter, AllExpertsPerTokenAndOneExpertWork) {
  RouterShape all = shape();
  all.top_k = kN;
  for (const char* assign : {"assign=random", "assign=balanced"}) {
    const Tensor sorted = std::get<0>(table(Head("hash", {assign}, all)).sort(1));
    EXPECT_TRUE(sorted.equal(at::arange(kN).expand({kV, kN})));
    const RouterShape one{.experts = 1, .feature_width = 4, .top_k = 1, .vocab_size = kV};
    EXPECT_TRUE(table(Head("hash", {assign}, one)).eq(0).all().item<bool>());
  }
}

TEST(HashRouter, RefusesWhatItCannotWorkWith) {
  const Head head("hash", {"assign=balanced"}, shape());
  const Tensor feature = randn({2, 4}, 1);
  EXPECT_THROW(head.router->route({.feature_TR = feature}), Error);  // no token ids
  EXPECT_THROW(head.router->fit(at::ones({kV + 1}, at::kLong)), Error);
  head.router->check(combination("none", "top_k"));
  EXPECT_THROW(head.router->check(combination("gru", "top_k")), Error);
  EXPECT_THROW(head.router->check(combination("none", "top_p")), Error);
  RouterShape many = shape();
  many.top_k = kN + 1;
  EXPECT_THROW(Head("hash", {}, many), Error);
}

}  // namespace
}  // namespace rmoe::routing
