// One training run: batches in, updates out. The Trainer holds what a checkpoint holds and knows nothing of files that
// people look at; run.cpp drives it and reports.
#pragma once

#include <filesystem>

#include "rmoe/base/json.h"
#include "rmoe/data/batcher.h"
#include "rmoe/data/instructions.h"
#include "rmoe/models/model.h"
#include "rmoe/routing/sums.h"
#include "rmoe/train/freeze.h"
#include "rmoe/train/optimizer.h"

namespace rmoe {

// Norms of the gradient that the routers' parameters (stage and heads) get, by the loss it comes from (Table 11).
struct GradientSources {
  int64_t steps = 0;
  double whole = 0, lm = 0, balance = 0;

  void add(const GradientSources& other);
};

// Sums over the steps since the last log line; part of a checkpoint, so that a resumed run logs the same numbers.
struct StepSums {
  int64_t steps = 0;
  double loss = 0;     // nats per token that has a target
  double balance = 0;  // weighted balance losses
  double gradient_norm = 0;
  GradientSources gradients;     // in the steps that measured it
  routing::RoutingSums routing;  // empty with train.routing_stats off

  void add(const StepSums& step);
  Json json() const;
  static StepSums from_json(const Json& json);
};

class Trainer {
 public:
  // `config` is resolved (vocabulary set) and valid. Start values depend on the seed alone.
  Trainer(const RunConfig& config, data::TokenFile train_tokens);
  // On answers to instructions: the loss of a step is the mean over all its answers' tokens, whatever micro-batches
  // they are in, and padding is routed nowhere.
  Trainer(const RunConfig& config, std::shared_ptr<const data::InstructionSet> instructions);
  // On random tokens, to measure what training costs.
  explicit Trainer(const RunConfig& config);

  // One optimizer step; on a device it is only asked for, and nothing waits for it. Where the loss or a gradient is not
  // finite no weight changes from that step on, and Error(kDiverged) names the step: here on the CPU, in take_sums() on
  // a device.
  void advance();
  // Sums over the steps since the last call; waits for them.
  StepSums take_sums();
  // Both: one step and its sums.
  StepSums step() {
    advance();
    return take_sums();
  }

  int64_t steps_done() const { return steps_; }
  int64_t tokens_done() const { return steps_ * config_.train.batch * config_.train.block; }
  double learning_rate() const;  // of the next step

  // Called after each forward pass of a step (counted from 0) with its tokens; `replay` gives the choices to force on
  // them. Positions are those in the step's batch [batch, block].
  std::function<void(const routing::RoutingTrace&, const Tensor& tokens_T, const Tensor& positions_T)> watch = {};
  std::function<std::vector<Tensor>(const Tensor& tokens_T, const Tensor& positions_T)> replay = {};
  const Model& model() const { return *model_; }
  const ParamTable& params() const { return params_; }
  const Frozen& frozen() const { return frozen_; }
  at::ScalarType dtype() const;

  // Writes model.safetensors, optimizer.safetensors and, where the model has a block cache, memory.safetensors through
  // `path_of(name)`; load() restores them and the step so that training goes on bit for bit.
  using PathOf = std::function<std::filesystem::path(const char* name)>;
  void save(const PathOf& path_of) const;
  void load(const std::filesystem::path& checkpoint_dir, int64_t step);
  // Before the first step: the weights of another run's checkpoint in place of random ones. Its tensors must be this
  // model's, but for buffers, which start anew where it has none; otherwise Error(kBadInput) lists both sides.
  void start_from(const std::filesystem::path& checkpoint_dir);

  // Bytes of what the last forward pass left for its backward pass: activations, and the loss's own.
  int64_t activation_bytes() const { return activation_bytes_; }

 private:
  using Batcher = std::variant<data::StreamBatcher, data::WindowBatcher, data::RandomBatcher, data::InstructionBatcher>;
  Trainer(const RunConfig& config, std::optional<data::TokenFile> tokens, Batcher batcher);

  data::Batch batch(int64_t micro) const;
  Tensor positions(int64_t micro) const;  // of its tokens in the step's batch
  // What `loss` alone adds to the gradients of the routers' parameters, in their order; changes no gradient.
  std::vector<Tensor> router_gradients(const Tensor& loss);
  GradientSources gradient_sources(const std::vector<Tensor>& of_balance) const;
  DropoutKey dropout_key(int64_t micro) const;
  bool on_instructions() const { return std::holds_alternative<data::InstructionBatcher>(batcher_); }
  // `valid_BS`: undefined where all tokens are.
  ForwardOptions forward_options(int64_t micro, const Tensor& tokens_BS, const Tensor& valid_BS) const;
  // What each micro-batch counts in the step's loss and in its balance losses; each sums to 1.
  struct Shares {
    std::vector<double> loss, balance;
  };
  Shares shares() const;
  // Counts of the whole batch, by forward passes that choose as the step's own will.
  routing::BatchCounts count_batch() const;
  // Before the first step of a training.
  void fit_routers();

  RunConfig config_;
  at::Device device_;
  ParamTable params_;
  std::unique_ptr<Model> model_;
  Frozen frozen_;
  Optimizer optimizer_;
  std::optional<data::TokenFile> tokens_;  // none: random ones
  Batcher batcher_;
  std::vector<Memory> memories_;  // one per micro-batch; used by the span family
  int64_t steps_ = 0;
  bool started_ = false;  // from other weights, which the routers are fitted with already
  int64_t activation_bytes_ = 0;

  // Of the steps since take_sums(), on the device.
  // `sums` fp64 [2], loss and balance; `norm` an fp64 scalar.
  void add_sums(const Tensor& sums, const Tensor& norm);
  [[noreturn]] void diverged(int64_t step, double loss, double norm) const;
  StepSums pending_;  // what the host knows of them: how many, and gradients by source
  Tensor totals_;     // fp64 [3]: loss, balance, gradient norm
  Tensor failed_;  // fp64 [3]: the first step that was not finite, counted from 1, its loss and gradient norm; 0: none
  routing::RoutingTotals routing_;
};

}  // namespace rmoe
