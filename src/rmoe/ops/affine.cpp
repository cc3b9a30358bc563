#include "rmoe/ops/affine.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/reference/linear.h"

namespace rmoe {
namespace {

using Forward = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                    const std::optional<Tensor>&, std::array<bool, 3>);

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& w,
                        const std::optional<Tensor>& b) {
    ctx->save_for_backward({x, w, b.value_or(Tensor())});
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::linear", "").typed<Forward>();
    return op.call(x, w, b);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::linear_backward", "").typed<Backward>();
    const auto bias = saved[2].defined() ? std::optional<Tensor>(saved[2]) : std::nullopt;
    auto [dx, dw, db] =
        op.call(grads[0], saved[0], saved[1], bias,
                {ctx->needs_input_grad(0), ctx->needs_input_grad(1), bias.has_value() && ctx->needs_input_grad(2)});
    return {dx, dw, db};
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  check::linear(x, w, b);
  return Linear::apply(x, w, b);
}

}  // namespace

void check::linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  if (!checkable("linear", x, w, b)) return;
  floating("linear", "x", x);
  floating("linear", "w", w);
  RMOE_CHECK(w.dim() == 2, "linear: w must be [O, I], got ", w.sizes());
  RMOE_CHECK(x.dim() >= 1 && x.size(-1) == w.size(1), "linear: x must be [..., ", w.size(1), "], got ", x.sizes());
  RMOE_CHECK(!b || (b->dim() == 1 && b->size(0) == w.size(0)), "linear: b must be [", w.size(0), "], got ", b->sizes());
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def("linear(Tensor x, Tensor w, Tensor? b) -> Tensor");
  m.def(
      "linear_backward(Tensor grad, Tensor x, Tensor w, Tensor? b, bool[3] needed)"
      " -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("linear", &reference::linear);
  m.impl("linear_backward", &reference::linear_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("linear", &linear_autograd); }

Tensor affine(const Tensor& x, const Tensor& w, const Tensor& b) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::linear", "").typed<Forward>();
  return op.call(x, w, b.defined() ? std::optional<Tensor>(b) : std::nullopt);
}

}  // namespace rmoe
