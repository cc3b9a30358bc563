// The loss of a language model's head, without its logits.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

struct LinearCrossEntropyOptions {
  int64_t ignore_index = -100;  // tokens with this target count nowhere (padding)
  double z_loss = 0;            // weight of the mean of lse^2 (PaLM, section 5)
  double scale = 1;             // multiplies loss and gradients: the share of a micro-batch, at no further pass
};

struct LinearCrossEntropy {
  Tensor loss;      // scalar; differentiable in x, w and b
  Tensor losses_T;  // each token's lse - logit of its target, 0 where ignored; without scale and z-loss, no gradient
};

// loss = scale * mean over the tokens that count of (lse_t - logit_{t,target_t} + z_loss * lse_t^2), where
// logits = x w^T + b and lse_t = log sum_v e^{logit_{t,v}}; 0 where no token counts. x_TD fp32, bf16 or fp64; w_VD, b_V
// (may be undefined) in any of these, w read in x's dtype; targets_T int64 in [0, V) or ignore_index. Losses are in
// fp32, of an fp64 x in fp64. The logits are made for a few tokens at a time. Where a gradient is wanted, all of them
// are made here, so that nothing of the size of the logits is kept, in the dtype of what they belong to; those of fp32
// weights are summed in fp32 whatever x is. They are handed out once: a second
// backward throws, unless the one before retained the graph.
LinearCrossEntropy linear_cross_entropy(const Tensor& x_TD, const Tensor& w_VD, const Tensor& b_V,
                                        const Tensor& targets_T, const LinearCrossEntropyOptions& options = {});

}  // namespace rmoe
