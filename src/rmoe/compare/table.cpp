#include "rmoe/compare/table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "rmoe/base/error.h"
#include "rmoe/plot/html.h"
#include "rmoe/plot/number.h"

namespace rmoe::compare {

using namespace plot;

namespace {

constexpr const char* kSpreadNote = "±: standard deviation over seeds (- with a single seed).";

// The shortest text that reads back as the same double.
std::string exact(double v) {
  if (!std::isfinite(v)) return "";
  char text[64];
  for (int digits = 15; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, v);
    if (std::strtod(text, nullptr) == v) break;
  }
  return text;
}

std::string pad(const std::string& text, size_t width, bool right) {
  size_t length = utf8_length(text);
  std::string space(width > length ? width - length : 0, ' ');
  return right ? space + text : text + space;
}

// A grid of cells with a label per row; column headings stand over both parts of their cells.
struct Grid {
  std::string corner;
  std::vector<std::string> headings;
  std::vector<std::string> labels;
  std::vector<std::vector<Cell>> rows;
};

struct ColumnWidth {
  size_t number = 0;
  size_t deviation = 0;  // with the space before it
  size_t total = 0;
};

std::vector<ColumnWidth> column_widths(const Grid& grid) {
  std::vector<ColumnWidth> widths(grid.headings.size());
  for (size_t c = 0; c < widths.size(); ++c) {
    ColumnWidth& w = widths[c];
    for (const auto& row : grid.rows) {
      w.number = std::max(w.number, utf8_length(row[c].number));
      if (!row[c].deviation.empty()) w.deviation = std::max(w.deviation, 1 + utf8_length(row[c].deviation));
    }
    w.total = std::max(w.number + w.deviation, utf8_length(grid.headings[c]));
    w.number = w.total - w.deviation;
  }
  return widths;
}

size_t label_width(const Grid& grid) {
  size_t width = utf8_length(grid.corner);
  for (const std::string& label : grid.labels) width = std::max(width, utf8_length(label));
  return width;
}

constexpr size_t kGap = 3;

size_t total_width(const Grid& grid) {
  size_t width = label_width(grid);
  for (const ColumnWidth& w : column_widths(grid)) width += kGap + w.total;
  return width;
}

std::string trim_right(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::string render(const Grid& grid) {
  std::vector<ColumnWidth> widths = column_widths(grid);
  size_t labels = label_width(grid);
  std::string head = pad(grid.corner, labels, false);
  for (size_t c = 0; c < widths.size(); ++c) {  // over the numbers; a long one runs on over the deviations
    head += std::string(kGap, ' ') + pad(pad(grid.headings[c], widths[c].number, true), widths[c].total, false);
  }
  std::string out = trim_right(head) + "\n";
  for (size_t i = 0; i < total_width(grid); ++i) out += "─";
  out += "\n";
  for (size_t r = 0; r < grid.rows.size(); ++r) {
    std::string line = pad(grid.labels[r], labels, false);
    for (size_t c = 0; c < widths.size(); ++c) {
      const Cell& value = grid.rows[r][c];
      std::string deviation = value.deviation.empty() ? "" : " " + value.deviation;
      line += std::string(kGap, ' ') + pad(value.number, widths[c].number, true) +
              pad(deviation, widths[c].deviation, false);
    }
    out += trim_right(line) + "\n";
  }
  return out;
}

// Groups as columns.
Grid by_measure(const Comparison& c) {
  Grid grid;
  for (const Group& group : c.groups) grid.headings.push_back(group.marked_name());
  grid.labels.push_back("seeds");
  grid.rows.emplace_back();
  for (const Group& group : c.groups) grid.rows.back().push_back({str(group.runs.size()), ""});
  for (const Measure& m : c.measures) {
    grid.labels.push_back(m.label);
    grid.rows.emplace_back();
    for (const Summary& s : m.groups) grid.rows.back().push_back(cell(m, s));
  }
  return grid;
}

// Groups as rows, with some of the measures as columns under short headings.
Grid by_group(const Comparison& c, const std::vector<const Measure*>& measures) {
  Grid grid;
  bool with_seeds = measures[0] == &c.measures[0];  // once is enough
  if (with_seeds) grid.headings.push_back("seeds");
  for (const Measure* m : measures) grid.headings.push_back(m->short_label);
  for (size_t g = 0; g < c.groups.size(); ++g) {
    grid.labels.push_back(shorten(c.groups[g].name, 28) + (c.groups[g].causal ? "" : " †"));
    grid.rows.emplace_back();
    if (with_seeds) grid.rows.back().push_back({str(c.groups[g].runs.size()), ""});
    for (const Measure* m : measures) grid.rows.back().push_back(cell(*m, m->groups[g]));
  }
  return grid;
}

// One table for size and quality, one for cost, one for routing; more where a table would be wider than `width`.
std::string tables_by_group(const Comparison& c, int64_t width) {
  std::string out;
  std::vector<const Measure*> some;
  auto flush = [&] {
    if (!some.empty()) out += str(out.empty() ? "" : "\n", render(by_group(c, some)));
    some.clear();
  };
  for (const Measure& m : c.measures) {
    bool continues = !some.empty() && (m.part == some.back()->part || m.part == "quality");
    if (!continues) flush();
    some.push_back(&m);
    if (some.size() > 1 && static_cast<int64_t>(total_width(by_group(c, some))) > width) {
      some.pop_back();
      flush();
      some.push_back(&m);
    }
  }
  flush();
  return out;
}

// Breaks at spaces; continuation lines are indented.
std::string wrap(const std::string& text, int64_t width, const std::string& first, const std::string& rest) {
  std::string out;
  std::string line = first;
  bool empty = true;
  for (size_t at = 0; at < text.size();) {
    size_t space = std::min(text.find(' ', at), text.size());
    std::string word = text.substr(at, space - at);
    at = space + 1;
    if (!empty && static_cast<int64_t>(utf8_length(line) + 1 + utf8_length(word)) > width) {
      out += line + "\n";
      line = rest;
      empty = true;
    }
    line += (empty ? "" : " ") + word;
    empty = false;
  }
  return out + line + "\n";
}

std::string heading(const Comparison& c) {
  return str("Differences, paired by seed (", c.split == "valid" ? "validation" : "test", " ", c.unit.label,
             ", lower is better)");
}

// What a reader of several intervals has to know.
std::string intervals_note(const Comparison& c) {
  int64_t tested = std::count_if(c.differences.begin(), c.differences.end(), [](const Difference& d) {
    return d.verdict == Verdict::kDifferent || d.verdict == Verdict::kNotShown;
  });
  if (tested < 2) return "";
  return str(tested, " intervals side by side, each at 95 %: one in twenty misses by chance.");
}

std::string escape_markdown(const std::string& text) {
  std::string out;
  for (char ch : text) {
    if (std::string_view("\\`*_{}[]<>#|").find(ch) != std::string_view::npos) out += '\\';
    out += ch;
  }
  return out;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char ch : text) out += ch == '"' ? std::string("\"\"") : std::string(1, ch);
  return out + "\"";
}

const char* verdict_key(Verdict verdict) {
  switch (verdict) {
    case Verdict::kDifferent:
      return "different";
    case Verdict::kNotShown:
      return "no difference shown";
    case Verdict::kOneSeed:
      return "one seed";
    case Verdict::kNoPairs:
      return "no common seed";
    case Verdict::kNotComparable:
      return "not comparable";
  }
  return "";
}

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json equal_time_json(const EqualTime& e) {
  if (e.values.empty()) return nullptr;
  return {{"split", "valid"},
          {"seconds", number(e.seconds)},
          {"values", e.values},
          {"mean", number(e.interval.mean)},
          {"low", number(e.interval.low)},
          {"high", number(e.interval.high)}};
}

}  // namespace

Cell cell(const Measure& measure, const Summary& summary) {
  if (summary.n == 0) return {"-", ""};
  Cell out{fixed(summary.mean * measure.scale, measure.decimals, measure.sign), ""};
  if (!measure.spread) return out;
  out.deviation = summary.n < 2 ? "± -" : "± " + fixed(summary.deviation * measure.scale, measure.decimals, false);
  return out;
}

std::string seeds_text(const Group& group) {
  std::string list;
  for (const Run& run : group.runs) list += str(list.empty() ? "" : ", ", run.seed);
  return str(group.runs.size(), group.runs.size() == 1 ? " seed (" : " seeds (", list, ")");
}

std::string to_text(const Comparison& c, int64_t width) {
  Grid wide = by_measure(c);
  std::string out = static_cast<int64_t>(total_width(wide)) <= width ? render(wide) : tables_by_group(c, width);
  out += str(kSpreadNote, "\n");
  if (std::string note = causal_note(c); !note.empty()) out += wrap(note, width, "", "  ");
  if (!c.differences.empty()) {
    out += str("\n", heading(c), "\n");
    for (const Difference& d : c.differences) {
      out += wrap(sentence(c, d), width, "  ", "    ");
      for (const std::string& more : {tests(c, d), at_equal_time(c, d)}) {
        if (!more.empty()) out += wrap(more, width, "    ", "      ");
      }
    }
    if (std::string note = intervals_note(c); !note.empty()) out += str("  ", note, "\n");
  }
  for (size_t i = 0; i < c.warnings.size(); ++i) {
    out += str(i == 0 ? "\n" : "", wrap(c.warnings[i], width, "warning: ", "    "));
  }
  return out;
}

std::string to_markdown(const Comparison& c) {
  Grid grid = by_measure(c);
  std::string out = "| |";
  std::string line = "|---|";
  for (const std::string& name : grid.headings) {
    out += str(" ", escape_markdown(name), " |");
    line += "---:|";
  }
  out += "\n" + line + "\n";
  for (size_t r = 0; r < grid.rows.size(); ++r) {
    out += str("| ", escape_markdown(grid.labels[r]), " |");
    for (const Cell& value : grid.rows[r])
      out += str(" ", value.number, value.deviation.empty() ? "" : " ", value.deviation, " |");
    out += "\n";
  }
  out += str("\n", kSpreadNote, "\n");
  if (std::string note = causal_note(c); !note.empty()) out += str("\n", note, "\n");
  if (!c.differences.empty()) {
    out += str("\n", heading(c), ":\n\n");
    for (const Difference& d : c.differences) {
      out += str("- ", escape_markdown(sentence(c, d)), "\n");
      for (const std::string& more : {tests(c, d), at_equal_time(c, d)}) {
        if (!more.empty()) out += str("  - ", escape_markdown(more), "\n");
      }
    }
    if (std::string note = intervals_note(c); !note.empty()) out += str("\n", note, "\n");
  }
  for (size_t i = 0; i < c.warnings.size(); ++i) {
    out += str(i == 0 ? "\n" : "", "- **warning:** ", escape_markdown(c.warnings[i]), "\n");
  }
  return out;
}

std::string to_csv(const Comparison& c) {
  std::string out = "group,seeds";
  for (const Measure& m : c.measures) out += str(",", m.key, m.spread ? str(",", m.key, "_deviation") : "");
  out +=
      ",difference_to,difference_of,difference_pairs,difference_mean,difference_low,difference_high,t_p_value,"
      "signed_rank_p_value,equivalence_margin,equivalence_p_value,effect_size,seeds_for_1_percent,"
      "equal_time_seconds,equal_time_mean,equal_time_low,equal_time_high,causal\n";
  for (size_t g = 0; g < c.groups.size(); ++g) {
    out += str(csv_field(c.groups[g].name), ",", c.groups[g].runs.size());
    for (const Measure& m : c.measures) {
      out += str(",", exact(m.groups[g].mean), m.spread ? str(",", exact(m.groups[g].deviation)) : "");
    }
    auto d = std::find_if(c.differences.begin(), c.differences.end(),
                          [&](const Difference& x) { return x.first == static_cast<int64_t>(g); });
    if (d == c.differences.end()) {
      out += ",,,,,,,,,,,,,,,,";
    } else {
      out +=
          str(",", csv_field(c.groups[static_cast<size_t>(d->second)].name), ",", c.split, "_", c.unit.key, ",",
              d->values.size(), ",", exact(d->interval.mean), ",", exact(d->interval.low), ",", exact(d->interval.high),
              ",", exact(d->interval.p_value), ",", exact(d->signed_rank_p), ",", exact(d->margin), ",",
              exact(d->equivalence_p), ",", exact(d->effect_size), ",", d->seeds_needed > 0 ? str(d->seeds_needed) : "",
              ",", d->equal_time.values.empty() ? "" : exact(d->equal_time.seconds), ",",
              exact(d->equal_time.interval.mean), ",", exact(d->equal_time.interval.low), ",",
              exact(d->equal_time.interval.high));
    }
    out += c.groups[g].causal ? ",true\n" : ",false\n";
  }
  return out;
}

Json to_json(const Comparison& c) {
  Json out;
  out["metric"] = {{"split", c.split}, {"unit", c.unit.key}, {"lower_is_better", true}};
  out["groups"] = Json::array();
  for (size_t g = 0; g < c.groups.size(); ++g) {
    const Group& group = c.groups[g];
    Json entry;
    entry["name"] = group.name;
    entry["recurrent_stage"] = group.has_stage;
    entry["causal"] = group.causal;
    entry["runs"] = Json::array();
    for (const Run& run : group.runs) {
      entry["runs"].push_back(
          {{"path", run.path}, {"seed", run.seed}, {"value", number(c.unit.of(*run.evaluation(c.split)))}});
    }
    for (const Measure& m : c.measures) {
      const Summary& s = m.groups[g];
      entry["measures"][m.key] = {{"mean", number(s.mean)}, {"deviation", number(s.deviation)}, {"n", s.n}};
    }
    out["groups"].push_back(std::move(entry));
  }
  out["baseline"] = c.groups[static_cast<size_t>(c.baseline)].name;
  out["differences"] = Json::array();
  for (const Difference& d : c.differences) {
    Json values = Json::array();
    for (double v : d.values) values.push_back(number(v));
    out["differences"].push_back({{"first", c.groups[static_cast<size_t>(d.first)].name},
                                  {"second", c.groups[static_cast<size_t>(d.second)].name},
                                  {"seeds", d.seeds},
                                  {"values", values},
                                  {"mean", number(d.interval.mean)},
                                  {"deviation", number(d.interval.deviation)},
                                  {"confidence", 0.95},
                                  {"low", number(d.interval.low)},
                                  {"high", number(d.interval.high)},
                                  {"p_value", number(d.interval.p_value)},
                                  {"signed_rank_p_value", number(d.signed_rank_p)},
                                  {"effect_size", number(d.effect_size)},
                                  {"equivalence", {{"margin", number(d.margin)}, {"p_value", number(d.equivalence_p)}}},
                                  {"seeds_for_1_percent", d.seeds_needed > 0 ? Json(d.seeds_needed) : Json(nullptr)},
                                  {"equal_time", equal_time_json(d.equal_time)},
                                  {"first_better", d.first_better},
                                  {"verdict", verdict_key(d.verdict)},
                                  {"text", sentence(c, d)}});
  }
  out["config_differences"] = Json::object();
  for (const ConfigDifference& d : c.config) {
    Json values = Json::object();
    for (size_t g = 0; g < c.groups.size(); ++g) values[c.groups[g].name] = d.values[g];
    out["config_differences"][d.key] = std::move(values);
  }
  out["warnings"] = c.warnings;
  return out;
}

}  // namespace rmoe::compare
