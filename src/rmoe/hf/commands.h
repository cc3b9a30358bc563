// `rmoe import` and `rmoe export`. Free of torch.
#pragma once

#include <cstdint>
#include <string>

namespace rmoe::hf {

struct ImportCommand {
  std::string folder;     // a Hugging Face folder: config.json, safetensors, a tokenizer
  std::string out;        // the run folder to make
  std::string tokenizer;  // where the folder has none: tokenizer.json, tokenizer.model or a folder with one
};

struct ImportReport {
  std::string run, model_type;
  int64_t params = 0, active_params = 0;
  std::string tokenizer;  // for people
};

// Makes a run of one checkpoint, step 0, without an optimizer. Error(kBadInput) for a folder that cannot be read or
// says something that our models do not do, Error(kIo); then nothing is left behind. Memory: a few megabytes whatever
// the size of the weights.
ImportReport import_folder(const ImportCommand& command);

struct ExportCommand {
  std::string run;
  std::string folder;  // to make
  std::string checkpoint = "newest";
  std::string type;  // model type; empty: that of the imported folder where it still fits, or the plainest that fits
  std::string dtype = "fp32";  // fp32, bf16 or fp16
  int64_t shard_bytes = 5'000'000'000;
};

struct ExportReport {
  std::string folder, model_type;
  int64_t checkpoint_step = 0;
};

// Writes a folder that transformers loads. Errors as above.
ExportReport export_run(const ExportCommand& command);

}  // namespace rmoe::hf
