#include "rmoe/ops/dispatch.h"

#include <numeric>

#include "rmoe/ops/affine.h"

namespace rmoe {
namespace {

// out[i] = x[index[i]], where every row of x is read by exactly x.size(0) == inverse.size(0) / copies rows: the
// gradient is again a gather (through the inverse), not a scatter, so it needs no atomics and has one order of
// summation.
class GatherRows : public torch::autograd::Function<GatherRows> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& index,
                        const Tensor& inverse) {
    ctx->save_for_backward({inverse});
    ctx->saved_data["rows"] = x.size(0);
    return x.index_select(0, index);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const int64_t rows = ctx->saved_data["rows"].toInt();
    const Tensor& grad = grads[0];
    Tensor back = grad.index_select(0, ctx->get_saved_variables()[0]);
    if (back.size(0) != rows) back = back.view({rows, -1, grad.size(1)}).sum(1);
    return {back, Tensor(), Tensor()};
  }
};

}  // namespace

Dispatch make_dispatch(const Tensor& ids_TK, const Tensor& counts_N) {
  Dispatch dispatch;
  const Tensor counts = counts_N.cpu();
  dispatch.counts_N.assign(counts.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>() + counts.numel());
  const int64_t experts = counts.numel(), slots = ids_TK.numel();
  const int64_t rows = std::accumulate(dispatch.counts_N.begin(), dispatch.counts_N.end(), int64_t{0});
  Tensor ids = ids_TK.flatten();
  if (rows < slots) ids = ids.masked_fill(ids.lt(0).logical_or(ids.ge(experts)), experts);  // sorts behind all experts
  dispatch.order_M = std::get<1>(ids.sort(/*stable=*/true, 0, /*descending=*/false));
  if (rows < slots) {
    dispatch.order_M = dispatch.order_M.narrow(0, 0, rows);
  } else {
    dispatch.inverse_M = at::empty_like(dispatch.order_M);
    dispatch.inverse_M.scatter_(0, dispatch.order_M, at::arange(slots, dispatch.order_M.options()));
  }
  return dispatch;
}

Tensor dispatch_rows(const Tensor& x_TD, const Dispatch& dispatch, int64_t top_k) {
  const Tensor token_M = dispatch.order_M.div(top_k, "floor");
  if (x_TD.size(0) == 0 || !dispatch.inverse_M.defined()) return x_TD.index_select(0, token_M);
  return GatherRows::apply(x_TD, token_M, dispatch.inverse_M);
}

Tensor combine_rows(const Tensor& rows_MD, const Tensor& weights_TK, const Dispatch& dispatch) {
  const int64_t tokens = weights_TK.size(0), top_k = weights_TK.size(1), width = rows_MD.size(1);
  const Tensor weights = weights_TK.to(rows_MD.scalar_type());
  if (!dispatch.inverse_M.defined()) {
    // Summed in fp32 at least, as the product below is.
    const Tensor weighted = rows_MD * weights.flatten().index_select(0, dispatch.order_M).unsqueeze(1);
    return at::zeros({tokens, width}, rows_MD.options().dtype(at_least_fp32(rows_MD.scalar_type())))
        .index_add(0, dispatch.order_M.div(top_k, "floor"), at_least_fp32(weighted))
        .to(rows_MD.scalar_type());
  }
  const Tensor chosen = GatherRows::apply(rows_MD, dispatch.inverse_M, dispatch.order_M);
  return weights.view({tokens, 1, top_k}).bmm(chosen.view({tokens, top_k, width})).squeeze(1);
}

}  // namespace rmoe
