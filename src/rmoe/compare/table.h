// A comparison as text for a terminal of 100 columns, Markdown, CSV and JSON.
#pragma once

#include <string>

#include "rmoe/base/json.h"
#include "rmoe/compare/comparison.h"

namespace rmoe::compare {

inline constexpr int64_t kTerminalWidth = 100;

// A number as the tables show it, in two parts that are aligned on their own: "1.652" and "± 0.011". A deviation over a
// single seed is "± -", a measure without spread has none, a missing number is "-".
struct Cell {
  std::string number;
  std::string deviation;
};
Cell cell(const Measure& measure, const Summary& summary);

// "3 seeds (1, 2, 3)", "1 seed (7)".
std::string seeds_text(const Group& group);

// Groups as columns while they fit into `width`, as rows of two tables otherwise; then the paired differences and the
// warnings.
std::string to_text(const Comparison& comparison, int64_t width = kTerminalWidth);
std::string to_markdown(const Comparison& comparison);

// One row per group; numbers in full precision and in the units of the run folder; the difference to the baseline in
// the columns difference_*.
std::string to_csv(const Comparison& comparison);
Json to_json(const Comparison& comparison);

}  // namespace rmoe::compare
