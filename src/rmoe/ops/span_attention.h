// Attention over a fixed span before each token (reference, section 2).
#pragma once

#include "rmoe/ops/dropout.h"

namespace rmoe {

// Attention of the paper's small-scale models (reference, section 2). A query at position m sees exactly the S
// positions before it, never itself: score(m, l) = (q_m . k_{m+l} + q_m . key_pe_l) / sqrt(C) for l = 0..S-1, the key
// at index m+l lying S - l positions back; softmax over l, dropout on the weights. q [B, H, M, C]; k, v [B, H, S+M, C]:
// the S positions before the block, then the block; key_pe [C, S], shared by heads, in fp32 or in q's dtype. Returns
// [B, H, M, C]. Differentiable in q, k, v and key_pe; keeps only the log-sum-exp for backward and works in pieces of
// bounded size. On a CPU with kernels, results and gradients lie in the memory order [B, M, H, C].
Tensor span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe, double dropout_p,
                      DropoutKey key);

}  // namespace rmoe
