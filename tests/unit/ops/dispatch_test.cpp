#include "rmoe/ops/dispatch.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/grouped_linear.h"
#include "tests/support/gradcheck.h"

namespace rmoe {
namespace {

using testing::randn;

struct Routed {
  Tensor ids, weights, counts;
  // The top k of random scores. `unused`: every third slot goes nowhere, half of them by -1, half by an id beyond N.
  Routed(int64_t T, int64_t N, int64_t K, uint64_t seed, bool unused = false) {
    const Tensor logits = randn({T, N}, seed);
    ids = std::get<1>(logits.sort(true, -1, true)).narrow(1, 0, K).contiguous();
    weights = logits.gather(1, ids).softmax(-1);
    if (unused) {
      const Tensor slot = at::arange(T * K, at::kLong).view({T, K});
      ids = at::where(slot.remainder(6).eq(1), -1, at::where(slot.remainder(6).eq(4), N + 1, ids));
    }
    counts = at::bincount(ids.masked_select(ids.ge(0).logical_and(ids.lt(N))), {}, N);
  }
};

// y_t = sum_k w_tk (W_e x_t + b_e), token by token.
Tensor by_tokens(const Tensor& x, const Routed& r, const Tensor& w, const Tensor& b) {
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < x.size(0); ++t) {
    Tensor y = at::zeros({w.size(1)}, x.options());
    for (int64_t k = 0; k < r.ids.size(1); ++k) {
      const int64_t e = r.ids[t][k].item<int64_t>();
      if (e < 0 || e >= w.size(0)) continue;
      y = y + r.weights[t][k] * (w[e].mv(x[t]) + b[e]);
    }
    rows.push_back(y);
  }
  return at::stack(rows);
}

Tensor by_experts(const Tensor& x, const Routed& r, const Tensor& w, const Tensor& b) {
  const Dispatch dispatch = make_dispatch(r.ids, r.counts);
  return combine_rows(grouped_linear(dispatch_rows(x, dispatch, r.ids.size(1)), w, b, dispatch.counts_N), r.weights,
                      dispatch);
}

TEST(Dispatch, ExpertsOnSortedRowsEqualTokenByToken) {
  for (const auto& [T, N, K] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {1, 5, 2}, {17, 4, 1}, {33, 8, 3}, {6, 4, 4}}) {
    for (const bool unused : {false, true}) {
      const Routed r(T, N, K, 1, unused);
      const Tensor x = randn({T, 5}, 2), w = randn({N, 3, 5}, 3), b = randn({N, 3}, 4);
      EXPECT_LT((by_experts(x, r, w, b) - by_tokens(x, r, w, b)).abs().max().item<double>(), 1e-13)
          << "T " << T << ", N " << N << ", K " << K << (unused ? ", some slots unused" : "");
    }
  }
}

TEST(Dispatch, GradientsMatchFiniteDifferencesWithAnIdleExpert) {
  Routed r(6, 4, 2, 1);
  r.ids = at::where(r.ids == 2, 3, r.ids);  // expert 2 idle; a token may choose expert 3 twice, which is allowed
  r.counts = at::bincount(r.ids.flatten(), {}, 4);
  testing::expect_gradients(
      [&](const auto& v) {
        Routed routed = r;
        routed.weights = v[3];
        return by_experts(v[0], routed, v[1], v[2]);
      },
      {randn({6, 3}, 2), randn({4, 2, 3}, 3), randn({4, 2}, 4), r.weights});
}

TEST(Dispatch, AllTokensOnOneExpertAndNoTokensAtAll) {
  const Tensor w = randn({3, 2, 4}, 3), b = randn({3, 2}, 4);
  Routed one(9, 3, 1, 1);
  one.ids.fill_(1);
  one.counts = at::bincount(one.ids.flatten(), {}, 3);
  const Tensor x = randn({9, 4}, 2);
  EXPECT_TRUE(at::allclose(by_experts(x, one, w, b), at::linear(x, w[1], b[1])));
  const Routed none(0, 3, 2, 1);
  EXPECT_EQ(by_experts(randn({0, 4}, 2), none, w, b).sizes(), at::IntArrayRef({0, 2}));
}

TEST(GroupedLinear, IdleExpertHasZeroGradient) {
  Tensor w = randn({3, 2, 4}, 3).requires_grad_(true), b = randn({3, 2}, 4).requires_grad_(true);
  grouped_linear(randn({5, 4}, 1), w, b, {2, 0, 3}).sum().backward();
  EXPECT_TRUE(w.grad()[1].eq(0).all().item<bool>());
  EXPECT_TRUE(b.grad()[1].eq(0).all().item<bool>());
  EXPECT_FALSE(w.grad()[2].eq(0).all().item<bool>());
}

TEST(GroupedLinear, CountsThatDoNotFitAreNamed) {
  const Tensor x = randn({5, 4}, 1), w = randn({3, 2, 4}, 3);
  EXPECT_THROW(grouped_linear(x, w, {}, {2, 0, 2}), Error);
  EXPECT_THROW(grouped_linear(x, w, {}, {5, 0}), Error);
  EXPECT_THROW(grouped_linear(randn({5, 3}, 1), w, {}, {2, 0, 3}), Error);
}

}  // namespace
}  // namespace rmoe
