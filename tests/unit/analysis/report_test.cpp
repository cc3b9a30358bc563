#include "rmoe/analysis/report.h"

#include <gtest/gtest.h>

#include "rmoe/analysis/routing.h"
#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/analysis/random_chunk.h"
#include "tests/unit/plot/markup.h"

namespace rmoe::analysis {
namespace {

Json made_run(const std::string& name, uint64_t seed, int64_t layers = 3) {
  const Shape s{.layers = layers, .experts = 6, .slots = 2, .top_k = 2};
  const MadeChunk made(s, 200, seed, 3);
  RoutingAnalysis analysis(s, true, TokenKinds({" ", "a", ".", "b", "c"}, {5, 4, 3, 2, 1}));
  analysis.add(made.chunk);
  Json run = {{"name", name},
              {"source", "checkpoint"},
              {"path", "runs/" + name},
              {"first_step", 10},
              {"step", 10},
              {"family", "span"},
              {"stage", "gru"},
              {"router", "linear"},
              {"layers", layers},
              {"moe_layers", layers},
              {"experts", 6},
              {"top_k", 2},
              {"params", 1000},
              {"data", "data/x.tok"},
              {"tokens", 200},
              {"loss", 1.5},
              {"bits_per_character", 2.1}};
  const Json routing = analysis.json();
  for (const auto& [key, value] : routing.items()) run[key] = value;
  run["expert_similarity"] = {
      {"random", 0.4},
      {"random_without_diagonal", 0.01},
      {"checkpoints",
       {{{"step", 5}, {"layers", {0.5, 0.6, 0.7}}, {"layers_without_diagonal", {0.1, 0.2, 0.3}}},
        {{"step", 10}, {"layers", {0.4, 0.5, 0.6}}, {"layers_without_diagonal", {0, 0.1, 0.2}}}}}};
  run["router_weights"] = {{"layers", {{{"norm", 1}, {"deviation", 0.1}}, nullptr, {{"norm", 2}, {"deviation", 0.2}}}}};
  run["gradients"] = {
      {"whole", 1},
      {"lm", 0.8},
      {"balance", 0.3},
      {"drop_ratio", 0.01},
      {"layers", {{{"whole", 1}, {"lm", 1}, {"balance", 0.1}}, {{"whole", 2}, {"lm", 1}, {"balance", 0.1}}}},
      {"training",
       {{{"step", 1}, {"whole", 1}, {"lm", 1}, {"balance", 0.1}, {"drop_ratio", 0}},
        {{"step", 2}, {"whole", 2}, {"lm", 1}, {"balance", 0.1}, {"drop_ratio", 0}}}}};
  run["state_gradient"] = {{"layers", {3.0, 2.0, 1.0}}, {"cut", {1.0, 1.5, 1.0}}};
  return run;
}

Json made_analysis() {
  return {{"format", "rmoe-analysis"},
          {"version", 1},
          {"runs", {made_run("one", 1), made_run("<two> & \"more\"", 2)}},
          {"loss_by_depth",
           {{{"name", "one"},
             {"stage", "gru"},
             {"router", "linear"},
             {"layers", 3},
             {"loss", 1.5},
             {"bits_per_character", 2.1}},
            {{"name", "two"},
             {"stage", "gru"},
             {"router", "linear"},
             {"layers", 6},
             {"loss", 1.4},
             {"bits_per_character", 2.0}}}}};
}

TEST(AnalysisReport, HasASectionForEachOfTheElevenAnalyses) {
  const auto all = sections(made_analysis());
  ASSERT_EQ(all.size(), 11U);
  for (const Section& s : all) {
    EXPECT_FALSE(s.pictures.empty()) << s.id;
    EXPECT_FALSE(s.paper.empty()) << s.id;
    EXPECT_GE(plot::count(s.text, ". "), 1) << s.id << ": two sentences at least";
    EXPECT_GT(plot::count(s.csv, "\n"), 1) << s.id;
  }
}

TEST(AnalysisReport, IsSoundMarkupAndShowsHostileNamesAsText) {
  const std::string page = report_html(made_analysis(), "rmoe analyze 'a<b'");
  EXPECT_EQ(plot::check_markup(page), "");
  EXPECT_EQ(page.find("<two>"), std::string::npos);
  EXPECT_NE(page.find("&lt;two&gt;"), std::string::npos);
  EXPECT_EQ(page.find("@@"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
  EXPECT_NE(page.find("SMoE 34.68 / 0.915"), std::string::npos);
  EXPECT_NE(page.find(">step 10<"), std::string::npos);
}

TEST(AnalysisReport, NamesTheStepsOfATraceOfTraining) {
  EXPECT_EQ(steps_text({{"first_step", 7}, {"step", 7}}), "step 7");
  EXPECT_EQ(steps_text({{"first_step", 0}, {"step", 6}}), "steps 0 to 6");
}

TEST(AnalysisReport, WritesEveryPlotTwiceAndTheNumbers) {
  const TempDir dir;
  write_analysis(made_analysis(), dir / "out", "rmoe analyze");
  for (const Section& s : sections(made_analysis())) {
    EXPECT_EQ(read_file(dir / "out" / "csv" / (s.id + ".csv")), s.csv);
    for (const Picture& picture : s.pictures) {
      EXPECT_EQ(read_file(dir / "out" / "plots" / (picture.file + ".png")).substr(1, 3), "PNG") << picture.file;
      const std::string svg = read_file(dir / "out" / "plots" / (picture.file + ".svg"));
      EXPECT_EQ(svg.find("var(--"), std::string::npos);
      EXPECT_EQ(svg.find("@@"), std::string::npos);
      EXPECT_EQ(plot::check_markup(svg.substr(svg.find("<svg"))), "") << picture.file;
    }
  }
  EXPECT_EQ(parse_json(read_file(dir / "out" / "analysis.json"), "x"), made_analysis());
}

TEST(AnalysisReport, LeavesOutWhatASourceDoesNotHold) {
  Json analysis = made_analysis();
  for (Json& run : analysis["runs"]) {
    for (const char* key : {"mutual_information", "gate_entropy", "balance", "expert_similarity", "router_weights",
                            "gradients", "token_kinds", "state_gradient"}) {
      run[key] = nullptr;
    }
    run["bits_per_character"] = nullptr;
  }
  analysis["loss_by_depth"] = Json::array();
  std::vector<std::string> ids;
  for (const Section& s : sections(analysis)) ids.push_back(s.id);
  EXPECT_EQ(ids, (std::vector<std::string>{"selection", "paths"}));
  EXPECT_EQ(plot::check_markup(report_html(analysis, "x")), "");
}

TEST(AnalysisReport, OneLayerAndOneExpertMakeNoPlotThatCannotBe) {
  Json run = made_run("one", 1, 1);
  run["expert_similarity"] = run["router_weights"] = run["gradients"] = run["state_gradient"] = nullptr;
  const Json analysis = {{"runs", {run}}, {"loss_by_depth", Json::array()}};
  EXPECT_EQ(plot::check_markup(report_html(analysis, "x")), "");
  EXPECT_TRUE(run["mutual_information"]["mean"].is_number() == false ||
              std::isnan(run["mutual_information"]["mean"].get<double>()));
}

}  // namespace
}  // namespace rmoe::analysis
