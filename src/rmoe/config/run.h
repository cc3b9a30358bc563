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

enum class Precision { kFp32, kTf32, kBf16 };
template <>
struct EnumNames<Precision> {
  static constexpr std::array names{std::pair{Precision::kFp32, "fp32"}, std::pair{Precision::kTf32, "tf32"},
                                    std::pair{Precision::kBf16, "bf16"}};
};

enum class Recompute { kNone, kLayer };
template <>
struct EnumNames<Recompute> {
  static constexpr std::array names{std::pair{Recompute::kNone, "none"}, std::pair{Recompute::kLayer, "layer"}};
};

enum class TooLong { kLeaveOut, kCut, kRefuse };
template <>
struct EnumNames<TooLong> {
  static constexpr std::array names{std::pair{TooLong::kLeaveOut, "leave_out"}, std::pair{TooLong::kCut, "cut"},
                                    std::pair{TooLong::kRefuse, "refuse"}};
};

// Instruction data: questions with answers, of which the answers are learned (data/instructions.h).
struct InstructConfig {
  std::string train, valid;
  double valid_share = 0.02;
  bool pack = false;
  TooLong too_long = TooLong::kLeaveOut;
  std::string preamble;
  std::string input = "{instruction}\n\n### Input:\n{input}";
  std::string system = "{content}\n\n";
  std::string user = "### Instruction:\n{content}\n\n";
  std::string assistant = "### Response:\n{content}";
  std::string end = "\n\n";

  static constexpr auto fields() {
    using C = InstructConfig;
    return std::tuple{
        Field{"train", &C::train, "jsonl file of instructions with answers, in place of data.path"},
        Field{"valid", &C::valid, "jsonl file to evaluate on; empty: a share of the training file is held out"},
        Field{"valid_share", &C::valid_share, "the share held out where there is no file", {.above = 0, .below = 1}},
        Field{"pack", &C::pack, "several samples in a row of train.block tokens; false: one, padded"},
        Field{"too_long", &C::too_long,
              "samples longer than train.block: leave_out and cut count them, refuse ends with file and line"},
        Field{"preamble", &C::preamble, "a system message in front of samples that have none; empty: none"},
        Field{"input", &C::input, "the user's message of an Alpaca sample with an input"},
        Field{"system", &C::system, "the text around a system message"},
        Field{"user", &C::user, "the text around a user's message"},
        Field{"assistant", &C::assistant, "the text in front of an answer"},
        Field{"end", &C::end, "what ends an answer where the tokenizer has no separator"}};
  }
  bool given() const { return !train.empty(); }
  void validate() const;
};

struct DataConfig {
  std::string path;
  InstructConfig instruct;
  static constexpr auto fields() {
    return std::tuple{Field{"path", &DataConfig::path, "folder made by `rmoe data prepare`"},
                      Field{"instruct", &DataConfig::instruct, "instruction data"}};
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
  double warmup_ratio = 0;
  double final_ratio = 0.1;

  static constexpr auto fields() {
    using C = ScheduleConfig;
    return std::tuple{Field{"decay", &C::decay, "how the learning rate falls after the warm-up"},
                      Field{"warmup", &C::warmup, "steps of linear growth to the peak", {.min = 0}},
                      Field{"warmup_ratio",
                            &C::warmup_ratio,
                            "share of the steps to warm up in, rounded up; 0: warmup says how many",
                            {.min = 0, .below = 1}},
                      Field{"final_ratio",
                            &C::final_ratio,
                            "last learning rate over the peak, for linear and cosine",
                            {.min = 0, .max = 1}}};
  }
  // Learning rate of step `step` (counted from 0) of `steps`, as a factor of the peak.
  double factor(int64_t step, int64_t steps) const;
  int64_t warmup_steps(int64_t steps) const;
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
  std::vector<std::string> freeze;
  bool balance_frozen = false;
  int64_t steps = 1000;
  double epochs = 0;
  int64_t tokens = 0;
  double minutes = 0;
  int64_t batch = 8;
  int64_t accumulate = 1;
  int64_t block = 256;
  Precision dtype = Precision::kFp32;
  Recompute recompute = Recompute::kNone;
  std::string device = "cpu";
  int64_t threads = 0;
  int64_t log_every = 10;
  bool routing_stats = true;
  int64_t gradient_sources_every = 0;
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
        Field{
            "freeze", &C::freeze,
            "globs of tensor names that are not trained, as checkpoints name them; a later `!glob` trains its tensors"},
        Field{"balance_frozen", &C::balance_frozen, "balance losses also for MoE layers whose router is frozen"},
        Field{"steps", &C::steps, "optimizer steps; the schedule ends here", {.min = 1}},
        Field{"epochs",
              &C::epochs,
              "of instruction data: sets steps to so many passes over the samples, rounded up; 0: steps says how many",
              {.min = 0}},
        Field{"tokens", &C::tokens, "stop after this many tokens; 0: no such limit", {.min = 0}},
        Field{"minutes", &C::minutes, "stop after this much training time; 0: no such limit", {.min = 0}},
        Field{"batch", &C::batch, "sequences per step, in all micro-batches together", {.min = 1}},
        Field{"accumulate", &C::accumulate, "micro-batches per step, whose gradients are summed", {.min = 1}},
        Field{"block", &C::block, "tokens per sequence and step", {.min = 1}},
        Field{
            "dtype", &C::dtype,
            "of activations and matrix products; weights, routers and optimizer stay fp32. tf32: fp32 whose products a "
            "device of CUDA may round to TF32"},
        Field{"recompute", &C::recompute,
              "layer: keep each layer's input only and run it again in backward; less memory, a third more time"},
        Field{"device", &C::device, "what to compute on: cpu, cuda or cuda:NUMBER"},
        Field{"threads", &C::threads, "CPU threads; 0: all", {.min = 0, .max = kMostThreads}},
        Field{"log_every", &C::log_every, "steps per line of metrics.jsonl", {.min = 1}},
        Field{"routing_stats", &C::routing_stats, "sum up what the routers do (loads, entropy, drops) for logs"},
        Field{"gradient_sources_every",
              &C::gradient_sources_every,
              "steps between measurements of the routers' gradient norm by source (LM loss, balance loss), each of "
              "which costs another backward pass; 0: none",
              {.min = 0}},
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
