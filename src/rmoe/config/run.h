// A training run: what `rmoe train CONFIG.toml` reads. Plain data, free of torch.
#pragma once

#include "rmoe/config/model.h"

namespace rmoe {

enum class OptimizerKind { kAdam, kAdamW };
template <>
struct EnumNames<OptimizerKind> {
  static constexpr std::array names{std::pair{OptimizerKind::kAdam, "adam"}, std::pair{OptimizerKind::kAdamW, "adamw"}};
};

enum class Decay { kConstant, kLinear, kCosine };
template <>
struct EnumNames<Decay> {
  static constexpr std::array names{std::pair{Decay::kConstant, "constant"}, std::pair{Decay::kLinear, "linear"},
                                    std::pair{Decay::kCosine, "cosine"}};
};

enum class Precision { kFp32, kBf16 };
template <>
struct EnumNames<Precision> {
  static constexpr std::array names{std::pair{Precision::kFp32, "fp32"}, std::pair{Precision::kBf16, "bf16"}};
};

enum class Recompute { kNone, kLayer };
template <>
struct EnumNames<Recompute> {
  static constexpr std::array names{std::pair{Recompute::kNone, "none"}, std::pair{Recompute::kLayer, "layer"}};
};

struct DataConfig {
  std::string path;
  static constexpr auto fields() {
    return std::tuple{Field{"path", &DataConfig::path, "folder made by `rmoe data prepare`"}};
  }
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double clip = 1.0;

  static constexpr auto fields() {
    using C = OptimizerConfig;
    return std::tuple{
        Field{"kind", &C::kind, "adam: weight decay as part of the gradient; adamw: decoupled"},
        Field{"lr", &C::lr, "peak learning rate", {.above = 0}},
        Field{"beta1", &C::beta1, "decay of the first moment", {.min = 0, .below = 1}},
        Field{"beta2", &C::beta2, "decay of the second moment", {.min = 0, .below = 1}},
        Field{"eps", &C::eps, "added to the root of the second moment", {.above = 0}},
        Field{"weight_decay", &C::weight_decay, "of matrices; biases and norms are not decayed", {.min = 0}},
        Field{"clip", &C::clip, "largest global gradient norm; 0: no clipping", {.min = 0}}};
  }
};

struct ScheduleConfig {
  Decay decay = Decay::kCosine;
  int64_t warmup = 100;
  double final_ratio = 0.1;

  static constexpr auto fields() {
    using C = ScheduleConfig;
    return std::tuple{Field{"decay", &C::decay, "how the learning rate falls after the warm-up"},
                      Field{"warmup", &C::warmup, "steps of linear growth to the peak", {.min = 0}},
                      Field{"final_ratio",
                            &C::final_ratio,
                            "last learning rate over the peak, for linear and cosine",
                            {.min = 0, .max = 1}}};
  }
  // Learning rate of step `step` (counted from 0) of `steps`, as a factor of the peak.
  double factor(int64_t step, int64_t steps) const;
};

struct EvalConfig {
  int64_t every = 500;
  int64_t tokens = 200000;

  static constexpr auto fields() {
    using C = EvalConfig;
    return std::tuple{
        Field{"every", &C::every, "steps between evaluations on the validation split; 0: only at the end", {.min = 0}},
        Field{"tokens", &C::tokens, "tokens of the split's start to evaluate during training; 0: all", {.min = 0}}};
  }
};

struct CheckpointConfig {
  int64_t every = 1000;
  double minutes = 10;
  int64_t keep_last = 2;

  static constexpr auto fields() {
    using C = CheckpointConfig;
    return std::tuple{
        Field{"every", &C::every, "steps between checkpoints; 0: by time and at the end only", {.min = 0}},
        Field{"minutes", &C::minutes, "a checkpoint at least this often; 0: by steps and at the end only", {.min = 0}},
        Field{"keep_last", &C::keep_last, "checkpoints to keep, besides the best one", {.min = 1}}};
  }
};

struct SampleConfig {
  int64_t every = 0;
  std::string prompt;
  int64_t length = 200;
  double temperature = 0.8;

  static constexpr auto fields() {
    using C = SampleConfig;
    return std::tuple{Field{"every", &C::every, "steps between samples; 0: only at the end", {.min = 0}},
                      Field{"prompt", &C::prompt, "what the samples continue; empty: the validation split's start"},
                      Field{"length", &C::length, "tokens per sample; 0: no samples", {.min = 0}},
                      Field{"temperature", &C::temperature, "of the sampling; 0: greedy", {.min = 0}}};
  }
};

inline constexpr int64_t kMostThreads = 4096;

struct TrainConfig {
  std::string init;
  int64_t seed = 1;
  int64_t steps = 1000;
  int64_t tokens = 0;
  double minutes = 0;
  int64_t batch = 8;
  int64_t accumulate = 1;
  int64_t block = 256;
  Precision dtype = Precision::kFp32;
  Recompute recompute = Recompute::kNone;
  int64_t threads = 0;
  int64_t log_every = 10;
  bool routing_stats = true;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  EvalConfig eval;
  CheckpointConfig checkpoint;
  SampleConfig sample;

  static constexpr auto fields() {
    using C = TrainConfig;
    return std::tuple{
        Field{"init", &C::init, "run folder whose newest weights a fresh run starts from; empty: random start values"},
        Field{"seed", &C::seed, "of the start values, the data order, dropout and samples", {.min = 0}},
        Field{"steps", &C::steps, "optimizer steps; the schedule ends here", {.min = 1}},
        Field{"tokens", &C::tokens, "stop after this many tokens; 0: no such limit", {.min = 0}},
        Field{"minutes", &C::minutes, "stop after this much training time; 0: no such limit", {.min = 0}},
        Field{"batch", &C::batch, "sequences per step, in all micro-batches together", {.min = 1}},
        Field{"accumulate", &C::accumulate, "micro-batches per step, whose gradients are summed", {.min = 1}},
        Field{"block", &C::block, "tokens per sequence and step", {.min = 1}},
        Field{"dtype", &C::dtype, "of activations and matrix products; weights, routers and optimizer stay fp32"},
        Field{"recompute", &C::recompute,
              "layer: keep each layer's input only and run it again in backward; less memory, a third more time"},
        Field{"threads", &C::threads, "CPU threads; 0: all", {.min = 0, .max = kMostThreads}},
        Field{"log_every", &C::log_every, "steps per line of metrics.jsonl", {.min = 1}},
        Field{"routing_stats", &C::routing_stats, "sum up what the routers do (loads, entropy, drops) for logs"},
        Field{"optimizer", &C::optimizer, "Adam and AdamW"},
        Field{"schedule", &C::schedule, "learning rate over time"},
        Field{"eval", &C::eval, "evaluation during training"},
        Field{"checkpoint", &C::checkpoint, "when to save"},
        Field{"sample", &C::sample, "text written during training"}};
  }
  void validate() const;
};

struct RunConfig {
  std::string name;
  DataConfig data;
  ModelConfig model;
  TrainConfig train;

  static constexpr auto fields() {
    using C = RunConfig;
    return std::tuple{Field{"name", &C::name, "what tables and plots call the run's group"},
                      Field{"data", &C::data, "what to train on"}, Field{"model", &C::model, "the model"},
                      Field{"train", &C::train, "how to train it"}};
  }
};

// Sets model.vocab_size to that of the data where it is 0, and refuses data with more ids than the model has. (Fewer
// are usual: others pad their vocabularies to round numbers.)
void resolve_vocabulary(RunConfig& config, int64_t data_size);

}  // namespace rmoe
