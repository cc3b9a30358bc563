// The tables and figures of the paper (arXiv 2408.06793) that a machine can attempt: which models each one trains, and
// what the paper reports of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rmoe::reproduce {

// What the paper says of one model; absent where it says nothing.
struct PaperNumbers {
  std::optional<double> valid, test;   // in the entry's unit
  std::optional<double> inner, outer;  // inner and outer balance: medians over tokens
};

// One model of an entry.
struct Row {
  std::string label;
  std::string config;    // file name in the folder of configs
  std::string baseline;  // label of the row that it is compared with; empty: it is a baseline itself
  PaperNumbers paper;
};

// What a result shows of its runs, besides their quality.
enum class Look {
  kNone,
  kBalance,    // inner and outer balance (Table 8), and the plots of `rmoe analyze`
  kGradients,  // norm of the routers' gradient by source, share of dropped rows (Table 11)
};

struct Entry {
  std::string name;   // "table1", "figure2"
  std::string title;  // of the paper's table or figure
  std::string unit;   // of `valid` and `test` in the paper
  std::string data;   // preset of `rmoe data prepare` that the paper's setting reads
  std::vector<Row> rows;
  std::string note = {};                 // what a reader has to know beside the numbers
  Look look = Look::kNone;               // where it is something, `rmoe analyze` reads the trained models
  std::vector<std::string> covers = {};  // other tables and figures of the same models: names of this entry, too
};

const std::vector<Entry>& entries();
// By its name, or by one that it covers. Throws Error(kBadInput) with the nearest name for an unknown one.
const Entry& find_entry(const std::string& name);

}  // namespace rmoe::reproduce
