// S-BASE (Clark et al. 2022): in training, tokens choose by the transport plan that is nearest to their probabilities
// and gives every expert the same mass; in evaluation by their scores. Combine weights never see the plan.
#include "rmoe/base/error.h"
#include "rmoe/routing/balance.h"

namespace rmoe::routing {
namespace {

class Sinkhorn : public Balance {
 public:
  struct Options {
    int64_t iterations = 10;
    static constexpr auto fields() {
      return std::tuple{
          Field{"iterations", &Options::iterations, "rounds over tokens, then experts", {.min = 1, .max = 1000}}};
    }
  };

  Sinkhorn(const Options& options, const BalanceShape&, const std::vector<ParamScope>&)
      : iterations_(options.iterations) {}

  Tensor rank(int64_t, const Tensor& ranking_TN, const Tensor& logits_TN, const RouteContext& context) const override {
    if (!context.training) return ranking_TN;
    constexpr double kNothing = -1e30;  // not infinity, for batches of padding alone
    const Tensor padding_T1 = context.valid_T.defined() ? context.valid_T.logical_not().unsqueeze(1) : Tensor();
    Tensor price_N = at::zeros({logits_TN.size(1)}, logits_TN.options());
    for (int64_t i = 0; i < iterations_; ++i) {
      Tensor log_plan_TN = (logits_TN + price_N).log_softmax(-1);  // every token gives 1
      if (padding_T1.defined()) log_plan_TN = log_plan_TN.masked_fill(padding_T1, kNothing);
      price_N = price_N - log_plan_TN.logsumexp(0);  // every expert gets the same
    }
    return (logits_TN + price_N).softmax(-1);
  }

  bool steers() const override { return true; }

  void check(const Combination& c) const override {
    RMOE_CHECK(c.ranks, "sinkhorn: replaces what is ranked, but selection '", c.selection, "' does not go by rank");
  }

 private:
  int64_t iterations_;
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "sinkhorn", Sinkhorn,
              "no loss: in training the choice follows a balanced transport of the logits (S-BASE; Clark et al. 2022)");

}  // namespace rmoe::routing
