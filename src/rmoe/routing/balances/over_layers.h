// What the balance losses share: sums and means over the layers of a trace.
#pragma once

#include "rmoe/routing/balance.h"

namespace rmoe::routing {

inline Tensor zero_loss(const RoutingTrace& trace) {
  return at::zeros({}, trace.empty() ? at::TensorOptions(at::kFloat) : trace.front().probs_TN.options());
}

// of_layer(i) -> scalar.
template <class F>
Tensor sum_over_layers(const RoutingTrace& trace, F&& of_layer) {
  Tensor total = zero_loss(trace);
  for (size_t i = 0; i < trace.size(); ++i) total = total + of_layer(i);
  return total;
}

template <class F>
Tensor mean_over_layers(const RoutingTrace& trace, F&& of_layer) {
  return sum_over_layers(trace, of_layer) / static_cast<double>(std::max<size_t>(trace.size(), 1));
}

}  // namespace rmoe::routing
