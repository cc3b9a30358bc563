// The z-loss of ST-MoE (Zoph et al. 2022) keeps logits small, where rounding hurts less: the mean over tokens and
// layers of (log sum_n exp(logit_n))^2.
#include "rmoe/routing/balances/over_layers.h"

namespace rmoe::routing {
namespace {

class Z : public Balance {
 public:
  Z(const BalanceShape&, const std::vector<ParamScope>&) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    return mean_over_layers(
        trace, [&](size_t i) { return mean_over_tokens(trace[i].logits_TN.logsumexp(-1).square(), trace[i].valid_T); });
  }
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "z", Z,
              "squared log-sum-exp of the logits, mean over tokens and layers; (ln N)^2 at logits 0 (ST-MoE)");

}  // namespace rmoe::routing
