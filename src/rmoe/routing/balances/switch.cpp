// The product N sum_n f_n P_n of the share of the rows that an expert got and its mean probability, in four
// normalizations. It is smallest when both are even, and its gradient lowers the probability of whoever has too much.
#include "rmoe/base/error.h"
#include "rmoe/routing/balances/over_layers.h"

namespace rmoe::routing {
namespace {

// N sum_n f_n P_n of one layer, f from the given counts: 1 at uniform routing.
Tensor product(const Routing& routing, const Tensor& counts_N) {
  const Tensor share_N = expert_share(counts_N, routing.probs_TN.scalar_type());
  return (share_N * mean_over_tokens(routing.probs_TN, routing.valid_T)).sum() * routing.experts();
}

class Switch : public Balance {
 public:
  Switch(const BalanceShape&, const std::vector<ParamScope>&) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    return mean_over_layers(trace, [&](size_t i) { return product(trace[i], trace[i].chosen_N); });
  }
};

// The small-scale baselines' own (reference, section 2): N sum_n f_n (sum_t p_tn) / (rows, which are T K), summed over
// layers.
class SmallScale : public Balance {
 public:
  SmallScale(const BalanceShape&, const std::vector<ParamScope>&) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    return sum_over_layers(trace, [&](size_t i) {
      const Routing& r = trace[i];
      const auto dtype = r.probs_TN.scalar_type();
      const Tensor mean_N = sum_over_tokens(r.probs_TN, r.valid_T) / r.chosen_N.sum().clamp_min(1).to(dtype);
      return (expert_share(r.chosen_N, dtype) * mean_N).sum() * r.experts();
    });
  }
};

class GlobalBatch : public Balance {
 public:
  GlobalBatch(const BalanceShape&, const std::vector<ParamScope>&) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts* batch) const override {
    RMOE_ASSERT(!batch || batch->size() == trace.size(), "counts of ", batch->size(), " layers, ", trace.size(),
                " run");
    return mean_over_layers(trace,
                            [&](size_t i) { return product(trace[i], batch ? (*batch)[i] : trace[i].chosen_N); });
  }
  bool wants_batch_counts() const override { return true; }
};

// transformers' load_balancing_loss_func: the layers' tokens as one batch, and in place of f_n the rows of an expert
// per token, which sum to K.
class Concatenated : public Balance {
 public:
  Concatenated(const BalanceShape& shape, const std::vector<ParamScope>&) : experts_(shape.experts) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    if (trace.empty()) return zero_loss(trace);
    const auto dtype = trace.front().probs_TN.scalar_type();
    Tensor counts_N = at::zeros_like(trace.front().chosen_N), probs_N = zero_loss(trace), tokens = zero_loss(trace);
    for (const Routing& routing : trace) {
      counts_N = counts_N + routing.chosen_N;
      probs_N = probs_N + sum_over_tokens(routing.probs_TN, routing.valid_T);
      tokens = tokens + token_count(routing.probs_TN, routing.valid_T);
    }
    return (counts_N.to(dtype) / tokens * (probs_N / tokens)).sum() * experts_;
  }

 private:
  int64_t experts_;
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "switch", Switch,
              "N sum f_n P_n, mean over layers; 1 at uniform routing (Switch; Fedus et al. 2021)");
RMOE_REGISTER(BalanceRegistry, "small_scale", SmallScale,
              "N/K sum f_n P_n, summed over layers; 1/K per layer at uniform routing (CompeteSMoE's code)");
RMOE_REGISTER(BalanceRegistry, "global_batch", GlobalBatch,
              "as switch, f_n over the whole optimizer step; 1 at uniform routing (Qiu et al. 2025)");
RMOE_REGISTER(BalanceRegistry, "concatenated", Concatenated,
              "all layers' tokens as one batch; K at uniform routing (transformers' load_balancing_loss_func)");

}  // namespace rmoe::routing
