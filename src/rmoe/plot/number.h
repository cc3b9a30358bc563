// Numbers as text for tables and sentences.
#pragma once

#include <string>

namespace rmoe::plot {

// Fixed-point notation, "1.652"; with `sign` also "+1.652".
std::string fixed(double value, int decimals, bool sign = false);

}  // namespace rmoe::plot
