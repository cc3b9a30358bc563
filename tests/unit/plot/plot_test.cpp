#include "rmoe/plot/plot.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "unit/plot/markup.h"

namespace rmoe::plot {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

LinePlot two_groups() {
  LinePlot plot{.title = "a \"title\"", .x_label = "step", .y_label = "bits", .groups = {}};
  for (int g = 0; g < 2; ++g) {
    PlotGroup group{g == 0 ? "SMoE" : "RMoE", g, {}};
    for (int s = 0; s < 3; ++s) {
      std::vector<PlotPoint> run;
      for (int i = 0; i < 20; ++i) run.push_back({i * 10.0, 3 - 0.05 * i + 0.1 * g + 0.01 * s});
      group.runs.push_back(run);
    }
    plot.groups.push_back(group);
  }
  return plot;
}

void expect_inline_svg(const std::string& svg) {
  EXPECT_EQ(check_markup(svg), "");
  EXPECT_TRUE(svg.starts_with("<svg class=\"plot\" role=\"img\""));
  // Colours, fonts and sizes are the page's; nothing that must be unique or points elsewhere is left.
  for (const char* forbidden : {"rgb(", "font-family", " id=", "xlink", "<defs", "<use", "@@", "<style", "<script"}) {
    EXPECT_EQ(svg.find(forbidden), std::string::npos) << forbidden;
  }
}

TEST(LinePlot, IsSelfContainedAndThemed) {
  std::string svg = line_plot(two_groups());
  expect_inline_svg(svg);
  for (const char* part : {"var(--c0)", "var(--c1)", "var(--grid)", "var(--faint)", "var(--ink)", ">SMoE<", ">RMoE<",
                           ">step<", ">bits<", "aria-label=\"a &quot;title&quot;\""}) {
    EXPECT_NE(svg.find(part), std::string::npos) << part;
  }
  // Three thin lines and a mean per group.
  EXPECT_EQ(count(svg, "stroke:var(--c0)"), 4);
}

TEST(LinePlot, LeavesOutSingleRunsWhenOnlyMeansAreAskedFor) {
  LinePlot plot = two_groups();
  plot.means_only = true;
  EXPECT_EQ(count(line_plot(plot), "stroke:var(--c0)"), 1);
}

TEST(LinePlot, EscapesLabelsAndNeverExecutesThem) {
  LinePlot plot = two_groups();
  plot.groups[0].label = "`id`'\"$(x)\\n";
  plot.y_label = "<b>&'\"`date`";
  std::string svg = line_plot(plot);
  expect_inline_svg(svg);
  EXPECT_NE(svg.find("`id`&#39;&quot;$(x)\\n"), std::string::npos);
  EXPECT_NE(svg.find("&lt;b&gt;&amp;&#39;&quot;`date`"), std::string::npos);
}

TEST(LinePlot, SkipsPointsThatAreNotFinite) {
  LinePlot plot = two_groups();
  plot.groups[0].runs = {{{0, kNaN}, {1, 2}, {2, kNaN}, {kNaN, 3}, {3, 1}}};
  std::string svg = line_plot(plot);
  expect_inline_svg(svg);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  plot.groups = {{"x", 0, {{{0, kNaN}, {1, 2}}}}};
  EXPECT_FALSE(has_lines(plot));
  EXPECT_THROW(line_plot(plot), Error);
}

TEST(LinePlot, TakesConstantLinesAndRunsWithoutCommonX) {
  LinePlot plot{.title = "t", .x_label = "x", .y_label = "y", .groups = {{"flat", 0, {{{1, 0}, {2, 0}}}}}};
  expect_inline_svg(line_plot(plot));
  plot.groups = {{"apart", 0, {{{0, 1}, {1, 2}}, {{5, 1}, {6, 2}, {7, 1}}}}};
  expect_inline_svg(line_plot(plot));
}

TEST(IntervalPlot, DrawsSeedsMeanAndIntervalOfEveryRow) {
  std::string svg =
      interval_plot("d", "bits", {{"A − B", {-0.1, 0.2, 0.3}, 0.13, -0.3, 0.5}, {"C − B", {0.1}, 0.1, kNaN, kNaN}});
  expect_inline_svg(svg);
  EXPECT_EQ(count(svg, "<circle"), 5);  // 3 seeds and their mean; the single seed is its own mean
  EXPECT_NE(svg.find("A − B"), std::string::npos);
}

TEST(IntervalPlot, TakesASingleZero) { expect_inline_svg(interval_plot("d", "bits", {{"A − B", {0}, 0, kNaN, kNaN}})); }

TEST(HeatStrips, HasACellPerExpertAndKeepsThePalestLevelForTheUnused) {
  std::string svg = heat_strips("h", "expert", "layer", {{4, 0.001, 0}, {2, 1, 1}}, 4);
  expect_inline_svg(svg);
  EXPECT_EQ(count(svg, "<polygon"), 6);
  EXPECT_EQ(count(svg, "var(--h0)"), 1);
  EXPECT_EQ(count(svg, "var(--h1)"), 1);
  EXPECT_EQ(count(svg, "var(--h10)"), 1);
  EXPECT_THROW(heat_strips("h", "expert", "layer", {{1, 2}, {1}}, 4), Error);
}

TEST(Smooth, KeepsAConstantAndFollowsAStep) {
  std::vector<PlotPoint> points;
  for (int i = 0; i < 40; ++i) points.push_back({1.0 * i, 5});
  for (const PlotPoint& p : smooth(points, 3)) EXPECT_NEAR(p.y, 5, 1e-12);
  for (int i = 40; i < 80; ++i) points.push_back({1.0 * i, 7});
  // After one half-life, half of the step is left; the weights before it have all but reached their sum.
  EXPECT_NEAR(smooth(points, 3)[42].y, 6, 1e-3);
  EXPECT_EQ(smooth({{0, kNaN}, {1, 2}}, 3).size(), 1u);
}

TEST(ThinOut, KeepsBothEnds) {
  std::vector<PlotPoint> points;
  for (int i = 0; i < 1001; ++i) points.push_back({1.0 * i, 0});
  std::vector<PlotPoint> few = thin_out(points, 100);
  EXPECT_EQ(few.size(), 100u);
  EXPECT_EQ(few.front().x, 0);
  EXPECT_EQ(few.back().x, 1000);
  EXPECT_EQ(thin_out(points, 2000).size(), points.size());
}

TEST(MeanLine, InterpolatesOverTheCommonRange) {
  std::vector<PlotPoint> mean = mean_line({{{0, 0}, {4, 4}}, {{1, 3}, {3, 5}, {6, 5}}});
  ASSERT_EQ(mean.size(), 3u);  // x = 1, 3, 4
  EXPECT_EQ(mean[0].x, 1);
  EXPECT_DOUBLE_EQ(mean[0].y, 2);
  EXPECT_DOUBLE_EQ(mean[1].y, 4);
  EXPECT_EQ(mean[2].x, 4);
  EXPECT_DOUBLE_EQ(mean[2].y, 4.5);
  EXPECT_TRUE(mean_line({{{0, 0}, {1, 1}}, {{2, 0}, {3, 1}, {4, 1}}}).empty());
}

TEST(MeanLine, AveragesLinesOfEquallyManyPointsPointByPoint) {
  std::vector<PlotPoint> mean = mean_line({{{10, 4}, {20, 2}}, {{14, 6}, {30, 3}}});
  ASSERT_EQ(mean.size(), 2u);
  EXPECT_DOUBLE_EQ(mean[0].x, 12);
  EXPECT_DOUBLE_EQ(mean[0].y, 5);
  EXPECT_DOUBLE_EQ(mean[1].x, 25);
  EXPECT_DOUBLE_EQ(mean[1].y, 2.5);
}

TEST(HeatMap, HasACellForEachFiniteValueAndAScale) {
  HeatMap map{.title = "map",
              .x_label = "x",
              .y_label = "y",
              .unit = "nats",
              .values = {{0, 1, 2}, {2, std::nan(""), 1}},
              .largest = 2,
              .row_labels = {"<first>", "second"}};
  const std::string svg = heat_map(map);
  EXPECT_EQ(check_markup(svg), "");
  EXPECT_NE(svg.find("&lt;first&gt;"), std::string::npos);
  EXPECT_NE(svg.find("--h10"), std::string::npos);
  map.values[0][2] = 0;
  map.values[1][0] = 0;
  EXPECT_GT(count(svg, "--h10"), count(heat_map(map), "--h10"));
  EXPECT_EQ(heat_map(map, Format::kPng).substr(1, 3), "PNG");
  EXPECT_EQ(heat_map(map, Format::kSvg).find("var(--"), std::string::npos);
}

TEST(BoxPlot, DrawsBoxesAndTheDashedLine) {
  BoxPlot plot{
      .title = "boxes",
      .x_label = "step",
      .y_label = "value",
      .groups = {{"a", 0, {{100, {1, 2, 3, 4, 5}}, {200, {2, 2, 2}}}, 0.5}, {"b", 1, {{100, {3}}}, std::nan("")}}};
  EXPECT_TRUE(has_boxes(plot));
  const std::string svg = box_plot(plot);
  EXPECT_EQ(check_markup(svg), "");
  EXPECT_NE(svg.find("stroke-dasharray"), std::string::npos);
  EXPECT_NE(svg.find("--c1"), std::string::npos);
  EXPECT_EQ(box_plot(plot, Format::kPng).substr(1, 3), "PNG");
  EXPECT_FALSE(has_boxes({.title = "", .x_label = "", .y_label = "", .groups = {{"a", 0, {{1, {}}}, 0}}}));
}

TEST(LinePlot, IsTheSameAsAFileAndAsAPicture) {
  LinePlot plot;
  plot.title = "t";
  plot.x_label = "it's 100 %";
  plot.groups = {{"a", 0, {{{0, 1}, {1, 2}}}}};
  const std::string file = line_plot(plot, Format::kSvg);
  EXPECT_EQ(file.substr(0, 5), "<?xml");
  EXPECT_NE(file.find("#0067a3"), std::string::npos);
  EXPECT_EQ(line_plot(plot, Format::kPng).substr(1, 3), "PNG");
}

}  // namespace
}  // namespace rmoe::plot
