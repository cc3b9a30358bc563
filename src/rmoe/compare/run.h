// Reads finished run folders, the input of a comparison: config.toml, summary.json, eval/<split>.json, metrics.jsonl
// and samples.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rmoe::compare {

// RUN/eval/<split>.json: one pass over a whole split. Absent numbers (null, or not known for this data) are empty.
struct Evaluation {
  std::string split;
  int64_t checkpoint_step = 0;
  int64_t tokens = 0;
  int64_t characters = 0;  // 0: unknown
  int64_t words = 0;       // 0: unknown
  std::optional<double> bits_per_character;
  std::optional<double> perplexity;  // per token
  std::optional<double> word_perplexity;
  bool causal = true;                    // see Run::causal
  std::optional<double> load_imbalance;  // largest over mean share of an expert, averaged over layers
  std::optional<double> dead_experts;
  std::optional<double> gate_entropy;                // nats
  std::vector<std::vector<double>> expert_fraction;  // [layers with experts][N], each row sums to 1

  // Word-level data: the tokens are the words (but for separators and the first token, which nothing predicts), so word
  // perplexity is the measure and not bits per character.
  bool word_level() const { return words > 0 && std::abs(tokens - words) <= 1 + words / 100; }
};

// Points of RUN/metrics.jsonl. A number that the file gives as null is NaN.
struct TrainPoint {
  int64_t step = 0;
  int64_t tokens = 0;
  double seconds = 0;
  double loss = 0;  // nats per token
  double bpc = 0;
  double load_imbalance = 0;
  double gate_entropy = 0;
};
struct EvalPoint {
  int64_t step = 0;
  int64_t tokens = 0;
  double seconds = 0;
  double bpc = 0;
  double perplexity = 0;
};
struct Curves {
  std::vector<TrainPoint> train;
  std::vector<EvalPoint> valid;
};

// RUN/summary.json with its evaluations.
struct Run {
  std::string path;   // as the user wrote it, without a slash at the end
  std::string name;   // the folder's where the config has none
  std::string group;  // equal for runs that differ in seed and place only; opaque
  int64_t seed = 0;
  std::string family, stage, router, dtype, stop;
  // False: by the summary or an evaluation, the choice of experts for a token depends on tokens to come or on its place
  // in a batch.
  bool causal = true;
  int64_t params = 0;
  int64_t active_params = 0;
  int64_t steps = 0;
  int64_t tokens = 0;  // trained on
  double seconds = 0;
  double tokens_per_s = 0;
  double flops_per_token = 0;  // of training; 0: unknown
  int64_t peak_memory_bytes = 0;
  int64_t batch_tokens = 0;
  int64_t best_step = 0;
  std::string data_path;
  std::string tokenizer_hash;
  int64_t train_tokens = 0;  // in the training split
  std::string cpu;
  int64_t threads = 0;
  std::map<std::string, std::string> config;  // config.toml, flat: "model.layers" -> "4"
  std::optional<Evaluation> valid;
  std::optional<Evaluation> test;
  std::vector<EvalPoint> validation;  // during training, of metrics.jsonl in its order; empty without the file

  bool has_stage() const { return !stage.empty() && stage != "none"; }
  const std::optional<Evaluation>& evaluation(const std::string& split) const {
    return split == "valid" ? valid : test;
  }
};

// Throws Error(kBadInput), one line, when `path` is not a run folder, the run is unfinished, or a file lacks a field.
// Evaluations that were not made are left empty.
Run read_run(const std::string& path);

// The points of RUN/metrics.jsonl in file order.
Curves read_curves(const Run& run);

// RUN/samples/final.txt, empty when there is none. Arbitrary bytes.
std::string read_sample(const Run& run);

}  // namespace rmoe::compare
