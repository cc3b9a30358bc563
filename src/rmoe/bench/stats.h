// Times of repeated work in a few numbers, and the order in which variants take turns. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

namespace rmoe::bench {

struct Times {
  double best = 0;
  double median = 0;  // of an even number of times the mean of the two in the middle
  int64_t count = 0;
};
// Throws kBug when there is none.
Times times_of(std::vector<double> seconds);

// The turns of `variants` variants in round `round`: 0, 1, ... in even rounds, back again in odd ones, so that a
// machine that grows slower or faster favours none.
std::vector<size_t> turns(int64_t round, size_t variants);

}  // namespace rmoe::bench
