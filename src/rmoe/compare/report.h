// report.html: a comparison as one self-contained page (no network, no JavaScript), readable wide and narrow, light and
// dark. Numbers come from the comparison; curves, expert usage and samples from the run folders.
#pragma once

#include <string>

#include "rmoe/compare/comparison.h"

namespace rmoe::compare {

// The page shows how to train every run again, into a folder with this behind its name.
constexpr const char* kAgain = "-again";

// `command` is the command line that compares the runs trained again; it is shown, not run. Reads metrics.jsonl and
// samples/final.txt of every run and starts gnuplot for the plots; throws what read_curves() and run_gnuplot() throw.
std::string report_html(const Comparison& comparison, const std::string& command);

// A word as a POSIX shell reads it back: quoted where it has to be.
std::string shell_word(const std::string& word);

}  // namespace rmoe::compare
