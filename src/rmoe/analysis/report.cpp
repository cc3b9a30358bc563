#include "rmoe/analysis/report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/plot/html.h"
#include "rmoe/plot/number.h"
#include "rmoe/plot/style.h"

namespace rmoe::analysis {
namespace {

using plot::Format;
using plot::LinePlot;
using plot::PlotPoint;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// The value at a path of members, null where one is missing.
const Json& at(const Json& json, std::initializer_list<const char*> path) {
  static const Json none;
  const Json* here = &json;
  for (const char* key : path) {
    if (!here->is_object() || !here->contains(key)) return none;
    here = &here->at(key);
  }
  return *here;
}

double number(const Json& json) { return json.is_number() ? json.get<double>() : kNaN; }

std::vector<double> numbers(const Json& json) {
  std::vector<double> out;
  if (json.is_array()) {
    for (const Json& value : json) out.push_back(number(value));
  }
  return out;
}

std::vector<std::vector<double>> matrix(const Json& json) {
  std::vector<std::vector<double>> out;
  if (json.is_array()) {
    for (const Json& row : json) out.push_back(numbers(row));
  }
  return out;
}

std::string name_of(const Json& run) { return run.at("name").get<std::string>(); }

// A member of each element of an array of objects.
std::vector<double> member(const Json& array, const char* key) {
  std::vector<double> out;
  if (array.is_array()) {
    for (const Json& value : array) out.push_back(value.is_object() ? number(at(value, {key})) : kNaN);
  }
  return out;
}

std::vector<PlotPoint> over_layers(const std::vector<double>& values, double first = 1) {
  std::vector<PlotPoint> points;
  for (size_t i = 0; i < values.size(); ++i) points.push_back({first + static_cast<double>(i), values[i]});
  return points;
}

// The middles of the bins of a distribution.
std::vector<PlotPoint> over_bins(const Json& distribution) {
  const std::vector<double> shares = numbers(at(distribution, {"all"}));
  const double low = number(at(distribution, {"low"})), high = number(at(distribution, {"high"}));
  std::vector<PlotPoint> points;
  for (size_t i = 0; i < shares.size(); ++i) {
    const double middle = (static_cast<double>(i) + 0.5) / static_cast<double>(shares.size());
    points.push_back({low + (high - low) * middle, 100 * shares[i]});
  }
  return points;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

class Csv {
 public:
  explicit Csv(const std::string& header) : text_(header + "\n") {}
  template <class... Values>
  void row(const Values&... values) {
    std::string line;
    ((line += (line.empty() ? "" : ",") + field(values)), ...);
    text_ += line + "\n";
  }
  const std::string& text() const { return text_; }

 private:
  static std::string field(const std::string& text) { return csv_field(text); }
  static std::string field(const char* text) { return csv_field(text); }
  static std::string field(double value) { return std::isfinite(value) ? json_text(Json(value)) : ""; }
  static std::string field(size_t value) { return std::to_string(value); }
  static std::string field(int64_t value) { return std::to_string(value); }
  std::string text_;
};

class Builder {
 public:
  explicit Builder(const Json& analysis) : analysis_(analysis), runs_(analysis.at("runs")) {}

  std::vector<Section> sections() {
    information();
    entropy();
    balance();
    similarity();
    weights();
    selection();
    gradients();
    depth();
    paths();
    kinds();
    state();
    std::erase_if(out_, [](const Section& s) { return s.pictures.empty(); });
    return std::move(out_);
  }

 private:
  using Values = std::function<std::vector<PlotPoint>(const Json& run)>;

  // A line per run.
  LinePlot lines(const std::string& title, const std::string& x_label, const std::string& y_label,
                 const Values& of) const {
    LinePlot plot;
    plot.title = title;
    plot.x_label = x_label;
    plot.y_label = y_label;
    plot.whole_x = x_label.find("layer") != x_label.npos;
    int colour = 0;
    for (const Json& run : runs_) plot.groups.push_back({name_of(run), colour++, {of(run)}});
    return plot;
  }

  static void add(Section& section, const std::string& file, const LinePlot& plot, const std::string& heading = "") {
    if (!plot::has_lines(plot)) return;
    section.pictures.push_back({file, heading, [plot](Format format) { return plot::line_plot(plot, format); }});
  }

  static void add(Section& section, const std::string& file, const plot::HeatMap& map, const std::string& heading) {
    if (map.values.empty() || map.values[0].empty() || !(map.largest > map.least)) return;
    section.pictures.push_back({file, heading, [map](Format format) { return plot::heat_map(map, format); }});
  }

  // The name of a file about one run.
  std::string file_of(const char* what, size_t run) const { return runs_.size() == 1 ? what : str(what, "-", run + 1); }

  Section& section(const char* id, const char* title, const char* text, const char* paper) {
    return out_.emplace_back(Section{id, title, text, paper, {}, {}});
  }

  void information() {
    Section& s = section(
        "mutual_information", "Information shared across layers",
        "Each cell says how much the gate scores of one layer tell about those of another for the same token, in nats: "
        "0 means that the two layers score without regard to each other. The diagonal is the most there is to tell, "
        "the entropy of a layer's own scores in 100 bins; look for dark cells away from it.",
        "The paper shows it as a picture (Fig. 3, 6, 7), without numbers: RMoE's layers share more than those of "
        "routers "
        "without a state.");
    Csv csv("run,layer,other_layer,nats");
    double largest = 0, least = std::numeric_limits<double>::infinity();
    for (const Json& run : runs_) {
      for (const auto& row : matrix(at(run, {"mutual_information", "matrix"}))) {
        for (const double v : row) {
          if (!std::isfinite(v)) continue;
          largest = std::max(largest, v);
          least = std::min(least, v);
        }
      }
    }
    // From 0 on where that leaves the shades apart.
    if (!(least > 0.3 * largest)) least = 0;
    for (size_t i = 0; i < runs_.size(); ++i) {
      const auto values = matrix(at(runs_[i], {"mutual_information", "matrix"}));
      for (size_t a = 0; a < values.size(); ++a) {
        for (size_t b = 0; b < values.size(); ++b) csv.row(name_of(runs_[i]), a + 1, b + 1, values[a][b]);
      }
      plot::HeatMap map{.title = "Mutual information of gate scores between layers, " + name_of(runs_[i]),
                        .x_label = "MoE layer",
                        .y_label = "MoE layer",
                        .unit = "nats",
                        .values = values,
                        .least = least,
                        .largest = largest,
                        .row_labels = {},
                        .square = true};
      add(s, file_of("mutual_information", i), map, name_of(runs_[i]));
    }
    s.csv = csv.text();
  }

  void entropy() {
    Section& s = section(
        "gate_entropy", "Gate entropy",
        "How undecided the routers are about a token: 0 if one expert gets all the score, ln N if all N get the same. "
        "The first plot has the mean of each layer, the second the share of all tokens and layers at each entropy.",
        "The paper shows distributions (Fig. 4, 8 to 10), without numbers.");
    Csv csv("run,layer,mean_nats");
    for (const Json& run : runs_) {
      const auto layers = numbers(at(run, {"gate_entropy", "layers"}));
      for (size_t l = 0; l < layers.size(); ++l) csv.row(name_of(run), l + 1, layers[l]);
    }
    s.csv = csv.text();
    add(s, "gate_entropy", lines("Gate entropy by layer", "MoE layer", "mean gate entropy (nats)", [](const Json& run) {
          return over_layers(numbers(at(run, {"gate_entropy", "layers"})));
        }));
    add(s, "gate_entropy_distribution",
        lines("Distribution of the gate entropy", "gate entropy (nats)", "% of tokens and layers",
              [](const Json& run) { return over_bins(at(run, {"gate_entropy", "distribution"})); }));
  }

  void balance() {
    Section& s = section(
        "balance", "Inner and outer balance",
        "Inner balance is the largest gate score over the second largest, on a logarithmic axis: near 1 (0 in the "
        "plot) "
        "the two best experts work together, far above it one does all the work. Outer balance is the sum of the K "
        "largest scores: near 1 the router has made "
        "up its mind, near K / N it sees no difference between the experts.",
        "Table 8 of the paper, medians, inner / outer: SMoE 34.68 / 0.915, HyperMoE 34.60 / 0.920, CosineMoE 7.611 / "
        "0.794, XMoE 19.93 / 0.861, RandomMoE 2.000 / 0.414, RMoE 2.021 / 0.573; without passing the state on 16.58 / "
        "0.842.");
    Csv csv("run,layer,inner_median,outer_median");
    for (const Json& run : runs_) {
      const auto inner = numbers(at(run, {"balance", "inner", "layers"}));
      const auto outer = numbers(at(run, {"balance", "outer", "layers"}));
      for (size_t l = 0; l < outer.size(); ++l)
        csv.row(name_of(run), l + 1, l < inner.size() ? inner[l] : kNaN, outer[l]);
      if (!outer.empty()) {
        csv.row(name_of(run), "all", number(at(run, {"balance", "inner", "median"})),
                number(at(run, {"balance", "outer", "median"})));
      }
    }
    s.csv = csv.text();
    add(s, "inner_balance",
        lines("Distribution of the inner balance", "ln(largest / second largest score)", "% of tokens and layers",
              [](const Json& run) { return over_bins(at(run, {"balance", "inner", "log_distribution"})); }));
    add(s, "outer_balance",
        lines("Distribution of the outer balance", "sum of the K largest scores", "% of tokens and layers",
              [](const Json& run) { return over_bins(at(run, {"balance", "outer", "distribution"})); }));
  }

  void similarity() {
    Section& s = section("expert_similarity", "Similarity of the experts",
                         "How alike the experts of a layer are: each is the mean of its weight matrices over their "
                         "inner dimension, scaled "
                         "to length 1, and the number is the mean product of two experts. A box holds the layers of "
                         "one checkpoint, with "
                         "the median as a bar and whiskers to the extremes; the dashed line is a random start, and "
                         "lower boxes mean that "
                         "the experts have become more different.",
                         "The paper shows boxes over checkpoints (Fig. 5, 13), without numbers.");
    Csv csv("run,step,layer,similarity,similarity_without_diagonal");
    plot::BoxPlot with, without;
    with.title = "Similarity of the experts over checkpoints";
    without.title = "Similarity of different experts over checkpoints";
    with.x_label = without.x_label = "training step";
    with.y_label = "mean similarity of all pairs";
    without.y_label = "mean similarity of different experts";
    int colour = 0;
    for (const Json& run : runs_) {
      const Json& checkpoints = at(run, {"expert_similarity", "checkpoints"});
      plot::BoxPlot::Group all{name_of(run), colour, {}, number(at(run, {"expert_similarity", "random"}))};
      plot::BoxPlot::Group others{
          name_of(run), colour++, {}, number(at(run, {"expert_similarity", "random_without_diagonal"}))};
      if (!checkpoints.is_array()) continue;
      for (const Json& point : checkpoints) {
        const auto step = number(point.at("step"));
        const auto layers = numbers(point.at("layers")), rest = numbers(point.at("layers_without_diagonal"));
        all.boxes.emplace_back(step, layers);
        others.boxes.emplace_back(step, rest);
        for (size_t l = 0; l < layers.size(); ++l) {
          csv.row(name_of(run), static_cast<int64_t>(step), l + 1, layers[l], rest[l]);
        }
      }
      with.groups.push_back(std::move(all));
      without.groups.push_back(std::move(others));
    }
    s.csv = csv.text();
    for (const auto& [file, plot] : {std::pair{"expert_similarity", with}, {"expert_similarity_others", without}}) {
      if (!plot::has_boxes(plot)) continue;
      s.pictures.push_back({file, "", [plot = plot](Format format) { return plot::box_plot(plot, format); }});
    }
  }

  void weights() {
    Section& s = section(
        "router_weights", "Weights of the routers",
        "The size of each layer's gate, the matrix that turns what the router reads into N logits: its norm, and the "
        "standard deviation of its elements. Large weights make decided routers, so this goes against the gate "
        "entropy.",
        "The paper shows both by layer (Fig. 11), without numbers.");
    Csv csv("run,layer,norm,deviation");
    for (const Json& run : runs_) {
      const Json& layers = at(run, {"router_weights", "layers"});
      const auto norms = member(layers, "norm"), deviations = member(layers, "deviation");
      for (size_t l = 0; l < norms.size(); ++l) csv.row(name_of(run), l + 1, norms[l], deviations[l]);
    }
    s.csv = csv.text();
    for (const auto& [key, label] :
         {std::pair{"norm", "norm of the gate's weight"}, {"deviation", "deviation of the gate's weights"}}) {
      add(s, str("router_weight_", key), lines(label, "MoE layer", label, [key = key](const Json& run) {
            return over_layers(member(at(run, {"router_weights", "layers"}), key));
          }));
    }
  }

  void selection() {
    Section& s = section("selection", "Use of the experts",
                         "Each row is a layer, each cell an expert: how often it is chosen, relative to the equal "
                         "share (1). A row of one "
                         "shade is a balanced layer; white cells are experts that hardly any token reaches, and dark "
                         "ones do their work.",
                         "The paper shows frequencies by layer (Fig. 12), without numbers.");
    Csv csv("run,layer,expert,fraction");
    double largest = 2;
    std::vector<std::vector<std::vector<double>>> all;
    for (const Json& run : runs_) {
      auto rows = matrix(at(run, {"selection", "fractions"}));
      for (size_t l = 0; l < rows.size(); ++l) {
        for (size_t n = 0; n < rows[l].size(); ++n) {
          csv.row(name_of(run), l + 1, n, rows[l][n]);
          rows[l][n] *= static_cast<double>(rows[l].size());
          largest = std::max(largest, rows[l][n]);
        }
      }
      all.push_back(std::move(rows));
    }
    s.csv = csv.text();
    for (size_t i = 0; i < runs_.size(); ++i) {
      plot::HeatMap map{.title = "Use of the experts by layer, " + name_of(runs_[i]),
                        .x_label = "expert",
                        .y_label = "MoE layer",
                        .unit = "× equal share",
                        .values = all[i],
                        .largest = largest,
                        .row_labels = {}};
      add(s, file_of("selection", i), map, name_of(runs_[i]));
    }
  }

  void gradients() {
    Section& s = section("gradients", "Gradient of the routers, by source",
                         "How hard each loss pulls at the routers' parameters: the norm of the gradient from the "
                         "language-model loss, from "
                         "the balance losses, and from both together. Where the balance line is above the other, the "
                         "router learns to be "
                         "even rather than to be useful.",
                         "Table 11 of the paper follows these norms and the drop ratio (tokens beyond an expert's "
                         "capacity) over training.");
    Csv csv("run,step,layer,whole,lm,balance,drop_ratio");
    for (size_t i = 0; i < runs_.size(); ++i) {
      const Json& run = runs_[i];
      const Json& g = at(run, {"gradients"});
      if (!g.is_object()) continue;
      if (g.contains("layers")) {
        const Json& layers = g.at("layers");
        for (size_t l = 0; l < layers.size(); ++l) {
          csv.row(name_of(run), number(run.at("step")), l + 1, number(layers[l].at("whole")),
                  number(layers[l].at("lm")), number(layers[l].at("balance")), kNaN);
        }
        csv.row(name_of(run), number(run.at("step")), "all", number(g.at("whole")), number(g.at("lm")),
                number(g.at("balance")), number(g.at("drop_ratio")));
        add(s, file_of("router_gradient", i),
            sources("Gradient norm of the routers by layer", "MoE layer",
                    [&](const char* key) { return over_layers(member(layers, key)); }),
            runs_.size() > 1 ? name_of(run) : "");
      }
      const Json& training = at(g, {"training"});
      if (training.is_array()) {
        for (const Json& p : training) {
          csv.row(name_of(run), number(p.at("step")), "training", number(p.at("whole")), number(p.at("lm")),
                  number(p.at("balance")), number(p.at("drop_ratio")));
        }
        const auto steps = member(training, "step");
        add(s, file_of("router_gradient_training", i),
            sources("Gradient norm of the routers during training", "training step",
                    [&](const char* key) {
                      const auto values = member(training, key);
                      std::vector<PlotPoint> points;
                      for (size_t p = 0; p < steps.size(); ++p) points.push_back({steps[p], values[p]});
                      return plot::thin_out(points, 160);
                    }),
            str(runs_.size() > 1 ? name_of(run) + ", " : "", "during training"));
      }
    }
    s.csv = csv.text();
  }

  static LinePlot sources(const std::string& title, const std::string& x_label,
                          const std::function<std::vector<PlotPoint>(const char* key)>& of) {
    LinePlot plot;
    plot.title = title;
    plot.x_label = x_label;
    plot.y_label = "gradient norm of the routers";
    plot.whole_x = true;
    int colour = 0;
    for (const auto& [key, label] : {std::pair{"whole", "both"}, {"lm", "LM loss"}, {"balance", "balance loss"}}) {
      plot.groups.push_back({label, colour++, {of(key)}});
    }
    return plot;
  }

  void depth() {
    Section& s = section("loss_by_depth", "Loss against depth",
                         "The loss of models with different numbers of layers on the same text, one line for each kind "
                         "of router. A line "
                         "that falls faster means a router that makes better use of depth.",
                         "The paper has it for 6, 12, 18, 24 and 32 layers on Enwik8 (Fig. 2, 14), as a picture.");
    Csv csv("run,router,layers,loss,bits_per_character");
    std::map<std::string, std::map<double, std::vector<double>>> by_kind;
    bool bits = true;
    for (const Json& point : analysis_.at("loss_by_depth")) bits = bits && point.at("bits_per_character").is_number();
    for (const Json& point : analysis_.at("loss_by_depth")) {
      const std::string stage = point.at("stage"), router = point.at("router");
      const std::string kind = stage == "none" ? router : stage + " + " + router;
      by_kind[kind][number(point.at("layers"))].push_back(number(point.at(bits ? "bits_per_character" : "loss")));
      csv.row(point.at("name").get<std::string>(), kind, point.at("layers").get<int64_t>(), number(point.at("loss")),
              number(point.at("bits_per_character")));
    }
    s.csv = csv.text();
    LinePlot plot;
    plot.title = "Loss against depth";
    plot.x_label = "layers";
    plot.whole_x = true;
    plot.y_label = bits ? "bits per character" : "loss (nats per token)";
    int colour = 0;
    for (const auto& [kind, depths] : by_kind) {
      plot::PlotGroup group{kind, colour++, {{}}};
      for (const auto& [layers, losses] : depths) {
        double sum = 0;
        for (const double loss : losses) sum += loss / static_cast<double>(losses.size());
        group.runs[0].push_back({layers, sum});
      }
      plot.groups.push_back(std::move(group));
    }
    add(s, "loss_by_depth", plot);
  }

  void paths() {
    Section& s = section(
        "paths", "Paths through the layers",
        "How well a token's first expert in one layer foretells its first expert in the next: the share of tokens for "
        "which the commonest successor is right, above the share that guessing the commonest expert gives; the "
        "information in nats; and the share of a token's experts whose numbers it has in the next layer too, above "
        "what "
        "the loads alone would bring. All three are 0 for layers that decide independently.",
        "Not in the paper.");
    Csv csv("run,from_layer,information,entropy,accuracy,guess,overlap,chance");
    for (const Json& run : runs_) {
      const Json& links = at(run, {"paths", "links"});
      for (size_t l = 0; links.is_array() && l < links.size(); ++l) {
        csv.row(name_of(run), l + 1, number(links[l].at("information")), number(links[l].at("entropy")),
                number(links[l].at("accuracy")), number(links[l].at("guess")), number(links[l].at("overlap")),
                number(links[l].at("chance")));
      }
    }
    s.csv = csv.text();
    struct Curve {
      const char *key, *baseline, *label;
    };
    for (const auto& [key, baseline, label] :
         {Curve{"accuracy", "guess", "share foretold, above guessing"},
          Curve{"information", nullptr, "information (nats)"}, Curve{"overlap", "chance", "overlap, above chance"}}) {
      LinePlot plot = lines(label, "from MoE layer", label, [key = key, baseline = baseline](const Json& run) {
        const Json& links = at(run, {"paths", "links"});
        std::vector<double> values = member(links, key);
        if (!baseline) return over_layers(values);
        const std::vector<double> base = member(links, baseline);
        for (size_t l = 0; l < values.size(); ++l) values[l] -= base[l];
        return over_layers(values);
      });
      plot.zero_line = true;
      add(s, str("paths_", key), plot);
    }
  }

  void kinds() {
    Section& s = section("token_kinds", "What each kind of token is routed to",
                         "The first plot says how much knowing the kind of a token (whitespace, punctuation, start of "
                         "a word, inside of a "
                         "word) tells about the expert it goes to, layer by layer: 0 is nothing. The maps show it for "
                         "the layer where it "
                         "tells most: each row is a kind or a band of frequency (the commonest tokens that make up "
                         "half of the text, the "
                         "next 40 %, the rest), each cell an expert, its shade how often that kind goes there relative "
                         "to the equal share.",
                         "Not in the paper.");
    Csv csv("run,kind,tokens,layer,expert,fraction");
    add(s, "token_kinds",
        lines("Information between kind of token and expert", "MoE layer", "information (nats)",
              [](const Json& run) { return over_layers(numbers(at(run, {"token_kinds", "information"}))); }));
    double largest = 2;
    std::vector<plot::HeatMap> maps;
    for (const Json& run : runs_) {
      plot::HeatMap map;
      const auto information = numbers(at(run, {"token_kinds", "information"}));
      const auto best = static_cast<size_t>(
          information.empty() ? 0 : std::max_element(information.begin(), information.end()) - information.begin());
      const Json& kinds = at(run, {"token_kinds", "kinds"});
      for (size_t k = 0; kinds.is_array() && k < kinds.size(); ++k) {
        const std::string name = kinds[k].at("name");
        const auto layers = matrix(kinds[k].at("fractions"));
        const double tokens = number(kinds[k].at("tokens"));
        for (size_t l = 0; l < layers.size(); ++l) {
          for (size_t n = 0; n < layers[l].size(); ++n) csv.row(name_of(run), name, tokens, l + 1, n, layers[l][n]);
        }
        if (tokens == 0 || layers.empty()) continue;
        map.row_labels.push_back(name);
        map.values.push_back(layers[best]);
        for (double& v : map.values.back()) {
          v *= static_cast<double>(layers[best].size());
          largest = std::max(largest, v);
        }
      }
      map.title = str("Kinds of tokens and experts, MoE layer ", best + 1, ", ", name_of(run));
      map.y_label = str("MoE layer ", best + 1);
      map.x_label = "expert";
      map.unit = "× equal share";
      maps.push_back(std::move(map));
    }
    s.csv = csv.text();
    for (size_t i = 0; i < maps.size(); ++i) {
      maps[i].largest = largest;
      add(s, file_of("token_kinds_map", i), maps[i], name_of(runs_[i]));
    }
  }

  void state() {
    Section& s = section(
        "state_gradient", "Gradient through the state",
        "How strongly the language-model loss depends on the router state of each layer, as it is and with the state "
        "cut "
        "between the layers, so that only the layer's own gate answers for it. The distance between the two lines is "
        "what "
        "the recurrence carries back from later layers, the paper's \"recurrent gradient\".",
        "The paper names this path as one of the two things that the recurrence brings (section 3), without a plot.");
    Csv csv("run,layer,norm,norm_cut");
    for (size_t i = 0; i < runs_.size(); ++i) {
      const auto whole = numbers(at(runs_[i], {"state_gradient", "layers"})),
                 cut = numbers(at(runs_[i], {"state_gradient", "cut"}));
      for (size_t l = 0; l < whole.size(); ++l) csv.row(name_of(runs_[i]), l + 1, whole[l], cut[l]);
      LinePlot plot;
      plot.title = "Gradient of the loss by the router state, " + name_of(runs_[i]);
      plot.x_label = "MoE layer";
      plot.y_label = "norm of d loss / d h";
      plot.whole_x = true;
      plot.groups = {{"with recurrence", 0, {over_layers(whole)}}, {"cut", 1, {over_layers(cut)}}};
      add(s, file_of("state_gradient", i), plot, runs_.size() > 1 ? name_of(runs_[i]) : "");
    }
    s.csv = csv.text();
  }

  const Json& analysis_;
  const Json& runs_;
  std::vector<Section> out_;
};

std::string shown(const Json& value, int decimals) {
  return value.is_number() ? plot::fixed(value.get<double>(), decimals) : std::string("–");
}

// The numbers that one looks for first, runs as columns.
std::string summary_table(const Json& runs) {
  struct Row {
    const char* label;
    int decimals;
    std::initializer_list<const char*> path;
  };
  const Row rows[] = {{"layers with experts", 0, {"moe_layers"}},
                      {"experts per layer", 0, {"experts"}},
                      {"experts per token", 0, {"top_k"}},
                      {"tokens read", 0, {"tokens"}},
                      {"bits per character", 4, {"bits_per_character"}},
                      {"information across layers (nats)", 3, {"mutual_information", "mean"}},
                      {"gate entropy (nats)", 3, {"gate_entropy", "mean"}},
                      {"inner balance, median", 3, {"balance", "inner", "median"}},
                      {"outer balance, median", 3, {"balance", "outer", "median"}},
                      {"load imbalance (max / mean)", 2, {"selection", "imbalance"}},
                      {"dead experts", 0, {"selection", "dead"}},
                      {"entropy of paths (nats)", 2, {"paths", "entropy"}},
                      {"the same if layers were independent", 2, {"paths", "independent_entropy"}},
                      {"drop ratio in training", 4, {"gradients", "drop_ratio"}}};
  std::string out = "<div class=\"scroll\"><table>\n<thead><tr><td></td>";
  int colour = 0;
  for (const Json& run : runs) {
    out += str("<th scope=\"col\" class=\"n\"><span style=\"border-color:var(--c", colour++ % plot::kSeriesColours,
               ")\">", plot::escape_html(name_of(run)), "</span></th>");
  }
  out += "</tr></thead>\n<tbody>\n";
  const auto text_row = [&](const char* label, const std::function<std::string(const Json&)>& of) {
    out += str("<tr><th scope=\"row\">", label, "</th>");
    for (const Json& run : runs) out += "<td class=\"n\">" + plot::escape_html(of(run)) + "</td>";
    out += "</tr>\n";
  };
  text_row("stage, router", [](const Json& run) {
    return run.at("stage").get<std::string>() + ", " + run.at("router").get<std::string>();
  });
  text_row("checkpoint", steps_text);
  for (const Row& row : rows) {
    text_row(row.label, [&](const Json& run) { return shown(at(run, row.path), row.decimals); });
  }
  return out + "</tbody>\n</table></div>\n";
}

}  // namespace

std::vector<Section> sections(const Json& analysis) { return Builder(analysis).sections(); }

std::string steps_text(const Json& run) {
  const auto first = run.at("first_step").get<int64_t>(), last = run.at("step").get<int64_t>();
  return first == last ? str("step ", last) : str("steps ", first, " to ", last);
}

std::string report_html(const Json& analysis, const std::string& command) {
  const Json& runs = analysis.at("runs");
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">\n<title>What the routers do</title>\n<style>" +
      plot::report_css() + "figure h3:empty{display:none}\n</style>\n</head>\n<body>\n<main>\n";
  out +=
      "<h1>What the routers do</h1>\n<p class=\"lead\">A mixture-of-experts model sends each token, in each layer, to "
      "a "
      "few of its N experts. A router decides which, by a score for every expert. This page looks into the routers "
      "of " +
      str(runs.size(), runs.size() == 1 ? " model" : " models") +
      "; SMoE's routers read their own layer alone, RMoE's also read a state that runs through the layers.</p>\n";
  out += "<h2>In numbers</h2>\n" + summary_table(runs);
  out +=
      "<p class=\"small\">Lines in the plots have the colours of the names above. Each plot's numbers are in the "
      "folder csv beside this page, everything is in analysis.json.</p>\n";
  for (const Section& s : sections(analysis)) {
    out +=
        "<h2 id=\"" + s.id + "\">" + plot::escape_html(s.title) + "</h2>\n<p>" + plot::escape_html(s.text) + "</p>\n";
    out += "<p class=\"small\">" + plot::escape_html(s.paper) + "</p>\n<div class=\"plots\">\n";
    for (const Picture& picture : s.pictures) {
      out += "<figure>\n<h3>" + plot::escape_html(picture.heading) + "</h3>\n" + picture.draw(Format::kInline) +
             "</figure>\n";
    }
    out += "</div>\n";
  }
  out += "<h2>How to repeat it</h2>\n<dl>\n";
  for (const Json& run : runs) {
    out +=
        "<dt>" + plot::escape_html(name_of(run)) + "</dt><dd>" + plot::escape_html(run.at("path").get<std::string>());
    if (run.at("data").is_string()) out += ", " + plot::escape_html(run.at("data").get<std::string>());
    out += "</dd>\n";
  }
  out += "</dl>\n<pre class=\"box\">" + plot::escape_html(command) + "</pre>\n</main>\n</body>\n</html>\n";
  return out;
}

void write_analysis(const Json& analysis, const std::filesystem::path& folder, const std::string& command) {
  std::error_code failed;
  for (const char* inner : {"csv", "plots"}) {
    std::filesystem::create_directories(folder / inner, failed);
    if (failed) io_error((folder / inner).string(), ": cannot make the folder: ", failed.message());
  }
  write_file_atomic(folder / "analysis.json", json_text(analysis, 1) + "\n");
  for (const Section& s : sections(analysis)) {
    write_file_atomic(folder / "csv" / (s.id + ".csv"), s.csv);
    for (const Picture& picture : s.pictures) {
      write_file_atomic(folder / "plots" / (picture.file + ".svg"), picture.draw(Format::kSvg));
      write_file_atomic(folder / "plots" / (picture.file + ".png"), picture.draw(Format::kPng));
    }
  }
  write_file_atomic(folder / "report.html", report_html(analysis, command));
}

}  // namespace rmoe::analysis
