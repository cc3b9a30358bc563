// Balance without a loss (Wang et al. 2024; DeepSeek-V3): a bias per expert is added to what the selection ranks, not
// to the weights, and after every step moves by a fixed rate towards the experts that got less than the mean.
#include "rmoe/base/error.h"
#include "rmoe/routing/balance.h"

namespace rmoe::routing {
namespace {

class Bias : public Balance {
 public:
  struct Options {
    double rate = 0.001;
    static constexpr auto fields() {
      return std::tuple{Field{"rate", &Options::rate, "what an expert's bias moves by in a step", {.above = 0}}};
    }
  };

  Bias(const Options& options, const BalanceShape& shape, const std::vector<ParamScope>& layers)
      : rate_(options.rate), experts_(shape.experts) {
    // Named as in the public layout of DeepSeek-V3.
    for (const ParamScope& layer : layers) {
      bias_N_.push_back(layer.add_buffer("gate.e_score_correction_bias", {shape.experts}, at::kFloat));
    }
  }

  Tensor rank(int64_t layer, const Tensor& ranking_TN, const Tensor&, const RouteContext&) const override {
    return ranking_TN + bias_N_.at(static_cast<size_t>(layer)).to(ranking_TN.scalar_type());
  }

  Tensor statistic(int64_t, const Routing& routing) const override { return routing.chosen_N; }

  void update(int64_t layer, const Tensor& counts_N, const StepInfo&) override {
    // The sign of mean - count, in integers.
    bias_N_.at(static_cast<size_t>(layer)).add_((counts_N.sum() - counts_N * experts_).sign(), rate_);
  }

  bool steers() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.ranks, "bias: is added to what is ranked, but selection '", c.selection, "' does not go by rank");
  }

 private:
  double rate_;
  int64_t experts_;
  std::vector<Tensor> bias_N_;
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "bias", Bias,
              "no loss: a bias on the ranking, moved by the sign of each expert's shortfall (Wang et al. 2024)");

}  // namespace rmoe::routing
