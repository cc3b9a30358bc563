// rmoe import: a Hugging Face folder becomes a run of one checkpoint.
#include <algorithm>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/eval/run.h"
#include "rmoe/hf/carried.h"
#include "rmoe/hf/commands.h"
#include "rmoe/hf/config.h"
#include "rmoe/hf/weights.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/io/staging.h"
#include "rmoe/models/size.h"

namespace rmoe::hf {
namespace {

namespace fs = std::filesystem;

// Deep enough for any config, and far from the end of a stack.
constexpr JsonLimits kConfigLimits{.bytes = int64_t{16} << 20, .depth = 32};
constexpr int64_t kLongestBlock = 2048;  // of a run's blocks: what fits most machines

std::unique_ptr<data::Tokenizer> find_tokenizer(const ImportCommand& command) {
  const fs::path place = command.tokenizer.empty() ? fs::path(command.folder) : fs::path(command.tokenizer);
  auto tokenizer = data::load_foreign_tokenizer(place);
  if (tokenizer) return tokenizer;
  throw Error(Exit::kBadInput,
              str(place.string(), ": no tokenizer: neither tokenizer.json nor tokenizer.model is there"),
              "name one with --tokenizer: such a file, or a data or run folder");
}

RunConfig run_config(const Described& described, const std::string& name) {
  RunConfig config;
  config.name = name;
  config.model = described.model;
  config.train.block = std::min(described.positions, kLongestBlock);
  config.train.sample.length = 0;
  return config;
}

}  // namespace

ImportReport import_folder(const ImportCommand& command) {
  const fs::path folder = command.folder;
  if (!fs::is_directory(folder)) io_error(command.folder, ": no such folder");
  if (!fs::exists(folder / "config.json")) {
    throw Error(Exit::kBadInput, str(command.folder, ": not a Hugging Face folder: it has no config.json"),
                "a folder as transformers' save_pretrained writes it");
  }
  const fs::path config_file = folder / "config.json";
  const Described described = read_config(read_json_file(config_file, kConfigLimits), config_file.string());
  const Weights weights = Weights::open(folder);
  const auto tokenizer = find_tokenizer(command);
  RMOE_CHECK(tokenizer->vocab_size() <= described.model.vocab_size, command.folder, ": the tokenizer has ",
             tokenizer->vocab_size(), " ids, but 'vocab_size' in config.json is ", described.model.vocab_size);

  io::Staging staging(command.out);
  io::CheckpointWriter writer(staging.dir(), 0);
  weights_to_run(weights, described, writer.file("model.safetensors"));
  write_file_atomic(writer.file("state.json"), io::untrained_state());
  writer.commit();
  fs::path name = fs::absolute(folder).lexically_normal();
  if (name.filename().empty()) name = name.parent_path();
  const RunConfig config = run_config(described, name.filename().string());
  write_file_atomic(staging.dir() / "config.toml", to_toml(config));
  tokenizer->save(staging.dir());
  fs::create_directory(staging.dir() / kCarriedFolder);
  carry(folder, staging.dir() / kCarriedFolder);
  staging.commit();

  const ModelSize size = model_size(config.model, config.train.block);
  return {.run = command.out,
          .model_type = enum_name(described.type),
          .params = size.params,
          .active_params = size.active_params,
          .tokenizer = tokenizer->describe()};
}

}  // namespace rmoe::hf
