#include "rmoe/ops/grouped_linear.h"

#include <numeric>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

class GroupedLinear : public torch::autograd::Function<GroupedLinear> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& w,
                        const std::optional<Tensor>& b, const std::vector<int64_t>& counts) {
    ctx->save_for_backward({x, w});
    ctx->saved_data["counts"] = counts;
    ctx->saved_data["bias"] = b.has_value();
    Tensor out = at::empty({x.size(0), w.size(1)}, x.options());
    for_each_group(counts, [&](int64_t e, int64_t begin, int64_t rows) {
      Tensor part = out.narrow(0, begin, rows);
      if (b) {
        at::addmm_out(part, (*b)[e], x.narrow(0, begin, rows), w[e].t());
      } else {
        at::mm_out(part, x.narrow(0, begin, rows), w[e].t());
      }
    });
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], grad = grads[0].contiguous();
    const auto counts = ctx->saved_data["counts"].toIntVector();
    Tensor dx = at::empty_like(x), dw = at::empty_like(w), db;
    if (ctx->saved_data["bias"].toBool()) db = at::zeros({w.size(0), w.size(1)}, w.options());
    for (size_t e = 0; e < counts.size(); ++e) {
      if (counts[e] == 0) dw[static_cast<int64_t>(e)].zero_();
    }
    for_each_group(counts, [&](int64_t e, int64_t begin, int64_t rows) {
      Tensor dx_e = dx.narrow(0, begin, rows), dw_e = dw[e];
      const Tensor grad_e = grad.narrow(0, begin, rows);
      at::mm_out(dx_e, grad_e, w[e]);
      at::mm_out(dw_e, grad_e.t(), x.narrow(0, begin, rows));
      if (db.defined()) db[e] = grad_e.sum(0);
    });
    return {dx, dw, db, Tensor()};
  }

 private:
  template <class F>
  static void for_each_group(const std::vector<int64_t>& counts, F&& f) {
    int64_t begin = 0;
    for (size_t e = 0; e < counts.size(); ++e) {
      if (counts[e] > 0) f(static_cast<int64_t>(e), begin, counts[e]);
      begin += counts[e];
    }
  }
};

}  // namespace

Tensor grouped_linear(const Tensor& x_MI, const Tensor& w_NOI, const Tensor& b_NO,
                      const std::vector<int64_t>& counts_N) {
  RMOE_CHECK(x_MI.dim() == 2 && w_NOI.dim() == 3 && x_MI.size(1) == w_NOI.size(2),
             "grouped_linear: x must be [M, I] and w [N, O, I], got ", x_MI.sizes(), " and ", w_NOI.sizes());
  RMOE_CHECK(static_cast<int64_t>(counts_N.size()) == w_NOI.size(0), "grouped_linear: ", counts_N.size(),
             " counts for ", w_NOI.size(0), " experts");
  const int64_t rows = std::accumulate(counts_N.begin(), counts_N.end(), int64_t{0});
  RMOE_CHECK(rows == x_MI.size(0), "grouped_linear: counts sum to ", rows, " but x has ", x_MI.size(0), " rows");
  const auto dtype = x_MI.scalar_type();
  return GroupedLinear::apply(x_MI, w_NOI.to(dtype),
                              b_NO.defined() ? std::optional<Tensor>(b_NO.to(dtype)) : std::nullopt, counts_N);
}

}  // namespace rmoe
