// What a reproduction found, beside the paper's numbers.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "rmoe/base/json.h"
#include "rmoe/compare/run.h"
#include "rmoe/compare/stats.h"
#include "rmoe/reproduce/entries.h"

namespace rmoe::reproduce {

enum class Verdict {
  kBaseline,   // what the others are compared with
  kAgrees,     // the interval of the difference excludes 0, on the paper's side
  kDisagrees,  // on the other side
  kNotShown,   // the interval includes 0
  kOneSeed,    // no interval
  kNoNumber,   // the paper gives no difference; ours excludes 0
  kDiverged,   // no run of the row came to its end
};

// What `rmoe analyze` found in one run; NaN where it has no such thing.
struct Analyzed {
  double inner = std::nan(""), outer = std::nan("");  // balance: medians over tokens
  double gradient = std::nan(""), lm_gradient = std::nan(""), balance_gradient = std::nan("");  // norms, all routers
  double dropped = std::nan("");  // share of the chosen rows
};

struct RowResult {
  Row row;
  std::vector<compare::Run> runs;                     // finished, by seed
  std::vector<int64_t> diverged;                      // seeds
  std::vector<Analyzed> analyzed;                     // of the runs, where the entry has a look
  compare::Summary valid, test;                       // over the seeds
  std::optional<double> paper_difference;             // of the test numbers, row minus baseline
  std::optional<compare::PairedInterval> difference;  // ours, paired by seed
  Verdict verdict = Verdict::kBaseline;
};

struct Result {
  Entry entry;
  std::string scale;  // "paper" or "cpu"
  std::string unit;   // what the runs here were measured in
  std::vector<RowResult> rows;
};

// `rows`: with their runs and diverged seeds; the rest is computed. The unit is the paper's where the runs have it,
// bits per character otherwise.
Result make_result(const Entry& entry, const std::string& scale, std::vector<RowResult> rows);

std::string to_text(const Result& result);
std::string to_markdown(const Result& result);
Json to_json(const Result& result);

}  // namespace rmoe::reproduce
