// One MoE layer: routing, then experts.
#pragma once

#include "rmoe/nn/experts.h"
#include "rmoe/routing/pipeline.h"

namespace rmoe::nn {

struct MoeResult {
  Tensor y_TD;
  routing::RouterCarry carry;  // for the next MoE layer
  routing::Routing routing;
};

class MoeBlock {
 public:
  // `pipeline` is the model's; `moe_layer` counts MoE layers.
  MoeBlock(const ExpertsShape& experts, std::shared_ptr<const routing::Pipeline> pipeline, int64_t moe_layer,
           const ParamScope& scope);

  // x_TD in the compute dtype; the router computes in fp32 at least. The carry is taken and handed on by value.
  // `context` is without key and responses, which are this layer's.
  MoeResult forward(const Tensor& x_TD, routing::RouterCarry carry, routing::RouteContext context,
                    DropoutKey key) const;

 private:
  int64_t moe_layer_;
  std::shared_ptr<const routing::Pipeline> pipeline_;
  Experts experts_;
};

// Makes the model's pipeline and its MoE layers, whose parameters go under layer_scope(layer) / "block_sparse_moe" and
// model_scope / "rnn_router". `blocks` has one entry per layer, null for dense ones.
struct MoeLayers {
  std::shared_ptr<routing::Pipeline> pipeline;
  std::vector<std::unique_ptr<MoeBlock>> blocks;
};
MoeLayers make_moe_layers(const ModelConfig& config, ExpertKind kind, const ParamScope& model_scope);

// "layers.i" below the model's scope.
ParamScope layer_scope(const ParamScope& model_scope, int64_t layer);

}  // namespace rmoe::nn
