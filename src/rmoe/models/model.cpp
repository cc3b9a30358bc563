#include "rmoe/models/model.h"

#include "rmoe/base/error.h"
#include "rmoe/models/families.h"
#include "rmoe/models/size.h"
#include "rmoe/ops/region.h"

namespace rmoe {

bool belongs_to_routing(const Param& param) {
  const auto contains = [&](const char* part) { return param.name.find(part) != std::string::npos; };
  return contains("rnn_router") ||
         (contains("block_sparse_moe") && !contains(".experts.") && !param.name.ends_with("block_sparse_moe.bias"));
}

std::unique_ptr<Model> make_model(const ModelConfig& config, ParamTable& table) {
  config.validate();
  config.moe.validate();
  RMOE_CHECK(config.vocab_size > 0, "model.vocab_size is not set; it comes from the data or the config");
  return config.family == Family::kSpan ? make_span_model(config, table) : make_llama_model(config, table);
}

void store_weights_as(ParamTable& params, at::ScalarType dtype) {
  for (Param& p : params.all()) {
    if (p.is_buffer() || !p.traits.matmul || p.shape.size() < 2 || belongs_to_routing(p)) continue;
    p.value.set_requires_grad(false);
    p.value.set_data(p.value.to(dtype));
  }
}

ModelSize model_size(const ModelConfig& config, int64_t context) {
  ParamTable table;
  make_model(config, table);
  ModelSize size;
  size.params = table.count();
  size.active_params = table.active_count();
  for (const Param& p : table.all()) {
    if (!p.is_buffer() && belongs_to_routing(p)) size.router_params += p.count();
  }
  // Scores and weighted sum over the positions in reach; span adds the product with the position keys.
  const double span = static_cast<double>(config.span.span);
  const double reach = config.family == Family::kSpan ? span : (static_cast<double>(context) + 1) / 2;
  const double products = config.family == Family::kSpan ? 3 : 2;
  size.forward_flops = table.matmul_flops() + 2 * products * reach *
                                                  static_cast<double>(config.heads * config.head_width()) *
                                                  static_cast<double>(config.layers);
  return size;
}

ForwardResult Model::forward(const Tensor& tokens_BS, Memory memory, ForwardOptions options) const {
  const at::Device device = this->device();
  if (options.valid_BS.defined()) options.valid_BS = options.valid_BS.to(device);
  for (Tensor& ids_TK : options.replay_TK) ids_TK = ids_TK.to(device);
  return run(tokens_BS.to(device), std::move(memory), options);
}

Tensor Model::run_layers(Tensor x, const Tensor& tokens_BS, const ForwardOptions& options, const LayerStep& step,
                         routing::RoutingTrace& trace, std::vector<Tensor>* inputs) const {
  LayerInput in{.dropout_key = options.dropout_key, .context = {}};
  in.context = {.training = options.training,
                .generating = options.generating,
                .tokens_T = tokens_BS.flatten(),
                .sequences = tokens_BS.size(0)};
  if (options.valid_BS.defined()) {
    RMOE_CHECK(options.valid_BS.sizes() == tokens_BS.sizes(), "forward: valid must be ", tokens_BS.sizes(), ", got ",
               options.valid_BS.sizes());
    in.context.valid_T = options.valid_BS.flatten();
  }
  RMOE_CHECK(options.replay_TK.empty() || std::ssize(options.replay_TK) == pipeline_->layers(),
             "forward: ", options.replay_TK.size(), " recorded layers to replay, but the model has ",
             pipeline_->layers(), " MoE layers");
  RMOE_ASSERT(!options.recompute || options.remember != Remember::kKeysValues, "recomputation is for training");
  routing::RouterCarry carry;
  for (int64_t i = 0; i < config_.layers; ++i) {
    if (!options.replay_TK.empty() && config_.is_moe(i)) in.context.replay_TK = options.replay_TK[trace.size()];
    const auto layer = [step, i, in](const Tensor& h, routing::RouterCarry carried) {
      const Region region("layer", i);
      return step(static_cast<size_t>(i), h, std::move(carried), in);
    };
    if (inputs) inputs->push_back(x);
    auto out = options.recompute ? nn::recomputed(layer, x, std::move(carry)) : layer(x, std::move(carry));
    x = std::move(out.x);
    carry = std::move(out.carry);
    if (options.cut_state && carry.state_TP.defined()) carry.state_TP = carry.state_TP.detach();
    if (options.cut_state && carry.cell_TP.defined()) carry.cell_TP = carry.cell_TP.detach();
    if (out.routing) trace.push_back(std::move(*out.routing));
  }
  return x;
}

}  // namespace rmoe
