#include "rmoe/base/nearest.h"

#include <algorithm>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

// Equal for '-' and '_', capitals and small letters: those cost nothing.
std::string folded(std::string_view name) {
  std::string out(name);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return out;
}

// Optimal string alignment distance.
size_t typing_errors(const std::string& a, const std::string& b) {
  std::vector<size_t> before(b.size() + 1), row(b.size() + 1), next(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    next[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      next[j] = std::min({row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        next[j] = std::min(next[j], before[j - 2] + 1);
    }
    before.swap(row);
    row.swap(next);
  }
  return row[b.size()];
}

}  // namespace

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  constexpr size_t kLongestName = 200;  // nothing longer is a typing error, and the table stays small
  if (name.size() > kLongestName) return "";
  const std::string typed = folded(name);
  std::string best;
  size_t fewest = std::max<size_t>(1, (name.size() + 1) / 3) + 1;
  for (const std::string& candidate : candidates) {
    size_t errors = typing_errors(typed, folded(candidate));
    if (errors < fewest && errors < candidate.size()) {
      fewest = errors;
      best = candidate;
    }
  }
  return best;
}

std::string help_for_unknown(std::string_view name, const std::vector<std::string>& candidates) {
  if (std::string near = nearest(name, candidates); !near.empty()) return str("did you mean '", near, "'?");
  if (candidates.empty()) return "";
  std::string help = "known: ";
  for (size_t i = 0; i < candidates.size(); ++i) help += (i > 0 ? ", " : "") + candidates[i];
  return help;
}

}  // namespace rmoe
