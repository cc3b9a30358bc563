#include "rmoe/ops/experts.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/derivatives.h"
#include "rmoe/ops/optional_tensor.h"
#include "rmoe/ops/reference/experts.h"

namespace rmoe {
namespace {

using Forward = decltype(reference::experts);
using Backward = decltype(reference::experts_backward);

std::tuple<Tensor, Tensor> call(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1,
                                const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                const OptionalTensor& w3, double p, int64_t key, bool keep) {
  at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::experts", "").typed<Forward>();
  return op.call(x, ids, weights, w1, b1, w2, b2, w3, p, key, keep);
}

class Experts : public torch::autograd::Function<Experts> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                                                const Tensor& weights, const Tensor& w1, const OptionalTensor& b1,
                                                const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& w3,
                                                const Tensor& ids, double p, int64_t key) {
    auto [y, before] = call(x, ids, weights, w1, b1, w2, b2, w3, p, key, /*keep=*/true);
    const auto or_none = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({x, weights, w1, or_none(b1), w2, or_none(b2), or_none(w3), ids, before});
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    ctx->mark_non_differentiable({before});
    return {y, before};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto s = ctx->get_saved_variables();
    // Inputs are numbered without those that are absent.
    bool parameters = false;
    size_t input = 2;
    for (size_t i = 2; i <= 6; ++i) {
      if (s[i].defined()) parameters = ctx->needs_input_grad(input++) || parameters;
    }
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::experts_backward", "").typed<Backward>();
    auto [dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3] =
        op.call(grads[0], s[8], s[0], s[7], s[1], s[2], optional(s[3]), s[4], optional(s[5]), optional(s[6]),
                ctx->saved_data["p"].toDouble(), ctx->saved_data["key"].toInt(),
                {ctx->needs_input_grad(0), ctx->needs_input_grad(1), parameters});
    return {dx, d_weights, d_w1, d_b1, d_w2, d_b2, d_w3, Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> experts_autograd(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1,
                                            const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                            const OptionalTensor& w3, double p, int64_t key, bool keep) {
  check::experts(x, ids, weights, w1, b1, w2, b2, w3, p);
  if (!any_differentiated(x, weights, w1, b1, w2, b2, w3))
    return call(x, ids, weights, w1, b1, w2, b2, w3, p, key, keep);
  const auto out = Experts::apply(x, weights, w1, b1, w2, b2, w3, ids, p, key);
  return {out[0], out[1]};
}

}  // namespace

void check::experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& w1,
                    const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2, const OptionalTensor& w3,
                    double p) {
  if (!checkable("experts", x, ids, weights, w1, b1, w2, b2, w3)) return;
  floating("experts", "x", x);
  floating("experts", "weights", weights);
  floating("experts", "w1", w1);
  RMOE_CHECK(x.dim() == 2, "experts: x must be [T, D], got ", x.sizes());
  RMOE_CHECK(ids.dim() == 2 && ids.size(0) == x.size(0) && ids.scalar_type() == at::kLong,
             "experts: ids must be int64 [", x.size(0), ", K], got ", ids.scalar_type(), " ", ids.sizes());
  RMOE_CHECK(weights.sizes() == ids.sizes(), "experts: weights must be ", ids.sizes(), ", got ", weights.sizes());
  RMOE_CHECK(w1.dim() == 3 && w1.size(2) == x.size(1), "experts: w1 must be [N, F, ", x.size(1), "], got ", w1.sizes());
  const int64_t N = w1.size(0), F = w1.size(1), D = w1.size(2);
  const auto shaped = [&](const char* name, const Tensor& t, at::IntArrayRef sizes) {
    RMOE_CHECK(t.sizes() == sizes, "experts: ", name, " must be ", sizes, ", got ", t.sizes());
  };
  shaped("w2", w2, {N, D, F});
  if (w3) shaped("w3", *w3, {N, F, D});
  if (b1) shaped("b1", *b1, {N, F});
  if (b2) shaped("b2", *b2, {N, D});
  RMOE_CHECK(p >= 0 && p < 1, "experts: dropout must be in [0, 1), got ", p);
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "experts(Tensor x, Tensor ids, Tensor weights, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? w3,"
      " float dropout_p, int dropout_key, bool keep) -> (Tensor, Tensor)");
  m.def(
      "experts_backward(Tensor grad, Tensor before, Tensor x, Tensor ids, Tensor weights, Tensor w1, Tensor? b1,"
      " Tensor w2, Tensor? b2, Tensor? w3, float dropout_p, int dropout_key, bool[3] needed)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("experts", &reference::experts);
  m.impl("experts_backward", &reference::experts_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("experts", &experts_autograd); }

Tensor experts(const Tensor& x_TD, const Tensor& ids_TK, const Tensor& weights_TK, const ExpertWeights& parameters,
               double dropout_p, DropoutKey key) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::experts", "").typed<Forward>();
  return std::get<0>(op.call(x_TD, ids_TK, weights_TK, parameters.w1_NFD, optional(parameters.b1_NF), parameters.w2_NDF,
                             optional(parameters.b2_ND), optional(parameters.w3_NFD), dropout_p,
                             static_cast<int64_t>(key.value), /*keep=*/false));
}

}  // namespace rmoe
