#include "rmoe/reproduce/result.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "rmoe/base/error.h"
#include "rmoe/plot/number.h"

namespace rmoe::reproduce {
namespace {

constexpr int kDecimals = 4;

std::optional<double> measure(const compare::Run& run, const std::string& split, const std::string& unit) {
  const auto& evaluation = run.evaluation(split);
  if (!evaluation) return std::nullopt;
  if (unit == "perplexity per word") return evaluation->word_perplexity;
  if (unit == "perplexity per token") return evaluation->perplexity;
  return evaluation->bits_per_character;
}

compare::Summary over_seeds(const RowResult& row, const std::string& split, const std::string& unit) {
  std::vector<double> values;
  for (const compare::Run& run : row.runs) {
    if (const auto value = measure(run, split, unit)) values.push_back(*value);
  }
  return compare::summarize(values);
}

// Row minus baseline on the test split, one value for every seed that both have.
std::vector<double> paired(const RowResult& row, const RowResult& baseline, const std::string& unit) {
  std::vector<double> values;
  for (const compare::Run& run : row.runs) {
    for (const compare::Run& other : baseline.runs) {
      const auto a = measure(run, "test", unit), b = measure(other, "test", unit);
      if (run.seed == other.seed && a && b) values.push_back(*a - *b);
    }
  }
  return values;
}

Verdict judge(const RowResult& row) {
  if (row.runs.empty()) return Verdict::kDiverged;
  if (!row.difference || row.difference->n < 2) return Verdict::kOneSeed;
  if (!row.difference->excludes_zero()) return Verdict::kNotShown;
  if (!row.paper_difference) return Verdict::kNoNumber;
  return (row.difference->mean < 0) == (*row.paper_difference < 0) ? Verdict::kAgrees : Verdict::kDisagrees;
}

const char* words(Verdict verdict) {
  switch (verdict) {
    case Verdict::kBaseline:
      return "";
    case Verdict::kAgrees:
      return "agrees with the paper";
    case Verdict::kDisagrees:
      return "the other way round";
    case Verdict::kNotShown:
      return "no difference shown";
    case Verdict::kOneSeed:
      return "too few seeds to tell";
    case Verdict::kNoNumber:
      return "a difference; the paper gives none";
    case Verdict::kDiverged:
      return "diverged";
  }
  return "";
}

std::string number(std::optional<double> value, int decimals, bool sign = false) {
  return value && std::isfinite(*value) ? plot::fixed(*value, decimals, sign) : "-";
}

std::string spread(const compare::Summary& s) {
  if (s.n == 0) return "-";
  return plot::fixed(s.mean, kDecimals) + (s.n > 1 ? " ± " + plot::fixed(s.deviation, kDecimals) : "");
}

std::string interval(const RowResult& row) {
  if (!row.difference || row.difference->n == 0) return "-";
  std::string text = plot::fixed(row.difference->mean, kDecimals, true);
  if (row.difference->n > 1) {
    text += " (" + plot::fixed(row.difference->low, kDecimals, true) + " to " +
            plot::fixed(row.difference->high, kDecimals, true) + ")";
  }
  return text;
}

compare::Summary over_runs(const RowResult& row, double Analyzed::* what) {
  std::vector<double> values;
  for (const Analyzed& one : row.analyzed) values.push_back(one.*what);
  return compare::summarize(values);
}

// What the analysis found, in place of the differences.
std::vector<std::vector<std::string>> looks(const Result& result) {
  const bool balance = result.entry.look == Look::kBalance;
  std::vector<std::vector<std::string>> lines;
  lines.push_back(
      balance ? std::vector<std::string>{"model", "paper inner", "paper outer", "seeds", "inner", "outer"}
              : std::vector<std::string>{"model", "seeds", "gradient", "of LM loss", "of balance loss", "dropped"});
  lines.back().push_back("test");
  for (const RowResult& r : result.rows) {
    std::vector<std::string> line{r.row.label};
    if (balance) line.insert(line.end(), {number(r.row.paper.inner, 3), number(r.row.paper.outer, 3)});
    line.push_back(str(r.runs.size()));
    const auto columns = balance ? std::vector<double Analyzed::*>{&Analyzed::inner, &Analyzed::outer}
                                 : std::vector<double Analyzed::*>{&Analyzed::gradient, &Analyzed::lm_gradient,
                                                                   &Analyzed::balance_gradient, &Analyzed::dropped};
    for (const auto what : columns) line.push_back(spread(over_runs(r, what)));
    line.push_back(spread(r.test));
    lines.push_back(std::move(line));
  }
  return lines;
}

std::vector<std::vector<std::string>> cells(const Result& result) {
  if (result.entry.look != Look::kNone) return looks(result);
  std::vector<std::vector<std::string>> lines{
      {"model", "paper valid", "paper test", "paper diff.", "seeds", "valid", "test", "difference (95 %)", "verdict"}};
  for (const RowResult& r : result.rows) {
    std::string verdict = words(r.verdict);
    if (!r.diverged.empty() && !r.runs.empty()) verdict += str("; ", r.diverged.size(), " diverged");
    lines.push_back({r.row.label, number(r.row.paper.valid, 3), number(r.row.paper.test, 3),
                     number(r.paper_difference, 3, true), str(r.runs.size()), spread(r.valid), spread(r.test),
                     interval(r), verdict});
  }
  return lines;
}

// Columns, not bytes: "±" is one.
int64_t width_of(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

std::vector<std::string> notes(const Result& r) {
  std::vector<std::string> lines;
  lines.push_back(str("here: ", r.scale, " scale, in ", r.unit, " on the test split, ± the deviation over seeds"));
  if (!r.entry.unit.empty() && r.entry.unit != r.unit) lines.push_back("the paper's numbers are in " + r.entry.unit);
  if (r.entry.look == Look::kNone) lines.push_back("difference: to the baseline, paired by seed; lower is better");
  if (!r.entry.note.empty()) lines.push_back(r.entry.note);
  return lines;
}

Json optional_json(std::optional<double> value) { return value && std::isfinite(*value) ? Json(*value) : Json(); }

Json analyzed_json(Look look, const std::vector<Analyzed>& runs) {
  Json all = Json::array();
  for (const Analyzed& a : runs) {
    all.push_back(look == Look::kBalance
                      ? Json{{"inner_balance", optional_json(a.inner)}, {"outer_balance", optional_json(a.outer)}}
                      : Json{{"gradient", optional_json(a.gradient)},
                             {"lm_gradient", optional_json(a.lm_gradient)},
                             {"balance_gradient", optional_json(a.balance_gradient)},
                             {"drop_ratio", optional_json(a.dropped)}});
  }
  return all;
}

}  // namespace

Result make_result(const Entry& entry, const std::string& scale, std::vector<RowResult> rows) {
  Result result{.entry = entry, .scale = scale, .unit = entry.unit, .rows = std::move(rows)};
  const auto has_unit = [&](const RowResult& row) {
    return std::all_of(row.runs.begin(), row.runs.end(),
                       [&](const compare::Run& run) { return measure(run, "test", result.unit).has_value(); });
  };
  if (!std::all_of(result.rows.begin(), result.rows.end(), has_unit)) result.unit = "bits per character";
  for (RowResult& row : result.rows) {
    row.valid = over_seeds(row, "valid", result.unit);
    row.test = over_seeds(row, "test", result.unit);
    if (row.row.baseline.empty()) {
      if (row.runs.empty()) row.verdict = Verdict::kDiverged;
      continue;
    }
    const auto baseline = std::find_if(result.rows.begin(), result.rows.end(),
                                       [&](const RowResult& other) { return other.row.label == row.row.baseline; });
    RMOE_ASSERT(baseline != result.rows.end(), entry.name, " has no row ", row.row.baseline);
    if (row.row.paper.test && baseline->row.paper.test) {
      row.paper_difference = *row.row.paper.test - *baseline->row.paper.test;
    }
    if (const auto values = paired(row, *baseline, result.unit); !values.empty()) {
      row.difference = compare::paired_interval(values);
    }
    row.verdict = judge(row);
  }
  return result;
}

std::string to_text(const Result& result) {
  const auto lines = cells(result);
  std::vector<int64_t> widths(lines.front().size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], width_of(line[i]));
  }
  std::ostringstream out;
  out << result.entry.name << ": " << result.entry.title << "\n";
  for (const auto& line : lines) {
    std::string text;
    for (size_t i = 0; i < line.size(); ++i) {
      const std::string blanks(static_cast<size_t>(widths[i] - width_of(line[i])), ' ');
      const bool words_column = i == 0 || lines.front()[i] == "verdict";
      text += (i > 0 ? "  " : "") + (words_column ? line[i] + blanks : blanks + line[i]);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out << text << "\n";
  }
  for (const std::string& note : notes(result)) out << note << "\n";
  return out.str();
}

std::string to_markdown(const Result& result) {
  std::ostringstream out;
  out << "### " << result.entry.name << ": " << result.entry.title << "\n\n";
  bool head = true;
  for (const auto& line : cells(result)) {
    for (const std::string& cell : line) out << "| " << cell << " ";
    out << "|\n";
    if (std::exchange(head, false)) {
      for (const std::string& name : line) out << (name == "model" || name == "verdict" ? "|---" : "|--:");
      out << "|\n";
    }
  }
  out << "\n";
  for (const std::string& note : notes(result)) out << "- " << note << "\n";
  return out.str();
}

Json to_json(const Result& result) {
  Json rows = Json::array();
  for (const RowResult& r : result.rows) {
    Json seeds = Json::array(), test = Json::array();
    for (const compare::Run& run : r.runs) {
      seeds.push_back(run.seed);
      test.push_back(optional_json(measure(run, "test", result.unit)));
    }
    rows.push_back({{"model", r.row.label},
                    {"config", r.row.config},
                    {"baseline", r.row.baseline},
                    {"paper",
                     {{"valid", optional_json(r.row.paper.valid)},
                      {"test", optional_json(r.row.paper.test)},
                      {"inner_balance", optional_json(r.row.paper.inner)},
                      {"outer_balance", optional_json(r.row.paper.outer)}}},
                    {"analyzed", analyzed_json(result.entry.look, r.analyzed)},
                    {"paper_difference", optional_json(r.paper_difference)},
                    {"seeds", seeds},
                    {"diverged_seeds", r.diverged},
                    {"test", test},
                    {"test_mean", optional_json(r.test.mean)},
                    {"valid_mean", optional_json(r.valid.mean)},
                    {"difference", r.difference ? optional_json(r.difference->mean) : Json()},
                    {"low", r.difference ? optional_json(r.difference->low) : Json()},
                    {"high", r.difference ? optional_json(r.difference->high) : Json()},
                    {"verdict", words(r.verdict)}});
  }
  return {{"entry", result.entry.name}, {"title", result.entry.title},     {"scale", result.scale},
          {"unit", result.unit},        {"paper_unit", result.entry.unit}, {"rows", rows}};
}

}  // namespace rmoe::reproduce
