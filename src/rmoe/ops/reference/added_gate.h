// The formulas of added_gate in ATen. Shapes as in ops/added_gate.h; in fp32 at least.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// -> ids, weights, probs, logits, counts
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> added_gate(const Tensor& feature, const Tensor& weight,
                                                              const std::optional<Tensor>& bias, const Tensor& added,
                                                              int64_t top_k, bool renormalize);

// -> gradients of feature, weight, bias (an empty tensor where there is none) and added. Absent gradients mean zeros.
std::tuple<Tensor, Tensor, Tensor, Tensor> added_gate_backward(const std::optional<Tensor>& grad_weights,
                                                               const std::optional<Tensor>& grad_probs,
                                                               const std::optional<Tensor>& grad_logits,
                                                               const Tensor& feature, const Tensor& weight,
                                                               const std::optional<Tensor>& bias, const Tensor& added,
                                                               const Tensor& ids, const Tensor& weights,
                                                               const Tensor& probs, bool renormalize);

}  // namespace rmoe::reference
