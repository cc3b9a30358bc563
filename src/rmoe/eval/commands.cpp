// The commands' work: see commands.h.
#include "rmoe/eval/commands.h"

#include <cmath>
#include <iomanip>
#include <numbers>
#include <numeric>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/generate.h"
#include "rmoe/eval/run.h"
#include "rmoe/ops/runtime.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;

struct SplitFile {
  fs::path path;
  std::string split;
  bool own = false;  // of the data that the run was trained on
};

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code none;
  return fs::equivalent(a, b, none);
}

// The instruction file that the command means; nothing: a token file.
std::optional<fs::path> find_instructions(const LoadedRun& run, const EvalCommand& command) {
  if (!command.data.empty()) {
    const fs::path data = command.data;
    if (fs::is_directory(data) || data.extension() == ".tok") return {};
    if (!fs::exists(data)) io_error(data.string(), ": no such data folder, token file or instruction file");
    return data;
  }
  const InstructConfig& instruct = run.config.data.instruct;
  if (!instruct.given()) return {};
  RMOE_CHECK(command.split != "test", command.run, ": instruction data have no split 'test', expected train or valid");
  const fs::path file = command.split == "valid" && !instruct.valid.empty() ? instruct.valid : instruct.train;
  if (!fs::exists(file)) {
    throw Error(Exit::kIo, str(command.run, ": the data it was trained on is not there: ", file.string()),
                "run from the folder where it was trained, or name the data with --data");
  }
  return file;
}

// Of the run's own file where no other is named: its split.
data::InstructionSet read_split(const LoadedRun& run, const EvalCommand& command, const fs::path& file,
                                int64_t block) {
  InstructConfig config = run.config.data.instruct;
  if (!command.data.empty()) return data::read_instructions(file, *run.tokenizer, config, block);
  auto data = data::read_instructions(config, *run.tokenizer, block);
  return command.split == "valid" ? std::move(data.valid) : std::move(data.train);
}

SplitFile find_data(const LoadedRun& run, const EvalCommand& command) {
  const fs::path trained_on = run.config.data.path;
  if (command.data.empty()) {
    if (!fs::is_directory(trained_on)) {
      throw Error(Exit::kIo, str(command.run, ": the data it was trained on is not there: ", trained_on.string()),
                  "run from the folder where it was trained, or name the data with --data");
    }
    return {trained_on / (command.split + ".tok"), command.split, true};
  }
  const fs::path data = command.data;
  if (!fs::exists(data)) io_error(data.string(), ": no such data folder or token file");
  if (fs::is_directory(data)) return {data / (command.split + ".tok"), command.split, same_file(data, trained_on)};
  const std::string split = data.stem().string();
  return {data, split, data.extension() == ".tok" && same_file(data, trained_on / (split + ".tok"))};
}

// The dtype to compute in, `wish` or else the run's; the run's weights are then kept for it.
at::ScalarType compute_in(LoadedRun& run, std::optional<Precision> wish) {
  if (wish.value_or(run.config.train.dtype) != Precision::kBf16) return at::kFloat;
  store_weights_as(run.params, at::kBFloat16);
  return at::kBFloat16;
}

std::string progress_line(const EvalResult& so_far, int64_t total, const std::string& split,
                          const data::TokenHeader& header) {
  const double done = static_cast<double>(so_far.tokens) / static_cast<double>(total);
  std::ostringstream line;
  line << std::fixed << "eval " << split << "  " << std::setprecision(0) << std::setw(3) << 100 * done << " %";
  if (const double bits = bits_per_character(so_far, header); std::isfinite(bits)) {
    line << "  " << std::setprecision(4) << bits << " bits per character";
  } else {
    line << "  perplexity " << std::setprecision(3) << perplexity(so_far);
  }
  line << "  " << std::setprecision(0) << static_cast<double>(so_far.tokens) / so_far.seconds << " tokens/s, "
       << so_far.seconds * (1 / done - 1) << " s left";
  return std::move(line).str();
}

std::optional<double> finite(double value) { return std::isfinite(value) ? std::optional(value) : std::nullopt; }

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

std::vector<std::vector<double>> fractions(const std::vector<std::vector<int64_t>>& counts) {
  std::vector<std::vector<double>> result;
  for (const auto& layer : counts) {
    const auto total = static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0}));
    auto& row = result.emplace_back();
    for (const int64_t count : layer) row.push_back(static_cast<double>(count) / total);
  }
  return result;
}

}  // namespace

Json EvalReport::json() const {
  return Json{{"split", split},
              {"checkpoint_step", checkpoint_step},
              {"tokens", tokens},
              {"characters", characters > 0 ? Json(characters) : Json()},
              {"words", words > 0 ? Json(words) : Json()},
              {"nats", nats},
              {"bits_per_character", or_null(bits_per_character)},
              {"perplexity", perplexity},
              {"word_perplexity", or_null(word_perplexity)},
              {"causal", causal},
              {"load_imbalance", or_null(load_imbalance)},
              {"dead_experts", dead_experts},
              {"gate_entropy", or_null(gate_entropy)},
              {"expert_fraction", expert_fraction},
              {"seconds", seconds},
              {"tokens_per_s", static_cast<double>(tokens) / seconds}};
}

namespace {

void warn_of_routing(const LoadedRun& run, EvalReport& report) {
  report.causal = run.model->routing().causal();
  if (report.causal) return;
  log_warn(run.dir.string(), ": selection '", run.config.model.moe.selection.kind(),
           "' sees tokens to come, or their place in a batch: the result says nothing about writing");
}

// What does not depend on the kind of data.
void put_result(EvalReport& report, const LoadedRun& run, const EvalResult& result) {
  report.checkpoint_step = run.step;
  report.tokens = result.tokens;
  report.nats = result.nats;
  report.perplexity = perplexity(result);
  report.load_imbalance = finite(routing::load_imbalance(result.routing.counts));
  report.gate_entropy = finite(result.routing.mean_entropy());
  report.dead_experts = routing::dead_experts(result.routing.counts);
  for (const auto& layer : result.routing.counts) report.experts += std::ssize(layer);
  report.expert_fraction = fractions(result.routing.counts);
  report.seconds = result.seconds;
}

void write_report(EvalReport& report, const LoadedRun& run) {
  const fs::path path = run.dir / "eval" / (report.split + ".json");
  std::error_code failed;
  fs::create_directories(path.parent_path(), failed);
  if (failed) io_error(path.parent_path().string(), ": cannot make the folder: ", failed.message());
  write_file_atomic(path, json_text(report.json(), 1) + "\n");
  report.written = path.string();
}

EvalReport eval_instructions(const LoadedRun& run, const EvalCommand& command, const fs::path& file,
                             at::ScalarType dtype) {
  const int64_t block = command.block > 0 ? command.block : run.config.train.block;
  const data::InstructionSet set = read_split(run, command, file, block);
  if (set.without_answer > 0) log_warn(set.first_without_answer, ": no answer; left out, ", set.without_answer, " in all");
  if (set.too_long > 0) {
    log_warn(set.first_too_long, ": longer than ", block, " + 1 tokens; left out, ", set.too_long, " in all");
  }
  EvalReport report;
  report.run = command.run;
  report.split = command.data.empty() ? command.split : file.stem().string();
  report.data = file.string();
  warn_of_routing(run, report);
  Progress progress;
  const EvalResult result =
      evaluate_instructions(*run.model, set,
                            {.batch = command.batch,
                             .max_tokens = command.tokens,
                             .dtype = dtype,
                             .progress = [&](const EvalResult& so_far, int64_t total) {
                               if (progress.due()) progress.update(progress_line(so_far, total, report.split, {}));
                             }});
  put_result(report, run, result);
  const double characters = set.characters_per_token() * static_cast<double>(result.tokens);
  report.characters = std::llround(characters);
  report.bits_per_character = finite(result.nats / std::numbers::ln2 / characters);
  if (command.data.empty() && block == run.config.train.block && result.tokens == set.answer_tokens()) {
    write_report(report, run);
  }
  return report;
}

}  // namespace

EvalReport run_eval(const EvalCommand& command) {
  configure_runtime(command.threads);
  LoadedRun run = load_run(command.run, Which::parse(command.checkpoint));
  const at::ScalarType dtype = compute_in(run, command.dtype);
  if (const auto instructions = find_instructions(run, command)) {
    return eval_instructions(run, command, *instructions, dtype);
  }
  const SplitFile data = find_data(run, command);
  if (!fs::exists(data.path)) io_error(data.path.string(), ": no such token file");
  const auto tokens = data::TokenFile::open(data.path);
  check_data(run, tokens);

  EvalReport report;
  warn_of_routing(run, report);
  Progress progress;
  const EvalResult result = evaluate(*run.model, tokens,
                                     {.block = command.block > 0 ? command.block : run.config.train.block,
                                      .batch = command.batch,
                                      .max_tokens = command.tokens,
                                      .dtype = dtype,
                                      .progress = [&](const EvalResult& so_far, int64_t total) {
                                        if (progress.due())
                                          progress.update(progress_line(so_far, total, data.split, tokens.header()));
                                      }});

  report.run = command.run;
  report.split = data.split;
  report.data = data.path.string();
  put_result(report, run, result);
  report.characters = std::llround(predicted_characters(result, tokens.header()));
  report.words = std::llround(predicted_words(result, tokens.header()));
  report.bits_per_character = finite(bits_per_character(result, tokens.header()));
  report.word_perplexity = finite(word_perplexity(result, tokens.header()));
  if (data.own && result.tokens == tokens.size() - 1) write_report(report, run);
  return report;
}

GenerateReport run_generate(const GenerateCommand& command, const std::function<bool(std::string_view)>& on_text) {
  command.sampling.validate();
  configure_runtime(command.threads);
  LoadedRun run = load_run(command.run, Which::parse(command.checkpoint));
  const at::ScalarType dtype = compute_in(run, command.dtype);
  const GeneratedText generated = generate_text(*run.model, *run.tokenizer, command.prompt,
                                                {.max_new = command.tokens,
                                                 .temperature = command.sampling.temperature,
                                                 .top_k = command.sampling.top_k,
                                                 .top_p = command.sampling.top_p,
                                                 .seed = static_cast<uint64_t>(command.seed),
                                                 .dtype = dtype,
                                                 .stops = command.stops},
                                                on_text);
  GenerateReport report;
  report.text = generated.text;
  report.prompt_tokens = generated.prompt_tokens;
  report.tokens = generated.tokens;
  report.ending = enum_name(generated.ending);
  report.tokens_per_s = generated.seconds > 0 ? static_cast<double>(generated.tokens) / generated.seconds : 0;
  report.checkpoint_step = run.step;
  return report;
}

}  // namespace rmoe
