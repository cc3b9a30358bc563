// Columns for a terminal.
#pragma once

#include <string>
#include <vector>

namespace rmoe::bench {

// The first `left` columns aligned to the left, the others to the right. Every row has as many cells as the head.
std::string table_text(const std::vector<std::vector<std::string>>& rows, size_t left = 1);

// A number with so many digits behind the point; "-" for one that is not finite.
std::string fixed(double value, int digits);

}  // namespace rmoe::bench
