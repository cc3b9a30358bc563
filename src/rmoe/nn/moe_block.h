// One MoE layer: stage -> head -> selection -> experts.
#pragma once

#include "rmoe/config/model.h"
#include "rmoe/nn/experts.h"
#include "rmoe/routing/router.h"

namespace rmoe::nn {

struct MoeResult {
  Tensor y_TD;
  routing::RouterCarry carry;  // for the next MoE layer
  routing::Routing routing;
};

class MoeBlock {
 public:
  // `stage` is the model's; `moe_layer` counts MoE layers.
  MoeBlock(const MoeConfig& config, const ExpertsShape& experts, std::shared_ptr<const routing::Stage> stage,
           int64_t moe_layer, const ParamScope& scope);

  // x_TD in the compute dtype; the router computes in fp32 at least. The carry is taken and handed on by value.
  MoeResult forward(const Tensor& x_TD, routing::RouterCarry carry, bool training, DropoutKey key) const;

 private:
  int64_t top_k_, moe_layer_;
  std::shared_ptr<const routing::Stage> stage_;
  std::shared_ptr<const routing::Router> router_;
  Experts experts_;
};

// Makes the model's stage and its MoE layers, whose parameters go under layer_scope(layer) / "block_sparse_moe" and
// shared_scope / "rnn_router". `blocks` has one entry per layer, null for dense ones.
struct MoeLayers {
  std::shared_ptr<const routing::Stage> stage;
  std::vector<std::unique_ptr<MoeBlock>> blocks;
};
MoeLayers make_moe_layers(const ModelConfig& config, ExpertKind kind, const ParamScope& model_scope);

// "layers.i" below the model's scope.
ParamScope layer_scope(const ParamScope& model_scope, int64_t layer);

}  // namespace rmoe::nn
