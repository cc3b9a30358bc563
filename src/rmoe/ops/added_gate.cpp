#include "rmoe/ops/added_gate.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/optional_tensor.h"
#include "rmoe/ops/reference/added_gate.h"

namespace rmoe {
namespace {

using Forward = decltype(reference::added_gate);
using Backward = decltype(reference::added_gate_backward);

const c10::TypedOperatorHandle<Forward>& forward_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::added_gate", "").typed<Forward>();
  return op;
}

class AddedGate : public torch::autograd::Function<AddedGate> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& feature,
                                                const Tensor& weight, const std::optional<Tensor>& bias,
                                                const Tensor& added, int64_t top_k, bool renormalize) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["renormalize"] = renormalize;
    at::AutoDispatchBelowADInplaceOrView below;
    auto [ids, weights, probs, logits, counts] = forward_op().call(feature, weight, bias, added, top_k, renormalize);
    ctx->save_for_backward({feature, weight, bias.value_or(Tensor()), added, ids, weights, probs});
    ctx->mark_non_differentiable({ids, counts});
    return {ids, weights, probs, logits, counts};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::added_gate_backward", "").typed<Backward>();
    auto [feature, weight, bias, added] =
        op.call(optional(grads[1]), optional(grads[2]), optional(grads[3]), s[0], s[1], optional(s[2]), s[3], s[4],
                s[5], s[6], ctx->saved_data["renormalize"].toBool());
    return {feature, weight, s[2].defined() ? bias : Tensor(), added, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> added_gate_autograd(const Tensor& feature, const Tensor& weight,
                                                                       const std::optional<Tensor>& bias,
                                                                       const Tensor& added, int64_t top_k,
                                                                       bool renormalize) {
  check::added_gate(feature, weight, bias, added, top_k);
  const auto out = AddedGate::apply(feature, weight, bias, added, top_k, renormalize);
  return {out[0], out[1], out[2], out[3], out[4]};
}

}  // namespace

void check::added_gate(const Tensor& feature, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Tensor& added, int64_t top_k) {
  if (!checkable("added_gate", feature, weight, bias, added)) return;
  const char* const name = "added_gate";
  floating(name, "feature", feature);
  floating(name, "weight", weight);
  floating(name, "added", added);
  RMOE_CHECK(feature.dim() == 2, name, ": feature must be [T, R], got ", feature.sizes());
  RMOE_CHECK(weight.dim() == 2 && weight.size(1) == feature.size(1), name, ": weight must be [N, ", feature.size(1),
             "], got ", weight.sizes());
  RMOE_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), name, ": bias must be [", weight.size(0),
             "], got ", bias->sizes());
  shape(name, "added", added, {feature.size(0), weight.size(0)});
  RMOE_CHECK(top_k >= 1 && top_k <= weight.size(0), name, ": top_k is ", top_k, ", expected 1 to ", weight.size(0));
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "added_gate(Tensor feature, Tensor weight, Tensor? bias, Tensor added, int top_k, bool renormalize)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "added_gate_backward(Tensor? grad_weights, Tensor? grad_probs, Tensor? grad_logits, Tensor feature,"
      " Tensor weight, Tensor? bias, Tensor added, Tensor ids, Tensor weights, Tensor probs, bool renormalize)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("added_gate", &reference::added_gate);
  m.impl("added_gate_backward", &reference::added_gate_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("added_gate", &added_gate_autograd); }

Gated added_gate(const Tensor& feature_TR, const Tensor& weight_NR, const Tensor& bias_N, const Tensor& added_TN,
                 int64_t top_k, bool renormalize) {
  auto [ids, weights, probs, logits, counts] =
      forward_op().call(feature_TR, weight_NR, optional(bias_N), added_TN, top_k, renormalize);
  return {std::move(ids), std::move(weights), std::move(probs), std::move(logits), std::move(counts)};
}

}  // namespace rmoe
