// A language model: tokens in, logits out, with everything it remembers passed and returned as values.
#pragma once

#include "rmoe/config/model.h"
#include "rmoe/nn/kv_cache.h"
#include "rmoe/ops/dropout.h"
#include "rmoe/ops/param.h"
#include "rmoe/routing/gate.h"

namespace rmoe {

// What a sequence's past left behind, per layer. Empty: nothing has been read yet.
struct LayerMemory {
  Tensor hidden_BSD;  // Remember::kHidden, span only: the layer's last S inputs, detached
  nn::KvCache kv;     // Remember::kKeysValues
};
struct Memory {
  std::vector<LayerMemory> layers;
  int64_t position = 0;  // tokens read so far
};

enum class Remember {
  kNothing,  // each call is a text of its own
  kHidden,   // training on consecutive blocks: the past is constant, but keys and values of it still train the weights
  kKeysValues,  // inference
};

struct ForwardOptions {
  bool training = false;  // dropout on
  DropoutKey dropout_key = {};
  at::ScalarType dtype = at::kFloat;  // of the hidden states; fp32, bf16 or fp64
  Remember remember = Remember::kNothing;
  bool last_logits_only = false;  // logits of each sequence's last position only
};

struct ForwardResult {
  Tensor logits_TV;  // [B*S, V], or [B, V] with last_logits_only; in the compute dtype
  Memory memory;
  routing::RoutingTrace trace;  // one entry per MoE layer
};

class Model {
 public:
  explicit Model(const ModelConfig& config) : config_(config) {}
  virtual ~Model() = default;

  // tokens_BS int64, ids below the vocabulary. A memory must come from calls with the same `remember` and batch.
  virtual ForwardResult forward(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const = 0;

  const ModelConfig& config() const { return config_; }

 protected:
  ModelConfig config_;
};

// Declares the model's parameters in `table` and returns the model that reads them. With a counting table the model
// cannot run. The config must be valid and have a vocabulary.
std::unique_ptr<Model> make_model(const ModelConfig& config, ParamTable& table);

// Every balance loss of the config, weighted and summed; 0 when there is none.
class BalanceLosses {
 public:
  explicit BalanceLosses(const std::vector<BalanceConfig>& config);
  Tensor operator()(const routing::RoutingTrace& trace) const;

 private:
  std::vector<std::pair<std::shared_ptr<const routing::Balance>, double>> losses_;
};

}  // namespace rmoe
