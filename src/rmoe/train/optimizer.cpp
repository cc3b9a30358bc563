#include "rmoe/train/optimizer.h"

#include <algorithm>
#include <cmath>

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

double Optimizer::gradient_norm() const {
  at::NoGradGuard no_grad;
  double sum = 0;
  for (const Param& param : params_.all()) {
    if (!param.value.grad().defined()) continue;
    const double norm = param.value.grad().norm().item<double>();
    sum += norm * norm;
  }
  return std::sqrt(sum);
}

void Optimizer::step(double lr, double gradient_norm) {
  at::NoGradGuard no_grad;
  ++steps_;
  const Tensor step = at::full({}, static_cast<double>(steps_), at::kFloat);
  // The fused kernel divides gradients by this while it reads them.
  const double divisor = config_.clip > 0 ? std::max(1.0, (gradient_norm + 1e-6) / config_.clip) : 1.0;
  for (const bool decay : {true, false}) {
    std::vector<Tensor> values, grads, exp_avgs, exp_avg_sqs;
    for (size_t i = 0; i < trained_.size(); ++i) {
      const Param& param = params_.all()[trained_[i]];
      if (decays(param) != decay || !param.value.grad().defined()) continue;
      values.push_back(param.value);
      grads.push_back(param.value.grad());
      exp_avgs.push_back(exp_avg_[i]);
      exp_avg_sqs.push_back(exp_avg_sq_[i]);
    }
    if (values.empty()) continue;
    const std::vector<Tensor> steps(values.size(), step);
    const auto scale = divisor == 1.0 ? std::nullopt : std::optional<Tensor>(at::full({}, divisor, at::kFloat));
    const double weight_decay = decay ? config_.weight_decay : 0.0;
    const auto fused = [&](auto op) {
      op(values, grads, exp_avgs, exp_avg_sqs, at::TensorList(), steps, lr, config_.beta1, config_.beta2, weight_decay,
         config_.eps, /*amsgrad=*/false, /*maximize=*/false, scale, std::nullopt);
    };
    if (config_.kind == OptimizerKind::kAdamW) {
      fused([](auto&&... args) { at::_fused_adamw_(args...); });
    } else {
      fused([](auto&&... args) { at::_fused_adam_(args...); });
    }
  }
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
