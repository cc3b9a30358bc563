// A linear head and all that follows it in one op.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe {

// How often each of 0 ... N-1 stands in `ids`, int64 [N]. On a device, without waiting for it.
Tensor count_ids(const Tensor& ids, int64_t N);

struct Gated {
  Tensor ids_TK;      // int64, by falling probability; of equal ones the lower id first
  Tensor weights_TK;  // of the chosen
  Tensor probs_TN, logits_TN;
  Tensor counts_N;  // int64: tokens per expert
};

// logits = feature weight^T + bias, probs = softmax(logits), ids = the top_k largest probabilities, weights = the
// chosen probabilities, divided by their sum with `renormalize` (softmax over the chosen logits).
// feature_TR in any float type, read as it is; weight_NR; bias_N or undefined. All else is in fp32, or in fp64 for an
// fp64 feature. Differentiable through weights, probs and logits in feature, weight and bias.
Gated gate(const Tensor& feature_TR, const Tensor& weight_NR, const Tensor& bias_N, int64_t top_k, bool renormalize);

}  // namespace rmoe
