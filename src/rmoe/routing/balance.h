// Balance losses: each a number per forward pass, over the routing of all its MoE layers. With f_n the share of the
// routed rows that expert n got (sums to 1) and P_n the mean probability of expert n over the tokens (sums to 1), every
// loss states its normalization and its value at uniform routing.
#pragma once

#include "rmoe/config/registries.h"
#include "rmoe/routing/gate.h"

namespace rmoe::routing {

class Balance {
 public:
  virtual ~Balance() = default;
  // Scalar in the probabilities' dtype; differentiable in the probabilities, not in the counts. Zero for an empty
  // trace.
  virtual Tensor loss(const RoutingTrace& trace) const = 0;
};

}  // namespace rmoe::routing
