#include "rmoe/ops/reference/norm.h"

#include "rmoe/ops/affine.h"
#include "rmoe/ops/cpu/norm_call.h"
#include "rmoe/ops/device_kernels.h"
#include "rmoe/ops/dropout.h"

namespace rmoe::reference {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

std::optional<Four> by_kernel(const Tensor& x, const std::optional<Tensor>& branch, const Tensor& weight,
                              const std::optional<Tensor>& bias, double eps, double p, int64_t key) {
  const DeviceCall call(x);
  std::optional<Four> results;
  call.with_kernels_of(x.scalar_type(), [&]<class T>(const auto& kernels, T*) {
    const auto run = [&](const kernels::NormForward<T>& norm) { kernels.norm(norm, call.stream()); };
    results = cpu::norm_forward<T>(run, x, branch, weight, bias, eps, p, key);
  });
  return results;
}

std::optional<Four> backward_by_kernel(const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& sum,
                                       const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& mean,
                                       const Tensor& rstd, double p, int64_t key) {
  const DeviceCall call(sum);
  std::optional<Four> results;
  call.with_kernels_of(sum.scalar_type(), [&]<class T>(const auto& kernels, T*) {
    const Tensor partials = at::empty({2, kernels::norm_stretches(rstd.numel()), sum.size(-1)}, rstd.options());
    const auto run = [&](const kernels::NormBackward<T>& norm) {
      kernels.norm_backward(norm, elements_to_write<float>(partials), call.stream());
    };
    results = cpu::norm_gradients<T>(run, grad, grad_sum, sum, weight, bias, mean, rstd, p, key);
  });
  return results;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> norm(const Tensor& x, const std::optional<Tensor>& branch,
                                                const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                                                double dropout_p, int64_t dropout_key) {
  if (auto results = by_kernel(x, branch, weight, bias, eps, dropout_p, dropout_key)) return *std::move(results);
  Tensor sum = x;
  if (branch) {
    Tensor kept = branch->clone(at::MemoryFormat::Contiguous);
    dropout_(kept, dropout_p, DropoutKey{static_cast<uint64_t>(dropout_key)}, 0);
    sum = x + kept;
  }
  Tensor wide = at_least_fp32(sum), mean = at::empty({0}, wide.options());
  const auto precise = wide.scalar_type();
  if (bias) {
    mean = wide.mean(-1);
    wide = wide - mean.unsqueeze(-1);
  }
  const Tensor rstd = (wide.square().mean(-1) + eps).rsqrt();
  Tensor normed = wide * rstd.unsqueeze(-1) * weight.to(precise);
  if (bias) normed = normed + bias->to(precise);
  return {branch ? sum.contiguous() : at::empty({0}, x.options()), normed.to(x.scalar_type()).contiguous(),
          mean.contiguous(), rstd.contiguous()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum,
                                                         const Tensor& sum, const Tensor& weight,
                                                         const std::optional<Tensor>& bias, const Tensor& mean,
                                                         const Tensor& rstd, double dropout_p, int64_t dropout_key) {
  if (auto results = backward_by_kernel(grad, grad_sum, sum, weight, bias, mean, rstd, dropout_p, dropout_key)) {
    return *std::move(results);
  }
  const Tensor g = at_least_fp32(grad), wide = at_least_fp32(sum), scale = rstd.unsqueeze(-1);
  const Tensor normed = (bias ? wide - mean.unsqueeze(-1) : wide) * scale;
  const Tensor weighted = g * weight.to(g.scalar_type());
  Tensor dx = weighted - normed * (weighted * normed).mean(-1, /*keepdim=*/true);
  if (bias) dx = dx - weighted.mean(-1, /*keepdim=*/true);
  dx = dx * scale;
  if (grad_sum) dx = dx + *grad_sum;
  dx = dx.to(sum.scalar_type()).contiguous();
  Tensor dbranch = at::empty({0}, dx.options());
  if (dropout_p > 0) {
    dbranch = dx.clone(at::MemoryFormat::Contiguous);
    dropout_(dbranch, dropout_p, DropoutKey{static_cast<uint64_t>(dropout_key)}, 0);
  }
  const auto over_rows = [&](const Tensor& t) { return t.reshape({-1, t.size(-1)}).sum(0).to(weight.scalar_type()); };
  return {dx, dbranch, over_rows(g * normed), bias ? over_rows(g) : at::empty({0}, weight.options())};
}

}  // namespace rmoe::reference
