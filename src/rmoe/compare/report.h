// report.html: a comparison as one self-contained page (no network, no JavaScript), readable wide and narrow, light and
// dark. Numbers come from the comparison; curves, expert usage and samples from the run folders.
#pragma once

#include <string>

#include "rmoe/compare/comparison.h"

namespace rmoe::compare {

// `command` is the command line that made the report; it is shown, not run. Reads metrics.jsonl and samples/final.txt
// of every run and starts gnuplot for the plots; throws what read_curves() and run_gnuplot() throw.
std::string report_html(const Comparison& comparison, const std::string& command);

// A word as a POSIX shell reads it back: quoted where it has to be.
std::string shell_word(const std::string& word);

}  // namespace rmoe::compare
