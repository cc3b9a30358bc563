#include "rmoe/nn/moe_block.h"

namespace rmoe::nn {
namespace {

// The streams of random numbers of one layer: the experts use the layer's key itself.
constexpr uint64_t kRouterStream = 1;

}  // namespace

MoeBlock::MoeBlock(const ExpertsShape& experts, std::shared_ptr<const routing::Pipeline> pipeline, int64_t moe_layer,
                   const ParamScope& scope)
    : moe_layer_(moe_layer), pipeline_(std::move(pipeline)), experts_(experts, scope) {}

MoeResult MoeBlock::forward(const Tensor& x_TD, routing::RouterCarry carry, routing::RouteContext context,
                            DropoutKey key) const {
  context.key = key.at(kRouterStream);
  context.responses_TN = [&] { return experts_.response_norms(x_TD); };
  auto [routing, next] = pipeline_->route(moe_layer_, x_TD, std::move(carry), context);
  Tensor y_TD = experts_.forward(x_TD, routing, context.training, key);
  return {std::move(y_TD), std::move(next), std::move(routing)};
}

MoeLayers make_moe_layers(const ModelConfig& config, ExpertKind kind, const ParamScope& model_scope) {
  std::vector<ParamScope> scopes;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (config.is_moe(layer)) scopes.push_back(layer_scope(model_scope, layer) / "block_sparse_moe");
  }
  MoeLayers result;
  result.pipeline = std::make_shared<routing::Pipeline>(
      config.moe,
      routing::PipelineShape{
          .model_width = config.width, .vocab_size = config.vocab_size, .init_deviation = config.init_std},
      model_scope / "rnn_router", scopes);
  const ExpertsShape shape{.kind = kind,
                           .experts = config.moe.experts,
                           .null_experts = config.moe.null_experts,
                           .copy_experts = config.moe.copy_experts,
                           .top_k = config.moe.top_k,
                           .model_width = config.width,
                           .expert_width = config.moe.expert_width,
                           .init_deviation = config.init_std,
                           .dropout = config.dropout};
  size_t moe_layer = 0;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    result.blocks.push_back(nullptr);
    if (!config.is_moe(layer)) continue;
    result.blocks.back() =
        std::make_unique<MoeBlock>(shape, result.pipeline, static_cast<int64_t>(moe_layer), scopes[moe_layer]);
    ++moe_layer;
  }
  return result;
}

ParamScope layer_scope(const ParamScope& model_scope, int64_t layer) {
  return model_scope / ("layers." + std::to_string(layer));
}

}  // namespace rmoe::nn
