// linear on the CPU: our kernels where they are the fastest, otherwise the formula in ATen.
#include "rmoe/ops/reference/linear.h"

#include "rmoe/ops/checks.h"
#include "rmoe/ops/cpu/pointers.h"

namespace rmoe::cpu {
namespace {

// The kernels for x's dtype, where there are some that read such weights and no library is faster.
template <class T>
const kernels::LinearKernels<T>* kernels_for(const Tensor& x, const Tensor& w) {
  if (x.scalar_type() != kTypeOf<T> || !readable<T>(w)) return nullptr;
  const bool few = x.numel() <= kernels::kFewRows * w.size(1);
  if (std::is_same_v<T, float> && !few && kernels::library_multiplies_fp32()) return nullptr;
  return kernels::linear_kernels<T>();
}

template <class T>
Tensor forward(const kernels::LinearKernels<T>& kernel, const Tensor& x, const Tensor& w,
               const std::optional<Tensor>& b) {
  const Tensor rows = x.contiguous(), weights = w.contiguous();
  const Tensor bias = b ? b->to(at::kFloat).contiguous() : Tensor();
  auto shape = x.sizes().vec();
  shape.back() = w.size(0);
  Tensor y = at::empty(shape, x.options());
  const int64_t I = w.size(1);
  kernel.forward(write<T>(y), read<T>(rows), weight<T>(weights), b ? read<float>(bias) : nullptr,
                 I > 0 ? x.numel() / I : 0, w.size(0), I);
  return y;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const kernels::LinearKernels<T>& kernel, const Tensor& grad,
                                            const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                                            std::array<bool, 3> needed) {
  const Tensor dy = grad.to(x.scalar_type()).contiguous();
  const int64_t O = w.size(0), I = w.size(1), M = x.numel() / I;
  Tensor dx, dw, db;
  if (needed[0]) {
    dx = at::empty(x.sizes(), x.options());
    kernel.input_gradient(write<T>(dx), read<T>(dy), weight<T>(w.contiguous()), M, O, I);
  }
  if (needed[1] || needed[2]) {
    dw = at::empty({O, I}, w.options().dtype(at::kFloat));
    db = needed[2] ? at::empty({O}, dw.options()) : Tensor();
    kernel.weight_gradient(write<float>(dw), needed[2] ? write<float>(db) : nullptr, read<T>(dy),
                           read<T>(x.contiguous()), M, O, I);
    if (needed[2]) db = db.to(b->scalar_type());
    dw = needed[1] ? dw.to(w.scalar_type()) : Tensor();
  }
  return {dx, dw, db};
}

Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  check::linear(x, w, b);
  if (w.size(1) > 0) {
    if (const auto* kernel = kernels_for<float>(x, w)) return forward(*kernel, x, w, b);
    if (const auto* kernel = kernels_for<kernels::Bf16>(x, w)) return forward(*kernel, x, w, b);
  }
  return reference::linear(x, w, b);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                                   const std::optional<Tensor>& b, std::array<bool, 3> needed) {
  check::linear(x, w, b);
  auto shape = x.sizes().vec();
  shape.back() = w.size(0);
  check::shape("linear_backward", "grad", grad, shape);
  if (w.size(1) > 0) {
    if (const auto* kernel = kernels_for<float>(x, w)) return backward(*kernel, grad, x, w, b, needed);
    if (const auto* kernel = kernels_for<kernels::Bf16>(x, w)) return backward(*kernel, grad, x, w, b, needed);
  }
  return reference::linear_backward(grad, x, w, b, needed);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, CPU, m) {
  m.impl("linear", &linear);
  m.impl("linear_backward", &linear_backward);
}

}  // namespace rmoe::cpu
