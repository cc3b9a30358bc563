// What `rmoe analyze` leaves in its folder, made of the contents of analysis.json alone. Free of torch.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "rmoe/base/json.h"
#include "rmoe/plot/plot.h"

namespace rmoe::analysis {

// One analysis as a reader sees it.
struct Picture {
  std::string file;     // its name without the ending
  std::string heading;  // the run, where there is a picture for each
  std::function<std::string(plot::Format)> draw;
};
struct Section {
  std::string id, title;
  std::string text;   // two sentences: what the plots show, and how to read them
  std::string paper;  // what the paper says, with its values where it gives them
  std::vector<Picture> pictures;
  std::string csv;  // the numbers behind them
};

// The analyses that the runs hold, in the order of docs/analysis.md.
std::vector<Section> sections(const Json& analysis);

// The page: no network, no JavaScript, wide and narrow, light and dark. `command` is shown, not run.
std::string report_html(const Json& analysis, const std::string& command);

// "step 7" for a checkpoint, "steps 0 to 6" for a trace of training. `run` is an element of analysis.json's `runs`.
std::string steps_text(const Json& run);

// Writes analysis.json, csv/ID.csv, plots/FILE.svg and .png, and report.html into the folder, which is made where it is
// missing. Error(kIo) for what cannot be written, and without gnuplot.
void write_analysis(const Json& analysis, const std::filesystem::path& folder, const std::string& command);

}  // namespace rmoe::analysis
