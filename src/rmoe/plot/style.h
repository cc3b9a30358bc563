// The style sheet of the report.
#pragma once

#include <string>

namespace rmoe::plot {

// CSS with the variables that plot.h names, for light and dark pages.
std::string report_css();

// A variable's colour on a light page, "c0" -> "#0067a3"; empty for a name that is not a colour's.
std::string light_colour(const std::string& name);

}  // namespace rmoe::plot
