// gnuplot is given placeholder colours (#RRGGBB with R = 1, 2 or 3) and placeholder texts (@@0@@, @@1@@, ...); its SVG
// is then cut down to the drawing, and both are replaced.
#include "rmoe/plot/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string_view>

#include "rmoe/base/error.h"
#include "rmoe/base/utf8.h"
#include "rmoe/plot/gnuplot.h"
#include "rmoe/plot/html.h"
#include "rmoe/plot/number.h"
#include "rmoe/plot/style.h"

namespace rmoe::plot {
namespace {

constexpr const char* kInk = "#010000";
constexpr const char* kFaint = "#010001";
constexpr const char* kGrid = "#010002";
constexpr int kFontSize = 12;
constexpr double kCharacterWidth = 7.6;  // of a letter of a wide sans-serif font at kFontSize, on average

// The CSS variable that stands for a placeholder colour; empty for colours of gnuplot's own.
std::string variable_of(int red, int green, int blue) {
  if (green != 0) return "";
  if (red == 1) return std::array{"ink", "faint", "grid"}.at(static_cast<size_t>(blue));
  if (red == 2) return str("c", blue);
  if (red == 3) return str("h", blue);
  return "";
}

std::string series_colour(int colour) {
  char text[16];
  std::snprintf(text, sizeof text, "#0200%02x", colour % kSeriesColours);
  return text;
}

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", v);
  return text;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

void remove_all(std::string& text, std::string_view begin, std::string_view end) {
  for (size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at)) {
    size_t stop = text.find(end, at + begin.size());
    if (stop == std::string::npos) return;
    text.erase(at, stop + end.size() - at);
  }
}

// attribute="rgb(r, g, b)" -> style="attribute:var(--name)"
void use_theme_colours(std::string& svg) {
  constexpr std::string_view kRgb = "rgb(";
  for (size_t at = svg.find(kRgb); at != std::string::npos; at = svg.find(kRgb, at)) {
    int red = 0, green = 0, blue = 0;
    size_t quote = svg.find(')', at) + 1;
    std::string name;
    if (std::sscanf(svg.c_str() + at, "rgb(%d,%d,%d)", &red, &green, &blue) == 3) name = variable_of(red, green, blue);
    size_t equals = svg.rfind('=', at);
    if (name.empty() || equals == std::string::npos || quote >= svg.size()) {
      at += kRgb.size();
      continue;
    }
    size_t last = svg.find_last_not_of(' ', equals - 1);
    size_t first = svg.find_last_of(" \t\n", last) + 1;
    std::string style = str("style=\"", svg.substr(first, last + 1 - first), ":var(--", name, ")\"");
    svg.replace(first, quote + 1 - first, style);
    at = first + style.size();
  }
}

// gnuplot opens and closes a group for every pen change, most of them empty.
void remove_empty_groups(std::string& svg) {
  bool changed = true;
  while (changed) {
    changed = false;
    for (size_t close = svg.find("</g>"); close != std::string::npos; close = svg.find("</g>", close)) {
      size_t end_of_open = svg.find_last_not_of(" \t\n", close - 1);
      size_t open = svg.rfind('<', close - 1);
      bool empty = end_of_open != std::string::npos && svg[end_of_open] == '>' && svg.compare(open, 3, "<g ") == 0 &&
                   svg.find('>', open) == end_of_open;
      if (empty) {
        svg.erase(open, close + 4 - open);
        close = open;
        changed = true;
      } else {
        close += 4;
      }
    }
  }
}

class Script {
 public:
  Script(int width, int height, Format format = Format::kInline) : width_(width), height_(height), format_(format) {
    if (format == Format::kPng) {
      line("set terminal pngcairo size ", 2 * width, ",", 2 * height, " rounded noenhanced font 'sans,", kFontSize,
           "' fontscale 1.5 linewidth 2 pointscale 2");
    } else {
      line("set terminal svg size ", width, ",", height, " dynamic rounded noenhanced font 'sans,", kFontSize, "'");
    }
    line("set encoding utf8");
    line("unset key");
    line("set tics nomirror out scale 0.3 textcolor rgb '", kFaint, "'");
  }

  template <class... Parts>
  void line(const Parts&... parts) {
    text_ += str(parts...) + "\n";
  }

  // The plot area, in pixels from the edges of the picture.
  void margins(double left, double right, double top, double bottom) {
    line("set lmargin at screen ", number(left / width_));
    line("set rmargin at screen ", number(1 - right / width_));
    line("set tmargin at screen ", number(1 - top / height_));
    line("set bmargin at screen ", number(bottom / height_));
  }

  // `x`, `y` in pixels from the left and from the top; y is the middle of the line.
  void text(double x, double y, const std::string& words, const std::string& colour, const char* align = "left") {
    line("set label '", placeholder(words), "' at screen ", number(x / width_), ",", number(1 - y / height_), " ",
         align, " textcolor rgb '", colour, "'");
  }

  // A filled rectangle in a colour of the heat scale; `x`, `y` as for text.
  void swatch(double x, double y, double wide, double high, int level) {
    char colour[16];
    std::snprintf(colour, sizeof colour, "#%06llx", static_cast<long long unsigned>(heat(level)));
    line("set object rectangle from screen ", number(x / width_), ",", number(1 - (y + high / 2) / height_),
         " to screen ", number((x + wide) / width_), ",", number(1 - (y - high / 2) / height_), " fillcolor rgb '",
         colour, "' fillstyle solid noborder");
  }

  void data(const std::string& name, const std::vector<PlotPoint>& points) {
    line("$", name, " << EOD");
    for (const PlotPoint& p : points) line(number(p.x), " ", number(p.y));
    line("EOD");
  }

  // A colour of the heat scale as a number in the data.
  int64_t heat(int level) const {
    if (format_ != Format::kPng) return 0x030000 + level;
    return std::strtol(light_colour(str("h", level)).substr(1).c_str(), nullptr, 16);
  }

  std::string draw(const std::string& title) {
    if (format_ == Format::kPng) return draw_png();
    std::string svg = draw_inline(title);
    return format_ == Format::kInline ? svg : standalone(std::move(svg));
  }

 private:
  std::string draw_inline(const std::string& title) {
    std::string svg = run_gnuplot(text_);
    size_t begin = svg.find("<g id=\"gnuplot_canvas\">");
    size_t end = svg.rfind("</svg>");
    RMOE_ASSERT(begin != std::string::npos && end != std::string::npos, "gnuplot's output is not the SVG expected");
    svg = svg.substr(begin, end - begin);
    remove_all(svg, "<defs>", "</defs>");
    remove_all(svg, "<title>", "</title>");
    remove_all(svg, " id=\"", "\"");  // not unique once several plots stand in one page
    remove_all(svg, " font-family=\"", "\"");
    remove_all(svg, " class=\"gridline", "\"");
    replace_all(svg, "<rect x=\"0\" y=\"0\"", "<rect");
    replace_all(svg, "<use xlink:href='#gpPt6'", "<circle r='1' stroke='none'");
    replace_all(svg, ") color='", ")' fill='");
    replace_all(svg, ")' color='", ")' fill='");
    replace_all(svg, "  '", "'");
    use_theme_colours(svg);
    remove_empty_groups(svg);
    for (size_t i = 0; i < labels_.size(); ++i) replace_all(svg, str("@@", i, "@@"), escape_html(labels_[i]));
    replace_all(svg, "\n\n", "\n");
    return str("<svg class=\"plot\" role=\"img\" aria-label=\"", escape_html(title), "\" viewBox=\"0 0 ", width_, " ",
               height_, "\">\n", svg, "</svg>\n");
  }

  // The placeholders of colours and texts filled in before gnuplot sees the script.
  std::string draw_png() const {
    std::string script = text_;
    const auto fill = [&](const char* kind, int red, int count) {
      for (int i = 0; i < count; ++i) {
        const std::string name = red == 1 ? variable_of(1, 0, i) : str(kind, i);
        char placeholder[16];
        std::snprintf(placeholder, sizeof placeholder, "0%d00%02x'", red, i);
        replace_all(script, placeholder, light_colour(name).substr(1) + "'");
      }
    };
    fill("", 1, 3);
    fill("c", 2, kSeriesColours);
    for (size_t i = labels_.size(); i-- > 0;) {
      std::string label = printable_utf8(labels_[i]);
      replace_all(label, "'", "''");
      replace_all(label, "\n", " ");
      replace_all(script, str("@@", i, "@@"), label);
    }
    return run_gnuplot(script);
  }

  std::string standalone(std::string svg) const {
    for (size_t at = svg.find("var(--"); at != std::string::npos; at = svg.find("var(--", at)) {
      const size_t end = svg.find(')', at);
      svg.replace(at, end + 1 - at, light_colour(svg.substr(at + 6, end - at - 6)));
    }
    const size_t open = svg.find('>');
    svg.insert(open + 1, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
    svg.insert(4, str(" xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" width=\"", width_,
                      "\" height=\"", height_, "\""));
    return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" + svg;
  }

  std::string placeholder(const std::string& words) {
    labels_.push_back(words);
    return str("@@", labels_.size() - 1, "@@");
  }

  int width_;
  int height_;
  Format format_;
  std::string text_;
  std::vector<std::string> labels_;
};

// An axis from `low` to `high` with about `ticks` round numbers.
struct Axis {
  double low = 0, high = 0, step = 1;
  int decimals = 0;
};
Axis nice_axis(double low, double high, double ticks) {
  if (!(high > low)) {
    double room = std::max(std::abs(low) * 0.05, 1e-6);
    low -= room;
    high += room;
  }
  double rough = (high - low) / ticks;
  double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  }
  int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return {low, high, step, decimals};
}

void set_axis(Script& script, const char* name, const Axis& axis) {
  script.line("set ", name, "range [", number(axis.low), ":", number(axis.high), "]");
  script.line("set ", name, "tics ", number(std::ceil(axis.low / axis.step - 1e-9) * axis.step), ",",
              number(axis.step));
  script.line("set format ", name, " '%.", axis.decimals, "f'");
}

std::vector<PlotPoint> finite(const std::vector<PlotPoint>& points) {
  std::vector<PlotPoint> out;
  for (const PlotPoint& p : points) {
    if (std::isfinite(p.x) && std::isfinite(p.y)) out.push_back(p);
  }
  return out;
}

// Moves labels (middles, pixels from the top) apart to `spacing`, keeping their order and the range.
void spread(std::vector<double>& y, double spacing, double top, double bottom) {
  std::vector<size_t> order(y.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return y[a] < y[b]; });
  double floor = top;
  for (size_t i : order) {
    y[i] = std::max(y[i], floor);
    floor = y[i] + spacing;
  }
  double ceiling = bottom;
  for (auto i = order.rbegin(); i != order.rend(); ++i) {
    y[*i] = std::min(y[*i], ceiling);
    ceiling = y[*i] - spacing;
  }
}

}  // namespace

std::vector<PlotPoint> smooth(const std::vector<PlotPoint>& points, double half_life) {
  std::vector<PlotPoint> out;
  double keep = std::exp2(-1 / std::max(half_life, 1e-9));
  double sum = 0;
  double weight = 0;
  for (const PlotPoint& p : points) {
    if (!std::isfinite(p.y)) continue;
    sum = keep * sum + (1 - keep) * p.y;
    weight = keep * weight + (1 - keep);
    out.push_back({p.x, sum / weight});
  }
  return out;
}

std::vector<PlotPoint> thin_out(const std::vector<PlotPoint>& points, int64_t most) {
  auto n = static_cast<int64_t>(points.size());
  if (n <= most || most < 2) return points;
  std::vector<PlotPoint> out;
  for (int64_t i = 0; i < most; ++i) out.push_back(points[static_cast<size_t>(i * (n - 1) / (most - 1))]);
  return out;
}

std::vector<PlotPoint> mean_line(const std::vector<std::vector<PlotPoint>>& lines) {
  bool alike = !lines.empty() && std::all_of(lines.begin(), lines.end(),
                                             [&](const auto& line) { return line.size() == lines[0].size(); });
  if (alike) {
    std::vector<PlotPoint> out(lines[0].size());
    auto n = static_cast<double>(lines.size());
    for (const auto& line : lines) {
      for (size_t i = 0; i < out.size(); ++i) out[i] = {out[i].x + line[i].x / n, out[i].y + line[i].y / n};
    }
    return out;
  }
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  std::vector<double> grid;
  for (const auto& line : lines) {
    if (line.empty()) return {};
    low = std::max(low, line.front().x);
    high = std::min(high, line.back().x);
    for (const PlotPoint& p : line) grid.push_back(p.x);
  }
  std::sort(grid.begin(), grid.end());
  grid.erase(std::unique(grid.begin(), grid.end()), grid.end());
  std::vector<PlotPoint> out;
  for (double x : grid) {
    if (x < low || x > high) continue;
    double sum = 0;
    for (const auto& line : lines) {
      auto right = std::lower_bound(line.begin(), line.end(), x, [](const PlotPoint& p, double v) { return p.x < v; });
      if (right == line.begin() || right->x == x) {
        sum += right->y;
      } else {
        auto left = right - 1;
        sum += left->y + (right->y - left->y) * (x - left->x) / (right->x - left->x);
      }
    }
    out.push_back({x, sum / static_cast<double>(lines.size())});
  }
  return out;
}

bool has_lines(const LinePlot& plot) {
  for (const PlotGroup& g : plot.groups) {
    for (const auto& run : g.runs) {
      if (finite(run).size() >= 2) return true;
    }
  }
  return false;
}

std::string line_plot(const LinePlot& plot, Format format) {
  RMOE_ASSERT(has_lines(plot), "line_plot: nothing to draw in '", plot.title, "'");
  constexpr int kHeight = 290;
  constexpr double kTop = 34, kBottom = 46, kLeft = 46;
  constexpr double kLabelSpacing = 15;
  constexpr size_t kLongestLabel = 16;

  struct Line {
    std::vector<PlotPoint> points;
    int colour;
    bool strong;
  };
  struct EndLabel {
    std::string text;
    int colour;
    double value;
  };
  std::vector<Line> lines;
  std::vector<EndLabel> labels;
  size_t longest = 0;
  for (const PlotGroup& g : plot.groups) {
    std::vector<std::vector<PlotPoint>> runs;
    for (const auto& run : g.runs) {
      if (auto points = finite(run); points.size() >= 2) runs.push_back(std::move(points));
    }
    if (runs.empty()) continue;
    std::vector<PlotPoint> strong = runs.size() == 1 ? runs[0] : mean_line(runs);
    if (runs.size() > 1 && !plot.means_only) {
      for (auto& run : runs) lines.push_back({std::move(run), g.colour, false});
    }
    if (strong.empty()) continue;  // runs that share no x
    labels.push_back({shorten(g.label, kLongestLabel), g.colour, strong.back().y});
    longest = std::max(longest, utf8_length(labels.back().text));
    lines.push_back({std::move(strong), g.colour, true});
  }
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.strong < b.strong; });

  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double x_low = kInfinity, x_high = -kInfinity, y_low = kInfinity, y_high = -kInfinity;
  for (const Line& line : lines) {
    x_low = std::min(x_low, line.points.front().x);
    x_high = std::max(x_high, line.points.back().x);
  }
  if (x_low < 0.2 * x_high && x_low > 0) x_low = 0;
  for (const Line& line : lines) {
    for (const PlotPoint& p : line.points) {
      bool counts = !plot.clip_start || p.x >= x_low + 0.25 * (x_high - x_low);
      // Curves that fall need only the top clipped; those around zero start on either side.
      if (counts || !plot.zero_line) y_low = std::min(y_low, p.y);
      if (counts) y_high = std::max(y_high, p.y);
    }
  }
  if (plot.zero_line) {
    y_low = std::min(y_low, 0.0);
    y_high = std::max(y_high, 0.0);
  }
  double room = std::max((y_high - y_low) * 0.05, std::abs(y_high) * 1e-3);
  Axis x = nice_axis(x_low, x_high, 5);
  if (plot.whole_x && x.step < 1) x.step = 1, x.decimals = 0;
  // What cannot be negative has no room below 0.
  Axis y = nice_axis(y_low >= 0 ? std::max(y_low - room, 0.0) : y_low - room, y_high + room, 5);

  Script script(kPlotWidth, kHeight, format);
  double right = 12 + kCharacterWidth * static_cast<double>(longest);
  script.margins(kLeft, right, kTop, kBottom);
  script.line("set border 1 lc rgb '", kFaint, "'");
  script.line("set grid ytics lt 1 lw 1 lc rgb '", kGrid, "'");
  set_axis(script, "x", x);
  set_axis(script, "y", y);
  script.line("set ytics scale 0");
  if (plot.zero_line)
    script.line("set arrow from graph 0,first 0 to graph 1,first 0 nohead lw 1 lc rgb '", kFaint, "'");
  script.text(0, 13, plot.y_label, kInk);
  script.text(kPlotWidth - right, kHeight - 10, plot.x_label, kInk, "right");

  double height = kHeight - kTop - kBottom;
  std::vector<double> middles;
  for (const EndLabel& label : labels) middles.push_back(kTop + height * (y.high - label.value) / (y.high - y.low));
  spread(middles, kLabelSpacing, kTop, kTop + height);
  for (size_t i = 0; i < labels.size(); ++i) {
    script.text(kPlotWidth - right + 6, middles[i], labels[i].text, series_colour(labels[i].colour));
  }
  std::string command;
  for (size_t i = 0; i < lines.size(); ++i) {
    script.data(str("L", i), lines[i].points);
    std::string colour = series_colour(lines[i].colour);
    if (!lines[i].strong) colour = "#90" + colour.substr(1);  // mostly transparent
    command += str(i == 0 ? "plot " : ", ", "$L", i, " using 1:2 with lines lw ", lines[i].strong ? 2 : 1, " lc rgb '",
                   colour, "'");
  }
  script.line(command);
  return script.draw(plot.title);
}

std::string interval_plot(const std::string& title, const std::string& x_label, const std::vector<IntervalRow>& rows) {
  RMOE_ASSERT(!rows.empty(), "interval_plot: nothing to draw in '", title, "'");
  constexpr int kRowHeight = 50;
  constexpr double kTop = 6, kBottom = 50, kSide = 16;
  auto count = static_cast<int>(rows.size());
  int height = static_cast<int>(kTop + kBottom) + kRowHeight * count;

  double low = 0, high = 0;
  for (const IntervalRow& row : rows) {
    std::vector<double> all = row.values;
    all.insert(all.end(), {row.mean, row.low, row.high});
    for (double v : all) {
      if (!std::isfinite(v)) continue;
      low = std::min(low, v);
      high = std::max(high, v);
    }
  }
  double room = std::max((high - low) * 0.06, 1e-6);
  Script script(kNarrowWidth, height);
  script.margins(kSide, kSide, kTop, kBottom);
  script.line("set border 1 lc rgb '", kFaint, "'");
  set_axis(script, "x", nice_axis(low - room, high + room, 5));
  script.line("unset ytics");
  script.line("set yrange [", count, ":0]");
  script.line("set arrow from 0,graph 0 to 0,graph 1 nohead lw 1 lc rgb '", kFaint, "'");
  script.text(kNarrowWidth / 2.0, height - 10, x_label, kInk, "center");

  std::vector<PlotPoint> seeds, means;
  for (int i = 0; i < count; ++i) {
    const IntervalRow& row = rows[static_cast<size_t>(i)];
    script.text(kSide, kTop + kRowHeight * i + 9, shorten(row.label, 44), kInk);
    if (row.values.size() > 1) {  // a single seed is its own mean
      for (double v : row.values) seeds.push_back({v, i + 0.82});
    }
    means.push_back({row.mean, i + 0.55});
    if (std::isfinite(row.low) && std::isfinite(row.high)) {
      script.line("set arrow from ", number(row.low), ",", i + 0.55, " to ", number(row.high), ",", i + 0.55,
                  " nohead lw 2 lc rgb '", kInk, "'");
    }
  }
  script.data("Means", finite(means));
  seeds = finite(seeds);
  if (!seeds.empty()) script.data("Seeds", seeds);
  std::string dots = str("$Seeds using 1:2 with points pt 7 ps 0.5 lc rgb '", kFaint, "', ");
  script.line("plot ", seeds.empty() ? "" : dots, "$Means using 1:2 with points pt 7 ps 0.9 lc rgb '", kInk, "'");
  return script.draw(title);
}

std::string heat_strips(const std::string& title, const std::string& x_label, const std::string& y_label,
                        const std::vector<std::vector<double>>& values, double largest) {
  RMOE_ASSERT(!values.empty() && !values[0].empty() && largest > 0, "heat_strips: nothing to draw in '", title, "'");
  constexpr double kTop = 26, kBottom = 42, kLeft = 34, kRight = 10;
  auto layers = static_cast<int>(values.size());
  auto columns = values[0].size();
  int row_height = std::clamp(170 / layers, 7, 16);
  Script script(kPlotWidth, static_cast<int>(kTop + kBottom) + row_height * layers);
  script.margins(kLeft, kRight, kTop, kBottom);
  script.line("unset border");
  script.line("set xrange [0.5:", columns, ".5]");
  script.line("set yrange [", layers, ".5:0.5]");
  std::string rank_marks = "'1' 1";
  if (columns > 1) rank_marks += str(", '", columns, "' ", columns);
  script.line("set xtics scale 0 (", rank_marks, ")");
  int every = std::max(1, static_cast<int>(std::ceil(12.0 / row_height * (layers > 8 ? 2 : 1))));
  script.line("set ytics scale 0 1,", every);
  script.line("set format y '%.0f'");
  script.text(0, 12, y_label, kInk);
  script.text(kPlotWidth / 2.0, kTop + row_height * layers + 30, x_label, kInk, "center");
  script.line("$Cells << EOD");
  for (size_t l = 0; l < values.size(); ++l) {
    RMOE_ASSERT(values[l].size() == columns, "heat_strips: rows of ", columns, " and ", values[l].size(), " cells");
    for (size_t n = 0; n < columns; ++n) {
      double share = std::clamp(values[l][n] / largest, 0.0, 1.0);
      int level = static_cast<int>(std::lround(share * (kHeatLevels - 1)));
      if (values[l][n] > 0) level = std::max(level, 1);  // the palest level is kept for what is never used
      script.line(n + 1, " ", l + 1, " ", 0x030000 + level);
    }
  }
  script.line("EOD");
  script.line(
      "plot $Cells using 1:2:($1-0.5):($1+0.5):($2-0.42):($2+0.42):3 with boxxyerror fs solid noborder lc rgb "
      "variable");
  return script.draw(title);
}

std::string heat_map(const HeatMap& map, Format format) {
  const auto rows = static_cast<int>(map.values.size());
  RMOE_ASSERT(rows > 0 && !map.values[0].empty() && map.largest > map.least, "heat_map: nothing to draw in '",
              map.title, "'");
  const auto columns = static_cast<int>(map.values[0].size());
  constexpr double kTop = 26, kRight = 12;
  constexpr int kScale = 34;  // below the cells: the scale
  size_t longest = 2;
  for (const std::string& label : map.row_labels) longest = std::max(longest, utf8_length(label));
  const double left = 14 + kCharacterWidth * static_cast<double>(longest);
  const double wide = kPlotWidth - left - kRight;
  int cell = std::clamp(200 / rows, 9, 22);
  if (map.square) cell = std::clamp(static_cast<int>(wide / columns), 9, std::max(280 / rows, 9));
  const double high = cell * rows, bottom = 40 + kScale;
  const double width = map.square ? std::min(wide, static_cast<double>(cell) * columns * 1.25) : wide;
  const int height = static_cast<int>(kTop + high + bottom);
  Script script(kPlotWidth, height, format);
  script.margins(left, kPlotWidth - left - width, kTop, bottom);
  script.line("unset border");
  script.line("set xrange [0.5:", columns, ".5]");
  script.line("set yrange [", rows, ".5:0.5]");
  script.line("set xtics scale 0 1,", std::max(1, (columns + 15) / 16));
  script.line("set format x '%.0f'");
  if (map.row_labels.empty()) {
    script.line("set ytics scale 0 1,", std::max(1, static_cast<int>(std::ceil(12.0 / cell))));
    script.line("set format y '%.0f'");
  } else {
    script.line("unset ytics");
    for (int r = 0; r < rows; ++r) {
      script.text(left - 6, kTop + cell * (r + 0.5), map.row_labels[static_cast<size_t>(r)], kFaint, "right");
    }
  }
  script.text(0, 12, map.y_label, kInk);
  script.text(left + width / 2, kTop + high + 33, map.x_label, kInk, "center");
  const auto level_of = [&](double value) {
    const double share = std::clamp((value - map.least) / (map.largest - map.least), 0.0, 1.0);
    return static_cast<int>(std::lround(share * (kHeatLevels - 1)));
  };
  script.line("$Cells << EOD");
  for (int r = 0; r < rows; ++r) {
    const auto& row = map.values[static_cast<size_t>(r)];
    RMOE_ASSERT(std::ssize(row) == columns, "heat_map: rows of ", columns, " and ", row.size(), " cells");
    for (int c = 0; c < columns; ++c) {
      const double value = row[static_cast<size_t>(c)];
      if (std::isfinite(value)) {
        script.line(c + 1, " ", r + 1, " ", number(0.49), " ", number(0.46), " ", script.heat(level_of(value)));
      }
    }
  }
  script.line("EOD");
  constexpr double kSwatch = 13;
  for (int level = 0; level < kHeatLevels; ++level) {
    script.swatch(left + 46 + kSwatch * level, kTop + high + 52, kSwatch, 10, level);
  }
  const int decimals = map.largest < 0.1 ? 3 : map.largest < 10 ? 2 : 0;
  script.text(left + 40, kTop + high + 52, fixed(map.least, decimals), kFaint, "right");
  script.text(left + 52 + kSwatch * kHeatLevels, kTop + high + 52, fixed(map.largest, decimals) + " " + map.unit,
              kFaint);
  script.line(
      "plot $Cells using 1:2:($1-$3):($1+$3):($2-$4):($2+$4):5 with boxxyerror fs solid noborder lc rgb variable");
  return script.draw(map.title);
}

bool has_boxes(const BoxPlot& plot) {
  for (const BoxPlot::Group& group : plot.groups) {
    for (const auto& [x, values] : group.boxes) {
      if (std::any_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); })) return true;
    }
  }
  return false;
}

std::string box_plot(const BoxPlot& plot, Format format) {
  RMOE_ASSERT(has_boxes(plot), "box_plot: nothing to draw in '", plot.title, "'");
  constexpr int kHeight = 290;
  constexpr double kTop = 34, kBottom = 46, kLeft = 54;
  constexpr size_t kLongestLabel = 16;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double x_low = kInfinity, x_high = -kInfinity, y_low = kInfinity, y_high = -kInfinity;
  size_t longest = 0;
  std::vector<double> places;
  const auto reach = [&](double y) {
    if (!std::isfinite(y)) return;
    y_low = std::min(y_low, y);
    y_high = std::max(y_high, y);
  };
  for (const BoxPlot::Group& group : plot.groups) {
    longest = std::max(longest, utf8_length(shorten(group.label, kLongestLabel)));
    reach(group.dashed);
    for (const auto& [x, values] : group.boxes) {
      places.push_back(x);
      x_low = std::min(x_low, x);
      x_high = std::max(x_high, x);
      for (const double v : values) reach(v);
    }
  }
  std::sort(places.begin(), places.end());
  double gap = x_high > x_low ? x_high - x_low : std::max(std::abs(x_high), 1.0);
  for (size_t i = 1; i < places.size(); ++i) {
    if (places[i] > places[i - 1]) gap = std::min(gap, places[i] - places[i - 1]);
  }
  gap = std::max(gap, (x_high - x_low) / 40);  // checkpoints that lie close together may overlap
  const double each = 0.7 * gap / static_cast<double>(plot.groups.size());
  const double room = std::max((y_high - y_low) * 0.05, std::abs(y_high) * 1e-3);
  const double right = 12 + kCharacterWidth * static_cast<double>(longest);
  Script script(kPlotWidth, kHeight, format);
  script.margins(kLeft, right, kTop, kBottom);
  script.line("set border 1 lc rgb '", kFaint, "'");
  script.line("set grid ytics lt 1 lw 1 lc rgb '", kGrid, "'");
  set_axis(script, "x", nice_axis(x_low - gap / 2, x_high + gap / 2, 4));
  const Axis y = nice_axis(y_low - room, y_high + room, 5);
  set_axis(script, "y", y);
  script.line("set ytics scale 0");
  script.text(0, 13, plot.y_label, kInk);
  script.text(kPlotWidth - right, kHeight - 10, plot.x_label, kInk, "right");
  std::vector<double> middles;
  std::string command;
  for (size_t g = 0; g < plot.groups.size(); ++g) {
    const BoxPlot::Group& group = plot.groups[g];
    const std::string colour = series_colour(group.colour);
    const double shift = each * (static_cast<double>(g) - (static_cast<double>(plot.groups.size()) - 1) / 2);
    script.line("$B", g, " << EOD");
    double last = y_low;
    for (const auto& [x, unsorted] : group.boxes) {
      std::vector<double> values;
      std::copy_if(unsorted.begin(), unsorted.end(), std::back_inserter(values),
                   [](double v) { return std::isfinite(v); });
      if (values.empty()) continue;
      std::sort(values.begin(), values.end());
      const auto quartile = [&](double p) {
        const double at = p * static_cast<double>(values.size() - 1);
        const auto below = static_cast<size_t>(at);
        const size_t above = std::min(below + 1, values.size() - 1);
        return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
      };
      last = quartile(0.5);
      script.line(number(x + shift), " ", number(quartile(0)), " ", number(quartile(0.25)), " ", number(last), " ",
                  number(quartile(0.75)), " ", number(quartile(1)), " ", number(each * 0.8));
    }
    script.line("EOD");
    middles.push_back(kTop + (kHeight - kTop - kBottom) * (y.high - last) / (y.high - y.low));
    if (std::isfinite(group.dashed)) {
      script.line("set arrow from graph 0,first ", number(group.dashed), " to graph 1,first ", number(group.dashed),
                  " nohead lw 1 dashtype 2 lc rgb '", colour, "'");
    }
    command +=
        str(g == 0 ? "plot " : ", ", "$B", g, " using 1:3:2:6:5:7 with candlesticks whiskerbars 0.5 fs empty lw 1 ",
            "lc rgb '", colour, "', $B", g, " using 1:4:4:4:4:7 with candlesticks fs empty lw 2 lc rgb '", colour, "'");
  }
  spread(middles, 15, kTop, kHeight - kBottom);
  for (size_t g = 0; g < plot.groups.size(); ++g) {
    script.text(kPlotWidth - right + 6, middles[g], shorten(plot.groups[g].label, kLongestLabel),
                series_colour(plot.groups[g].colour));
  }
  script.line(command);
  return script.draw(plot.title);
}

}  // namespace rmoe::plot
