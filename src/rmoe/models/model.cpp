#include "rmoe/models/model.h"

#include "rmoe/base/error.h"
#include "rmoe/models/families.h"
#include "rmoe/models/size.h"
#include "rmoe/routing/balance.h"

namespace rmoe {

std::unique_ptr<Model> make_model(const ModelConfig& config, ParamTable& table) {
  config.validate();
  config.moe.validate();
  RMOE_CHECK(config.vocab_size > 0, "model.vocab_size is not set; it comes from the data or the config");
  return config.family == Family::kSpan ? make_span_model(config, table) : make_llama_model(config, table);
}

ModelSize model_size(const ModelConfig& config, int64_t context) {
  ParamTable table;
  make_model(config, table);
  ModelSize size;
  size.params = table.count();
  size.active_params = table.active_count();
  for (const Param& p : table.all()) {
    const bool experts = p.name.find(".experts.") != std::string::npos;
    const bool routing =
        p.name.find("block_sparse_moe") != std::string::npos || p.name.find("rnn_router") != std::string::npos;
    if (routing && !experts) size.router_params += p.count();
  }
  // Scores and weighted sum over the positions in reach; span adds the product with the position keys.
  const double span = static_cast<double>(config.span.span);
  const double reach = config.family == Family::kSpan ? span : (static_cast<double>(context) + 1) / 2;
  const double products = config.family == Family::kSpan ? 3 : 2;
  size.forward_flops = table.matmul_flops() +
                       2 * products * reach * static_cast<double>(config.width) * static_cast<double>(config.layers);
  return size;
}

BalanceLosses::BalanceLosses(const std::vector<BalanceConfig>& config) {
  for (const BalanceConfig& entry : config) losses_.emplace_back(entry.loss.create(), entry.weight);
}

Tensor BalanceLosses::operator()(const routing::RoutingTrace& trace) const {
  Tensor total = at::zeros({}, at::kFloat);
  for (const auto& [loss, weight] : losses_) {
    if (weight > 0) total = total + loss->loss(trace) * weight;
  }
  return total;
}

}  // namespace rmoe
