#include "rmoe/kernels/cpu/experts.h"

#include <algorithm>

namespace rmoe::kernels {

SortedSlots::SortedSlots(const int64_t* ids, int64_t tokens, int64_t top_k, int64_t experts)
    : tokens_(tokens),
      top_k_(top_k),
      first_(static_cast<size_t>(experts) + 1),
      rows_(static_cast<size_t>(tokens * top_k)) {
  const int64_t slots = tokens * top_k;
  const auto used = [&](int64_t id) { return id >= 0 && id < experts; };
  for (int64_t s = 0; s < slots; ++s) {
    if (used(ids[s])) ++first_[ids[s] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) first_[e + 1] += first_[e];
  slots_.resize(static_cast<size_t>(first_[experts]));
  std::vector<int64_t> next(first_.begin(), first_.end() - 1);
  for (int64_t s = 0; s < slots; ++s) {
    rows_[s] = used(ids[s]) ? next[ids[s]]++ : -1;
    if (rows_[s] >= 0) slots_[rows_[s]] = s;
  }
}

RoutedRows SortedSlots::rows() const {
  return {.tokens = tokens_,
          .top_k = top_k_,
          .experts = static_cast<int64_t>(first_.size()) - 1,
          .rows = static_cast<int64_t>(slots_.size()),
          .slots_M = slots_.data(),
          .rows_TK = rows_.data()};
}

std::vector<RowBlock> SortedSlots::blocks(int64_t most) const {
  std::vector<RowBlock> blocks;
  for (int64_t e = 0; e + 1 < static_cast<int64_t>(first_.size()); ++e) {
    if (count(e) == 0) continue;
    const int64_t parts = (count(e) + most - 1) / most, length = (count(e) + parts - 1) / parts;
    for (int64_t begin = first_[e]; begin < first_[e + 1]; begin += length) {
      blocks.push_back({e, begin, std::min(begin + length, first_[e + 1])});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const RowBlock& a, const RowBlock& b) { return a.end - a.begin > b.end - b.begin; });
  return blocks;
}

}  // namespace rmoe::kernels
