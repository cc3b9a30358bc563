// Fine-tuning on instructions: what is frozen stays, micro-batches do not matter, a run resumes, answers alone count.
#include <fstream>

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/config/load.h"
#include "rmoe/eval/commands.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/run.h"
#include "rmoe/io/metrics.h"
#include "rmoe/ops/tensor_file.h"
#include "rmoe/train/run.h"
#include "rmoe/train/trainer.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text_data.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

namespace fs = std::filesystem;

using Tensors = std::map<std::string, Tensor>;

class Finetuning : public ::testing::TestWithParam<std::tuple<Family, bool>> {
 protected:
  Finetuning() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 3000);
    std::ofstream file(dir_.path() / "sft.jsonl");
    for (int i = 0; i < 40; ++i) {
      file << R"({"instruction": "count to )" << i << R"(", "output": ")"
           << std::string(static_cast<size_t>(1 + i % 13), "abcde"[i % 5]) << "\"}\n";
    }
    RunConfig start = testing::tiny_config(std::get<0>(GetParam()), std::get<1>(GetParam()));
    start.data.path = (dir_.path() / "data").string();
    start.model.vocab_size = 0;
    start.train.steps = 2;
    start.train.sample.length = 0;
    train(start, base_, Resume::kNever);
  }
  // Seven short flags above the base's own model.
  RunConfig config(const std::vector<std::string>& flags = {}) const {
    std::vector<std::string> all = {"--data.instruct.train=" + (dir_.path() / "sft.jsonl").string(),
                                    "--data.instruct.valid_share=0.2",
                                    "--train.steps=6",
                                    "--train.batch=8",
                                    "--train.block=80",
                                    "--train.accumulate=2",
                                    "--train.threads=1",
                                    "--train.log_every=1",
                                    "--train.checkpoint.every=2",
                                    "--train.checkpoint.keep_last=10",
                                    "--train.eval.every=3",
                                    "--train.eval.tokens=0",
                                    "--train.sample.length=5",
                                    "--train.schedule.warmup=2"};
    all.insert(all.end(), flags.begin(), flags.end());
    return load_run_config("", all, base_.string());
  }
  Tensors weights(const fs::path& run, int64_t step, const char* file = "model.safetensors") const {
    return read_tensors(run / "checkpoints" / ("step_" + std::to_string(step)) / file);
  }
  std::vector<Json> timeless(const fs::path& run) const {
    std::vector<Json> lines = io::read_metrics(run / "metrics.jsonl");
    for (Json& line : lines) {
      for (const char* key : {"seconds", "tokens_per_s", "peak_share", "memory_bytes"}) line.erase(key);
    }
    return lines;
  }
  std::shared_ptr<const data::InstructionSet> samples(const RunConfig& c) const {
    const auto tokenizer = data::Tokenizer::load(base_);
    return std::make_shared<const data::InstructionSet>(
        data::read_instructions(c.data.instruct, *tokenizer, c.train.block).train);
  }
  TempDir dir_;
  const fs::path base_ = dir_.path() / "base";
};

TEST_P(Finetuning, StartsFromTheRunsWeightsAndModel) {
  const RunConfig c = config({"--train.steps=1", "--train.optimizer.lr=1e-30"});
  EXPECT_EQ(to_toml(c.model), to_toml(load_run(base_).config.model));
  train(c, dir_.path() / "run", Resume::kNever);
  const Tensors before = weights(base_, 2), after = weights(dir_.path() / "run", 1);
  ASSERT_EQ(before.size(), after.size());
  for (const auto& [name, tensor] : before) EXPECT_TRUE(at::allclose(tensor, after.at(name), 0, 1e-20)) << name;
}

TEST_P(Finetuning, FrozenTensorsStayBitForBitAndCostNoState) {
  const fs::path run = dir_.path() / "run";
  train(config({"--train.freeze=['*.self_attn.*', '*.block_sparse_moe.*', '!*.experts.*', '*.norm*', "
                "'model.embed_tokens.weight']",
                "--train.optimizer.weight_decay=0.1", "--train.recompute=layer"}),
        run, Resume::kNever);
  const Tensors before = weights(base_, 2), after = weights(run, 6), state = weights(run, 6, "optimizer.safetensors");
  int frozen = 0, trained = 0;
  for (const auto& [name, tensor] : before) {
    const auto has = [&, &n = name](const char* part) { return n.find(part) != std::string::npos; };
    const bool is_frozen =
        has("self_attn") || has(".norm") || has("embed_tokens") || (has("block_sparse_moe") && !has(".experts."));
    // No token may have come to an expert, whose biases then stay (matrices decay).
    const bool may_idle = has(".experts.") && has(".bias");
    if (!may_idle) {
      EXPECT_EQ(tensor.equal(after.at(name)), is_frozen) << name;
    }
    bool has_state = false;
    for (const auto& [state_name, moment] : state) {
      // The optimizer names tensors by the table: all experts of a layer are one.
      has_state = has_state || state_name == "exp_avg." + name;
    }
    EXPECT_FALSE(is_frozen && has_state) << name;
    (is_frozen ? frozen : trained) += 1;
  }
  EXPECT_GT(frozen, 10);
  EXPECT_GT(trained, 10);
  for (const auto& [name, moment] : state) {
    EXPECT_EQ(name.find("self_attn"), std::string::npos);
    EXPECT_EQ(name.find("weight2"), std::string::npos);
    EXPECT_EQ(name.find("gate.weight"), std::string::npos);
  }
}

TEST_P(Finetuning, BalanceLossesAreOffForFrozenRoutersUnlessAsked) {
  const auto losses = [&](const char* name, const std::vector<std::string>& flags) {
    train(config(flags), dir_.path() / name, Resume::kNever);
    std::vector<double> values;
    for (const Json& line : io::read_metrics(dir_.path() / name / "metrics.jsonl")) {
      if (line.at("kind") == "train") values.push_back(line.at("balance_loss").get<double>());
    }
    return values;
  };
  const std::string frozen = std::get<1>(GetParam()) ? "--train.freeze=['*.weight2']" : "--train.freeze=['*.gate.*']";
  const std::string first = std::get<1>(GetParam()) ? "--train.freeze=['model.layers.1.*.weight2']"
                                                    : "--train.freeze=['model.layers.1.*.gate.*']";
  for (const double loss : losses("trained", {})) EXPECT_GT(loss, 0);
  for (const double loss : losses("frozen", {frozen})) EXPECT_EQ(loss, 0);
  for (const double loss : losses("first", {first})) EXPECT_GT(loss, 0);
  for (const double loss : losses("asked", {frozen, "--train.balance_frozen=true"})) EXPECT_GT(loss, 0);
}

TEST_P(Finetuning, AFrozenRoutersBiasDoesNotMove) {
  RunConfig start = load_run_config(base_ / "config.toml", {});
  start.model.moe.balance.clear();
  bind(start.model.moe, parse_flags({"--balance=[{kind = \"bias\", rate = 0.05}]"}));
  const fs::path biased = dir_.path() / "biased";
  train(start, biased, Resume::kNever);
  const auto run = [&](const char* name, const std::vector<std::string>& flags) {
    RunConfig c = config(flags);
    c.train.init = biased.string();
    c.model = load_run(biased).config.model;
    train(c, dir_.path() / name, Resume::kNever);
    int changed = 0;
    const Tensors before = weights(biased, 2), after = weights(dir_.path() / name, 6);
    for (const auto& [tensor_name, tensor] : before) {
      if (tensor_name.find("e_score") != std::string::npos) changed += !tensor.equal(after.at(tensor_name));
    }
    return changed;
  };
  EXPECT_GE(run("moves", {}), 1);  // of two; steps up and down may cancel
  EXPECT_EQ(run("frozen", {"--train.freeze=['*.block_sparse_moe.*', '!*.experts.*']"}), 0);
  // By its own name, with the router trained.
  EXPECT_EQ(run("named", {"--train.freeze=['*.e_score_correction_bias']"}), 0);
}

TEST_P(Finetuning, ResumesBitForBit) {
  for (const char* pack : {"false", "true"}) {
    const std::vector<std::string> flags = {std::string("--data.instruct.pack=") + pack, "--train.dtype=bf16",
                                            "--model.dropout=0.1", "--train.freeze=['*.self_attn.*']"};
    const fs::path whole = dir_.path() / (std::string("whole") + pack),
                   parts = dir_.path() / (std::string("parts") + pack);
    train(config(flags), whole, Resume::kNever);
    train(config(flags), parts, Resume::kNever);
    fs::remove_all(parts / "checkpoints" / "step_6");
    fs::remove(parts / "summary.json");
    // The run that it started from need not be there any more.
    const RunConfig again = config(flags);
    fs::rename(base_, dir_.path() / "gone");
    EXPECT_EQ(train(again, parts, Resume::kMust).steps, 6);
    fs::rename(dir_.path() / "gone", base_);
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      const Tensors a = weights(whole, 6, file), b = weights(parts, 6, file);
      ASSERT_EQ(a.size(), b.size());
      for (const auto& [name, tensor] : a) EXPECT_TRUE(tensor.equal(b.at(name))) << name;
    }
    EXPECT_EQ(timeless(whole), timeless(parts));
  }
}

// A step's loss and gradients are means over all its answers' tokens, however it is cut. Samples of very different
// lengths: a mean of means would be another number.
TEST_P(Finetuning, MicroBatchesDoNotMatter) {
  for (const bool pack : {false, true}) {
    std::vector<std::vector<double>> steps;
    for (const int64_t accumulate : {1, 2, 4, 8}) {
      RunConfig c = config();
      c.data.instruct.pack = pack;
      c.train.accumulate = accumulate;
      c.train.gradient_sources_every = 1;
      bind(c.model.moe, parse_flags({"--balance=[{kind = \"global_batch\", weight = 1.0}]"}));
      Trainer trainer(c, samples(c));
      trainer.start_from(base_ / "checkpoints" / "step_2");
      std::vector<double> numbers;
      for (int step = 0; step < 3; ++step) {
        const StepSums sums = trainer.step();
        const GradientSources& g = sums.gradients;
        for (const double value : {sums.loss, sums.balance, sums.gradient_norm, g.whole, g.lm, g.balance}) {
          EXPECT_GT(value, 0);
          numbers.push_back(value);
        }
      }
      steps.push_back(numbers);
      for (size_t i = 0; i < numbers.size(); ++i) {
        EXPECT_NEAR(numbers[i], steps[0][i], 1e-4 * std::abs(steps[0][i])) << accumulate << ", number " << i;
      }
    }
  }
}

// The loss is that of the answers' tokens, computed here from the logits of each sample by itself.
TEST_P(Finetuning, TheLossIsOnAnswersOnlyAndPaddingChangesNothing) {
  RunConfig c = config();
  c.train.batch = 8;
  c.train.accumulate = 1;
  const auto set = samples(c);
  Trainer trainer(c, set);
  trainer.start_from(base_ / "checkpoints" / "step_2");
  const LoadedRun run = load_run(base_);
  const data::InstructionBatcher batcher(set, 8, c.train.block, false, static_cast<uint64_t>(c.train.seed));
  const data::Batch batch = batcher.get(0, 0, 8);
  double nats = 0;
  int64_t count = 0;
  const at::NoGradGuard no_grad;
  for (int64_t r = 0; r < 8; ++r) {
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < batch.length; ++i) {
      if (batch.valid[static_cast<size_t>(r * batch.length + i)]) {
        ids.push_back(batch.tokens[static_cast<size_t>(r * (batch.length + 1) + i)]);
      }
    }
    const Tensor alone = at::tensor(ids).view({1, -1});
    const Tensor log_probs = run.model->forward(alone, {}, {}).logits_TV.to(at::kDouble).log_softmax(-1);
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t target = batch.targets[static_cast<size_t>(r) * static_cast<size_t>(batch.length) + i];
      if (target < 0) continue;
      nats -= log_probs[static_cast<int64_t>(i)][target].item<double>();
      ++count;
    }
  }
  {
    const at::AutoGradMode with_grad(true);
    EXPECT_NEAR(trainer.step().loss, nats / static_cast<double>(count), 1e-5);
  }
  // As does the evaluation, of all samples, whatever is side by side.
  for (const int64_t rows : {1, 3, 100}) {
    const EvalResult result = evaluate_instructions(*run.model, *set, {.batch = rows});
    EXPECT_EQ(result.tokens, set->answer_tokens());
    const EvalResult single = evaluate_instructions(*run.model, *set, {.batch = 1});
    EXPECT_NEAR(result.nats, single.nats, 1e-4);
  }
}

TEST_P(Finetuning, EvaluationInTrainingIsTheCommands) {
  const fs::path run = dir_.path() / "run";
  const TrainReport report = train(config(), run, Resume::kNever);
  EvalCommand command;
  command.run = run.string();
  command.threads = 1;
  const EvalReport again = run_eval(command);
  ASSERT_TRUE(again.bits_per_character);
  EXPECT_NEAR(*again.bits_per_character, report.valid_bits, 1e-12);
  EXPECT_EQ(again.written, (run / "eval" / "valid.json").string());
  const auto tokenizer = data::Tokenizer::load(base_);
  const auto data = data::read_instructions(config().data.instruct, *tokenizer, 80);
  EXPECT_EQ(again.tokens, data.valid.answer_tokens());
  command.data = (dir_.path() / "sft.jsonl").string();
  EXPECT_EQ(run_eval(command).tokens, data.valid.answer_tokens() + data.train.answer_tokens());
  command.data.clear();
  command.split = "test";
  EXPECT_THROW(run_eval(command), Error);
}

// Traces and replays go by positions in a text.
TEST_P(Finetuning, SamplesHaveNoPositionsToTrace) {
  const fs::path run = dir_.path() / "run";
  const auto expect_refused = [](const std::function<void()>& call, const std::string& part) {
    try {
      call();
      ADD_FAILURE() << "accepted; expected: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    }
  };
  TraceOptions recorded, replayed;
  recorded.file = replayed.replay = (dir_.path() / "t.npy").string();
  expect_refused([&] { train(config(), run, Resume::kNever, recorded); }, "--trace goes by positions");
  expect_refused([&] { train(config(), run, Resume::kNever, replayed); }, "--replay goes by positions");
  EXPECT_FALSE(fs::exists(run));
  train(config({"--train.steps=1"}), run, Resume::kNever);
  EvalCommand command;
  command.run = run.string();
  command.threads = 1;
  command.trace = recorded;
  expect_refused([&] { run_eval(command); }, "--trace goes by positions");
  command.trace = replayed;
  expect_refused([&] { run_eval(command); }, "--replay goes by positions");
  command.trace = {};
  command.logits = recorded.file;
  expect_refused([&] { run_eval(command); }, "--logits goes by positions");
  EXPECT_FALSE(fs::exists(recorded.file));
  // On text it works as ever.
  command.logits.clear();
  command.trace = recorded;
  command.data = (dir_.path() / "data").string();
  EXPECT_GT(run_eval(command).tokens, 0);
  EXPECT_TRUE(fs::exists(recorded.file));
}

TEST_P(Finetuning, EpochsSetTheSteps) {
  // 32 of 40 samples are trained on, 8 a step.
  EXPECT_EQ(train(config({"--train.epochs=1.5"}), dir_.path() / "run", Resume::kNever).steps, 6);
  EXPECT_EQ(train(config({"--train.epochs=0.3"}), dir_.path() / "less", Resume::kNever).steps, 2);
}

TEST_P(Finetuning, LearnsTheAnswers) {
  const fs::path run = dir_.path() / "run";
  train(config({"--train.steps=60", "--train.optimizer.lr=3e-3", "--train.checkpoint.every=0", "--train.eval.every=0"}),
        run, Resume::kNever);
  std::vector<double> losses;
  for (const Json& line : io::read_metrics(run / "metrics.jsonl")) {
    if (line.at("kind") == "train") losses.push_back(line.at("loss").get<double>());
  }
  EXPECT_LT(losses.back(), 0.6 * losses.front());
}

INSTANTIATE_TEST_SUITE_P(All, Finetuning,
                         ::testing::Combine(::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& param_info) {
                           return testing::tiny_name(std::get<0>(param_info.param), std::get<1>(param_info.param));
                         });

class Init : public ::testing::Test {
 protected:
  Init() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 3000);
    config_ = testing::tiny_config(Family::kLlama, false);
    config_.data.path = (dir_.path() / "data").string();
    config_.model.vocab_size = 0;
    config_.train.steps = 2;
    config_.train.sample.length = 0;
    train(config_, dir_.path() / "base", Resume::kNever);
    config_.train.init = (dir_.path() / "base").string();
  }
  void expect_error(const std::string& part) {
    try {
      train(config_, dir_.path() / "run", Resume::kAuto);
      ADD_FAILURE() << "accepted; expected: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    }
    fs::remove_all(dir_.path() / "run");
  }
  TempDir dir_;
  RunConfig config_;
};

TEST_F(Init, RefusesWhatDoesNotFit) {
  config_.train.epochs = 2;
  expect_error("train.epochs is for instruction data");
  config_.train.epochs = 0;
  config_.train.freeze = {"*.nothing"};
  expect_error("'*.nothing' matches no tensor");
  config_.train.freeze.clear();
  config_.model.width = 32;
  expect_error("has shape");
  config_.model.width = 16;
  testing::write_text_data(dir_.path() / "other", 3000);
  const auto tokenizer = data::make_byte_tokenizer(/*separated=*/true);
  tokenizer->save(dir_.path() / "other");
  for (const char* split : {"train", "valid"}) {
    data::TokenWriter writer(dir_.path() / "other" / (std::string(split) + ".tok"), tokenizer->vocab_size(),
                             tokenizer->hash());
    writer.append(tokenizer->encode(testing::random_text(2000, 1)));
    writer.set_counts(1, 2000, 2000, 300);
    writer.commit();
  }
  config_.model.vocab_size = 0;
  config_.data.path = (dir_.path() / "other").string();
  expect_error("were made by a tokenizer other than that of");
}

// defaults < model of train.init < file < flags.
TEST_F(Init, TheModelOfTheRunStandsBelowTheFileAndTheFlags) {
  const fs::path file = dir_.path() / "c.toml", base = dir_.path() / "base";
  std::ofstream(file) << "[model]\ndropout = 0.25\nmoe.capacity = 1.5\n[train]\nsteps = 7\n";
  const RunConfig c = load_run_config(file, {"--model.moe.capacity=2", "--train.batch=6"}, base.string());
  EXPECT_EQ(c.train.init, base.string());
  const ModelConfig model = load_run(base).config.model;
  EXPECT_EQ(c.model.width, model.width);
  EXPECT_NE(c.model.width, ModelConfig{}.width);
  EXPECT_EQ(c.model.vocab_size, model.vocab_size);
  EXPECT_EQ(c.model.dropout, 0.25);
  EXPECT_EQ(c.model.moe.capacity, 2);
  EXPECT_EQ(c.train.steps, 7);
  EXPECT_EQ(c.train.batch, 6);
  EXPECT_EQ(c.train.block, TrainConfig{}.block);  // of the run, the model alone
  EXPECT_TRUE(c.data.path.empty());
  // As a key of the file or a flag, too; --init wins.
  std::ofstream(file) << "[train]\ninit = \"" << base.string() << "\"\n";
  EXPECT_EQ(load_run_config(file, {}).model.width, model.width);
  EXPECT_EQ(load_run_config("", {"--train.init=" + base.string()}).model.width, model.width);
  EXPECT_EQ(load_run_config("", {"--train.init=nowhere"}, base.string()).train.init, base.string());
}

TEST_F(Init, InstructionsNeedATokenizer) {
  std::ofstream(dir_.path() / "a.jsonl") << R"({"instruction": "a", "output": "b"})";
  config_.data.instruct.train = (dir_.path() / "a.jsonl").string();
  config_.data.path.clear();
  config_.train.init.clear();
  expect_error("needs a tokenizer");
}

}  // namespace
}  // namespace rmoe
