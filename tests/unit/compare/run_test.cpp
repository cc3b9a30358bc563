#include "rmoe/compare/run.h"

#include <cmath>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "support/temp_dir.h"
#include "unit/compare/run_folder.h"

namespace rmoe::compare {
namespace {

namespace fs = std::filesystem;

Error error_of(const std::string& path) {
  try {
    read_run(path);
  } catch (const Error& e) {
    EXPECT_EQ(e.message().find('\n'), std::string::npos);
    return e;
  }
  return Error(Exit::kDone, "nothing was thrown");
}

// Replaces `from` in a file of the run, which must hold it.
void edit(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = read_file(path);
  size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << path << " lacks " << from;
  write_text(path, text.replace(at, from.size(), to));
}

TEST(ReadRun, TakesAllThatATrainerWrites) {
  TempDir dir;
  FakeRun fake;
  fake.seed = 7;
  fake.stage = "gru";
  const auto run = read_run(write_run(dir / "a", fake) + "/");
  EXPECT_EQ(run.path, (dir / "a").string());
  EXPECT_EQ(run.name, "SMoE");
  EXPECT_EQ(run.seed, 7);
  EXPECT_TRUE(run.has_stage());
  EXPECT_EQ(run.params, fake.params);
  EXPECT_EQ(run.tokens, fake.tokens());
  EXPECT_EQ(run.best_step, fake.steps);
  EXPECT_EQ(run.config.at("model.layers"), "4");
  EXPECT_EQ(run.config.at("model.moe.stage.kind"), "gru");
  ASSERT_TRUE(run.test && run.valid);
  EXPECT_EQ(run.test->bits_per_character, fake.test);
  EXPECT_EQ(run.valid->bits_per_character, fake.valid);
  EXPECT_FALSE(run.test->word_level());
  EXPECT_EQ(run.test->expert_fraction.size(), 4u);
  EXPECT_EQ(read_sample(run), fake.sample);
  Curves curves = read_curves(run);
  EXPECT_EQ(curves.train.size(), 100u);
  EXPECT_EQ(curves.valid.size(), 20u);
  EXPECT_EQ(curves.train.back().tokens, fake.tokens());
  EXPECT_NEAR(curves.valid.back().bpc, fake.valid, 0.02);
}

TEST(ReadRun, TakesNullAndMissingNumbersAsUnknown) {
  TempDir dir;
  std::string path = write_run(dir / "a", {.sample = ""});
  Json eval = read_json_file(dir / "a/eval/test.json");
  eval["bits_per_character"] = nullptr;
  eval.erase("load_imbalance");
  eval["expert_fraction"] = Json::array();
  write_text(dir / "a/eval/test.json", json_text(eval));
  fs::remove(dir / "a/eval/valid.json");
  write_text(dir / "a/metrics.jsonl",
             "{\"kind\":\"train\",\"step\":1,\"tokens\":9,\"loss\":null}\n{\"kind\":\"other\"}\n{\"torn");
  const auto run = read_run(path);
  EXPECT_FALSE(run.test->bits_per_character);
  EXPECT_FALSE(run.test->load_imbalance);
  EXPECT_FALSE(run.valid);
  EXPECT_EQ(read_sample(run), "");
  Curves curves = read_curves(run);
  ASSERT_EQ(curves.train.size(), 1u);
  EXPECT_TRUE(std::isnan(curves.train[0].loss));
}

TEST(ReadRun, IsCausalUnlessTheSummaryOrAnEvaluationSaysOtherwise) {
  TempDir dir;
  EXPECT_TRUE(read_run(write_run(dir / "a", {})).causal);
  EXPECT_FALSE(read_run(write_run(dir / "b", {.causal = false})).causal);
  std::string path = write_run(dir / "c", {});
  edit(dir / "c/eval/test.json", "\"causal\": true", "\"causal\": false");
  EXPECT_FALSE(read_run(path).causal);
  path = write_run(dir / "d", {});
  edit(dir / "d/summary.json", "\"causal\": true", "\"casual\": false");
  EXPECT_TRUE(read_run(path).causal);
  edit(dir / "d/summary.json", "\"casual\": false", "\"causal\": \"no\"");
  EXPECT_NE(error_of(path).message().find("'causal'"), std::string::npos);
}

TEST(ReadRun, TellsWordLevelDataByItsTokens) {
  TempDir dir;
  const auto run = read_run(write_run(dir / "a", {.word_level = true}));
  EXPECT_TRUE(run.test->word_level());
}

TEST(ReadRun, MakesNamesPrintable) {
  TempDir dir;
  const auto run = read_run(write_run(dir / "a", {.name = "a\n\x1B[31mb"}));
  EXPECT_EQ(run.name, "a \xEF\xBF\xBD[31mb");
}

TEST(ReadRun, NamesANamelessRunAfterItsFolder) {
  TempDir dir;
  EXPECT_EQ(read_run(write_run(dir / "smoe-1", {.name = ""})).name, "smoe-1");
}

TEST(ReadRun, SaysWhatIsNoRunFolder) {
  TempDir dir;
  std::string missing = (dir / "x").string();
  EXPECT_EQ(error_of(missing).message(), "compare: " + missing + " does not exist");
  EXPECT_EQ(error_of(missing).code(), Exit::kIo);

  write_text(dir / "file", "");
  EXPECT_EQ(error_of((dir / "file").string()).message(), "compare: " + (dir / "file").string() + " is not a folder");

  Error e = error_of(dir.path().string());
  EXPECT_EQ(e.message(), "compare: " + dir.path().string() + " is not a run folder: it has no config.toml");
  EXPECT_EQ(e.help(), "a run folder is what `rmoe train --out FOLDER` writes");

  write_run(dir / "inside", {});
  EXPECT_NE(error_of(dir.path().string()).help().find("/*/"), std::string::npos);
}

TEST(ReadRun, RefusesUnfinishedRuns) {
  TempDir dir;
  std::string path = write_run(dir / "a", {.finished = false});
  EXPECT_EQ(error_of(path).code(), Exit::kBadInput);
  EXPECT_EQ(error_of(path).message(), "compare: " + path + " is unfinished: it ended at step 1000");
  fs::remove(dir / "a/summary.json");
  EXPECT_EQ(error_of(path).message(), "compare: " + path + " is unfinished: it has no summary.json yet");
  EXPECT_NE(error_of(path).help().find("--resume must"), std::string::npos);
}

TEST(ReadRun, NamesTheFileAndTheFieldThatIsWrong) {
  TempDir dir;
  std::string path = write_run(dir / "a", {});
  std::string summary = (dir / "a/summary.json").string();
  edit(summary, "\"params\":", "\"parms\":");
  EXPECT_NE(error_of(path).message().find(summary), std::string::npos) << error_of(path).message();
  EXPECT_NE(error_of(path).message().find("'params'"), std::string::npos) << error_of(path).message();
  edit(summary, "\"parms\": 4800000", "\"params\": \"many\"");
  EXPECT_NE(error_of(path).message().find("'params'"), std::string::npos);
  write_text(summary, "{\"name\": ");
  EXPECT_EQ(error_of(path).code(), Exit::kBadInput);
  EXPECT_NE(error_of(path).message().find(summary), std::string::npos);
}

TEST(ReadRun, RefusesAnEvaluationOfAnotherSplit) {
  TempDir dir;
  std::string path = write_run(dir / "a", {});
  fs::copy_file(dir / "a/eval/test.json", dir / "a/eval/valid.json", fs::copy_options::overwrite_existing);
  EXPECT_NE(error_of(path).message().find("'split' is 'test', expected 'valid'"), std::string::npos);
}

TEST(ReadRun, RefusesExpertFractionsOfAnotherShape) {
  TempDir dir;
  std::string path = write_run(dir / "a", {});
  for (const char* wrong : {"3", "[1, 2]", "[[1, \"x\"]]", "{}"}) {
    Json eval = read_json_file(dir / "a/eval/test.json");
    eval["expert_fraction"] = Json::parse(wrong);
    write_text(dir / "a/eval/test.json", json_text(eval));
    EXPECT_NE(error_of(path).message().find("'expert_fraction'"), std::string::npos) << wrong;
  }
}

TEST(ReadCurves, NeedsTheMetrics) {
  TempDir dir;
  const auto run = read_run(write_run(dir / "a", {}));
  fs::remove(dir / "a/metrics.jsonl");
  EXPECT_THROW(read_curves(run), Error);
}

}  // namespace
}  // namespace rmoe::compare
