// A language model: tokens in, logits out, with everything it remembers passed and returned as values.
#pragma once

#include "rmoe/config/model.h"
#include "rmoe/nn/kv_cache.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/nn/recompute.h"

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
  bool last_logits_only = false;       // logits of each sequence's last position only
  bool recompute = false;              // keep each layer's inputs only and run it again in backward
  bool generating = false;             // the rest of the text comes later: no choice may depend on it
  Tensor valid_BS = {};                // bool; false: padding behind a sequence's end, which is routed nowhere
  std::vector<Tensor> replay_TK = {};  // ids to choose, per MoE layer; empty: the routers choose
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
  const routing::Pipeline& routing() const { return *pipeline_; }
  routing::Pipeline& routing() { return *pipeline_; }

 protected:
  // What all layers of a forward pass share. A value: with recomputation it lives until backward.
  struct LayerInput {
    DropoutKey dropout_key;
    routing::RouteContext context;
  };
  using LayerStep =
      std::function<nn::LayerResult(size_t layer, const Tensor& x, routing::RouterCarry carry, const LayerInput& in)>;
  // Runs `step` for each layer, recomputed in backward where the options ask for it, and collects the trace and, where
  // asked for, every layer's input.
  Tensor run_layers(Tensor x, const Tensor& tokens_BS, const ForwardOptions& options, const LayerStep& step,
                    routing::RoutingTrace& trace, std::vector<Tensor>* inputs = nullptr) const;

  ModelConfig config_;
  std::shared_ptr<routing::Pipeline> pipeline_;
};

// Declares the model's parameters in `table` and returns the model that reads them. With a counting table the model
// cannot run. The config must be valid and have a vocabulary.
std::unique_ptr<Model> make_model(const ModelConfig& config, ParamTable& table);

// Whether it is the stage's or a head's: those compute in fp32 and are kept so.
bool belongs_to_routing(const Param& param);

// For inference: all of a model's weights but those of the routing in this dtype, so that a forward pass reads fewer
// bytes. The model made with `table` goes on with them. Gradients and start values are lost.
void narrow_weights(ParamTable& table, at::ScalarType dtype);

}  // namespace rmoe
