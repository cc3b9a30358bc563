#include "rmoe/ops/reference/gate.h"

#include "rmoe/ops/affine.h"
#include "rmoe/ops/device_kernels.h"
#include "rmoe/ops/gate.h"

namespace rmoe::reference {

Choices choose(const Tensor& logits, int64_t top_k, bool renormalize) {
  if (const DeviceCall call(logits); call && logits.scalar_type() == at::kFloat) {
    const int64_t T = logits.size(0), N = logits.size(1);
    const Tensor rows = logits.contiguous(), chances = at::empty_like(rows);
    const Tensor chosen = at::empty({T, top_k}, rows.options().dtype(at::kLong));
    const Tensor shares = at::empty({T, top_k}, rows.options()), counts = at::zeros({N}, chosen.options());
    call->choose({.logits = elements<float>(rows),
                  .T = T,
                  .N = N,
                  .K = top_k,
                  .renormalize = renormalize,
                  .ids = elements_to_write<int64_t>(chosen),
                  .weights = elements_to_write<float>(shares),
                  .probs = elements_to_write<float>(chances),
                  .counts = elements_to_write<int64_t>(counts)},
                 call.stream());
    return {chosen, shares, chances, rows, counts};
  }
  const Tensor probs = logits.softmax(-1);
  // A stable sort, not topk, which leaves the order of equals open.
  const Tensor ids = std::get<1>(probs.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, top_k).contiguous();
  const Tensor weights = renormalize ? logits.gather(1, ids).softmax(-1) : probs.gather(1, ids);
  return {ids, weights, probs, logits, count_ids(ids, logits.size(1))};
}

Tensor logit_gradient(const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_probs,
                      const std::optional<Tensor>& grad_logits, const Tensor& ids, const Tensor& weights,
                      const Tensor& probs, bool renormalize) {
  if (const DeviceCall call(probs); call && probs.scalar_type() == at::kFloat) {
    const auto whole = [](const std::optional<Tensor>& t) { return t ? t->to(at::kFloat).contiguous() : Tensor(); };
    const Tensor of_weights = whole(grad_weights), of_probs = whole(grad_probs), of_logits = whole(grad_logits);
    const Tensor chosen = ids.contiguous(), shares = weights.contiguous(), chances = probs.contiguous();
    const Tensor d_logits = at::empty_like(chances);
    const auto read = [](const Tensor& t) { return t.defined() ? elements<float>(t) : nullptr; };
    call->choose_backward({.ids = elements<int64_t>(chosen),
                           .weights = elements<float>(shares),
                           .probs = elements<float>(chances),
                           .g_weights = read(of_weights),
                           .g_probs = read(of_probs),
                           .g_logits = read(of_logits),
                           .T = probs.size(0),
                           .N = probs.size(1),
                           .K = ids.size(1),
                           .renormalize = renormalize,
                           .d_logits = elements_to_write<float>(d_logits)},
                          call.stream());
    return d_logits;
  }
  Tensor of_probs = grad_probs ? grad_probs->clone() : at::zeros_like(probs);
  if (grad_weights && !renormalize) of_probs.scatter_add_(1, ids, *grad_weights);
  Tensor d_logits = probs * (of_probs - (probs * of_probs).sum(-1, /*keepdim=*/true));
  if (grad_logits) d_logits += *grad_logits;
  if (grad_weights && renormalize) {
    d_logits.scatter_add_(1, ids, weights * (*grad_weights - (weights * *grad_weights).sum(-1, /*keepdim=*/true)));
  }
  return d_logits;
}

GateGradients gate_gradients(const Tensor& d_logits, const Tensor& feature, const Tensor& weight,
                             const std::optional<Tensor>& bias) {
  return {d_logits.mm(weight.to(d_logits.scalar_type())).to(feature.scalar_type()),
          d_logits.t().mm(at_least_fp32(feature)).to(weight.scalar_type()),
          bias ? d_logits.sum(0).to(bias->scalar_type()) : at::empty({0}, d_logits.options())};
}

Choices gate(const Tensor& feature, const Tensor& weight, const std::optional<Tensor>& bias, int64_t top_k,
             bool renormalize) {
  return choose(affine(at_least_fp32(feature), weight, bias.value_or(Tensor())), top_k, renormalize);
}

GateGradients gate_backward(const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_probs,
                            const std::optional<Tensor>& grad_logits, const Tensor& feature, const Tensor& weight,
                            const std::optional<Tensor>& bias, const Tensor& ids, const Tensor& weights,
                            const Tensor& probs, bool renormalize) {
  return gate_gradients(logit_gradient(grad_weights, grad_probs, grad_logits, ids, weights, probs, renormalize),
                        feature, weight, bias);
}

}  // namespace rmoe::reference
