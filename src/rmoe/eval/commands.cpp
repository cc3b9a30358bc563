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
#include "rmoe/data/file_reader.h"
#include "rmoe/data/hash.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/generate.h"
#include "rmoe/eval/logits.h"
#include "rmoe/eval/run.h"
#include "rmoe/eval/trace.h"
#include "rmoe/ops/runtime.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;

// The instruction file that the command means; nothing: a token file.
std::optional<fs::path> find_instructions(const LoadedRun& run, const EvalCommand& command) {
  if (!command.data.empty()) {
    const fs::path file = command.data;
    const fs::path kind = fs::path(data::without_compression(file.string())).extension();
    if (fs::is_directory(file) || (kind != ".jsonl" && kind != ".json")) return {};
    if (!fs::exists(file)) io_error(file.string(), ": no such instruction file");
    return file;
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
data::InstructionSet read_split(const LoadedRun& run, const EvalCommand& command, const fs::path& file, int64_t block) {
  InstructConfig config = run.config.data.instruct;
  if (!command.data.empty()) return data::read_instructions(file, *run.tokenizer, config, block);
  auto data = data::read_instructions(config, *run.tokenizer, block);
  return command.split == "valid" ? std::move(data.valid) : std::move(data.train);
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

// What a trace says of where it comes from.
Json trace_info(const char* source, const LoadedRun& run, const std::string& data, const data::TokenHeader* header) {
  return {{"source", source},
          {"run", run.dir.string()},
          {"step", run.step},
          {"tokenizer_hash", data::hex16(run.tokenizer->hash())},
          {"data", data.empty() ? Json() : Json(data)},
          {"data_hash", header ? Json(data::hex16(header->payload_hash)) : Json()}};
}

void check_replayed_text(const Replay& replay, const data::TokenFile& tokens) {
  const Json& info = replay.file().info();
  const std::string recorded =
      info.value("data_hash", Json()).is_string() ? info.at("data_hash").get<std::string>() : "";
  const std::string here = data::hex16(tokens.header().payload_hash);
  RMOE_CHECK(recorded == here, replay.file().path().string(), ": a trace of another text: hash ",
             recorded.empty() ? "unknown" : recorded, ", ", tokens.path().string(), " has ", here);
}

// The checkpoint that was recorded: its choices may be forced on another.
int64_t replay_step(const Replay& replay) {
  return json_int(replay.file().info(), "step", replay.file().path().string() + ": trailer");
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

// What goes by a token's position in a split: samples have none.
void refuse_on_instructions(const EvalCommand& command, const fs::path& file) {
  const char* const asked = !command.trace.file.empty()     ? "--trace"
                            : !command.trace.replay.empty() ? "--replay"
                            : !command.logits.empty()       ? "--logits"
                                                            : nullptr;
  if (!asked) return;
  throw Error(Exit::kBadInput,
              str("eval: ", asked, " goes by positions in a token file, and ", file.string(), " holds instructions"),
              "name a data folder or a token file with --data");
}

EvalReport eval_instructions(const LoadedRun& run, const EvalCommand& command, const fs::path& file,
                             at::ScalarType dtype) {
  const int64_t block = command.block > 0 ? command.block : run.config.train.block;
  const data::InstructionSet set = read_split(run, command, file, block);
  if (set.without_answer > 0)
    log_warn(set.first_without_answer, ": no answer; left out, ", set.without_answer, " in all");
  if (set.too_long > 0) {
    log_warn(set.first_too_long, ": longer than ", block, " + 1 tokens; left out, ", set.too_long, " in all");
  }
  EvalReport report;
  report.run = command.run;
  report.split = command.data.empty() ? command.split : file.stem().string();
  report.data = file.string();
  warn_of_routing(run, report);
  Progress progress;
  const EvalResult result = evaluate_instructions(*run.model, set,
                                                  {.batch = command.batch,
                                                   .max_tokens = command.tokens,
                                                   .dtype = dtype,
                                                   .progress = [&](const EvalResult& so_far, int64_t total) {
                                                     if (progress.due())
                                                       progress.update(progress_line(so_far, total, report.split, {}));
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
  LoadedRun run = load_run(command.run, Which::parse(command.checkpoint), command.device);
  const at::ScalarType dtype = compute_in(run, command.dtype);
  if (const auto instructions = find_instructions(run, command)) {
    refuse_on_instructions(command, *instructions);
    return eval_instructions(run, command, *instructions, dtype);
  }
  const SplitFile data = find_split(run, command.data, command.split);
  const auto tokens = data::TokenFile::open(data.path);
  check_data(run, tokens);

  if (!command.logits.empty()) {
    check_writable(command.logits);
    write_logits(*run.model, tokens,
                 {.block = command.block > 0 ? command.block : run.config.train.block,
                  .max_tokens = command.tokens,
                  .dtype = dtype},
                 command.logits);
  }

  EvalReport report;
  warn_of_routing(run, report);
  std::optional<TraceRecorder> recorder;
  std::optional<Replay> replay;
  if (!command.trace.file.empty()) {
    recorder.emplace(command.trace, *run.model, trace_info("eval", run, data.path.string(), &tokens.header()));
  }
  if (!command.trace.replay.empty()) {
    replay.emplace(command.trace.replay, *run.model);
    check_replayed_text(*replay, tokens);
  }
  Progress progress;
  EvalOptions options{.block = command.block > 0 ? command.block : run.config.train.block,
                      .batch = command.batch,
                      .max_tokens = command.tokens,
                      .dtype = dtype,
                      .progress = [&](const EvalResult& so_far, int64_t total) {
                        if (progress.due()) progress.update(progress_line(so_far, total, data.split, tokens.header()));
                      }};
  if (recorder) {
    options.watch = [&](const EvalPiece& piece) {
      recorder->add(piece.forward.trace, piece.tokens_T, piece.positions_T, run.step);
    };
  }
  if (replay) {
    options.replay = [&](const Tensor& tokens_T, const Tensor& positions_T) {
      return replay->choices(tokens_T, positions_T, replay_step(*replay));
    };
  }
  const EvalResult result = evaluate(*run.model, tokens, options);
  if (recorder) recorder->finish();

  report.run = command.run;
  report.split = data.split;
  report.data = data.path.string();
  put_result(report, run, result);
  report.characters = std::llround(predicted_characters(result, tokens.header()));
  report.words = std::llround(predicted_words(result, tokens.header()));
  report.bits_per_character = finite(bits_per_character(result, tokens.header()));
  report.word_perplexity = finite(word_perplexity(result, tokens.header()));
  // With forced choices it is no measurement of the run.
  if (data.own && result.tokens == tokens.size() - 1 && !replay) write_report(report, run);
  return report;
}

GenerateReport run_generate(const GenerateCommand& command, const std::function<bool(std::string_view)>& on_text) {
  command.sampling.validate();
  configure_runtime(command.threads);
  LoadedRun run = load_run(command.run, Which::parse(command.checkpoint), command.device);
  const at::ScalarType dtype = compute_in(run, command.dtype);
  std::optional<TraceRecorder> recorder;
  std::optional<Replay> replay;
  if (!command.trace.file.empty())
    recorder.emplace(command.trace, *run.model, trace_info("generate", run, "", nullptr));
  if (!command.trace.replay.empty()) replay.emplace(command.trace.replay, *run.model);
  TextOptions options{.max_new = command.tokens,
                      .temperature = command.sampling.temperature,
                      .top_k = command.sampling.top_k,
                      .top_p = command.sampling.top_p,
                      .seed = static_cast<uint64_t>(command.seed),
                      .dtype = dtype,
                      .stops = command.stops,
                      .ends = run.ends};
  if (recorder) {
    options.watch = [&](const ForwardResult& forward, const Tensor& tokens_T, const Tensor& positions_T) {
      recorder->add(forward.trace, tokens_T, positions_T, run.step);
    };
  }
  if (replay) {
    options.replay = [&](const Tensor& tokens_T, const Tensor& positions_T) {
      return replay->choices(tokens_T, positions_T, replay_step(*replay));
    };
  }
  const GeneratedText generated =
      generate_text(*run.model, *run.tokenizer, prompt_ids(*run.tokenizer, command.prompt), options, on_text);
  if (recorder) recorder->finish();
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
