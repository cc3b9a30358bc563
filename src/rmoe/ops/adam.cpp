#include "rmoe/ops/adam.h"

#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/kernels/cpu/adam.h"

namespace rmoe {
namespace {

bool plain_fp32(const Tensor& t) { return t.is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous(); }

// By torch's own fused update.
void fused_step(const std::vector<AdamParam>& params, const AdamOptions& o, int64_t step) {
  for (const bool decay : {true, false}) {
    std::vector<Tensor> values, grads, exp_avgs, exp_avg_sqs;
    for (const AdamParam& p : params) {
      if (p.decays != decay) continue;
      values.push_back(p.value);
      // It reads memory in order, whatever the strides say.
      grads.push_back(o.grad_scale == 1 ? p.grad.contiguous() : (p.grad * o.grad_scale).contiguous());
      exp_avgs.push_back(p.exp_avg);
      exp_avg_sqs.push_back(p.exp_avg_sq);
    }
    if (values.empty()) continue;
    const std::vector<Tensor> steps(values.size(),
                                    at::full({}, static_cast<double>(step), values[0].options().dtype(at::kFloat)));
    const auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
    const auto fused = [&](auto op) {
      op(values, grads, exp_avgs, exp_avg_sqs, at::TensorList(), steps, o.lr, o.beta1, o.beta2,
         decay ? o.weight_decay : 0.0, o.eps, /*amsgrad=*/false, /*maximize=*/false, optional(o.grad_divisor),
         optional(o.skip));
    };
    if (o.decoupled) {
      fused([](auto&&... args) { at::_fused_adamw_(args...); });
    } else {
      fused([](auto&&... args) { at::_fused_adam_(args...); });
    }
  }
}

}  // namespace

Tensor gradient_norm(const std::vector<Tensor>& grads) {
  const at::NoGradGuard no_grad;
  if (grads.empty()) return at::zeros({}, at::kDouble);
  const auto* kernels = kernels::adam_kernels<float>();
  if (kernels && std::all_of(grads.begin(), grads.end(), plain_fp32)) {
    std::vector<kernels::AdamTensor> tensors;
    for (const Tensor& grad : grads) {
      tensors.push_back({nullptr, grad.const_data_ptr<float>(), nullptr, nullptr, grad.numel(), false});
    }
    return at::scalar_tensor(std::sqrt(kernels->sum_of_squares(tensors.data(), std::ssize(tensors))), at::kDouble);
  }
  return at::stack(at::_foreach_norm(grads, 2)).to(at::kDouble).norm();
}

void adam_step(const std::vector<AdamParam>& params, const AdamOptions& o, int64_t step) {
  const at::NoGradGuard no_grad;
  RMOE_CHECK(step >= 1, "adam_step: steps count from 1, got ", step);
  for (const AdamParam& p : params) {
    RMOE_CHECK(p.value.is_contiguous() && p.exp_avg.is_contiguous() && p.exp_avg_sq.is_contiguous(),
               "adam_step: values and moments must be contiguous");
    for (const Tensor& other : {p.grad, p.exp_avg, p.exp_avg_sq}) {
      RMOE_CHECK(other.sizes() == p.value.sizes() && other.scalar_type() == p.value.scalar_type(),
                 "adam_step: gradient and moments must be ", p.value.sizes(), " ", p.value.scalar_type(), ", got ",
                 other.sizes(), " ", other.scalar_type());
    }
  }
  const auto* kernels = kernels::adam_kernels<float>();
  const bool fits = std::all_of(params.begin(), params.end(), [](const AdamParam& p) {
    return plain_fp32(p.value) && plain_fp32(p.grad) && plain_fp32(p.exp_avg) && plain_fp32(p.exp_avg_sq);
  });
  if (!kernels || !fits) return fused_step(params, o, step);
  std::vector<kernels::AdamTensor> tensors;
  for (const AdamParam& p : params) {
    tensors.push_back({p.value.mutable_data_ptr<float>(), p.grad.const_data_ptr<float>(),
                       p.exp_avg.mutable_data_ptr<float>(), p.exp_avg_sq.mutable_data_ptr<float>(), p.value.numel(),
                       p.decays});
  }
  const auto power = static_cast<double>(step);
  kernels->step(tensors.data(), std::ssize(tensors),
                {.grad_scale = o.grad_scale,
                 .beta1 = o.beta1,
                 .beta2 = o.beta2,
                 .eps = o.eps,
                 .step_size = o.lr / (1 - std::pow(o.beta1, power)),
                 .root_scale = 1 / std::sqrt(1 - std::pow(o.beta2, power)),
                 .weight_decay = o.decoupled ? 0 : o.weight_decay,
                 .keep = o.decoupled ? 1 - o.lr * o.weight_decay : 1});
}

}  // namespace rmoe
