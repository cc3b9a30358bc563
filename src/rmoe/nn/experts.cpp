#include "rmoe/nn/experts.h"

#include "rmoe/ops/affine.h"

namespace rmoe::nn {

Experts::Experts(const ExpertsShape& s, const ParamScope& scope) : shape_(s) {
  const auto add = [&](const std::string& what, Shape shape, Init init, bool matrix) {
    StoredParts parts{.names = {}, .drop_dim = true};
    for (int64_t e = 0; e < s.experts; ++e) {
      parts.names.push_back(scope.join("experts." + std::to_string(e) + "." + what));
    }
    shape.insert(shape.begin(), s.experts);
    const auto all = static_cast<double>(s.experts + s.null_experts + s.copy_experts);
    const double active = static_cast<double>(s.top_k) / all;
    return scope.add("experts." + what, std::move(shape), init,
                     {.active = active, .matmul = matrix, .stored = std::move(parts)});
  };
  const int64_t D = s.model_width, F = s.expert_width;
  const Init in = matrix_init(D, s.init_deviation), out = matrix_init(F, s.init_deviation);
  parameters_.w1_NFD = add("w1.weight", {F, D}, in, true);
  parameters_.w2_NDF = add("w2.weight", {D, F}, out, true);
  if (s.kind == ExpertKind::kSwiglu) {
    parameters_.w3_NFD = add("w3.weight", {F, D}, in, true);
  } else {
    parameters_.b1_NF = add("w1.bias", {F}, bias_init(D, s.init_deviation), false);
    parameters_.b2_ND = add("w2.bias", {D}, bias_init(F, s.init_deviation), false);
  }
}

Tensor Experts::forward(const Tensor& x_TD, const routing::Routing& routing, bool training, DropoutKey key) const {
  const double dropout = training && shape_.kind == ExpertKind::kRelu ? shape_.dropout : 0;
  const Tensor y_TD = experts(x_TD, routing.ids_TK, routing.weights_TK, parameters_, dropout, key);
  if (shape_.copy_experts == 0) return y_TD;
  const Tensor copies_TK = routing.ids_TK.ge(shape_.experts + shape_.null_experts);
  const Tensor share_T1 = routing.weights_TK.masked_fill(copies_TK.logical_not(), 0).sum(1, /*keepdim=*/true);
  return y_TD + x_TD * share_T1.to(x_TD.scalar_type());
}

Tensor Experts::response_norms(const Tensor& x_TD) const {
  at::NoGradGuard no_grad;
  const int64_t T = x_TD.size(0), N = shape_.experts;
  const auto norms = [](const Tensor& y) { return at::norm(at_least_fp32(y), 2, -1); };
  const auto dtype = at_least_fp32(x_TD.scalar_type());
  Tensor norms_TN = at::empty({T, N}, x_TD.options().dtype(dtype));
  const Tensor one_T1 = at::ones({T, 1}, norms_TN.options());
  for (int64_t n = 0; n < N; ++n) {
    const Tensor ids_T1 = at::full({T, 1}, n, x_TD.options().dtype(at::kLong));
    norms_TN.select(1, n).copy_(norms(experts(x_TD, ids_T1, one_T1, parameters_)));
  }
  if (shape_.null_experts > 0) norms_TN = at::cat({norms_TN, norms_TN.new_zeros({T, shape_.null_experts})}, 1);
  if (shape_.copy_experts > 0) {
    norms_TN = at::cat({norms_TN, norms(x_TD).unsqueeze(1).expand({T, shape_.copy_experts})}, 1);
  }
  return norms_TN.contiguous();
}

}  // namespace rmoe::nn
