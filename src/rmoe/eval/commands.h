// `rmoe eval` and `rmoe generate` as functions, free of torch.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "rmoe/config/run.h"
#include "rmoe/eval/sampling.h"
#include "rmoe/io/trace_file.h"

namespace rmoe {

// What of a command's routing is recorded, and what is forced.
struct TraceOptions {
  std::string file = {};        // of the trace to write; empty: none
  io::TraceFields fields = {};  // besides step, position, ids and weights
  io::TokenSlice tokens = {};   // which tokens, by position
  int64_t every = 1;            // train: steps from one that is recorded to the next
  std::string replay = {};      // a trace whose choices are forced; empty: the routers choose
};

struct EvalCommand {
  std::string run = {};
  std::string split = "valid";
  // A data folder, a token file or a jsonl file of instructions; empty: the run's own data.
  std::string data = {};
  std::string checkpoint = "newest";
  int64_t block = 0, batch = 0;         // 0: the run's block, a batch chosen for speed
  int64_t tokens = 0;                   // predict this many only; 0: all
  std::optional<Precision> dtype = {};  // default: the run's
  std::string logits = {};              // file to write what the model says of each token to; empty: none
  std::string device = "cpu";
  int64_t threads = 0;  // 0: all
  TraceOptions trace = {};
};

struct EvalReport {
  std::string run = {};
  std::string split;
  std::string data = {};  // the token file
  int64_t checkpoint_step = 0;
  int64_t tokens = 0;                 // predicted; of instructions: those of the answers
  int64_t characters = 0, words = 0;  // that fall on them; 0: unknown
  double nats = 0;
  std::optional<double> bits_per_character, word_perplexity;
  double perplexity = 0;  // per token
  bool causal = true;     // false: the routing saw tokens to come, so that the result says nothing about writing
  std::optional<double> load_imbalance, gate_entropy;  // none without MoE layers
  int64_t dead_experts = 0, experts = 0;               // of all MoE layers
  std::vector<std::vector<double>> expert_fraction;    // [MoE layer][N], rows sum to 1
  double seconds = 0;
  std::string written;  // RUN/eval/SPLIT.json, empty when it was not written

  // The contents of RUN/eval/SPLIT.json.
  nlohmann::ordered_json json() const;
};

// Evaluates, showing progress, and writes RUN/eval/SPLIT.json when it was the whole split of the run's own data. Throws
// Error as load_run and evaluate do, and for data that is missing or not made for the run.
EvalReport run_eval(const EvalCommand& command);

struct GenerateCommand {
  std::string run = {};
  std::string prompt = {};
  std::string checkpoint = "newest";
  std::optional<Precision> dtype = {};  // default: the run's
  int64_t tokens = 200;
  SamplingOptions sampling = {};
  int64_t seed = 1;
  std::vector<std::string> stops = {};
  std::string device = "cpu";
  int64_t threads = 0;  // 0: all
  TraceOptions trace = {};
};

struct GenerateReport {
  std::string text;  // without the prompt
  int64_t prompt_tokens = 0, tokens = 0;
  std::string ending;  // length, separator, stop or caller
  double tokens_per_s = 0;
  int64_t checkpoint_step = 0;
};

// Loads the run and generates; `on_text` gets whole characters as they are certain, and returns false to end.
GenerateReport run_generate(const GenerateCommand& command, const std::function<bool(std::string_view)>& on_text);

}  // namespace rmoe
