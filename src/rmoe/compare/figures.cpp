#include "rmoe/compare/figures.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "rmoe/base/error.h"

namespace rmoe::compare {
namespace {

// More points than pixels only make the page heavy.
constexpr int64_t kPointsPerLine = 160;
// Half-life of the moving mean over training batches, as a share of the run.
constexpr double kSmoothing = 0.015;

struct AxisScale {
  double divisor;
  const char* name;
};
const std::vector<AxisScale> kCounts = {{1, ""}, {1e3, "thousands"}, {1e6, "millions"}, {1e9, "billions"}};
const std::vector<AxisScale> kTimes = {{1, "seconds"}, {60, "minutes"}, {3600, "hours"}};

// Divides x by the largest unit of which the axis spans at least three, and names it in the label.
LinePlot scaled(LinePlot plot, const std::string& what, const std::vector<AxisScale>& scales) {
  double largest = 0;
  for (const PlotGroup& group : plot.groups) {
    for (const auto& run : group.runs) {
      for (const PlotPoint& p : run) largest = std::max(largest, std::isfinite(p.x) ? p.x : 0);
    }
  }
  AxisScale scale = scales.front();
  for (const AxisScale& s : scales) {
    if (largest >= 3 * s.divisor) scale = s;
  }
  for (PlotGroup& group : plot.groups) {
    for (auto& run : group.runs) {
      for (PlotPoint& p : run) p.x /= scale.divisor;
    }
  }
  plot.x_label = what + (scale.name[0] != '\0' ? str(" (", scale.name, ")") : "");
  return plot;
}

LinePlot lines_over_runs(const Comparison& c, const AllCurves& curves, const std::string& title,
                         const std::string& y_label, const std::function<std::vector<PlotPoint>(const Curves&)>& line) {
  LinePlot plot;
  plot.title = title;
  plot.y_label = y_label;
  for (size_t g = 0; g < c.groups.size(); ++g) {
    PlotGroup group{c.groups[g].name, static_cast<int>(g), {}};
    for (const Curves& run : curves[g]) group.runs.push_back(thin_out(line(run), kPointsPerLine));
    plot.groups.push_back(std::move(group));
  }
  return plot;
}

bool in_bits(const Comparison& c) { return c.unit.key == "bits_per_character"; }

double quality(const Comparison& c, const EvalPoint& p) { return in_bits(c) ? p.bpc : p.perplexity; }

std::string quality_label(const Comparison& c) {
  return "validation " + (in_bits(c) ? c.unit.label : std::string("perplexity"));
}

LinePlot validation(const Comparison& c, const AllCurves& curves, const std::string& title,
                    const std::function<double(const EvalPoint&)>& x) {
  LinePlot plot = lines_over_runs(c, curves, title, quality_label(c), [&](const Curves& run) {
    std::vector<PlotPoint> points;
    for (const EvalPoint& p : run.valid) points.push_back({x(p), quality(c, p)});
    return points;
  });
  plot.clip_start = true;
  return plot;
}

LinePlot by_step(const Comparison& c, const AllCurves& curves, const std::string& title, const std::string& y_label,
                 const std::function<double(const TrainPoint&)>& y) {
  LinePlot plot = lines_over_runs(c, curves, title, y_label, [&](const Curves& run) {
    std::vector<PlotPoint> points;
    for (const TrainPoint& p : run.train) points.push_back({static_cast<double>(p.step), y(p)});
    return smooth(points, std::max(1.0, kSmoothing * static_cast<double>(points.size())));
  });
  return scaled(std::move(plot), "step", kCounts);
}

}  // namespace

AllCurves read_all_curves(const Comparison& c) {
  AllCurves all;
  for (const Group& group : c.groups) {
    all.emplace_back();
    for (const Run& run : group.runs) all.back().push_back(read_curves(run));
  }
  return all;
}

LinePlot validation_by_tokens(const Comparison& c, const AllCurves& curves) {
  return scaled(validation(c, curves, "Validation against training tokens",
                           [](const EvalPoint& p) { return static_cast<double>(p.tokens); }),
                "training tokens", kCounts);
}

LinePlot validation_by_time(const Comparison& c, const AllCurves& curves) {
  return scaled(validation(c, curves, "Validation against training time", [](const EvalPoint& p) { return p.seconds; }),
                "training time", kTimes);
}

LinePlot validation_gap(const Comparison& c, const AllCurves& curves) {
  auto base = static_cast<size_t>(c.baseline);
  LinePlot plot;
  plot.title = "Difference to " + c.groups[base].name + " against training tokens";
  plot.y_label = str(quality_label(c), ", minus ", c.groups[base].name);
  plot.zero_line = true;
  plot.clip_start = true;
  for (const Difference& d : c.differences) {
    if (d.verdict == Verdict::kNotComparable) continue;
    auto first = static_cast<size_t>(d.first);
    PlotGroup group{c.groups[first].name, static_cast<int>(first), {}};
    for (size_t i = 0; i < c.groups[first].runs.size(); ++i) {
      for (size_t j = 0; j < c.groups[base].runs.size(); ++j) {
        if (c.groups[first].runs[i].seed != c.groups[base].runs[j].seed) continue;
        std::map<int64_t, double> reference;
        for (const EvalPoint& p : curves[base][j].valid) reference[p.tokens] = quality(c, p);
        std::vector<PlotPoint> points;
        for (const EvalPoint& p : curves[first][i].valid) {
          auto at = reference.find(p.tokens);
          if (at != reference.end()) points.push_back({static_cast<double>(p.tokens), quality(c, p) - at->second});
        }
        group.runs.push_back(thin_out(points, kPointsPerLine));
      }
    }
    plot.groups.push_back(std::move(group));
  }
  return scaled(std::move(plot), "training tokens", kCounts);
}

LinePlot training_loss(const Comparison& c, const AllCurves& curves) {
  bool bits = in_bits(c);
  LinePlot plot =
      by_step(c, curves, "Training loss", bits ? "training " + c.unit.label : "training loss (nats per token)",
              [bits](const TrainPoint& p) { return bits ? p.bpc : p.loss; });
  plot.clip_start = true;
  return plot;
}

LinePlot load_imbalance(const Comparison& c, const AllCurves& curves) {
  return by_step(c, curves, "Load imbalance", "busiest expert / mean",
                 [](const TrainPoint& p) { return p.load_imbalance; });
}

LinePlot gate_entropy(const Comparison& c, const AllCurves& curves) {
  return by_step(c, curves, "Gate entropy", "gate entropy (nats)", [](const TrainPoint& p) { return p.gate_entropy; });
}

std::vector<IntervalRow> interval_rows(const Comparison& c) {
  std::vector<IntervalRow> rows;
  for (const Difference& d : c.differences) {
    if (d.verdict == Verdict::kNotComparable || d.values.empty()) continue;
    const std::string& first = c.groups[static_cast<size_t>(d.first)].name;
    const std::string& second = c.groups[static_cast<size_t>(d.second)].name;
    rows.push_back({first + " − " + second, d.values, d.interval.mean, d.interval.low, d.interval.high});
  }
  return rows;
}

std::vector<std::vector<double>> ranked_load(const Group& group, const std::string& split) {
  std::vector<std::vector<double>> mean;
  for (const Run& run : group.runs) {
    auto layers = run.evaluation(split)->expert_fraction;
    if (mean.empty()) {
      for (const auto& layer : layers) mean.emplace_back(layer.size(), 0.0);
    }
    if (layers.empty() || layers.size() != mean.size()) return {};
    for (size_t l = 0; l < layers.size(); ++l) {
      if (layers[l].empty() || layers[l].size() != mean[0].size()) return {};
      std::sort(layers[l].begin(), layers[l].end(), std::greater<>());
      double scale = static_cast<double>(layers[l].size()) / static_cast<double>(group.runs.size());
      for (size_t n = 0; n < layers[l].size(); ++n) mean[l][n] += layers[l][n] * scale;
    }
  }
  return mean;
}

int64_t experts_per_layer(const Comparison& c) {
  std::set<size_t> sizes;
  for (const Group& group : c.groups) {
    for (const Run& run : group.runs) {
      for (const auto& layer : run.evaluation(c.split)->expert_fraction) sizes.insert(layer.size());
    }
  }
  return sizes.size() == 1 ? static_cast<int64_t>(*sizes.begin()) : 0;
}

}  // namespace rmoe::compare
