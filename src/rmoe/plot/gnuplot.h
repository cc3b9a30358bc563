// Runs the program gnuplot (Debian package gnuplot-nox), which draws the plots of the report.
#pragma once

#include <string>

namespace rmoe::plot {

// Feeds `script` to gnuplot's standard input and returns its standard output. The user's gnuplot settings are not read.
// Throws Error(kIo) when gnuplot is missing or fails; the message holds its first error line.
std::string run_gnuplot(const std::string& script);

}  // namespace rmoe::plot
