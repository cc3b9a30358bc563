#include "rmoe/routing/balance.h"

namespace rmoe::routing {
namespace {

// N * sum_n f_n P_n of one layer: 1 at uniform routing.
Tensor switch_loss(const Routing& routing) {
  const Tensor counts = routing.counts_N.to(routing.probs_TN.scalar_type());
  const Tensor share_N = counts / counts.sum();
  return (share_N * routing.probs_TN.mean(0)).sum() * routing.counts_N.size(0);
}

Tensor sum_over_layers(const RoutingTrace& trace) {
  Tensor total = at::zeros({}, at::kFloat);
  for (const Routing& routing : trace) total = total + switch_loss(routing);
  return total;
}

// Switch Transformer / GShard: N sum_n f_n P_n per layer, mean over layers. 1 at uniform routing.
class SwitchBalance : public Balance {
 public:
  Tensor loss(const RoutingTrace& trace) const override {
    return sum_over_layers(trace) / static_cast<double>(std::max<size_t>(trace.size(), 1));
  }
};

// The small-scale baselines' own (reference, section 2): N sum_n f_n (sum_t p_tn) / (T K) per layer, summed over
// layers. 1/K per layer at uniform routing.
class SmallScaleBalance : public Balance {
 public:
  Tensor loss(const RoutingTrace& trace) const override {
    const double top_k = trace.empty() ? 1.0 : static_cast<double>(trace.front().ids_TK.size(1));
    return sum_over_layers(trace) / top_k;
  }
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "switch", SwitchBalance,
              "N sum f_n P_n per layer, mean over layers; 1 at uniform routing (Fedus et al. 2021)");
RMOE_REGISTER(BalanceRegistry, "small_scale", SmallScaleBalance,
              "the paper's small-scale baselines: 1/K per layer at uniform routing, summed over layers");

}  // namespace rmoe::routing
