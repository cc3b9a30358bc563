#include "rmoe/compare/report.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/compare/figures.h"
#include "support/temp_dir.h"
#include "unit/compare/run_folder.h"
#include "unit/plot/markup.h"

namespace rmoe::compare {

using namespace plot;

namespace {

class Report : public testing::Test {
 protected:
  Comparison comparison(const std::vector<FakeRun>& fakes) {
    std::vector<rmoe::compare::Run> runs;
    for (size_t i = 0; i < fakes.size(); ++i) runs.push_back(read_run(write_run(dir_ / std::to_string(i), fakes[i])));
    return compare_runs(std::move(runs));
  }
  static std::vector<FakeRun> two_by_two() {
    std::vector<FakeRun> fakes;
    for (int64_t seed : {1, 2}) {
      fakes.push_back({.name = "SMoE", .seed = seed, .test = 1.65 + 0.001 * static_cast<double>(seed)});
      fakes.push_back({.name = "RMoE", .seed = seed, .stage = "gru", .test = 1.652, .gate_entropy = 2.3});
    }
    return fakes;
  }
  static std::string page(const Comparison& c) {
    std::string html = report_html(c, "rmoe compare a b --report r.html");
    EXPECT_EQ(check_markup(html), "");
    return html;
  }

  TempDir dir_;
};

TEST_F(Report, IsOneFileThatLoadsAndRunsNothing) {
  std::string html = page(comparison(two_by_two()));
  for (const char* forbidden :
       {"<script", "http:", "https:", " src=", " href=", "url(", "@import", "<img", "<iframe", "javascript:"}) {
    EXPECT_EQ(html.find(forbidden), std::string::npos) << forbidden;
  }
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme:dark"), std::string::npos);
  EXPECT_LT(html.size(), 1u << 20);
}

TEST_F(Report, ShowsNumbersPlotsSamplesAndCommands) {
  Comparison c = comparison(two_by_two());
  std::string html = page(c);
  EXPECT_NE(html.find("<title>SMoE and RMoE</title>"), std::string::npos);
  EXPECT_NE(html.find("<strong>no difference shown; equal within 0.5 %</strong>"), std::string::npos);
  EXPECT_NE(html.find("<td class=\"n\">1.652</td><td class=\"d\">± 0.000</td>"), std::string::npos);
  // Intervals, four of learning, two of routing, expert strips of both groups; each with its text.
  EXPECT_EQ(count(html, "<svg "), 9);
  EXPECT_EQ(count(html, "<figcaption>"), 9);
  for (const char* part : {"By training tokens", "By training time", "Difference to SMoE", "On the training text",
                           "Load imbalance", "Gate entropy", "2.08 for 8 experts", "Use of the experts", "rmoe train ",
                           "rmoe compare a b --report r.html", "Test CPU, 2 threads", "model.moe.stage.kind"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(count(html, "-again --split test\n"), 4);
  EXPECT_EQ(count(html, "In the beginning &lt;b&gt;&amp;"), 4);
}

TEST_F(Report, EscapesEverythingThatRunsCanHold) {
  const std::string attack = "</pre><script>alert(\"1\")</script>`id`'\x01\xFF";
  std::vector<FakeRun> fakes = two_by_two();
  for (FakeRun& fake : fakes) {
    fake.name += attack;
    fake.sample = attack;
    fake.data_path = attack;
    fake.tokenizer_hash = attack;
    fake.cpu = attack;
  }
  // A folder's name may hold it too.
  std::vector<rmoe::compare::Run> runs;
  for (size_t i = 0; i < fakes.size(); ++i) {
    Json hash(fakes[i].tokenizer_hash);
    for (std::string* text : {&fakes[i].name, &fakes[i].data_path, &fakes[i].tokenizer_hash, &fakes[i].cpu}) {
      text->resize(text->size() - 2);  // JSON holds no invalid bytes
    }
    runs.push_back(read_run(write_run(dir_ / ("'<i>" + std::to_string(i)), fakes[i])));
  }
  std::string html = page(compare_runs(std::move(runs)));
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("<i>0"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;"), std::string::npos);
  EXPECT_EQ(html.find('\x01'), std::string::npos);
  EXPECT_EQ(html.find("uid="), std::string::npos);  // gnuplot would run what stands in backquotes
}

TEST_F(Report, MarksGroupsThatAreNotCausalAndSaysWhatThatMeans) {
  std::vector<FakeRun> fakes = two_by_two();
  EXPECT_EQ(count(page(comparison(fakes)), "†"), 0);
  for (FakeRun& fake : fakes) fake.causal = fake.name == "SMoE";
  const std::string html = page(comparison(fakes));
  EXPECT_NE(html.find(">RMoE †</span></th>"), std::string::npos);
  EXPECT_EQ(html.find("SMoE †"), std::string::npos);
  EXPECT_NE(html.find("<p class=\"warning\">†: the choice of experts sees tokens to come"), std::string::npos);
}

TEST_F(Report, SaysThatOneSeedDecidesNothing) {
  std::vector<FakeRun> fakes = two_by_two();
  fakes.resize(2);
  std::string html = page(comparison(fakes));
  EXPECT_NE(html.find("one seed decides nothing"), std::string::npos);
  EXPECT_NE(html.find("there is no deviation to show"), std::string::npos);
  EXPECT_EQ(html.find("±"), std::string::npos);
}

TEST_F(Report, TurnsManyGroupsIntoRows) {
  std::vector<FakeRun> fakes;
  for (int g = 0; g < 6; ++g) {
    for (int64_t seed : {1, 2})
      fakes.push_back({.name = "router " + std::to_string(g), .seed = seed, .router = std::to_string(g)});
  }
  std::string html = page(comparison(fakes));
  EXPECT_NE(html.find("<title>Comparison of 6 models</title>"), std::string::npos);
  EXPECT_EQ(count(html, "<table class=\"rows\">"), 4);  // quality and size, cost, routing, differences
}

TEST_F(Report, LeavesOutPlotsWithoutNumbers) {
  std::vector<FakeRun> fakes = two_by_two();
  std::vector<rmoe::compare::Run> runs;
  for (size_t i = 0; i < fakes.size(); ++i) {
    fakes[i].sample = "";
    std::filesystem::path folder = write_run(dir_ / std::to_string(i), fakes[i]);
    write_text(folder / "metrics.jsonl", "");
    Json eval = read_json_file(folder / "eval/test.json");
    eval.erase("expert_fraction");
    write_text(folder / "eval/test.json", json_text(eval));
    runs.push_back(read_run(folder.string()));
  }
  std::string html = page(compare_runs(std::move(runs)));
  EXPECT_EQ(count(html, "<svg "), 1);
  EXPECT_EQ(html.find("<h2>Samples"), std::string::npos);
  EXPECT_EQ(html.find("<h2>Learning"), std::string::npos);
}

TEST_F(Report, DrawsTheGapAtTheTokensThatBothRunsWereEvaluatedAt) {
  Comparison c = comparison(two_by_two());
  AllCurves curves = read_all_curves(c);
  curves[1][0].valid.erase(curves[1][0].valid.begin() + 3);
  LinePlot gap = validation_gap(c, curves);
  ASSERT_EQ(gap.groups.size(), 1u);
  ASSERT_EQ(gap.groups[0].runs.size(), 2u);
  EXPECT_EQ(gap.groups[0].runs[0].size(), 19u);
  EXPECT_EQ(gap.groups[0].runs[1].size(), 20u);
  double expected = curves[1][1].valid[5].bpc - curves[0][1].valid[5].bpc;
  EXPECT_NEAR(gap.groups[0].runs[1][5].y, expected, 1e-12);
}

TEST_F(Report, RanksExpertsBeforeItAveragesOverSeeds) {
  Comparison c = comparison({{.seed = 1}, {.seed = 2}});
  c.groups[0].runs[0].test->expert_fraction = {{0.7, 0.2, 0.1}};
  c.groups[0].runs[1].test->expert_fraction = {{0.0, 0.5, 0.5}};
  auto load = ranked_load(c.groups[0], "test");
  ASSERT_EQ(load.size(), 1u);
  EXPECT_NEAR(load[0][0], 3 * 0.6, 1e-12);
  EXPECT_NEAR(load[0][1], 3 * 0.35, 1e-12);
  EXPECT_NEAR(load[0][2], 3 * 0.05, 1e-12);
  c.groups[0].runs[1].test->expert_fraction = {{0.5, 0.5}};
  EXPECT_TRUE(ranked_load(c.groups[0], "test").empty());
}

TEST(ShellWord, QuotesWhatAShellWouldTakeApart) {
  EXPECT_EQ(shell_word("runs/a-1.toml"), "runs/a-1.toml");
  EXPECT_EQ(shell_word("a b"), "'a b'");
  EXPECT_EQ(shell_word("it's"), "'it'\\''s'");
  EXPECT_EQ(shell_word("$(x)"), "'$(x)'");
  EXPECT_EQ(shell_word(""), "''");
}

}  // namespace
}  // namespace rmoe::compare
