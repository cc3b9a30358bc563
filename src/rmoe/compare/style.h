// The style sheet of the report.
#pragma once

#include <string>

namespace rmoe::compare {

// CSS with the variables that plot.h names, for light and dark pages.
std::string report_css();

}  // namespace rmoe::compare
