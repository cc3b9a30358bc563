// Adam and AdamW over all tensors of a model at once, and the norm of their gradients. Bound by memory: each pass reads
// and writes everything once.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::kernels {

// What one tensor's update reads and writes, `count` elements of each.
struct AdamTensor {
  float* value;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  int64_t count;
  bool decays;  // false: no weight decay
};

// g = grad_scale * grad, and for Adam + weight_decay * value;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2)
// g^2; value = keep * value - step_size * m / (root_scale * sqrt(v) + eps), keep = 1 but for AdamW's decay.
struct AdamStep {
  double grad_scale;
  double beta1, beta2, eps;
  double step_size;     // lr / (1 - beta1^t)
  double root_scale;    // 1 / sqrt(1 - beta2^t)
  double weight_decay;  // Adam: added to the gradient; 0 for AdamW
  double keep;          // AdamW: 1 - lr * weight_decay; 1 for Adam
};

// For fp32 only: there is no table for Bf16.
template <class T>
struct AdamKernels {
  void (*step)(const AdamTensor* tensors, int64_t count, const AdamStep& step);
  // Of all gradients, summed in fp64 in an order that the sizes alone decide.
  double (*sum_of_squares)(const AdamTensor* tensors, int64_t count);
};
RMOE_KERNELS(adam, AdamKernels)

}  // namespace rmoe::kernels
