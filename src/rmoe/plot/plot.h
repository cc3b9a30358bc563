// Small vector plots for the report, drawn by gnuplot and returned as inline SVG elements.
//
// Colours are CSS variables, so that one plot serves light and dark pages: --ink (text and axes), --faint (secondary
// text), --grid (grid lines), --c0 .. --c7 (series, for readers of every kind of colour vision), --h0 .. --h10 (levels
// of a heat strip). Text takes the font of the page. No text from outside reaches gnuplot: labels are put in
// afterwards, escaped. All plots are kPlotWidth wide and scale with their box.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rmoe::plot {

// How a plot is returned.
enum class Format {
  kInline,  // an SVG element for a page
  kSvg,     // a file of its own, in the colours of a light page
  kPng,     // the same, as a picture of twice the size
};

inline constexpr int kPlotWidth = 460;
inline constexpr int kNarrowWidth = 360;
inline constexpr int kSeriesColours = 8;
inline constexpr int kHeatLevels = 11;

struct PlotPoint {
  double x = 0;
  double y = 0;
};

// The lines of one group: one thin line per run, and the mean over runs drawn strong where there are several.
struct PlotGroup {
  std::string label;
  int colour = 0;  // any number; taken modulo kSeriesColours
  std::vector<std::vector<PlotPoint>> runs;
};

struct LinePlot {
  std::string title;  // for screen readers
  std::string x_label;
  std::string y_label;
  std::vector<PlotGroup> groups;
  bool clip_start = false;  // scale y to what follows the first quarter of x, where learning curves fall steeply
  bool means_only = false;  // leave out the thin lines of groups with several runs
  bool zero_line = false;   // draw y = 0, which is then inside the range
  bool whole_x = false;     // x counts something: marks at whole numbers only
};

// Points that are not finite are skipped. Throws Error(kBug) when no group has two points; see has_lines().
std::string line_plot(const LinePlot& plot, Format format = Format::kInline);
bool has_lines(const LinePlot& plot);

// Paired differences: a dot per seed, the mean and its interval (low > high or NaN: none) per row, around zero.
struct IntervalRow {
  std::string label;
  std::vector<double> values;
  double mean = 0;
  double low = 0;
  double high = 0;
};
std::string interval_plot(const std::string& title, const std::string& x_label, const std::vector<IntervalRow>& rows);

// One strip per row of `values` (row 0 on top, labelled 1), one cell per column; 0 is the palest level, `largest` the
// strongest. All rows have the same length.
std::string heat_strips(const std::string& title, const std::string& x_label, const std::string& y_label,
                        const std::vector<std::vector<double>>& values, double largest);

// A cell per value, row 0 on top, with a scale below: 0 (or `least`) is the palest level, `largest` the strongest; NaN
// is left blank. Labels that are empty are replaced by numbers from 1 on.
struct HeatMap {
  std::string title, x_label, y_label, unit;
  std::vector<std::vector<double>> values;  // rows of equal length
  double least = 0, largest = 1;
  std::vector<std::string> row_labels;
  bool square = false;  // cells are about as high as wide
};
std::string heat_map(const HeatMap& map, Format format = Format::kInline);

// Boxes (quartiles, median, whiskers to the extremes) of several groups at the same places, and a dashed line per
// group.
struct BoxPlot {
  struct Group {
    std::string label;
    int colour = 0;
    std::vector<std::pair<double, std::vector<double>>> boxes;  // x, values
    double dashed = 0;                                          // NaN: none
  };
  std::string title, x_label, y_label;
  std::vector<Group> groups;
};
std::string box_plot(const BoxPlot& plot, Format format = Format::kInline);
bool has_boxes(const BoxPlot& plot);

// Moving mean with exponential weights (bias-corrected; `half_life` in points); points that are not finite are left
// out.
std::vector<PlotPoint> smooth(const std::vector<PlotPoint>& points, double half_life);
// About evenly spaced points, both ends among them.
std::vector<PlotPoint> thin_out(const std::vector<PlotPoint>& points, int64_t most);
// The mean of several lines. Lines with equally many points are averaged point by point, in x too: the third evaluation
// of every seed becomes the third of the mean, however long each took. Others are interpolated over the x they share.
// Lines are sorted by x.
std::vector<PlotPoint> mean_line(const std::vector<std::vector<PlotPoint>>& lines);

}  // namespace rmoe::plot
