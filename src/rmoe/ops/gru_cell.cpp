#include "rmoe/ops/gru_cell.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/reference/gru_cell.h"

namespace rmoe {
namespace {

using Forward = Tensor(const Tensor&, const std::optional<Tensor>&, const Tensor&, const Tensor&, const Tensor&,
                       const Tensor&);
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                                            const std::optional<Tensor>&, const Tensor&,
                                                                            const Tensor&, const Tensor&,
                                                                            const Tensor&);

class GruCell : public torch::autograd::Function<GruCell> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& state,
                        const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh) {
    ctx->save_for_backward({x, state.value_or(Tensor()), w_ih, w_hh, b_ih, b_hh});
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gru_cell", "").typed<Forward>();
    return op.call(x, state, w_ih, w_hh, b_ih, b_hh);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto state = saved[1].defined() ? std::optional<Tensor>(saved[1]) : std::nullopt;
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gru_cell_backward", "").typed<Backward>();
    auto [x, h, w_ih, w_hh, b_ih, b_hh] = op.call(grads[0], saved[0], state, saved[2], saved[3], saved[4], saved[5]);
    return {x, state ? h : Tensor(), w_ih, w_hh, b_ih, b_hh};
  }
};

Tensor gru_cell_autograd(const Tensor& x, const std::optional<Tensor>& state, const Tensor& w_ih, const Tensor& w_hh,
                         const Tensor& b_ih, const Tensor& b_hh) {
  check::gru_cell(x, state, w_ih, w_hh, b_ih, b_hh);
  return GruCell::apply(x, state, w_ih, w_hh, b_ih, b_hh);
}

}  // namespace

void check::gru_cell(const Tensor& x, const std::optional<Tensor>& state, const Tensor& w_ih, const Tensor& w_hh,
                     const Tensor& b_ih, const Tensor& b_hh) {
  if (any_symbolic(x, state, w_ih, w_hh, b_ih, b_hh)) return;
  floating("gru_cell", "x", x);
  RMOE_CHECK(x.dim() == 2, "gru_cell: x must be [T, I], got ", x.sizes());
  RMOE_CHECK(w_hh.dim() == 2 && w_hh.size(0) == 3 * w_hh.size(1), "gru_cell: w_hh must be [3P, P], got ", w_hh.sizes());
  const int64_t P = w_hh.size(1);
  RMOE_CHECK(w_ih.dim() == 2 && w_ih.size(0) == 3 * P && w_ih.size(1) == x.size(1), "gru_cell: w_ih must be [", 3 * P,
             ", ", x.size(1), "], got ", w_ih.sizes());
  RMOE_CHECK(b_ih.dim() == 1 && b_ih.size(0) == 3 * P, "gru_cell: b_ih must be [", 3 * P, "], got ", b_ih.sizes());
  RMOE_CHECK(b_hh.dim() == 1 && b_hh.size(0) == 3 * P, "gru_cell: b_hh must be [", 3 * P, "], got ", b_hh.sizes());
  if (!state) return;
  RMOE_CHECK(state->dim() == 2 && state->size(1) == P, "gru_cell: state must be [T, ", P, "], got ", state->sizes());
  RMOE_CHECK(state->size(0) == x.size(0), "gru_cell: state has ", state->size(0), " rows but x has ", x.size(0),
             " (state ", state->sizes(), ", x ", x.sizes(), ")");
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def("gru_cell(Tensor x, Tensor? state, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh) -> Tensor");
  m.def(
      "gru_cell_backward(Tensor grad, Tensor x, Tensor? state, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("gru_cell", &reference::gru_cell);
  m.impl("gru_cell_backward", &reference::gru_cell_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("gru_cell", &gru_cell_autograd); }

Tensor gru_cell(const Tensor& x_TP, const Tensor& state_TP, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                const Tensor& b_hh) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::gru_cell", "").typed<Forward>();
  return op.call(x_TP, state_TP.defined() ? std::optional<Tensor>(state_TP) : std::nullopt, w_ih, w_hh, b_ih, b_hh);
}

}  // namespace rmoe
