#include "rmoe/ops/gate.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/optional_tensor.h"
#include "rmoe/ops/reference/gate.h"

namespace rmoe {
namespace {

using Forward = decltype(reference::gate);
using Backward = decltype(reference::gate_backward);

class GateFunction : public torch::autograd::Function<GateFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& feature,
                                                const Tensor& weight, const std::optional<Tensor>& bias, int64_t top_k,
                                                bool renormalize) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["renormalize"] = renormalize;
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gate", "").typed<Forward>();
    auto [ids, weights, probs, logits, counts] = op.call(feature, weight, bias, top_k, renormalize);
    ctx->save_for_backward({feature, weight, bias.value_or(Tensor()), ids, weights, probs});
    ctx->mark_non_differentiable({ids, counts});
    return {ids, weights, probs, logits, counts};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gate_backward", "").typed<Backward>();
    auto [feature, weight, bias] = op.call(optional(grads[1]), optional(grads[2]), optional(grads[3]), s[0], s[1],
                                           optional(s[2]), s[3], s[4], s[5], ctx->saved_data["renormalize"].toBool());
    return {feature, weight, s[2].defined() ? bias : Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate_autograd(const Tensor& feature, const Tensor& weight,
                                                                 const std::optional<Tensor>& bias, int64_t top_k,
                                                                 bool renormalize) {
  check::gate(feature, weight, bias, top_k);
  const auto out = GateFunction::apply(feature, weight, bias, top_k, renormalize);
  return {out[0], out[1], out[2], out[3], out[4]};
}

}  // namespace

void check::gate(const Tensor& feature, const Tensor& weight, const std::optional<Tensor>& bias, int64_t top_k) {
  if (!checkable("gate", feature, weight, bias)) return;
  floating("gate", "feature", feature);
  floating("gate", "weight", weight);
  RMOE_CHECK(feature.dim() == 2, "gate: feature must be [T, R], got ", feature.sizes());
  RMOE_CHECK(weight.dim() == 2 && weight.size(1) == feature.size(1), "gate: weight must be [N, ", feature.size(1),
             "], got ", weight.sizes());
  RMOE_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "gate: bias must be [", weight.size(0),
             "], got ", bias->sizes());
  RMOE_CHECK(top_k >= 1 && top_k <= weight.size(0), "gate: top_k is ", top_k, ", expected 1 to ", weight.size(0));
}

Tensor count_ids(const Tensor& ids, int64_t N) {
  const Tensor flat = ids.flatten();
  // bincount() looks for the largest id first.
  return flat.is_cpu() ? at::bincount(flat, {}, N)
                       : at::zeros({N}, flat.options()).scatter_add_(0, flat, at::ones_like(flat));
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "gate(Tensor feature, Tensor weight, Tensor? bias, int top_k, bool renormalize)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gate_backward(Tensor? grad_weights, Tensor? grad_probs, Tensor? grad_logits, Tensor feature, Tensor weight,"
      " Tensor? bias, Tensor ids, Tensor weights, Tensor probs, bool renormalize) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("gate", &reference::gate);
  m.impl("gate_backward", &reference::gate_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("gate", &gate_autograd); }

Gated gate(const Tensor& feature_TR, const Tensor& weight_NR, const Tensor& bias_N, int64_t top_k, bool renormalize) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gate", "").typed<Forward>();
  auto [ids, weights, probs, logits, counts] = op.call(feature_TR, weight_NR, optional(bias_N), top_k, renormalize);
  return {std::move(ids), std::move(weights), std::move(probs), std::move(logits), std::move(counts)};
}

}  // namespace rmoe
