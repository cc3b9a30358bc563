// ReMoE's adaptive L1 (Wang et al. 2024): lambda times the mean over tokens and layers of sum_n f_n s_n, where lambda
// rises by a factor after a step with more positive scores than K per token, and falls by it after one with fewer.
#include "rmoe/base/error.h"
#include "rmoe/routing/balances/over_layers.h"

namespace rmoe::routing {
namespace {

class ReluL1 : public Balance {
 public:
  struct Options {
    double start = 1e-8;
    double factor = 1.2;
    bool balanced = true;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"start", &C::start, "lambda at the start", {.max = 1, .above = 0}},
          Field{"factor", &C::factor, "what lambda moves by in a step", {.max = 10, .above = 1}},
          Field{"balanced", &C::balanced, "weigh an expert's scores by its load over the wanted one; otherwise by 1"}};
    }
  };

  ReluL1(const Options& options, const BalanceShape& shape, const std::vector<ParamScope>& layers)
      : options_(options), shape_(shape), layers_(static_cast<int64_t>(layers.size())) {
    if (layers.empty()) return;
    lambda_1_ = layers.front().add_buffer("balance.lambda", {1}, at::kFloat);
    if (lambda_1_.defined()) lambda_1_.fill_(options.start);
  }

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    if (trace.empty()) return zero_loss(trace);
    const Tensor mean = mean_over_layers(trace, [&](size_t i) {
      const Routing& r = trace[i];
      const Tensor mean_N = mean_over_tokens(r.scores_TN, r.valid_T);
      return options_.balanced ? (load(r, mean_N.scalar_type()) * mean_N).sum() : mean_N.sum();
    });
    return mean * lambda_1_[0].to(mean.scalar_type());
  }

  // Positive scores, and how many there could be.
  Tensor statistic(int64_t, const Routing& routing) const override {
    const Tensor positive = sum_over_tokens(routing.scores_TN.gt(0).to(at::kLong), routing.valid_T).sum();
    const Tensor tokens = routing.valid_T.defined() ? routing.valid_T.sum() : at::full_like(positive, routing.tokens());
    return at::stack({positive, tokens * shape_.experts});
  }

  // One lambda for all layers, which are updated in order: it moves after the last.
  void update(int64_t layer, const Tensor& statistic, const StepInfo&) override {
    step_ = layer == 0 ? statistic : step_ + statistic;
    if (layer + 1 < layers_) return;
    // The sign of positive / possible - K / N, in integers; both 0 where there was no token.
    const Tensor too_many = (step_[0] * shape_.experts - step_[1] * shape_.top_k).sign();
    // Never 0 or infinite, from where it could not come back.
    lambda_1_.mul_(at::pow(options_.factor, too_many.to(at::kFloat))).clamp_(1e-30, 1e30);
  }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.sparse, "relu_l1: steers how many scores are 0, and score '", c.score, "' has none");
  }

 private:
  // Rows of each expert over the even share T K / N.
  Tensor load(const Routing& r, at::ScalarType dtype) const {
    const double even = static_cast<double>(shape_.top_k) / static_cast<double>(shape_.experts);
    return r.chosen_N.to(dtype) / (token_count(r.scores_TN, r.valid_T) * even);
  }

  Options options_;
  BalanceShape shape_;
  int64_t layers_;
  Tensor lambda_1_;
  Tensor step_;  // sums over the layers updated so far
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "relu_l1", ReluL1,
              "L1 of the scores, lambda adapting towards K positive ones per token; give it weight 1 (ReMoE)");

}  // namespace rmoe::routing
