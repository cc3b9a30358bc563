// What the ops share that compute in fp32 whatever the model's dtype: their arguments as kernels read them, and the
// choice between the ways to multiply (kernels/cpu/per_isa/fp32_product.h).
#pragma once

#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/ops/cpu/pointers.h"

namespace rmoe::cpu {

// A contiguous fp32 tensor, the given one where it is one; null where there is none.
class Fp32 {
 public:
  Fp32(const Tensor& t) : tensor_(t.to(at::kFloat).contiguous()) {}
  Fp32(const std::optional<Tensor>& t) : tensor_(t ? t->to(at::kFloat).contiguous() : Tensor()) {}
  operator const float*() const { return tensor_.defined() ? tensor_.const_data_ptr<float>() : nullptr; }

 private:
  Tensor tensor_;
};

// The elements of a tensor of this type, null for another type.
template <class T>
const T* data_if(const Tensor& t) {
  return t.scalar_type() == kTypeOf<T> ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data_if(const Tensor& t) {
  return t.scalar_type() == kTypeOf<T> ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

// f(table) with the kernels that multiply fp32 fastest on this CPU; false where there are none for x's dtype.
template <class FloatTable, class SplitTable, class F>
bool with_fp32_products(const Tensor& x, FloatTable multiply_adds, SplitTable split_bf16, F&& f) {
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16) return false;
  if (kernels::cpu_isa() >= kernels::Isa::kAmx) {
    f(*split_bf16());
    return true;
  }
  if (const auto* table = multiply_adds()) {
    f(*table);
    return true;
  }
  return false;
}

}  // namespace rmoe::cpu
