#include "rmoe/ops/reference/gate.h"

#include "rmoe/ops/affine.h"

namespace rmoe::reference {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate(const Tensor& feature, const Tensor& weight,
                                                        const std::optional<Tensor>& bias, int64_t top_k,
                                                        bool renormalize) {
  const Tensor logits = affine(at_least_fp32(feature), weight, bias.value_or(Tensor()));
  const Tensor probs = logits.softmax(-1);
  // A stable sort, not topk, which leaves the order of equals open.
  const Tensor ids = std::get<1>(probs.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, top_k).contiguous();
  const Tensor weights = renormalize ? logits.gather(1, ids).softmax(-1) : probs.gather(1, ids);
  return {ids, weights, probs, logits, at::bincount(ids.flatten(), {}, weight.size(0))};
}

std::tuple<Tensor, Tensor, Tensor> gate_backward(const std::optional<Tensor>& grad_weights,
                                                 const std::optional<Tensor>& grad_probs,
                                                 const std::optional<Tensor>& grad_logits, const Tensor& feature,
                                                 const Tensor& weight, const std::optional<Tensor>& bias,
                                                 const Tensor& ids, const Tensor& weights, const Tensor& probs,
                                                 bool renormalize) {
  Tensor of_probs = grad_probs ? grad_probs->clone() : at::zeros_like(probs);
  if (grad_weights && !renormalize) of_probs.scatter_add_(1, ids, *grad_weights);
  Tensor d_logits = probs * (of_probs - (probs * of_probs).sum(-1, /*keepdim=*/true));
  if (grad_logits) d_logits += *grad_logits;
  if (grad_weights && renormalize) {
    d_logits.scatter_add_(1, ids, weights * (*grad_weights - (weights * *grad_weights).sum(-1, /*keepdim=*/true)));
  }
  const Tensor precise = at_least_fp32(feature);
  return {d_logits.mm(weight.to(d_logits.scalar_type())).to(feature.scalar_type()),
          d_logits.t().mm(precise).to(weight.scalar_type()),
          bias ? d_logits.sum(0).to(bias->scalar_type()) : at::empty({0}, d_logits.options())};
}

}  // namespace rmoe::reference
