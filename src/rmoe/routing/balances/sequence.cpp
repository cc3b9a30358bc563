// DeepSeek-V3's sequence-wise balance: N sum_n f_n P_n of every sequence on its own, mean over sequences and layers.
#include "rmoe/base/error.h"
#include "rmoe/routing/balances/over_layers.h"

namespace rmoe::routing {
namespace {

// Mean over the sequences that hold a token that counts.
Tensor of_layer(const Routing& r) {
  if (r.tokens() == 0) return r.probs_TN.sum();
  const int64_t experts = r.experts(), sequences = r.sequences, length = r.tokens() / sequences;
  RMOE_ASSERT(length * sequences == r.tokens(), r.tokens(), " tokens in ", sequences, " sequences");
  const auto dtype = r.probs_TN.scalar_type();

  const Tensor slot_SM = r.chosen_TK.reshape({sequences, -1}) + 1;  // unused slots are counted in place 0
  const Tensor counts_SN = at::zeros({sequences, experts + 1}, slot_SM.options())
                               .scatter_add_(1, slot_SM, at::ones_like(slot_SM))
                               .narrow(1, 1, experts);
  const Tensor share_SN = counts_SN.to(dtype) / counts_SN.sum(1, /*keepdim=*/true).clamp_min(1).to(dtype);

  Tensor probs_SLN = r.probs_TN.view({sequences, length, experts});
  Tensor tokens_S = at::full({sequences}, length, slot_SM.options());
  if (r.valid_T.defined()) {
    const Tensor valid_SL = r.valid_T.view({sequences, length});
    probs_SLN = probs_SLN.masked_fill(valid_SL.logical_not().unsqueeze(2), 0);
    tokens_S = valid_SL.sum(1);
  }
  const Tensor mean_SN = probs_SLN.sum(1) / tokens_S.clamp_min(1).to(dtype).unsqueeze(1);
  return (share_SN * mean_SN).sum() * experts / tokens_S.gt(0).sum().clamp_min(1).to(dtype);
}

class Sequence : public Balance {
 public:
  Sequence(const BalanceShape&, const std::vector<ParamScope>&) {}

  Tensor loss(const RoutingTrace& trace, const BatchCounts*) const override {
    return mean_over_layers(trace, [&](size_t i) { return of_layer(trace[i]); });
  }
};

}  // namespace

RMOE_REGISTER(BalanceRegistry, "sequence", Sequence,
              "N sum f_n P_n per sequence, mean over sequences and layers; 1 at uniform routing (DeepSeek-V3)");

}  // namespace rmoe::routing
