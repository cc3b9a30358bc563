// "Did you mean": the known name nearest to a mistyped one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rmoe {

// The candidate with the fewest typing errors (insert, delete, replace, swap; capitals, '-' and '_' count as equal)
// from `name`; empty when none is near enough to be what was meant.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

// Help for an unknown name: "did you mean 'top_k'?", or "known: a, b, c" when nothing is near.
std::string help_for_unknown(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace rmoe
