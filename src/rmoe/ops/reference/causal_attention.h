// The formulas of causal_attention and rotate in ATen. Shapes as in ops/causal_attention.h.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// backwards: by the negative angles, which is also the gradient.
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backwards);

// -> (out [B, Sq, H, C], log-sum-exp of the scores [B, H, Sq])
std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const std::optional<Tensor>& cos, const std::optional<Tensor>& sin);

// -> gradients of q, k, v
std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const std::optional<Tensor>& cos,
                                                             const std::optional<Tensor>& sin, const Tensor& out,
                                                             const Tensor& lse);

}  // namespace rmoe::reference
