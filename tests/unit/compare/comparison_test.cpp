#include "rmoe/compare/comparison.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "support/temp_dir.h"
#include "unit/compare/run_folder.h"

namespace rmoe::compare {
namespace {

class Comparing : public testing::Test {
 protected:
  // Adds a run; returns its folder.
  std::string add(const FakeRun& fake) {
    std::string path = write_run(dir_ / std::to_string(paths_.size()), fake);
    paths_.push_back(path);
    return path;
  }
  // SMoE and RMoE with the given test values, seeds 1, 2, ...
  void add_pairs(const std::vector<double>& smoe, const std::vector<double>& rmoe) {
    for (size_t i = 0; i < smoe.size(); ++i)
      add({.name = "SMoE", .seed = static_cast<int64_t>(i) + 1, .test = smoe[i]});
    for (size_t i = 0; i < rmoe.size(); ++i) {
      add({.name = "RMoE",
           .seed = static_cast<int64_t>(i) + 1,
           .stage = "gru",
           .test = rmoe[i],
           .tokens_per_s = 16000});
    }
  }
  Comparison run(const std::string& split = "") { return compare(CompareOptions{.split = split}); }
  Comparison compare(const CompareOptions& options) {
    std::vector<rmoe::compare::Run> runs;
    for (const std::string& path : paths_) runs.push_back(read_run(path));
    return compare_runs(std::move(runs), options);
  }
  std::string error(const std::string& split = "") {
    try {
      run(split);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::kBadInput);
      return e.message();
    }
    return "nothing was thrown";
  }
  static const Measure& measure(const Comparison& c, const std::string& key) {
    auto at = std::find_if(c.measures.begin(), c.measures.end(), [&](const Measure& m) { return m.key == key; });
    if (at == c.measures.end()) throw std::runtime_error("no measure " + key);
    return *at;
  }
  static bool has(const Comparison& c, const std::string& key) {
    return std::any_of(c.measures.begin(), c.measures.end(), [&](const Measure& m) { return m.key == key; });
  }

  TempDir dir_;
  std::vector<std::string> paths_;
};

TEST_F(Comparing, GroupsByConfigurationAndSortsBySeed) {
  add({.name = "RMoE", .seed = 2, .stage = "gru"});
  add({.name = "SMoE", .seed = 1});
  add({.name = "RMoE", .seed = 1, .stage = "gru"});
  Comparison c = run();
  ASSERT_EQ(c.groups.size(), 2u);
  EXPECT_EQ(c.groups[0].name, "RMoE");
  EXPECT_EQ(c.groups[0].runs[0].seed, 1);
  EXPECT_EQ(c.groups[0].runs[1].seed, 2);
  EXPECT_EQ(c.groups[1].name, "SMoE");
  EXPECT_EQ(c.baseline, 1);  // the group without a stage, although it comes second
  EXPECT_EQ(c.split, "test");
  EXPECT_TRUE(c.warnings.empty());
}

TEST_F(Comparing, PairsBySeedAndLeavesOutSeedsWithoutPartner) {
  add({.name = "SMoE", .seed = 1, .test = 1.60});
  add({.name = "SMoE", .seed = 3, .test = 1.70});
  add({.name = "SMoE", .seed = 4, .test = 9.00});
  add({.name = "RMoE", .seed = 3, .stage = "gru", .test = 1.69});
  add({.name = "RMoE", .seed = 1, .stage = "gru", .test = 1.62});
  add({.name = "RMoE", .seed = 9, .stage = "gru", .test = 0.10});
  Comparison c = run();
  ASSERT_EQ(c.differences.size(), 1u);
  const Difference& d = c.differences[0];
  EXPECT_EQ(d.seeds, (std::vector<int64_t>{1, 3}));
  EXPECT_NEAR(d.values[0], 0.02, 1e-12);
  EXPECT_NEAR(d.values[1], -0.01, 1e-12);
  EXPECT_NEAR(d.interval.mean, 0.005, 1e-12);
  EXPECT_EQ(d.first_better, 1);
}

TEST_F(Comparing, DeclaresNoWinnerWhenTheIntervalIncludesZero) {
  add_pairs({1.652, 1.650, 1.654}, {1.655, 1.653, 1.650});
  Comparison c = run();
  EXPECT_EQ(c.differences[0].verdict, Verdict::kNotShown);
  EXPECT_EQ(
      sentence(c, c.differences[0]),
      "RMoE - SMoE, test: +0.0007 bits per character over 3 seeds, 95 % interval -0.0094 to +0.0107 (RMoE better in 1 "
      "of 3): no difference shown; equal within 0.5 %");
}

TEST_F(Comparing, DeclaresAWinnerWhenTheIntervalExcludesZero) {
  add_pairs({1.652, 1.650, 1.654}, {1.642, 1.639, 1.643});
  Comparison c = run();
  EXPECT_EQ(c.differences[0].verdict, Verdict::kDifferent);
  EXPECT_EQ(verdict(c, c.differences[0]), "RMoE is better");
}

TEST_F(Comparing, NamesTheBaselineWhenItIsTheBetterOne) {
  add_pairs({1.642, 1.639, 1.643}, {1.652, 1.650, 1.654});
  Comparison c = run();
  EXPECT_EQ(verdict(c, c.differences[0]), "SMoE is better");
}

TEST_F(Comparing, DecidesNothingWithOneSeed) {
  add_pairs({1.652}, {1.000});
  Comparison c = run();
  EXPECT_EQ(c.differences[0].verdict, Verdict::kOneSeed);
  EXPECT_EQ(sentence(c, c.differences[0]),
            "RMoE - SMoE, test: -0.6520 bits per character with seed 1 alone: one seed decides nothing");
}

TEST_F(Comparing, SaysWhenNoSeedIsInCommon) {
  add({.name = "SMoE", .seed = 1});
  add({.name = "RMoE", .seed = 2, .stage = "gru"});
  Comparison c = run();
  EXPECT_EQ(c.differences[0].verdict, Verdict::kNoPairs);
  EXPECT_EQ(sentence(c, c.differences[0]), "RMoE - SMoE, test: no seed in common, nothing to pair");
  EXPECT_FALSE(has(c, "stage_time_cost"));
}

TEST_F(Comparing, TakesASingleGroup) {
  add({.seed = 1, .test = 1.6});
  add({.seed = 2, .test = 1.8});
  Comparison c = run();
  EXPECT_TRUE(c.differences.empty());
  EXPECT_NEAR(measure(c, "test_bits_per_character").groups[0].mean, 1.7, 1e-12);
  EXPECT_NEAR(measure(c, "test_bits_per_character").groups[0].deviation, std::sqrt(0.02), 1e-12);
}

TEST_F(Comparing, GivesTheStagesCostAsARatioPerSeed) {
  add({.name = "SMoE", .seed = 1, .tokens_per_s = 1000, .peak_memory_bytes = 1000});
  add({.name = "SMoE", .seed = 2, .tokens_per_s = 500, .peak_memory_bytes = 2000});
  add({.name = "RMoE", .seed = 1, .stage = "gru", .tokens_per_s = 800, .peak_memory_bytes = 1100});
  add({.name = "RMoE", .seed = 2, .stage = "gru", .tokens_per_s = 400, .peak_memory_bytes = 2200});
  Comparison c = run();
  EXPECT_EQ(measure(c, "stage_time_cost").groups[0].n, 0);
  EXPECT_NEAR(measure(c, "stage_time_cost").groups[1].mean, 0.25, 1e-12);
  EXPECT_NEAR(measure(c, "stage_time_cost").groups[1].deviation, 0, 1e-12);
  EXPECT_NEAR(measure(c, "stage_memory_cost").groups[1].mean, 0.1, 1e-12);
}

TEST_F(Comparing, TakesTheStagesCostAgainstTheConfigurationThatIsOtherwiseTheSame) {
  add({.name = "SMoE small", .tokens_per_s = 4000, .layers = 2});
  add({.name = "SMoE", .tokens_per_s = 1000, .layers = 4});
  add({.name = "RMoE", .stage = "gru", .tokens_per_s = 800, .layers = 4});
  add({.name = "cosine", .stage = "gru", .tokens_per_s = 800, .layers = 4, .router = "cosine"});
  Comparison c = run();
  const Measure& m = measure(c, "stage_time_cost");
  EXPECT_NEAR(m.groups[2].mean, 0.25, 1e-12);
  EXPECT_EQ(m.groups[3].n, 0);  // no run of the cosine router without a stage
}

TEST_F(Comparing, MeasuresWordLevelDataInPerplexity) {
  add({.name = "SMoE", .valid = 1.05, .test = 1.0, .word_level = true});
  add({.name = "RMoE", .stage = "gru", .test = 1.1, .word_level = true});
  Comparison c = run();
  EXPECT_EQ(c.unit.key, "word_perplexity");
  EXPECT_NEAR(measure(c, "test_word_perplexity").groups[0].mean, 32, 1e-9);
  EXPECT_NEAR(c.differences[0].interval.mean, std::exp2(5.5) - 32, 1e-9);
  EXPECT_EQ(estimate(c, c.differences[0]), "+13.255 perplexity per word with seed 1 alone");
}

TEST_F(Comparing, FallsBackToPerplexityPerTokenWhereCharactersAreUnknown) {
  std::string path = add({.test = 3.0});
  Json eval = read_json_file(path + "/eval/test.json");
  eval["bits_per_character"] = nullptr;
  write_text(path + "/eval/test.json", json_text(eval));
  Comparison c = run();
  EXPECT_EQ(c.unit.key, "perplexity");
  EXPECT_NEAR(measure(c, "test_perplexity").groups[0].mean, 8, 1e-9);
}

TEST_F(Comparing, ComparesOnValidationWhenAskedOrWhenNoTestWasMade) {
  add_pairs({1.65, 1.65}, {1.66, 1.66});
  EXPECT_EQ(run("valid").split, "valid");
  EXPECT_NEAR(run("valid").differences[0].interval.mean, 0, 1e-12);
  std::filesystem::remove(paths_[0] + "/eval/test.json");
  EXPECT_EQ(run().split, "valid");
  EXPECT_EQ(error("test"), "compare: " + paths_[0] + " has no eval/test.json");
  // The mean over some of the seeds would mislead.
  EXPECT_EQ(measure(run(), "test_bits_per_character").groups[0].n, 0);
  std::filesystem::remove(paths_[2] + "/eval/valid.json");
  EXPECT_EQ(error(), "compare: " + paths_[0] + " has no eval/test.json");
  EXPECT_EQ(error("valid"), "compare: " + paths_[2] + " has no eval/valid.json");
}

TEST_F(Comparing, RefusesTheSameSeedTwice) {
  add({.seed = 5});
  add({.seed = 5});
  EXPECT_EQ(error(), "compare: " + paths_[0] + " and " + paths_[1] +
                         " are the same configuration with the same seed (5), expected one run per seed");
}

TEST_F(Comparing, RefusesNoRunsAndOtherSplits) {
  EXPECT_EQ(error(), "compare: no run given");
  add({});
  EXPECT_EQ(error("train"), "compare: metric is 'train', expected test or valid");
}

TEST_F(Comparing, TestsNothingAcrossBudgetsUnlessTold) {
  add_pairs({1.652, 1.650, 1.654}, {});
  for (int64_t seed : {1, 2, 3}) add({.name = "RMoE", .seed = seed, .stage = "gru", .test = 1.0, .steps = 500});
  Comparison c = run();
  ASSERT_EQ(c.warnings.size(), 1u);
  EXPECT_EQ(c.warnings[0], "not the same budget: SMoE 4.10 M tokens in 1000 steps; RMoE 2.05 M tokens in 500 steps");
  EXPECT_FALSE(c.same_budget);
  EXPECT_EQ(sentence(c, c.differences[0]), "RMoE - SMoE, test: not trained on the same budget, so not tested");
  EXPECT_EQ(tests(c, c.differences[0]), "");
  c = compare({.split = "", .anyway = true});
  EXPECT_EQ(verdict(c, c.differences[0]), "RMoE is better, but not at the same budget");
}

TEST_F(Comparing, NamesTheSeedsOfAGroupWhoseRunsDiffer) {
  add({.name = "SMoE", .seed = 1});
  add({.name = "SMoE", .seed = 2, .batch_tokens = 2048});
  Comparison c = run();
  ASSERT_EQ(c.warnings.size(), 2u);
  EXPECT_EQ(c.warnings[1], "not the same batch: SMoE seed 1 4096 tokens; SMoE seed 2 2048 tokens");
}

TEST_F(Comparing, TakesEqualTimeAsABudget) {
  add({.name = "SMoE", .tokens_per_s = 20000, .stop = "minutes"});
  add({.name = "RMoE", .stage = "gru", .steps = 900, .tokens_per_s = 18000, .stop = "minutes"});
  Comparison c = run();
  EXPECT_TRUE(c.same_budget);
  ASSERT_EQ(c.warnings.size(), 1u);
  EXPECT_TRUE(c.warnings[0].starts_with("equal training time, not equal tokens: SMoE 4.10 M tokens")) << c.warnings[0];
}

TEST_F(Comparing, TestsNothingAcrossDifferentData) {
  add({.name = "SMoE", .seed = 1});
  add({.name = "SMoE", .seed = 2});
  add({.name = "RMoE", .seed = 1, .stage = "gru", .test = 1.0, .tokenizer_hash = "0"});
  add({.name = "RMoE", .seed = 2, .stage = "gru", .test = 1.0, .tokenizer_hash = "0"});
  Comparison c = run();
  EXPECT_FALSE(c.same_data);
  EXPECT_TRUE(c.warnings[0].starts_with("not the same data: SMoE data/kjv (tokenizer 89abcdef01234567"))
      << c.warnings[0];
  EXPECT_EQ(sentence(c, c.differences[0]), "RMoE - SMoE, test: measured on different data, so not tested");
  c = compare({.split = "", .anyway = true});
  EXPECT_EQ(verdict(c, c.differences[0]), "RMoE is better, but on different data");
}

TEST_F(Comparing, SaysWhatTheTestsShow) {
  add_pairs({1.652, 1.650, 1.654}, {1.655, 1.653, 1.650});
  Comparison c = run();
  const Difference& d = c.differences[0];
  EXPECT_NEAR(d.margin, 0.005 * 1.652, 1e-12);
  EXPECT_NEAR(d.equivalence_p, equivalence_p_value(d.values, d.margin), 1e-15);
  EXPECT_EQ(d.seeds_needed, pairs_needed(0.01652, d.interval.deviation));
  EXPECT_EQ(tests(c, d),
            "paired t-test p = 0.8020, signed-rank test p = 1.0000 (3 seeds give 0.2500 at least); equal within 0.5 %: "
            "shown (TOST, p = 0.0414); effect size +0.2; to find 1 % takes 3 seeds");
}

TEST_F(Comparing, SaysThatGroupsAreEqualOnlyWithinTheMargin) {
  add_pairs({1.652, 1.650, 1.654, 1.651}, {1.6521, 1.6499, 1.6542, 1.6508});
  EXPECT_EQ(verdict(run(), run().differences[0]), "no difference shown; equal within 0.5 %");
  const Comparison strict = compare({.split = "", .margin = 0.00001});
  EXPECT_EQ(verdict(strict, strict.differences[0]), "no difference shown");
  EXPECT_THROW(compare({.split = "", .margin = 0}), Error);
}

TEST_F(Comparing, SaysThatAClearDifferenceIsSmallerThanTheMargin) {
  add_pairs({1.652, 1.650, 1.654}, {1.651, 1.64901, 1.65302});
  const Comparison c = run();
  EXPECT_EQ(verdict(c, c.differences[0]), "RMoE is better, by less than 0.5 %");
}

// Both on a line in the logarithm of time: 2 - 0.1 ln t and 1.9 - 0.1 ln t, the second half as fast. What the clock
// said does not matter.
TEST_F(Comparing, ComparesQualityAtEqualTime) {
  for (int64_t seed : {1, 2}) add({.name = "SMoE", .seed = seed, .tokens_per_s = 1});
  for (int64_t seed : {1, 2}) add({.name = "RMoE", .seed = seed, .stage = "gru", .tokens_per_s = 0.5});
  for (size_t i = 0; i < paths_.size(); ++i) {
    const bool slow = i >= 2;
    std::string lines;
    for (int step = 1; step <= 4; ++step) {
      const double seconds = step * (slow ? 20.0 : 10.0);
      const double bpc = (slow ? 1.9 : 2.0) - 0.1 * std::log(seconds);
      const Json line = {{"kind", "eval"},   {"step", step}, {"tokens", step * 10}, {"seconds", 7 * step},
                         {"split", "valid"}, {"bpc", bpc},   {"perplexity", 4.0}};
      lines += json_text(line) + "\n";
    }
    write_text(paths_[i] + "/metrics.jsonl", lines);
  }
  const Comparison c = run();
  const EqualTime& e = c.differences[0].equal_time;
  EXPECT_EQ(e.seconds, 40);
  ASSERT_EQ(e.values.size(), 2u);
  EXPECT_NEAR(e.values[0], -0.1, 1e-12);
  EXPECT_EQ(at_equal_time(c, c.differences[0]),
            "at equal training time (40 s, validation): -0.1000 bits per character over 2 seeds, 95 % "
            "interval -0.1000 to -0.1000");
}

TEST_F(Comparing, SaysNothingOfEqualTimeAcrossMachinesOrWithoutEvaluations) {
  add({.name = "SMoE"});
  add({.name = "RMoE", .stage = "gru"});
  EXPECT_EQ(run().differences[0].equal_time.values.size(), 1u);
  add({.name = "elsewhere", .stage = "gru", .layers = 5, .cpu = "Other"});
  EXPECT_TRUE(run().differences[0].equal_time.values.empty());
  paths_.pop_back();
  write_text(paths_[0] + "/metrics.jsonl", "");
  EXPECT_TRUE(run().differences[0].equal_time.values.empty());
  EXPECT_EQ(at_equal_time(run(), run().differences[0]), "");
}

TEST_F(Comparing, TakesTheSameDataInAnotherPlaceAsTheSame) {
  add({.name = "SMoE"});
  add({.name = "RMoE", .stage = "gru", .data_path = "elsewhere"});
  EXPECT_TRUE(run().same_data);
  EXPECT_TRUE(run().warnings.empty());
}

TEST_F(Comparing, WarnsOfAnotherMachine) {
  add({.name = "SMoE"});
  add({.name = "RMoE", .stage = "gru", .cpu = "Other"});
  Comparison c = run();
  ASSERT_EQ(c.warnings.size(), 1u);
  EXPECT_EQ(c.warnings[0],
            "not the same machine, so speeds do not compare: SMoE 2 threads of Test CPU; RMoE 2 threads of Other");
}

TEST_F(Comparing, WarnsOfAnEvaluationOfOldWeights) {
  std::string path = add({});
  Json eval = read_json_file(path + "/eval/test.json");
  eval["checkpoint_step"] = 400;
  write_text(path + "/eval/test.json", json_text(eval));
  Comparison c = run();
  ASSERT_EQ(c.warnings.size(), 1u);
  EXPECT_EQ(c.warnings[0], "not the newest weights: " + path +
                               "/eval/test.json is of step 400, the run's best step is 1000 and its last 1000");
}

TEST_F(Comparing, TellsGroupsOfTheSameNameApart) {
  add({.name = "mine", .layers = 4});
  add({.name = "mine", .layers = 6});
  add({.name = "mine", .stage = "gru", .layers = 6});
  Comparison c = run();
  EXPECT_EQ(c.groups[0].name, "mine (layers 4, stage none)");
  EXPECT_EQ(c.groups[1].name, "mine (layers 6, stage none)");
  EXPECT_EQ(c.groups[2].name, "mine (layers 6, stage gru)");
  ASSERT_EQ(c.config.size(), 2u);
  EXPECT_EQ(c.config[0].key, "model.layers");
  EXPECT_EQ(c.config[0].values, (std::vector<std::string>{"4", "6", "6"}));
}

TEST_F(Comparing, NumbersGroupsThatNothingElseTellsApart) {
  add({.name = "mine"});
  add({.name = "mine", .router = "cosine"});  // the test's config.toml does not show it
  Comparison c = run();
  EXPECT_EQ(c.groups[0].name, "mine (1)");
  EXPECT_EQ(c.groups[1].name, "mine (2)");
}

TEST_F(Comparing, TakesWhatTheNamesOfAGroupShare) {
  add({.name = "smoe-seed1", .seed = 1});
  add({.name = "smoe-seed2", .seed = 2});
  add({.name = "1", .seed = 1, .stage = "gru"});
  add({.name = "2", .seed = 2, .stage = "gru"});
  Comparison c = run();
  EXPECT_EQ(c.groups[0].name, "smoe");
  EXPECT_EQ(c.groups[1].name, "1");
}

TEST_F(Comparing, LeavesOutMeasuresThatNoRunHas) {
  std::string path = add({});
  Json eval = read_json_file(path + "/eval/test.json");
  for (const char* key : {"load_imbalance", "dead_experts", "gate_entropy", "expert_fraction"}) eval.erase(key);
  write_text(path + "/eval/test.json", json_text(eval));
  Comparison c = run();
  EXPECT_FALSE(has(c, "load_imbalance"));
  EXPECT_FALSE(has(c, "gate_entropy"));
  EXPECT_TRUE(has(c, "tokens_per_s"));
}

}  // namespace
}  // namespace rmoe::compare
