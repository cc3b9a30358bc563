// A trained model out of a run folder, for everything that uses one: evaluation, generation, export, analysis.
#pragma once

#include <filesystem>
#include <string_view>

#include "rmoe/config/run.h"
#include "rmoe/data/token_file.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/models/model.h"

namespace rmoe {

// Which checkpoint of a run.
struct Which {
  enum class Kind {
    kNewest,  // the newest whole one; broken ones are skipped with a warning
    kBest,    // the one with the best validation loss, as summary.json (or else the newest state.json) names it
    kStep,
  };
  Kind kind = Kind::kNewest;
  int64_t step = 0;  // kStep only

  // "newest", "best" or a step. Error(kBadInput) for anything else.
  static Which parse(std::string_view text);
};

struct LoadedRun {
  std::filesystem::path dir;
  int64_t step = 0;  // of the checkpoint
  RunConfig config;  // as the run resolved it; model.vocab_size is set
  ParamTable params;
  std::unique_ptr<Model> model;
  std::unique_ptr<data::Tokenizer> tokenizer;
  // Tokens of the longest text that the model was made for: train.block, of an imported model its own number.
  int64_t context = 0;
  std::vector<int64_t> ends;  // ids that end a generated text besides the separator, as an imported folder names them
};

// A run without its weights: whose they are and where they lie.
struct FoundRun {
  RunConfig config;  // as the run resolved it; model.vocab_size is set
  std::unique_ptr<data::Tokenizer> tokenizer;
  io::Checkpoint checkpoint;  // its hashes agree
};
// As load_run, up to the weights.
FoundRun find_run(const std::filesystem::path& dir, Which which = {});

// Checks the checkpoint against its manifest, then reads RUN/config.toml, the weights (fp32) and RUN/tokenizer.json.
// Every failure is an Error in one line that names the folder or file: no run, no such checkpoint, a file that is
// missing, truncated or altered, a tokenizer with more ids than the model, a device that is not there (ops/device.h).
LoadedRun load_run(const std::filesystem::path& dir, Which which = {}, const std::string& device = "cpu");

// A token file to read with a run.
struct SplitFile {
  std::filesystem::path path;
  std::string split;
  bool own = false;  // of the data that the run was trained on
};
// `data`: a data folder or a token file; empty: the run's own data. Error(kIo) when it is not there.
SplitFile find_split(const LoadedRun& run, const std::string& data, const std::string& split);

// The dtype to compute in, `wish` or else the run's; the run's weights are then kept for it.
at::ScalarType compute_in(LoadedRun& run, std::optional<Precision> wish);

// Error(kBadInput) unless `tokens` were made by the run's tokenizer.
void check_data(const LoadedRun& run, const data::TokenFile& tokens);

}  // namespace rmoe
