// gate by the CPU kernels; where there are none, by the reference.
#include "rmoe/kernels/cpu/gate.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/fp32.h"
#include "rmoe/ops/reference/gate.h"

namespace rmoe::cpu {
namespace {

using kernels::Bf16;

template <class F>
bool with_gate_kernels(const Tensor& feature, F&& f) {
  return with_fp32_products(feature, &kernels::gate_kernels<float>, &kernels::gate_kernels<Bf16>, f);
}

kernels::Gate arguments(const Tensor& feature, const Tensor& weight, int64_t top_k, bool renormalize) {
  return {.T = feature.size(0),
          .R = feature.size(1),
          .N = weight.size(0),
          .K = top_k,
          .renormalize = renormalize,
          .feature = data_if<float>(feature),
          .narrow_feature = data_if<Bf16>(feature)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate(const Tensor& feature, const Tensor& weight,
                                                        const std::optional<Tensor>& bias, int64_t top_k,
                                                        bool renormalize) {
  check::gate(feature, weight, bias, top_k);
  Tensor ids, weights, probs, logits, counts;
  const bool done = with_gate_kernels(feature, [&](const auto& table) {
    const Tensor rows = feature.contiguous();
    const Fp32 w(weight), b(bias);
    kernels::Gate g = arguments(rows, weight, top_k, renormalize);
    g.weight = w, g.bias = b;
    const auto options = feature.options().dtype(at::kFloat), integers = feature.options().dtype(at::kLong);
    ids = at::empty({g.T, g.K}, integers);
    weights = at::empty({g.T, g.K}, options);
    probs = at::empty({g.T, g.N}, options);
    logits = at::empty({g.T, g.N}, options);
    counts = at::empty({g.N}, integers);
    table.forward(g, {.logits = logits.mutable_data_ptr<float>(),
                      .probs = probs.mutable_data_ptr<float>(),
                      .weights = weights.mutable_data_ptr<float>(),
                      .ids = ids.mutable_data_ptr<int64_t>(),
                      .counts = counts.mutable_data_ptr<int64_t>()});
  });
  if (done) return {ids, weights, probs, logits, counts};
  return reference::gate(feature, weight, bias, top_k, renormalize);
}

std::tuple<Tensor, Tensor, Tensor> gate_backward(const std::optional<Tensor>& grad_weights,
                                                 const std::optional<Tensor>& grad_probs,
                                                 const std::optional<Tensor>& grad_logits, const Tensor& feature,
                                                 const Tensor& weight, const std::optional<Tensor>& bias,
                                                 const Tensor& ids, const Tensor& weights, const Tensor& probs,
                                                 bool renormalize) {
  const char* const name = "gate_backward";
  RMOE_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong, name, ": ids must be int64 [T, K], got ", ids.sizes());
  check::gate(feature, weight, bias, ids.size(1));
  const std::vector<int64_t> by_expert = {feature.size(0), weight.size(0)}, by_slot = {feature.size(0), ids.size(1)};
  check::shape(name, "ids", ids, by_slot);
  RMOE_CHECK(ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < weight.size(0)), name,
             ": ids must be in [0, ", weight.size(0), ")");
  check::shape(name, "weights", weights, by_slot);
  check::shape(name, "probs", probs, by_expert);
  if (grad_weights) check::shape(name, "grad_weights", *grad_weights, by_slot);
  if (grad_probs) check::shape(name, "grad_probs", *grad_probs, by_expert);
  if (grad_logits) check::shape(name, "grad_logits", *grad_logits, by_expert);
  Tensor d_feature, d_weight, d_bias;
  const bool done = with_gate_kernels(feature, [&](const auto& table) {
    const Tensor rows = feature.contiguous(), chosen = ids.contiguous();
    const Fp32 w(weight), g_weights(grad_weights), g_probs(grad_probs), g_logits(grad_logits), given(weights),
        distribution(probs);
    kernels::Gate g = arguments(rows, weight, ids.size(1), renormalize);
    g.weight = w;
    const auto options = feature.options().dtype(at::kFloat);
    d_feature = at::empty_like(rows);
    d_weight = at::empty(weight.sizes(), options);
    d_bias = at::empty({bias ? g.N : 0}, options);
    table.backward(g, {.probs = distribution,
                       .weights = given,
                       .ids = chosen.const_data_ptr<int64_t>(),
                       .g_logits = g_logits,
                       .g_probs = g_probs,
                       .g_weights = g_weights,
                       .d_feature = mutable_data_if<float>(d_feature),
                       .d_narrow_feature = mutable_data_if<Bf16>(d_feature),
                       .d_weight = d_weight.mutable_data_ptr<float>(),
                       .d_bias = bias ? d_bias.mutable_data_ptr<float>() : nullptr});
    d_weight = d_weight.to(weight.scalar_type());
    if (bias) d_bias = d_bias.to(bias->scalar_type());
  });
  if (done) return {d_feature, d_weight, d_bias};
  return reference::gate_backward(grad_weights, grad_probs, grad_logits, feature, weight, bias, ids, weights, probs,
                                  renormalize);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("gate", &gate);
  m.impl("gate_backward", &gate_backward);
}

}  // namespace rmoe::cpu
