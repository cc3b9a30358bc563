// What the routers of some forward passes did, added up: for progress lines, metrics and evaluation.
#pragma once

#include "rmoe/routing/routing.h"

namespace rmoe::routing {

struct RoutingSums {
  int64_t tokens = 0;                        // that count, per MoE layer
  std::vector<std::vector<int64_t>> counts;  // [MoE layer][N] routed rows
  int64_t dropped = 0;                       // rows that capacity took away, in all layers
  double entropy = 0;                        // nats, of the scores as a distribution, summed over tokens and layers

  void add(const RoutingTrace& trace);
  void add(const RoutingSums& other);
  // Mean over tokens and MoE layers; NaN without any.
  double mean_entropy() const;
};

// The same where the routers ran: adds up on the device, and waits for it in take() only.
class RoutingTotals {
 public:
  void add(const RoutingTrace& trace);
  // What was added since the last call.
  RoutingSums take();

 private:
  int64_t tokens_ = 0;                            // of the forward passes that had no padding
  Tensor valid_, counts_LN_, dropped_, entropy_;  // undefined: nothing yet
};

// Largest over mean load of an expert, averaged over MoE layers; 1 is even. NaN without MoE layers.
double load_imbalance(const std::vector<std::vector<int64_t>>& counts);
// Experts that no token chose, summed over layers.
int64_t dead_experts(const std::vector<std::vector<int64_t>>& counts);

}  // namespace rmoe::routing
