// Choices that do not look at the scores, for benchmarks: exactly even, and skewed towards expert 0.
#include "rmoe/base/error.h"
#include "rmoe/routing/selections/order.h"

namespace rmoe::routing {
namespace {

// Slot j of the i-th token that is walked through: (i K + j) mod N.
Tensor walk(const Tensor& number_T1, int64_t top_k, int64_t experts) {
  return (number_T1 * top_k + at::arange(top_k, number_T1.options())).remainder(experts);
}

Tensor token_numbers(const SelectionInput& in) {
  RMOE_CHECK(!in.context.generating, "a forced selection goes by a token's number in its batch, which text that is ",
             "written token by token does not have");
  const Tensor& scores_TN = in.scores_TN;
  return at::arange(scores_TN.size(0), scores_TN.options().dtype(at::kLong)).unsqueeze(1);
}

class ForcedEven : public Selection {
 public:
  ForcedEven(const RouterShape& s, const ParamScope&) : top_k_(s.top_k) {}

  Choice select(const SelectionInput& in) const override {
    return {.ids_TK = walk(token_numbers(in), top_k_, in.scores_TN.size(1))};
  }
  bool causal() const override { return false; }
  bool per_token() const override { return false; }  // a token's number counts

 private:
  int64_t top_k_;
};

class ForcedSkewed : public Selection {
 public:
  struct Options {
    double share = 0.5;
    static constexpr auto fields() {
      return std::tuple{Field{"share",
                              &Options::share,
                              "share of the tokens sent to expert 0 first; the others evenly",
                              {.min = 0, .max = 1}}};
    }
  };

  ForcedSkewed(const Options& options, const RouterShape& s, const ParamScope&)
      : share_(options.share), top_k_(s.top_k) {}

  Choice select(const SelectionInput& in) const override {
    const int64_t experts = in.scores_TN.size(1);
    // Spread through the batch: skewed are the tokens in which the running number of skewed ones rises.
    const Tensor token_T1 = token_numbers(in);
    const Tensor before_T1 = token_T1.to(at::kDouble).mul(share_).to(at::kLong);
    const Tensor skewed_T1 = (token_T1 + 1).to(at::kDouble).mul(share_).to(at::kLong) > before_T1;
    const Tensor even_TK = walk(token_T1 - before_T1, top_k_, experts);
    const Tensor rest_TK = walk(before_T1, top_k_ - 1, std::max<int64_t>(experts - 1, 1)) + 1;
    return {.ids_TK = at::where(skewed_T1, at::constant_pad_nd(rest_TK, {1, 0}), even_TK)};
  }
  bool causal() const override { return false; }
  bool per_token() const override { return false; }

 private:
  double share_;
  int64_t top_k_;
};

}  // namespace

RMOE_REGISTER(SelectionRegistry, "forced_even", ForcedEven,
              "expert (t K + j) mod N for slot j of token t, whatever the scores; for benchmarks");
RMOE_REGISTER(SelectionRegistry, "forced_skewed", ForcedSkewed,
              "a given share of the tokens to expert 0 first, the others evenly; for benchmarks");

}  // namespace rmoe::routing
