// y = x W^T + b and its gradients.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/kernels/cpu/weight.h"

namespace rmoe::kernels {

// At most so many rows are multiplied without packing the weights, which are read once.
constexpr int64_t kFewRows = 4;

// Whether more rows of fp32 than that are left to the tensor library, which is faster than multiply-adds of ours there.
inline bool library_multiplies_fp32() { return cpu_isa() < Isa::kAmx && library_has_fast_fp32(); }

template <class T>
struct LinearKernels {
  // x [M, K], w [N, K], b [N] or null -> y [M, N].
  void (*forward)(T* y, const T* x, Weight<T> w, const float* b, int64_t M, int64_t N, int64_t K);
  // dy [M, N], w [N, K] -> dx [M, K].
  void (*input_gradient)(T* dx, const T* dy, Weight<T> w, int64_t M, int64_t N, int64_t K);
  // dy [M, N], x [M, K] -> dw [N, K]; db [N] or null.
  void (*weight_gradient)(float* dw, float* db, const T* dy, const T* x, int64_t M, int64_t N, int64_t K);
};
RMOE_PRODUCT_KERNELS(linear, LinearKernels)

}  // namespace rmoe::kernels
