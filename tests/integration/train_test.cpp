// Training as a whole: it learns, it resumes bit for bit, and its own evaluation is the command's.
#include <csignal>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/eval/commands.h"
#include "rmoe/io/metrics.h"
#include "rmoe/train/run.h"
#include "rmoe/train/trainer.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text_data.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;
using testing::tiny_config;

class EveryRun : public ::testing::TestWithParam<std::tuple<Family, bool>> {
 protected:
  EveryRun() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 6000);
  }
  RunConfig config() const {
    RunConfig config = tiny_config(std::get<0>(GetParam()), std::get<1>(GetParam()));
    config.name = "tiny";
    config.data.path = (dir_.path() / "data").string();
    config.model.vocab_size = 0;
    config.train.steps = 12;
    config.train.log_every = 1;
    config.train.eval.every = 4;
    config.train.eval.tokens = 200;
    config.train.checkpoint.every = 4;
    config.train.checkpoint.keep_last = 10;
    config.train.schedule.warmup = 3;
    config.train.sample.length = 20;
    return config;
  }
  // The hard case: dropout, accumulation and bf16 together.
  RunConfig hard_config() const {
    RunConfig config = this->config();
    config.model.dropout = 0.1;
    config.train.accumulate = 2;
    config.train.dtype = Precision::kBf16;
    return config;
  }
  std::map<std::string, Tensor> weights(const fs::path& run, int64_t step,
                                        const char* file = "model.safetensors") const {
    return read_tensors(run / "checkpoints" / ("step_" + std::to_string(step)) / file);
  }
  TempDir dir_;
};

void expect_same_tensors(const std::map<std::string, Tensor>& a, const std::map<std::string, Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(tensor.equal(b.at(name))) << name;
}

// Everything about a step that does not depend on the clock.
std::vector<Json> timeless(const fs::path& run) {
  std::vector<Json> lines = io::read_metrics(run / "metrics.jsonl");
  for (Json& line : lines) {
    for (const char* key : {"seconds", "tokens_per_s", "peak_share", "memory_bytes"}) line.erase(key);
  }
  return lines;
}

TEST_P(EveryRun, ResumesBitForBitWithDropoutAccumulationAndBf16) {
  const fs::path whole = dir_.path() / "whole", parts = dir_.path() / "parts";
  train(hard_config(), whole, Resume::kNever);

  // As if killed after step 9: the folder of step 8 is the newest, the lines of step 9 are already logged.
  train(hard_config(), parts, Resume::kNever);
  fs::remove_all(parts / "checkpoints" / "step_12");
  fs::remove(parts / "summary.json");
  const TrainReport report = train(hard_config(), parts, Resume::kMust);

  EXPECT_EQ(report.steps, 12);
  EXPECT_TRUE(report.finished);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    expect_same_tensors(weights(whole, 12, file), weights(parts, 12, file));
  }
  EXPECT_EQ(timeless(whole), timeless(parts));
}

TEST_P(EveryRun, StoppedByStepsGoesOnAsIfItHadNotStopped) {
  const fs::path whole = dir_.path() / "whole", parts = dir_.path() / "parts";
  RunConfig config = hard_config();
  config.train.schedule.decay = Decay::kConstant;  // the others depend on the number of steps
  train(config, whole, Resume::kNever);
  config.train.steps = 5;  // no multiple of anything
  train(config, parts, Resume::kNever);
  config.train.steps = 12;
  train(config, parts, Resume::kAuto);
  expect_same_tensors(weights(whole, 12), weights(parts, 12));
}

TEST_P(EveryRun, OverfitsOneBatch) {
  RunConfig config = this->config();
  testing::write_text_data(dir_.path() / "one", 41, /*splits_alike=*/true);
  config.data.path = (dir_.path() / "one").string();
  config.train.batch = 4;
  config.train.block = 8;
  config.train.steps = 400;
  config.train.optimizer.lr = 1e-2;
  config.train.eval.every = 0;
  config.train.checkpoint.every = 0;
  train(config, dir_.path() / "run", Resume::kNever);
  const auto lines = io::read_metrics(dir_.path() / "run" / "metrics.jsonl");
  const auto loss_at = [&](size_t i) { return lines[i].at("loss").get<double>(); };
  EXPECT_GT(loss_at(0), 2.0);
  EXPECT_LT(loss_at(399), 0.15);
}

TEST_P(EveryRun, EvaluationInTrainingIsTheCommands) {
  RunConfig config = this->config();
  config.train.eval.tokens = 0;
  const fs::path run = dir_.path() / "run";
  const TrainReport report = train(config, run, Resume::kNever);
  EvalCommand command;
  command.run = run.string();
  command.threads = 1;
  const EvalReport again = run_eval(command);
  ASSERT_TRUE(again.bits_per_character);
  EXPECT_EQ(*again.bits_per_character, report.valid_bits);
  EXPECT_EQ(again.checkpoint_step, 12);
}

TEST_P(EveryRun, SameSeedSameRunOtherSeedOtherRun) {
  const fs::path a = dir_.path() / "a", b = dir_.path() / "b", c = dir_.path() / "c";
  RunConfig config = hard_config();
  train(config, a, Resume::kNever);
  train(config, b, Resume::kNever);
  config.train.seed = 2;
  train(config, c, Resume::kNever);
  EXPECT_EQ(timeless(a), timeless(b));
  EXPECT_NE(timeless(a), timeless(c));
  const auto group = [](const fs::path& run) { return read_json_file(run / "summary.json").at("group"); };
  EXPECT_EQ(group(a), group(c));
}

TEST_P(EveryRun, AccumulationDoesNotChangeTheFirstStep) {
  RunConfig config = this->config();
  config.train.steps = 1;
  train(config, dir_.path() / "one", Resume::kNever);
  config.train.accumulate = 4;
  config.model.moe.balance.clear();  // counts are per micro-batch
  train(config, dir_.path() / "four", Resume::kNever);
  const auto loss = [&](const char* run) {
    return io::read_metrics(dir_.path() / run / "metrics.jsonl").front().at("loss").get<double>();
  };
  EXPECT_NEAR(loss("one"), loss("four"), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(All, EveryRun,
                         ::testing::Combine(::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& param_info) {
                           return testing::tiny_name(std::get<0>(param_info.param), std::get<1>(param_info.param));
                         });

// Routers with a state of their own over the training: buffers, schedules, tables made from the data.
struct RouterCase {
  const char* name;
  std::vector<std::string> flags;
};

class EveryRouter : public ::testing::TestWithParam<RouterCase> {
 protected:
  EveryRouter() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 6000);
    config_ = tiny_config(Family::kLlama, false);
    config_.model.moe.experts = 6;
    config_.model.dropout = 0.1;
    config_.data.path = (dir_.path() / "data").string();
    config_.model.vocab_size = 0;
    config_.train.steps = 12;
    config_.train.accumulate = 2;
    config_.train.dtype = Precision::kBf16;
    config_.train.log_every = 1;
    config_.train.eval.every = 4;
    config_.train.eval.tokens = 200;
    config_.train.checkpoint.every = 4;
    config_.train.checkpoint.keep_last = 10;
    config_.train.sample.length = 20;
    bind(config_.model.moe, parse_flags(GetParam().flags));
  }
  std::map<std::string, Tensor> weights(const char* run) const {
    return read_tensors(dir_.path() / run / "checkpoints" / "step_12" / "model.safetensors");
  }
  TempDir dir_;
  RunConfig config_;
};

TEST_P(EveryRouter, ResumesBitForBitWithItsState) {
  train(config_, dir_.path() / "whole", Resume::kNever);
  const fs::path parts = dir_.path() / "parts";
  train(config_, parts, Resume::kNever);
  fs::remove_all(parts / "checkpoints" / "step_12");
  fs::remove(parts / "summary.json");
  train(config_, parts, Resume::kMust);
  expect_same_tensors(weights("whole"), weights("parts"));
  EXPECT_EQ(timeless(dir_.path() / "whole"), timeless(parts));
}

// The command reads the buffers from the checkpoint and routes by them as the training did.
TEST_P(EveryRouter, EvaluationInTrainingIsTheCommands) {
  config_.train.eval.tokens = 0;
  const fs::path run = dir_.path() / "run";
  const TrainReport report = train(config_, run, Resume::kNever);
  EvalCommand command;
  command.run = run.string();
  command.threads = 1;
  const EvalReport again = run_eval(command);
  ASSERT_TRUE(again.bits_per_character);
  EXPECT_EQ(*again.bits_per_character, report.valid_bits);
  EXPECT_EQ(again.checkpoint_step, 12);
  // Both say whether the number says anything about writing.
  const bool causal = config_.model.moe.selection.kind() != "expert_choice";
  EXPECT_EQ(read_json_file(run / "summary.json").at("causal"), causal);
  EXPECT_EQ(read_json_file(run / "eval" / "valid.json").at("causal"), causal);
}

TEST_P(EveryRouter, EvaluationAndRecomputationChangeNothing) {
  train(config_, dir_.path() / "plain", Resume::kNever);
  config_.train.eval.every = 1;
  train(config_, dir_.path() / "evaluated", Resume::kNever);
  expect_same_tensors(weights("plain"), weights("evaluated"));
  config_.train.recompute = Recompute::kLayer;
  train(config_, dir_.path() / "recomputed", Resume::kNever);
  const auto plain = weights("plain"), recomputed = weights("recomputed");
  // The parts of a shared cell's gradient are added in another order.
  if (config_.model.moe.stage.kind() == "none") return expect_same_tensors(plain, recomputed);
  for (const auto& [name, tensor] : plain) {
    EXPECT_TRUE(at::allclose(tensor, recomputed.at(name), 0, 2e-4)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, EveryRouter,
    ::testing::Values(
        RouterCase{"bias", {"--score.kind=sigmoid", "--balance=[{kind = \"bias\", rate = 0.05}]"}},
        RouterCase{"quantile", {"--stage.kind=gru", "--stage.width=8", "--balance=[{kind = \"quantile\"}]"}},
        RouterCase{"sinkhorn", {"--stage.kind=gru", "--stage.width=8", "--balance=[{kind = \"sinkhorn\"}]"}},
        RouterCase{"relu_l1",
                   {"--score.kind=relu", "--selection.kind=positive", "--balance=[{kind = \"relu_l1\", weight = 1}]"}},
        RouterCase{"threshold", {"--stage.kind=lstm", "--stage.width=8", "--selection.kind=threshold"}},
        RouterCase{"growing_k", {"--router.kind=random", "--selection.grow_to=6"}},
        RouterCase{"stable", {"--router.kind=stable", "--router.first_phase=0.5"}},
        RouterCase{"compete", {"--router.kind=compete", "--router.rate=0.5", "--router.schedule=falling"}},
        RouterCase{"hash", {"--router.kind=hash", "--router.assign=balanced", "--balance=[]"}},
        RouterCase{"expert_choice", {"--selection.kind=expert_choice", "--balance=[]"}},
        RouterCase{"capacity", {"--stage.kind=additive", "--stage.width=8", "--capacity=1.0"}},
        RouterCase{"noise", {"--transforms=[{kind = \"noisy\"}, {kind = \"jitter\"}]"}},
        RouterCase{"global_batch", {"--stage.kind=gru", "--stage.width=8", "--balance=[{kind = \"global_batch\"}]"}}),
    [](const auto& param_info) { return param_info.param.name; });

// The whole step's loss and gradients do not depend on how it is cut, where the balance says so.
TEST(GlobalBatch, AccumulationDoesNotChangeTheFirstStep) {
  set_log_level(Level::kQuiet);
  const TempDir dir;
  testing::write_text_data(dir.path() / "data", 6000);
  RunConfig config = tiny_config(Family::kSpan, true);
  config.data.path = (dir.path() / "data").string();
  config.model.vocab_size = 0;
  bind(config.model.moe, parse_flags({"--balance=[{kind = \"global_batch\", weight = 1.0}]"}));
  config.train.steps = 3;
  config.train.log_every = 1;
  config.train.sample.length = 0;
  std::vector<std::vector<Json>> lines;
  for (const int64_t accumulate : {1, 2, 4}) {
    config.train.accumulate = accumulate;
    const fs::path run = dir.path() / std::to_string(accumulate);
    train(config, run, Resume::kNever);
    lines.push_back(io::read_metrics(run / "metrics.jsonl"));
    for (const char* key : {"loss", "balance_loss", "grad_norm"}) {
      for (size_t step = 0; step < 3; ++step) {
        const double whole = lines[0].at(step).at(key).get<double>();
        EXPECT_NEAR(lines.back().at(step).at(key).get<double>(), whole, 2e-5 * whole) << key << ", step " << step;
      }
    }
  }
}

class OneRun : public ::testing::Test {
 protected:
  OneRun() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 6000);
    config_ = tiny_config(Family::kSpan, true);
    config_.data.path = (dir_.path() / "data").string();
    config_.model.vocab_size = 0;
    config_.train.steps = 4;
    config_.train.checkpoint.every = 2;
    config_.train.sample.length = 0;
  }
  void expect_error(Exit code, const std::string& part, const fs::path& run, Resume resume = Resume::kAuto) {
    try {
      train(config_, run, resume);
      FAIL() << "accepted; expected: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.message();
      EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    }
  }
  TempDir dir_;
  RunConfig config_;
};

TEST_F(OneRun, DivergenceStopsBeforeAnyCheckpointIsTouched) {
  const fs::path run = dir_.path() / "run";
  train(config_, run, Resume::kNever);
  config_.train.steps = 400;
  config_.train.optimizer.lr = 1e30;
  config_.train.optimizer.clip = 0;
  config_.train.eval.every = 0;
  config_.train.checkpoint.every = 0;
  expect_error(Exit::kBadInput, "train.optimizer.clip", run);  // another optimizer is another run
  const fs::path wild = dir_.path() / "wild";
  expect_error(Exit::kDiverged, "train: step ", wild);
  EXPECT_FALSE(fs::exists(wild / "checkpoints" / "step_1"));
}

TEST_F(OneRun, AFolderWithARunIsNotOverwritten) {
  const fs::path run = dir_.path() / "run";
  train(config_, run, Resume::kNever);
  expect_error(Exit::kBadInput, "holds a run already", run, Resume::kNever);
  expect_error(Exit::kBadInput, "no valid checkpoint", dir_.path() / "other", Resume::kMust);
  EXPECT_TRUE(train(config_, run, Resume::kAuto).finished);  // nothing left to do
  config_.model.width = 32;
  expect_error(Exit::kBadInput, "model.width", run);
}

TEST_F(OneRun, ABrokenCheckpointIsSkipped) {
  const fs::path run = dir_.path() / "run";
  train(config_, run, Resume::kNever);
  {
    std::fstream file(run / "checkpoints/step_4/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-3, std::ios::end);
    file.put('\x55');
  }
  config_.train.steps = 6;
  config_.train.schedule.decay = Decay::kCosine;
  EXPECT_EQ(train(config_, run, Resume::kMust).steps, 6);  // from step 2
}

TEST_F(OneRun, DataOfAnotherVocabularyIsRefused) {
  config_.model.vocab_size = 100;
  expect_error(Exit::kBadInput, "model.vocab_size is 100", dir_.path() / "run");
  config_.data.path = (dir_.path() / "nothing").string();
  expect_error(Exit::kIo, "nothing", dir_.path() / "run2");
  config_.data.path = "";
  expect_error(Exit::kBadInput, "data.path", dir_.path() / "run3");
}

TEST_F(OneRun, ASignalSavesAndTheRunGoesOnLater) {
  const fs::path run = dir_.path() / "run";
  config_.train.steps = 1000000;
  config_.train.checkpoint.every = 0;
  std::thread killer([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    std::raise(SIGTERM);
  });
  const TrainReport report = train(config_, run, Resume::kNever);
  killer.join();
  EXPECT_EQ(report.signal, SIGTERM);
  EXPECT_FALSE(report.finished);
  EXPECT_GT(report.steps, 0);
  config_.train.steps = report.steps + 2;
  config_.train.schedule.decay = Decay::kCosine;
  EXPECT_EQ(train(config_, run, Resume::kMust).steps, report.steps + 2);
}

}  // namespace
}  // namespace rmoe
