#include "rmoe/ops/reference/added_gate.h"

#include "rmoe/ops/affine.h"
#include "rmoe/ops/reference/gate.h"

namespace rmoe::reference {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> added_gate(const Tensor& feature, const Tensor& weight,
                                                              const std::optional<Tensor>& bias, const Tensor& added,
                                                              int64_t top_k, bool renormalize) {
  const Tensor product = affine(at_least_fp32(feature), weight, bias.value_or(Tensor()));
  return choose(product + added.to(product.scalar_type()), top_k, renormalize);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> added_gate_backward(const std::optional<Tensor>& grad_weights,
                                                               const std::optional<Tensor>& grad_probs,
                                                               const std::optional<Tensor>& grad_logits,
                                                               const Tensor& feature, const Tensor& weight,
                                                               const std::optional<Tensor>& bias, const Tensor& added,
                                                               const Tensor& ids, const Tensor& weights,
                                                               const Tensor& probs, bool renormalize) {
  const Tensor d_logits = logit_gradient(grad_weights, grad_probs, grad_logits, ids, weights, probs, renormalize);
  auto [d_feature, d_weight, d_bias] = gate_gradients(d_logits, feature, weight, bias);
  return {d_feature, d_weight, d_bias, d_logits.to(added.scalar_type())};
}

}  // namespace rmoe::reference
