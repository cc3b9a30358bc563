// Entries, scales, the grid of processes and the verdicts of `rmoe reproduce`.
#include <cmath>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/config/run.h"
#include "rmoe/reproduce/entries.h"
#include "rmoe/reproduce/grid.h"
#include "rmoe/reproduce/result.h"
#include "rmoe/reproduce/scale.h"
#include "tests/support/temp_dir.h"

namespace rmoe::reproduce {
namespace {

namespace fs = std::filesystem;

fs::path configs() { return fs::path(RMOE_SOURCE_DIR) / "configs"; }

TEST(Entries, NameConfigsThatExistAndBaselinesOfTheSameEntry) {
  std::set<std::string> names;
  for (const Entry& entry : entries()) {
    EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
    std::set<std::string> labels;
    for (const Row& row : entry.rows) {
      EXPECT_TRUE(fs::exists(configs() / row.config)) << row.config;
      EXPECT_TRUE(labels.insert(row.label).second) << row.label;
    }
    for (const Row& row : entry.rows) {
      EXPECT_TRUE(row.baseline.empty() || labels.contains(row.baseline)) << entry.name << ": " << row.label;
    }
  }
}

// Every table and figure of the paper that shows something of trained models.
TEST(Entries, CoverThePaper) {
  std::set<std::string> names;
  for (int table : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}) names.insert(str("table", table));
  for (int figure = 2; figure <= 14; ++figure) names.insert(str("figure", figure));
  for (const std::string& name : names) EXPECT_NO_THROW(find_entry(name)) << name;
  EXPECT_EQ(find_entry("figure9").name, "figure4");
}

TEST(Entries, AnUnknownNameIsRefusedWithTheNearest) {
  try {
    find_entry("tabel5");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kBadInput);
    EXPECT_NE(error.help().find("'table5'"), std::string::npos) << error.help();
  }
}

TEST(Scale, ThePaperChangesNothing) {
  EXPECT_TRUE(scale_flags(Scale::kPaper, configs() / "enwik8_medium_rmoe.toml").empty());
}

// Every config of every entry is valid at the small scale, and keeps what the comparison is about.
TEST(Scale, CpuKeepsTheRatios) {
  for (const Entry& entry : entries()) {
    for (const Row& row : entry.rows) {
      const fs::path path = configs() / row.config;
      const RunConfig large = load_config<RunConfig>(path, {});
      const RunConfig small = load_config<RunConfig>(path, scale_flags(Scale::kCpu, path));
      EXPECT_EQ(small.model.moe.experts, large.model.moe.experts) << row.config;
      EXPECT_EQ(small.model.moe.top_k, large.model.moe.top_k) << row.config;
      EXPECT_EQ(small.model.moe.stage.kind(), large.model.moe.stage.kind()) << row.config;
      if (large.model.family == Family::kSpan) {
        EXPECT_EQ(small.model.layers, large.model.layers) << row.config;
        EXPECT_EQ(small.model.width * 4, large.model.width) << row.config;
        EXPECT_EQ(small.model.moe.expert_width * 4, large.model.moe.expert_width) << row.config;
      }
      const int64_t divisor = large.model.width / small.model.width;
      EXPECT_EQ(divisor * small.model.width, large.model.width) << row.config;
      EXPECT_EQ(small.model.moe.expert_width, large.model.moe.expert_width / divisor) << row.config;
      EXPECT_EQ(small.model.moe.shared_width, large.model.moe.shared_width / divisor) << row.config;
      EXPECT_EQ(small.model.width % small.model.heads, 0) << row.config;
      EXPECT_EQ(small.model.moe.capacity, large.model.moe.capacity) << row.config;
      const Budget budget = budget_of(path, scale_flags(Scale::kCpu, path));
      EXPECT_EQ(budget.steps, small.train.steps);
      EXPECT_EQ(budget.step_tokens, small.train.batch * small.train.block);
    }
  }
  const fs::path rmoe = configs() / "enwik8_medium_rmoe.toml";
  EXPECT_NE(to_toml(load_config<RunConfig>(rmoe, scale_flags(Scale::kCpu, rmoe))).find("width = 32"),
            std::string::npos);
}

compare::Run run_of(int64_t seed, double test) {
  compare::Run run;
  run.seed = seed;
  compare::Evaluation evaluation;
  evaluation.bits_per_character = test;
  run.test = evaluation;
  run.valid = evaluation;
  return run;
}

RowResult row_of(const std::string& label, const std::string& baseline, std::optional<double> paper,
                 const std::vector<double>& tests) {
  RowResult result;
  result.row = {label, label + ".toml", baseline, {{}, paper, {}, {}}};
  for (size_t i = 0; i < tests.size(); ++i) result.runs.push_back(run_of(static_cast<int64_t>(i) + 1, tests[i]));
  return result;
}

Result judged(const std::vector<double>& ours, std::optional<double> paper) {
  Entry entry;
  entry.name = "table0";
  entry.unit = "bits per character";
  return make_result(entry, "cpu", {row_of("A", "", 1.10, {1.50, 1.52, 1.51}), row_of("B", "A", paper, ours)});
}

TEST(Result, JudgesBySignAndInterval) {
  EXPECT_EQ(judged({1.40, 1.42, 1.412}, 1.05).rows[1].verdict, Verdict::kAgrees);
  EXPECT_EQ(judged({1.40, 1.42, 1.412}, 1.15).rows[1].verdict, Verdict::kDisagrees);
  EXPECT_EQ(judged({1.40, 1.42, 1.412}, std::nullopt).rows[1].verdict, Verdict::kNoNumber);
  EXPECT_EQ(judged({1.40, 1.62, 1.50}, 1.05).rows[1].verdict, Verdict::kNotShown);
  EXPECT_EQ(judged({1.40}, 1.05).rows[1].verdict, Verdict::kOneSeed);
  EXPECT_EQ(judged({}, 1.05).rows[1].verdict, Verdict::kDiverged);
}

TEST(Result, DifferencesArePairedBySeed) {
  const Result result = judged({1.45, 1.48, 1.46}, 1.05);
  const compare::PairedInterval& difference = *result.rows[1].difference;
  EXPECT_EQ(difference.n, 3);
  EXPECT_NEAR(difference.mean, (-0.05 - 0.04 - 0.05) / 3, 1e-12);
  EXPECT_NEAR(*result.rows[1].paper_difference, -0.05, 1e-12);
}

TEST(Result, TablesShowThePaperBesideTheRuns) {
  const Result result = judged({1.40, 1.42, 1.412}, 1.05);
  for (const std::string& text : {to_text(result), to_markdown(result)}) {
    for (const char* part : {"1.100", "1.050", "-0.050", "1.5100", "agrees with the paper", "cpu scale"}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    }
  }
  const Json json = to_json(result);
  EXPECT_EQ(json.at("rows").at(1).at("verdict"), "agrees with the paper");
  EXPECT_EQ(json.at("rows").at(1).at("seeds").size(), 3u);
}

TEST(Result, AnalyzedRunsShowTheirBalance) {
  Entry entry;
  entry.name = "table8";
  entry.unit = "bits per character";
  RowResult row = row_of("A", "", {}, {1.5, 1.6});
  row.row.paper.inner = 34.68;
  row.analyzed = {{.inner = 2.0, .outer = 0.5}, {.inner = 4.0, .outer = 0.7}};
  entry.look = Look::kBalance;
  const std::string text = to_text(make_result(entry, "cpu", {row}));
  for (const char* part : {"34.680", "3.0000 ± 1.4142", "0.6000"})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(Result, AnalyzedRunsShowTheirGradients) {
  Entry entry;
  entry.name = "table11";
  entry.unit = "bits per character";
  entry.look = Look::kGradients;
  RowResult row = row_of("A", "", {}, {1.5, 1.6});
  row.analyzed = {{.gradient = 0.5, .lm_gradient = 0.3, .balance_gradient = 0.01, .dropped = 0.10},
                  {.gradient = 0.7, .lm_gradient = 0.4, .balance_gradient = 0.03, .dropped = 0.14}};
  const Result result = make_result(entry, "cpu", {row});
  const std::string text = to_text(result);
  for (const char* part : {"0.6000", "0.3500", "0.0200", "0.1200", "1.5500"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  EXPECT_EQ(to_json(result).at("rows").at(0).at("analyzed").at(1).at("drop_ratio"), 0.14);
}

// A stand-in for the program: a shell script that gets the words of the command line.
class GridTest : public ::testing::Test {
 protected:
  std::string script(const std::string& body) {
    const fs::path path = dir_.path() / "program";
    std::ofstream(path) << "#!/bin/sh\n" << body;
    fs::permissions(path, fs::perms::owner_all);
    return path.string();
  }
  Job job(const std::string& name) {
    Job job;
    job.name = name;
    job.config = name + ".toml";
    job.folder = dir_.path() / name;
    job.steps = 10;
    return job;
  }
  GridResult run(const std::vector<Job>& jobs, const std::string& program, int64_t processes = 2) {
    return run_grid(jobs, {.program = program, .processes = processes, .threads = 1, .logs = dir_.path() / "logs"});
  }
  TempDir dir_;
};

// As the trainer does, writes a summary whole or not at all: the grid may look at any time.
constexpr const char* kWorks =
    "if [ \"$1\" = train ]; then shift 2\n"
    "  while [ \"$1\" != --out ]; do shift; done\n"
    "  mkdir -p \"$2\"; echo trained >> \"$2/log\"\n"
    "  echo '{\"finished\": true}' > \"$2/summary.tmp\"; mv \"$2/summary.tmp\" \"$2/summary.json\"\n"
    "else mkdir -p \"$2/eval\"; echo '{}' > \"$2/eval/$4.json\"; echo $4 >> \"$2/log\"; fi\n";

TEST_F(GridTest, TrainsAndEvaluatesOnceAndGoesOn) {
  const std::vector<Job> jobs{job("a"), job("b"), job("c")};
  const std::string program = script(kWorks);
  EXPECT_FALSE(is_done(jobs[0]));
  EXPECT_EQ(run(jobs, program).signal, 0);
  for (const Job& one : jobs) {
    EXPECT_TRUE(is_done(one)) << one.name;
    EXPECT_EQ(read_file(one.folder / "log"), "trained\nvalid\ntest\n");
  }
  fs::remove(jobs[1].folder / "eval" / "test.json");  // as after a stop
  run(jobs, program);
  EXPECT_EQ(read_file(jobs[0].folder / "log"), "trained\nvalid\ntest\n");
  EXPECT_EQ(read_file(jobs[1].folder / "log"), "trained\nvalid\ntest\ntest\n");
}

TEST_F(GridTest, AFailureNamesTheRunAndItsLastWords) {
  try {
    run({job("a")}, script("echo first >&2; echo 'no such data' >&2; exit 4\n"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::kIo);
    EXPECT_EQ(error.message(), "reproduce: a ended with exit code 4: no such data");
  }
}

TEST_F(GridTest, ADivergedRunDoesNotStopTheOthers) {
  const std::string program = script(std::string("case \"$2\" in *bad*) exit 3;; esac\n") + kWorks);
  const std::vector<Job> jobs{job("bad"), job("good")};
  const GridResult result = run(jobs, program, 1);
  EXPECT_EQ(result.diverged, std::vector<std::string>{"bad"});
  EXPECT_TRUE(is_done(jobs[1]));
}

TEST(Duration, ReadsLikeSpeech) {
  EXPECT_EQ(duration_text(12.4), "12 s");
  EXPECT_EQ(duration_text(200), "3 min 20 s");
  EXPECT_EQ(duration_text(4321), "1 h 12 min");
}

}  // namespace
}  // namespace rmoe::reproduce
