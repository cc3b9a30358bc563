// The loss of a language model's last layer, cross_entropy(x W^T + b, targets), without its logits: they are made,
// used and overwritten for a piece of the tokens at a time. With the gradients, made on the way.
#pragma once

#include "rmoe/kernels/cpu/linear.h"

namespace rmoe::kernels {

template <class T>
struct LinearCrossEntropy {
  const T* x;              // [M, D]
  Weight<T> w;             // [V, D]
  const float* b;          // [V] or null
  const int64_t* targets;  // [M], in [0, V) or ignore_index
  int64_t ignore_index;
  int64_t M, V, D;
};

// Of weight * sum_t (loss_t + z_loss lse_t^2) over the tokens that count.
template <class T>
struct LinearCrossEntropyGradients {
  float weight, z_loss;
  T* dx;      // [M, D]
  float* dw;  // [V, D]
  float* db;  // [V] or null
};

template <class T>
struct LinearCrossEntropyKernels {
  // losses, lse [M]: lse_t the logarithm of the sum over the vocabulary of e^logit, loss_t = lse_t - the target's
  // logit. Both are 0 at tokens that are ignored. `gradients` may be null.
  void (*forward)(float* losses, float* lse, const LinearCrossEntropyGradients<T>* gradients,
                  const LinearCrossEntropy<T>& in);
};
RMOE_PRODUCT_KERNELS(linear_cross_entropy, LinearCrossEntropyKernels)

}  // namespace rmoe::kernels
