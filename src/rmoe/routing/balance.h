// Keeping the experts evenly used. A balance is a loss on the routing of a forward pass, or it steers the choice
// without a loss, or both. With f_n the share of the routed rows that expert n got (sums to 1) and P_n the mean
// probability of expert n over the tokens (sums to 1), every loss states its normalization and its value at uniform
// routing.
#pragma once

#include "rmoe/routing/router.h"

namespace rmoe::routing {

struct BalanceShape {
  int64_t experts;  // N
  int64_t top_k;    // K
};

// int64 counts_N of each MoE layer, summed over all micro-batches and processes of an optimizer step.
using BatchCounts = std::vector<Tensor>;

// One object per model.
class Balance : public Adaptive {
 public:
  // Scalar in the probabilities' dtype, zero for an empty trace. Differentiable in probabilities, scores and logits,
  // not in counts. `batch` is null where the trace is all of the optimizer step's batch.
  virtual Tensor loss(const RoutingTrace& trace, const BatchCounts* batch) const;
  // Whether loss() reads `batch`.
  virtual bool wants_batch_counts() const { return false; }
  // Whether rank() changes anything. At most one balance of a model steers.
  virtual bool steers() const { return false; }
  // Replaces what the selection ranks. `ranking_TN` and `logits_TN` are detached.
  virtual Tensor rank(int64_t /*layer*/, const Tensor& ranking_TN, const Tensor& /*logits_TN*/,
                      const RouteContext&) const {
    return ranking_TN;
  }
};

// f_n of one layer in `dtype`; zeros where nothing was routed.
Tensor expert_share(const Tensor& counts_N, at::ScalarType dtype);

}  // namespace rmoe::routing
