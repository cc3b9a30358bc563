// A linear head with all that follows it: logits, softmax, the K best experts, their weights and how many tokens each
// expert got.
#pragma once

#include <cstdint>

#include "rmoe/kernels/cpu/isa.h"

namespace rmoe::kernels {

struct Gate {
  int64_t T = 0, R = 0, N = 0, K = 0;
  bool renormalize = true;         // weights: shares of the chosen; false: the probabilities
  const float* feature = nullptr;  // [T, R], one of the two is null
  const Bf16* narrow_feature = nullptr;
  const float* weight = nullptr;  // [N, R]
  const float* bias = nullptr;    // [N] or null
  const float* added = nullptr;   // [T, N], added to the logits; or null
};

struct GateOutput {
  float *logits = nullptr, *probs = nullptr;  // [T, N]
  float* weights = nullptr;                   // [T, K]
  int64_t* ids = nullptr;                     // [T, K], by falling probability, of equal ones the lower id first
  int64_t* counts = nullptr;                  // [N]
};

struct GateGradients {
  const float *probs = nullptr, *weights = nullptr;  // what forward returned: [T, N], [T, K]
  const int64_t* ids = nullptr;
  const float *g_logits = nullptr, *g_probs = nullptr, *g_weights = nullptr;  // null: zeros
  float* d_feature = nullptr;  // [T, R] in the feature's type, one of the two is null
  Bf16* d_narrow_feature = nullptr;
  float *d_weight = nullptr, *d_bias = nullptr;  // [N, R], [N]; null where there is none
};

// T is what the products are computed with (per_isa/fp32_product.h); everything is as exact as fp32.
template <class T>
struct GateKernels {
  void (*forward)(const Gate& gate, const GateOutput& out);
  void (*backward)(const Gate& gate, const GateGradients& gradients);
};
RMOE_KERNELS(gate, GateKernels)

}  // namespace rmoe::kernels
