// Analyses of a model's weights.
#pragma once

#include "rmoe/base/json.h"
#include "rmoe/eval/run.h"

namespace rmoe::analysis {

// The similarity of the experts of one layer (Fig. 5): of each expert and each of its matrices (w1 and w3 [N, F, D], w2
// [N, D, F]; undefined ones are left out) the mean over the inner dimension F, scaled to length 1; these side by side;
// the matrix of their dot products. [N, N], in fp64. With m matrices the diagonal is m.
Tensor expert_similarity(const Tensor& w1_NFD, const Tensor& w2_NDF, const Tensor& w3_NFD);

// Mean over all pairs of experts, with and without those of an expert with itself (NaN for one expert).
struct MeanSimilarity {
  double all = 0, others = 0;
};
MeanSimilarity mean_similarity(const Tensor& similarity_NN);

// The members "expert_similarity" (of every checkpoint of the run that is whole, and of a random start) and
// "router_weights" (the norm and the standard deviation of each layer's map to N logits; null where a layer has none of
// its own) of analysis.json.
Json weight_analyses(const LoadedRun& run);

// The MoE layer, counted from 0, whose parameter this is; -1 where it belongs to none alone.
int64_t moe_layer_of(const ModelConfig& config, const std::string& parameter);

}  // namespace rmoe::analysis
