// The linear head of a router to whose logits something is added before all that follows: a gate on the state beside
// the one on x (model.moe.state_gate).
#pragma once

#include "rmoe/ops/gate.h"

namespace rmoe {

// As gate(), with logits = feature weight^T + bias + added. added_TN [T, N] is read in fp32, or in fp64 for an fp64
// feature. What is added comes last: zeros leave every result of gate() as it is, bit for bit. Differentiable in
// added_TN, too.
Gated added_gate(const Tensor& feature_TR, const Tensor& weight_NR, const Tensor& bias_N, const Tensor& added_TN,
                 int64_t top_k, bool renormalize);

}  // namespace rmoe
