// Tensors as the kernels take them.
#pragma once

#include "rmoe/kernels/cpu/bf16.h"
#include "rmoe/kernels/cpu/linear.h"
#include "rmoe/ops/torch.h"

namespace rmoe::cpu {

template <class T>
constexpr at::ScalarType kTypeOf = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;

// The elements of a contiguous tensor of T's dtype.
template <class T>
const T* read(const Tensor& t) {
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(t.is_contiguous() && t.scalar_type() == kTypeOf<T>);
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* write(const Tensor& t) {
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(t.is_contiguous() && t.scalar_type() == kTypeOf<T>);
  return static_cast<T*>(t.mutable_data_ptr());
}

// A contiguous weight in fp32 or in T's dtype.
template <class T>
kernels::Weight<T> weight(const Tensor& t) {
  if (t.scalar_type() == at::kFloat) return {.master = read<float>(t)};
  return {.narrow = read<T>(t)};
}

// Whether kernels for elements of T read this: T's own dtype, or the fp32 of master weights.
template <class T>
bool readable(const Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == kTypeOf<T>;
}

}  // namespace rmoe::cpu
