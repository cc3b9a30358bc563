#include "rmoe/nn/moe_block.h"

#include "rmoe/ops/affine.h"

namespace rmoe::nn {

MoeBlock::MoeBlock(const MoeConfig& config, const ExpertsShape& experts, std::shared_ptr<const routing::Stage> stage,
                   int64_t moe_layer, const ParamScope& scope)
    : top_k_(config.top_k),
      moe_layer_(moe_layer),
      stage_(std::move(stage)),
      router_(config.router.create(routing::RouterShape{.experts = config.experts,
                                                        .feature_width = stage_->feature_width(),
                                                        .recurrent = stage_->recurrent(),
                                                        .init_deviation = experts.init_deviation},
                                   scope)),
      experts_(experts, scope) {}

MoeResult MoeBlock::forward(const Tensor& x_TD, routing::RouterCarry carry, bool training, DropoutKey key) const {
  auto [feature_TR, next] = stage_->step(moe_layer_, router_precision(x_TD), std::move(carry));
  MoeResult result;
  result.carry = std::move(next);
  result.routing = routing::select_top_k(router_->score({.feature_TR = feature_TR}), top_k_);
  result.y_TD = experts_.forward(x_TD, result.routing, training, key);
  return result;
}

MoeLayers make_moe_layers(const ModelConfig& config, ExpertKind kind, const ParamScope& model_scope) {
  std::vector<ParamScope> scopes;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe(layer)) scopes.push_back(layer_scope(model_scope, layer) / "block_sparse_moe");
  }
  MoeLayers result;
  result.stage =
      config.moe.stage.create(routing::StageShape{.model_width = config.width, .init_deviation = config.init_std},
                              model_scope / "rnn_router", scopes);
  const ExpertsShape shape{.kind = kind,
                           .experts = config.moe.experts,
                           .top_k = config.moe.top_k,
                           .model_width = config.width,
                           .expert_width = config.moe.expert_width,
                           .init_deviation = config.init_std,
                           .dropout = config.dropout};
  int64_t moe_layer = 0;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    result.blocks.push_back(nullptr);
    if (!config.is_moe(layer)) continue;
    result.blocks.back() =
        std::make_unique<MoeBlock>(config.moe, shape, result.stage, moe_layer, scopes[static_cast<size_t>(moe_layer)]);
    ++moe_layer;
  }
  return result;
}

ParamScope layer_scope(const ParamScope& model_scope, int64_t layer) {
  return model_scope / ("layers." + std::to_string(layer));
}

}  // namespace rmoe::nn
