#include "rmoe/nn/experts.h"

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
    const double active = static_cast<double>(s.top_k) / static_cast<double>(s.experts);
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
    b1_NF_ = add("w1.bias", {F}, s.init_deviation > 0 ? Init::zeros() : in, false);
    b2_ND_ = add("w2.bias", {D}, s.init_deviation > 0 ? Init::zeros() : out, false);
  }
}

Tensor Experts::forward(const Tensor& x_TD, const routing::Routing& routing, bool training, DropoutKey key) const {
  const Dispatch dispatch = make_dispatch(routing.ids_TK, routing.counts_N);
  const auto& counts = dispatch.counts_N;
  const Tensor rows_MD = dispatch_rows(x_TD, dispatch);
  Tensor inner_MF = grouped_linear(rows_MD, w1_NFD_, b1_NF_, counts);
  if (shape_.kind == ExpertKind::kSwiglu) {
    inner_MF = at::silu(inner_MF) * grouped_linear(rows_MD, w3_NFD_, {}, counts);
  } else {
    inner_MF = inner_MF.relu();
    if (training) inner_MF = dropout(inner_MF, shape_.dropout, key);
  }
  return combine_rows(grouped_linear(inner_MF, w2_NDF_, b2_ND_, counts), routing.weights_TK, dispatch);
}

}  // namespace rmoe::nn
