#include "rmoe/ops/recurrent_stage.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/optional_tensor.h"
#include "rmoe/ops/reference/recurrent_stage.h"

namespace rmoe {
namespace {

using reference::OptionalTensor;
using Forward = decltype(reference::recurrent_stage);
using Backward = decltype(reference::recurrent_stage_backward);

int64_t gates_of(std::string_view cell) {
  if (cell == "rnn") return 1;
  if (cell == "gru") return 3;
  RMOE_CHECK(cell == "lstm", "recurrent_stage: unknown cell '", cell, "', expected rnn, gru or lstm");
  return 4;
}

class RecurrentStage : public torch::autograd::Function<RecurrentStage> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const std::string& cell,
                                                const Tensor& x, const OptionalTensor& h, const OptionalTensor& c,
                                                const OptionalTensor& projection, const Tensor& w_ih,
                                                const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh) {
    ctx->saved_data["cell"] = cell;
    ctx->save_for_backward(
        {x, h.value_or(Tensor()), c.value_or(Tensor()), projection.value_or(Tensor()), w_ih, w_hh, b_ih, b_hh});
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::recurrent_stage", "").typed<Forward>();
    auto [after, cell_after] = op.call(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
    if (cell != "lstm") ctx->mark_non_differentiable({cell_after});
    return {after, cell_after};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    const std::string cell = ctx->saved_data["cell"].toStringRef();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::recurrent_stage_backward", "").typed<Backward>();
    auto [x, h, c, projection, w_ih, w_hh, b_ih, b_hh] =
        op.call(optional(grads[0]), cell == "lstm" ? optional(grads[1]) : std::nullopt, cell, s[0], optional(s[1]),
                optional(s[2]), optional(s[3]), s[4], s[5], s[6], s[7]);
    return {Tensor(),
            x,
            s[1].defined() ? h : Tensor(),
            s[2].defined() ? c : Tensor(),
            s[3].defined() ? projection : Tensor(),
            w_ih,
            w_hh,
            b_ih,
            b_hh};
  }
};

std::tuple<Tensor, Tensor> recurrent_stage_autograd(std::string_view cell, const Tensor& x, const OptionalTensor& h,
                                                    const OptionalTensor& c, const OptionalTensor& projection,
                                                    const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                                                    const Tensor& b_hh) {
  check::recurrent_stage(cell, x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  const auto out = RecurrentStage::apply(std::string(cell), x, h, c, projection, w_ih, w_hh, b_ih, b_hh);
  return {out[0], out[1]};
}

}  // namespace

void check::recurrent_stage(std::string_view cell, const Tensor& x, const OptionalTensor& h, const OptionalTensor& c,
                            const OptionalTensor& projection, const Tensor& w_ih, const Tensor& w_hh,
                            const Tensor& b_ih, const Tensor& b_hh) {
  if (!checkable("recurrent_stage", x, h, c, projection, w_ih, w_hh, b_ih, b_hh)) return;
  floating("recurrent_stage", "x", x);
  const int64_t G = gates_of(cell);
  RMOE_CHECK(x.dim() == 2, "recurrent_stage: x must be [T, D], got ", x.sizes());
  RMOE_CHECK(w_hh.dim() == 2 && w_hh.size(0) == G * w_hh.size(1), "recurrent_stage: w_hh must be [", G, "P, P], got ",
             w_hh.sizes());
  const int64_t T = x.size(0), D = x.size(1), P = w_hh.size(1), I = projection ? P : D;
  const auto expect = [](const char* name, const Tensor& t, std::vector<int64_t> sizes) {
    floating("recurrent_stage", name, t);
    RMOE_CHECK(t.sizes() == sizes, "recurrent_stage: ", name, " must be ", at::IntArrayRef(sizes), ", got ", t.sizes());
  };
  expect("w_ih", w_ih, {G * P, I});
  expect("b_ih", b_ih, {G * P});
  expect("b_hh", b_hh, {G * P});
  if (projection) expect("projection", *projection, {P, D});
  if (h) expect("state", *h, {T, P});
  if (c) expect("cell_state", *c, {T, P});
  RMOE_CHECK(!c || cell == "lstm", "recurrent_stage: cell '", cell, "' has no cell_state");
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "recurrent_stage(str cell, Tensor x, Tensor? state, Tensor? cell_state, Tensor? projection, Tensor w_ih,"
      " Tensor w_hh, Tensor b_ih, Tensor b_hh) -> (Tensor, Tensor)");
  m.def(
      "recurrent_stage_backward(Tensor? grad_state, Tensor? grad_cell_state, str cell, Tensor x, Tensor? state,"
      " Tensor? cell_state, Tensor? projection, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("recurrent_stage", &reference::recurrent_stage);
  m.impl("recurrent_stage_backward", &reference::recurrent_stage_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("recurrent_stage", &recurrent_stage_autograd); }

RecurrentState recurrent_stage(const std::string& cell, const Tensor& x_TD, const RecurrentState& before,
                               const RecurrentWeights& w) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::recurrent_stage", "").typed<Forward>();
  auto [h, c] = op.call(cell, x_TD, optional(before.h_TP), optional(before.c_TP), optional(w.projection_PD), w.ih, w.hh,
                        w.b_ih, w.b_hh);
  return {.h_TP = std::move(h), .c_TP = cell == "lstm" ? std::move(c) : Tensor()};
}

}  // namespace rmoe
