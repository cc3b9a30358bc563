// The kernels of devices other than the CPU (kernels/device.h), as the formulas in ops/reference/ find them: where a
// device has some, what lies between the formulas' matrix products is theirs.
#pragma once

#include <c10/core/DeviceGuard.h>

#include "rmoe/kernels/device.h"
#include "rmoe/ops/torch.h"

namespace rmoe {

// What tensors of this type of device are computed with from now on; null: ATen alone. Until it is said for CUDA, those
// of cuda_kernels().
void set_device_kernels(at::DeviceType type, const kernels::DeviceKernels* kernels);
// Our own kernels for CUDA, loaded from librmoe_cuda.so beside this library; null where it was not built, and where
// RMOE_DEVICE_KERNELS=0 asks to do without.
const kernels::DeviceKernels* cuda_kernels();

// A call of kernels on a tensor's device, which is the current one while this lives; false where it has none.
class DeviceCall {
 public:
  explicit DeviceCall(const Tensor& t);

  explicit operator bool() const { return kernels_ != nullptr; }
  const kernels::DeviceKernels* operator->() const { return kernels_; }
  // The device's current stream.
  kernels::Stream stream() const { return stream_; }

  // f(table of the kernels for elements of t's dtype, pointer cast) where there is one: fp32 and bf16. Whether there
  // is.
  template <class F>
  bool with_kernels_of(at::ScalarType dtype, F&& f) const {
    if (!kernels_) return false;
    if (dtype == at::kFloat) return f(kernels_->fp32, static_cast<float*>(nullptr)), true;
    if (dtype == at::kBFloat16) return f(kernels_->bf16, static_cast<kernels::Bf16*>(nullptr)), true;
    return false;
  }

 private:
  const kernels::DeviceKernels* kernels_ = nullptr;
  c10::OptionalDeviceGuard guard_;
  kernels::Stream stream_ = nullptr;
};

// The elements of a contiguous tensor, as T.
template <class T>
const T* elements(const Tensor& t) {
  TORCH_INTERNAL_ASSERT(t.is_contiguous() && t.element_size() == sizeof(T));
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* elements_to_write(const Tensor& t) {
  TORCH_INTERNAL_ASSERT(t.is_contiguous() && t.element_size() == sizeof(T));
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace rmoe
