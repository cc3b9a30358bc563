// Dropout whose mask is a function of a key: never stored, the same for any thread count.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// A stream of random numbers named by a key; streams of different sites never share one. Passed down by value: the same
// key draws the same mask in forward, backward and recomputation.
struct DropoutKey {
  uint64_t value = 0;
  DropoutKey at(uint64_t site) const;
};

// Zeroes each element with probability p and multiplies the others by 1 / (1 - p). p = 0 returns x. Throws unless
// 0 <= p < 1. fp32, fp64 and bf16. Differentiable; the mask is drawn again in backward.
Tensor dropout(const Tensor& x, double p, DropoutKey key);

// In place and outside autograd: element i of the contiguous x counts as number first_index + i of the stream.
void dropout_(Tensor& x, double p, DropoutKey key, int64_t first_index);

}  // namespace rmoe
