// Tensors as the kernels of norms take them, on the CPU and on devices.
#pragma once

#include "rmoe/kernels/cpu/norm.h"
#include "rmoe/ops/cpu/pointers.h"

namespace rmoe::cpu {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline kernels::NormDropout norm_dropout(double p, int64_t key) {
  return {.key = static_cast<uint64_t>(key), .probability = p};
}

// `run` takes a kernels::NormForward<T>.
template <class T, class Run>
Four norm_forward(Run&& run, const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight,
                  const std::optional<Tensor>& bias, double eps, double p, int64_t key) {
  const Tensor rows = x.contiguous(), scale = weight.to(at::kFloat).contiguous();
  const Tensor added = branch ? branch->contiguous() : Tensor();
  const Tensor offset = bias ? bias->to(at::kFloat).contiguous() : Tensor();
  const auto shape = x.sizes().slice(0, x.dim() - 1);
  const auto precise = x.options().dtype(at::kFloat);
  const Tensor sum = branch ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  const Tensor normed = at::empty(x.sizes(), x.options());
  const Tensor mean = bias ? at::empty(shape, precise) : at::empty({0}, precise), rstd = at::empty(shape, precise);
  run(kernels::NormForward<T>{.x = read<T>(rows),
                              .branch = branch ? read<T>(added) : nullptr,
                              .weight = read<float>(scale),
                              .bias = bias ? read<float>(offset) : nullptr,
                              .eps = static_cast<float>(eps),
                              .dropout = norm_dropout(p, key),
                              .sum = branch ? write<T>(sum) : nullptr,
                              .normed = write<T>(normed),
                              .mean = bias ? write<float>(mean) : nullptr,
                              .rstd = write<float>(rstd),
                              .M = rstd.numel(),
                              .D = x.size(-1)});
  return {sum, normed, mean, rstd};
}

// `run` takes a kernels::NormBackward<T>.
template <class T, class Run>
Four norm_gradients(Run&& run, const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& sum,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& rstd,
                    double p, int64_t key) {
  const Tensor dy = grad.contiguous(), rows = sum.contiguous(), scale = weight.to(at::kFloat).contiguous();
  const Tensor dsum = grad_sum ? grad_sum->contiguous() : Tensor();
  const Tensor means = bias ? mean.contiguous() : Tensor(), deviations = rstd.contiguous();
  const int64_t D = sum.size(-1);
  const Tensor dx = at::empty(sum.sizes(), sum.options());
  const Tensor dbranch = p > 0 ? at::empty(sum.sizes(), sum.options()) : at::empty({0}, sum.options());
  const Tensor dw = at::empty({D}, rstd.options()), db = at::empty({bias ? D : 0}, rstd.options());
  run(kernels::NormBackward<T>{.grad = read<T>(dy),
                               .grad_sum = grad_sum ? read<T>(dsum) : nullptr,
                               .sum = read<T>(rows),
                               .weight = read<float>(scale),
                               .mean = bias ? read<float>(means) : nullptr,
                               .rstd = read<float>(deviations),
                               .dropout = norm_dropout(p, key),
                               .dx = write<T>(dx),
                               .dbranch = p > 0 ? write<T>(dbranch) : nullptr,
                               .dw = write<float>(dw),
                               .db = bias ? write<float>(db) : nullptr,
                               .M = rstd.numel(),
                               .D = D});
  return {dx, dbranch, dw.to(weight.scalar_type()), bias ? db.to(bias->scalar_type()) : db};
}

}  // namespace rmoe::cpu
