#include "rmoe/compare/report.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/base/utf8.h"
#include "rmoe/compare/figures.h"
#include "rmoe/compare/table.h"
#include "rmoe/plot/html.h"
#include "rmoe/plot/number.h"
#include "rmoe/plot/style.h"

namespace rmoe::compare {
namespace {

constexpr size_t kSampleCharacters = 1500;
constexpr size_t kGroupsAsColumns = 4;     // more of them are rows
constexpr size_t kDifferencesInWords = 3;  // more of them are a list

// Minus signs for hyphens that stand for them: before a digit, and between spaces.
std::string typeset(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    bool opens = text[i] == '-' && (i == 0 || text[i - 1] == ' ') && i + 1 < text.size();
    bool minus = opens && (text[i + 1] == ' ' || (text[i + 1] >= '0' && text[i + 1] <= '9'));
    out += minus ? "−" : std::string(1, text[i]);
  }
  return out;
}

class Page {
 public:
  Page(const Comparison& c, const std::string& command) : c_(c), command_(command), curves_(read_all_curves(c)) {
    for (const Group& group : c.groups) several_seeds_ = several_seeds_ || group.runs.size() > 1;
    means_only_ = several_seeds_ && c.groups.size() > kGroupsAsColumns;
  }

  std::string html() {
    std::string title = page_title();
    put("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    put("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    // Nothing in the page may load or run anything, whatever a sample holds.
    put("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n");
    put("<title>", escape_html(title), "</title>\n<style>", report_css(), "</style>\n</head>\n<body>\n<main>\n");
    header(title);
    results();
    learning();
    routing();
    expert_usage();
    samples();
    repeat();
    put("</main>\n</body>\n</html>\n");
    return std::move(out_);
  }

 private:
  template <class... Parts>
  void put(const Parts&... parts) {
    out_ += str(parts...);
  }

  std::string colour(size_t group) const { return str("var(--c", group % kSeriesColours, ")"); }

  std::string marked_name(size_t group) const {
    return str("<span class=\"mark\" style=\"background:", colour(group), "\"></span>",
               escape_html(c_.groups[group].marked_name()));
  }

  const Group& baseline() const { return c_.groups[static_cast<size_t>(c_.baseline)]; }

  std::string split_name() const { return c_.split == "valid" ? "validation" : "test"; }

  std::string page_title() const {
    if (c_.groups.size() > 3) return str("Comparison of ", c_.groups.size(), " models");
    std::string names;
    for (size_t g = 0; g < c_.groups.size(); ++g) {
      names += str(g == 0 ? "" : g + 1 == c_.groups.size() ? " and " : ", ", c_.groups[g].name);
    }
    return names;
  }

  void header(const std::string& title) {
    put("<h1>", escape_html(title), "</h1>\n<p class=\"lead\">Language models trained on ");
    put(escape_html(c_.groups[0].runs[0].data_path), c_.same_data ? "" : " and other text");
    put(". Quality is measured in ", c_.unit.label, "; lower is better.</p>\n");
    findings();
    if (std::string note = causal_note(c_); !note.empty()) put("<p class=\"warning\">", escape_html(note), "</p>\n");
    for (const std::string& warning : c_.warnings) put("<p class=\"warning\">", escape_html(warning), "</p>\n");
  }

  // What the differences say, in words: each on its own, or by verdict where there are many (the table has the
  // numbers).
  void findings() {
    if (c_.differences.size() <= kDifferencesInWords) {
      for (const Difference& d : c_.differences) {
        put("<p class=\"finding\">", escape_html(typeset(subject(c_, d))), ": <strong>", escape_html(verdict(c_, d)),
            "</strong>");
        if (std::string numbers = estimate(c_, d); !numbers.empty()) {
          put("<span>", escape_html(typeset(numbers)), "</span>");
        }
        for (const std::string& more : {tests(c_, d), at_equal_time(c_, d)}) {
          if (!more.empty()) put("<span>", escape_html(typeset(more)), "</span>");
        }
        put("</p>\n");
      }
      return;
    }
    std::vector<std::pair<std::string, std::string>> kinds;  // verdict, names
    for (const Difference& d : c_.differences) {
      std::string kind = d.verdict != Verdict::kDifferent ? verdict(c_, d) : d.interval.mean < 0 ? "better" : "worse";
      auto at = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k.first == kind; });
      if (at == kinds.end()) at = kinds.insert(kinds.end(), {kind, ""});
      at->second += (at->second.empty() ? "" : " · ") + c_.groups[static_cast<size_t>(d.first)].marked_name();
      if (d.verdict == Verdict::kDifferent) {
        const int decimals = c_.unit.decimals + 1;
        at->second +=
            str(" (", fixed(d.interval.low, decimals, true), " to ", fixed(d.interval.high, decimals, true), ")");
      }
    }
    put("<p class=\"finding\">Against ", escape_html(baseline().marked_name()), ", ", split_name(), " text",
        c_.same_budget ? "" : ", not at the same budget", "</p>\n<dl>\n");
    for (const auto& [kind, names] : kinds) {
      put("<dt>", escape_html(kind), "</dt><dd><strong>", escape_html(typeset(names)), "</strong></dd>\n");
    }
    put("</dl>\n");
  }

  void cells(const Cell& value) {
    put("<td class=\"n\">", value.number == "-" ? "–" : typeset(value.number), "</td><td class=\"d\">",
        several_seeds_ ? value.deviation : "", "</td>");
  }

  bool is_key(const Measure& m) const { return m.key == c_.split + "_" + c_.unit.key; }

  // Groups as columns.
  void table_by_measure() {
    put("<div class=\"scroll\"><table>\n<thead><tr><td></td>");
    for (size_t g = 0; g < c_.groups.size(); ++g) {
      put("<th scope=\"col\" class=\"n\"><span style=\"border-color:", colour(g), "\">",
          escape_html(c_.groups[g].marked_name()), "</span></th><td></td>");
    }
    put("</tr></thead>\n<tbody>\n<tr><th scope=\"row\">seeds</th>");
    for (const Group& group : c_.groups) cells({str(group.runs.size()), ""});
    put("</tr>\n");
    std::string part;
    for (const Measure& m : c_.measures) {
      // A stronger rule opens each part.
      put("<tr class=\"", m.part == part ? "" : "part ", is_key(m) ? "key" : "", "\"><th scope=\"row\">",
          escape_html(m.label), "</th>");
      for (const Summary& s : m.groups) cells(cell(m, s));
      put("</tr>\n");
      part = m.part;
    }
    put("</tbody>\n</table></div>\n");
  }

  // Groups as rows: one table for quality and size, one for cost, one for routing.
  void tables_by_group() {
    for (const std::vector<std::string>& parts : {std::vector<std::string>{"quality", "size"}, {"cost"}, {"routing"}}) {
      std::vector<const Measure*> shown;
      for (const std::string& part : parts) {
        for (const Measure& m : c_.measures) {
          if (m.part == part) shown.push_back(&m);
        }
      }
      if (shown.empty()) continue;
      bool with_seeds = parts[0] == "quality";
      put("<div class=\"scroll\"><table class=\"rows\">\n<thead><tr><td></td>");
      if (with_seeds) put("<th scope=\"col\" class=\"n\">seeds</th><td></td>");
      for (const Measure* m : shown) put("<th scope=\"col\" class=\"n\">", escape_html(m->label), "</th><td></td>");
      put("</tr></thead>\n<tbody>\n");
      for (size_t g = 0; g < c_.groups.size(); ++g) {
        put("<tr><th scope=\"row\">", marked_name(g), "</th>");
        if (with_seeds) cells({str(c_.groups[g].runs.size()), ""});
        for (const Measure* m : shown) cells(cell(*m, m->groups[g]));
        put("</tr>\n");
      }
      put("</tbody>\n</table></div>\n");
    }
  }

  void results() {
    bool many = c_.groups.size() > kGroupsAsColumns;
    put("<h2>Results</h2>\n<div class=\"results\">\n<div class=\"numbers\">");
    many ? tables_by_group() : table_by_measure();
    put("<p class=\"small\">",
        several_seeds_ ? "± is the standard deviation over seeds. " : "One seed each: there is no deviation to show. ");
    put("Active parameters are those that one token uses. ");
    put("The cost of the recurrent stage compares runs with and without it, seed by seed.</p>\n");
    put("</div>\n");
    if (!many) intervals();
    put("</div>\n");
    if (many && !c_.differences.empty()) {
      put("<h2>Differences to ", escape_html(baseline().name),
          "</h2>\n<div class=\"results\">\n<div class=\"numbers\">");
      table_of_differences();
      put("</div>\n");
      intervals();
      put("</div>\n");
    }
  }

  void table_of_differences() {
    put("<div class=\"scroll\"><table class=\"rows\">\n<thead><tr><td></td><th scope=\"col\" class=\"n\">",
        split_name(), " ", c_.unit.label,
        "</th><th scope=\"col\" class=\"n\">95 % interval</th><th scope=\"col\" class=\"n\">better in</th>",
        "<th scope=\"col\" class=\"n\">p, paired t</th><th scope=\"col\" class=\"n\">p, signed rank</th>",
        "<th scope=\"col\" class=\"n\">p, equal within ", c_.margin * 100, " %</th>",
        "<th scope=\"col\" class=\"n\">effect size</th><th scope=\"col\" class=\"n\">seeds to find 1 %</th>",
        "<th scope=\"col\" class=\"n\">at equal time</th></tr></thead>\n<tbody>\n");
    int decimals = c_.unit.decimals + 1;
    auto signed_number = [&](double v) {
      return std::isfinite(v) ? typeset(str(v < 0 ? "" : "+", fixed(v, decimals))) : "–";
    };
    auto plain_number = [](double v, int digits) { return std::isfinite(v) ? typeset(fixed(v, digits)) : "–"; };
    for (const Difference& d : c_.differences) {
      put("<tr><th scope=\"row\">", marked_name(static_cast<size_t>(d.first)), "</th><td class=\"n\">",
          signed_number(d.interval.mean), "</td><td class=\"n\">");
      if (d.values.size() < 2) {
        put("–");
      } else {
        put(signed_number(d.interval.low), " to ", signed_number(d.interval.high));
      }
      put("</td><td class=\"n\">", d.first_better, " of ", d.values.size());
      for (double p : {d.interval.p_value, d.signed_rank_p, d.equivalence_p}) {
        put("</td><td class=\"n\">", plain_number(p, 4));
      }
      put("</td><td class=\"n\">", plain_number(d.effect_size, 1), "</td><td class=\"n\">",
          d.seeds_needed > 0 ? str(d.seeds_needed) : "–", "</td><td class=\"n\">",
          d.equal_time.values.empty() ? "–" : signed_number(d.equal_time.interval.mean), "</td></tr>\n");
    }
    put("</tbody>\n</table></div>\n");
  }

  void figure(const std::string& title, const std::string& svg, const std::string& caption) {
    put("<figure>\n<h3>", title, "</h3>\n", svg, "<figcaption>", caption, "</figcaption>\n</figure>\n");
  }

  void intervals() {
    std::vector<IntervalRow> rows = interval_rows(c_);
    if (rows.empty()) return;
    bool tested = std::any_of(rows.begin(), rows.end(), [](const IntervalRow& row) { return row.values.size() > 1; });
    std::string caption = tested ? "A small dot is the difference of one seed; the large dot is their mean, the line "
                                   "its 95 % interval. Left "
                                   "of 0 the first model is better; a line that crosses 0 does not show which is."
                                 : "The dot is the difference of the one seed that both have. Another seed would give "
                                   "another number, and one "
                                   "dot does not tell how far off.";
    if (tested && rows.size() > 1) caption += " Of twenty such lines, one misses the truth by chance.";
    figure("Differences, paired by seed",
           interval_plot("Paired differences", str(split_name(), " ", c_.unit.label), rows), caption);
  }

  void line_figure(const std::string& title, LinePlot plot, const std::string& caption) {
    plot.means_only = means_only_;
    if (has_lines(plot)) figure(title, line_plot(plot), caption);
  }

  void learning() {
    bool bits = c_.unit.key == "bits_per_character";
    if (!has_lines(validation_by_tokens(c_, curves_)) && !has_lines(training_loss(c_, curves_))) return;
    put("<h2>Learning</h2>\n<div class=\"plots\">\n");
    line_figure("By training tokens", validation_by_tokens(c_, curves_),
                str(bits ? "How many bits the model needs per character of text that it was not trained on (the steep "
                           "start is cut off). "
                         : "Among how many tokens the model hesitates, in text that it was not trained on (the steep "
                           "start is cut off). ",
                    means_only_ ? "Lines are means over seeds: the intervals above say which gaps are more than chance."
                    : several_seeds_ ? "Strong lines are means over seeds, thin lines the seeds: where thin lines mix, "
                                       "the gap may be chance."
                                     : "With one seed per model, a small gap may be chance."));
    line_figure(
        "By training time", validation_by_time(c_, curves_),
        "The same evaluations against the clock. A model that is slower per token moves to the right here, so this "
        "plot shows what its quality costs.");
    line_figure(
        "Difference to " + escape_html(baseline().name), validation_gap(c_, curves_),
        str("The first plot as a difference to ", escape_html(baseline().name),
            " with the same seed: below 0 is better. Where the line crosses 0, the order of the models changes ",
            "with the length of the training."));
    line_figure(
        "On the training text", training_loss(c_, curves_),
        "The same measure on the batches that the model is trained on, as a moving mean because batches differ. If it "
        "goes on falling while validation stands still, the model is learning its text by heart.");
    put("</div>\n");
  }

  void routing() {
    LinePlot imbalance = load_imbalance(c_, curves_);
    LinePlot entropy = gate_entropy(c_, curves_);
    if (!has_lines(imbalance) && !has_lines(entropy)) return;
    put("<h2>Routing</h2>\n<div class=\"plots\">\n");
    line_figure(
        "Load imbalance", imbalance,
        "How much more work the busiest expert of a layer gets than the average one; 1 means that all get the same. "
        "A line that climbs means that the router favours a few experts and lets the others idle.");
    int64_t n = experts_per_layer(c_);
    std::string uniform = n > 1 ? str(", ", fixed(std::log(static_cast<double>(n)), 2), " for ", n, " experts,") : "";
    line_figure("Gate entropy", entropy,
                str("How undecided the router is about a token: 0 if it gives all weight to one expert, ln N", uniform,
                    " if it treats all alike. A drop to near 0 early in training means that choices are settled before "
                    "the experts have been tried."));
    put("</div>\n");
  }

  void expert_usage() {
    std::vector<std::vector<std::vector<double>>> loads;
    double largest = 2;
    for (const Group& group : c_.groups) {
      loads.push_back(ranked_load(group, c_.split));
      for (const auto& layer : loads.back()) largest = std::max(largest, layer[0]);
    }
    if (std::all_of(loads.begin(), loads.end(), [](const auto& load) { return load.empty(); })) return;
    put("<h2>Use of the experts</h2>\n<p>Each strip is a layer, each cell an expert, from the most to the least used "
        "on the ",
        split_name(),
        " text. An even strip is a balanced layer; a strong start with a faint end means that few experts do the ",
        "work of many.", several_seeds_ ? " Strips are means over seeds." : "", "</p>\n");
    put("<div class=\"scale\" aria-hidden=\"true\"><span>never used</span><i>");
    for (int level = 0; level < kHeatLevels; ++level) put("<b style=\"background:var(--h", level, ")\"></b>");
    put("</i><span>", fixed(largest, 1), " × equal share</span></div>\n<div class=\"plots\">\n");
    for (size_t g = 0; g < loads.size(); ++g) {
      if (loads[g].empty()) continue;
      double busiest = 0, idlest = std::numeric_limits<double>::infinity();
      for (const auto& layer : loads[g]) {
        busiest = std::max(busiest, layer.front());
        idlest = std::min(idlest, layer.back());
      }
      figure(marked_name(g),
             heat_strips("Use of the experts by layer, " + c_.groups[g].name, "expert, by rank", "layer", loads[g],
                         largest),
             str("Busiest expert ", fixed(busiest, 2), " times the equal share, idlest ", fixed(idlest, 2), "."));
    }
    put("</div>\n");
  }

  void samples() {
    std::vector<std::vector<std::string>> texts;
    bool any = false;
    for (const Group& group : c_.groups) {
      texts.emplace_back();
      for (const Run& run : group.runs) {
        texts.back().push_back(shorten(printable_utf8(read_sample(run)), kSampleCharacters));
        any = any || !texts.back().back().empty();
      }
    }
    if (!any) return;
    put("<h2>Samples</h2>\n<p>What each model writes on its own after training, as it came. Samples say little about "
        "which ",
        "model is better; they show how a number of ", c_.unit.label, " reads.</p>\n<div class=\"plots\">\n");
    for (size_t g = 0; g < c_.groups.size(); ++g) {
      put("<div>\n<h3>", marked_name(g), "</h3>\n");
      bool open = true;
      for (size_t r = 0; r < texts[g].size(); ++r) {
        const Run& run = c_.groups[g].runs[r];
        if (texts[g][r].empty()) continue;
        put("<details", open ? " open" : "", "><summary>seed ", run.seed, ", ",
            fixed(c_.unit.of(*run.evaluation(c_.split)), c_.unit.decimals), " ", c_.unit.label,
            "</summary>\n<pre class=\"box\">", escape_html(texts[g][r]), "</pre></details>\n");
        open = false;
      }
      put("</div>\n");
    }
    put("</div>\n");
  }

  // The option that chooses the weights that were evaluated; none for the last ones.
  static std::string checkpoint(const Run& run, const Evaluation& evaluation) {
    if (evaluation.checkpoint_step == run.steps) return "";
    if (evaluation.checkpoint_step == run.best_step) return " --checkpoint best";
    return str(" --checkpoint ", evaluation.checkpoint_step);
  }

  void repeat() {
    put("<h2>How to repeat it</h2>\n<dl>\n");
    std::set<std::string> machines, data;
    for (const Group& group : c_.groups) {
      for (const Run& run : group.runs) {
        if (!run.cpu.empty())
          machines.insert(str(run.cpu, ", ", run.threads, run.threads == 1 ? " thread" : " threads"));
        data.insert(str(run.data_path, ", ", run.train_tokens, " training tokens, tokenizer ", run.tokenizer_hash));
      }
    }
    for (const std::string& machine : machines) put("<dt>Machine</dt><dd>", escape_html(machine), "</dd>\n");
    for (const std::string& text : data) put("<dt>Data</dt><dd>", escape_html(text), "</dd>\n");
    for (const Group& group : c_.groups) {
      const Run& run = group.runs[0];
      put("<dt>", escape_html(group.name), "</dt><dd>", seeds_text(group), ", ", run.steps, " steps of ",
          run.batch_tokens, " tokens", run.dtype.empty() ? "" : ", ", escape_html(run.dtype), "</dd>\n");
    }
    put("</dl>\n");
    config_table();
    put("<details", c_.groups.size() > 3 ? "" : " open", "><summary>Commands</summary>\n<pre class=\"box\">");
    for (const Group& group : c_.groups) {
      for (const Run& run : group.runs) {
        std::string again = shell_word(run.path + kAgain);
        put(escape_html(str("rmoe train ", shell_word(run.path + "/config.toml"), " --out ", again, "\n")));
        for (const auto& evaluation : {run.valid, run.test}) {
          if (evaluation)
            put(escape_html(
                str("rmoe eval ", again, " --split ", evaluation->split, checkpoint(run, *evaluation), "\n")));
        }
      }
    }
    put(escape_html(command_), "</pre></details>\n");
  }

  void config_table() {
    if (c_.config.empty()) return;
    put("<details><summary>Where the configurations differ</summary>\n<div class=\"scroll\"><table class=\"config\">\n",
        "<thead><tr><th>key</th>");
    for (const Group& group : c_.groups) put("<th>", escape_html(group.name), "</th>");
    put("</tr></thead>\n<tbody>\n");
    for (const ConfigDifference& d : c_.config) {
      put("<tr><th scope=\"row\">", escape_html(d.key), "</th>");
      for (const std::string& value : d.values) put("<td>", value.empty() ? "–" : escape_html(value), "</td>");
      put("</tr>\n");
    }
    put("</tbody></table></div></details>\n");
  }

  const Comparison& c_;
  std::string command_;
  AllCurves curves_;
  bool several_seeds_ = false;
  bool means_only_ = false;  // the lines of single seeds would be a tangle
  std::string out_;
};

}  // namespace

std::string report_html(const Comparison& comparison, const std::string& command) {
  return Page(comparison, command).html();
}

std::string shell_word(const std::string& word) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string out = "'";
  for (char ch : word) out += ch == '\'' ? std::string("'\\''") : std::string(1, ch);
  return out + "'";
}

}  // namespace rmoe::compare
