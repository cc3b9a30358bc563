#include "rmoe/eval/run.h"

#include <fstream>
#include <functional>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/eval/commands.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/io/checkpoint.h"
#include "rmoe/ops/tensor_file.h"
#include "tests/unit/eval/tiny_models.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;
using testing::random_ids;
using testing::write_tokens;

struct Failure {
  Exit code = Exit::kDone;
  std::string message, help;
};

Failure failure_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return {error.code(), error.message(), error.help()};
  }
  return {};
}

// A data folder and a run on it with checkpoints of the steps 10, 20 and 30, whose weights differ.
class RunFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto tokenizer = data::make_char_tokenizer(letters(), false, false, true);
    fs::create_directories(data());
    fs::create_directories(run());
    tokenizer->save(data());
    tokenizer->save(run());
    for (const char* split : {"train", "valid", "test"}) {
      write_tokens(data() / (std::string(split) + ".tok"), random_ids(200, 12, split[0]), 13, tokenizer->hash(),
                   {.bytes = 200, .characters = 200, .words = 40});
    }
    config_.name = "tiny";
    config_.data.path = data().string();
    config_.model = testing::tiny_config(Family::kSpan, "gru");
    write_file_atomic(run() / "config.toml", to_toml(config_));
    for (const int64_t step : {10, 20, 30}) save(step);
    write_file_atomic(run() / "summary.json", R"({"name": "tiny", "best": {"step": 20, "valid_bpc": 1.5}})");
  }

  static std::vector<char32_t> letters() {
    std::vector<char32_t> letters;
    for (char32_t c = 'a'; c <= 'l'; ++c) letters.push_back(c);
    return letters;
  }

  void save(int64_t step) const {
    ParamTable params(static_cast<uint64_t>(step), at::kFloat);
    make_model(config_.model, params);
    io::CheckpointWriter writer(run(), step);
    save_tensors(writer.file("model.safetensors"), params.stored());
    write_file_atomic(writer.file("state.json"), R"({"best": {"step": 10}})");
    writer.commit();
  }

  // The weights that save() wrote for this step.
  void expect_weights_of(const LoadedRun& loaded, int64_t step) const {
    EXPECT_EQ(loaded.step, step);
    ParamTable params(static_cast<uint64_t>(step), at::kFloat);
    make_model(config_.model, params);
    for (size_t i = 0; i < params.all().size(); ++i) {
      EXPECT_TRUE(params.all()[i].value.equal(loaded.params.all()[i].value)) << params.all()[i].name;
    }
  }

  fs::path run() const { return dir_ / "run"; }
  fs::path data() const { return dir_ / "data"; }
  fs::path weights_file(int64_t step) const { return io::checkpoint_dir(run(), step) / "model.safetensors"; }

  void alter_byte(const fs::path& path) const {
    std::string bytes = read_file(path);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    std::ofstream(path, std::ios::binary) << bytes;
  }

  TempDir dir_;
  RunConfig config_;
};

TEST_F(RunFolder, LoadsTheCheckpointAskedFor) {
  expect_weights_of(load_run(run()), 30);
  expect_weights_of(load_run(run(), Which::parse("best")), 20);
  expect_weights_of(load_run(run(), Which::parse("10")), 10);
  const LoadedRun loaded = load_run(run());
  EXPECT_EQ(loaded.config.name, "tiny");
  EXPECT_EQ(loaded.tokenizer->vocab_size(), 13);
}

TEST_F(RunFolder, BestComesFromTheNewestStateWithoutASummary) {
  fs::remove(run() / "summary.json");
  expect_weights_of(load_run(run(), Which::parse("best")), 10);
}

TEST_F(RunFolder, WithoutAnEvaluationThereIsNoBest) {
  write_file_atomic(run() / "summary.json", R"({"best": null})");
  fs::remove_all(run() / "checkpoints");
  const Failure failure = failure_of([&] { load_run(run(), Which::parse("best")); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
}

TEST_F(RunFolder, AlteredAndTruncatedCheckpointsAreSkippedForTheNewestWholeOne) {
  alter_byte(weights_file(30));
  fs::resize_file(weights_file(20), fs::file_size(weights_file(20)) - 1);
  expect_weights_of(load_run(run()), 10);
}

TEST_F(RunFolder, ABrokenCheckpointThatWasAskedForIsAnErrorNamingTheFile) {
  alter_byte(weights_file(30));
  fs::resize_file(weights_file(20), fs::file_size(weights_file(20)) - 1);
  for (const char* which : {"30", "best"}) {
    const Failure failure = failure_of([&] { load_run(run(), Which::parse(which)); });
    EXPECT_EQ(failure.code, Exit::kBadInput) << which;
    EXPECT_NE(failure.message.find("model.safetensors"), std::string::npos) << failure.message;
    EXPECT_EQ(failure.message.find('\n'), std::string::npos);
  }
}

TEST_F(RunFolder, NoWholeCheckpointNamesWhatIsBroken) {
  for (const int64_t step : {10, 20, 30}) alter_byte(weights_file(step));
  const Failure failure = failure_of([&] { load_run(run()); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
  EXPECT_NE(failure.message.find("model.safetensors"), std::string::npos) << failure.message;
}

TEST_F(RunFolder, UnknownStepsAndNoCheckpointsAreErrors) {
  Failure failure = failure_of([&] { load_run(run(), Which::parse("15")); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
  EXPECT_NE(failure.help.find("[10, 20, 30]"), std::string::npos) << failure.help;
  fs::remove_all(run() / "checkpoints");
  failure = failure_of([&] { load_run(run()); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
  EXPECT_NE(failure.message.find("no checkpoint yet"), std::string::npos) << failure.message;
}

TEST_F(RunFolder, FoldersThatAreNoRunsAreNamed) {
  for (const fs::path& path : {dir_ / "nothing", data()}) {
    const Failure failure = failure_of([&] { load_run(path); });
    EXPECT_EQ(failure.code, fs::exists(path) ? Exit::kBadInput : Exit::kIo);
    EXPECT_EQ(failure.message.find(path.string()), 0u) << failure.message;
  }
}

TEST_F(RunFolder, ATokenizerLargerThanTheModelIsRefused) {
  data::make_byte_tokenizer(false)->save(run());
  const Failure failure = failure_of([&] { load_run(run()); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
  EXPECT_NE(failure.message.find("256 ids but the model has 13"), std::string::npos) << failure.message;
}

TEST(Which, IsNewestBestOrAStep) {
  EXPECT_EQ(Which::parse("newest").kind, Which::Kind::kNewest);
  EXPECT_EQ(Which::parse("best").kind, Which::Kind::kBest);
  EXPECT_EQ(Which::parse("1200").step, 1200);
  for (const char* text : {"", "last", "-3", "12x", "1.5", "99999999999999999999"}) {
    EXPECT_EQ(failure_of([&] { Which::parse(text); }).code, Exit::kBadInput) << text;
  }
}

EvalCommand eval_command(const fs::path& run) {
  EvalCommand command;
  command.run = run.string();
  command.threads = 1;
  return command;
}

TEST_F(RunFolder, EvalWritesWhatItMeasured) {
  const EvalReport report = run_eval(eval_command(run()));
  const LoadedRun loaded = load_run(run());
  const auto tokens = data::TokenFile::open(data() / "valid.tok");
  const EvalResult result = evaluate(*loaded.model, tokens, {});
  EXPECT_DOUBLE_EQ(report.nats, result.nats);
  EXPECT_EQ(report.written, (run() / "eval" / "valid.json").string());
  const Json json = read_json_file(report.written);
  EXPECT_EQ(json["split"], "valid");
  EXPECT_EQ(json["checkpoint_step"], 30);
  EXPECT_EQ(json["tokens"], 199);
  EXPECT_EQ(json["characters"], 200);
  EXPECT_EQ(json["words"], 40);
  EXPECT_DOUBLE_EQ(json["nats"].get<double>(), result.nats);
  EXPECT_DOUBLE_EQ(json["bits_per_character"].get<double>(), bits_per_character(result, tokens.header()));
  EXPECT_DOUBLE_EQ(json["perplexity"].get<double>(), perplexity(result));
  EXPECT_DOUBLE_EQ(json["word_perplexity"].get<double>(), word_perplexity(result, tokens.header()));
  EXPECT_DOUBLE_EQ(json["load_imbalance"].get<double>(), routing::load_imbalance(result.routing.counts));
  EXPECT_EQ(json["dead_experts"], routing::dead_experts(result.routing.counts));
  EXPECT_DOUBLE_EQ(json["gate_entropy"].get<double>(), result.routing.mean_entropy());
  ASSERT_EQ(json["expert_fraction"].size(), 3u);
  for (const Json& layer : json["expert_fraction"]) {
    double sum = 0;
    for (const Json& share : layer) sum += share.get<double>();
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST_F(RunFolder, EvalWritesOnlyWholeSplitsOfTheRunsOwnData) {
  EvalCommand command = eval_command(run());
  command.tokens = 100;
  EXPECT_EQ(run_eval(command).written, "");
  command = eval_command(run());
  fs::create_directories(dir_ / "other");
  fs::copy_file(data() / "valid.tok", dir_ / "other" / "valid.tok");
  command.data = (dir_ / "other").string();
  EXPECT_EQ(run_eval(command).written, "");
  EXPECT_FALSE(fs::exists(run() / "eval"));
  command.data = (data() / "test.tok").string();  // the same by its own name
  EXPECT_EQ(run_eval(command).written, (run() / "eval" / "test.json").string());
}

TEST_F(RunFolder, EvalRefusesDataOfAnotherTokenizer) {
  write_tokens(dir_ / "foreign.tok", {1, 2, 3}, 13, 4711);
  EvalCommand command = eval_command(run());
  command.data = (dir_ / "foreign.tok").string();
  const Failure failure = failure_of([&] { run_eval(command); });
  EXPECT_EQ(failure.code, Exit::kBadInput);
  EXPECT_NE(failure.message.find("foreign.tok"), std::string::npos) << failure.message;
  EXPECT_NE(failure.message.find("tokenizer"), std::string::npos) << failure.message;
}

TEST_F(RunFolder, EvalNamesDataThatIsMissing) {
  EvalCommand command = eval_command(run());
  command.data = (dir_ / "nowhere").string();
  Failure failure = failure_of([&] { run_eval(command); });
  EXPECT_EQ(failure.code, Exit::kIo);
  EXPECT_NE(failure.message.find("nowhere"), std::string::npos) << failure.message;
  command.data.clear();
  fs::remove(data() / "valid.tok");
  failure = failure_of([&] { run_eval(command); });
  EXPECT_EQ(failure.code, Exit::kIo);
  EXPECT_NE(failure.message.find("valid.tok"), std::string::npos) << failure.message;
  fs::remove_all(data());
  failure = failure_of([&] { run_eval(command); });
  EXPECT_EQ(failure.code, Exit::kIo);
  EXPECT_NE(failure.help.find("--data"), std::string::npos) << failure.help;
}

TEST_F(RunFolder, GenerateStreamsItsText) {
  GenerateCommand command;
  command.run = run().string();
  command.prompt = "abc";
  command.tokens = 30;
  command.threads = 1;
  std::string streamed;
  const auto collect = [&](std::string_view piece) {
    streamed += piece;
    return true;
  };
  const GenerateReport report = run_generate(command, collect);
  EXPECT_EQ(report.text, streamed);
  EXPECT_EQ(report.checkpoint_step, 30);
  EXPECT_EQ(report.prompt_tokens, 3);
  EXPECT_EQ(run_generate(command, collect).text, report.text);
  command.checkpoint = "10";
  EXPECT_NE(run_generate(command, collect).text, report.text);
}

}  // namespace
}  // namespace rmoe
