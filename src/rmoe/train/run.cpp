#include "rmoe/train/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <numeric>
#include <variant>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/base/process.h"
#include "rmoe/base/rng.h"
#include "rmoe/data/hash.h"
#include "rmoe/data/instructions.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/generate.h"
#include "rmoe/eval/run.h"
#include "rmoe/eval/trace.h"
#include "rmoe/hf/carried.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/io/metrics.h"
#include "rmoe/io/tensorboard.h"
#include "rmoe/kernels/cpu/isa.h"
#include "rmoe/models/size.h"
#include "rmoe/ops/device.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/train/machine.h"
#include "rmoe/train/plan.h"
#include "rmoe/train/resume.h"
#include "rmoe/train/signals.h"
#include "rmoe/train/trainer.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(std::max(seconds, 0.0));
  if (s < 60) return str(s, "s");
  if (s < 3600) return str(s / 60, "m", s % 60, "s");
  return str(s / 3600, "h", s / 60 % 60, "m");
}

// What a run trains and is evaluated on: token files, or instructions with their answers.
struct RunData {
  struct Texts {
    data::TokenFile train, valid;
  };
  struct Answers {
    std::shared_ptr<const data::InstructionSet> train, valid;
  };
  std::variant<Texts, Answers> splits;
  std::unique_ptr<data::Tokenizer> tokenizer;

  // `out`: the run folder; a run that goes on has its tokenizer there.
  RunData(const RunConfig& config, const fs::path& out)
      : splits(Answers{}), tokenizer(data::Tokenizer::load(tokenizer_folder(config, out))) {
    if (config.data.instruct.given()) {
      auto data = data::read_instructions(config.data.instruct, *tokenizer, config.train.block);
      splits = Answers{std::make_shared<const data::InstructionSet>(std::move(data.train)),
                       std::make_shared<const data::InstructionSet>(std::move(data.valid))};
      return;
    }
    const fs::path dir = config.data.path;
    const Texts texts{open(dir, "train.tok"), open(dir, "valid.tok")};
    for (const data::TokenFile* file : {&texts.train, &texts.valid}) {
      RMOE_CHECK(file->header().tokenizer_hash == tokenizer->hash(), file->path().string(),
                 ": was not made with the tokenizer.json beside it");
    }
    splits = texts;
  }

  // Instructions are read by the tokenizer of the run that training starts from, or of the data folder named beside.
  static fs::path tokenizer_folder(const RunConfig& config, const fs::path& out) {
    if (!config.data.instruct.given()) {
      open(config.data.path, "train.tok");  // what is missing is said of the data first
      return config.data.path;
    }
    if (!io::list_checkpoints(out).empty() && fs::exists(out / "tokenizer.json")) return out;
    const fs::path folder = config.train.init.empty() ? config.data.path : config.train.init;
    if (folder.empty()) {
      throw Error(Exit::kBadInput,
                  "train: data.instruct.train needs a tokenizer, and there is neither train.init nor data.path",
                  "--init RUN takes a run's weights and tokenizer");
    }
    return folder;
  }

  const Texts* texts() const { return std::get_if<Texts>(&splits); }
  const Answers* answers() const { return std::get_if<Answers>(&splits); }

  int64_t train_tokens() const { return texts() ? texts()->train.size() : answers()->train->tokens(); }
  double characters_per_token() const {
    if (answers()) return answers()->train->characters_per_token();
    const data::TokenHeader& header = texts()->train.header();
    return header.count > 0 ? static_cast<double>(header.characters) / static_cast<double>(header.count) : 0;
  }
  // What samples continue where the config names nothing: the validation split's start.
  std::string prompt() const {
    if (answers()) return data::question_text(answers()->valid->samples.front(), *tokenizer);
    const data::TokenFile& valid = texts()->valid;
    std::vector<int64_t> ids(static_cast<size_t>(std::min<int64_t>(32, valid.size())));
    valid.read(0, static_cast<int64_t>(ids.size()), ids.data());
    return tokenizer->decode(ids);
  }

  static data::TokenFile open(const fs::path& dir, const char* name) {
    if (!fs::exists(dir / name)) {
      throw Error(Exit::kIo, str((dir / name).string(), ": there is no such file"),
                  "data.path is a folder made by `rmoe data prepare`, with a training and a validation split");
    }
    return data::TokenFile::open(dir / name);
  }
};

// What no setting can make fit is refused before it is allocated.
void check_memory(const RunConfig& config) {
  const int64_t params = model_size(config.model, config.train.block).params, memory = memory_total_bytes();
  // Frozen parameters have neither gradients nor moments; how many there are is seen when the model is made.
  if (memory <= 0 || params <= memory / kTrainingBytesPerParameter || !config.train.freeze.empty()) return;
  throw Error(Exit::kBadInput,
              str("train: ", params, " parameters with gradients and moments take ", kTrainingBytesPerParameter,
                  " bytes each, which is more than this machine's ", human_bytes(memory)),
              "make the model smaller; `rmoe config check` counts its parameters");
}

// One run in its folder. Everything a resumed run needs to go on exactly is in the trainer's tensors and state().
class Run {
 public:
  Run(const RunConfig& config, fs::path out, RunData data)
      : config_(config),
        out_(std::move(out)),
        data_(std::move(data)),
        size_(model_size(config.model, config.train.block)),
        trainer_(make_trainer(config, data_)),
        characters_per_token_(data_.characters_per_token()) {}

  const RunData& data() const { return data_; }

  void start_from(const io::Checkpoint& checkpoint) {
    trainer_.start_from(checkpoint.dir);
    log_info("weights from ", checkpoint.dir.string());
  }

  void resume(const io::Checkpoint& checkpoint) {
    trainer_.load(checkpoint.dir, checkpoint.step);
    const Json state = read_json_file(checkpoint.dir / "state.json");
    seconds_before_ = state.at("seconds").get<double>();
    const Json& best = state.at("best");
    best_step_ = best.at("step").get<int64_t>();
    if (!best.at("loss").is_null()) best_loss_ = best.at("loss").get<double>();
    if (!best.at("bits").is_null()) best_bits_ = best.at("bits").get<double>();
    rates_ = state.at("rates").get<std::vector<double>>();
    if (state.contains("sums")) window_ = StepSums::from_json(state.at("sums"));
    saved_step_ = checkpoint.step;
  }

  // The trace starts where this process does.
  void trace(const TraceOptions& options) {
    if (!options.replay.empty()) {
      replay_.emplace(options.replay, trainer_.model());
      trainer_.replay = [this](const Tensor& tokens_T, const Tensor& positions_T) {
        return replay_->choices(tokens_T, positions_T, trainer_.steps_done());
      };
    }
    if (options.file.empty()) return;
    recorder_.emplace(options, trainer_.model(),
                      Json{{"source", "train"},
                           {"run", out_.string()},
                           {"step", trainer_.steps_done()},
                           {"tokenizer_hash", data::hex16(data_.tokenizer->hash())},
                           {"data", data_.texts()->train.path().string()},
                           {"data_hash", data::hex16(data_.texts()->train.header().payload_hash)}});
    trainer_.watch = [this, every = options.every](const routing::RoutingTrace& trace, const Tensor& tokens_T,
                                                   const Tensor& positions_T) {
      if (trainer_.steps_done() % every == 0) recorder_->add(trace, tokens_T, positions_T, trainer_.steps_done());
    };
  }

  TrainReport train() {
    const StopSignals signals;
    metrics_.emplace(out_ / "metrics.jsonl");
    metrics_->truncate_after(trainer_.steps_done());
    const bool resumed = trainer_.steps_done() > 0;
    events_.emplace(out_ / "tensorboard", resumed ? std::optional<int64_t>(trainer_.steps_done() + 1) : std::nullopt);
    peak_ = measured_peak_flops(config_.train.dtype, device());
    announce(resumed);
    started_ = Clock::now();
    last_save_ = started_;

    std::string stop = budget_used();
    {
      Progress progress;
      while (stop.empty() && !signals.received()) {
        step(progress);
        stop = budget_used();
      }
      collect();
      progress.finish(progress_line());
    }
    if (recorder_) recorder_->finish();
    const bool finished = !stop.empty();
    if (finished) {
      finish_line();
      if (evaluated_step_ != trainer_.steps_done()) evaluate();
    }
    if (saved_step_ != trainer_.steps_done()) save();
    if (finished) {
      sample("final.txt");
    } else {
      log_info("stopped by a signal, saved at step ", trainer_.steps_done(), "; the same command goes on from there");
    }
    write_summary(finished, finished ? stop : "signal");
    return {trainer_.steps_done(), valid_bits_, !stop.empty(), stop.empty() ? signals.received() : 0};
  }

 private:
  static Trainer make_trainer(const RunConfig& config, const RunData& data) {
    return data.texts() ? Trainer(config, data.texts()->train) : Trainer(config, data.answers()->train);
  }

  at::Device device() const { return trainer_.model().device(); }

  // Bits per character from nats per token; NaN (null in files) where characters are unknown.
  static double bits(double nats, double characters_per_token) {
    return nats / std::numbers::ln2 / characters_per_token;
  }

  void announce(bool resumed) const {
    const MoeConfig& moe = config_.model.moe;
    log_info(
        config_.name.empty() ? "model" : config_.name, ": ", enum_name(config_.model.family), ", ",
        config_.model.moe_layers() == 0 ? "dense" : str("stage ", moe.stage.kind(), ", router ", moe.router.kind()),
        ", ", size_.params, " parameters (", size_.active_params, " active per token), ",
        enum_name(config_.train.dtype), ", ",
        device().is_cpu() ? str(at::get_num_threads(), " threads, kernels for ", kernels::isa_name(kernels::cpu_isa()))
                          : str("on ", device().str()));
    if (const auto* answers = data_.answers()) {
      announce(*answers->train, "to train on");
      announce(*answers->valid, "to evaluate on");
    } else {
      log_info("data: ", config_.data.path, ", ", data_.train_tokens(), " training tokens, ",
               data_.tokenizer->describe());
    }
    const Frozen& frozen = trainer_.frozen();
    if (frozen.tensors > 0) {
      const auto routers = std::count(frozen.routers.begin(), frozen.routers.end(), true);
      log_info("frozen: ", frozen.tensors, " tensors of ", frozen.params, " parameters",
               routers == 0 || config_.train.balance_frozen
                   ? std::string()
                   : str("; no balance losses in ", routers, " of ", frozen.routers.size(), " MoE layers"));
    }
    if (config_.train.sample.length > 0 && !trainer_.model().routing().causal()) {
      log_info("no samples: selection '", config_.model.moe.selection.kind(), "' chooses among tokens to come");
    }
    if (resumed) log_info("resumed at step ", trainer_.steps_done(), " of ", config_.train.steps);
  }

  static void announce(const data::InstructionSet& set, const char* what) {
    log_info("data: ", set.path.string(), ", ", set.samples.size(), " samples ", what, ", ", set.tokens(), " tokens, ",
             set.answer_tokens(), " of them answers");
    if (set.without_answer > 0) {
      log_warn(set.first_without_answer, ": no answer; such samples are left out, ", set.without_answer, " in all");
    }
    if (set.too_long > 0) {
      log_warn(set.first_too_long, ": longer than train.block + 1 tokens; such samples are left out, ", set.too_long,
               " in all");
    }
    if (set.cut > 0) log_warn(set.path.string(), ": ", set.cut, " samples were cut to train.block + 1 tokens");
  }

  double seconds() const { return seconds_before_ + seconds_since(started_); }

  // Why the run is over, or nothing.
  std::string budget_used() const {
    const TrainConfig& t = config_.train;
    if (trainer_.steps_done() >= t.steps) return "steps";
    if (t.tokens > 0 && trainer_.tokens_done() >= t.tokens) return "tokens";
    if (t.minutes > 0 && seconds() >= 60 * t.minutes) return "minutes";
    return "";
  }

  void step(Progress& progress) {
    const auto begin = Clock::now();
    learning_rate_ = trainer_.learning_rate();
    trainer_.advance();
    ++timed_steps_;
    const TrainConfig& t = config_.train;
    const int64_t done = trainer_.steps_done();
    const auto due = [&](int64_t every) { return every > 0 && done % every == 0; };
    const bool by_time = t.checkpoint.minutes > 0 && seconds_since(last_save_) > 60 * t.checkpoint.minutes;
    const bool show = progress.due();
    // A device works on while nobody asks for its results.
    if (device().is_cpu() || due(t.log_every) || show || due(t.eval.every) || due(t.sample.every) || by_time ||
        due(t.checkpoint.every)) {
      collect();
    }
    step_seconds_ += seconds_since(begin);
    if (due(t.log_every)) log();
    if (show) progress.update(progress_line());
    bool better = false;
    if (due(t.eval.every)) better = evaluate();
    if (due(t.sample.every)) sample(str("step_", done, ".txt").c_str());
    if (better || by_time || due(t.checkpoint.every)) save();
  }

  // What the steps gave since the last call.
  void collect() {
    const StepSums sums = trainer_.take_sums();
    if (sums.steps == 0) return;
    window_.add(sums);
    last_ = sums;
    // A mean over the last 20 steps or so; dividing by the weight corrects for the start at 0.
    constexpr double kKeep = 0.95;
    const auto n = static_cast<double>(sums.steps);
    const double kept = std::pow(kKeep, n), taken = (1 - kept) / (1 - kKeep);
    loss_sum_ = kept * loss_sum_ + taken * sums.loss / n;
    loss_weight_ = kept * loss_weight_ + taken;
  }

  double tokens_per_second() const {
    const double tokens = static_cast<double>(timed_steps_ * config_.train.batch * config_.train.block);
    return step_seconds_ > 0 ? tokens / step_seconds_ : last_rate_;
  }

  // Share of the machine's peak: a training step counts as three forward passes.
  double peak_share() const { return peak_ > 0 ? tokens_per_second() * 3 * size_.forward_flops / peak_ : 0; }

  double done_share() const {
    const TrainConfig& t = config_.train;
    double share = static_cast<double>(trainer_.steps_done()) / static_cast<double>(t.steps);
    if (t.tokens > 0)
      share = std::max(share, static_cast<double>(trainer_.tokens_done()) / static_cast<double>(t.tokens));
    if (t.minutes > 0) share = std::max(share, seconds() / (60 * t.minutes));
    return std::min(share, 1.0);
  }

  std::string progress_line() const {
    const double share = done_share();
    // Of this process's part only, since a resumed run did not take its earlier time here.
    const double eta = share > 0 ? seconds() / share * (1 - share) : 0;
    std::string line = format("step %lld/%lld %3.0f%% ETA %s", static_cast<long long>(trainer_.steps_done()),
                              static_cast<long long>(config_.train.steps), 100 * share, duration_text(eta).c_str());
    const double loss = loss_weight_ > 0 ? loss_sum_ / loss_weight_ : 0;
    line += format(" | loss %.3f bpc %.3f", loss, bits(loss, characters_per_token_));
    const auto steps = static_cast<double>(std::max<int64_t>(last_.steps, 1));
    line += format(" | lr %.1e gnorm %.2f", learning_rate_, last_.gradient_norm / steps);
    if (config_.model.moe_layers() > 0) {
      line += format(" bal %.4f | imb %.2f dead %lld H %.2f", last_.balance / steps,
                     routing::load_imbalance(last_.routing.counts),
                     static_cast<long long>(routing::dead_experts(last_.routing.counts)), last_.routing.mean_entropy());
    }
    line += format(" | %.1fk tok/s %.0f%% peak %s", tokens_per_second() / 1000, 100 * peak_share(),
                   human_bytes(memory_now_bytes()).c_str());
    return line;
  }

  void log() {
    const auto n = static_cast<double>(std::max<int64_t>(window_.steps, 1));
    const double rate = tokens_per_second();
    const GradientSources& g = window_.gradients;
    const auto measured = [&](double sum) { return g.steps > 0 ? Json(sum / static_cast<double>(g.steps)) : Json(); };
    int64_t rows = 0;
    for (const auto& layer : window_.routing.counts) rows = std::accumulate(layer.begin(), layer.end(), rows);
    rows += window_.routing.dropped;
    const Json line = {{"kind", "train"},
                       {"step", trainer_.steps_done()},
                       {"tokens", trainer_.tokens_done()},
                       {"seconds", seconds()},
                       {"loss", window_.loss / n},
                       {"bpc", bits(window_.loss / n, characters_per_token_)},
                       {"lr", learning_rate_},
                       {"grad_norm", window_.gradient_norm / n},
                       {"balance_loss", window_.balance / n},
                       {"load_imbalance", routing::load_imbalance(window_.routing.counts)},
                       {"dead_experts", routing::dead_experts(window_.routing.counts)},
                       {"dropped_rows", window_.routing.dropped},
                       {"drop_ratio", static_cast<double>(window_.routing.dropped) / static_cast<double>(rows)},
                       {"router_grad_norm", measured(g.whole)},
                       {"router_grad_norm_lm", measured(g.lm)},
                       {"router_grad_norm_balance", measured(g.balance)},
                       {"gate_entropy", window_.routing.mean_entropy()},
                       {"tokens_per_s", rate},
                       {"peak_share", peak_share()},
                       {"memory_bytes", memory_now_bytes()}};
    metrics_->write(line);
    for (const char* key : {"loss", "bpc", "lr", "grad_norm", "balance_loss", "load_imbalance", "dead_experts",
                            "dropped_rows", "drop_ratio", "router_grad_norm", "router_grad_norm_lm",
                            "router_grad_norm_balance", "gate_entropy", "tokens_per_s", "peak_share", "memory_bytes"}) {
      if (!line.at(key).is_number()) continue;
      events_->add_scalar(str("train/", key), trainer_.steps_done(), line.at(key).get<double>());
    }
    rates_.push_back(rate);
    last_rate_ = rate;
    window_ = {};
    step_seconds_ = 0;
    timed_steps_ = 0;
  }

  // True when this is the best so far.
  bool evaluate() {
    const EvalOptions options{
        .block = config_.train.block, .max_tokens = config_.train.eval.tokens, .dtype = trainer_.dtype()};
    const auto* texts = data_.texts();
    const EvalResult result = texts ? rmoe::evaluate(trainer_.model(), texts->valid, options)
                                    : evaluate_instructions(trainer_.model(), *data_.answers()->valid, options);
    const double loss = result.nats / static_cast<double>(result.tokens);
    valid_bits_ = texts ? bits_per_character(result, texts->valid.header())
                        : bits(loss, data_.answers()->valid->characters_per_token());
    metrics_->write({{"kind", "eval"},
                     {"step", trainer_.steps_done()},
                     {"tokens", trainer_.tokens_done()},
                     {"seconds", seconds()},
                     {"split", "valid"},
                     {"loss", loss},
                     {"bpc", valid_bits_},
                     {"perplexity", std::exp(loss)}});
    events_->add_scalar("valid/loss", trainer_.steps_done(), loss);
    events_->add_scalar("valid/bpc", trainer_.steps_done(), valid_bits_);
    log_info(format("step %lld: valid loss %.4f nats per token, %.4f bits per character",
                    static_cast<long long>(trainer_.steps_done()), loss, valid_bits_));
    evaluated_step_ = trainer_.steps_done();
    if (!(loss < best_loss_)) return false;
    best_loss_ = loss;
    best_step_ = trainer_.steps_done();
    best_bits_ = valid_bits_;
    return true;
  }

  void sample(const char* file) {
    const SampleConfig& s = config_.train.sample;
    if (s.length == 0 || !trainer_.model().routing().causal()) return;
    const std::string prompt = s.prompt.empty() ? data_.prompt() : s.prompt;
    const std::string text =
        prompt + generate_text(trainer_.model(), *data_.tokenizer, prompt_ids(*data_.tokenizer, prompt),
                               {.max_new = s.length,
                                .temperature = s.temperature,
                                .seed = static_cast<uint64_t>(config_.train.seed),
                                .dtype = trainer_.dtype()})
                     .text;
    fs::create_directories(out_ / "samples");
    write_file_atomic(out_ / "samples" / file, text + "\n");
    events_->add_text("sample", trainer_.steps_done(), text);
  }

  void save() {
    io::CheckpointWriter writer(out_, trainer_.steps_done());
    trainer_.save([&](const char* name) { return writer.file(name); });
    const Json state = {{"step", trainer_.steps_done()},
                        {"tokens", trainer_.tokens_done()},
                        {"seconds", seconds()},
                        {"best", {{"step", best_step_}, {"loss", best_loss_}, {"bits", best_bits_}}},
                        {"rates", rates_},
                        {"sums", window_.json()}};
    write_file_atomic(writer.file("state.json"), json_text(state, 2) + "\n");
    writer.commit();
    saved_step_ = trainer_.steps_done();
    last_save_ = Clock::now();
    io::prune(out_, config_.train.checkpoint.keep_last,
              best_step_ > 0 ? std::optional<int64_t>(best_step_) : std::nullopt);
    write_summary(false, "running");
  }

  void write_summary(bool finished, const std::string& stop) const {
    std::vector<double> rates = rates_;
    std::sort(rates.begin(), rates.end());
    const MoeConfig& moe = config_.model.moe;
    const Json summary = {
        {"name", config_.name},
        {"group", run_group(config_)},
        {"seed", config_.train.seed},
        {"family", enum_name(config_.model.family)},
        {"stage", moe.stage.kind()},
        {"router", moe.router.kind()},
        {"causal", trainer_.model().routing().causal()},
        {"dtype", enum_name(config_.train.dtype)},
        {"params", size_.params},
        {"active_params", size_.active_params},
        {"router_params", size_.router_params},
        {"flops_per_token", 3 * size_.forward_flops},
        {"steps", trainer_.steps_done()},
        {"tokens", trainer_.tokens_done()},
        {"batch_tokens", config_.train.batch * config_.train.block},
        {"seconds", seconds()},
        {"tokens_per_s", rates.empty() ? tokens_per_second() : rates[rates.size() / 2]},
        {"peak_memory_bytes", memory_peak_bytes(device())},
        {"best", {{"step", best_step_}, {"valid_bpc", best_step_ > 0 ? Json(best_bits_) : Json()}}},
        {"finished", finished},
        {"stop", stop},
        {"data",
         {{"path", data_.texts() ? config_.data.path : config_.data.instruct.train},
          {"tokenizer_hash", format("%016llx", static_cast<unsigned long long>(data_.tokenizer->hash()))},
          {"train_tokens", data_.train_tokens()}}},
        {"machine",
         {{"device", config_.train.device},
          {"cpu", cpu_model()},
          {"threads", at::get_num_threads()},
          {"peak_flops", peak_}}}};
    write_file_atomic(out_ / "summary.json", json_text(summary, 2) + "\n");
  }

  void finish_line() const {
    log_info(format("done: %lld steps, %lld tokens in %s", static_cast<long long>(trainer_.steps_done()),
                    static_cast<long long>(trainer_.tokens_done()), duration_text(seconds()).c_str()));
  }

  RunConfig config_;
  fs::path out_;
  RunData data_;
  ModelSize size_;
  Trainer trainer_;
  double characters_per_token_;
  std::optional<io::MetricsWriter> metrics_;
  std::optional<TraceRecorder> recorder_;
  std::optional<Replay> replay_;
  std::optional<io::EventWriter> events_;
  double peak_ = 0;

  Clock::time_point started_ = Clock::now(), last_save_ = started_;
  double seconds_before_ = 0;  // of earlier processes of this run
  double step_seconds_ = 0;    // training time since the last log line
  int64_t timed_steps_ = 0;
  double last_rate_ = 0;       // tokens per second of the last log line
  std::vector<double> rates_;  // tokens per second of each log line
  StepSums window_, last_;
  double loss_sum_ = 0, loss_weight_ = 0;  // of the smoothed loss
  double learning_rate_ = 0;
  double best_loss_ = std::numeric_limits<double>::infinity(), best_bits_ = 0, valid_bits_ = 0;
  int64_t best_step_ = 0, evaluated_step_ = -1, saved_step_ = -1;
};

// Whether the run's summary says that its budget was used up at this step, and the config asks for no more.
bool is_finished(const fs::path& out, int64_t step, const RunConfig& config) {
  if (!fs::exists(out / "summary.json")) return false;
  const std::string what = (out / "summary.json").string();
  const Json summary = read_json_file(what);
  const TrainConfig& t = config.train;
  const bool used = (json_string(summary, "stop", what) == "steps" && step >= t.steps) ||
                    (t.tokens > 0 && step * t.batch * t.block >= t.tokens) ||
                    (t.minutes > 0 && json_double(summary, "seconds", what) >= 60 * t.minutes);
  return json_bool(summary, "finished", what) && json_int(summary, "steps", what) == step && used;
}

double last_valid_bits(const fs::path& out) {
  double bits = std::nan("");
  for (const Json& line : io::read_metrics(out / "metrics.jsonl")) {
    if (line.value("kind", "") == "eval" && line.contains("bpc") && line.at("bpc").is_number()) bits = line.at("bpc");
  }
  return bits;
}

// train.epochs in steps.
void resolve_epochs(RunConfig& config, const RunData& data) {
  const double epochs = config.train.epochs;
  if (epochs <= 0) return;
  RMOE_CHECK(data.answers(), "train: train.epochs is for instruction data (data.instruct.train); set train.steps");
  const data::InstructionBatcher batcher(data.answers()->train, config.train.batch, config.train.block,
                                         config.data.instruct.pack, static_cast<uint64_t>(config.train.seed));
  const double steps = epochs * static_cast<double>(batcher.rows_per_epoch()) / static_cast<double>(config.train.batch);
  config.train.steps = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(steps)));
}

// What goes by a token's position in a token file: samples have none.
void refuse_on_instructions(const TraceOptions& trace) {
  const char* const asked = !trace.file.empty() ? "--trace" : !trace.replay.empty() ? "--replay" : nullptr;
  RMOE_CHECK(!asked, "train: ", asked ? asked : "", " goes by positions in the text, and instruction data have none");
}

// What starts from a run's weights speaks its tokens. And a model may have more ids than its tokenizer: others pad
// vocabularies to round numbers. That the data are for this model all the same, the run that goes on or the one that it
// starts from must say. `start` is null where the run starts from none, or goes on.
void check_tokenizer(const RunConfig& config, const fs::path& out, const FoundRun* start,
                     const data::Tokenizer& tokenizer) {
  if (start && start->tokenizer->hash() != tokenizer.hash()) {
    const std::string& init = config.train.init;
    throw Error(Exit::kBadInput,
                str("the data in ", config.data.path, " were made by a tokenizer other than that of ", init, ": hash ",
                    data::hex16(tokenizer.hash()), ", the run has ", data::hex16(start->tokenizer->hash())),
                str("prepare the text with it: rmoe data prepare TEXT --model ", init, " --out DATA"));
  }
  const int64_t wanted = config.model.vocab_size;
  if (wanted == 0 || wanted == tokenizer.vocab_size() || start) return;
  RMOE_CHECK(fs::exists(out / "tokenizer.json") && data::Tokenizer::load(out)->hash() == tokenizer.hash(),
             "model.vocab_size is ", wanted, " but the data in ", config.data.path, " has ", tokenizer.vocab_size());
}

}  // namespace

TrainReport train(RunConfig config, const fs::path& out, Resume resume, const TraceOptions& trace) {
  const bool instructions = config.data.instruct.given();
  RMOE_CHECK(instructions || !config.data.path.empty(),
             "train: data.path is not set; it is the folder made by `rmoe data prepare`");
  if (instructions) refuse_on_instructions(trace);
  configure_runtime(config.train.threads);
  // A run that goes on does not need the one that it started from any more.
  std::optional<FoundRun> start;
  if (!config.train.init.empty() && io::list_checkpoints(out).empty()) start = find_run(config.train.init);
  RunData data(config, out);
  check_tokenizer(config, out, start ? &*start : nullptr, *data.tokenizer);
  resolve_vocabulary(config, data.tokenizer->vocab_size());
  resolve_epochs(config, data);
  config.model.validate();
  check_memory(config);

  const io::RunLock lock(out);
  io::remove_leftovers(out);
  const std::optional<io::Checkpoint> checkpoint = find_resume_point(out, resume, config);
  if (checkpoint && is_finished(out, checkpoint->step, config)) {
    RMOE_CHECK(trace.file.empty(), out.string(), ": finished already, at step ", checkpoint->step,
               ": no step is left to record in ", trace.file);
    log_info(out.string(), ": finished already, at step ", checkpoint->step);
    return {.steps = checkpoint->step, .valid_bits = last_valid_bits(out), .finished = true};
  }
  Run run(config, out, std::move(data));
  if (checkpoint) run.resume(*checkpoint);
  if (!checkpoint && start) run.start_from(start->checkpoint);
  run.trace(trace);
  write_file_atomic(out / "config.toml", to_toml(config));
  run.data().tokenizer->save(out);
  if (!checkpoint && start) hf::carry_on(config.train.init, out);
  return run.train();
}

}  // namespace rmoe
