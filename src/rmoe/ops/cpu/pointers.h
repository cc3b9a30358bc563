// Tensors as the kernels take them.
#pragma once

#include "rmoe/base/error.h"
#include "rmoe/kernels/cpu/bf16.h"
#include "rmoe/kernels/cpu/linear.h"
#include "rmoe/ops/torch.h"

namespace rmoe::cpu {

template <class T>
constexpr at::ScalarType kTypeOf = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;

// What a kernel is handed as elements of T: a backward op is called with anything.
template <class T>
void check_type(const Tensor& t) {
  RMOE_CHECK(t.scalar_type() == kTypeOf<T>, "expected a tensor of ", kTypeOf<T>, " for these inputs, got ",
             t.scalar_type(), " ", t.sizes());
}

// The elements of a contiguous tensor of T's dtype.
template <class T>
const T* read(const Tensor& t) {
  check_type<T>(t);
  RMOE_CHECK(t.is_contiguous(), "expected a contiguous tensor, got ", t.sizes(), " with strides ", t.strides());
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
