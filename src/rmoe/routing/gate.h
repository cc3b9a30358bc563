// Score function and selection: logits_TN -> Routing. Ties go to the lower expert id, everywhere and always.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::routing {

// The choice of one layer. T tokens, K experts per token, N experts.
struct Routing {
  Tensor ids_TK;      // int64, by falling score
  Tensor weights_TK;  // of the logits' dtype; what the experts' outputs are multiplied by; sums to 1 per token
  Tensor logits_TN;
  Tensor probs_TN;  // softmax over all N
  Tensor counts_N;  // int64, tokens per expert; integer and outside autograd
};

// What the routers of one forward pass did, one entry per MoE layer.
using RoutingTrace = std::vector<Routing>;

// Top-k of the softmax; the weights are the softmax over the selected logits, which equals the softmax over all N
// renormalized to sum 1 (paper, section 1.3; public code, section 5). Throws unless 1 <= top_k <= N.
Routing select_top_k(const Tensor& logits_TN, int64_t top_k);

}  // namespace rmoe::routing
