// A language model: tokens in, logits (or what they are made of) out, with everything it remembers passed and returned
// as values.
#pragma once

#include "rmoe/config/model.h"
#include "rmoe/nn/kv_cache.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/nn/recompute.h"
#include "rmoe/ops/linear.h"

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
  bool hidden_only = false;            // hidden_TD in place of logits_TV: for a loss that never holds the logits
  bool recompute = false;              // keep each layer's inputs only and run it again in backward
  bool generating = false;             // the rest of the text comes later: no choice may depend on it
  Tensor valid_BS = {};                // bool; false: padding behind a sequence's end, which is routed nowhere
  std::vector<Tensor> replay_TK = {};  // ids to choose, per MoE layer; empty: the routers choose
  // The state goes on detached: the same values, and no gradient through the recurrence.
  bool cut_state = false;
};

struct ForwardResult {
  Tensor logits_TV;  // [B*S, V], or [B, V] with last_logits_only; in the compute dtype
  Tensor hidden_TD;  // with hidden_only: what head() makes the logits of
  Memory memory;
  routing::RoutingTrace trace;  // one entry per MoE layer
};

class Model {
 public:
  explicit Model(const ModelConfig& config) : config_(config) {}
  virtual ~Model() = default;

  // tokens_BS int64, ids below the vocabulary; on any device, as are the options' tensors: everything goes to the
  // model's, where the result is. A memory must come from calls with the same `remember` and batch.
  ForwardResult forward(const Tensor& tokens_BS, Memory memory, ForwardOptions options) const;

  // The map from hidden_TD to logits: weight [V, D] and, in the span family, a bias.
  virtual Linear head() const = 0;

  // Of its parameters.
  at::Device device() const { return head().weight_OI.device(); }

  const ModelConfig& config() const { return config_; }
  const routing::Pipeline& routing() const { return *pipeline_; }
  routing::Pipeline& routing() { return *pipeline_; }

 protected:
  virtual ForwardResult run(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const = 0;

  // The end of a forward pass: of the last hidden states [T, D], what the options ask for.
  void put_output(ForwardResult& result, const Tensor& hidden_TD, const ForwardOptions& options) const {
    if (options.hidden_only) {
      result.hidden_TD = hidden_TD;
    } else {
      result.logits_TV = head()(hidden_TD);
    }
  }
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

// For inference in `dtype`: the weights of matrix products are kept in it from now on, rounded as the products would
// round them, which halves their memory and the time of reading them. Routers keep theirs: they compute in fp32.
// Training needs the fp32 weights.
void store_weights_as(ParamTable& params, at::ScalarType dtype);

// Declares the model's parameters in `table` and returns the model that reads them. With a counting table the model
// cannot run. The config must be valid and have a vocabulary.
std::unique_ptr<Model> make_model(const ModelConfig& config, ParamTable& table);

// Whether it is the stage's or a head's: those compute in fp32 and are kept so.
bool belongs_to_routing(const Param& param);

}  // namespace rmoe
