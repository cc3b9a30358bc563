#include "rmoe/train/optimizer.h"

#include <algorithm>

#include "rmoe/ops/adam.h"

namespace rmoe {
namespace {

// What has two dimensions as a checkpoint stores it is decayed; biases and norms are not.
bool decays(const Param& param) { return param.shape.size() - (param.traits.stored.drop_dim ? 1 : 0) >= 2; }

}  // namespace

Optimizer::Optimizer(ParamTable& params, const OptimizerConfig& config) : params_(params), config_(config) {
  for (size_t i = 0; i < params_.all().size(); ++i) {
    const Param& param = params_.all()[i];
    if (!param.traits.trainable) continue;
    trained_.push_back(i);
    exp_avg_.push_back(at::zeros_like(param.value).detach());
    exp_avg_sq_.push_back(at::zeros_like(param.value).detach());
  }
}

Tensor Optimizer::gradient_norm() const {
  std::vector<Tensor> grads;
  for (const Param& param : params_.all()) {
    if (param.value.grad().defined()) grads.push_back(param.value.grad());
  }
  return rmoe::gradient_norm(grads);
}

void Optimizer::step(double lr, const Tensor& gradient_norm) {
  ++steps_;
  std::vector<AdamParam> params;
  for (size_t i = 0; i < trained_.size(); ++i) {
    const Param& param = params_.all()[trained_[i]];
    if (!param.value.grad().defined()) continue;
    params.push_back({param.value, param.value.grad(), exp_avg_[i], exp_avg_sq_[i], decays(param)});
  }
  AdamOptions options{.decoupled = config_.kind == OptimizerKind::kAdamW,
                      .lr = lr,
                      .beta1 = config_.beta1,
                      .beta2 = config_.beta2,
                      .eps = config_.eps,
                      .weight_decay = config_.weight_decay};
  if (!gradient_norm.is_cpu()) {
    options.skip = gradient_norm.isfinite().logical_not().to(at::kFloat);
    if (config_.clip > 0) options.grad_divisor = ((gradient_norm + 1e-6) / config_.clip).clamp_min(1).to(at::kFloat);
  } else if (config_.clip > 0) {
    options.grad_scale = std::min(1.0, config_.clip / (gradient_norm.item<double>() + 1e-6));
  }
  adam_step(params, options, steps_);
}

void Optimizer::zero_gradients() {
  for (Param& param : params_.all()) param.value.mutable_grad() = Tensor();
}

NamedTensors Optimizer::state() const {
  NamedTensors state;
  for (size_t i = 0; i < trained_.size(); ++i) {
    const std::string& name = params_.all()[trained_[i]].name;
    state.emplace_back("exp_avg." + name, exp_avg_[i]);
    state.emplace_back("exp_avg_sq." + name, exp_avg_sq_[i]);
  }
  return state;
}

}  // namespace rmoe
