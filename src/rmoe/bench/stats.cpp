#include "rmoe/bench/stats.h"

#include <algorithm>
#include <numeric>

#include "rmoe/base/error.h"

namespace rmoe::bench {

Times times_of(std::vector<double> seconds) {
  RMOE_ASSERT(!seconds.empty());
  std::sort(seconds.begin(), seconds.end());
  const size_t half = seconds.size() / 2;
  const double median = seconds.size() % 2 == 1 ? seconds[half] : (seconds[half - 1] + seconds[half]) / 2;
  return {.best = seconds.front(), .median = median, .count = std::ssize(seconds)};
}

std::vector<size_t> turns(int64_t round, size_t variants) {
  std::vector<size_t> order(variants);
  std::iota(order.begin(), order.end(), size_t{0});
  if (round % 2 == 1) std::reverse(order.begin(), order.end());
  return order;
}

}  // namespace rmoe::bench
