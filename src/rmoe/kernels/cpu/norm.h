// RMSNorm and LayerNorm of rows, with the residual addition before them and the dropout of what is added.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::kernels {

// Which elements of the branch survive: those of kernels/cpu/dropout.h, numbered from the first of the first row.
struct NormDropout {
  uint64_t key = 0;
  double probability = 0;
};

template <class T>
struct NormForward {
  const T* x;           // [M, D]
  const T* branch;      // [M, D], added after dropout; or null
  const float* weight;  // [D]
  const float* bias;    // [D]: LayerNorm; null: RMSNorm
  float eps;
  NormDropout dropout;
  T* sum;       // [M, D]: x + branch; null without a branch
  T* normed;    // [M, D]
  float* mean;  // [M]; null for RMSNorm
  float* rstd;  // [M]: 1 / sqrt(mean square (of the difference to the mean) + eps)
  int64_t M, D;
};

template <class T>
struct NormBackward {
  const T* grad;      // [M, D], of normed
  const T* grad_sum;  // [M, D], of the sum; or null
  const T* sum;       // [M, D]: what was normed
  const float* weight;
  const float* mean;  // null: RMSNorm
  const float* rstd;
  NormDropout dropout;
  T* dx;       // [M, D]: of x, and of the branch where nothing was dropped
  T* dbranch;  // [M, D]; or null
  float* dw;   // [D]
  float* db;   // [D]; null for RMSNorm
  int64_t M, D;
};

template <class T>
struct NormKernels {
  void (*forward)(const NormForward<T>&);
  void (*backward)(const NormBackward<T>&);
};
RMOE_KERNELS(norm, NormKernels)

}  // namespace rmoe::kernels
