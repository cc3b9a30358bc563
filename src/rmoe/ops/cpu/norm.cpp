// The kernels of kernels/cpu/norm.h on tensors; other dtypes and machines take the reference.
#include "rmoe/kernels/cpu/norm.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/pointers.h"
#include "rmoe/ops/reference/norm.h"

namespace rmoe::cpu {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

kernels::NormDropout norm_dropout(double p, int64_t key) {
  return {.key = static_cast<uint64_t>(key), .probability = p};
}

template <class T>
Four norm_forward(const kernels::NormKernels<T>& kernel, const Tensor& x, const std::optional<Tensor>& branch,
                  const Tensor& weight, const std::optional<Tensor>& bias, double eps, double p, int64_t key) {
  const Tensor rows = x.contiguous(), scale = weight.to(at::kFloat).contiguous();
  const Tensor added = branch ? branch->contiguous() : Tensor();
  const Tensor offset = bias ? bias->to(at::kFloat).contiguous() : Tensor();
  const auto shape = x.sizes().slice(0, x.dim() - 1);
  const auto precise = x.options().dtype(at::kFloat);
  const Tensor sum = branch ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  const Tensor normed = at::empty(x.sizes(), x.options());
  const Tensor mean = bias ? at::empty(shape, precise) : at::empty({0}, precise), rstd = at::empty(shape, precise);
  kernel.forward({.x = read<T>(rows),
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

template <class T>
Four norm_gradients(const kernels::NormKernels<T>& kernel, const Tensor& grad, const std::optional<Tensor>& grad_sum,
                    const Tensor& sum, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& mean,
                    const Tensor& rstd, double p, int64_t key) {
  const Tensor dy = grad.contiguous(), rows = sum.contiguous(), scale = weight.to(at::kFloat).contiguous();
  const Tensor dsum = grad_sum ? grad_sum->contiguous() : Tensor();
  const Tensor means = bias ? mean.contiguous() : Tensor(), deviations = rstd.contiguous();
  const int64_t D = sum.size(-1);
  const Tensor dx = at::empty(sum.sizes(), sum.options());
  const Tensor dbranch = p > 0 ? at::empty(sum.sizes(), sum.options()) : at::empty({0}, sum.options());
  const Tensor dw = at::empty({D}, rstd.options()), db = at::empty({bias ? D : 0}, rstd.options());
  kernel.backward({.grad = read<T>(dy),
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

template <class T>
const kernels::NormKernels<T>* norm_kernels_for(const Tensor& x) {
  return x.scalar_type() == kTypeOf<T> ? kernels::norm_kernels<T>() : nullptr;
}

Four norm(const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight, const std::optional<Tensor>& bias,
          double eps, double p, int64_t key) {
  check::norm(x, branch, weight, bias, p);
  if (const auto* k = norm_kernels_for<float>(x)) return norm_forward(*k, x, branch, weight, bias, eps, p, key);
  if (const auto* k = norm_kernels_for<kernels::Bf16>(x)) return norm_forward(*k, x, branch, weight, bias, eps, p, key);
  return reference::norm(x, branch, weight, bias, eps, p, key);
}

Four norm_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& sum, const Tensor& weight,
                   const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& rstd, double p, int64_t key) {
  check::norm(sum, grad_sum, weight, bias, p);
  check::shape("norm_backward", "grad", grad, sum.sizes());
  check::shape("norm_backward", "rstd", rstd, sum.sizes().slice(0, sum.dim() - 1));
  if (bias) check::shape("norm_backward", "mean", mean, rstd.sizes());
  const auto run = [&](const auto& kernel) {
    return norm_gradients(kernel, grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
  };
  if (const auto* kernel = norm_kernels_for<float>(sum)) return run(*kernel);
  if (const auto* kernel = norm_kernels_for<kernels::Bf16>(sum)) return run(*kernel);
  return reference::norm_backward(grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("norm", &norm);
  m.impl("norm_backward", &norm_backward);
}

}  // namespace rmoe::cpu
