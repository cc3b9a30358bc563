// What a router decided: the choice of one layer, and of one forward pass.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::routing {

// The choice of one layer. T tokens; K slots per token, some of which may be unused; N experts, the zero-computation
// ones included.
struct Routing {
  Tensor ids_TK;      // int64, by falling score; -1: an unused slot
  Tensor weights_TK;  // of the logits' dtype; what the experts' outputs are multiplied by; 0 in unused slots
  Tensor logits_TN;   // of the head, after the transforms
  Tensor scores_TN;   // what the score function made of them
  Tensor probs_TN;    // the scores as a distribution: each token's sum is 1 (or 0, where all scores are)
  Tensor counts_N;    // int64, routed rows per expert; outside autograd, like everything below but `loss` and `state`
  Tensor chosen_TK;   // ids before capacity dropped any: what balancing reads and what a replay takes
  Tensor chosen_N;    // int64, their counts
  Tensor dropped;     // int64 scalar: rows that were chosen and dropped for capacity; undefined: none can be
  Tensor valid_T;     // bool: the tokens that count; undefined: all. The others are padding and routed nowhere
  Tensor state_TP;    // h_i of the stage, whether it is handed on or not; undefined without a recurrent stage
  Tensor loss;        // scalar: what the head itself asks to be minimized, weighted; undefined: nothing
  int64_t sequences = 1;  // T is this many sequences of equal length, one after the other
  bool full = true;       // no slot is unused

  int64_t tokens() const { return ids_TK.size(0); }
  int64_t experts() const { return counts_N.size(0); }
};

// What the routers of one forward pass did, one entry per MoE layer.
using RoutingTrace = std::vector<Routing>;

// Over the tokens that count, those of `valid_T` (undefined: all): the sum, [T, ...] -> [...]; how many they are, a
// scalar of x's dtype, at least 1; the mean, 0 where there is none.
Tensor sum_over_tokens(const Tensor& x_T, const Tensor& valid_T);
Tensor token_count(const Tensor& x_T, const Tensor& valid_T);
Tensor mean_over_tokens(const Tensor& x_T, const Tensor& valid_T);

}  // namespace rmoe::routing
