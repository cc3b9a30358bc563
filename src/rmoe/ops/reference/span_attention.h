// The formulas of span_attention in ATen. Shapes as in ops/span_attention.h.
#pragma once

#include "rmoe/ops/dropout.h"

namespace rmoe::reference {

// -> (out [B, H, M, C], log-sum-exp of the scores [B, H, M])
std::tuple<Tensor, Tensor> span_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pe,
                                          double dropout_p, int64_t dropout_key);

// -> gradients of q, k, v, key_pe
std::tuple<Tensor, Tensor, Tensor, Tensor> span_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                                   const Tensor& v, const Tensor& key_pe,
                                                                   const Tensor& out, const Tensor& lse,
                                                                   double dropout_p, int64_t dropout_key);

}  // namespace rmoe::reference
