#include "rmoe/ops/linear_cross_entropy.h"

#include <array>

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/graph_task.h>

#include "rmoe/base/error.h"
#include "rmoe/ops/checks.h"
#include "rmoe/ops/derivatives.h"
#include "rmoe/ops/reference/linear_cross_entropy.h"

namespace rmoe {
namespace {

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                           int64_t, double, double);
using WithGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                                         const std::optional<Tensor>&, const Tensor&,
                                                                         int64_t, double, double);

Tensor take(torch::autograd::AutogradContext* ctx, const char* name) {
  Tensor t = std::move(ctx->saved_data.at(name)).toTensor();
  ctx->saved_data.erase(name);
  return t;
}

class LinearCrossEntropyFunction : public torch::autograd::Function<LinearCrossEntropyFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& w,
                                                const std::optional<Tensor>& b, const Tensor& targets,
                                                int64_t ignore_index, double z_loss, double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("rmoe::linear_cross_entropy_gradients", "")
                               .typed<WithGradients>();
    auto [loss, losses, dx, dw, db] = op.call(x, w, b, targets, ignore_index, z_loss, scale);
    // Not as saved variables: without a further owner, the leaf takes the memory of its gradient over as it is.
    ctx->saved_data["dx"] = std::move(dx);
    ctx->saved_data["dw"] = std::move(dw);
    if (b) ctx->saved_data["db"] = std::move(db);
    ctx->mark_non_differentiable({losses});
    return {loss, losses};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    RMOE_CHECK(ctx->saved_data.count("dx") > 0,
               "linear_cross_entropy: a second backward; the gradients made in the forward pass are handed out once, "
               "unless the first backward retains the graph");
    const Tensor& grad = grads[0];
    torch::autograd::variable_list result(7);
    const std::array names = {"dx", "dw", "db"};
    // Where the value cannot be read without waiting for a device, or there is none yet, it is multiplied all the same.
    const bool known = grad.is_cpu() && !check::valueless(grad);
    const double factor = known ? grad.item<double>() : 0;
    for (size_t i = 0; i < names.size(); ++i) {
      if (ctx->saved_data.count(names[i]) == 0) continue;
      if (torch::autograd::get_current_graph_task_keep_graph()) {
        const Tensor kept = ctx->saved_data.at(names[i]).toTensor();
        result[i] = kept * grad.to(kept.scalar_type());
        continue;
      }
      Tensor t = take(ctx, names[i]);
      if (known && factor != 1) t.mul_(factor);
      result[i] = known ? t : t * grad.to(t.scalar_type());
    }
    if (!at::GradMode::is_enabled()) return result;
    // The gradients do not know what they were made of: to differentiate them again is an error, not nothing.
    for (Tensor& t : result) {
      if (t.defined()) t = t.detach().requires_grad_();
    }
    static constexpr const char* kMessage = "linear_cross_entropy has no second derivative";
    return (*std::make_shared<torch::autograd::DelayedError>(kMessage, std::ssize(result)))(std::move(result));
  }
};

std::tuple<Tensor, Tensor> linear_cross_entropy_autograd(const Tensor& x, const Tensor& w,
                                                         const std::optional<Tensor>& b, const Tensor& targets,
                                                         int64_t ignore_index, double z_loss, double scale) {
  check::linear_cross_entropy(x, w, b, targets);
  if (any_differentiated(x, w, b)) {
    const auto out = LinearCrossEntropyFunction::apply(x, w, b, targets, ignore_index, z_loss, scale);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::linear_cross_entropy", "").typed<Forward>();
  return op.call(x, w, b, targets, ignore_index, z_loss, scale);
}

}  // namespace

void check::linear_cross_entropy(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                 const Tensor& targets) {
  if (!checkable("linear_cross_entropy", x, w, b, targets)) return;
  floating("linear_cross_entropy", "x", x);
  floating("linear_cross_entropy", "w", w);
  RMOE_CHECK(x.dim() == 2, "linear_cross_entropy: x must be [T, D], got ", x.sizes());
  RMOE_CHECK(w.dim() == 2 && w.size(1) == x.size(1) && w.numel() > 0, "linear_cross_entropy: w must be [V, ", x.size(1),
             "] and not empty, got ", w.sizes());
  RMOE_CHECK(!b || (b->dim() == 1 && b->size(0) == w.size(0)), "linear_cross_entropy: b must be [", w.size(0),
             "], got ", b->sizes());
  RMOE_CHECK(targets.dim() == 1 && targets.size(0) == x.size(0) && targets.scalar_type() == at::kLong,
             "linear_cross_entropy: targets must be int64 [", x.size(0), "], got ", targets.scalar_type(), " ",
             targets.sizes());
}

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.def(
      "linear_cross_entropy(Tensor x, Tensor w, Tensor? b, Tensor targets, int ignore_index, float z_loss,"
      " float scale) -> (Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_gradients(Tensor x, Tensor w, Tensor? b, Tensor targets, int ignore_index, float z_loss,"
      " float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(rmoe, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", &reference::linear_cross_entropy);
  m.impl("linear_cross_entropy_gradients", &reference::linear_cross_entropy_gradients);
}
TORCH_LIBRARY_IMPL(rmoe, Autograd, m) { m.impl("linear_cross_entropy", &linear_cross_entropy_autograd); }

LinearCrossEntropy linear_cross_entropy(const Tensor& x_TD, const Tensor& w_VD, const Tensor& b_V,
                                        const Tensor& targets_T, const LinearCrossEntropyOptions& options) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmoe::linear_cross_entropy", "").typed<Forward>();
  auto [loss, losses] = op.call(x_TD, w_VD, b_V.defined() ? std::optional<Tensor>(b_V) : std::nullopt, targets_T,
                                options.ignore_index, options.z_loss, options.scale);
  return {loss, losses};
}

}  // namespace rmoe
