#include "rmoe/nn/experts.h"

#include "rmoe/ops/affine.h"
#include "rmoe/ops/dispatch.h"
#include "rmoe/ops/grouped_linear.h"

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
  w1_NFD_ = add("w1.weight", {F, D}, in, true);
  w2_NDF_ = add("w2.weight", {D, F}, out, true);
  if (s.kind == ExpertKind::kSwiglu) {
    w3_NFD_ = add("w3.weight", {F, D}, in, true);
  } else {
    b1_NF_ = add("w1.bias", {F}, bias_init(D, s.init_deviation), false);
    b2_ND_ = add("w2.bias", {D}, bias_init(F, s.init_deviation), false);
  }
}

Tensor Experts::answers(const Tensor& rows_MD, const std::vector<int64_t>& counts, bool training,
                        DropoutKey key) const {
  Tensor inner_MF = grouped_linear(rows_MD, w1_NFD_, b1_NF_, counts);
  if (shape_.kind == ExpertKind::kSwiglu) {
    inner_MF = at::silu(inner_MF) * grouped_linear(rows_MD, w3_NFD_, {}, counts);
  } else {
    inner_MF = inner_MF.relu();
    if (training) inner_MF = dropout(inner_MF, shape_.dropout, key);
  }
  return grouped_linear(inner_MF, w2_NDF_, b2_ND_, counts);
}

Tensor Experts::forward(const Tensor& x_TD, const routing::Routing& routing, bool training, DropoutKey key) const {
  const Dispatch dispatch = make_dispatch(routing.ids_TK, routing.counts_N.narrow(0, 0, shape_.experts));
  const Tensor rows_MD = dispatch_rows(x_TD, dispatch, routing.ids_TK.size(1));
  const Tensor y_TD = combine_rows(answers(rows_MD, dispatch.counts_N, training, key), routing.weights_TK, dispatch);
  if (shape_.copy_experts == 0) return y_TD;
  const Tensor copies_TK = routing.ids_TK.ge(shape_.experts + shape_.null_experts);
  const Tensor share_T1 = routing.weights_TK.masked_fill(copies_TK.logical_not(), 0).sum(1, /*keepdim=*/true);
  return y_TD + x_TD * share_T1.to(x_TD.scalar_type());
}

Tensor Experts::response_norms(const Tensor& x_TD) const {
  at::NoGradGuard no_grad;
  const int64_t T = x_TD.size(0), N = shape_.experts;
  const auto norms = [](const Tensor& y) { return at::norm(at_least_fp32(y), 2, -1); };
  // A slice of the tokens at a time: all of them in N copies would be the largest tensor of a step.
  constexpr int64_t kSlice = 512;
  std::vector<Tensor> slices;
  for (const Tensor& slice_tD : x_TD.detach().split(kSlice)) {
    const int64_t t = slice_tD.size(0);
    const std::vector<int64_t> counts(static_cast<size_t>(N), t);
    slices.push_back(norms(answers(slice_tD.repeat({N, 1}), counts, false, {})).view({N, t}).t());
  }
  Tensor norms_TN = at::cat(slices, 0);
  if (shape_.null_experts > 0) norms_TN = at::cat({norms_TN, norms_TN.new_zeros({T, shape_.null_experts})}, 1);
  if (shape_.copy_experts > 0) {
    norms_TN = at::cat({norms_TN, norms(x_TD).unsqueeze(1).expand({T, shape_.copy_experts})}, 1);
  }
  return norms_TN.contiguous();
}

}  // namespace rmoe::nn
