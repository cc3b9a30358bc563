// The kernels of kernels/cpu/norm.h on tensors; other dtypes and machines take the reference.
#include "rmoe/kernels/cpu/norm.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/norm_call.h"
#include "rmoe/ops/reference/norm.h"

namespace rmoe::cpu {
namespace {

template <class T>
const kernels::NormKernels<T>* norm_kernels_for(const Tensor& x) {
  return x.scalar_type() == kTypeOf<T> ? kernels::norm_kernels<T>() : nullptr;
}

Four norm(const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight, const std::optional<Tensor>& bias,
          double eps, double p, int64_t key) {
  check::norm(x, branch, weight, bias, p);
  if (const auto* k = norm_kernels_for<float>(x)) {
    return norm_forward<float>(k->forward, x, branch, weight, bias, eps, p, key);
  }
  if (const auto* k = norm_kernels_for<kernels::Bf16>(x)) {
    return norm_forward<kernels::Bf16>(k->forward, x, branch, weight, bias, eps, p, key);
  }
  return reference::norm(x, branch, weight, bias, eps, p, key);
}

Four norm_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& sum, const Tensor& weight,
                   const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& rstd, double p, int64_t key) {
  check::norm(sum, grad_sum, weight, bias, p);
  check::shape("norm_backward", "grad", grad, sum.sizes());
  check::shape("norm_backward", "rstd", rstd, sum.sizes().slice(0, sum.dim() - 1));
  if (bias) check::shape("norm_backward", "mean", mean, rstd.sizes());
  if (const auto* k = norm_kernels_for<float>(sum)) {
    return norm_gradients<float>(k->backward, grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
  }
  if (const auto* k = norm_kernels_for<kernels::Bf16>(sum)) {
    return norm_gradients<kernels::Bf16>(k->backward, grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
  }
  return reference::norm_backward(grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("norm", &norm);
  m.impl("norm_backward", &norm_backward);
}

}  // namespace rmoe::cpu
