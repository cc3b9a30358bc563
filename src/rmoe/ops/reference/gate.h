// The formulas of gate in ATen, or a device's kernels in their place. Shapes as in ops/gate.h; in fp32 at least.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::reference {

// ids, weights, probs, logits, counts
using Choices = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// Of feature, weight and bias (an empty tensor where there is none).
using GateGradients = std::tuple<Tensor, Tensor, Tensor>;

Choices gate(const Tensor& feature, const Tensor& weight, const std::optional<Tensor>& bias, int64_t top_k,
             bool renormalize);
// Absent gradients mean zeros.
GateGradients gate_backward(const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_probs,
                            const std::optional<Tensor>& grad_logits, const Tensor& feature, const Tensor& weight,
                            const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
                            const Tensor& probs, bool renormalize);

// Their parts: what follows the product, that backwards, and the product backwards.
Choices choose(const Tensor& logits, int64_t top_k, bool renormalize);
Tensor logit_gradient(const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_probs,
                      const std::optional<Tensor>& grad_logits, const Tensor& ids, const Tensor& weights,
                      const Tensor& probs, bool renormalize);
GateGradients gate_gradients(const Tensor& d_logits, const Tensor& feature, const Tensor& weight,
                             const std::optional<Tensor>& bias);

}  // namespace rmoe::reference
