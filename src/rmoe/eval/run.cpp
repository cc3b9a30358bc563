// Loading of runs: see run.h.
#include "rmoe/eval/run.h"

#include <charconv>

#include "rmoe/base/config.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/data/hash.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/tensor_file.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;
constexpr const char* kRunHelp = "a run folder is what `rmoe train CONFIG.toml --out FOLDER` writes";

void check_folder(const fs::path& dir) {
  if (!fs::exists(dir)) throw Error(Exit::kIo, str(dir.string(), ": no such run folder"), kRunHelp);
  if (!fs::exists(dir / "config.toml")) {
    throw Error(Exit::kBadInput, str(dir.string(), ": not a run folder: it has no config.toml"), kRunHelp);
  }
}

io::Checkpoint newest(const fs::path& dir) {
  std::string first_reason;
  const auto found = io::newest_valid(dir, [&](const fs::path&, const std::string& reason) {
    log_warn(reason, "; this checkpoint is skipped");
    if (first_reason.empty()) first_reason = reason;
  });
  if (found) return *found;
  if (first_reason.empty()) input_error(dir.string(), ": the run has no checkpoint yet");
  input_error(dir.string(), ": no whole checkpoint is left: ", first_reason);
}

io::Checkpoint at_step(const fs::path& dir, int64_t step) {
  io::Checkpoint checkpoint{.step = step, .dir = io::checkpoint_dir(dir, step), .manifest = {}};
  if (!fs::exists(checkpoint.dir)) {
    const std::vector<int64_t> steps = io::list_checkpoints(dir);
    throw Error(Exit::kBadInput, str(dir.string(), ": no checkpoint of step ", step),
                steps.empty() ? "the run has no checkpoint yet" : str("there are checkpoints of the steps ", steps));
  }
  checkpoint.manifest = io::verify(checkpoint.dir);
  return checkpoint;
}

// The member "best": {"step": N} of a JSON file; nothing when the file or the member is not there.
std::optional<int64_t> best_step(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  const Json json = read_json_file(file);
  if (!json.is_object() || !json.contains("best") || !json["best"].is_object()) return std::nullopt;
  const Json& best = json["best"];
  if (!best.contains("step") || best["step"].is_null()) return std::nullopt;
  return json_int(best, "step", file.string());
}

io::Checkpoint best(const fs::path& dir) {
  std::optional<int64_t> step = best_step(dir / "summary.json");
  if (!step) step = best_step(newest(dir).dir / "state.json");
  RMOE_CHECK(step, dir.string(), ": the run names no best checkpoint: it was not evaluated yet");
  return at_step(dir, *step);
}

io::Checkpoint choose(const fs::path& dir, Which which) {
  switch (which.kind) {
    case Which::Kind::kNewest:
      return newest(dir);
    case Which::Kind::kBest:
      return best(dir);
    case Which::Kind::kStep:
      break;
  }
  return at_step(dir, which.step);
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code none;
  return fs::equivalent(a, b, none);
}

SplitFile split_file(const LoadedRun& run, const std::string& data, const std::string& split) {
  const fs::path trained_on = run.config.data.path;
  if (data.empty()) {
    RMOE_CHECK(!trained_on.empty(), run.dir.string(),
               run.config.data.instruct.given() ? ": was trained on instructions, not on text"
                                                : ": was made from other weights and has no text of its own",
               "; name the data with --data");
    if (!fs::is_directory(trained_on)) {
      throw Error(Exit::kIo, str(run.dir.string(), ": the data it was trained on is not there: ", trained_on.string()),
                  "run from the folder where it was trained, or name the data with --data");
    }
    return {trained_on / (split + ".tok"), split, true};
  }
  if (!fs::exists(data)) io_error(data, ": no such data folder or token file");
  if (fs::is_directory(data)) return {fs::path(data) / (split + ".tok"), split, same_file(data, trained_on)};
  const fs::path file = data;
  const std::string stem = file.stem().string();
  return {file, stem, file.extension() == ".tok" && same_file(file, trained_on / (stem + ".tok"))};
}

// What the folder that the run was imported from says about texts.
void read_carried(LoadedRun& run) {
  const fs::path folder = run.dir / "hf";
  run.context = run.config.train.block;
  const fs::path config = folder / "config.json";
  if (!fs::exists(config)) return;
  for (const int64_t positions : json_ints(read_json_file(config), "max_position_embeddings", config.string())) {
    run.context = positions;
  }
  // As transformers: what config.json says counts where there is no generation_config.json.
  const fs::path generation = folder / "generation_config.json", source = fs::exists(generation) ? generation : config;
  for (const int64_t id : json_ints(read_json_file(source), "eos_token_id", source.string())) run.ends.push_back(id);
}

}  // namespace

SplitFile find_split(const LoadedRun& run, const std::string& data, const std::string& split) {
  SplitFile file = split_file(run, data, split);
  if (!fs::exists(file.path)) io_error(file.path.string(), ": no such token file");
  return file;
}

at::ScalarType compute_in(LoadedRun& run, std::optional<Precision> wish) {
  const Precision precision = wish.value_or(run.config.train.dtype);
  const at::Device device = run.model->device();
  // What was trained in TF32 is read in fp32 elsewhere.
  allow_tf32(precision == Precision::kTf32 && device.is_cuda(), device);
  if (precision != Precision::kBf16) return at::kFloat;
  store_weights_as(run.params, at::kBFloat16);
  return at::kBFloat16;
}

Which Which::parse(std::string_view text) {
  if (text == "newest") return {Kind::kNewest, 0};
  if (text == "best") return {Kind::kBest, 0};
  int64_t step = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, failed] = std::from_chars(text.data(), end, step);
  RMOE_CHECK(failed == std::errc() && rest == end && step >= 0, "checkpoint '", text,
             "': expected newest, best or the number of a step");
  return {Kind::kStep, step};
}

FoundRun find_run(const fs::path& dir, Which which) {
  check_folder(dir);
  FoundRun run;
  run.config = load_config<RunConfig>(dir / "config.toml", {});
  run.checkpoint = choose(dir, which);
  run.tokenizer = data::Tokenizer::load(dir);
  ModelConfig& model = run.config.model;
  if (model.vocab_size == 0) model.vocab_size = run.tokenizer->vocab_size();
  RMOE_CHECK(run.tokenizer->vocab_size() <= model.vocab_size, (dir / "tokenizer.json").string(), ": has ",
             run.tokenizer->vocab_size(), " ids but the model has ", model.vocab_size);
  return run;
}

LoadedRun load_run(const fs::path& dir, Which which, const std::string& device) {
  FoundRun found = find_run(dir, which);
  LoadedRun run;
  run.dir = dir;
  run.step = found.checkpoint.step;
  run.config = std::move(found.config);
  run.tokenizer = std::move(found.tokenizer);
  run.params = ParamTable(static_cast<uint64_t>(run.config.train.seed), at::kFloat, device_named(device));
  run.model = make_model(run.config.model, run.params);
  load_tensors(found.checkpoint.dir / "model.safetensors", run.params.stored());
  read_carried(run);
  return run;
}

void check_data(const LoadedRun& run, const data::TokenFile& tokens) {
  const uint64_t expected = run.tokenizer->hash(), found = tokens.header().tokenizer_hash;
  if (found == expected) return;
  throw Error(Exit::kBadInput,
              str(tokens.path().string(), ": made by a tokenizer other than the run's: hash ", data::hex16(found), ", ",
                  (run.dir / "tokenizer.json").string(), " has ", data::hex16(expected)),
              "prepare the text with the run's own tokenizer; `rmoe data prepare --help` shows how");
}

}  // namespace rmoe
