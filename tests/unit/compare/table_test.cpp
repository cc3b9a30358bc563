#include "rmoe/compare/table.h"

#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/plot/html.h"
#include "support/temp_dir.h"
#include "unit/compare/run_folder.h"

namespace rmoe::compare {

using namespace plot;

namespace {

Comparison compare_fakes(const std::vector<FakeRun>& fakes) {
  TempDir dir;
  std::vector<Run> runs;
  for (size_t i = 0; i < fakes.size(); ++i) {
    runs.push_back(read_run(write_run(dir / std::to_string(i), fakes[i])));
    runs.back().path = "runs/" + std::to_string(i);
  }
  return compare_runs(std::move(runs));
}

std::vector<FakeRun> three_seeds() {
  std::vector<FakeRun> fakes;
  const std::vector<double> smoe = {1.652, 1.650, 1.654}, rmoe = {1.655, 1.653, 1.650};
  for (int64_t s = 0; s < 3; ++s) {
    auto i = static_cast<size_t>(s);
    fakes.push_back({.name = "SMoE",
                     .seed = s + 1,
                     .valid = smoe[i] - 0.01,
                     .test = smoe[i],
                     .tokens_per_s = 21400.0 + 10.0 * static_cast<double>(s)});
    fakes.push_back({.name = "RMoE",
                     .seed = s + 1,
                     .stage = "gru",
                     .valid = rmoe[i] - 0.01,
                     .test = rmoe[i],
                     .params = 4'937'000,
                     .active_params = 1'657'000,
                     .tokens_per_s = 19800.0 - 10.0 * static_cast<double>(s),
                     .peak_memory_bytes = (int64_t{930} + s) << 20,
                     .load_imbalance = 1.25,
                     .dead_experts = s == 2 ? 1.0 : 0.0,
                     .gate_entropy = 2.2});
  }
  return fakes;
}

TEST(Text, IsTheTableOfTheDemo) {
  EXPECT_EQ(to_text(compare_fakes(three_seeds())), R"(                                       SMoE            RMoE
───────────────────────────────────────────────────────────────────
seeds                                     3               3
parameters (M)                         4.80            4.94
active parameters (M)                  1.52            1.66
validation bits per character         1.642 ± 0.002   1.643 ± 0.003
test bits per character               1.652 ± 0.002   1.653 ± 0.003
training tokens (M)                    4.10            4.10
training tokens per second            21410 ± 10      19790 ± 10
training time (s)                       191 ± 0         207 ± 0
training FLOPs per token (M)           9.12            9.12
peak memory (MiB)                       900 ± 0         931 ± 1
recurrent stage, cost in time (%)         -            +8.2 ± 0.1
recurrent stage, cost in memory (%)       -            +3.4 ± 0.1
load imbalance (max / mean)            1.50 ± 0.00     1.25 ± 0.00
dead experts                            0.0 ± 0.0       0.3 ± 0.6
gate entropy (nats)                   2.100 ± 0.000   2.200 ± 0.000
±: standard deviation over seeds (- with a single seed).

Differences, paired by seed (test bits per character, lower is better)
  RMoE - SMoE, test: +0.0007 bits per character over 3 seeds, 95 % interval -0.0094 to +0.0107 (RMoE
    better in 1 of 3): no difference shown; equal within 0.5 %
    paired t-test p = 0.8020, signed-rank test p = 1.0000 (3 seeds give 0.2500 at least); equal
      within 0.5 %: shown (TOST, p = 0.0414); effect size +0.2; to find 1 % takes 3 seeds
    at equal training time (191 s, validation): -0.0009 bits per character over 3 seeds, 95 %
      interval -0.0066 to +0.0048
)");
}

// SMoE beside a run whose router sees tokens to come, and is better by it.
std::vector<FakeRun> one_not_causal() {
  std::vector<FakeRun> fakes = three_seeds();
  for (FakeRun& fake : fakes) {
    if (fake.name == "SMoE") continue;
    fake.name = "EC";
    fake.test -= 0.5;
    fake.causal = false;
  }
  return fakes;
}

TEST(NotCausal, IsMarkedBesideTheGroupInEveryFormat) {
  const Comparison c = compare_fakes(one_not_causal());
  const std::string text = to_text(c);
  EXPECT_TRUE(text.starts_with("                                       SMoE            EC †\n")) << text;
  EXPECT_NE(text.find("\n†: the choice of experts sees tokens to come,"), std::string::npos) << text;
  EXPECT_NE(text.find("EC † is better"), std::string::npos) << text;
  const std::string rows = to_text(c, 40);
  EXPECT_NE(rows.find("\nEC † "), std::string::npos) << rows;
  const std::string markdown = to_markdown(c);
  EXPECT_TRUE(markdown.starts_with("| | SMoE | EC † |\n")) << markdown;
  EXPECT_NE(markdown.find("\n†: the choice of experts"), std::string::npos) << markdown;
  const std::string csv = to_csv(c);
  EXPECT_NE(csv.find(",causal\nSMoE,"), std::string::npos) << csv;
  EXPECT_NE(csv.find(",true\nEC,"), std::string::npos) << csv;
  EXPECT_TRUE(csv.ends_with(",false\n")) << csv;
  const Json json = to_json(c);
  EXPECT_EQ(json["groups"][0]["causal"], true);
  EXPECT_EQ(json["groups"][1]["causal"], false);
  EXPECT_EQ(json["groups"][1]["name"], "EC");
}

TEST(NotCausal, HasNoNoteWhereAllGroupsAre) {
  const Comparison c = compare_fakes(three_seeds());
  EXPECT_EQ(causal_note(c), "");
  EXPECT_EQ((to_text(c) + to_markdown(c)).find("†"), std::string::npos);
}

TEST(Text, ShowsADashForTheDeviationOfOneSeed) {
  std::vector<FakeRun> fakes = three_seeds();
  fakes.resize(2);
  fakes[1].steps = 500;
  std::string text = to_text(compare_fakes(fakes));
  EXPECT_NE(text.find("test bits per character               1.652 ± -   1.655 ± -\n"), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with(R"(
  RMoE - SMoE, test: not trained on the same budget, so not tested

warning: not the same budget: SMoE 4.10 M tokens in 1000 steps; RMoE 2.05 M tokens in 500 steps
)")) << text;
}

TEST(Text, TurnsManyGroupsIntoRowsAndStaysInTheTerminal) {
  std::vector<FakeRun> fakes;
  for (int g = 0; g < 7; ++g) {
    for (int64_t seed : {1, 2}) {
      FakeRun fake{.name = "Ein längerer Name für Gruppe Nummer " + std::to_string(g),
                   .seed = seed,
                   .router = std::to_string(g)};
      fake.test += 0.01 * g * static_cast<double>(seed);
      fakes.push_back(fake);
    }
  }
  fakes[0].name = fakes[1].name = "SMoE";
  std::string text = to_text(compare_fakes(fakes));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(utf8_length(line), 100u) << line;
  EXPECT_NE(text.find("seeds   params (M)   active (M)   valid bpc       test bpc\n"), std::string::npos) << text;
  EXPECT_NE(text.find("6 intervals side by side"), std::string::npos);
  // Shortened in the table, whole in the sentences (which wrap).
  EXPECT_NE(text.find("Ein längerer Name für Grupp…"), std::string::npos);
}

TEST(Text, LetsALongNameRunOverItsDeviations) {
  std::vector<FakeRun> fakes = three_seeds();
  for (FakeRun& fake : fakes) fake.name += " with more";
  std::string text = to_text(compare_fakes(fakes));
  EXPECT_TRUE(text.starts_with("                                      SMoE with more   RMoE with more\n")) << text;
}

TEST(Text, ShowsLargeMemoryInGiBAndSmallModelsInThousands) {
  std::string text = to_text(compare_fakes({{.params = 52'300, .peak_memory_bytes = int64_t{40} << 30}}));
  EXPECT_NE(text.find("parameters (K)                    52.3\n"), std::string::npos) << text;
  EXPECT_NE(text.find("peak memory (GiB)                40.00 ± -\n"), std::string::npos) << text;
}

TEST(Markdown, IsATableWithEscapedNames) {
  std::vector<FakeRun> fakes = three_seeds();
  for (FakeRun& fake : fakes) fake.name += "|*";
  std::string text = to_markdown(compare_fakes(fakes));
  EXPECT_TRUE(text.starts_with("| | SMoE\\|\\* | RMoE\\|\\* |\n|---|---:|---:|\n| seeds | 3 | 3 |\n")) << text;
  EXPECT_NE(text.find("\n| test bits per character | 1.652 ± 0.002 | 1.653 ± 0.003 |\n"), std::string::npos);
  EXPECT_NE(text.find("\n- RMoE\\|\\* - SMoE\\|\\*, test: +0.0007 bits"), std::string::npos) << text;
}

TEST(Csv, HasARowPerGroupWithExactNumbers) {
  std::vector<FakeRun> fakes = three_seeds();
  for (size_t i = 1; i < fakes.size(); i += 2) fakes[i].name = "RMoE, \"mine\"";
  std::istringstream lines(to_csv(compare_fakes(fakes)));
  std::string head, smoe, rmoe, more;
  std::getline(lines, head);
  std::getline(lines, smoe);
  std::getline(lines, rmoe);
  EXPECT_FALSE(std::getline(lines, more));
  EXPECT_TRUE(
      head.starts_with("group,seeds,params,active_params,valid_bits_per_character,valid_bits_per_character_deviation"));
  EXPECT_TRUE(smoe.starts_with("SMoE,3,4800000,1520000,")) << smoe;
  EXPECT_TRUE(rmoe.starts_with("\"RMoE, \"\"mine\"\"\",3,4937000,1657000,")) << rmoe;
  EXPECT_NE(rmoe.find(",SMoE,test_bits_per_character,3,0.00066666666666"), std::string::npos) << rmoe;
  auto commas = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
  EXPECT_EQ(commas(head), commas(smoe));
  EXPECT_EQ(commas(head) + 1, commas(rmoe));  // one inside quotes
}

TEST(JsonOutput, HoldsMeasuresDifferencesAndWarnings) {
  std::vector<FakeRun> fakes = three_seeds();
  fakes[1].cpu = "Other";
  Json json = to_json(compare_fakes(fakes));
  EXPECT_EQ(json["metric"]["unit"], "bits_per_character");
  EXPECT_EQ(json["baseline"], "SMoE");
  ASSERT_EQ(json["groups"].size(), 2u);
  EXPECT_EQ(json["groups"][1]["name"], "RMoE");
  EXPECT_EQ(json["groups"][1]["runs"][2]["seed"], 3);
  EXPECT_EQ(json["groups"][1]["runs"][2]["value"], 1.650);
  EXPECT_EQ(json["groups"][0]["measures"]["test_bits_per_character"]["n"], 3);
  EXPECT_NEAR(json["groups"][0]["measures"]["test_bits_per_character"]["mean"].get<double>(), 1.652, 1e-12);
  EXPECT_TRUE(json["groups"][0]["measures"]["stage_time_cost"]["mean"].is_null());
  ASSERT_EQ(json["differences"].size(), 1u);
  EXPECT_EQ(json["differences"][0]["verdict"], "no difference shown");
  EXPECT_NEAR(json["differences"][0]["low"].get<double>(), -0.00937, 1e-5);
  EXPECT_NEAR(json["differences"][0]["p_value"].get<double>(), 0.8020, 1e-4);
  EXPECT_EQ(json["differences"][0]["signed_rank_p_value"], 1.0);
  EXPECT_NEAR(json["differences"][0]["equivalence"]["margin"].get<double>(), 0.00826, 1e-12);
  EXPECT_EQ(json["differences"][0]["seeds_for_1_percent"], 3);
  EXPECT_TRUE(json["differences"][0]["equal_time"].is_null());  // not the same machine
  EXPECT_EQ(json["config_differences"]["model.moe.stage.kind"]["RMoE"], "gru");
  EXPECT_EQ(json["warnings"].size(), 1u);
  // Whole through text and back: nothing in it is NaN.
  EXPECT_EQ(parse_json(json_text(json), "test"), json);
}

TEST(JsonOutput, HasNullForWhatOneSeedCannotTell) {
  std::vector<FakeRun> fakes = three_seeds();
  fakes.resize(2);
  Json json = to_json(compare_fakes(fakes));
  EXPECT_TRUE(json["differences"][0]["low"].is_null());
  EXPECT_EQ(json["differences"][0]["verdict"], "one seed");
  EXPECT_TRUE(json["groups"][0]["measures"]["test_bits_per_character"]["deviation"].is_null());
}

}  // namespace
}  // namespace rmoe::compare
