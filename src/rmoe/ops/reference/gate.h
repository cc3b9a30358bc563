// The formulas of gate in ATen. Shapes as in ops/gate.h; in fp32 at least.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// -> ids, weights, probs, logits, counts
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate(const Tensor& feature, const Tensor& weight,
                                                        const std::optional<Tensor>& bias, int64_t top_k,
                                                        bool renormalize);

// -> gradients of feature, weight and bias (an empty tensor where there is none). Absent gradients mean zeros.
std::tuple<Tensor, Tensor, Tensor> gate_backward(const std::optional<Tensor>& grad_weights,
                                                 const std::optional<Tensor>& grad_probs,
                                                 const std::optional<Tensor>& grad_logits, const Tensor& feature,
                                                 const Tensor& weight, const std::optional<Tensor>& bias,
                                                 const Tensor& ids, const Tensor& weights, const Tensor& probs,
                                                 bool renormalize);

}  // namespace rmoe::reference
