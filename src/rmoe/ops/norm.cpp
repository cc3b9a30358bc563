#include "rmoe/ops/norm.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/derivatives.h"
#include "rmoe/ops/reference/norm.h"

namespace rmoe {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                                           const std::optional<Tensor>&, double, double, int64_t);
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                                            const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                                            const Tensor&, double, int64_t);

auto forward_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::norm", "").typed<Forward>();
  return op;
}

class Norm : public torch::autograd::Function<Norm> {
 public:
  // The sum and the normed; without a branch the normed alone.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                                                const std::optional<Tensor>& branch, const Tensor& weight,
                                                const std::optional<Tensor>& bias, double eps, double p, int64_t key) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [sum, normed, mean, rstd] = forward_op().call(x, branch, weight, bias, eps, p, key);
    ctx->save_for_backward({branch ? sum : x, weight, bias.value_or(Tensor()), mean, rstd});
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    ctx->set_materialize_grads(false);
    if (branch) return {normed, sum};
    return {normed};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::norm_backward", "").typed<Backward>();
    const auto s = ctx->get_saved_variables();
    const bool branch = grads.size() > 1;
    const auto grad_sum = branch && grads[1].defined() ? std::optional<Tensor>(grads[1]) : std::nullopt;
    const Tensor grad = grads[0].defined() ? grads[0] : at::zeros_like(s[0]);
    const double p = ctx->saved_data["p"].toDouble();
    auto [dx, dbranch, dw, db] =
        op.call(grad, grad_sum, s[0], s[1], s[2].defined() ? std::optional(s[2]) : std::nullopt, s[3], s[4], p,
                ctx->saved_data["key"].toInt());
    const Tensor of_branch = !branch ? Tensor() : p > 0 ? dbranch : dx;
    return {dx, of_branch, dw, s[2].defined() ? db : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_autograd(const Tensor& x, const std::optional<Tensor>& branch,
                                                         const Tensor& weight, const std::optional<Tensor>& bias,
                                                         double eps, double p, int64_t key) {
  check::norm(x, branch, weight, bias, p);
  if (!any_differentiated(x, branch, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().call(x, branch, weight, bias, eps, p, key);
  }
  const auto out = Norm::apply(x, branch, weight, bias, eps, p, key);
  // Mean and deviation stay between forward and backward.
  // Results of an op share no memory.
  const auto none = [&] { return at::empty({0}, x.options()); };
  return {branch ? out[1] : none(), out[0], none(), none()};
}

SumAndNorm norm(const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight,
                const std::optional<Tensor>& bias, double eps, double p, DropoutKey key) {
  auto out = forward_op().call(x, branch, weight, bias, eps, p, static_cast<int64_t>(key.value));
  return {std::get<0>(out), std::get<1>(out)};
}

// As operators for Python: keys are integers there.
Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps) { return rms_norm(x, weight, eps); }
Tensor layer_norm_op(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return layer_norm(x, weight, bias, eps);
}
std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& branch, const Tensor& weight, double eps,
                                           double p, int64_t key) {
  auto [sum, normed] = add_rms_norm(x, branch, weight, eps, p, DropoutKey{static_cast<uint64_t>(key)});
  return {sum, normed};
}
std::tuple<Tensor, Tensor> add_layer_norm_op(const Tensor& x, const Tensor& branch, const Tensor& weight,
                                             const Tensor& bias, double eps, double p, int64_t key) {
  auto [sum, normed] = add_layer_norm(x, branch, weight, bias, eps, p, DropoutKey{static_cast<uint64_t>(key)});
  return {sum, normed};
}

}  // namespace

void check::norm(const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight,
                 const std::optional<Tensor>& bias, double p) {
  if (!checkable("norm", x, branch, weight, bias)) return;
  floating("norm", "x", x);
  const char* name = bias ? "layer_norm" : "rms_norm";
  RMOE_CHECK(x.dim() >= 1 && x.size(-1) > 0, name, ": x must be [..., D] with D > 0, got ", x.sizes());
  RMOE_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1), name, ": weight must be [", x.size(-1), "], got ",
             weight.sizes());
  RMOE_CHECK(!bias || bias->sizes() == weight.sizes(), name, ": bias must be ", weight.sizes(), ", got ",
             bias->sizes());
  RMOE_CHECK(!branch || (branch->sizes() == x.sizes() && branch->scalar_type() == x.scalar_type()), name,
             ": what is added must be ", x.scalar_type(), " ", x.sizes(), ", got ", branch->scalar_type(), " ",
             branch->sizes());
  RMOE_CHECK(p >= 0 && p < 1, name, ": dropout must be in [0, 1), got ", p);
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "norm(Tensor x, Tensor? branch, Tensor weight, Tensor? bias, float eps, float dropout_p, int dropout_key)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor grad, Tensor? grad_sum, Tensor sum, Tensor weight, Tensor? bias, Tensor mean, Tensor rstd,"
      " float dropout_p, int dropout_key) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def(
      "add_rms_norm(Tensor x, Tensor branch, Tensor weight, float eps, float dropout_p, int dropout_key)"
      " -> (Tensor, Tensor)");
  m.def(
      "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps, float dropout_p,"
      " int dropout_key) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("norm", &reference::norm);
  m.impl("norm_backward", &reference::norm_backward);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("norm", &norm_autograd); }
TORCH_LIBRARY_IMPL(rmoe, CompositeImplicitAutograd, m) {
  m.impl("rms_norm", &rms_norm_op);
  m.impl("layer_norm", &layer_norm_op);
  m.impl("add_rms_norm", &add_rms_norm_op);
  m.impl("add_layer_norm", &add_layer_norm_op);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps) {
  return norm(x, std::nullopt, weight_D, std::nullopt, eps, 0, {}).normed;
}
Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps) {
  return norm(x, std::nullopt, weight_D, bias_D, eps, 0, {}).normed;
}
SumAndNorm add_rms_norm(const Tensor& x, const Tensor& branch, const Tensor& weight_D, double eps, double dropout_p,
                        DropoutKey key) {
  return norm(x, branch, weight_D, std::nullopt, eps, dropout_p, key);
}
SumAndNorm add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight_D, const Tensor& bias_D,
                          double eps, double dropout_p, DropoutKey key) {
  return norm(x, branch, weight_D, bias_D, eps, dropout_p, key);
}

}  // namespace rmoe
