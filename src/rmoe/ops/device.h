// The devices that models compute on.
#pragma once

#include <string>

#include "rmoe/ops/torch.h"

namespace rmoe {

// "cpu", "cuda", "cuda:1", or another device type that torch knows and something has registered. For CUDA, loads what a
// CUDA build of torch has for it (libtorch_cuda.so, beside the torch that this library runs on), which programs that
// stay on the CPU do without. Error(kBadInput) for a name that is none, and where torch or the machine has no such
// device.
at::Device device_named(const std::string& name);

// Whether a device of CUDA rounds the factors of fp32 products to TF32, from now on and in the whole process. Error
// (kBadInput) where it is asked of another device.
void allow_tf32(bool allow, at::Device device);

// Memory of the device, in bytes. Of tensors that are alive, on the CPU those made since configure_runtime(); the most
// so far, of tensors, on the CPU of the whole process; and what there is.
int64_t tensor_bytes(at::Device device);
int64_t memory_peak_bytes(at::Device device);
int64_t memory_total_bytes(at::Device device);

// Waits until all that was asked of the device is done; nothing on the CPU.
void synchronize(at::Device device);

}  // namespace rmoe
