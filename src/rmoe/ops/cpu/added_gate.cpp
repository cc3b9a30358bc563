// added_gate by the CPU kernel of gate; its backward pass, and all of it where there is no kernel, is the reference.
#include "rmoe/ops/reference/added_gate.h"

#include "rmoe/kernels/cpu/gate.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/fp32.h"

namespace rmoe::cpu {
namespace {

using kernels::Bf16;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> added_gate(const Tensor& feature, const Tensor& weight,
                                                              const std::optional<Tensor>& bias, const Tensor& added,
                                                              int64_t top_k, bool renormalize) {
  check::added_gate(feature, weight, bias, added, top_k);
  Tensor ids, weights, probs, logits, counts;
  const auto run = [&](const auto& table) {
    const Tensor rows = feature.contiguous();
    const Fp32 w(weight), b(bias), a(added);
    const int64_t T = rows.size(0), N = weight.size(0);
    const auto options = feature.options().dtype(at::kFloat), integers = feature.options().dtype(at::kLong);
    ids = at::empty({T, top_k}, integers);
    weights = at::empty({T, top_k}, options);
    probs = at::empty({T, N}, options);
    logits = at::empty({T, N}, options);
    counts = at::empty({N}, integers);
    table.forward({.T = T,
                   .R = rows.size(1),
                   .N = N,
                   .K = top_k,
                   .renormalize = renormalize,
                   .feature = data_if<float>(rows),
                   .narrow_feature = data_if<Bf16>(rows),
                   .weight = w,
                   .bias = b,
                   .added = a},
                  {.logits = logits.mutable_data_ptr<float>(),
                   .probs = probs.mutable_data_ptr<float>(),
                   .weights = weights.mutable_data_ptr<float>(),
                   .ids = ids.mutable_data_ptr<int64_t>(),
                   .counts = counts.mutable_data_ptr<int64_t>()});
  };
  if (with_fp32_products(feature, &kernels::gate_kernels<float>, &kernels::gate_kernels<Bf16>, run)) {
    return {ids, weights, probs, logits, counts};
  }
  return reference::added_gate(feature, weight, bias, added, top_k, renormalize);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) { m.impl("added_gate", &added_gate); }

}  // namespace rmoe::cpu
